"""Rao–Kupper: Bradley–Terry in which a tie is an outcome of its own, not half a win for each."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from prefopt.data.aggregation.bradley_terry import RIDGE, Wins, fit_scores, named
from prefopt.data.aggregation.table import Aggregate, Floats, Votes, settled
from prefopt.errors import DataError

_WIDEST = 32.0  # of the zone of ties, in nats: beyond it a win has probability 1e-14
_EXACT = 1e-12


def rao_kupper(votes: Votes, *, ridge: float = RIDGE) -> Aggregate:
    """rao-kupper: P(i ≻ j) + P(tie)/2, with P(i ≻ j) = σ(s_i − s_j − η).

    P(tie) = 1 − P(i ≻ j) − P(j ≻ i) = (e^{2η} − 1)·P(i ≻ j)·P(j ≻ i) (Rao and Kupper 1967).
    So a tie counts as a win of each over the other, and how wide the zone η ≥ 0 of ties is follows
    from how many there are. Both are of the highest likelihood, which is concave in them, less
    ridge/2 · Σ s². With a ridge above 0, one tie and one decision between
    equals are added to what is known of η, so that it stays finite where all votes are ties.

    Raises:
        DataError: `ridge` is 0 and no finite scores have the highest likelihood.
    """
    from scipy.special import expit

    items = votes.items
    ties = float(items.counts[:, 2].sum())
    if ridge == 0 and ties == len(votes):
        raise DataError(
            "all votes are ties, so the zone of ties has no finite width",
            kind="too_few_votes",
            remedy="use a ridge above 0, or collect more votes",
        )
    wins = Wins.of(items.low, items.high, items.counts[:, :2] + items.counts[:, 2:] * 1.0)
    added = 1.0 if ridge > 0 else 0.0
    scores = np.zeros(votes.options)

    def slope(width: float) -> float:
        """Of the likelihood along the width, the scores being the best for it."""
        nonlocal scores
        scores = fit_scores(wins, votes.options, ridge=ridge, offset=width, start=scores,
                            names=named(votes))  # fmt: skip
        margin = scores[wins.winner] - scores[wins.loser] - width
        pull = float(wins.weight @ expit(-margin)) + 3 * added * float(expit(width))
        return float(2 * (ties + added) / -np.expm1(-2 * width) - pull)

    width = _root(slope) if ties + added > 0 else 0.0
    slope(max(width, _EXACT))
    scores[~votes.voted] = np.nan
    return Aggregate(
        "rao-kupper",
        settled(_halves(votes, scores, width)),
        scores,
        details={"ridge": ridge, "tie_width": width},
    )


def _root(slope: Callable[[float], float]) -> float:
    """Where a falling function is zero; the widest zone if that is not before it."""
    from scipy.optimize import brentq

    high = 0.5
    while slope(high) > 0:
        high *= 2
        if high > _WIDEST:
            return _WIDEST
    return float(brentq(slope, _EXACT, high, xtol=1e-12, rtol=1e-14))


def _halves(votes: Votes, scores: Floats, width: float) -> Floats:
    """(M,) P(low ≻ high) + P(tie)/2 = 1/2 + (σ(Δ − η) − σ(−Δ − η))/2."""
    from scipy.special import expit

    difference = scores[votes.items.low] - scores[votes.items.high]
    won, lost = expit(difference - width), expit(-difference - width)
    return np.asarray(0.5 + 0.5 * (won - lost))
