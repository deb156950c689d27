"""Serving the labelling room: where it listens, and its processes, alive and dead."""

from __future__ import annotations

import http.client
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from prefopt.errors import RecipeError, RunError
from prefopt.labelling import serving, worker
from prefopt.labelling.serving import serve

PROGRAM = """
import sys
from prefopt.labelling.serving import ServerStopped, serve
try:
    serve(sys.argv[1], port=0, processes=int(sys.argv[2]), ready=lambda url: print(url, flush=True))
except ServerStopped as stopped:
    print(stopped, flush=True)
    sys.exit(stopped.exit_code)
"""


def until(happened: Callable[[], Any], what: str) -> Any:
    end = time.monotonic() + 30
    while not (found := happened()):
        assert time.monotonic() < end, f"{what} did not happen"
        time.sleep(0.02)
    return found


class Running:
    """A server as a process of its own, from when it said that it is ready."""

    def __init__(self, url: str, processes: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, url, str(processes)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().strip()
        assert self.address.startswith("http://127.0.0.1:"), self.process.communicate()
        self.port = int(self.address.rpartition(":")[2])

    def answers(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        with closing(connection), suppress(OSError, http.client.HTTPException):
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        return False

    def workers(self) -> list[int]:
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return sorted(map(int, children.read_text().split()))

    def ends(self, signum: int) -> tuple[int, str]:
        self.process.send_signal(signum)
        said, complaints = self.process.communicate(timeout=30)
        assert "Traceback" not in complaints, complaints
        return self.process.returncode, said


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'votes.db'}"


@pytest.fixture
def running(url: str) -> Iterator[Callable[[int], Running]]:
    started: list[Running] = []

    def start(processes: int) -> Running:
        started.append(Running(url, processes))
        return started[-1]

    yield start
    for one in started:
        with suppress(ProcessLookupError):
            os.killpg(one.process.pid, signal.SIGKILL)
        one.process.communicate()


needs_proc = pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks into /proc")


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_one_process_ends_when_asked(
    running: Callable[[int], Running], signum: int, code: int
) -> None:
    server = running(1)
    assert server.answers()  # `ready` was told no sooner
    left, said = server.ends(signum)
    assert left == code and "every answer that was given is kept" in said
    assert not server.answers()


@needs_proc
def test_several_processes_share_a_socket_and_are_looked_after(
    running: Callable[[int], Running],
) -> None:
    server = running(2)
    before = until(lambda: len(server.workers()) == 2 and server.workers(), "two processes")
    os.kill(before[0], signal.SIGKILL)
    after = until(
        lambda: (
            len(server.workers()) == 2 and before[0] not in server.workers() and server.workers()
        ),
        "another process",
    )
    assert before[1] in after and server.answers()
    left, _ = server.ends(signal.SIGTERM)
    assert left == 143 and not server.answers()
    assert not any(Path(f"/proc/{pid}").exists() for pid in after)


@needs_proc
def test_nothing_is_left_when_the_first_process_is_killed(
    running: Callable[[int], Running],
) -> None:
    server = running(2)
    workers = until(lambda: len(server.workers()) == 2 and server.workers(), "two processes")
    server.process.kill()
    server.process.wait()
    until(lambda: not any(_runs(pid) for pid in workers), "their end")
    assert not server.answers()


def _runs(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def test_processes_that_die_at_once_are_given_up(
    url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(serving.sys, "executable", "/bin/false")
    with pytest.raises(RunError, match="end as soon as they begin, with code 1"):
        serve(url, port=0, processes=2)
    assert "starting another" in caplog.text
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL  # handlers are put back


def test_a_server_that_never_answers_is_given_up(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving._Probe, "_answers", lambda self: False)
    monkeypatch.setattr(serving, "_PATIENCE", 0.3)
    with pytest.raises(RunError, match="does not answer after"):
        serve(url, port=0)


def test_what_ready_raises_ends_the_server(url: str) -> None:
    def broken(address: str) -> None:
        raise BrokenPipeError(address)

    with pytest.raises(BrokenPipeError, match=r"http://127.0.0.1:\d+"):
        serve(url, port=0, ready=broken)


# -- where -------------------------------------------------------------------------------------


def test_a_port_in_use_is_our_error(url: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(RunError, match="the port is in use") as refused:
            serve(url, port=port)
    assert (refused.value.field, refused.value.value) == ("port", port)
    assert "--port" in str(refused.value.remedy)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org", ""])
def test_other_machines_are_not_let_in_by_accident(url: str, host: str) -> None:
    with pytest.raises(RecipeError, match="other machines") as refused:
        serve(url, host=host)
    assert "HTTPS" in str(refused.value.remedy) and "--remote" in str(refused.value.remedy)


def test_when_it_is_meant_a_word_about_https(
    url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class BoundError(Exception):
        pass

    def listen(host: str, port: int) -> None:
        raise BoundError

    monkeypatch.setattr(serving, "_listen", listen)
    with caplog.at_level(logging.WARNING), pytest.raises(BoundError):
        serve(url, host="0.0.0.0", remote=True, behind_https=True)
    assert not caplog.text
    with caplog.at_level(logging.WARNING), pytest.raises(BoundError):
        serve(url, host="0.0.0.0", remote=True)
    assert "unencrypted" in caplog.text and "--behind-https" in caplog.text


@pytest.mark.parametrize(
    ("host", "port", "error"),
    [
        ("127.0.0.1", 70_000, "is not a port"),
        ("192.0.2.1", 0, "cannot be listened at"),
        ("no.such.host.invalid", 0, "cannot be listened at"),
    ],
)
def test_addresses_that_are_none(url: str, host: str, port: int, error: str) -> None:
    with pytest.raises((RunError, RecipeError), match=error):
        serve(url, host=host, port=port, remote=True, behind_https=True)


def test_at_least_one_process(url: str) -> None:
    with pytest.raises(RecipeError, match="at least 1"):
        serve(url, processes=0)


def test_names_that_are_answered() -> None:
    assert serving._hosts("127.0.0.1", ()) == ("localhost", "127.0.0.1", "::1")
    assert serving._hosts("10.0.0.5", ["label.example.org"]) == (
        "localhost", "127.0.0.1", "::1", "10.0.0.5", "label.example.org",
    )  # fmt: skip
    assert "*" in serving._hosts("0.0.0.0", ())
    assert serving._address("::1", 80, False, ()) == "http://[::1]:80"
    assert serving._address("127.0.0.1", 80, True, ["a.example"]) == "https://a.example"


def test_only_a_proxy_that_is_named_is_believed(url: str) -> None:
    """Otherwise anybody could say that they come from another address each time they try."""
    plain = worker.server_of(worker.Settings(url, (), False, ("127.0.0.1",)))
    assert plain.config.proxy_headers is False
    behind = worker.server_of(worker.Settings(url, (), True, ("10.0.0.9",)))
    assert behind.config.proxy_headers is True
    assert behind.config.forwarded_allow_ips == ["10.0.0.9"]
    assert not plain.config.access_log and not behind.config.access_log  # links are secrets
