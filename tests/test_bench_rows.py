"""The benchmark of data of any size still runs, and its figures are figures."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.slow
def test_rows_measures_memory_and_rates(tmp_path: Path) -> None:
    out = tmp_path / "rows.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "rows.py"), "--smoke", "--threads", "1"]
    done = subprocess.run(
        [*command, "--work", str(tmp_path), "--out", str(out)],
        capture_output=True, text=True, cwd=tmp_path, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(out.read_text())
    small, large = report["memory"]["runs"].values()
    assert (small["rows"], large["rows"]) == (700, 1400)
    assert small["peak_mib"] > 100 and report["memory"]["ratio"] < 1.1
    assert small["tokens"] < large["tokens"]
    for run in (small, large, report["rates"]["generated"]):
        assert 0 < run["again"]["seconds"] < run["seconds"]
    assert not [*tmp_path.glob("tmp*")]
