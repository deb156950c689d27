"""Which groups each optimizer step has: a pure function of the data, the seed and the epoch.

A step holds about `batch_size` judgements: comparisons, labels or rankings, whichever the
objective reads (for `sft`, completions). Groups are atomic: a step takes groups in the
epoch's order until the next would exceed `batch_size`. A single group with more judgements
than that is a step of its own, and the last step of an epoch may be smaller.

A plan keeps where its steps begin and, of one epoch at a time, the order of the groups. A
step itself is made when it is asked for, so a plan of millions of rows is as fast to make as
their order, and groups that no step reaches are never read.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from prefopt.data.mixture import epoch_order
from prefopt.training.batches import Examples, Step, make_step
from prefopt.training.companions import Companions, Kind

Order = NDArray[np.integer[Any]]


@dataclass(frozen=True)
class _Epoch:
    """One pass over the data.

    Attributes:
        number: counted from 0.
        bounds: where in its order each step begins, and where the last one ends.
        steps: how many of them the plan has.
        judgements: of those steps.
        companions: of its groups, if any are wanted.
    """

    number: int
    bounds: NDArray[np.int64]
    steps: int
    judgements: int
    companions: Companions | None


class Plan(Sequence[Step]):
    """The steps of a training in order, each made when it is asked for.

    Attributes:
        judgements: of all steps.
    """

    def __init__(
        self,
        examples: Examples,
        epochs: Sequence[_Epoch],
        orders: _Orders,
        microbatch_tokens: int,
        *,
        in_order: bool,
    ) -> None:
        self.judgements = sum(epoch.judgements for epoch in epochs)
        self._examples, self._epochs, self._orders = examples, epochs, orders
        self._microbatch_tokens, self._in_order = microbatch_tokens, in_order
        self._ends = list(accumulate(epoch.steps for epoch in epochs))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @overload
    def __getitem__(self, index: int) -> Step: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Step]: ...

    def __getitem__(self, index: int | slice) -> Step | Sequence[Step]:
        if isinstance(index, slice):
            return _Part(self, range(len(self))[index])
        if not -len(self) <= index < len(self):
            raise IndexError(f"step {index} of {len(self)}")
        index %= len(self)
        turn = bisect_right(self._ends, index)
        epoch = self._epochs[turn]
        place = index - (self._ends[turn - 1] if turn else 0)
        first, last = epoch.bounds[place : place + 2].tolist()
        order = self._orders(epoch.number)
        positions: list[int] = order[first:last].tolist()
        done = 1.0 if self._in_order else epoch.number + (place + 1) / (len(epoch.bounds) - 1)
        beside: Mapping[int, int] = {}
        if epoch.companions is not None:
            beside = self._beside(epoch, positions, range(first, last))
        return make_step(self._examples, positions, done, self._microbatch_tokens, beside)

    def _beside(
        self, epoch: _Epoch, positions: Sequence[int], places: Sequence[int]
    ) -> Mapping[int, int]:
        """Positions of companions; of a group that an epoch visits twice, its last ones."""
        assert epoch.companions is not None
        if self._orders.repeating:
            places = self._orders.last_places(epoch.number)[positions].tolist()
        return {p: epoch.companions.start + at for p, at in zip(positions, places, strict=True)}


@dataclass(frozen=True)
class _Part(Sequence[Step]):
    """Some steps of a plan."""

    plan: Plan
    indices: range

    def __len__(self) -> int:
        return len(self.indices)

    @overload
    def __getitem__(self, index: int) -> Step: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Step]: ...

    def __getitem__(self, index: int | slice) -> Step | Sequence[Step]:
        if isinstance(index, slice):
            return _Part(self.plan, self.indices[index])
        return self.plan[self.indices[index]]


class _Orders:
    """The order of each epoch; the one that was asked for last is kept.

    Args:
        make: an epoch's order.
        groups: how many there are.
        repeating: whether an epoch may visit a group twice.
    """

    def __init__(self, make: Callable[[int], Order], groups: int, *, repeating: bool) -> None:
        self.repeating = repeating
        self._make, self._groups = make, groups
        self._kept: tuple[int, Order] | None = None
        self._last: tuple[int, Order] | None = None

    def __call__(self, epoch: int) -> Order:
        kept = self._kept
        if kept is None or kept[0] != epoch:
            narrow = np.int32 if self._groups < 2**31 else np.int64
            kept = self._kept = (epoch, self._make(epoch).astype(narrow, copy=False))
        return kept[1]

    def last_places(self, epoch: int) -> Order:
        """(G,) where each group comes for the last time."""
        last = self._last
        if last is None or last[0] != epoch:
            order = self(epoch)
            places = np.zeros(self._groups, dtype=order.dtype)
            places[order] = np.arange(len(order))  # of equal indices the last one stays
            last = self._last = (epoch, places)
        return last[1]


def plan(
    examples: Examples,
    *,
    batch_size: int,
    microbatch_tokens: int,
    epochs: int = 1,
    max_steps: int | None = None,
    seed: int = 0,
    shares: Mapping[str, float] | None = None,
    companions: Kind | None = None,
) -> Plan:
    """All steps of a training, in order.

    Args:
        examples: groups as the objective reads them; companions are added to them.
        batch_size: most judgements in a step.
        microbatch_tokens: most tokens of the groups that are computed at once.
        epochs: passes over the data.
        max_steps: steps after which the plan ends, whatever `epochs` says.
        seed: of the order.
        shares: how much of an epoch each source gets, by name.
        companions: further sequences that the objective wants scored.

    Raises:
        RecipeError: shares that do not fit the sources.
        DataError: companions that cannot be made.
    """
    sizes = examples.sizes
    orders = _Orders(
        lambda epoch: epoch_order(sizes.sources, sizes.judgements, shares, seed=seed, epoch=epoch),
        len(examples.groups),
        repeating=shares is not None,
    )
    left = max_steps
    made = []
    for number in range(epochs):
        if left == 0:
            break
        made.append(_epoch(examples, orders, number, batch_size, left, companions))
        left = None if left is None else left - made[-1].steps
    return Plan(examples, made, orders, microbatch_tokens, in_order=False)


def in_order(
    examples: Examples, batch_size: int, microbatch_tokens: int, companions: Kind | None = None
) -> Plan:
    """The groups in their own order, cut like a training's: what an evaluation goes through."""
    count = len(examples.groups)
    orders = _Orders(lambda epoch: np.arange(count), count, repeating=False)
    whole = _epoch(examples, orders, 0, batch_size, None, companions)
    return Plan(examples, [whole], orders, microbatch_tokens, in_order=True)


