"""How far those who judged the same things agree: shares of pairs, kappa, Krippendorff's alpha.

A judgement is an item, who judged it, and a value, each a whole number; N of them are three
arrays. A negative annotator is somebody without a name, and each of those is another person.
What one person alone said of an item, however often, is agreement with nobody.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

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
    questions: ArrayLike | None = None,
    seed: int = 0,
    samples: int = 1000,
) -> tuple[float, float]:
    """95 % percentile interval of alpha, by drawing whole items with replacement.

    Draws in which alpha is undefined are left out.

    Args:
        items, annotators, values: as for `alpha`.
        questions: (M,) what each item belongs to, by its number: questions are drawn then, with
            all their items, because items of one question resemble each other.
        seed, samples: of the draws.

    Returns:
        The ends; NaN where alpha is undefined.
    """
    units = _units(items, annotators, values, questions)
    if len(units.judged) == 0 or math.isnan(_alphas(units, None)[0]):
        return math.nan, math.nan
    drawn = _alphas(units, _draws(units.multiplicity, seed, samples))
    return _ends(drawn)


# -- shares of pairs -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Agreement:
    """Of the pairs of judgements on one item, how many were equal.

    Attributes:
        agreed: pairs of equal value.
        compared: all pairs.
        interval: of the share, 95 %, by drawing items (or questions); None with one or none.
        kappa: the share beyond chance, (p_o − p_e)/(1 − p_e), with p_e from how often either
            side of the pairs gives each value: Cohen's 1960 of one kind of judge against
            another, Fleiss' 1971 within a kind, whose sides are the same. Where items have
            different numbers of judgements, each pair counts once. None where it is undefined.
        kappa_interval: 95 %, from the same draws.
    """

    agreed: int
    compared: int
    interval: tuple[float, float] | None = None
    kappa: float | None = None
    kappa_interval: tuple[float, float] | None = None

    @property
    def share(self) -> float | None:
        """Between 0 and 1; None where nothing was compared."""
        return self.agreed / self.compared if self.compared else None


class Judgements(NamedTuple):
    """What one kind of judge said: three (N,) arrays, the items counted as in the others'."""

    items: NDArray[np.int64]
    annotators: NDArray[np.int64]
    values: NDArray[np.int64]


def within(
    judges: Judgements,
    *,
    questions: ArrayLike | None = None,
    seed: int = 0,
    samples: int = 1000,
) -> Agreement:
    """How often two different people among them agree, over all such pairs on all items.

    As MT-Bench counts people against people (Zheng et al. 2023, arXiv:2306.05685, table 5).
    `questions` is as for `alpha_interval`.
    """
    items, unit = np.unique(judges.items, return_inverse=True)
    people, person = np.unique(_joint(unit, _told_apart(judges.annotators)), return_inverse=True)
    owner = np.zeros(len(people), dtype=np.int64)
    owner[person] = unit
    kinds = _kinds(judges)
    all_pairs = _tables(*[_counts(unit, judges.values, len(items), kinds)] * 2)
    own = _tables(*[_counts(person, judges.values, len(people), kinds)] * 2)
    np.subtract.at(all_pairs, owner, own)  # nobody is compared with himself
    return _agreement(items, all_pairs, 2, questions, seed, samples)


def between(
    first: Judgements,
    second: Judgements,
    *,
    questions: ArrayLike | None = None,
    seed: int = 0,
    samples: int = 1000,
) -> Agreement:
    """How often one of these and one of those agree, over all such pairs on all items.

    As MT-Bench counts a judge against people (Zheng et al. 2023, table 5). `questions` is as for
    `alpha_interval`.
    """
    items, unit = np.unique(np.concatenate([first.items, second.items]), return_inverse=True)
    cut, kinds = len(first.items), max(_kinds(first), _kinds(second))
    here, there = (
        _counts(part, judges.values, len(items), kinds)
        for part, judges in ((unit[:cut], first), (unit[cut:], second))
    )
    return _agreement(items, _tables(here, there), 1, questions, seed, samples)


def agreement_table(
    judges: Mapping[str, Judgements],
    *,
    tie: int,
    questions: ArrayLike | None = None,
    seed: int = 0,
) -> list[dict[str, object]]:
    """Every kind of judge against every other and against itself, with and without ties.

    Without ties, judgements with the value `tie` are left out on both sides.

    Returns:
        Rows of `first`, `second` (names), `ties` (whether they count), `agreed`, `compared`,
        `share`, `interval`, `kappa`, `kappa_interval`; without those that have nothing to compare.
    """
    rows: list[dict[str, object]] = []
    names = list(judges)
    for ties in (True, False):
        kept = {name: part if ties else _without(part, tie) for name, part in judges.items()}
        for i, first in enumerate(names):
            for second in names[i:]:
                found = (
                    within(kept[first], questions=questions, seed=seed)
                    if first == second
                    else between(kept[first], kept[second], questions=questions, seed=seed)
                )
                if found.compared:
                    rows.append({
                        "first": first, "second": second, "ties": ties, "agreed": found.agreed,
                        "compared": found.compared, "share": found.share,
                        "interval": found.interval, "kappa": found.kappa,
                        "kappa_interval": found.kappa_interval,
                    })  # fmt: skip
    return rows


