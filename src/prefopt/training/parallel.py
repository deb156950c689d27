"""How a training is spread over processes: who holds which part of the model, who has which data.

With one process every strategy is the plain training, so one recipe runs on a laptop and on
a cluster. Processes that split the matrices of one copy have the same data; all others have
their own share of each step.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch

from prefopt.errors import RecipeError
from prefopt.recipe import ParallelChoice
from prefopt.training import distributed

T = TypeVar("T")


@dataclass(frozen=True)
class Spread:
    """Where this process stands among the others.

    Attributes:
        strategy: `alone` with one process, whatever the recipe says.
        readers: how many processes read different data.
        reader: which of them this one is.
        tensor: how many processes split each matrix, and so have the same data.
        shards: the device mesh that weights are sharded over, if they are.
        split: the device mesh of the processes that split each matrix, if they do.
        reshard: whether gathered weights and whole gradients are let go of at once.
    """

    strategy: Literal["alone", "ddp", "fsdp", "hybrid", "tensor"] = "alone"
    readers: int = 1
    reader: int = 0
    tensor: int = 1
    shards: Any = None
    split: Any = None
    reshard: bool = True

    @property
    def sharded(self) -> bool:
        """Whether no process holds the whole model."""
        return self.shards is not None or self.split is not None

    def share(self, pieces: Sequence[T]) -> list[tuple[T, bool]]:
        """The pieces of a step that this process works on, and whether each one counts.

        Every process works on as many, because a forward pass is done by all of them or by
        none: where pieces run out, the last one is done again for nothing.
        """
        rounds = -(-len(pieces) // self.readers)
        places = range(self.reader, rounds * self.readers, self.readers)
        last = len(pieces) - 1
        return [(pieces[min(place, last)], place <= last) for place in places]

    def exchange(self, own: Sequence[T]) -> list[T]:
        """What all readers have of the pieces that count, in the order of the pieces.

        It travels as objects, with tensors moved to the CPU by their owners.
        """
        if self.readers == 1:
            return list(own)
        # One of each group that has the same data: the numbering runs through groups first.
        parts = distributed.gather(list(own))[distributed.rank() % self.tensor :: self.tensor]
        longest = max(len(part) for part in parts)
        return [part[place] for place in range(longest) for part in parts if place < len(part)]


def make_spread(choice: ParallelChoice, device: torch.device) -> Spread:
    """Find this process's place, and make the groups that its strategy needs.

    Args:
        choice: what the recipe says.
        device: where the model is computed.

    Raises:
        RecipeError: the processes cannot be divided as asked.
    """
    count = distributed.processes()
    if count == 1:
        return Spread()
    place: dict[str, Any] = {"readers": count, "reader": distributed.rank()}
    reshard = choice.reshard is not False
    if choice.strategy == "ddp":
        return Spread("ddp", **place)
    if choice.strategy == "fsdp":
        return Spread("fsdp", **place, shards=_mesh(device, shard=count), reshard=reshard)
    if choice.strategy == "hybrid":
        shards = _size("shards", choice.shards, count)
        mesh = _mesh(device, replicate=count // shards, shard=shards)
        return Spread("hybrid", **place, shards=mesh, reshard=reshard)
    tensor = _size("tensor", choice.tensor, count)
    mesh = _mesh(device, data=count // tensor, tensor=tensor)
    return Spread(
        "tensor",
        readers=count // tensor,
        reader=distributed.rank() // tensor,
        tensor=tensor,
        shards=mesh["data"] if count > tensor else None,
        split=mesh["tensor"],
        reshard=reshard,
    )


def _mesh(device: torch.device, **sizes: int) -> Any:
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh(device.type, tuple(sizes.values()), mesh_dim_names=tuple(sizes))


def _size(name: str, given: int | None, count: int) -> int:
    """Processes in a group: as the recipe says, or those of one machine.

    Raises:
        RecipeError: there is no whole number of such groups.
    """
    size = given or int(os.environ.get("LOCAL_WORLD_SIZE", count))
    if count % size:
        fitting = [str(n) for n in range(1, count + 1) if count % n == 0]
        raise RecipeError(
            f"{count} processes cannot be divided into groups of {size}",
            field=f"parallel.{name}",
            value=size,
            remedy=f"set parallel.{name} to one of {', '.join(fitting)}, or start another number "
            "of processes",
        )
    return size
