"""Every layout, container and mistake that `read_groups` knows."""

from __future__ import annotations

import gzip
import json
import os
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefopt.data.aggregate import comparisons_from_votes
from prefopt.data.formats import read_groups, write_groups
from prefopt.data.layouts import LAYOUTS
from prefopt.errors import DataError, MissingExtraError, RecipeError, RunError
from prefopt.records import Comparison, Completion, Group, Label, Message, Vote

Row = dict[str, Any]


def user(content: str) -> Row:
    return {"role": "user", "content": content}


def assistant(content: str) -> Row:
    return {"role": "assistant", "content": content}


def jsonl(folder: Path, *rows: Row, name: str = "rows.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def only(folder: Path, *rows: Row, **options: Any) -> Group:
    (group,) = read_groups(jsonl(folder, *rows), **options)
    return group


def refusal(folder: Path, *rows: Row, **options: Any) -> DataError:
    """The error of reading, which must also be what skipping counts."""
    path = jsonl(folder, *rows)
    with pytest.raises(DataError) as caught:
        list(read_groups(path, **options))
    reader = read_groups(path, on_error="skip", **options)
    list(reader)
    assert reader.skipped[caught.value.kind] >= 1
    assert caught.value.file == str(path)
    return caught.value


PAIR = (Comparison(0, 1),)
CHAT = (Message("user", "q"),)
BOTH = (Completion("good"), Completion("bad"))

# -- layouts -------------------------------------------------------------------------------

SAME_PAIR: dict[str, tuple[Row, Any]] = {
    "pairs": ({"prompt": "q", "chosen": "good", "rejected": "bad"}, "q"),
    "pairs, conversational": (
        {"prompt": [user("q")], "chosen": [assistant("good")], "rejected": [assistant("bad")]},
        CHAT,
    ),
    "pairs, prompt as text": (
        {"prompt": "q", "chosen": [assistant("good")], "rejected": [assistant("bad")]},
        CHAT,
    ),
    "implicit, conversational": (
        {"chosen": [user("q"), assistant("good")], "rejected": [user("q"), assistant("bad")]},
        CHAT,
    ),
    "ultrafeedback binarized without scores": (
        {
            "prompt": "q",
            "chosen": [user("q"), assistant("good")],
            "rejected": [user("q"), assistant("bad")],
            "messages": [user("q"), assistant("good")],
        },
        CHAT,
    ),
    "hh": (
        {
            "chosen": "\n\nHuman: q\n\nAssistant: good",
            "rejected": "\n\nHuman: q\n\nAssistant: bad",
        },
        CHAT,
    ),
    "sharegpt": (
        {
            "conversations": [{"from": "human", "value": "q"}],
            "chosen": {"from": "gpt", "value": "good"},
            "rejected": {"from": "gpt", "value": "bad"},
        },
        CHAT,
    ),
    "sharegpt with roles and text": (
        {"conversations": [user("q")], "chosen": "good", "rejected": "bad"},
        CHAT,
    ),
    "ranked": ({"prompt": "q", "completions": ["good", "bad"], "ranking": [1, 2]}, "q"),
    "content in parts": (
        {
            "prompt": [{"role": "user", "content": [{"type": "text", "text": "q"}]}],
            "chosen": "good",
            "rejected": "bad",
        },
        CHAT,
    ),
}


@pytest.mark.parametrize("name", SAME_PAIR)
def test_every_layout_of_a_pair_gives_the_same_group(tmp_path: Path, name: str) -> None:
    row, prompt = SAME_PAIR[name]
    assert only(tmp_path, row) == Group(prompt, BOTH, PAIR)


def test_the_parts_of_a_pair_row_are_kept(tmp_path: Path) -> None:
    row = {
        "prompt": "q", "chosen": "good", "rejected": "bad", "probability": 0.8, "weight": 2,
        "score_chosen": 7.5, "score_rejected": 3, "category": "maths", "note": None,
        "meta": {"id": 4},
    }  # fmt: skip
    assert only(tmp_path, row, source="s") == Group(
        "q",
        (Completion("good", 7.5), Completion("bad", 3.0)),
        (Comparison(0, 1, 0.8, 2.0),),
        source="s",
        meta={"category": "maths", "id": 4},
    )


def test_equal_scores_give_no_comparison(tmp_path: Path) -> None:
    row = {
        "prompt": "q", "chosen": "a", "rejected": "b", "score_chosen": 5, "score_rejected": 5,
    }  # fmt: skip
    assert only(tmp_path, row).comparisons == ()


def test_hh_transcripts_become_messages(tmp_path: Path) -> None:
    start = "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: more?\n\nAssistant:"
    group = only(tmp_path, {"chosen": start + " Human: yes", "rejected": start + " no\n\nnever"})
    assert group.prompt == (
        Message("user", "hi"),
        Message("assistant", "hello"),
        Message("user", "more?"),
    )
    # a role marker within a completion is not a turn: `check` warns about it
    assert [item.text for item in group.completions] == ["Human: yes", "no\n\nnever"]


@pytest.mark.parametrize(
    ("chosen", "rejected", "kind"),
    [
        ("\n\nHuman: a\n\nAssistant: x", "\n\nHuman: b\n\nAssistant: y", "prompt_mismatch"),
        ("\n\nHuman: a\n\nAssistant: x\n\nHuman: b\n\nAssistant: y",
         "\n\nHuman: a\n\nAssistant: z", "prompt_mismatch"),
        ("\n\nHuman: a\n\nAssistant: x\n\nHuman: b", "\n\nHuman: a\n\nAssistant: z",
         "several_turns"),
        ("\n\nHuman: a\n\nAssistant: x\n\nAssistant: y",
         "\n\nHuman: a\n\nAssistant: x\n\nAssistant: z", "prompt_mismatch"),
        ("\n\nHuman: a", "\n\nHuman: a", "prompt_mismatch"),
        ("\n\nHuman: a\n\nAssistant: ", "\n\nHuman: a\n\nAssistant: x", "empty_completion"),
        ("\n\nHuman: a\n\nAssistant: x", "\n\nHuman: a\n\nAssistant: x ", "identical_sides"),
    ],
)  # fmt: skip
def test_hh_rows_that_do_not_split_are_reported(
    tmp_path: Path, chosen: str, rejected: str, kind: str
) -> None:
    error = refusal(tmp_path, {"chosen": chosen, "rejected": rejected})
    assert (error.kind, error.row) == (kind, 1)


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt", "texts"),
    [
        ("The sky is blue.", "The sky is green.", "The sky is", [" blue.", " green."]),
        ("The sky is green.", "The sky is grey.", "The sky is", [" green.", " grey."]),
        ("Q: 1+1?\n\nA: 2", "Q: 1+1?\n\nA: 3", "Q: 1+1?\n\nA:", [" 2", " 3"]),
        ("say yes", "say yes and no", "say", [" yes", " yes and no"]),
    ],
)
def test_an_implicit_text_prompt_ends_at_a_word(
    tmp_path: Path, chosen: str, rejected: str, prompt: str, texts: list[str]
) -> None:
    group = only(tmp_path, {"chosen": chosen, "rejected": rejected})
    assert group.prompt == prompt
    assert [item.text for item in group.completions] == texts


