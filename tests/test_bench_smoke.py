"""The benchmark still runs: every contender trains on the same rows to the same losses."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
VERSUS = ROOT / "benchmarks" / "versus.py"


def versus(out: Path, contenders: str) -> dict:
    command = [sys.executable, str(VERSUS), "--smoke", "--threads", "1"]
    command += ["--contenders", contenders, "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=out.parent, timeout=900)
    assert done.returncode == 0, done.stderr
    assert contenders.split(",")[0] in done.stdout
    return json.loads(out.read_text())


def check(report: dict, contenders: list[str]) -> None:
    assert list(report["summary"]) == contenders
    assert report["agreement"]["same_tokens"]
    assert report["agreement"]["largest_relative_difference"] < 1e-4
    first, second = report["agreement"]["losses"]["prefopt"]
    assert first != pytest.approx(0.6931, abs=1e-3)  # not log 2, where any mistake agrees
    assert second < first
    for result in report["turns"][0].values():
        assert result["pairs"] == 8
        assert result["peak_mib"] > result["held_mib"] > 0
    turn = report["turns"][0]
    for ratio in report["ratios"]:
        if ratio["contender"] == "prefopt" and ratio["what"] == "pairs/s against the plain loop":
            speeds = [turn[name]["pairs_per_second"] for name in ("prefopt", "plain")]
            assert ratio["median"] == pytest.approx(speeds[0] / speeds[1])
            break
    else:
        pytest.fail("no ratio of prefopt to the plain loop")


def test_versus_compares_the_same_training(tmp_path: Path) -> None:
    contenders = ["prefopt", "prefopt-each-step", "plain"]
    check(versus(tmp_path / "figures.json", ",".join(contenders)), contenders)


@pytest.mark.slow
@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("trl", "datasets")),
    reason="needs the extra `bench`",
)
def test_versus_with_trl(tmp_path: Path) -> None:
    contenders = ["prefopt", "trl", "trl-best", "plain"]
    check(versus(tmp_path / "figures.json", ",".join(contenders)), contenders)


def test_contenders_that_disagree_are_not_timed(tmp_path: Path) -> None:
    """A contender with another beta would be caught before anything is timed."""
    spec = importlib.util.spec_from_file_location("versus", VERSUS)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.child = lambda name, *_: json.dumps(
        {"losses": [0.8, 0.7 if name == "plain" else 0.702], "tokens": "same"}
    )
    options = type("Options", (), {"batch": 4})()
    with pytest.raises(SystemExit, match="do not agree"):
        module.check_agreement(["plain", "prefopt"], tmp_path, options)
    agreed = module.check_agreement(["plain"], tmp_path, options)
    assert agreed["largest_relative_difference"] == 0
