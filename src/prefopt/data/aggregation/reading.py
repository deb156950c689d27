"""Files to votes: groups with votes in any layout, or verdicts between models without texts."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from prefopt.data import judged
from prefopt.data.aggregation.table import CHOICES, Ints, Votes
from prefopt.data.files import Paths, Row, find_files, stream_rows
from prefopt.data.formats import GroupReader, OnError
from prefopt.errors import DataError
from prefopt.records import Group

_SHOWN = 80  # characters of a prompt that stand for it


@dataclass(frozen=True)
class Ballots:
    """Votes, and where they came from.

    Attributes:
        votes: in the order of the rows; questions too.
        groups: the groups again, to write them with comparisons; None where the rows have
            no texts. The questions are those of its groups that have votes.
        rows: rows read.
        unreadable: verdicts that are neither side nor a tie; they are no votes.
        skipped: other rows that were left out, by kind.
    """

    votes: Votes
    groups: Iterable[Group] | None
    rows: int
    unreadable: int
    skipped: Counter[str]


def read_votes(paths: Paths, *, format: str = "auto", on_error: OnError = "raise") -> Ballots:
    """All votes of some files, as arrays.

    Args:
        paths: files, folders or lists of them, as `read_groups` takes them. The first row says
            whether there are texts: rows with `model_a`, `model_b`, `question_id` and a verdict
            alone (MT-Bench's judgements without conversations) are read as they are.
        format: the layout of rows with texts.
        on_error: stop at the first wrong row, or leave it out and count it. Verdicts that cannot
            be read are counted in either case.

    Raises:
        DataError: there are no votes, or a row is wrong.
    """
    files = find_files(paths)
    if format == "auto" and begins_without_texts(files[0]):
        ballots = _verdicts(files, on_error)
    else:
        ballots = _groups(files, format, on_error)
    if not len(ballots.votes):
        raise DataError(
            "there are no votes",
            kind="too_few_votes",
            file=files[0],
            value=f"{ballots.unreadable} verdicts that cannot be read"
            if ballots.unreadable
            else None,
            remedy='write rows such as {"prompt": "...", "completions": ["...", "..."], '
            '"votes": [{"annotator": "ann", "pair": [0, 1], "choice": "first"}]}',
        )
    return ballots


def voted_groups(groups: Iterable[Group]) -> Iterator[tuple[Group, int | None]]:
    """Groups, each with the number of the question that it is; None without votes."""
    number = 0
    for group in groups:
        yield group, number if group.votes else None
        number += bool(group.votes)


def votes_of_groups(groups: Iterable[Group]) -> Votes:
    """The votes of groups; each group that has some is a question."""
    book = _Book()
    for group, number in voted_groups(groups):
        if number is None:
            continue
        book.questions.append(_shown(group.prompt_text))
        base = len(book.question)
        named = [(completion.source or "", completion.text) for completion in group.completions]
        order = sorted(range(len(named)), key=named.__getitem__)
        ranks = sorted(range(len(named)), key=order.__getitem__)
        for completion, rank in zip(group.completions, ranks, strict=True):
            book.add_option(number, completion.source, rank)
        for vote in group.votes:
            book.add(base + vote.first, base + vote.second, vote.choice, vote.annotator)
    return book.votes()


def _groups(files: list[str], format: str, on_error: OnError) -> Ballots:
    def refused(error: DataError) -> None:
        if on_error == "raise" and error.kind != "unreadable_verdict":
            raise error

    reader = GroupReader(files, format=format, on_error="skip", on_refused=refused)
    votes = votes_of_groups(reader)
    skipped = Counter(reader.skipped)
    return Ballots(votes, reader, reader.rows, skipped.pop("unreadable_verdict", 0), skipped)


# -- verdicts without texts ----------------------------------------------------------------


def begins_without_texts(file: str) -> bool:
    """Whether a file's first row says which model won and nothing of what was said."""
    try:
        for _, row in stream_rows(file):
            if isinstance(row, dict):
                return judged.without_texts(row)
    except DataError:  # whoever reads groups will say so, with the file
        pass
    return False


def _verdicts(files: list[str], on_error: OnError) -> Ballots:
    """Options are models here; those of a question are in the order of their names."""
    book, rows, skipped = _Book(), 0, Counter[str]()

    def refuse(error: DataError, file: str, number: int | None) -> None:
        error.file, error.row = error.file or file, error.row or number
        if on_error == "raise" and error.kind != "unreadable_verdict":
            raise error
        skipped[error.kind] += 1

    for file in files:
        try:
            for number, row in stream_rows(file):
                rows += 1
                try:
                    book.add_verdict(row)
                except DataError as error:
                    refuse(error, file, number)
        except DataError as error:  # of the file, unless it is one that was refused
            if error.file is not None:
                raise
            refuse(error, file, None)
    votes = book.votes(by_name=True)
    return Ballots(votes, None, rows, skipped.pop("unreadable_verdict", 0), skipped)


# -- writing down --------------------------------------------------------------------------


@dataclass
class _Book:
    """Columns that grow, and codes for names in the order in which they came."""

    first: array[int] = field(default_factory=lambda: array("q"))
    second: array[int] = field(default_factory=lambda: array("q"))
    choice: array[int] = field(default_factory=lambda: array("b"))
    annotator: array[int] = field(default_factory=lambda: array("q"))
    question: array[int] = field(default_factory=lambda: array("q"))
    source: array[int] = field(default_factory=lambda: array("q"))
    rank: array[int] = field(default_factory=lambda: array("q"))
    annotators: dict[str, int] = field(default_factory=dict)
    sources: dict[str, int] = field(default_factory=dict)
    questions: list[str] = field(default_factory=list)
    _asked: dict[str, int] = field(default_factory=dict)
    _options: dict[tuple[int, str], int] = field(default_factory=dict)

    def add_option(self, question: int, source: str | None, rank: int = 0) -> int:
        self.question.append(question)
        self.rank.append(rank)
        code = -1 if source is None else self.sources.setdefault(source, len(self.sources))
        self.source.append(code)
        return len(self.question) - 1

    def add(self, first: int, second: int, choice: str, annotator: str | None) -> None:
        self.first.append(first)
        self.second.append(second)
        self.choice.append(CHOICES.index(choice))
        self.annotator.append(
            -1 if annotator is None else self.annotators.setdefault(annotator, len(self.annotators))
        )

    def add_verdict(self, row: Row | DataError) -> None:
        """A row without texts.

        Raises:
            DataError: it is wrong, or its verdict cannot be read.
        """
        if isinstance(row, DataError):
            raise row
        name, sides, choice = judged.question(row), judged.models(row), judged.choice(row)
        number = self._asked.setdefault(name, len(self.questions))
        if number == len(self.questions):
            self.questions.append(name)
        first, second = (
            self._options[number, side]
            if (number, side) in self._options
            else self._options.setdefault((number, side), self.add_option(number, side))
            for side in sides
        )
        self.add(first, second, choice, judged.judge(row))

    def votes(self, *, by_name: bool = False) -> Votes:
        """Everything as arrays; names in their order, so that the order of rows is not in them."""
        columns = self.first, self.second, self.annotator, self.question, self.source, self.rank
        first, second, annotator, question, source, rank = (
            np.array(column, dtype=np.int64) for column in columns
        )
        annotators, new_annotator = _sorted(self.annotators)
        sources, new_source = _sorted(self.sources)
        source = new_source[source]
        if by_name:  # options in the order of question and name
            order = np.lexsort((source, question))
            place = np.empty_like(order)
            place[order] = np.arange(len(order))
            question, source = question[order], source[order]
            first, second, rank = place[first], place[second], np.arange(len(order))
        return Votes(
            first, second, np.array(self.choice, dtype=np.int64), new_annotator[annotator],
            question, source, rank, annotators, sources, self.questions,
        )  # fmt: skip


def _sorted(names: dict[str, int]) -> tuple[list[str], Ints]:
    """The names in order, and the new code of each old one; −1 stays −1."""
    new = sorted(names)
    codes = np.full(len(names) + 1, -1, dtype=np.int64)
    for code, name in enumerate(new):
        codes[names[name]] = code
    return new, codes


def _shown(prompt: str) -> str:
    plain = " ".join(prompt[: 4 * _SHOWN].split())
    return plain if len(plain) <= _SHOWN else plain[: _SHOWN - 1] + "…"
