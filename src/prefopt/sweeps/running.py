"""One command at a time on each device: processes of their own, whose end is a result.

A process gives its memory back, and its crash is one trial's failure. Each is the leader of
its own process group: Ctrl-C reaches the sweep alone, which passes it on once, so that a
training can finish its step and save a checkpoint.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from prefopt.workers import cores

#: seconds that an interrupted training gets to save a checkpoint
GRACE = 60.0


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        document: the object that it printed.
        problem: what went wrong, in a sentence; None if nothing did.
        interrupted: it was stopped by Ctrl-C and can go on.
    """

    document: Mapping[str, Any]
    problem: str | None = None
    interrupted: bool = False


class Running(Protocol):
    """A command under way."""

    def poll(self) -> Ended | None:
        """How it ended, or None while it has not."""

    def interrupt(self) -> None:
        """Ask it to save and stop."""

    def kill(self) -> None:
        """Stop it at once."""


def start(arguments: Sequence[str], log: Path, environment: Mapping[str, str]) -> Running:
    """Start `python -m …` with these arguments.

    Args:
        arguments: beginning with the module.
        log: what it says on stderr is added to this file.
        environment: variables beside those of this process.
    """
    return _Process(arguments, log, environment)


class _Process:
    def __init__(self, arguments: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
        self.log = log
        self._printed = tempfile.TemporaryFile()  # noqa: SIM115 (closed when it is read)
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "ab") as said:
            self._process = subprocess.Popen(
                [sys.executable, "-m", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=self._printed,
                stderr=said,
                env={**os.environ, **environment},
                process_group=0,
            )

    def poll(self) -> Ended | None:
        code = self._process.poll()
        if code is None:
            return None
        with self._printed as printed:
            printed.seek(0)
            text = printed.read().decode("utf-8", "replace")
        return ended(code, text, self.log)

    def interrupt(self) -> None:
        self._process.send_signal(signal.SIGINT)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


def ended(code: int, printed: str, log: Path) -> Ended:
    """What an exit code and the JSON on stdout mean."""
    try:
        document = json.loads(printed)
    except ValueError:
        document = {}
    if code == 0:
        return Ended(document)
    if code in (130, -signal.SIGINT):
        return Ended(document, "interrupted", interrupted=True)
    error = document.get("error") or {}
    message = error.get("message")
    if message and error.get("field"):
        message = f"{error['field']}: {message}"
    if message is None and code < 0:
        name = signal.Signals(-code).name
        message = f"the process was ended by {name}"
        if name == "SIGKILL":
            message += ", as the system does when memory runs out"
    return Ended(document, message or _last_line(log) or f"exit code {code}")


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n") if log.exists() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def placed(device: str | None, slots: int) -> tuple[list[str], dict[str, str]]:
    """How a command is told its device: arguments, and variables of its environment.

    A numbered CUDA device becomes the only one that the process sees: whatever a library
    does on "the current device" is done on the right one. On CPUs the cores are divided.

    >>> placed("cuda:1", 2)[0]
    ['--device', 'cuda']
    """
    kind, _, number = (device or "").partition(":")
    if kind == "cuda" and number.isdigit():
        seen = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        # the n-th of those that this process may use
        chosen = seen[int(number)] if len(seen) > int(number) and seen[0] else number
        return ["--device", "cuda"], {"CUDA_VISIBLE_DEVICES": chosen}
    variables = {}
    if slots > 1 and "OMP_NUM_THREADS" not in os.environ:
        variables["OMP_NUM_THREADS"] = str(max(1, cores() // slots))
    return (["--device", device] if device else []), variables
