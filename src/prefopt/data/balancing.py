"""Weights of comparisons that even out what they are about: a column, prompt clusters, lengths.

Comparisons are in strata, and within a stratum in parts. The parts of a stratum are given equal
total weight and the stratum keeps its own: of a column or of clusters there is one stratum, of
lengths one for each size of the difference, with the parts "longer is preferred" and "shorter is
preferred". Weights say nothing new: what is rare and now counts more is still known from few
comparisons, and the effective sample size tells how few.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

from prefopt.data.checking.noting import NAMED
from prefopt.data.files import Paths
from prefopt.data.formats import GroupReader, OnError, write_groups
from prefopt.data.kinds import KINDS
from prefopt.data.merging import Hashes, Plan
from prefopt.errors import DataError, RecipeError
from prefopt.records import Comparison, Group

MOST_VALUES = 1000  # of a column: with more it is no category

_AT_ONCE = 2048  # rows whose prompts are put into clusters together


@dataclass(frozen=True, slots=True)
class Part:
    """Comparisons that get the same factor: of one value, in one stratum."""

    name: str
    stratum: str = ""


@dataclass(slots=True)
class Tally:
    """How many comparisons are in a part, their total weight, and the total of its squares."""

    count: int = 0
    weight: float = 0.0
    squares: float = 0.0

    def add(self, weight: float) -> None:
        """One comparison more; one of weight 0 does not count."""
        self.count += weight > 0
        self.weight += weight
        self.squares += weight * weight


PartOf = Callable[[Group, Comparison], Part]


def balance(
    paths: Paths,
    by: str,
    out: str | Path,
    *,
    limit: float = 10.0,
    seed: int = 0,
    format: str = "auto",
    on_error: OnError = "raise",
    progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Write the data again, with weights that even something out.

    The files are read twice, with clusters three times, and once more if there are votes. What a
    comparison weighed before is multiplied; the mean of those above 0 is then 1.

    Args:
        paths: what `read_groups` takes.
        by: `length`, `cluster`, or a column: `source`, or one of `meta`.
        out: .jsonl, .jsonl.gz or .jsonl.zst, replaced if it exists.
        limit: how many times the smallest factor the largest may be; 1 or more.
        seed: of the clusters.
        format, on_error: as for `read_groups`.
        progress: called with the rows read so far, anew for each time that they are read.

    Returns:
        `by`; `groups`: of each value its share of the weight `before` and `after`, its factor
        `weight`, and how many `comparisons` it has; `comparisons`; `effective_sample_size` and
        `effective_share`: (Σw)²/Σw² of the new weights, in comparisons and of all; `limited`:
        values that should weigh more; `unbalanced`: those with nothing to be even with, and how
        many comparisons these are; `out`, `skipped`.

    Raises:
        DataError: as for `read_groups`; or a value is not one of a category.
        RecipeError: nothing has that column, or there is nothing to even out.
    """
    reader = GroupReader(paths, format=format, on_error=on_error)
    rows = _Rows(reader, _part_of(by, reader, seed), progress)
    tallies = rows.tallies(by)
    factors, limited, unbalanced = _factors(tallies, limit, by)
    write_groups(out, rows.weighted(factors))
    return {
        "by": by,
        **_summary(tallies, factors),
        "limited": limited,
        "unbalanced": unbalanced,
        "out": str(out),
        "skipped": dict(reader.skipped),
    }


def even_factors(tallies: Mapping[Part, Tally], limit: float) -> dict[Part, float]:
    """The factor of each part: equal weight within a stratum, none above `limit` times the least.

    They are scaled so that the mean weight of the comparisons that count is 1. A part with nothing
    to be even with keeps its weight but for that scale.

    >>> found = even_factors({Part("a"): Tally(3, 3.0, 3.0), Part("b"): Tally(1, 1.0, 1.0)}, 10)
    >>> [round(factor, 4) for factor in found.values()]      # 3 · ⅔ = 1 · 2
    [0.6667, 2.0]
    """
    wanted = _wanted(tallies)
    least = min(wanted.values())
    kept = {part: min(factor, limit * least) for part, factor in wanted.items()}
    count = sum(tally.count for tally in tallies.values())
    scale = count / sum(tallies[part].weight * factor for part, factor in kept.items())
    return {part: factor * scale for part, factor in kept.items()}


# -- what a comparison is about ------------------------------------------------------------


