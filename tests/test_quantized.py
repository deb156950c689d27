"""Weights in 4 and 8 bits under an adapter: trained, gone on with, saved, exported."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from prefopt.engine.logps import completion_logps
from prefopt.errors import MissingExtraError, PolicyError, RecipeError
from prefopt.policies.adapter_table import ADAPTERS
from prefopt.policies.adapters import attach_adapter
from prefopt.policies.export import export_model
from prefopt.policies.load import Policy, load_policy
from prefopt.policies.quantized import quantization_of
from prefopt.policies.switches import adapter_off
from prefopt.recipe import AdapterChoice, ResolvedRecipe, load_recipe
from prefopt.training.checkpoint import save_model
from prefopt.training.train import train
from prefopt.training.trainer import DPOTrainer
from tests import stepping
from tests.test_adapters import GROUPS, LOG_2, fitting, logps, same

pytest.importorskip("bitsandbytes")

HOW = ("nf4", "int8")
ON_TOP = [(name, how) for name, kind in ADAPTERS.items() for how in kind.quantized]


@pytest.fixture
def folder(save_policy: Any) -> Path:
    """A model whose layers are as wide as the blocks of 64 weights that nf4 scales together."""
    path: Path = save_policy("llama", hidden_size=64, intermediate_size=128)
    return path


def pairs(out: Path) -> Path:
    path = out / "pairs.jsonl"
    rows = [
        {"prompt": f"Question {n}?", "chosen": f"Blue {n}.", "rejected": f"No {n}!"}
        for n in range(12)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def recipe(folder: Path, tmp_path: Path, out: str, **more: Any) -> ResolvedRecipe:
    values = {"model": str(folder), "data": str(pairs(tmp_path)), "out": str(tmp_path / out),
              "batch_size": 3, "epochs": 2, "learning_rate": 1e-2, "schedule": "constant",
              "warmup": 0.0, "device": "cpu", **more}  # fmt: skip
    return load_recipe(None, values)


@pytest.mark.parametrize("how", HOW)
def test_the_base_is_rounded_alike_with_gradient_and_without(folder: Path, how: Any) -> None:
    """Kernels for one of the two would make a reference of another model."""
    policy = load_policy(folder, device="cpu", quantize=how)
    assert quantization_of(policy.model) == how
    plain = logps(load_policy(folder, device="cpu"))
    learned = completion_logps(policy, GROUPS)
    assert learned.requires_grad
    first = logps(policy)
    assert torch.equal(learned.detach(), first)
    assert 1e-3 < (first - plain).abs().max() < 15
    adapted = attach_adapter(policy, AdapterChoice())
    with torch.enable_grad():
        assert torch.equal(completion_logps(adapted, GROUPS).detach(), first)
    assert torch.equal(logps(adapted), first)
    weights = {type(module).__name__ for module in adapted.model.modules()}
    assert weights & {"Linear4bit", "Linear8bitLt"}


@pytest.mark.parametrize(("name", "how"), ON_TOP)
def test_every_adapter_that_goes_on_top(folder: Path, tmp_path: Path, name: str, how: Any) -> None:
    """It starts at its reference, off is the base, and it is saved with how that is kept."""
    kind, base = ADAPTERS[name], load_policy(folder, device="cpu", quantize=how)
    start = logps(base)
    rate = 1e-3 if name == "randlora" else 1e-2  # which is scaled by 40
    trainer = DPOTrainer(base, lr=rate, adapter=fitting(name).model_dump(exclude_none=True))
    losses = [trainer.train_step(GROUPS) for _ in range(3)]
    if kind.start is not None:
        assert losses[0] == pytest.approx(LOG_2, rel=1e-5)
    on = logps(trainer.policy)
    assert not torch.allclose(on, start, atol=1e-4)
    with adapter_off(trainer.model):
        assert torch.equal(logps(trainer.policy), start)
    save_model(trainer.policy, tmp_path / "saved")
    loaded = load_policy(tmp_path / "saved", device="cpu")
    assert quantization_of(loaded.model) == how
    assert same(kind, logps(loaded), on)
    if kind.merges:
        made = export_model(tmp_path / "saved", tmp_path / "plain")
        assert made["dequantized"] == how
        assert made["difference"] < (1e-4 if how == "nf4" else 0.5)
        plain = load_policy(tmp_path / "plain", device="cpu")
        assert quantization_of(plain.model) is None
        assert torch.allclose(logps(plain), on, atol=1e-3 if how == "nf4" else 1.0)


def test_a_quantized_run_goes_on_where_it_was_killed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"quantize": "nf4", "adapter": "lora", "checkpoint_every": 2}
    train(recipe(folder, tmp_path, "whole", **settings), progress=False)
    stepping.train_with_a_kill(recipe(folder, tmp_path, "cut", **settings), monkeypatch)
    files = [tmp_path / out / "model" / "adapter_model.safetensors" for out in ("whole", "cut")]
    assert files[0].read_bytes() == files[1].read_bytes()
    lines = (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["loss"] == pytest.approx(LOG_2, rel=1e-6)
    # What it came to goes on as a policy in 4 bits, close to itself as it starts.
    second = recipe(tmp_path / "whole", tmp_path, "second")
    train(second, progress=False)
    lines = (tmp_path / "second" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["loss"] == pytest.approx(LOG_2, rel=1e-6)
    assert quantization_of(load_policy(tmp_path / "second" / "model").model) == "nf4"


def test_an_export_without_an_adapter_is_what_the_bits_stand_for(
    folder: Path, tmp_path: Path
) -> None:
    quantized = load_policy(folder, device="cpu", quantize="nf4")
    before = logps(quantized)
    save_model(quantized, tmp_path / "bits")
    made = export_model(tmp_path / "bits", tmp_path / "plain")
    assert made["dequantized"] == "nf4" and not made["merged"]
    assert torch.allclose(logps(load_policy(tmp_path / "plain")), before, atol=1e-3)
    with pytest.raises(PolicyError, match="quantized already"):
        load_policy(tmp_path / "bits", quantize="nf4")


def test_what_no_gradient_step_can_be_added_to(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="weights are in nf4") as caught:
        train(recipe(folder, tmp_path, "run", quantize="nf4"), progress=False)
    assert caught.value.field == "adapter"
    policy = load_policy(folder, device="cpu", quantize="nf4")
    with pytest.raises(PolicyError, match="'boft' does not go on top of weights in nf4"):
        attach_adapter(policy, AdapterChoice(name="boft"))
    assert not (tmp_path / "run").exists()


def test_an_adapter_stays_on_what_it_was_trained_on(folder: Path, tmp_path: Path) -> None:
    policy: Policy = load_policy(folder, device="cpu", quantize="nf4")
    save_model(attach_adapter(policy, AdapterChoice()), tmp_path / "saved")
    with pytest.raises(PolicyError, match="was trained on weights in nf4"):
        load_policy(tmp_path / "saved", device="cpu", quantize="int8")


def test_without_the_extra(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *a: None if name == "bitsandbytes" else find(name, *a),
    )
    with pytest.raises(MissingExtraError) as caught:
        load_policy(folder, device="cpu", quantize="nf4")
    assert caught.value.remedy == "pip install 'prefopt[quantized]'"
    assert caught.value.field == "quantize"


def test_layers_that_are_computed_again_change_nothing(folder: Path) -> None:
    """A kernel that is for the forward pass without gradient alone would change it."""

    def losses(again: bool) -> list[float]:
        trainer = DPOTrainer(
            folder, device="cpu", lr=1e-2, quantize="nf4", adapter="lora",
            gradient_checkpointing=again,
        )  # fmt: skip
        return [trainer.train_step(GROUPS) for _ in range(3)]

    assert losses(True) == losses(False)


def test_a_model_in_memory_is_not_quantized(folder: Path) -> None:
    model = load_policy(folder, device="cpu").model
    with pytest.raises(PolicyError, match="quantized while they are loaded"):
        DPOTrainer(model, quantize="nf4", adapter="lora")
