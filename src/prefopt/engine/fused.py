"""Norms, rotary positions and gated MLPs as one autograd function each, on a CPU.

Decoders of `transformers` write them as a dozen small operations, each of which goes over
memory once forward and once or twice backward. Done in place they are half the work. Only code
that is known is replaced, instruction by instruction the same as Llama's: a model that does
anything else keeps its own, and so does every model outside of the engine.

Shapes: N rows, d channels, H heads of D channels.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.activations import SiLUActivation
from transformers.models.llama import modeling_llama as llama

_own_rotary = llama.apply_rotary_pos_emb  # as it is where nothing is replaced
_ROTARY = {"apply_rotary_pos_emb": _own_rotary, "rotate_half": llama.rotate_half}


class RootMeanSquareNorm(torch.autograd.Function):
    """w · x / √(mean(x²) + ε) of (…, d) and (d,)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        inverse = norm.square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, weight, inverse)
        normed: Tensor = x * inverse
        return normed.mul_(weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, None]:
        x, weight, inverse = ctx.saved_tensors
        (gradient,) = gradients
        normed = x * inverse
        by_weight = None
        if ctx.needs_input_grad[1]:
            by_weight = (gradient * normed).flatten(0, -2).sum(0)
        by_x = gradient * weight
        along = torch.linalg.vecdot(by_x, normed)[..., None].div_(-x.shape[-1])
        return by_x.addcmul_(normed, along).mul_(inverse), by_weight, None


class RotaryPositions(torch.autograd.Function):
    """x · cos + rotate_half(x) · sin of (…, D), with cos and sin that broadcast to it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        first, second = sin.chunk(2, -1)
        return _turned(x, cos, -first, second)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        first, second = sin.chunk(2, -1)
        return _turned(gradients[0], cos, second, -first), None, None


class GatedDown(torch.autograd.Function):
    """(silu(g) · u) Wᵀ of (…, f), (…, f) and (d, f); the product in the middle is not kept."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up, weight)
        return functional.linear(functional.silu(gate).mul_(up), weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        gate, up, weight = ctx.saved_tensors
        (gradient,) = gradients
        by_weight = None
        activated = functional.silu(gate)
        if ctx.needs_input_grad[2]:
            middle = (activated * up).flatten(0, -2)
            by_weight = gradient.flatten(0, -2).t() @ middle
            del middle
        by_middle = gradient @ weight
        by_up = activated.mul_(by_middle)
        by_gate = torch.ops.aten.silu_backward(by_middle.mul_(up), gate)
        return by_gate, by_up, by_weight


def _turned(x: Tensor, cos: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """x · cos, plus each half of x times a factor in the other half's place."""
    turned = x * cos
    a, b = x.chunk(2, -1)
    into_a, into_b = turned.chunk(2, -1)
    into_a.addcmul_(b, first)
    into_b.addcmul_(a, second)
    return turned


def _norm(module: Any, hidden_states: Tensor) -> Tensor:
    if not fusible(hidden_states, module.weight):
        own: Tensor = type(module).forward(module, hidden_states)
        return own
    weight, epsilon = module.weight, module.variance_epsilon
    normed: Tensor = RootMeanSquareNorm.apply(hidden_states, weight, epsilon)  # type: ignore[no-untyped-call]
    return normed


def _rotary(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1
) -> tuple[Tensor, Tensor]:
    if not fusible(q):
        own: tuple[Tensor, Tensor] = _own_rotary(q, k, cos, sin, unsqueeze_dim)
        return own
    cos, sin = cos.unsqueeze(unsqueeze_dim), sin.unsqueeze(unsqueeze_dim)
    return RotaryPositions.apply(q, cos, sin), RotaryPositions.apply(k, cos, sin)  # type: ignore[no-untyped-call]


def _gated(module: Any, x: Tensor) -> Tensor:
    down = module.down_proj
    if not (is_one_matrix(down) and fusible(x, down.weight)):
        own: Tensor = type(module).forward(module, x)
        return own
    gated: Tensor = GatedDown.apply(module.gate_proj(x), module.up_proj(x), down.weight)  # type: ignore[no-untyped-call]
    return gated


def is_one_matrix(linear: nn.Module) -> bool:
    """Whether nothing but a product with its weight happens in it."""
    hooked = bool(linear._forward_hooks) or bool(linear._forward_pre_hooks)
    return type(linear) is nn.Linear and getattr(linear, "bias", None) is None and not hooked


def fusible(x: Tensor, weight: Tensor | None = None) -> bool:
    """Whether this is where fusing was measured to be faster: float32 on a CPU, not sharded."""
    sharded = hasattr(weight, "device_mesh")
    plain = x.device.type == "cpu" and x.dtype == torch.float32 and not sharded
    return plain and not torch.is_autocast_enabled("cpu")


@contextmanager
def fused(model: nn.Module) -> Iterator[None]:
    """While this lasts, norms and rotary positions of a model that are known are fused."""
    with ExitStack() as stack:
        for namespace, name, function in _replacements(model):
            stack.callback(_restore, namespace, name, namespace.get(name))
            namespace[name] = function
        yield


class _Known(list[tuple[dict[str, Any], str, Callable[..., Any]]]):
    """What was found in one model; a copy of the model has parts of its own."""

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        return None


def _replacements(model: nn.Module) -> list[tuple[dict[str, Any], str, Callable[..., Any]]]:
    """(namespace, name, function) of everything in a model that can be replaced."""
    known: _Known | None = model.__dict__.get("_prefopt_fused")
    if known is None:
        known = _Known()
        files = {type(module).__module__ for module in model.modules()}
        for module in model.modules():
            # One whose forward was replaced already does something else around it.
            if "forward" in module.__dict__:
                continue
            if same_code(type(module).forward, llama.LlamaRMSNorm.forward):
                known.append((module.__dict__, "forward", _norm.__get__(module)))
            elif same_code(type(module).forward, llama.LlamaMLP.forward) and _is_silu(module):
                known.append((module.__dict__, "forward", _gated.__get__(module)))
        for namespace in (vars(sys.modules[file]) for file in sorted(files)):
            if all(same_code(namespace.get(name), function) for name, function in _ROTARY.items()):
                known.append((namespace, "apply_rotary_pos_emb", _rotary))
        model.__dict__["_prefopt_fused"] = known
    return known


def _is_silu(mlp: Any) -> bool:
    return isinstance(mlp.act_fn, nn.SiLU | SiLUActivation)


def _restore(namespace: dict[str, Any], name: str, before: Any) -> None:
    if before is None:
        del namespace[name]
    else:
        namespace[name] = before


def same_code(function: Any, known: Any) -> bool:
    """Whether two functions are the same code, wherever it is written."""
    return (
        isinstance(function, FunctionType)
        and function.__code__.co_code == known.__code__.co_code
        and function.__code__.co_names == known.__code__.co_names
        and function.__code__.co_consts[1:] == known.__code__.co_consts[1:]
    )