def _part_of(by: str, reader: GroupReader, seed: int) -> PartOf:
    if by == "length":
        return _of_length
    if by == "cluster":
        return _OfClusters(reader, seed)
    return lambda group, edge: _of_column(group, by)


def _of_column(group: Group, column: str) -> Part:
    value: Any = group.source if column == "source" else None
    for name in (column, *NAMED.get(column, ())):
        value = group.meta.get(name) if value is None else value
    if value is None:
        return Part(f"(no {column})", "none")
    if isinstance(value, bool | int | float):
        value = json.dumps(value)
    if not isinstance(value, str):
        origin = group.origins[0]
        raise DataError(
            "a category is text or a number",
            kind="wrong_type",
            file=origin.file,
            row=origin.row,
            field=column,
            value=value,
            remedy="name another column",
        )
    return Part(value)


def _of_length(group: Group, edge: Comparison) -> Part:
    """By which power of two, in characters, the side that is more probably better is longer."""
    by = len(group.completions[edge.preferred].text) - len(
        group.completions[edge.dispreferred].text
    )
    if edge.probability == 0.5:
        return Part("tie", "tie")
    if by == 0:
        return Part("equally long", "equal")
    side = "longer" if (by > 0) == (edge.probability > 0.5) else "shorter"
    low = 1 << (abs(by).bit_length() - 1)
    sizes = f"{low}" if low == 1 else f"{low} to {2 * low - 1}"
    return Part(f"{side} by {sizes}", sizes)


class _OfClusters:
    """The cluster of a group's prompt, found for many groups at once."""

    def __init__(self, reader: GroupReader, seed: int) -> None:
        from prefopt.data.checking.clusters import Clusters

        prompts = (
            group.prompt_text
            for group, _ in reader.row_groups()
            if group.comparisons or group.votes
        )
        first = next(prompts, None)
        if first is None:
            raise _no_comparisons()
        self._clusters = Clusters.fit(chain([first], prompts), seed=seed)
        self._known: dict[str, Part] = {}

    def look_ahead(self, groups: Sequence[Group]) -> None:
        """Find those of groups that come next."""
        if len(self._known) > 8 * _AT_ONCE:
            self._known.clear()
        prompts = list({group.prompt_text for group in groups} - self._known.keys())
        for prompt, cluster in zip(prompts, self._clusters.of(prompts).tolist(), strict=True):
            words = " ".join(self._clusters.words(cluster, 4))
            self._known[prompt] = Part(f"{cluster}: {words}" if words else f"{cluster}")

    def __call__(self, group: Group, edge: Comparison) -> Part:
        prompt = group.prompt_text
        if prompt not in self._known:
            self.look_ahead([group])
        return self._known[prompt]


# -- reading and writing -------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Marked(Comparison):
    """A comparison that knows its part: of its own row, also after rows are merged."""

    part: Part = Part("")


class _Rows:
    """The data, every comparison with the part that it is in."""

    def __init__(
        self, reader: GroupReader, part_of: PartOf, progress: Callable[[int], None] | None
    ) -> None:
        self._reader = reader
        self._part_of = part_of
        self._plan: Plan | None = None
        self._progress = progress

    def tallies(self, by: str) -> dict[Part, Tally]:
        """What is in each part, in the order of names."""
        hashes, votes = Hashes(), False
        found: dict[Part, Tally] = {}
        for group, own in self._rows():
            _count(group, found, by)
            if not own:
                hashes.add(group.prompt)
                votes = votes or bool(group.votes)
        self._plan = hashes.plan()
        if votes:  # only merged rows say which comparisons these make
            found = {}
            for group in self._groups():
                _count(group, found, by)
        return {part: found[part] for part in sorted(found, key=_order)}

    def weighted(self, factors: Mapping[Part, float]) -> Iterator[Group]:
        """The groups as they are written."""
        for group in self._groups():
            edges = tuple(_weighted(edge, factors) for edge in group.comparisons)
            yield replace(group, comparisons=edges)

    def _groups(self) -> Iterator[Group]:
        assert self._plan is not None
        return map(self._marked, self._plan.merge(self._rows()))

    def _rows(self) -> Iterator[tuple[Group, bool]]:
        rows = self._reader.row_groups()
        while block := list(islice(rows, _AT_ONCE)):
            if isinstance(self._part_of, _OfClusters):
                self._part_of.look_ahead([group for group, _ in block])
            if self._progress is not None:
                self._progress(self._reader.rows)
            for group, own in block:
                yield self._marked(group), own

    def _marked(self, group: Group) -> Group:
        """Comparisons that have their part keep it."""
        edges = (
            edge
            if isinstance(edge, _Marked)
            else _Marked(
                edge.preferred,
                edge.dispreferred,
                edge.probability,
                edge.weight,
                self._part_of(group, edge),
            )
            for edge in group.comparisons
        )
        return replace(group, comparisons=tuple(edges))


