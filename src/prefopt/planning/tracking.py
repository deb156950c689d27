"""How many bytes operations hold at once, and how much arithmetic they are.

A tracker sees every operation of PyTorch while it is active, and every storage that one makes,
until the storage is gone. It does the same for real tensors and for those that only have a
shape (`FakeTensorMode`), so what a step of a model will need can be told from its config.

What a kernel needs inside of itself is not seen; on a CPU that is next to nothing.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import is_fake
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count


class Tracker(TorchDispatchMode):
    """Bytes of the storages that were made while it was active, or that it was shown.

    Attributes:
        live: bytes now.
        peak: most bytes at once since the last `rest`.
        operations: floating-point operations of matrix products and attention so far; two for
            a product and its sum.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = 0
        self.peak = 0
        self.operations = 0
        self._known: weakref.WeakKeyDictionary[Any, None] = weakref.WeakKeyDictionary()

    def show(self, tensors: Iterable[Tensor]) -> int:
        """Count tensors that were there before; returns the bytes that were not known yet."""
        before = self.live
        for tensor in tensors:
            self._see(tensor)
        return self.live - before

    def rest(self) -> None:
        """Forget the peak: from here on it is what is live now."""
        self.peak = self.live

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in _QUESTIONS and is_fake(args[0]):
            return _QUESTIONS[func](args[0])
        out = func(*args, **(kwargs or {}))
        if func.namespace == "prim":  # questions to a tensor, such as where it is
            return out
        for tensor in tree_iter(out):
            if isinstance(tensor, Tensor):
                self._see(tensor)
        self.operations += _operations(func, args, kwargs or {}, out)
        return out

    def _see(self, tensor: Tensor) -> None:
        for part in _plain(tensor):
            storage = part.untyped_storage()
            if storage in self._known:
                continue
            size = storage.nbytes()
            self._known[storage] = None
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._gone, size)

    def _gone(self, size: int) -> None:
        self.live -= size


#: what asks for numbers, and what it is told where there are only shapes: that none of them is
#: rare enough for a case of its own, and that a scale is one
_QUESTIONS: Mapping[Any, Callable[[Tensor], Any]] = {
    torch.ops.aten.nonzero.default: lambda asked: asked.new_empty(
        (0, asked.ndim), dtype=torch.int64
    ),
    torch.ops.aten._local_scalar_dense.default: lambda asked: torch.ones(
        (), dtype=asked.dtype
    ).item(),
}


def _plain(tensor: Tensor) -> Iterable[Tensor]:
    """The tensors that one is made of: itself, unless it wraps others (quantized ones do)."""
    if not hasattr(tensor, "__tensor_flatten__"):
        return (tensor,)
    names, _ = tensor.__tensor_flatten__()
    return (part for name in names for part in _plain(getattr(tensor, name)))


def _operations(func: Any, args: tuple[Any, ...], kwargs: Any, out: Any) -> int:
    packet = func.overloadpacket
    if packet is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu:
        return int(sdpa_flop_count(*(tensor.shape for tensor in args[:3])))
    if packet is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward:
        return int(sdpa_backward_flop_count(*(tensor.shape for tensor in args[:4])))
    formula = flop_registry.get(packet)
    return int(formula(*args, **kwargs, out_val=out)) if formula is not None else 0
