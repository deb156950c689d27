"""Sweeps: points, strictness, sharing, going on, and what is chosen."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from prefopt.errors import MissingExtraError, RecipeError, RunError
from prefopt.recipe import dump, load_recipe
from prefopt.runs import Run, held
from prefopt.sweeps import load_sweep, run_sweep, running
from prefopt.sweeps.choosing import best, standings
from prefopt.sweeps.ledger import Ledger
from prefopt.sweeps.points import combinations, corners, draw, folder_name, grid
from prefopt.sweeps.running import Ended, ended, placed
from prefopt.sweeps.settings import Choices, Goal, Range, Sweep, make_sweep
from prefopt.sweeps.trials import Recipes, Result

ROOT = Path(__file__).resolve().parent.parent


def reward(prompt: Any, completion: str) -> float:
    """The share of characters that are letters: the probe's reward in these tests."""
    return sum(character.isalpha() for character in completion) / max(1, len(completion))


# -- points --------------------------------------------------------------------------------


def test_a_grid_is_every_combination_the_last_setting_fastest() -> None:
    search = {"objective.beta": Choices(choices=[0.1, 0.5]), "epochs": Range(low=1, high=3, step=1)}
    points = grid(search)
    assert [tuple(point.values()) for point in points] == [
        (0.1, 1), (0.1, 2), (0.1, 3), (0.5, 1), (0.5, 2), (0.5, 3),
    ]  # fmt: skip
    assert all(isinstance(point["epochs"], int) for point in points)
    assert combinations(search) == 6


def test_steps_of_a_range_are_exact_and_end_within_it() -> None:
    assert Range(low=0.1, high=0.5, step=0.2).values == [0.1, 0.3, 0.5]
    assert Range(low=0, high=1, step=0.4).values == [0.0, 0.4, 0.8]
    assert Range(low=1e-3, high=1e-2).values is None


def test_a_longer_draw_begins_with_the_shorter_one() -> None:
    search = {"a": Range(low=1e-4, high=1e-2, log=True), "b": Choices(choices=[1, 2, 3])}
    assert draw(search, 40, seed=5)[:10] == draw(search, 10, seed=5)
    assert draw(search, 10, seed=6) != draw(search, 10, seed=5)
    # another setting beside it does not draw it anew
    assert [p["a"] for p in draw(search, 9, 5)] == [p["a"] for p in draw({"a": search["a"]}, 9, 5)]


def test_logarithms_are_drawn_evenly() -> None:
    search = {"a": Range(low=1e-4, high=1e-2, log=True), "b": Range(low=0, high=1)}
    points = draw(search, 400, seed=0)
    assert all(1e-4 <= point["a"] <= 1e-2 for point in points)
    below = sum(point["a"] < 1e-3 for point in points)
    assert 160 < below < 240  # half of them; a linear draw would have 9 %
    assert 160 < sum(point["b"] < 0.5 for point in points) < 240


def test_no_point_is_drawn_twice() -> None:
    search = {"a": Choices(choices=[1, 2, 3]), "b": Choices(choices=["x", "y"])}
    drawn = draw(search, 6, seed=0)
    assert sorted(map(str, drawn)) == sorted(map(str, grid(search)))


def test_corners_have_every_choice_and_both_ends() -> None:
    search = {"a": Range(low=1e-4, high=1e-2, log=True), "b": Choices(choices=[1, 2, 3])}
    found = corners(search)
    assert {point["b"] for point in found} == {1, 2, 3}
    assert {point["a"] for point in found} == {1e-4, 1e-2}


def test_folder_names_are_readable_and_differ_with_the_point() -> None:
    name = folder_name({"objective.beta": 0.1, "learning_rate": 3e-4}, 2)
    assert name.startswith("beta-0.1_learning_rate-0.0003_seed-2_")
    assert name != folder_name({"objective.beta": 0.1, "learning_rate": 3.0001e-4}, 2)
    assert "/" not in folder_name({"model": "../some where/else"}, 0)


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    sweep = make_sweep({**BASE, "out": str(tmp_path)})
    row = {"settings": {"objective.beta": 0.1}, "seed": 0}
    for text in ("", "[]", '{"trials": 3}', json.dumps({"trials": [row]})):
        (tmp_path / "sweep.json").write_text(text)
        with pytest.raises(RunError, match="not the record of a sweep"):
            Ledger(sweep)


# -- the file ------------------------------------------------------------------------------

BASE = {
    "recipe": {"model": "m", "data": "d.jsonl", "eval_data": "e.jsonl"},
    "out": "runs/sweep",
    "search": {"objective.beta": [0.1, 0.5]},
    "goal": "accuracy",
}


