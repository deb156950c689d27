"""Groups: what they refuse, and that JSON gives them back as they were."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefopt.data.formats import read_groups, write_groups
from prefopt.records import (
    Comparison,
    Completion,
    Group,
    Label,
    Message,
    Origin,
    Vote,
    from_json,
    prompt_key,
    to_json,
)

_TEXT = st.text(max_size=20)
_NAME = st.none() | st.text(max_size=5)
_FINITE = st.floats(allow_nan=False, allow_infinity=False)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | _FINITE | _TEXT,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(_TEXT, inner, max_size=2),
    max_leaves=4,
)


@st.composite
def groups(draw: Any) -> Group:
    """Any group at all that JSON can hold."""
    count = draw(st.integers(1, 4))
    index = st.integers(0, count - 1)
    pair = st.permutations(range(count)).map(lambda order: order[:2])
    several = st.lists(pair, max_size=3) if count > 1 else st.just([])
    weight = st.floats(0.0, 1e6)
    turn = st.builds(Message, role=_TEXT, content=_TEXT)
    return Group(
        prompt=draw(_TEXT | st.lists(turn, max_size=3).map(tuple)),
        completions=tuple(
            draw(st.builds(Completion, _TEXT, st.none() | _FINITE, _NAME)) for _ in range(count)
        ),
        comparisons=tuple(
            Comparison(*edge, draw(st.floats(0.0, 1.0)), draw(weight)) for edge in draw(several)
        ),
        labels=tuple(draw(st.lists(st.builds(Label, index, st.booleans(), weight), max_size=2))),
        votes=tuple(
            Vote(*edge, draw(st.sampled_from(["first", "second", "tie"])), draw(_NAME))
            for edge in draw(several)
        ),
        source=draw(_NAME),
        meta=draw(st.dictionaries(_TEXT, _JSON, max_size=2)),
    )


@settings(max_examples=100, deadline=None)
@given(group=groups())
def test_json_gives_a_group_back(group: Group) -> None:
    assert from_json(json.loads(json.dumps(to_json(group)))) == group


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst"])
@settings(max_examples=25, deadline=None)
@given(written=st.lists(groups(), min_size=1, max_size=5))
def test_a_file_gives_the_groups_back(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, written: list[Group]
) -> None:
    """Also groups with the same prompt, the same texts, empty texts or uncounted votes."""
    path = tmp_path_factory.mktemp("groups") / f"groups{suffix}"
    assert write_groups(path, written) == len(written)
    reader = read_groups(path)
    assert list(reader) == written
    assert reader.rows == len(written) and not reader.skipped


def test_origins_are_not_part_of_the_value(tmp_path: Path) -> None:
    first = Group("p", (Completion("a"),), origins=(Origin("x.jsonl", 1),))
    assert first == Group("p", (Completion("a"),))
    write_groups(tmp_path / "g.jsonl", [first])
    (read,) = read_groups(tmp_path / "g.jsonl")
    assert read.origins == (Origin(str(tmp_path / "g.jsonl"), 1),)


@pytest.mark.parametrize(
    "parts",
    [
        {"completions": ()},
        {"comparisons": (Comparison(0, 2),)},
        {"comparisons": (Comparison(-1, 0),)},
        {"comparisons": (Comparison(1, 1),)},
        {"comparisons": (Comparison(0, 1, probability=1.01),)},
        {"comparisons": (Comparison(0, 1, probability=float("nan")),)},
        {"comparisons": (Comparison(0, 1, weight=-0.1),)},
        {"comparisons": (Comparison(0, 1, weight=float("inf")),)},
        {"labels": (Label(2, True),)},
        {"votes": (Vote(0, 0, "tie"),)},
    ],
)
def test_a_group_that_makes_no_sense_is_refused(parts: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"."):
        Group(**{"prompt": "p", "completions": (Completion("a"), Completion("b")), **parts})


def test_prompt_keys_tell_prompts_apart() -> None:
    prompts = [
        "a",
        "A",
        "",
        (),
        (Message("user", "a"),),
        (Message("system", "a"),),
        (Message("user", "a"), Message("user", "")),
    ]
    keys = {prompt_key(prompt) for prompt in prompts}
    assert len(keys) == len(prompts) and {len(key) for key in keys} == {16}


def test_an_unknown_field_is_refused() -> None:
    with pytest.raises(ValueError, match="completion_s"):
        from_json({"prompt": "p", "completions": [{"text": "a"}], "completion_s": []})
