"""What `check` finds, where, and how bad it is."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pytest

import prefopt.data
from prefopt.data.checking.check import check
from prefopt.data.formats import read_groups
from prefopt.data.kinds import KINDS
from prefopt.errors import DataError

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
    assert (result["rows"], result["groups"], result["comparisons"]) == (3, 2, 3)
    assert result["findings"] == [] and result["files"] == [str(tmp_path / "rows.jsonl")]
    assert result["sampled"] is False and result["against"] is None
    json.dumps(result, allow_nan=False)


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


#: what stands in a completion, by the kind that it must be found under
IN_A_COMPLETION = {
    "role_marker": (
        "Human: no", "so.\n\nAssistant: yes", "x  User: y", "Well.\n### Instruction: go on",
    ),
    "special_token": (
        "a<|im_end|>", "[INST] b", "<end_of_turn>", "a</s>", "a <pad>b", "<<SYS>>",
        "a<｜end▁of▁sentence｜>", "<|reserved_special_token_7|>",
    ),
    "generation_prompt": (
        "Assistant: yes", "<|im_start|>assistant\nyes", "assistant\n\nyes", " [/INST] yes",
        "<start_of_turn>model\nyes", "### Response:\nyes",
        "<|start_header_id|>assistant<|end_header_id|>\n\nyes",
    ),
    "doubled_token": ("a</s></s>", "<s> <s>a", "a<|endoftext|>\n<|endoftext|>"),
    "control_characters": ("a\x00b", "\x1b[0ma", "a\x7f", "a\x85b", "a\u202eb", "\ufeffa"),
    "mojibake": ("itâ€™s", "schÃ¶n", "a\ufffdb", "10Â°", "Ð¿Ñ€Ð¸Ð²ÐµÑ‚", "ðŸ˜€", "ï»¿a"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "text"), [(kind, text) for kind, texts in IN_A_COMPLETION.items() for text in texts]
)
def test_what_does_not_belong_into_a_completion(tmp_path: Path, kind: str, text: str) -> None:
    assert found(checked(tmp_path, {**GOOD, "rejected": text})) == {kind: [1]}


@pytest.mark.parametrize(
    "text",
    [
        "Every Human:being", "superHuman: no", "the user: me", "[inst]", "a < b, c > d [1]",
        "f <| g |> h", "2 << 3 >> 1", "<span>a</span>", "NÃO, IRMÃ” PÂTE «Â»",
        "déjà vu – “ok” … 3 °C",
        "tab\there\r\nand there", "🙂 日本語、中文。", "Привет, мир", "# Human rights\n### Why",
        "assistant professors", "Ñandú, año, ¿qué?", "a​b‍c",
    ],
)  # fmt: skip
def test_what_only_looks_as_if_it_did_not_belong(tmp_path: Path, text: str) -> None:
    assert found(checked(tmp_path, {**GOOD, "rejected": text})) == {}


def test_prompts_are_looked_at_too(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "a<|im_end|>"}, {"role": "assistant", "content": "b\x00"},
             {"role": "user", "content": "schÃ¶n"}]  # fmt: skip
    result = checked(
        tmp_path,
        {**GOOD, "prompt": "tell me</s>"},
        {**GOOD, "prompt": turns[:1]},
        {**GOOD, "prompt": turns[1:]},
        {**GOOD, "prompt": "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n"},
        {**GOOD, "prompt": "Human: q\n\nAssistant:"},
    )
    assert found(result) == {"special_token": [1, 2], "mojibake": [3], "rendered_prompt": [4]}


@pytest.mark.parametrize(
    ("prompt", "answer", "repeated"),
    [
        ("why?", "why? so.", True),
        ("Tell me about the weather.", "Tell me about the weather. It is fine.", True),
        ("Tell me about the weather.", "Tell me about the weather.", True),
        ("Hi", "Hi there", False),
        ("Name the longest day of a week", "Name the longest day of a weekend", False),
        ("Tell me about the weather.", "The weather. Tell me about the weather.", False),
    ],
)
def test_an_answer_that_begins_with_its_prompt(
    tmp_path: Path, prompt: str, answer: str, repeated: bool
) -> None:
    expected = [1, 2] if repeated else None
    chat = {"prompt": [{"role": "user", "content": prompt}],
            "chosen": [{"role": "assistant", "content": answer}],
            "rejected": [{"role": "assistant", "content": "bad"}]}  # fmt: skip
    result = checked(tmp_path, {**GOOD, "prompt": prompt, "chosen": answer}, chat)
    assert found(result).get("prompt_repeated") == expected


ENGLISH = "Can you tell me what the weather will be like, and how to dress for it?"
GERMAN = "Am besten nimmst du eine warme Jacke mit, und wenn es regnet auch einen Schirm."
SPANISH = "Lo mejor es que te pongas una chaqueta, y si llueve no te olvides del paraguas."
RUSSIAN = "Лучше всего надеть тёплую куртку и взять с собой зонт."
CHINESE = "最好穿一件暖和的外套，如果下雨还要带一把伞。"
LONG = "Most people would take a warm jacket with them, and an umbrella if it is raining."


@pytest.mark.parametrize(
    ("prompt", "answer", "differ"),
    [
        (ENGLISH, LONG, False),
        (ENGLISH, GERMAN, True),
        (ENGLISH, SPANISH, True),
        (ENGLISH, RUSSIAN, True),
        (RUSSIAN, LONG, True),
        (RUSSIAN, RUSSIAN, False),
        (RUSSIAN, CHINESE, True),
        (GERMAN, SPANISH, True),
        (GERMAN, GERMAN, False),
        (f"{ENGLISH} Please answer in German.", GERMAN, False),
        (f"Translate: {ENGLISH}", RUSSIAN, False),
        (ENGLISH, "Привет!", False),  # too little to say
        (RUSSIAN, f"```\n{LONG}\n```", False),
        ("2 + 2 = ?", GERMAN, False),
    ],
)
def test_an_answer_in_another_language(
    tmp_path: Path, prompt: str, answer: str, differ: bool
) -> None:
    row = {"prompt": prompt, "chosen": answer, "rejected": "?"}
    assert ("language_mismatch" in found(checked(tmp_path, row))) == differ


def test_comparisons_against_the_scores(tmp_path: Path) -> None:
    own = {
        "prompt": "q",
        "completions": [{"text": "a", "score": 1.0}, {"text": "b", "score": 2.0}, {"text": "c"}],
        "comparisons": [{"preferred": 2, "dispreferred": 0}],
    }
    wrong = [{"preferred": 0, "dispreferred": 1}]
    turned = [{"preferred": 0, "dispreferred": 1, "probability": 0.25}]
    result = checked(
        tmp_path, own, {**own, "comparisons": wrong}, {**own, "comparisons": turned},
    )  # fmt: skip
    assert found(result)["score_contradiction"] == [2]


def test_quick_leaves_out_what_looks_at_texts_again(tmp_path: Path) -> None:
    answers = ("One two three four five six seven.", "One two three four five six seven.  ")
    row = {"prompt": "q", "chosen": answers[0], "rejected": answers[1]}
    assert found(checked(tmp_path, row, row)) == {
        "duplicate_pair": [2], "near_identical_sides": [1, 2],
    }  # fmt: skip
    result = checked(tmp_path, row, row, quick=True)
    assert found(result) == {"duplicate_pair": [2]}
    assert result["sampled"] is False


def test_an_evaluation_set_may_be_prompts_alone(tmp_path: Path) -> None:
    """A user's only turn and the same text are the same prompt."""
    rows = [{**GOOD, "prompt": f"What is {n} and {n}?"} for n in ("one", "two", "three")]
    asked = [{"prompt": "What is two and two?"},
             {"prompt": [{"role": "user", "content": "What is three and three?"}]},
             {"messages": [{"role": "user", "content": "And four?"},
                           {"role": "assistant", "content": "Eight."}]},
             {"text": "no prompt"}]  # fmt: skip
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    result = checked(tmp_path, *rows, against=tmp_path / "asked.jsonl", quick=True)
    (finding,) = [f for f in result["findings"] if f["kind"] == "leaked_prompt"]
    assert finding["count"] == 2
    assert [(Path(p["file"]).name, p["row"]) for p in finding["rows"]] == [
        ("asked.jsonl", 1), ("asked.jsonl", 2),
    ]  # fmt: skip
    assert {k: result["against"][k] for k in ("rows", "prompts", "unread")} == {
        "rows": 4, "prompts": 3, "unread": 1,
    }  # fmt: skip
    (tmp_path / "asked.jsonl").write_text('{"text": "no prompt"}\n')
    with pytest.raises(DataError, match="no row of the evaluation set"):
        checked(tmp_path, *rows, against=tmp_path / "asked.jsonl")


