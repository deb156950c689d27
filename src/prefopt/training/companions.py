"""Further sequences that an objective wants scored beside its judgements.

KTO's reference point is the mean of log π − log π_ref over completions of *other* prompts;
mDPO compares the preferred completion with itself under a corrupted prompt. Both are groups of
their own with a position behind those of the data, so they depend on the seed and the epoch and
never on micro-batches or the number of processes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from prefopt.engine.tokens import TokenGroup
from prefopt.errors import DataError
from prefopt.objectives.objective import Reads

Kind = Literal["mismatched", "corrupted"]

#: share of a corrupted prompt that is left, as of an image in mDPO (arXiv:2406.11839, §3.2)
KEPT = 0.2


class Companions(Sequence[TokenGroup]):
    """One group of companions for each group of an epoch, one companion for each judgement.

    They are made when they are asked for: an epoch of millions costs nothing.

    Args:
        kind: which.
        groups: as the objective reads them.
        order: gives the positions of the epoch's groups.
        reads: what the objective reads.
        start: position of the first, as if they stood behind the groups.
        count: how many groups the epoch has.
    """

    def __init__(
        self,
        kind: Kind,
        groups: Sequence[TokenGroup],
        order: Callable[[], Sequence[int] | NDArray[np.integer[Any]]],
        reads: Reads,
        start: int,
        count: int,
    ) -> None:
        self.start = start
        self._kind, self._groups, self._order, self._reads = kind, groups, order, reads
        self._count = count

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> TokenGroup: ...

    @overload
    def __getitem__(self, index: slice) -> list[TokenGroup]: ...

    def __getitem__(self, index: int | slice) -> TokenGroup | list[TokenGroup]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(self._count))]
        if not 0 <= index < self._count:
            raise IndexError(index)
        order = self._order()
        group = self._groups[int(order[index])]
        if self._kind == "corrupted":
            return _corrupted(group)
        return _mismatched(group, self._next_other(order, index, group), self._reads)

    def check(self) -> None:
        """Whether all of them can be made.

        Raises:
            DataError: all prompts are the same, so that nothing is mismatched.
        """
        if self._kind == "mismatched" and self._count:
            order = self._order()
            self._next_other(order, 0, self._groups[int(order[0])])

    def _next_other(
        self, order: Sequence[int] | NDArray[np.integer[Any]], place: int, group: TokenGroup
    ) -> TokenGroup:
        """The next group of the epoch, cyclically, whose prompt is another one."""
        for step in range(1, len(order)):
            other = self._groups[int(order[(place + step) % len(order)])]
            if not np.array_equal(other.prompt, group.prompt):
                return other
        raise DataError(
            "the objective needs completions of other prompts, and all rows have the same prompt",
            kind="one_prompt",
            field="data",
            remedy="add rows with another prompt, or choose an objective that compares completions",
        )


def _mismatched(group: TokenGroup, other: TokenGroup, reads: Reads) -> TokenGroup:
    """This prompt with completions of another one, judgement by judgement in turn."""
    answers = [other.completions[index] for index in _judged(other, reads)]
    count = len(_judged(group, reads))
    return TokenGroup(
        group.prompt,
        tuple(answers[index % len(answers)] for index in range(count)),
        source=group.source,
        origins=group.origins,
    )


def _judged(group: TokenGroup, reads: Reads) -> list[int]:
    """The completion of each judgement."""
    if reads == "labels":
        return [label.completion for label in group.labels]
    return [edge.preferred for edge in group.comparisons]


def _corrupted(group: TokenGroup) -> TokenGroup:
    """The preferred completion of each comparison, after the last fifth of the prompt.

    What is left holds the end of the conversation and the words that ask for an answer; the
    first token stays too, because it may be the one that every sequence begins with.
    """
    prompt = group.prompt
    kept = max(1, round(KEPT * len(prompt)))
    rest = prompt[max(1, len(prompt) - kept) :]
    return TokenGroup(
        np.concatenate([prompt[:1], rest]),
        tuple(group.completions[edge.preferred] for edge in group.comparisons),
        source=group.source,
        origins=group.origins,
    )
