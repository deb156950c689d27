"""Curves that fit on a page: smoothed without lag, thinned without losing a spike."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

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
    """A centred moving average over about a sixteenth of the run, thinned to `MAX_POINTS`.

    Centred, so that it does not lag behind the steps as an exponential average does; at the
    ends the window shrinks on both sides alike, so that the ends are not bent.

    >>> smoothed(Series((1, 2, 3), (0.0, 1.0, 5.0))).values  # too short to smooth
    (0.0, 1.0, 5.0)
    """
    count = len(curve)
    if count < SMOOTH_FROM:
        return curve
    half = max(2, count // 32)
    sums, counts = _prefix_sums(curve.values)
    steps, values = [], []
    for position in _positions(count):
        reach = min(half, position, count - 1 - position)
        low, high = position - reach, position + reach + 1
        finite = counts[high] - counts[low]
        steps.append(curve.steps[position])
        values.append((sums[high] - sums[low]) / finite if finite else math.nan)
    return Series(tuple(steps), tuple(values))


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


def _prefix_sums(values: tuple[float, ...]) -> tuple[list[float], list[int]]:
    sums, counts = [0.0], [0]
    for value in values:
        finite = math.isfinite(value)
        sums.append(sums[-1] + (value if finite else 0.0))
        counts.append(counts[-1] + finite)
    return sums, counts


def _positions(count: int) -> list[int]:
    """At most `MAX_POINTS` indices, evenly spread, the first and the last among them."""
    if count <= MAX_POINTS:
        return list(range(count))
    return [round(i * (count - 1) / (MAX_POINTS - 1)) for i in range(MAX_POINTS)]
