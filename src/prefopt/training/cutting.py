"""How a step is cut into pieces for several processes: alike in tokens, and enough for all."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from prefopt.engine.forest import first_fit


def balanced(sizes: Sequence[int], limit: int, readers: int) -> list[list[int]]:
    """Distribute things of these sizes over bins of at most `limit`, a multiple of `readers`.

    Each goes where there is least so far, the largest first. What is above the limit is alone
    in its own bin. There are fewer bins only where there are fewer things. Returns lists of
    positions, each ascending, the fullest bin first: bins that stand together are alike.

    >>> balanced([3, 5, 2, 9, 4], limit=10, readers=2)
    [[3], [0, 2], [1], [4]]
    >>> balanced([3, 5, 2, 9, 4], limit=20, readers=2)
    [[0, 3], [1, 2, 4]]
    """
    count = len(first_fit(sizes, limit))
    while True:
        count = min(-(-count // readers) * readers, len(sizes))
        bins = _greedy(sizes, count)
        totals = [sum(sizes[place] for place in members) for members in bins]
        fits = (total <= limit or len(own) == 1 for total, own in zip(totals, bins, strict=True))
        if all(fits):
            order = sorted(range(count), key=lambda index: (-totals[index], bins[index]))
            return [bins[index] for index in order]
        count += 1


def _greedy(sizes: Sequence[int], count: int) -> list[list[int]]:
    """The largest first, each into the bin that has least."""
    filled = [(0, index) for index in range(count)]
    bins: list[list[int]] = [[] for _ in range(count)]
    for place in sorted(range(len(sizes)), key=lambda at: (-sizes[at], at)):
        total, index = heapq.heappop(filled)
        bins[index].append(place)
        heapq.heappush(filled, (total + sizes[place], index))
    return [sorted(members) for members in bins]
