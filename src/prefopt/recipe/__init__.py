"""The typed recipe: strict loading, overrides, and where each value came from."""

from prefopt.recipe.effects import check_reference
from prefopt.recipe.loading import dump, load_recipe, parse_flag
from prefopt.recipe.model import (
    NOT_LEARNED,
    AdapterChoice,
    ObjectiveChoice,
    Recipe,
    ResolvedRecipe,
    Source,
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
