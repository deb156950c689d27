"""One pass over the rows: what is noted, in blocks and by several processes, is always the same."""

from __future__ import annotations

import dataclasses
import gzip
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prefopt.data.checking import streaming
from prefopt.data.checking.facts import BOLD, LIST, Facts
from prefopt.data.checking.findings import Place
from prefopt.data.checking.noting import priorities
from prefopt.data.checking.streaming import Reading, read
from prefopt.data.formats import GroupReader, read_groups
from prefopt.errors import DataError, RunError
from prefopt.workers import each

Row = dict[str, Any]


def written(path: Path, *rows: Row | str) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


# -- what is noted -------------------------------------------------------------------------


def test_pairs_as_columns(tmp_path: Path) -> None:
    pair = {"prompt": "q", "chosen": "good", "rejected": "- a\n- b"}
    path = written(
        tmp_path / "rows.jsonl",
        {**pair, "category": "style", "source": "forum", "annotator": "x"},
        {**pair, "probability": 0.25, "weight": 2.0, "category": "safety"},
        {**pair, "chosen": "**very** good", "probability": 0.5},
        {**pair, "prompt": [{"role": "user", "content": "q"}], "annotator": 7},
        {**pair, "chosen": "- a\n- b"},
    )
    known = read(path)
    facts = known.facts
    assert (known.rows, known.groups, known.comparisons, len(facts)) == (5, 2, 4, 4)
    assert list(facts.files) == [str(path)]
    assert facts.number.tolist() == [1, 2, 3, 4] and facts.row.tolist() == [0, 1, 2, 3]
    assert facts.toward.tolist() == [1, -1, 0, 1]
    assert not facts.stated.any()
    assert facts.probability.tolist() == [1.0, 0.75, 0.5, 1.0]
    assert facts.weight.tolist() == [1.0, 2.0, 1.0, 1.0]
    assert facts.preferred_length.tolist() == [4, 7, 13, 4]
    assert facts.dispreferred_length.tolist() == [7, 4, 7, 7]
    assert facts.preferred_marks.tolist() == [0, LIST, BOLD, 0]
    assert facts.dispreferred_marks.tolist() == [LIST, 0, LIST, LIST]
    assert len(set(facts.prompt.tolist())) == 1  # as a text and as a user's only turn
    assert facts.first[0] == facts.first[1] == facts.first[3] != facts.first[2]
    assert len(set(facts.second.tolist())) == 1
    assert [facts.categories[code] for code in facts.category] == ["style", "safety", "", ""]
    assert [facts.sources[code] for code in facts.source] == ["forum", "", "", ""]
    assert [facts.annotators[code] for code in facts.annotator] == ["x", "", "", "7"]
    assert {f.kind: list(f.places) for f in known.findings} == {
        "identical_sides": [Place(str(path), 5)]
    }


def test_votes_are_comparisons_of_who_saw_what_where(tmp_path: Path) -> None:
    votes = [
        {"first": 0, "second": 1, "choice": "first", "annotator": "x"},
        {"first": 1, "second": 0, "choice": "first", "annotator": "y"},
        {"first": 1, "second": 0, "choice": "second", "annotator": "y"},
        {"first": 1, "second": 2, "choice": "tie"},
    ]
    row = {"prompt": "q", "completions": ["a", "bb", "ccc"], "votes": votes, "annotator": "z"}
    known = read(written(tmp_path / "rows.jsonl", row, {**row, "votes": votes[:2]}))
    facts = known.facts
    assert (known.rows, known.groups, known.comparisons, len(facts)) == (2, 1, 2, 6)
    assert facts.stated.all() and facts.row.tolist() == [0] * 4 + [1] * 2
    assert facts.toward.tolist() == [1, 1, -1, 0, 1, 1]
    assert facts.preferred_length.tolist() == [1, 2, 1, 2, 1, 2]
    assert facts.dispreferred_length.tolist() == [2, 1, 2, 3, 2, 1]
    assert facts.first[0] == facts.second[1] != facts.first[1] == facts.first[2] == facts.first[3]
    assert [facts.annotators[code] for code in facts.annotator] == ["x", "y", "y", "z", "x", "y"]


