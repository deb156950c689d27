"""Reward models: trained by `prefopt train`, and the same numbers as the library reads."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from prefopt.data.formats import write_groups
from prefopt.engine.packed import in_order
from prefopt.engine.rewards import RewardScorer
from prefopt.engine.tokens import Encoder, TokenGroup
from prefopt.errors import PolicyError, RecipeError
from prefopt.objectives import Comparisons, Scores
from prefopt.objectives.rewards import reward
from prefopt.policies.load import Policy, is_reward_model, load_policy
from prefopt.policies.reward import check_head, load_reward_model
from prefopt.recipe import load_recipe
from prefopt.records import Comparison, Completion, Group, Message
from prefopt.training.train import train

#: what `transformers` has a sequence classifier for
CLASSIFIERS = ("llama", "qwen3", "mistral", "gemma3", "gpt2", "phi3", "gemma2")

CHAT = (Message("user", "Name a colour."),)
GROUPS = (
    Group(
        "The film was", tuple(Completion(text) for text in (" a delight.", " a dull story.", ""))
    ),
    Group(CHAT, (Completion("Blue is the colour of the sky."), Completion("I cannot help."))),
    Group("How do I bake bread?", (Completion(" Mix flour, water and salt, then wait."),)),
)


def encoded(policy: Policy, groups: Any = GROUPS) -> list[TokenGroup]:
    encoder = Encoder(policy.tokenizer, end_of_turn=policy.end_of_turn)
    return list(encoder(groups))


def library(folder: Path | str, groups: list[TokenGroup], **options: Any) -> Tensor:
    """What the saved folder says by itself: right padding with its own tokenizer's pad."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = [[*group.prompt, *ids] for group in groups for ids in group.completions]
    batch = tokenizer.pad(
        {"input_ids": [list(map(int, row)) for row in rows]},
        padding_side="right",
        return_tensors="pt",
    )
    with torch.no_grad():
        logits: Tensor = model.eval()(**batch).logits[:, 0]
    return logits


def pairs(path: Path, count: int = 24, **further: Any) -> Path:
    """Comparisons in which the completion with a "splendid" is better."""
    rng = np.random.default_rng(0)
    words = ["film", "story", "cast", "weather", "bread", "sky", "day", "colour"]
    rows = []
    for index in range(count):
        some = " ".join(rng.choice(words, 3))
        good, bad = f" the {some} was splendid.", f" the {some} was dull."
        rows.append(
            Group(
                f"On day {index % 7}",
                (Completion(good, score=2.0), Completion(bad, score=0.5)),
                (Comparison(0, 1, **further),),
            )
        )
    write_groups(path, rows)
    return path


def settings(model: Path, data: Path, out: Path, **further: Any) -> dict[str, Any]:
    return {
        "model": str(model),
        "data": str(data),
        "out": str(out),
        "objective.name": "reward",
        "learning_rate": 3e-3,
        "batch_size": 8,
        "epochs": 2,
        "device": "cpu",
        **further,
    }


def trained(*where: Path, **further: Any) -> Path:
    train(load_recipe(None, settings(*where, **further)), progress=False)
    return where[-1]


# -- the loss ------------------------------------------------------------------------------


def test_reward_by_hand() -> None:
    """r = 3, 2, −1; scores 1, ½, ¼."""
    scores = Scores(
        torch.tensor([3.0, 2.0, -1.0], dtype=torch.float64),
        None,
        torch.ones(3),
        rewards=torch.tensor([1.0, 0.5, 0.25], dtype=torch.float64),
    )
    edges = Comparisons.of([(0, 1), (2, 0)], [1.0, 0.25], dtype=torch.float64)
    # log(1 + e^−1); ¼·log(1 + e^4) + ¾·log(1 + e^−4)
    assert reward(scores, edges).tolist() == pytest.approx([0.3132617, 1.0181499], abs=1e-7)
    # ahead by 1 − 2·½ = 0 and −4 − 2·(−¾) = −2½; centred by ½·(5² and 2²)
    expected = [0.6931472 + 12.5, 0.25 * 2.5788898 + 0.75 * 0.0788897 + 2.0]
    losses = reward(scores, edges, margin=2.0, centring=0.5)
    assert losses.tolist() == pytest.approx(expected, abs=1e-6)


