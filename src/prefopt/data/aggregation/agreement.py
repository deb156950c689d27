"""How far those who judged the same things agree: Krippendorff's alpha, and shares of pairs.

A judgement is an item, who judged it, and a value, each a whole number; N of them are three
arrays. A negative annotator is somebody without a name, and each of those is another person.
What one person alone said of an item, however often, is agreement with nobody.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

_LEVELS = (0.025, 0.975)


def alpha(items: ArrayLike, annotators: ArrayLike, values: ArrayLike) -> float:
    """Krippendorff's alpha for nominal values: 1 is agreement, 0 what chance would give.

    α = 1 − D_o/D_e. Of the m_u judgements of item u, n_uc gave value c. With n = Σ m_u and
    n_c = Σ n_uc over the items that two or more people judged,
    D_o = 1/n · Σ_u Σ_{c≠k} n_uc·n_uk / (m_u − 1) and D_e = Σ_{c≠k} n_c·n_k / (n(n − 1)): the
    coincidence matrix of Krippendorff 2011, "Computing Krippendorff's alpha-reliability".
    Annotators may have judged any part of the items. Where one judged an item again, that is
    one judgement more.

    Args:
        items: (N,) what was judged.
        annotators: (N,) by whom.
        values: (N,) the value, 0 or more.

    Returns:
        Alpha, at most 1; NaN where no two people judged one item, or nobody's value differs
        from anybody's: then there is no disagreement that chance could have given.

    >>> round(alpha([0, 0, 1, 1, 2, 2], [0, 1, 0, 1, 0, 1], [0, 0, 1, 1, 0, 1]), 4)
    0.4444
    """
    return float(_alphas(_units(items, annotators, values), None)[0])


def alpha_interval(
    items: ArrayLike,
    annotators: ArrayLike,
    values: ArrayLike,
    *,
    seed: int = 0,
    samples: int = 1000,
) -> tuple[float, float]:
    """95 % percentile interval of alpha, by drawing whole items with replacement.

    Draws in which alpha is undefined are left out.

    Returns:
        The ends; NaN where alpha is undefined.
    """
    units = _units(items, annotators, values)
    if len(units.judged) == 0 or math.isnan(_alphas(units, None)[0]):
        return math.nan, math.nan
    drawn = _alphas(units, _draws(units.multiplicity, seed, samples))
    low, high = np.quantile(drawn[~np.isnan(drawn)], _LEVELS)
    return float(low), float(high)


# -- shares of pairs -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Agreement:
    """Of the pairs of judgements on one item, how many were equal.

    Attributes:
        agreed: pairs of equal value.
        compared: all pairs.
        interval: of the share, 95 %, by drawing items; None with one item or none.
    """

    agreed: int
    compared: int
    interval: tuple[float, float] | None = None

    @property
    def share(self) -> float | None:
        """Between 0 and 1; None where nothing was compared."""
        return self.agreed / self.compared if self.compared else None


class Judgements(NamedTuple):
    """What one kind of judge said: three (N,) arrays, the items counted as in the others'."""

    items: NDArray[np.int64]
    annotators: NDArray[np.int64]
    values: NDArray[np.int64]


def within(judges: Judgements, *, seed: int = 0, samples: int = 1000) -> Agreement:
    """How often two different people among them agree, over all such pairs on all items.

    As MT-Bench counts people against people (Zheng et al. 2023, arXiv:2306.05685, table 5).
    """
    _, unit = np.unique(judges.items, return_inverse=True)
    who = _told_apart(judges.annotators)
    all_pairs = _pairs(unit, who)
    agreed = _pairs(_joint(unit, judges.values), who, into=unit)
    return _agreement(agreed, all_pairs, seed, samples)


def between(
    first: Judgements, second: Judgements, *, seed: int = 0, samples: int = 1000
) -> Agreement:
    """How often one of these and one of those agree, over all such pairs on all items.

    As MT-Bench counts a judge against people (Zheng et al. 2023, table 5).
    """
    both, unit = np.unique(np.concatenate([first.items, second.items]), return_inverse=True)
    cut = len(first.items)
    kinds = 1 + max((int(v.max()) for v in (first.values, second.values) if len(v)), default=0)
    here, there = (
        np.bincount(part * kinds + values, minlength=len(both) * kinds).reshape(-1, kinds)
        for part, values in ((unit[:cut], first.values), (unit[cut:], second.values))
    )
    return _agreement(
        (here * there).sum(axis=1), here.sum(axis=1) * there.sum(axis=1), seed, samples
    )


def agreement_table(
    judges: Mapping[str, Judgements], *, tie: int, seed: int = 0
) -> list[dict[str, object]]:
    """Every kind of judge against every other and against itself, with and without ties.

    Without ties, judgements with the value `tie` are left out on both sides.

    Returns:
        Rows of `first`, `second` (names), `ties` (whether they count), `agreed`, `compared`,
        `share`, `interval`; without those that have nothing to compare.
    """
    rows: list[dict[str, object]] = []
    names = list(judges)
    for ties in (True, False):
        kept = {name: part if ties else _without(part, tie) for name, part in judges.items()}
        for i, first in enumerate(names):
            for second in names[i:]:
                found = (
                    within(kept[first], seed=seed)
                    if first == second
                    else between(kept[first], kept[second], seed=seed)
                )
                if found.compared:
                    rows.append({
                        "first": first, "second": second, "ties": ties, "agreed": found.agreed,
                        "compared": found.compared, "share": found.share,
                        "interval": found.interval,
                    })  # fmt: skip
    return rows


