"""What is noted of a block of rows: a few numbers for each comparison, and what is wrong.

A block is noted by itself, in whatever process: the notes of all blocks, one after the other, are
the same as those of the whole file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from itertools import starmap
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefopt.data.checking.facts import Example
from prefopt.data.checking.marks import marks
from prefopt.data.checking.similarity import mixed
from prefopt.data.checking.structure import excerpt, kinds_of
from prefopt.data.fields import prompt as as_prompt
from prefopt.data.files import Row, parsed
from prefopt.data.formats import GroupReader
from prefopt.data.layouts import find_layout
from prefopt.data.pairs import Edges
from prefopt.errors import DataError
from prefopt.records import Completion, Group, Prompt

_START = 0xC4F46BE25A6A6404  # of the numbers that are drawn: any but 0 does
#: of one comparison; `row` counts from the block's first accepted row, names are codes of the block
EDGE = np.dtype(
    [
        ("row", np.uint32), ("toward", np.int8), ("stated", np.bool_),
        ("probability", np.float32), ("weight", np.float32),
        ("preferred_length", np.uint32), ("dispreferred_length", np.uint32),
        ("preferred_marks", np.uint16), ("dispreferred_marks", np.uint16),
        ("source", np.uint32), ("category", np.uint32), ("annotator", np.uint32),
    ]
)  # fmt: skip
#: what is named, and the columns of a row that may name it
NAMED = {
    "source": ("source", "dataset"),
    "category": ("category",),
    "annotator": ("annotator", "annotator_id", "worker_id", "judge"),
}
SHOWN = 3  # rows of a kind whose texts are shown
_QUOTED = 200  # characters of a wrong value
_KEPT = 4000  # characters of a text in the sample
_HEAVIEST = 3.4e38  # a weight as the columns can hold it


@dataclass(frozen=True, slots=True)
class Block:
    """Rows of one file that follow each other.

    Attributes:
        file: which of the files.
        lines: numbered lines of JSONL, or
        rows: numbered rows of anything else.
        layout: name of the layout that the rows before them have, if they have any.
        enough: priority above which no comparison can be in the sample any more.
    """

    file: int
    lines: Sequence[tuple[int, bytes]] = ()
    rows: Sequence[tuple[int, Row | DataError]] = ()
    layout: str | None = None
    enough: int = (1 << 64) - 1

    def __iter__(self) -> Iterator[tuple[int, Row | DataError]]:
        """Its rows."""
        yield from ((number, parsed(line)) for number, line in self.lines)
        yield from self.rows


@dataclass
class Found:
    """Rows of a block with one thing wrong.

    Attributes:
        count: how many.
        rows: the numbers of the first of them.
        texts: what is wrong in the first few of these.
    """

    count: int = 0
    rows: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)


@dataclass
class Notes:
    """What is noted of a block with R accepted rows and E comparisons.

    Attributes:
        file: which of the files.
        rows: how many were read.
        comparisons: how many of the E are no votes, and those of a completion with itself.
        numbers: (R,) of the accepted rows in their file.
        whole: (R,) whether a row is a group whatever other rows there are.
        prompts: (R,) digests, see `digest_of_prompt`.
        edges: (E,) of type `EDGE`.
        sides: (E, 2) digests of the completions, in the order of the row.
        names: what is behind the codes, from 1.
        found: what is wrong, by kind.
        sample: priorities of comparisons, ascending, and their texts.
    """

    file: int
    rows: int
    comparisons: int
    numbers: NDArray[np.uint32]
    whole: NDArray[np.bool_]
    prompts: NDArray[np.uint64]
    edges: NDArray[Any]
    sides: NDArray[np.uint64]
    names: dict[str, list[str]]
    found: dict[str, Found]
    sample: tuple[NDArray[np.uint64], list[Example]]


@dataclass(frozen=True)
class Noter:
    """Takes notes of blocks; can be sent to another process.

    Attributes:
        files: names of all files.
        format: of their rows, as `read_groups` takes it.
        edges: which comparisons are made of many completions.
        examples: rows named for each kind at most.
        sample: comparisons whose texts are kept at most.
        seed: of the sample.
        prompts_only: note nothing but prompts, of rows that may have nothing else.
    """

    files: Sequence[str]
    format: str
    edges: Edges
    examples: int
    sample: int
    seed: int
    prompts_only: bool = False

    def __call__(self, block: Block) -> Notes:
        """The notes of one block."""
        pad = _Pad(self.examples)
        file = self.files[block.file]
        rules: dict[str, Any] = {"format": self.format, "on_error": "skip", "edges": self.edges}
        layout = find_layout(block.layout) if block.layout else None
        if self.prompts_only:
            reader = GroupReader(file, **rules)
            _note_prompts(block, reader, file, pad)
        else:
            reader = GroupReader(file, on_refused=pad.refused, **rules)
            for group, whole in reader.of_rows(iter(block), file, layout):
                pad.note(group, whole)
        edges = np.array(pad.edges, dtype=EDGE)
        numbers = np.array(pad.numbers, dtype=np.uint32)
        return Notes(
            block.file,
            reader.rows,
            pad.comparisons,
            numbers,
            np.array(pad.whole, dtype=bool),
            np.frombuffer(bytes(pad.prompts), dtype="<u8"),
            edges,
            np.frombuffer(bytes(pad.sides), dtype="<u8").reshape(-1, 2),
            {name: list(codes) for name, codes in pad.codes.items()},
            pad.found,
            self._sampled(block, numbers, edges["row"], pad),
        )

    def _sampled(
        self, block: Block, numbers: NDArray[np.uint32], rows: NDArray[np.uint32], pad: _Pad
    ) -> tuple[NDArray[np.uint64], list[Example]]:
        """Those comparisons that are in the sample, for all that this block knows."""
        within = np.arange(len(rows)) - np.searchsorted(rows, rows)  # which of its row
        drawn = priorities(self.seed, block.file, numbers[rows], within)
        chosen = np.flatnonzero(drawn <= np.uint64(block.enough))
        chosen = chosen[np.argsort(drawn[chosen], kind="stable")][: self.sample]
        return drawn[chosen], list(starmap(_example, ((i, *pad.compared[i]) for i in chosen)))


def priorities(
    seed: int, file: int, numbers: NDArray[Any], within: NDArray[Any]
) -> NDArray[np.uint64]:
    """(E,) a random number for each comparison that depends on nothing but where it was read.

    The comparisons with the smallest are a uniform sample, whoever read them and in which order.
    """
    drawn = numbers.astype(np.uint64) ^ (within.astype(np.uint64) << np.uint64(32))
    for salt in (seed, file):
        drawn = mixed(drawn + np.uint64((salt * 0x9E3779B97F4A7C15 + _START) % (1 << 64)))
    return drawn


# -- row by row ----------------------------------------------------------------------------


def _note_prompts(block: Block, reader: GroupReader, file: str, pad: _Pad) -> None:
    """The prompt of every row, whatever layout it has by itself, as a comparison of no weight."""
    for number, row in block:
        asked = [group.prompt for group, _ in reader.of_rows(iter([(number, row)]), file, None)]
        if not asked and isinstance(row, dict):
            with suppress(DataError):
                asked = [as_prompt(row.get("prompt"), "prompt")]
        for prompt in asked:
            pad.ask(prompt, number)
        if not asked:
            pad.refused(DataError("the row has no prompt", kind="missing_field", row=number))


@dataclass
class _Pad:
    """Lists that grow with the rows of a block."""

    examples: int
    comparisons: int = 0
    numbers: list[int] = field(default_factory=list)
    whole: list[bool] = field(default_factory=list)
    prompts: bytearray = field(default_factory=bytearray)
    edges: list[tuple[Any, ...]] = field(default_factory=list)
    sides: bytearray = field(default_factory=bytearray)
    compared: list[tuple[Group, int, int]] = field(default_factory=list)
    codes: dict[str, dict[str, int]] = field(default_factory=lambda: {name: {} for name in NAMED})
    found: dict[str, Found] = field(default_factory=dict)

    def refused(self, error: DataError) -> None:
        """A row that is no group."""
        value = error.value if isinstance(error.value, str) else repr(error.value)
        said = error.message if error.value is None else f"{error.message}: {value[:_QUOTED]}"
        self._found(error.kind, error.row, lambda: said)

    def note(self, group: Group, whole: bool) -> None:
        """A row that is one."""
        number = group.origins[0].row
        kinds = kinds_of(group)
        counted = group.comparisons or group.labels or (group.votes and not whole)
        if len(group.completions) > 1 and not counted:
            kinds.add("no_comparison")
        for kind in sorted(kinds):
            self._found(kind, number, partial(excerpt, group, kind))
        self.comparisons += len(group.comparisons)
        if group.comparisons or group.votes:
            self._compare(group, whole)
        self.numbers.append(number)
        self.whole.append(whole)
        self.prompts += digest_of_prompt(group.prompt)

    def ask(self, prompt: Prompt, number: int) -> None:
        """A prompt of which nothing is compared."""
        self.edges.append((len(self.numbers), 0, False, 0.5, *[0] * 8))
        self.sides += bytes(16)
        self.compared.append((Group(prompt, (Completion(""),)), 0, 0))
        self.numbers.append(number)
        self.whole.append(False)
        self.prompts += digest_of_prompt(prompt)

    def _found(self, kind: str, row: int | None, text: Callable[[], str]) -> None:
        found = self.found.setdefault(kind, Found())
        found.count += 1
        if row is not None and len(found.rows) < self.examples:
            found.rows.append(row)
            if len(found.texts) < SHOWN:
                found.texts.append(text())

    def _compare(self, group: Group, whole: bool) -> None:
        texts = [completion.text for completion in group.completions]
        digests, looks = [*map(_digest, texts)], [*map(marks, texts)]
        source = self._code("source", _name(group, "source"))
        category, said_by = 0, 0
        if group.meta:
            category = self._code("category", _name(group, "category"))
            said_by = self._code("annotator", _name(group, "annotator"))
        row = len(self.numbers)
        for better, worse, first, toward, stated, probability, weight, annotator in _told(
            group, whole
        ):
            if digests[better] == digests[worse]:
                continue
            who = said_by if annotator is None else self._code("annotator", annotator)
            self.edges.append(
                (row, toward, stated, probability, weight, len(texts[better]), len(texts[worse]),
                 looks[better], looks[worse], source, category, who)
            )  # fmt: skip
            second = worse if first == better else better
            self.sides += digests[first] + digests[second]
            self.compared.append((group, better, worse))

    def _code(self, column: str, name: str | None) -> int:
        if not name:
            return 0
        codes = self.codes[column]
        return codes.setdefault(name, len(codes) + 1)


#: preferred, dispreferred, first, toward, stated, probability, weight, annotator
_Told = tuple[int, int, int, int, bool, float, float, str | None]


def _told(group: Group, whole: bool) -> Iterator[_Told]:
    """The comparisons of a row and its votes; not the votes that its comparisons were made of."""
    for edge in group.comparisons:
        better, worse, sure = edge.preferred, edge.dispreferred, edge.probability
        first = min(better, worse)
        if sure == 0.5:
            better, worse = first, max(better, worse)
        elif sure < 0.5:
            better, worse, sure = worse, better, 1 - sure
        toward = 0 if sure == 0.5 else 1 if better == first else -1
        yield better, worse, first, toward, False, sure, min(edge.weight, _HEAVIEST), None
    if whole and group.comparisons:
        return
    for vote in group.votes:
        first, second, who = vote.first, vote.second, vote.annotator
        if vote.choice == "first":
            yield first, second, first, 1, True, 1.0, 1.0, who
        elif vote.choice == "second":
            yield second, first, first, -1, True, 1.0, 1.0, who
        else:
            yield first, second, first, 0, True, 0.5, 1.0, who


def _name(group: Group, column: str) -> str | None:
    """What a row says of its source, its category or its annotator."""
    if column == "source" and group.source is not None:
        return group.source
    if group.meta:
        for name in NAMED[column]:
            value = group.meta.get(name)
            if isinstance(value, str) or type(value) is int:
                return str(value)
    return None


def digest_of_prompt(prompt: Prompt) -> bytes:
    """8 bytes, whose lowest bit says whether it is a conversation.

    But for that bit a user's only turn is the same prompt as its text.
    """
    if isinstance(prompt, str):
        text = prompt
    elif len(prompt) == 1 and prompt[0].role == "user":
        text = prompt[0].content
    else:
        text = "\1".join([f"{turn.role}\2{turn.content}" for turn in prompt])
    digest = bytearray(_digest(text))
    digest[0] = digest[0] & 0xFE | (not isinstance(prompt, str))
    return bytes(digest)


def _digest(text: str) -> bytes:
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()


def _example(index: int, group: Group, better: int, worse: int) -> Example:
    prompt = last = group.prompt_text[-_KEPT:]
    if not isinstance(group.prompt, str):
        asked = (turn.content for turn in reversed(group.prompt) if turn.role == "user")
        last = next(asked, last)[-_KEPT:]
    sides = (group.completions[side].text[:_KEPT] for side in (better, worse))
    return Example(int(index), prompt, last, *sides)
