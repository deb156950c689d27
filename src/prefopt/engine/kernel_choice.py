"""Which kernel computes attention: measured on the first forest, then kept.

On a CPU it is settled: segments (docs/experiments.md). Elsewhere each kernel computes the
first layer of the first forest, forward and backward, beside the segments, which are the
plain way. One that cannot, or whose result is another, is out; of the rest the fastest is
kept for the whole run, for the layers with the same kind of rule and the same dtype.

It is measured in a thread of its own, in the middle of a forward pass: what surrounds that
(autocast, the hooks and modes of gradient checkpointing) belongs to its thread, and must not
take the measurement for a part of the model.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from prefopt.engine.kernels import CannotCompute, Kernel
from prefopt.engine.tree_mask import TreeMask

#: largest relative distance (of norms) from the segments' outputs and gradients; bfloat16
#: rounds at 0.004, and a wrong mask is off by a large part of the whole
TOLERANCE = 2e-2
#: timed calls of each kernel, of which the quickest counts
REPEATS = 3

PLAIN = "segments"
#: devices where the plain kernel is the fastest
SETTLED = ("cpu",)


class KernelChoice:
    """The choice for one model, and how it came about.

    Args:
        layers: of the model; what a forest needs once (a block mask, gathered rows) is
            divided among so many.
        always: the name of a kernel, to be used without measuring.

    Attributes:
        chosen: kind of layer (`bfloat16 causal`) → name of the kernel.
        measured: kind of layer → name → milliseconds a layer, or why it is out.
    """

    def __init__(self, layers: int = 1, always: str | None = None) -> None:
        self.layers = layers
        self.always = always
        self.chosen: dict[str, str] = {}
        self.measured: dict[str, dict[str, float | str]] = {}

    def __call__(
        self,
        table: Mapping[str, Kernel],
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: TreeMask,
        settings: Mapping[str, Any],
    ) -> Kernel:
        """The kernel for these tensors, out of a table that has the plain one."""
        if self.always is not None:
            return table[self.always]
        kind = _kind(query, mask)
        if kind not in self.chosen:
            self.chosen[kind] = PLAIN
            if query.device.type not in SETTLED:
                alone = threading.Thread(
                    target=self._measure,
                    args=(kind, table, (query, key, value), mask, settings),
                )
                _now()  # what the tensors are made of is done
                alone.start()
                alone.join()
        return table[self.chosen[kind]]

    def to_json(self) -> dict[str, Any]:
        """For the manifest and for checkpoints: a run goes on with the kernels it began with."""
        return {"chosen": dict(self.chosen), "milliseconds": dict(self.measured)}

    def restore(self, record: Mapping[str, Any]) -> None:
        """Take over what `to_json` said."""
        self.chosen = dict(record["chosen"])
        self.measured = dict(record["milliseconds"])

    def _measure(
        self,
        kind: str,
        table: Mapping[str, Kernel],
        tensors: tuple[Tensor, Tensor, Tensor],
        mask: TreeMask,
        settings: Mapping[str, Any],
    ) -> None:
        """Fill in `chosen` and `measured` for one kind of layer."""
        if (index := tensors[0].device.index) is not None:  # a thread begins on the first one
            torch.accelerator.set_device_index(index)
        found: dict[str, float | str] = {}
        plain: list[Tensor] = []
        for name in sorted(table, key=lambda name: name != PLAIN):
            kernel = table[name]
            try:  # whatever a kernel fails with, the others compute the same
                plain = plain or _run(kernel, tensors, mask, settings)
                error = _distance(_run(kernel, tensors, mask, settings), plain)
                if error <= TOLERANCE:
                    found[name] = 1e3 * self._seconds(kernel, tensors, mask, settings)
                else:
                    found[name] = f"differs from {PLAIN} by {error:.2g}"
            except CannotCompute as reason:
                found[name] = str(reason)
            except Exception as reason:
                found[name] = f"{type(reason).__name__}: {str(reason).splitlines()[0][:200]}"
        times = {name: number for name, number in found.items() if isinstance(number, float)}
        self.measured[kind] = found
        self.chosen[kind] = min(times, key=times.__getitem__, default=PLAIN)

    def _seconds(
        self,
        kernel: Kernel,
        tensors: tuple[Tensor, Tensor, Tensor],
        mask: TreeMask,
        settings: Mapping[str, Any],
    ) -> float:
        """Of a layer, forward and backward, with its share of what the forest needs once."""
        best = float("inf")
        for _ in range(REPEATS):
            fresh, seconds = mask.anew(), []
            for _ in range(2):  # with what is made once, and without
                started = _now()
                _run(kernel, tensors, fresh, settings)
                seconds.append(_now() - started)
            first, again = seconds
            best = min(best, again + max(first - again, 0.0) / self.layers)
        return best


def _kind(query: Tensor, mask: TreeMask) -> str:
    rule = "causal" if mask.causal else "other" if mask.window is None else "window"
    return f"{str(query.dtype).removeprefix('torch.')} {rule}"


def _run(
    kernel: Kernel,
    tensors: tuple[Tensor, Tensor, Tensor],
    mask: TreeMask,
    settings: Mapping[str, Any],
) -> list[Tensor]:
    """The output, and the gradients of a sum of it that treats no two numbers alike."""
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    with torch.enable_grad():
        out = kernel(*leaves, mask, **settings)
        numbers = torch.arange(out.numel(), device=out.device, dtype=torch.float32)
        (out.float() * numbers.cos().view_as(out)).sum().backward()
    return [out.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


def _distance(found: list[Tensor], plain: list[Tensor]) -> float:
    """The largest relative distance of any tensor; NaN where one is not finite."""
    parts = [
        (a.float() - b.float()).norm() / b.float().norm() for a, b in zip(found, plain, strict=True)
    ]
    return float(torch.stack(parts).max())


def _now() -> float:
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter()
