"""A database by its URL: SQLite in a file, or PostgreSQL; short transactions that are on disk.

SQLite runs with a write-ahead log that is synchronised at every commit, and a writing
transaction takes the write lock at its first statement, so it can never fail half-way for
somebody else's sake. Waiting for that lock is done here, by short sleeps: SQLite's own way of
waiting sleeps longer the longer it has waited, so that who comes last is served first.

On PostgreSQL a commit waits for the disk too, whatever the server's default is; what is lost
to a deadlock or to a connection that broke before its commit is tried again.
"""

from __future__ import annotations

import os
import random
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self, TypeVar

from prefopt.errors import MissingExtraError, PrefoptError, RecipeError
from prefopt.labelling.prepared import keep_statements

try:
    import sqlalchemy as sa
    from sqlalchemy.dialects import postgresql, sqlite
except ImportError as error:
    raise MissingExtraError(
        "the labelling room needs the package sqlalchemy",
        remedy="install it with: pip install 'prefopt[label]'",
    ) from error

# It needs the package too, which is told first.
from prefopt.labelling import saying
from prefopt.labelling.connecting import (
    PATIENCE,
    give_up_broken,
    keep_private,
    postgresql_arguments,
    prepare_postgresql,
    prepare_sqlite,
)

Result = TypeVar("Result")

_TRIES = 8  # of a transaction that lost to another one


class Database:
    """A database that threads and processes may use at the same time.

    A process that was forked gets connections of its own.

    Args:
        url: as `open_database` has checked it.
    """

    def __init__(self, url: sa.URL) -> None:
        self.url = url
        self.is_sqlite = url.get_backend_name() == "sqlite"
        self._guard = threading.Lock()
        self._held = threading.local()  # the connection of a thread that reads a `moment`
        self._start()

    def __repr__(self) -> str:
        return f"Database({self.name!r})"

    @property
    def name(self) -> str:
        """Its URL for people, without the password."""
        return self.url.render_as_string(hide_password=True)

    @property
    def file(self) -> Path | None:
        """The file of an SQLite database."""
        return Path(self.url.database or "") if self.is_sqlite else None

    def migrate(self) -> None:
        """Bring its schema up to the present; see `migrations.migrate`."""
        from prefopt.labelling.migrations import migrate

        migrate(self)

    def close(self) -> None:
        """Close the connections of this process; the next use opens new ones."""
        self._engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- transactions ----------------------------------------------------------------------

    def write(self, action: Callable[[sa.Connection], Result]) -> Result:
        """Run `action` in a transaction, which is on disk when this returns.

        It may be run several times, so it must have no effect outside the database.

        Raises:
            AwayError: the database cannot be reached or is busy.
            RunError: it cannot be written (a full disk, a read-only file).
        """
        for attempt in range(_TRIES):
            committing = False
            try:
                with self._turn(), self._connected().connect() as connection:
                    with connection.execution_options(prefopt_writing=True).begin() as whole:
                        result = action(connection)
                        committing = True
                        whole.commit()
                    return result
            except (PrefoptError, sa.exc.IntegrityError):
                raise
            except self._failures as error:
                # Once the commit was sent, nobody knows: only its sender may try again.
                lost = saying.code_of(error).startswith(saying.LOST)
                again = lost or (self._is_broken(error) and not committing)
                if not again or attempt == _TRIES - 1:
                    raise self._explained(error) from error
                time.sleep(random.uniform(0, 0.01 * 2**attempt))
        raise AssertionError("unreachable")

    def read(self, query: sa.Executable) -> list[sa.Row[Any]]:
        """The rows of one query, as they are at one moment.

        Raises:
            AwayError, RunError: as `write`.
        """
        held = getattr(self._held, "connection", None)
        for attempt in range(2):
            try:
                if held is not None:
                    return list(held.execute(query).all())
                with self._connected().connect() as connection:
                    if not self.is_sqlite:  # there a query outside a transaction is alone already
                        connection = connection.execution_options(isolation_level="AUTOCOMMIT")
                    return list(connection.execute(query).all())
            except self._failures as error:
                # after a server came back, its old connections are dead: once more with a new one
                if held is not None or attempt or not self._is_broken(error):
                    raise self._explained(error) from error
        raise AssertionError("unreachable")

    @contextmanager
    def moment(self) -> Iterator[None]:
        """What this thread reads in the block is all as it is at one moment; it must not write.

        Raises:
            AwayError, RunError: as `write`.
        """
        options: dict[str, Any] = {"prefopt_reading": True}
        if not self.is_sqlite:
            options = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
        try:
            connection = self._connected().connect().execution_options(**options)
        except self._failures as error:
            raise self._explained(error) from error
        with connection:
            self._held.connection = connection
            try:
                yield
            finally:
                self._held.connection = None

    def lock(self, connection: sa.Connection, number: int, *, shared: bool) -> None:
        """Hold a numbered lock until the transaction ends: shared by many, or by one alone.

        On SQLite a writing transaction is alone anyway.
        """
        if not self.is_sqlite:
            suffix = "_shared" if shared else ""
            connection.execute(
                sa.text(f"SELECT pg_advisory_xact_lock{suffix}(:room, :number)"),
                {"room": 0x70726566, "number": number},
            )

    def insert(self, table: sa.Table) -> Any:
        """An `INSERT` of this database's dialect, for `on_conflict_do_update`."""
        return sqlite.insert(table) if self.is_sqlite else postgresql.insert(table)

    # -- the connections -------------------------------------------------------------------

    def _start(self) -> None:
        options: dict[str, Any] = {"pool_size": 8, "max_overflow": 4, "pool_timeout": PATIENCE}
        if self.is_sqlite:
            options["connect_args"] = {"timeout": PATIENCE, "check_same_thread": False}
        else:
            options["connect_args"] = {
                "timeout": PATIENCE, "tcp_keepalive": True, **postgresql_arguments(self.url),
            }  # fmt: skip
        # Parameters are what people said and what opens doors: they are no part of a log.
        self._engine = sa.create_engine(
            self.url.set(query={}), poolclass=sa.QueuePool, hide_parameters=True, **options
        )
        self._queue = threading.Lock()
        self._process = os.getpid()
        if self.is_sqlite:
            sa.event.listen(self._engine, "do_connect", keep_private)
            sa.event.listen(self._engine, "connect", prepare_sqlite)
            sa.event.listen(self._engine, "begin", _begin_sqlite)
        else:
            sa.event.listen(self._engine, "connect", keep_statements)
            sa.event.listen(self._engine, "connect", prepare_postgresql)
            sa.event.listen(self._engine, "handle_error", give_up_broken)

    def _connected(self) -> sa.Engine:
        if self._process != os.getpid():
            with self._guard:
                if self._process != os.getpid():
                    self._engine.dispose(close=False)  # they are the parent's
                    self._start()
        return self._engine

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """On SQLite, threads of a process queue here, so that only processes meet in the file."""
        if not self.is_sqlite:
            yield
            return
        self._connected()
        queue = self._queue
        if not queue.acquire(timeout=PATIENCE):
            raise saying.away(self.name, "the database was busy for too long")
        try:
            yield
        finally:
            queue.release()

    # -- what went wrong -------------------------------------------------------------------

    @property
    def _failures(self) -> tuple[type[Exception], ...]:
        """What a database raises; the driver's own, bare, while a connection is put back."""
        driver: type[Exception] = self._engine.dialect.loaded_dbapi.Error
        return sa.exc.SQLAlchemyError, driver, OSError

    def _is_broken(self, error: Exception) -> bool:
        """Whether the connection is gone, rather than something wrong with what was asked."""
        if isinstance(error, sa.exc.DBAPIError):
            return error.connection_invalidated
        return not self.is_sqlite and not isinstance(error, sa.exc.SQLAlchemyError)

    def _explained(self, error: Exception) -> Exception:
        """What to raise in place of a driver's error; the error itself if it is our mistake."""
        if self.is_sqlite:
            return saying.of_sqlite(error, self.name, self.file)
        return saying.of_postgresql(error, self.name, broken=self._is_broken(error))


