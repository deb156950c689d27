"""What a person sees while training runs; all of it on stderr."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from prefopt.recipe import ResolvedRecipe
from prefopt.recipe.text import flow
from prefopt.training.diagnostics import Diagnostic

#: told how far something is: how much was done, and a few words
Advance = Callable[..., None]


class Display:
    """Tables, bars and findings.

    Args:
        enabled: nothing is shown otherwise.
    """

    def __init__(self, enabled: bool = True) -> None:
        self.console = Console(stderr=True, quiet=not enabled)

    def recipe(self, resolved: ResolvedRecipe) -> None:
        """Every setting, its value and where the value came from."""
        table = Table(box=None, pad_edge=False)
        for heading in ("setting", "value", "from"):
            table.add_column(heading, overflow="fold")
        for name, value in resolved.values().items():
            origin = resolved.origins.get(name, "default")
            style = "dim" if origin == "default" else ""
            table.add_row(name, Text(_short(value)), origin, style=style)
        self.console.print(table)

    def data(self, name: str, counts: Mapping[str, Any]) -> None:
        """How much data there is, and what was left out of it."""
        names = ("groups", "comparisons", "labels", "rankings", "completions", "tokens")
        sizes = ", ".join(f"{counts[key]:,} {key}" for key in names if key in counts)
        left_out = [f"{count:,} skipped: {why}" for why, count in counts["skipped"].items()]
        left_out += [f"{count:,} cut: {where}" for where, count in counts["cut"].items()]
        self.note("; ".join([f"{name}: {sizes}", *left_out]))

    def findings(self, diagnostics: Iterable[Diagnostic]) -> None:
        """Diagnostics with their remedies."""
        for diagnostic in diagnostics:
            self.note(f"{diagnostic.level}: {diagnostic.message}\n  remedy: {diagnostic.remedy}")

    def note(self, text: str) -> None:
        """A line of its own."""
        self.console.print(Text(text))

    @contextmanager
    def bar(self, label: str, total: int | None, done: int = 0) -> Iterator[Advance]:
        """A progress bar (a count without a total); yields `advance(amount, note="")`."""
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.console, disable=self.console.quiet) as progress:
            task = progress.add_task(label, total=total, completed=done, note="")

            def advance(amount: int, note: str = "") -> None:
                progress.update(task, advance=amount, note=note)

            yield advance


def counted(advance: Advance) -> Callable[[int, int], None]:
    """A bar's `advance` for who says how much is done by now, of how much.

    >>> steps: list[int] = []
    >>> told = counted(steps.append)
    >>> told(2, 10), told(5, 10), steps
    (None, None, [2, 3])
    """
    before = 0

    def told(done: int, _: int) -> None:
        nonlocal before
        advance(done - before)
        before = done

    return told


def note_of(record: Mapping[str, Any]) -> str:
    """A few words on a metrics record.

    >>> note_of({"loss": 0.6931, "accuracy": 0.5})
    'loss 0.6931, accuracy 0.50'
    """
    names = {"loss": ".4g", "accuracy": ".2f", "reward": ".3g", "kl": ".3g"}
    return ", ".join(f"{name} {record[name]:{form}}" for name, form in names.items()
                     if name in record)  # fmt: skip


def _short(value: Any) -> str:
    text = flow(value)
    return text if len(text) <= 100 else text[:99] + "…"
