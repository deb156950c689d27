"""Several processes as one training: how they meet, what they tell each other, how one dies.

The plan does not know the number of processes. Each takes every n-th micro-batch of a step;
scores are exchanged (a few numbers a completion), so every process sees the whole step's
losses; gradients are added up, not averaged, because the loss is already divided by the
weight of the whole step. So the result is that of one process, up to the order of sums.

All of it is for one process too, where nothing is sent anywhere.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import nn

from prefopt.errors import TrainingError

T = TypeVar("T")

#: seconds that a process waits for the others; longer than one of them needs to read the data
_PATIENCE = 3600
#: libraries that carry messages, as their complaints name them
_CARRIERS = ("gloo", "nccl", "tcpstore")


class LostError(TrainingError):
    """Another process of this training ended, or does not answer."""


# -- meeting -------------------------------------------------------------------------------


@contextmanager
def start() -> Iterator[None]:
    """Join the processes that torchrun's environment describes; alone, nothing happens.

    Numbers travel between CPUs by gloo and between GPUs by NCCL. The process's own GPU
    becomes the current one. What ends the block ends the training: an error gets the
    attribute `speaks`, True on the first process that failed and False on the others, so
    that a mistake is told once.

    Raises:
        LostError: in place of a library's own words, when another process ended.
    """
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ or _several():
        yield
        return
    try:
        _join()
        yield
    except BaseException as error:
        told = _in_our_words(error)
        told.speaks = _first_to_fail(told)  # type: ignore[attr-defined]
        if told is error:
            raise
        raise told from error
    else:
        torch.distributed.destroy_process_group()


def _join() -> None:
    cuda = torch.cuda.is_available()
    if cuda and local_rank() < torch.cuda.device_count():
        torch.cuda.set_device(local_rank())
    if os.environ["RANK"] != "0":
        os.environ["TRANSFORMERS_VERBOSITY"] = "error"
        warnings.simplefilter("ignore")  # what concerns all of them, the first one says
    patience = float(os.environ.get("PREFOPT_PATIENCE", _PATIENCE))
    torch.distributed.init_process_group(
        "cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=timedelta(seconds=patience)
    )


def _in_our_words(error: BaseException) -> BaseException:
    """A library's complaint that a connection broke, as ours; everything else as it is."""
    if not isinstance(error, RuntimeError) or isinstance(error, TrainingError):
        return error
    text = str(error).lower()
    if not isinstance(error, torch.distributed.DistError) and not any(
        carrier in text for carrier in _CARRIERS
    ):
        return error
    if "timed out" in text or "timeout" in text:
        return LostError(
            "another process of this training does not answer",
            remedy="look what it waits for; PREFOPT_PATIENCE sets the seconds, and "
            "the same command goes on from the last checkpoint",
        )
    return LostError(
        "another process of this training ended, perhaps for lack of memory",
        remedy="look what it said; the same command goes on from the last checkpoint",
    )


def _first_to_fail(error: BaseException) -> bool:
    """Whether this process shall speak of the end; asks the store, which outlives a process."""
    try:
        store = torch.distributed.distributed_c10d._get_default_store()
        return bool(store.compare_set("prefopt/failed", "", str(rank())) == str(rank()).encode())
    except (RuntimeError, ValueError):  # nobody met, or the store is gone
        return os.environ["RANK"] == "0"


# -- who is who ----------------------------------------------------------------------------


def rank() -> int:
    """Number of this process, 0 where there is only one."""
    return torch.distributed.get_rank() if _several() else 0


def processes() -> int:
    """How many take part."""
    return torch.distributed.get_world_size() if _several() else 1


def local_rank() -> int:
    """Number of this process on its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def main() -> bool:
    """Whether this is the process that writes and speaks."""
    return rank() == 0


# -- telling each other --------------------------------------------------------------------


def barrier() -> None:
    """Wait until all processes are here."""
    any_process(False)


def any_process(flag: bool) -> bool:
    """Whether any process says so; all get the same answer."""
    return bool(highest(int(flag)))


def highest(value: int) -> int:
    """The largest of all processes' numbers."""
    if not _several():
        return value
    numbers = torch.tensor(value)  # on the CPU, so that no device has to come to a halt
    torch.distributed.all_reduce(numbers, torch.distributed.ReduceOp.MAX)
    return int(numbers)


def broadcast(value: T) -> T:
    """What the main process has; the others' own is ignored. It travels as an object."""
    if not _several():
        return value
    held = [value]
    torch.distributed.broadcast_object_list(held, src=0)
    return held[0]


def gather(value: T) -> list[T]:
    """What every process has, by rank; it travels as an object, tensors on the CPU."""
    if not _several():
        return [value]
    parts: list[Any] = [None] * processes()
    torch.distributed.all_gather_object(parts, value)
    return parts


# -- one step ------------------------------------------------------------------------------


def share(items: Sequence[T]) -> list[T]:
    """The part of a step's pieces that this process works on."""
    return list(items[rank() :: processes()])


def exchange(own: Sequence[T]) -> list[T]:
    """What all processes have of their shares, in the order of the whole.

    The pieces travel as objects, with tensors moved to the CPU by their owners.
    """
    parts = gather(list(own))
    longest = max(len(part) for part in parts)
    return [part[place] for place in range(longest) for part in parts if place < len(part)]


def add_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Sum the gradients of all processes; one that had no micro-batch adds zeros."""
    if not _several():
        return
    for weight in parameters:
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)
        torch.distributed.all_reduce(weight.grad)


def _several() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
