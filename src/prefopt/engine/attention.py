"""Attention over a forest, for any decoder of `transformers`.

A decoder is told to use the attention function registered here while a forest goes through
it, and its own one at all other times. The mask that travels through the decoder in place
of a tensor is a `TreeMask`: the forest and the layer's own rule (causal, sliding window,
chunks), which the decoder hands to the registered mask function. A token sees its ancestors
and itself, where the rule allows it *by position in the sequence*; rows mean nothing.

Kernels: on CUDA one FlexAttention call; elsewhere, and for attention that is more than a
softmax (soft caps, sinks), a call per tree segment with its ancestors' keys gathered. On a
CPU a dense mask over the whole row is slower than separate sequences; segments are not.

Shapes: H heads, G key/value heads, N rows, D channels a head; the batch is always 1.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface

from prefopt.engine.forest import Forest

NAME = "prefopt_trees"
_forest: ContextVar[Forest] = ContextVar("forest")


class TreeMask:
    """What a layer needs to know to attend over a forest.

    Args:
        forest: the forest that goes through the model.
        rule: the layer's `mask_function(batch, head, query, key) -> bool` over positions.
        device: where the layer is.
        eager: whether the model computes attention with a function of its own.
    """

    def __init__(
        self, forest: Forest, rule: Callable[..., Tensor], device: torch.device, eager: bool
    ) -> None:
        self.forest = forest
        self.device = device
        self.eager = eager
        self._rule = rule

    @cached_property
    def allowed(self) -> Tensor:
        """(L, L) bool: which key positions a query position may see, by the layer's rule."""
        positions = torch.arange(self.forest.depth, device=self.device)
        zero = positions.new_zeros(())
        return self._rule(zero, zero, positions[:, None], positions[None, :]).expand(
            len(positions), len(positions)
        )

    @cached_property
    def causal(self) -> bool:
        """Whether the rule is nothing more than: not after the query."""
        return bool(torch.equal(self.allowed, torch.ones_like(self.allowed).tril()))

    @cached_property
    def additive(self) -> Tensor:
        """(1, 1, L, L) the rule as 0 and −∞ (the most negative number), float32."""
        bias = torch.zeros(self.allowed.shape, device=self.device)
        return bias.masked_fill_(~self.allowed, torch.finfo(bias.dtype).min)[None, None]

    def slice(self, start: int, stop: int, dtype: torch.dtype) -> Tensor:
        """(1, 1, stop − start, stop) additive mask of queries at these positions."""
        return self.additive[:, :, start:stop, :stop].to(dtype)

    @cached_property
    def blocks(self) -> Any:
        """The same as FlexAttention's block mask."""
        from torch.nn.attention.flex_attention import create_block_mask

        position = torch.from_numpy(self.forest.positions).to(self.device)
        end = torch.from_numpy(self.forest.subtree_end).to(self.device)
        rule, rows = self._rule, len(self.forest)

        def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            ancestor = (key <= query) & (query < end[key])
            return ancestor & rule(batch, head, position[query], position[key])

        return create_block_mask(visible, 1, 1, rows, rows, device=str(self.device))


def tree_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: TreeMask,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attention as `transformers` calls it: (1, H, N, D) queries → (1, N, H, D)."""
    if attention_mask.eager:
        return _by_segment(module, query, key, value, attention_mask, options), None
    if query.device.type == "cuda":
        return _flex(query, key, value, attention_mask, options), None
    return _by_segment(None, query, key, value, attention_mask, options), None


def tree_mask(mask_function: Callable[..., Tensor], device: Any, **_: Any) -> TreeMask:
    """Mask as `transformers` asks for it, once for every kind of layer."""
    return TreeMask(_forest.get(), mask_function, torch.device(device), eager=False)


def tree_mask_eager(mask_function: Callable[..., Tensor], device: Any, **_: Any) -> TreeMask:
    """The same for models that compute attention with a function of their own."""
    return TreeMask(_forest.get(), mask_function, torch.device(device), eager=True)


AttentionInterface.register(NAME, tree_attention)
AttentionInterface.register(f"{NAME}_eager", tree_attention)
AttentionMaskInterface.register(NAME, tree_mask)
AttentionMaskInterface.register(f"{NAME}_eager", tree_mask_eager)


@contextmanager
def over(forest: Forest, model: Any) -> Iterator[None]:
    """While this lasts, the model's forward takes the forest as its one row."""
    token = _forest.set(forest)
    try:
        with attending_to_trees(model):
            yield
    finally:
        _forest.reset(token)


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


def _flex(
    query: Tensor, key: Tensor, value: Tensor, mask: TreeMask, options: dict[str, Any]
) -> Tensor:
    settings = _sdpa_options(query, key, options)
    out = _compiled_flex()(query, key, value, block_mask=mask.blocks, **settings)
    return out.transpose(1, 2)  # type: ignore[no-any-return]


@cache
def _compiled_flex() -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True)


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
