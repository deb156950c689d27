"""Curves that fit on a page: smoothed without lag, thinned without losing a spike."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from prefopt.report.artefacts import Record

#: more points than this say nothing more on a plot as wide as a phone
MAX_POINTS = 240
#: fewer steps than this are shown as they are
SMOOTH_FROM = 24


@dataclass(frozen=True, slots=True)
class Series:
    """One measured value over the steps of a run, without the steps that lack it."""

    steps: tuple[int, ...]
    values: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.steps)


def series(records: Iterable[Record], name: str) -> Series:
    """The values called `name`, in step order; NaN where a value was not finite."""
    pairs = [(record.step, record.values[name]) for record in records if name in record.values]
    return Series(tuple(step for step, _ in pairs), tuple(value for _, value in pairs))


def smoothed(curve: Series) -> Series:
    """A local straight line fitted to about an eighth of the run around each point, thinned.

    Centred, so that it does not lag behind the steps as an exponential average does; and a
    line rather than a mean, so that the ends, where the window has one side only, are not
    bent towards the middle.

    >>> smoothed(Series((1, 2, 3), (0.0, 1.0, 5.0))).values  # too short to smooth
    (0.0, 1.0, 5.0)
    """
    import numpy as np

    count = len(curve)
    if count < SMOOTH_FROM:
        return curve
    half = max(6, count // 16)
    values = np.asarray(curve.values)
    chosen = _positions(count)
    fitted = []
    for position in chosen:
        low, high = max(0, position - half), min(count, position + half + 1)
        around = np.arange(low, high) - position
        finite = np.isfinite(values[low:high])
        fitted.append(_line_at_zero(around[finite], values[low:high][finite]))
    return Series(tuple(curve.steps[position] for position in chosen), tuple(fitted))


def _line_at_zero(x: Any, y: Any) -> float:
    """The value at 0 of the least-squares line through (x, y); NaN without a point."""
    if len(x) == 0:
        return math.nan
    mean, spread = x.mean(), ((x - x.mean()) ** 2).sum()
    slope = ((x - mean) * y).sum() / spread if spread else 0.0
    return float(y.mean() - slope * mean)


def thinned(curve: Series) -> Series:
    """At most `MAX_POINTS` points: of each stretch of steps its lowest and its highest.

    A mean would hide the one step that went wrong; the extremes never do. A stretch without
    a finite value stays a gap.
    """
    count, stretches = len(curve), MAX_POINTS // 2
    if count <= MAX_POINTS:
        return curve
    kept: list[int] = []
    for index in range(stretches):
        stretch = range(index * count // stretches, (index + 1) * count // stretches)
        finite = [i for i in stretch if math.isfinite(curve.values[i])]
        if finite:
            extremes = {
                min(finite, key=curve.values.__getitem__),
                max(finite, key=curve.values.__getitem__),
            }
            kept.extend(sorted(extremes))
        else:
            kept.append(stretch[0])
    return Series(tuple(curve.steps[i] for i in kept), tuple(curve.values[i] for i in kept))


def ends(curve: Series) -> tuple[float, float] | None:
    """Where a curve starts and where it ends, without the noise of single steps.

    The mean of the first and of the last tenth; of a short curve its first and last value.
    None if nothing finite was measured.
    """
    finite = [value for value in curve.values if math.isfinite(value)]
    if not finite:
        return None
    tenth = max(1, len(finite) // 10)
    return sum(finite[:tenth]) / tenth, sum(finite[-tenth:]) / tenth


def _positions(count: int) -> list[int]:
    """At most `MAX_POINTS` indices, evenly spread, the first and the last among them."""
    if count <= MAX_POINTS:
        return list(range(count))
    return [round(i * (count - 1) / (MAX_POINTS - 1)) for i in range(MAX_POINTS)]