def test_a_margin_without_scores_is_refused() -> None:
    scores = Scores(torch.tensor([3.0, 2.0]), None, torch.ones(2))
    with pytest.raises(ValueError, match="a margin needs a score"):
        reward(scores, Comparisons.of([(0, 1)]), margin=1.0)


# -- the engine ----------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", CLASSIFIERS)
def test_rewards_are_those_of_the_library(
    save_policy: Callable[..., Path], tmp_path: Path, architecture: str
) -> None:
    """From a language model's folder, scored as trees, saved, and read by plain transformers."""
    policy = load_reward_model(save_policy(architecture), device="cpu", seed=1)
    groups = encoded(policy)
    scorer = RewardScorer(policy.model)
    with torch.no_grad():
        rewards = in_order(scorer, groups, 8192)
        alone = in_order(RewardScorer(policy.model, sharing="off"), groups, 30)
    assert scorer.sharing == "trees", scorer.reason
    assert rewards.std() > 0.1  # a head that says nothing would agree with anything
    policy.model.save_pretrained(tmp_path / "saved")
    policy.tokenizer.save_pretrained(tmp_path / "saved")
    expected = library(tmp_path / "saved", groups)
    assert torch.allclose(rewards, expected, atol=2e-5)
    assert torch.allclose(alone, expected, atol=2e-5)
    again = load_reward_model(tmp_path / "saved", device="cpu")
    assert again.end_of_turn == policy.end_of_turn
    with torch.no_grad():
        assert torch.equal(RewardScorer(again.model)(groups), RewardScorer(policy.model)(groups))


def test_gradients_of_trees_are_those_of_rows(save_policy: Callable[..., Path]) -> None:
    policy = load_reward_model(save_policy("llama"), device="cpu", seed=1)
    groups = encoded(policy)
    found = []
    for sharing in ("auto", "off"):
        policy.model.zero_grad()
        scores = RewardScorer(policy.model, sharing=sharing)(groups)
        (scores * torch.arange(1.0, len(scores) + 1)).sum().backward()
        found.append({n: w.grad.clone() for n, w in policy.model.named_parameters()})
    assert all(torch.allclose(found[0][n], found[1][n], atol=1e-4) for n in found[0])


@pytest.mark.parametrize("pad", ["none", "eos"])
def test_a_tokenizer_without_a_pad_of_its_own(
    save_policy: Callable[..., Path], tmp_path: Path, pad: str
) -> None:
    """The library stops at the first token that is the pad: that must not be the end of turn."""
    from transformers import AutoTokenizer

    folder = save_policy("llama", pad_token_id=None)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = None if pad == "none" else tokenizer.eos_token
    tokenizer.save_pretrained(folder)
    policy = load_reward_model(folder, device="cpu", seed=1)
    assert policy.model.config.pad_token_id not in policy.end_of_turn
    groups = encoded(policy)
    with torch.no_grad():
        rewards = RewardScorer(policy.model)(groups)
    policy.model.save_pretrained(tmp_path / "saved")
    policy.tokenizer.save_pretrained(tmp_path / "saved")
    assert torch.allclose(rewards, library(tmp_path / "saved", groups), atol=2e-5)


def test_rows_of_a_model_whose_pad_ends_texts(save_policy: Callable[..., Path]) -> None:
    """A reward model from elsewhere may pad with what texts end with; rows are read right."""
    policy = load_reward_model(save_policy("llama"), device="cpu", seed=1)
    groups = encoded(policy)
    with torch.no_grad():
        right = RewardScorer(policy.model, sharing="off")(groups)
        policy.model.config.pad_token_id = policy.tokenizer.eos_token_id
        rows = RewardScorer(policy.model, sharing="off")(groups)
    assert torch.allclose(rows, right, atol=1e-5)
    assert policy.model.config.pad_token_id == policy.tokenizer.eos_token_id


