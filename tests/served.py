"""A labelling room as its users have it: the real command, a database, people with links.

Nothing here goes around the server but the making of tasks and of links, which a lead does on the
command line, and the reading of the database afterwards.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from prefopt.labelling.database import open_database
from prefopt.labelling.store import Store
from prefopt.labelling.words import NewItem, Task
from prefopt.records import Completion

Json = dict[str, Any]


def free_port() -> int:
    """One that nobody listens on now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextlib.contextmanager
def opened(url: str) -> Iterator[Store]:
    """The store of a database, which is made or brought up to date first."""
    database = open_database(url)
    try:
        database.migrate()
        yield Store(database)
    finally:
        database.close()


def plain_items(count: int, *, prefix: str = "question") -> list[NewItem]:
    """Questions that one can tell apart, the first ones first."""
    return [
        NewItem(
            prompt=f"{prefix} {number}",
            first=Completion(f"first answer to {number}"),
            second=Completion(f"second answer to {number}"),
            priority=float(number),
        )
        for number in range(count)
    ]


def make_task(store: Store, name: str, items: list[NewItem], **settings: Any) -> Task:
    """A task with these questions; neither gold ones nor repeats unless asked for."""
    settings = {"gold_share": 0.0, "repeat_share": 0.0} | settings
    task = store.add_task(Task(name=name, **settings))
    store.add_items(name, items)
    return task


def link_of(store: Store, name: str, *, role: str = "annotator", hours: float = 72) -> str:
    """A one-time token for somebody, who is added if new."""
    known = {person.name: person for person in store.annotators()}
    person = known.get(name) or store.add_annotator(name, role)  # type: ignore[arg-type]
    return store.issue_link(person, hours=hours)


# -- the server -----------------------------------------------------------------------------


class Server:
    """`prefopt label serve` as a process group of its own."""

    def __init__(self, url: str, folder: Path, *, processes: int = 1, port: int = 0) -> None:
        self.url = url
        self.port = port or free_port()
        self.processes = processes
        self.log = folder / "server.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it and wait until it answers; a room must have a task, so it is given one."""
        with opened(self.url) as store:
            if not store.tasks():
                store.add_task(Task("empty"))
        command = [
            sys.executable, "-m", "prefopt", "label", "serve", "--db", self.url,
            "--port", str(self.port), "--processes", str(self.processes),
        ]  # fmt: skip
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        until = time.monotonic() + 60
        while not self.healthy():
            assert self._process.poll() is None, self.log.read_text()[-3000:]
            assert time.monotonic() < until, self.log.read_text()[-3000:]
            time.sleep(0.03)

    def healthy(self) -> bool:
        broken = contextlib.suppress(OSError, http.client.HTTPException)
        with broken, contextlib.closing(Visitor(self.port)) as visitor:
            return visitor.send("GET", "/health").status == 200
        return False

    @property
    def workers(self) -> list[int]:
        """The numbers of the processes that the first one has started."""
        assert self._process is not None
        found = []
        for task in Path(f"/proc/{self._process.pid}/task").glob("*/children"):
            for child in map(int, task.read_text().split()):
                with contextlib.suppress(OSError):
                    said = Path(f"/proc/{child}/cmdline").read_bytes()
                    if b"resource_tracker" not in said:
                        found.append(child)
        return found

    @property
    def processor_seconds(self) -> float:
        """That its processes have used so far."""
        assert self._process is not None
        used = 0
        for process in (self._process.pid, *self.workers):
            said = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
            used += int(said[11]) + int(said[12])
        return used / os.sysconf("SC_CLK_TCK")

    def kill(self) -> None:
        """SIGKILL of every process of it at once."""
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(timeout=30)

    def interrupt(self) -> int:
        """Ctrl-C; returns the exit status."""
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGINT)
        return self._process.wait(timeout=30)

    def __enter__(self) -> Server:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self.kill()


# -- a visitor ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reply:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    cookies: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        return self.body.decode()

    @property
    def json(self) -> Json:
        found: Json = json.loads(self.body)
        return found


