"""Data without the rows that it was told to leave out, and those rows with the reason.

What is wrong with a row is decided by what `check` runs: the same pass over the rows, the same
search for repetitions and contradictions. A row is left out whole, also if only one of its
comparisons is meant. That cleaning makes policies better is not known: what is left out may be
what is hard rather than what is wrong.
"""

from __future__ import annotations

import difflib
import json
import sys
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from prefopt.data.checking import contradiction, repetition
from prefopt.data.checking.facts import Facts
from prefopt.data.checking.findings import Finding
from prefopt.data.checking.grouping import Indices, Pairs, by_prompt, numbered
from prefopt.data.checking.streaming import SAMPLE, Progress, Reading, read
from prefopt.data.files import Paths, stream_rows
from prefopt.data.formats import GroupReader, write_groups
from prefopt.data.kinds import KINDS
from prefopt.data.merging import Hashes
from prefopt.errors import DataError, RecipeError
from prefopt.records import Group
from prefopt.runs import atomic_file

#: kinds of rows that no reader takes; such rows must be dropped, or nothing is written
REFUSED = (
    "unreadable_row", "unknown_layout", "mixed_layout", "missing_field", "wrong_type",
    "out_of_range", "wrong_role", "unsupported_media", "empty_prompt", "empty_completion",
    "several_turns", "prompt_mismatch", "identical_sides", "score_order",
)  # fmt: skip
#: kinds that a row has by itself
OF_ROWS = (
    "role_marker", "special_token", "doubled_token", "rendered_prompt", "generation_prompt",
    "prompt_repeated", "language_mismatch", "mojibake", "control_characters",
    "score_contradiction", "no_comparison",
)  # fmt: skip
#: kinds that a row has because of others
OF_PAIRS = ("duplicate_pair", "contradiction")
#: the same, searched for in a sample: only if that sample is everything
NEAR = ("near_duplicate_pair", "near_duplicate_prompt", "near_identical_sides")
DROPPABLE = (*REFUSED, *OF_ROWS, *OF_PAIRS, *NEAR)

_ALL = sys.maxsize

#: a file and a row in it
Key = tuple[str, int]


@dataclass
class Verdict:
    """What becomes of the rows that are not kept as they are.

    Attributes:
        removed: row → kinds that it was removed for.
        merged: removed row → the row that now speaks for it.
        softened: kept row → how probable it is that the completion that stood first is better,
            and the new weight.
    """

    removed: dict[Key, list[str]] = field(default_factory=dict)
    merged: dict[Key, Key] = field(default_factory=dict)
    softened: dict[Key, tuple[float, float]] = field(default_factory=dict)

    def remove(self, key: Key, kind: str) -> None:
        """For one more reason."""
        kinds = self.removed.setdefault(key, [])
        if kind not in kinds:
            kinds.append(kind)


