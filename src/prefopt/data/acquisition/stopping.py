"""When to stop asking about one pair: it is decided, a tie, a conflict, undecided or open.

Of n answers k are for the first completion, a tie counting half. The Jeffreys interval of the
share, Beta(k + ½, n − k + ½), is looked at after every answer, so over many pairs more than one
in twenty that are really even is taken for decided; the probability of a comparison says how
sure it is, the state only whether more answers are worth their price.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from prefopt.data.jeffreys import interval

State = Literal["open", "decided", "tie", "conflict", "undecided"]
#: who answered, if that is known, and 1 for the first completion, 0 for the second, ½ for a tie
Answer = tuple[str | None, float]


@dataclass(frozen=True)
class Verdict:
    """What the answers to one question come to.

    Attributes:
        state: `decided` where the interval excludes one half; `conflict` where annotators
            contradict each other and agree with themselves; `tie` where the share is near one
            half, surely or after the last answer; `undecided` where it is not and there are no
            more answers to be had; else `open`.
        share: of the answers for the first completion, ties half.
        interval: of that share, 95 %.
        answers: how many there are.
    """

    state: State
    share: float
    interval: tuple[float, float]
    answers: int


def verdict(answers: Sequence[Answer], *, most: int | None = None, band: float = 0.1) -> Verdict:
    """What answers to one question come to.

    Args:
        answers: in the order in which they were given.
        most: answers after which nobody is asked again; None for no limit.
        band: how far from one half the share of a tie may be.

    Raises:
        ValueError: there are no answers.

    >>> verdict([("ann", 1.0)] * 5).state, verdict([("ann", 1.0), ("bob", 0.0)]).state
    ('decided', 'open')
    >>> verdict([("ann", 1.0), ("bob", 0.0)], most=2).state, verdict([(None, 1.0)], most=1).state
    ('tie', 'undecided')
    """
    if not answers:
        raise ValueError("a verdict needs at least one answer")
    count, total = len(answers), sum(value for _, value in answers)
    low, high = share_interval(total, count)
    if not low <= 0.5 <= high:
        state: State = "decided"
    elif divided(answers):
        state = "conflict"
    elif low >= 0.5 - band and high <= 0.5 + band:
        state = "tie"
    elif most is None or count < most:
        state = "open"
    else:
        state = "tie" if abs(total / count - 0.5) < band + 1e-9 else "undecided"
    return Verdict(state, total / count, (low, high), count)


@lru_cache(maxsize=4096)
def share_interval(total: float, count: int) -> tuple[float, float]:
    """The 95 % Jeffreys interval of a share, Beta(k + ½, n − k + ½).

    >>> [round(end, 4) for end in share_interval(5, 5)]
    [0.6206, 0.9999]
    """
    low, high = interval(total, count - total)
    return float(low), float(high)


def divided(answers: Sequence[Answer]) -> bool:
    """Whether annotators stand on both sides and would answer the same again.

    Known only from annotators who were asked more than once: their later answers agree with
    their first ones more often than a coin would, beyond its interval, and some stand on each
    side. Where more than half of the answers are ties, the pair is one.
    """
    own: dict[str, list[float]] = {}
    for annotator, value in answers:
        if annotator is not None:
            own.setdefault(annotator, []).append(value)
    repeated = [values for values in own.values() if len(values) > 1]
    sides = {values[0] for values in repeated if len(set(values)) == 1}
    if not {0.0, 1.0} <= sides or 2 * sum(value == 0.5 for _, value in answers) > len(answers):
        return False
    again = sum(len(values) - 1 for values in repeated)
    agreed = sum(value == values[0] for values in repeated for value in values[1:])
    return share_interval(agreed, again)[0] > 0.5
