"""The rounds file: from which policy, with which prompts and judge, and when to stop.

As strict as a recipe: an unknown key, a wrong value or a setting without effect is an error
that names the file and the row. Paths are relative to the working directory, and those of a
judge's own file to that file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from prefopt.errors import RecipeError
from prefopt.recipe import load_recipe
from prefopt.recipe.refusals import validated
from prefopt.recipe.sections import PositiveInt, Strict, Text
from prefopt.recipe.text import read
from prefopt.sampling.settings import Settings

#: settings of a training that the rounds decide, and how
_DECIDED = {
    "model": "start says from which policy a round trains",
    "data": "every round makes its own",
    "out": "each round has its folder",
    "reference": "set reference beside train",
    "resume": "a round goes on by itself",
    "seed": "set seed beside train",
}


#: prompts of a world for all rounds; a tenth of it is there to measure on
_OF_A_WORLD = 8000


class World(Strict):
    """A generated world in place of a model and prompts."""

    name: Literal["reviews"] = Field(description="which world")
    size: Literal["quick", "full"] = Field(
        default="quick", description="of the model that is made, as in prefopt demo"
    )


class Sampling(Strict):
    """How completions are drawn."""

    n: int = Field(default=5, ge=2, description="completions of each prompt")
    temperature: float = Field(default=1.0, gt=0, description="divides the logits")
    top_p: float = Field(default=1.0, gt=0, le=1, description="share of probability kept")
    top_k: int = Field(default=0, ge=0, description="tokens kept; 0 for all")
    max_new_tokens: PositiveInt = Field(default=128, description="longest completion")
    stop: list[Text] = Field(default_factory=list, description="texts that end a completion")
    batch_size: PositiveInt = Field(
        default=128, description="completions computed at once: memory, never the result"
    )

    def settings(self, seed: int) -> Settings:
        """The same for a sampler."""
        chosen = self.model_dump(exclude={"stop", "batch_size"})
        return Settings(**chosen, stop=tuple(self.stop), seed=seed)

    def measuring(self, n: int, seed: int) -> Settings:
        """What a policy says by itself, ended by the same rules: what KL is about."""
        return Settings(n, self.max_new_tokens, seed=seed, stop=tuple(self.stop))


class Selection(Strict):
    """What is asked of the judge, and which comparisons are made of the answers."""

    by: Literal["auto", "score", "compare"] = Field(
        default="auto",
        description="score every completion, or compare pairs; auto: score if the judge can",
    )
    rule: Literal["best_worst", "all_pairs", "top_k", "rso"] = Field(
        default="best_worst", description="of score: which completions are compared"
    )
    margin: float = Field(default=0.0, ge=0, description="of score: least difference of scores")
    k: int = Field(default=2, ge=2, description="of top_k and rso: completions kept")
    beta: float = Field(default=0.5, gt=0, description="of rso: temperature of acceptance")
    ask: Literal["random", "d-optimal", "uncertainty", "certainty"] = Field(
        default="random", description="of compare: which pairs the judge is asked about"
    )
    per_prompt: PositiveInt = Field(default=1, description="of compare: pairs of one prompt")
    budget: PositiveInt | None = Field(
        default=None, description="most questions to the judge in one round"
    )


class Evaluation(Strict):
    """What every round is measured on."""

    prompts: Text | None = Field(
        default=None, description="prompts that no round trains on; by default some are set aside"
    )
    count: PositiveInt = Field(default=200, description="prompts, each answered twice")
    judge: str | dict[str, Any] | None = Field(
        default=None,
        description="who says how good the policy is; by default the judge of the rounds",
    )
    agreement: int | None = Field(
        default=None,
        ge=0,
        description="prompts whose two answers the judge of the rounds compares too; by default "
        "all, or as many as select.budget",
    )
    labels: Text | None = Field(
        default=None,
        description="comparisons by people that no round trains on: how often the judge is right",
    )


class Gates(Strict):
    """When the loop stops; null leaves a gate open."""

    kl: float | None = Field(
        default=None, gt=0, description="most nats a completion from the first policy"
    )
    length_growth: float | None = Field(
        default=0.5, gt=0, description="share by which answers may get longer than at the start"
    )
    diversity: float | None = Field(
        default=0.5, gt=0, le=1, description="share of the first diversity that must be left"
    )
    agreement: float | None = Field(
        default=0.1,
        gt=0,
        description="how far its agreement with the evaluating judge may fall below the best",
    )
    accuracy: float | None = Field(
        default=0.03,
        gt=0,
        description="how far the judge's accuracy on evaluate.labels may fall below the best",
    )
    falling: bool = Field(
        default=True, description="stop when a round is surely worse than the one before"
    )
    check: Literal["error", "warning"] | None = Field(
        default=None,
        description="stop before training on comparisons in which check finds something as bad",
    )


class RoundsFile(Strict):
    """Everything that a rounds file may say."""

    out: Text = Field(default="runs/rounds", description="folder of all rounds")
    model: Text | None = Field(default=None, description="the first policy: a folder or a hub id")
    world: World | None = Field(
        default=None,
        description="a generated world in place of model and prompts",
        json_schema_extra={"allowed": "reviews, or a mapping of settings"},
    )
    prompts: Text | None = Field(default=None, description="file of prompts, in any layout")
    rounds: PositiveInt = Field(default=3, description="how many")
    prompts_per_round: PositiveInt = Field(
        default=400, description="each round has its own prompts"
    )
    sample: Sampling = Field(default_factory=Sampling, description="how completions are drawn")
    judge: str | dict[str, Any] = Field(
        description="who judges: a kind, kind:argument, a YAML file or a mapping",
        json_schema_extra={"allowed": "a judge: one word as on the command line, or a mapping"},
    )
    select: Selection = Field(default_factory=Selection, description="what is asked and compared")
    train: dict[str, Any] = Field(
        default_factory=dict,
        description="settings of each training, as in a recipe",
        json_schema_extra={"allowed": "a mapping of settings of a recipe"},
    )
    reference: Literal["initial", "previous"] = Field(
        default="initial", description="what each round's policy is kept close to"
    )
    start: Literal["previous", "initial"] = Field(
        default="previous", description="the policy from which each round trains"
    )
    data: Literal["fresh", "expanded"] = Field(
        default="fresh", description="train on this round's comparisons, or on all so far"
    )
    evaluate: Evaluation = Field(
        default_factory=Evaluation, description="what every round is measured on"
    )
    gates: Gates = Field(default_factory=Gates, description="when the loop stops")
    device: str | None = Field(default=None, description="where to compute")
    seed: int = Field(default=0, ge=0, lt=2**31, description="seed of everything random")

    @field_validator("world", mode="before")
    @classmethod
    def _by_name(cls, value: Any) -> Any:
        """`world: reviews` is short for `world: {name: reviews}`."""
        return {"name": value} if isinstance(value, str) else value


#: settings that may differ when a folder goes on; a round's own prompts are written down
MAY_CHANGE = ("rounds", "gates", "out", "device", "prompts")


@dataclass(frozen=True)
class Rounds:
    """A rounds file that was read and checked.

    Attributes:
        file: what it says.
        path: where it was read; None of one made in memory.
        rows: the row of every dotted key.
    """

    file: RoundsFile
    path: str | None = None
    rows: Mapping[str, int] = field(default_factory=dict)

    def refuse(self, message: str, key: str, **place: Any) -> RecipeError:
        """An error about a key of the file."""
        return RecipeError(message, file=self.path, row=self.row(key), field=key, **place)

    def row(self, key: str) -> int | None:
        """Where a dotted key stands, or what it is a part of."""
        while key and key not in self.rows:
            key = key.rpartition(".")[0]
        return self.rows.get(key)


def load_rounds(path: str | Path, overrides: Mapping[str, Any] | None = None) -> Rounds:
    """Read a rounds file.

    Args:
        path: a YAML file.
        overrides: top-level settings that replace the file's, such as `{"out": "runs/other"}`.

    Raises:
        RecipeError: the file cannot be read, a key is unknown, a value is wrong, or a setting
            would have no effect.
    """
    document, rows = read(path)
    return make_rounds({**document, **(overrides or {})}, path=str(path), rows=rows)


def make_rounds(
    document: Mapping[str, Any], *, path: str | None = None, rows: Mapping[str, int] | None = None
) -> Rounds:
    """The same of a mapping."""
    rows = rows or {}
    file = validated(RoundsFile, document, path, rows, what="rounds file")
    rounds = Rounds(file, path, rows)
    for problem in _problems(rounds):
        raise problem
    return rounds


def training(
    file: RoundsFile, model: str, data: Sequence[Any], out: str, reference: str
) -> dict[str, Any]:
    """The recipe of one round, as overrides of nothing."""
    fixed: dict[str, Any] = {"model": model, "data": list(data), "out": out, "seed": file.seed}
    if reference != "initial":
        fixed["reference"] = reference
    if file.device is not None:
        fixed["device"] = file.device
    return {**file.train, **fixed}


def _problems(rounds: Rounds) -> Iterator[RecipeError]:
    """What is wrong with the file by itself."""
    file = rounds.file
    given = {"model": file.model, "prompts": file.prompts}
    if file.world is None:
        for name, value in given.items():
            if value is None:
                remedy = f"set {name}, or world: reviews"
                yield rounds.refuse("is missing", name, remedy=remedy)
    else:
        for name, value in {**given, "evaluate.prompts": file.evaluate.prompts}.items():
            if value is not None:
                remedy = "leave out one of the two"
                yield rounds.refuse("has no effect in a world", name, value=value, remedy=remedy)
        yield from _beyond_the_world(rounds)
    for name in file.train:
        reason = _DECIDED.get(name.partition(".")[0])
        if reason is not None:
            yield rounds.refuse(
                f"is decided by the rounds: {reason}", f"train.{name}", remedy="leave it out"
            )
    yield from _idle(rounds)
    yield from _training_problems(rounds)


def _beyond_the_world(rounds: Rounds) -> Iterator[RecipeError]:
    """More prompts than a world has: they would be looked for forever."""
    file = rounds.file
    asked = (
        ("prompts_per_round", file.rounds * file.prompts_per_round, _OF_A_WORLD),
        ("evaluate.count", file.evaluate.count, _OF_A_WORLD // 10),
    )
    for name, count, most in asked:
        if count > most:
            yield rounds.refuse(
                f"a generated world has {most:,} prompts for that, and {count:,} are wanted",
                name, remedy=f"lower rounds or {name}, or give a model and prompts of your own",
            )  # fmt: skip


def _idle(rounds: Rounds) -> Iterator[RecipeError]:
    """Settings of the selection that go against each other."""
    select = rounds.file.select
    said = select.model_fields_set
    if select.by != "auto":
        yield from unread(rounds, select.by)
    kept = select.rule in ("top_k", "rso")
    if "k" in said and not kept:
        yield rounds.refuse(
            f"has no effect with rule: {select.rule}", "select.k", value=select.k,
            remedy="leave it out, or choose top_k or rso",
        )  # fmt: skip
    if "beta" in said and select.rule != "rso":
        yield rounds.refuse(
            f"has no effect with rule: {select.rule}", "select.beta", value=select.beta,
            remedy="leave it out, or choose rso",
        )  # fmt: skip
    if kept and select.k > rounds.file.sample.n:
        yield rounds.refuse(
            f"keeps more completions than the {rounds.file.sample.n} that there are of a prompt",
            "select.k", value=select.k, remedy="lower select.k, or raise sample.n",
        )  # fmt: skip


def unread(rounds: Rounds, way: str) -> Iterator[RecipeError]:
    """Settings of the selection that this way of asking the judge does not read."""
    select = rounds.file.select
    other = "compare" if way == "score" else "score"
    for name in sorted(select.model_fields_set & _READ[other]):
        yield rounds.refuse(
            f"has no effect where the judge is asked to {way}", f"select.{name}",
            value=getattr(select, name), remedy=f"leave it out, or set by: {other}",
        )  # fmt: skip


#: settings of the selection by who reads them
_READ = {"score": {"rule", "margin", "k", "beta"}, "compare": {"ask", "per_prompt"}}


def _training_problems(rounds: Rounds) -> Iterator[RecipeError]:
    """Whatever a recipe with these settings would be refused for, before anything is sampled."""
    fixed = training(rounds.file, "model", ["data"], "out", "initial")
    try:
        load_recipe(None, fixed, origin="train")
    except RecipeError as error:
        name = f"train.{error.field}"
        error.file, error.row, error.field = rounds.path, rounds.row(name), name
        yield error
