"""The typed recipe: strict loading, overrides, and where each value came from."""

from prefopt.recipe.model import (
    NOT_LEARNED,
    AdapterChoice,
    ObjectiveChoice,
    Recipe,
    ResolvedRecipe,
    Source,
    check_reference,
    dump,
    load_recipe,
    parse_flag,
)

__all__ = [
    "NOT_LEARNED",
    "AdapterChoice",
    "ObjectiveChoice",
    "Recipe",
    "ResolvedRecipe",
    "Source",
    "check_reference",
    "dump",
    "load_recipe",
    "parse_flag",
]
