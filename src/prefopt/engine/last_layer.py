"""The last layer computes its MLP, and the final norm, only where something is predicted.

After the attention of the last layer no row is looked at by another, and a row that predicts
nothing is read by nobody: a prompt but for its last token, which is most rows of a forest. Only
a layer that is known is replaced, instruction by instruction the same as Llama's.

Shapes: N rows of a forest, U distinct predictions, d channels.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from prefopt.engine.fused import same_code
from prefopt.engine.tree_mask import TreeMask


@contextmanager
def trimmed(decoder: Any) -> Iterator[None]:
    """While this lasts, a decoder that is known gives (1, U, d) for a forest, not (1, N, d)."""
    layers = getattr(decoder, "layers", None)
    last = layers[-1] if isinstance(layers, nn.ModuleList) and len(layers) else None
    if last is None or not _replaceable(last):
        yield
        return
    last.__dict__["forward"] = _forward.__get__(last)
    try:
        yield
    finally:
        del last.__dict__["forward"]


def _forward(
    layer: Any, hidden_states: Tensor, attention_mask: Any = None, **inputs: Any
) -> Tensor:
    """In the place of the layer's own forward, which also says when it is computed again."""
    inputs["attention_mask"] = attention_mask
    again = layer.gradient_checkpointing and layer.training
    if not isinstance(attention_mask, TreeMask) or (again and inputs.get("past_key_values")):
        own: Tensor = type(layer).forward(layer, hidden_states, **inputs)
        return own
    compute: Callable[[Tensor], Tensor] = partial(_trimmed, layer, **inputs)
    hidden: Tensor = (
        layer._gradient_checkpointing_func(compute, hidden_states)
        if again
        else compute(hidden_states)
    )
    return hidden


def _trimmed(layer: Any, hidden: Tensor, attention_mask: TreeMask, **inputs: Any) -> Tensor:
    """(1, N, d) → (1, U, d)."""
    normed = layer.input_layernorm(hidden)
    attended, _ = layer.self_attn(hidden_states=normed, attention_mask=attention_mask, **inputs)
    hidden = (hidden + attended).index_select(1, attention_mask.predictors)
    computed: Tensor = layer.mlp(layer.post_attention_layernorm(hidden))
    return hidden + computed


def _replaceable(layer: nn.Module) -> bool:
    """Whether it is known, is not compiled, and has no replaced forward, which does more."""
    compiled = layer._compiled_call_impl is not None
    return not compiled and "forward" not in layer.__dict__ and _known(type(layer).forward)


@cache
def _known(forward: Callable[..., Any]) -> bool:
    """Whether it is Llama's, without what is wrapped around both."""
    return same_code(inspect.unwrap(forward), inspect.unwrap(LlamaDecoderLayer.forward))
