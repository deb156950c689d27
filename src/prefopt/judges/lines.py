"""A file of JSON lines that several processes fill at once, any of which may be killed.

A line is on disk before anybody hears of it. A line that a process was killed in the middle of is
passed over, and so is whatever else is not whole: every line carries its own digest.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prefopt.errors import PrefoptError
from prefopt.runs import explained

#: how every line begins: with the digest of what follows, so that all of it is known to be there
_HEAD = b'{"sum": "%12b", "line": '
_BODY = len(_HEAD % b"")
#: by name: what a line holds; `key` among it
Line = dict[str, Any]


class Lines:
    """Such a file, and what is known of it.

    Args:
        path: of the file; it is made when something is added.

    Attributes:
        accounts: lines of each account.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, Line] = {}
        self._read = 0  # bytes of the file that are known
        self.accounts: dict[str, int] = {}

    def get(self, key: str) -> Line | None:
        """What was kept under a key; the first to be kept is right."""
        return self._known.get(key)

    def hold(self, line: Line) -> None:
        """Know a line, in this process alone."""
        self._known.setdefault(line["key"], line)

    def refresh(self) -> None:
        """Read what has been added since, by whomever."""
        if not self._path.exists():
            return
        with explained(self._path), open(self._path, "rb") as handle:
            handle.seek(self._read)
            whole, newline, _ = handle.read().rpartition(b"\n")
        self._read += len(whole) + len(newline)
        for line in whole.split(b"\n"):
            self._take(line)

    def add(self, lines: Iterable[Line]) -> None:
        """Write lines; they are on disk when this returns."""
        raw = b"".join(map(_written, lines))
        with _locked(self._path) as handle, explained(self._path):
            # A process that was killed while it wrote has left a line without an end.
            if handle.seek(0, os.SEEK_END) and not _ends_a_line(handle.fileno()):
                raw = b"\n" + raw
            handle.write(raw)
            handle.flush()
            os.fsync(handle.fileno())
        self.refresh()

    @contextmanager
    def asking(self) -> Iterator[None]:
        """Hold the right to ask, which one process has at a time; a killed one gives it up."""
        with _locked(self._path.with_name(f".{self._path.name}.lock")):
            yield

    def _take(self, raw: bytes) -> None:
        body = raw[_BODY:-1]
        if raw[:_BODY] != _HEAD % _sum(body) or raw[-1:] != b"}":
            return  # not whole: its question will be asked again
        self._learn(json.loads(body))

    def _learn(self, line: Line) -> None:
        if line["key"] not in self._known:
            self._known[line["key"]] = line
            account = line.get("account", "")
            self.accounts[account] = self.accounts.get(account, 0) + 1


@contextmanager
def _locked(path: Path) -> Iterator[Any]:
    import fcntl

    # Not around what the block does: its errors are its own.
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = open(path, "ab+")  # noqa: SIM115 (held until the end)
    with handle:
        fcntl.flock(handle, fcntl.LOCK_EX)  # until it is closed
        yield handle


def _ends_a_line(descriptor: int) -> bool:
    size = os.fstat(descriptor).st_size
    return os.pread(descriptor, 1, size - 1) == b"\n"


def _written(line: Line) -> bytes:
    body = json.dumps(line, default=_unplain).encode()  # ASCII, whatever a model wrote
    return _HEAD % _sum(body) + body + b"}\n"


def _sum(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=6).hexdigest().encode()


def _unplain(value: Any) -> Any:
    raise PrefoptError(
        "a judge's transcript must be plain JSON", field="transcript", value=value,
        remedy="give only text, numbers, lists and mappings with it",
    )  # fmt: skip
