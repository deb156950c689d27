"""Attention on the device: every kernel against the segments in float32, and rows against trees.

In bfloat16 the yardstick is what bfloat16 itself costs: a kernel may be twice as far from
float32 as the plain segments are in bfloat16, and no farther.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from prefopt.engine.logps import Scorer
from prefopt.engine.tokens import TokenGroup
from prefopt.policies.load import Policy
from tests.test_engine import token_groups

ARCHITECTURES = ["llama", "qwen3", "mistral", "gemma3"]


def slope(model: Any, scores: Tensor) -> Tensor:
    """The gradient of a weighted sum of the scores, as one vector."""
    model.zero_grad()
    weights = torch.linspace(-1, 1, len(scores), device=scores.device)
    (scores * weights).sum().backward()
    return torch.cat([p.grad.float().flatten() for p in model.parameters() if p.grad is not None])


def by(
    model: Any, groups: list[TokenGroup], kernel: str | None, precision: Any, sharing: Any = "auto"
) -> tuple[Tensor, Tensor]:
    """Scores and their gradient through one kernel; None for the one that is chosen."""
    scorer = Scorer(model, precision=precision, sharing=sharing)
    scorer.kernels.always = kernel
    scores = scorer(groups)
    assert scorer.sharing == ("trees" if sharing == "auto" else "rows")
    return scores.detach(), slope(model, scores)


def distance(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("kernel", ["mask", "flex"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_kernels_agree_in_float32(
    architecture: str, kernel: str, make_wide: Callable[..., Any], device: torch.device
) -> None:
    if kernel == "flex" and device.type == "cpu":
        pytest.skip("FlexAttention has no backward pass on a CPU")
    model, groups = make_wide(architecture), token_groups()
    scores, gradient = by(model, groups, "segments", "fp32")
    found, its_gradient = by(model, groups, kernel, "fp32")
    torch.testing.assert_close(found, scores, atol=2e-3, rtol=1e-4)
    assert distance(its_gradient, gradient) < 2e-3


@pytest.mark.parametrize("kernel", ["varlen", "flex", "mask"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_kernels_agree_in_bfloat16(
    architecture: str, kernel: str, make_wide: Callable[..., Any], device: torch.device
) -> None:
    if kernel != "mask" and device.type == "cpu":
        pytest.skip("the kernel is only there on CUDA")
    model, groups = make_wide(architecture), token_groups()
    exact, gradient = by(model, groups, "segments", "fp32")
    plain, plain_gradient = by(model, groups, "segments", "bf16")
    found, its_gradient = by(model, groups, kernel, "bf16")
    assert distance(found, exact) < 2 * distance(plain, exact) + 1e-4
    assert distance(its_gradient, gradient) < 2 * distance(plain_gradient, gradient) + 1e-4
    assert distance(its_gradient, gradient) < 0.1


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_trees_are_separate_rows(
    architecture: str, precision: str, make_wide: Callable[..., Any]
) -> None:
    """With the kernel that was chosen, whichever it is."""
    model, groups = make_wide(architecture), token_groups()
    exact, gradient = by(model, groups, None, "fp32", sharing="off")
    trees, its_gradient = by(model, groups, None, precision)
    rows, row_gradient = by(model, groups, None, precision, sharing="off")
    allowed = 2e-4 if precision == "fp32" else 2 * distance(rows, exact) + 1e-4
    assert distance(trees, exact) < allowed
    allowed = 2e-3 if precision == "fp32" else 2 * distance(row_gradient, gradient) + 1e-4
    assert distance(its_gradient, gradient) < allowed


def many_groups(count: int) -> list[TokenGroup]:
    """Pairs with the lengths of dialogues: prompts of 130 tokens, answers of 47, long tails."""
    draw = np.random.default_rng(0)

    def ids(mean: float) -> np.ndarray:
        length = int(np.clip(draw.lognormal(np.log(mean), 0.8), 2, 500))
        return draw.integers(5, 300, length).astype(np.int32)

    return [TokenGroup(ids(95), (ids(34), ids(34))) for _ in range(count)]


@pytest.mark.parametrize("kernel", ["varlen", "flex", "mask"])
def test_a_large_forest(kernel: str, make_wide: Callable[..., Any], cuda: torch.device) -> None:
    model, groups = make_wide("qwen3", max_position_embeddings=1024), many_groups(32)
    exact, _ = by(model, groups, "segments", "fp32")
    plain, _ = by(model, groups, "segments", "bf16")
    found, _ = by(model, groups, kernel, "bf16")
    assert distance(found, exact) < 2 * distance(plain, exact) + 1e-4


def test_the_kernel_is_chosen_by_measurement_and_kept(
    make_wide: Callable[..., Any], cuda: torch.device
) -> None:
    model = make_wide("gemma3")
    scorer = Scorer(model, precision="bf16")
    scorer(token_groups()).sum().backward()
    record = scorer.kernels.to_json()
    print(record)  # `pytest -s` shows what this device prefers
    assert set(record["chosen"]) == {"bfloat16 window", "bfloat16 causal"}
    for kind, times in record["milliseconds"].items():
        numbers = {name: ms for name, ms in times.items() if isinstance(ms, float)}
        assert {"segments", "mask"} <= set(numbers)
        assert record["chosen"][kind] == min(numbers, key=lambda name: numbers[name])
        # A kernel that is out must have a reason that is understood; update this if it is not.
        assert not [reason for reason in times.values() if "differs" in str(reason)]
    again = Scorer(model, precision="bf16")
    again.kernels.restore(record)
    again(token_groups(1))
    assert again.kernels.to_json() == record


def test_scores_are_those_of_a_cpu(make_wide: Callable[..., Any], tiny_tokenizer: Any) -> None:
    from prefopt.engine.logps import completion_logps
    from prefopt.records import Completion, Group

    policy = Policy(make_wide("llama"), tiny_tokenizer)
    group = Group("Name a colour.", (Completion("Blue."), Completion("A dull, clumsy story.")))
    on_device = completion_logps(policy, [group]).detach().cpu()
    on_cpu = completion_logps(Policy(policy.model.cpu(), tiny_tokenizer), [group]).detach()
    torch.testing.assert_close(on_device, on_cpu, atol=2e-3, rtol=1e-4)
