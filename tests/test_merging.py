"""Rows of one prompt: found in one pass if there are none, and merged in two if there are."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefopt.data import merging
from prefopt.data.formats import read_groups
from prefopt.data.merging import Hashes, Plan, PromptSeenTwice
from prefopt.records import Comparison, Completion, Group


def row(prompt: str, answer: str) -> Group:
    return Group(prompt, (Completion(answer), Completion("no")), (Comparison(0, 1),))


@settings(max_examples=100, deadline=None)
@given(prompts=st.lists(st.sampled_from("abcdefgh"), max_size=30), buckets=st.integers(1, 12))
def test_groups_are_told_apart_by_their_prompts_and_not_by_hashes(
    prompts: list[str], buckets: int
) -> None:
    """However few hashes there are: the same groups, with their rows in order."""
    rows = [row(prompt, f"{place}") for place, prompt in enumerate(prompts)]
    hashes = np.array([ord(prompt) % buckets for prompt in prompts], dtype=np.int64)
    merged = list(Plan.of_hashes(hashes).merge((group, False) for group in rows))
    found = {
        group.prompt: [c.text for c in group.completions if c.text != "no"] for group in merged
    }
    assert len(found) == len(merged)
    assert found == {
        prompt: [str(place) for place, other in enumerate(prompts) if other == prompt]
        for prompt in dict.fromkeys(prompts)
    }
    if buckets == 12:  # every prompt has a hash of its own: by when the last row comes
        last = {prompt: place for place, prompt in enumerate(prompts)}
        assert list(found) == sorted(found, key=lambda prompt: last[str(prompt)])


def test_data_without_repeated_prompts_keeps_nothing_a_row() -> None:
    plan = Plan.of_hashes(np.arange(1000))
    assert plan.bucket is None and plan.sizes is None
    assert len(list(plan.merge((row(str(n), "a"), False) for n in range(1000)))) == 1000


@pytest.mark.parametrize("repeated", [False, True])
def test_a_plan_takes_little_memory(repeated: bool) -> None:
    count = 200_000
    hashes = np.arange(count) // (2 if repeated else 1)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        plan = Plan.of_hashes(hashes)
        kept, peak = (size - before for size in tracemalloc.get_traced_memory())
    finally:
        tracemalloc.stop()
    assert peak <= (24 if repeated else 10) * count  # beside the 8 bytes a row of the hashes
    assert kept <= (6.1 * count if repeated else 1000)
    assert plan.rows == count


def write(path: Path, prompts: list[str]) -> Path:
    rows = [{"prompt": p, "chosen": f"good {i}", "rejected": "bad"} for i, p in enumerate(prompts)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_one_pass_gives_what_two_give(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = read_groups(write(tmp_path / "a.jsonl", [f"p{n}" for n in range(20)]), source="s")
    at_once = list(reader.at_once())
    assert at_once == list(reader) and len(at_once) == 20
    assert [group.origins for group in at_once] == [group.origins for group in reader]
    assert reader.rows == 20


@pytest.mark.parametrize("recent", [1, 1 << 16], ids=["far apart", "near"])
def test_one_pass_refuses_a_prompt_that_comes_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recent: int
) -> None:
    monkeypatch.setattr(merging, "_RECENT", recent)
    reader = read_groups(write(tmp_path / "a.jsonl", ["a", "b", "c", "d", "a", "e", "f"]))
    given_out = []
    with pytest.raises(PromptSeenTwice):
        given_out.extend(reader.at_once())
    assert [len(group.completions) for group in reader] == [2, 2, 2, 3, 2, 2]


def test_rows_that_are_groups_already_may_share_a_prompt(tmp_path: Path) -> None:
    own = {"prompt": "a", "completions": [{"text": "x"}, {"text": "y"}],
           "comparisons": [{"preferred": 0, "dispreferred": 1}]}  # fmt: skip
    path = tmp_path / "own.jsonl"
    path.write_text(2 * (json.dumps(own) + "\n"))
    reader = read_groups(path)
    assert list(reader.at_once()) == list(reader)
    assert len(list(reader)) == 2


def test_a_hash_that_is_seen_again_within_the_last_ones_ends_it_at_once() -> None:
    hashes = Hashes(at_once=True)
    hashes.add("a")
    with pytest.raises(PromptSeenTwice):
        hashes.add("a")
    assert len(hashes) == 2
