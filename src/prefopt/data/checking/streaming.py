"""One pass over the rows: the columns of `Facts`, a sample of the texts, and structural findings.

Files are cut into blocks that several processes take notes of. Their notes are put together here,
in the order of the rows, so that the result does not depend on how many processes there were.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefopt.data.checking.facts import Example, Facts, Texts
from prefopt.data.checking.findings import Finding, Place
from prefopt.data.checking.noting import NAMED, SHOWN, Block, Noter, Notes
from prefopt.data.files import Paths, find_files, has_lines, stream_lines, stream_rows
from prefopt.data.layouts import find_layout, recognise
from prefopt.data.pairs import Edges
from prefopt.errors import DataError
from prefopt.workers import cores, each

SAMPLE = 20_000
_BLOCK_BYTES, _BLOCK_LINES, _BLOCK_ROWS = 1 << 20, 8192, 512
_MANY_BYTES = 16 << 20  # of files, from which on more than one process is worth its start
_PACKED = 4  # how much smaller a compressed file may well be
_MOST_PROCESSES = 8
_SLACK = 4096  # candidates beyond the sample before it is thinned out
_MOST_NAMES = {"source": 0xFFFF, "category": 0xFFFF, "annotator": 1 << 20}

Progress = Callable[..., None]


@dataclass(frozen=True)
class Reading:
    """What one pass over the rows gives.

    Attributes:
        files: what was read, in order.
        rows: rows read, of which `facts` knows those that were accepted.
        groups: prompts that the rows have, and rows that are groups by themselves.
        comparisons: that would be trained on; all votes on a pair are one.
        facts, texts: for the analyses.
        findings: what is wrong with single rows and files.
    """

    files: Sequence[str]
    rows: int
    groups: int
    comparisons: int
    facts: Facts
    texts: Texts
    findings: Sequence[Finding]


def read(
    paths: Paths,
    *,
    format: str = "auto",
    edges: Edges = "all",
    examples: int = 20,
    sample: int = SAMPLE,
    seed: int = 0,
    prompts_only: bool = False,
    processes: int | None = None,
    progress: Progress | None = None,
) -> Reading:
    """Read every row once.

    Takes some 70 bytes a row with one comparison, and the texts of the sample.

    Args:
        paths, format, edges: as in `read_groups`.
        examples: rows named for each kind of finding at most; counts are complete.
        sample: comparisons whose texts are kept at most, drawn uniformly.
        seed: of that sample.
        prompts_only: note prompts alone, of rows that may have nothing else; each stands as a
            comparison without weight.
        processes: that read; by default as many as there are processors, and one for little
            data. The result is the same for any number.
        progress: called with the rows read so far.

    Raises:
        DataError: there is no such file or folder.
        RecipeError: there is no such format.
        MissingExtraError: a package for this kind of file is not installed.
        RunError: a process that was reading died.
    """
    files = find_files(paths)
    source = _Source(files, None if format == "auto" else find_layout(format).name)
    notes = _Gathered(files, examples, sample)
    noter = Noter(tuple(files), format, edges, examples, sample, seed, prompts_only)
    tasks = (replace(block, enough=notes.enough) for block in source.blocks())
    for part in each(noter, tasks, processes or _worthwhile(files)):
        notes.add(part)
        if progress is not None:
            progress(notes.rows)
    return notes.reading(source.broken)


class _Source:
    """The rows of files in blocks; of files that break off, why."""

    def __init__(self, files: Sequence[str], layout: str | None) -> None:
        self.files = files
        self.layout = layout
        self.broken: dict[int, DataError] = {}

    def blocks(self) -> Iterator[Block]:
        """The blocks in order, each with the layout that rows before it have shown."""
        for index in range(len(self.files)):
            layout = self.layout
            for block in self._of_file(index):
                yield replace(block, layout=layout)
                layout = layout or _layout_of(block)

    def _of_file(self, index: int) -> Iterator[Block]:
        held: list[Any] = []
        lines, size = has_lines(self.files[index]), 0
        try:
            if lines:
                for item in stream_lines(self.files[index]):
                    held.append(item)
                    size += len(item[1])
                    if size >= _BLOCK_BYTES or len(held) >= _BLOCK_LINES:
                        yield Block(index, lines=held)
                        held, size = [], 0
            else:
                for row in stream_rows(self.files[index]):
                    held.append(row)
                    if len(held) >= _BLOCK_ROWS:
                        yield Block(index, rows=held)
                        held = []
        except DataError as error:  # what was read before it counts
            self.broken[index] = error
        if held:
            yield Block(index, lines=held) if lines else Block(index, rows=held)


def _layout_of(block: Block) -> str | None:
    """The layout of the first row that has one, as a reader finds it."""
    for _, row in block:
        if isinstance(row, dict):
            try:
                return recognise(row).name
            except DataError:
                continue
    return None


def _worthwhile(files: Sequence[str]) -> int:
    """How many processes are worth starting."""
    size = 0
    for file in files:
        if os.path.exists(file):
            packed = file.endswith((".gz", ".zst", ".parquet"))
            size += os.path.getsize(file) * (_PACKED if packed else 1)
    if size < _MANY_BYTES:
        return 1
    return min(cores(), _MOST_PROCESSES)


# -- putting notes together ----------------------------------------------------------------


class _Gathered:
    """The notes of all blocks so far."""

    def __init__(self, files: Sequence[str], examples: int, sample: int) -> None:
        self.files = files
        self.examples = examples
        self.rows = 0
        self.comparisons = 0
        self.rows_of: Counter[int] = Counter()
        self.found: dict[str, _Found] = {}
        self.sample = _Sample(sample)
        self.names = {name: {"": 0} for name in NAMED}
        self._accepted = self._compared = 0  # R, E
        self._columns: dict[str, list[NDArray[Any]]] = {}

    @property
    def enough(self) -> int:
        """Priority above which no comparison can be in the sample any more."""
        return self.sample.enough

    def add(self, part: Notes) -> None:
        """The notes of the next block."""
        self.rows += part.rows
        self.rows_of[part.file] += part.rows
        self.comparisons += part.comparisons
        for kind, found in part.found.items():
            places = [Place(self.files[part.file], row) for row in found.rows]
            self._find(kind, found.count, places, found.texts)
        self.sample.add(*part.sample, self._compared)
        edges = part.edges
        columns: dict[str, NDArray[Any]] = {
            "file": np.full(len(part.numbers), part.file, dtype=np.uint32),
            "number": part.numbers,
            "whole": part.whole,
            "prompt_of_row": part.prompts,
            "first": part.sides[:, 0],
            "second": part.sides[:, 1],
        }
        for name in edges.dtype.names or ():
            columns[name] = self._coded(name, part) if name in NAMED else edges[name]
        columns["row"] = columns["row"] + np.uint32(self._accepted)
        for name, column in columns.items():
            self._columns.setdefault(name, []).append(np.ascontiguousarray(column))
        self._accepted += len(part.numbers)
        self._compared += len(edges)

    def reading(self, broken: dict[int, DataError]) -> Reading:
        """Everything as columns. Uses up the notes."""
        for index, file in enumerate(self.files):
            if index in broken:
                self._find(broken[index].kind, 1, [Place(file, broken[index].row)])
            elif not self.rows_of[index]:
                self._find("empty_file", 1, [Place(file, None)])
        facts, whole, prompts = self._facts()
        alone = int(np.count_nonzero(whole))
        return Reading(
            self.files,
            self.rows,
            alone + len(np.unique(prompts[~whole])),
            self.comparisons + _pairs_voted_on(facts, whole),
            facts,
            Texts(self.sample.examples(), whole=len(facts) <= self.sample.size),
            [found.finding(kind) for kind, found in self.found.items()],
        )

    def _facts(self) -> tuple[Facts, NDArray[np.bool_], NDArray[np.uint64]]:
        whole, prompts = self._column("whole", np.bool_), self._column("prompt_of_row", np.uint64)
        row = self._column("row", np.uint32)
        facts = Facts(
            files=self.files,
            file=self._column("file", np.uint32),
            number=self._column("number", np.uint32),
            row=row,
            prompt=prompts[row] & ~np.uint64(1),  # as a text or as a conversation
            first=self._column("first", np.uint64),
            second=self._column("second", np.uint64),
            toward=self._column("toward", np.int8),
            stated=self._column("stated", np.bool_),
            probability=self._column("probability", np.float32),
            weight=self._column("weight", np.float32),
            preferred_length=self._column("preferred_length", np.uint32),
            dispreferred_length=self._column("dispreferred_length", np.uint32),
            preferred_marks=self._column("preferred_marks", np.uint16),
            dispreferred_marks=self._column("dispreferred_marks", np.uint16),
            source=self._column("source", np.uint16),
            category=self._column("category", np.uint16),
            annotator=self._column("annotator", np.uint32),
            sources=tuple(self.names["source"]),
            categories=tuple(self.names["category"]),
            annotators=tuple(self.names["annotator"]),
        )
        return facts, whole, prompts

    def _column(self, name: str, dtype: Any) -> NDArray[Any]:
        """One column; its parts are given up, so that hardly more than it is held twice."""
        parts = self._columns.pop(name, [np.empty(0, dtype)])
        column: NDArray[Any] = np.concatenate(parts).astype(dtype, copy=False)
        return column

    def _coded(self, name: str, part: Notes) -> NDArray[Any]:
        """Codes of the block as codes of all; names beyond those that fit are 'none given'."""
        known, most = self.names[name], _MOST_NAMES[name]
        codes = [0]
        for said in part.names[name]:
            code = known.get(said, 0) if len(known) >= most else known.setdefault(said, len(known))
            codes.append(code)
        found: NDArray[Any] = np.array(codes, dtype=np.uint32)[part.edges[name]]
        return found

    def _find(
        self, kind: str, count: int, places: Sequence[Place], texts: Sequence[str] = ()
    ) -> None:
        found = self.found.setdefault(kind, _Found())
        found.count += count
        found.places += places[: self.examples - len(found.places)]
        for place, text in zip(places, texts, strict=False):
            if len(found.examples) < SHOWN:
                found.examples.append({**place.to_dict(), "text": text})


@dataclass
class _Found:
    """What is known of one kind so far."""

    count: int = 0
    places: list[Place] = field(default_factory=list)
    examples: list[dict[str, Any]] = field(default_factory=list)

    def finding(self, kind: str) -> Finding:
        details = {"examples": self.examples} if self.examples else {}
        return Finding(kind, self.count, self.places, details=details)


class _Sample:
    """Those comparisons, of all that came, whose priorities are the smallest."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.enough = (1 << 64) - 1
        self._drawn: list[tuple[int, int, Example]] = []  # priority, comparison

    def add(self, drawn: NDArray[np.uint64], examples: Sequence[Example], before: int) -> None:
        """Those of a block that follows `before` comparisons."""
        for priority, example in zip(drawn.tolist(), examples, strict=True):
            if priority <= self.enough:
                index = before + example.comparison
                self._drawn.append((priority, index, replace(example, comparison=index)))
        if len(self._drawn) > self.size + _SLACK:
            self._thin_out()

    def examples(self) -> tuple[Example, ...]:
        """The sample, ascending by comparison."""
        self._thin_out()
        return tuple(example for _, _, example in sorted(self._drawn, key=lambda item: item[1]))

    def _thin_out(self) -> None:
        if len(self._drawn) > self.size:
            self._drawn = sorted(self._drawn, key=lambda item: item[:2])[: self.size]
            self.enough = self._drawn[-1][0] if self._drawn else 0


def _pairs_voted_on(facts: Facts, whole: NDArray[np.bool_]) -> int:
    """Pairs of completions of one prompt that rows that are merged vote on."""
    votes = np.flatnonzero(facts.stated & ~whole[facts.row])
    if not len(votes):
        return 0
    first, second = facts.first[votes], facts.second[votes]
    mixed = facts.prompt[votes] * np.uint64(0x9E3779B97F4A7C15)
    mixed ^= np.minimum(first, second) * np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= np.maximum(first, second) * np.uint64(0x94D049BB133111EB)
    return len(np.unique(mixed))