def test_unpaired_rows_of_a_prompt_merge(tmp_path: Path) -> None:
    rows = [
        {"prompt": "q", "completion": "a", "label": True},
        {"prompt": "q", "completion": "b", "label": 0, "weight": 2.0},
    ]
    assert only(tmp_path, *rows) == Group(
        "q", (Completion("a"), Completion("b")), labels=(Label(0, True), Label(1, False, 2.0))
    )


def test_conversational_unpaired_and_demonstrations(tmp_path: Path) -> None:
    row = {"prompt": [user("q")], "completion": [assistant("a")]}
    assert only(tmp_path, row) == Group(CHAT, (Completion("a"),))
    labelled = only(tmp_path, {**row, "label": False})
    assert labelled == Group(CHAT, (Completion("a"),), labels=(Label(0, False),))
    messages = {"messages": [{"role": "system", "content": "s"}, user("q"), assistant("a")]}
    assert only(tmp_path, messages) == Group((Message("system", "s"), *CHAT), (Completion("a"),))


def _feedback(*scored: tuple[str, Any]) -> Row:
    return {
        "source": "evol",
        "instruction": "q",
        "completions": [
            {"model": f"m{i}", "response": text, "overall_score": score}
            for i, (text, score) in enumerate(scored)
        ],
    }


