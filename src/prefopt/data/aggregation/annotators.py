"""Every annotator: how much, how like the others, how reliable, and whether position counts."""

from __future__ import annotations

from typing import Any

import numpy as np

from prefopt.data.aggregation.agreement import alpha, alpha_interval
from prefopt.data.aggregation.dawid_skene import fit_confusions
from prefopt.data.aggregation.table import FIRST, SECOND, TIE, Floats, Ints, Votes
from prefopt.data.jeffreys import interval


def annotator_table(votes: Votes, reliability: Floats | None = None) -> list[dict[str, Any]]:
    """One row an annotator, those with the most votes first.

    Args:
        votes: of all of them.
        reliability: (A,) from the rule that was used; else Dawid–Skene's is.

    Returns:
        Rows of `annotator` (None for votes that name nobody), `votes`, `agreement` (share of the
        other people's votes on the same pairs that say the same; None where there are none),
        `reliability` (None there too), `ties` (share of votes), `first_share` (of the votes for
        one side, how many were for the one shown first; None if there are none) and
        `first_interval` (its 95 % Jeffreys interval).
    """
    size = len(votes.annotators) + 1
    cast = np.bincount(votes.voter, minlength=size)
    same, others = _met(votes)
    known = reliability
    if known is None and others.any():
        known = fit_confusions(votes).reliability
    first, second, ties = (
        np.bincount(votes.voter[votes.choice == choice], minlength=size)
        for choice in (FIRST, SECOND, TIE)
    )
    low, high = interval(first, second)
    return [
        {
            "annotator": votes.annotators[who] if who < len(votes.annotators) else None,
            "votes": int(cast[who]),
            "agreement": float(same[who] / others[who]) if others[who] else None,
            "reliability": float(known[who])
            if known is not None and who < len(known) and others[who]
            else None,
            "ties": float(ties[who] / cast[who]),
            "first_share": float(first[who] / (first[who] + second[who]))
            if first[who] + second[who]
            else None,
            "first_interval": [float(low[who]), float(high[who])]
            if first[who] + second[who]
            else None,
        }
        for who in np.lexsort((np.arange(size), -cast))
        if cast[who]
    ]


def chance_corrected(votes: Votes, *, seed: int = 0) -> dict[str, Any]:
    """`alpha` and `alpha_interval` of what was said of the pairs, over all that have two votes.

    Every vote counts as a judgement of its own, also a second one of the same person: published
    figures are counted so, and most votes name nobody.
    """
    items, annotators, values = judged(votes)
    parts = items, np.full_like(annotators, -1), values
    low, high = alpha_interval(*parts, seed=seed)
    return {"alpha": alpha(*parts), "alpha_interval": [low, high]}


def judged(votes: Votes) -> tuple[Ints, Ints, Ints]:
    """Items, annotators and values, as `agreement` takes them.

    The values are LOW, HIGH and TIE, by the rank of the two options. How often each value is
    given counts in alpha, so which option is the lower one must not depend on where it stands.
    """
    items = votes.items
    turned = (votes.rank[items.low] > votes.rank[items.high])[items.of] & (items.said != TIE)
    return items.of, votes.annotator, np.where(turned, 1 - items.said, items.said)


def _met(votes: Votes) -> tuple[Ints, Ints]:
    """(A + 1,) equal votes and all votes of other people on the pairs that each voted on."""
    items, size = votes.items, len(votes.annotators) + 1
    # People without a name are different people: only their own vote is theirs.
    unnamed = votes.annotator < 0
    person = np.where(unnamed, size + np.arange(len(votes)), votes.annotator)
    own = items.of * (size + len(votes)) + person
    own_all = np.unique(own, return_inverse=True, return_counts=True)
    own_same = np.unique(own * 3 + items.said, return_inverse=True, return_counts=True)
    others = items.total[items.of] - own_all[2][own_all[1]]
    same = items.counts[items.of, items.said] - own_same[2][own_same[1]]
    return (
        np.bincount(votes.voter, same, size).astype(np.int64),
        np.bincount(votes.voter, others, size).astype(np.int64),
    )
