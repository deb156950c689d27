"""What `prefopt frontier` measured → one page: reward against KL, and the optimum above it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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
        "lede": f"{counted(len(titles), 'method')}, {counted(len(result['curves']), 'training')} "
        f"and {counted(len(result['seeds']), 'world')} in which every policy can be written "
        "down: KL and reward are exact, not estimated.",
        "plots": [_plot(result, seed, looks) for seed in result["seeds"]],
        "several": len(result["seeds"]) > 1,
        "legend": [(SHAPES[looks[name][1]], looks[name][0], titles[name]) for name in titles],
        "rewards": _table(result),
        "shares": _shares(result),
        "scale": result["scale"],
        "accuracy": [number(value) for value in result["reward_model_accuracy"].values()],
    }


def _look(index: int) -> tuple[int, int]:
    """Place of a method on the scale of colours, and its shape: no two methods share both.

    >>> len({_look(index) for index in range(30)})
    30
    """
    return index % len(SCALE), (index + index // len(SCALE)) % len(MARKERS)


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
    def cell(row: Mapping[str, Any]) -> str:
        error = row["standard_error"]
        return number(row["reward"]) + ("" if error is None else f" ± {number(error)}")

    return _by_method(result, "Best mean reward within so many nats", cell)


def _shares(result: Mapping[str, Any]) -> Table:
    def cell(row: Mapping[str, Any]) -> str:
        return f"{100 * row['share_of_optimum']:.0f} %"

    return _by_method(result, "The same as a share of what the optimum gains there", cell)


def _by_method(result: Mapping[str, Any], caption: str, cell: Any) -> Table:
    budgets = _budgets(result)
    rows: dict[str, dict[float, str]] = {}
    for row in result["summary"]:
        rows.setdefault(row["title"], {})[row["budget"]] = cell(row)
    return Table(
        caption,
        ("method", *(f"KL ≤ {budget:g}" for budget in budgets)),
        tuple((title, *(cells[budget] for budget in budgets)) for title, cells in rows.items()),
    )
