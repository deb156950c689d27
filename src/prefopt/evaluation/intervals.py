"""Intervals that respect where the numbers come from: clusters are drawn, not rows.

Comparisons of one prompt resemble each other. An interval that treats them as independent
is too narrow; the bootstrap here redraws whole prompts.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

_BLOCK = 4_000_000  # drawn indices held in memory at once


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and the interval around it.

    Attributes:
        mean: weighted mean of the values.
        low: lower end.
        high: upper end.
        clusters: how many clusters it rests on.
    """

    mean: float
    low: float
    high: float
    clusters: int

    @property
    def ends(self) -> tuple[float, float]:
        return self.low, self.high


def clustered_bootstrap(
    values: ArrayLike,
    clusters: Sequence[Hashable],
    *,
    weights: ArrayLike | None = None,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Percentile interval of a weighted mean, by drawing clusters with replacement.

    Field and Welsh 2007, "Bootstrapping clustered data": a resample has as many clusters as
    the data, each with all its values. With one cluster both ends equal the mean: there is
    no evidence about the spread, and `clusters` says so.

    Args:
        values: (N,) numbers.
        clusters: (N,) what each value belongs to, e.g. the key of its prompt.
        weights: (N,) 0 or more; defaults to one each.
        confidence: probability that the interval is meant to hold.
        resamples: how many times the data is redrawn.
        seed: same seed, same interval.

    Raises:
        ValueError: there are no values, the lengths differ, or all weights are zero.

    >>> clustered_bootstrap([1, 1, 0, 0], ["a", "a", "b", "b"]).ends   # two prompts, not four
    (0.0, 1.0)
    """
    numbers = np.asarray(values, dtype=np.float64)
    weight = np.ones_like(numbers) if weights is None else np.asarray(weights, dtype=np.float64)
    if not len(numbers) == len(clusters) == len(weight):
        raise ValueError("values, clusters and weights must have the same length")
    if len(numbers) == 0 or weight.sum() <= 0:
        raise ValueError("an interval needs at least one value of positive weight")
    codes: dict[Hashable, int] = {}
    place = np.array([codes.setdefault(cluster, len(codes)) for cluster in clusters])
    totals = np.bincount(place, weights=numbers * weight).astype(np.float64)
    masses = np.bincount(place, weights=weight).astype(np.float64)
    means = _resampled_means(totals, masses, resamples, np.random.default_rng(seed))
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(totals.sum() / masses.sum()), float(low), float(high), len(codes))


def _resampled_means(
    totals: NDArray[np.float64],
    masses: NDArray[np.float64],
    resamples: int,
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """(resamples,) means; a draw of clusters that weigh nothing is left out."""
    count = len(totals)
    rows = max(1, _BLOCK // count)
    means = []
    for start in range(0, resamples, rows):
        drawn = rng.integers(count, size=(min(rows, resamples - start), count))
        mass = masses[drawn].sum(axis=1)
        held = mass > 0
        means.append(totals[drawn][held].sum(axis=1) / mass[held])
    return np.concatenate(means)
