"""Both orders of every question: whoever sees which answer comes first is asked twice.

A language model prefers what it reads first (or second) more often than chance would. The mean of
both orders takes that out of the probability; what is left of it is said with the verdict: one
that flips with the order is a tie, and an inconsistency.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from prefopt.judges.judge import Judge, Progress, Question, Verdict

#: asks in one order, the given one
Once = Callable[[Sequence[Question], Progress | None], list[Verdict]]


#: of two answers that are one text: nobody has to be asked
SAME = Verdict(0.5, transcript={"same": True})


def same(question: Question) -> bool:
    """Whether both answers are one text, but for spaces at the ends, which no judge is shown."""
    return question.first.strip() == question.second.strip()


def swapped(question: Question) -> Question:
    """The same question with the answers in the other order."""
    return Question(question.prompt, question.second, question.first)


def turned(verdict: Verdict) -> Verdict:
    """What a verdict on a swapped question says of the question itself.

    Words and transcript stay as they were said, which `flipped` in the transcript notes.
    """
    turned = None if verdict.probability is None else 1.0 - verdict.probability
    transcript = dict(verdict.transcript)
    if not transcript.pop("flipped", False):
        transcript["flipped"] = True
    return Verdict(turned, verdict.rationale, verdict.order_consistent, transcript)


def merged(forward: Verdict, backward: Verdict) -> Verdict:
    """One verdict of both orders.

    Args:
        forward: on the question as it is.
        backward: on the question with the answers swapped, in its own terms.

    Returns:
        The mean of both; nothing where one of them could not be read, because what is left
        would have the bias of one order.

    >>> both = merged(Verdict(1.0), Verdict(1.0))     # the first one shown wins, whichever it is
    >>> both.probability, both.order_consistent
    (0.5, False)
    """
    transcript: dict[str, Any] = {"orders": [forward.probability, backward.probability]}
    for name, verdict in (("forward", forward), ("backward", backward)):
        if verdict.transcript or verdict.rationale:
            transcript[name] = {**verdict.transcript, "rationale": verdict.rationale}
    if forward.probability is None or backward.probability is None:
        return Verdict(None, forward.rationale, None, transcript)
    back = 1.0 - backward.probability
    return Verdict(
        (forward.probability + back) / 2,
        forward.rationale,
        side(forward.probability) == side(back),
        transcript,
    )


def side(probability: float) -> int:
    """1 for the first, −1 for the second, 0 for a tie."""
    return (probability > 0.5) - (probability < 0.5)


def settled(verdict: Verdict) -> float | None:
    """1 the first is better, 0 the second, ½ a tie; None if the verdict cannot be read.

    A verdict that flips with the order is a tie, whatever is left of its probability.

    >>> settled(Verdict(0.7)), settled(Verdict(0.7, order_consistent=False)), settled(Verdict(None))
    (1.0, 0.5, None)
    """
    if verdict.probability is None:
        return None
    if verdict.order_consistent is False:
        return 0.5
    return (1 + side(verdict.probability)) / 2


def in_both_orders(
    once: Once, questions: Sequence[Question], progress: Progress | None = None
) -> list[Verdict]:
    """Verdicts of whoever answers in one order, asked in both."""
    asked = [one for question in questions for one in (question, swapped(question))]

    def halved(done: int, total: int) -> None:
        if progress is not None:
            progress(done // 2, total // 2)

    said = once(asked, halved)
    return [merged(said[i], said[i + 1]) for i in range(0, len(said), 2)]


def fairly(
    judge: Judge, questions: Sequence[Question], progress: Progress | None = None
) -> list[Verdict]:
    """Verdicts of a judge in which the order of the answers has no part.

    A judge whose `sees_order` is False is asked once: it asks both orders itself, or sees one
    answer at a time.
    """
    if not getattr(judge, "sees_order", True):
        return judge.compare_all(questions, progress)
    return in_both_orders(judge.compare_all, questions, progress)
