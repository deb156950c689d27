"""What is removed, what stays, that both together are the data, and that `check` agrees."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prefopt.data.checking import structure
from prefopt.data.checking.check import check
from prefopt.data.cleaning import DROPPABLE, NEAR, OF_ROWS, REFUSED, clean
from prefopt.data.formats import read_groups
from prefopt.data.kinds import KINDS
from prefopt.errors import DataError, RecipeError
from prefopt.records import to_json

Row = dict[str, Any]
GOOD = {"prompt": "Name a colour.", "chosen": "Blue, I think.", "rejected": "Seven of them."}
TURNED = {**GOOD, "chosen": GOOD["rejected"], "rejected": GOOD["chosen"]}
OTHER = {"prompt": "Name a river.", "chosen": "The Danube.", "rejected": "A mountain."}


def written(folder: Path, *rows: Row | str, name: str = "rows.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(
        (row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows
    ))  # fmt: skip
    return path


def cleaned(data: Path | list[Path], *drop: str, **options: Any) -> tuple[Row, list[Row]]:
    """The result, and what was removed."""
    folder = (data if isinstance(data, Path) else data[0]).parent / "cleaned"
    folder.mkdir(exist_ok=True)
    result = clean(data, folder / "out.jsonl", folder / "removed.jsonl", drop, **options)
    lines = (folder / "removed.jsonl").read_text().splitlines()
    assert result["kept"] + result["removed"] == result["rows"]
    assert result["removed"] == len(lines)
    return result, [json.loads(line) for line in lines]


def kept(data: Path) -> list[Row]:
    return [to_json(group) for group in read_groups(data.parent / "cleaned" / "out.jsonl")]


def without(data: Path, rows: list[Row]) -> list[Row]:
    """The groups of the data after its removed lines are deleted by hand."""
    gone = {row["row"] for row in rows}
    lines = data.read_text().splitlines(keepends=True)
    rest = data.parent / "rest.jsonl"
    rest.write_text("".join(line for n, line in enumerate(lines, 1) if n not in gone))
    return [to_json(group) for group in read_groups(rest)]


# -- what goes -----------------------------------------------------------------------------

BROKEN: list[Row | str] = [
    GOOD,
    {**GOOD, "rejected": "Purple.\n\nHuman: why?"},
    GOOD,
    "{'not': json",
    {**OTHER, "chosen": ""},
    OTHER,
    {**OTHER, "prompt": "Name a lake.", "chosen": "Como.<|endoftext|>"},
    {"prompt": "Name a lake.", "chosen": "Garda."},
    {**OTHER, "rejected": "A valley.\n\nAssistant: and a hill"},
]
WRONG = ("unreadable_row", "empty_completion", "missing_field")


def test_only_what_is_told_goes_and_it_says_why(tmp_path: Path) -> None:
    data = written(tmp_path, *BROKEN)
    result, removed = cleaned(data, "role_marker", *WRONG)
    assert {key: result[key] for key in ("rows", "kept", "removed", "merged", "groups")} == {
        "rows": 9, "kept": 4, "removed": 5, "merged": 0, "groups": 3,
    }  # fmt: skip
    assert result["kinds"] == {
        "unreadable_row": 1, "missing_field": 1, "empty_completion": 1, "role_marker": 2,
    }  # fmt: skip
    assert [(row["row"], row["kinds"]) for row in removed] == [
        (2, ["role_marker"]), (4, ["unreadable_row"]), (5, ["empty_completion"]),
        (8, ["missing_field"]), (9, ["role_marker"]),
    ]  # fmt: skip
    assert removed[0]["data"] == BROKEN[1] and removed[0]["file"] == str(data)
    assert removed[0]["why"] == [KINDS["role_marker"][1]]
    assert removed[1]["data"] is None and "JSON" in removed[1]["why"][0]
    assert kept(data) == without(data, removed)
    # the repetition and the special token were not told
    assert {f["kind"] for f in check(tmp_path / "cleaned" / "out.jsonl")["findings"]} >= {
        "duplicate_pair", "special_token",
    }  # fmt: skip


def test_a_row_that_no_reader_takes_must_be_told(tmp_path: Path) -> None:
    data = written(tmp_path, *BROKEN)
    with pytest.raises(DataError, match=r"(?s)row 4.*--drop unreadable_row") as caught:
        cleaned(data, "role_marker")
    assert caught.value.kind == "unreadable_row"
    assert (caught.value.remedy or "").count("--drop") == 1
    assert list((tmp_path / "cleaned").iterdir()) == []


def test_of_repetitions_the_first_stays(tmp_path: Path) -> None:
    first = written(tmp_path, OTHER, GOOD, GOOD, name="1.jsonl")
    second = written(tmp_path, GOOD, {**GOOD, "rejected": "Eight."}, name="2.jsonl")
    result, removed = cleaned([first, second], "duplicate_pair")
    assert [(Path(row["file"]).name, row["row"]) for row in removed] == [
        ("1.jsonl", 3), ("2.jsonl", 1),
    ]  # fmt: skip
    assert result["groups"] == 2  # the files share a prompt
    groups = kept(first)
    assert [len(group["comparisons"]) for group in groups] == [1, 2]


def test_of_a_contradiction_nothing_stays(tmp_path: Path) -> None:
    data = written(tmp_path, GOOD, OTHER, TURNED, GOOD)
    result, removed = cleaned(data, "contradiction")
    assert [row["row"] for row in removed] == [1, 3, 4]
    assert (result["kinds"], result["groups"]) == ({"contradiction": 3}, 1)
    # the same rows in another order: the same rows go
    back = written(tmp_path, GOOD, TURNED, OTHER, GOOD)
    assert [row["row"] for row in cleaned(back, "contradiction")[1]] == [1, 2, 4]


def test_contradictions_become_one_comparison_with_their_share(tmp_path: Path) -> None:
    """Two for blue and one for seven: ⅔. With weights 1, 3 and 1, two fifths."""
    data = written(tmp_path, GOOD, OTHER, TURNED, GOOD)
    result, removed = cleaned(data, "contradiction", merge="votes")
    assert [row["row"] for row in removed] == [3, 4]
    assert removed[0]["merged_into"] == {"file": str(data), "row": 1}
    assert result["merged"] == 1
    (edge,) = kept(data)[0]["comparisons"]
    assert edge["probability"] == pytest.approx(2 / 3) and "weight" not in edge
    data = written(tmp_path, {**TURNED, "weight": 3}, GOOD, GOOD)
    cleaned(data, "contradiction", merge="votes")
    (group,) = kept(data)
    (edge,) = group["comparisons"]
    assert group["completions"][edge["preferred"]]["text"] == TURNED["chosen"]
    assert edge["probability"] == pytest.approx(3 / 5)
    assert edge["weight"] == pytest.approx(5 / 3)


def test_a_soft_row_counts_as_it_says(tmp_path: Path) -> None:
    """0.2 for seven over blue is 0.8 for blue; with one for seven: 0.4 for blue."""
    data = written(tmp_path, {**TURNED, "probability": 0.2}, TURNED)
    cleaned(data, "contradiction", merge="votes")
    (group,) = kept(data)
    (edge,) = group["comparisons"]
    texts = [completion["text"] for completion in group["completions"]]
    sure = {texts[edge["preferred"]]: edge["probability"],
            texts[edge["dispreferred"]]: 1 - edge["probability"]}  # fmt: skip
    assert sure[GOOD["chosen"]] == pytest.approx(0.4)


def test_a_contradiction_with_what_goes_anyway_is_none(tmp_path: Path) -> None:
    marked = {**TURNED, "prompt": GOOD["prompt"]}
    data = written(tmp_path, GOOD, marked, OTHER, GOOD)
    result, removed = cleaned(data, "contradiction", "duplicate_pair", merge="votes")
    assert [row["row"] for row in removed] == [2, 4]
    assert removed[1]["kinds"] == ["duplicate_pair"] and "merged_into" not in removed[1]
    assert kept(data)[0]["comparisons"][0]["probability"] == 0.5  # the repetition has no vote
    assert result["kinds"] == {"contradiction": 1, "duplicate_pair": 1}


def test_rows_of_several_comparisons_go_whole_and_are_not_merged(tmp_path: Path) -> None:
    ranked = {"prompt": "q", "completions": ["one", "two", "three"], "ranking": [1, 2, 3]}
    other = {"prompt": "q", "completions": ["two", "one"], "ranking": [1, 2]}
    data = written(tmp_path, ranked, other, {**other, "prompt": "r"})
    assert [row["row"] for row in cleaned(data, "contradiction")[1]] == [1, 2]
    with pytest.raises(DataError, match="several comparisons"):
        cleaned(data, "contradiction", merge="votes")


def test_annotators_who_disagree_do_not_contradict_themselves(tmp_path: Path) -> None:
    def vote(annotator: str, choice: str) -> Row:
        cast = {"first": 0, "second": 1, "choice": choice, "annotator": annotator}
        return {"prompt": "q", "completions": ["a", "b"], "votes": [cast]}

    data = written(tmp_path, vote("ann", "first"), vote("bob", "second"), vote("ann", "second"))
    assert [row["row"] for row in cleaned(data, "contradiction")[1]] == [1, 3]
    data = written(tmp_path, vote("ann", "first"), vote("bob", "second"))
    result, removed = cleaned(data, "contradiction")
    assert removed == [] and result["groups"] == 1


def test_near_duplicates_go_where_all_were_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = " ".join(f"word{n}" for n in range(40))
    near = {"prompt": f"Say it again: {long}", "chosen": f"As you like. {long}", "rejected": "No."}
    data = written(tmp_path, near, OTHER, {**near, "chosen": f"{near['chosen']} so"})
    result, removed = cleaned(data, "near_duplicate_pair")
    assert [row["row"] for row in removed] == [3]
    monkeypatch.setattr("prefopt.data.cleaning.SAMPLE", 2)
    with pytest.raises(RecipeError, match="in a sample"):
        cleaned(data, "near_duplicate_pair")
    assert result["kinds"] == {"near_duplicate_pair": 1}


def test_what_is_written_is_what_was_read(tmp_path: Path) -> None:
    """Own groups, votes, labels, columns and rows that share a prompt survive as they are."""
    rows: list[Row] = [
        {**GOOD, "category": "style", "probability": 0.8, "weight": 2.0},
        {**GOOD, "rejected": "A number, perhaps.", "id": 7},
        OTHER,
    ]
    votes = {"prompt": "q", "completions": ["a", "b"], "votes": ["first", "first", "tie"]}
    own = {"prompt": "q", "completions": [{"text": "a"}, {"text": "b"}],
           "comparisons": [{"preferred": 0, "dispreferred": 1}], "source": "web"}  # fmt: skip
    label = {"prompt": "q", "completion": "yes", "label": True}
    files = [
        written(tmp_path, *part, name=f"{n}.jsonl")
        for n, part in enumerate((rows, [votes, votes], [own, own], [label]))
    ]
    result, removed = cleaned(files, "mojibake")
    assert removed == [] and result["kinds"] == {"mojibake": 0}
    assert kept(files[0]) == [to_json(group) for group in read_groups(files)]


# -- agreement with check ------------------------------------------------------------------


def test_what_check_finds_is_what_clean_removes(tmp_path: Path) -> None:
    from tests import planting

    planted = planting.plant("plain", rows=700, each=4, seed=5)
    data = tmp_path / "rows.jsonl"
    data.write_text(planted.text, encoding="utf-8")
    found = {f["kind"]: f for f in check(data, examples=10**9)["findings"]}
    told = [kind for kind in found if kind in DROPPABLE]
    assert len(told) > 18
    result, removed = cleaned(data, *told)
    for kind in told:
        rows = {place["row"] for place in found[kind]["rows"]}
        gone = {row["row"] for row in removed if kind in row["kinds"]}
        if kind == "contradiction":  # check names those that say the opposite of an earlier one
            assert rows <= {row["row"] for row in removed}
        else:
            assert gone == rows, kind
            assert result["kinds"][kind] == len(rows)
    again = {f["kind"] for f in check(tmp_path / "cleaned" / "out.jsonl")["findings"]}
    assert not again & set(told)
    assert kept(data) == without(data, removed)


def test_every_kind_that_a_row_can_have_can_be_dropped() -> None:
    assert set(DROPPABLE) <= set(KINDS)
    source = inspect.getsource(structure)
    of_rows = set(re.findall(r'"([a-z_]+)"', source)) & set(KINDS)
    assert len(of_rows) > 8
    assert of_rows <= {*OF_ROWS, *NEAR, *REFUSED}


# -- refusals ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("drop", "merge", "words"),
    [
        ([], None, "nothing is told"),
        (["role_markers"], None, "did you mean 'role_marker'"),
        (["zzz"], None, "one of unreadable_row"),
        (["length_bias"], None, "does not name the rows"),
        (["suspect_label"], None, "does not name the rows"),
        (["role_marker"], "votes", "no effect unless"),
    ],
)
def test_what_makes_no_sense_is_refused(
    tmp_path: Path, drop: list[str], merge: Any, words: str
) -> None:
    data = written(tmp_path, GOOD)
    with pytest.raises(RecipeError, match=words):
        cleaned(data, *drop, merge=merge)
    assert list((tmp_path / "cleaned").iterdir()) == []


def test_nothing_left_is_refused(tmp_path: Path) -> None:
    data = written(tmp_path, GOOD, TURNED)
    with pytest.raises(DataError, match="every row would be removed"):
        cleaned(data, "contradiction")
    assert list((tmp_path / "cleaned").iterdir()) == []


# -- the command ---------------------------------------------------------------------------

Call = Callable[..., tuple[int, str, str]]


def test_the_command_counts_and_warns_that_it_may_not_help(call: Call, tmp_path: Path) -> None:
    data = written(tmp_path, *BROKEN)
    files = ("--out", tmp_path / "out.jsonl", "--removed", tmp_path / "removed.jsonl")
    drops = [part for kind in ("role_marker", *WRONG) for part in ("--drop", kind)]
    code, out, err = call("clean", data, *files, *drops)
    assert (code, err) == (0, "")
    assert "9 rows: 4 kept, 5 removed" in out and "2 role_marker" in out
    assert "not known to make policies more accurate" in " ".join(out.split())
    code, _, err = call("clean", data, *files, *drops)
    assert code == 2 and "is there already" in err
    for name in ("out.jsonl", "removed.jsonl"):
        (tmp_path / name).unlink()
    code, out, _ = call("clean", data, *files, "--drop", "role_marker", *WRONG, "--json")
    result = json.loads(out)
    assert code == 0 and result["kept"] == 4
    assert result["removed_file"] == str(tmp_path / "removed.jsonl")
    _, out, _ = call("clean", "--help")
    assert "measure" in out and "not known" in " ".join(out.split())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--out {}/o.jsonl --removed {}/r.jsonl", "--drop"),
        ("--removed {}/r.jsonl --drop role_marker", "--out"),
        ("--out {}/o.jsonl --drop role_marker", "--removed"),
        ("--out {}/o.txt --removed {}/r.jsonl --drop role_marker", "must end with"),
        ("--out {}/o.jsonl --removed {}/r.txt --drop role_marker", "choose another --removed"),
        ("--out {}/o.jsonl --removed {}/o.jsonl --drop role_marker", "the same file"),
        ("--out {}/rows.jsonl --removed {}/r.jsonl --drop role_marker", "would be lost"),
        ("--out {}/o.jsonl --removed {}/rows.jsonl --drop role_marker", "would be lost"),
        ("--out {}/o.jsonl --removed {}/r.jsonl --drop role_markr", "did you mean 'role_marker'"),
        ("--out {}/o.jsonl --removed {}/r.jsonl --drop one_source", "does not name the rows"),
        ("--out {}/o.jsonl --removed {}/r.jsonl --drop role_marker --merge x", "--merge"),
    ],
)
def test_wrong_input_writes_nothing(call: Call, tmp_path: Path, arguments: str, words: str) -> None:
    data = written(tmp_path, GOOD, OTHER)
    before = data.read_bytes()
    code, out, err = call("clean", data, *arguments.replace("{}", str(tmp_path)).split())
    assert (code, out) == (2, "")
    assert words in err and "Traceback" not in err
    assert [file.name for file in tmp_path.iterdir()] == ["rows.jsonl"]
    assert data.read_bytes() == before