def clean(
    paths: Paths,
    out: str | Path,
    removed: str | Path,
    drop: Sequence[str],
    *,
    merge: Literal["votes"] | None = None,
    format: str = "auto",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Write the data without the rows of some kinds, and these rows to a file of their own.

    Of comparisons that repeat, the first is kept. Of a pair that is preferred both ways every
    comparison goes, for nothing says which one is right, or they become one.

    Args:
        paths: what `read_groups` takes.
        out: groups are written here, as by `write_groups`; replaced if it exists.
        removed: JSONL, one object for each removed row: `file`, `row`, `kinds`, `why`, `data` (the
            row as it was, null if it cannot be read), and `merged_into` where that happened.
        drop: kinds of findings, of `DROPPABLE`.
        merge: `votes` makes one comparison of those that contradict each other, with the share of
            their weight as its probability and the mean of it as its weight.
        format: as for `read_groups`.
        progress: called with the rows checked so far.

    Returns:
        `rows`, `kept`, `removed`; `kinds`: how many rows were removed for each kind that was told
        (a row can be of several); `merged`: how many comparisons were made of contradicting ones;
        `groups` written; `out`, `removed_file`.

    Raises:
        RecipeError: no kind is told, one is unknown or names no rows, or `merge` has no effect.
        DataError: a row is wrong in a way that was not told, nothing is left, or a contradiction
            is among rows that cannot be merged.
    """
    told = _checked(drop, merge)
    reading = _read(paths, format, told, progress)
    verdict = _verdict(reading, told, merge)
    kept = _Kept(paths, format, verdict)
    kept.plan(reading.rows)
    with atomic_file(removed) as handle:
        for line in _removed(kept.files, verdict):
            handle.write(line)
        groups = write_groups(out, kept.groups())
    counts = Counter(kind for kinds in verdict.removed.values() for kind in kinds)
    return {
        "rows": reading.rows,
        "kept": reading.rows - len(verdict.removed),
        "removed": len(verdict.removed),
        "kinds": {kind: counts[kind] for kind in told},
        "merged": len(verdict.softened),
        "groups": groups,
        "out": str(out),
        "removed_file": str(removed),
    }


def _checked(drop: Sequence[str], merge: str | None) -> list[str]:
    """The kinds in the order of their table, once each."""
    if not drop:
        raise RecipeError(
            "nothing is told to be dropped",
            field="drop",
            remedy="name kinds of findings, as `prefopt check` calls them",
        )
    for kind in drop:
        if kind not in KINDS:
            similar = difflib.get_close_matches(kind, DROPPABLE, n=3)
            raise RecipeError(
                "there is no such kind of finding",
                field="drop",
                value=kind,
                remedy=f"did you mean {' or '.join(map(repr, similar))}?"
                if similar
                else f"one of {', '.join(DROPPABLE)}",
            )
        if kind not in DROPPABLE:
            raise RecipeError(
                "this kind of finding does not name the rows that could be removed: it is about "
                "all of the data, or only points to rows that are worth a look",
                field="drop",
                value=kind,
                remedy=KINDS[kind][2],
            )
    if merge is not None and "contradiction" not in drop:
        raise RecipeError(
            "this has no effect unless contradictions are dropped",
            field="merge",
            value=merge,
            remedy="--drop contradiction",
        )
    return [kind for kind in KINDS if kind in drop]


def _read(paths: Paths, format: str, told: Collection[str], progress: Progress | None) -> Reading:
    """Everything that is wrong with single rows, and what tells rows that belong together."""
    near = [kind for kind in NEAR if kind in told]
    sample = SAMPLE if near else 1
    reading = read(paths, format=format, examples=_ALL, sample=sample, progress=progress)
    if near and not reading.texts.whole:
        raise RecipeError(
            f"near duplicates are looked for in a sample of {SAMPLE:,} comparisons, and this data "
            f"has {len(reading.facts):,}",
            field="drop",
            value=near[0],
            remedy="clean files one by one, or drop what is exactly the same: duplicate_pair",
        )
    return reading


# -- which rows ----------------------------------------------------------------------------


def _verdict(reading: Reading, told: Collection[str], merge: str | None) -> Verdict:
    verdict = Verdict()
    for finding in _findings(reading, told):
        if finding.kind in told and finding.kind != "contradiction":
            for place in finding.places:
                if place.file is not None and place.row is not None:
                    verdict.remove((place.file, place.row), finding.kind)
    if "contradiction" in told:
        anyway = frozenset(verdict.removed)
        for pair in _contradicted(reading.facts):
            _decide(reading.facts, pair, verdict, anyway, merge)
    return verdict


def _findings(reading: Reading, told: Collection[str]) -> Iterator[Finding]:
    yield from reading.findings
    if not {"duplicate_pair", *NEAR}.isdisjoint(told):
        yield from repetition.find(reading.facts, reading.texts, most=_ALL)


def _contradicted(facts: Facts) -> Iterator[Indices]:
    """All that one voice said of a pair that it prefers both ways, in reading order.

    Votes of another annotator are another voice, as for `check`: theirs is disagreement.
    """
    named = {
        place
        for finding in contradiction.find(facts, most=_ALL)
        if finding.kind == "contradiction"
        for place in finding.places
    }
    if not named:
        return
    number = {name: np.uint64(index) for index, name in enumerate(facts.files)}
    later = np.array(
        [(number[place.file or ""] << np.uint64(32)) | np.uint64(place.row or 0)
         for place in named], dtype=np.uint64
    )  # fmt: skip
    where = (facts.file.astype(np.uint64) << np.uint64(32)) | facts.number.astype(np.uint64)
    found = np.isin(where, later)[facts.row]
    for block in by_prompt(facts.prompt):
        pairs = Pairs(facts, block)
        stated = facts.stated[pairs.comparisons]
        voice = np.where(stated, facts.annotator[pairs.comparisons], 0)
        pair = numbered(pairs.prompt, pairs.low, pairs.high, stated, voice)
        count = int(pair.max(initial=-1)) + 1
        both = np.ones(count, dtype=bool)
        for seen in (pairs.direction > 0, pairs.direction < 0, found[pairs.comparisons]):
            both &= np.bincount(pair[seen], minlength=count) > 0
        held = both[pair]
        order = np.argsort(pair[held], kind="stable")
        ends = np.flatnonzero(np.diff(pair[held][order])) + 1
        if held.any():
            yield from map(np.sort, np.split(pairs.comparisons[held][order], ends))


def _decide(
    facts: Facts, pair: Indices, verdict: Verdict, anyway: Collection[Key], merge: str | None
) -> None:
    """What becomes of comparisons that contradict each other, if they do without those that go
    anyway."""
    gone = [key in anyway for key in _keys(facts, pair)]
    pair = pair[~np.array(gone)]
    if not len(pair):
        return
    sides = np.where(facts.first[pair] == facts.first[pair[0]], 1, -1) * facts.toward[pair]
    if sides.max() < 1 or sides.min() > -1:  # what is left agrees
        return
    if merge is not None:
        _soften(facts, pair, verdict)
        return
    for key in _keys(facts, pair):
        verdict.remove(key, "contradiction")


def _soften(facts: Facts, pair: Indices, verdict: Verdict) -> None:
    """One comparison of several: the first row, with the share that says so."""
    keys = _keys(facts, pair)
    of_rows = facts.row[pair]
    counts = [np.searchsorted(facts.row, of_rows, side) for side in ("left", "right")]
    if facts.stated[pair].any() or (counts[1] - counts[0] > 1).any():
        file, row = keys[0]
        raise DataError(
            "the row holds votes or several comparisons, so a contradiction in it cannot be merged "
            "into one row",
            kind="contradiction",
            file=file,
            row=row,
            remedy="aggregate votes with `prefopt aggregate`, or drop contradictions without "
            "merging",
        )
    turned = facts.first[pair] != facts.first[pair[0]]
    share = facts.probability[pair].astype(np.float64)
    share = np.where(facts.toward[pair] < 0, 1 - share, share)  # that its first is better
    share = np.where(turned, 1 - share, share)
    weight = facts.weight[pair].astype(np.float64)
    mean = float(np.average(share, weights=weight)) if weight.any() else float(share.mean())
    verdict.softened[keys[0]] = mean, float(weight.mean())
    for key in keys[1:]:
        verdict.remove(key, "contradiction")
        verdict.merged[key] = keys[0]


def _keys(facts: Facts, comparisons: Indices) -> list[Key]:
    rows = facts.row[comparisons]
    return [(facts.files[facts.file[row]], int(facts.number[row])) for row in rows]


# -- what is kept --------------------------------------------------------------------------


class _Kept:
    """The groups of the rows that stay."""

    def __init__(self, paths: Paths, format: str, verdict: Verdict) -> None:
        self._reader = GroupReader(paths, format=format, on_error="skip", on_refused=self._refused)
        self._verdict = verdict
        self._hashes = Hashes()
        self.files = self._reader.files

    def plan(self, rows: int) -> None:
        """Read once, to see what belongs together and that everything is as it was.

        Raises:
            DataError: a row is refused and was not told to be dropped, nothing is left, or the
                files have changed.
        """
        kept = 0
        for group, own in self._rows():
            kept += 1
            if not own:
                self._hashes.add(group.prompt)
        if not kept:
            raise DataError(
                "every row would be removed",
                kind="empty_file",
                remedy="drop fewer kinds",
            )
        if not kept + len(self._verdict.removed) == self._reader.rows == rows:
            raise DataError(
                "the files changed while they were read",
                kind="unreadable_file",
                remedy="clean again once nothing writes to them",
            )

    def groups(self) -> Iterator[Group]:
        """Read again. Uses up the plan."""
        return self._hashes.plan().merge(self._rows())

    def _rows(self) -> Iterator[tuple[Group, bool]]:
        for group, own in self._reader.row_groups():
            origin = group.origins[0]
            key = origin.file, origin.row
            if key in self._verdict.removed:
                continue
            soft = self._verdict.softened.get(key)
            yield group if soft is None else _softened(group, *soft), own

    def _refused(self, error: DataError) -> None:
        if (error.file, error.row) not in self._verdict.removed:
            told = f"--drop {error.kind}"
            # the reader asks twice: what is raised here is one more error of the file for it
            if error.kind in DROPPABLE and told not in (error.remedy or ""):
                error.remedy = f"{told}, or {error.remedy}"
            raise error


def _softened(group: Group, share: float, weight: float) -> Group:
    (edge,) = group.comparisons
    probability = share if edge.preferred < edge.dispreferred else 1 - share
    return replace(group, comparisons=(replace(edge, probability=probability, weight=weight),))


# -- what is removed -----------------------------------------------------------------------


def _removed(files: Sequence[str], verdict: Verdict) -> Iterator[bytes]:
    """A line for each removed row, in reading order."""
    touched = {file for file, _ in verdict.removed}
    for file in files:
        for number, row in stream_rows(file) if file in touched else ():
            if (kinds := verdict.removed.get((file, number))) is not None:
                yield _line(file, number, row, kinds, verdict.merged)


def _line(
    file: str, number: int, row: Any, kinds: Sequence[str], merged: Mapping[Key, Key]
) -> bytes:
    entry: dict[str, Any] = {
        "file": file,
        "row": number,
        "kinds": list(kinds),
        "why": [KINDS[kind][1] for kind in kinds],
    }
    if target := merged.get((file, number)):
        entry["merged_into"] = {"file": target[0], "row": target[1]}
    if isinstance(row, DataError):
        entry["why"] = [row.message]
        row = None
    entry["data"] = row
    try:
        return json.dumps(entry, ensure_ascii=False, default=str).encode("utf-8") + b"\n"
    except UnicodeEncodeError:  # half a surrogate pair
        return json.dumps(entry, default=str).encode("ascii") + b"\n"
