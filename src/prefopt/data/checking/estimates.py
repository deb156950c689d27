"""Shares and means of comparisons, with intervals that know which of them belong together.

Comparisons of one prompt resemble each other. The variance here is that of the sums over
prompts, linearised, so that ten million comparisons take a second; `evaluation.intervals`
draws prompts again and again instead, which is right for fewer.

Shapes: n comparisons.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Codes = NDArray[np.int64]
Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A weighted mean and the interval around it.

    Attributes:
        value: the mean.
        low, high: ends of the interval.
        count: comparisons that it rests on.
        clusters: prompts that these belong to.
    """

    value: float
    low: float
    high: float
    count: int
    clusters: int

    @property
    def ends(self) -> tuple[float, float]:
        return self.low, self.high

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON; no interval where nothing is known about the spread."""
        return {
            "value": self.value,
            "interval": [self.low, self.high] if math.isfinite(self.low) else None,
            "comparisons": self.count,
            "prompts": self.clusters,
        }


def mean(
    values: ArrayLike,
    clusters: Codes,
    weights: ArrayLike | None = None,
    *,
    confidence: float = 0.95,
) -> Estimate:
    """A weighted mean with Student's interval over clusters.

    With one cluster the ends are infinite: nothing is known about the spread.

    Args:
        values: (n,) numbers.
        clusters: (n,) codes from 0: what each value belongs to.
        weights: (n,) 0 or more; one each if not given.
        confidence: probability that the interval is meant to hold.

    Raises:
        ValueError: there is no value of positive weight.

    >>> found = mean([1.0, 2.0, 3.0], np.array([0, 1, 2]))
    >>> round(found.low, 3), found.value, round(found.high, 3)   # 2 ± 4.303 · 1/√3
    (-0.484, 2.0, 4.484)
    """
    sums = _Sums(values, clusters, weights)
    half = sums.quantile(confidence) * math.sqrt(sums.variance) if sums.clusters > 1 else math.inf
    return Estimate(sums.mean, sums.mean - half, sums.mean + half, sums.count, sums.clusters)


def share(
    values: ArrayLike,
    clusters: Codes,
    weights: ArrayLike | None = None,
    *,
    confidence: float = 0.95,
    stretch: float = 1.0,
) -> Estimate:
    """A weighted mean of values in [0, 1] with an interval that stays in [0, 1].

    Wilson's interval for as many independent comparisons as give the same variance (the effective
    sample size of Korn and Graubard 1998); the variance is at least that of as many independent
    values. Where every value is the same, each prompt counts as one. With one prompt the interval
    is [0, 1].

    Args:
        values, clusters, weights, confidence: as for `mean`.
        stretch: how much larger the standard error is than that of the mean.

    Raises:
        ValueError: there is no value of positive weight.

    >>> [round(end, 3) for end in share([1] * 50 + [0] * 50, np.arange(100)).ends]
    [0.402, 0.598]
    """
    sums = _Sums(values, clusters, weights)
    if sums.clusters == 1:
        return Estimate(sums.mean, 0.0, 1.0, sums.count, 1)
    p = min(max(sums.mean, 0.0), 1.0)
    variance = max(sums.variance, sums.apart / sums.effective) * stretch**2
    spread = p * (1 - p)
    held = spread > 0 and variance > 1e-12 * spread
    size = spread / variance if held else sums.effective_clusters
    z2 = sums.quantile(confidence) ** 2
    centre = (p + z2 / (2 * size)) / (1 + z2 / size)
    half = math.sqrt(z2) / (1 + z2 / size) * math.sqrt(spread / size + z2 / (4 * size**2))
    low, high = max(0.0, min(centre - half, p)), min(1.0, max(centre + half, p))
    return Estimate(p, low, high, sums.count, sums.clusters)


def auc(
    differences: NDArray[np.int64], clusters: Codes, weights: ArrayLike | None = None
) -> Estimate:
    """How well the sign of a preference is known from a difference of its sides alone.

    The area under the curve of `difference` as a score for "the first is preferred", when each
    comparison is shown both ways round: P(dᵢ + dⱼ > 0) + ½ P(dᵢ + dⱼ = 0) over all i and j. Unlike
    the share of positive differences it asks whether the larger differences are the telling ones.

    Args:
        differences: (n,) preferred minus dispreferred.
        clusters, weights: as for `mean`.

    Raises:
        ValueError: there is no value of positive weight.

    >>> auc(np.array([3, -1]), np.array([0, 1])).value   # 3+3, 3−1 twice, −1−1: three of four
    0.75
    """
    weight = np.ones(len(differences)) if weights is None else np.asarray(weights, np.float64)
    levels, place = np.unique(differences, return_inverse=True)
    masses = np.bincount(place, weights=weight, minlength=len(levels))
    below = np.concatenate(([0.0], np.cumsum(masses)))  # mass of the levels before each
    beaten = below[np.searchsorted(levels, -levels, "left")]
    matched = below[np.searchsorted(levels, -levels, "right")]
    above = (below[-1] - 0.5 * (beaten + matched)) / max(below[-1], np.finfo(float).tiny)
    # of a mean over pairs every comparison is in twice, so its error counts twice
    return share(above[place], clusters, weight, stretch=2.0)


class _Sums:
    """The weighted mean, and what its variance is made of."""

    def __init__(self, values: ArrayLike, clusters: Codes, weights: ArrayLike | None) -> None:
        numbers = np.asarray(values, dtype=np.float64)
        weight = np.ones_like(numbers) if weights is None else np.asarray(weights, np.float64)
        mass = float(weight.sum())
        if mass <= 0:
            raise ValueError("an estimate needs at least one value of positive weight")
        self.mean = float((numbers * weight).sum() / mass)
        masses = np.bincount(clusters, weights=weight)
        residuals = np.bincount(clusters, weights=weight * (numbers - self.mean))
        self.apart = float((weight * (numbers - self.mean) ** 2).sum() / mass)
        self.count = int(np.count_nonzero(weight))
        self.clusters = int(np.count_nonzero(masses))
        freedom = max(self.clusters - 1, 1)
        self.variance = self.clusters / freedom * float((residuals**2).sum()) / mass**2
        self.effective = mass**2 / float((weight**2).sum())
        self.effective_clusters = mass**2 / float((masses**2).sum())

    def quantile(self, confidence: float) -> float:
        """Student's, with one degree of freedom less than there are clusters."""
        from scipy.special import stdtrit

        return float(stdtrit(self.clusters - 1, (1 + confidence) / 2))
