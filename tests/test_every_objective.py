"""Every name of the registry trains on the demonstration's world, from a recipe and from flags."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from prefopt.cli.app import run
from prefopt.data.formats import read_groups, write_groups
from prefopt.demo import Demo, Scale
from prefopt.objectives import OBJECTIVES
from prefopt.runs import Run

SMALL = Scale(
    documents=240,
    prompts=16,
    samples=3,
    heldout=4,
    hidden=48,
    layers=1,
    vocabulary=700,
    new_tokens=24,
    sft=(1e-2, 8, 2),
)
STEPS = 3


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The demonstration before its DPO: a fine-tuned model and comparisons of its samples."""
    folder = tmp_path_factory.mktemp("every") / "world"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFOPT_CACHE", str(folder.parent / "cache"))
        demo = Demo(folder, SMALL, seed=0, progress=False)
        demo.make_world()
        demo.fine_tune()
        demo.make_pairs()
        groups = list(read_groups(demo.pairs))
        write_groups(folder / "first.jsonl", groups[::2])
        write_groups(folder / "second.jsonl", groups[1::2])
        yield folder


Call = Callable[..., dict[str, Any]]


@pytest.fixture
def train(capsys: pytest.CaptureFixture[str]) -> Call:
    """`prefopt train … --json` in this process: what it prints."""

    def train(*arguments: object) -> dict[str, Any]:
        code = run(["train", *map(str, arguments), "--json"])
        out, err = capsys.readouterr()
        assert code == 0, out + err
        result: dict[str, Any] = json.loads(out)
        return result

    return train


