"""Memory of one device under a strategy: a pure function of what the model is made of.

Nothing here loads a model. The numbers of `Footprint` come from a config (`standin.py`) and
from a traced micro-batch (`tracing.py`), or from paper: a page about 400 billion parameters
needs neither.

All sizes are bytes; GiB are 2**30 bytes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Literal, TypeAlias

from prefopt.errors import RecipeError

Strategy: TypeAlias = Literal["alone", "ddp", "fsdp", "hybrid", "tensor"]

GIB = 1 << 30
#: processes of one machine, where a recipe does not say how many share a copy
PER_NODE = 8
#: share of a layer's activations that every process of a tensor-parallel group has whole:
#: what has the model's width (norms, sums, rotations of them) is not split, what has the
#: heads' or the feed-forward's width is
WHOLE_SHARE = 0.5
#: layers that FSDP has gathered at once: the one that computes, and the next one on its way
GATHERED_LAYERS = 2


@dataclass(frozen=True)
class Footprint:
    """What a training needs for one copy of its model and one micro-batch.

    Attributes:
        weights: of the policy, frozen and trainable.
        gradients: of the trainable weights.
        optimizer: its state.
        reference: of a second model in memory; 0 where the policy can be it.
        activations: most that one micro-batch has at once beside the above.
        layer: weights of the largest layer, which are gathered as one where they are in shards.
        root: weights of everything outside the layers, the same.
        trained: share of the weights that are trainable, from 0 to 1.
    """

    weights: int
    gradients: int
    optimizer: int
    reference: int
    activations: int
    layer: int = 0
    root: int = 0
    trained: float = 1.0


@dataclass(frozen=True)
class Memory:
    """Memory of one device, by what it is for."""

    weights: int
    gradients: int
    optimizer: int
    reference: int
    activations: int
    gathered: int = 0
    process: int = 0
    data: int = 0
    allocator: int = 0

    @property
    def total(self) -> int:
        return sum(getattr(self, part.name) for part in fields(self))

    def parts(self) -> dict[str, int]:
        """Name → bytes, of what is not 0."""
        named = {part.name: getattr(self, part.name) for part in fields(self)}
        return {name: size for name, size in named.items() if size}


def per_device(
    footprint: Footprint,
    strategy: Strategy = "alone",
    devices: int = 1,
    *,
    shards: int | None = None,
    tensor: int | None = None,
    reshard: bool = True,
) -> Memory:
    """Memory of each of so many devices, without process, data and allocator.

    Args:
        footprint: of one copy and one micro-batch.
        strategy: as the recipe's `parallel.strategy`; with one device all are the same.
        devices: how many there are.
        shards: `hybrid`: devices that share one copy; by default those of one machine.
        tensor: `tensor`: devices that split each matrix; by default those of one machine.
        reshard: gathered weights and whole gradients are let go of after each layer.

    Raises:
        RecipeError: the devices cannot be cut into such groups.

    >>> one = Footprint(weights=800, gradients=800, optimizer=1600, reference=0, activations=50,
    ...                 layer=10, root=20)
    >>> per_device(one, "ddp", 8).total == 800 + 800 + 1600 + 50
    True
    >>> per_device(one, "fsdp", 8)      # an eighth of everything, and what is gathered
    Memory(weights=100, gradients=100, optimizer=200, reference=0, activations=50, gathered=60, \
process=0, data=0, allocator=0)
    """
    if devices == 1 or strategy in ("alone", "ddp"):
        return Memory(
            footprint.weights,
            footprint.gradients,
            footprint.optimizer,
            footprint.reference,
            footprint.activations,
        )
    split = _group("tensor", tensor, devices) if strategy == "tensor" else 1
    copies = _group("shards", shards, devices) if strategy == "hybrid" else devices

    def share(size: float) -> int:
        return math.ceil(size / copies)

    return Memory(
        weights=share(footprint.weights),
        gradients=share(footprint.gradients),
        optimizer=share(footprint.optimizer),
        reference=share(footprint.reference),
        activations=_activations(footprint.activations, split),
        gathered=_gathered(footprint, split, copies, reshard=reshard),
    )


def _group(name: str, given: int | None, devices: int) -> int:
    """Devices in a group, refused where training would refuse it."""
    size = given or min(PER_NODE, devices)
    if devices % size:
        raise RecipeError(
            f"{devices} devices cannot be divided into groups of {size}",
            field=f"parallel.{name}",
            value=size,
            remedy=f"set parallel.{name} to a divisor of {devices}, or plan for another number",
        )
    return size


def _gathered(footprint: Footprint, split: int, copies: int, *, reshard: bool) -> int:
    """What is whole for a while: weights of layers that compute, which are let go of after
    that, those outside the layers, which are not, and gradients before they are spread."""
    if copies == split:  # matrices are split, and nothing is gathered
        return 0
    if reshard:
        weights = footprint.root + GATHERED_LAYERS * footprint.layer
        gradients = footprint.trained * max(footprint.root, footprint.layer)
        return int(weights + gradients) // split
    whole = footprint.weights + footprint.gradients
    return (whole // split) - math.ceil(whole / copies)


def _activations(size: int, split: int) -> int:
    return math.ceil(size * (WHOLE_SHARE + (1 - WHOLE_SHARE) / split))


def gib(size: float) -> str:
    """`12.3 GiB`, `640 MiB`.

    >>> gib(3 << 30), gib(640 << 20), gib(2048)
    ('3.0 GiB', '640 MiB', '2 KiB')
    """
    for unit, name, form in ((GIB, "GiB", "{:.1f}"), (1 << 20, "MiB", "{:.0f}")):
        if size >= 0.995 * unit:
            return f"{form.format(size / unit)} {name}"
    return f"{size / 1024:.0f} KiB"


def described(memory: Memory) -> Mapping[str, str]:
    """Each part, ready to be shown."""
    return {name: gib(size) for name, size in memory.parts().items()}
