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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self, TypeVar

from prefopt.errors import MissingExtraError, PrefoptError, RecipeError, RunError
from prefopt.labelling.prepared import keep_statements
from prefopt.labelling.refusals import AwayError

try:
    import sqlalchemy as sa
    from sqlalchemy.dialects import postgresql, sqlite
    from sqlalchemy.pool import ConnectionPoolEntry
except ImportError as error:
    raise MissingExtraError(
        "the labelling room needs the package sqlalchemy",
        remedy="install it with: pip install 'prefopt[label]'",
    ) from error

Result = TypeVar("Result")

#: how long a transaction waits for its turn or for a connection, in seconds
PATIENCE = 20.0
_TRIES = 8  # of a transaction that lost to another one
#: PostgreSQL: serialization failure, deadlock, lock not available
_LOST = ("40001", "40P01", "55P03")
#: connection exceptions, too many connections, shut down or starting up
_AWAY = ("08", "53300", "57P")


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
                lost = _code(error).startswith(_LOST)
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
        for attempt in range(2):
            try:
                with self._connected().connect() as connection:
                    if not self.is_sqlite:  # there a query outside a transaction is alone already
                        connection = connection.execution_options(isolation_level="AUTOCOMMIT")
                    return list(connection.execute(query).all())
            except self._failures as error:
                # after a server came back, its old connections are dead: once more with a new one
                if not self._is_broken(error) or attempt:
                    raise self._explained(error) from error
        raise AssertionError("unreachable")

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
            options["connect_args"] = {"timeout": PATIENCE, "tcp_keepalive": True}
        # Parameters are what people said and what opens doors: they are no part of a log.
        self._engine = sa.create_engine(
            self.url, poolclass=sa.QueuePool, hide_parameters=True, **options
        )
        self._queue = threading.Lock()
        self._process = os.getpid()
        if self.is_sqlite:
            sa.event.listen(self._engine, "do_connect", _keep_private)
            sa.event.listen(self._engine, "connect", _prepare_sqlite)
            sa.event.listen(self._engine, "begin", _begin_sqlite)
        else:
            sa.event.listen(self._engine, "connect", keep_statements)
            sa.event.listen(self._engine, "connect", _prepare_postgresql)
            sa.event.listen(self._engine, "handle_error", _give_up_broken)

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
            raise self._away("the database was busy for too long")
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

    def _away(self, message: str) -> AwayError:
        return AwayError(
            message, field="db", value=self.name, remedy="is the server running? then try again"
        )

    def _explained(self, error: Exception) -> Exception:
        """What to raise in place of a driver's error; the error itself if it is our mistake."""
        said = _said(error)
        if self.is_sqlite:
            for words, explain in _SQLITE_SAYS.items():
                if words in said:
                    return explain(self, said)
            return error
        code = _code(error)
        if code in _REFUSED:
            return RecipeError(
                f"the database refuses: {_REFUSED[code]}",
                field="db",
                value=self.name,
                remedy="check the user, the password and the name of the database in the URL",
            )
        unreached = isinstance(error, sa.exc.TimeoutError | sa.exc.InterfaceError)
        if unreached or (not code and self._is_broken(error)):
            return self._away("the database cannot be reached")
        if code.startswith(_AWAY + _LOST) or getattr(error, "connection_invalidated", False):
            return self._away("the database cannot be reached or is busy")
        if code == "42501":
            return RunError("this user may not write", file=self.name, remedy="grant it the right")
        return error


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
    if "://" not in url:
        url = f"sqlite:///{url}"
    try:
        parsed = sa.make_url(url)
    except (sa.exc.ArgumentError, ValueError):
        raise _bad(url, "this is not the URL of a database") from None
    kind = parsed.get_backend_name()
    if kind == "sqlite":
        if not parsed.database or parsed.database == ":memory:" or parsed.host:
            raise _bad(url, "SQLite needs a file that several processes can open")
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
        return Database(parsed.set(drivername="postgresql+pg8000"))
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


# -- what a connection is told ---------------------------------------------------------------


def _keep_private(_: object, __: object, arguments: Sequence[str], ___: object) -> None:
    """A new file is its owner's: others of the machine need not read names and votes."""
    with suppress(OSError):  # it is there, or cannot be: SQLite says so in a moment
        os.close(os.open(arguments[0], os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))


def _prepare_sqlite(connection: sqlite3.Connection, _: ConnectionPoolEntry) -> None:
    connection.isolation_level = None  # `_begin_sqlite` begins
    cursor = connection.cursor()
    # FULL synchronises the log at each commit; fullfsync is what that takes on a Mac.
    for setting in (
        "journal_mode=WAL", "synchronous=FULL", "fullfsync=ON", "foreign_keys=ON",
        "temp_store=MEMORY", "trusted_schema=OFF",
    ):  # fmt: skip
        cursor.execute(f"PRAGMA {setting}")
    cursor.close()


def _begin_sqlite(connection: sa.Connection) -> None:
    """Take the write lock at once, if this is to write; a single reading needs no transaction."""
    if not connection.get_execution_options().get("prefopt_writing"):
        return
    driver: Any = connection.connection.dbapi_connection
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


def _prepare_postgresql(connection: Any, _: ConnectionPoolEntry) -> None:
    cursor = connection.cursor()
    cursor.execute(
        "SELECT set_config('synchronous_commit', 'on', false) "
        "WHERE current_setting('synchronous_commit') = 'off'"
    )
    cursor.execute(f"SET lock_timeout = '{int(PATIENCE)}s'")
    connection.commit()


def _give_up_broken(context: sa.ExceptionContext) -> None:
    """A socket's own error reaches SQLAlchemy bare, and it would keep the connection."""
    if isinstance(context.original_exception, OSError):
        context.is_disconnect = True


# -- what databases say ------------------------------------------------------------------------


def _said(error: Exception) -> str:
    return str(error.orig if isinstance(error, sa.exc.DBAPIError) else error)


def _code(error: Exception) -> str:
    """PostgreSQL's code of an error; empty where there is none."""
    cause = error.orig if isinstance(error, sa.exc.DBAPIError) else error
    said = cause.args[0] if cause is not None and cause.args else None
    return str(said.get("C", "")) if isinstance(said, dict) else ""


def _busy(database: Database, _: str) -> Exception:
    return database._away("the database was busy for too long")


def _unwritable(database: Database, said: str) -> Exception:
    return RunError(said, file=str(database.file), remedy="check the disk and the file's rights")


def _not_ours(database: Database, said: str) -> Exception:
    return RecipeError(f"this cannot be read as SQLite: {said}", file=str(database.file))


_SQLITE_SAYS: dict[str, Callable[[Database, str], Exception]] = {
    "locked": _busy,
    "QueuePool limit": _busy,
    "disk is full": _unwritable,
    "disk I/O error": _unwritable,
    "readonly database": _unwritable,
    "unable to open": _unwritable,
    "not a database": _not_ours,
    "malformed": _not_ours,
}
_REFUSED = {
    "28P01": "wrong password",
    "28000": "this user may not enter",
    "3D000": "there is no database of that name",
}
