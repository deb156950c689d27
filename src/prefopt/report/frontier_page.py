"""What `prefopt frontier` measured → one page: reward against KL, and the optimum above it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefopt.evaluation.frontier.reaching import reachable
from prefopt.report.details import Table
from prefopt.report.drawing import (
    INK,
    MARKERS,
    SCALE,
    SHAPES,
    figure_of,
    style_axes,
    to_svg,
)
from prefopt.report.pages import fill
from prefopt.report.words import counted, number
from prefopt.runs import write_text

Floats = NDArray[np.float64]
_SHOWN = (0.25, 5.0)  # nats between which methods are compared


def write(result: Mapping[str, Any], path: str | Path) -> None:
    """Write the page of what `Frontier.to_dict` returned.

    Raises:
        RunError: the page cannot be written. Nothing is left half-written.
    """
    write_text(path, fill("frontier.html.j2", _page(result)))


def _page(result: Mapping[str, Any]) -> dict[str, Any]:
    titles = {row["method"]: row["title"] for row in result["summary"]}
    looks = {name: _look(index) for index, name in enumerate(titles)}
    return {
        "headline": "Reward against KL, and the most that is possible",
        "lede": _lede(result),
        "reached": _reached(result, looks),
        "plots": [_plot(result, seed, looks) for seed in result["seeds"]],
        "several": len(result["seeds"]) > 1,
        "legend": [(SHAPES[looks[name][1]], looks[name][0], titles[name]) for name in titles],
        "rewards": _table(result),
        "own": _own(result),
        "scale": result["scale"],
        "accuracy": [number(value) for value in result["reward_model_accuracy"].values()],
    }


def _lede(result: Mapping[str, Any]) -> str:
    near = sorted((row for row in result["efficiency"] if row["mean"] is not None),
                  key=lambda row: -row["mean"])  # fmt: skip
    closest = ", ".join(f"{row['title']} ({100 * row['mean']:.1f} %)" for row in near[:3])
    keys = {"efficiency": "method", "curves": "curve", "seeds": "world"}
    many = [counted(len(result[key]), word) for key, word in keys.items()]
    return (
        f"{many[0]}, {many[1]} and {many[2]} in which every policy can be written down: "
        "KL and reward are exact, not estimated. Closest to the optimum at their own KL: "
        f"{closest}."
    )


def _look(index: int) -> tuple[int, int]:
    """Place of a method on the scale of colours, and its shape: no two methods share both.

    >>> len({_look(index) for index in range(30)})
    30
    """
    return index % len(SCALE), (index + index // len(SCALE)) % len(MARKERS)


def _reached(result: Mapping[str, Any], looks: Mapping[str, tuple[int, int]]) -> str:
    """The share of the possible gain within so many nats, the mean over worlds."""
    grid = np.linspace(*_SHOWN, 120)
    with figure_of(7.2, 3.4) as (figure, axes):
        axes.axhline(1, color=INK, linewidth=1.6, zorder=2)
        for place, (method, (colour, shape)) in enumerate(looks.items()):
            axes.plot(
                grid, shares_within(result, method, grid), color=SCALE[colour],
                marker=MARKERS[shape], markevery=(4 + 2 * place, 24), markersize=5,
                markeredgewidth=0, linewidth=1.5, alpha=0.9, zorder=3,
            )  # fmt: skip
        style_axes(axes)
        axes.set_ylim(0, 1.04)
        axes.set_yticks((0, 0.25, 0.5, 0.75, 1))
        axes.set_xlim(0, _SHOWN[1])
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
        axes.set_xlabel("at most so many nats a sequence")
        axes.set_ylabel("of what the optimum gains there")
        spoken = f"The share of the possible gain that {counted(len(looks), 'method')} reach"
        return to_svg(figure, "frontier-reached", spoken)


def shares_within(result: Mapping[str, Any], method: str, kls: Floats) -> Floats:
    """What a method reaches within each KL, of what the optimum gains there; mean over worlds."""
    shares = []
    for seed in result["seeds"]:
        points = [(kl, reward) for curve in result["curves"]
                  if (curve["method"], curve["seed"]) == (method, seed)
                  for _, kl, reward in curve["points"]]  # fmt: skip
        start, most = result["reference_reward"][str(seed)], _most(result, seed)
        shares.append((reachable(points, kls) - start) / (most(kls) - start))
    return np.asarray(np.mean(shares, axis=0))


def _most(result: Mapping[str, Any], seed: int) -> Callable[[Any], Floats]:
    """The highest reward of a world at a KL, from the line that is drawn."""
    kls, rewards = np.array(sorted(map(tuple, result["optimum"][str(seed)]))).T
    start = result["reference_reward"][str(seed)]
    return lambda grid: np.interp(grid, [0.0, *kls], [start, *rewards])


def _plot(result: Mapping[str, Any], seed: int, looks: Mapping[str, tuple[int, int]]) -> Any:
    curves = [curve for curve in result["curves"] if curve["seed"] == seed]
    line = result["optimum"][str(seed)]
    with figure_of(7.2, 4.2) as (figure, axes):
        axes.plot(*zip(*line, strict=True), color=INK, linewidth=1.6, zorder=2)
        for curve in curves:
            colour, shape = looks[curve["method"]]
            places = [(kl, reward) for _, kl, reward in curve["points"]]
            axes.plot(
                *zip(*places, strict=True), color=SCALE[colour], marker=MARKERS[shape],
                markersize=4.2, markeredgewidth=0, linewidth=0.7, alpha=0.72, zorder=3,
            )  # fmt: skip
        style_axes(axes)
        axes.set_xlim(left=-0.1, right=_right(line, curves))
        axes.set_xlabel("KL(π ‖ π_ref), nats a sequence")
        axes.set_ylabel("mean true reward")
        spoken = f"Reward against KL of {counted(len(curves), 'training')}, and the exact optimum"
        return {"seed": seed, "svg": to_svg(figure, f"frontier-{seed}", spoken)}


def _right(line: Sequence[Sequence[float]], curves: Sequence[Mapping[str, Any]]) -> float:
    """Where the plot ends: a baseline that runs away must not press the rest together."""
    kls = sorted(kl for curve in curves for _, kl, _ in curve["points"])
    return 1.04 * min(max(kls, default=1.0), 1.6 * max(kl for kl, _ in line))


def _budgets(result: Mapping[str, Any]) -> list[float]:
    return sorted({row["budget"] for row in result["summary"]})


def _table(result: Mapping[str, Any]) -> Table:
    """Rewards within budgets, and what they are of the optimum's gain."""
    budgets = sorted({row["budget"] for row in result["summary"]})
    cells: dict[str, list[str]] = {}
    for row in result["summary"]:
        error = row["standard_error"]
        spread = "" if error is None else f" ± {number(error)}"
        share = f"{100 * row['share_of_optimum']:.0f} %"
        cells.setdefault(row["title"], []).append(f"{number(row['reward'])}{spread}, {share}")
    spread = " ± standard error over the worlds" if len(result["seeds"]) > 1 else ""
    return Table(
        f"Mean true reward within so many nats{spread}, and its share of what the optimum gains",
        ("method", *(f"KL ≤ {budget:g}" for budget in budgets)),
        tuple((title, *row) for title, row in cells.items()),
    )


def _own(result: Mapping[str, Any]) -> Table:
    """How near the line each policy is, wherever it went."""

    def cell(value: float | None) -> str:
        return "–" if value is None else f"{100 * value:.1f} %"

    return Table(
        "What each policy gains, as a share of what the optimum gains at the same KL",
        ("method", "mean", "lowest", "highest"),
        tuple((row["title"], *(cell(row[name]) for name in ("mean", "lowest", "highest")))
              for row in result["efficiency"]),
    )  # fmt: skip
