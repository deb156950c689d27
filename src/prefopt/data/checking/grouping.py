"""Which of many comparisons belong together: by sorting digests, a block of prompts at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefopt.data.checking.facts import Facts

Indices = NDArray[np.int64]

_BLOCK = 1 << 20  # comparisons looked at together


def by_prompt(
    prompts: NDArray[np.uint64], *, least: int = 2, size: int = _BLOCK
) -> Iterator[Indices]:
    """Comparisons whose prompt has `least` of them or more, grouped by prompt.

    Each block holds whole prompts and, unless a single one is larger, at most `size` comparisons;
    those of one prompt stand beside each other in reading order. Takes some 30 bytes a
    comparison.

    >>> [block.tolist() for block in by_prompt(np.array([7, 5, 7, 5, 6], np.uint64), size=3)]
    [[1, 3], [0, 2]]
    """
    order = np.argsort(prompts, kind="stable")
    ascending = prompts[order]
    new = np.ones(len(order), dtype=bool)
    np.not_equal(ascending[1:], ascending[:-1], out=new[1:])
    del ascending
    counts = np.diff(np.append(np.flatnonzero(new), len(order)))
    order = order[np.repeat(counts >= least, counts)]
    ends = np.cumsum(counts[counts >= least])
    begin = 0
    while begin < len(order):
        within = int(np.searchsorted(ends, begin + size, side="right")) - 1
        following = int(np.searchsorted(ends, begin, side="right"))
        end = int(ends[max(within, following)])
        yield order[begin:end]
        begin = end


def numbered(*columns: NDArray[Any]) -> Indices:
    """(N,) the same number where all columns are the same, from 0 in ascending order.

    >>> numbered(np.array([2, 1, 2]), np.array([0, 5, 0])).tolist()
    [1, 0, 1]
    """
    order = np.lexsort(columns[::-1])
    new = np.zeros(len(order), dtype=bool)
    for column in columns:
        ascending = column[order]
        new[1:] |= ascending[1:] != ascending[:-1]
    numbers = np.empty(len(order), dtype=np.int64)
    numbers[order] = np.cumsum(new)
    return numbers


def firsts(numbers: Indices) -> Indices:
    """(N,) where each number, from 0 without gaps, stands first.

    >>> firsts(np.array([1, 0, 1])).tolist()
    [0, 1, 0]
    """
    places = np.full(int(numbers.max(initial=-1)) + 1, len(numbers), dtype=np.int64)
    np.minimum.at(places, numbers, np.arange(len(numbers)))
    return places[numbers]


class Pairs:
    """Comparisons of a block as unordered pairs of texts and who won; identical sides left out.

    Attributes:
        comparisons: (n,) indices into `Facts`, in the block's order.
        prompt: (n,) uint64 digests.
        low, high: (n,) uint64 digests of the two texts, the smaller first.
        direction: (n,) int8: +1 where `low` was preferred, −1 where `high` was, 0 for a tie.
    """

    def __init__(self, facts: Facts, block: Indices) -> None:
        self.comparisons = block = block[facts.first[block] != facts.second[block]]
        self.prompt = facts.prompt[block]
        first, second = facts.first[block], facts.second[block]
        self.low, self.high = np.minimum(first, second), np.maximum(first, second)
        self.direction = np.where(first < second, facts.toward[block], -facts.toward[block])

    def __len__(self) -> int:
        return len(self.comparisons)