def _epoch(
    examples: Examples,
    orders: _Orders,
    number: int,
    batch_size: int,
    most: int | None,
    kind: Kind | None,
) -> _Epoch:
    """Cut one epoch into steps, of which the plan has at most so many."""
    judgements = examples.sizes.judgements
    count = len(examples.groups)
    alike = int(judgements[0]) if count and (judgements == judgements[0]).all() else None
    if alike is not None and not orders.repeating:  # then every order is cut in the same places
        bounds = _even_bounds(count, alike, batch_size)
    else:
        order = orders(number)
        count, bounds = len(order), step_bounds(judgements[order], batch_size)
    steps = len(bounds) - 1 if most is None else min(most, len(bounds) - 1)
    if alike is not None:
        total = alike * int(bounds[steps])
    else:
        total = int(judgements[orders(number)[: bounds[steps]]].sum(dtype=np.int64))
    beside = None
    if kind is not None:
        start = len(examples.groups) + sum(map(len, examples.companions))
        beside = Companions(
            kind, examples.groups, lambda: orders(number), examples.reads, start, count
        )
        beside.check()
        examples.companions.append(beside)
    return _Epoch(number, bounds, steps, total, beside)


def step_bounds(counts: NDArray[np.integer[Any]], batch_size: int) -> NDArray[np.int64]:
    """Where steps of at most `batch_size` judgements begin, and where the last one ends.

    Args:
        counts: judgements of each group, in the epoch's order.
        batch_size: most of them in a step.

    >>> step_bounds(np.array([1, 2, 5, 1]), batch_size=3).tolist()
    [0, 2, 3, 4]
    """
    ends = np.cumsum(counts, dtype=np.int64)
    following = np.searchsorted(ends, ends - counts + batch_size, side="right")
    np.maximum(following, np.arange(1, len(counts) + 1), out=following)  # a group at least
    bounds = array("q", [0])
    while bounds[-1] < len(counts):
        bounds.append(int(following[bounds[-1]]))
    return np.array(bounds)


def _even_bounds(count: int, judgements: int, batch_size: int) -> NDArray[np.int64]:
    """The same where all groups have equally many judgements."""
    groups = max(1, batch_size // max(1, judgements))
    return np.append(np.arange(0, count, groups), count)
