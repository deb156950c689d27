"""`prefopt split`: nothing is lost, no prompt is on both sides, and whole topics stay together."""

from __future__ import annotations

import json
import os
import random
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prefopt.cli.app import run
from prefopt.data.checking.clusters import Clusters
from prefopt.data.formats import read_groups
from prefopt.data.parts import Parts
from prefopt.data.splitting import _drawn_parts, split
from prefopt.errors import DataError, RecipeError, RunError
from prefopt.records import Group
from prefopt.runs import fingerprint_file
from tests import planting
from tests.test_clusters import TOPICS, about, everything

Row = dict[str, Any]


def pairs(prompts: list[str]) -> list[Row]:
    return [{"prompt": p, "chosen": f"yes {n}", "rejected": "no"} for n, p in enumerate(prompts)]


def write(path: Path, rows: list[Row]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def sides(folder: Path) -> tuple[list[Group], list[Group]]:
    train, test = (list(read_groups(folder / f"{name}.jsonl")) for name in ("train", "eval"))
    return train, test


def topic_of(prompt: str) -> str:
    return next(name for name, words in TOPICS.items() if prompt.split()[-1] in words)


def prompts_of(groups: list[Group]) -> set[str]:
    return {group.prompt_text for group in groups}


@pytest.mark.parametrize("by", ["cluster", "prompt"])
def test_every_group_is_on_one_side_as_it_was(tmp_path: Path, by: Any) -> None:
    rows = [planting.plain(pair) for pair in planting.clean(250, seed=3)]
    rows += [
        {**row, "chosen": f"{row['chosen']} Indeed."} for row in rows[::7]
    ]  # prompts come again
    path = write(tmp_path / "rows.jsonl", rows)
    result = split(path, tmp_path / "out", share=0.2, by=by)
    train, test = sides(tmp_path / "out")
    assert not prompts_of(train) & prompts_of(test)
    groups = list(read_groups(path))
    at = {id(group): place for place, group in enumerate(groups)}
    for side in (train, test):  # in the order in which they were
        order = [at[id(next(g for g in groups if g == group))] for group in side]
        assert order == sorted(order)
    assert len(train) + len(test) == len(groups)
    for name, side in (("train", train), ("eval", test)):
        assert result[name]["groups"] == len(side) == result[name]["prompts"]
        assert result[name]["comparisons"] == sum(len(group.comparisons) for group in side)
        assert result[name]["path"] == str(tmp_path / "out" / f"{name}.jsonl")
    assert result["share"] == pytest.approx(len(test) / len(groups))
    assert abs(result["share"] - 0.2) < 0.03


def test_whole_clusters_go_to_one_side(tmp_path: Path) -> None:
    prompts, _ = everything(50)
    path = write(tmp_path / "rows.jsonl", pairs(prompts))
    # as many clusters as topics, each a quarter: one of them is what evaluation gets
    result = split(path, tmp_path / "out", share=0.25, clusters=4)
    train, test = sides(tmp_path / "out")
    assert result["clusters"] >= 4 and 40 <= len(test) <= 60
    parts = Parts(sorted(prompts), largest=50 / 4, count=4, seed=0)
    found = dict(zip(prompts, parts.of(prompts), strict=True))
    assert not {found[p] for p in prompts_of(train)} & {found[p] for p in prompts_of(test)}


def test_a_large_topic_is_divided_so_that_evaluation_has_some_of_it(tmp_path: Path) -> None:
    prompts = about("kitchen", 400) + about("sea", 40) + about("music", 40)
    path = write(tmp_path / "rows.jsonl", pairs(prompts))
    kitchens = []
    for seed in range(3):
        result = split(path, tmp_path / str(seed), share=0.2, clusters=3, seed=seed)
        _, test = sides(tmp_path / str(seed))
        kitchens.append(sum(topic_of(group.prompt_text) == "kitchen" for group in test))
        assert abs(result["share"] - 0.2) < 0.05
    assert np.mean(kitchens) > 0.1 * 400


def test_parts_are_as_small_as_asked_where_prompts_differ() -> None:
    prompts, _ = everything(100)
    parts = Parts(prompts, 20, count=4, seed=0)
    sizes = np.bincount(parts.of(prompts))
    assert sizes.max() <= 20 and (sizes > 0).sum() >= 20
    whole = Clusters.fit(prompts, count=4, seed=0).of(prompts)
    inside = {(part, cluster) for part, cluster in zip(parts.of(prompts), whole, strict=True)}
    assert len(inside) == (sizes > 0).sum()  # no part has prompts of two clusters
    same = Parts(["again and again"] * 9, 2, count=3, seed=0)
    assert same.count == 1


def test_prompts_that_say_nearly_the_same_stay_together(tmp_path: Path) -> None:
    rng = random.Random(0)
    prompts = [pair.prompt for pair in planting.clean(150, seed=6) if len(pair.prompt.split()) > 12]
    families = [[p, p.upper(), f"{p} Thanks.", f"Hello! {p}"] for p in dict.fromkeys(prompts)]
    texts = [text for family in families for text in family]
    rng.shuffle(texts)
    path = write(tmp_path / "rows.jsonl", pairs(texts))
    for seed in range(3):
        result = split(path, tmp_path / str(seed), share=0.3, seed=seed)
        _, test = sides(tmp_path / str(seed))
        held = prompts_of(test)
        assert {sum(text in held for text in family) for family in families} == {0, 4}
        assert result["kept_together"] == 3 * len(families)


def test_they_stay_together_whatever_cluster_they_are_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Scattered:
        """Parts that have nothing to do with what is said."""

        def __init__(self, prompts: list[str], largest: float, **options: Any) -> None: ...

        def of(self, prompts: list[str]) -> Any:
            return np.array([zlib.crc32(prompt.encode()) % 40 for prompt in prompts])

    monkeypatch.setattr("prefopt.data.splitting.Parts", Scattered)
    asked = list(dict.fromkeys(pair.prompt for pair in planting.clean(120, seed=6)))
    path = write(
        tmp_path / "rows.jsonl", pairs([text for one in asked for text in (one, one.upper())])
    )
    split(path, tmp_path / "out", share=0.3)
    held = prompts_of(sides(tmp_path / "out")[1])
    assert {(one in held) + (one.upper() in held) for one in asked} == {0, 2}


def test_parts_are_drawn_to_come_closest_to_the_share() -> None:
    sizes = np.array([500, *np.random.default_rng(0).integers(1, 20, size=60)])
    drawn = [_drawn_parts(sizes, 0.2, seed) for seed in range(50)]
    assert not any(chosen[0] for chosen in drawn)  # larger than all that evaluation gets
    assert all(abs(sizes[chosen].sum() - 0.2 * sizes.sum()) <= 10 for chosen in drawn)
    often = np.mean(drawn, axis=0)[1:]
    assert len({chosen.tobytes() for chosen in drawn}) == 50 and often.min() > 0
    assert _drawn_parts(np.array([7, 7]), 0.01, 0).sum() == 1  # one at the least
    assert _drawn_parts(np.array([1, 1, 1]), 0.99, 0).sum() == 2  # and not all


def test_the_order_of_rows_changes_nothing_and_the_seed_much(tmp_path: Path) -> None:
    rows = pairs(everything(30)[0])
    one = write(tmp_path / "one.jsonl", rows)
    other = write(tmp_path / "other.jsonl", random.Random(1).sample(rows, len(rows)))
    for by in ("cluster", "prompt"):
        found = []
        for place, (path, seed) in enumerate(((one, 0), (one, 0), (other, 0), (one, 1))):
            split(path, tmp_path / f"{by}{place}", by=by, seed=seed)  # type: ignore[arg-type]
            found.append(prompts_of(sides(tmp_path / f"{by}{place}")[1]))
        assert found[0] == found[1] == found[2] != found[3]
        texts = [(tmp_path / f"{by}{n}" / "eval.jsonl").read_bytes() for n in (0, 1)]
        assert texts[0] == texts[1]


def test_prompts_that_stay_for_evaluation_when_data_grows(tmp_path: Path) -> None:
    """By prompt the smallest digests are drawn, so new rows only push some out."""
    prompts, _ = everything(40)
    split(write(tmp_path / "a.jsonl", pairs(prompts[:100])), tmp_path / "a", by="prompt", share=0.3)
    split(write(tmp_path / "b.jsonl", pairs(prompts)), tmp_path / "b", by="prompt", share=0.3)
    before, after = (prompts_of(sides(tmp_path / name)[1]) for name in "ab")
    assert len(before) == 30 and len(after) == 48
    kept = after & set(prompts[:100])
    assert kept <= before or before <= kept


def test_groups_of_our_own_with_one_prompt_are_on_one_side(tmp_path: Path) -> None:
    own = [
        {"prompt": prompt, "completions": [{"text": f"{n}"}, {"text": "no"}],
         "comparisons": [{"preferred": 0, "dispreferred": 1}]}
        for prompt in everything(10)[0] for n in range(3)
    ]  # fmt: skip
    path = write(tmp_path / "rows.jsonl", own)
    result = split(path, tmp_path / "out", by="prompt", share=0.25)
    train, test = sides(tmp_path / "out")
    assert (len(train), len(test)) == (90, 30) and not prompts_of(train) & prompts_of(test)
    assert result["eval"]["prompts"] == 10 and result["eval"]["groups"] == 30


def test_the_manifest_says_how_it_was_made(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", pairs(everything(20)[0]))
    result = split([path], tmp_path / "out", seed=4)
    manifest = json.loads((tmp_path / "out" / "split.json").read_text())
    assert result["manifest"] == str(tmp_path / "out" / "split.json")
    assert manifest["sources"] == [{"file": str(path), "fingerprint": fingerprint_file(path)}]
    assert (manifest["seed"], manifest["by"], manifest["asked_share"]) == (4, "cluster", 0.1)
    assert manifest["train"] == {**result["train"], "path": "train.jsonl"}
    assert manifest["versions"]["prefopt"] and manifest["share"] == result["share"]
    assert sorted(os.listdir(tmp_path / "out")) == ["eval.jsonl", "split.json", "train.jsonl"]


# -- refusals ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (["one"] * 5, {}, "all rows have one prompt"),
        (["one"] * 5, {"by": "prompt"}, "all rows have one prompt"),
        (["say it", "Say it!", "SAY IT"], {}, "all prompts are in one cluster"),
        (["one", "two"], {"share": 0}, "evaluation needs some"),
        (["one", "two"], {"share": 1.0}, "evaluation needs some"),
        (["one", "two"], {"by": "prompt", "clusters": 5}, "no clusters are made"),
        (["one", "two"], {"clusters": 1}, "one cluster cannot be divided"),
    ],
)
def test_what_cannot_be_divided_is_refused(
    tmp_path: Path, rows: list[str], options: Row, message: str
) -> None:
    path = write(tmp_path / "rows.jsonl", pairs(rows))
    with pytest.raises(RecipeError, match=message):
        split(path, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_nothing_is_overwritten_and_nothing_half_written(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", pairs(everything(10)[0]))
    (tmp_path / "out").mkdir()
    split(path, tmp_path / "out")  # an empty folder will do
    with pytest.raises(RunError, match="something already"):
        split(path, tmp_path / "out")
    path.write_text(path.read_text() + '{"prompt": "p"\n')
    with pytest.raises(DataError, match="not valid JSON"):
        split(path, tmp_path / "other")
    assert sorted(os.listdir(tmp_path)) == ["out", "rows.jsonl"]
    result = split(path, tmp_path / "other", on_error="skip")
    assert result["skipped"] == {"unreadable_row": 1}
    assert result["train"]["groups"] + result["eval"]["groups"] == 40


def test_two_prompts_can_be_divided(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", pairs(["why do birds sing", "how deep is the sea"]))
    for by in ("cluster", "prompt"):
        result = split(path, tmp_path / by, by=by)  # type: ignore[arg-type]
        assert (result["train"]["groups"], result["eval"]["groups"]) == (1, 1)


# -- the command ---------------------------------------------------------------------------


def test_the_command_prints_one_object(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "rows.jsonl", pairs(everything(25)[0]))
    out = str(tmp_path / "out")
    assert run(["split", str(path), "--out", out, "--share", "0.2", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert {"train", "eval", "clusters", "seed", "share", "skipped", "manifest"} <= set(document)
    assert document["eval"]["path"] == os.path.join(out, "eval.jsonl")
    assert run(["split", str(path), "--out", out]) == 1
    assert "never overwrites" in capsys.readouterr().err
    assert run(["split", str(path), "--out", f"{out}2", "--by", "prompt", "--share", "0.5"]) == 0
    shown = capsys.readouterr().out
    assert "50.0 % of the prompts" in shown and "50 groups" in shown


@pytest.mark.parametrize(
    "flags", [["--share", "0"], ["--share", "1"], ["--by", "row"], ["--clusters", "1"],
              ["--by", "prompt", "--clusters", "4"]],
)  # fmt: skip
def test_wrong_settings_are_wrong_input(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str]
) -> None:
    path = write(tmp_path / "rows.jsonl", pairs(["one", "two"]))
    assert run(["split", str(path), "--out", str(tmp_path / "out"), *flags]) == 2
    assert capsys.readouterr().err


def test_the_rows_of_hh_can_be_divided(tmp_path: Path, shared_data: Path) -> None:
    path = shared_data / "hh_harmless" / "harmless_base_1512.jsonl.gz"
    result = split(path, tmp_path / "out", on_error="skip")
    train, test = sides(tmp_path / "out")
    assert not prompts_of(train) & prompts_of(test)
    assert abs(result["share"] - 0.1) < 0.03 and result["eval_clusters"] >= 3
