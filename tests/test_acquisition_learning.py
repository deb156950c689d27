"""Does it help to choose? Labels are asked for and learned from, on worlds whose truth is known."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
SEEDS, BUDGET = 16, 40


@pytest.fixture(scope="module")
def bench() -> Any:
    spec = importlib.util.spec_from_file_location(
        "bench_acquisition", ROOT / "benchmarks" / "acquisition.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def learned(bench: Any) -> dict[str, np.ndarray]:
    """Held-out accuracies after 40 labels by strategy, one a world."""
    return {
        strategy: np.array([bench.learn(strategy, seed, (BUDGET,))[0] for seed in range(SEEDS)])
        for strategy in ("random", "bald", "d-optimal")
    }


@pytest.mark.parametrize("strategy", ["bald", "d-optimal"])
def test_choosing_beats_random_by_three_points(
    learned: dict[str, np.ndarray], strategy: str
) -> None:
    gain = learned[strategy] - learned["random"]  # on the same worlds
    assert gain.mean() >= 0.03
    assert gain.mean() > 2 * gain.std(ddof=1) / np.sqrt(SEEDS)


def test_random_is_neither_chance_nor_perfect(learned: dict[str, np.ndarray]) -> None:
    assert 0.7 < learned["random"].mean() < 0.85


def test_the_budget_is_what_is_used(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[int] = []
    fit = bench.fit
    monkeypatch.setattr(bench, "fit", lambda x, y: (used.append(len(y)), fit(x, y))[1])
    bench.learn("d-optimal", 0, (24, BUDGET))
    assert used == list(range(4, 44, 4))


def test_the_benchmark_still_runs(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    assert bench.main(["--smoke", "--out", str(tmp_path / "out.json")]) == 0
    record = json.loads((tmp_path / "out.json").read_text())
    assert set(record["learning"]["skewed"]) == set(bench.COMPARED)
    assert record["learning"]["isotropic"]["random"]["gain"] == [0.0]
    assert all(run["seconds"] > 0 for run in record["cost"]["runs"])
