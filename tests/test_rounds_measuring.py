"""What a round is measured on: whose answers, how they end, how far they are from the first."""

from __future__ import annotations

import importlib.util
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prefopt.data.formats import read_groups
from prefopt.errors import PrefoptError, RecipeError, RunError
from prefopt.rounds import measuring
from prefopt.rounds.gates import reason_of_check, reasons
from prefopt.rounds.ledger import Ledger
from prefopt.rounds.loop import run_rounds
from prefopt.rounds.page import write_page
from prefopt.rounds.settings import Gates, make_rounds
from prefopt.sampling.generate import before_stop
from tests.small_loop import small_loop

DOCS = Path(__file__).resolve().parent.parent / "docs"


@pytest.fixture
def settings(tmp_path: Path, tiny_policy_folder: Path) -> dict[str, Any]:
    """One round over a tiny policy."""
    return {**small_loop(tmp_path, tiny_policy_folder), "rounds": 1, "prompts_per_round": 4}


def run(settings: dict[str, Any], **change: Any) -> dict[str, Any]:
    return run_rounds(make_rounds({**settings, **change}), progress=False)


def measured(settings: dict[str, Any], number: int) -> dict[Any, list[str]]:
    path = Path(settings["out"]) / f"round-{number}/evaluate/samples.jsonl"
    return {g.prompt: [c.text for c in g.completions] for g in read_groups([str(path)])}


# -- how answers are drawn -----------------------------------------------------------------


def test_answers_end_where_samples_do_and_are_drawn_from_the_policy_itself(
    settings: dict[str, Any],
) -> None:
    """Whatever the temperature of the samples: KL is about the policy's own distribution."""
    whole = run(settings)
    answers = measured(settings, 0)
    texts = "".join(text for own in answers.values() for text in own)
    letters = Counter(filter(str.isalpha, filter(str.isascii, texts)))
    stop = letters.most_common(1)[0][0]
    settings["out"] += "-stopped"
    sample = {**settings["sample"], "stop": [stop], "temperature": 0.3, "top_p": 0.5, "top_k": 3}
    document = run(settings, sample=sample)
    stopped = measured(settings, 0)
    assert stopped == {
        prompt: [before_stop(text, [stop]) for text in own] for prompt, own in answers.items()
    }
    assert stopped != answers
    first, before = document["history"][0], whole["history"][0]
    assert first["length"] < before["length"] and first["tokens"] < before["tokens"]


def kl_by_hand(first: str, folder: Path, prompts: list[Any], stop: str | None) -> float:
    """The mean of log π − log π₀ over a policy's own answers, from the models' own logits."""
    import torch
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM

    from prefopt.policies.load import load_policy
    from prefopt.sampling.generate import draw, encode_prompts
    from prefopt.sampling.settings import Settings

    adapter = (folder / "adapter_config.json").exists()
    kind: Any = AutoPeftModelForCausalLM if adapter else AutoModelForCausalLM
    models = [kind.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(first)]
    policy = load_policy(folder)
    how = Settings(2, 8, seed=measuring.SEED, stop=(stop,) if stop else ())
    ids = encode_prompts(policy, prompts, 8)
    ratios = []
    for prompt, own in zip(ids, draw(policy, prompts, how), strict=True):
        for one in own:
            whole = torch.tensor([[*map(int, prompt), *map(int, one.ids)]])
            logps = []
            for model in models:
                with torch.no_grad():
                    logits = model.eval()(input_ids=whole).logits[0, len(prompt) - 1 : -1]
                said = logits.log_softmax(-1).gather(1, whole[0, len(prompt) :, None])
                logps.append(float(said.sum()))
            ratios.append(logps[0] - logps[1])
    return sum(ratios) / len(ratios)


