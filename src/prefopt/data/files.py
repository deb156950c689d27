"""Files to raw rows: JSONL, JSON and Parquet, plain or compressed, one row at a time.

What a row means is the business of `layouts`; here it is an object with named columns and
the number of the row it came from.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, TypeVar

from prefopt.data.kinds import KINDS
from prefopt.errors import DataError, MissingExtraError

Row = dict[str, Any]
Rows = Iterator[tuple[int, Row | DataError]]
Paths = str | Path | Sequence[str | Path]
Item = TypeVar("Item")

_COMPRESSED = (".gz", ".zst")
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(:[^/\\]+)?")
_BATCH = 1024  # rows of a Parquet file in memory at once
_CHUNK = 1 << 20  # characters of a JSON array read at once
_HEAD = 256  # bytes of a .json file that tell an array from an object


def find_files(path: Paths) -> list[str]:
    """The files behind a file, a folder (recursive, sorted), a hub data set id or a list of these.

    Raises:
        DataError: there is no such file, a folder has no data in it, a file's name does not
            say what it is, or a file is named twice.
    """
    parts = [path] if isinstance(path, str | Path) else path
    files = [file for part in parts for file in _files_of(str(part))]
    if not files:
        raise DataError(
            "the list of files is empty", kind="unreadable_file", remedy="name at least one file"
        )
    seen: set[str] = set()
    for file in files:
        name = os.path.realpath(file)
        if name in seen:
            raise DataError(
                "the file is named twice, so its rows would count twice",
                kind="unreadable_file",
                file=file,
                remedy="name it once, on its own or by its folder, and keep links to a "
                "folder's own files out of it",
            )
        seen.add(name)
    return files


def stream_rows(file: str) -> Rows:
    """The rows of one file with their numbers (for JSONL the line), from 1.

    A row that cannot be read comes as the `DataError` that says why, so that whoever reads
    may go on with the next one. Errors carry no file name; the caller knows it.

    Raises:
        DataError: the file cannot be read (any further).
    """
    return _as_long_as_it_goes(_READERS.get(_kind(file), _hub_rows)(file))


def stream_lines(file: str) -> Iterator[tuple[int, bytes]]:
    """The same of a file that `has_lines`, before they are `parsed`.

    Raises:
        DataError: the file cannot be read (any further).
    """
    return _as_long_as_it_goes(_numbered(file))


def has_lines(file: str) -> bool:
    """Whether a file is JSONL by its name: each line is a row whatever the others are."""
    return _READERS.get(_kind(file)) is _lines


def _as_long_as_it_goes(items: Iterator[tuple[int, Item]]) -> Iterator[tuple[int, Item]]:
    number = 0
    try:
        for number, item in items:
            yield number, item
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, _Corrupt) as error:
        after = f" after row {number}" if number else ""
        raise DataError(
            f"the file cannot be read{after}: {_reason(error)}",
            kind="unreadable_file",
            remedy=KINDS["unreadable_file"][2],
        ) from error


class _Corrupt(Exception):
    """A container (JSON array, Parquet, zstd) is damaged."""


def _files_of(path: str) -> list[str]:
    if os.path.isdir(path):
        files = sorted(
            str(file)
            for file in Path(path).rglob("*")
            if _kind(file.name) and not file.name.startswith(".") and file.is_file()
        )
        if not files:
            raise DataError(
                "the folder has no data files",
                kind="unreadable_file",
                file=path,
                remedy=f"put {_KNOWN} files in it",
            )
        return files
    if os.path.exists(path):
        if not _kind(path):
            raise DataError(
                "the file's name does not say what is in it",
                kind="unreadable_file",
                file=path,
                remedy=f"name it {_KNOWN}, each with .gz or .zst if compressed",
            )
        return [path]
    if _HUB_ID.fullmatch(path) and not _kind(path):
        return [path]
    raise DataError(
        "there is no such file or folder",
        kind="unreadable_file",
        file=path,
        remedy="check the path; relative paths start at the working directory",
    )


def _kind(file: str) -> str | None:
    """The suffix that says what is in a file, without that of the compression."""
    for suffix in _COMPRESSED:
        file = file.removesuffix(suffix)
    suffix = os.path.splitext(file)[1]
    return suffix if suffix in _READERS else None


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


# -- compression ---------------------------------------------------------------------------


def _open(file: str) -> gzip.GzipFile | io.BufferedReader:
    if file.endswith(".gz"):
        return gzip.open(file, "rb")
    if file.endswith(".zst"):
        return io.BufferedReader(_ZstdFile(file), buffer_size=1 << 16)
    return open(file, "rb")


class _ZstdFile(io.RawIOBase):
    """A zstd file as bytes; unlike `zstandard`'s own reader it notices a truncated file."""

    def __init__(self, file: str) -> None:
        try:
            import zstandard
        except ImportError as error:
            raise MissingExtraError(
                "reading .zst files needs the package zstandard",
                file=file,
                remedy="pip install zstandard",
            ) from error
        self._error = zstandard.ZstdError
        self._raw = open(file, "rb")  # noqa: SIM115 - closed with this object
        self._new = zstandard.ZstdDecompressor().decompressobj
        self._frame = self._new()
        self._inside = False  # a frame has begun and not ended
        self._packed = self._bytes = b""  # read and not yet decompressed; ready to hand out

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._bytes:
            packed, self._packed = self._packed or self._raw.read(1 << 16), b""
            if not packed:
                if self._inside:
                    raise EOFError("the compressed file ended early")
                return 0
            try:
                self._bytes = self._frame.decompress(packed)
            except self._error as error:
                raise _Corrupt(str(error)) from error
            self._inside = not self._frame.eof
            if self._frame.eof:
                self._packed, self._frame = self._frame.unused_data, self._new()
        count = min(len(buffer), len(self._bytes))
        buffer[:count] = self._bytes[:count]
        self._bytes = self._bytes[count:]
        return count

    def close(self) -> None:
        if not self.closed:
            self._raw.close()
        super().close()


