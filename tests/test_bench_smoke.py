"""The benchmarks still run, and what they count and compare is right.

One process runs all of `make bench` on a tiny model: what it writes is looked at here. What
it plans, judges and counts is tested by hand-made figures.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
BENCHMARKS = ROOT / "benchmarks"
RESULTS = BENCHMARKS / "results"
OURS_AND_PLAIN = ["prefopt", "prefopt-each-step", "plain"]


def run(script: str, *arguments: object) -> str:
    command = [sys.executable, str(BENCHMARKS / script), "--smoke", "--threads", "1"]
    command += [str(argument) for argument in arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of results as `make bench` writes it."""
    folder = tmp_path_factory.mktemp("results")
    run("bench.py", "--folder", folder, "--contenders", ",".join(OURS_AND_PLAIN))
    return folder


@pytest.fixture(autouse=True)
def _scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scripts import each other as scripts do: by name."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def load(name: str) -> Any:
    return importlib.import_module(name)


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))  # type: ignore[no-any-return]


# -- versus --------------------------------------------------------------------------------


def check_case(case: dict[str, Any], contenders: list[str]) -> None:
    assert case["complete"]
    assert list(case["summary"]) == contenders
    assert case["agreement"]["same_tokens"]
    assert case["agreement"]["largest_relative_difference"] < 1e-4
    first, second = case["agreement"]["losses"]["prefopt"]
    assert first != pytest.approx(0.6931, abs=1e-4)  # not log 2, where any mistake agrees
    assert second < first
    (turn,) = case["turns"]
    for result in turn.values():
        assert (result["steps"], result["pairs"]) == (2, 2 * case["settings"]["batch"])
        assert result["peak_mib"] >= 0.99 * result["held_mib"] > 0
    for ratio in case["ratios"]:
        ours, theirs = (turn[ratio[side]][ratio["key"]] for side in ("ours", "baseline"))
        assert ratio["median"] == pytest.approx(ours / theirs)
    kinds = {(ratio["ours"], ratio["baseline"], ratio["key"]) for ratio in case["ratios"]}
    assert len(kinds) == 2 * (len(contenders) - 2) * 3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hh-smoke", "four-smoke", "lora-smoke"])
def test_contenders_train_to_the_same_losses(results: Path, name: str) -> None:
    check_case(read(results / "versus.json")["cases"][name], OURS_AND_PLAIN)


@pytest.mark.slow
def test_a_group_of_four_is_six_comparisons(results: Path) -> None:
    workload = read(results / "versus.json")["cases"]["four-smoke"]["workload"]
    assert workload["count"] == 6 * 3  # a step is one group; one for the warm-up, two timed
    assert list(workload["tokens"]) == ["prompt", "answer 1", "answer 2", "answer 3", "answer 4"]


@pytest.mark.slow
@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("trl", "datasets")),
    reason="needs the extra `bench`",
)
def test_versus_with_trl(tmp_path: Path) -> None:
    contenders = ["prefopt", "prefopt-each-step", "trl", "trl-best", "plain"]
    run("versus.py", "--cases", "four-smoke", "--out", tmp_path / "versus.json")
    check_case(read(tmp_path / "versus.json")["cases"]["four-smoke"], contenders)


def test_contenders_that_disagree_are_not_timed(tmp_path: Path) -> None:
    """A contender with another beta would be caught before anything is timed."""
    versus, case = load("versus"), load("cases").SMOKES["hh-smoke"]

    def made_up(script: str, name: str, *_: str) -> str:
        losses = [0.8, 0.7 if name == "plain" else 0.702]
        return json.dumps({"losses": losses, "tokens": "same", "step_seconds": [0.5]})

    with pytest.raises(SystemExit, match="do not agree"):
        versus.check_agreement(["plain", "prefopt"], tmp_path, case, made_up)
    agreed, costs = versus.check_agreement(["plain"], tmp_path, case, made_up)
    assert agreed["largest_relative_difference"] == 0
    assert costs["plain"]["pair"] == 0.5 / case.check


