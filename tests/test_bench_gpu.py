"""The benchmark for a GPU still runs, on a CPU, and what it makes of figures is right."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture(autouse=True)
def _scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def smoke(out: Path, *arguments: str) -> dict[str, Any]:
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), "--smoke", "--threads", "1"]
    done = subprocess.run(
        [*command, "--out", str(out), *arguments], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "smoke hh" in done.stdout
    return json.loads(out.read_text(encoding="utf-8"))  # type: ignore[no-any-return]


def test_it_trains_on_both_workloads(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    record = smoke(out, "--contenders", "prefopt")
    result = record["models"]["smoke"]["prefopt"]
    for workload, pairs in (("hh", 12), ("four", 12)):
        found = result[workload]
        assert len(found["losses"]) == 4
        assert found["losses"][0] != pytest.approx(0.6931, abs=1e-4)  # not where all agree
        assert found["steps"] == 3
        assert found["pairs_per_second"] == pytest.approx(3 * pairs / found["seconds"])
        assert found["sharing"] == "trees"
        assert found["operations_per_second"] > 0
    assert set(record["summary"]) == {"smoke hh", "smoke four"}


def test_it_goes_on_where_the_budget_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gpu, made = importlib.import_module("gpu"), []
    monkeypatch.setattr(gpu, "provenance", lambda _: {"commit": "x", **same})
    monkeypatch.setattr(gpu, "prepare", lambda *_: None)
    same = {"code": "c", "hardware": "h", "versions": "v"}

    def run(contender: str, *_: Any) -> dict[str, Any]:
        made.append(contender)
        return figures(pairs_per_second=1.0)

    monkeypatch.setattr(gpu, "run", run)
    arguments = ["--smoke", "--contenders", "prefopt,trl-4", "--out", str(tmp_path / "gpu.json")]
    gpu.main([*arguments, "--budget", "-1"])
    assert made == []
    gpu.main([*arguments, "--contenders", "prefopt"])
    gpu.main(arguments)
    assert made == ["prefopt", "trl-4"]
    same["code"] = "d"
    gpu.main(arguments)
    assert made == ["prefopt", "trl-4"] * 2
    assert capsys.readouterr().out.count("smoke hh") == 3


@pytest.mark.slow
def test_trl_has_the_same_rows_and_losses(tmp_path: Path) -> None:
    pytest.importorskip("trl")
    record = smoke(tmp_path / "gpu.json", "--contenders", "prefopt,trl-4")
    for entry in record["summary"].values():
        assert entry["same_tokens"]
        assert entry["largest_relative_difference_of_losses"] < 1e-5
        assert entry["promised"]["same_rows_and_losses"]


def test_the_count_is_that_of_unique_tokens() -> None:
    """By hand: one layer, three tokens of a prompt and two branches of one token each."""
    import numpy as np

    from prefopt.engine.forest import build_forest
    from prefopt.engine.tokens import TokenGroup

    contenders = importlib.import_module("gpu_contenders")
    shape = contenders.Shape(8, 16, 1, 2, num_key_value_heads=1, head_dim=4, vocab_size=10)
    ids = [np.array(x, dtype=np.int32) for x in ([1, 2, 3, 4, 5], [6], [7])]
    found = contenders._work(shape, [build_forest([TokenGroup(ids[0], (ids[1], ids[2]))])])
    assert (found["tokens"], found["predictions"]) == (7, 2)
    # Key and value 8×4 each of all tokens; query and output 8×8, gate and up 8×16 each and down
    # 16×8 of the last layer, which is the only one, where something is predicted.
    products = 2 * (2 * 32 * 7 + (64 + 64 + 3 * 128) * 2)
    head = 2 * 8 * 10 * 2
    attention = 4 * 2 * 4 * (5 + 5)  # the prompt's last token predicts both
    assert found["operations"] == 3 * (products + head + attention)


def figures(**of: Any) -> dict[str, Any]:
    """Results of both workloads."""
    base = {"peak_mib": 10.0, "tokens": "a", "losses": [0.7, 0.6], "operations_per_second": 5.0}
    return {"product_rate": 10.0, "hh": {**base, **of}, "four": {**base, **of}}


def test_promises_are_judged_against_the_best_of_both_sides() -> None:
    gpu = importlib.import_module("gpu")
    record: dict[str, Any] = {
        "device": "made up", "commit": "x", "models": {"1.7B": {
            "prefopt": figures(pairs_per_second=50.0),
            "prefopt-wide": figures(pairs_per_second=60.0, losses=[0.7, 0.606]),
            "trl-16": figures(pairs_per_second=20.0, peak_mib=40.0),
            "trl-32": {"failed": "out of memory"},
            "trl-64": figures(pairs_per_second=10.0),
        }},
    }  # fmt: skip
    record["summary"] = gpu.summary(record)
    hh, four = record["summary"]["1.7B hh"], record["summary"]["1.7B four"]
    assert (hh["prefopt"], hh["trl"]) == ("prefopt-wide", "trl-16")
    assert hh["times_as_fast"] == 3.0
    assert hh["share_of_memory"] == 0.25
    assert hh["share_of_product_rate"] == 0.5
    assert hh["largest_relative_difference_of_losses"] == pytest.approx(0.01)
    assert hh["promised"] == {
        "same_rows_and_losses": True,
        "2_times_trl": True,
        "45%_of_product_rate": True,
    }
    assert four["promised"] == {"same_rows_and_losses": True, "4_times_trl": False}
    shown = "\n".join(gpu.table(record))
    assert "3.00 ×" in shown and "missed: 4_times_trl" in shown and "trl-32 failed" in shown


@pytest.mark.parametrize("wrong", [{"tokens": "b"}, {"losses": [0.7, 0.7]}])
def test_no_promise_is_kept_on_other_rows_or_losses(wrong: dict[str, Any]) -> None:
    gpu = importlib.import_module("gpu")
    models = {
        "0.6B": {
            "prefopt": figures(pairs_per_second=50.0, **wrong),
            "trl-16": figures(pairs_per_second=5.0),
        }
    }
    for entry in gpu.summary({"models": models}).values():
        assert entry["times_as_fast"] == 10.0
        assert not any(entry["promised"].values())
