"""Attention over a forest on a CPU: one autograd function for all segments of a layer.

Every segment's queries attend to its ancestors' keys and its own, with the flash kernel that
`scaled_dot_product_attention` would choose. As one function, a layer writes into tensors of the
whole row instead of joining the pieces of every segment, and gathers keys again in the backward
pass rather than keep a copy for every branch.

Shapes: H heads, G key/value heads, N rows, D channels a head; the batch is always 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from prefopt.engine.forest import Forest, Segment

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default


class Mask(Protocol):
    """What the kernel is told of who sees whom; see `attention.TreeMask`."""

    forest: Forest

    @property
    def causal(self) -> bool: ...

    def slice(self, start: int, stop: int, dtype: torch.dtype) -> Tensor: ...


class SegmentAttention(torch.autograd.Function):
    """(1, N, H, D) queries, (1, N, G, D) keys and values → (1, N, H, D)."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Mask, scale: float | None
    ) -> Tensor:
        output = torch.empty_like(query)
        normalisers = []
        for index, segment in enumerate(mask.forest.segments):
            k, v = (_path(t, mask.forest, index) for t in (key, value))
            q = query[:, segment.start : segment.stop].transpose(1, 2)
            out, normaliser = _forward(q, k, v, 0.0, **_rule(mask, segment, q, scale))
            output[:, segment.start : segment.stop] = out.transpose(1, 2)
            normalisers.append(normaliser)
        ctx.save_for_backward(query, key, value, output, *normalisers)
        ctx.mask, ctx.scale = mask, scale
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, output, *normalisers = ctx.saved_tensors
        (gradient,) = gradients
        mask, forest = ctx.mask, ctx.mask.forest
        by_query = torch.empty_like(query)
        by_key, by_value = torch.zeros_like(key), torch.zeros_like(value)
        for index, segment in enumerate(forest.segments):
            k, v = (_path(t, forest, index) for t in (key, value))
            rows = slice(segment.start, segment.stop)
            q, out, g = (t[:, rows].transpose(1, 2) for t in (query, output, gradient))
            rule = _rule(mask, segment, q, ctx.scale)
            dq, dk, dv = _backward(g, q, k, v, out, normalisers[index], 0.0, **rule)
            by_query[:, rows] = dq.transpose(1, 2)
            _add(by_key, dk, forest, index)
            _add(by_value, dv, forest, index)
        return by_query, by_key, by_value, None, None


def _segments(forest: Forest, index: int) -> Sequence[Segment]:
    """A segment's ancestors from the root down, then itself."""
    return [forest.segments[i] for i in (*forest.segments[index].path, index)]


def _path(tensor: Tensor, forest: Forest, index: int) -> Tensor:
    """(1, G, n, D) rows of a segment's ancestors and its own."""
    pieces = [tensor[:, s.start : s.stop] for s in _segments(forest, index)]
    return (pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=1)).transpose(1, 2)


def _add(whole: Tensor, part: Tensor, forest: Forest, index: int) -> None:
    """Add (1, G, n, D) gradients of a path to those of the rows."""
    segments = _segments(forest, index)
    pieces = part.transpose(1, 2).split([s.stop - s.start for s in segments], dim=1)
    for segment, piece in zip(segments, pieces, strict=True):
        whole[:, segment.start : segment.stop] += piece


def _rule(mask: Mask, segment: Segment, query: Tensor, scale: float | None) -> dict[str, Any]:
    start, length = segment.depth, segment.stop - segment.start
    if start == 0 and mask.causal:
        return {"is_causal": True, "scale": scale}
    bias = mask.slice(start, start + length, query.dtype)
    return {"is_causal": False, "attn_mask": bias, "scale": scale}
