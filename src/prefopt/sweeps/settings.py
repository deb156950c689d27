"""The sweep file: what is searched, how, for what goal, and on what devices.

As strict as a recipe: an unknown key, a wrong value or a setting without effect is an error
that names the file and the row. Paths are relative to the working directory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field, ValidationError, field_validator

from prefopt.errors import RecipeError
from prefopt.recipe import NOT_LEARNED, SECTIONS
from prefopt.recipe.refusals import explain, validated
from prefopt.recipe.sections import PositiveInt, Strict, Text
from prefopt.recipe.text import read

#: settings that are the same in all trials, and why
_FIXED = {
    "seed": "every point is trained with each of `seeds`",
    "eval_data": "trials that are measured on different data cannot be compared",
    "probe": "trials that are measured on different prompts cannot be compared",
}

#: what a goal may be called, where it is found in a trial's results, and which end is better
MEASURES: Mapping[str, tuple[str, Literal["max", "min"]]] = {
    "accuracy": ("eval.accuracy", "max"),
    "loss": ("eval.loss", "min"),
    "margin": ("eval.margin", "max"),
    "reward": ("probe.reward", "max"),
    "win_rate": ("win_rate", "max"),
}


#: points of one sweep: each is a run folder, and all are checked before the first one starts
MOST = 10_000


class Range(Strict):
    """Numbers from `low` to `high`: with a step these and no others."""

    low: float = Field(description="the lowest value")
    high: float = Field(description="the highest value")
    log: bool = Field(default=False, description="draw the logarithm evenly, not the number")
    step: float | None = Field(
        default=None, gt=0, description="only low, low + step, … up to high, whole if all are"
    )

    @property
    def values(self) -> list[Any] | None:
        """The values of a range with a step; None of one without."""
        if self.step is None:
            return None
        count = int((self.high - self.low) / self.step + 1e-9) + 1
        found = [round(self.low + index * self.step, 12) for index in range(count)]
        whole = all(float(number).is_integer() for number in (self.low, self.step))
        return [int(number) for number in found] if whole else found


class Choices(Strict):
    """A list of values, spelled out."""

    choices: list[Any] = Field(min_length=1, description="the values")

    @property
    def values(self) -> list[Any]:
        return self.choices


Space: TypeAlias = Range | Choices


class Goal(Strict):
    """What makes one trial better than another."""

    measure: Text = Field(
        description="accuracy, loss or margin on eval_data, reward or win_rate of the probe's "
        "samples, or a result by its dotted name, such as probe.length",
    )
    direction: Literal["max", "min"] | None = Field(
        default=None, description="which end is better, for measures by dotted name"
    )
    kl_budget: float | None = Field(
        default=None,
        gt=0,
        description="most nats a completion that the policy may be away from its reference; "
        "a trial beyond it is shown and never chosen",
    )

    @property
    def name(self) -> str:
        """The dotted name in a trial's results: `eval.accuracy`, `probe.reward`, `win_rate`."""
        return MEASURES[self.measure][0] if self.measure in MEASURES else self.measure

    @property
    def maximise(self) -> bool:
        known = dict(MEASURES.values())
        return (self.direction or known[self.name]) == "max"


