"""What a new connection is told, and what the query of a PostgreSQL URL asks of it."""

from __future__ import annotations

import os
import sqlite3
import ssl
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import sqlalchemy as sa
from sqlalchemy.pool import ConnectionPoolEntry

from prefopt.errors import RecipeError

#: how long a transaction waits for its turn or for a connection, in seconds
PATIENCE = 20.0


def _verified(authorities: str | None, *, name: bool) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=authorities)
    context.check_hostname = name
    return context


#: libpq's words for encryption, as the driver takes them: None tries it, True insists on it
_SSL: dict[str, Callable[[str | None], ssl.SSLContext | bool | None]] = {
    "disable": lambda _: False,
    "allow": lambda _: None,
    "prefer": lambda _: None,
    "require": lambda _: True,
    "verify-ca": lambda authorities: _verified(authorities, name=False),
    "verify-full": lambda authorities: _verified(authorities, name=True),
}
_QUERY = ("sslmode", "sslrootcert", "application_name", "unix_sock")


def postgresql_arguments(url: sa.URL) -> dict[str, Any]:
    """The driver's arguments that a URL's query stands for.

    Without `sslmode` a connection is encrypted where the server can, as with PostgreSQL's own
    programs.

    Raises:
        RecipeError: the query says what is not known here.

    >>> postgresql_arguments(sa.make_url("postgresql://host/votes?sslmode=require"))
    {'ssl_context': True}
    """
    query = {
        name: value if isinstance(value, str) else value[-1] for name, value in url.query.items()
    }
    for name in query:
        if name not in _QUERY:
            raise _bad("the URL asks for what is not known here", name, f"use {', '.join(_QUERY)}")
    mode, authorities = query.pop("sslmode", "prefer"), query.pop("sslrootcert", None)
    if mode not in _SSL:
        raise _bad("there is no such sslmode", mode, f"use one of {', '.join(_SSL)}")
    try:
        context = _SSL[mode](authorities)
    except OSError as error:  # ssl.SSLError is one
        raise _bad(
            f"the certificates cannot be read: {error.strerror or error}", authorities,
            "give sslrootcert a PEM file",
        ) from None  # fmt: skip
    return {**query, **({} if context is None else {"ssl_context": context})}


def _bad(message: str, value: object, remedy: str) -> RecipeError:
    return RecipeError(message, field="db", value=value, remedy=remedy)


# -- what a connection is told ---------------------------------------------------------------


def keep_private(_: object, __: object, arguments: Sequence[str], ___: object) -> None:
    """A new file is its owner's: others of the machine need not read names and votes."""
    with suppress(OSError):  # it is there, or cannot be: SQLite says so in a moment
        os.close(os.open(arguments[0], os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))


def prepare_sqlite(connection: sqlite3.Connection, _: ConnectionPoolEntry) -> None:
    """Set an SQLite connection up so that what was committed is on disk."""
    connection.isolation_level = None  # the database's own `begin` begins
    cursor = connection.cursor()
    # FULL synchronises the log at each commit; fullfsync is what that takes on a Mac.
    for setting in (
        "journal_mode=WAL", "synchronous=FULL", "fullfsync=ON", "foreign_keys=ON",
        "temp_store=MEMORY", "trusted_schema=OFF",
    ):  # fmt: skip
        cursor.execute(f"PRAGMA {setting}")
    cursor.close()


def prepare_postgresql(connection: Any, _: ConnectionPoolEntry) -> None:
    """Have a commit wait for the disk, and nobody wait for a lock without end."""
    cursor = connection.cursor()
    cursor.execute(
        "SELECT set_config('synchronous_commit', 'on', false) "
        "WHERE current_setting('synchronous_commit') = 'off'"
    )
    cursor.execute(f"SET lock_timeout = '{int(PATIENCE)}s'")
    connection.commit()


def give_up_broken(context: sa.ExceptionContext) -> None:
    """A socket's own error reaches SQLAlchemy bare, and it would keep the connection."""
    if isinstance(context.original_exception, OSError):
        context.is_disconnect = True
