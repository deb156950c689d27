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
    summed,
)

#: votes that everyone together is taken to have cast already: right, wrong, tie; tie, either
_DECIDED, _TIED = (4.0, 1.0, 1.0), (1.0, 1.0)
#: how many votes like those of all annotators each is taken to have cast already
STRENGTH = 4.0
_ENOUGH = 1e-7  # change of any probability in one step of EM
_ROUNDS = 3000
_HALF, _NEVER = float(np.log(2)), -700.0  # logs
_ROUNDS_TOGETHER = 500  # what all are like need not be exact: it is only leant on


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
    all_as_one = _Model(items, nobody, np.array([_DECIDED]), np.array([_TIED]))
    together = _climbed(all_as_one, begin, _ROUNDS_TOGETHER)
    size = len(votes.annotators) + 1
    known = (strength * np.repeat(part, size, axis=0) for part in (together.decided, together.tied))
    return _climbed(_Model(items, votes.voter, *known), together.truth, _ROUNDS)


def _climbed(model: _Model, truth: Floats, most: int) -> Fit:
    """EM to the maximum, with leaps along the way that it takes (SQUAREM, Varadhan 2008).

    EM alone crawls where annotators vote little. After two of its steps a leap goes on in their
    direction; it counts where the likelihood is no lower there, so that none ever falls.
    """
    point = model.maximised(truth)
    truth, _ = model.expected(point)
    rounds = 0
    while True:
        one = model.maximised(truth)
        after, value = model.expected(one)
        rounds += 1
        converged = bool(np.abs(after - truth).max(initial=0.0) < _ENOUGH)
        if converged or rounds >= most:
            right, tie, _ = model.rows(one)
            return Fit(after, np.exp(right), np.exp(tie), converged, rounds)
        two = model.maximised(after)
        first, second = one - point, two - 2 * one + point
        length = max(1.0, float(np.linalg.norm(first)) / max(float(np.linalg.norm(second)), 1e-12))
        point = model.normalised(point + 2 * length * first + length**2 * second)
        truth, leapt = model.expected(point)
        rounds += 1
        if not leapt >= value:
            point = two
            truth, _ = model.expected(two)
            rounds += 1


@dataclass(frozen=True)
class _Model:
    """The likelihood of votes, and the two halves of a step.

    A point is a flat array of logs: the rows (A, 3) and (A, 2), and the shares of pairs that are
    decided and tied.

    Attributes:
        items: what was voted on.
        who: (V,) by whom.
        decided, tied: (A, 3) and (A, 2) votes that are known already.
    """

    items: Items
    who: Ints
    decided: Floats
    tied: Floats

    def rows(self, point: Floats) -> tuple[Floats, Floats, Floats]:
        """The three parts of a point."""
        count = len(self.decided)
        right, tie = point[: 3 * count], point[3 * count : 5 * count]
        return right.reshape(-1, 3), tie.reshape(-1, 2), point[5 * count :]

    def normalised(self, point: Floats) -> Floats:
        """The same with rows that are probabilities again."""
        from scipy.special import logsumexp

        parts = [part - logsumexp(part, axis=-1, keepdims=True) for part in self.rows(point)]
        return np.concatenate([part.ravel() for part in parts])

    def maximised(self, truth: Floats) -> Floats:
        """M: the point of the highest likelihood, given what is true."""
        said, of, count = self.items.said, truth[self.items.of], len(self.decided)
        sided = said != TIE
        right = np.where(said == LOW, of[:, 0], of[:, 1]) * sided
        wrong = np.where(said == LOW, of[:, 1], of[:, 0]) * sided
        parts = (right, wrong, (of[:, 0] + of[:, 1]) * ~sided, of[:, 2] * ~sided, of[:, 2] * sided)
        counts = np.column_stack([summed(self.who, part, count) for part in parts])
        shares = np.array([truth[:, :2].sum() + 1.0, truth[:, 2].sum() + 1.0])
        logs = [np.log(counts[:, :3] + self.decided), np.log(counts[:, 3:] + self.tied)]
        # Where nobody voted for a tie, none is possible.
        last = np.log(shares) if self.items.counts[:, TIE].any() else np.array([0.0, _NEVER])
        return self.normalised(np.concatenate([*(part.ravel() for part in logs), last]))

    def expected(self, point: Floats) -> tuple[Floats, float]:
        """E: the (M, 3) probabilities of what is true, and the log-likelihood of the point."""
        from scipy.special import logsumexp

        said, (right, tie, shares) = self.items.said, self.rows(point)
        # A vote for LOW is in the first column, right, if the lower option is the better one; if
        # it is the higher one, in the second. A tie is voted for either side as often.
        if_high = np.array([HIGH, LOW, TIE])[said]
        if_tied = (tie - [0.0, _HALF])[self.who, (said != TIE).astype(np.int64)]
        each = (right[self.who, said], right[self.who, if_high], if_tied)
        log = np.column_stack([summed(self.items.of, part, len(self.items)) for part in each])
        log += [shares[0] - _HALF, shares[0] - _HALF, shares[1]]
        total = logsumexp(log, axis=1, keepdims=True)
        known = float((self.decided * right).sum() + (self.tied * tie).sum() + shares[0])
        known += float(shares[1]) if shares[1] > _NEVER else 0.0
        return np.exp(log - total), float(total.sum()) + known