def test_ultrafeedback_gives_all_comparisons_or_best_against_worst(tmp_path: Path) -> None:
    row = _feedback(("a", 7), ("b", 9), ("c", 7), ("d", 2.5))
    group = only(tmp_path, row)
    edges = {(edge.preferred, edge.dispreferred) for edge in group.comparisons}
    assert edges == {(1, 0), (1, 2), (1, 3), (0, 3), (2, 3)}  # none between the two 7s
    assert group.completions[3] == Completion("d", 2.5, "m3")
    assert group.prompt == "q" and group.meta == {"source": "evol"} and group.source is None
    assert only(tmp_path, row, edges="best_worst").comparisons == (Comparison(1, 3),)
    tied = _feedback(("a", 1), ("b", 1))
    assert only(tmp_path, tied, edges="best_worst").comparisons == ()


def test_ultrafeedback_without_a_score_takes_the_mean_rating(tmp_path: Path) -> None:
    def rated(*ratings: str) -> Row:
        return {str(i): {"Rating": rating} for i, rating in enumerate(ratings)}

    completions = [
        {"response": "a", "annotations": rated("2", "N/A")},
        {"response": "b", "annotations": rated("5", "4")},
    ]
    group = only(tmp_path, {"prompt": "q", "completions": completions})
    assert [item.score for item in group.completions] == [2.0, 4.5]
    assert group.comparisons == (Comparison(1, 0),)


def test_ranks_count_from_one_and_equal_ranks_are_ties(tmp_path: Path) -> None:
    row = {"prompt": "q", "responses": ["a", "b", "c"], "ranks": [2, 1, 2]}
    edges = {(edge.preferred, edge.dispreferred) for edge in only(tmp_path, row).comparisons}
    assert edges == {(1, 0), (1, 2)}
    answers = [{"answer": "a", "rank": 3.0}, {"answer": "b", "rank": 1.0}]  # as in Nectar
    assert only(tmp_path, {"prompt": "q", "answers": answers}).comparisons == (Comparison(1, 0),)


def test_votes_are_kept_and_aggregated_over_rows(tmp_path: Path) -> None:
    rows = [
        {"prompt": "q", "completions": ["a", "b"], "votes": ["first", "tie"]},
        {"prompt": "q", "completions": ["b", "a"],
         "votes": [{"first": 0, "second": 1, "choice": "first", "annotator": 7}]},
        {"prompt": "q", "completions": ["c", "a"], "votes": ["first"]},
    ]  # fmt: skip
    group = only(tmp_path, *rows)
    assert [item.text for item in group.completions] == ["a", "b", "c"]
    assert group.votes == (
        Vote(0, 1, "first"), Vote(0, 1, "tie"), Vote(1, 0, "first", "7"), Vote(2, 0, "first"),
    )  # fmt: skip
    # a and b: (1 + 1/2 + 1/2) / (3 + 1); c and a: (1 + 1/2) / (1 + 1)
    assert group.comparisons == (Comparison(0, 1, 0.5), Comparison(2, 0, 0.75))


def test_the_order_of_a_pair_does_not_change_what_votes_say() -> None:
    votes = [Vote(0, 1, "first"), Vote(1, 0, "second"), Vote(0, 1, "second"), Vote(1, 0, "tie")]
    turned = [
        Vote(v.second, v.first, {"first": "second", "second": "first"}.get(v.choice, "tie"))
        for v in votes
    ]
    assert comparisons_from_votes(votes) == comparisons_from_votes(turned)
    assert comparisons_from_votes(votes) == (Comparison(0, 1, 0.6),)  # (2 + 1/2 + 1/2) / 5


def test_a_format_can_be_named(tmp_path: Path) -> None:
    transcript = {"chosen": "Human: a b", "rejected": "Human: a c"}
    assert refusal(tmp_path, transcript).kind == "prompt_mismatch"
    with pytest.raises(RecipeError, match="unknown data format"):
        read_groups(jsonl(tmp_path, transcript), format="hhh")
    row = {"prompt": "q", "chosen": "a", "rejected": "b"}
    error = refusal(tmp_path, row, format="unpaired")
    assert (error.kind, error.field) == ("missing_field", "completion")
    # named explicitly, the layout is not recognised again
    text = {"prompt": "kept in meta", "chosen": "x a", "rejected": "x b"}
    assert only(tmp_path, text, format="implicit_pairs").prompt == "x"


