"""Images and audio of a pool: files beside it or `data:` URIs, known by what is in them.

A file's name says nothing: its first bytes do. SVG is a program and never one of them. Nothing is
fetched from anywhere, and nothing outside the pool's folder is read.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import unquote_to_bytes

from prefopt.errors import DataError

#: bytes of one image or one recording
LIMIT = 20_000_000
#: what `meta` may have, and which types belong there
COLUMNS = {"images": "image/", "audio": "audio/"}

_MP3 = (b"\xff\xfb", b"\xff\xf3", b"\xff\xf2")  # where no ID3 tag comes first
#: type → its file name's ending, and how its first bytes look
TYPES: Mapping[str, tuple[str, Callable[[bytes], bool]]] = {
    "image/png": (".png", lambda head: head.startswith(b"\x89PNG\r\n\x1a\n")),
    "image/jpeg": (".jpg", lambda head: head.startswith(b"\xff\xd8\xff")),
    "image/gif": (".gif", lambda head: head.startswith((b"GIF87a", b"GIF89a"))),
    "image/webp": (".webp", lambda head: head[:4] == b"RIFF" and head[8:12] == b"WEBP"),
    "audio/wav": (".wav", lambda head: head[:4] == b"RIFF" and head[8:12] == b"WAVE"),
    "audio/mpeg": (".mp3", lambda head: head[:3] == b"ID3" or head[:2] in _MP3),
    "audio/ogg": (".ogg", lambda head: head.startswith(b"OggS")),
    "audio/flac": (".flac", lambda head: head.startswith(b"fLaC")),
}
_DATA = re.compile(r"data:([\w.+-]+/[\w.+-]+)?((?:;[\w.+-]+=[^;,]*)*)(;base64)?,", re.ASCII)
_REMOTE = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://|//")


def type_of(data: bytes) -> str | None:
    """The type of an image or a recording; None where it is none that is shown.

    >>> type_of(b"GIF89a....."), type_of(b"<svg>")
    ('image/gif', None)
    """
    head = data[:16]
    return next((name for name, (_, fits) in TYPES.items() if fits(head)), None)


def load(reference: object, folder: Path, column: str) -> tuple[bytes, str]:
    """The bytes and the type behind a path or a `data:` URI.

    Args:
        reference: what the row has.
        folder: the pool's; paths are relative to it and must not leave it.
        column: a key of `COLUMNS`.

    Raises:
        DataError: it is no such thing; whoever reads the row adds file and row.
    """
    if not isinstance(reference, str) or not reference:
        raise _refusal("a path or a data: URI is wanted", reference, column)
    data = _of_uri(reference, column) if reference[:5].lower() == "data:" else None
    if data is None:
        data = _of_file(reference, folder, column)
    if len(data) > LIMIT:
        raise _too_large(reference, column)
    found = type_of(data)
    if found is None or not found.startswith(COLUMNS[column]):
        kinds = ", ".join(name for name in TYPES if name.startswith(COLUMNS[column]))
        what = f"it is {found}" if found else "it is of no known type"
        raise _refusal(f"{what}, which is not shown", reference, column, f"convert it to {kinds}")
    return data, found


def _of_uri(reference: str, column: str) -> bytes:
    match = _DATA.match(reference)
    if match is None:
        raise _refusal("the data: URI cannot be read", reference, column)
    body = reference[match.end() :]
    if len(body) > 3 * LIMIT:  # at most three characters a byte
        raise _too_large(reference, column)
    try:
        plain = unquote_to_bytes(body)
        return base64.b64decode(plain, validate=True) if match[3] else plain
    except (binascii.Error, ValueError):
        raise _refusal("the data: URI is not base64", reference, column) from None


def _of_file(reference: str, folder: Path, column: str) -> bytes:
    if _REMOTE.match(reference):
        raise _refusal(
            "nothing is fetched from other machines", reference, column,
            "download it, and give its path relative to the file of the row",
        )  # fmt: skip
    remedy = "give a path relative to the folder of the file, inside of that folder"
    try:
        path = (folder / reference).resolve()
        if Path(reference).is_absolute() or not path.is_relative_to(folder.resolve()):
            raise _refusal("the path leaves the folder of the file", reference, column, remedy)
        if not path.is_file():
            raise _refusal("there is no such file", reference, column, remedy)
        if path.stat().st_size > LIMIT:
            raise _too_large(reference, column)
        return path.read_bytes()
    except (OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        reason = getattr(error, "strerror", None) or error
        raise _refusal(f"the file cannot be read: {reason}", reference, column, remedy) from None


def _too_large(reference: str, column: str) -> DataError:
    message = f"it has more than {LIMIT // 1_000_000} MB"
    return _refusal(message, reference, column, "make it smaller: people wait for it")


def _refusal(message: str, value: object, column: str, remedy: str | None = None) -> DataError:
    return DataError(
        message,
        kind="unsupported_media",
        field=f"meta.{column}",
        value=value,
        remedy=remedy or "give a list of paths, or of data: URIs",
    )
