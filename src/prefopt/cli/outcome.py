"""What a command hands back, and how it is shown: to people, or as one JSON object.

Results go to stdout; progress, logs and errors for people go to stderr. A process that
`--processes` started hands both to the command that started it.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TextIO

from prefopt.errors import PrefoptError
from prefopt.runs import write_text

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

#: in the environment of such a process: the file for what it has to say
LAUNCHER = "PREFOPT_LAUNCHER"


@dataclass(frozen=True)
class Outcome:
    """The result of a command.

    Attributes:
        result: the object that `--json` prints.
        shown: what people see instead: sentences and tables.
        exit_code: 0, or 1 for a command that was asked to fail on what it found.
        said: it was announced while the command ran, and there is nothing more to say.
    """

    result: Mapping[str, Any]
    shown: Sequence[RenderableType]
    exit_code: int = 0
    said: bool = False


class UsageError(PrefoptError, ValueError):
    """The command line itself is wrong: an unknown command or option, or a missing value."""


#: where results go, and whether as JSON, whatever is done with what libraries print
_listener: tuple[TextIO, bool] | None = None


@contextmanager
def listening(*, as_json: bool) -> Iterator[None]:
    """Results go to stdout as it is now, also those that a command announces while it runs."""
    global _listener
    before, _listener = _listener, (sys.stdout, as_json)
    try:
        yield
    finally:
        _listener = before


def announcer() -> Callable[[Outcome], None]:
    """What shows a result at once, for a command that goes on running, such as a server."""
    stream, as_json = _listener or (sys.stdout, False)

    def announce(outcome: Outcome) -> None:
        with redirect_stdout(stream):
            show(outcome, as_json=as_json)
        stream.flush()

    return announce


def watched() -> bool:
    """Whether somebody is looking at the results: on a terminal, and not as JSON."""
    stream, as_json = _listener or (sys.stdout, False)
    return stream.isatty() and not as_json


def show(outcome: Outcome, *, as_json: bool) -> None:
    """Print a result."""
    if outcome.said:
        return
    if LAUNCHER in os.environ:
        _relay({"result": outcome.result})
        return
    if as_json:
        print_json(outcome.result)
        return
    console = console_to("stdout")
    for part in outcome.shown:
        console.print(part, soft_wrap=isinstance(part, str))


def show_error(
    error: PrefoptError, *, as_json: bool, kind: str | None = None, code: int | None = None
) -> None:
    """Print an error: as JSON on stdout, or for people on stderr.

    Args:
        error: what went wrong.
        as_json: one object instead of text.
        kind: its type, if another word than its class.
        code: the exit code it comes with, if another than its class has.
    """
    document = error.to_dict() if kind is None else {**error.to_dict(), "type": kind}
    if LAUNCHER in os.environ:
        _relay({"error": document, "code": error.exit_code if code is None else code})
        return
    if as_json:
        print_json({"error": document})
        return
    from rich.text import Text

    problem, *details = str(error).split("\n")
    text = Text.assemble(("error: ", "bold red"), (problem, "bold"))
    for detail in details:
        label, colon, rest = detail.partition(": ")
        text.append("\n").append(label + colon, style="cyan" if colon else "").append(rest)
    console_to("stderr").print(text, soft_wrap=True)


def _relay(document: Any) -> None:
    write_text(os.environ[LAUNCHER], json.dumps(_finite(document), default=str))


def print_json(document: Any) -> None:
    """One object on stdout; a number that JSON has no word for becomes null.

    Half of a surrogate pair, which no stream can write, is written as JSON's escape.
    """
    text = json.dumps(_finite(document), ensure_ascii=False, default=str)
    print(text.encode("utf-8", "backslashreplace").decode())


def table(rows: Mapping[str, Any]) -> Table:
    """Names beside values."""
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="cyan", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in rows.items():
        grid.add_row(Text(name), Text(str(value)))
    return grid


def counts(reasons: Mapping[str, int]) -> str:
    """`none`, or `3 too_long, 1 identical_sides`."""
    return ", ".join(f"{count} {reason}" for reason, count in reasons.items()) or "none"


def percent(share: float) -> str:
    """`71.3 %`."""
    return f"{100 * share:.1f} %"


def interval(ends: Sequence[float]) -> str:
    """`95 % interval 66.0 % to 75.9 %`."""
    return f"95 % interval {percent(ends[0])} to {percent(ends[1])}"


def console_to(stream: str) -> Console:
    """A console on the stream as it is now, which prints text as it is."""
    from rich.console import Console

    return Console(file=getattr(sys, stream), highlight=False, markup=False)


@contextmanager
def counting(label: str, unit: str) -> Iterator[Callable[..., None]]:
    """A progress bar on stderr, where a person is looking: call it with (done[, total])."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeElapsedColumn as Elapsed

    console = console_to("stderr")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    bar = Progress(
        *columns, TextColumn(unit), Elapsed(), console=console, disable=not console.is_terminal
    )
    with bar:
        task = bar.add_task(label, total=None)

        def update(done: int, total: int | None = None) -> None:
            bar.update(task, completed=done, total=total)

        yield update


def _finite(value: Any) -> Any:
    if isinstance(value, float) and value - value != 0:  # inf or nan
        return None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value