def test_votes_that_comparisons_were_made_of_do_not_count_again(tmp_path: Path) -> None:
    own = {"prompt": "q", "completions": [{"text": "a"}, {"text": "b"}],
           "comparisons": [{"preferred": 1, "dispreferred": 0, "probability": 0.75}],
           "votes": [{"first": 0, "second": 1, "choice": "second"}] * 3}  # fmt: skip
    known = read(written(tmp_path / "rows.jsonl", own, {**own, "comparisons": []}))
    assert known.facts.row.tolist() == [0, 1, 1, 1]
    assert known.facts.stated.tolist() == [False, True, True, True]
    assert known.facts.toward.tolist() == [-1, -1, -1, -1]
    assert (known.groups, known.comparisons) == (2, 1)
    assert [finding.kind for finding in known.findings] == ["no_comparison"]


def test_places_name_each_row_once_in_reading_order(tmp_path: Path) -> None:
    ranked = {"prompt": "q", "completions": ["a", "b", "c"], "ranking": [1, 2, 3]}
    first, second = (written(tmp_path / name, ranked, ranked) for name in ("a.jsonl", "b.jsonl"))
    facts = read([second, first]).facts
    assert len(facts) == 12
    assert facts.places(np.array([11, 3, 4, 5, 7]), 9) == [
        Place(str(second), 2), Place(str(first), 1), Place(str(first), 2),
    ]  # fmt: skip
    assert facts.places(np.arange(12), 2) == [Place(str(second), 1), Place(str(second), 2)]


def test_names_beyond_those_that_codes_can_hold_are_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(streaming._MOST_NAMES, "category", 3)
    pair = {"prompt": "q", "chosen": "good", "rejected": "bad"}
    rows = [{**pair, "category": name} for name in "abcdab"]
    facts = read(written(tmp_path / "rows.jsonl", *rows)).facts
    assert [facts.categories[code] for code in facts.category] == ["a", "b", "", "", "a", "b"]


def test_weights_beyond_what_columns_hold_do_not_overflow(tmp_path: Path) -> None:
    row = {"prompt": "q", "chosen": "good", "rejected": "bad", "weight": 1e300}
    assert np.isfinite(read(written(tmp_path / "rows.jsonl", row)).facts.weight).all()


# -- the sample ----------------------------------------------------------------------------


def many(count: int) -> list[Row]:
    return [
        {"prompt": [{"role": "system", "content": "s"},
                    {"role": "user", "content": f"Question {n}"}],
         "chosen": f"answer {n}", "rejected": "none"}
        for n in range(count)
    ]  # fmt: skip


def test_a_sample_is_of_the_asked_size_and_says_what_it_is_of(tmp_path: Path) -> None:
    path = written(tmp_path / "rows.jsonl", *many(300))
    known = read(path, sample=50)
    examples = known.texts.examples
    assert len(examples) == 50 and not known.texts.whole
    assert [e.comparison for e in examples] == sorted({e.comparison for e in examples})
    for example in examples:
        assert example.prompt == f"system: s\nuser: Question {example.comparison}"
        assert example.last == f"Question {example.comparison}"
        assert (example.preferred, example.dispreferred) == (f"answer {example.comparison}", "none")
    assert read(path, sample=50).texts == known.texts
    assert read(path, sample=50, seed=1).texts != known.texts
    whole = read(path, sample=300).texts
    assert whole.whole and len(whole.examples) == 300
    assert read(path, sample=0).texts.examples == ()