# -- containers ----------------------------------------------------------------------------


def _lines(file: str) -> Rows:
    return ((number, parsed(line)) for number, line in _numbered(file))


def _numbered(file: str) -> Iterator[tuple[int, bytes]]:
    with _open(file) as stream:
        for number, line in enumerate(stream, start=1):
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if not line.isspace():
                yield number, line


def parsed(line: bytes) -> Row | DataError:
    """The row that a line holds, or the error that says why it holds none."""
    try:
        row = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        return DataError(
            "the text is not valid UTF-8"
            if isinstance(error, UnicodeError)
            else f"the row is not valid JSON: {error}",
            kind="unreadable_row",
            value=line.decode("utf-8", "replace").rstrip("\n"),
            remedy=KINDS["unreadable_row"][2],
        )
    escaped = b"\\ud" in line or b"\\uD" in line  # perhaps half of a surrogate pair
    return _encodable(_object(row)) if escaped else _object(row)


def _encodable(row: Row | DataError) -> Row | DataError:
    """The row, unless its text has half of a surrogate pair, which is no character."""
    try:
        json.dumps(row, ensure_ascii=False, default=str).encode("utf-8")
    except UnicodeError:
        return DataError(
            "the text is not valid UTF-8",
            kind="unreadable_row",
            value=json.dumps(row, default=str),
            remedy=KINDS["unreadable_row"][2],
        )
    return row


def _object(row: Any) -> Row | DataError:
    if isinstance(row, dict):
        return row
    return DataError(
        f"a row must be an object with named columns, not {type(row).__name__}",
        kind="unreadable_row",
        value=row,
        remedy=KINDS["unreadable_row"][2],
    )


