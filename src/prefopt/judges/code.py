"""Functions of one's own: their code is part of a judge's identity, their mistakes are theirs."""

from __future__ import annotations

import functools
import hashlib
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prefopt.errors import PrefoptError


def code_of(function: Any, named: str = "") -> str | None:
    """Digest of the files that a function comes from: other code, other verdicts.

    What those files import from elsewhere is not part of it.

    Args:
        function: anything that can be called.
        named: as it was named, `package.module:function` or `path/to/file.py:function`; what
            stands there may be another function's child, such as `best = chosen_by(3)`.

    Returns:
        None of one that is built in.
    """
    place = named.rpartition(":")[0]
    files = {_written_in(function), place if place.endswith(".py") else _file_of(place)}
    known = sorted(path for path in files if path is not None and Path(path).is_file())
    return "+".join(dict.fromkeys(digest_of(Path(path)) for path in known)) or None


def digest_of(path: Path) -> str:
    """Sixteen digits of a file's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def called(function: Callable[..., Any], name: str, *asked: Any, about: str) -> Any:
    """What a function says; whatever it raises is said to be its own.

    Args:
        function: of somebody else.
        name: of it.
        asked: its arguments.
        about: the text that it was to say something of, for the message.

    Raises:
        PrefoptError: it raised something.
    """
    try:
        return function(*asked)
    except PrefoptError:
        raise
    except Exception as error:
        raise PrefoptError(
            f"{name} failed: {type(error).__name__}: {error}",
            field="function",
            value=about,
            remedy="mend the function; what it said before is kept",
        ) from error


def _written_in(function: Any) -> str | None:
    while isinstance(function, functools.partial):
        function = function.func
    function = inspect.unwrap(function)
    for thing in (function, type(function)):  # of an object that can be called, its class
        try:
            return inspect.getsourcefile(thing)
        except (TypeError, OSError):
            continue
    return None


def _file_of(module: str) -> str | None:
    return getattr(sys.modules.get(module), "__file__", None)
