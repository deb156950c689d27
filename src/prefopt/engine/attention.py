"""Attention over a forest, for any decoder of `transformers`.

A decoder is told to use the attention function registered here while a forest goes through
it, and its own one at all other times. The mask that travels through the decoder in place
of a tensor is a `TreeMask`: the forest and the layer's own rule, which the decoder hands to
the registered mask function.

Kernels: a call per tree segment with its ancestors' keys gathered, which is what CPUs use,
and attention that is more than a softmax (soft caps, sinks); or one call for the whole
forest (`kernels.py`), chosen on the device by measurement. On a CPU a dense mask over the
whole row is slower than separate sequences; segments are not.

Shapes: H heads, G key/value heads, N rows, D channels a head; the batch is always 1.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from prefopt.engine.forest import Forest
from prefopt.engine.fused import fused
from prefopt.engine.kernel_choice import PLAIN, KernelChoice
from prefopt.engine.kernels import WHOLE, Kernel
from prefopt.engine.last_layer import trimmed
from prefopt.engine.tree_mask import TreeMask

NAME = "prefopt_trees"
_forest: ContextVar[Forest] = ContextVar("forest")
_choice: ContextVar[KernelChoice | None] = ContextVar("choice")


def tree_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: TreeMask,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention as `transformers` calls it: (1, H, N, D) queries → (1, N, H, D)."""
    cached = key.shape[2] - query.shape[2]
    if cached:  # a prefix in the cache is among the keys and asks nothing
        query = F.pad(query, (0, 0, cached, 0))
        return tree_attention(module, query, key, value, attention_mask, **options)[0][
            :, cached:
        ], None
    if attention_mask.eager or attention_mask.choice is None:
        own = module if attention_mask.eager else None
        return _by_segment(own, query, key, value, attention_mask, options), None
    query, key, value = _as_autocast(query, key, value)
    settings = _sdpa_options(query, key, options)
    kernel = attention_mask.choice(KERNELS, query, key, value, attention_mask, settings)
    return kernel(query, key, value, attention_mask, **settings), None


def tree_mask(mask_function: Callable[..., Tensor], device: Any, **_: Any) -> TreeMask:
    """Mask as `transformers` asks for it, once for every kind of layer."""
    return TreeMask(
        _forest.get(), mask_function, torch.device(device), eager=False, choice=_choice.get()
    )


def tree_mask_eager(mask_function: Callable[..., Tensor], device: Any, **_: Any) -> TreeMask:
    """The same for models that compute attention with a function of their own."""
    return TreeMask(_forest.get(), mask_function, torch.device(device), eager=True)


AttentionInterface.register(NAME, tree_attention)
AttentionInterface.register(f"{NAME}_eager", tree_attention)
AttentionMaskInterface.register(NAME, tree_mask)
AttentionMaskInterface.register(f"{NAME}_eager", tree_mask_eager)


def keep_from_compilers() -> None:
    """Let no `torch.compile` look into the attention of this module: its masks are no tensors."""
    hidden = torch.compiler.disable(tree_attention)
    for name in (NAME, f"{NAME}_eager"):
        AttentionInterface.register(name, hidden)


@contextmanager
def over(forest: Forest, model: Any, choice: KernelChoice | None = None) -> Iterator[None]:
    """While this lasts, the model's forward takes the forest as its one row.

    Args:
        forest: the row.
        model: whose layers look at it.
        choice: of the kernel; without one, a call per segment.
    """
    tokens = _forest.set(forest), _choice.set(choice)
    try:
        with attending_to_trees(model):
            yield
    finally:
        _forest.reset(tokens[0])
        _choice.reset(tokens[1])


@contextmanager
def attending_to_trees(model: Any) -> Iterator[None]:
    """While this lasts, the model's layers use the attention of this module.

    The name lives in the config's private field, so it is never saved with the model.
    """
    configs = {id(c): c for c in (model.config, model.config.get_text_config())}.values()
    before = [config._attn_implementation_internal for config in configs]
    try:
        for config, name in zip(configs, before, strict=True):
            config._attn_implementation_internal = NAME if name != "eager" else f"{NAME}_eager"
        with fused(model), trimmed(model.get_decoder()):
            yield
    finally:
        for config, name in zip(configs, before, strict=True):
            config._attn_implementation_internal = name


def _by_segment(
    module: nn.Module | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: TreeMask,
    options: dict[str, Any],
) -> Tensor:
    """One call per segment: its queries against its ancestors' keys and its own.

    With a module, its model's own eager function does the arithmetic.
    """
    # One split and one cat a tensor: slices would each make a gradient of the full size.
    lengths = list(mask.forest.lengths)
    queries, keys, values = (torch.split(t, lengths, dim=2) for t in (query, key, value))
    outputs = []
    for index, segment in enumerate(mask.forest.segments):
        path = (*segment.path, index)
        k = torch.cat([keys[i] for i in path], dim=2) if segment.path else keys[index]
        v = torch.cat([values[i] for i in path], dim=2) if segment.path else values[index]
        q, start, stop = queries[index], segment.depth, segment.depth + lengths[index]
        if module is not None:
            attend = _eager_function(type(module).__module__)
            outputs.append(attend(module, q, k, v, mask.slice(start, stop, q.dtype), **options)[0])
        else:
            causal = start == 0 and mask.causal
            bias = None if causal else mask.slice(start, stop, q.dtype)
            out = F.scaled_dot_product_attention(
                q, k, v, attn_mask=bias, is_causal=causal, **_sdpa_options(q, k, options)
            )
            outputs.append(out.transpose(1, 2))
    return torch.cat(outputs, dim=1)


def _segments(query: Tensor, key: Tensor, value: Tensor, mask: TreeMask, **settings: Any) -> Tensor:
    return _by_segment(None, query, key, value, mask, {"scaling": settings["scale"]})


#: by name; all of them compute the same
KERNELS: Mapping[str, Kernel] = {PLAIN: _segments, **WHOLE}


def _as_autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """In the dtype of autocast where it is on, which knows the plain kernel but not all others.

    Norms of queries and keys with fp32 weights leave them in fp32 beside values in bf16.
    """
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(tensor.to(dtype) for tensor in tensors)


def _sdpa_options(query: Tensor, key: Tensor, options: dict[str, Any]) -> dict[str, Any]:
    """What a fused kernel may be told; anything else a model asks for must not be dropped."""
    for name in ("softcap", "s_aux", "position_bias", "dropout"):
        if options.get(name):
            raise NotImplementedError(f"attention with {name} needs the model's eager function")
    return {"scale": options.get("scaling"), "enable_gqa": query.shape[1] != key.shape[1]}


@cache
def _eager_function(file: str) -> Callable[..., Any]:
    """The `eager_attention_forward` of the file that defines a model's attention."""
    function: Callable[..., Any] | None = getattr(
        sys.modules[file], "eager_attention_forward", None
    )
    if function is None:
        raise NotImplementedError(f"{file} has no eager attention function")
    return function
