"""Everything that prefopt raises on purpose.

    PrefoptError
    ├── DataError          (ValueError)    a row, a field or a file of preferences is wrong
    ├── RecipeError        (ValueError)    a setting is unknown, out of range or without effect
    ├── PolicyError        (ValueError)    a model, tokenizer or adapter cannot be used as asked
    ├── MissingExtraError  (ImportError)   an optional dependency is not installed
    ├── RunError           (OSError)       a run folder cannot be read or written
    └── TrainingError      (RuntimeError)  training started and cannot go on
        └── NonFiniteError (ArithmeticError)

Each one says what is wrong, where (file, row, field, value) and what to do, and each is
also the standard exception that a caller would expect to catch. The command line prints
them without a traceback and exits with `exit_code`: 2 for wrong input, 1 for what fails
while running.
"""

from __future__ import annotations

from typing import Any, ClassVar


class PrefoptError(Exception):
    """Root of the tree: a sentence, the place it is about, and the remedy.

    Args:
        message: what is wrong, in one sentence.
        file: the file it was found in.
        row: the row in that file, counted from 1.
        field: the field or setting concerned.
        value: the offending value; shortened when printed.
        remedy: what the user can do about it.
    """

    exit_code: ClassVar[int] = 2

    def __init__(
        self,
        message: str,
        *,
        file: str | None = None,
        row: int | None = None,
        field: str | None = None,
        value: Any = None,
        remedy: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.file = file
        self.row = row
        self.field = field
        self.value = value
        self.remedy = remedy

    def __str__(self) -> str:
        place = ", ".join(
            part
            for part in (
                self.file,
                f"row {self.row}" if self.row is not None else None,
                f"field '{self.field}'" if self.field else None,
            )
            if part
        )
        lines = [f"{place}: {self.message}" if place else self.message]
        if self.value is not None:
            lines.append(f"  value: {_shortened(self.value)}")
        if self.remedy:
            lines.append(f"  remedy: {self.remedy}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """The error as the command line prints it with `--json`."""
        return {
            "type": type(self).__name__,
            "message": self.message,
            "file": self.file,
            "row": self.row,
            "field": self.field,
            "value": None if self.value is None else _shortened(self.value),
            "remedy": self.remedy,
        }


class DataError(PrefoptError, ValueError):
    """A row, a field or a file of preferences is wrong."""

    #: machine-readable kind, the same words as the findings of `prefopt check`
    kind: str

    def __init__(self, message: str, *, kind: str = "unreadable_row", **place: Any) -> None:
        super().__init__(message, **place)
        self.kind = kind

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "kind": self.kind}


class RecipeError(PrefoptError, ValueError):
    """A setting is unknown, out of range, or would have no effect."""


class PolicyError(PrefoptError, ValueError):
    """A model, a tokenizer or an adapter cannot be loaded or used as asked."""


class MissingExtraError(PrefoptError, ImportError):
    """An optional dependency is needed and not installed."""


class RunError(PrefoptError, OSError):
    """A run folder cannot be read or written."""

    exit_code = 1


class TrainingError(PrefoptError, RuntimeError):
    """Training started and cannot go on."""

    exit_code = 1


class NonFiniteError(TrainingError, ArithmeticError):
    """A loss or a gradient is not a finite number."""


def _shortened(value: Any, limit: int = 200) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"
