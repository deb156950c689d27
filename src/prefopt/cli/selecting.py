"""Options that make comparisons of scores, and what they come to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Group as Panel
from cyclopts import Parameter
from cyclopts.validators import Number

from prefopt.cli.options import described, seeded
from prefopt.cli.outcome import UsageError, counts

if TYPE_CHECKING:
    from prefopt.records import Group

_OF_SCORES = Panel("With --what score")
#: rules that read each option; the rest would pass over it
_READERS = {"k": ("top_k", "rso"), "beta": ("rso",)}


@Parameter(name="*")
@dataclass(frozen=True)
class Selecting:
    """Which comparisons are made of scores."""

    select: Annotated[
        Literal["best_worst", "all_pairs", "top_k", "rso"] | None,
        described(
            "Make comparisons of the scores: the best against the worst, all pairs, all pairs of "
            "the k best, or k by statistical rejection sampling. Ties are no comparisons.",
            group=_OF_SCORES,
        ),
    ] = None
    margin: Annotated[
        float | None,
        described(
            "Least difference of scores.",
            metavar="SCORE",
            group=_OF_SCORES,
            validator=Number(gte=0),
        ),
    ] = None
    k: Annotated[
        int | None,
        described(
            "Completions that top_k and rso keep, 2 by default.",
            name=("-k", "--k"),
            group=_OF_SCORES,
            validator=Number(gte=2),
        ),
    ] = None
    beta: Annotated[
        float | None,
        described(
            "Temperature of rso, in the unit of the scores, 0.5 by default.",
            group=_OF_SCORES,
            validator=Number(gte=0),
        ),
    ] = None
    seed: Annotated[
        int | None,
        seeded("Seed of what is left to chance.", group=_OF_SCORES),
    ] = None

    def check(self, what: str) -> None:
        """Refuse what would have no effect.

        Raises:
            UsageError: an option that nothing reads.
        """
        if self.select is not None and what != "score":
            raise UsageError(
                "has no effect: it makes comparisons of scores, and the judge is asked to compare",
                field="--select", value=self.select, remedy="add --what score",
            )  # fmt: skip
        for name in ("margin", "k", "beta", "seed"):
            value = getattr(self, name)
            if value is None:
                continue
            if self.select is None:
                message, remedy = "has no effect without --select", "add --select RULE"
            elif self.select not in _READERS.get(name, (self.select,)):
                message = f"has no effect with --select {self.select}"
                remedy = f"leave it out, or select {' or '.join(_READERS[name])}"
            else:
                continue
            raise UsageError(message, field=f"--{name}", value=value, remedy=remedy)

    def made(self, groups: Sequence[Group]) -> tuple[Sequence[Group], Mapping[str, Any]]:
        """The groups that are written, and what is told of the selection.

        Raises:
            DataError: a score is not a finite number, or no comparison comes out.
        """
        if self.select is None:
            return groups, {}
        from prefopt.errors import DataError
        from prefopt.sampling.selecting import select_pairs

        given = {name: getattr(self, name) for name in ("margin", "k", "beta", "seed")}
        chosen = {name: value for name, value in given.items() if value is not None}
        pairs, dropped = select_pairs(groups, rule=self.select, **chosen)
        if not pairs:
            raise DataError(
                f"the scores make no comparison: {counts(dropped)}",
                kind="no_comparisons", field="--select", value=self.select,
                remedy="look at the scores without --select, lower --margin, or sample more",
            )  # fmt: skip
        comparisons = sum(len(group.comparisons) for group in pairs)
        return pairs, {"comparisons": comparisons, "dropped": dropped}
