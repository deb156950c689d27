"""What is computed again, kept elsewhere or compiled changes no number, only memory and time."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from prefopt.engine import attention
from prefopt.engine.checkpointing import Kind
from prefopt.engine.logps import Scorer
from prefopt.errors import RecipeError
from prefopt.planning.tracking import Tracker
from prefopt.policies.half import in_float32, to_bf16
from prefopt.policies.load import disable_dropout
from prefopt.recipe import load_recipe
from prefopt.training.numerics import compile_layers
from prefopt.training.train import train
from tests.test_engine import gradients, token_groups
from tests.test_training import rows, write

KINDS: list[Kind] = [True, 2, "selective"]


def kept_bytes(scorer: Scorer, groups: list[Any]) -> int:
    """What a forward pass leaves behind for the backward pass."""
    with Tracker() as tracker:
        scores = scorer(groups)
        return tracker.live - scores.nbytes


# -- gradient checkpointing ----------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", ["llama", "gemma3", "gpt2"])
def test_recomputed_gradients_are_the_same(
    architecture: str, kind: Kind, make_model: Callable[..., Any]
) -> None:
    """To the last bit: the second pass sees the same forest, windows and kernels."""
    size = {"n_layer": 3} if architecture == "gpt2" else {"num_hidden_layers": 3}
    if architecture == "gemma3":
        kinds = ["sliding_attention", "full_attention", "sliding_attention"]
        size |= {"layer_types": kinds}  # type: ignore[dict-item]
    model, groups = make_model(architecture, **size), token_groups()
    disable_dropout(model.train())
    scorer = Scorer(model)
    expected = gradients(model, scorer(groups))
    scorer.enable_checkpointing(kind)
    found = gradients(model, scorer(groups))
    assert scorer.sharing == "trees"
    assert torch.equal(found, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_separate_rows_are_recomputed_as_rows(kind: Kind, make_model: Callable[..., Any]) -> None:
    model, groups = make_model("llama"), token_groups()
    model.train()
    scorer = Scorer(model, sharing="off")
    expected = gradients(model, scorer(groups))
    scorer.enable_checkpointing(kind)
    torch.testing.assert_close(gradients(model, scorer(groups)), expected, atol=0, rtol=1e-7)


def test_how_much_each_kind_keeps(make_model: Callable[..., Any]) -> None:
    """Of four layers: all again keeps least; every second, and parts of all, are in between."""
    groups, found = token_groups(), {}
    for kind in (False, *KINDS):
        model = make_model("llama", num_hidden_layers=4)
        model.train()
        scorer = Scorer(model)
        scorer.check(groups)
        if kind:
            scorer.enable_checkpointing(kind)
        found[kind] = kept_bytes(scorer, groups)
    assert found[True] < found[2] < found[False]
    assert found[True] < found["selective"] < 0.8 * found[False]
    # Twice as many layers are recomputed: about twice as much is saved.
    saved = found[False] - found[True]
    assert found[False] - found[2] == pytest.approx(saved / 2, rel=0.1)


@pytest.mark.parametrize("kind", ["selective", 2])
def test_a_whole_training_with_each_kind(
    kind: Kind, tiny_policy_folder: Path, tmp_path: Path
) -> None:
    pairs = write(tmp_path / "pairs.jsonl", rows(16, seed=0))
    settings = {"model": str(tiny_policy_folder), "data": str(pairs), "batch_size": 8}

    def loss(out: str, **more: Any) -> float:
        resolved = load_recipe(None, {**settings, "out": str(tmp_path / out), **more})
        return train(resolved, progress=False).final_loss

    assert loss("again", gradient_checkpointing=kind) == loss("kept")


# -- settings that a CPU refuses -----------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"gradient_checkpointing": True, "offload_activations": True}, "no other memory"),
        ({"compile": True}, "51 seconds"),
    ],
)
def test_what_has_no_effect_on_a_cpu_is_refused_before_anything_is_written(
    settings: dict[str, Any], words: str, tiny_policy_folder: Path, tmp_path: Path
) -> None:
    pairs = write(tmp_path / "pairs.jsonl", rows(8, seed=0))
    recipe = {"model": str(tiny_policy_folder), "data": str(pairs), "out": str(tmp_path / "run")}
    with pytest.raises(RecipeError, match=words):
        train(load_recipe(None, {**recipe, "device": "cpu", **settings}), progress=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # dynamo's own
def test_compiled_layers_compute_the_same_in_few_graphs(
    make_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Captured but not generated, which is what a GPU does beyond this."""
    from torch._dynamo.utils import counters

    monkeypatch.setattr(attention, "fused", lambda model: nullcontext())  # of CPUs only
    monkeypatch.setattr(attention, "trimmed", lambda decoder: nullcontext())  # not if compiled
    model = make_model("qwen3")
    scorer = Scorer(model)
    batches = [token_groups(seed) for seed in range(3)]
    expected = [gradients(model, scorer(groups)) for groups in batches]
    compile_layers(model, torch.device("cpu"), backend="eager")
    graphs = []
    for groups, gradient in zip(batches, expected, strict=True):
        torch.testing.assert_close(gradients(model, scorer(groups)), gradient, atol=0, rtol=1e-6)
        graphs.append(counters["stats"]["unique_graphs"])
    assert 0 < graphs[0] <= 8
    assert graphs == graphs[:1] * 3  # other lengths and other forests need no others
    torch._dynamo.reset()


# -- weights in bfloat16 -------------------------------------------------------------------


def test_parameters_become_bf16_and_positions_do_not(make_model: Callable[..., Any]) -> None:
    model = make_model("llama")
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    to_bf16(model)
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    assert {buffer.dtype for buffer in model.buffers()} == {torch.float32}
    with in_float32(model):
        for name, weight in model.named_parameters():
            assert weight.dtype == torch.float32
            assert torch.equal(weight, before[name].bfloat16().float())
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}


def test_sharing_is_checked_in_float32(make_model: Callable[..., Any]) -> None:
    """In bfloat16 trees and rows differ by more than is tolerated, for no reason but rounding."""
    model = make_model("llama")
    to_bf16(model)
    scorer = Scorer(model, precision="bf16")
    scorer.check(token_groups())
    assert scorer.sharing == "trees"
    assert scorer.difference is not None
    assert scorer.difference < 1e-5