def test_the_faults_of_real_transcripts_are_named(shared_data: Path) -> None:
    """Against a reading of the file that knows nothing of our readers."""
    path = shared_data / "hh_harmless" / "harmless_base_1512.jsonl.gz"
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        rows = [json.loads(line) for line in stream]
    mark = "\n\nAssistant:"
    split = [{side: row[side].rpartition(mark)[::2] for side in row} for row in rows]
    empty = {n for n, row in enumerate(split, 1) if not all(a.strip() for _, a in row.values())}
    differ = {n for n, row in enumerate(split, 1) if len({p for p, _ in row.values()}) > 1} - empty
    marker = re.compile(r"(^|\s)(Human|Assistant|User):(\s|$)")
    said = {
        n
        for n, row in enumerate(split, 1)
        if any(marker.search(a.strip()) for _, a in row.values())
    }
    result = check(path, examples=10_000)
    named = {kind: set(rows) for kind, rows in found(result).items()}
    assert result["rows"] == 1512
    assert named["empty_completion"] == empty and len(empty) > 0
    assert named["prompt_mismatch"] == differ and len(differ) > 0
    assert named["role_marker"] | named.get("several_turns", set()) >= said - empty - differ
    assert named["role_marker"] <= said and len(named["role_marker"]) > 0


def test_every_kind_that_a_reader_refuses_with_can_be_reported() -> None:
    """A new kind of refusal needs a level, a sentence and a remedy in the table."""
    source = "".join(
        file.read_text(encoding="utf-8")
        for file in Path(prefopt.data.__path__[0]).glob("*.py")
        if file.name not in ("mixture.py", "worlds.py")  # these read nothing
    )
    refused = set(re.findall(r'(?:refuse\(\s*|kind=)"([a-z_]+)"', source))
    assert len(refused) > 10
    assert refused - {"stable"} <= set(KINDS)  # which is a kind of sorting
