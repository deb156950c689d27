"""Judges by the numbers of a model: reward models, and implicit rewards."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from prefopt.engine.logps import completion_logps
from prefopt.errors import PolicyError, RecipeError
from prefopt.judges.judge import Judge, Question, compare, score
from prefopt.judges.judging import judge_groups
from prefopt.judges.table import make_judge
from prefopt.policies.load import load_policy
from prefopt.recipe import load_recipe
from prefopt.recipe.sections import RewardChoice
from prefopt.records import Completion, Group, Message
from prefopt.training.train import train
from tests.test_reward_models import encoded, library, pairs, trained

CHAT = (Message("user", "Name a colour."),)
ANSWERS = [
    ("The film was", " a delight."),
    (CHAT, "Blue is the colour of the sky."),
    ("The film was", " a dull, clumsy story."),
    (CHAT, "I cannot help."),
    ("The film was", " a delight."),
]


@pytest.fixture
def reward_run(tiny_policy_folder: Path, tmp_path: Path) -> Path:
    return trained(
        tiny_policy_folder, pairs(tmp_path / "pairs.jsonl"), tmp_path / "rm", max_steps=3
    )


def test_scores_are_those_of_the_library_in_the_order_of_the_answers(reward_run: Path) -> None:
    judge = make_judge(f"reward:{reward_run}", device="cpu")
    assert isinstance(judge, Judge) and judge.name == f"reward:{reward_run}"
    scores = judge.score_all(ANSWERS)
    policy = load_policy_like(reward_run)
    groups = [Group(prompt, (Completion(text),)) for prompt, text in ANSWERS]
    expected = library(reward_run / "model", encoded(policy, groups))
    assert scores == pytest.approx(expected.tolist(), abs=2e-5)
    assert scores[0] == scores[4] and len({*scores}) == 4


def load_policy_like(run: Path) -> Any:
    from prefopt.policies.reward import load_reward_model

    return load_reward_model(run / "model", device="cpu")


def test_comparing_is_bradley_and_terry(reward_run: Path) -> None:
    judge = make_judge({"reward": str(reward_run)}, device="cpu")
    better, worse = score(judge, *ANSWERS[0]), score(judge, *ANSWERS[2])
    assert better is not None and worse is not None
    verdict = compare(judge, "The film was", ANSWERS[0][1], ANSWERS[2][1])
    assert verdict.probability == pytest.approx(1 / (1 + math.exp(worse - better)), abs=1e-6)
    assert verdict.order_consistent is None
    turned = compare(judge, "The film was", ANSWERS[2][1], ANSWERS[0][1])
    assert turned.probability == pytest.approx(1 - verdict.probability, abs=1e-6)
    cold = make_judge(
        {"kind": "reward", "model": str(reward_run), "temperature": 0.1}, device="cpu"
    )
    sure = compare(cold, "The film was", ANSWERS[0][1], ANSWERS[2][1]).probability
    assert sure == pytest.approx(1 / (1 + math.exp(10 * (worse - better))), abs=1e-5)
    assert judge.identity() != cold.identity()


def test_packing_changes_no_score_and_progress_is_told(reward_run: Path) -> None:
    told: list[tuple[int, int]] = []
    many = [*ANSWERS, *((f"Day {n}", f" was number {n}.") for n in range(200))]
    wide = make_judge(f"reward:{reward_run}", device="cpu")
    narrow = make_judge(
        {"kind": "reward", "model": str(reward_run), "microbatch_tokens": 20}, device="cpu"
    )
    scores = wide.score_all(many, lambda done, of: told.append((done, of)))
    assert told[-1] == (205, 205) and len(told) > 1
    assert scores == pytest.approx(narrow.score_all(many), abs=2e-5)


def test_what_cannot_be_encoded_has_no_score_and_spoils_no_other(
    save_policy: Callable[..., Path], tmp_path: Path
) -> None:
    base = save_policy("llama", max_position_embeddings=32)
    run = trained(base, pairs(tmp_path / "pairs.jsonl"), tmp_path / "rm", max_steps=1)
    judge = make_judge(f"reward:{run}", device="cpu")
    long, ends = " and so on" * 30, " fine.<|eos|> But no"
    prompt = "The film was"
    answers = [(prompt, " fine."), (prompt, long), (prompt, ends), (prompt, " dull.")]
    scores = judge.score_all(answers)
    assert [value is None for value in scores] == [False, True, True, False]
    assert scores[0] == pytest.approx(judge.score_all(answers[:1])[0], abs=1e-6)
    assert compare(judge, prompt, " fine.", long).probability is None
    found = judge_groups(judge, [Group(prompt, tuple(Completion(text) for _, text in answers))])
    assert (found.judged, found.unread) == (1, 5)
    assert found.failures == {"too_long": 1, "end_inside": 1}


def test_a_constraint_or_a_probe_reads_the_same_numbers(reward_run: Path) -> None:
    """Other reward models are given the plain text; one that is made here, its end of turn too."""
    from prefopt.constraints.models import RewardModel
    from prefopt.training.one_shot import make_training_reward

    judge = make_judge(f"reward:{reward_run}", device="cpu")
    scores = judge.score_all(ANSWERS)
    assert RewardModel(str(reward_run / "model"), device="cpu").many(ANSWERS) == pytest.approx(
        scores, abs=2e-5
    )
    choice = RewardChoice(reward_model=str(reward_run))  # as a recipe's probe has it
    made: Any = make_training_reward(choice, reference="none", device="cpu")
    assert made.many(ANSWERS) == pytest.approx(scores, abs=2e-5)


def test_an_adapter_is_the_same_judge_each_time(tiny_policy_folder: Path, tmp_path: Path) -> None:
    """Its verdicts are kept by what it is: a head that is drawn at loading must not be in that."""
    data = pairs(tmp_path / "pairs.jsonl")
    run = trained(
        tiny_policy_folder, data, tmp_path / "rm", max_steps=2, **{"adapter.name": "lora"}
    )
    first, second = (make_judge(f"reward:{run}", device="cpu") for _ in range(2))
    assert first.identity() == second.identity()
    assert first.score_all(ANSWERS) == second.score_all(ANSWERS)
    manifest = json.loads((run / "manifest.json").read_text())
    assert first.identity()["model"] == manifest["result"]["fingerprint"]


def test_a_policy_is_no_reward_model(tiny_policy_folder: Path) -> None:
    with pytest.raises(PolicyError, match="is a language model: it has no head for rewards"):
        make_judge(f"reward:{tiny_policy_folder}", device="cpu")


# -- implicit ------------------------------------------------------------------------------


def dpo(model: Path, data: Path, out: Path, **further: Any) -> Path:
    settings = {
        "model": str(model), "data": str(data), "out": str(out), "learning_rate": 3e-3,
        "batch_size": 8, "max_steps": 3, "device": "cpu", "objective.beta": 0.25, **further,
    }  # fmt: skip
    train(load_recipe(None, settings), progress=False)
    return out


@pytest.mark.parametrize("adapter", [False, True])
def test_a_run_knows_its_reference_and_its_beta(
    tiny_policy_folder: Path, tmp_path: Path, adapter: bool
) -> None:
    further = {"adapter.name": "lora"} if adapter else {}
    run = dpo(tiny_policy_folder, pairs(tmp_path / "p.jsonl"), tmp_path / "dpo", **further)
    judge = make_judge(f"implicit:{run}", device="cpu")
    scores = judge.score_all(ANSWERS)
    groups = [Group(prompt, (Completion(text),)) for prompt, text in ANSWERS]
    with torch.no_grad():
        after = completion_logps(load_policy(run / "model", device="cpu"), groups)
        before = completion_logps(load_policy(tiny_policy_folder, device="cpu"), groups)
    assert scores == pytest.approx((0.25 * (after - before)).tolist(), abs=1e-4)
    assert max(map(abs, scores)) > 1e-3  # type: ignore[arg-type]
    same = make_judge({"implicit": str(run / "model")}, device="cpu")  # the run's model
    assert same.identity() == judge.identity()
    plain = make_judge(
        {"kind": "implicit", "model": str(run), "reference": str(tiny_policy_folder), "beta": 0.5},
        device="cpu",
    )
    doubled = plain.score_all(ANSWERS)
    assert doubled == pytest.approx([2 * value for value in scores], abs=1e-4)  # type: ignore[operator]
    question = Question("The film was", ANSWERS[0][1], ANSWERS[2][1])
    (verdict,) = judge.compare_all([question])
    gap = scores[0] - scores[2]  # type: ignore[operator]
    assert verdict.probability == pytest.approx(1 / (1 + math.exp(-gap)), abs=1e-5)


def retrained(folder: Path) -> None:
    """Other weights in the same place, as if somebody had trained it again."""
    policy = load_policy(folder, device="cpu")
    with torch.no_grad():
        next(policy.model.parameters()).view(-1)[0] += 1e-3
    policy.model.save_pretrained(folder)


def test_a_model_that_was_trained_again_in_its_place_is_another_judge(
    tiny_policy_folder: Path, reward_run: Path, tmp_path: Path
) -> None:
    import shutil

    base = tmp_path / "base"
    shutil.copytree(tiny_policy_folder, base)
    run = dpo(base, pairs(tmp_path / "p.jsonl"), tmp_path / "dpo")
    specs: list[Any] = [f"lm:{run / 'model'}", f"implicit:{run}", f"selfreward:{run}"]
    before = [make_judge(spec, device="cpu").identity() for spec in specs]
    assert before == [make_judge(spec, device="cpu").identity() for spec in specs]
    retrained(run / "model")
    after = [make_judge(spec, device="cpu").identity() for spec in specs]
    assert all(old != new for old, new in zip(before, after, strict=True))
    rewarding = make_judge(f"reward:{reward_run}", device="cpu").identity()
    model = load_policy_like(reward_run).model
    with torch.no_grad():
        model.score.weight[0, 0] += 1e-3
    model.save_pretrained(reward_run / "model")
    assert make_judge(f"reward:{reward_run}", device="cpu").identity() != rewarding
    # What a run was trained from is known by what it was, and not by where it lay.
    retrained(base)
    with pytest.raises(PolicyError, match="has changed since the run was trained from it"):
        make_judge(f"implicit:{run}", device="cpu")
    said = {"kind": "implicit", "model": str(run), "reference": str(base)}
    assert make_judge(said, device="cpu").score_all(ANSWERS)


def test_what_a_run_cannot_say_must_be_said(tiny_policy_folder: Path, tmp_path: Path) -> None:
    data = pairs(tmp_path / "p.jsonl")
    with pytest.raises(RecipeError, match="it is not said what the policy was trained from"):
        make_judge(f"implicit:{tiny_policy_folder}", device="cpu")
    run = dpo(tiny_policy_folder, data, tmp_path / "simpo",
              **{"objective.name": "simpo", "objective.beta": 2.0})  # fmt: skip
    with pytest.raises(RecipeError, match="simpo, does not make β") as caught:
        make_judge(f"implicit:{run}", device="cpu")
    assert caught.value.field == "beta"
    assert make_judge({"implicit": str(run), "beta": 0.1}, device="cpu").score_all(ANSWERS)


def test_another_tokenizer_is_refused(
    tiny_policy_folder: Path, save_policy: Callable[..., Path], tmp_path: Path
) -> None:
    other = save_policy("llama", seed=1)
    path = other / "tokenizer_config.json"
    document = json.loads(path.read_text())
    document["bos_token"] = "<|turn|>"
    path.write_text(json.dumps(document))
    spec = {"kind": "implicit", "model": str(tiny_policy_folder), "reference": str(other)}
    with pytest.raises(PolicyError, match="different tokenizers"):
        make_judge(spec, device="cpu")


def test_a_file_names_a_judge_beside_it(reward_run: Path) -> None:
    path = reward_run.parent / "judge.yaml"
    path.write_text(yaml.safe_dump({"kind": "reward", "model": f"./{reward_run.name}"}))
    assert make_judge(path, device="cpu").score_all(ANSWERS)
    path.write_text(yaml.safe_dump({"kind": "reward", "model": "rm", "beta": 1.0}))
    with pytest.raises(RecipeError, match="there is no setting 'beta'"):
        make_judge(path, device="cpu")
