"""Groups of tokens on disk: written as they are made, read back one at a time.

A store is a folder. `groups.bin` has one record a group, behind the other; three columns of
numbers, one entry a group, say where its record begins and what a plan must know of it. So a
training over any number of rows holds a few bytes a row in memory, and the tokens of the
groups that it is working on.

Records are read, not mapped: pages of a mapped file would count as the process's memory.

    meta.json        written last: format, counts, names, checksums, and the writer's own notes
    groups.bin       checksum | bytes | P | K | K lengths | tokens | JSON of all that is no token
    starts.bin       (G + 1,) int64: where each record begins, and where the last one ends
    judgements.bin   (G,) uint32: judgements in each group
    tokens.bin       (G,) uint32: tokens of each group, its prompt counted once
    sources.bin      (G,) uint32: which of the names of sources is its own
"""

from __future__ import annotations

import json
import mmap
import os
import struct
import sys
import weakref
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, overload

import numpy as np
from numpy.typing import NDArray

from prefopt.data.mixture import Named
from prefopt.engine.forest import group_tokens
from prefopt.engine.tokens import TokenGroup
from prefopt.errors import RunError
from prefopt.records import Comparison, Label, Origin

FORMAT = 1
_META, _GROUPS = "meta.json", "groups.bin"
_STARTS, _JUDGEMENTS, _TOKENS, _SOURCES = (
    "starts.bin", "judgements.bin", "tokens.bin", "sources.bin",
)  # fmt: skip
_FILES = (_GROUPS, _STARTS, _JUDGEMENTS, _TOKENS, _SOURCES)
_HEAD = struct.Struct("<IIII")  # checksum of what follows it, bytes of it, P, K
_BUFFER = 1 << 20  # bytes a file collects before they are written


@dataclass(frozen=True)
class Sizes:
    """What a plan must know of G groups without reading them.

    Attributes:
        judgements: (G,) losses that each gives.
        tokens: (G,) tokens of each, its prompt counted once.
        sources: (G,) the name of the source of each.
        unweighted: whether every judgement weighs 1.
    """

    judgements: NDArray[np.integer[Any]]
    tokens: NDArray[np.integer[Any]]
    sources: Named
    unweighted: bool


class StoreWriter:
    """Writes a store into an empty folder; nothing is one before `finish` has returned.

    Args:
        folder: where; made by the caller.
        files: names of the files that rows come from, in an order that whoever opens the
            store can repeat: they may have moved by then.
    """

    def __init__(self, folder: Path, files: Sequence[str] = ()) -> None:
        self.folder = folder
        self.groups = 0
        self._files = {name: code for code, name in enumerate(files)}
        self._sources: dict[str | None, int] = {}
        self._unweighted = True
        self._streams: dict[str, IO[bytes]] = {}
        self._checks = dict.fromkeys(_FILES, 0)
        self._end = 0

    def __enter__(self) -> StoreWriter:
        for name in _FILES:
            self._streams[name] = open(self.folder / name, "wb", buffering=_BUFFER)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for stream in self._streams.values():
            stream.close()

    def add(self, group: TokenGroup, judgements: int, *, unweighted: bool) -> None:
        """Write a group.

        Args:
            group: as the objective reads it.
            judgements: how many losses it gives.
            unweighted: whether each of them weighs 1.
        """
        source = self._sources.setdefault(group.source, len(self._sources))
        self._unweighted = self._unweighted and unweighted
        self._column(_STARTS, self._end.to_bytes(8, "little"))
        self._column(_JUDGEMENTS, judgements.to_bytes(4, "little"))
        self._column(_TOKENS, group_tokens(group).to_bytes(4, "little"))
        self._column(_SOURCES, source.to_bytes(4, "little"))
        record = _record(group, source, self._files)
        self._streams[_GROUPS].write(record)
        self._end += len(record)
        self.groups += 1

    def clear(self) -> None:
        """Forget all groups: they are written again, differently."""
        for stream in self._streams.values():
            stream.seek(0)
            stream.truncate()
        self._checks = dict.fromkeys(_FILES, 0)
        self._sources, self._unweighted = {}, True
        self.groups = self._end = 0

    def finish(self, notes: Mapping[str, Any]) -> None:
        """Make it a store, with these notes: plain JSON."""
        self._column(_STARTS, self._end.to_bytes(8, "little"))
        for stream in self._streams.values():
            stream.flush()
            os.fsync(stream.fileno())
        meta = {
            "format": FORMAT,
            "byteorder": sys.byteorder,
            "groups": self.groups,
            "bytes": {name: stream.tell() for name, stream in self._streams.items()},
            "checksums": self._checks,
            "unweighted": self._unweighted,
            "sources": list(self._sources),
            "files": list(self._files),
            "notes": dict(notes),
        }
        with open(self.folder / _META, "wb") as stream:
            stream.write(json.dumps(meta).encode("ascii"))
            stream.flush()
            os.fsync(stream.fileno())

    def _column(self, name: str, entry: bytes) -> None:
        self._checks[name] = zlib.crc32(entry, self._checks[name])
        self._streams[name].write(entry)


