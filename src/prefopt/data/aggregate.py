"""Votes of several annotators become comparisons with probabilities."""

from __future__ import annotations

from collections.abc import Iterable

from prefopt.records import Comparison, Vote


def comparisons_from_votes(votes: Iterable[Vote]) -> tuple[Comparison, ...]:
    """One comparison for each pair that was voted on, in the order of the first votes.

    Of n votes on a pair, n₁ for one completion and t ties, the probability that this one is
    better is (n₁ + t/2 + 1/2) / (n + 1): the mean of a Beta(1/2, 1/2) prior after the votes,
    a tie being half a vote for each. The comparison points from the completion that is
    more probably better; at exactly 1/2 it is a tie, and it does not matter from where.

    >>> comparisons_from_votes([Vote(0, 1, "second"), Vote(1, 0, "first"), Vote(0, 1, "tie")])
    (Comparison(preferred=1, dispreferred=0, probability=0.75, weight=1.0),)
    """
    wins: dict[tuple[int, int], list[float]] = {}
    for vote in votes:
        low, high = sorted((vote.first, vote.second))
        won = {"first": float(vote.first == low), "second": float(vote.second == low), "tie": 0.5}
        wins.setdefault((low, high), []).append(won[vote.choice])
    edges = []
    for (low, high), shares in wins.items():
        probability = (sum(shares) + 0.5) / (len(shares) + 1)
        if probability >= 0.5:
            edges.append(Comparison(low, high, probability))
        else:
            edges.append(Comparison(high, low, 1.0 - probability))
    return tuple(edges)
