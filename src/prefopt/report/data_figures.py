"""Drawings of preference data: what its sides look like, and what goes with being preferred.

Everything is optional: of figures that `prefopt check` does not have, nothing is drawn. Names of
sources, categories and annotators are anybody's text in any script, so their shares are bars of
the page and not drawings.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prefopt.data.visible import visible
from prefopt.report.drawing import (
    DISPREFERRED,
    GRID,
    INK,
    MAIN,
    MUTED,
    PREFERRED,
    figure_of,
    style_axes,
    tick,
    to_svg,
)
from prefopt.report.figures import Plot
from prefopt.report.words import counted, number, percent

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.axes import Axes

_BARS, _CLUSTERS, _WORDS = 8, 24, 6  # names and clusters; what is beyond is counted
_SIDES = (("preferred", PREFERRED), ("dispreferred", DISPREFERRED))

Figures = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Bar:
    """One line of a chart of shares.

    Attributes:
        name: as markup.
        width: of the bar in percent of the room for it.
        text: the share as a number.
        other, other_text: the same of the evaluation data, where there are some.
        note: how many there are.
    """

    name: Markup
    width: str
    text: str
    other: str
    other_text: str
    note: str


@dataclass(frozen=True, slots=True)
class Bars:
    """Shares by name, the largest first; `against` where they are beside those of other data."""

    title: str
    note: str
    bars: tuple[Bar, ...]
    left_out: int
    against: bool = False
    wide: bool = False


def plots(figures: Figures) -> list[Plot]:
    """Every drawing that the figures allow."""
    drawn = (_decides(figures), _lengths(figures), _by_ratio(figures), _marks(figures),
             _tokens(figures), _margins(figures))  # fmt: skip
    return [plot for plot in drawn if plot is not None]


def bars(figures: Figures) -> list[Bars]:
    """Who said it, where it comes from, what it is about, and the clusters of prompts."""
    found = [
        _voices(figures.get("sources"), "Sources", "Where the comparisons come from."),
        _voices(figures.get("categories"), "Categories", "What the comparisons are about."),
        _voices(figures.get("annotators"), "Annotators", "Whose preferences these are."),
        _clusters(figures.get("coverage")),
    ]
    return [chart for chart in found if chart is not None]


# -- what goes with being preferred --------------------------------------------------------


def _decides(figures: Figures) -> Plot | None:
    """Each thing that may decide: how often the side that has it is preferred."""
    rows = [(name, found) for name, found in _deciders(figures) if found.get("value") is not None]
    if not rows:
        return None
    with figure_of(3.5, 0.75 + 0.24 * len(rows)) as (figure, axes):
        axes.axvspan(0.45, 0.55, color=MUTED, alpha=0.12, linewidth=0, zorder=0)
        axes.axvline(0.5, color=INK, linewidth=0.9, dashes=(4, 3), zorder=1)
        for place, (_, found) in enumerate(rows):
            _estimate(axes, found, place)
        style_axes(axes)
        axes.grid(False)
        axes.set_xlim(0, 1)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xticks((0, 0.25, 0.5, 0.75, 1))
        axes.set_yticks(range(len(rows)), [name for name, _ in rows])
        spoken = "; ".join(f"{name} {number(found['value'])}" for name, found in rows)
        svg = to_svg(figure, "decides", f"Share of comparisons in which it is preferred: {spoken}")
    note = (
        "How often the side that has it alone is preferred, with its interval. One half is no bias."
    )
    return Plot("What goes with being preferred", note, svg, (), paired=False)


def _deciders(figures: Figures) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for name, key in (("the longer one", "longer"), ("the first shown", "position")):
        if figures.get(key):
            yield name, figures[key]
    for mark in figures.get("marks") or ():
        if mark.get("alone"):
            yield str(mark["mark"]), mark["alone"]


def _estimate(axes: Axes, found: Mapping[str, Any], place: float) -> None:
    """A dot with its interval, across."""
    low, high = found["interval"]
    axes.plot((low, high), (place, place), color=MAIN, linewidth=2, alpha=0.45, zorder=2)
    axes.plot(found["value"], place, marker="o", markersize=5, color=MAIN, zorder=3)


def _by_ratio(figures: Figures) -> Plot | None:
    """P(longer is preferred) by how much longer it is."""
    steps = (figures.get("longer") or {}).get("by_ratio") or ()
    if len(steps) < 2:
        return None
    labels = [_ratio(step) for step in steps]
    with figure_of(3.5, 2.05) as (figure, axes):
        axes.axhline(0.5, color=MUTED, linewidth=0.8, dashes=(4, 3), zorder=1)
        for place, step in enumerate(steps):
            axes.plot((place, place), step["interval"], color=MAIN, linewidth=2, alpha=0.45)
            axes.plot(place, step["value"], marker="o", markersize=5, color=MAIN)
        style_axes(axes)
        axes.set_ylim(0, 1)
        axes.set_yticks((0, 0.25, 0.5, 0.75, 1))
        axes.set_xlim(-0.6, len(labels) - 0.4)
        axes.set_xticks(range(len(labels)), labels)
        axes.set_xlabel("times as long as the other side")
        spoken = "; ".join(
            f"{label} {number(step['value'])}" for label, step in zip(labels, steps, strict=True)
        )
        svg = to_svg(figure, "ratio", f"Share in which the longer side is preferred: {spoken}")
    note = "A bias of length grows with the difference; a better answer need not."
    return Plot("When the longer one is preferred", note, svg, (), paired=False)


def _ratio(step: Mapping[str, Any]) -> str:
    low, high = step["from"], step["to"]
    return f"over {low:g}" if high is None else f"to {high:g}"


# -- what the sides look like --------------------------------------------------------------


def _lengths(figures: Figures) -> Plot | None:
    """How long both sides are, on a scale of ratios."""
    found = figures.get("lengths") or {}
    edges = [max(float(edge), 0.5) for edge in found.get("edges") or ()]
    sides = [list(found.get(side) or ()) for side, _ in _SIDES]
    used = [i for i in range(len(edges) - 1) if any(side[i] for side in sides)]
    if not used:
        return None
    first, last = used[0], used[-1] + 1
    edges = edges[first : last + 1]
    summary = []
    with figure_of(3.5, 2.05) as (figure, axes):
        for (side, colour), counts in zip(_SIDES, sides, strict=True):
            shares = [count / (sum(counts) or 1) for count in counts[first:last]]
            axes.stairs(shares, edges, color=colour, alpha=0.16, fill=True)
            axes.stairs(shares, edges, color=colour, linewidth=1.5)
            middle = number(round(_median(edges, shares)))
            summary.append((side, side, f"median about {middle}"))
        style_axes(axes)
        axes.set_ylim(bottom=0)
        _logarithmic(axes, edges[0], edges[-1])
        axes.set_xlabel("characters")
        spoken = "; ".join(f"{side} {text}" for side, _, text in summary)
        svg = to_svg(figure, "lengths", f"Lengths of both sides in characters: {spoken}")
    return Plot("Lengths", "Share of the completions of each side.", svg, tuple(summary), True)


def _median(edges: Sequence[float], shares: Sequence[float]) -> float:
    """Where half of a histogram lies on either side, within a bin by ratios."""
    left = 0.5 * sum(shares)
    for low, high, share in zip(edges, edges[1:], shares, strict=False):
        if share >= left and share > 0:
            return float(low * (high / low) ** (left / share))
        left -= share
    return edges[-1]


def _logarithmic(axes: Axes, low: float, high: float) -> None:
    """A logarithmic axis with a few round marks."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axes.set_xscale("log")
    axes.set_xlim(low, high)
    tens = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1,) if high / low > 1000 else (1, 3) if high / low > 30 else (1, 2, 5)
    marks = [step * 10.0**ten for ten in tens for step in steps]
    axes.xaxis.set_major_locator(FixedLocator([mark for mark in marks if low <= mark <= high]))
    axes.xaxis.set_major_formatter(FuncFormatter(tick))
    axes.xaxis.set_minor_locator(NullLocator())


