"""Adapters: the policy starts at its reference, and without the adapter it is still there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from prefopt.engine.logps import completion_logps
from prefopt.errors import PolicyError, RecipeError
from prefopt.policies.adapters import adapter_off, attach_adapter, has_adapter, train_adapter
from prefopt.policies.fingerprint import fingerprint_model
from prefopt.policies.load import Policy, load_policy
from prefopt.policies.reference import frozen_copy, load_reference
from prefopt.recipe import AdapterChoice
from prefopt.records import Comparison, Completion, Group
from prefopt.training.checkpoint import save_model
from prefopt.training.trainer import DPOTrainer

GROUPS = [
    Group("A film: ", (Completion("good"), Completion("bad and dull")), (Comparison(0, 1),)),
    Group("A story: ", (Completion("it was fine"), Completion("no")), (Comparison(1, 0),)),
]


def lora(**options: Any) -> AdapterChoice:
    return AdapterChoice.model_validate({"name": "lora", "rank": 4, **options})


def logps(policy: Policy) -> torch.Tensor:
    with torch.no_grad():
        return completion_logps(policy, GROUPS)


def disturb(policy: Policy) -> None:
    """Change every trainable weight, as training does."""
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(5)
        for weight in policy.model.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn_like(weight) * 0.1)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3"])
@pytest.mark.parametrize("options", [{}, {"use_dora": True}, {"use_rslora": True}])
def test_off_is_the_policy_as_it_started_to_the_bit(
    make_policy: Callable[..., Policy], architecture: str, options: dict[str, Any]
) -> None:
    policy = make_policy(architecture)
    start = logps(policy)
    adapted = attach_adapter(policy, lora(**options))
    disturb(adapted)
    assert not torch.allclose(logps(adapted), start, atol=0.1)
    with adapter_off(adapted.model):
        assert torch.equal(logps(adapted), start)
    assert not torch.allclose(logps(adapted), start, atol=0.1)  # and it is on again


def test_a_fresh_lora_changes_nothing(make_policy: Callable[..., Policy]) -> None:
    policy = make_policy()
    start = logps(policy)
    assert torch.equal(logps(attach_adapter(policy, lora())), start)


def test_off_ends_with_the_block_even_after_an_error(make_policy: Callable[..., Policy]) -> None:
    adapted = attach_adapter(make_policy(), lora())
    disturb(adapted)
    on = logps(adapted)
    with pytest.raises(ZeroDivisionError), adapter_off(adapted.model):
        _ = 1 / 0
    assert torch.equal(logps(adapted), on)


def test_the_seed_decides_the_adapter_and_leaves_the_global_state(
    make_policy: Callable[..., Policy],
) -> None:
    before = torch.get_rng_state()
    prints = [
        fingerprint_model(attach_adapter(make_policy(), lora(), seed=seed).model)
        for seed in (1, 1, 2)
    ]
    assert prints[0] == prints[1] != prints[2]
    assert torch.equal(torch.get_rng_state(), before)


def test_training_touches_the_adapter_only(make_policy: Callable[..., Policy]) -> None:
    policy = make_policy()
    base = {name: value.clone() for name, value in policy.model.state_dict().items()}
    trainer = DPOTrainer(policy, lr=1e-2, adapter={"name": "lora", "rank": 4})
    losses = [trainer.train_step(GROUPS) for _ in range(4)]
    assert losses[0] == pytest.approx(0.6931471805599453, rel=1e-7)  # log 2, nothing else
    assert losses[-1] < losses[0] / 2
    for name, weight in trainer.model.named_parameters():
        assert weight.requires_grad == ("lora_" in name)
    trained = trainer.model.unload().state_dict()
    assert all(torch.equal(trained[name], value) for name, value in base.items())


def test_saved_and_loaded_again(
    tiny_policy_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_policy_folder.parent)
    adapted = attach_adapter(load_policy(tiny_policy_folder.name, device="cpu"), lora())
    disturb(adapted)
    save_model(adapted, tmp_path / "saved")
    monkeypatch.chdir("/")  # the adapter finds its base from anywhere
    loaded = load_policy(tmp_path / "saved", device="cpu")
    assert has_adapter(loaded.model)
    assert torch.equal(logps(loaded), logps(adapted))


def test_a_loaded_adapter_is_trained_and_its_reference_is_how_it_was_loaded(
    tiny_policy_folder: Path, tmp_path: Path
) -> None:
    adapted = attach_adapter(load_policy(tiny_policy_folder, device="cpu"), lora())
    disturb(adapted)
    save_model(adapted, tmp_path / "saved")
    trainer = DPOTrainer(tmp_path / "saved", lr=1e-2, device="cpu")
    assert trainer.train_step(GROUPS) == pytest.approx(0.6931471805599453, rel=1e-7)
    assert trainer.train_step(GROUPS) < 0.6
    with adapter_off(trainer.model):
        base = logps(trainer.policy)
    assert torch.equal(base, logps(load_policy(tiny_policy_folder, device="cpu")))
    frozen = load_policy(tmp_path / "saved", device="cpu").model
    assert not any(weight.requires_grad for weight in frozen.parameters())
    train_adapter(frozen)
    assert all(w.requires_grad == ("lora_" in n) for n, w in frozen.named_parameters())


@pytest.mark.parametrize(
    ("options", "field", "message"),
    [
        ({"name": "loora"}, "adapter.name", "there is no adapter 'loora'"),
        ({"lora_dropout": 0.05}, "adapter.lora_dropout", "dropout makes log-ratios noisy"),
        ({"bias": "all"}, "adapter.bias", "biases of the base"),
        ({"init_lora_weights": "pissa"}, "adapter.init_lora_weights", "does not start at"),
        ({"init_lora_weights": "olora"}, "adapter.init_lora_weights", "does not start at"),
        ({"init_lora_weights": False}, "adapter.init_lora_weights", "does not start at"),
        ({"r": 4}, "adapter.r", "is called 'rank' here"),
        ({"ranke": 4}, "adapter.ranke", "has no option 'ranke'"),
    ],
)
def test_adapters_that_would_train_something_else(
    make_policy: Callable[..., Policy], options: dict[str, Any], field: str, message: str
) -> None:
    policy = make_policy()
    with pytest.raises(RecipeError, match=message) as caught:
        attach_adapter(policy, lora(**options))
    assert caught.value.field == field
    assert not has_adapter(policy.model)


def test_layers_that_are_not_there(make_policy: Callable[..., Policy]) -> None:
    with pytest.raises(PolicyError) as caught:
        attach_adapter(make_policy(), lora(target_modules=["w_proj"]))
    assert caught.value.field == "adapter.target_modules"


def test_a_second_adapter_is_refused(make_policy: Callable[..., Policy]) -> None:
    adapted = attach_adapter(make_policy(), lora())
    with pytest.raises(PolicyError, match="already has an adapter"):
        attach_adapter(adapted, lora())


# -- references ----------------------------------------------------------------------------


def test_a_frozen_copy_stays_where_it_was(make_policy: Callable[..., Policy]) -> None:
    policy = make_policy()
    copy = frozen_copy(policy)
    start = logps(policy)
    disturb(policy)
    assert torch.equal(logps(copy), start)
    assert not any(weight.requires_grad for weight in copy.model.parameters())
    assert all(weight.requires_grad for weight in policy.model.parameters())


def test_a_reference_must_speak_the_same_tokens(
    make_policy: Callable[..., Policy], save_policy: Callable[..., Path]
) -> None:
    policy, folder = make_policy(), save_policy("llama", seed=3)
    reference = load_reference(str(folder), policy)
    assert not any(weight.requires_grad for weight in reference.model.parameters())
    assert reference.device == policy.device
    policy.tokenizer.chat_template = "another"
    with pytest.raises(PolicyError, match="different tokenizers"):
        load_reference(str(folder), policy)
