"""Judges against people, and people against people: what a judge's word is worth.

The table of the articles that introduced such judges (Zheng et al. 2023, arXiv:2306.05685, table
5; Rafailov et al. 2023, arXiv:2305.18290, table 2), for any judge and any votes. Two voices agree
on a pair of answers if both say the same of it; how often they would by chance is in kappa and
in Krippendorff's alpha. Intervals draw prompts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from prefopt.data.aggregation.agreement import (
    Judgements,
    agreement_table,
    alpha,
    alpha_interval,
)
from prefopt.data.aggregation.statements import (
    Kind,
    Reader,
    Statement,
    Statements,
    as_arrays,
    called,
    kinds_by_name,
    kinds_by_pattern,
    once,
)
from prefopt.data.aggregation.table import FIRST, SECOND, TIE
from prefopt.errors import DataError
from prefopt.evaluation.comparing import check_columns, value_of
from prefopt.judges.judge import Judge, Progress, Question
from prefopt.judges.orders import settled

#: what "the longer one is better" is called among the kinds, where there are texts
LONGER = "the longer text"
_VALUES = 40  # of a column that are told apart
_TURN = "turn"
_CHOICES = {1.0: FIRST, 0.0: SECOND, 0.5: TIE}


@dataclass(frozen=True)
class Asked:
    """What a judge said to the pairs that people voted on.

    Attributes:
        statements: its own.
        unreadable: pairs of which it said nothing that could be read.
    """

    statements: list[Statement]
    unreadable: int


def agreement(
    reader: Reader,
    *,
    by: Sequence[str] = (),
    kinds: Sequence[str] = (),
    judge: Judge | None = None,
    progress: Progress | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """How far voices agree, over all pairs of answers and by the values of columns.

    Args:
        reader: of the statements.
        by: columns; rows with a `turn` are told apart by it if nothing else is asked for.
        kinds: `name=pattern` of annotators; others are left out. Without any, see
            `statements.kinds_by_name`.
        judge: is asked about every pair with votes and a text, beside those who voted.
        progress: of the asking.
        seed: of the intervals.

    Returns:
        `files`, `judgements`, `items` (pairs of answers), `prompts`, `unreadable`, `skipped`,
        `left_out` (statements of no kind), `kinds`, `tables` (`by`, `value`, `rows`) and `alpha`.

    Raises:
        DataError: there are no statements, or a row is wrong.
        RecipeError: a kind is not written as `name=pattern`, or no row has a column of `by`.
    """
    statements = once(reader)
    kind_of: Kind = kinds_by_pattern(kinds) if kinds else kinds_by_name(statements)
    kept = [statement for statement in statements if kind_of(statement) is not None]
    if not kept:
        raise _nothing(reader, len(statements))
    check_columns((statement.columns for statement in kept), by)
    everything, unread = kept + longer(kept), 0
    if judge is not None:
        said = _asked(judge, kept, progress)
        # The judge's own file, beside what it says of the same now, is one voice and not two.
        everything, unread = once([*said.statements, *everything]), said.unreadable
    arrays = as_arrays(everything, kind_of)
    found = _document(arrays, everything, by or _default_column(kept), seed)
    return {
        "files": reader.files,
        "unreadable": reader.unreadable + unread,
        "skipped": dict(reader.skipped),
        "left_out": len(statements) - len(kept),
        **found,
    }


def longer(statements: Iterable[Statement]) -> list[Statement]:
    """What a voice would say of each pair of texts that always takes the longer one."""
    return [
        statement._replace(
            choice=_longer(*statement.options), annotator=LONGER, file=LONGER, kind=LONGER
        )
        for statement in _pairs_of_texts(statements)
    ]


def _longer(left: str, right: str) -> int:
    return TIE if len(left) == len(right) else FIRST if len(left) > len(right) else SECOND


def _pairs_of_texts(statements: Iterable[Statement]) -> list[Statement]:
    """The first statement about each pair that has texts."""
    found: dict[Any, Statement] = {}
    for statement in statements:
        if statement.prompt is not None:
            found.setdefault((statement.question, frozenset(statement.options)), statement)
    return list(found.values())


def _asked(judge: Judge, statements: Iterable[Statement], progress: Progress | None) -> Asked:
    pairs = _pairs_of_texts(statements)
    if not pairs:
        raise DataError(
            "the rows have no texts, so there is nothing to ask a judge about",
            kind="missing_field",
            field="prompt",
            remedy="give rows with a prompt, its completions and votes; or leave out --judge",
        )
    questions = [Question(pair.prompt or "", *pair.options) for pair in pairs]
    said: list[Statement] = []
    who = judge.name
    for pair, verdict in zip(pairs, judge.compare_all(questions, progress), strict=True):
        value = settled(verdict)
        if value is not None:
            choice = _CHOICES[value]
            said.append(pair._replace(choice=choice, annotator=who, file=who, kind=who))
    return Asked(said, len(pairs) - len(said))


# -- the tables ----------------------------------------------------------------------------


def _document(
    arrays: Statements, statements: Sequence[Statement], by: Sequence[str], seed: int
) -> dict[str, Any]:
    everything = np.ones(len(statements), dtype=bool)
    tables: list[dict[str, Any]] = [
        {"by": None, "value": None, "rows": _rows(arrays, everything, seed)}
    ]
    for column in by:
        values = np.array([value_of(s.columns, column) for s in statements], dtype=object)
        tables += [
            {"by": column, "value": value, "rows": _rows(arrays, values == value, seed)}
            for value in _frequent(values)
        ]
    voices = np.array([kind != LONGER for kind in arrays.kinds])[arrays.kind]
    return {
        "judgements": int(voices.sum()),
        "items": len(arrays.cluster),
        "prompts": len(np.unique(arrays.cluster)),
        "kinds": _kinds(arrays),
        "tables": [table for table in tables if table["rows"] or table["by"] is None],
        "alpha": _alphas(arrays, voices, seed),
    }


def _frequent(values: Any) -> list[str]:
    """The values of a column, in order; of too many the most frequent."""
    names, counts = np.unique(values.astype(str), return_counts=True)
    kept = names[np.lexsort((names, -counts))][:_VALUES]
    return sorted(map(str, kept), key=lambda name: (len(name), name))


def _default_column(statements: Sequence[Statement]) -> Sequence[str]:
    turns = {value_of(s.columns, _TURN) for s in statements if _TURN in s.columns}
    return (_TURN,) if len(turns) > 1 else ()


def _order(arrays: Statements) -> list[int]:
    """Judges before people: kinds by how many voices they have."""
    who = arrays.judgements.annotators
    return sorted(
        range(len(arrays.kinds)),
        key=lambda kind: (len(np.unique(who[arrays.kind == kind])), arrays.kinds[kind]),
    )


def _rows(arrays: Statements, kept: Any, seed: int) -> list[dict[str, Any]]:
    """With and without ties in one row, for every two kinds and within each."""
    sides = {arrays.kinds[kind]: arrays.where(kept & (arrays.kind == kind))
             for kind in _order(arrays)}  # fmt: skip
    table = agreement_table(sides, tie=TIE, questions=arrays.cluster, seed=seed)
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for found in table:
        key = str(found["first"]), str(found["second"])
        empty: dict[str, Any] = {"with_ties": None, "without_ties": None}
        row = rows.setdefault(key, {"first": key[0], "second": key[1], **empty})
        part = {name: found[name] for name in
                ("agreed", "compared", "share", "interval", "kappa", "kappa_interval")}  # fmt: skip
        row["with_ties" if found["ties"] else "without_ties"] = part
    return [row for row in rows.values() if not (row["first"] == row["second"] == LONGER)]


def _kinds(arrays: Statements) -> list[dict[str, Any]]:
    rows = []
    for kind in _order(arrays):
        part = arrays.where(arrays.kind == kind)
        named = part.annotators[part.annotators >= 0]
        rows.append({
            "kind": arrays.kinds[kind],
            "judgements": len(part.items),
            "annotators": len(np.unique(named)),
            "items": len(np.unique(part.items)),
            "ties": float((part.values == TIE).mean()),
        })  # fmt: skip
    return rows


def _alphas(arrays: Statements, voices: Any, seed: int) -> list[dict[str, Any]]:
    """Of each kind, of each file that has several of them, and of all voices together."""
    sets: dict[str, Any] = {}
    for kind in _order(arrays):
        if arrays.kinds[kind] != LONGER:
            sets[arrays.kinds[kind]] = arrays.kind == kind
    for number, file in enumerate(arrays.files):
        held = (arrays.file == number) & voices
        if len(np.unique(arrays.kind[held])) > 1:
            sets.setdefault(f"{called(file)} (all)", held)
    if len(sets) > 1:
        sets.setdefault("everybody", voices)
    rows = [_alpha(who, arrays.where(held), arrays, seed) for who, held in sets.items()]
    return [row for row in rows if row["items"]]


def _alpha(who: str, part: Judgements, arrays: Statements, seed: int) -> dict[str, Any]:
    """Every vote counts as another person's, as published figures are counted."""
    columns = part.items, np.full_like(part.annotators, -1), part.values
    low, high = alpha_interval(*columns, questions=arrays.cluster, seed=seed)
    return {
        "who": who,
        "alpha": alpha(*columns),
        "interval": [low, high],
        "items": int((np.unique(part.items, return_counts=True)[1] > 1).sum()),
        "judgements": len(part.items),
    }


def _nothing(reader: Reader, found: int) -> DataError:
    if found:
        return DataError(
            "no annotator fits any of the kinds",
            kind="too_few_votes", field="kind", remedy="look at the names in the files",
        )  # fmt: skip
    return DataError(
        "there are no votes",
        kind="too_few_votes",
        file=reader.files[0],
        value=f"{reader.unreadable} verdicts that cannot be read" if reader.unreadable else None,
        remedy="give files with votes, comparisons, or verdicts between models",
    )
