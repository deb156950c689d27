"""The demonstration, in its quick size: every stage, every file, the same numbers twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prefopt.errors import RunError


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    from prefopt.demo import run_demo

    out = tmp_path_factory.mktemp("demo") / "quick"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFOPT_CACHE", str(out.parent / "cache"))
        return out, run_demo(out, quick=True, progress=False)


def test_the_policy_is_preferred(finished: tuple[Path, dict[str, Any]]) -> None:
    """Even the small run moves the right way, by more than chance."""
    _, result = finished
    low, high = result["win_rate_interval"]
    assert 0.5 < low < result["win_rate"] < high < 1
    assert result["reward_after"] > result["reward_before"] + 0.1
    assert 0 < result["kl"] < 30


def test_the_numbers_are_those_of_the_samples(finished: tuple[Path, dict[str, Any]]) -> None:
    from prefopt.data.worlds import ReviewWorld, split_of

    out, result = finished
    world = ReviewWorld()
    rows = [json.loads(line) for line in (out / "dpo" / "samples.jsonl").read_text().splitlines()]
    assert len({row["prompt"] for row in rows}) == result["prompts"] == len(rows)
    gaps = []
    for row in rows:
        assert split_of(row["prompt"]) == "test"
        before, after = (world.reward(row["prompt"], row[side]) for side in ("before", "after"))
        assert (row["reward_before"], row["reward_after"]) == (before, after)
        gaps.append(after - before)
    wins = sum(gap > 0 for gap in gaps) + sum(gap == 0 for gap in gaps) / 2
    assert result["win_rate"] == pytest.approx(wins / len(rows))
    assert result["ties"] == pytest.approx(sum(gap == 0 for gap in gaps) / len(rows))


def test_nothing_was_trained_on_other_prompts(finished: tuple[Path, dict[str, Any]]) -> None:
    from prefopt.data.formats import read_groups
    from prefopt.data.worlds import split_of

    out, _ = finished
    for name, split in (
        ("world/reviews.jsonl", "train"),
        ("pairs.jsonl", "train"),
        ("heldout.jsonl", "validation"),
    ):
        assert {split_of(str(group.prompt)) for group in read_groups(out / name)} == {split}


def test_what_it_leaves(finished: tuple[Path, dict[str, Any]]) -> None:
    from prefopt.policies.load import load_policy

    out, result = finished
    for name in ("sft/manifest.json", "dpo/manifest.json", "dpo/evaluation.json"):
        assert (out / name).exists()
    assert Path(result["report"]) == out / "dpo" / "report.html"
    page = (out / "dpo" / "report.html").read_text(encoding="utf-8")
    assert f"{100 * result['win_rate']:.0f}" in page
    load_policy(out / "dpo" / "model")
    assert not list(out.glob(".*.part"))


def test_again_is_free_and_the_same(
    finished: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefopt import demo

    out, result = finished
    stamps = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    monkeypatch.setattr(demo, "_make_model", None)  # nothing is made a second time
    again = demo.run_demo(out, quick=True, progress=False)
    assert {**again, "seconds": 0} == {**result, "seconds": 0}
    touched = [path for path, stamp in stamps.items() if path.stat().st_mtime_ns != stamp]
    assert {path.name for path in touched} <= {".lock", "report.html"}


def test_one_seed_one_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the last bit: pairs, weights and figures; another seed gives others."""
    from prefopt import demo

    small = demo.Scale(documents=200, prompts=16, heldout=4, test=16, hidden=32, layers=1)
    monkeypatch.setattr(demo, "QUICK", small)

    def made(name: str, seed: int) -> tuple[bytes, bytes, bytes]:
        monkeypatch.setenv("PREFOPT_CACHE", str(tmp_path / f"cache-{name}"))
        demo.run_demo(tmp_path / name, seed=seed, quick=True, progress=False)
        files = ("pairs.jsonl", "dpo/model/model.safetensors", "dpo/evaluation.json")
        first, second, third = ((tmp_path / name / file).read_bytes() for file in files)
        return first, second, third

    once = made("once", 0)
    assert made("twice", 0) == once
    assert all(a != b for a, b in zip(made("other", 1), once, strict=True))


def test_a_folder_of_something_else_is_refused(
    finished: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    from prefopt.demo import run_demo

    out, _ = finished
    with pytest.raises(RunError, match="another seed"):
        run_demo(out, seed=1, quick=True, progress=False)
    (tmp_path / "thesis.txt").write_text("…")
    with pytest.raises(RunError, match="not a demonstration"):
        run_demo(tmp_path, quick=True, progress=False)
    assert [path.name for path in tmp_path.iterdir() if path.name != "prefopt-cache"] == [
        "thesis.txt"
    ]
