"""The norm of all gradients, wherever they are, and gradients clipped to one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, get_total_norm

_T = TypeVar("_T", bound=Tensor)


def clip_gradients(parameters: Sequence[nn.Parameter], max_norm: float) -> float:
    """Scale gradients down to a norm, all by one factor; returns what their norm was.

    Gradients may be in shards over different groups of processes: each group's norm is that of
    all its shards. What every process has is counted once. If the norm is not a finite number,
    gradients are as good as lost.
    """
    gradients = [weight.grad for weight in parameters if weight.grad is not None]
    groups = by_mesh(gradients)
    if groups.keys() <= {None}:
        return float(clip_grad_norm_(parameters, max_norm))
    norms = [_whole(get_total_norm(group)) for group in groups.values()]
    norm = math.hypot(*(float(norm) for norm in norms))
    factor = max_norm / (norm + 1e-6)
    if factor < 1:
        for group in groups.values():
            torch._foreach_mul_(group, factor)
    return norm


def by_mesh(tensors: Sequence[_T]) -> dict[Any, list[_T]]:
    """Tensors by the device mesh that they are sharded over, None for those that are not.

    One operation on many tensors takes those of one mesh only.
    """
    groups: dict[Any, list[_T]] = {}
    for tensor in tensors:
        groups.setdefault(getattr(tensor, "device_mesh", None), []).append(tensor)
    return groups


def _whole(norm: Tensor) -> Tensor:
    whole: Tensor = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
    return whole
