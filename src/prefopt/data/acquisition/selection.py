"""`select`: which pairs of a pool to ask about next, from arrays that any model can give.

Everything is computed in an order that is drawn from the pairs' contents and the seed. Ties
fall to the earlier one in it, so neither the order of a file nor the side on which a
completion stands decides anything.

Shapes: N pairs of the pool, M members of an ensemble, d features, L pairs with an answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from prefopt.data.acquisition.design import Floats, Ints
from prefopt.data.acquisition.questions import drawn
from prefopt.data.acquisition.strategies import Known, Strategy, find_strategy
from prefopt.errors import DataError, RecipeError

#: what a pair was chosen by that no strategy chose
CONTROL = "control"


@dataclass(frozen=True)
class Selection:
    """Pairs to ask about, in this order.

    Attributes:
        indices: (n,) into the pool.
        strategies: what chose each: the strategy, or `control`.
        scores: (n,) of the strategy, NaN for controls and what was drawn at random. Those of
            `d-optimal` are gains in nats after the pairs before.
    """

    indices: Ints
    strategies: tuple[str, ...]
    scores: Floats

    @property
    def controls(self) -> NDArray[np.bool_]:
        """(n,) which were drawn at random, whatever the strategy: evaluate on these alone."""
        return np.array([name == CONTROL for name in self.strategies], dtype=bool)

    def __len__(self) -> int:
        return len(self.indices)


def select(
    margins: ArrayLike | None = None,
    features: ArrayLike | None = None,
    *,
    count: int,
    strategy: str = "d-optimal",
    controls: float = 0.15,
    prompts: ArrayLike | None = None,
    per_prompt: int = 1,
    keys: Sequence[bytes] | None = None,
    asked: ArrayLike = (),
    reserved: ArrayLike = (),
    labelled: tuple[ArrayLike, ArrayLike] | None = None,
    entropies: ArrayLike | None = None,
    ridge: float = 1.0,
    seed: int = 0,
) -> Selection:
    """Choose pairs to ask about next.

    Args:
        margins: (N,) or (M, N) nats, first completion minus second, of a model or of members.
        features: (N, d), those of the first completion minus those of the second.
        count: how many; fewer come where the pool, the prompts or the controls leave fewer.
        strategy: a key of `STRATEGIES`.
        controls: share that is drawn at random from all, in [0, 1); see `Selection.controls`.
        prompts: (N,) numbers of the pairs' prompts; by default each has its own.
        per_prompt: most pairs of one prompt that the strategy may choose; none of a control's.
        keys: (N,) of which equal ones are one question; by default every row is one.
        asked: positions, or an (N,) mask, of pairs that are not to be asked again.
        reserved: prompts kept for evaluation: their pairs come as controls or not at all.
        labelled: margins (M, L) and features (L, d) of the answers so far, for `d-optimal`.
        entropies: (N,) of the pairs' prompts, for `entropy`; see `predictive_entropy`.
        ridge: λ of `d-optimal`, with features scaled to a mean squared length of d.
        seed: of the controls, of `random` and of ties.

    Raises:
        RecipeError: a setting is out of range, or the strategy needs what was not given.
        DataError: arrays do not go together, are empty, or hold what is no finite number.

    >>> chosen = select([[3.0, -1.0, 2.0], [3.0, 1.0, 2.5]], count=2, strategy="bald", controls=0)
    >>> chosen.indices.tolist(), chosen.scores.round(3).tolist()
    ([1, 2], [0.111, 0.003])
    """
    rule = _rule(strategy, count, controls, per_prompt, ridge)
    arrays = _Arrays.of(margins, features, entropies, prompts, keys)
    _check_needs(rule, strategy, arrays, labelled)
    order = arrays.order(seed)
    known = arrays.known(order, per_prompt, ridge, labelled)
    allowed = arrays.open(order, asked)
    budget = min(count, int(allowed.sum()))
    control = np.flatnonzero(allowed)[: int(controls * budget + 0.5)]
    evaluated = np.union1d(arrays.numbers(reserved), known.prompts[control])
    allowed &= ~np.isin(known.prompts, evaluated)
    chosen, scores = rule.pick(known, allowed, budget - len(control))
    return _interleaved(order[chosen], scores, order[control], strategy)


def _interleaved(chosen: Ints, scores: Floats, control: Ints, strategy: str) -> Selection:
    """Controls at even distances: whoever stops early has his share of them."""
    count = len(chosen) + len(control)
    is_control = np.zeros(count, dtype=bool)
    if len(control):
        middle = (np.arange(len(control)) + 0.5) * (count / len(control))
        is_control[middle.astype(np.int64)] = True
    indices = np.empty(count, dtype=np.int64)
    values = np.full(count, np.nan)
    indices[is_control], indices[~is_control] = control, chosen
    values[~is_control] = scores
    names = tuple(CONTROL if flag else strategy for flag in is_control)
    return Selection(indices, names, values)


# -- what was given ------------------------------------------------------------------------


@dataclass(frozen=True)
class _Arrays:
    """The arrays of a call, checked, in the pool's own order."""

    margins: Floats | None
    features: Floats | None
    entropies: Floats | None
    names: Ints  # (P,) the prompts, ascending
    prompts: Ints  # (N,) places in them
    keys: Sequence[bytes] | None

    @classmethod
    def of(
        cls,
        margins: ArrayLike | None,
        features: ArrayLike | None,
        entropies: ArrayLike | None,
        prompts: ArrayLike | None,
        keys: Sequence[bytes] | None,
    ) -> _Arrays:
        table = _members(margins, "margins")
        beside = _finite(features, "features", 2), _finite(entropies, "entropies", 1)
        lengths = {} if table is None else {"margins": table.shape[1]}
        named = {"features": beside[0], "entropies": beside[1], "keys": keys, "prompts": prompts}
        lengths |= {name: len(value) for name, value in named.items() if value is not None}  # type: ignore[arg-type]
        if len(set(lengths.values())) > 1:
            raise DataError(
                "the arrays are about different numbers of pairs: "
                + ", ".join(f"{name} {length}" for name, length in lengths.items()),
                kind="wrong_type",
                remedy="give one column, row or entry a pair, in the same order",
            )
        if all(part is None for part in (table, *beside, keys)) or 0 in lengths.values():
            raise DataError(
                "there are no pairs to choose from",
                kind="no_candidates",
                remedy="give margins, features, entropies or keys of at least one pair",
            )
        codes = np.arange(max(lengths.values())) if prompts is None else np.asarray(prompts)
        names, places = np.unique(codes, return_inverse=True)
        return cls(table, *beside, names, places.reshape(-1).astype(np.int64), keys)

    def order(self, seed: int) -> Ints:
        """(N,) a permutation of the pairs that depends on the seed and on what they are."""
        keys = self.keys if self.keys is not None else list(self._contents())
        numbers = np.array([drawn(key, seed) for key in keys], dtype=np.uint64)
        return np.argsort(numbers, kind="stable")

    def known(
        self,
        order: Ints,
        per_prompt: int,
        ridge: float,
        labelled: tuple[ArrayLike, ArrayLike] | None,
    ) -> Known:
        """The arrays in that order."""
        return Known(
            self.prompts[order],
            per_prompt,
            ridge,
            margins=None if self.margins is None else self.margins[:, order],
            features=None if self.features is None else self.features[order],
            entropies=None if self.entropies is None else self.entropies[order],
            labelled=None if labelled is None else self._labelled(*labelled),
        )

    def open(self, order: Ints, asked: ArrayLike) -> NDArray[np.bool_]:
        """(N,) in that order: which may still be asked, one of each question."""
        closed = np.zeros(len(order), dtype=bool)
        done = np.asarray(asked)
        if done.dtype != bool and done.size == 0:
            done = done.astype(np.int64)
        try:
            closed[done] = True
        except IndexError as error:
            raise DataError(
                f"the pairs that were asked are not in the pool: {error}",
                kind="out_of_range",
                field="asked",
                remedy="give positions in the pool, or one true or false a pair",
            ) from None
        allowed = ~closed[order]
        if self.keys is not None and len(set(self.keys)) < len(order):
            over = {self.keys[index] for index in np.flatnonzero(closed).tolist()}
            for place, index in enumerate(order.tolist()):
                key = self.keys[index]
                allowed[place] &= key not in over
                over.add(key)
        return allowed

    def numbers(self, names: ArrayLike) -> Ints:
        """The numbers of those of the prompts that are in the pool."""
        return np.flatnonzero(np.isin(self.names, np.asarray(names)))

    def _contents(self) -> list[bytes]:
        """(N,) the numbers of each pair as bytes, the same from both sides."""
        columns = [] if self.entropies is None else [self.entropies[:, None]]
        turned = [part for part in (self._columns(), self.features) if part is not None]
        if turned:
            sides = np.concatenate(turned, axis=1)
            first = sides[np.arange(len(sides)), (sides != 0).argmax(axis=1)]
            columns.append(sides * np.where(first < 0, -1.0, 1.0)[:, None] + 0.0)
        return [row.tobytes() for row in np.concatenate(columns, axis=1)]

    def _columns(self) -> Floats | None:
        return None if self.margins is None else self.margins.T

    def _labelled(self, margins: ArrayLike, features: ArrayLike) -> tuple[Floats, Floats]:
        assert self.margins is not None and self.features is not None
        rows = _members(margins, "labelled")
        columns = _finite(features, "labelled", 2)
        assert rows is not None and columns is not None
        shapes = (len(rows), columns.shape[1]), (len(self.margins), self.features.shape[1])
        if rows.shape[1] != len(columns) or shapes[0] != shapes[1]:
            raise DataError(
                f"labelled pairs have margins {rows.shape} and features {columns.shape}, "
                f"the pool has {self.margins.shape} and {self.features.shape}",
                kind="wrong_type",
                field="labelled",
                remedy="give margins (M, L) and features (L, d) of the same models",
            )
        return rows, columns