# -- counting ------------------------------------------------------------------------------


class _Units(NamedTuple):
    """Items that two or more judged, those that look the same counted together.

    All of it is sums over items, so a question is as good as an item.

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


def _units(
    items: ArrayLike, annotators: ArrayLike, values: ArrayLike, questions: ArrayLike | None = None
) -> _Units:
    item, value = np.asarray(items, dtype=np.int64), np.asarray(values, dtype=np.int64)
    who = _told_apart(np.asarray(annotators, dtype=np.int64))
    if not len(item) == len(value) == len(who):
        raise ValueError("items, annotators and values must have the same length")
    number, unit = np.unique(item, return_inverse=True)
    kinds, size = int(value.max()) + 1 if len(value) else 1, len(number)
    counts = _counts(unit, value, size, kinds)
    people = np.unique(_joint(unit, who), return_index=True)[1]
    several = np.bincount(unit[people], minlength=size) >= 2
    if questions is None:
        counts, multiplicity = np.unique(counts[several], axis=0, return_counts=True)
    else:
        counts, multiplicity = counts[several], np.ones(int(several.sum()), dtype=np.int64)
    judged = counts.sum(axis=1)
    apart = (judged**2 - (counts**2).sum(axis=1)) / (judged - 1)
    if questions is None:
        return _Units(multiplicity, judged, apart, counts)
    of = np.unique(np.asarray(questions)[number[several]], return_inverse=True)[1]
    parts = (_added(of, part) for part in (judged, apart, counts))
    return _Units(np.ones(int(of.max(initial=-1)) + 1, dtype=np.int64), *parts)


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
    items: NDArray[np.int64],
    tables: NDArray[np.int64],
    times: int,
    questions: ArrayLike | None,
    seed: int,
    samples: int,
) -> Agreement:
    """From the (U, C, C) tables of pairs on each item, each pair in them so many times."""
    if questions is not None:
        of = np.unique(np.asarray(questions)[items], return_inverse=True)[1]
        tables = _added(of, tables)
    kinds = tables.shape[1]
    flat = tables.reshape(len(tables), kinds * kinds)
    flat = flat[flat.sum(axis=1) > 0]
    whole = flat.sum(axis=0)[None]
    agreed, compared = (int(part.sum()) // times for part in (_diagonal(whole), whole))
    if not compared:
        return Agreement(0, 0)
    kappa = float(_kappas(whole)[0])
    known = None if math.isnan(kappa) else kappa
    if len(flat) < 2:
        return Agreement(agreed, compared, None, known)
    alike, multiplicity = np.unique(flat, axis=0, return_counts=True)
    drawn = _draws(multiplicity, seed, samples) @ alike
    ends = _ends(_diagonal(drawn).sum(axis=1) / drawn.sum(axis=1))
    of_kappa = None if known is None else _ends(_kappas(drawn))
    return Agreement(agreed, compared, ends, known, of_kappa)


def _kappas(tables: NDArray[np.int64]) -> NDArray[np.float64]:
    """(S,) kappas of (S, C·C) tables; NaN where only one value was ever given."""
    kinds = math.isqrt(tables.shape[1])
    total = tables.sum(axis=1).astype(np.float64)
    square = tables.reshape(-1, kinds, kinds)
    by_chance = (square.sum(axis=1) * square.sum(axis=2)).sum(axis=1) / total**2
    with np.errstate(divide="ignore", invalid="ignore"):
        found = (_diagonal(tables).sum(axis=1) / total - by_chance) / (1.0 - by_chance)
    return np.where(by_chance < 1.0 - 1e-12, found, np.nan)


def _diagonal(tables: NDArray[np.int64]) -> NDArray[np.int64]:
    return tables[:, :: math.isqrt(tables.shape[1]) + 1]


def _ends(drawn: NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.quantile(drawn[~np.isnan(drawn)], _LEVELS)
    return float(low), float(high)


def _counts(
    place: NDArray[np.int64], values: NDArray[np.int64], size: int, kinds: int
) -> NDArray[np.int64]:
    """(size, C) how often each value was given in each place."""
    return np.bincount(place * kinds + values, minlength=size * kinds).reshape(size, kinds)


def _tables(here: NDArray[np.int64], there: NDArray[np.int64]) -> NDArray[np.int64]:
    """(U, C, C) pairs of one of these and one of those."""
    return here[:, :, None] * there[:, None, :]


def _kinds(judges: Judgements) -> int:
    return int(judges.values.max(initial=0)) + 1


def _added(place: NDArray[np.int64], parts: NDArray[Any]) -> NDArray[Any]:
    """The parts of each place, added up."""
    sums = np.zeros((int(place.max(initial=-1)) + 1, *parts.shape[1:]), dtype=parts.dtype)
    np.add.at(sums, place, parts)
    return sums


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
