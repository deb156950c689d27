"""Faults planted in clean data at known rows: `check` finds them there, and little else.

`tests/planting.py` makes the rows. At least 99 % of the faults must be found under their kind at
their row, and fewer than 1 % of the rows that nothing was planted in may be named at all.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from prefopt.data.checking.check import check
from prefopt.data.kinds import KINDS
from tests import planting

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Result = dict[str, Any]
ALL = 1_000_000  # rows named for each kind

#: kinds that say something of a whole file, and name rows only as examples
OF_FILES = {
    "unreadable_file", "empty_file", "length_bias", "position_bias", "format_bias", "refusal_bias",
    "one_annotator", "one_source", "uneven_coverage", "uncovered_region", "uneven_categories",
    "disagreement", "shared_cluster",
}  # fmt: skip


def named(result: Result, kind: str) -> set[int]:
    """The rows that a finding names."""
    return {
        place["row"]
        for finding in result["findings"]
        for place in finding["rows"]
        if finding["kind"] == kind and place["row"] is not None
    }


def kinds(result: Result, *, notes: bool = True) -> set[str]:
    return {f["kind"] for f in result["findings"] if notes or f["level"] != "note"}


def missed(planted: planting.Planted, result: Result) -> list[tuple[str, tuple[int, ...]]]:
    """Faults of which no row is named under their kind."""
    return [(kind, rows) for kind, rows in planted.faults if not set(rows) & named(result, kind)]


def alarms(planted: planting.Planted, result: Result) -> dict[int, list[str]]:
    """Rows without a fault that a finding names, and under which kinds."""
    found: dict[int, list[str]] = {}
    for kind in kinds(result) - OF_FILES:
        for row in sorted(named(result, kind) - planted.touched):
            found.setdefault(row, []).append(kind)
    return found


# -- faults of rows ------------------------------------------------------------------------


@pytest.mark.parametrize(("seed", "layout"), list(enumerate(planting.LAYOUTS)))
def test_planted_faults_are_found_where_they_are(tmp_path: Path, layout: str, seed: int) -> None:
    planted = planting.plant(layout, rows=1000, each=10, seed=seed)
    path = tmp_path / "rows.jsonl"
    path.write_text(planted.text, encoding="utf-8")
    result = check(path, examples=ALL)
    assert result["rows"] == len(planted.lines)
    assert len(planted.faults) > 200
    assert len(missed(planted, result)) <= 0.01 * len(planted.faults), missed(planted, result)
    wrong = alarms(planted, result)
    assert len(wrong) < 0.01 * (len(planted.lines) - len(planted.touched)), wrong


def test_clean_data_is_clean(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(planting.as_jsonl(planting.clean(1500, seed=7)), encoding="utf-8")
    result = check(path, examples=ALL)
    assert kinds(result, notes=False) == set()
    assert len(alarms(planting.Planted(("",) * 1500, ()), result)) <= 2  # two are alike by chance
    assert (result["rows"], result["comparisons"]) == (1500, 1500)


def test_clean_votes_are_clean(tmp_path: Path) -> None:
    result = checked_rows(tmp_path, planting.clean_votes(400, seed=7))
    assert kinds(result, notes=False) == set()


def checked_rows(folder: Path, rows: list[planting.Row], **options: Any) -> Result:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return check(path, **options)


# -- habits of files -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(planting.HABITS))
def test_a_habit_of_a_whole_file_is_reported(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(planting.as_jsonl(planting.skew(kind, 800, seed=3)), encoding="utf-8")
    result = check(path)
    assert kind in kinds(result)
    (finding,) = [f for f in result["findings"] if f["kind"] == kind]
    assert finding["remedy"]
    assert kinds(result, notes=False) <= {kind}


def test_who_prefers_what_stands_first_is_reported(tmp_path: Path) -> None:
    result = checked_rows(tmp_path, planting.clean_votes(400, seed=3, first=0.5))
    assert "position_bias" in kinds(result)


def test_annotators_who_toss_coins_disagree(tmp_path: Path) -> None:
    result = checked_rows(tmp_path, planting.clean_votes(400, seed=3, correct=0.5))
    (finding,) = [f for f in result["findings"] if f["kind"] == "disagreement"]
    low, high = finding["interval"]
    assert low < 0 < high and high - low < 0.2


def test_labels_that_were_turned_are_suspects(tmp_path: Path) -> None:
    """Where one word tells which side is better, those few labels that say the opposite."""
    pairs = [pair for pair in planting.clean(700, seed=13) if not pair.several]
    for pair in pairs:
        pair.chosen += " Gladly: ask again whenever anything remains unclear!"
        pair.rejected += " Whatever, figure it out alone, this bores me..."
    turned = range(40, 640, 40)
    for place in turned:
        pair = pairs[place]
        pair.chosen, pair.rejected = pair.rejected, pair.chosen
    path = tmp_path / "rows.jsonl"
    path.write_text(planting.as_jsonl(pairs), encoding="utf-8")
    suspects = named(check(path, examples=ALL), "suspect_label")
    expected = {place + 1 for place in turned}
    assert suspects >= expected
    assert len(suspects - expected) < 0.01 * len(pairs)


# -- training against evaluation -----------------------------------------------------------


def leaking(writer: planting.Writer, train: list[planting.Pair]) -> list[planting.Pair]:
    """Evaluation rows: 10 with a prompt of the training, 10 with nearly one, 200 of their own."""
    test = planting.clean(220, seed=91)
    for place in range(10):
        test[place].prompt = train[place].prompt
        longer = f"{train[place + 10].prompt} {writer.prompt()}"
        train[place + 10].prompt = longer
        test[place + 10].prompt = planting.one_word_changed(writer, longer)
    return test


def test_prompts_that_leak_into_evaluation_are_named(tmp_path: Path) -> None:
    train = [pair for pair in planting.clean(600, seed=5) if not pair.several]
    test = leaking(planting.Writer(8), train)
    files = tmp_path / "train.jsonl", tmp_path / "test.jsonl"
    for file, pairs in zip(files, (train, test), strict=True):
        file.write_text(planting.as_jsonl(pairs), encoding="utf-8")
    result = check(files[0], against=[files[1]], examples=ALL)
    assert "shared_cluster" in kinds(result)
    for kind, expected in (
        ("leaked_prompt", range(1, 11)),
        ("leaked_near_duplicate", range(11, 21)),
    ):
        places = [p for f in result["findings"] if f["kind"] == kind for p in f["rows"]]
        of_train = {place["row"] for place in places if place["file"] == str(files[0])}
        of_test = {place["row"] for place in places if place["file"] == str(files[1])}
        assert (of_train | of_test) and of_train | of_test <= set(expected), kind
        assert set(expected) in (of_train, of_test), kind


def test_a_region_that_only_evaluation_has_is_reported(tmp_path: Path) -> None:
    train, test = planting.clean(600, seed=5), planting.clean(200, seed=6)
    for pair in test[:80]:
        planting._kitchen(planting.Writer(len(pair.chosen)), pair)
    files = tmp_path / "train.jsonl", tmp_path / "test.jsonl"
    for file, pairs in zip(files, (train, test), strict=True):
        file.write_text(planting.as_jsonl(pairs), encoding="utf-8")
    assert "uncovered_region" in kinds(check(files[0], against=[files[1]]))


# -- what needs another layout, or a tokenizer ---------------------------------------------


def test_verdicts_that_say_nothing_are_named(tmp_path: Path) -> None:
    rows = [
        {"prompt": pair.prompt, "response_a": pair.chosen, "response_b": pair.rejected,
         "winner": ("model_a", "model_b", "tie")[place % 3], "judge": f"j{place % 5}"}
        for place, pair in enumerate(planting.clean(200, seed=11))
    ]  # fmt: skip
    for place, verdict in ((17, "perhaps"), (50, "??"), (120, "")):
        rows[place]["winner"] = verdict
    result = checked_rows(tmp_path, rows)
    assert named(result, "unreadable_verdict") == {18, 51, 121}
    assert result["rows"] == 200


def test_what_a_limit_of_tokens_would_do_is_named(
    tmp_path: Path, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    from prefopt.engine.lengths import Measure

    pairs = planting.clean(80, seed=12)
    free = [place for place, pair in enumerate(pairs) if not pair.several and place]
    long, same = free[:5], free[5:9]
    for place in long:
        pairs[place].chosen = f"{pairs[place].chosen} " * 12
    for place in same:
        common = "And so it goes on and on. " * 80
        pairs[place].chosen, pairs[place].rejected = f"{common}Yes.", f"{common}No."
    rows = [planting.plain(pair) for pair in pairs]
    result = checked_rows(tmp_path, rows, measure=Measure(tiny_tokenizer, limit=900))
    assert named(result, "too_long") == {place + 1 for place in long + same}
    assert named(result, "identical_when_cut") == {place + 1 for place in same}
    assert "no_end_of_turn" not in kinds(result)
    tiny_tokenizer.eos_token = None
    assert "no_end_of_turn" in kinds(checked_rows(tmp_path, rows, measure=Measure(tiny_tokenizer)))


# -- nothing is forgotten ------------------------------------------------------------------

#: kinds that are no fault of a row and no habit of a file, and which test asks for them
ASKED = {
    "position_bias": "test_planted.py::test_who_prefers_what_stands_first_is_reported",
    "disagreement": "test_planted.py::test_annotators_who_toss_coins_disagree",
    "leaked_prompt": "test_planted.py::test_prompts_that_leak_into_evaluation_are_named",
    "leaked_near_duplicate": "test_planted.py::test_prompts_that_leak_into_evaluation_are_named",
    "shared_cluster": "test_planted.py::test_prompts_that_leak_into_evaluation_are_named",
    "uncovered_region": "test_planted.py::test_a_region_that_only_evaluation_has_is_reported",
    "unreadable_verdict": "test_planted.py::test_verdicts_that_say_nothing_are_named",
    "too_long": "test_planted.py::test_what_a_limit_of_tokens_would_do_is_named",
    "identical_when_cut": "test_planted.py::test_what_a_limit_of_tokens_would_do_is_named",
    "no_end_of_turn": "test_planted.py::test_what_a_limit_of_tokens_would_do_is_named",
    "suspect_label": "test_planted.py::test_labels_that_were_turned_are_suspects",
    "unreadable_file": "test_checks.py::test_a_file_that_breaks_off_is_a_finding_and_the_next",
    "empty_file": "test_checks.py::test_a_file_that_breaks_off_is_a_finding_and_the_next",
    "end_inside": "test_token_lengths.py::test_groups_that_no_limit_would_save_are_named_by_kind",
    "template": "test_tokens.py::test_template_that_refuses_roles",
    "no_comparison": "test_checks.py::test_every_structural_finding_names_its_rows",
}


def test_every_kind_is_planted_or_asked_for_somewhere() -> None:
    planted = {fault.kind for fault in planting.FAULTS} | {kind for kind, *_ in planting.LINES}
    others = {"too_few_votes"}  # what `aggregate` refuses, and `check` does not look for
    assert set(KINDS) - planted - set(planting.HABITS) - others == set(ASKED)
    for kind, where in ASKED.items():
        file, test = where.split("::")
        source = Path(__file__).with_name(file).read_text(encoding="utf-8").split("ASKED = ")[0]
        assert f"def {test}" in source and f'"{kind}"' in source
