"""Ways to compute attention over a whole forest in one call, for devices with such kernels.

All of them compute the same. Which is the fastest depends on the device, the forest and the
layer's rule, so it is measured (`kernel_choice.py`), not decided here.

Shapes: H heads, G key/value heads, N rows, D channels a head, T gathered keys; the batch is 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from prefopt.engine.tree_mask import TreeMask

#: (1, H, N, D) queries, (1, G, N, D) keys and values, the mask, then by keyword `scale`
#: (None for 1/√D) and `enable_gqa` (whether H ≠ G) → (1, N, H, D)
Kernel: TypeAlias = Callable[..., Tensor]


_HALF = (torch.bfloat16, torch.float16)


class CannotCompute(Exception):
    """A kernel does not do this rule, this dtype or this device; the message says which."""


def flex(query: Tensor, key: Tensor, value: Tensor, mask: TreeMask, **settings: Any) -> Tensor:
    """FlexAttention: blocks of 128 × 128 that nobody sees are left out."""
    if query.device.type == "cpu" and torch.is_grad_enabled():
        raise CannotCompute("FlexAttention has no backward pass on a CPU")
    out = _compiled_flex()(query, key, value, block_mask=mask.blocks, **settings)
    return out.transpose(1, 2)  # type: ignore[no-any-return]


def varlen(query: Tensor, key: Tensor, value: Tensor, mask: TreeMask, **settings: Any) -> Tensor:
    """FlashAttention over sequences of different lengths: a segment is a sequence, and its keys
    are gathered from its ancestors and itself.

    Its queries are the last of its keys, which is how the kernel lines the two up. It knows
    causal rules and sliding windows, in half precision.
    """
    if query.dtype not in _HALF:
        raise CannotCompute(f"the kernel computes in half precision, and this is {query.dtype}")
    if mask.window is None:
        raise CannotCompute("the layer's rule is neither causal nor a sliding window")
    whole = mask.window >= mask.forest.depth
    keys = mask.gathered
    out = _varlen_attn()(
        query[0].transpose(0, 1),
        key[0].transpose(0, 1).index_select(0, keys.rows),
        value[0].transpose(0, 1).index_select(0, keys.rows),
        keys.query_ends,
        keys.key_ends,
        keys.longest_query,
        keys.longest_keys,
        # (−1, 0) is causal; otherwise so many keys to the left of the query, and none after it.
        window_size=(-1 if whole else mask.window - 1, 0),
        **settings,
    )
    return out[None]  # type: ignore[no-any-return]


def dense(query: Tensor, key: Tensor, value: Tensor, mask: TreeMask, **settings: Any) -> Tensor:
    """One call with a mask over all pairs of rows: wasteful, and the fastest for small forests."""
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask.dense, **settings)
    return out.transpose(1, 2)


#: by name, as manifests and tests call them
WHOLE: Mapping[str, Kernel] = {"varlen": varlen, "flex": flex, "mask": dense}


@cache
def _compiled_flex() -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True)


@cache
def _varlen_attn() -> Callable[..., Any]:
    from torch.nn.attention.varlen import varlen_attn

    return varlen_attn
