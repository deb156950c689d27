"""How far length goes with winning: the win rate by how much longer an answer is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from prefopt.data.checking.estimates import share
from prefopt.evaluation.comparing import codes_of
from prefopt.evaluation.matches import Match, clusters_of
from prefopt.report.drawing import MAIN, MUTED, figure_of, style_axes, tick, to_svg
from prefopt.report.figures import Plot
from prefopt.report.words import number

_BINS = 5
_FEWEST = 10  # matches with a verdict, below which nothing is drawn


def by_length(matches: Sequence[Match], name: str) -> Plot | None:
    """The win rate in fifths of the differences of length; None where there is little to see."""
    read = [match for match in matches if match.value is not None]
    gaps = np.array([len(m.texts[0]) - len(m.texts[1]) for m in read], dtype=np.float64)
    if len(read) < _FEWEST or gaps.min() == gaps.max():
        return None
    values = np.array([match.value for match in read], dtype=np.float64)
    codes = codes_of(list(clusters_of(read)))
    edges = np.unique(np.quantile(gaps, np.linspace(0, 1, _BINS + 1)))
    place = np.clip(np.searchsorted(edges, gaps, side="right") - 1, 0, len(edges) - 2)
    spoken = []
    with figure_of(3.5, 2.05) as (figure, axes):
        axes.axhline(0.5, color=MUTED, linewidth=0.8, dashes=(4, 3), zorder=1)
        axes.axvline(0, color=MUTED, linewidth=0.8, dashes=(1, 2), zorder=1)
        for bin_ in np.unique(place):
            held = place == bin_
            found, middle = share(values[held], codes[held]), float(gaps[held].mean())
            axes.plot((middle, middle), found.ends, color=MAIN, linewidth=2, alpha=0.45)
            axes.plot(middle, found.value, marker="o", markersize=5, color=MAIN)
            spoken.append(f"{number(round(middle))} characters {number(found.value)}")
        style_axes(axes)
        axes.set_ylim(0, 1)
        axes.set_yticks((0, 0.25, 0.5, 0.75, 1))
        axes.xaxis.set_major_formatter(lambda value, _: tick(value))
        axes.margins(x=0.06)
        axes.set_xlabel("characters longer than the baseline")
        svg = to_svg(figure, name, f"Win rate by difference of length: {'; '.join(spoken)}")
    note = "Fifths of the pairs, with intervals. A level row means that length plays no part."
    return Plot("Win rate by length", note, svg, (), paired=False)