def test_a_case_is_planned_by_what_a_step_costs() -> None:
    versus, case = load("versus"), load("cases").Case("hh", "14M", batch=8, steps=4, turns=3)
    costs = {"prefopt": {"pair": 0.1, "start": 5}, "trl": {"pair": 2.0, "start": 15}}

    def plan(minutes: float) -> dict[str, Any]:
        return versus.plan_case(case, costs, 60 * minutes)  # type: ignore[no-any-return]

    # a turn of 4 steps: 5 + 0.8 + 6 (three of 3.2 s would do) and 15 + 16 + 64
    assert plan(60) == {"steps": 4, "turns": 3, "expected_minutes": 5.3} | {
        "cycles": {"prefopt": 2, "trl": 1}
    }
    assert (plan(4)["steps"], plan(4)["turns"]) == (2, 3)
    assert (plan(3.1)["steps"], plan(3.1)["turns"]) == (3, 2)
    assert (plan(0)["steps"], plan(0)["turns"]) == (2, 2)  # never fewer
    assert plan(0)["cycles"]["prefopt"] == 4


@pytest.mark.slow
def test_what_was_measured_is_not_measured_again(
    results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measuring, versus, limit, growth = map(load, ("measuring", "versus", "limit", "growth"))
    measured = {
        versus.SCRIPTS: read(results / "versus.json")["cases"]["hh-smoke"]["code"],
        limit.SCRIPTS: read(results / "limit.json")["cases"]["lora-smoke"]["code"],
        growth.SCRIPTS: read(results / "growth.json")["code"],
    }
    monkeypatch.setattr(measuring, "code", measured.__getitem__)  # whatever is edited meanwhile
    for script in (versus, limit, growth):
        monkeypatch.setattr(script, "measure", lambda *_: pytest.fail("measured again"))
    arguments = ["--smoke", "--threads", "1", "--out"]
    chosen = ["--contenders", ",".join(OURS_AND_PLAIN)]

    def call(*more: str) -> None:
        assert versus.main([*chosen, *more, *arguments, str(results / "versus.json")]) == 0
        assert limit.main([*more, *arguments, str(results / "limit.json")]) == 0
        assert growth.main([*more, *arguments, str(results / "growth.json")]) == 0

    call()
    assert "hh-smoke" in capsys.readouterr().out
    with pytest.raises(pytest.fail.Exception, match="measured again"):
        call("--seed", "1")
    for scripts in measured:
        other = {**measured, scripts: "other code"}
        monkeypatch.setattr(measuring, "code", other.__getitem__)
        with pytest.raises(pytest.fail.Exception, match="measured again"):
            call()


def test_code_is_what_a_training_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measuring = load("measuring")
    source = tmp_path / "src" / "prefopt"
    for room in ("engine", "cli"):
        (source / room).mkdir(parents=True)
        (source / room / "file.py").write_text("1")
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "script.py").write_text("1")
    monkeypatch.setattr(measuring, "HERE", tmp_path / "bench")
    digest = measuring.code.__wrapped__
    before = digest(("script.py",))
    (source / "cli" / "file.py").write_text("2")
    assert digest(("script.py",)) == before  # no training enters there
    (source / "engine" / "file.py").write_text("2")
    after = digest(("script.py",))
    (tmp_path / "bench" / "script.py").write_text("2")
    assert len({before, after, digest(("script.py",))}) == 3


def test_no_case_begins_when_the_budget_is_spent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    versus = load("versus")
    monkeypatch.setattr(versus, "measure", lambda *_: pytest.fail("began"))
    assert versus.main(["--smoke", "--budget", "0", "--out", str(tmp_path / "v.json")]) == 0
    assert "hh-smoke, four-smoke, lora-smoke" in capsys.readouterr().err


def test_a_target_is_judged_by_the_median() -> None:
    cases = load("cases")

    def turn(ours: float, theirs: float, mib: float) -> dict[str, Any]:
        speeds = {"pairs_per_second": ours, "whole_pairs_per_second": 1.0, "peak_mib": mib}
        return {
            "prefopt": speeds,
            "trl": {"pairs_per_second": theirs, "whole_pairs_per_second": 1.0, "peak_mib": 1000.0},
        }

    turns = [turn(14.9, 1, 190), turn(15.1, 1, 210), turn(40, 2, 201)]
    speed, memory, _ = cases.ratios("hh-14M", turns)
    assert (speed["median"], speed["target"], speed["met"]) == (15.1, "≥ 15", True)
    assert (speed["least"], speed["most"]) == (14.9, 20)
    assert (memory["median"], memory["target"], memory["met"]) == (0.201, "≤ 1/5", False)
    assert "target" not in cases.ratios("hh-smoke", turns)[0]


