"""Several processes as one training: how they meet, what they tell each other, how one dies.

Everything here is for one process too, where nothing is sent anywhere. Which part of the work
and of the model a process has is the business of `parallel` and `sharding`.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from time import time
from typing import Any, TypeVar

import torch

from prefopt.errors import PrefoptError, RecipeError, RunError, TrainingError

T = TypeVar("T")

#: seconds that a process waits for the others; longer than one of them needs to read the data
_PATIENCE = 3600
#: libraries that carry messages, as their complaints name them
_CARRIERS = ("gloo", "nccl", "tcpstore")


_PR_SET_PDEATHSIG = 1


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
        with translated():
            _join()
            yield
    except BaseException as error:
        error.speaks = _speaks_of(error)  # type: ignore[attr-defined]
        if error.speaks:  # type: ignore[attr-defined]
            _leave_word(error)
        raise
    torch.distributed.destroy_process_group()


def _join() -> None:
    _end_with_the_launcher()
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


def _end_with_the_launcher() -> None:
    """Have Linux send SIGTERM when the launcher is gone, however it ended: no orphans."""
    if "TORCHELASTIC_RUN_ID" in os.environ and sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


@contextmanager
def translated(checkpoint: Callable[[], Path | None] = lambda: None) -> Iterator[None]:
    """Complaints of a library that a connection broke, in our words.

    Args:
        checkpoint: the last one, which the message names.

    Raises:
        LostError: another process ended.
        TrainingError: another process does not answer.
    """
    try:
        yield
    except RuntimeError as error:
        text = str(error).lower()
        ours = isinstance(error, torch.distributed.DistError)
        if isinstance(error, PrefoptError) or not (ours or any(c in text for c in _CARRIERS)):
            raise
        path = checkpoint()
        again = "the same command goes on from the last checkpoint"
        again += f", {path}" if path else ", if there is one"
        if "timed out" in text or "timeout" in text:
            raise TrainingError(
                "another process of this training does not answer",
                remedy=f"see what it waits for (PREFOPT_PATIENCE is how long, in seconds); {again}",
            ) from error
        raise LostError(
            "another process of this training ended, perhaps for lack of memory",
            remedy=f"see what it said; {again}",
        ) from error


def _speaks_of(error: BaseException) -> bool:
    """Whether this process tells the error: the first one that failed does.

    They agree through the store, which outlives each of them.
    """
    if os.environ.get("PREFOPT_LAUNCHER") and isinstance(error, LostError | KeyboardInterrupt):
        return False  # the launcher knows which process was lost, and what was asked of it
    own = os.environ["RANK"]
    try:
        store = torch.distributed.distributed_c10d._get_default_store()
        return bool(store.compare_set("prefopt/failed", "", own) == own.encode())
    except (RuntimeError, ValueError):  # nobody met, or the store is gone
        return own == "0"


def _leave_word(error: BaseException) -> None:
    """Tell the launcher why this process ends, in the file that it named for that."""
    if path := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        with suppress(OSError):
            Path(path).write_text(
                json.dumps(
                    {"message": f"{type(error).__name__}: {error}", "timestamp": int(time())}
                )
            )


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


def check_device(name: str | None) -> None:
    """Refuse a device that the processes of a machine cannot have one each of.

    Raises:
        RecipeError: one GPU is named for all of them, or there are fewer.
    """
    cuda = torch.cuda.is_available() if name is None else name.startswith("cuda")
    if not _several() or not cuda:
        return
    if name is not None and ":" in name:
        raise RecipeError(
            "every process has a GPU of its own, and this names one for all",
            field="device",
            value=name,
            remedy="set device: cuda",
        )
    if local_rank() >= torch.cuda.device_count():
        raise RecipeError(
            f"there are {torch.cuda.device_count()} GPUs here and more processes",
            field="device",
            remedy="start as many processes as there are GPUs, or set device: cpu",
        )


def main() -> bool:
    """Whether this is the process that writes and speaks."""
    return rank() == 0


# -- telling each other --------------------------------------------------------------------


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


# -- one for all ---------------------------------------------------------------------------


def by_main(action: Callable[[], T]) -> T:
    """What the main process gets from an action that only it does; all get it, or its error.

    Raises:
        PrefoptError: the action's own, in every process.
    """
    value, error = _tried(action) if main() else (None, None)
    value, error = broadcast((value, error))
    if error is not None:
        raise error
    return value  # type: ignore[return-value]


def agree(name: str, value: Any) -> None:
    """Refuse to go on where a process has something else than the main one.

    Raises:
        RunError: in every process, with the first that differs.
    """
    every = gather((platform.node(), value))
    for number, (host, other) in enumerate(every):
        if other != every[0][1]:
            raise RunError(
                f"process {number} on {host} has another {name} than process 0 on {every[0][0]}",
                field=name,
                remedy="give all machines the same files",
            )


def leaders_first(action: Callable[[], T]) -> T:
    """Do something in every process, on each machine first in one: the others find its result.

    Raises:
        PrefoptError: the action's own; if it failed in one of the first ones, in every process.
    """
    if not _several():
        return action()
    leader = local_rank() == 0
    value, error = _tried(action) if leader else (None, None)
    for wrong in gather(error):
        if wrong is not None:
            raise wrong
    return value if leader else action()  # type: ignore[return-value]


def _tried(action: Callable[[], T]) -> tuple[T | None, PrefoptError | None]:
    try:
        return action(), None
    except PrefoptError as error:
        if not _several():
            raise
        return None, error


def _several() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
