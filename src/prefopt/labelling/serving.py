"""Serving the labelling room: where it may be reached, and in how many processes.

Several processes share one socket. The one that was started looks after them: it starts again
what dies, and ends them all when it is asked to. Loopback is the default; any other address is
refused unless it is meant, since what people send travels in the clear without HTTPS.
"""

from __future__ import annotations

import errno
import http.client
import ipaddress
import logging
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from signal import Signals

from prefopt.errors import MissingExtraError, RecipeError, RunError

try:
    import uvicorn  # noqa: F401 - told here, in our words, before anything is opened

    from prefopt.labelling import worker
except ModuleNotFoundError as error:
    raise MissingExtraError(
        f"the labelling room needs the package {error.name}",
        remedy="install it with: pip install 'prefopt[label]'",
    ) from error
from prefopt.labelling.database import open_database

_LOG = logging.getLogger("prefopt.labelling")
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
#: seconds until a process must answer for the first time
_PATIENCE = 60.0
#: a process that lives shorter than this many seconds, so many times in a row, is given up
_SHORT, _TIMES = 5.0, 5
_BACKLOG = 2048


class ServerStopped(KeyboardInterrupt):
    """Stopped by Ctrl-C or SIGTERM, after what was being answered."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {Signals(signum).name}; every answer that was given is kept")
        self.exit_code = 128 + signum  # what a shell says of a process that a signal ended


def serve(
    url: str,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    processes: int = 1,
    remote: bool = False,
    behind_https: bool = False,
    names: Sequence[str] = (),
    proxies: Sequence[str] = ("127.0.0.1", "::1"),
    ready: Callable[[str], None] | None = None,
) -> None:
    """Serve the labelling room until it is stopped.

    Args:
        url: of the database, which is brought up to date first.
        host, port: where to listen; port 0 is any free one.
        processes: how many answer, all on one socket.
        remote: a `host` that other machines reach is meant.
        behind_https: a proxy before this server speaks HTTPS: cookies are for HTTPS only, and
            the proxy's word on clients' addresses is taken.
        names: further names under which it is asked for, such as the proxy's.
        proxies: addresses of such proxies.
        ready: called with the address, once it answers there.

    Raises:
        ServerStopped: Ctrl-C or SIGTERM.
        RecipeError: a setting that cannot be, or an address that is open to others.
        RunError: the address cannot be listened at, or the processes do not stay alive.
        PrefoptError: the database cannot be used.
    """
    _check(host, port, processes, remote, behind_https)
    database = open_database(url)
    database.migrate()
    database.close()
    with _listen(host, port) as listening:
        bound = listening.getsockname()[1]
        address = _address(host, bound, behind_https, names)
        settings = worker.Settings(url, _hosts(host, names), behind_https, tuple(proxies))
        answers = _Probe(host, bound)
        if processes == 1:
            signum = _alone(settings, listening, lambda: answers.told(ready, address))
        else:
            group = _Group(settings, listening, processes)
            signum = group.run(lambda: answers.told(ready, address))
    raise ServerStopped(signum)


def _alone(settings: worker.Settings, listening: socket.socket, tell: Callable[[], bool]) -> int:
    """Answer in this process; returns the signal that ended it."""
    server = worker.server_of(settings)
    failed: list[BaseException] = []

    def watch() -> None:
        try:
            while not server.should_exit and not tell():
                time.sleep(0.05)
        except BaseException as error:  # told by the thread that serves
            failed.append(error)
            server.stop()

    threading.Thread(target=watch, daemon=True).start()
    server.run(sockets=[listening])
    if failed:
        raise failed[0]
    return server.stopped_by


@dataclass
class _Worker:
    """A process that answers, and since when."""

    process: subprocess.Popen[bytes]
    since: float

    def let_go(self) -> None:
        """Ask it to finish: its stdin is closed."""
        with suppress(OSError):  # of one that is dead already
            if self.process.stdin is not None:
                self.process.stdin.close()


@dataclass
class _Group:
    """Several processes on one socket, kept alive.

    Attributes:
        short: how many in a row ended by themselves as soon as they had begun.
        signum: by which signal it was asked to stop.
    """

    settings: worker.Settings
    listening: socket.socket
    size: int
    members: list[_Worker] = field(default_factory=list)
    short: int = 0
    signum: int = 0
    hurry: bool = False

    def run(self, tell: Callable[[], bool]) -> int:
        """Keep them alive until a signal comes, and return it."""
        with worker.handling(self._note):
            try:
                self.members = [self._start() for _ in range(self.size)]
                told = False
                while not self.signum:
                    self._revive()
                    told = told or tell()
                    time.sleep(0.05)
            finally:
                self._end()
        return self.signum

    def _note(self, signum: int, frame: object) -> None:
        self.hurry = bool(self.signum)
        self.signum = self.signum or signum

    def _start(self) -> _Worker:
        descriptor = self.listening.fileno()
        process = subprocess.Popen(
            [sys.executable, "-m", "prefopt.labelling.worker"],
            stdin=subprocess.PIPE,
            pass_fds=[descriptor],
            bufsize=0,
        )
        with suppress(OSError):  # if it has died already, that is seen to in its turn
            if process.stdin is not None:
                process.stdin.write(worker.line_of(self.settings, descriptor))
        return _Worker(process, time.monotonic())

    def _revive(self) -> None:
        for place, member in enumerate(self.members):
            code = member.process.poll()
            if code is None:
                continue
            lived = time.monotonic() - member.since
            # One that was killed has not failed by itself, and the next may live.
            self.short = self.short + 1 if lived < _SHORT and code >= 0 else 0
            if self.short >= _TIMES:
                raise RunError(
                    f"the server's processes end as soon as they begin, with code {code}",
                    remedy="what they wrote above says why; --processes 1 shows it alone",
                )
            _LOG.warning("a process of the server ended with code %s; starting another", code)
            member.let_go()
            self.members[place] = self._start()

    def _end(self) -> None:
        """All at once finish what they are answering; who does not in time is killed."""
        for member in self.members:
            member.let_go()
        end = time.monotonic() + 2 * worker.GRACE
        for member in self.members:
            while member.process.poll() is None:
                if self.hurry or time.monotonic() > end:
                    member.process.kill()
                    member.process.wait()
                time.sleep(0.02)


class _Probe:
    """Asks the server whether it answers."""

    def __init__(self, host: str, port: int) -> None:
        anywhere = {"0.0.0.0": "127.0.0.1", "::": "::1"}
        self.host, self.port = anywhere.get(host, host), port
        self.end = time.monotonic() + _PATIENCE

    def told(self, ready: Callable[[str], None] | None, address: str) -> bool:
        """Whether it answered, and `ready` was called.

        Raises:
            RunError: it has had its time.
        """
        if not self._answers():
            if time.monotonic() > self.end:
                raise RunError(
                    f"the server does not answer after {_PATIENCE:.0f} seconds",
                    remedy="what it wrote above may say why",
                )
            return False
        if ready is not None:
            ready(address)
        return True

    def _answers(self) -> bool:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=2)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()


# -- where ----------------------------------------------------------------------------------


def _check(host: str, port: int, processes: int, remote: bool, behind_https: bool) -> None:
    if processes < 1:
        raise RecipeError(
            "must be at least 1", field="processes", value=processes, remedy="give another number"
        )
    if not 0 <= port <= 65535:
        raise RecipeError(
            "is not a port", field="port", value=port, remedy="give one from 0 to 65535"
        )
    if is_loopback(host):
        return
    if not remote:
        raise RecipeError(
            "other machines could reach this address",
            field="host",
            value=host,
            remedy="leave it at 127.0.0.1 and let people in by a proxy that speaks HTTPS or an "
            "SSH tunnel; if you mean it, add --remote (everybody still needs a link of their own)",
        )
    if not behind_https:
        _LOG.warning(
            "Links, sessions and answers travel unencrypted to %s: put a proxy that speaks HTTPS "
            "before this server and add --behind-https, or use it in a network you trust.",
            host,
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address.

    >>> is_loopback("127.0.0.1"), is_loopback("localhost"), is_loopback("0.0.0.0")
    (True, True, False)
    """
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _hosts(host: str, names: Sequence[str]) -> tuple[str, ...]:
    """What the Host header may say; where everything is listened to, any address in numbers."""
    own = (socket.gethostname(), "*") if host in ("0.0.0.0", "::") else (host,)
    return tuple(dict.fromkeys((*_LOOPBACK, *own, *names)))