def open_database(url: str, *, create: bool = True) -> Database:
    """A database by its URL.

    Args:
        url: `sqlite:///file.db`, the path of a file, or `postgresql://user:password@host/name`.
        create: a file that does not exist is made when it is first written.

    Raises:
        RecipeError: not such a URL, or there is no such file and `create` is false.

    >>> open_database("votes.db").name
    'sqlite:///votes.db'
    >>> open_database("postgresql://me:secret@host/votes").name
    'postgresql+pg8000://me:***@host/votes'
    """
    if not url or "\0" in url:
        raise _bad(url, "no database is named")
    try:
        path = "://" not in url  # which may have any characters
        parsed = sa.URL.create("sqlite", database=url) if path else sa.make_url(url)
    except (sa.exc.ArgumentError, ValueError):
        raise _bad(url, "this is not the URL of a database") from None
    kind = parsed.get_backend_name()
    if kind == "sqlite":
        if not parsed.database or parsed.database == ":memory:" or parsed.host:
            raise _bad(url, "SQLite needs a file that several processes can open")
        if parsed.query:
            raise _bad(url, "the URL of an SQLite database takes no options")
        parsed = sa.URL.create("sqlite", database=parsed.database)
        file = Path(parsed.database or "")
        if file.is_dir() or not file.parent.is_dir():
            reason = "is a folder" if file.is_dir() else "is in a folder that does not exist"
            raise RecipeError(f"the file of the database {reason}", field="db", value=str(file))
        if not create and not file.exists():
            raise RecipeError("there is no such database", field="db", value=str(file))
        return Database(parsed)
    if kind in ("postgresql", "postgres"):
        if not parsed.database:
            raise _bad(url, "the URL names no database")
        password = parsed.password or os.environ.get("PGPASSWORD")  # there `ps` does not show it
        return Database(parsed.set(drivername="postgresql+pg8000", password=password))
    raise _bad(url, "only SQLite and PostgreSQL are supported")


def _bad(url: str, message: str) -> RecipeError:
    """What is wrong with a URL, without showing what may be a password in it."""
    head, _, rest = url.partition("://")
    shown = f"{head}://…{rest[rest.rfind('@') :]}" if "@" in rest else url
    return RecipeError(
        message,
        field="db",
        value=shown or None,
        remedy="use sqlite:///FILE, a path, or postgresql://USER:PASSWORD@HOST/NAME",
    )


# -- beginning -------------------------------------------------------------------------------


def _begin_sqlite(connection: sa.Connection) -> None:
    """Take the write lock at once, if this is to write; a single reading needs no transaction."""
    options = connection.get_execution_options()
    driver: Any = connection.connection.dbapi_connection
    if options.get("prefopt_reading"):
        driver.execute("BEGIN")
    if not options.get("prefopt_writing"):
        return
    driver.execute("PRAGMA busy_timeout=0")
    deadline = time.monotonic() + PATIENCE
    try:
        while True:
            try:
                driver.execute("BEGIN IMMEDIATE")
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise sa.exc.OperationalError("BEGIN IMMEDIATE", None, error) from error
                time.sleep(random.uniform(0.0005, 0.0015))
    finally:
        driver.execute(f"PRAGMA busy_timeout={int(PATIENCE * 1000)}")
