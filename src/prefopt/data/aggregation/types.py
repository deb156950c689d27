"""Types of annotators: groups that want different things, found by what they vote.

A mixture: annotator a is of type k with probability η_k, and votes by the Bradley–Terry scores of
that type. This is the E-step of EM-DPO (Chidambaram et al. 2024, arXiv:2405.15065) on votes
instead of policies. One comparison an annotator cannot tell types from noise, whatever their
number (theirs, section 3), so that is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from prefopt.data.aggregation.bradley_terry import RIDGE, Wins, fit_scores
from prefopt.data.aggregation.table import HIGH, LOW, TIE, Floats, Votes, place, summed
from prefopt.data.jeffreys import interval
from prefopt.errors import DataError

Verdict = Literal["decided", "tie", "conflict", "open"]

_ENOUGH = 1e-6  # change of any probability that an annotator is of a type
_ROUNDS = 500
_FIRST_ROUNDS = 12  # from each beginning, before the best goes on
_RESTARTS = 10
#: votes on a pair from which on "near one half" is something that was found out
ENOUGH_VOTES = 8


@dataclass(frozen=True)
class Types:
    """A fitted mixture of K types, the largest first.

    Attributes:
        shares: (K,) of the annotators.
        membership: (A, K) probability that an annotator is of a type.
        scores: (K, O) what each type thinks of the options.
        likelihood: log-likelihood of the votes in nats.
        alone: the same of one type for all.
        gain: how much better several types than one explain an annotator's votes that were set
            aside, in nats an annotator.
        gain_interval: of it, 95 %, over the annotators.
        converged: whether EM came to rest.
    """

    shares: Floats
    membership: Floats
    scores: Floats
    likelihood: float
    alone: float
    gain: float
    gain_interval: tuple[float, float]
    converged: bool

    @property
    def supported(self) -> bool:
        """Whether the votes speak for several types: any votes can be split into some."""
        return self.gain_interval[0] > 0


def fit_types(
    votes: Votes,
    count: int,
    *,
    ridge: float = RIDGE,
    seed: int = 0,
    restarts: int = _RESTARTS,
) -> Types:
    """The mixture of the highest likelihood among several random beginnings.

    Votes without an annotator are left out: nothing joins them. A tie is half a vote for each
    side. Ridges keep the scores of each type finite, as in `bradley_terry`.

    Raises:
        DataError: nobody is named, every annotator gave only one comparison, or fewer gave
            several than there are to be types.
    """
    votes = votes.where(votes.annotator >= 0)
    _refuse_unidentifiable(votes, count)
    rng = np.random.default_rng(seed)
    best = _search(votes, count, ridge, rng, restarts)
    alone = _search(votes, 1, ridge, rng, 1)
    gain, ends = _held_out_gain(votes, count, ridge, rng, restarts)
    order = np.argsort(-best.shares, kind="stable")
    return Types(
        best.shares[order], best.membership[:, order], best.scores[order],
        best.likelihood, alone.likelihood,
        gain, ends, best.converged,
    )  # fmt: skip


def pair_verdicts(
    votes: Votes, types: Types | None = None, *, enough: int = ENOUGH_VOTES
) -> tuple[NDArray[np.str_], Floats]:
    """What is behind each pair: is it decided, a tie, or do two groups of people conflict?

    The share of votes for the lower option, ties half, is compared with one half by its 95 %
    Jeffreys interval: within each type of annotators, and among all.

        conflict    one type is for the lower option and another for the higher one
        decided     all together are for one of them
        tie         most say tie, or there are `enough` votes and still no side
        open        too few votes to say

    Args:
        votes: with the items.
        types: who is of which type; without them nothing can be a conflict.
        enough: votes from which on a pair near one half is called a tie.

    Returns:
        (M,) verdicts, and the (M, K) share of each type; NaN where it has no votes.
    """
    items = votes.items
    membership = np.ones((len(votes.annotators), 1)) if types is None else types.membership
    rows = np.vstack([membership, np.zeros(membership.shape[1])])  # those without a name: none
    if types is None:
        rows[-1] = 1.0
    low = (items.said == LOW) + 0.5 * (items.said > HIGH)
    of_type = rows[votes.voter]
    won, lost = (
        np.column_stack([summed(items.of, part * column, len(items)) for column in of_type.T])
        for part in (low, 1 - low)
    )
    sides = _side(won, lost)
    all_sides = _side(items.wins[:, 0], items.wins[:, 1])
    conflict = (sides > 0).any(axis=1) & (sides < 0).any(axis=1)
    mostly_tie = 2 * items.counts[:, TIE] > items.total
    # The first that holds.
    verdict = np.select(
        [conflict, all_sides != 0, mostly_tie | (items.total >= enough)],
        ["conflict", "decided", "tie"],
        "open",
    )
    with np.errstate(invalid="ignore"):
        share = np.where(won + lost > 1e-9, won / (won + lost), np.nan)
    return verdict, share


def described(votes: Votes, types: Types, most: int = 20) -> dict[str, Any]:
    """The types as `--json` prints them; without support for them nothing is called a conflict."""
    verdict, share = pair_verdicts(votes, types if types.supported else None)
    counts = {name: int((verdict == name).sum()) for name in ("decided", "tie", "conflict", "open")}
    cast = np.bincount(votes.voter, minlength=len(votes.annotators) + 1)
    conflicts = np.flatnonzero(verdict == "conflict")
    return {
        "count": len(types.shares),
        "shares": types.shares.tolist(),
        "log_likelihood": types.likelihood,
        "log_likelihood_of_one_type": types.alone,
        "held_out_gain": types.gain,
        "held_out_gain_interval": list(types.gain_interval),
        "supported": types.supported,
        "converged": types.converged,
        "annotators": [
            {"annotator": name, "type": int(row.argmax()), "probability": float(row.max())}
            for name, row, votes_cast in zip(votes.annotators, types.membership, cast, strict=False)
            if votes_cast
        ],
        "pairs": counts,
        "conflicts": [
            {**place(votes, int(item)), "shares": [_plain(value) for value in share[item]]}
            for item in conflicts[:most]
        ],
    }


def _plain(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _side(won: Floats, lost: Floats) -> NDArray[np.int8]:
    """1 or −1 where the share is surely above or below one half, else 0."""
    low, high = interval(won, lost)
    return np.asarray((low > 0.5).astype(np.int8) - (high < 0.5).astype(np.int8))


def _search(
    votes: Votes, count: int, ridge: float, rng: np.random.Generator, restarts: int
) -> _Climbed:
    """The best of several random beginnings, followed to where it rests."""
    annotators = len(votes.annotators)
    found = []
    for _ in range(restarts if count > 1 else 1):
        start = np.full((annotators, count), 0.1 / count)
        start[np.arange(annotators), rng.integers(count, size=annotators)] += 0.9
        found.append(_climb(votes, start, ridge, _FIRST_ROUNDS))
    best = max(found, key=lambda end: end.likelihood)
    return _climb(votes, best.membership, ridge)


def _held_out_gain(
    votes: Votes, count: int, ridge: float, rng: np.random.Generator, restarts: int
) -> tuple[float, tuple[float, float]]:
    """What several types know more than one of the half of everybody's pairs that was set aside.

    In nats an annotator, with its 95 % interval over annotators: each half serves once to fit and
    once to be foretold. Any crowd can be split into types that fit its votes better; only types
    that are there foretell votes.
    """
    _, pair = np.unique(votes.voter * len(votes.items) + votes.items.of, return_inverse=True)
    half = rng.permutation(int(pair.max()) + 1)[pair] % 2 == 0
    gains = np.zeros(len(votes.annotators))
    for fitted in (half, ~half):
        known, other = votes.where(fitted), votes.where(~fitted)
        if not len(known) or not len(other):
            return 0.0, (0.0, 0.0)
        for kinds, sign in ((count, 1.0), (1, -1.0)):
            found = _search(known, kinds, ridge, rng, restarts)
            gains += sign * _foretold(other, found)
    met = gains[np.bincount(votes.annotator, minlength=len(gains)) > 0]
    mean = float(met.mean())
    error = 1.96 * float(met.std(ddof=1) / np.sqrt(len(met))) if len(met) > 1 else np.inf
    return mean, (mean - error, mean + error)


def _foretold(votes: Votes, found: _Climbed) -> Floats:
    """(A,) log-probability of each annotator's votes, given what was fitted to others of them."""
    from scipy.special import logsumexp

    with np.errstate(divide="ignore"):
        return np.asarray(logsumexp(np.log(found.membership) + _said(votes, found.scores), axis=1))