def test_contenders_visit_the_rows_in_one_order(tmp_path: Path) -> None:
    """A fast contender repeats the timed rows, never those of the warm-up."""
    contenders = load("contenders")
    rows = [{"prompt": str(index)} for index in range(6)]
    task = contenders.Task(tmp_path, rows, 2, 1, 1, 2, 1e-6)
    assert [int(row["prompt"]) for row in task.order] == [0, 1, 2, 3, 4, 5, 2, 3, 4, 5]
    assert (task.steps, task.timed) == (5, 2)


# -- limit ---------------------------------------------------------------------------------


def llama() -> Any:
    shape = {"hidden_size": 8, "intermediate_size": 20, "vocab_size": 50, "head_dim": 4}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": 3}
    return SimpleNamespace(model_type="llama", **shape, **heads)


def test_operations_are_counted_as_by_hand() -> None:
    """One prompt of 3 tokens with answers of 2 and 1: 6 rows, 3 predictions."""
    from prefopt.engine.forest import build_forest
    from prefopt.engine.tokens import TokenGroup

    counting = load("counting")
    answers = (np.array([4, 5], dtype=np.int32), np.array([6], dtype=np.int32))
    group = TokenGroup(np.array([1, 2, 3], dtype=np.int32), answers)
    work = counting.count(counting.Architecture.of(llama()), [build_forest([group])])
    # The tree is too small to share (MIN_SHARED): both sequences are separate, 5 and 4 tokens.
    assert (work.tokens, work.predictions, work.seen) == (9, 3, 15 + 10)
    # In the last of three layers only 3 rows need more than keys and values, and as queries
    # they see 3 + 4 and 3 tokens.
    rest = 8 * 8 + 8 * 8 + 2 * 8 * 20 + 20 * 8
    linear = 9 * (2 * 8 * 4) * 3 + (9 * 2 + 3) * rest
    forward = 2 * (linear + 3 * 8 * 50) + 4 * 8 * (25 * 2 + 3 + 4 + 3)
    assert sum(work.by_phase["forward"].values()) == forward
    assert sum(work.by_phase["reference"].values()) == forward
    assert sum(work.by_phase["backward"].values()) == 2 * forward
    assert work.operations == 4 * forward


def test_frozen_layers_need_only_the_gradient_of_their_input() -> None:
    counting = load("counting")
    sizes = counting.Sizes(rows=10, predictions=4, seen=30, seen_last=20)
    whole = counting.Architecture.of(llama())
    lora = counting.Architecture.of(llama(), rank=2)
    full, part = whole.backward(sizes), lora.backward(sizes)
    assert {kind for kind in part if kind[1] == "to the weight"} == {("adapter", "to the weight")}
    assert part["down", "to the input"] == full["down", "to the input"]
    assert part["head", "to the input"] == full["head", "to the input"]
    # of three layers the first has nothing trained below its queries, keys and values
    assert part["query", "to the input"] * (10 + 10 + 4) == full["query", "to the input"] * (10 + 4)
    assert part["attention", "to the input"] == full["attention", "to the input"]
    widths = (8 + 8) + 2 * (8 + 4) + (8 + 8) + 2 * (8 + 20) + (20 + 8)
    once = 2 * 2 * ((10 + 10 + 4) * widths + 6 * 2 * (8 + 4))  # keys and values of all 10 rows
    assert part["adapter", "to the weight"] == once
    assert part["adapter", "to the input"] == once - 2 * 10 * 2 * 8 * 3
    on, off = (lora.forward(sizes, adapter=adapter) for adapter in (True, False))
    assert sum(on.values()) - sum(off.values()) == once
    assert sum(off.values()) == sum(whole.forward(sizes, adapter=False).values())


def test_an_unknown_architecture_is_not_counted() -> None:
    with pytest.raises(ValueError, match="gpt2"):
        load("counting").Architecture.of(SimpleNamespace(model_type="gpt2"))


def test_the_floor_is_operations_over_rates() -> None:
    operations = Counter({("down", "forward"): 600, ("head", "forward"): 100})
    rates = {("down", "forward"): 200.0, ("head", "forward"): 50.0}
    assert load("counting").floor(operations, rates) == 3 + 2


