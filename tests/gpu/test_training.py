"""Whole trainings on the device: against a CPU, resumed, with every optimizer, in shards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from prefopt.recipe import load_recipe
from prefopt.runs import Run
from prefopt.training import prepare
from prefopt.training.checkpoint import Checkpoints
from prefopt.training.loop import State
from prefopt.training.parallel import Spread
from prefopt.training.stochastic import StochasticAdamW, round_stochastically
from prefopt.training.train import train
from tests.stepping import killed_after
from tests.test_optimizer import made, network, weights
from tests.test_training import rows, write

Trained = dict[str, Tensor]
TrainIt = Callable[..., Trained]


@pytest.fixture
def train_it(save_policy: Callable[..., Path], tmp_path: Path, device: torch.device) -> TrainIt:
    """`train_it(out, **settings)`: a small training on the device; its model's tensors."""
    from safetensors.torch import load_file

    size = {"hidden_size": 128, "intermediate_size": 256, "initializer_range": 0.08}
    folder = save_policy("qwen3", **size, head_dim=32)
    pairs = write(tmp_path / "pairs.jsonl", rows(48, seed=0))

    def go(out: str, **settings: Any) -> Trained:
        recipe = {
            "model": str(folder), "data": str(pairs), "out": str(tmp_path / out),
            "batch_size": 8, "learning_rate": 2e-4, "device": device.type,
            "microbatch_tokens": 200, **settings,
        }  # fmt: skip
        train(load_recipe(None, recipe), progress=False)
        files = (tmp_path / out / "model").glob("*.safetensors")
        return {key: value.float() for file in files for key, value in load_file(file).items()}

    return go


def losses(folder: Path) -> list[float]:
    return [r["loss"] for r in Run(folder).read_metrics() if r["kind"] == "train"]


def gap(a: Trained, b: Trained) -> float:
    return sum(float((a[key] - b[key]).square().sum()) for key in a) ** 0.5


# -- against a CPU -------------------------------------------------------------------------


def test_float32_on_the_device_is_float32_on_a_cpu(train_it: TrainIt, tmp_path: Path) -> None:
    train_it("there", precision="fp32")
    train_it("here", precision="fp32", device="cpu")
    assert losses(tmp_path / "there") == pytest.approx(losses(tmp_path / "here"), abs=2e-4)


def test_bfloat16_is_near_float32(train_it: TrainIt, tmp_path: Path, cuda: Any) -> None:
    start = train_it("start", precision="fp32", learning_rate=1e-12)
    exact, rough = train_it("exact", precision="fp32"), train_it("rough")
    manifest = Run(tmp_path / "rough").read_json(Run(tmp_path / "rough").manifest)
    assert manifest["engine"]["precision"] == "bf16"
    assert manifest["engine"]["sharing"] == "trees"
    assert set(manifest["engine"]["attention"]["chosen"]) == {"bfloat16 causal"}
    assert losses(tmp_path / "rough") == pytest.approx(losses(tmp_path / "exact"), abs=0.05)
    assert gap(rough, exact) < gap(exact, start)


@pytest.mark.parametrize(
    "settings",
    [
        {"weights": "bf16"},
        {"adapter": "lora", "learning_rate": 1e-3},
        {"adapter": "lora", "weights": "bf16", "learning_rate": 1e-3},
        {"reference_scores": "each_step"},
        {"objective": "tdpo", "reference_scores": "each_step"},
        {"gradient_checkpointing": "selective"},
        {"gradient_checkpointing": True, "offload_activations": True},
        {"optimizer": "paged_adamw_8bit"},
        {"compile": True},
    ],
    ids=lambda settings: "-".join(f"{key}={value}" for key, value in settings.items()),
)
def test_every_way_to_train_learns(
    settings: dict[str, Any], train_it: TrainIt, tmp_path: Path, device: torch.device
) -> None:
    refused = {"offload_activations", "compile", "optimizer"} & settings.keys()
    if refused and device.type == "cpu":
        pytest.skip(f"{refused.pop()} is refused on a CPU")
    train_it("run", epochs=2, **settings)
    found = losses(tmp_path / "run")
    assert found[-1] < found[0]


# -- stopped and resumed -------------------------------------------------------------------


