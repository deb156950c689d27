"""All curves of the experiment, beside the exact optimum: points, and what they come to."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prefopt.data.worlds import EnumerableWorld
from prefopt.errors import RunError
from prefopt.evaluation.frontier.methods import (
    MODELLED,
    Experiment,
    experiments,
    find_method,
    run,
)
from prefopt.evaluation.frontier.preferences import Point
from prefopt.evaluation.frontier.reaching import optimal_reward, reachable
from prefopt.evaluation.frontier.stage import Scale, prepare
from prefopt.runs import held, write_text
from prefopt.workers import each

#: nats of divergence at which methods are compared
BUDGETS = (0.5, 1.0, 2.0, 4.0)


@dataclass(frozen=True)
class Curve:
    """The points of one experiment."""

    experiment: Experiment
    points: Sequence[Point]


@dataclass(frozen=True)
class Frontier:
    """What came out.

    Attributes:
        curves: of every experiment, in a settled order.
        worlds: of each seed.
        accuracy: of each seed's reward model on held-out comparisons, where there is one.
        scale: of the experiment.
    """

    curves: Sequence[Curve]
    worlds: Mapping[int, EnumerableWorld]
    accuracy: Mapping[int, float]
    scale: Scale

    def to_dict(self) -> dict[str, Any]:
        """As `prefopt frontier --json` prints it, and `frontier.json` keeps it."""
        return {
            "scale": asdict(self.scale),
            "seeds": sorted(self.worlds),
            "reference_reward": {str(s): _start(world) for s, world in self.worlds.items()},
            "reward_model_accuracy": {str(s): value for s, value in self.accuracy.items()},
            "summary": summary(self),
            "efficiency": efficiency(self),
            "curves": [
                {**asdict(curve.experiment), "points": [list(p) for p in curve.points]}
                for curve in self.curves
            ],
            "optimum": {str(seed): _line(world) for seed, world in self.worlds.items()},
        }


def measure(
    methods: Sequence[str],
    *,
    seeds: Sequence[int] = (0,),
    grid: Sequence[float] | None = None,
    scale: Scale | None = None,
    folder: Path,
    processes: int = 1,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Frontier:
    """Run every experiment that the folder does not have yet.

    Args:
        methods: names of the table of methods, or objectives.
        seeds: each with a world, a reference and comparisons of its own.
        grid: of β and κ, instead of the usual one.
        scale: how large it is.
        folder: keeps each curve as it is finished, so the same call goes on.
        processes: how many at a time.
        progress: called with (done, of how many).

    Raises:
        RecipeError: a method is unknown, or this world cannot serve it.
        RunError: the folder cannot be used.
    """
    scale = scale or Scale()
    wanted = experiments(methods, seeds, grid)
    with held(folder):
        kept = _Kept(folder / "curves.jsonl", scale)
        missing = [experiment for experiment in wanted if experiment not in kept.found]
        progress(len(wanted) - len(missing), len(wanted))
        tasks = [(scale, experiment) for experiment in missing]
        for done, found in enumerate(each(run, tasks, min(processes, len(tasks)))):
            kept.add(missing[done], *found)
            progress(len(wanted) - len(missing) + done + 1, len(wanted))
    modelled = any(name in MODELLED for name in methods)
    return Frontier(
        curves=[
            Curve(experiment, kept.found[experiment])
            for experiment in sorted(wanted, key=lambda one: methods.index(one.method))
        ],
        worlds={seed: prepare(scale, seed).world for seed in seeds},
        accuracy={seed: kept.accuracy[seed] for seed in seeds if modelled},
        scale=scale,
    )


def summary(frontier: Frontier) -> list[dict[str, Any]]:
    """Per method and budget: the most reward that its policies reach within so many nats.

    As `reachable` counts it, over all points of all settings. The mean over seeds, its standard
    error where there are several, and the same as a share of what the optimum gains over the
    reference. Points are known by the truth itself: an upper end of what a method can reach, for
    all methods alike.
    """
    rows = []
    for method in dict.fromkeys(curve.experiment.method for curve in frontier.curves):
        rewards, shares = [], []
        for seed, world in frontier.worlds.items():
            points = [(kl, reward) for curve in frontier.curves
                      if (curve.experiment.method, curve.experiment.seed) == (method, seed)
                      for _, kl, reward in curve.points]  # fmt: skip
            own = reachable(points, BUDGETS)
            most = np.array([optimal_reward(world, budget) for budget in BUDGETS])
            rewards.append(own)
            shares.append((own - _start(world)) / (most - _start(world)))
        several = len(rewards) > 1
        errors = np.std(rewards, ddof=1, axis=0) / len(rewards) ** 0.5 if several else None
        rows += [
            {
                "method": method, "title": find_method(method).title, "budget": budget,
                "reward": float(np.mean(rewards, axis=0)[place]),
                "standard_error": None if errors is None else float(errors[place]),
                "share_of_optimum": float(np.mean(shares, axis=0)[place]),
            }
            for place, budget in enumerate(BUDGETS)
        ]  # fmt: skip
    return rows


def efficiency(frontier: Frontier) -> list[dict[str, Any]]:
    """Per method: what its policies gain, as a share of what the optimum gains at their own KL.

    Of every policy that a training ended with, and of the best of every n above 1: the mean, the
    lowest and the highest, over settings and seeds; None where none of them moved by a thousandth
    of a nat. 1 is on the line.
    """
    rows = []
    for method in dict.fromkeys(curve.experiment.method for curve in frontier.curves):
        found = []
        for curve in frontier.curves:
            if curve.experiment.method != method:
                continue
            world = frontier.worlds[curve.experiment.seed]
            trained = find_method(method).trained
            for _, kl, reward in curve.points[-1:] if trained else curve.points[1:]:
                if kl > 1e-3:
                    most = optimal_reward(world, kl) - _start(world)
                    found.append((reward - _start(world)) / most)
        rows.append({
            "method": method, "title": find_method(method).title,
            "mean": float(np.mean(found)) if found else None,
            "lowest": min(found, default=None), "highest": max(found, default=None),
        })  # fmt: skip
    return rows


def _start(world: EnumerableWorld) -> float:
    """Mean reward of the reference."""
    return world.expected_reward(world.reference)


def _line(world: EnumerableWorld) -> list[tuple[float, float]]:
    """KL and reward of π_ref·exp(r/β) over a fine grid of β."""
    policies = [world.optimum(float(beta)) for beta in np.geomspace(3.0, 0.008, 120)]
    return [(world.kl(policy), world.expected_reward(policy)) for policy in policies]


class _Kept:
    """The curves of a folder, one line each; a line that was cut off is dropped.

    Attributes:
        found: the points of each experiment.
        accuracy: of each seed's reward model.
    """

    def __init__(self, path: Path, scale: Scale) -> None:
        self._path, self._scale = path, asdict(scale)
        self.found: dict[Experiment, list[Point]] = {}
        self.accuracy: dict[int, float] = {}
        self._lines: list[str] = []
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue
            self._take(row, number)
            self._lines.append(line)

    def add(self, experiment: Experiment, points: list[Point], accuracy: float | None) -> None:
        row = {**asdict(experiment), "scale": self._scale, "points": points, "accuracy": accuracy}
        self._lines.append(json.dumps(row))
        write_text(self._path, "\n".join(self._lines) + "\n")
        self._know(experiment, points, accuracy)

    def _take(self, row: Any, number: int) -> None:
        try:
            if row.pop("scale") != self._scale:
                raise RunError(
                    "the folder has curves of another scale",
                    file=str(self._path),
                    row=number,
                    remedy="give another --out, or remove it",
                )
            points = [(step, kl, reward) for step, kl, reward in row.pop("points")]
            accuracy = row.pop("accuracy")
            self._know(Experiment(**row), points, accuracy)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise RunError(
                "is no curve", file=str(self._path), row=number, remedy="give another --out"
            ) from error

    def _know(self, experiment: Experiment, points: list[Point], accuracy: float | None) -> None:
        self.found[experiment] = points
        if accuracy is not None:
            self.accuracy[experiment.seed] = accuracy
