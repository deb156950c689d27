"""Rules that count: the share of the votes on a pair, and orders made from such shares.

They have no model of annotators and nothing to converge. Of the n votes on a pair, n₁ are for
one option and t say that it is a tie; its share is (n₁ + t/2)/n.
"""

from __future__ import annotations

import numpy as np

from prefopt.data.aggregation.table import Aggregate, Floats, Votes, ordered, settled, summed


def majority(votes: Votes) -> Aggregate:
    """majority: 1 where n₁ > n₂, 0 where n₁ < n₂, and 1/2, a tie, where they are equal.

    Votes for a tie are for neither. Nothing breaks a tie, least of all the order of the options.
    """
    low, high, _ = votes.items.counts.T
    return Aggregate("majority", 0.5 + 0.5 * np.sign(low - high))


def smoothed(votes: Votes, *, smoothing: float = 0.5) -> Aggregate:
    """smoothed: (n₁ + t/2 + a)/(n + 2a).

    The mean of a Beta(a, a) prior after the votes; a = 1/2 is Jeffreys'.
    """
    items = votes.items
    share = (items.wins[:, 0] + smoothing) / (items.total + 2 * smoothing)
    return Aggregate("smoothed", settled(share), details={"smoothing": smoothing})


def borda(votes: Votes) -> Aggregate:
    """borda: the higher mean share against the options it was compared with.

    However often each pair was asked about. A Bradley–Terry fit of pooled votes orders in the
    same way where every pair has as many votes (Siththaranjan et al. 2023, arXiv:2312.08358).
    """
    scores = _against(votes, np.add, 0.0) / _opponents(votes)
    return Aggregate("borda", ordered(votes, scores), scores)


def copeland(votes: Votes) -> Aggregate:
    """copeland: the higher number of options beaten less those lost to, by majority.

    An option that beats every other (the Condorcet winner) has the highest.
    """
    items = votes.items
    sign = np.sign(items.counts[:, 0] - items.counts[:, 1]).astype(np.float64)
    scores = summed(items.low, sign, votes.options)
    scores -= np.bincount(items.high, sign, votes.options)
    scores[~votes.voted] = np.nan
    return Aggregate("copeland", ordered(votes, scores), scores)


def maximin(votes: Votes) -> Aggregate:
    """maximin: the higher share against the worst opponent, max_i min_j P(i ≻ j)."""
    scores = _against(votes, np.minimum, np.inf)
    scores[~votes.voted] = np.nan
    return Aggregate("maximin", ordered(votes, scores), scores)


def _against(votes: Votes, into: np.ufunc, start: float) -> Floats:
    """(O,) the shares of an option against each opponent, put together."""
    items = votes.items
    share = items.wins / items.total[:, None]
    found = np.full(votes.options, start)
    for options, column in ((items.low, 0), (items.high, 1)):
        into.at(found, options, share[:, column])
    return found


def _opponents(votes: Votes) -> Floats:
    """(O,) how many options each was compared with; NaN for none."""
    items = votes.items
    count = np.bincount(np.append(items.low, items.high), minlength=votes.options)
    return np.where(count > 0, count, np.nan)
