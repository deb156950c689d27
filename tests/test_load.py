"""Loading policies: the real loading code, and what is said when there is nothing to load."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from prefopt.errors import PolicyError
from prefopt.policies.export import model_folder
from prefopt.policies.load import Policy, disable_dropout, load_policy


def test_a_folder_is_loaded_in_float32_without_dropout(save_policy: Callable[..., Path]) -> None:
    folder = save_policy("gpt2", resid_pdrop=0.1, embd_pdrop=0.1, attn_pdrop=0.1)
    policy = load_policy(folder, device="cpu")
    assert {weight.dtype for weight in policy.model.parameters()} == {torch.float32}
    policy.model.train()  # dropout would act in training mode
    ids = torch.arange(5, 60)[None]
    assert torch.equal(policy.model(ids).logits, policy.model(ids).logits)
    assert policy.name == str(folder)
    assert policy.max_length == 512


def test_every_dropout_is_switched_off(make_model: Callable[..., Any]) -> None:
    model = make_model("llama", attention_dropout=0.5)
    model.add_module("extra", torch.nn.Dropout(0.3))
    model.train()
    ids = torch.arange(5, 60)[None]
    assert not torch.equal(model(ids).logits, model(ids).logits)
    disable_dropout(model)
    assert torch.equal(model(ids).logits, model(ids).logits)
    assert model.extra.p == 0.0


def test_end_of_turn_comes_from_config_and_tokenizer(make_model: Any, tiny_tokenizer: Any) -> None:
    model = make_model("llama")
    model.generation_config.eos_token_id = [7, 9]
    assert Policy(model, tiny_tokenizer).end_of_turn == {7, 9, tiny_tokenizer.eos_token_id}
    model.generation_config.eos_token_id = None
    assert Policy(model, tiny_tokenizer).end_of_turn == {tiny_tokenizer.eos_token_id}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "nope", "is not there"),
        (lambda folder: "./nope", "is not there"),
        (lambda folder: "runs/hh/dpo", "is not there"),
        (lambda folder: folder, "folder without a model"),
        (lambda folder: folder / "file", "is a file"),
        (lambda folder: folder / "broken", "cannot load"),
        (lambda folder: folder / "classifier", "cannot load"),
    ],
)
def test_what_is_no_model(make: Callable[[Path], Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for name, config in (("broken", "{"), ("classifier", json.dumps({"model_type": "vit"}))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(config)
    with pytest.raises(PolicyError, match=message) as caught:
        load_policy(make(tmp_path))
    assert caught.value.field == "model"
    assert caught.value.remedy


def test_a_model_without_its_tokenizer(make_model: Callable[..., Any], tmp_path: Path) -> None:
    make_model("llama").save_pretrained(tmp_path)
    with pytest.raises(PolicyError, match="cannot load"):
        load_policy(tmp_path)


def test_a_run_that_is_not_finished_has_no_model(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("model: base\n")
    with pytest.raises(PolicyError, match="not finished") as caught:
        model_folder(tmp_path)
    assert "goes on where it was stopped" in str(caught.value.remedy)
    (tmp_path / "model").mkdir()
    assert model_folder(tmp_path) == str(tmp_path / "model")


def test_a_model_folder_may_hold_a_recipe(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("model: base\n")
    (tmp_path / "config.json").write_text("{}")
    assert model_folder(tmp_path) == str(tmp_path)


def test_a_model_without_some_of_its_weights(tiny_policy_folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    file = tiny_policy_folder / "model.safetensors"
    weights = load_file(file)
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(PolicyError, match=r"lacks 1 .*layers\.1\.mlp\.up_proj") as caught:
        load_policy(tiny_policy_folder, device="cpu")
    assert caught.value.field == "model"


@pytest.mark.parametrize("damage", ["cut short", "other shapes", "no number", "no channels"])
def test_a_folder_that_is_damaged(damage: str, tiny_policy_folder: Path) -> None:
    file, config = (tiny_policy_folder / name for name in ("model.safetensors", "config.json"))
    settings = json.loads(config.read_text())
    if damage == "cut short":
        file.write_bytes(file.read_bytes()[:5000])
    settings |= {
        "other shapes": {"vocab_size": 10},
        "no number": {"hidden_size": "x"},
        "no channels": {"hidden_size": 0},
    }.get(damage, {})
    config.write_text(json.dumps(settings))
    with pytest.raises(PolicyError, match="cannot load"):
        load_policy(tiny_policy_folder, device="cpu")
