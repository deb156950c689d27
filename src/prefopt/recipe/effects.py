"""Settings that would have no effect: an error, because they were meant to have one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefopt.errors import RecipeError
from prefopt.recipe.model import ResolvedRecipe, Source


def check_reference(resolved: ResolvedRecipe, *, needs_reference: bool) -> None:
    """Refuse settings of the reference that the objective would never read, or lacks.

    Training calls it once it knows the objective's row of the table.

    Raises:
        RecipeError: a reference is set and nothing reads it, or it is needed and `none`.
    """
    recipe = resolved.recipe
    name = recipe.objective.name
    if needs_reference and recipe.reference == "none":
        raise RecipeError(
            f"objective '{name}' needs a reference",
            field="reference",
            value="none",
            remedy="set reference: initial, or a path",
        )
    if not needs_reference and recipe.reference not in ("initial", "none"):
        raise _without_effect("reference", resolved, f"objective '{name}' reads no reference")
    if not needs_reference and recipe.reference_scores != "cache":
        raise _without_effect(
            "reference_scores", resolved, f"objective '{name}' reads no reference"
        )


def check_effects(
    resolved: ResolvedRecipe, path: str | Path | None, rows: Mapping[str, int]
) -> None:
    recipe = resolved.recipe
    for name, sources in (("data", recipe.data), ("eval_data", recipe.eval_data or ())):
        _check_sources(name, sources, path)
    idle = (
        ("eval_every", recipe.eval_every, recipe.eval_data is None, "there is no eval_data"),
        ("early_stop", recipe.early_stop, recipe.eval_data is None, "there is no eval_data"),
        ("early_stop", recipe.early_stop, recipe.eval_every is None, "there is no eval_every"),
    )
    for name, value, without_effect, reason in idle:
        if value is not None and without_effect:
            error = _without_effect(name, resolved, reason)
            if path is not None and resolved.origins[name] == Path(path).name:
                error.file, error.row = str(path), rows.get(name)
            raise error


def _check_sources(field: str, sources: tuple[Source, ...], path: str | Path | None) -> None:
    shares = [source.share for source in sources]
    names = [source.name for source in sources]
    place: dict[str, Any] = {"field": field, "file": str(path) if path is not None else None}
    if len(sources) == 1 and shares[0] is not None:
        raise RecipeError(
            "a share has no effect: there is only one source",
            value=shares[0],
            remedy="remove share, or add another source",
            **place,
        )
    if None in shares and any(share is not None for share in shares):
        raise RecipeError(
            "some sources have a share and others have none",
            value=dict(zip(names, shares, strict=True)),
            remedy="give every source a share, or none",
            **place,
        )
    if len(sources) > 1 and len(set(names)) < len(names):
        raise RecipeError(
            "two sources have the same name",
            value=names,
            remedy="give each source its own name",
            **place,
        )


def _without_effect(name: str, resolved: ResolvedRecipe, reason: str) -> RecipeError:
    return RecipeError(
        f"{name} has no effect: {reason}",
        field=name,
        value=resolved.values()[name],
        remedy=f"remove {name} ({resolved.origins[name]}), or set what it needs",
    )