def test_every_comparison_is_as_likely_in_the_sample() -> None:
    """300 draws of 100 of 1,000 with different seeds, by file, row and place in the row."""
    rng = np.random.default_rng(0)
    file = np.repeat(np.arange(4), 250)
    numbers, within = np.tile(np.arange(125), 8).astype(np.uint32), np.repeat(np.arange(8), 125) % 2
    drawn = np.zeros(1000)
    for seed in rng.integers(0, 1 << 62, 300):
        keys = np.concatenate(
            [priorities(int(seed), f, numbers[file == f], within[file == f]) for f in range(4)]
        )
        assert len(np.unique(keys)) == 1000
        drawn[np.argsort(keys)[:100]] += 1
    spread = ((drawn - 30) ** 2 / (30 * 0.9)).sum()
    assert 850 < spread < 1150  # chi-square with 999 degrees: mean 999, deviation 45
    assert abs(drawn[within == 0].mean() - 30) < 0.8


# -- blocks and processes ------------------------------------------------------------------

PAIR = {"prompt": "q", "chosen": "good", "rejected": "bad"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files of every sort, with rows of every sort of fault around the edges of blocks."""
    import pyarrow
    import pyarrow.parquet

    data = tmp_path / "data"
    data.mkdir()
    bad: list[Row | str] = [
        "", "{", "[1]", {"text": "x"}, {**PAIR, "chosen": ""}, {**PAIR, "annotator": "x"},
        {"prompt": "q", "completion": "a", "label": True}, {**PAIR, "chosen": "Human: a"}, "  ",
        {"chosen": "x"}, {**PAIR, "chosen": 3}, {**PAIR, "rejected": "a\x00</s></s>"},
    ]  # fmt: skip
    rows = [{**PAIR, "chosen": f"good {n}", "category": f"c{n % 5}"} for n in range(9)]
    written(data / "a.jsonl", *bad[:4], *rows[:5], *bad, *rows[5:], *bad)
    (data / "b.jsonl.gz").write_bytes(gzip.compress((data / "a.jsonl").read_bytes()))
    (data / "c.jsonl.gz").write_bytes((data / "b.jsonl.gz").read_bytes()[:-40])
    written(data / "d.jsonl", "", "  ")
    (data / "e.json").write_text(json.dumps([*rows, {"text": "x"}, *rows]))
    (data / "f.json").write_text((data / "a.jsonl").read_text())
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows * 3), data / "g.parquet")
    (data / "h.jsonl").write_bytes(b"\xef\xbb\xbf" + json.dumps(PAIR).encode() + b"\r\n\xff\n")
    written(data / "i.jsonl", *({"prompt": "q", "completions": ["a", "b"], "votes": [choice]}
                                for choice in ("first", "tie", "third", "second")))  # fmt: skip
    (data / "j.parquet").write_bytes(b"PAR1")
    (data / "k.jsonl").write_text("")
    return data


def small_blocks(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(streaming, "_BLOCK_LINES", size)
    monkeypatch.setattr(streaming, "_BLOCK_ROWS", size)


def same(one: Reading, other: Reading) -> None:
    for name in ("files", "rows", "groups", "comparisons", "texts", "findings"):
        assert getattr(one, name) == getattr(other, name), name
    for column in dataclasses.fields(Facts):
        left, right = (getattr(reading.facts, column.name) for reading in (one, other))
        if isinstance(left, np.ndarray):
            assert left.dtype == right.dtype and left.tolist() == right.tolist(), column.name
        else:
            assert left == right, column.name


@pytest.mark.parametrize("format", ["auto", "pairs"])
@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_blocks_of_any_size_give_the_same(
    folder: Path, monkeypatch: pytest.MonkeyPatch, size: int, format: str
) -> None:
    whole = read(folder, sample=20, examples=3, format=format)
    assert len(whole.facts) > 50 and len(whole.findings) > 8
    small_blocks(monkeypatch, size)
    same(read(folder, sample=20, examples=3, format=format), whole)


@pytest.mark.parametrize("processes", [2, 3])
def test_any_number_of_processes_gives_the_same(
    folder: Path, monkeypatch: pytest.MonkeyPatch, processes: int
) -> None:
    whole = read(folder, sample=20, processes=1)
    small_blocks(monkeypatch, 4)
    seen: list[int] = []
    same(read(folder, sample=20, processes=processes, progress=seen.append), whole)
    assert seen == sorted(seen) and seen[-1] == whole.rows and len(seen) > 10


@pytest.mark.parametrize("format", ["auto", "pairs"])
def test_blocks_refuse_what_a_reader_refuses_in_the_same_places(
    folder: Path, monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    refused: list[tuple[str, str | None, int | None]] = []
    reader = GroupReader(
        folder, format=format, on_error="skip",
        on_refused=lambda error: refused.append((error.kind, error.file, error.row)),
    )  # fmt: skip
    accepted = [(group.origins[0].file, group.origins[0].row) for group, _ in reader.row_groups()]
    small_blocks(monkeypatch, 3)
    known = read(folder, format=format, examples=1000)
    rows = [(known.files[file], number) for file, number in
            zip(known.facts.file, known.facts.number, strict=True)]  # fmt: skip
    assert rows == accepted
    assert known.rows == reader.rows
    counts = {finding.kind: finding.count for finding in known.findings}
    places = {finding.kind: [(p.file, p.row) for p in finding.places] for finding in known.findings}
    assert {kind: counts[kind] for kind in reader.skipped} == reader.skipped
    for kind in reader.skipped:
        assert places[kind] == [(file, row) for k, file, row in refused if k == kind], kind
    assert len(reader.skipped) >= (7 if format == "auto" else 5)


def test_groups_are_those_that_a_reader_gives(folder: Path) -> None:
    assert read(folder).groups == len(list(read_groups(folder, on_error="skip")))


def test_little_data_is_read_by_one_process(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert streaming._worthwhile([str(path) for path in folder.iterdir()]) == 1
    monkeypatch.setattr(streaming, "_MANY_BYTES", 100)
    assert streaming._worthwhile([str(folder / "a.jsonl")]) == min(len(os.sched_getaffinity(0)), 8)


def test_what_is_not_there_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read(tmp_path / "nothing.jsonl")


def test_prompts_alone(tmp_path: Path) -> None:
    rows: list[Row | str] = [
        {"prompt": "one"}, PAIR, {"prompt": ""}, {"text": "x"}, "{",
        {"prompt": [{"role": "user", "content": "one"}]},
        {"chosen": "\n\nHuman: one\n\nAssistant: a", "rejected": "\n\nHuman: one\n\nAssistant: b"},
    ]  # fmt: skip
    known = read(written(tmp_path / "rows.jsonl", *rows), prompts_only=True)
    facts = known.facts
    assert facts.number.tolist() == [1, 2, 6, 7] and not facts.weight.any()
    assert facts.prompt[0] == facts.prompt[2] == facts.prompt[3] != facts.prompt[1]
    assert [example.last for example in known.texts.examples] == ["one", "q", "one", "one"]
    (finding,) = known.findings
    assert [place.row for place in finding.places] == [3, 4, 5]


# -- processes -----------------------------------------------------------------------------


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("count", [0, 1, 2, 7])
def test_results_come_in_order(processes: int, count: int) -> None:
    words = [f"word {n}" * (1 + 60_000 * (n % 2)) for n in range(count)]
    assert list(each(str.upper, words, processes)) == [word.upper() for word in words]


def test_tasks_are_drawn_when_somebody_can_do_them() -> None:
    drawn: list[int] = []

    def tasks() -> Any:
        for n in range(9):
            drawn.append(n)
            yield f"{n}"

    for place, _ in enumerate(each(str.upper, tasks(), 2)):
        assert len(drawn) <= place + 3
    assert Counter(drawn) == Counter(range(9))


def test_what_goes_wrong_in_a_process_is_raised_here() -> None:
    with pytest.raises(ValueError, match="invalid literal"):
        list(each(int, ["1", "x", "3"], 2))


def test_a_process_that_dies_is_an_error_with_a_remedy() -> None:
    with pytest.raises(RunError, match="has ended") as caught:
        list(each(os._exit, [3, 3, 3, 3], 2))
    assert caught.value.remedy is not None and "fewer processes" in caught.value.remedy
