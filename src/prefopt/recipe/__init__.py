"""The typed recipe: strict loading, overrides, and where each value came from."""

from prefopt.recipe.effects import check_reference
from prefopt.recipe.loading import dump, load_recipe, parse_flag
from prefopt.recipe.model import NOT_LEARNED, SECTIONS, Recipe, ResolvedRecipe
from prefopt.recipe.optimizers import OptimizerChoice
from prefopt.recipe.sections import (
    AdapterChoice,
    ConstraintChoice,
    Measure,
    ObjectiveChoice,
    ParallelChoice,
    ProbeChoice,
    ReferenceChoice,
    RewardChoice,
    Source,
)

__all__ = [
    "NOT_LEARNED",
    "SECTIONS",
    "AdapterChoice",
    "ConstraintChoice",
    "Measure",
    "ObjectiveChoice",
    "OptimizerChoice",
    "ParallelChoice",
    "ProbeChoice",
    "Recipe",
    "ReferenceChoice",
    "ResolvedRecipe",
    "RewardChoice",
    "Source",
    "check_reference",
    "dump",
    "load_recipe",
    "parse_flag",
]
