"""Gradient checkpointing: activations that the backward pass computes again.

Beside every layer, or every n-th, there is a selective kind: the outputs of matrix products
and of attention are kept, which are nearly all of the arithmetic, and what lies between them
(norms, activations, rotations, sums) is computed again, which is most of the memory.

A layer's second pass runs inside the backward pass, long after the forest has left the model;
it must see the same attention function, which is why it gets a context of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any, Literal, TypeAlias

import torch

Context: TypeAlias = AbstractContextManager[Any]
#: every layer, every n-th layer, or parts of every layer
Kind: TypeAlias = Literal[True, "selective"] | int

_KEPT_NAMES = (
    "aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::_scaled_mm",
    "aten::_scaled_dot_product_flash_attention_for_cpu",
    "aten::_scaled_dot_product_flash_attention",
    "aten::_scaled_dot_product_efficient_attention",
    "aten::_scaled_dot_product_cudnn_attention",
    "torch_attn::_varlen_attn",
)  # fmt: skip


def enable(base: Any, kind: Kind, attention: Callable[[], Context], offload: bool = False) -> None:
    """Let a `transformers` model recompute its layers in the backward pass, in training mode.

    Args:
        base: the model, without PEFT around it.
        kind: True for every layer, N for every N-th, or "selective".
        attention: the context in which a layer attends when it is computed again.
        offload: keep what the layers start from in the host's memory until they are.

    Raises:
        ValueError: the model cannot.
    """
    if kind == "selective":
        contexts: Callable[[], tuple[Context, Context]] = lambda: _selective(attention())  # noqa: E731
    else:
        contexts = lambda: (nullcontext(), attention())  # noqa: E731
    base.activation_checkpointing_enable(
        {"use_reentrant": False, "context_fn": contexts},
        every_n_layers=1 if kind in (True, "selective") else int(kind),
        offload=offload,
    )


def _selective(attention: Context) -> tuple[Context, Context]:
    from torch.utils.checkpoint import create_selective_checkpoint_contexts

    first, again = create_selective_checkpoint_contexts(_policy)
    return first, _Both(again, attention)


class _Both(AbstractContextManager[None]):
    """One context inside another, to be entered later."""

    def __init__(self, outer: Context, inner: Context) -> None:
        self._contexts = outer, inner
        self._stack = ExitStack()

    def __enter__(self) -> None:
        for context in self._contexts:
            self._stack.enter_context(context)

    def __exit__(self, *error: Any) -> bool | None:
        return self._stack.__exit__(*error)


def _policy(context: Any, operator: Any, *args: Any, **more: Any) -> Any:
    """Whether the output of an operator is kept."""
    from torch.utils.checkpoint import CheckpointPolicy

    if isinstance(operator, torch._ops.OpOverload) and operator.name().split(".")[0] in _KEPT_NAMES:
        return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE
