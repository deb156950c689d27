"""Recomputation, offload and compiled layers on the device: the same gradients, less memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from prefopt.engine.checkpointing import Kind
from prefopt.engine.logps import Scorer
from prefopt.training.numerics import compile_layers
from tests.gpu.test_kernels import distance, many_groups, slope
from tests.test_engine import token_groups

KINDS: list[Kind] = [True, 2, "selective"]


def peak_of(work: Callable[[], Any]) -> int:
    """Most bytes that were allocated at once, beyond what was there before."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


@pytest.mark.parametrize("kernel", ["varlen", "flex", "mask", "segments"])
@pytest.mark.parametrize("kind", KINDS)
def test_recomputed_gradients_are_the_same(
    kind: Kind, kernel: str, make_wide: Callable[..., Any], device: torch.device
) -> None:
    if kernel in ("varlen", "flex") and device.type == "cpu":
        pytest.skip("the kernel is only there on CUDA")
    model, groups = make_wide("qwen3", num_hidden_layers=3), token_groups()
    model.train()
    scorer = Scorer(model, precision="bf16")
    scorer.kernels.always = kernel
    expected = slope(model, scorer(groups))
    again = slope(model, scorer(groups))  # atomic sums differ from run to run
    scorer.enable_checkpointing(kind)
    found = slope(model, scorer(groups))
    assert distance(found, expected) <= 2 * distance(again, expected) + 1e-7


def test_each_kind_saves_memory(make_wide: Callable[..., Any], cuda: torch.device) -> None:
    model = make_wide("qwen3", num_hidden_layers=8, max_position_embeddings=1024)
    model.train()
    groups, peaks = many_groups(24), {}
    scorer = Scorer(model, precision="bf16", logits_budget=1 << 22)
    scorer.kernels.always = "mask"
    slope(model, scorer(groups))  # gradients and workspaces are there from here on
    peaks[False] = peak_of(lambda: slope(model, scorer(groups)))
    for kind in KINDS:
        scorer.enable_checkpointing(kind)
        peaks[kind] = peak_of(lambda: slope(model, scorer(groups)))
    print(peaks)
    assert peaks[True] < peaks[2] < peaks[False]
    assert peaks[True] < peaks["selective"] < peaks[False]


def test_offload_keeps_the_gradient_and_saves_memory(
    make_wide: Callable[..., Any], cuda: torch.device
) -> None:
    model = make_wide("qwen3", num_hidden_layers=16, max_position_embeddings=1024)
    model.train()
    groups, found = many_groups(24), {}
    scorer = Scorer(model, precision="bf16", logits_budget=1 << 22)
    scorer.kernels.always = "mask"
    slope(model, scorer(groups))
    for offload in (False, True):
        scorer.enable_checkpointing(True, offload=offload)
        gradients: list[Tensor] = []
        peak = peak_of(lambda into=gradients: into.append(slope(model, scorer(groups))))
        found[offload] = (peak, gradients[0])
    assert distance(found[True][1], found[False][1]) < 1e-3
    assert found[True][0] < found[False][0]


def test_compiled_layers_compute_the_same_in_few_graphs(
    make_wide: Callable[..., Any], cuda: torch.device
) -> None:
    from torch._dynamo.utils import counters

    model = make_wide("qwen3")
    scorer = Scorer(model, precision="bf16")
    scorer.kernels.always = "varlen"
    batches = [token_groups(seed) for seed in range(3)]
    expected = [slope(model, scorer(groups)) for groups in batches]
    compile_layers(model, cuda)
    graphs = []
    for groups, gradient in zip(batches, expected, strict=True):
        assert distance(slope(model, scorer(groups)), gradient) < 0.05
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs == graphs[:1] * 3
    torch._dynamo.reset()
