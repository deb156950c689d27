"""Attention kernels: all compute the same, and which is used is decided by measurement.

The kernels themselves run on a GPU (tests/gpu); here it is what they are handed: masks, gathered
keys, lengths. Variable-length attention is stood in for by its definition in plain PyTorch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.masking_utils import causal_mask_function, sliding_window_causal_mask_function

from prefopt.engine import kernel_choice, kernels
from prefopt.engine.attention import KERNELS
from prefopt.engine.forest import build_forest
from prefopt.engine.kernel_choice import KernelChoice
from prefopt.engine.kernels import CannotCompute
from prefopt.engine.logps import Scorer
from prefopt.engine.tree_mask import TreeMask
from tests.test_engine import gradients, token_groups

CPU = torch.device("cpu")
WINDOW = sliding_window_causal_mask_function(8)


def plain_varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_ends: Tensor,
    key_ends: Tensor,
    longest_query: int,
    longest_keys: int,
    *,
    scale: float | None,
    window_size: tuple[int, int],
    enable_gqa: bool,
) -> Tensor:
    """What `torch.nn.attention.varlen.varlen_attn` is documented to compute, one by one."""
    assert query_ends.dtype == key_ends.dtype == torch.int32
    assert longest_query == query_ends.diff().max()
    assert longest_keys == key_ends.diff().max()
    assert enable_gqa == (query.shape[1] != key.shape[1])
    left, right = window_size
    out = []
    bounds = zip(query_ends, query_ends[1:], key_ends, key_ends[1:], strict=False)
    for start, stop, first, last in bounds:
        q, k, v = query[start:stop], key[first:last], value[first:last]
        k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], dim=1) for t in (k, v))
        scores = torch.einsum("qhd,khd->hqk", q, k) * (scale or 1 / math.sqrt(q.shape[-1]))
        # The last query stands beside the last key.
        query_at = torch.arange(len(k) - len(q), len(k))[:, None]
        key_at = torch.arange(len(k))
        seen = (key_at <= query_at + right) & ((left < 0) | (key_at >= query_at - left))
        weights = scores.masked_fill(~seen, -math.inf).softmax(-1)
        out.append(torch.einsum("hqk,khd->qhd", weights, v))
    return torch.cat(out)


@pytest.fixture
def without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-ins that run here: definitions, uncompiled, in float32."""
    from torch.nn.attention.flex_attention import flex_attention

    monkeypatch.setattr(kernels, "_varlen_attn", lambda: plain_varlen)
    monkeypatch.setattr(kernels, "_HALF", (torch.float32,))
    monkeypatch.setattr(kernels, "_compiled_flex", lambda: flex_attention)


def mask_of(rule: Any = causal_mask_function) -> TreeMask:
    return TreeMask(build_forest(token_groups()), rule, CPU, eager=False)


