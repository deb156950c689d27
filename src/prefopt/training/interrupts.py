"""Being asked to stop: Ctrl-C by a person, SIGTERM by whoever lends the machine.

Outside the loop both end the work where it is. Inside it they are noted, and acted on
between two steps, after a checkpoint: weights are never left halfway through an update, and
of several processes all stop after the same step.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from prefopt.training import distributed

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_BESIDE = "TORCHELASTIC_RUN_ID"  # of a process that a launcher started


class Stopped(KeyboardInterrupt):
    """Asked to stop by a signal, and stopped.

    Attributes:
        signum: the signal.
        checkpoint: the last one.
    """

    def __init__(self, signum: int, checkpoint: Path | None = None) -> None:
        name = signal.Signals(signum).name
        what = "interrupted" if signum == signal.SIGINT else f"stopped by {name}"
        super().__init__(f"{what}; the last checkpoint is {checkpoint}" if checkpoint else what)
        self.signum = signum
        self.checkpoint = checkpoint

    @property
    def exit_code(self) -> int:
        """130 for Ctrl-C, 143 for SIGTERM: what a shell says of a process that a signal ended."""
        return 128 + self.signum


@contextmanager
def stoppable() -> Iterator[None]:
    """Both signals end the block with `Stopped`."""

    def stop(signum: int, frame: FrameType | None) -> None:
        raise Stopped(signum)

    with _handling(stop):
        yield


@contextmanager
def heard_to_the_end() -> Iterator[None]:
    """After an error in the block this process only says what it was, and ends.

    A launcher that saw another process end sends SIGTERM, and must not cut the word short.
    """
    try:
        yield
    except BaseException:
        with suppress(ValueError):  # not the main thread
            for number in _SIGNALS:
                signal.signal(number, signal.SIG_IGN)
        raise


@contextmanager
def between_steps() -> Iterator[Callable[[], int]]:
    """Signals are noted; yields what says which one came to any of the processes, or 0.

    All processes ask it after every step. A second Ctrl-C acts at once; a second SIGTERM
    does not, since a scheduler and a launcher may each send one. Outside the main thread
    Python cannot handle signals, and nothing is changed.
    """
    noted = 0

    def note(signum: int, frame: FrameType | None) -> None:
        nonlocal noted
        # A launcher passes a terminal's Ctrl-C on, which may have come here by itself too.
        if noted and signum == signal.SIGINT and _BESIDE not in os.environ:
            raise Stopped(signum)
        noted = noted or signum

    with _handling(note):
        yield lambda: distributed.highest(noted)


@contextmanager
def _handling(handler: Callable[[int, FrameType | None], Any]) -> Iterator[None]:
    try:
        before = {number: signal.signal(number, handler) for number in _SIGNALS}
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old or signal.SIG_DFL)