class TokenStore(Sequence[TokenGroup]):
    """A finished store, open for reading; every group is read when it is asked for.

    Attributes:
        notes: what the writer noted.
        sizes: of all groups.
    """

    def __init__(self, folder: Path, files: Sequence[str] | None = None) -> None:
        """Open it.

        Args:
            folder: of the store. It may be removed once the store is open.
            files: what the files that rows come from are called now; by default as they were.

        Raises:
            ValueError: it is no finished store of this format, or a file of it was changed.
            OSError: it cannot be read.
        """
        meta = json.loads((folder / _META).read_text(encoding="utf-8"))
        if not isinstance(meta, dict) or meta.get("format") != FORMAT:
            raise ValueError("it has another format")
        if meta["byteorder"] != sys.byteorder:
            raise ValueError("it was written on another kind of machine")
        for name in _FILES:
            if os.path.getsize(folder / name) != meta["bytes"][name]:
                raise ValueError(f"{name} has another size")
            if name != _GROUPS and _checksum(folder / name) != meta["checksums"][name]:
                raise ValueError(f"{name} was changed")
        self.notes: dict[str, Any] = meta["notes"]
        self._folder, self._count = folder, int(meta["groups"])
        self._files: list[str] = meta["files"] if files is None else list(files)
        if len(self._files) != len(meta["files"]):
            raise ValueError("its rows come from another number of files")
        self._names: list[str | None] = meta["sources"]
        self._groups, self._starts = (_opened(self, folder / name) for name in (_GROUPS, _STARTS))
        columns = (_mapped(folder / name) for name in (_JUDGEMENTS, _TOKENS, _SOURCES))
        judgements, tokens, sources = columns
        self.sizes = Sizes(
            judgements, tokens, Named(tuple(self._names), sources), bool(meta["unweighted"])
        )

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> TokenGroup: ...

    @overload
    def __getitem__(self, index: slice) -> list[TokenGroup]: ...

    def __getitem__(self, index: int | slice) -> TokenGroup | list[TokenGroup]:
        if isinstance(index, slice):
            return [self._read(place) for place in range(*index.indices(self._count))]
        if not -self._count <= index < self._count:
            raise IndexError(f"group {index} of {self._count}")
        return self._read(index % self._count)

    def __iter__(self) -> Iterator[TokenGroup]:
        return map(self._read, range(self._count))

    def _read(self, index: int) -> TokenGroup:
        try:
            start, stop = struct.unpack("<qq", os.pread(self._starts, 16, 8 * int(index)))
            record = os.pread(self._groups, stop - start, start)
            check, size, _, _ = _HEAD.unpack_from(record)
            whole = size == len(record) and zlib.crc32(memoryview(record)[4:]) == check
        except (OSError, struct.error) as error:
            raise self._damaged(str(error)) from error
        if not whole:
            raise self._damaged(f"group {index} was changed on the disk")
        return _group(record, self._names, self._files)

    def _damaged(self, reason: str) -> RunError:
        return RunError(
            f"the tokens of the data cannot be read back: {reason}",
            file=str(self._folder),
            remedy="check the disk, remove the folder, and run the same command again",
        )


def _record(group: TokenGroup, source: int, files: dict[str, int]) -> bytes:
    """One group as bytes; a file that is not known yet gets the next code."""
    answers = group.completions
    rest = json.dumps(
        [
            source,
            [[e.preferred, e.dispreferred, e.probability, e.weight] for e in group.comparisons],
            [[mark.completion, mark.desirable, mark.weight] for mark in group.labels],
            [[files.setdefault(o.file, len(files)), o.row] for o in group.origins],
            dict(group.columns),
        ],
        separators=(",", ":"),
    ).encode("ascii")
    lengths = np.fromiter(map(len, answers), dtype=np.uint32, count=len(answers))
    body = b"".join((lengths.tobytes(), group.prompt.tobytes(), *(a.tobytes() for a in answers),
                     rest))  # fmt: skip
    head = _HEAD.pack(0, _HEAD.size + len(body), len(group.prompt), len(answers))[4:]
    return zlib.crc32(body, zlib.crc32(head)).to_bytes(4, "little") + head + body


def _group(record: bytes, names: Sequence[str | None], files: Sequence[str]) -> TokenGroup:
    """A group from its record."""
    _, _, prompt, count = _HEAD.unpack_from(record)
    lengths = struct.unpack_from(f"<{count}I", record, _HEAD.size)
    first = _HEAD.size + 4 * count
    ids = np.frombuffer(record, dtype=np.int32, count=prompt + sum(lengths), offset=first)
    bounds = [prompt]
    for length in lengths:
        bounds.append(bounds[-1] + length)
    source, edges, marks, origins, columns = json.loads(record[first + ids.nbytes :])
    return TokenGroup(
        prompt=ids[:prompt],
        completions=tuple(ids[a:b] for a, b in zip(bounds, bounds[1:], strict=False)),
        comparisons=tuple(Comparison(*edge) for edge in edges),
        labels=tuple(Label(*mark) for mark in marks),
        source=names[source],
        origins=tuple(Origin(files[code], row) for code, row in origins),
        columns={name: tuple(values) for name, values in columns.items()},
    )


def _opened(owner: object, path: Path) -> int:
    """A file's descriptor, which is closed when its owner is gone."""
    descriptor = os.open(path, os.O_RDONLY)
    weakref.finalize(owner, os.close, descriptor)
    return descriptor


def _mapped(path: Path) -> NDArray[np.uint32]:
    """A column, of which only what is touched comes into memory."""
    with open(path, "rb") as stream:
        pages = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    return np.frombuffer(pages, dtype=np.uint32)


def _checksum(path: Path) -> int:
    check = 0
    with open(path, "rb") as stream:
        while part := stream.read(_BUFFER):
            check = zlib.crc32(part, check)
    return check
