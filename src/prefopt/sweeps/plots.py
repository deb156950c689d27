"""Drawings of a sweep: what is gained against what is paid, and what each setting does."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from prefopt.recipe.text import flow
from prefopt.report.drawing import (
    INK,
    MAIN,
    MARKERS,
    MUTED,
    PAPER,
    SCALE,
    figure_of,
    style_axes,
    to_svg,
)
from prefopt.report.words import number
from prefopt.sweeps.choosing import KL, Standing
from prefopt.sweeps.points import short
from prefopt.sweeps.settings import Goal
from prefopt.sweeps.trials import Result, title

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Levels:
    """The values of one setting in a few groups, each with a colour or a shape.

    Attributes:
        name: of the setting; empty if it tells nothing apart.
        labels: of the groups, in order.
        group: of each value, by how the value is written.
    """

    name: str
    labels: tuple[str, ...]
    group: dict[str, int]

    def of(self, result: Result) -> int:
        """The group of a trial."""
        return self.group.get(flow(result.trial.point.get(self.name)), 0)

    def shade(self, group: int) -> int:
        """The place of a group on the scale of colours: few groups are far apart."""
        return round(group * (len(SCALE) - 1) / max(1, len(self.labels) - 1))


def levels(name: str, results: Iterable[Result], most: int) -> Levels:
    """A group for each value, or of neighbouring values where there are more than `most`."""
    points = [result.trial.point for result in results]
    values = {flow(point[name]): point[name] for point in points if name in point}
    if all(_is_number(value) for value in values.values()):
        ordered = sorted(values, key=lambda written: float(values[written]))
    else:
        ordered = list(values)
    parts = [list(part) for part in np.array_split(ordered, max(1, min(most, len(ordered))))]
    group = {str(written): index for index, part in enumerate(parts) for written in part}
    labels = (str(p[0]) if len(p) == 1 else f"{p[0]} to {p[-1]}" for p in parts if p)
    return Levels(name, tuple(labels), group)


def told_apart(search: Iterable[str]) -> tuple[str, str]:
    """The settings that colour and shape stand for: β and the learning rate if they can be."""
    wanted = ("objective.beta", "learning_rate")
    ordered = sorted(search, key=lambda name: wanted.index(name) if name in wanted else 2)
    return (*ordered, "", "")[0], (*ordered, "", "")[1]


@dataclass(frozen=True)
class Picture:
    """A drawing with its words: trusted SVG markup."""

    title: str
    note: str
    svg: str


class Painter:
    """Draws the trials of one sweep, always in the same colours and shapes.

    Args:
        ranked: all points, best first.
        search: the searched settings.
        goal: what is plotted upwards.
    """

    def __init__(self, ranked: Sequence[Standing], search: Sequence[str], goal: Goal) -> None:
        self.goal = goal
        self.done = [
            (result, standing)
            for standing in ranked
            for result in standing.results
            if result.state == "done"
        ]
        self.winner = ranked[0] if ranked and ranked[0].eligible else None
        colour, shape = told_apart(search)
        results = [result for result, _ in self.done]
        self.colours = levels(colour, results, len(SCALE))
        self.shapes = levels(shape, results, len(MARKERS))

    def against_kl(self) -> Picture | None:
        """The goal against the KL, one point a trial; None where no KL was measured."""
        placed = [(r, s, r.numbers[KL]) for r, s in self.done if KL in r.numbers]
        if not placed:
            return None
        with figure_of(7.2, 3.6) as (figure, axes):
            for result, standing, kl in placed:
                self._dot(axes, kl, result, standing, "kl")
            style_axes(axes)
            axes.margins(x=0.04, y=0.1)
            budget = self.goal.kl_budget
            if budget is not None:
                right = max(axes.get_xlim()[1], budget * 1.06)
                axes.set_xlim(axes.get_xlim()[0], right)
                axes.axvspan(budget, right, color=MUTED, alpha=0.1, linewidth=0, zorder=0)
                axes.axvline(budget, color=MUTED, linewidth=1, dashes=(4, 3), zorder=1)
                label = f"budget {budget:g}"
                axes.annotate(
                    label, (budget, 1), xycoords=("data", "axes fraction"),
                    xytext=(-4, -9), textcoords="offset points", ha="right", color=MUTED,
                )  # fmt: skip
            _numbers(axes)
            axes.set_xlabel("KL to the reference, nats a completion")
            axes.set_ylabel(self.goal.measure.replace("_", " "))
            spoken = f"{self.goal.measure} against KL, {len(placed)} trials"
            svg = to_svg(figure, "kl", spoken, self._titles("kl"))
        return Picture(f"{self._goal} against KL", "One mark a trial.", svg)

    def over(self, name: str, search: Sequence[str]) -> Picture | None:
        """The goal over one setting; None where all trials have the same value."""
        tried = [(r, s) for r, s in self.done if name in r.trial.point]
        values = {flow(r.trial.point[name]): r.trial.point[name] for r, _ in tried}
        if len(values) < 2:
            return None
        plain = [float(value) for value in values.values() if _is_number(value)]
        even = len(plain) < len(values)
        places = {written: float(place) for place, written in enumerate(values)}
        with figure_of(3.5, 2.3) as (figure, axes):
            for result, standing in tried:
                value = result.trial.point[name]
                place = places[flow(value)] if even else float(value)
                self._dot(axes, place, result, standing, name)
            style_axes(axes)
            axes.margins(x=0.08, y=0.12)
            if even:
                axes.set_xticks(list(places.values()), list(places))
            elif min(plain) > 0 and max(plain) / min(plain) >= 8:
                _logarithmic(axes, plain)
            else:
                _numbers(axes)
            axes.set_xlabel(short(name, search))
            svg = to_svg(figure, name, f"{self._goal} over {name}", self._titles(name))
        return Picture(f"{self._goal} over {short(name, search)}", "", svg)

    @property
    def _goal(self) -> str:
        words = self.goal.measure.replace("_", " ")
        return words[0].upper() + words[1:]

    def _dot(self, axes: Axes, place: float, result: Result, standing: Standing, plot: str) -> None:
        """One trial: hollow beyond the budget, ringed if it belongs to the winner."""
        shade = self.colours.shade(self.colours.of(result))
        colour = SCALE[shade] if len(self.colours.labels) > 1 else MAIN
        value = result.numbers[self.goal.name]
        hollow = standing.over_budget
        axes.plot(
            place, value, marker=MARKERS[self.shapes.of(result)], linestyle="", markersize=7,
            color=colour, markerfacecolor=PAPER if hollow else colour, markeredgewidth=1.4,
            alpha=0.92, zorder=3, gid=_gid(plot, result),
        )  # fmt: skip
        if standing is self.winner:
            axes.plot(
                place, value, marker="o", linestyle="", markersize=13, color=INK,
                markerfacecolor="none", markeredgewidth=1.3, zorder=2,
            )  # fmt: skip

    def _titles(self, plot: str) -> dict[str, str]:
        """What a browser shows over a mark."""
        words = {}
        for result, _ in self.done:
            text = f"{title(result.trial)}: {self.goal.measure} "
            text += number(result.numbers[self.goal.name])
            if KL in result.numbers:
                text += f", KL {number(result.numbers[KL])}"
            words[_gid(plot, result)] = text
        return words


def _gid(plot: str, result: Result) -> str:
    return f"{plot}-{result.trial.name}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _numbers(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, min_n_ticks=2))


def _logarithmic(axes: Axes, values: Sequence[float]) -> None:
    """A logarithmic axis with marks at the values themselves, as far as they have room."""
    from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

    few = sorted(set(values))
    if len(few) > 5:
        low, high = np.log10(few[0]), np.log10(few[-1])
        few = [float(f"{10**place:.1g}") for place in np.linspace(low, high, 4)]
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(few))
    axes.xaxis.set_major_formatter(FixedFormatter([flow(value) for value in few]))
    axes.xaxis.set_minor_locator(NullLocator())
