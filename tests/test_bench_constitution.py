"""The benchmark of constitutions: its reviser, its figures by hand, and that it runs."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from prefopt.data.formats import read_groups
from prefopt.data.worlds import ReviewWorld

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def bench() -> Any:
    spec = importlib.util.spec_from_file_location(
        "bench_constitution", ROOT / "benchmarks" / "constitution.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_reviser_does_what_its_principles_say(bench: Any) -> None:
    phrases, ending = SimpleNamespace(name="no-phrases"), SimpleNamespace(name="same-ending")
    text = " was dull. To be honest, the plot was good. All in all, it was a good film."
    assert bench.revise("It", text, phrases) == " was dull. The plot was good. It was a good film."
    assert bench.revise("It", " was dull.", phrases) == " was dull."
    assert bench.revise("It", " was dull.", ending) == " was dull. It began on time."
    assert bench.revise("It", " was dull. It began on time.", ending).count("began") == 1


def test_revisions_are_as_good_english_as_what_they_revise(bench: Any) -> None:
    """Else a loss of helpfulness would be the reviser's, not the training's."""
    world, faults = ReviewWorld(), {name: [0.0, 0.0] for name in ("no-phrases", "same-ending")}
    for prompt, text in world.documents(400, seed=3):
        for name, sums in faults.items():
            sums[0] += world.faults(prompt, text)
            sums[1] += world.faults(prompt, bench.revise(prompt, text, SimpleNamespace(name=name)))
    assert all(after <= before + 0.01 * 400 for before, after in faults.values())


def row(policy: str, seed: int, helpful: list[list[float]], phrases: list[list[float]]) -> Any:
    zeros = [[0.0] * len(answers) for answers in helpful]
    return {
        "policy": policy, "seed": seed, "helpful": helpful, "phrases": phrases, "ending": zeros,
        "reward": zeros, "words": zeros, "kl": float(seed), "seconds": 1.0,
        **({} if policy == "fine-tuned" else {"pairs": 5 + seed}),
    }  # fmt: skip


def test_figures_by_hand(bench: Any) -> None:
    rows = [
        row("fine-tuned", 0, [[1.0, 0.5], [1.0, 1.0]], [[1, 0], [1, 0]]),
        row("fine-tuned", 1, [[0.8, 0.8], [0.8, 0.8]], [[1, 1], [0, 0]]),
        row("no phrases", 0, [[0.7, 0.7], [0.7, 0.7]], [[0, 0], [1, 0]]),
        row("no phrases", 1, [[0.8, 0.8], [0.8, 0.8]], [[0, 0], [0, 0]]),
    ]
    before, after = bench.summary(rows)
    assert before["phrases"]["mean"] == 0.5 and after["phrases"]["mean"] == 0.125
    assert before["helpful"]["seeds"] == pytest.approx([0.875, 0.8])
    assert after["helpfulness_lost"] == pytest.approx(1 - 0.75 / 0.8375)
    assert after["helpfulness_lost_by_seed"] == pytest.approx([0.2, 0.0])
    assert after["kl"] == 0.5 and after["pairs"] == [5, 6] and before["pairs"] == []
    assert "| no phrases | 5, 6 | 0.125 (" in bench.show([before, after])


def test_it_runs_from_the_world_to_its_figures(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFOPT_CACHE", str(tmp_path / "cache"))
    tiny = bench.Bench(tmp_path, seeds=(0,), tiny=True, epochs=1)
    rows = [bench.run(tiny, 0, name) for name in ("fine-tuned", "same ending")]
    assert rows[0]["kl"] == pytest.approx(0.0, abs=1e-3)
    assert rows[1]["pairs"] == rows[1]["principle"]["better"] > 0
    (pairs,) = tmp_path.glob("world-0/same-ending.jsonl")
    for group in read_groups([str(pairs)]):
        assert group.completions[0].text.endswith(bench.ENDING)
    assert json.loads(json.dumps(rows)) == rows
