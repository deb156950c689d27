"""Trials: a point trained with one seed, as a recipe of its own; and what became of it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from prefopt.errors import RecipeError
from prefopt.recipe import NOT_LEARNED, SECTIONS, ResolvedRecipe, load_recipe
from prefopt.runs import Run
from prefopt.sweeps.points import Point, folder_name, said
from prefopt.sweeps.settings import Sweep

State: TypeAlias = Literal["waiting", "running", "done", "failed", "interrupted"]


@dataclass(frozen=True)
class Trial:
    """One training of a sweep.

    Attributes:
        name: of its recipe and its folder.
        point: the searched settings.
        seed: of everything random in it.
        resolved: its recipe.
        shares: what its reference scores depend on; None where it keeps none.
    """

    name: str
    point: Point
    seed: int
    resolved: ResolvedRecipe
    shares: str | None

    @property
    def run(self) -> Run:
        return Run(self.resolved.recipe.out)


@dataclass
class Result:
    """What became of a trial.

    Attributes:
        trial: the trial.
        state: `done` once its run is finished and measured.
        numbers: its results by dotted name: `eval.loss`, `probe.kl`, `win_rate` …
        seconds: that its training took, start and preparation not counted.
        message: why it failed.
    """

    trial: Trial
    state: State = "waiting"
    numbers: dict[str, float] = field(default_factory=dict)
    seconds: float | None = None
    message: str | None = None

    def to_dict(self) -> dict[str, Any]:
        trial = self.trial
        return {
            "name": trial.name,
            "settings": trial.point,
            "seed": trial.seed,
            "state": self.state,
            "metrics": self.numbers,
            "seconds": self.seconds,
            "error": self.message,
            "run": str(trial.run.folder),
        }


class Recipes:
    """The recipe of every trial of a sweep: what the file says, with the point on top.

    Args:
        sweep: the file.
        folder: of the sweep.
    """

    def __init__(self, sweep: Sweep, folder: Path) -> None:
        self.sweep = sweep
        self.folder = folder

    def trials(self, point: Point) -> list[Trial]:
        """A point with each seed, checked as far as can be without loading anything.

        Raises:
            RecipeError: the recipe with this point is refused, or lacks what the goal reads.
        """
        seeds = self.sweep.file.seeds
        return [self.trial(point, seed) for seed in seeds] if seeds else [self.trial(point, None)]

    def trial(self, point: Point, seed: int | None) -> Trial:
        """A point with one seed; None is the recipe's own."""
        overrides = {_full(name, value): value for name, value in point.items()}
        if seed is not None:
            overrides["seed"] = seed
        resolved = self._load({**overrides, "out": str(self.folder)}, point)
        seed = resolved.recipe.seed
        name = folder_name(point, seed)
        out = {"out": str(self.folder / "trials" / name)}
        resolved = self._load({**overrides, **out}, point)
        return Trial(name, point, seed, resolved, self._check(resolved, point))

    def _load(self, overrides: Mapping[str, Any], point: Point) -> ResolvedRecipe:
        given = self.sweep.file.recipe
        origin = Path(self.sweep.path).name if self.sweep.path else "sweep"
        try:
            if isinstance(given, str):
                return load_recipe(given, overrides, origin=origin)
            return load_recipe(None, {**given, **overrides}, origin=origin)
        except RecipeError as error:
            raise self._placed(error, point) from None

    def _placed(self, error: RecipeError, point: Point) -> RecipeError:
        """A recipe's refusal with its place in the sweep file, where that is its place."""
        field = str(error.field)
        searched = next((name for name in point if _full(name, point[name]) == field), None)
        if searched is None and field in point:
            searched = field
        if searched is not None:
            field = f"search.{searched}"
        elif error.file is None and isinstance(self.sweep.file.recipe, dict):
            field = f"recipe.{field}"
        else:
            return error
        error.file, error.row, error.field = self.sweep.path, self.sweep.rows.get(field), field
        return error

    def _check(self, resolved: ResolvedRecipe, point: Point) -> str | None:
        """Refuse what the objective or the goal cannot use; returns what the trial shares."""
        from prefopt.training.prepare import settle

        try:
            resolved, loss = settle(resolved)
        except RecipeError as error:
            raise self._placed(error, point) from None
        recipe = resolved.recipe
        needs = loss.needs_reference or any(c.mode == "penalty" for c in recipe.constraints)
        for problem in _unmeasured(self.sweep, resolved, needs):
            raise problem
        if not needs or recipe.reference_scores != "cache":
            return None
        values = resolved.values()
        return json.dumps([values[name] for name in _SHARED if name in values], default=str)


#: what reference scores depend on; two trials that agree in these share them
_SHARED = ("model", "data", "eval_data", "reference.name", "max_length", "too_long", "precision")


def _unmeasured(sweep: Sweep, resolved: ResolvedRecipe, reference: bool) -> Iterator[RecipeError]:
    """What the goal reads and the recipe does not measure."""
    recipe, goal = resolved.recipe, sweep.file.goal
    rewarded = recipe.probe is not None and recipe.probe.reward is not None
    for needed, there, lacking, remedy in (
        (goal.name.startswith("eval."), recipe.eval_data, "eval_data", "set eval_data"),
        (goal.name.startswith("probe."), recipe.probe, "probe", "set probe, with its prompts"),
        (goal.kl_budget, recipe.probe, "probe, which measures the KL", "set probe"),
        (
            goal.name in ("probe.reward", "win_rate"),
            rewarded,
            "reward of the probe's samples",
            "set probe.reward: a rule, a classifier or a reward_model",
        ),
        (goal.name in ("probe.kl", "win_rate") or goal.kl_budget, reference, "reference",
         "choose an objective with a reference, or a goal without one"),
    ):  # fmt: skip
        if needed and not there:
            yield sweep.refuse(
                f"the goal cannot be measured: the recipe has no {lacking}",
                "goal",
                value=goal.measure,
                remedy=f"{remedy} in the recipe",
            )


def _full(name: str, value: Any) -> str:
    """`objective: ipo` as `objective.name: ipo`, so that what is beside it stays."""
    off = name in ("adapter", "probe") and value == "none"
    plain = name in SECTIONS and isinstance(value, str) and not off
    return f"{name}.{SECTIONS[name]}" if plain else name


def differences(before: ResolvedRecipe, now: ResolvedRecipe) -> list[str]:
    """Settings in which two recipes learn differently, each with both values."""
    old, new = before.values(), now.values()
    return [
        f"{name} was {old.get(name)!r} and is {new.get(name)!r}"
        for name in {**old, **new}
        if name not in NOT_LEARNED and old.get(name) != new.get(name)
    ]


def numbers_of(run: Run) -> tuple[dict[str, float], float]:
    """The results of a finished run by dotted name, and the seconds of its training.

    Raises:
        RunError: its manifest cannot be read.
    """
    manifest = run.read_json(run.manifest)
    result = manifest["result"]
    found = dict(_flat("", {"steps": result["steps"], "train.loss": result["final_loss"]}))
    for part in ("eval", "probe"):
        found |= dict(_flat(f"{part}.", result.get(part) or {}))
    if run.evaluation.exists():
        found |= dict(_flat("", run.read_json(run.evaluation)))
    return found, float(manifest["seconds"])


def _flat(prefix: str, values: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(f"{prefix}{name}.", value)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            if math.isfinite(value):
                yield f"{prefix}{name}", value


def title(trial: Trial) -> str:
    """A trial in words."""
    return f"{said(trial.point)}, seed {trial.seed}"
