"""The numbered steps from an empty database to the newest schema.

A step is a plain function of a connection. It is never changed once a database may have taken
it, so it names its tables itself and does not read `tables`, which is the schema of today.

All steps that a database lacks are taken in one transaction that others wait for: processes
that start at the same time find either the old schema or the new one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import sqlalchemy as sa

from prefopt.errors import RecipeError
from prefopt.labelling.steps import access_and_media, counting, first

#: number -> what it is for, and the step
STEPS: dict[int, tuple[str, Callable[[sa.Connection], None]]] = {
    1: ("tasks, items, annotators, events and claims", first.upgrade),
    2: ("who may enter, images and recordings, the rate limit", access_and_media.upgrade),
    3: ("counts beside the claims: the next question without reading them all", counting.upgrade),
}
NEWEST = max(STEPS)

_applied = sa.Table(
    "schema_steps",
    sa.MetaData(),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("what", sa.Text, nullable=False),
    sa.Column("at", sa.Double, nullable=False),
)


class Writable(Protocol):
    """What the steps need of a `Database`, which asks for them itself."""

    @property
    def name(self) -> str: ...
    @property
    def file(self) -> Path | None: ...
    def write(self, action: Callable[[sa.Connection], Any], /) -> Any: ...
    def lock(self, connection: sa.Connection, number: int, *, shared: bool) -> None: ...


def migrate(database: Writable, *, to: int = NEWEST) -> None:
    """Take the steps that a database lacks, all or none.

    Raises:
        RecipeError: a newer prefopt has written this database, or it is somebody else's.
    """

    def missing(connection: sa.Connection) -> None:
        database.lock(connection, 0, shared=False)  # tasks count from 1
        before = version(connection)
        if before > NEWEST:
            raise _newer(database, before)
        if before == 0:
            strangers = sorted(set(sa.inspect(connection).get_table_names()) & {"tasks", "items"})
            if strangers:
                raise RecipeError(
                    f"the database has a table {strangers[0]} that is not of prefopt",
                    field="db",
                    value=database.name,
                    remedy="give the labelling room a database of its own",
                )
            _applied.create(connection)
        for number in range(before + 1, to + 1):
            what, step = STEPS[number]
            step(connection)
            connection.execute(_applied.insert().values(number=number, what=what, at=time.time()))

    if _version_now(database) != to:
        database.write(missing)


def version(connection: sa.Connection) -> int:
    """The number of the last step that was taken; 0 for a database without any."""
    if not sa.inspect(connection).has_table(_applied.name):
        return 0
    return connection.execute(sa.select(sa.func.max(_applied.c.number))).scalar() or 0


def _version_now(database: Writable) -> int:
    """As `version`, without holding anybody up; a file that does not exist is not made."""
    if database.file is not None and not database.file.exists():
        return 0
    found: int = database.write(version)
    return found


def _newer(database: Writable, number: int) -> RecipeError:
    return RecipeError(
        f"a newer prefopt has written this database: schema {number}, here {NEWEST}",
        field="db",
        value=database.name,
        remedy="use that prefopt, or another database",
    )