def _address(host: str, port: int, behind_https: bool, names: Sequence[str]) -> str:
    """The address for people."""
    if behind_https and names:
        return f"https://{names[0]}"
    if host in ("0.0.0.0", "::"):
        host = socket.gethostname()
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def _listen(host: str, port: int) -> socket.socket:
    """An open socket.

    Raises:
        RunError: somebody else has it, or it is not ours to have.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    both = host == "::" and socket.has_dualstack_ipv6()
    try:
        return socket.create_server(
            (host, port), family=family, backlog=_BACKLOG, dualstack_ipv6=both
        )
    except OSError as error:
        raise _refusal(host, port, error) from error


def _refusal(host: str, port: int, error: OSError) -> RunError:
    if error.errno == errno.EADDRINUSE:
        return RunError(
            "the port is in use, perhaps by another server of yours",
            field="port",
            value=port,
            remedy="stop that one, or give another --port (0 takes any free one)",
        )
    if error.errno == errno.EACCES:
        return RunError(
            "this user may not listen there", field="port", value=port,
            remedy="give a --port above 1023",
        )  # fmt: skip
    return RunError(
        f"this address cannot be listened at: {error.strerror or error}",
        field="host",
        value=host,
        remedy="give --host 127.0.0.1, or an address of this machine",
    )
