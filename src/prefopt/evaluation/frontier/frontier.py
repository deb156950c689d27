"""All curves of the experiment, beside the exact optimum: points, and what they come to."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prefopt.data.worlds import EnumerableWorld
from prefopt.errors import RunError
from prefopt.evaluation.frontier.methods import Experiment, experiments, find_method, run
from prefopt.evaluation.frontier.preferences import Point
from prefopt.evaluation.frontier.reward_model import learned_reward
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
            "curves": [
                {**asdict(curve.experiment), "points": [list(p) for p in curve.points]}
                for curve in self.curves
            ],
            "optimum": {str(seed): _line(world) for seed, world in self.worlds.items()},
        }


def optimal_reward(world: EnumerableWorld, kl: float) -> float:
    """The highest mean reward that any policy has within so many nats of the reference.

    It is that of π* = π_ref·exp(r/β)/Z with the β at which KL(π* ‖ π_ref) is that number; KL
    falls with β, so it is found by bisection. No method can lie above it.
    """
    low, high = 1e-4, 1e4
    if world.kl(world.optimum(low)) <= kl:
        return float(world.reward.max())
    for _ in range(200):
        beta = (low * high) ** 0.5
        if world.kl(world.optimum(beta)) > kl:
            low = beta
        else:
            high = beta
    return world.expected_reward(world.optimum(low))


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
        for done, points in enumerate(each(run, tasks, min(processes, len(tasks)))):
            kept.add(missing[done], points)
            progress(len(wanted) - len(missing) + done + 1, len(wanted))
    modelled = any(name in ("ppo", "best-of-n") for name in methods)
    return Frontier(
        curves=[
            Curve(experiment, kept.found[experiment])
            for experiment in sorted(wanted, key=lambda one: methods.index(one.method))
        ],
        worlds={seed: prepare(scale, seed).world for seed in seeds},
        accuracy={seed: learned_reward(scale, seed)[1] for seed in seeds if modelled},
        scale=scale,
    )


def summary(frontier: Frontier) -> list[dict[str, Any]]:
    """Per method and budget: the best reward on any of its points within so many nats.

    The mean over seeds, its standard error where there are several, and the same as a share of
    what the optimum gains over the reference. The best of several points on the truth itself:
    an upper end of what a method can reach, for all methods alike.
    """
    worlds = frontier.worlds
    most = {
        (budget, seed): optimal_reward(world, budget)
        for budget in BUDGETS
        for seed, world in worlds.items()
    }
    best: dict[tuple[str, float, int], float] = defaultdict(lambda: -np.inf)
    for curve in frontier.curves:
        for _, kl, reward in curve.points:
            for budget in BUDGETS:
                if kl <= budget:
                    key = curve.experiment.method, budget, curve.experiment.seed
                    best[key] = max(best[key], reward)
    rows = []
    for method in dict.fromkeys(curve.experiment.method for curve in frontier.curves):
        for budget in BUDGETS:
            rewards, shares = [], []
            for seed, world in worlds.items():
                start, value = _start(world), best[method, budget, seed]
                rewards.append(value)
                shares.append((value - start) / (most[budget, seed] - start))
            several = len(rewards) > 1
            error = float(np.std(rewards, ddof=1) / len(rewards) ** 0.5) if several else None
            rows.append({
                "method": method, "title": find_method(method).title, "budget": budget,
                "reward": float(np.mean(rewards)), "standard_error": error,
                "share_of_optimum": float(np.mean(shares)),
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
    """The curves of a folder, one line each; a line that was cut off is dropped."""

    def __init__(self, path: Path, scale: Scale) -> None:
        self._path, self._scale = path, asdict(scale)
        self.found: dict[Experiment, list[Point]] = {}
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue
            if not isinstance(row, dict) or {"scale", "points"} - row.keys():
                raise RunError(
                    "is no curve", file=str(path), row=number, remedy="give another --out"
                )
            if row.pop("scale") != self._scale:
                raise RunError(
                    "the folder has curves of another scale",
                    file=str(path),
                    row=number,
                    remedy="give another --out, or remove it",
                )
            points = [(step, kl, reward) for step, kl, reward in row.pop("points")]
            self.found[Experiment(**row)] = points
        self._lines = [line for line in lines if line.endswith("}")]

    def add(self, experiment: Experiment, points: list[Point]) -> None:
        row = {**asdict(experiment), "scale": self._scale, "points": points}
        self._lines.append(json.dumps(row))
        write_text(self._path, "\n".join(self._lines) + "\n")
        self.found[experiment] = points
