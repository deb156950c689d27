"""The one table of objectives: a name, a function, and what it needs.

Adding an objective is a function in this folder, a row here and a test.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from prefopt.errors import RecipeError
from prefopt.objectives import pairwise
from prefopt.objectives.scores import Comparisons, Scores


@dataclass(frozen=True)
class Objective:
    """A row of the table.

    Attributes:
        function: `(scores, comparisons, **options) -> (T,)` losses.
        needs_reference: whether `scores.reference` is read.
        reads: "comparisons" scores every completion that is compared; "preferred" scores
            only those that are preferred (or all of a group that compares nothing).
        couples_batch: whether one comparison's loss depends on the others of the step.
    """

    function: Callable[..., Tensor]
    needs_reference: bool = True
    reads: Literal["comparisons", "preferred"] = "comparisons"
    couples_batch: bool = False

    @property
    def name(self) -> str:
        return self.function.__name__

    @property
    def options(self) -> Mapping[str, Any]:
        """Hyper-parameters and their defaults, read from the signature."""
        parameters = inspect.signature(self.function).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}

    def bind(self, **options: Any) -> Callable[[Scores, Comparisons], Tensor]:
        """The objective with its hyper-parameters fixed.

        Raises:
            RecipeError: an option that this objective does not have.
        """
        for option in options:
            if option not in self.options:
                raise RecipeError(
                    f"objective '{self.name}' has no option '{option}'",
                    field=f"objective.{option}",
                    value=options[option],
                    remedy=f"its options are: {', '.join(self.options) or 'none'}",
                )
        return lambda scores, comparisons: self.function(scores, comparisons, **options)


OBJECTIVES: Mapping[str, Objective] = {
    row.name: row
    for row in (
        Objective(pairwise.dpo),
        Objective(pairwise.ipo),
        Objective(pairwise.sft, needs_reference=False, reads="preferred"),
    )
}


def find_objective(name: str) -> Objective:
    """The row of that name.

    Raises:
        RecipeError: there is none.
    """
    try:
        return OBJECTIVES[name]
    except KeyError:
        raise RecipeError(
            f"there is no objective '{name}'",
            field="objective.name",
            value=name,
            remedy=f"choose one of: {', '.join(sorted(OBJECTIVES))}",
        ) from None
