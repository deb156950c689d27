"""Starting the processes of one machine, and seeing how they end.

PyTorch's elastic agent starts them, ends the others when one dies, and passes signals on.
Each attempt is one agent without restarts of its own: only here is it known whether another
attempt makes sense. It does for a process that was lost, not for a wrong recipe.
"""

from __future__ import annotations

import logging
import os
import signal
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from prefopt.workers import cores

#: seconds to finish a step and save, after a signal and before the processes are killed
_GRACE = 600
#: what the agent passes on; its handlers stay when it is done, ours are put back
_PASSED_ON = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True)
class Ended:
    """How the processes of one attempt ended.

    Attributes:
        code: exit code of the attempt; 0 if all ended well.
        signum: the signal that asked them to stop, or 0.
        lost: in words, the process that died without a word of its own; "" if none did.
    """

    code: int = 0
    signum: int = 0
    lost: str = ""


def attempt(command: Sequence[str], processes: int, relay: str) -> Ended:
    """Run a command in several processes of this machine, until all ended.

    Args:
        command: the program and its arguments.
        processes: how many.
        relay: a file for the one object that they have to say; what is in it is not `lost`.
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=str(uuid.uuid4()),
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",  # any free port
        local_addr="localhost",
        max_restarts=0,
        signals_to_handle=",".join(number.name for number in _PASSED_ON),
        shutdown_timeout=int(os.environ.get("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", _GRACE)),
    )
    program, *arguments = command
    with _environment(processes, relay), _own_handlers(), _quiet():
        try:
            elastic_launch(config, program)(*arguments)
        except SignalException as stop:
            return Ended(128 + stop.sigval, signum=stop.sigval)
        except ChildFailedError as failed:
            return _judged(failed.failures)
    return Ended()


def _judged(failures: dict[int, Any]) -> Ended:
    """What happened, from what is left of the processes: the first to fail ended the others."""
    by_cause = sorted(failures.items(), key=lambda item: _place(item[1]))
    rank, first = by_cause[0]
    code = first.exitcode
    if code in (128 + number for number in _PASSED_ON):
        return Ended(code, signum=code - 128)
    who = f"process {rank} of this training (pid {first.pid})"
    if code < 0:
        name = signal.Signals(-code).name
        why = ", perhaps for lack of memory" if -code == signal.SIGKILL else ""
        return Ended(1, lost=f"{who} was killed by {name}{why}")
    return Ended(code, lost=f"{who} ended with exit code {code}")


def _place(failure: Any) -> int:
    """Order of what explains an end: an error with a message, a kill, an exit, the agent's end."""
    if "timestamp" in failure.error_file_data:
        return 0
    if failure.exitcode == -signal.SIGTERM:
        return 3
    return 1 if failure.exitcode < 0 else 2


@contextmanager
def _environment(processes: int, relay: str) -> Iterator[None]:
    """What the processes find: who speaks for them, and their part of the processor."""
    wanted = {"PREFOPT_LAUNCHER": relay}
    if "OMP_NUM_THREADS" not in os.environ:
        wanted["OMP_NUM_THREADS"] = str(max(1, cores() // processes))
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


@contextmanager
def _own_handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in _PASSED_ON}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _quiet() -> Iterator[None]:
    """The agent logs what it does about a death; that is told here, in fewer words."""
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