def test_a_model_that_trees_cannot_go_through_gets_rows(save_policy: Callable[..., Path]) -> None:
    """What is not causal, or reads elsewhere, is seen in the first check."""
    policy = load_reward_model(save_policy("llama"), device="cpu", seed=1)
    inner = policy.model.score.forward
    policy.model.score.forward = lambda hidden: inner(hidden) + 2 * (hidden.dim() == 2)
    scorer = RewardScorer(policy.model)
    with torch.no_grad():
        scorer(encoded(policy))
    assert scorer.sharing == "rows" and "differ by" in str(scorer.reason)
    assert str(scorer.reason).endswith("rewards (tolerance 0.001)")


# -- loading -------------------------------------------------------------------------------


def test_the_head_is_drawn_by_its_seed_alone(save_policy: Callable[..., Path]) -> None:
    folder = save_policy("llama")
    before = torch.get_rng_state()
    heads = [load_reward_model(folder, device="cpu", seed=s).model.score.weight for s in (1, 1, 2)]
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])
    assert 0.3 < float(heads[0].detach().std()) * 33**0.5 < 3


def test_what_is_no_reward_model_is_refused(
    save_policy: Callable[..., Path], tmp_path: Path
) -> None:
    from transformers import AutoModelForSequenceClassification

    folder = save_policy("llama")
    with pytest.raises(PolicyError, match="is a language model: it has no head for rewards"):
        load_reward_model(folder, device="cpu")
    with pytest.raises(PolicyError, match=r"cannot load a reward model from .*Cohere"):
        load_reward_model(save_policy("cohere"), device="cpu", seed=0)
    three = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3)
    three.save_pretrained(tmp_path / "three")
    load_policy(folder, device="cpu").tokenizer.save_pretrained(tmp_path / "three")
    with pytest.raises(PolicyError, match=r"has one output, and the one in .* has 3"):
        load_reward_model(tmp_path / "three", device="cpu", seed=0)
    assert is_reward_model(tmp_path / "three") and not is_reward_model(folder)
    with pytest.raises(PolicyError, match="is a reward model: it gives completions a number"):
        load_policy(tmp_path / "three")


# -- training ------------------------------------------------------------------------------


def test_it_learns_and_its_folder_says_so_by_itself(
    tiny_policy_folder: Path, tmp_path: Path
) -> None:
    data = pairs(tmp_path / "pairs.jsonl", 64)
    run = trained(tiny_policy_folder, data, tmp_path / "run", epochs=4)
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    last = records[-1]
    assert last["accuracy"] == 1.0 and last["loss"] < 0.3 and last["margin"] > 1
    assert last["reward_preferred"] - last["reward_dispreferred"] == pytest.approx(last["margin"])
    assert not any(name.startswith(("logp_", "log_ratio_")) for name in last)
    manifest = json.loads((run / "manifest.json").read_text())
    assert manifest["reference"] is None and manifest["engine"]["sharing"] == "trees"
    policy = load_reward_model(run / "model", device="cpu")
    groups = encoded(policy, list(_groups(data))[:8])
    with torch.no_grad():
        rewards = RewardScorer(policy.model)(groups)
    assert torch.allclose(rewards, library(run / "model", groups), atol=2e-5)
    assert (rewards[0::2] > rewards[1::2]).all()


def _groups(path: Path) -> list[Group]:
    from prefopt.data.formats import read_groups

    return list(read_groups(path))


def test_micro_batches_and_checkpointing_change_nothing(
    tiny_policy_folder: Path, tmp_path: Path
) -> None:
    data = pairs(tmp_path / "pairs.jsonl")
    weights = []
    for index, further in enumerate(
        ({}, {"microbatch_tokens": 64}, {"gradient_checkpointing": True}, {"sharing": "off"})
    ):
        run = trained(tiny_policy_folder, data, tmp_path / str(index), max_steps=4, **further)
        weights.append(load_reward_model(run / "model", device="cpu").model.state_dict())
    for other in weights[1:]:
        assert all(torch.allclose(weights[0][n], other[n], atol=2e-4) for n in other)


def test_centring_keeps_rewards_around_zero(tiny_policy_folder: Path, tmp_path: Path) -> None:
    data, means = pairs(tmp_path / "pairs.jsonl"), []
    first = trained(tiny_policy_folder, data, tmp_path / "plain", max_steps=12, epochs=8)
    centred = trained(
        tiny_policy_folder, data, tmp_path / "centred", max_steps=12, epochs=8,
        **{"objective.centring": 0.5},
    )  # fmt: skip
    for run in (first, centred):
        last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
        means.append(abs(last["reward_preferred"] + last["reward_dispreferred"]))
    assert means[1] < 0.5 * means[0]