@pytest.fixture
def no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing curves takes far longer than these trainings."""
    monkeypatch.setattr("prefopt.report.build_report", lambda folder: Path(folder) / "report.html")


def settings(world: Path, name: str, **further: Any) -> dict[str, Any]:
    """A recipe without `out`: small steps of the world's pairs, with a β that is not the default.

    The pairs are two sources where the objective tells sources apart. They carry their true
    reward, and every two completions of a prompt are compared, so that labels and rankings
    can be read off them too.
    """
    row = OBJECTIVES[name]
    pairs = ["first.jsonl", "second.jsonl"] if row.needs_sources else ["pairs.jsonl"]
    strength = {"objective.beta": 0.3} if "beta" in row.options else {}
    return {
        "model": str(world / "sft" / "model"),
        "data": [str(world / name) for name in pairs],
        "objective.name": name,
        **strength,
        "learning_rate": 1e-3,
        "batch_size": 4 if row.reads == "rankings" else 12,
        "epochs": 2,
        "max_steps": STEPS,
        **further,
    }


def as_recipe(path: Path, given: dict[str, Any]) -> Path:
    """The settings as a YAML file, sections as mappings."""
    tree: dict[str, Any] = {}
    for dotted, value in given.items():
        *sections, last = dotted.split(".")
        place = tree
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = value
    path.write_text(yaml.safe_dump(tree))
    return path


def as_flags(given: dict[str, Any]) -> list[str]:
    """The settings as they are typed, with dashes for underscores in what is not a name."""
    words: list[str] = []
    for dotted, value in given.items():
        words.append(f"--{dotted.replace('_', '-')}")
        words += value if isinstance(value, list) else [str(value)]
    return words


def numbers(value: Any) -> Iterator[float]:
    """Every number in a record, however deep."""
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from numbers(item)
    elif isinstance(value, int | float):
        yield float(value)


def check(folder: Path, result: dict[str, Any]) -> dict[str, Any]:
    """The run finished, its numbers are finite, its weights moved; returns its manifest."""
    done = Run(folder)
    records = done.read_metrics()
    assert result["steps"] == STEPS == sum(record["kind"] == "train" for record in records)
    assert all(math.isfinite(number) for record in records for number in numbers(record))
    assert all(record["gradient_norm"] > 0 for record in records if record["kind"] == "train")
    manifest: dict[str, Any] = done.read_json(done.manifest)
    assert manifest["result"]["fingerprint"] != manifest["policy"]["fingerprint"]
    assert set(result["skipped"]) <= {"nothing_for_plackett_luce"}  # comparisons in a circle
    return manifest


@pytest.mark.usefixtures("no_page")
@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_every_objective_trains_from_a_recipe_and_the_flags_say_the_same(
    train: Call, world: Path, tmp_path: Path, name: str
) -> None:
    """The flags name the run that the recipe made: other settings would be refused there."""
    given = settings(world, name, out=str(tmp_path / "run"))
    result = train(as_recipe(tmp_path / "recipe.yaml", given))
    check(tmp_path / "run", result)
    assert train(*as_flags(given)) == result


#: one for each thing that is read, and for each further thing that a loss may need
TRAINED_TWICE = ("sft", "kto", "plackett_luce", "bco", "dpo_corrupted", "group_dro", "tdpo")


@pytest.mark.parametrize("name", TRAINED_TWICE)
def test_flags_train_to_the_same_bits(train: Call, world: Path, tmp_path: Path, name: str) -> None:
    given = settings(world, name)
    recipe = as_recipe(tmp_path / "recipe.yaml", given)
    first = check(tmp_path / "one", train(recipe, "--out", tmp_path / "one"))
    second = check(tmp_path / "two", train(*as_flags(given), "--out", tmp_path / "two"))
    assert second["result"] == first["result"]
    assert (tmp_path / "two" / "report.html").exists()


FURTHER = {
    "sum": ("dpo", {"objective.plus.sft": 0.5, "objective.plus.bco.weight": 0.25}),
    "sum with options": ("ipo", {"objective.plus.ld_dpo.weight": 1.0,
                                 "objective.plus.ld_dpo.alpha": 0.2}),
    "sum of labels": ("kto", {"objective.plus.bco_unpaired": 0.5}),
    "moving reference": ("dpo", {"reference.update_every": 2, "reference.mixture": 0.6}),
    "moving reference, token by token": ("tdpo", {"reference.update_every": 2}),
    "moving reference of companions": ("kto", {"reference.update_every": 1}),
    "adapter": ("hinge", {"adapter.name": "lora", "adapter.rank": 4}),
    "adapter, token by token": ("tdpo", {"adapter.name": "lora", "adapter.rank": 4}),
    "adapter, companions": ("kto", {"adapter.name": "lora", "adapter.rank": 4}),
}  # fmt: skip


@pytest.mark.usefixtures("no_page")
@pytest.mark.parametrize("case", FURTHER)
def test_sums_moving_references_and_adapters(
    train: Call, world: Path, tmp_path: Path, case: str
) -> None:
    """Each changes what is learned, and is said the same way in a recipe and in flags."""
    name, further = FURTHER[case]
    plain = train(*as_flags(settings(world, name, out=str(tmp_path / "plain"))))
    given = settings(world, name, out=str(tmp_path / "run"), **further)
    result = train(as_recipe(tmp_path / "recipe.yaml", given))
    check(tmp_path / "run", result)
    assert train(*as_flags(given)) == result
    assert result["final_loss"] != plain["final_loss"]


# -- the benchmark that compares them ----------------------------------------------------------


@pytest.fixture(scope="module")
def bench() -> Any:
    path = Path(__file__).resolve().parent.parent / "benchmarks" / "objectives.py"
    spec = importlib.util.spec_from_file_location("benchmark_of_objectives", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_the_benchmark_has_every_objective_and_gives_each_its_strength(bench: Any) -> None:
    rows = {row.name: row for row in bench.variants()}
    policies = {name: row for name, row in OBJECTIVES.items() if row.head == "words"}
    assert set(policies) <= set(rows)
    for name, row in policies.items():
        assert bool(rows[name].strengths) == ("beta" in row.options or name == "orpo")
        assert rows[name].family in bench.FAMILIES
        assert rows[name].reads in bench.BATCH


def test_the_benchmark_chooses_by_validation_alone(bench: Any, tmp_path: Path) -> None:
    """Two points of a complete grid go on, and the better mean over the seeds is chosen."""
    setup = bench.Bench(tmp_path, validation=2, test=2, rates=(0.1, 0.2), strengths=(1.0, 2.0))
    dpo = next(row for row in bench.variants() if row.name == "dpo")
    grid = setup.grid(dpo)
    assert {task.split for task in grid} == {"validation"} and {t.seed for t in grid} == {0}

    def rows(tasks: list[Any], *rewards: float | None) -> dict[str, Any]:
        return {
            task.key: {"reward": reward, "error": None if reward is not None else "diverged"}
            for task, reward in zip(tasks, rewards, strict=True)
        }

    done = rows(grid[:3], 0.1, 0.5, 0.4)
    assert bench.due(setup, dpo, done) == []
    done |= rows(grid[3:], None)
    lucky, steady = grid[1], grid[2]
    assert bench.finalists(setup, dpo, done) == [lucky, steady]  # never what broke
    further = bench.due(setup, dpo, done)
    assert further == setup.further([lucky, steady])
    assert [(task.seed, task.split) for task in further] == [
        (1, "validation"), (2, "validation"), (1, "validation"), (2, "validation")
    ]  # fmt: skip
    assert bench.choice(setup, dpo, {**done, **rows(further[:3], 0.1, 0.2, 0.4)}) is None
    done |= rows(further, 0.1, 0.2, 0.4, 0.3)
    assert bench.choice(setup, dpo, done) == steady
    finals = bench.due(setup, dpo, done)
    assert [(task.seed, task.split) for task in finals] == [(0, "test"), (1, "test"), (2, "test")]
    tested = rows(setup.finals(lucky), 9.0, 9.0, 9.0)
    assert bench.choice(setup, dpo, {**done, **tested}) == steady
    assert bench.choice(setup, dpo, {**done, **rows(further[3:], None)}) == lucky


def test_the_benchmark_trains_and_measures(
    bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFOPT_CACHE", str(tmp_path / "cache"))
    setup = bench.Bench(tmp_path, validation=3, test=4, tiny=True, seeds=(0,))
    bench.make_world(setup, 0)
    variant = next(row for row in bench.variants() if row.name == "group_dro")
    task = bench.Task("group_dro", 0, 1e-3, 0.7, "test")
    row = bench.work(setup, variant, task)
    recipe = yaml.safe_load((tmp_path / "policies" / bench.folder_name(task) / "recipe.yaml")
                            .read_text())  # fmt: skip
    assert recipe["objective"]["beta"] == 0.7 and recipe["learning_rate"] == 1e-3
    assert [source["name"] for source in recipe["data"]] == ["pairs-short", "pairs-long"]
    assert len(row["rewards"]) == len(row["rewards_sft"]) == 4
    assert row["reward"] == pytest.approx(sum(row["rewards"]) / 4, abs=1e-3)
    wins = [(a > b) + (a == b) / 2 for a, b in zip(row["rewards"], row["rewards_sft"], strict=True)]
    assert row["win_rate"] == pytest.approx(sum(wins) / 4)
    assert 0 < row["length"] <= 64 and row["error"] is None
    mean, low, high = bench.pooled([row], [row], "rewards", lambda a, b: a - b)
    assert (mean, low, high) == (0, 0, 0)
