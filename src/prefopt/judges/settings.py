"""What may be said of each kind of judge, in a YAML file or a mapping. Nothing here computes.

Paths in a file are relative to that file. A judge inside another one is a spec of its own: the
words of a command line (`longest`, `lm:FOLDER`) or a mapping with `kind`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, Field, ValidationInfo

from prefopt.recipe.sections import PositiveInt, Strict, Text


def _beside(value: str, info: ValidationInfo) -> str:
    """A path as seen from the file it stands in; a name that is no path stays as it is."""
    folder: Path | None = (info.context or {}).get("folder")
    if folder is None or Path(value).is_absolute():
        return value
    found = folder / Path(value).expanduser()
    return str(found) if value.startswith(".") or found.exists() else value


def _database_beside(value: str, info: ValidationInfo) -> str:
    """The same of a database that is a file, whether it is there yet or not."""
    folder: Path | None = (info.context or {}).get("folder")
    return value if folder is None or "://" in value else str(folder / value)


def _rule_beside(value: str, info: ValidationInfo) -> str:
    """The same of `path/to/file.py:function`."""
    place, colon, name = value.rpartition(":")
    return f"{_beside(place, info)}{colon}{name}" if place.endswith(".py") else value


#: a file or a folder; a hub id or the name of something shipped is left as it is
Place: TypeAlias = Annotated[str, Field(min_length=1), AfterValidator(_beside)]
Rule: TypeAlias = Annotated[str, Field(min_length=1), AfterValidator(_rule_beside)]
#: a judge or a speaker inside of another judge
Spec: TypeAlias = str | dict[str, Any]
_SPEC: dict[str, Any] = {
    "allowed": "a judge: one word as on the command line, or a mapping with kind"
}
_SPEAKER: dict[str, Any] = {
    "allowed": "lm:FOLDER, server:URL, python:module:function, or a mapping with kind"
}

Temperature: TypeAlias = Annotated[float | None, Field(gt=0)]
_TEMPERATURE = (
    "probability σ(difference of scores / temperature); without it the higher score is taken for "
    "sure"
)


class Length(Strict):
    """Of `longest` and `shortest`."""

    unit: Literal["characters", "words"] = Field(
        default="characters", description="what is counted"
    )


class World(Strict):
    """Of `world`: the known reward of a generated world."""

    world: Literal["reviews"] = Field(default="reviews", description="which world")
    temperature: Temperature = Field(default=None, description=_TEMPERATURE)


class Python(Strict):
    """Of `python`: a function of one's own."""

    function: Rule = Field(description="package.module:function or path/to/file.py:function")
    what: Literal["score", "compare"] = Field(
        default="score",
        description="score: (prompt, completion) to a number; compare: (prompt, first, second) "
        "to the probability that the first is better, asked in both orders",
    )
    temperature: Temperature = Field(default=None, description=f"of score: {_TEMPERATURE}")


class Pattern(Strict):
    """Of `pattern`: a completion with one of these is the better one, or the worse."""

    patterns: list[Text] = Field(min_length=1, description="regular expressions")
    prefer: Literal["without", "with"] = Field(
        default="without", description="which completions are better"
    )


class _Reading(Strict):
    """What a judge that is a language model may be told, wherever the model is."""

    rubric: Place = Field(
        default="both",
        description="a rubric file, or a shipped one: both, pairwise, points, additive",
    )
    mode: Literal["text", "logprobs"] = Field(
        default="text",
        description="read what it writes, or the probabilities of the answers it could give",
    )
    judgements: PositiveInt = Field(
        default=1, description="replies to each question in each order, averaged"
    )
    retries: int = Field(
        default=1, ge=0, description="further replies asked for where one cannot be read"
    )
    temperature: float | None = Field(
        default=None, ge=0, description="of its replies; by default 0 for one, 0.7 for several"
    )
    max_new_tokens: PositiveInt = Field(default=512, description="of a reply")
    seed: int = Field(default=0, ge=0, description="of its replies")


class Local(_Reading):
    """Of `lm`: a model folder on this machine."""

    model: Place = Field(description="a run's folder, a model folder, an adapter folder, a hub id")
    batch_size: PositiveInt = Field(default=8, description="replies generated at once")


class Server(_Reading):
    """Of `server`: a model behind an OpenAI-compatible server."""

    url: Text = Field(description="of the server, such as http://localhost:8000/v1")
    model: Text | None = Field(default=None, description="by default the only one it serves")
    key: Text | None = Field(
        default=None, description="environment variable that holds the server's key"
    )
    concurrency: PositiveInt = Field(default=16, description="requests that are out at once")
    timeout: float = Field(default=120.0, gt=0, description="seconds for one reply")
    resends: int = Field(default=8, ge=0, description="times that a failing request is sent again")