# -- merging -------------------------------------------------------------------------------


def test_rows_with_the_same_prompt_become_one_group(tmp_path: Path) -> None:
    rows = [
        {"prompt": "p", "chosen": "a", "rejected": "b", "tag": 1},
        {"prompt": "q", "chosen": "x", "rejected": "y"},
        {"prompt": "p", "chosen": "c", "rejected": "a", "tag": 2, "other": 3},
        {"prompt": "p", "chosen": "a", "rejected": "b"},
    ]
    path = jsonl(tmp_path, *rows)
    second, first = read_groups(path)  # in the order of their last rows
    assert second.prompt == "q"
    assert [item.text for item in first.completions] == ["a", "b", "c"]
    assert first.comparisons == (Comparison(0, 1), Comparison(2, 0), Comparison(0, 1))
    assert first.meta == {"tag": 1, "other": 3}
    assert [origin.row for origin in first.origins] == [1, 3, 4]


def test_prompts_merge_over_files_but_text_and_chat_do_not(tmp_path: Path) -> None:
    jsonl(tmp_path, {"prompt": "q", "chosen": "a", "rejected": "b"}, name="1.jsonl")
    (tmp_path / "deep").mkdir()
    jsonl(tmp_path / "deep", {"prompt": "q", "chosen": "c", "rejected": "d"}, name="2.jsonl")
    jsonl(tmp_path, {"conversations": [user("q")], "chosen": "e", "rejected": "f"}, name="3.jsonl")
    reader = read_groups(tmp_path)
    assert [len(group.completions) for group in reader] == [2, 4]
    assert [os.path.relpath(file, tmp_path) for file in reader.files] == [
        "1.jsonl",
        "3.jsonl",
        os.path.join("deep", "2.jsonl"),
    ]


def test_a_reader_can_be_read_again_and_sees_a_changed_file(tmp_path: Path) -> None:
    row = {"prompt": "q", "chosen": "a", "rejected": "b"}
    path = jsonl(tmp_path, {**row, "prompt": "p"}, {**row, "chosen": ""}, row)
    reader = read_groups(path, on_error="skip")
    first = list(reader)
    stream = iter(reader)
    assert next(stream) == first[0]  # stopping early leaves the counts alone
    assert (reader.rows, dict(reader.skipped)) == (3, {"empty_completion": 1})
    assert list(reader) == first
    assert (reader.rows, dict(reader.skipped)) == (3, {"empty_completion": 1})
    jsonl(tmp_path, row, row, row, {**row, "prompt": "r"})
    assert len(list(reader)) == 2
    assert (reader.rows, dict(reader.skipped)) == (4, {})


def test_a_file_that_changes_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    rows = [{"prompt": str(i), "chosen": "a", "rejected": "b"} for i in range(3)]
    path = jsonl(tmp_path, *rows)
    for changed in (rows[:2], [*rows, rows[0]]):
        jsonl(tmp_path, *rows)
        stream = iter(read_groups(path))
        jsonl(tmp_path, *changed)
        with pytest.raises(DataError, match="changed while"):
            list(stream)


# -- containers ----------------------------------------------------------------------------

ROWS = [{"prompt": f"q{i}", "chosen": "gôod ☃", "rejected": "bad"} for i in range(5)]


def _packed(path: Path, data: bytes) -> Path:
    if path.suffix == ".gz":
        data = gzip.compress(data)
    elif path.suffix == ".zst":
        zstandard = pytest.importorskip("zstandard")
        half = len(data) // 2  # two frames, as `zstd` writes when files are joined
        data = b"".join(zstandard.compress(part) for part in (data[:half], data[half:]))
    path.write_bytes(data)
    return path


def _lines(rows: list[Row]) -> bytes:
    return "\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode()


