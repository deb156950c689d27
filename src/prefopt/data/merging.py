"""Rows with the same prompt become one group, without holding the text of a whole data set.

A first pass keeps a hash of eight bytes a row, from which it is known how many rows may
have the same prompt; a second pass emits a group as soon as its last row has been read. Where
no hash occurs twice, nothing is kept. A hash only says which rows to wait for: which of them
belong together is decided by their prompts.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import repeat

import numpy as np
from numpy.typing import NDArray

from prefopt.data.aggregate import comparisons_from_votes
from prefopt.errors import DataError
from prefopt.records import Completion, Group, Prompt

_AT_ONCE = 1 << 16  # rows that are counted at once
_RECENT = 1 << 16  # hashes among which a second one is noticed at once


class PromptSeenTwice(Exception):
    """Rows were taken for groups of their own, and two of them belong together."""


class Hashes:
    """Hashes of the prompts of the accepted rows, one after the other.

    Args:
        at_once: refuse a prompt that comes twice, as soon as it is noticed.
    """

    def __init__(self, *, at_once: bool = False) -> None:
        self._all = array("q")
        self._recent: set[int] = set()
        self._at_once = at_once

    def __len__(self) -> int:
        return len(self._all)

    def add(self, prompt: Prompt) -> None:
        """Note the prompt of the next row.

        Raises:
            PromptSeenTwice: it was among the last ones.
        """
        found = hash(prompt)
        self._all.append(found)
        if self._at_once:
            if found in self._recent:
                raise PromptSeenTwice
            if len(self._recent) == _RECENT:
                self._recent.clear()
            self._recent.add(found)

    def plan(self) -> Plan:
        """Which rows may belong together. Uses up the hashes.

        Raises:
            PromptSeenTwice: some do, and that was to be refused.
        """
        hashes, self._all = np.frombuffer(self._all, dtype=np.int64), array("q")
        plan = Plan.of_hashes(hashes)
        if self._at_once and plan.bucket is not None:
            raise PromptSeenTwice
        return plan


@dataclass(frozen=True, slots=True)
class Plan:
    """Which rows may belong together: those with one hash are a bucket.

    Attributes:
        rows: R, how many were accepted that may be merged.
        bucket: (R,) number of the bucket of each, -1 for a row alone in its own; None if all
            are.
        sizes: rows of each bucket.
    """

    rows: int
    bucket: NDArray[np.int32] | None = None
    sizes: NDArray[np.int32] | None = None

    @classmethod
    def of_hashes(cls, hashes: NDArray[np.int64]) -> Plan:
        """From the hash of each row's prompt.

        Takes 8 bytes a row if they are all different, else up to 24 for a moment and 4 then.
        """
        ascending = np.sort(hashes)
        if not (ascending[1:] == ascending[:-1]).any():
            return cls(len(hashes))
        del ascending
        order = np.argsort(hashes)
        ascending = hashes[order]
        new = np.ones(len(hashes), dtype=bool)  # begins a bucket
        np.not_equal(ascending[1:], ascending[:-1], out=new[1:])
        del ascending, hashes
        alone = new.copy()
        alone[:-1] &= new[1:]
        np.logical_and(new, ~alone, out=new)
        number = np.cumsum(new, dtype=np.int32)
        number -= 1
        sizes = np.zeros(int(number[-1]) + 1, dtype=np.int32)
        number[alone] = -1
        bucket = np.empty_like(number)
        bucket[order] = number
        for start in range(0, len(bucket), _AT_ONCE):
            part = bucket[start : start + _AT_ONCE]
            np.add.at(sizes, part[part >= 0], 1)
        return cls(len(bucket), bucket, sizes)

    def merge(self, rows: Iterator[tuple[Group, bool]]) -> Iterator[Group]:
        """The groups, in the order in which their last rows come.

        Args:
            rows: a group for every accepted row, and whether it stays as it is.

        Raises:
            DataError: there are not as many rows as there were.
        """
        waiting: dict[int, dict[Prompt, list[Group]]] = {}
        seen: dict[int, int] = {}
        numbers = map(int, repeat(-1, self.rows) if self.bucket is None else self.bucket)
        for group, whole in rows:
            if whole:
                yield group
                continue
            number = next(numbers, None)
            if number is None:
                raise _changed()
            if number < 0:
                yield with_votes_counted(group)
                continue
            waiting.setdefault(number, {}).setdefault(group.prompt, []).append(group)
            seen[number] = seen.get(number, 0) + 1
            assert self.sizes is not None
            if seen[number] == self.sizes[number]:
                del seen[number]
                yield from map(with_votes_counted, map(merge, waiting.pop(number).values()))
        if next(numbers, None) is not None:
            raise _changed()


def _changed() -> DataError:
    return DataError(
        "the files changed while they were read",
        kind="unreadable_file",
        remedy="read again once nothing writes to them",
    )


def merge(parts: list[Group]) -> Group:
    """One group of several with the same prompt.

    The same text is one completion (the first known score and source are kept); comparisons,
    labels and votes are re-indexed and all kept, also where one occurs twice: two rows that
    say the same count twice. Of columns in `meta` that differ the first row's value is kept.
    """
    if len(parts) == 1:
        return parts[0]
    places: dict[str, int] = {}
    completions: list[Completion] = []
    comparisons, labels, votes = [], [], []
    for part in parts:
        place = [_place(item, places, completions) for item in part.completions]
        comparisons += [
            replace(edge, preferred=place[edge.preferred], dispreferred=place[edge.dispreferred])
            for edge in part.comparisons
        ]
        labels += [replace(mark, completion=place[mark.completion]) for mark in part.labels]
        votes += [
            replace(vote, first=place[vote.first], second=place[vote.second]) for vote in part.votes
        ]
    return replace(
        parts[0],
        completions=tuple(completions),
        comparisons=tuple(comparisons),
        labels=tuple(labels),
        votes=tuple(votes),
        meta={name: value for part in reversed(parts) for name, value in part.meta.items()},
        origins=tuple(origin for part in parts for origin in part.origins),
    )


def with_votes_counted(group: Group) -> Group:
    """The group with its votes as comparisons, beside those that it has."""
    if not group.votes:
        return group
    return replace(group, comparisons=(*group.comparisons, *comparisons_from_votes(group.votes)))


def _place(item: Completion, places: dict[str, int], completions: list[Completion]) -> int:
    place = places.setdefault(item.text, len(completions))
    if place == len(completions):
        completions.append(item)
    elif item.score is not None or item.source is not None:
        known = completions[place]
        completions[place] = Completion(
            known.text,
            item.score if known.score is None else known.score,
            item.source if known.source is None else known.source,
        )
    return place