# -- counting ------------------------------------------------------------------------------


class _Units(NamedTuple):
    """Items that two or more judged, those that look the same counted together.

    Attributes:
        multiplicity: (P,) how many items look like this.
        judged: (P,) m_u.
        disagreement: (P,) Σ_{c≠k} n_uc·n_uk / (m_u − 1).
        counts: (P, C) n_uc.
    """

    multiplicity: NDArray[np.int64]
    judged: NDArray[np.int64]
    disagreement: NDArray[np.float64]
    counts: NDArray[np.int64]


def _units(items: ArrayLike, annotators: ArrayLike, values: ArrayLike) -> _Units:
    item, value = np.asarray(items, dtype=np.int64), np.asarray(values, dtype=np.int64)
    who = _told_apart(np.asarray(annotators, dtype=np.int64))
    if not len(item) == len(value) == len(who):
        raise ValueError("items, annotators and values must have the same length")
    _, unit = np.unique(item, return_inverse=True)
    kinds = int(value.max()) + 1 if len(value) else 1
    size = int(unit.max()) + 1 if len(unit) else 0
    counts = np.bincount(unit * kinds + value, minlength=size * kinds).reshape(-1, kinds)
    people = np.unique(_joint(unit, who), return_index=True)[1]
    counts = counts[np.bincount(unit[people], minlength=size) >= 2]
    alike, multiplicity = np.unique(counts, axis=0, return_counts=True)
    judged = alike.sum(axis=1)
    apart = (judged**2 - (alike**2).sum(axis=1)) / (judged - 1)
    return _Units(multiplicity, judged, apart, alike)


def _alphas(units: _Units, draws: NDArray[np.int64] | None) -> NDArray[np.float64]:
    """Alpha of the items, or of each of (S, P) draws of them."""
    times = units.multiplicity[None] if draws is None else draws
    total = (times @ units.judged).astype(np.float64)
    marginals = (times @ units.counts).astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        observed = (times @ units.disagreement) / total
        expected = (total**2 - (marginals**2).sum(axis=1)) / (total * (total - 1))
        return np.where(expected > 1e-12, 1.0 - observed / expected, np.nan)


def _draws(multiplicity: NDArray[np.int64], seed: int, samples: int) -> NDArray[np.int64]:
    """(samples, P) how often each kind of item is drawn, of as many draws as there are items."""
    total = int(multiplicity.sum())
    return np.random.default_rng(seed).multinomial(total, multiplicity / total, size=samples)


def _agreement(
    agreed: NDArray[np.int64], compared: NDArray[np.int64], seed: int, samples: int
) -> Agreement:
    """From the (U,) numbers of pairs on each item."""
    size = max(len(agreed), len(compared))
    table = np.zeros((size, 2), dtype=np.int64)
    table[: len(agreed), 0], table[: len(compared), 1] = agreed, compared
    table = table[table[:, 1] > 0]
    interval = None
    if len(table) > 1:
        alike, multiplicity = np.unique(table, axis=0, return_counts=True)
        sums = _draws(multiplicity, seed, samples) @ alike
        low, high = np.quantile(sums[:, 0] / sums[:, 1], _LEVELS)
        interval = float(low), float(high)
    return Agreement(int(table[:, 0].sum()), int(table[:, 1].sum()), interval)


def _pairs(
    cell: NDArray[np.int64], who: NDArray[np.int64], into: NDArray[np.int64] | None = None
) -> NDArray[np.int64]:
    """Unordered pairs of different people within each cell, added up by `into` (or cell)."""
    target = cell if into is None else into
    size = int(target.max()) + 1 if len(target) else 0
    found = np.zeros(size, dtype=np.int64)
    for key, sign in ((cell, 1), (_joint(cell, who), -1)):
        _, first, count = np.unique(key, return_index=True, return_counts=True)
        np.add.at(found, target[first], sign * (count * (count - 1) // 2))
    return found


def _told_apart(annotators: NDArray[np.int64]) -> NDArray[np.int64]:
    """Annotators as codes from 0, each without a name as somebody else."""
    who = np.array(annotators, dtype=np.int64)
    unnamed = who < 0
    who[unnamed] = (int(who.max()) if len(who) else 0) + 1 + np.arange(int(unnamed.sum()))
    return who


def _joint(first: NDArray[np.int64], second: NDArray[np.int64]) -> NDArray[np.int64]:
    """One code for two that are 0 or more."""
    return first * (int(second.max()) + 1 if len(second) else 1) + second


def _without(judges: Judgements, value: int) -> Judgements:
    kept = judges.values != value
    return Judgements(*(part[kept] for part in judges))
