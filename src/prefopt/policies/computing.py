"""Computing with a model whose weights something else looks after.

A model that is spread over processes is held by a module of PyTorch (DDP, FSDP2), which has to
know when a forward begins and ends. But completions are scored by parts of a model: its
decoder, then its head in chunks. So what is held is a module whose forward runs whatever it
is given, and everything that computes with a model does it through `computing`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn

T = TypeVar("T")

_HOLDER = "_prefopt_holder"


class Whole(nn.Module):
    """A model, and a forward that runs any computation with it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, work: Callable[[], T]) -> T:
        return work()


class _Holder:
    """The module that holds a model; a copy of the model is held by nothing."""

    def __init__(self, module: nn.Module, shape: nn.Module | None) -> None:
        self.module = module
        self.shape = shape
        self.busy = False

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        return None


def hold(model: nn.Module, module: nn.Module, shape: nn.Module | None = None) -> None:
    """From now on, computations with the model go through the module around its `Whole`.

    Args:
        model: what is computed with.
        module: what holds it.
        shape: the model as it was before, on the meta device, for copies of it.
    """
    # A plain attribute would register the module as a part of the model that it holds.
    object.__setattr__(model, _HOLDER, _Holder(module, shape))


def holder_of(model: nn.Module) -> nn.Module | None:
    """What holds a model, if anything does."""
    holder: _Holder | None = model.__dict__.get(_HOLDER)
    return None if holder is None else holder.module


def shape_of(model: nn.Module) -> nn.Module | None:
    """The model without weights, as it was before it was spread."""
    holder: _Holder | None = model.__dict__.get(_HOLDER)
    return None if holder is None else holder.shape


def computing(model: nn.Module, work: Callable[[], T]) -> T:
    """Run a computation with a model; one that is inside of another one is a part of it."""
    holder: _Holder | None = model.__dict__.get(_HOLDER)
    if holder is None or holder.busy:
        return work()
    holder.busy = True
    try:
        result: T = holder.module(work)
    finally:
        holder.busy = False
    return result
