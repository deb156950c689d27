"""Optimizers: what they read, how far 8-bit states are from float32, weights in bfloat16.

The adamw of a training and its learning rate are in test_training.py.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prefopt.errors import MissingExtraError, RecipeError
from prefopt.recipe import OptimizerChoice, load_recipe
from prefopt.runs import Run
from prefopt.training import stochastic
from prefopt.training.checkpoint import Checkpoints
from prefopt.training.loop import State
from prefopt.training.optimizer import make_optimizer
from prefopt.training.stochastic import StochasticAdamW, round_stochastically
from prefopt.training.train import train
from tests.stepping import killed_after
from tests.test_training import rows, write

NAMES = ["adamw", "adamw_8bit", "adafactor", "rmsprop"]
BASE = {"model": "m", "data": "d", "out": "o"}


def network(dtype: torch.dtype = torch.float32) -> nn.Module:
    """Matrices large enough (4096 numbers and more) to have 8-bit states."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(64, 96), nn.Tanh(), nn.Linear(96, 64)).to(dtype)


def learn(model: nn.Module, optimizer: torch.optim.Optimizer, first: int, stop: int) -> float:
    """Steps on batches that depend on their number alone; the last loss."""
    for place in range(first, stop):
        inputs = torch.randn(16, 64, generator=torch.Generator().manual_seed(place))
        dtype = next(model.parameters()).dtype
        loss = (model(inputs.to(dtype)).float() - inputs.cumsum(1).tanh()).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return float(loss.detach())


def made(model: nn.Module, name: str = "adamw", rate: float = 1e-3, **options: Any) -> Any:
    choice = OptimizerChoice(name=name, **options)  # type: ignore[arg-type]
    return make_optimizer(model.parameters(), learning_rate=rate, choice=choice, seed=3)


def weights(model: nn.Module) -> Tensor:
    return torch.cat([weight.detach().flatten() for weight in model.parameters()])


# -- by name -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_every_optimizer_learns(name: str) -> None:
    model = network()
    rate = {"adafactor": 0.03}.get(name, 1e-3)  # relative to the weights
    before = learn(model, made(model, name, rate=1e-12), 0, 1)
    assert learn(model, made(model, name, rate=rate), 0, 60) < 0.9 * before


def test_eight_bits_stay_near_float32() -> None:
    """After 20 steps, within a twentieth of the way that the weights have gone."""
    start, exact, rough = network(), network(), network()
    learn(exact, made(exact), 0, 20)
    optimizer = made(rough, "adamw_8bit")
    learn(rough, optimizer, 0, 20)
    states = [optimizer.state[weight]["state1"].dtype for weight in rough.parameters()]
    assert states == [torch.uint8, torch.float32] * 2  # matrices and vectors
    way = (weights(exact) - weights(start)).norm()
    assert 0 < (weights(rough) - weights(exact)).norm() < 0.05 * way


def test_rmsprop_by_hand() -> None:
    """One step: v = 0.01 g², and the weight moves by rate · g / (√v + ε) = 10 · rate."""
    weight = nn.Parameter(torch.tensor([[1.0]]))
    optimizer = make_optimizer(
        [weight], learning_rate=0.01, choice=OptimizerChoice(name="rmsprop").resolved()
    )
    weight.grad = torch.tensor([[0.5]])
    optimizer.step()
    assert weight.item() == pytest.approx(0.9, abs=1e-6)


def test_options_reach_the_optimizer() -> None:
    model = network()
    assert made(model, betas=[0.8, 0.95], eps=1e-6).defaults["betas"] == (0.8, 0.95)
    assert made(model, "adamw_8bit", eps=1e-6).defaults["eps"] == 1e-6
    adafactor = made(model, "adafactor", beta2_decay=-0.5, clip_threshold=2.0).defaults
    assert (adafactor["beta2_decay"], adafactor["d"]) == (-0.5, 2.0)
    rmsprop = made(model, "rmsprop", alpha=0.9, momentum=0.5).defaults
    assert (rmsprop["alpha"], rmsprop["momentum"], rmsprop["eps"]) == (0.9, 0.5, 1e-8)
    half = made(network(torch.bfloat16), betas=[0.8, 0.95])
    assert isinstance(half, StochasticAdamW)
    assert half.defaults["betas"] == (0.8, 0.95)


@pytest.mark.parametrize("name", [*NAMES, "bf16"])
def test_a_checkpoint_restores_every_optimizer_to_the_last_bit(name: str, tmp_path: Path) -> None:
    dtype = torch.bfloat16 if name == "bf16" else torch.float32
    name = "adamw" if name == "bf16" else name
    model = network(dtype)
    optimizer = made(model, name)
    learn(model, optimizer, 0, 4)
    path = Checkpoints(tmp_path, model, optimizer).save(State(step=4))
    learn(model, optimizer, 4, 8)

    other = network(dtype)
    with torch.no_grad():
        for weight in other.parameters():
            weight.add_(1)
    again = made(other, name)
    Checkpoints(tmp_path, other, again).load(path)
    learn(other, again, 4, 8)
    assert torch.equal(weights(other), weights(model))


