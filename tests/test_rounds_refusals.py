"""What a loop refuses, when, and that what was refused can be mended in the same folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prefopt.data.formats import read_groups
from prefopt.data.prompts import read_prompts
from prefopt.errors import DataError, PolicyError, PrefoptError, RecipeError, RunError
from prefopt.recipe import text
from prefopt.rounds.ledger import Ledger
from prefopt.rounds.loop import run_rounds
from prefopt.rounds.settings import load_rounds, make_rounds
from prefopt.rounds.teaching import teaching
from tests.small_loop import PROMPTS, small_loop, write_prompts


@pytest.fixture
def settings(tmp_path: Path, tiny_policy_folder: Path) -> dict[str, Any]:
    """One round over a tiny policy."""
    return {**small_loop(tmp_path, tiny_policy_folder), "rounds": 1, "prompts_per_round": 4}


def run(settings: dict[str, Any], **change: Any) -> dict[str, Any]:
    return run_rounds(make_rounds({**settings, **change}), progress=False)


@pytest.mark.parametrize(
    ("change", "field", "words"),
    [
        ({"select": {"budget": 2}}, "select.budget", "less than the 3 completions"),
        ({"select": {"rule": "top_k", "k": 4}}, "select.k", "more completions than the 3"),
        ({"select": {"rule": "rso", "k": 1}}, "select.k", "wrong value"),
        ({"select": {"ask": "d-optimal"}}, "select.ask", "asked to score"),
        ({"train": {"objective": "reward"}}, "train.objective", "reward model"),
        ({"train": {"reference.name": "none"}}, "train.reference.name", "beside train"),
        ({"train": {"objective": "ppo"}}, "train.objective.name", "no objective"),
        ({"train": {"objective": "simpo"}, "reference": "previous"}, "reference", "no effect"),
        ({"judge": "reward:./nowhere"}, "judge.model", "nowhere"),
        ({"evaluate": {"judge": "lm:./none", "count": 8}}, "evaluate.judge.model", "./none"),
        ({"evaluate": {"count": 1}}, "evaluate.count", "at least 2"),
        ({"evaluate": {"judge": "lm:{policy}"}}, "evaluate.judge", "one and the same"),
        ({"judge": {"kind": "python", "function": "no.py:f"}}, "judge.function", "no such file"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_sampled(
    settings: dict[str, Any], tmp_path: Path, change: dict[str, Any], field: str, words: str
) -> None:
    path = tmp_path / "rounds.yaml"
    path.write_text(json.dumps({**settings, **change}, indent=1))
    with pytest.raises((RecipeError, PolicyError), match=words) as caught:
        run_rounds(load_rounds(path), progress=False)
    assert caught.value.field == field
    assert (caught.value.file, caught.value.row) == (str(path), caught.value.row)
    assert caught.value.row is not None
    out = Path(settings["out"])
    assert not list(out.glob("round-*/*/*")) and not (out / "rounds.json").exists()


def test_what_was_refused_is_mended_in_the_same_folder(settings: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="no such file"):
        run(settings, prompts="nowhere.jsonl")
    with pytest.raises(PolicyError):
        run(settings, judge="reward:./nowhere")
    with pytest.raises(PolicyError):
        run(settings, model="./nowhere")
    assert run(settings)["state"] == "done"
    with pytest.raises(RunError, match="another setting"):
        run(settings, sample={"n": 2})


@pytest.mark.parametrize("where", ["", "/below"])
def test_a_file_in_the_place_of_the_folder(
    settings: dict[str, Any], tmp_path: Path, where: str
) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RunError, match="a file is where a folder is needed"):
        run(settings, out=f"{tmp_path}/file{where}")


@pytest.mark.parametrize("content", ["{", "[]", "\x80"])
def test_a_torn_ledger_is_named(settings: dict[str, Any], content: str) -> None:
    folder = Path(settings["out"])
    folder.mkdir()
    (folder / "rounds.json").write_text(content)
    with pytest.raises(RunError, match=r"not JSON|something else") as caught:
        Ledger(make_rounds(settings))
    assert str(folder) in str(caught.value.file)


def test_two_processes_do_not_share_a_folder(settings: dict[str, Any]) -> None:
    from prefopt.runs import held

    with held(Path(settings["out"])), pytest.raises(RunError, match="another process"):
        run(settings)


def test_passwords_stay_out_of_the_folder(settings: dict[str, Any]) -> None:
    judge = {"kind": "people", "database": "postgresql://ann:secret@host/labels", "task": "t"}
    ledger = Ledger(make_rounds({**settings, "judge": judge}))
    ledger.folder.mkdir()
    ledger.write("running")
    assert "secret" not in ledger.document.read_text()
    assert "ann:***@host/labels" in ledger.document.read_text()


def test_the_link_leads_to_the_model_of_the_best_round(settings: dict[str, Any]) -> None:
    ledger = Ledger(make_rounds(settings))
    for number in (1, 2):
        (ledger.stage_folder(number, "train") / "model").mkdir(parents=True)
    for number in (2, 1, 2):
        link = ledger.keep(number)
        assert link is not None and Path(link).resolve().parts[-3:-1] == (
            f"round-{number}",
            "train",
        )
    assert ledger.keep(0) is None and not Path(link).exists()


# -- prompts -------------------------------------------------------------------------------


def of_rounds(folder: Path, count: int) -> list[set[Any]]:
    """The prompts that were sampled in each round, and first those of the evaluation."""
    files = [folder / "round-0/evaluate/samples.jsonl"]
    files += [folder / f"round-{n}/sample/samples.jsonl" for n in range(1, count + 1)]
    return [{group.prompt for group in read_groups([str(file)])} for file in files]


def test_more_prompts_for_more_rounds_leave_those_before_alone(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    path = Path(settings["prompts"])
    write_prompts(path, PROMPTS[:12])
    settings["evaluate"] = {"count": 8, "judge": "longest"}
    run(settings)
    before = of_rounds(Path(settings["out"]), 1)
    with pytest.raises(RecipeError, match="1 rounds of 4 prompts want 4"):
        run(settings, rounds=2)
    write_prompts(path, PROMPTS)
    document = run(settings, rounds=2)
    after = of_rounds(Path(settings["out"]), 2)
    assert after[:2] == before and not after[2] & (after[0] | after[1]) and len(after[2]) == 4
    assert len(document["history"]) == 3
    path.unlink()
    assert run(settings, rounds=2)["history"] == document["history"]


def test_chats_duplicates_and_an_evaluation_that_overlaps(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    rows = [[{"role": "user", "content": prompt}] for prompt in PROMPTS[:9]]
    path, measured = tmp_path / "chats.jsonl", tmp_path / "measured.jsonl"
    path.write_text("".join(json.dumps({"prompt": row}) + "\n" for row in rows * 3))
    measured.write_text("".join(json.dumps({"prompt": row}) + "\n" for row in rows[:5]))
    change = {"prompts": str(path), "evaluate": {"prompts": str(measured), "judge": "longest"}}
    run(settings, **change)
    asked, sampled = of_rounds(Path(settings["out"]), 1)
    assert asked == set(read_prompts([str(measured)]))
    assert len(sampled) == 4 and not asked & sampled
    with pytest.raises(RecipeError, match="there are 4"):
        run(settings, **change, prompts_per_round=5, out=str(tmp_path / "other"))


# -- training ------------------------------------------------------------------------------

REFERENCES = [
    # reference, start, of a whole model, of an adapter
    ("initial", "previous", "FIRST", "base"),
    ("previous", "previous", None, None),
    ("initial", "initial", None, None),
    ("previous", "initial", "BEFORE", "BEFORE"),
]


@pytest.mark.parametrize(("reference", "start", "whole", "adapter"), REFERENCES)
@pytest.mark.parametrize("train", [{}, {"adapter": "lora"}, {"adapter.name": "lora"}])
def test_what_a_later_round_starts_from_and_is_kept_close_to(
    settings: dict[str, Any],
    train: dict[str, Any],
    reference: str,
    start: str,
    whole: str | None,
    adapter: str | None,
) -> None:
    rounds = make_rounds({
        **settings, "reference": reference, "start": start, "train": {"objective": "dpo", **train}
    })  # fmt: skip
    ledger, how = Ledger(rounds), teaching(rounds)
    before = str(ledger.folder / "round-1/train/model")
    first, second = (how.recipe(ledger, "FIRST", number, []) for number in (1, 2))
    assert first["model"] == "FIRST" and "reference" not in first
    assert second["model"] == (before if start == "previous" else "FIRST")
    wanted = adapter if train else whole
    assert second.get("reference") == (before if wanted == "BEFORE" else wanted)
    assert first.items() >= train.items()
    assert (second.items() >= train.items()) == (start == "initial" or not train)


def test_an_objective_without_a_reference_trains_in_every_round(settings: dict[str, Any]) -> None:
    rounds = make_rounds({**settings, "train": {"objective": "simpo"}})
    recipe = teaching(rounds).recipe(Ledger(rounds), "FIRST", 2, [])
    assert "reference" not in recipe and recipe["model"].endswith("round-1/train/model")


def test_settings_of_training_may_be_mended_until_a_round_has_trained(
    settings: dict[str, Any],
) -> None:
    ledger = Ledger(make_rounds(settings))
    finished = ledger.stage_folder(0, "evaluate") / "manifest.json"
    finished.parent.mkdir(parents=True)
    finished.write_text("{}")
    ledger.write("running")

    def again(**train: Any) -> None:
        Ledger(make_rounds({**settings, "train": {**settings["train"], **train}}))

    again(learning_rate=1e-4)
    trained = ledger.stage_folder(1, "train") / "manifest.json"
    trained.parent.mkdir(parents=True)
    trained.write_text("{}")
    again()
    again(microbatch_tokens=128)
    with pytest.raises(RunError, match="another setting"):
        again(learning_rate=1e-4)


def test_a_manifest_that_is_torn_is_named(settings: dict[str, Any]) -> None:
    ledger = Ledger(make_rounds(settings))
    torn = ledger.stage_folder(1, "check") / "manifest.json"
    torn.parent.mkdir(parents=True)
    torn.write_text("{")
    with pytest.raises(PrefoptError, match="not JSON") as caught:
        ledger.stage(1, "check", lambda _: {})
    assert caught.value.file == str(torn)


def test_rows_of_the_file_are_found_for_parts_of_them(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "rounds.yaml"
    path.write_text("judge: longest\ntrain:\n  objective: dpo\n")
    document, rows = text.read(path)
    rounds = make_rounds({**settings, **document}, path=str(path), rows=rows)
    assert rounds.row("train.objective.name") == 3 and rounds.row("judge.model") == 1
    assert rounds.row("evaluate.judge") is None