CONTAINERS = {
    "rows.jsonl": _lines(ROWS) + b"\n\n",
    "rows.ndjson": b"\xef\xbb\xbf" + _lines(ROWS).replace(b"\n", b"\r\n"),
    "rows.json": json.dumps(ROWS, indent=2).encode(),
    "data.json": json.dumps({"version": 1, "data": ROWS}).encode(),
    "lines.json": _lines(ROWS),
}


@pytest.mark.parametrize("packing", ["", ".gz", ".zst"])
@pytest.mark.parametrize("name", CONTAINERS)
def test_containers(tmp_path: Path, name: str, packing: str) -> None:
    groups = list(read_groups(_packed(tmp_path / (name + packing), CONTAINERS[name])))
    assert [group.prompt for group in groups] == [row["prompt"] for row in ROWS]
    assert groups[0].completions[0].text == "gôod ☃"


@pytest.mark.parametrize("packing", ["", ".gz", ".zst"])
def test_parquet(tmp_path: Path, packing: str) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [{**row, "weight": None if i else 2.0} for i, row in enumerate(ROWS)]
    sink = pyarrow.BufferOutputStream()
    parquet.write_table(pyarrow.Table.from_pylist(rows), sink)
    path = _packed(tmp_path / f"rows.parquet{packing}", sink.getvalue().to_pybytes())
    groups = list(read_groups(path))
    assert [group.prompt for group in groups] == [row["prompt"] for row in ROWS]
    assert [group.comparisons[0].weight for group in groups] == [2.0, 1.0, 1.0, 1.0, 1.0]


def test_a_long_json_array_is_read_in_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prefopt.data.files._CHUNK", 7)
    path = tmp_path / "rows.json"
    path.write_bytes(CONTAINERS["rows.json"])
    assert len(list(read_groups(path))) == 5


def test_a_list_of_files_and_a_single_json_object(tmp_path: Path) -> None:
    first = jsonl(tmp_path, ROWS[0])
    second = tmp_path / "one.json"
    second.write_text(json.dumps(ROWS[1], indent=1))
    assert [g.prompt for g in read_groups([second, str(first)])] == ["q1", "q0"]
    with pytest.raises(DataError, match="twice"):
        read_groups([tmp_path, first])
    with pytest.raises(DataError, match="list of files is empty"):
        read_groups([])


def test_a_hub_data_set_is_loaded_with_datasets(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = []

    def load_dataset(name: str, split: str) -> list[Row]:
        asked.append((name, split))
        if name != "org/name":
            raise FileNotFoundError("no such data set")
        return ROWS

    module = types.ModuleType("datasets")
    module.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)
    monkeypatch.chdir(tmp_path)
    assert len(list(read_groups("org/name:test"))) == 5
    assert len(list(read_groups("org/name"))) == 5
    assert set(asked) == {("org/name", "test"), ("org/name", "train")}
    with pytest.raises(DataError, match="no such data set"):
        list(read_groups("org/other"))
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match="needs the package datasets"):
        list(read_groups("org/name"))


# -- mistakes ------------------------------------------------------------------------------

GOOD = {"prompt": "q", "chosen": "a", "rejected": "b"}
CHAT_PAIR = {"chosen": [user("q"), assistant("a")], "rejected": [user("q"), assistant("b")]}

