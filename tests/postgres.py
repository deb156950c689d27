"""A PostgreSQL of the tests' own: a private cluster, with a fresh database for each test.

It lies in a temporary folder, listens on a free port of the loopback interface alone, asks for a
password that was drawn for it, and ends with the process that started it, however that ends.
`fsync` stays on: what tests about lost votes prove must hold for the real thing.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.required import missing

#: small, and quiet; nothing that would make a lost commit look kept
SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "shared_buffers": "32MB",
    "max_connections": "100",
    "jit": "off",
    "logging_collector": "off",
    "autovacuum_naptime": "10s",
}
# The server ends when the pipe does: at `stop`, or when whoever holds its other end is no more.
_KEEPER = """
exec 3<&0
"$@" 3<&- &
server=$!
{ cat <&3 >/dev/null; kill -QUIT $server 2>/dev/null; } &
wait $server
"""


def programs() -> Path | None:
    """The folder with `initdb` and `postgres`: on PATH, or the newest that Debian keeps aside."""
    if found := shutil.which("initdb"):
        return Path(found).resolve().parent
    aside = Path("/usr/lib/postgresql").glob("*/bin/initdb")
    by_version = sorted(aside, key=lambda path: [int(n) for n in re.findall(r"\d+", str(path))])
    return by_version[-1].parent if by_version else None


class Cluster:
    """A server with its folder; made by `cluster()`."""

    def __init__(self, folder: Path, binaries: Path) -> None:
        self.folder = folder
        self.port = 0
        self.password = secrets.token_urlsafe(12)
        self._binaries = binaries
        self._data = folder / "data"
        self._as: dict[str, Any] = {"cwd": folder, "env": {"LC_ALL": "C", "PATH": os.defpath}}
        self._keeper: subprocess.Popen[bytes] | None = None
        self._made = 0
        secret = folder / "password"
        secret.touch(mode=0o600)
        secret.write_text(self.password)
        if os.geteuid() == 0:  # PostgreSQL refuses to run as root
            user = next(filter(None, map(_user, ("postgres", "nobody"))))
            for path in (folder, secret):
                os.chown(path, user.pw_uid, user.pw_gid)
            self._as |= {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        given = ["--pgdata", str(self._data), "--username", "tests", "--auth", "scram-sha-256",
                 "--encoding", "UTF8", "--locale", "C", "--no-sync"]  # fmt: skip
        command = [str(binaries / "initdb"), *given, "--pwfile", str(secret)]
        done = subprocess.run(command, capture_output=True, text=True, **self._as)
        assert done.returncode == 0, done.stdout + done.stderr

    def start(self) -> None:
        """Start the server, on the port that it had before, if any; wait until it answers."""
        self.stop()
        for attempt in range(40):
            if not self.port or attempt % 10 == 9:  # somebody may have taken it
                self.port = _free_port()
            settings = [f"--{name}={value}" for name, value in SETTINGS.items()]
            command = [str(self._binaries / "postgres"), "-D", str(self._data), "-p",
                       str(self.port), *settings]  # fmt: skip
            with (self.folder / "log").open("ab") as log:
                self._keeper = subprocess.Popen(
                    ["sh", "-c", _KEEPER, "sh", *command],
                    stdin=subprocess.PIPE, stdout=log, stderr=log, **self._as,
                )  # fmt: skip
            if self._answers():
                return
            self.stop()  # after a kill, processes of the old server may linger for a moment
        raise AssertionError((self.folder / "log").read_text()[-3000:])

    def _answers(self) -> bool:
        assert self._keeper is not None
        until = time.monotonic() + 60
        while self._keeper.poll() is None and time.monotonic() < until:
            with contextlib.suppress(Exception), self._connect() as connection:
                connection.run("SELECT 1")
                return True
            time.sleep(0.05)
        return False

    @contextlib.contextmanager
    def _connect(self) -> Iterator[Any]:
        import pg8000.native

        connection = pg8000.native.Connection(
            "tests", host="127.0.0.1", port=self.port, database="postgres",
            password=self.password, timeout=30,
        )  # fmt: skip
        try:
            yield connection
        finally:
            connection.close()

    @property
    def process(self) -> int:
        """The number of the server's first process."""
        return int((self._data / "postmaster.pid").read_text().split()[0])

    def kill(self) -> None:
        """As if memory had run out: SIGKILL of the first process; the others follow."""
        os.kill(self.process, signal.SIGKILL)

    def stop(self) -> None:
        """End the server at once; connections are cut, and nothing is tidied up."""
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            assert keeper.stdin is not None
            keeper.stdin.close()
            keeper.wait(timeout=60)

    def create(self) -> str:
        """The address of a new, empty database."""
        self._made += 1
        name = f"test_{self._made}"
        with self._connect() as connection:
            connection.run(f"CREATE DATABASE {name}")
        return f"postgresql://tests:{self.password}@127.0.0.1:{self.port}/{name}"

    def size(self, url: str) -> int:
        """Bytes that a database has on disk."""
        with self._connect() as connection:
            [[found]] = connection.run(
                "SELECT pg_database_size(:name)", name=url.rpartition("/")[2]
            )
        return int(found)


def _user(name: str) -> pwd.struct_passwd | None:
    try:
        return pwd.getpwnam(name)
    except KeyError:
        return None


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextlib.contextmanager
def cluster() -> Iterator[Cluster]:
    """A running server, gone with its folder afterwards.

    Raises:
        FileNotFoundError: PostgreSQL's programs are not here.
    """
    binaries = programs()
    if binaries is None:
        raise FileNotFoundError("no PostgreSQL server here (Debian: apt install postgresql)")
    folder = Path(
        tempfile.mkdtemp(prefix="prefopt-postgresql-")
    )  # pytest's own are closed to others
    try:
        made = Cluster(folder, binaries)
        try:
            made.start()
            yield made
        finally:
            made.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# -- fixtures, imported by conftest.py ------------------------------------------------------


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Cluster]:
    """One server for all tests of this process; do not stop it."""
    if programs() is None:
        missing("postgresql", "no PostgreSQL server here (Debian: apt install postgresql)")
    with cluster() as made:
        yield made


@pytest.fixture
def fresh_postgresql() -> Iterator[Cluster]:
    """A server for one test, which may kill it."""
    if programs() is None:
        missing("postgresql", "no PostgreSQL server here (Debian: apt install postgresql)")
    with cluster() as made:
        yield made


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of an empty database: the test runs on SQLite, and on PostgreSQL."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'votes.db'}"
    made: Cluster = request.getfixturevalue("postgresql")
    return made.create()