def test_a_margin_asks_the_data_for_scores(tiny_policy_folder: Path, tmp_path: Path) -> None:
    from prefopt.errors import DataError

    data = pairs(tmp_path / "pairs.jsonl")
    wide = {"objective.margin": 2.0, "max_steps": 12, "epochs": 8}
    run = trained(tiny_policy_folder, data, tmp_path / "margin", **wide)
    plain = trained(
        tiny_policy_folder, data, tmp_path / "plain", **{**wide, "objective.margin": 0.0}
    )
    margins = [
        json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])["margin"]
        for folder in (run, plain)
    ]
    assert margins[0] > margins[1]
    bare = [
        Group(g.prompt, tuple(Completion(c.text) for c in g.completions), g.comparisons)
        for g in _groups(data)
    ]
    write_groups(tmp_path / "bare.jsonl", bare)
    with pytest.raises(DataError, match="needs a score for every completion"):
        trained(tiny_policy_folder, tmp_path / "bare.jsonl", tmp_path / "none", **wide)
    trained(tiny_policy_folder, tmp_path / "bare.jsonl", tmp_path / "fine", max_steps=1)


def test_a_reward_model_goes_on(tiny_policy_folder: Path, tmp_path: Path) -> None:
    """From a run's folder: the head is its own, and no other is drawn."""
    data = pairs(tmp_path / "pairs.jsonl")
    first = trained(tiny_policy_folder, data, tmp_path / "one")
    small = {"learning_rate": 1e-9, "max_steps": 1, "seed": 5}
    second = trained(first, data, tmp_path / "two", **small)
    heads = [load_reward_model(run / "model", device="cpu").model.score.weight
             for run in (first, second)]  # fmt: skip
    assert torch.allclose(*heads, atol=1e-6)


def test_an_adapter_is_saved_with_its_head_and_merges(
    tiny_policy_folder: Path, tmp_path: Path, call: Callable[..., tuple[int, str, str]]
) -> None:
    from peft import AutoPeftModelForSequenceClassification

    data = pairs(tmp_path / "pairs.jsonl", 64)
    lora = {"adapter.name": "lora", "adapter.rank": 4, "learning_rate": 1e-2, "epochs": 4}
    run = trained(tiny_policy_folder, data, tmp_path / "lora", **lora)
    assert is_reward_model(run / "model")
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["accuracy"] == 1.0
    policy = load_reward_model(run / "model", device="cpu")
    groups = encoded(policy, _groups(data)[:6])
    with torch.no_grad():
        rewards = RewardScorer(policy.model)(groups)
        peft = AutoPeftModelForSequenceClassification.from_pretrained(run / "model", num_labels=1)
        first = groups[0]
        ids = torch.tensor([[*first.prompt, *first.completions[0]]])
        assert float(peft.eval()(input_ids=ids).logits) == pytest.approx(
            float(rewards[0]), abs=1e-4
        )
    code, out, err = call("export", run, "--out", tmp_path / "plain", "--json")
    assert code == 0, err
    assert json.loads(out)["merged"] and json.loads(out)["difference"] < 1e-3
    assert torch.allclose(library(tmp_path / "plain", groups), rewards, atol=1e-4)
    further = trained(run, data, tmp_path / "on", max_steps=2)  # an adapter goes on, too
    now = load_reward_model(further / "model", device="cpu").model
    assert not torch.equal(_head(now), _head(policy.model))


def _head(model: Any) -> Tensor:
    weight: Tensor = model.get_base_model().score.weight
    return weight