WRONG_ROWS: list[tuple[Row, str, str | None]] = [
    ({"prompt": "q", "chosen": "a"}, "missing_field", "rejected"),
    ({"prompt": "q", "chosen": "a", "rejected": None}, "missing_field", "rejected"),
    ({"question": "q", "chosen": "x a", "rejected": "x b"}, "missing_field", "prompt"),
    ({"foo": 1, "bar": 2}, "unknown_layout", None),
    ({}, "unknown_layout", None),
    ({**GOOD, "prompt": 3}, "wrong_type", "prompt"),
    ({**GOOD, "chosen": 3}, "wrong_type", "chosen"),
    ({**GOOD, "rejected": ["b"]}, "wrong_type", "rejected"),
    ({**GOOD, "weight": "2"}, "wrong_type", "weight"),
    ({**GOOD, "prompt": " "}, "empty_prompt", "prompt"),
    ({**GOOD, "prompt": []}, "empty_prompt", "prompt"),
    ({**GOOD, "chosen": " \n"}, "empty_completion", "chosen"),
    ({**GOOD, "chosen": []}, "empty_completion", "chosen"),
    ({**GOOD, "chosen": "b"}, "identical_sides", "rejected"),
    ({**GOOD, "probability": 1.5}, "out_of_range", "probability"),
    ({**GOOD, "weight": -1}, "out_of_range", "weight"),
    ({**GOOD, "weight": 10**400}, "out_of_range", "weight"),
    ({**GOOD, "score_chosen": float("nan"), "score_rejected": 1}, "out_of_range", "score_chosen"),
    ({**GOOD, "score_chosen": 1}, "missing_field", "score_rejected"),
    ({**GOOD, "score_chosen": 1, "score_rejected": 2}, "score_order", "score_chosen"),
    ({**GOOD, "chosen": [assistant("a"), user("x"), assistant("c")]}, "several_turns", "chosen"),
    ({**GOOD, "prompt": [user("q"), assistant("a")]}, "wrong_role", "prompt"),
    ({**GOOD, "chosen": [user("a")]}, "wrong_role", "chosen"),
    ({**GOOD, "prompt": [{"role": "boss", "content": "q"}]}, "wrong_role", "prompt"),
    ({**GOOD, "prompt": [{"role": "user"}]}, "missing_field", "prompt"),
    ({**GOOD, "images": ["x.png"]}, "unsupported_media", "images"),
    ({**GOOD, "prompt": [{"role": "user", "content": [{"type": "image"}]}]},
     "unsupported_media", "prompt"),
    ({**CHAT_PAIR, "rejected": [user("r"), assistant("b")]}, "prompt_mismatch", "chosen"),
    ({**CHAT_PAIR, "rejected": CHAT_PAIR["chosen"]}, "identical_sides", "rejected"),
    ({**CHAT_PAIR, "rejected": [user("q"), assistant("b"), user("r"), assistant("c")]},
     "several_turns", "rejected"),
    ({**CHAT_PAIR, "prompt": "something else"}, "prompt_mismatch", "prompt"),
    ({"chosen": "one", "rejected": "two"}, "prompt_mismatch", "chosen"),
    ({"chosen": "on one", "rejected": "off"}, "prompt_mismatch", "chosen"),
    ({"prompt": "q", "completion": "a", "label": "yes"}, "wrong_type", "label"),
    ({"prompt": "q", "completion": ""}, "empty_completion", "completion"),
    ({"messages": [user("q")]}, "wrong_role", "messages"),
    ({"messages": [assistant("a")]}, "empty_prompt", "messages"),
    ({"prompt": "q", "completions": ["a", "b"]}, "missing_field", "ranking"),
    ({"prompt": "q", "completions": ["a", "b"], "ranking": [0, 1]}, "out_of_range", "ranking"),
    ({"prompt": "q", "completions": ["a", "b"], "ranking": [1]}, "out_of_range", "ranking"),
    ({"prompt": "q", "completions": ["a", "a"], "ranking": [1, 2]},
     "identical_sides", "completions"),
    ({"prompt": "q", "completions": ["a", "b"], "votes": ["left"]},
     "out_of_range", "votes.choice"),
    ({"prompt": "q", "completions": ["a", "b", "c"], "votes": ["tie"]}, "missing_field", "votes"),
    ({"prompt": "q", "completions": ["a", "b"],
      "votes": [{"first": 0, "second": 2, "choice": "tie"}]}, "out_of_range", "votes"),
    (_feedback(("a", float("inf"))), "out_of_range", "completions.overall_score"),
    (_feedback(("a", "7")), "wrong_type", "completions.overall_score"),
    (_feedback(("a", None)), "missing_field", "completions"),
    ({"prompt": "q", "completions": [{"text": 3}]}, "wrong_type", "completions"),
    ({"prompt": "q", "completions": [{"text": "a", "score": float("nan")}]},
     "out_of_range", "completions.score"),
    ({"prompt": "q", "completions": [{"text": "a"}, {"score": 1}]}, "wrong_type", None),
    ({"prompt": "q", "completions": [{"text": "a"}], "comparisons": [{"preferred": 0}]},
     "wrong_type", None),
    ({"prompt": "q", "completions": [{"text": "a"}],
      "comparisons": [{"preferred": 0, "dispreferred": 1}]}, "out_of_range", None),
    ({"prompt": "q", "completions": [{"text": "a"}], "comparisons": [], "id": 1},
     "unknown_layout", "id"),
    ({"prompt": [{"role": "user", "content": "q", "name": "x"}], "completions": [{"text": "a"}]},
     "wrong_type", "prompt"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "kind", "field"), WRONG_ROWS)
