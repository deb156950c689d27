"""The same function on many things, in several processes, the results in order.

Processes of our own interpreter that are spoken to through pipes: unlike those of
`multiprocessing` they do not import the caller's main program, and they end with the caller,
however it ends.
"""

from __future__ import annotations

import gc
import os
import pickle
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, TypeVar

import prefopt
from prefopt.errors import RunError

Task = TypeVar("Task")
Result = TypeVar("Result")

_PROGRAM = "from prefopt.workers import serve; serve()"
_ROOT = str(Path(prefopt.__file__).resolve().parent.parent)


def cores() -> int:
    """How many processor cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def each(work: Callable[[Task], Result], tasks: Iterable[Task], processes: int) -> Iterator[Result]:
    """`map(work, tasks)`, by so many processes; with one of them, in this process.

    A task is drawn only when there is somebody to do it. Whatever `work` raises is raised here.

    Args:
        work: what `pickle` can take, as tasks and results.
        tasks: drawn in order.
        processes: 1 or more.

    Raises:
        RunError: one of the processes died.
    """
    if processes <= 1:
        yield from map(work, tasks)
        return
    with ExitStack() as stack:
        busy: deque[_Process] = deque()
        for task in tasks:
            if len(busy) < processes:
                process, done = _Process(work), None
                stack.callback(process.end)
            else:
                process = busy.popleft()
                done = process.receive()
            process.send(task)  # before anything is done with its last result
            busy.append(process)
            if done is not None:
                yield done[0]
        for process in busy:
            yield process.receive()[0]


class _Process:
    """One process that does `work`, one task after the other."""

    def __init__(self, work: Callable[[Any], Any]) -> None:
        paths = [_ROOT, os.environ.get("PYTHONPATH", "")]
        self._child = subprocess.Popen(
            [sys.executable, "-P", "-c", _PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
        )
        assert self._child.stdin is not None and self._child.stdout is not None
        self._in, self._out = self._child.stdin, self._child.stdout
        self.send(work)

    def send(self, message: Any) -> None:
        """Hand over what to do, or the next thing to do it on."""
        try:
            pickle.dump(message, self._in, pickle.HIGHEST_PROTOCOL)
            self._in.flush()
        except BrokenPipeError as error:
            raise _died() from error

    def receive(self) -> tuple[Any]:
        """What came of the last task."""
        try:
            well, result = pickle.load(self._out)
        except (EOFError, pickle.UnpicklingError) as error:
            raise _died() from error
        if not well:
            raise result
        return (result,)

    def end(self) -> None:
        """Nothing of it is needed any more, even if it is in the middle of something."""
        self._child.kill()
        for pipe in (self._in, self._out):
            with suppress(BrokenPipeError):
                pipe.close()
        self._child.wait()


def _died() -> RunError:
    return RunError(
        "a process that shared the work has ended",
        remedy="there may be too little memory; run it with fewer processes",
    )


def serve() -> None:
    """The program of such a process: tasks come on stdin, results go to stdout."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the caller decides what Ctrl-C means
    inbox, outbox = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not mix with the results
    gc.set_threshold(1 << 20)  # a block of rows is many small objects, and none of them a cycle
    with suppress(EOFError, BrokenPipeError):  # the caller has gone
        work = pickle.load(inbox)
        while True:
            outbox.write(_answered(work, pickle.load(inbox)))
            outbox.flush()
    os._exit(0)


def _answered(work: Callable[[Any], Any], task: Any) -> bytes:
    try:
        return pickle.dumps((True, work(task)), pickle.HIGHEST_PROTOCOL)
    except Exception as error:
        try:
            return pickle.dumps((False, error), pickle.HIGHEST_PROTOCOL)
        except Exception:
            return pickle.dumps((False, RuntimeError(repr(error))), pickle.HIGHEST_PROTOCOL)