class Visitor:
    """Somebody with a connection that is kept and a jar of cookies; nothing is retried.

    The standard library's client costs a quarter of a millisecond a request: fifty visitors fit
    beside a server on two cores.
    """

    def __init__(self, port: int, *, timeout: float = 30.0) -> None:
        self.port = port
        self.jar: dict[str, str] = {}
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)

    def close(self) -> None:
        self._connection.close()

    def __del__(self) -> None:
        self.close()

    def send(
        self,
        method: str,
        path: str,
        fields: Mapping[str, object] | None = None,
        *,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        json: bool = False,
    ) -> Reply:
        """One request.

        Raises:
            OSError, http.client.HTTPException: the connection broke; the next one is a new one.
        """
        sent = {"Accept": "application/json"} if json else {"Accept": "text/html"}
        if self.jar:
            sent["Cookie"] = "; ".join(f"{name}={value}" for name, value in self.jar.items())
        if fields is not None:
            body = urlencode(fields).encode()
            sent["Content-Type"] = "application/x-www-form-urlencoded"
        try:
            self._connection.request(method, path, body=body, headers=sent | dict(headers or {}))
            found = self._connection.getresponse()
            reply = Reply(
                found.status,
                {name.lower(): value for name, value in found.getheaders()},
                found.read(),
                tuple(found.headers.get_all("Set-Cookie") or ()),
            )
        except (OSError, http.client.HTTPException):
            self._connection.close()
            raise
        for cookie in reply.cookies:
            name, _, value = cookie.partition(";")[0].partition("=")
            self.jar[name.strip()] = value.strip()
            if not value.strip('" ') or "max-age=0" in cookie.lower():
                del self.jar[name.strip()]
        return reply

    def enter(self, token: str) -> Reply:
        """Sign in with a link."""
        return self.send("POST", f"/enter/{token}", {})

    def question(self, task: str) -> Json:
        """The next question."""
        reply = self.send("GET", f"/tasks/{task}", json=True)
        assert reply.status == 200, (reply.status, reply.text)
        return reply.json

    def answer(self, task: str, question: Json, choice: str, **fields: object) -> Reply:
        """Answer it."""
        given = {name: question[name] for name in ("csrf", "lease", "key")}
        return self.send(
            "POST", f"/tasks/{task}/answers", given | {"choice": choice} | fields, json=True
        )


def visitor(server: Server, token: str) -> Visitor:
    """Somebody who has just signed in."""
    made = Visitor(server.port)
    reply = made.enter(token)
    assert reply.status == 303, (reply.status, reply.text)
    return made


# -- a room with one server and many tasks --------------------------------------------------


@dataclass(frozen=True)
class Said:
    """One answer as the database has it, in terms of the screen that it was given on."""

    prompt: str
    pressed: str
    payload: Mapping[str, Any]


class Room:
    """A server for several tests: each makes a task and people of its own."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self._made = 0

    def task(self, items: list[NewItem], **settings: Any) -> str:
        """A new task with these questions; its name."""
        self._made += 1
        name = f"task-{self._made}"
        with opened(self.server.url) as store:
            make_task(store, name, items, **settings)
        return name

    def person(self, role: str = "annotator") -> tuple[str, str]:
        """A new annotator: name and link."""
        self._made += 1
        name = f"person {self._made}"
        with opened(self.server.url) as store:
            return name, link_of(store, name, role=role)

    def said(self, task: str, name: str) -> list[Said]:
        """What stands of somebody, in the order of answering."""
        with opened(self.server.url) as store:
            person = store.annotator(name)
            events = [event for event in store.events(task) if event.annotator == person.id]
            items = {item.id: item for item in store.items(task)}
        gone = {event.payload["event"] for event in events if event.kind == "undo"}
        sides: dict[int, bool] = {}
        found = []
        for event in events:
            if event.kind in ("lease", "undo"):
                sides[event.item] = event.payload.get("swapped", sides.get(event.item))
            elif event.id not in gone:
                pressed = _pressed(event.kind, event.payload, swapped=sides[event.item])
                found.append(Said(str(items[event.item].new.prompt), pressed, event.payload))
        return found


def _pressed(kind: str, payload: Mapping[str, Any], *, swapped: bool) -> str:
    said = payload.get("said", kind)
    if said in ("first", "second"):
        return "left" if (said == "second") == swapped else "right"
    return str(said)
