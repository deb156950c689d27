"""What pydantic refuses in a recipe, said in the recipe's own words."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from prefopt.errors import RecipeError

_Model = TypeVar("_Model", bound=BaseModel)

#: names that other tools use, and ours
_OTHER_NAMES = {
    "beta": "objective.beta",
    "loss": "objective.name",
    "loss_type": "objective.name",
    "lr": "learning_rate",
    "lora": "adapter.name",
    "lora_r": "adapter.rank",
    "lora_alpha": "adapter.alpha",
    "r": "adapter.rank",
    "ref_model": "reference",
    "model_name_or_path": "model",
    "output_dir": "out",
    "dataset": "data",
    "train_data": "data",
    "num_train_epochs": "epochs",
    "per_device_train_batch_size": "batch_size",
    "warmup_ratio": "warmup",
}

#: settings that are lists, where one item may stand for a list of one
_LISTS = ("data", "eval_data", "constraints")

_LIMITS = (
    ("exclusiveMinimum", "above {}"),
    ("minimum", "at least {}"),
    ("maximum", "at most {}"),
    ("exclusiveMaximum", "below {}"),
)
_TYPES = {
    "integer": "a whole number",
    "number": "a number",
    "string": "text",
    "boolean": "true or false",
    "null": "null",
    "array": "a list",
    "object": "a mapping of settings",
}


def validated(
    model: type[_Model],
    document: Mapping[str, Any],
    path: str | Path | None,
    rows: Mapping[str, int],
    *,
    what: str,
) -> _Model:
    """A file's settings as their model.

    Args:
        model: of the settings.
        document: what the file says.
        path, rows: where it was read, and the row of every dotted key.
        what: the kind of file, for whoever left something out.

    Raises:
        RecipeError: a key is unknown or missing, or a value is wrong.
    """
    try:
        return model.model_validate(dict(document))
    except ValidationError as error:
        refusal = explain(error, model, document, {}, path, rows)
        if " is missing: " in refusal.message:
            refusal.remedy = f"set {refusal.field} in the {what}"
        raise refusal from None


def explain(
    error: ValidationError,
    model: type[BaseModel],
    document: Mapping[str, Any],
    origins: Mapping[str, str],
    path: str | Path | None,
    rows: Mapping[str, int],
) -> RecipeError:
    """The first problem, with the key, the value, what is allowed, and the row of the file.

    Args:
        error: what pydantic raised for `document`.
        model: the recipe.
        document: what was validated.
        origins: dotted name → where it was given.
        path: the file, if any.
        rows: the row of every dotted key in it.
    """
    # An unknown key explains a missing one ("modle"), so it is told first.
    problems = sorted(error.errors(), key=lambda item: item["type"] != "extra_forbidden")
    problem = problems[0]
    name = ".".join(str(part) for part in _place(problem, document))
    from_file = path is not None and not _on_command_line(name, origins)
    place: dict[str, Any] = {
        "field": name,
        "file": str(path) if from_file else None,
        "row": _row(name, rows) if from_file else None,
    }
    if problem["type"] == "extra_forbidden":
        return RecipeError(
            f"there is no setting '{name}'", value=problem["input"], remedy=_nearest(name, model),
            **place,
        )  # fmt: skip
    allowed = _allowed(name, model)
    if problem["type"] == "missing":
        return RecipeError(
            f"'{name}' is missing: {_description(name, model)}",
            remedy=f"set {name} in the recipe"
            + (f", or give --{name.replace('_', '-')}" if _is_flag(name) else ""),
            **place,
        )
    return RecipeError(
        f"a wrong value for {name}",
        value=problem["input"],
        remedy=f"it must be {allowed}",
        **place,
    )


def _place(problem: ErrorDetails, document: Any) -> list[str | int]:
    """Where in the document; pydantic's location also names the branch of a union."""
    place: list[str | int] = []
    inside: Any = document
    for part in problem["loc"]:
        missing = problem["type"] == "missing" and part == problem["loc"][-1]
        if isinstance(inside, Mapping) and (part in inside or missing):
            place.append(part)
            inside = inside.get(part)
        elif isinstance(inside, list | tuple) and isinstance(part, int) and part < len(inside):
            place.append(part)
            inside = inside[part]
        elif len(place) == 1 and place[0] in _LISTS and part == 0:
            continue  # a single one that was not written as a list
    return place or list(problem["loc"][:1])


def _on_command_line(name: str, origins: Mapping[str, str]) -> bool:
    parents = [name[: len(name) - cut] for cut in range(len(name))]
    return any(origins.get(parent) == "command line" for parent in parents)


def _is_flag(name: str) -> bool:
    """A list has one flag for the whole of it."""
    return name in _LISTS or name.partition(".")[0] not in _LISTS


def _row(name: str, rows: Mapping[str, int]) -> int | None:
    while name and name not in rows:
        name = name.rpartition(".")[0]
    return rows.get(name)


def _nearest(name: str, model: type[BaseModel]) -> str:
    section, _, key = name.rpartition(".")
    whole = model.model_json_schema()
    known = list(_open(_schema_of(section, whole), whole)["properties"])
    if not section and key in _OTHER_NAMES:
        near = _OTHER_NAMES[key]
    else:
        found = difflib.get_close_matches(key.replace("-", "_"), known, n=1, cutoff=0.5)
        near = found[0] if found else ""
    if near:
        return f"did you mean '{near}'?"
    return f"the settings are: {', '.join(known)}"


def _schema_of(name: str, whole: dict[str, Any]) -> dict[str, Any]:
    """The JSON schema of a dotted name, so that limits are declared once, in the recipe."""
    schema = whole
    for part in name.split(".") if name else ():
        if not part.isdigit():
            opened = _open(schema, whole)
            free = opened.get("additionalProperties")
            other = free if isinstance(free, dict) else {}
            schema = opened.get("properties", {}).get(part, other)
    return schema


def _open(schema: dict[str, Any], whole: dict[str, Any]) -> dict[str, Any]:
    """Follow references and unions to the object with properties inside a schema."""
    if "$ref" in schema:
        found: dict[str, Any] = whole["$defs"][schema["$ref"].rpartition("/")[2]]
        return found
    inner = [*schema.get("anyOf", ()), *([schema["items"]] if "items" in schema else ())]
    for branch in inner:
        if "properties" in (opened := _open(branch, whole)):
            return opened
    return schema


def _description(name: str, model: type[BaseModel]) -> str:
    schema = _schema_of(name, model.model_json_schema())
    return str(schema.get("description", "required"))


def _allowed(name: str, model: type[BaseModel]) -> str:
    whole = model.model_json_schema()
    schema = _schema_of(name, whole)
    said = schema.get("allowed") or _open(schema, whole).get("allowed")
    if said:
        return str(said)
    branches = schema.get("anyOf", [schema])
    return " or ".join(dict.fromkeys(described(branch) for branch in branches))


def described(schema: Mapping[str, Any]) -> str:
    """What a value must be, in words, from its JSON schema.

    >>> described({"type": "number", "exclusiveMinimum": 0, "maximum": 1})
    'a number above 0 and at most 1'
    """
    if "enum" in schema:
        return f"one of: {', '.join(map(str, schema['enum']))}"
    kind = _TYPES[schema.get("type", "object")]
    limits = [text.format(schema[key]) for key, text in _LIMITS if key in schema]
    return f"{kind} {' and '.join(limits)}" if limits else kind