def _said(votes: Votes, scores: Floats) -> Floats:
    """(A, K) log-likelihood of each annotator's votes under each type."""
    from scipy.special import log_expit

    low = (votes.items.said == LOW) + 0.5 * (votes.items.said > HIGH)
    margin = (scores[:, votes.items.low] - scores[:, votes.items.high])[:, votes.items.of]
    each = low * log_expit(margin) + (1 - low) * log_expit(-margin)
    size = len(votes.annotators)
    return np.column_stack([summed(votes.annotator, part, size) for part in each])


class _Climbed(NamedTuple):
    shares: Floats
    membership: Floats
    scores: Floats
    likelihood: float
    converged: bool


def _climb(votes: Votes, membership: Floats, ridge: float, most: int = _ROUNDS) -> _Climbed:
    """EM from a beginning to where it rests."""
    from scipy.special import logsumexp

    items, count = votes.items, membership.shape[1]
    low = (items.said == LOW) + 0.5 * (items.said > HIGH)
    cast = np.bincount(votes.annotator, minlength=len(membership)) > 0
    scores = np.zeros((count, votes.options))
    rounds = 0
    while True:
        shares = membership[cast].sum(axis=0) + 1.0
        shares /= shares.sum()
        for kind in range(count):
            weight = membership[votes.annotator, kind]
            wins = np.column_stack([
                summed(items.of, weight * part, len(items)) for part in (low, 1 - low)
            ])  # fmt: skip
            scores[kind] = fit_scores(
                Wins.of(items.low, items.high, wins), votes.options,
                ridge=ridge, start=scores[kind],
            )  # fmt: skip
        log = np.log(shares) + _said(votes, scores)
        each = logsumexp(log, axis=1)
        before, membership = membership, np.exp(log - each[:, None])
        likelihood = float(each[cast].sum())
        rounds += 1
        converged = bool(np.abs(membership - before).max(initial=0.0) < _ENOUGH)
        if converged or rounds == most:
            return _Climbed(shares, membership, scores, likelihood, converged)


def _refuse_unidentifiable(votes: Votes, count: int) -> None:
    if count < 1:
        raise ValueError("there is at least one type")
    if not len(votes):
        raise DataError(
            "no vote names its annotator, so there are no types of them",
            kind="too_few_votes",
            field="annotator",
            remedy="write who voted in every vote, or leave types out",
        )
    # Votes on one and the same pair are one comparison, however often it was repeated.
    pairs = np.unique(np.column_stack([votes.annotator, votes.items.of]), axis=0)
    several = int((np.bincount(pairs[:, 0]) > 1).sum())
    if several == 0:
        raise DataError(
            "every annotator gave only one comparison, from which types cannot be identified",
            kind="too_few_votes",
            field="annotator",
            remedy="ask each annotator about several pairs, or leave types out",
        )
    if several < count:
        raise DataError(
            "fewer annotators gave several comparisons than there are to be types",
            kind="too_few_votes",
            field="types",
            value=f"{several} annotators, {count} types",
            remedy="ask for fewer types, or more annotators about several pairs each",
        )