@pytest.mark.parametrize(
    ("change", "field", "said"),
    [
        ({"serach": {}}, "serach", "did you mean 'search'"),
        ({"goal": {"measure": "acuracy"}}, "goal.measure", "accuracy, loss"),
        ({"goal": {"measure": "eval.margin_x"}}, "goal", "direction: max or direction: min"),
        ({"goal": {"measure": "loss", "direction": "max"}}, "goal.direction", "no effect"),
        ({"goal": {"measure": "loss", "kl_budget": 0}}, "goal.kl_budget", "above 0"),
        ({"trials": 3}, "trials", "no effect"),
        ({"seed": 3}, "seed", "no effect"),
        ({"method": "random"}, "method", "set trials"),
        ({"method": "random", "trials": 3}, "trials", "only 2 points"),
        ({"method": "random", "trials": 30, "search": {"warmup": {"low": 0.1, "high": 0.1001}}},
         "trials", "only 2 points"),  # of four digits
        ({"method": "random", "trials": 10**6, "search": {"warmup": {"low": 0, "high": 1}}},
         "trials", "1,000,000 points are more"),
        ({"search": {"warmup": {"low": 0, "high": 1, "step": 1e-12}}},
         "search.warmup", "more than"),
        ({"search": {name: [n / 100 for n in range(1, 100)] for name in
                     ("warmup", "weight_decay", "max_grad_norm")}}, "search", "970,299 points"),
        ({"search": {"objective.beta": [0.1, 0.2], "objective": [{"name": "dpo", "beta": 0.3}]}},
         "search.objective.beta", "searched twice"),
        ({"method": "grids"}, "method", "grid, random, optuna"),
        ({"workers": 2, "devices": ["cpu"]}, "workers", "one trial runs on each device"),
        ({"seeds": [1, 1]}, "seeds", "there twice"),
        ({"search": {}}, "search", "settings by dotted name"),
        ({"search": {"learning_rate": 1e-3}}, "search.learning_rate", "list of values"),
        ({"search": {"learning_rate": [1e-3, 1e-3]}}, "search.learning_rate", "there twice"),
        ({"search": {"learning_rate": {"low": 1, "hihg": 2}}},
         "search.learning_rate.hihg", "did you mean 'high'"),
        ({"search": {"learning_rate": {"low": 1}}}, "search.learning_rate.high", "set high"),
        ({"search": {"learning_rate": {"low": 2, "high": 1, "step": 1}}},
         "search.learning_rate", "is empty"),
        ({"search": {"learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}}},
         "search.learning_rate", "a grid needs"),
        ({"search": {"a": {"low": 0, "high": 1, "log": True}}, "method": "random", "trials": 2},
         "search.a", "no logarithm"),
        ({"search": {"seed": [0, 1]}}, "search.seed", "`seeds`"),
        ({"search": {"microbatch_tokens": [64, 128]}}, "search.microbatch_tokens", "cannot be"),
        ({"search": {"eval_data": ["a", "b"]}}, "search.eval_data", "cannot be compared"),
        ({"search": {"learning_rat": [1e-3]}}, "search.learning_rat", "did you mean 'learning_r"),
        ({"search": {"objective.beta": [0.1, -1]}}, "search.objective.beta", "above 0"),
        ({"search": {"objective.bta": [0.1]}}, "search.objective.bta", "beta"),
        ({"search": {"objective": ["dpo", "dppo"]}}, "search.objective", "dpo"),
        ({"search": {"batch_size": {"low": 1, "high": 9}}, "method": "random", "trials": 2},
         "search.batch_size", "whole number"),
        ({"goal": "reward"}, "goal", "no reward|no probe"),
        ({"goal": {"measure": "accuracy", "kl_budget": 3}}, "goal", "no probe"),
        ({"recipe": {"model": "m", "data": "d"}}, "goal", "no eval_data"),
        ({"recipe": {**BASE["recipe"], "epochs": 0}}, "recipe.epochs", "at least 1"),
        ({"recipe": {**BASE["recipe"], "epoch": 1}}, "recipe.epoch", "did you mean 'epochs'"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_before_anything_is_written(
    change: dict[str, Any], field: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError) as caught:
        run_sweep(make_sweep({**BASE, **change}), progress=False)
    assert caught.value.field == field
    assert re.search(said, str(caught.value))
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_value_is_placed_in_its_row(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(
        "recipe: {model: m, data: d, eval_data: e}\nout: o\ngoal: loss\nsearch:\n"
        "  learning_rate: [1e-3]\n  batch_size: [8, 0]\n"
    )
    with pytest.raises(RecipeError) as caught:
        run_sweep(load_sweep(path), progress=False)
    assert (caught.value.file, caught.value.row) == (str(path), 6)
    assert "at least 1" in str(caught.value)


def test_a_short_name_keeps_what_the_recipe_says_beside_it() -> None:
    recipe = {**BASE["recipe"], "objective": {"name": "dpo", "beta": 0.3}}
    sweep = make_sweep({**BASE, "recipe": recipe, "search": {"objective": ["ipo", "hinge"]}})
    (trial,) = Recipes(sweep, Path("o")).trials({"objective": "ipo"})
    assert trial.resolved.recipe.objective.name == "ipo"
    assert trial.resolved.recipe.objective.options == {"beta": 0.3}
    assert trial.resolved.recipe.out.startswith("o/trials/objective-ipo_seed-0_")


def test_the_example_is_a_sweep_that_could_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    sweep = load_sweep("examples/sweep/sweep.yaml")
    recipes = Recipes(sweep, Path(sweep.file.out))
    trials = [trial for point in grid(sweep.search) for trial in recipes.trials(point)]
    assert len({trial.name for trial in trials}) == len(trials) > 4
    assert len({trial.shares for trial in trials}) == 1


# -- choosing ------------------------------------------------------------------------------


def _results(*rows: tuple[float, list[tuple[float, float] | None]]) -> list[Result]:
    """Points by β, each with (reward, KL) a seed, or None where it failed."""
    sweep = make_sweep({**BASE, "seeds": [0, 1, 2]})
    recipes = Recipes(sweep, Path("o"))
    found = []
    for beta, numbers in rows:
        for seed, pair in enumerate(numbers):
            result = Result(recipes.trial({"objective.beta": beta}, seed), "failed")
            if pair is not None:
                result.state = "done"
                result.numbers = {"probe.reward": pair[0], "probe.kl": pair[1]}
            found.append(result)
    return found


def test_the_best_is_within_the_budget_of_kl() -> None:
    results = _results(
        (0.01, [(9.0, 50.0)]), (0.1, [(2.0, 9.0)]), (0.5, [(1.0, 10.0)]), (1.0, [(0.5, 1.0)])
    )
    ranked = standings(results, Goal(measure="reward", kl_budget=10))
    assert [s.point["objective.beta"] for s in ranked] == [0.1, 0.5, 1.0, 0.01]
    assert [s.over_budget for s in ranked] == [False, False, False, True]
    assert ranked[-1].state == "over the budget"
    free = standings(results, Goal(measure="reward"))
    assert best(free).point == {"objective.beta": 0.01}  # type: ignore[union-attr]
    assert best(standings(results, Goal(measure="reward", kl_budget=0.5))) is None


def test_points_are_compared_by_their_mean_over_seeds() -> None:
    results = _results(
        (0.1, [(1.0, 5.0), (3.0, 5.0), (5.0, 5.0)]),  # mean 3, deviation 2
        (0.2, [(9.0, 1.0), (9.0, 1.0), None]),  # the best, but one seed failed
        (0.3, [(2.0, 1.0), (2.0, 1.0), (2.0, 1.0)]),
        (0.4, [(8.0, 2.0), (8.0, 2.0), (8.0, 14.0)]),  # its mean KL is 6
    )
    ranked = standings(results, Goal(measure="reward", kl_budget=5.5))
    assert ranked[0].point == {"objective.beta": 0.1}
    assert ranked[0].value is not None and ranked[0].value.mean == 3.0
    assert ranked[0].value.spread == pytest.approx(2.0)
    assert [s.state for s in ranked] == ["done", "done", "over the budget", "1 of 3 failed"]


def test_the_lower_is_better_where_it_is() -> None:
    results = _results((0.1, [(1.0, 5.0)]), (0.2, [(1.0, 3.0)]))
    ranked = standings(results, Goal(measure="probe.kl", direction="min"))
    assert [s.point["objective.beta"] for s in ranked] == [0.2, 0.1]


# -- processes -----------------------------------------------------------------------------


def test_what_an_exit_means(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("Traceback\nValueError: deep inside\n\n")
    assert ended(0, '{"steps": 3}', log) == Ended({"steps": 3})
    assert ended(130, "", log).interrupted and ended(-signal.SIGINT, "", log).interrupted
    error = json.dumps({"error": {"message": "is wrong", "field": "beta"}})
    assert ended(2, error, log).problem == "beta: is wrong"
    assert "memory runs out" in str(ended(-signal.SIGKILL, "", log).problem)
    assert ended(1, "", log).problem == "ValueError: deep inside"
    assert ended(3, "", tmp_path / "none").problem == "exit code 3"


def test_a_numbered_device_is_the_only_one_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert placed("cuda:1", 2) == (["--device", "cuda"], {"CUDA_VISIBLE_DEVICES": "1"})
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    assert placed("cuda:1", 2)[1] == {"CUDA_VISIBLE_DEVICES": "7"}
    assert placed("cpu", 1) == (["--device", "cpu"], {})
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert int(placed(None, 2)[1]["OMP_NUM_THREADS"]) >= 1
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert placed(None, 2) == ([], {})


# -- with hand-made runs -------------------------------------------------------------------


class Fake:
    """Runs that end when they are told to, with results from a formula of their settings."""

    def __init__(self, result: Callable[[dict[str, Any]], dict[str, Any] | None]) -> None:
        self.result = result
        self.started: list[str] = []
        self.under_way: list[FakeRun] = []
        self.at_once = True

    def start(self, arguments: Sequence[str], log: Path, environment: Mapping[str, str]) -> FakeRun:
        assert list(arguments[:2]) == ["prefopt", "train"] and "--json" in arguments
        run = FakeRun(self, arguments[2])
        self.started.append(run.run.folder.name)
        self.under_way.append(run)
        run.go = self.at_once
        return run


class FakeRun:
    def __init__(self, owner: Fake, recipe: str) -> None:
        self.owner = owner
        self.resolved = load_recipe(recipe, {})
        self.run = Run(self.resolved.recipe.out)
        self.go = False
        self.signals: list[str] = []

    def poll(self) -> Ended | None:
        if "interrupt" in self.signals:
            return Ended({}, "interrupted", interrupted=True)
        if not self.go:
            return None
        result = self.owner.result(self.resolved.values())
        if result is None:
            return Ended({}, "the loss of step 1 is not a finite number")
        with self.run.locked():
            self.run.begin(self.resolved)
            self.run.append_metrics({"kind": "train", "step": 1})
            document = {"steps": 1, "final_loss": 0.5, **result}
            self.run.write_json(self.run.manifest, {"data": {}, "seconds": 1.0, "result": document})
        return Ended(document)

    def interrupt(self) -> None:
        self.signals.append("interrupt")

    def kill(self) -> None:
        self.signals.append("kill")


def _formula(values: dict[str, Any]) -> dict[str, Any]:
    """A reward that is best at β 0.3, and a KL of 1/β."""
    beta = values["objective.beta"]
    return {"probe": {"reward": -((beta - 0.3) ** 2), "kl": 1 / beta}}


PROBED = {
    "recipe": {**BASE["recipe"],
               "probe": {"prompts": "p.jsonl", "reward": {"patterns": ["x"]}}},
    "goal": {"measure": "reward", "kl_budget": 5},
}  # fmt: skip


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    made = Fake(_formula)
    monkeypatch.setattr(running, "start", made.start)
    monkeypatch.setattr("prefopt.sweeps.schedule.POLL", 0.0)
    return made


def _sweep(tmp_path: Path, **changes: Any) -> Sweep:
    return make_sweep({**BASE, **PROBED, "out": str(tmp_path / "sweep"), **changes})


def test_nothing_is_done_twice_and_points_are_added(fake: Fake, tmp_path: Path) -> None:
    first = run_sweep(_sweep(tmp_path), progress=False)
    assert len(fake.started) == 2 and first.document["counts"] == {"done": 2}
    assert first.document["best"] is not None
    again = run_sweep(_sweep(tmp_path), progress=False)
    assert len(fake.started) == 2
    assert again.document == first.document
    more = run_sweep(_sweep(tmp_path, search={"objective.beta": [0.25, 0.5]}), progress=False)
    assert len(fake.started) == 3  # 0.5 is known, 0.25 is new, 0.1 stays in the table
    assert more.document["counts"] == {"done": 3}
    assert more.document["best"]["settings"] == {"objective.beta": 0.25}
    seeds = run_sweep(_sweep(tmp_path, seeds=[0, 1]), progress=False)
    assert len(fake.started) == 5 and seeds.document["counts"] == {"done": 5}


def test_trials_of_another_recipe_are_refused(fake: Fake, tmp_path: Path) -> None:
    run_sweep(_sweep(tmp_path), progress=False)
    other = {**PROBED["recipe"], "epochs": 2}
    with pytest.raises(RunError, match="epochs was 1 and is 2"):
        run_sweep(_sweep(tmp_path, recipe=other), progress=False)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(RunError, match="not a sweep: it holds thesis"):
        run_sweep(_sweep(tmp_path, out=str(tmp_path / "other")), progress=False)
    with held(tmp_path / "sweep"), pytest.raises(RunError, match="writing this sweep"):
        run_sweep(_sweep(tmp_path), progress=False)
    assert len(fake.started) == 2


def test_a_failed_trial_is_recorded_and_the_sweep_goes_on(fake: Fake, tmp_path: Path) -> None:
    fake.result = lambda values: _formula(values) if values["objective.beta"] > 0.2 else None
    result = run_sweep(_sweep(tmp_path), progress=False)
    assert result.document["counts"] == {"failed": 1, "done": 1} and not result.failed
    (failed,) = (t for t in result.document["trials"] if t["state"] == "failed")
    assert failed["error"] == "the loss of step 1 is not a finite number"
    assert "is not a finite number" in result.report.read_text(encoding="utf-8")
    run_sweep(_sweep(tmp_path), progress=False)
    assert len(fake.started) == 2  # a failure is not tried again,
    fake.result = _formula
    retried = run_sweep(_sweep(tmp_path), retry=True, progress=False)
    assert len(fake.started) == 3  # unless it is asked for
    assert retried.document["counts"] == {"done": 2}


def test_a_sweep_whose_trials_all_failed_has_failed(fake: Fake, tmp_path: Path) -> None:
    fake.result = lambda values: None
    result = run_sweep(_sweep(tmp_path), progress=False)
    assert result.failed and result.document["best"] is None
    lacking = make_sweep({**BASE, "out": str(tmp_path / "other")})  # wants eval.accuracy
    fake.result = _formula
    result = run_sweep(lacking, progress=False)
    assert result.failed
    assert "have no eval.accuracy" in str(result.document["trials"][0]["error"])


def test_the_first_of_those_that_share_goes_ahead_alone(fake: Fake, tmp_path: Path) -> None:
    """Until it has written metrics, which is when the reference is scored."""
    from prefopt.sweeps.ledger import Ledger
    from prefopt.sweeps.schedule import Schedule

    fake.at_once = False
    search = {"objective.beta": [0.1, 0.2, 0.3], "max_length": [64, 128]}
    ledger = Ledger(_sweep(tmp_path, search=search, workers=4))
    waiting = [result for point in grid(ledger.sweep.search) for result in ledger.add(point)]
    schedule = Schedule(ledger, waiting)
    schedule._fill()
    # two ways to tokenise, so two that share nothing; the other four would repeat their work
    assert [run.resolved.recipe.max_length for run in fake.under_way] == [64, 128]
    leader = fake.under_way[0].run
    with leader.locked():
        leader.begin(fake.under_way[0].resolved)
    schedule._fill()
    assert len(fake.under_way) == 2
    leader.append_metrics({"kind": "eval", "step": 0})
    schedule._fill()
    assert [run.resolved.recipe.max_length for run in fake.under_way] == [64, 128, 64, 64]


def test_another_goes_ahead_where_the_first_fails(fake: Fake, tmp_path: Path) -> None:
    fake.result = lambda values: _formula(values) if values["objective.beta"] > 0.1 else None
    search = {"objective.beta": [0.1, 0.2, 0.3]}
    result = run_sweep(_sweep(tmp_path, search=search, workers=2), progress=False)
    assert result.document["counts"] == {"failed": 1, "done": 2}


def test_ctrl_c_is_passed_on_once_and_the_sweep_can_go_on(fake: Fake, tmp_path: Path) -> None:
    from prefopt.sweeps import schedule

    fake.at_once = False

    def pressed(self: Any, slot: Any) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schedule.Schedule, "_look", pressed)
        with pytest.raises(KeyboardInterrupt):
            run_sweep(_sweep(tmp_path), progress=False)
    assert [run.signals for run in fake.under_way] == [["interrupt"]]
    document = json.loads((tmp_path / "sweep" / "sweep.json").read_text())
    assert [trial["state"] for trial in document["trials"]] == ["interrupted", "waiting"]
    fake.at_once = True
    assert run_sweep(_sweep(tmp_path), progress=False).document["counts"] == {"done": 2}


def test_the_page_has_every_trial_and_the_way_back(fake: Fake, tmp_path: Path) -> None:
    fake.result = lambda values: _formula(values) if values["learning_rate"] < 1 else None
    search = {"objective.beta": [0.1, 0.3, 1.0], "learning_rate": [1e-4, 1e-3, 2.0]}
    result = run_sweep(_sweep(tmp_path, search=search, seeds=[0, 1]), progress=False)
    page = result.report.read_text(encoding="utf-8")
    for trial in result.document["trials"]:
        done = trial["state"] == "done"
        # once in the drawing against KL, and once in that of each setting
        settings = trial["settings"]
        words = f"beta {settings['objective.beta']}, learning_rate {settings['learning_rate']}"
        marks = page.count(f"<title>{words}, seed {trial['seed']}: reward ")
        assert marks == (3 if done else 0)
        assert done or f"<h3>{words}, seed {trial['seed']}</h3>" in page
    models = [f"trials/{name}/model" for name in result.document["best"]["trials"]]
    assert all(f'<a href="{model}">{model}</a>' in page for model in models)
    assert "report.html" not in page  # these runs have none
    again = result.document["best"]["command"]
    assert again[:2] == ["prefopt", "train"] and f"<span>{again[2]}</span>" in page
    assert result.document["best"]["settings"]["objective.beta"] == 0.3
    retrained = load_recipe(again[2], {}).recipe
    assert (retrained.objective.options["beta"], retrained.seed) == (0.3, 0)
    assert "<script" not in page and "http" not in page.replace("http://www.w3.org", "")


# -- Optuna --------------------------------------------------------------------------------


def test_without_optuna_the_extra_is_named(
    fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MissingExtraError, match=r"prefopt\[sweep\]"):
        run_sweep(_sweep(tmp_path, method="optuna", trials=3), progress=False)
    assert not (tmp_path / "sweep").exists()


OPTUNA = {"method": "optuna", "search": {"objective.beta": {"low": 0.02, "high": 2, "log": True}}}


def _study(tmp_path: Path) -> Any:
    """The study in the sweep's folder."""
    import optuna

    url = f"sqlite:///{tmp_path / 'sweep' / 'optuna.sqlite'}"
    (summary,) = optuna.get_all_study_summaries(url)
    return optuna.load_study(study_name=summary.study_name, storage=url)


def test_optuna_is_asked_and_told(fake: Fake, tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    result = run_sweep(_sweep(tmp_path, trials=12, **OPTUNA), progress=False)
    assert len(fake.started) == 12
    betas = [trial["settings"]["objective.beta"] for trial in result.document["trials"]]
    assert all(0.02 <= beta <= 2 for beta in betas)
    assert 0.2 <= result.document["best"]["settings"]["objective.beta"] < 0.45
    longer = run_sweep(_sweep(tmp_path, trials=13, **OPTUNA), progress=False)
    assert len(fake.started) == 13 and longer.document["counts"] == {"done": 13}
    assert len(set(fake.started)) == 13
    for told, trial in zip(_study(tmp_path).trials, longer.document["trials"], strict=True):
        beta = trial["settings"]["objective.beta"]
        assert told.params["objective.beta"] == pytest.approx(beta, rel=1e-3)  # four digits
        assert told.value == trial["metrics"]["probe.reward"]
        assert told.constraints == {"kl": pytest.approx(1 / beta - 5)}


def test_a_suggestion_that_was_under_way_is_finished_first(fake: Fake, tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    from prefopt.sweeps import schedule

    fake.at_once = False
    settings = {"trials": 3, "workers": 2, "seeds": [0, 1], **OPTUNA}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            schedule.Schedule, "_look", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        with pytest.raises(KeyboardInterrupt):
            run_sweep(_sweep(tmp_path, **settings), progress=False)
    fake.at_once = True
    before = list(fake.started)
    result = run_sweep(_sweep(tmp_path, **settings), progress=False)
    assert set(before) <= set(fake.started[len(before) :])
    assert result.document["counts"] == {"done": 6}
    study = _study(tmp_path)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 3
    means = {p["settings"]["objective.beta"]: p["value"]["mean"] for p in result.document["points"]}
    assert sorted(t.value for t in study.trials) == pytest.approx(sorted(means.values()))


# -- real trainings ------------------------------------------------------------------------


class InProcess:
    """The same commands, carried out here: what they import is imported already."""

    def __init__(self, arguments: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
        from prefopt.cli.app import run
        from prefopt.sweeps.judging import main

        program, *words = arguments
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(io.StringIO()):
            code = run(words) if program == "prefopt" else main(words)
        self.end = ended(code, printed.getvalue().strip().split("\n")[-1], log)

    def poll(self) -> Ended:
        return self.end


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Trials run here, without a page each; returns the commands as they come."""
    commands: list[list[str]] = []

    def start(arguments: Sequence[str], log: Path, environment: Mapping[str, str]) -> InProcess:
        commands.append(list(arguments))
        return InProcess(arguments, log, environment)

    monkeypatch.setattr(running, "start", start)
    monkeypatch.setattr("prefopt.report.build_report", lambda run: Run(run).report)
    monkeypatch.setattr("prefopt.sweeps.schedule.POLL", 0.0)
    return commands


@pytest.fixture
def settings(tiny_policy_folder: Path, tmp_path: Path) -> dict[str, Any]:
    """A sweep over two β and two learning rates on a tiny model."""

    def write(name: str, rows: list[dict[str, str]]) -> str:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    pairs = [
        {"prompt": f"Name colour {i}.", "chosen": f"It is blue {i}", "rejected": f"{i} no film"}
        for i in range(12)
    ]
    recipe = {
        "model": str(tiny_policy_folder),
        "data": write("pairs.jsonl", pairs[:8]),
        "eval_data": write("heldout.jsonl", pairs[8:10]),
        "batch_size": 4,
        "microbatch_tokens": 128,
        "checkpoint_every": 1,
        "probe": {
            "prompts": write("probe.jsonl", [{"prompt": f"The film {i}"} for i in range(3)]),
            "max_new_tokens": 4,
            "samples": 2,
            "reward": {"rule": f"{__file__}:reward"},
        },
    }
    write("test.jsonl", pairs[10:])
    return {
        "recipe": recipe,
        "out": str(tmp_path / "sweep"),
        "search": {"objective.beta": [0.1, 0.5], "learning_rate": [1e-4, 1e-3]},
        "goal": {"measure": "reward", "kl_budget": 50},
    }


def test_trials_share_the_reference_scores_of_the_first(
    settings: dict[str, Any], in_process: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over the whole sweep the reference scores as much as in one run."""
    from prefopt.training import prepare

    scored: list[int] = []
    real = prepare.score_examples

    def counted(*arguments: Any) -> int:
        scored.append(real(*arguments))
        return scored[-1]

    monkeypatch.setattr(prepare, "score_examples", counted)
    result = run_sweep(make_sweep(settings), progress=False)
    assert result.document["counts"] == {"done": 4} and len(in_process) == 4
    assert scored == [8, 2, *[0] * 6]  # all groups of data and eval_data, once

    for trial in result.document["trials"]:
        run = Run(trial["run"])
        manifest = run.read_json(run.manifest)
        assert trial["metrics"]["probe.reward"] == manifest["result"]["probe"]["reward"]
        assert trial["metrics"]["eval.accuracy"] == manifest["result"]["eval"]["accuracy"]
        assert (run.model / "config.json").exists()
    assert len({trial["metrics"]["eval.loss"] for trial in result.document["trials"]}) == 4


def test_a_run_of_a_sweep_is_the_run_of_its_recipe(
    settings: dict[str, Any], in_process: list[list[str]], tmp_path: Path
) -> None:
    """The command that trains the winner again gives the winner again."""
    from prefopt.cli.app import run

    settings["search"] = {"learning_rate": [1e-3, 3e-3]}
    document = run_sweep(make_sweep(settings), progress=False).document
    words = document["best"]["command"]
    assert run(words[1:]) == 0
    chosen, again = Run(document["best"]["runs"][0]), Run(words[-1])
    results = [r.read_json(r.manifest)["result"] for r in (chosen, again)]
    for result in results:
        result["probe"].pop("seconds", None)
    assert results[0] == results[1]


def test_data_that_changed_is_not_mixed(
    settings: dict[str, Any], in_process: list[list[str]], tmp_path: Path
) -> None:
    from prefopt.sweeps import ledger

    settings["search"] = {"learning_rate": [1e-3]}
    run_sweep(make_sweep(settings), progress=False)
    with open(tmp_path / "pairs.jsonl", "a") as handle:
        handle.write(json.dumps({"prompt": "a", "chosen": "b", "rejected": "c"}) + "\n")
    ledger._digest.cache_clear()
    with pytest.raises(RunError, match="their data has changed since"):
        run_sweep(make_sweep(settings), progress=False)


def test_win_rates_are_judged_by_the_probes_reward(
    settings: dict[str, Any], in_process: list[list[str]], tmp_path: Path
) -> None:
    """And the winner, alone, on prompts that no trial saw."""
    settings["search"] = {"learning_rate": [1e-3, 1e-2]}
    settings["goal"] = "win_rate"
    settings["test_data"] = str(tmp_path / "test.jsonl")
    document = run_sweep(make_sweep(settings), progress=False).document
    for trial in document["trials"]:
        rows = [json.loads(line) for line in Run(trial["run"]).samples.read_text().splitlines()]
        assert len(rows) == 6
        for row in rows:
            assert row["reward_after"] == reward(row["prompt"], row["after"])
        gaps = [row["reward_after"] - row["reward_before"] for row in rows]
        wins = sum(1.0 if gap > 0 else 0.5 if gap == 0 else 0.0 for gap in gaps)
        assert trial["metrics"]["win_rate"] == pytest.approx(wins / 6)
    # the reference answered the probe's prompts once for both, and the test's once
    assert len(list((tmp_path / "sweep" / "answers").iterdir())) == 2
    kinds = Counter(words[0] for words in in_process)
    assert kinds == {"prefopt": 2, "prefopt.sweeps.judging": 3}
    test = document["test"]
    assert (
        test["trials"] == document["best"]["trials"] and test["measures"]["win_rate"]["seeds"] == 1
    )
    assert next(iter(test["measures"])) == "win_rate"
    before = len(in_process)
    assert run_sweep(make_sweep(settings), progress=False).document["test"] == test
    assert len(in_process) == before


def test_comparisons_as_test_data(
    settings: dict[str, Any], in_process: list[list[str]], tmp_path: Path
) -> None:
    settings["search"] = {"learning_rate": [1e-3]}
    settings |= {"goal": "accuracy", "test_data": settings["recipe"]["data"]}
    with pytest.raises(RecipeError, match="among the data of the trials"):
        run_sweep(make_sweep(settings), progress=False)
    settings["test_data"] = str(tmp_path / "test.jsonl")
    document = run_sweep(make_sweep(settings), progress=False).document
    assert in_process[-1][:2] == ["prefopt", "score"] and len(in_process) == 2
    assert 0 <= document["test"]["measures"]["accuracy"]["mean"] <= 1


def test_a_trial_that_diverges_is_one_failure(
    settings: dict[str, Any],
    in_process: list[list[str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from prefopt.cli.app import run

    settings["search"] = {"learning_rate": [1e-3, 1e30]}
    file = tmp_path / "sweep.yaml"
    file.write_text(json.dumps(settings))
    assert run(["sweep", str(file), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["counts"] == {"done": 1, "failed": 1}
    assert "not a finite number" in document["trials"][1]["error"]
    assert document["best"]["settings"] == {"learning_rate": 1e-3}
    assert run(["sweep", str(file)]) == 0
    shown = capsys.readouterr().out
    assert "1 of 2 trials failed" in shown and "To train it again: prefopt train" in shown
    assert run(["sweep", str(tmp_path / "none.yaml")]) == 2


def test_a_killed_sweep_on_two_workers_ends_as_one_that_was_not(
    settings: dict[str, Any],
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Real processes, two at once, SIGKILL after the first trial; then the same once more."""
    settings["search"] = {"objective.beta": [0.1, 0.2, 0.4]}
    settings["workers"] = 2
    file = tmp_path / "sweep.yaml"
    file.write_text(json.dumps(settings))
    out = Path(settings["out"])
    sweep = subprocess.Popen(
        [sys.executable, "-m", "prefopt", "sweep", str(file)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        until = time.monotonic() + 300
        while not list(out.glob("trials/*/manifest.json")):
            assert sweep.poll() is None and time.monotonic() < until
            time.sleep(0.05)
    finally:
        os.kill(sweep.pid, signal.SIGKILL)
        sweep.wait()
    finished = {path: path.stat().st_mtime_ns for path in out.glob("trials/*/manifest.json")}
    request.getfixturevalue("in_process")
    # what the killed sweep left running is waited for, not trained beside
    went_on = run_sweep(load_sweep(file), progress=False).document
    assert went_on["counts"] == {"done": 3}
    assert {path: path.stat().st_mtime_ns for path in finished} == finished

    monkeypatch.setenv("PREFOPT_CACHE", str(tmp_path / "another-cache"))
    settings |= {"out": str(tmp_path / "alone"), "workers": 1}
    alone = run_sweep(make_sweep(settings), progress=False).document
    for there, here in zip(went_on["trials"], alone["trials"], strict=True):
        assert there["settings"] == here["settings"]
        assert _measured(there) == _measured(here)


def _measured(trial: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in trial["metrics"].items() if "seconds" not in name}


def test_a_trials_recipe_is_complete(tmp_path: Path) -> None:
    sweep = make_sweep({**BASE, "search": {"learning_rate": [1e-3]}})
    (trial,) = Recipes(sweep, tmp_path).trials({"learning_rate": 1e-3})
    path = tmp_path / "trial.yaml"
    path.write_text(dump(trial.resolved))
    assert load_recipe(path, {}).values() == trial.resolved.values()
    assert trial.resolved.origins["learning_rate"] == "sweep"
