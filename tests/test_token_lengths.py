"""Lengths in tokens before a training: the same numbers that the training would report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prefopt.data.checking.check import check
from prefopt.data.formats import read_groups
from prefopt.engine.lengths import Measure, load_measure
from prefopt.engine.tokens import Encoder
from prefopt.errors import PolicyError, RecipeError

Row = dict[str, Any]
WORDS = ("the", "film", "was", "a", "quiet", "delight", "and", "bread", "wait", "blue")


def text(start: int, words: int) -> str:
    return " ".join(WORDS[(start + n) % len(WORDS)] for n in range(words))


def rows(chat: bool = False) -> list[Row]:
    made: list[Row] = []
    for n in range(60):
        prompt = text(n, 2 + n % 12)
        sides = {"chosen": text(n, 1 + n % 17), "rejected": text(n + 3, 1 + (n * 7) % 23)}
        if n % 10 == 0:  # alike up to the last word
            sides = {"chosen": text(n, 30), "rejected": text(n, 30) + " blue"}
        if chat:
            made.append({"prompt": [{"role": "user", "content": prompt}],
                         **{side: [{"role": "assistant", "content": answer}]
                            for side, answer in sides.items()}})  # fmt: skip
        else:
            made.append({"prompt": prompt, **sides})
    ranked = {"prompt": "the film", "completions": [text(1, n) for n in (1, 9, 40)],
              "ranking": [1, 2, 3]}  # fmt: skip
    return made if chat else [*made, ranked]


def stored(folder: Path, rows: list[Row]) -> list[Path]:
    """Pairs in one file and rankings in another."""
    paths = [folder / "pairs.jsonl", folder / "ranked.jsonl"]
    for path, part in zip(paths, (
        [row for row in rows if "ranking" not in row], [row for row in rows if "ranking" in row],
    ), strict=True):  # fmt: skip
        path.write_text("".join(json.dumps(row) + "\n" for row in part))
    return [path for path in paths if path.stat().st_size]


@pytest.mark.parametrize("chat", [False, True])
def test_what_a_limit_does_is_what_training_reports(
    tmp_path: Path, tiny_tokenizer: Any, chat: bool
) -> None:
    paths, limit = stored(tmp_path, rows(chat)), 60
    known = Measure(tiny_tokenizer, limit=limit)(read_groups(paths))
    for choice in ("drop", "cut_prompt_start", "cut_completion"):
        encoder = Encoder(tiny_tokenizer, max_length=limit, too_long=choice, on_error="skip")
        list(encoder(read_groups(paths)))
        assert known.skipped[choice] == +encoder.report.skipped, choice
        assert known.cut[choice] == +encoder.report.cut, choice
    assert known.skipped["drop"]["too_long"] > 5
    assert known.skipped["cut_completion"]["identical_sides"] > 0
    whole = Encoder(tiny_tokenizer)
    groups = list(whole(read_groups(paths)))
    assert known.prompts.tolist() == [len(group.prompt) for group in groups]
    assert known.together.tolist() == [
        len(group.prompt) + len(ids) for group in groups for ids in group.completions
    ]
    assert not known.refused and known.template_ends is (True if chat else None)


def test_findings_name_the_rows(tmp_path: Path, tiny_tokenizer: Any) -> None:
    paths = stored(tmp_path, rows())
    measure = Measure(tiny_tokenizer, "tiny", limit=60)
    result = check(paths, measure=measure, examples=1000)
    found = {finding["kind"]: finding for finding in result["findings"]}
    longest = {}
    for group in Encoder(tiny_tokenizer)(read_groups(paths)):
        origin = group.origins[0]
        longest[origin.file, origin.row] = len(group.prompt) + max(map(len, group.completions))
    too_long = {(place["file"], place["row"]) for place in found["too_long"]["rows"]}
    assert too_long == {place for place, length in longest.items() if length > 60}
    assert found["too_long"]["level"] == "error" and found["too_long"]["details"]["limit"] == 60
    assert {p["row"] for p in found["identical_when_cut"]["rows"]} <= set(range(1, 60, 10))
    figures = result["figures"]["tokens"]
    assert figures["over"] > 0 and figures["quantiles"]["together"]["longest"] == max(
        longest.values()
    )
    assert sum(figures["histogram"]["counts"]) == 2 * 60 + 3
    json.dumps(result, allow_nan=False)


def test_groups_that_no_limit_would_save_are_named_by_kind(
    tmp_path: Path, tiny_tokenizer: Any
) -> None:
    good = {"prompt": "the film", "chosen": "quiet", "rejected": "blue"}
    ends = {**good, "prompt": "a film", "chosen": "quiet<|eos|> delight"}
    same = {**good, "prompt": "one film", "chosen": "quiet", "rejected": "quiet<|eos|>"}
    paths = stored(tmp_path, [good, ends, same, {**good, "prompt": "last"}, ends])
    known = Measure(tiny_tokenizer)(read_groups(paths))
    assert {kind: (count, [place.row for place in places])
            for kind, (count, places) in known.refused.items()} == {
        "end_inside": (2, [2]), "identical_sides": (1, [3]),
    }  # fmt: skip
    encoder = Encoder(tiny_tokenizer, on_error="skip")
    list(encoder(read_groups(paths)))
    assert {kind: count for kind, (count, _) in known.refused.items()} == encoder.report.skipped
    assert known.skipped == known.cut == {} and len(known.prompts) == 2


def test_tokens_that_are_the_same_within_a_larger_group_are_counted(
    tmp_path: Path, tiny_tokenizer: Any
) -> None:
    row = {"prompt": "q", "completions": ["quiet", "quiet<|eos|>", "blue"], "ranking": [1, 2, 3]}
    paths = stored(tmp_path, [row])
    known = Measure(tiny_tokenizer)(read_groups(paths))
    encoder = Encoder(tiny_tokenizer, on_error="skip")
    list(encoder(read_groups(paths)))
    assert encoder.report.skipped == {"identical_sides": 1} and len(known.prompts) == 1
    assert known.refused["identical_sides"][0] == 1


def test_what_the_tokenizer_and_its_template_lack(tmp_path: Path, tiny_tokenizer: Any) -> None:
    def kinds(measure: Measure, paths: list[Path]) -> dict[str, str]:
        found = check(paths, measure=measure, quick=True)["findings"]
        return {
            f["kind"]: f["level"] for f in found if f["kind"] in ("no_end_of_turn", "doubled_token")
        }

    chat = stored(tmp_path, rows(chat=True))
    assert kinds(Measure(tiny_tokenizer), chat) == {}
    usual = tiny_tokenizer.chat_template
    tiny_tokenizer.chat_template = usual.replace("{{ eos_token }}", "")
    assert kinds(Measure(tiny_tokenizer), chat) == {"no_end_of_turn": "note"}
    tiny_tokenizer.chat_template = usual
    from tokenizers.processors import TemplateProcessing

    bos = tiny_tokenizer.bos_token_id
    tiny_tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|bos|> $A", special_tokens=[("<|bos|>", bos)]
    )
    assert kinds(Measure(tiny_tokenizer), chat) == {"doubled_token": "note"}
    tiny_tokenizer.eos_token = None
    assert kinds(Measure(tiny_tokenizer), chat) == {"no_end_of_turn": "error"}


def test_a_model_folder_brings_its_limit_and_its_ends(
    tiny_policy_folder: Path, tokenizer_folder: Path, tiny_tokenizer: Any
) -> None:
    from prefopt.policies.load import load_policy

    policy = load_policy(str(tiny_policy_folder), device="cpu")
    measure = load_measure(str(tiny_policy_folder))
    assert measure.limit == policy.max_length == 512
    assert measure.end_of_turn | {tiny_tokenizer.eos_token_id} == policy.end_of_turn
    assert load_measure(str(tiny_policy_folder), 100).limit == 100
    with pytest.raises(RecipeError, match="512 tokens"):
        load_measure(str(tiny_policy_folder), 513)
    alone = load_measure(str(tokenizer_folder), 99)
    assert (alone.limit, alone.end_of_turn) == (99, frozenset())
    assert load_measure(str(tokenizer_folder)).limit is None


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="cannot load a tokenizer"):
        load_measure(str(tmp_path))
