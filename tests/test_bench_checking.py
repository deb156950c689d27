"""The benchmark of `prefopt check` still runs, and says what it measured."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("checking")


def test_every_case_is_measured(tmp_path: Path) -> None:
    out = tmp_path / "checking.json"
    command = [sys.executable, str(BENCHMARKS / "checking.py"), "--smoke", "--processes", "1"]
    done = subprocess.run([*command, "--out", str(out), "--work", str(tmp_path)], text=True,
                          capture_output=True)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    record = json.loads(out.read_text())
    assert list(record["cases"]) == ["long --quick", "long", "short --quick"]
    assert [case["rows"] for case in record["cases"].values()] == [800, 800, 3000]
    for case in record["cases"].values():
        assert case["comparisons"] == case["rows"]
        assert 0 < case["reading_seconds"] < case["seconds"]
        assert 0.02 < case["peak_gib"] < 2
    assert record["cases"]["short --quick"]["groups"] < 3000  # some prompts come again
    assert "## Checking data" in done.stdout and "short --quick" in done.stdout


def test_rows_are_what_they_say(script: Any, tmp_path: Path) -> None:
    short = [json.loads(line) for line in script.short_lines(500, 0)]
    assert 470 < len({row["prompt"] for row in short}) < 490
    sides = [len(row[side]) for row in short for side in ("chosen", "rejected")]
    assert 80 < sum(sides) / len(sides) < 160
    hh = tmp_path / "hh.jsonl"
    row = {side: f"\n\nHuman: q\n\nAssistant: {side}" for side in ("chosen", "rejected")}
    hh.write_text(json.dumps(row) + "\n")
    (first, second) = (json.loads(line) for line in script.long_lines(2, 0, hh))
    assert first["chosen"] == "\n\nHuman: (0) q\n\nAssistant: chosen"
    assert second["rejected"] == "\n\nHuman: (1) q\n\nAssistant: rejected"


def test_memory_is_that_of_all_descendants(script: Any) -> None:
    """A child that starts a child which holds 200 MB."""
    inner = "held = bytearray(200_000_000); held[::4096] = b'1' * len(held[::4096]); input()"
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}])"
    with script.Watch() as watch:
        child = subprocess.Popen([sys.executable, "-c", outer], stdin=subprocess.PIPE)
        while watch.peak < 200_000_000 and child.poll() is None:
            pass
        assert len(script.descendants(os.getpid())) >= 2
        child.communicate(b"\n")
    assert 200_000_000 < watch.peak < 400_000_000
