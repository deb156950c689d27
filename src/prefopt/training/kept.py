"""Token stores in the cache folder: data that was tokenised once is not tokenised again.

A store lies under `tokens/` in the cache folder, by a key that says all it depends on. It is
written under another name and renamed when it is complete, so a kill leaves nothing that could
be taken for a store; what it leaves is removed when the next one is written. Several
processes that want the same store wait for the first of them, and where a file system has no
locks each writes its own and the first to finish counts. A store that no key can describe is
gone from the disk before its first group is read.

Any store can be removed at any time; it is written again when it is wanted.
"""

from __future__ import annotations

import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from prefopt.engine.cache import default_cache_folder
from prefopt.engine.store import StoreWriter, TokenStore
from prefopt.errors import PrefoptError, RunError

#: writes groups; returns the notes that go with them
Write = Callable[[StoreWriter], Mapping[str, Any]]

_LOCK = ".lock"
_GRACE = 60.0  # seconds in which a folder that was just made may be without its lock


def kept_store(key: str | None, files: Sequence[str], write: Write) -> TokenStore:
    """The store with a key, written now if there is none.

    Args:
        key: hexadecimal digest of all that the groups depend on; None if nothing can say
            that, and the store is for this process alone.
        files: names of the files that the rows come from, in the order that the key has.
        write: makes it.

    Raises:
        RunError: the cache folder cannot be used.
        PrefoptError: whatever `write` raises; nothing is kept then.
    """
    folder = default_cache_folder() / "tokens"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if key is None:
            with _part(folder, "passing") as part:
                _fill(part, files, write)
                return TokenStore(part, files)
        path = folder / key
        known = _known(path, files)
        if known is None:
            with _alone(folder / f"{key}.lock"):
                known = _known(path, files) or _made(path, files, write)
        return known
    except OSError as error:
        if isinstance(error, PrefoptError):  # of what is read, and not of where it is kept
            raise
        raise RunError(
            f"the tokens of the data cannot be kept: {error.strerror or error}",
            file=str(folder),
            remedy="free the disk, or set PREFOPT_CACHE to a folder that can be written",
        ) from error


def _known(path: Path, files: Sequence[str]) -> TokenStore | None:
    """The store at a path; None if there is none that can be used."""
    try:
        return TokenStore(path, files)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _made(path: Path, files: Sequence[str], write: Write) -> TokenStore:
    """Write a store and give it its name."""
    _sweep(path.parent)
    with _part(path.parent, path.name) as part:
        _fill(part, files, write)
        for _ in range(2):
            try:
                os.rename(part, path)
                break
            except OSError:  # something has the name: a store of another process, or a ruin
                known = _known(path, files)
                if known is not None:
                    return known
                shutil.rmtree(path, ignore_errors=True)
        return TokenStore(path, files)


def _fill(part: Path, files: Sequence[str], write: Write) -> None:
    with StoreWriter(part, files) as writer:
        writer.finish(write(writer))


@contextmanager
def _part(folder: Path, name: str) -> Iterator[Path]:
    """A new folder, which is gone afterwards unless it was renamed."""
    part = folder / f".{name[:16]}.{os.getpid()}.{secrets.token_hex(4)}.part"
    part.mkdir()
    try:
        with open(part / _LOCK, "w") as handle:
            _locked(handle, wait=False)  # for as long as this process lives
            yield part
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _sweep(folder: Path) -> None:
    """Remove what killed processes left half-written."""
    for part in folder.glob(".*.part"):
        with suppress(OSError):
            if time.time() - part.stat().st_mtime < _GRACE:
                continue
            with open(part / _LOCK, "a") as handle:
                if _locked(handle, wait=False):
                    shutil.rmtree(part, ignore_errors=True)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Be the only process here, as far as the file system knows such a thing."""
    with open(path, "a") as handle:
        _locked(handle, wait=True)
        try:
            yield
        finally:
            with suppress(OSError):
                path.unlink()


def _locked(handle: IO[str], *, wait: bool) -> bool:
    """Whether this process holds the file now; it does until the file is closed."""
    import fcntl

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False
    return True
