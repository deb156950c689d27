"""The whole of `prefopt check`: one pass over the rows, then every analysis of what it noted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any, Protocol

from prefopt.data.checking import (
    bias,
    contradiction,
    coverage,
    leakage,
    lengths,
    repetition,
    suspects,
)
from prefopt.data.checking.clusters import Embed
from prefopt.data.checking.findings import Finding, in_order
from prefopt.data.checking.lengths import Lengths
from prefopt.data.checking.streaming import SAMPLE, Progress, Reading, read
from prefopt.data.files import Paths
from prefopt.data.formats import GroupReader
from prefopt.data.pairs import Edges
from prefopt.errors import DataError
from prefopt.records import Group


class Measure(Protocol):
    """What gives the lengths of groups in tokens: `prefopt.engine.lengths.Measure`."""

    def __call__(
        self, groups: Iterable[Group], *, examples: int = ..., progress: Progress | None = ...
    ) -> Lengths:
        """The lengths of all groups."""


def check(
    paths: Paths,
    *,
    format: str = "auto",
    edges: Edges = "all",
    examples: int = 20,
    against: Paths | None = None,
    measure: Measure | None = None,
    embed: Embed | None = None,
    quick: bool = False,
    sample: int = SAMPLE,
    seed: int = 0,
    processes: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Everything that is wrong with preference data, and what else is worth knowing of it.

    Args:
        paths, format, edges: what `read_groups` takes.
        examples: rows named for each kind at most; counts are complete.
        against: the evaluation set that the data is compared with, in any layout.
        measure: gives the lengths in tokens, which takes a second pass over the data.
        embed: gives vectors for prompts, which are else told apart by their words.
        quick: leave out what looks at texts again: near-duplicates, clusters, suspect labels.
        sample: comparisons whose texts these look at, at most.
        seed: of the sample and of everything that draws.
        processes: that read, as for `streaming.read`.
        progress: called with the rows, then with the groups that were done so far.

    Returns:
        `{"rows", "groups", "comparisons", "files", "findings": [{"kind", "level", "count",
        "rows": [{"file", "row"}], "message", "remedy", "value"?, "interval"?, "details"?}],
        "figures": {…}, "sampled", "against": {"files", "rows", "prompts", "unread"} or None}`: rows
        read, groups and comparisons that would be trained on, findings with errors first,
        numbers for plots, whether the texts were a sample, and what was read of the evaluation
        set. It is plain JSON, the same for the same data and seed.

    Raises:
        DataError: there is no such file or folder, or no row of the evaluation set is readable.
        RecipeError: there is no such format.
    """
    options: dict[str, Any] = {
        "edges": edges, "examples": examples, "sample": 0 if quick else sample, "seed": seed,
        "processes": processes, "progress": progress,
    }  # fmt: skip
    data = read(paths, format=format, **options)
    others = None if against is None else _evaluation(against, options)
    material = Material(data, others, seed, examples, quick, embed)
    findings = [*data.findings, *chain.from_iterable(run(material) for run in ANALYSES)]
    figures = material.figures
    if measure is not None:
        reader = GroupReader(paths, format=format, on_error="skip", edges=edges)
        known = measure(reader, examples=examples, progress=progress)
        findings += lengths.find(known)
        figures["tokens"] = lengths.figures(known)
    return _document(material, findings, figures)


def _document(
    material: Material, findings: Iterable[Finding], figures: dict[str, Any]
) -> dict[str, Any]:
    data, others = material.data, material.against
    return {
        "rows": data.rows,
        "groups": data.groups,
        "comparisons": data.comparisons,
        "files": [str(file) for file in data.files],
        "findings": [finding.to_dict() for finding in in_order(findings)],
        "figures": figures,
        "sampled": not material.quick and not data.texts.whole,
        "against": None if others is None else _told(others),
    }


def _told(others: Reading) -> dict[str, Any]:
    """What was read of an evaluation set."""
    unread = sum(finding.count for finding in others.findings)
    return {
        "files": [*others.files],
        "rows": others.rows,
        "prompts": others.groups,
        "unread": unread,
    }


def _evaluation(paths: Paths, options: dict[str, Any]) -> Reading:
    """The prompts of an evaluation set; of rows that have none, nothing is said but how many."""
    others = read(paths, prompts_only=True, **options)
    if not len(others.facts):
        raise DataError(
            "no row of the evaluation set has a prompt",
            kind="missing_field",
            file=others.files[0],
            field="against",
            remedy="give preferences in any layout, or rows with a column 'prompt'",
        )
    return others


@dataclass(frozen=True)
class Material:
    """What the analyses look at; what several of them need is computed once.

    Attributes:
        data: what is trained on.
        against: what is evaluated on, if it is known.
        seed: of whatever draws.
        most: rows that a finding names.
        quick: whether the texts are left alone.
        embed: gives vectors for prompts.
    """

    data: Reading
    against: Reading | None
    seed: int
    most: int
    quick: bool
    embed: Embed | None

    @cached_property
    def leanings(self) -> dict[str, Any]:
        """What goes with being preferred."""
        return bias.figures(self.data.facts)

    @cached_property
    def topics(self) -> coverage.Coverage | None:
        """Clusters of the prompts."""
        if self.quick:
            return None
        others = None if self.against is None else self.against.texts
        return coverage.measure(self.data.texts, others, seed=self.seed, embed=self.embed)

    @cached_property
    def margins(self) -> suspects.Margins | None:
        """Margins of a cheap model."""
        if self.quick:
            return None
        return suspects.margins(self.data.facts, self.data.texts, seed=self.seed)

    @property
    def figures(self) -> dict[str, Any]:
        """All that a page may draw, by name; plain JSON."""
        return {
            **self.leanings,
            "coverage": None if self.quick else coverage.figures(self.topics),
            "suspects": suspects.figures(self.margins),
        }


Analysis = Callable[[Material], Iterator[Finding]]


def _repetition(material: Material) -> Iterator[Finding]:
    data = material.data
    return repetition.find(data.facts, data.texts, seed=material.seed, most=material.most)


def _contradiction(material: Material) -> Iterator[Finding]:
    return contradiction.find(material.data.facts, seed=material.seed, most=material.most)


def _bias(material: Material) -> Iterator[Finding]:
    return bias.find(material.data.facts, known=material.leanings, most=material.most)


def _coverage(material: Material) -> Iterator[Finding]:
    others = material.against
    against = None if others is None else (others.facts, others.texts)
    return coverage.find(material.data.facts, material.topics, against, most=material.most)


def _leakage(material: Material) -> Iterator[Finding]:
    data, others = material.data, material.against
    if others is None:
        return
    yield from leakage.find(
        data.facts,
        data.texts,
        (others.facts, others.texts),
        coverage=material.topics,
        seed=material.seed,
        most=material.most,
    )


def _suspects(material: Material) -> Iterator[Finding]:
    if material.margins is not None:
        data = material.data
        yield from suspects.find(data.facts, data.texts, most=material.most, known=material.margins)


#: what is run, in this order
ANALYSES: tuple[Analysis, ...] = (
    _repetition, _contradiction, _bias, _coverage, _leakage, _suspects,
)  # fmt: skip