def _count(group: Group, found: dict[Part, Tally], by: str) -> None:
    for edge in group.comparisons:
        assert isinstance(edge, _Marked)
        if edge.part not in found and len(found) >= MOST_VALUES:
            raise RecipeError(
                f"the column has more than {MOST_VALUES:,} values",
                field="by",
                value=by,
                remedy="name a column with few values",
            )
        found.setdefault(edge.part, Tally()).add(edge.weight)


def _weighted(edge: Comparison, factors: Mapping[Part, float]) -> Comparison:
    assert isinstance(edge, _Marked)
    if edge.weight > 0 and edge.part not in factors:
        raise DataError(
            "the files changed while they were read",
            kind="unreadable_file",
            remedy="balance again once nothing writes to them",
        )
    weight = edge.weight * factors.get(edge.part, 0.0)
    return Comparison(edge.preferred, edge.dispreferred, edge.probability, weight)


# -- factors -------------------------------------------------------------------------------


def _wanted(tallies: Mapping[Part, Tally]) -> dict[Part, float]:
    """Factors that make the parts of each stratum even, and leave its weight as it is."""
    strata: dict[str, list[Part]] = {}
    for part, tally in tallies.items():
        if tally.weight > 0:
            strata.setdefault(part.stratum, []).append(part)
    return {
        part: sum(tallies[other].weight for other in parts) / len(parts) / tallies[part].weight
        for parts in strata.values()
        for part in parts
    }


def _factors(
    tallies: Mapping[Part, Tally], limit: float, by: str
) -> tuple[dict[Part, float], list[str], dict[str, int]]:
    """The factors, the names of those that the limit holds, and what has no counterpart."""
    if not sum(tally.weight for tally in tallies.values()):
        raise _no_comparisons()
    sizes: dict[str, int] = {}
    for part, tally in tallies.items():
        sizes[part.stratum] = sizes.get(part.stratum, 0) + (tally.weight > 0)
    if max(sizes.values()) < 2:
        raise _nothing_to_even_out(by, tallies)
    found, wanted = even_factors(tallies, limit), _wanted(tallies)
    least = min(wanted.values())
    limited = [part.name for part, factor in wanted.items() if factor > (1 + 1e-9) * limit * least]
    unbalanced = {part.name: tallies[part].count for part in wanted if sizes[part.stratum] == 1}
    return found, limited, unbalanced


def _no_comparisons() -> DataError:
    return DataError(
        "there are no comparisons to give weights to",
        kind="no_comparison",
        remedy=KINDS["no_comparison"][2],
    )


def _nothing_to_even_out(by: str, tallies: Iterable[Part]) -> RecipeError:
    parts = list(tallies)
    if all(part.stratum == "none" for part in parts):
        return RecipeError(
            "no comparison has this column",
            field="by",
            value=by,
            remedy="name a column of the rows, or length, or cluster",
        )
    names = ", ".join(part.name for part in parts[:3])
    return RecipeError(
        f"there is nothing to even out: there is only {names}",
        field="by",
        value=by,
        remedy="name what differs between comparisons",
    )


def _summary(tallies: Mapping[Part, Tally], factors: Mapping[Part, float]) -> dict[str, Any]:
    before = sum(tally.weight for tally in tallies.values())
    after = sum(tallies[part].weight * factor for part, factor in factors.items())
    squares = sum(tallies[part].squares * factor**2 for part, factor in factors.items())
    count = sum(tally.count for tally in tallies.values())
    effective = after**2 / squares
    return {
        "groups": {
            part.name: {
                "before": tallies[part].weight / before,
                "after": tallies[part].weight * factor / after,
                "weight": factor,
                "comparisons": tallies[part].count,
            }
            for part, factor in factors.items()
        },
        "comparisons": count,
        "effective_sample_size": effective,
        "effective_share": effective / count,
    }


def _order(part: Part) -> tuple[Any, ...]:
    """Numbers as numbers, names as text."""
    size, number = part.stratum.partition(" ")[0], part.name.partition(":")[0]
    return (
        int(size) if size.isdecimal() else -1,
        part.stratum,
        int(number) if number.isdecimal() else -1,
        part.name,
    )
