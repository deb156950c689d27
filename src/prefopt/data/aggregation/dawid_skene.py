"""Dawid–Skene: what is true of each pair, and how each annotator confuses it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from prefopt.data.aggregation.table import (
    HIGH,
    LOW,
    TIE,
    Aggregate,
    Floats,
    Ints,
    Items,
    Votes,
    settled,
)

#: votes that everyone together is taken to have cast already: right, wrong, tie; tie, either
_DECIDED, _TIED = (4.0, 1.0, 1.0), (1.0, 1.0)
#: how many votes like those of all annotators each is taken to have cast already
STRENGTH = 4.0
_ENOUGH = 1e-6  # change of any probability
_ROUNDS = 2000
_ROUNDS_TOGETHER = 50  # what all are like need not be exact: it is only leant on


@dataclass(frozen=True)
class Fit:
    """What EM came to.

    Attributes:
        truth: (M, 3) probabilities that the lower option, the higher one or neither is better.
        decided: (A, 3) of a pair that is not a tie, how an annotator votes: right, wrong, tie.
        tied: (A, 2) of a tie: tie, either side.
        converged, rounds: how it ended.
    """

    truth: Floats
    decided: Floats
    tied: Floats
    converged: bool
    rounds: int

    @property
    def reliability(self) -> Floats:
        """(A,) how often a vote for one side of a pair that has a better one is right."""
        return np.asarray(self.decided[:, 0] / self.decided[:, :2].sum(axis=1))


def dawid_skene(votes: Votes) -> Aggregate:
    """dawid-skene: T(first) + T(tie)/2, T being the probability of what is true of a pair.

    E: T_ij ∝ π_j ∏_a ∏_l (θ^a_jl)^{n^a_il}; M: π and θ from expected counts (Dawid and Skene
    1979). Neither knows which option of a pair is called first: the two sides are equally
    probable, and a confusion is told apart by right, wrong and tie alone. Annotators with few
    votes lean on all others: EM runs for all as one annotator first, and what that gives counts as
    four votes of each. A tie is possible where somebody voted for one.
    """
    fit = fit_confusions(votes)
    truth = fit.truth
    return Aggregate(
        "dawid-skene",
        settled(truth[:, 0] + truth[:, 2] / 2),
        None,
        fit.reliability[: len(votes.annotators)],
        {"converged": fit.converged, "iterations": fit.rounds},
    )


def fit_confusions(votes: Votes, *, strength: float = STRENGTH) -> Fit:
    """The truth of each pair and the confusions of each annotator.

    Votes without an annotator are of one more annotator, the last.
    """
    items = votes.items
    begin = items.counts / items.total[:, None]
    nobody = np.zeros(len(votes), dtype=np.int64)
    together = _maximised(
        items, nobody, 1, begin, np.array([_DECIDED]), np.array([_TIED]), _ROUNDS_TOGETHER
    )
    return _maximised(
        items,
        votes.voter,
        len(votes.annotators) + 1,
        together.truth,
        strength * together.decided,
        strength * together.tied,
        _ROUNDS,
    )


def _maximised(
    items: Items,
    who: Ints,
    annotators: int,
    truth: Floats,
    decided: Floats,
    tied: Floats,
    most: int,
) -> Fit:
    """EM towards the maximum, with counts (1 or A, 3) and (1 or A, 2) that are known already."""
    ties = bool(items.counts[:, TIE].any())
    converged, rounds = False, 0
    while True:
        right, tie = _confusions(items, who, annotators, truth, decided, tied)
        if converged or rounds == most:
            return Fit(truth, right, tie, converged, rounds)
        shares = np.array([truth[:, :2].sum() + 1, truth[:, 2].sum() + ties])
        before, rounds = truth, rounds + 1
        truth = _truth(items, who, shares / shares.sum(), right, tie)
        converged = bool(np.abs(truth - before).max(initial=0.0) < _ENOUGH)


def _confusions(
    items: Items, who: Ints, annotators: int, truth: Floats, decided: Floats, tied: Floats
) -> tuple[Floats, Floats]:
    """M: the rows (A, 3) and (A, 2) of each annotator."""
    said, of = items.said, truth[items.of]
    sided = said != TIE
    right = np.where(said == LOW, of[:, 0], of[:, 1]) * sided
    wrong = np.where(said == LOW, of[:, 1], of[:, 0]) * sided
    parts = (right, wrong, (of[:, 0] + of[:, 1]) * ~sided, of[:, 2] * ~sided, of[:, 2] * sided)
    counts = np.column_stack([np.bincount(who, part, annotators) for part in parts])
    rows = counts[:, :3] + decided, counts[:, 3:] + tied
    return rows[0] / rows[0].sum(axis=1)[:, None], rows[1] / rows[1].sum(axis=1)[:, None]


def _truth(items: Items, who: Ints, shares: Floats, right: Floats, tie: Floats) -> Floats:
    """E: the (M, 3) probabilities, given the share of pairs that are decided and tied."""
    said = items.said
    with np.errstate(divide="ignore"):
        prior = np.log(np.array([shares[0] / 2, shares[0] / 2, shares[1]]))
        rows, ties = np.log(right), np.log(tie * np.array([1.0, 0.5]))
    # A vote for LOW is in the first column, right, if the lower option is the better one; if it is
    # the higher one, in the second.
    if_high = np.array([HIGH, LOW, TIE])[said]
    log = np.column_stack([
        np.bincount(items.of, part, len(items))
        for part in (rows[who, said], rows[who, if_high], ties[who, (said != TIE).astype(int)])
    ])  # fmt: skip
    log += prior
    log -= log.max(axis=1, keepdims=True)
    truth = np.exp(log)
    return np.asarray(truth / truth.sum(axis=1, keepdims=True))
