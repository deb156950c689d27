"""Judges that score: their comparisons follow from their scores."""

from __future__ import annotations

import math
from collections.abc import Sequence

from prefopt.judges.judge import Judge, Progress, Question, Verdict


def preference(gap: float, temperature: float | None = None) -> float:
    """Probability that the first is better, from how much more it scores.

    Args:
        gap: score of the first minus score of the second.
        temperature: of Bradley–Terry's σ(gap/T); None takes the higher score for sure, and equal
            ones for a tie.

    >>> preference(0.1), preference(0.0), round(preference(1.0, temperature=0.5), 4)
    (1.0, 0.5, 0.8808)
    """
    if temperature is None:
        return 1.0 if gap > 0 else 0.0 if gap < 0 else 0.5
    scaled = gap / temperature
    if scaled >= 0:
        return 1 / (1 + math.exp(-scaled))
    return math.exp(scaled) / (1 + math.exp(scaled))


def compare_by_scores(
    judge: Judge,
    questions: Sequence[Question],
    *,
    temperature: float | None = None,
    progress: Progress | None = None,
) -> list[Verdict]:
    """What a judge's scores say to questions; each completion of a prompt is scored once.

    The transcript has both scores. Without one of them nothing can be read. The judge sees one
    completion at a time and no order, so `order_consistent` is None.
    """
    sides = {
        (question.prompt, text): None
        for question in questions
        for text in (question.first, question.second)
    }
    scores = dict(zip(sides, judge.score_all(list(sides), progress), strict=True))
    verdicts = []
    for question in questions:
        first = scores[question.prompt, question.first]
        second = scores[question.prompt, question.second]
        known = first is not None and second is not None
        probability = preference(first - second, temperature) if known else None  # type: ignore[operator]
        verdicts.append(Verdict(probability, transcript={"scores": [first, second]}))
    return verdicts
