"""What `check` finds, where, and how bad it is."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest

import prefopt.data
from prefopt.data.checks import check
from prefopt.data.formats import read_groups
from prefopt.data.kinds import KINDS

Row = dict[str, Any]
GOOD = {"prompt": "q", "chosen": "good", "rejected": "bad"}


def checked(folder: Path, *rows: Row, **options: Any) -> dict[str, Any]:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return check(path, **options)


def found(result: dict[str, Any]) -> dict[str, list[int]]:
    return {
        finding["kind"]: [place["row"] for place in finding["rows"]]
        for finding in result["findings"]
    }


def test_good_data_has_no_findings(tmp_path: Path) -> None:
    result = checked(tmp_path, GOOD, {**GOOD, "chosen": "better"}, {**GOOD, "prompt": "r"})
    assert result == {"rows": 3, "groups": 2, "comparisons": 3, "findings": []}


def test_every_structural_finding_names_its_rows(tmp_path: Path) -> None:
    result = checked(
        tmp_path,
        GOOD,
        {**GOOD, "chosen": "bad", "rejected": "good"},
        GOOD,
        {**GOOD, "chosen": ""},
        {**GOOD, "chosen": "bad"},
        {**GOOD, "chosen": "fine.\n\nHuman: go on"},
        {**GOOD, "prompt": "why?", "chosen": "why? so."},
        {**GOOD, "prompt": "s", "score_chosen": 1, "score_rejected": 1},
        {**GOOD, "probability": 0.5},
        {"prompt": "q", "chosen": "x"},
    )
    assert found(result) == {
        "missing_field": [10],
        "empty_completion": [4],
        "identical_sides": [5],
        "contradiction": [2, 3],
        "duplicate_pair": [3],
        "role_marker": [6],
        "prompt_repeated": [7],
        "no_comparison": [8],
    }
    assert (result["rows"], result["groups"], result["comparisons"]) == (10, 3, 6)
    levels = [finding["level"] for finding in result["findings"]]
    assert levels == ["error"] * 3 + ["warning"] * 4 + ["note"]
    assert result["findings"][0]["rows"] == [{"file": str(tmp_path / "rows.jsonl"), "row": 10}]


def test_a_probability_below_a_half_prefers_the_other_side(tmp_path: Path) -> None:
    turned = {**GOOD, "chosen": "bad", "rejected": "good", "probability": 0.2}
    assert found(checked(tmp_path, GOOD, turned)) == {"duplicate_pair": [2]}
    assert found(checked(tmp_path, GOOD, {**GOOD, "probability": 0.2})) == {"contradiction": [2]}


def test_the_same_completions_under_another_prompt_are_another_pair(tmp_path: Path) -> None:
    turned = {"prompt": "r", "chosen": "bad", "rejected": "good"}
    assert found(checked(tmp_path, GOOD, turned)) == {}


def test_rows_in_our_own_layout_are_checked_too(tmp_path: Path) -> None:
    own = {
        "prompt": "q",
        "completions": [{"text": "a"}, {"text": ""}, {"text": "a"}],
        "comparisons": [
            {"preferred": 0, "dispreferred": 1},
            {"preferred": 0, "dispreferred": 2},
        ],
    }
    result = checked(tmp_path, own, {**own, "comparisons": own["comparisons"][:1]})
    assert found(result) == {
        "empty_completion": [1, 2],
        "identical_sides": [1],
        "duplicate_pair": [2],
    }
    assert (result["groups"], result["comparisons"]) == (2, 3)


def test_votes_count_as_the_comparisons_they_become(tmp_path: Path) -> None:
    votes = {"prompt": "q", "completions": ["a", "b"], "votes": ["first", "first", "second"]}
    other = {"prompt": "q", "completions": ["b", "a", "c"],
             "votes": [{"first": 0, "second": 1, "choice": "first"},
                       {"first": 0, "second": 2, "choice": "tie"}]}  # fmt: skip
    result = checked(tmp_path, votes, other)
    assert (result["groups"], result["comparisons"], result["findings"]) == (1, 2, [])
    (group,) = read_groups(tmp_path / "rows.jsonl")
    assert len(group.comparisons) == 2


def test_examples_are_bounded_and_counts_are_not(tmp_path: Path) -> None:
    result = checked(tmp_path, *[{**GOOD, "chosen": ""}] * 50, examples=7)
    (finding,) = result["findings"]
    assert finding["count"] == 50 and [place["row"] for place in finding["rows"]] == [*range(1, 8)]


def test_a_file_that_breaks_off_is_a_finding_and_the_next_is_still_read(tmp_path: Path) -> None:
    (tmp_path / "1.jsonl.gz").write_bytes(gzip.compress(json.dumps(GOOD).encode())[:-9])
    (tmp_path / "2.jsonl").write_text("")
    (tmp_path / "3.jsonl").write_text(json.dumps(GOOD))
    result = check(tmp_path)
    assert [finding["kind"] for finding in result["findings"]] == ["unreadable_file", "empty_file"]
    assert result["comparisons"] == 1


@pytest.mark.parametrize(
    "text",
    [
        "Human: no",
        "so.\n\nAssistant: yes",
        "x  User: y",
        "a<|im_end|>",
        "[INST] b",
        "<end_of_turn>",
    ],
)
def test_role_markers(tmp_path: Path, text: str) -> None:
    assert found(checked(tmp_path, {**GOOD, "rejected": text})) == {"role_marker": [1]}


@pytest.mark.parametrize("text", ["Every Human:being", "superHuman: no", "the user: me", "[inst]"])
def test_what_only_looks_like_a_role_marker(tmp_path: Path, text: str) -> None:
    assert found(checked(tmp_path, {**GOOD, "rejected": text})) == {}


def test_every_kind_that_a_reader_refuses_with_can_be_reported() -> None:
    """A new kind of refusal needs a level, a sentence and a remedy in the table."""
    source = "".join(
        file.read_text(encoding="utf-8")
        for file in Path(prefopt.data.__path__[0]).glob("*.py")
        if file.name not in ("mixture.py", "worlds.py")  # these read nothing
    )
    refused = set(re.findall(r'(?:refuse\(\s*|kind=)"([a-z_]+)"', source))
    assert len(refused) > 10
    assert refused <= set(KINDS)
