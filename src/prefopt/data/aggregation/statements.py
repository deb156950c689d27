"""Who said what of which pair, from any files: the rows that agreement is counted in.

Unlike `reading`, which makes one table of votes for a rule to aggregate, this keeps apart what
came from which file: a file of people and a file of a judge are two kinds of voices, whatever
their annotators are called.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from prefopt.data import judged
from prefopt.data.aggregation.agreement import Judgements
from prefopt.data.aggregation.reading import begins_without_texts
from prefopt.data.aggregation.table import FIRST, SECOND, TIE, Ints
from prefopt.data.files import Paths, find_files, stream_rows
from prefopt.data.formats import GroupReader, OnError
from prefopt.errors import DataError, RecipeError
from prefopt.records import Choice, Group, Prompt

_NUMBERED = re.compile(r"(.+?)[_\- ]\d+")
_ENDINGS = (".gz", ".zst", ".jsonl", ".json", ".parquet")
#: what else than a column of the row says something about a verdict without texts
_TAKEN = frozenset(("model_a", "model_b", "winner", "verdict", "judgment", "judgement", "judge",
                    "annotator", "winner_model_a", "winner_model_b", "winner_tie"))  # fmt: skip


class Statement(NamedTuple):
    """One voice on one pair.

    Attributes:
        question: what both answer, told apart from everything else that was asked.
        cluster: what the question belongs to: its prompt, or its question without the turn.
        options: the two answers: texts, or names of models where there are no texts.
        ranks: by which the two are put in an order that does not depend on where they stand.
        choice: FIRST, SECOND or TIE.
        annotator: who said it, if that is known.
        file: where it was read.
        columns: of the row, for a breakdown.
        prompt: of texts; None of names.
        kind: of voice, where it does not follow from the annotator and the file.
    """

    question: str | bytes
    cluster: str | bytes
    options: tuple[str, str]
    ranks: tuple[Any, Any]
    choice: int
    annotator: str | None
    file: str
    columns: Mapping[str, Any]
    prompt: Prompt | None = None
    kind: str | None = None


_CODES: Mapping[Choice, int] = {"first": FIRST, "second": SECOND, "tie": TIE}


@dataclass
class Reader:
    """Reads statements, and counts what is none.

    Attributes:
        files: as they are found, in order.
        unreadable: verdicts that are neither side nor a tie.
        skipped: other rows that were left out, by kind.
    """

    paths: Paths
    on_error: OnError = "raise"
    files: list[str] = field(init=False)
    unreadable: int = 0
    skipped: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.files = find_files(self.paths)

    def __iter__(self) -> Iterator[Statement]:
        self.unreadable, self.skipped = 0, Counter()
        for file in self.files:
            yield from self._names(file) if begins_without_texts(file) else self._texts(file)

    def _names(self, file: str) -> Iterator[Statement]:
        for number, row in stream_rows(file):
            try:
                if isinstance(row, DataError):
                    raise row
                sides, said = judged.models(row), _CODES[judged.choice(row)]
                asked, cluster = judged.question(row), str(row["question_id"])
                columns = {name: row[name] for name in row if name not in _TAKEN}
                yield Statement(
                    asked, cluster, sides, sides, said, judged.judge(row), file, columns
                )
            except DataError as error:
                error.file, error.row = error.file or file, error.row or number
                self._refused(error)

    def _texts(self, file: str) -> Iterator[Statement]:
        for group in GroupReader([file], on_error="skip", on_refused=self._refused):
            self.unreadable += sum(said.probability is None for said in verdicts_of(group))
            yield from of_group(group, file)

    def _refused(self, error: DataError) -> None:
        if error.kind == "unreadable_verdict":
            self.unreadable += 1
        elif self.on_error == "raise":
            raise error
        else:
            self.skipped[error.kind] += 1


class Said(NamedTuple):
    """What a judge said of two completions of a group, as `prefopt judge` writes it.

    Attributes:
        first, second: the completions.
        probability: that the first is better; None where it is unreadable.
        order_consistent: see `judges.judge.Verdict`.
        judge: its name.
    """

    first: int
    second: int
    probability: float | None
    order_consistent: bool | None
    judge: str


def verdicts_of(group: Group) -> list[Said]:
    """The verdicts that `prefopt judge` noted in a group, if it did."""
    judge, notes = group.meta.get("judge"), group.meta.get("verdicts")
    found = []
    for note in notes if isinstance(judge, str) and isinstance(notes, list) else ():
        try:
            first, second = map(int, note["pair"])
            consistent, probability = note.get("order_consistent"), note["probability"]
            sides = group.completions[first], group.completions[second]
        except (KeyError, TypeError, ValueError, IndexError, AttributeError):
            continue  # a column of somebody else's that is called so
        if sides[0].text != sides[1].text:
            found.append(Said(first, second, probability, consistent, str(judge)))
    return found


def columns_of(group: Group) -> dict[str, Any]:
    """What is known of a group beside its texts and verdicts, for a breakdown."""
    own = () if group.source is None else (("source", group.source),)
    return {**{n: v for n, v in group.meta.items() if n not in ("judge", "verdicts")}, **dict(own)}


def of_group(group: Group, file: str) -> Iterator[Statement]:
    """What the votes and the verdicts of a group say; without either, what its comparisons say.

    A probability of ½ is a tie, and any other is for the more probable side.
    """
    verdicts, columns, key = verdicts_of(group), columns_of(group), group.prompt_key
    said: list[tuple[int, int, int, str | None, str | None]] = [
        (vote.first, vote.second, _CODES[vote.choice], vote.annotator, None) for vote in group.votes
    ]
    said += [
        (v.first, v.second, TIE if v.order_consistent is False else _side(v.probability),
         v.judge, v.judge)
        for v in verdicts
        if v.probability is not None
    ]  # fmt: skip
    if not group.votes and not verdicts:
        said = [(e.preferred, e.dispreferred, _side(e.probability), None, None)
                for e in group.comparisons]  # fmt: skip
    for first, second, choice, annotator, kind in said:
        sides = group.completions[first], group.completions[second]
        if sides[0].text == sides[1].text:
            continue  # nobody can prefer a text to itself
        left, right = sides
        yield Statement(
            key, key, (left.text, right.text),
            ((left.source or "", left.text), (right.source or "", right.text)),
            choice, annotator, file, columns, group.prompt, kind,
        )  # fmt: skip


def _side(probability: float) -> int:
    return TIE if probability == 0.5 else FIRST if probability > 0.5 else SECOND


def once(statements: Iterable[Statement]) -> list[Statement]:
    """Without what a later file repeats of somebody: a judged file has the votes it was made of."""
    first: dict[Any, str] = {}
    kept = []
    for said in statements:
        key = said.annotator, said.question, frozenset(said.options)
        if said.annotator is None or first.setdefault(key, said.file) == said.file:
            kept.append(said)
    return kept


# -- kinds of voices -----------------------------------------------------------------------

#: (statement) -> the kind of voice that it is; None leaves it out
Kind = Callable[[Statement], str | None]


def kinds_by_pattern(patterns: Sequence[str]) -> Kind:
    """Kinds that somebody named: `people=expert_*`, the first that fits.

    Raises:
        RecipeError: one is not of that form.
    """
    named = []
    for text in patterns:
        kind, equals, pattern = text.partition("=")
        if not (kind and equals and pattern):
            raise RecipeError(
                "a kind of voices is a name and a pattern of annotators",
                field="kind", value=text, remedy="write it like people=expert_*",
            )  # fmt: skip
        named.append((kind, pattern))

    def kind_of(statement: Statement) -> str | None:
        who = statement.annotator or called(statement.file)
        return next((kind for kind, pattern in named if fnmatchcase(who, pattern)), None)

    return kind_of


def kinds_by_name(statements: Iterable[Statement]) -> Kind:
    """Kinds by how voices are called: `expert_4` and `expert_7` are both `expert`.

    Those whose name has no number, or is the only one of its kind, are of the kind of their
    file.
    """
    members: dict[str, set[str]] = {}
    for who in {statement.annotator for statement in statements} - {None}:
        if match := _NUMBERED.fullmatch(str(who)):
            members.setdefault(match[1], set()).add(str(who))
    shared = {kind for kind, names in members.items() if len(names) > 1}

    def kind_of(statement: Statement) -> str:
        match = _NUMBERED.fullmatch(statement.annotator or "")
        return match[1] if match and match[1] in shared else called(statement.file)

    return kind_of


def called(file: str) -> str:
    """A file's name without its endings.

    >>> called("judged/gpt4_pair.jsonl.gz")
    'gpt4_pair'
    """
    name = Path(file).name
    for ending in _ENDINGS:
        name = name.removesuffix(ending)
    return name or file


# -- arrays --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Statements:
    """Statements as arrays of whole numbers.

    Attributes:
        judgements: items, annotators (−1 for nobody by name) and values: FIRST for the option of
            lower rank, SECOND for the other, TIE.
        cluster: (M,) which cluster each item belongs to.
        kind: (N,) which kind each statement is of, by its place in `kinds`.
        file: (N,) which file it is from, by its place in `files`.
        kinds, files: their names.
    """

    judgements: Judgements
    cluster: Ints
    kind: Ints
    file: Ints
    kinds: list[str]
    files: list[str]

    def where(self, kept: Any) -> Judgements:
        """Some of the judgements."""
        return Judgements(*(part[kept] for part in self.judgements))


def as_arrays(statements: Sequence[Statement], kind_of: Kind) -> Statements:
    """The arrays of statements that all have a kind."""
    items: dict[Any, tuple[int, str]] = {}
    clusters, kinds, files, annotators = (dict[Any, int]() for _ in range(4))
    of_item: list[int] = []
    rows = []
    for said in statements:
        pair = frozenset(said.options)
        lower = said.options[0] if said.ranks[0] <= said.ranks[1] else said.options[1]
        item, low = items.setdefault((said.question, pair), (len(items), lower))
        if item == len(of_item):
            of_item.append(clusters.setdefault(said.cluster, len(clusters)))
        turned = said.options[0] != low and said.choice != TIE
        who = said.annotator
        rows.append((
            item,
            -1 if who is None else annotators.setdefault(who, len(annotators)),
            1 - said.choice if turned else said.choice,
            kinds.setdefault(said.kind or kind_of(said), len(kinds)),
            files.setdefault(said.file, len(files)),
        ))  # fmt: skip
    item_, who_, value, kind, file = np.array(rows, dtype=np.int64).reshape(-1, 5).T
    return Statements(
        Judgements(item_, who_, value), np.array(of_item, dtype=np.int64), kind, file,
        list(kinds), list(files),
    )  # fmt: skip