def test_an_inner_phase_is_not_part_of_the_outer_one(monkeypatch: pytest.MonkeyPatch) -> None:
    phases = load("phases")
    now = iter([0.0, 1.0, 3.0, 6.0])
    monkeypatch.setattr(phases.time, "perf_counter", lambda: next(now))
    clocks = phases.Clocks()
    outer = clocks.around(clocks.around(lambda: None, "inner"), "outer")
    outer()
    assert clocks.seconds == {"outer": 1 + 3, "inner": 2}


@pytest.mark.slow
def test_phases_of_a_training(results: Path) -> None:
    case = read(results / "limit.json")["cases"]["lora-smoke"]
    phases = case["phases"]
    assert case["work"]["steps"] == 2
    for name in ("preparing", "reference", "forward", "backward", "optimizer", "rest"):
        assert phases[name]["seconds"] > 0, name
    assert phases["check"]["seconds"] == 0  # it was made in the first, untimed training
    for name in ("reference", "forward", "backward"):
        assert phases[name]["share"] == phases[name]["floor"] / phases[name]["seconds"] > 0
    whole = sum(phase["seconds"] for phase in phases.values())
    assert case["whole"]["seconds"] == pytest.approx(whole)
    loop = whole - sum(phases[name]["seconds"] for name in ("preparing", "reference", "check"))
    assert case["steps"]["seconds"] == pytest.approx(loop)
    assert {"matrix products", "attention", "elementwise"} <= set(case["spent"])
    assert sum(kind["share"] for kind in case["spent"].values()) == pytest.approx(1)


# -- growth and tables ---------------------------------------------------------------------


@pytest.mark.slow
def test_growth_has_a_slope_for_every_axis(results: Path) -> None:
    found = read(results / "growth.json")["axes"]
    for axis in found.values():
        assert set(axis["fits"]) == {"seconds", "mib"}
        assert all(a["size"] < b["size"] for a, b in pairwise(axis["points"]))
    assert (results / "growth.svg").read_text(encoding="utf-8").count("slope") == 2 * len(found)


def test_a_power_is_found() -> None:
    slope = load("growth").slope
    assert slope([1, 4, 16], [5, 10, 20]) == {"slope": 0.5, "r2": 1.0}
    assert slope([1, 4, 16], [7, 7, 7])["slope"] == 0
    assert slope([1, 2, 4], [1, 9, 2])["r2"] < 0.3


@pytest.mark.slow
def test_the_page_has_every_figure(results: Path) -> None:
    page = (results / "README.md").read_text(encoding="utf-8")
    assert page == load("tables").render(results)
    for case in ("hh-smoke", "four-smoke", "lora-smoke"):
        assert f"### {case}" in page
        for ratio in read(results / "versus.json")["cases"][case]["ratios"]:
            assert f"| {ratio['median']:.2f} |" in page
    for heading in ("## How near to the floor", "## How cost grows", "![cost against size]"):
        assert heading in page


def test_the_page_takes_what_other_benchmarks_wrote(tmp_path: Path) -> None:
    measuring = load("measuring")
    here = measuring.provenance(())
    runs = {str(count): {"peak_mib": 812.4, "rows_per_second": 6543.2} for count in (20_000, 2000)}
    memory = {"runs": runs, "ratio": 1.0321}
    plan = {"phase": "backward", "predicted_mib": 950.0, "measured_mib": 1000.0, "ratio": 0.95}
    fast = {"prefopt": "prefopt-compiled", "pairs_per_second": 12.345, "times_as_fast": 2.31}
    for name, record in {
        "rows-20200101.json": {"memory": memory | {"ratio": 9.9}, "under_load": False},
        "rows-20260101.json": {"memory": memory, "under_load": True},
        "plan.json": {"cases": {"a.yaml": plan}},
        "gpu.json": {"summary": {"1.7B hh": fast}},
    }.items():
        measuring.write_json(tmp_path / name, here | record)
    page = load("tables").render(tmp_path)
    assert "| 20,000 | 812 | 6,543 |" in page
    assert "fewest: 1.032. Something else" in page
    assert "| a.yaml | backward | 950 | 1,000 | 0.95 |" in page
    assert "| 1.7B hh | prefopt-compiled | 12.35 | 2.31 | – | – |" in page
    assert "9.9" not in page


def test_the_page_in_the_repository_is_made_from_its_files() -> None:
    path = RESULTS / "README.md"
    if not path.exists():
        pytest.skip("nothing was measured yet")
    assert path.read_text(encoding="utf-8") == load("tables").render(RESULTS)