def _marks(figures: Figures) -> Plot | None:
    """How often either side has a list, headings, …"""
    marks = [m for m in figures.get("marks") or () if m.get("preferred") is not None]
    marks = [m for m in marks if m["preferred"] or m["dispreferred"]]
    if not marks:
        return None
    from matplotlib.ticker import MaxNLocator

    with figure_of(3.5, 0.75 + 0.3 * len(marks)) as (figure, axes):
        for shift, (side, colour) in zip((-0.18, 0.18), _SIDES, strict=True):
            places = [place + shift for place in range(len(marks))]
            axes.barh(places, [mark[side] for mark in marks], height=0.32, color=colour, alpha=0.8)
        style_axes(axes)
        axes.grid(False)
        axes.grid(axis="x", color=GRID, linewidth=0.8)
        axes.margins(x=0.04)
        axes.set_ylim(len(marks) - 0.4, -0.6)
        axes.set_yticks(range(len(marks)), [str(mark["mark"]) for mark in marks])
        axes.xaxis.set_major_locator(MaxNLocator(nbins=4, min_n_ticks=3))
        axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
        axes.set_xlim(left=0)
        spoken = "; ".join(
            f"{m['mark']} {percent(m['preferred'])} and {percent(m['dispreferred'])}" for m in marks
        )
        svg = to_svg(figure, "marks", f"Share of preferred and of dispreferred sides: {spoken}")
    summary = tuple((side, side, "") for side, _ in _SIDES)
    return Plot("Format and refusals", "Share of the completions that have it.", svg, summary, True)