def test_a_killed_training_goes_on(
    train_it: TrainIt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the same place: exactly, but for sums of atomic additions, whose order is free."""
    whole = train_it("whole")
    start = train_it("start", learning_rate=1e-12)
    with killed_after(4, monkeypatch):
        train_it("part", checkpoint_every=2)
    resumed = train_it("part", checkpoint_every=2)
    assert gap(resumed, whole) < 0.05 * gap(whole, start)
    before, after = (Run(tmp_path / name).manifest for name in ("whole", "part"))
    chosen = [Run(tmp_path).read_json(path)["engine"]["attention"] for path in (before, after)]
    assert set(chosen[0]["chosen"]) == set(chosen[1]["chosen"])


def learn(model: nn.Module, optimizer: torch.optim.Optimizer, first: int, stop: int) -> float:
    """Steps on batches that depend on their number alone; the last loss."""
    weight = next(model.parameters())
    for place in range(first, stop):
        inputs = torch.randn(16, 64, generator=torch.Generator().manual_seed(place))
        inputs = inputs.to(weight.device)
        loss = (model(inputs.to(weight.dtype)).float() - inputs.cumsum(1).tanh()).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return float(loss.detach())


@pytest.mark.parametrize(
    "name", ["adamw", "adamw_8bit", "paged_adamw_8bit", "adafactor", "rmsprop", "bf16"]
)
def test_every_optimizer_learns_and_is_restored_to_the_last_bit(
    name: str, tmp_path: Path, device: torch.device
) -> None:
    if name == "paged_adamw_8bit" and device.type == "cpu":
        pytest.skip("paging is refused on a CPU")
    dtype = torch.bfloat16 if name == "bf16" else torch.float32
    kind = "adamw" if name == "bf16" else name
    rate = 0.03 if name == "adafactor" else 1e-3
    model = network(dtype).to(device)
    optimizer = made(model, kind, rate=rate)
    first = learn(model, optimizer, 0, 1)
    learn(model, optimizer, 1, 4)
    path = Checkpoints(tmp_path, model, optimizer).save(State(step=4))
    learn(model, optimizer, 4, 8)

    other = network(dtype).to(device)
    with torch.no_grad():
        for weight in other.parameters():
            weight.add_(1)
    again = made(other, kind, rate=rate)
    Checkpoints(tmp_path, other, again).load(path)
    learn(other, again, 4, 8)
    assert torch.equal(weights(other), weights(model))
    assert learn(model, optimizer, 8, 60) < 0.95 * first


def test_eight_bits_stay_near_float32(device: torch.device) -> None:
    start, exact, rough = (network().to(device) for _ in range(3))
    learn(exact, made(exact), 0, 20)
    learn(rough, made(rough, "adamw_8bit"), 0, 20)
    way = (weights(exact) - weights(start)).norm()
    assert 0 < (weights(rough) - weights(exact)).norm() < 0.05 * way


def test_stochastic_rounding_has_the_right_mean(device: torch.device) -> None:
    count = 1 << 22
    generator = torch.Generator(device).manual_seed(0)
    values = torch.full((count,), 1 + 1 / 512, device=device)
    rounded = round_stochastically(values, generator).float()
    assert set(rounded.unique().tolist()) == {1.0, 1 + 1 / 128}
    share = float((rounded > 1).float().mean())
    assert abs(share - 0.25) < 4 * (0.25 * 0.75 / count) ** 0.5
    weight = nn.Parameter(torch.ones(1 << 12, 1 << 10, dtype=torch.bfloat16, device=device))
    optimizer = StochasticAdamW([weight], lr=5e-7, betas=(0.9, 0.999), eps=1e-8, seed=0)
    weight.grad = torch.full_like(weight, -0.5)
    optimizer.step()
    moved = float((weight.detach().double() - 1).mean())
    assert abs(moved - 5e-7) < 4 / 128 * (5e-7 * 128 / count) ** 0.5


# -- in shards -----------------------------------------------------------------------------


@pytest.fixture
def process_group(tmp_path: Path, device: torch.device) -> Iterator[None]:
    """One process that takes itself for several."""
    backend = "nccl" if device.type == "cuda" else "gloo"
    store = f"file://{tmp_path / 'store'}"
    torch.distributed.init_process_group(backend, init_method=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("precision", ["fp32", "auto"])
def test_shards_on_one_device_change_nothing(
    precision: str, train_it: TrainIt, tmp_path: Path, device: torch.device,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from torch.distributed.device_mesh import init_device_mesh

    plain = train_it("plain", precision=precision)
    start = train_it("start", precision=precision, learning_rate=1e-12)
    mesh = init_device_mesh(device.type, (1,), mesh_dim_names=("shard",))
    monkeypatch.setattr(prepare, "make_spread", lambda *_: Spread("fsdp", shards=mesh))
    sharded = train_it("sharded", precision=precision)
    assert sharded.keys() == plain.keys()
    allowed = 1e-4 if precision == "fp32" else 5e-2
    assert losses(tmp_path / "sharded") == pytest.approx(losses(tmp_path / "plain"), abs=allowed)
    assert gap(sharded, plain) < 0.5 * gap(plain, start)