@pytest.mark.parametrize(
    "change",
    [
        {"reference": "previous"},
        {"reference": "previous", "start": "initial"},
        {"adapter": "lora"},
        {"adapter": "lora", "reference": "previous"},
        {"adapter": "lora", "start": "initial", "stop": "e"},
        {"adapter": "lora", "reference": "previous", "start": "initial"},
    ],
    ids=lambda change: " ".join(change.values()),
)
def test_kl_is_to_the_first_policy_whatever_a_round_starts_from_and_is_kept_close_to(
    settings: dict[str, Any], change: dict[str, Any]
) -> None:
    adapter, stop = change.pop("adapter", None), change.pop("stop", None)
    train = {**settings["train"], **({"adapter": adapter} if adapter else {})}
    sample = {**settings["sample"], **({"stop": [stop]} if stop else {})}
    document = run(settings, rounds=2, train=train, sample=sample, **change)
    prompts = list(measured(settings, 0))
    found = [row["kl"] for row in document["history"]]
    assert found[0] == 0 and document["history"][0]["kl_interval"] is None
    for number in (1, 2):
        folder = Path(settings["out"]) / f"round-{number}/train/model"
        by_hand = kl_by_hand(settings["model"], folder, prompts, stop)
        assert found[number] == pytest.approx(by_hand, abs=1e-4)
        low, high = document["history"][number]["kl_interval"]
        assert low < found[number] < high
    assert abs(found[1]) > 1e-3 and abs(found[2] - found[1]) > 1e-3, "else nothing was learned"


def test_intervals_are_clustered_by_prompt() -> None:
    from prefopt.records import Completion, Group

    groups = [Group(f"p{i}", (Completion("a"), Completion("a"))) for i in range(4)]
    values = [1.0, 1.0, 2.0, 2.0, 3.0, 3.0, 4.0, None]
    found = measuring._mean(values, groups)
    assert found["value"] == pytest.approx(16 / 7) and found["prompts"] == 4
    twice = measuring._mean([1.0, 1.0, 2.0, 2.0, 3.0, 3.0, 4.0, 4.0], groups)
    # two equal answers to a prompt are worth one: 2.5 ± 3.182 · √(5/3)/√4
    assert twice["interval"] == pytest.approx([2.5 - 2.0541, 2.5 + 2.0541], abs=1e-3)


# -- what was answered is kept -------------------------------------------------------------

FAILING = """
import pathlib
def longer(prompt, completion):
    if pathlib.Path({!r}).exists():
        raise ConnectionError("the server is down")
    return len(completion)
"""