class SweepFile(Strict):
    """Everything that a sweep file may say."""

    recipe: str | dict[str, Any] = Field(
        description="what every trial has in common: the path of a recipe, or its settings",
        json_schema_extra={"allowed": "the path of a recipe, or a mapping of its settings"},
    )
    out: Text = Field(description="folder of the sweep: trials, results, report")
    search: dict[str, Any] = Field(
        min_length=1,
        description="settings of the recipe by dotted name, and the values to try",
        json_schema_extra={"allowed": "settings by dotted name, each with the values to try"},
    )
    goal: Goal = Field(
        description="what makes a trial better: {measure: reward, kl_budget: 10}",
        json_schema_extra={"allowed": "a measure, or a mapping of settings"},
    )
    method: Literal["grid", "random", "optuna"] = Field(
        default="grid", description="every combination, so many at random, or as Optuna suggests"
    )
    trials: PositiveInt | None = Field(
        default=None, description="points to try, for random and optuna"
    )
    seed: int | None = Field(
        default=None, ge=0, description="of what is drawn, for random and optuna; by default 0"
    )
    seeds: list[Annotated[int, Field(ge=0, lt=2**63)]] | None = Field(
        default=None,
        min_length=1,
        description="each point is trained with each of these; by default the recipe's seed",
    )
    workers: PositiveInt | None = Field(
        default=None, description="trials that run at once on the recipe's device; by default 1"
    )
    devices: list[Text] | None = Field(
        default=None,
        min_length=1,
        description="one trial at once on each of these, such as [cuda:0, cuda:1]",
    )
    test_data: Text | None = Field(
        default=None,
        description="comparisons or prompts that no trial saw: the winner alone is measured on "
        "them, once it is chosen",
    )

    @field_validator("goal", mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        """`goal: reward` is short for `goal: {measure: reward}`."""
        return {"measure": value} if isinstance(value, str) else value


@dataclass(frozen=True)
class Sweep:
    """A sweep file that was read and checked, with the rows of its keys for messages.

    Attributes:
        file: what it says.
        search: the values to try of each setting, by its dotted name.
        path: where it was read; None of one made in memory.
        rows: the row of every dotted key.
    """

    file: SweepFile
    search: Mapping[str, Space]
    path: str | None
    rows: Mapping[str, int]

    def refuse(self, message: str, key: str, **place: Any) -> RecipeError:
        """An error about a key of the file."""
        return RecipeError(message, file=self.path, row=self.rows.get(key), field=key, **place)

    @property
    def slots(self) -> tuple[str | None, ...]:
        """Where trials run at once: a device's name each, or None for the recipe's own."""
        return tuple(self.file.devices or [None] * (self.file.workers or 1))


def load_sweep(path: str | Path, overrides: Mapping[str, Any] | None = None) -> Sweep:
    """Read a sweep file.

    Args:
        path: a YAML file.
        overrides: top-level settings that replace the file's, such as `{"out": "runs/other"}`.

    Raises:
        RecipeError: the file cannot be read, a key is unknown, a value is wrong, or a setting
            would have no effect.
    """
    document, rows = read(path)
    return make_sweep({**document, **(overrides or {})}, path=str(path), rows=rows)


def make_sweep(
    document: Mapping[str, Any], *, path: str | None = None, rows: Mapping[str, int] | None = None
) -> Sweep:
    """The same of a mapping."""
    rows = rows or {}
    file = validated(SweepFile, document, path, rows, what="sweep file")
    sweep = Sweep(
        file,
        {name: _space(name, value, path, rows) for name, value in file.search.items()},
        path,
        rows,
    )
    problem = next(_problems(sweep), None)
    if problem is not None:
        raise problem
    return sweep


def _space(name: str, value: Any, path: str | None, rows: Mapping[str, int]) -> Space:
    """The values to try of one setting; a list is short for `{choices: list}`."""
    key = f"search.{name}"
    if isinstance(value, list):
        value = {"choices": value}
    if not isinstance(value, dict):
        raise RecipeError(
            f"a wrong value for {key}",
            file=path,
            row=rows.get(key),
            field=key,
            value=value,
            remedy="it must be a list of values, {choices: […]}, {low: …, high: …, log: true} or "
            "{low: …, high: …, step: …}",
        )
    model: type[Range] | type[Choices] = Choices if "choices" in value else Range
    try:
        return model.model_validate(value)
    except ValidationError as error:
        refusal = explain(error, model, value, {}, None, {})
        inside = f"{key}.{refusal.field}"
        refusal.file, refusal.row = path, rows.get(inside, rows.get(key))
        if " is missing: " in refusal.message:
            refusal.remedy = f"set {refusal.field} in {key}"
        refusal.field = inside
        raise refusal from None


def _problems(sweep: Sweep) -> Iterator[RecipeError]:
    """What is wrong with the file by itself."""
    yield from _idle(sweep)
    yield from _search_problems(sweep)
    goal = sweep.file.goal
    known = {name for name, _ in MEASURES.values()}
    if goal.name not in known and goal.name.partition(".")[0] not in ("eval", "probe"):
        yield sweep.refuse(
            f"there is no measure '{goal.measure}'",
            "goal.measure",
            remedy=f"choose {', '.join(MEASURES)}, or a result by its dotted name, such as "
            "eval.margin or probe.length",
        )
    if goal.name not in known and goal.direction is None:
        yield sweep.refuse(
            f"it is not known which end of '{goal.measure}' is better",
            "goal",
            remedy="set direction: max or direction: min beside the measure",
        )
    if goal.name in known and goal.direction is not None:
        yield sweep.refuse(
            f"direction has no effect: it is known for '{goal.measure}'",
            "goal.direction",
            value=goal.direction,
            remedy="remove it",
        )


def _idle(sweep: Sweep) -> Iterator[RecipeError]:
    """Settings that would have no effect, or that contradict each other."""
    file = sweep.file
    if file.method == "grid":
        for key in ("trials", "seed"):
            if getattr(file, key) is not None:
                yield sweep.refuse(
                    f"{key} has no effect: a grid is every combination",
                    key,
                    value=getattr(file, key),
                    remedy=f"remove {key}, or set method: random or optuna",
                )
    elif file.trials is None:
        yield sweep.refuse(
            f"method {file.method} needs to know how many points to try",
            "method",
            value=file.method,
            remedy="set trials",
        )
    if file.workers is not None and file.devices is not None:
        yield sweep.refuse(
            "workers and devices are both given: one trial runs on each device",
            "workers",
            value=file.workers,
            remedy="remove one of them; for two trials on a device, name it twice",
        )
    if file.seeds is not None and len(set(file.seeds)) < len(file.seeds):
        yield sweep.refuse("a seed is there twice", "seeds", value=file.seeds, remedy="keep one")


def _search_problems(sweep: Sweep) -> Iterator[RecipeError]:
    for name, space in sweep.search.items():
        key = f"search.{name}"
        head = name.partition(".")[0]
        if head in _FIXED or head in NOT_LEARNED:
            reason = _FIXED.get(head, "it changes nothing that is learned")
            yield sweep.refuse(f"{name} cannot be searched: {reason}", key, remedy=f"remove {name}")
        if isinstance(space, Choices):
            if any(value in space.choices[:index] for index, value in enumerate(space.choices)):
                yield sweep.refuse(
                    f"a value of {name} is there twice", key, value=space.choices, remedy="keep one"
                )
        else:
            yield from _range_problems(sweep, name, space)
        inner = f"{head}.{SECTIONS[head]}" if head in SECTIONS else None
        whole = (sweep.search[head].values or []) if head in sweep.search else []
        mapped = name != head and any(isinstance(value, dict) for value in whole)
        if mapped or (name == inner and head in sweep.search):
            yield sweep.refuse(f"{name} is searched twice", key, remedy=f"remove {head}")


def _range_problems(sweep: Sweep, name: str, space: Range) -> Iterator[RecipeError]:
    key, spelled = f"search.{name}", {"low": space.low, "high": space.high}
    if space.high <= space.low:
        yield sweep.refuse(
            f"the range of {name} is empty", key, value=spelled, remedy="make high more than low"
        )
    if space.log and space.low <= 0:
        yield sweep.refuse(
            f"the range of {name} has no logarithm below 0",
            key,
            value=spelled,
            remedy="make low more than 0, or remove log",
        )
    if space.step is not None and (space.high - space.low) / space.step >= MOST:
        yield sweep.refuse(
            f"the range of {name} has more than {MOST:,} values",
            key,
            value={**spelled, "step": space.step},
            remedy="make the step larger, or leave it out with method: random",
        )
    if space.log and space.step is not None:
        yield sweep.refuse(
            f"{name} has log and a step: steps are even in the number itself",
            key,
            remedy="remove one of them, or list the values",
        )
    if space.step is None and sweep.file.method == "grid":
        yield sweep.refuse(
            f"a grid needs the values of {name}, and a range without a step has no end of them",
            key,
            value=spelled,
            remedy="list the values, give a step, or set method: random or optuna",
        )
