"""One command in several processes: who starts them, who speaks, who tries again.

    torchrun --nproc-per-node 8 -m prefopt train recipe.yaml      each process is this command
    prefopt train --processes 8 recipe.yaml                       starts such processes itself

Either way the result is told once, by the main process, and a mistake once, by the first
that failed. With `--processes` they tell it to the command that started them, which knows
how each of them ended as well.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefopt import errors
from prefopt.cli.outcome import UsageError, console_to
from prefopt.errors import PrefoptError, TrainingError
from prefopt.runs import Run

if TYPE_CHECKING:
    from prefopt.training.launch import Ended


class ToldError(PrefoptError):
    """What another process had to say, as it said it."""

    def __init__(self, document: dict[str, Any], exit_code: int) -> None:
        place = {name: document[name] for name in ("file", "row", "field", "value", "remedy")}
        super().__init__(document["message"], **place)
        self.document = document
        self.exit_code = exit_code  # type: ignore[misc]  # of the process, not of the class

    def to_dict(self) -> dict[str, Any]:
        return self.document


@contextmanager
def joined() -> Iterator[None]:
    """Be one of torchrun's processes, if it started this one; alone torch is not needed yet."""
    if "RANK" not in os.environ:
        yield
        return
    from prefopt.training import distributed
    from prefopt.training.interrupts import heard_to_the_end

    with distributed.start(), heard_to_the_end():
        yield


def check_processes(processes: int | None, restarts: int) -> None:
    """Refuse numbers of processes and restarts that mean nothing.

    Raises:
        UsageError: there is nothing to restart, or the processes are there already.
    """
    for flag, number, least in (("--processes", processes, 1), ("--restarts", restarts, 0)):
        if number is not None and number < least:
            raise UsageError(
                f"must be at least {least}", field=flag, value=number, remedy="give another number"
            )
    if processes in (None, 1) and restarts:
        raise UsageError(
            "has no effect without several --processes: no other one sees that this one was lost",
            field="--restarts",
            value=restarts,
            remedy="give --processes 2 or more; torchrun has its own --max-restarts",
        )
    if processes is not None and "RANK" in os.environ:
        raise UsageError(
            "the processes were started already, by torchrun",
            field="--processes",
            value=processes,
            remedy="leave it out",
        )


def in_processes(
    arguments: Sequence[str], run: Run, *, processes: int, restarts: int
) -> dict[str, Any]:
    """Train in several processes of this machine; returns what the main one prints.

    Args:
        arguments: of `prefopt`, for each of them.
        run: its folder, for what a message can say of checkpoints.
        processes: how many.
        restarts: how often to begin again, from the last checkpoint, after one was lost.

    Raises:
        ToldError: a process had something to say.
        TrainingError: a process was lost.
        Stopped: Ctrl-C or SIGTERM.
    """
    from prefopt.training.interrupts import Stopped
    from prefopt.training.launch import attempt

    command = [sys.executable, "-m", "prefopt", *arguments]
    with tempfile.TemporaryDirectory() as folder:
        relay = Path(folder) / "said.json"
        for number in range(restarts + 1):
            relay.unlink(missing_ok=True)
            ended = attempt(command, processes, str(relay))
            said = json.loads(relay.read_text()) if relay.exists() else {}
            if "result" in said:
                return dict(said["result"])
            if ended.signum:
                raise Stopped(ended.signum, run.last_checkpoint)
            error = _error(said, ended, run)
            if number == restarts or not _may_pass(error):
                break
            console_to("stderr").print(
                f"{error.message}; beginning again (restart {number + 1} of {restarts})",
                soft_wrap=True,
            )
    raise error


def _error(said: Mapping[str, Any], ended: Ended, run: Run) -> PrefoptError:
    if "error" in said:
        return ToldError(said["error"], said["code"])
    path = run.last_checkpoint
    remedy = (
        f"the same command goes on from the last checkpoint, {path}"
        if path
        else "there is no checkpoint yet; the same command begins again"
    )
    return TrainingError(ended.lost or "the processes ended without a result", remedy=remedy)


def _may_pass(error: PrefoptError) -> bool:
    """Whether it might go well the next time: not if it is a mistake that we know by name."""
    return not isinstance(error, ToldError) or not hasattr(errors, error.document["type"])


def as_flags(settings: Mapping[str, Any]) -> list[str]:
    """Settings as the flags that they were given by.

    >>> as_flags({"batch_size": "8", "data": ["a", "b"], "objective_options": {"beta": "0.1"}})
    ['--batch-size=8', '--data=a', '--data=b', '--objective.beta=0.1']
    """
    flags = []
    for name, value in settings.items():
        flag = "--" + name.replace("_", "-")
        if isinstance(value, dict):
            section = flag.removesuffix("-options")
            flags += [f"{section}.{key.replace('_', '-')}={text}" for key, text in value.items()]
        elif isinstance(value, list):
            flags += [f"{flag}={text}" for text in value]
        elif value is True:
            flags.append(flag)
        elif value is not None:
            flags.append(f"{flag}={value}")
    return flags
