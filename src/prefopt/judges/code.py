"""The code of a function as part of a judge's identity: other code, other verdicts."""

from __future__ import annotations

import hashlib
import inspect
from pathlib import Path
from typing import Any


def code_of(function: Any) -> str | None:
    """Digest of the file that a function is written in; None of one that is built in.

    What that file imports from elsewhere is not part of it.
    """
    try:
        path = inspect.getsourcefile(inspect.unwrap(function))
    except TypeError:
        return None
    return None if path is None or not Path(path).is_file() else digest_of(Path(path))


def digest_of(path: Path) -> str:
    """Sixteen digits of a file's bytes."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
