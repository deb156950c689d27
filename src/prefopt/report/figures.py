"""What a run's page draws: its curves, and its win rate."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prefopt.report.artefacts import Artefacts
from prefopt.report.drawing import (
    DISPREFERRED,
    INK,
    MAIN,
    MUTED,
    PAPER,
    PREFERRED,
    VARIABLES,
    figure_of,
    style_axes,
    to_svg,
)
from prefopt.report.series import Series, ends, series, smoothed, thinned
from prefopt.report.words import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True, slots=True)
class Panel:
    """One small plot of the curves.

    Attributes:
        name: unique on the page.
        title: what is plotted.
        note: how to read it, in one line.
        lines: (metric, label, colour); the label is empty where there is only one line.
        level: a value to draw a dashed line at, e.g. chance; None for none.
        exact: the values are set, not measured, so there is no noise to smooth.
        sampled: the values are of probes, not of steps and evaluations.
    """

    name: str
    title: str
    note: str
    lines: tuple[tuple[str, str, str], ...]
    level: float | None = None
    exact: bool = False
    sampled: bool = False


def _both(metric: str) -> tuple[tuple[str, str, str], ...]:
    """Both sides of comparisons, or of labels: a run has either."""
    return (
        (f"{metric}_preferred", "preferred", PREFERRED),
        (f"{metric}_dispreferred", "dispreferred", DISPREFERRED),
        (f"{metric}_desirable", "desirable", PREFERRED),
        (f"{metric}_undesirable", "undesirable", DISPREFERRED),
    )


#: every curve of the report, in order; a panel without values is left out
PANELS = (
    Panel("loss", "Loss", "What is minimised; lower is better.", (("loss", "", MAIN),)),
    Panel(
        "accuracy",
        "Accuracy",
        "How often the policy judges as the data does; 0.5 is chance.",
        (("accuracy", "", MAIN),),
        level=0.5,
    ),
    Panel(
        "margin",
        "Margin",
        "Reward of what the data prefers minus that of the rest.",
        (("margin", "", MAIN),),
        level=0.0,
    ),
    Panel(
        "reward",
        "Rewards",
        "β · log(policy / reference), unless the objective has its own.",
        _both("reward"),
        level=0.0,
    ),
    Panel(
        "logp",
        "Log-probabilities",
        "Nats a completion under the policy. If both fall, probability goes elsewhere.",
        _both("logp"),
    ),
    Panel("length", "Lengths", "Tokens a completion, in the data of each step.", _both("length")),
    Panel(
        "kl",
        "KL to the reference",
        "Nats a sampled completion.",
        (("kl", "", MAIN),),
        sampled=True,
    ),
    Panel(
        "sampled-reward",
        "Reward of samples",
        "What the policy's own completions are worth; a fall while KL grows is over-optimisation.",
        (("reward", "", MAIN),),
        sampled=True,
    ),
    Panel(
        "sampled-length",
        "Length of samples",
        "Tokens of the policy's own completions.",
        (("length", "", MAIN),),
        sampled=True,
    ),
    Panel(
        "gradient_norm",
        "Gradient norm",
        "Before clipping; spikes are batches that pull hard.",
        (("gradient_norm", "", MAIN),),
    ),
    Panel(
        "learning_rate",
        "Learning rate",
        "As scheduled.",
        (("learning_rate", "", MAIN),),
        exact=True,
    ),
    Panel("speed", "Throughput", "Tokens a second.", (("tokens_per_second", "", MAIN),)),
)


@dataclass(frozen=True, slots=True)
class Plot:
    """A drawn panel: trusted SVG markup and the words around it.

    Attributes:
        summary: where each line starts and ends, as (label, colour class, text).
        paired: it has a line for either side of comparisons, or either kind of labels.
    """

    title: str
    note: str
    svg: str
    summary: tuple[tuple[str, str, str], ...]
    paired: bool

    @property
    def labels(self) -> tuple[str, ...]:
        """What its lines are called."""
        return tuple(label for label, _, _ in self.summary)


def draw_curves(run: Artefacts) -> list[Plot]:
    """Every panel that has something to show, and those of the constraints."""
    panels = (*PANELS, *_constraint_panels(run))
    return [plot for panel in panels if (plot := _draw_panel(panel, run)) is not None]


def _constraint_panels(run: Artefacts) -> Iterator[Panel]:
    """The cost of each constraint against its limit, and the multiplier that keeps it."""
    values = run.probe[-1].values if run.probe else {}
    names = [key.removeprefix("costs.") for key in values if key.startswith("costs.")]
    for index, name in enumerate(names):
        yield Panel(
            f"cost-{index}",
            f"Cost of samples: {name}",
            "Mean over the policy's own completions; the dashed line is the limit.",
            ((f"costs.{name}", "", MAIN),),
            level=values.get(f"limits.{name}"),
            sampled=True,
        )
        yield Panel(
            f"multiplier-{index}",
            f"Multiplier: {name}",
            "Reward that a unit of cost takes away.",
            ((f"multipliers.{name}", "", MAIN),),
            sampled=True,
        )


def _draw_panel(panel: Panel, run: Artefacts) -> Plot | None:
    summary: list[tuple[str, str, str]] = []
    with figure_of(3.5, 2.05) as (figure, axes):
        for metric, label, colour in panel.lines:
            train, evals = series(run.train, metric), series(run.eval, metric)
            if panel.sampled:
                train, evals = Series((), ()), series(run.probe, metric)
            _draw_line(axes, colour, train, evals, exact=panel.exact)
            if words := _summary(train, evals, panel):
                summary.append((label, VARIABLES[colour].removeprefix("--"), words))
        if not summary:
            return None
        if panel.level is not None:
            axes.axhline(panel.level, color=MUTED, linewidth=0.8, dashes=(4, 3), zorder=1)
        style_axes(axes)
        axes.set_xlabel("step")
        spoken = "; ".join(f"{label} {words}".strip() for label, _, words in summary)
        svg = to_svg(figure, panel.name, f"{panel.title} by step: {spoken}")
    return Plot(panel.title, panel.note, svg, tuple(summary), paired=len(summary) > 1)


def _summary(train: Series, evals: Series, panel: Panel) -> str:
    """Where a line starts and ends, on held-out data where there is some; "" if it is empty."""
    if panel.exact and len(train):
        return f"up to {number(max(train.values))}"
    if len(evals) > 1:
        course = _from_to(evals.values[0], evals.values[-1])
        return course if panel.sampled else f"held-out {course}"
    reached = ends(train) or ends(evals)
    return "" if reached is None else _from_to(*reached)


def _draw_line(axes: Axes, colour: str, train: Series, evals: Series, *, exact: bool) -> None:
    """Every step faintly, the smoothed course over it, evaluations as rings."""
    smooth = thinned(train) if exact else smoothed(train)
    if not exact and smooth is not train:
        raw = thinned(train)
        axes.plot(raw.steps, raw.values, color=colour, linewidth=0.8, alpha=0.28, zorder=2)
    if len(train):
        marker = "." if len(train) == 1 else ""
        axes.plot(smooth.steps, smooth.values, color=colour, linewidth=1.7, marker=marker, zorder=3)
    if len(evals):
        shown = thinned(evals)
        axes.plot(
            shown.steps, shown.values, color=colour, linewidth=0.9, dashes=(2, 1.5), zorder=4,
            marker="o", markersize=4.2, markerfacecolor=PAPER, markeredgewidth=1.2,
        )  # fmt: skip


def draw_win_rate(rate: float, interval: tuple[float, float] | None) -> str:
    """A win rate with its interval on the scale from 0 to 1, against the line of a tie."""
    with figure_of(3.6, 0.85) as (figure, axes):
        axes.barh(0, rate, height=0.42, color=MAIN, alpha=0.28, zorder=2)
        if interval is not None:
            axes.plot(interval, (0, 0), color=MAIN, linewidth=2.2, zorder=3)
            for end in interval:
                axes.plot((end, end), (-0.16, 0.16), color=MAIN, linewidth=2.2, zorder=3)
        axes.plot(rate, 0, marker="o", markersize=7, color=MAIN, zorder=4)
        axes.axvline(0.5, color=INK, linewidth=1, dashes=(4, 3), zorder=5)
        style_axes(axes)
        axes.grid(False)
        axes.set_xlim(0, 1)
        axes.set_ylim(-0.45, 0.45)
        axes.set_yticks([])
        axes.set_xticks((0, 0.25, 0.5, 0.75, 1))
        axes.set_xticklabels(("0", "0.25", "0.5: a tie", "0.75", "1"))
        spoken = f"Win rate {number(rate)}"
        if interval is not None:
            spoken += f", 95 % interval {number(interval[0])} to {number(interval[1])}"
        return to_svg(figure, "win-rate", f"{spoken}; 0.5 is no difference")


def _from_to(first: float, last: float) -> str:
    return number(last) if number(first) == number(last) else f"{number(first)} → {number(last)}"
