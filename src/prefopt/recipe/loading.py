"""From a file and flags to a recipe whose every value is known, and back to a file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from prefopt.recipe import text
from prefopt.recipe.effects import check_effects
from prefopt.recipe.model import SECTIONS, Recipe, ResolvedRecipe, flat
from prefopt.recipe.refusals import explain


def load_recipe(
    path: str | Path | None, overrides: Mapping[str, Any], *, origin: str = "command line"
) -> ResolvedRecipe:
    """A YAML file with overrides on top of it, resolved.

    Args:
        path: the file; None where everything is an override.
        overrides: values by dotted name, such as `{"objective.beta": 0.2}`, typed as in YAML.
        origin: where the overrides come from, to be said beside each.

    Raises:
        RecipeError: the file cannot be read, a key is unknown, a value is wrong, a required
            one is missing, or a setting would have no effect.
    """
    document, rows = text.read(path) if path is not None else ({}, {})
    given = {name: Path(path).name for name in _given(document)} if path is not None else {}
    for name, value in overrides.items():
        _override(document, name, value)
        given = {key: where for key, where in given.items() if not key.startswith(f"{name}.")}
        shown = ".".join(name.split(".")[:2])
        if shown == name or shown not in given:
            given[shown] = origin
        elif not given[shown].endswith(origin):
            given[shown] += f", {origin}"  # a part of a value from elsewhere
        given |= dict.fromkeys(_given({name: value}), origin)
    try:
        recipe = Recipe.model_validate(document)
    except ValidationError as error:
        raise explain(error, Recipe, document, given, path, rows) from None
    resolved = _resolve(recipe, given)
    check_effects(resolved, path, rows)
    return resolved


def dump(resolved: ResolvedRecipe) -> str:
    """The recipe as YAML with every value, and as a comment where it came from.

    `load_recipe` reads it back as the same recipe.
    """
    return text.write(resolved.values(), resolved.origins)


def parse_flag(name: str, written: str) -> Any:
    """The value of a flag, typed as the same text would be in a recipe.

    Text stays text where the recipe wants nothing else (`--out 2024` is a folder).
    """
    return written if name in _TEXT_KEYS else text.parse_value(written)


_TEXT_KEYS = frozenset(
    {"model", "data", "eval_data", "out", *SECTIONS}
    | {f"{section}.{key}" for section, key in SECTIONS.items()}
    | {f"probe.reward.{key}" for key in ("rule", "classifier", "reward_model")}
)


def _given(document: Mapping[str, Any]) -> list[str]:
    """Dotted names that a document sets, as deep as `flat` opens it."""
    names: list[str] = []
    for key, value in document.items():
        if key in SECTIONS and isinstance(value, dict) and value:
            names += [f"{key}.{inner}" for inner in value]
        elif key in SECTIONS and isinstance(value, str):
            names += [key, f"{key}.{SECTIONS[key]}"]
        else:
            names.append(key)
    return names


def _override(document: dict[str, Any], name: str, value: Any) -> None:
    section, _, key = name.partition(".")
    if not key:
        document[section] = value
        return
    inside = document.get(section)
    if isinstance(inside, str) and section in SECTIONS:
        inside = {SECTIONS[section]: inside}
    document[section] = dict(inside) if isinstance(inside, dict) else {}
    _override(document[section], key, value)


def _resolve(recipe: Recipe, given: Mapping[str, str]) -> ResolvedRecipe:
    """What is not given and depends on other settings becomes a value."""
    origins = {name: given.get(name, "default") for name in flat(recipe)}
    values: dict[str, Any] = {}
    reference = recipe.reference
    if recipe.learning_rate is None:
        values["learning_rate"], origins["learning_rate"] = _learning_rate(recipe)
    if recipe.reference_scores is None:
        values["reference_scores"] = "each_step" if reference.moves else "cache"
        origins["reference_scores"] = (
            "default for a moving reference" if reference.moves else "default"
        )
    if reference.moves and reference.mixture is None:
        values["reference"] = reference.model_copy(update={"mixture": 1.0})
        origins["reference.mixture"] = "default for update_every"
    values["optimizer"] = recipe.optimizer.resolved()
    for name in recipe.optimizer.options:
        owner = f"default for {recipe.optimizer.name}"
        origins[f"optimizer.{name}"] = given.get(f"optimizer.{name}", owner)
    return ResolvedRecipe(recipe.model_copy(update=values), origins)


#: adapters that learn so much more slowly that they want a rate of their own
_SOFT_PROMPTS = ("prompt_tuning", "p_tuning", "prefix_tuning")


def _learning_rate(recipe: Recipe) -> tuple[float, str]:
    """The field's defaults: small steps near a reference, larger ones for an adapter or SFT."""
    sft, adapter = recipe.objective.name == "sft", recipe.adapter
    rate = {(False, False): 5e-7, (False, True): 5e-6, (True, False): 2e-5, (True, True): 2e-4}[
        sft, adapter is not None
    ]
    if adapter is None:
        return rate, "default for sft" if sft else "default for full training"
    if adapter.name in _SOFT_PROMPTS:
        rate = 1e-2
    return rate, f"default for sft with {adapter.name}" if sft else f"default for {adapter.name}"