def test_a_wrong_row_is_named_with_its_field(
    tmp_path: Path, row: Row, kind: str, field: str | None
) -> None:
    error = refusal(tmp_path, row)
    assert (error.kind, error.row, error.field) == (kind, 1, field)
    assert error.remedy


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"prompt": "q", "cho', "not valid JSON"),
        (b'["q", "a", "b"]', "named columns"),
        (b'{"prompt": "\xff", "chosen": "a", "rejected": "b"}', "not valid UTF-8"),
        (b'{"prompt": "\\ud83d", "chosen": "a", "rejected": "b"}', "not valid UTF-8"),
        (b"[" * 100_000, "not valid JSON"),
    ],
)
def test_an_unreadable_row_is_named_and_can_be_skipped(
    tmp_path: Path, line: bytes, message: str
) -> None:
    good = json.dumps(GOOD).encode()
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join([good, b"", line, good]))
    with pytest.raises(DataError, match=message) as caught:
        list(read_groups(path))
    assert (caught.value.kind, caught.value.row) == ("unreadable_row", 3)
    reader = read_groups(path, on_error="skip")
    (group,) = reader
    assert len(group.origins) == 2 and reader.skipped == {"unreadable_row": 1}


def test_an_escaped_emoji_is_not_half_a_surrogate_pair(tmp_path: Path) -> None:
    assert only(tmp_path, {**GOOD, "prompt": "😀"}).prompt == "😀"


@pytest.mark.parametrize("packing", [".gz", ".zst"])
def test_a_truncated_file_is_an_error(tmp_path: Path, packing: str) -> None:
    rows = [{**GOOD, "prompt": os.urandom(64).hex()} for _ in range(2000)]
    path = _packed(tmp_path / f"rows.jsonl{packing}", _lines(rows))
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(DataError, match="cannot be read after row") as caught:
        list(read_groups(path))
    assert caught.value.kind == "unreadable_file" and caught.value.file == str(path)
    reader = read_groups(path, on_error="skip")
    assert 0 < len(list(reader)) < 2000 and reader.skipped == {"unreadable_file": 1}


@pytest.mark.parametrize("name", ["x.jsonl.gz", "x.jsonl.zst", "x.parquet", "x.json"])
def test_a_damaged_container_is_an_error(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"[not what the name says")
    with pytest.raises(DataError, match="cannot be read"):
        list(read_groups(tmp_path / name))


def test_rows_behind_a_json_array_are_not_left_out_in_silence(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(json.dumps(ROWS).encode() + b"\n" + json.dumps(ROWS).encode())
    with pytest.raises(DataError, match="follows the end of the array"):
        list(read_groups(path))
    path.write_bytes(json.dumps(ROWS).encode() + b" \r\n ")
    assert list(read_groups(path))


@pytest.mark.parametrize("wrap", [lambda row: [row], lambda row: {"data": [row]}])
def test_half_a_surrogate_pair_is_refused_in_json_too(tmp_path: Path, wrap: Any) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps(wrap({"prompt": "a", "chosen": "\ud800", "rejected": "b"})))
    with pytest.raises(DataError, match="not valid UTF-8") as caught:
        list(read_groups(path))
    assert (caught.value.kind, caught.value.row) == ("unreadable_row", 1)