def _members(values: ArrayLike | None, field: str) -> Floats | None:
    """Margins as (M, N)."""
    if values is not None and np.ndim(values) == 1:
        values = np.asarray(values)[None]
    return _finite(values, field, 2)


def _finite(values: ArrayLike | None, field: str, dimensions: int) -> Floats | None:
    if values is None:
        return None
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != dimensions:
        raise DataError(
            f"the array has {array.ndim} dimensions and should have {dimensions}",
            kind="wrong_type",
            field=field,
            value=array.shape,
        )
    if not np.isfinite(array).all():
        raise DataError(
            "the array holds what is not a finite number",
            kind="out_of_range",
            field=field,
            remedy="leave out the pairs that could not be scored",
        )
    return array


# -- settings ------------------------------------------------------------------------------


def _rule(strategy: str, count: int, controls: float, per_prompt: int, ridge: float) -> Strategy:
    """The strategy with that name, once all settings are in range."""
    wrong = {
        "count": (count, count >= 1, "1 or more"),
        "controls": (controls, 0 <= controls < 1, "a share from 0 to below 1"),
        "per_prompt": (per_prompt, per_prompt >= 1, "1 or more"),
        "ridge": (ridge, 0 < ridge < np.inf, "above 0"),
    }
    for field, (value, fine, remedy) in wrong.items():
        if not fine:
            raise RecipeError(
                "the setting is out of range", field=field, value=value, remedy=remedy
            )
    return find_strategy(strategy)


def _check_needs(
    rule: Strategy,
    strategy: str,
    arrays: _Arrays,
    labelled: tuple[ArrayLike, ArrayLike] | None,
) -> None:
    missing = [name for name in rule.needs if getattr(arrays, name) is None]
    if missing:
        raise RecipeError(
            f"the strategy '{strategy}' needs {' and '.join(missing)} of the pool",
            field="strategy",
            value=strategy,
            remedy="give them, or choose 'random', which needs nothing",
        )
    if arrays.margins is not None and len(arrays.margins) < rule.members:
        raise RecipeError(
            f"the strategy '{strategy}' asks where models disagree, and there is only one",
            field="margins",
            value=arrays.margins.shape,
            remedy="give the margins of several, such as runs with different seeds",
        )
    if labelled is not None and "features" not in rule.needs:
        raise RecipeError(
            f"labelled pairs have no effect on the strategy '{strategy}'",
            field="labelled",
            remedy="leave them out; `asked` keeps them from being asked again",
        )
