"""Rows with the same prompt become one group, without holding the text of a whole data set.

A first pass keeps 16 bytes a row, from which it is known how many rows each prompt has; a
second pass emits a group as soon as its last row has been read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import zip_longest

import numpy as np
from numpy.typing import NDArray

from prefopt.data.aggregate import comparisons_from_votes
from prefopt.errors import DataError
from prefopt.records import Completion, Group

_KEY = 16  # bytes


@dataclass(frozen=True, slots=True)
class Plan:
    """Which rows belong together.

    Attributes:
        group: (R,) number of the group of each accepted row.
        sizes: (G,) rows of each group.
    """

    group: NDArray[np.int64]
    sizes: NDArray[np.int64]

    @classmethod
    def of_keys(cls, keys: bytes | bytearray) -> Plan:
        """From the keys of the accepted rows, one after the other."""
        table = np.frombuffer(bytes(keys), dtype=f"S{_KEY}")
        _, group, sizes = np.unique(table, return_inverse=True, return_counts=True)
        return cls(group.astype(np.int64), sizes.astype(np.int64))

    def merge(self, rows: Iterator[tuple[Group, bool]]) -> Iterator[Group]:
        """The groups, in the order in which their last rows come.

        Args:
            rows: a group for every accepted row, and whether it stays as it is.

        Raises:
            DataError: there are not as many rows as there were.
        """
        waiting: dict[int, list[Group]] = {}
        for number, row in zip_longest(map(int, self.group), rows):
            if number is None or row is None:
                raise DataError(
                    "the files changed while they were read",
                    kind="unreadable_file",
                    remedy="read again once nothing writes to them",
                )
            group, own = row
            if own:
                yield group
                continue
            parts = waiting.setdefault(number, [])
            parts.append(group)
            if len(parts) == self.sizes[number]:
                yield with_votes_counted(merge(waiting.pop(number)))


def own_key(row: int) -> bytes:
    """A key that no other row has: the row is a group already."""
    return row.to_bytes(_KEY, "big")


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