def test_a_judge_that_fails_is_asked_later_about_the_same_answers(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    down, rule = tmp_path / "down", tmp_path / "rule.py"
    rule.write_text(FAILING.format(str(down)))
    settings["evaluate"] = {"count": 8, "judge": f"python:{rule}:longer"}
    drawn: list[str] = []
    draw = measuring.draw

    def noted(policy: Any, *arguments: Any, **how: Any) -> Any:
        drawn.append(policy.name)
        return draw(policy, *arguments, **how)

    monkeypatch.setattr(measuring, "draw", noted)
    down.touch()
    with pytest.raises(PrefoptError, match="the server is down"):
        run(settings)
    before = measured(settings, 0)
    with pytest.raises(PrefoptError, match="the server is down"):
        run(settings)
    assert len(drawn) == 1
    # another way of sampling asks for other answers
    with pytest.raises(PrefoptError, match="the server is down"):
        run(settings, sample={**settings["sample"], "max_new_tokens": 4})
    assert len(drawn) == 2 and measured(settings, 0) != before
    # and so does another model under the same name
    weights = Path(settings["model"]) / "model.safetensors"
    copy = tmp_path / "model"
    copy.mkdir()
    for file in weights.parent.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    settings["model"] = str(copy)
    for _ in range(2):
        with pytest.raises(PrefoptError, match="the server is down"):
            run(settings)
    assert len(drawn) == 3
    (copy / "model.safetensors").write_bytes(weights.read_bytes())
    with pytest.raises(PrefoptError, match="the server is down"):
        run(settings)
    assert len(drawn) == 4
    down.unlink()
    document = run(settings)
    assert document["state"] == "done" and drawn[4:] == [f"{settings['out']}/round-1/train/model"]
    torn = Path(settings["out"]) / "round-1/evaluate/answers.json"
    torn.write_text("{")
    (torn.parent / "manifest.json").unlink()
    with pytest.raises(RunError, match="not JSON"):
        run(settings)


def test_a_model_is_loaded_no_more_often_than_it_has_to_be(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a judge is not in memory beside the policies whose answers it judges."""
    told: list[str] = []

    def noting(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*arguments: Any, **how: Any) -> Any:
            told.append(name)
            return work(*arguments, **how)

        return noted

    from prefopt.judges.table import make_judge

    monkeypatch.setattr(measuring, "load_policy", noting("policy", measuring.load_policy))
    monkeypatch.setattr("prefopt.rounds.judges.make_judge", noting("judge", make_judge))
    run(settings)
    begin, measure = ["judge", "judge"], ["judge", "judge"]
    assert told == [*begin, "policy", *measure, "judge", "policy", "policy", *measure]
    told.clear()
    settings["out"] += "-alone"
    run(settings, evaluate={**settings["evaluate"], "agreement": 0})
    assert told == [*begin, "policy", "judge", "judge", "policy", "policy", "judge"]
    told.clear()
    settings["out"] += "-itself"
    run(settings, evaluate={"count": 8})
    assert told == [*begin, "policy", "judge", "judge", "policy", "policy", "judge"]


# -- gates ---------------------------------------------------------------------------------

EMPTY = {"error": {"empty_completion": 2}, "warning": {"length_bias": 1}, "note": {"cycle": 9}}


@pytest.mark.parametrize(
    ("gate", "found", "words"),
    [
        (None, EMPTY, None),
        ("error", EMPTY, "empty completion (2)"),
        ("warning", EMPTY, "empty completion (2), length bias (1)"),
        ("error", {**EMPTY, "error": {}}, None),
        ("warning", {**EMPTY, "error": {}}, "length bias (1)"),
        ("warning", {"error": {}, "warning": {}, "note": {"cycle": 9}}, None),
    ],
)
def test_the_gate_of_check(gate: Any, found: dict[str, Any], words: str | None) -> None:
    said = reason_of_check(found, Gates(check=gate))
    assert (said is None) == (words is None)
    assert words is None or (said is not None and said.endswith(f": {words}"))


def test_errors_of_check_stop_a_round_before_it_trains(settings: dict[str, Any]) -> None:
    """An empty answer that won: here every text stops at once."""
    run(settings, out=settings["out"] + "-before")
    samples = Path(settings["out"] + "-before") / "round-1/sample/samples.jsonl"
    stop = next(iter(read_groups([str(samples)]))).completions[0].text[0]
    settings["sample"] = {**settings["sample"], "stop": [stop]}
    gates = {**settings["gates"], "check": "error"}
    document = run(settings, gates=gates)
    assert document["state"] == "stopped" and document["best"]["round"] == 0
    assert "before round 1 trains" in document["reason"]
    assert "empty completion" in document["reason"]
    assert len(document["history"]) == 1 and "train" not in document["rounds"][0]
    assert not (Path(settings["out"]) / "round-1/train").exists()
    assert "empty completion" in (Path(settings["out"]) / "report.html").read_text()
    document = run(settings)
    assert document["state"] == "done" and len(document["history"]) == 2


def test_of_a_policy_that_said_nothing_no_growth_can_be_told() -> None:
    silent = {"kl": 0.0, "length": 0.0, "diversity": 0.0}
    assert not reasons([silent, {**silent, "length": 5.0}], Gates())


def test_memory_may_be_spared_in_a_folder_that_goes_on(settings: dict[str, Any]) -> None:
    run(settings)
    spared = {**settings["sample"], "batch_size": 1}
    settings["prompts_per_round"] = 4
    again = run(settings, sample=spared, rounds=2)
    assert again["state"] == "done" and len(again["history"]) == 3
    written = json.loads((Path(settings["out"]) / "rounds.json").read_text())
    assert written["settings"]["sample"]["batch_size"] == 1
    with pytest.raises(RunError, match="another setting") as caught:
        Ledger(make_rounds({**settings, "sample": {**spared, "n": 2}}))
    assert (caught.value.field, caught.value.value) == ("sample.n", 3)
    for name, change in (("train", {"train": {}}), ("judge", {"judge": "longest"}),
                         ("evaluate.count", {"evaluate": {"count": 7, "judge": "longest"}}),
                         ("seed", {"seed": 1})):  # fmt: skip
        with pytest.raises(RunError, match="another setting") as caught:
            Ledger(make_rounds({**settings, **change}))
        assert caught.value.field == name


# -- what a file may say -------------------------------------------------------------------


def test_the_table_of_settings_is_what_the_program_writes() -> None:
    path = DOCS / "make_rounds.py"
    spec = importlib.util.spec_from_file_location("make_rounds", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    text = (DOCS / "rounds.md").read_text(encoding="utf-8")
    assert module.page(text) == text, "run: make docs"
    assert "| `gates.check` | `null` |" in text and "`best_worst`, `all_pairs`" in text


def test_prompts_without_room_are_counted_before_the_first_round(
    settings: dict[str, Any],
) -> None:
    prompts = Path(settings["prompts"])
    rows = prompts.read_text().splitlines(keepends=True)
    long = [json.dumps({"prompt": f"{number} very " * 400}) + "\n" for number in range(2)]
    prompts.write_text("".join([*rows[:10], *long]))
    with pytest.raises(RecipeError, match="2 of the 12 prompts cannot be answered") as caught:
        run(settings)
    assert caught.value.field == "prompts"
    prompts.write_text("".join(rows[:12]))
    assert run(settings)["state"] == "done"


def test_prompts_that_were_refused_are_mended_in_the_same_folder(
    settings: dict[str, Any],
) -> None:
    """In a later round, whose prompts came after the first policy had been asked."""
    prompts = Path(settings["prompts"])
    rows = prompts.read_text().splitlines(keepends=True)
    prompts.write_text("".join(rows[:12]))
    run(settings)
    long = [json.dumps({"prompt": f"{number} very " * 400}) + "\n" for number in range(4)]
    prompts.write_text("".join([*rows[:12], *long]))
    with pytest.raises(PrefoptError, match="longer than the 512"):
        run(settings, rounds=2)
    prompts.write_text("".join(rows[:20]))
    assert len(run(settings, rounds=2)["history"]) == 3


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"rounds": 9, "prompts_per_round": 1000}, "prompts_per_round"),
        ({"evaluate": {"count": 801}}, "evaluate.count"),
    ],
)
def test_more_prompts_than_a_world_has_are_refused_and_not_looked_for(
    change: dict[str, Any], field: str
) -> None:
    with pytest.raises(RecipeError, match="a generated world has") as caught:
        make_rounds({"world": "reviews", "judge": "world", **change})
    assert caught.value.field == field
    make_rounds({"world": "reviews", "judge": "world", "rounds": 8, "prompts_per_round": 1000})


# -- the page ------------------------------------------------------------------------------


def test_the_page_shows_who_judges_and_what_was_gained_for_how_much_kl(tmp_path: Path) -> None:
    def told(value: float) -> dict[str, Any]:
        return {"value": value, "interval": [value - 0.02, value + 0.02]}

    def row(place: int, *, scored: bool) -> dict[str, Any]:
        against = told(0.5 + 0.1 * place) if place else None
        return {
            "value": 0.1, "reward": told(0.3 * place) if scored else None, "initial": against,
            "previous": against, "kl": 2.0 * place, "kl_interval": [place, 3.0 * place],
            "length": 90.0, "length_interval": [80.0, 100.0], "diversity": 0.2, "agreement": None,
            "accuracy": None, "prompts": 23, "seconds": 20.0,
        }  # fmt: skip

    def page(*, scored: bool) -> str:
        for place in range(3):
            answers = tmp_path / f"round-{place}" / "evaluate" / "samples.jsonl"
            answers.parent.mkdir(parents=True, exist_ok=True)
            answers.write_text(json.dumps({"prompt": "p", "completions": [{"text": "a"}]}) + "\n")
        write_page(tmp_path, {
            "state": "done", "best": {"round": 2, "model": "m", "value": 0.1},
            "rounds": [{"round": 1, "sample": {"seconds": 31.0}, "train": {"seconds": 12.0}}],
            "history": [row(place, scored=scored) for place in range(3)],
            "judges": {"judge": {"kind": "reward", "model": "runs/<r>"},
                       "evaluate.judge": {"kind": "longest", "unit": "words"}},
            "settings": {"reference": "initial", "start": "initial", "data": "fresh",
                         "model": "org/first", "world": None,
                         "train": {"objective": {"name": "ipo", "tau": 0.2}}},
        })  # fmt: skip
        return (tmp_path / "report.html").read_text()

    text = page(scored=True)
    assert 'aria-label="Mean score against KL, round after round: 0 at 0, 0.300 at 2.00' in text
    for words in ("org/first", "reward runs/&lt;r&gt;", "longest", "ipo · tau 0.2"):
        assert f"<dd>{words}</dd>" in text, words
    assert "<td>1 min 3 s</td>" in text  # 31 + 12, and 20 to evaluate
    # what nobody measured has no column
    assert ">length</th>" in text and ">agreement</th>" not in text and ">accuracy</th>" not in text
    text = page(scored=False)
    assert 'aria-label="Wins against KL, round after round: 0.500 at 0, 0.600 at 2.00' in text
    assert "Mean score" not in text and ">mean score</th>" not in text