def _tokens(figures: Figures) -> Plot | None:
    """Prompt and completion together in tokens, and the limit."""
    found = figures.get("tokens") or {}
    histogram = found.get("histogram") or {}
    if not any(histogram.get("counts") or ()):
        return None
    limit, over = found.get("limit"), found.get("over") or 0
    with figure_of(3.5, 2.05) as (figure, axes):
        axes.stairs(histogram["counts"], histogram["edges"], color=MAIN, alpha=0.16, fill=True)
        axes.stairs(histogram["counts"], histogram["edges"], color=MAIN, linewidth=1.5)
        style_axes(axes)
        axes.set_ylim(bottom=0)
        if limit is not None and limit < histogram["edges"][-1]:
            axes.axvline(limit, color=DISPREFERRED, linewidth=1, dashes=(4, 3))
        axes.set_xlabel("tokens of prompt and completion")
        words = f"half have up to {number(found['quantiles']['together']['half'])}"
        if limit is not None:
            words += f", {number(over)} more than {number(limit)}"
        svg = to_svg(figure, "tokens", f"Lengths in tokens: {words}")
    note = "How many completions have so many tokens; the dashed line is the limit."
    return Plot("Tokens", note, svg, (("", "", words),), paired=False)


def _margins(figures: Figures) -> Plot | None:
    """What a cheap model says of labels that it has not seen."""
    found = figures.get("suspects") or {}
    if not found.get("counts"):
        return None
    edges, counts = found["edges"], found["counts"]
    with figure_of(3.5, 2.05) as (figure, axes):
        axes.axvspan(edges[0], -2, color=DISPREFERRED, alpha=0.12, linewidth=0, zorder=0)
        axes.stairs(counts, edges, color=MAIN, alpha=0.16, fill=True)
        axes.stairs(counts, edges, color=MAIN, linewidth=1.5)
        axes.axvline(0, color=MUTED, linewidth=0.8, dashes=(4, 3), zorder=1)
        style_axes(axes)
        axes.set_xlim(edges[0], edges[-1])
        axes.set_xlabel("margin of the label, standardised")
        right = found["accuracy"]
        words = f"it agrees with {percent(right['value'])} of the labels"
        svg = to_svg(figure, "margins", f"Cross-fitted margins of the labels; {words}")
    note = "A cheap model, fitted on other prompts: on the left it would have said the opposite."
    return Plot("Suspect labels", note, svg, (("", "", words),), paired=False)


# -- shares by name ------------------------------------------------------------------------


def _voices(found: Mapping[str, Any] | None, title: str, note: str) -> Bars | None:
    if not found or not found.get("largest"):
        return None
    largest = found["largest"][:_BARS]
    widest = max(item["share"] for item in largest) or 1.0
    shown = tuple(
        Bar(
            visible(str(item["name"])),
            _width(item["share"], widest),
            percent(item["share"]),
            "",
            "",
            counted(item["comparisons"], "comparison"),
        )
        for item in largest
    )
    if found.get("unnamed"):
        note += f" {counted(found['unnamed'], 'comparison')} have none."
    return Bars(title, note, shown, max(0, int(found["named"]) - len(largest)))


def _clusters(found: Mapping[str, Any] | None) -> Bars | None:
    """Clusters of prompts by the words that are theirs, beside those of the evaluation."""
    clusters = [c for c in (found or {}).get("clusters") or () if c["words"] or c["prompts"]]
    if not clusters:
        return None
    against = any(cluster.get("evaluation_share") is not None for cluster in clusters)
    shares = [(c["share"], c.get("evaluation_share") or 0.0) for c in clusters]
    widest = max(max(pair) for pair in shares[:_CLUSTERS]) or 1.0
    shown = tuple(
        Bar(
            visible(", ".join(map(str, cluster["words"][:_WORDS])) or "(no words of their own)"),
            _width(share, widest),
            percent(share),
            _width(other, widest),
            percent(other),
            counted(cluster["prompts"], "prompt"),
        )
        for cluster, (share, other) in zip(clusters[:_CLUSTERS], shares, strict=False)
    )
    note = "Prompts that share their words, by the words that set them apart."
    if found and found.get("effective"):
        note += f" They are spread as {number(float(found['effective']))} equal ones would be."
    return Bars("Clusters of prompts", note, shown, len(clusters) - len(shown), against, wide=True)


def _width(share: float, widest: float) -> str:
    return f"{100 * share / widest:.1f}%"
