"""Who speaks, by a spec: a model here, a model behind a server, or a function in its place."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, ValidationError

from prefopt.judges import settings
from prefopt.judges.settings import Place, Rule, Spec
from prefopt.judges.speaking import Speaker, local_speaker, served_speaker
from prefopt.judges.table import Context
from prefopt.recipe.refusals import explain
from prefopt.recipe.sections import PositiveInt, Strict, Text
from prefopt.recipe.text import read


def speaker_of(chosen: settings.Local | settings.Server, context: Context) -> Speaker:
    """The model of a language judge's settings.

    Raises:
        PolicyError: it cannot be loaded.
        RecipeError: the URL is none.
        MissingExtraError: the package openai is not installed.
    """
    if isinstance(chosen, settings.Local):
        return local_speaker(chosen.model, device=context.device, batch_size=chosen.batch_size)
    return served_speaker(
        chosen.url,
        chosen.model,
        key=chosen.key,
        concurrency=chosen.concurrency,
        timeout=chosen.timeout,
        resends=chosen.resends,
    )


class Written(Strict):
    """What may be said of who writes: a debater, a critic, a reviser."""

    kind: Literal["lm", "server", "python"] = Field(
        description="a model here, a server, a function"
    )
    model: Place | None = Field(default=None, description="a model folder, or the server's name")
    url: Text | None = Field(default=None, description="of a server")
    key: Text | None = Field(default=None, description="environment variable with its key")
    function: Rule | None = Field(default=None, description="a function that gives a text")
    temperature: float = Field(default=0.7, ge=0, description="of its texts")
    max_new_tokens: PositiveInt = Field(default=256, description="of a text")
    batch_size: PositiveInt = Field(default=8, description="texts generated at once")
    concurrency: PositiveInt = Field(default=16, description="requests that are out at once")
    timeout: float = Field(default=120.0, gt=0, description="seconds for one reply")
    resends: int = Field(default=8, ge=0, description="times that a failing request is sent again")


_ARGUMENTS = {"lm": "model", "server": "url", "python": "function"}
_TEXTS = {"temperature", "max_new_tokens"}
#: what may be said of each kind beside the one setting that it needs
_ALLOWED = {
    "lm": {"batch_size"} | _TEXTS,
    "server": {"model", "key", "concurrency", "timeout", "resends"} | _TEXTS,
    "python": set[str](),
}


@dataclass(frozen=True)
class Chosen:
    """Who writes, checked and not made yet.

    Attributes:
        settings: what was said.
        argument: the folder, the URL or the function.
        speaker: makes the model; None of a function.
    """

    settings: Written
    argument: str
    speaker: Callable[[], Speaker] | None

    def function(self, field: str) -> Any:
        """The function.

        Raises:
            RecipeError: there is none of that name.
        """
        from prefopt.constraints.measures import load_rule

        return load_rule(self.argument, field=field)


def choose(spec: Spec, context: Context, name: str, *, without: Collection[str] = ()) -> Chosen:
    """Who a spec names: `lm:FOLDER`, `server:URL`, `python:module:function`.

    Args:
        spec: text, a YAML file with `kind` and settings, or a mapping.
        context: where it was read.
        name: the setting it was said in.
        without: settings that are said elsewhere.

    Raises:
        RecipeError: it is none, or a setting is wrong, missing or without effect.
    """
    document, context, prefix = _document(spec, context, name)
    try:
        said = Written.model_validate(document, context={"folder": context.folder})
    except ValidationError as error:
        refusal = explain(error, Written, document, {}, context.file, {})
        raise context.refusal(
            refusal.message, f"{prefix}{refusal.field}", value=refusal.value,
            remedy="write lm:FOLDER, server:URL, python:module:function, or a YAML file with kind "
            "and settings" if refusal.field == "kind" else refusal.remedy,
        ) from None  # fmt: skip
    needed = _ARGUMENTS[said.kind]
    allowed = _ALLOWED[said.kind] - {*without}
    if idle := sorted(said.model_fields_set - {"kind", needed} - allowed):
        raise context.refusal(
            f"{idle[0]} has no effect for kind {said.kind}"
            if idle[0] not in without else f"{idle[0]} is said elsewhere",
            f"{prefix}{idle[0]}", value=document[idle[0]], remedy="remove it",
        )  # fmt: skip
    argument = getattr(said, needed)
    if argument is None:
        raise context.refusal(
            f"'{needed}' is missing", f"{prefix}{needed}",
            remedy=f"write {said.kind}:{needed.upper()}",
        )  # fmt: skip
    return Chosen(said, argument, None if said.kind == "python" else lambda: _made(said, context))


def _made(said: Written, context: Context) -> Speaker:
    if said.kind == "lm":
        return local_speaker(
            str(said.model), device=context.device, batch_size=said.batch_size
        )  # fmt: skip
    return served_speaker(
        str(said.url),
        said.model,
        key=said.key,
        concurrency=said.concurrency,
        timeout=said.timeout,
        resends=said.resends,
    )


def _document(spec: Spec, context: Context, name: str) -> tuple[dict[str, Any], Context, str]:
    """A spec as a mapping, where it stands, and what its settings are called there."""
    if not isinstance(spec, str):
        return dict(spec), context, f"{name}."
    if spec.endswith((".yaml", ".yml")):
        path = spec if context.folder is None else str(context.folder / spec)
        document, rows = read(path)
        return document, Context(path, rows, "", context.device), ""
    kind, _, argument = spec.partition(":")
    given = {_ARGUMENTS.get(kind, "model"): argument} if argument else {}
    return {"kind": kind, **given}, context, f"{name}."
