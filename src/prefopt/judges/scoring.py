"""Judges that score: their comparisons follow from their scores."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any

from prefopt.judges.judge import Judge, Progress, Question, Verdict
from prefopt.records import Prompt

#: a score, and by kind the replies that could not be read on the way to it
Scored = tuple[float | None, dict[str, int]]


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

    The transcript has both scores, and `failures` of those that were read first for it. Without
    one of them nothing can be read. The judge sees one completion at a time and no order, so
    `order_consistent` is None.
    """
    sides = {
        (question.prompt, text): None
        for question in questions
        for text in (question.first, question.second)
    }
    scores = dict(zip(sides, scored_all(judge, list(sides), progress), strict=True))
    verdicts = []
    for question in questions:
        failures: Counter[str] = Counter()
        pair = []
        for side in ((question.prompt, question.first), (question.prompt, question.second)):
            score, failed = scores[side]
            pair.append(score)
            failures.update(failed)
            scores[side] = (score, {})  # of an answer in several questions they are counted once
        first, second = pair
        known = first is not None and second is not None
        probability = preference(first - second, temperature) if known else None  # type: ignore[operator]
        transcript: dict[str, Any] = {"scores": pair}
        if failures:
            transcript["failures"] = dict(failures)
        verdicts.append(Verdict(probability, transcript=transcript))
    return verdicts


def scored_each(judge: Any, answers: Sequence[tuple[Prompt, str]]) -> Iterator[tuple[int, Scored]]:
    """(position, score and failures) as they come, of a judge with `score_each`."""
    before = Counter(judge.failures)
    with closing(judge.score_each(answers)) as coming:
        for position, score in coming:
            now = Counter(judge.failures)
            yield position, (score, dict(now - before))
            before = now


def scored_all(
    judge: Judge, answers: Sequence[tuple[Prompt, str]], progress: Progress | None = None
) -> list[Scored]:
    """Every score, with its failures: of a judge that scores all at once the one that it knows."""
    if not hasattr(judge, "score_each"):
        scores = judge.score_all(answers, progress)
        why = getattr(judge, "unscored", {})
        return [
            (score, {why.get(answer, "no_score"): 1} if score is None else {})
            for answer, score in zip(answers, scores, strict=True)
        ]
    found: dict[int, Scored] = {}
    for position, one in scored_each(judge, answers):
        found[position] = one
        if progress is not None:
            progress(len(found), len(answers))
    return [found[position] for position in range(len(answers))]