def tensors(mask: TreeMask, heads: int = 4, shared: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    rows = len(mask.forest)
    return [torch.randn(1, h, rows, 8, generator=generator) for h in (heads, shared, shared)]


# -- what the kernels are handed -----------------------------------------------------------


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "mistral", "gemma3", "granite"])
@pytest.mark.parametrize("kernel", ["varlen", "mask"])
@pytest.mark.usefixtures("without_a_gpu")
def test_whole_models_agree(kernel: str, architecture: str, make_model: Callable[..., Any]) -> None:
    """Scores and gradients, with windows and grouped heads as the models have them."""
    model, groups = make_model(architecture), token_groups()
    plain, other = Scorer(model), Scorer(model)
    expected = plain(groups)
    slope = gradients(model, expected)
    other.kernels.always = kernel
    found = other(groups)
    assert plain.sharing == other.sharing == "trees"
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(gradients(model, found), slope, atol=1e-4, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("architecture", ["llama", "mistral"])
@pytest.mark.usefixtures("without_a_gpu")
def test_flex_attention_sees_what_segments_see(
    architecture: str, make_model: Callable[..., Any]
) -> None:
    """Forward only: it has no backward pass on a CPU."""
    model, groups = make_model(architecture), token_groups()
    scorer = Scorer(model)
    with torch.no_grad():
        by_segment = scorer(groups)
        scorer.kernels.always = "flex"
        by_flex = scorer(groups)
    torch.testing.assert_close(by_flex, by_segment, atol=1e-4, rtol=0)


def test_a_window_is_told_from_other_rules() -> None:
    mask = mask_of()
    assert mask.causal
    assert mask.window == mask.forest.depth
    assert (mask_of(WINDOW).causal, mask_of(WINDOW).window) == (False, 8)
    chunks = lambda b, h, q, k: (k <= q) & (q // 8 == k // 8)  # noqa: E731
    assert (mask_of(chunks).causal, mask_of(chunks).window) == (False, None)
    # A window that is wider than anything here is no window.
    wide = sliding_window_causal_mask_function(1000)
    assert mask_of(wide).causal


def test_every_segment_gathers_its_ancestors_in_order_of_position() -> None:
    mask = mask_of()
    forest, keys = mask.forest, mask.gathered
    for index, segment in enumerate(forest.segments):
        own = keys.rows[keys.key_ends[index] : keys.key_ends[index + 1]]
        positions = torch.from_numpy(forest.positions)[own]
        assert positions.tolist() == list(range(segment.depth + segment.stop - segment.start))
        assert own[-1] == segment.stop - 1
    assert keys.query_ends[-1] == len(forest)


def test_the_dense_mask_is_that_of_ancestors_within_the_rule() -> None:
    mask = mask_of(WINDOW)
    forest, dense = mask.forest, mask.dense[0, 0]
    ancestors = [{*s.path, index} for index, s in enumerate(forest.segments)]
    owner = [i for i, s in enumerate(forest.segments) for _ in range(s.stop - s.start)]
    for query in range(len(forest)):
        for key in range(len(forest)):
            behind = int(forest.positions[query] - forest.positions[key])
            expected = owner[key] in ancestors[owner[query]] and 0 <= behind < 8
            assert bool(dense[query, key]) == expected


def test_what_a_kernel_cannot_do_it_says() -> None:
    mask = mask_of()
    with pytest.raises(CannotCompute, match="half precision"):
        kernels.varlen(*tensors(mask), mask)
    chunks = mask_of(lambda b, h, q, k: (k <= q) & (q // 8 == k // 8))
    with pytest.raises(CannotCompute, match="neither causal nor a sliding window"):
        kernels.varlen(*(t.bfloat16() for t in tensors(chunks)), chunks)


# -- the choice ----------------------------------------------------------------------------

SETTINGS = {"scale": None, "enable_gqa": True}


def slow(*arguments: Any, **settings: Any) -> Tensor:
    """The plain kernel, a hundred times over."""
    for _ in range(100):
        out = KERNELS["segments"](*arguments, **settings)
    return out


def wrong(*arguments: Any, **settings: Any) -> Tensor:
    """Right but for one row, as with a mask that is off by one."""
    out = KERNELS["segments"](*arguments, **settings)
    return torch.cat([out[:, 1:], out[:, :1]], dim=1)


def broken(*arguments: Any, **settings: Any) -> Tensor:
    raise RuntimeError("no kernel image is available\nfor execution on the device")


def measured(choice: KernelChoice, table: dict[str, Any], mask: TreeMask) -> str:
    query, key, value = tensors(mask)
    choice._measure("here", table, (query, key, value), mask, SETTINGS)
    return choice.chosen["here"]


@pytest.mark.usefixtures("without_a_gpu")
def test_the_fastest_of_those_that_are_right_is_kept() -> None:
    choice = KernelChoice(layers=2)
    table = {
        "segments": slow, "mask": kernels.dense, "wrong": wrong, "broken": broken,
        "flex": kernels.flex,
    }  # fmt: skip
    assert measured(choice, table, mask_of()) == "mask"
    found = choice.measured["here"]
    assert isinstance(found["segments"], float) and found["segments"] > found["mask"]
    assert str(found["wrong"]).startswith("differs from segments by")
    assert found["broken"] == "RuntimeError: no kernel image is available"
    assert found["flex"] == "FlexAttention has no backward pass on a CPU"
    again = KernelChoice()
    again.restore(choice.to_json())
    assert again.to_json() == choice.to_json()


def test_what_is_made_once_a_forest_is_divided_among_the_layers() -> None:
    class Once:
        """A kernel whose mask costs much and whose call costs nothing."""

        def __call__(self, q: Tensor, k: Tensor, v: Tensor, mask: TreeMask, **_: Any) -> Tensor:
            if not hasattr(mask, "made"):
                slow(q, k, v, mask, **SETTINGS)
                mask.made = True  # type: ignore[attr-defined]
            return KERNELS["segments"](q, k, v, mask, **SETTINGS)

    one, many = KernelChoice(layers=1), KernelChoice(layers=1000)
    for choice in (one, many):
        measured(choice, {"segments": Once()}, mask_of())
    cost, shared = (float(choice.measured["here"]["segments"]) for choice in (one, many))
    assert cost > 3 * shared


@pytest.mark.parametrize(
    ("kind", "precision"),
    [(False, "fp32"), (True, "fp32"), (2, "bf16"), ("selective", "bf16")],
)
def test_measuring_leaves_the_forward_pass_around_it_alone(
    kind: Any, precision: Any, make_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hooks, modes and autocast would count what is measured as part of the layer."""
    model, groups = make_model("qwen3", num_hidden_layers=3), token_groups()
    model.train()
    scorer = Scorer(model, precision=precision)
    scorer.kernels.always = "mask"
    expected = gradients(model, scorer(groups))
    monkeypatch.setattr(kernel_choice, "SETTLED", ())
    monkeypatch.setattr(kernels, "_varlen_attn", lambda: broken)
    scorer = Scorer(model, precision=precision)
    if kind:
        scorer.enable_checkpointing(kind)
    scores = scorer(groups)
    (name,) = scorer.kernels.chosen  # measured once, on the first layer
    assert name == ("float32 causal" if precision == "fp32" else "bfloat16 causal")
    assert {"segments", "mask"} <= {
        kernel for kernel, ms in scorer.kernels.measured[name].items() if isinstance(ms, float)
    }
    found = gradients(model, scores)
    allowed = 1e-5 if precision == "fp32" else 0.1  # either kernel may be the faster one
    assert float((found - expected).norm() / expected.norm()) < allowed


def test_on_a_cpu_nothing_is_measured(make_model: Callable[..., Any]) -> None:
    scorer = Scorer(make_model("mistral"))
    scorer(token_groups())
    assert scorer.kernels.to_json() == {
        "chosen": {"float32 window": "segments"},
        "milliseconds": {},
    }


def test_autocast_reaches_every_kernel(make_model: Callable[..., Any]) -> None:
    """Norms with fp32 weights leave Qwen3's queries in fp32 beside values in bf16."""
    seen = []

    class Listening(KernelChoice):
        def __call__(self, table: Any, *arguments: Any) -> Any:
            seen.append({tensor.dtype for tensor in arguments[:3]})
            return super().__call__(table, *arguments)

    scorer = Scorer(make_model("qwen3"), precision="bf16")
    scorer.kernels = Listening()
    scorer(token_groups()).sum().backward()
    assert seen == [{torch.bfloat16}] * 2