@pytest.mark.parametrize("start", ["", '{"data": '])
def test_blanks_before_json_are_no_empty_file(tmp_path: Path, start: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(" " * 3_000_000 + start + json.dumps(ROWS) + ("}" if start else ""))
    assert list(read_groups(path))


def test_a_folder_with_a_link_to_its_own_file_is_not_counted_twice(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(_lines(ROWS))
    (tmp_path / "b.jsonl").symlink_to("a.jsonl")
    with pytest.raises(DataError, match="named twice"):
        read_groups(tmp_path)


@pytest.mark.parametrize("name", ["x.jsonl", "x.json", "x.jsonl.gz", "x.jsonl.zst"])
def test_an_empty_file_is_an_error(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(DataError) as caught:
        list(read_groups(tmp_path / name))
    assert (caught.value.kind, caught.value.file) == ("empty_file", str(tmp_path / name))


def test_paths_with_nothing_to_read_are_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file") as caught:
        read_groups(tmp_path / "absent.jsonl")
    assert caught.value.exit_code == 2
    with pytest.raises(DataError, match="no data files"):
        read_groups(tmp_path)
    (tmp_path / "rows.txt").write_text("x")
    with pytest.raises(DataError, match="does not say what is in it"):
        read_groups(tmp_path / "rows.txt")


def test_a_row_of_another_layout_is_named(tmp_path: Path) -> None:
    other = {"prompt": "q", "completion": "a", "label": True}
    assert (refusal(tmp_path, GOOD, other).kind, refusal(tmp_path, GOOD, other).row) == (
        "mixed_layout",
        2,
    )
    unlabelled = {"prompt": "q", "completion": "a"}
    assert refusal(tmp_path, unlabelled, other).kind == "mixed_layout"
    transcript = {"chosen": "Human: a\n\nAssistant: b", "rejected": "Human: a\n\nAssistant: c"}
    assert refusal(tmp_path, {"chosen": "x a", "rejected": "x b"}, transcript).row == 2
    assert refusal(tmp_path, transcript, {**transcript, "chosen": ""}).kind == "empty_completion"


_ANY = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 3) | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "from", "value", "text", "rank", "score",
                             "response", "annotations", "Rating", "first", "second", "choice",
                             "preferred", "dispreferred", "completion", "desirable"]),
            inner, max_size=3,
        )
    ),
    max_leaves=8,
)  # fmt: skip
_COLUMNS = st.sampled_from(
    ["prompt", "chosen", "rejected", "completion", "completions", "label", "labels", "ranking",
     "votes", "conversations", "messages", "comparisons", "instruction", "weight", "score_chosen",
     "score_rejected", "system", "meta", "source", "images"]
)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(
    row=st.dictionaries(_COLUMNS, _ANY, max_size=5),
    format=st.sampled_from(["auto", *(layout.name for layout in LAYOUTS)]),
)
def test_no_row_whatever_gives_anything_but_a_group_or_a_data_error(
    tmp_path_factory: pytest.TempPathFactory, row: Row, format: str
) -> None:
    path = jsonl(tmp_path_factory.getbasetemp(), row, name="fuzz.jsonl")
    reader = read_groups(path, format=format, on_error="skip")
    assert len(list(reader)) + reader.skipped.total() == 1


# -- writing -------------------------------------------------------------------------------


def test_writing_is_atomic_and_repeatable(tmp_path: Path) -> None:
    group = Group("p", (Completion("a"),))
    path = tmp_path / "new" / "groups.jsonl.gz"
    write_groups(path, [group])
    before = path.read_bytes()
    assert before[4:8] == b"\0\0\0\0"  # gzip's time of writing, which would change the digest
    write_groups(path, read_groups(path))  # even onto what is being read
    assert path.read_bytes() == before

    with pytest.raises(DataError, match="cannot be written as JSON"):
        write_groups(path, [group, Group("p", (Completion("a", float("nan")),))])
    with pytest.raises(DataError, match="cannot be written as JSON"):
        write_groups(path, [Group("\ud83d", (Completion("a"),))])
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    group = Group("p", (Completion("a"),))
    with pytest.raises(RecipeError, match="JSONL"):
        write_groups(tmp_path / "groups.parquet", [group])
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written"):
        write_groups(tmp_path / "file" / "groups.jsonl", [group])


# -- real data -----------------------------------------------------------------------------


def test_anthropic_hh_rows(shared_data: Path) -> None:
    reader = read_groups(shared_data / "hh_harmless", on_error="skip")
    groups = list(reader)
    assert (reader.rows, len(groups)) == (1512, 1505)
    assert reader.skipped == {"empty_completion": 4, "prompt_mismatch": 1}
    assert sum(len(group.comparisons) for group in groups) == 1507
    assert all(group.prompt[-1].role == "user" for group in groups)  # type: ignore[union-attr]