def test_a_missing_package_is_named_before_anything_is_written(
    train_it: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(MissingExtraError, match="bitsandbytes") as error:
        train_it("run", optimizer="adamw_8bit")
    assert "prefopt[quantized]" in str(error.value.remedy)
    assert not (tmp_path / "run").exists()


def test_paging_is_refused_where_there_is_nothing_to_page_to(
    train_it: Callable[..., Any], tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match="no effect on a CPU"):
        train_it("run", optimizer="paged_adamw_8bit", device="cpu")
    assert not (tmp_path / "run").exists()


# -- in a recipe ---------------------------------------------------------------------------


def test_defaults_are_written_out() -> None:
    resolved = load_recipe(None, {**BASE, "optimizer": "rmsprop", "optimizer.alpha": 0.9})
    values = resolved.values()
    found = {key: value for key, value in values.items() if key.startswith("optimizer.")}
    assert found == {
        "optimizer.name": "rmsprop",
        "optimizer.eps": 1e-8,
        "optimizer.alpha": 0.9,
        "optimizer.momentum": 0.0,
    }
    assert resolved.origins["optimizer.alpha"] == "command line"
    assert resolved.origins["optimizer.eps"] == "default for rmsprop"


@pytest.mark.parametrize(
    ("settings", "field", "words"),
    [
        ({"optimizer.alpha": 0.9}, "optimizer.alpha", "adamw does not read it"),
        (
            {"optimizer": "rmsprop", "optimizer.betas": [0.9, 0.99]},
            "optimizer.betas",
            "adamw and adamw_8bit and paged_adamw_8bit would read it",
        ),
        ({"optimizer": "rmsprop", "weight_decay": 0.1}, "weight_decay", "decoupled"),
        ({"optimizer": "adamw_8bit", "parallel": "fsdp"}, "optimizer", "in shards"),
        ({"weights": "bf16", "optimizer": "adafactor"}, "weights", "round its steps away"),
        ({"weights": "bf16", "precision": "fp32"}, "precision", "no effect"),
        ({"weights": "bf16", "parallel": "fsdp"}, "weights", "cannot be in shards"),
        (
            {"weights": "bf16", "reference.update_every": 2, "reference.mixture": 0.5},
            "reference.mixture",
            "cannot be mixed",
        ),
        ({"offload_activations": True}, "offload_activations", "there is none"),
        ({"compile": True, "gradient_checkpointing": "selective"}, "compile", "no effect"),
    ],
)
def test_what_does_not_fit_is_refused(settings: Any, field: str, words: str) -> None:
    with pytest.raises(RecipeError) as error:
        load_recipe(None, {**BASE, **settings})
    assert error.value.field == field
    assert words in f"{error.value} {error.value.remedy}"


def test_beside_an_adapter_any_optimizer_will_do() -> None:
    load_recipe(None, {**BASE, "weights": "bf16", "optimizer": "adafactor", "adapter": "lora"})


# -- weights in bfloat16 -------------------------------------------------------------------

COUNT = 1 << 20


def test_a_number_is_rounded_to_a_neighbour_with_the_right_mean() -> None:
    generator = torch.Generator().manual_seed(0)
    # 1/128 is the gap above 1, so 1 + 1/512 is a quarter of the way; below zero the same.
    for value in (1 + 1 / 512, -(1 + 1 / 512)):
        rounded = round_stochastically(torch.full((COUNT,), value), generator).float()
        assert set(rounded.unique().abs().tolist()) == {1.0, 1 + 1 / 128}
        share = float((rounded.abs() > 1).float().mean())
        assert abs(share - 0.25) < 4 * (0.25 * 0.75 / COUNT) ** 0.5


def test_what_bfloat16_has_is_left_as_it_is() -> None:
    values = torch.randn(1000, generator=torch.Generator().manual_seed(1)).bfloat16()
    special = torch.tensor([0.0, -0.0, 1e-40, 3e38]).bfloat16()
    for exact in (values, special):
        found = round_stochastically(exact.float(), torch.Generator().manual_seed(0))
        assert torch.equal(found.view(torch.int16), exact.view(torch.int16))


def one_step(rate: float, dtype: torch.dtype, **more: Any) -> Tensor:
    """What AdamW's first step does to many weights of one: each should move by the rate."""
    weight = nn.Parameter(torch.ones(COUNT // 64, 64, dtype=dtype))
    kind = more.pop("kind", StochasticAdamW)
    optimizer = kind([weight], lr=rate, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, **more)
    weight.grad = torch.full_like(weight, -0.5)
    optimizer.step()
    return weight.detach().double() - 1


def test_a_tiny_step_survives_in_the_mean_and_plain_rounding_loses_it() -> None:
    """DPO's usual 5e-7: of 1/128 gaps, one weight in 15,625 moves."""
    rate, gap = 5e-7, 1 / 128
    lost = one_step(rate, torch.bfloat16, kind=torch.optim.AdamW)
    assert not lost.any()
    moved = one_step(rate, torch.bfloat16, seed=0)
    assert set(moved.unique().tolist()) == {0.0, gap}
    error = gap * (rate / gap / COUNT) ** 0.5  # of the mean of so many
    assert abs(float(moved.mean()) - rate) < 4 * error


def test_weights_in_float32_get_adamw_itself() -> None:
    plain = one_step(1e-3, torch.float32, kind=torch.optim.AdamW)
    assert torch.equal(one_step(1e-3, torch.float32, seed=0), plain)


def test_many_steps_follow_float32() -> None:
    """Within a twentieth of the way after 200 small steps; rounding to nearest goes nowhere."""
    start, exact, rough = network().bfloat16(), network(), network(torch.bfloat16)
    exact.load_state_dict(start.state_dict())
    learn(exact, made(exact, rate=1e-5), 0, 200)
    learn(rough, made(rough, rate=1e-5), 0, 200)
    way = weights(exact) - weights(start).float()
    gone = weights(rough).float() - weights(start).float()
    assert float(gone @ way / way.square().sum()) == pytest.approx(1, abs=0.05)


def test_what_is_drawn_depends_on_seed_step_and_parameter_alone() -> None:
    first, again, other = (one_step(1e-3, torch.bfloat16, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    pair = [nn.Parameter(torch.ones(64, 64, dtype=torch.bfloat16)) for _ in range(2)]
    optimizer = StochasticAdamW(pair, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, seed=0)
    seen = []
    for _ in range(2):
        before = [weight.detach().clone() for weight in pair]
        for weight in pair:
            weight.grad = torch.ones_like(weight)
        optimizer.step()
        seen += [weight.detach() - old for weight, old in zip(pair, before, strict=True)]
    patterns = {tuple((change != 0).flatten().tolist()) for change in seen}
    assert len(patterns) == 4


def test_a_large_weight_is_updated_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The parts draw one after the other; without chance in it they are the whole."""
    monkeypatch.setattr(stochastic, "CHUNK", 1000)
    parts = one_step(1e-3, torch.float32, seed=0)
    assert torch.equal(parts, one_step(1e-3, torch.float32, kind=torch.optim.AdamW))
    drawn = one_step(1 / 256, torch.bfloat16, seed=0) != 0
    assert float(drawn.double().mean()) == pytest.approx(0.5, abs=0.01)
    assert not torch.equal(drawn.flatten()[:1000], drawn.flatten()[1000:2000])


# -- a whole training ----------------------------------------------------------------------


@pytest.fixture
def train_it(tiny_policy_folder: Path, tmp_path: Path) -> Callable[..., dict[str, Tensor]]:
    """`train_it(out, **settings)`: a small training; its model's tensors."""
    from safetensors.torch import load_file

    pairs = write(tmp_path / "pairs.jsonl", rows(24, seed=0))

    def go(out: str, **settings: Any) -> dict[str, Tensor]:
        recipe = {
            "model": str(tiny_policy_folder), "data": str(pairs), "out": str(tmp_path / out),
            "batch_size": 4, "learning_rate": 1e-3, **settings,
        }  # fmt: skip
        train(load_recipe(None, recipe), progress=False)
        files = (tmp_path / out / "model").glob("*.safetensors")
        return {key: value for file in files for key, value in load_file(file).items()}

    return go


def test_a_training_in_bf16_resumes_to_the_last_bit(
    train_it: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train_it("whole", weights="bf16")
    assert {value.dtype for value in whole.values()} == {torch.bfloat16}
    manifest = Run(tmp_path / "whole").read_json(Run(tmp_path / "whole").manifest)
    assert manifest["engine"]["sharing"] == "trees"  # checked in float32, where it can be told
    assert manifest["engine"]["difference"] < 1e-4
    assert manifest["engine"]["precision"] == "bf16"

    with killed_after(3, monkeypatch):
        train_it("part", weights="bf16", checkpoint_every=2)
    resumed = train_it("part", weights="bf16", checkpoint_every=2)
    assert all(torch.equal(resumed[key], value) for key, value in whole.items())


def test_a_training_with_eight_bits_is_near_one_with_float32(
    train_it: Callable[..., Any],
) -> None:
    exact, rough = train_it("exact"), train_it("rough", optimizer="adamw_8bit")
    start = train_it("start", learning_rate=1e-12)
    way = sum(float((exact[key] - start[key]).square().sum()) for key in exact) ** 0.5
    gap = sum(float((exact[key] - rough[key]).square().sum()) for key in exact) ** 0.5
    assert 0 < gap < 0.2 * way


def test_an_adapter_beside_a_base_in_bf16_stays_in_float32(
    train_it: Callable[..., Any],
) -> None:
    found = train_it("lora", weights="bf16", adapter="lora")
    assert {value.dtype for value in found.values()} == {torch.float32}
    assert any(value.any() for key, value in found.items() if "lora_B" in key)