def _json(file: str) -> Rows:
    """An array, `{"data": [...]}`, or JSON lines under the name .json (which is common)."""
    with _open(file) as stream:
        head = stream.read(_HEAD).removeprefix(b"\xef\xbb\xbf").lstrip()
        while not head and (more := stream.read(_HEAD)):  # blanks before anything else
            head = more.lstrip()
        first = head + stream.readline() if head.startswith(b"{") else head
    if head.startswith(b"["):
        with io.TextIOWrapper(_open(file), encoding="utf-8-sig") as text:
            yield from _array(text)
    elif head:
        row = parsed(first.split(b"\n", 1)[0])
        lines = isinstance(row, dict) and not isinstance(row.get("data"), list)
        yield from _lines(file) if lines else _document(file)


def _document(file: str) -> Rows:
    with io.TextIOWrapper(_open(file), encoding="utf-8-sig") as text:
        try:
            document = json.load(text)
        except (ValueError, RecursionError) as error:
            raise _Corrupt(f"it is not valid JSON: {error}") from error
    rows = document.get("data") if isinstance(document, dict) else None
    for number, row in enumerate(rows if isinstance(rows, list) else [document], start=1):
        yield number, _encodable(_object(row))


def _array(text: IO[str]) -> Rows:
    """The elements of a JSON array, without ever holding the whole of it."""
    decoder = json.JSONDecoder()
    buffer, size, number = text.read(_CHUNK), _CHUNK, 0
    while "[" not in buffer:  # blanks before it
        buffer = text.read(_CHUNK)
    position = buffer.index("[") + 1
    while True:
        position = _skip(buffer, position, " \t\r\n" + ("," if number else ""))
        try:
            if buffer[position : position + 1] == "]":
                _refuse_more(buffer[position + 1 :], text)
                return
            row, position = decoder.raw_decode(buffer, position)
        except (ValueError, RecursionError) as error:
            more = text.read(size)  # perhaps the element goes on; twice as far each time
            if not more:
                raise _Corrupt(f"element {number + 1} is not valid JSON: {error}") from error
            buffer, position, size = buffer[position:] + more, 0, size * 2
            continue
        number, size = number + 1, _CHUNK
        yield number, _encodable(_object(row))


def _refuse_more(rest: str, text: IO[str]) -> None:
    """Rows behind the end of an array would be left out and nobody would know."""
    while rest:
        if not rest.isspace():
            raise _Corrupt(f"something follows the end of the array: {rest.strip()[:40]!r}")
        rest = text.read(_CHUNK)


def _skip(buffer: str, position: int, characters: str) -> int:
    while position < len(buffer) and buffer[position] in characters:
        position += 1
    return position


def _parquet(file: str) -> Rows:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingExtraError(
            "reading Parquet files needs the package pyarrow",
            file=file,
            remedy="pip install pyarrow",
        ) from error
    number = 0
    try:
        source: Any = file
        if file.endswith(_COMPRESSED):  # Parquet is read from its end: no streaming here
            with _open(file) as stream:
                source = pyarrow.BufferReader(stream.read())
        with pyarrow.parquet.ParquetFile(source) as table:
            for batch in table.iter_batches(batch_size=_BATCH):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
    except pyarrow.ArrowException as error:
        raise _Corrupt(str(error)) from error


def _hub_rows(name: str) -> Rows:
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError(
            "there is no such file or folder, and reading data sets from the Hugging Face hub "
            "needs the package datasets",
            file=name,
            remedy="check the path, or pip install datasets",
        ) from error
    dataset, _, split = name.partition(":")
    try:
        table = datasets.load_dataset(dataset, split=split or "train")
    except Exception as error:  # the hub's client raises whatever its transport does
        raise _Corrupt(
            f"there is no such file or folder, and the hub gave no data set: {error}"
        ) from error
    for number, row in enumerate(table, start=1):
        yield number, dict(row)


_READERS: dict[str | None, Callable[[str], Rows]] = {
    ".jsonl": _lines,
    ".ndjson": _lines,
    ".json": _json,
    ".parquet": _parquet,
}
_KNOWN = ".jsonl, .json or .parquet"
