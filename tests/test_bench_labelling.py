"""The benchmark of the labelling room still runs, and says what it measured."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import postgres

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_both_kinds_of_traffic_are_measured(tmp_path: Path, database: str) -> None:
    if database == "postgresql" and postgres.programs() is None:
        pytest.skip("no PostgreSQL server here")
    out = tmp_path / "labelling.json"
    command = [sys.executable, str(BENCHMARKS / "labelling.py"), "--smoke", "--out", str(out),
               "--databases", database, "--processes", "2"]  # fmt: skip
    done = subprocess.run(command, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr[-3000:]
    record = json.loads(out.read_text())
    assert list(record["cases"]) == [f"{database} hurried", f"{database} steady"]
    for case in record["cases"].values():
        assert case["votes"] == 60 and case["items"] == 30
        times = case["answer_ms"]
        assert 0 < times["p50"] <= times["p95"] <= times["p99"] <= times["most"] < 20_000
        assert case["answers"] >= 60 and case["troubles"] == {}
        assert case["answers_per_second"] * case["seconds"] == pytest.approx(case["answers"])
        assert 0 < case["of_it_annotators"] < case["processors"] + 0.1
        assert case["bytes_per_answer"] > 100
    assert "## The labelling room under a crowd" in done.stdout
    assert f"| {database} steady |" in done.stdout


def test_percentiles_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    script: Any = importlib.import_module("labelling")
    found = script.percentiles([n / 1000 for n in range(100, 0, -1)])
    assert found == pytest.approx({"p50": 51, "p95": 96, "p99": 100, "most": 100})
