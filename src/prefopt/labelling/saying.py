"""What databases say when something goes wrong, in words that help."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import sqlalchemy as sa

from prefopt.errors import RecipeError, RunError
from prefopt.labelling.refusals import AwayError

#: PostgreSQL, of a transaction that may be tried again: serialization failure, deadlock, lock
#: not available
LOST = ("40001", "40P01", "55P03")
#: connection exceptions, too many connections, shut down or starting up
_AWAY = ("08", "53300", "57P")
_REFUSED = {
    "28P01": "wrong password",
    "28000": "this user may not enter",
    "3D000": "there is no database of that name",
}


def code_of(error: Exception) -> str:
    """PostgreSQL's code of an error; empty where there is none."""
    cause = error.orig if isinstance(error, sa.exc.DBAPIError) else error
    said = cause.args[0] if cause is not None and cause.args else None
    return str(said.get("C", "")) if isinstance(said, dict) else ""


def away(name: str, message: str) -> AwayError:
    """The refusal of a database that does not answer."""
    return AwayError(
        message, field="db", value=name, remedy="is the server running? then try again"
    )


def of_sqlite(error: Exception, name: str, file: Path | None) -> Exception:
    """What to raise in place of SQLite's error; the error itself if it is our mistake."""
    said = str(error.orig if isinstance(error, sa.exc.DBAPIError) else error)
    for words, explain in _SQLITE_SAYS.items():
        if words in said:
            return explain(name, str(file), said)
    return error


def of_postgresql(error: Exception, name: str, *, broken: bool) -> Exception:
    """The same of PostgreSQL's; `broken`: the connection is gone."""
    code = code_of(error)
    if code in _REFUSED:
        return RecipeError(
            f"the database refuses: {_REFUSED[code]}",
            field="db",
            value=name,
            remedy="check the user, the password (or PGPASSWORD) and the name of the database",
        )
    unreached = isinstance(error, sa.exc.TimeoutError | sa.exc.InterfaceError)
    if unreached or (not code and broken):
        return away(name, "the database cannot be reached")
    if code.startswith(_AWAY + LOST) or getattr(error, "connection_invalidated", False):
        return away(name, "the database cannot be reached or is busy")
    if code == "42501":
        return RunError("this user may not write", file=name, remedy="grant it the right")
    return error


def _busy(name: str, _: str, __: str) -> Exception:
    return away(name, "the database was busy for too long")


def _unwritable(_: str, file: str, said: str) -> Exception:
    return RunError(said, file=file, remedy="check the disk and the file's rights")


def _not_ours(_: str, file: str, said: str) -> Exception:
    return RecipeError(
        f"this cannot be read as SQLite: {said}", file=file,
        remedy="name another file, or the copy of a backup",
    )  # fmt: skip


_SQLITE_SAYS: dict[str, Callable[[str, str, str], Exception]] = {
    "locked": _busy,
    "QueuePool limit": _busy,
    "disk is full": _unwritable,
    "disk I/O error": _unwritable,
    "readonly database": _unwritable,
    "unable to open": _unwritable,
    "not a database": _not_ours,
    "malformed": _not_ours,
}
