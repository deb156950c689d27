"""One process that answers: the app on a socket that is open already.

`python -m prefopt.labelling.worker` is one of several, started by `serving`: it reads what it
needs as a line of JSON from its stdin, and ends when that is closed, so that none is left over
when whoever started it is gone, however that was.
"""

from __future__ import annotations

import json
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from types import FrameType

import uvicorn

from prefopt.labelling.database import open_database
from prefopt.labelling.store import Store
from prefopt.labelling.web.app import create_app

#: seconds that requests have to finish once the server was asked to stop
GRACE = 5


@dataclass(frozen=True, slots=True)
class Settings:
    """What an app and its server are made from.

    Attributes:
        url: of the database.
        hosts: see `create_app`.
        secure: HTTPS ends at a proxy before this server.
        proxies: addresses of proxies whose word on the client's address is taken.
    """

    url: str
    hosts: tuple[str, ...]
    secure: bool
    proxies: tuple[str, ...]


class Server(uvicorn.Server):
    """uvicorn's server, which says by which signal it was stopped and leaves the rest to us."""

    stopped_by = 0

    def stop(self, signum: int = 0, frame: FrameType | None = None) -> None:
        """Finish what is being answered, then end; a second Ctrl-C does not wait."""
        self.force_exit = self.should_exit and signum == signal.SIGINT
        self.stopped_by = self.stopped_by or signum
        self.should_exit = True

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle SIGINT and SIGTERM while serving."""
        with handling(self.stop):
            yield


def server_of(settings: Settings) -> Server:
    """The app on a server that is not running yet.

    Raises:
        PrefoptError: the database cannot be opened.
    """
    store = Store(open_database(settings.url))
    app = create_app(store, secure=settings.secure, hosts=settings.hosts)
    config = uvicorn.Config(
        app,
        access_log=False,  # addresses of links are secrets
        log_config=None,
        log_level="warning",
        proxy_headers=settings.secure,
        forwarded_allow_ips=list(settings.proxies),
        server_header=False,
        timeout_graceful_shutdown=GRACE,
        timeout_keep_alive=30,
    )
    return Server(config)


@contextmanager
def handling(stop: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Have SIGINT and SIGTERM call `stop`; outside the main thread nothing is changed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def line_of(settings: Settings, descriptor: int) -> bytes:
    """What a worker reads from its stdin."""
    return json.dumps({**asdict(settings), "descriptor": descriptor}).encode() + b"\n"


def main() -> None:
    """Answer until stdin is closed or SIGTERM comes; Ctrl-C is for whoever started this."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    given = json.loads(sys.stdin.readline())
    shared = socket.socket(fileno=given.pop("descriptor"))
    given["hosts"], given["proxies"] = tuple(given["hosts"]), tuple(given["proxies"])
    server = server_of(Settings(**given))

    def until_alone() -> None:
        sys.stdin.read()
        server.stop()

    threading.Thread(target=until_alone, daemon=True).start()
    server.run(sockets=[shared])


if __name__ == "__main__":
    main()