class _Rewarding(Strict):
    """What may be said of a judge by the numbers of a model."""

    temperature: float = Field(
        default=1.0, gt=0, description="probability σ(difference of rewards / temperature)"
    )
    microbatch_tokens: PositiveInt = Field(default=8192, description="tokens computed at once")


class Reward(_Rewarding):
    """Of `reward`: a reward model."""

    model: Place = Field(description="a run's folder, a model folder, an adapter folder, a hub id")


class Implicit(_Rewarding):
    """Of `implicit`: β(log π − log π_ref) of a policy that was trained on preferences."""

    model: Place = Field(description="the policy: a run's folder, a model folder, a hub id")
    reference: Place | None = Field(
        default=None, description="what it was trained from; of a run's folder that is known"
    )
    beta: float | None = Field(
        default=None, gt=0, description="rewards per nat; by default the run's, or 0.1"
    )


class Constitution(Strict):
    """Of `constitution`: every principle of a file decides, weighted."""

    file: Place = Field(description="YAML file of principles")
    judge: Spec | None = Field(
        default=None,
        description="the language model that reads principles without a judge of their own",
        json_schema_extra={"allowed": "lm:FOLDER, server:URL, or a mapping with kind"},
    )


class SelfReward(Strict):
    """Of `selfreward`: the policy judges its own answers by points, several times."""

    model: Place | None = Field(
        default=None, description="the policy's folder, a hub id, or with url the server's name"
    )
    url: Text | None = Field(default=None, description="a server that has the policy")
    key: Text | None = Field(default=None, description="environment variable with its key")
    rubric: Place = Field(default="additive", description="a rubric with points")
    judgements: PositiveInt = Field(default=3, description="replies to each completion, averaged")
    temperature: float = Field(default=0.7, ge=0, description="of its replies")
    retries: int = Field(default=1, ge=0, description="further replies where one is unreadable")
    max_new_tokens: PositiveInt = Field(default=512, description="of a reply")
    seed: int = Field(default=0, ge=0, description="of its replies")
    batch_size: PositiveInt = Field(default=8, description="replies generated at once")


class Ensemble(Strict):
    """Of `ensemble`: several judges, and a rule."""

    judges: list[Spec] = Field(min_length=2, description="the judges", json_schema_extra=_SPEC)
    rule: Literal["mean", "majority", "weighted"] = Field(
        default="mean", description="mean of probabilities, most of the sides, or weighted mean"
    )
    weights: list[Annotated[float, Field(ge=0)]] | None = Field(
        default=None, description="of the judges, for weighted"
    )


class Debate(Strict):
    """Of `debate`: an advocate argues for each answer, and a judge reads the arguments."""

    judge: Spec = Field(description="who decides", json_schema_extra=_SPEC)
    debaters: list[Spec] = Field(
        min_length=1,
        max_length=2,
        description="who argues: one for both sides, or two who draw their sides",
        json_schema_extra=_SPEAKER,
    )
    rounds: PositiveInt = Field(default=3, description="arguments of each side")
    form: Literal["debate", "consultancy"] = Field(
        default="debate", description="consultancy is the control: only one side is argued for"
    )
    prompts: Place = Field(default="debater", description="file with what debaters are told")
    seed: int = Field(default=0, ge=0, description="of sides and of arguments")


class Recursive(Strict):
    """Of `recursive`: a critic's critiques are shown to a judge."""

    judge: Spec = Field(description="who decides", json_schema_extra=_SPEC)
    critic: Spec = Field(description="who criticises", json_schema_extra=_SPEAKER)
    levels: PositiveInt = Field(
        default=1, description="critiques of each answer; each later one sees those before it"
    )
    prompts: Place = Field(default="critic", description="file with what the critic is told")
    seed: int = Field(default=0, ge=0, description="of critiques")


class People(Strict):
    """Of `people`: a labelling task is opened, and the verdicts are its votes."""

    database: Annotated[Text, AfterValidator(_database_beside)] = Field(
        description="of the labelling room: a file or a URL"
    )
    task: Text = Field(description="name of the task; letters, digits, - and _")
    overlap: PositiveInt = Field(default=1, description="people wanted for each question")
    guidelines: Place | None = Field(default=None, description="Markdown file shown to them")
    wait: float = Field(
        default=0.0, ge=0, description="seconds to wait for votes before leaving it for later"
    )