def test_it_goes_on_from_a_checkpoint_to_the_same_weights(
    tiny_policy_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefopt.training import loop

    data = pairs(tmp_path / "pairs.jsonl")
    more = {"checkpoint_every": 2, "adapter.name": "lora"}
    whole = trained(tiny_policy_folder, data, tmp_path / "whole", **more)

    class Killed(BaseException):
        pass

    def clip(*arguments: Any) -> float:
        if loop_steps.append(None) or len(loop_steps) == 4:
            raise Killed
        return real(*arguments)

    real, loop_steps = loop.clip_gradients, list[None]()
    with monkeypatch.context() as patch:
        patch.setattr(loop, "clip_gradients", clip)
        with pytest.raises(Killed):
            trained(tiny_policy_folder, data, tmp_path / "cut", **more)
    cut = trained(tiny_policy_folder, data, tmp_path / "cut", **more)
    a, b = (
        load_reward_model(run / "model", device="cpu").model.state_dict() for run in (whole, cut)
    )
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    ("further", "message"),
    [
        ({"probe": {"prompts": "x.jsonl"}}, "trains a reward model: it cannot answer the probe's"),
        ({"adapter.name": "prompt_tuning"}, "its head is not read behind virtual tokens"),
        ({"quantize": "nf4", "adapter.name": "lora"}, "its weights are kept in float32"),
        (
            {"constraints": [{"name": "c", "patterns": ["x"], "limit": 0.1, "mode": "safe_dpo"}]},
            "nothing that it says could cost anything",
        ),
        ({"reference": "elsewhere"}, "objective 'reward' reads no reference"),
        ({"objective.plus": {"sft": 0.5}}, "'sft' cannot be added to 'reward': it trains another"),
        ({"objective.margin": -1.0}, "must be"),
    ],
)
def test_what_a_reward_model_does_not_read_is_refused(
    tiny_policy_folder: Path, tmp_path: Path, further: dict[str, Any], message: str
) -> None:
    data = pairs(tmp_path / "pairs.jsonl", 4)
    with pytest.raises(RecipeError, match=message):
        trained(tiny_policy_folder, data, tmp_path / "run", **further)
    assert not (tmp_path / "run").exists()


def test_loading_one_says_nothing(
    tiny_policy_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither of the head that is drawn nor of layers that nobody wanted to shard."""
    policy = load_reward_model(tiny_policy_folder, device="cpu", seed=0)
    policy.model.save_pretrained(tmp_path / "saved")
    policy.tokenizer.save_pretrained(tmp_path / "saved")
    load_reward_model(tmp_path / "saved", device="cpu")
    assert [record.getMessage() for record in caplog.records] == []


def test_the_other_commands_say_what_it_is(
    tiny_policy_folder: Path, tmp_path: Path, call: Callable[..., tuple[int, str, str]]
) -> None:
    data = pairs(tmp_path / "pairs.jsonl")
    recipe = tmp_path / "reward.yaml"
    recipe.write_text(
        yaml.safe_dump(
            {
                "model": str(tiny_policy_folder),
                "data": str(data),
                "eval_data": str(data),
                "objective": {"name": "reward", "centring": 0.01},
                "max_steps": 3,
                "batch_size": 8,
                "device": "cpu",
            }
        )
    )
    code, out, err = call("train", recipe, "--out", tmp_path / "run", "--json")
    assert code == 0, err
    assert "reward" in (tmp_path / "run" / "report.html").read_text()
    assert json.loads(out)["eval"]["accuracy"] >= 0
    refused = "is a reward model: it gives completions a number and cannot speak"
    for command in (
        ("sample", tmp_path / "run", "--prompt", "x"),
        ("train", "--model", tmp_path / "run", "--data", data, "--out", tmp_path / "dpo"),
    ):
        code, _, err = call(*command)
        assert code == 2 and refused in " ".join(err.split()), err
    code, out, err = call("plan", recipe, "--out", tmp_path / "planned", "--json")
    assert code == 0, err
    planned = json.loads(out)
    assert planned["model"]["parts"]["head"] == 32 and planned["work"]["steps"] == 3


def test_a_model_without_the_head_that_is_trained_is_refused(tiny_policy_folder: Path) -> None:
    policy = load_policy(tiny_policy_folder, device="cpu")
    model = load_reward_model(tiny_policy_folder, device="cpu", seed=0)
    check_head(policy, "words")
    check_head(model, "reward")
    with pytest.raises(PolicyError, match="trains a reward model, and the model is a policy"):
        check_head(policy, "reward")
    with pytest.raises(PolicyError, match="trains a policy, and the model is a reward model"):
        check_head(model, "words")
