"""Reference scores on disk, by content: never computed twice, whatever the run.

A score depends on the reference's weights, its tokenizer, the precision, the tokens and
where the completion begins in them. Those are the key, so a second epoch, a second β, a
resume or another run finds the score, and nothing else can be mistaken for it.

One SQLite file holds them all. It is safe with several processes, a transaction is there
as a whole or not at all after a kill, and a row is never changed once written.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import torch
from torch import Tensor

from prefopt.engine.tokens import TokenGroup
from prefopt.errors import RunError

_SCHEMA = """
CREATE TABLE IF NOT EXISTS scores (
    key BLOB PRIMARY KEY,       -- digest of fingerprint, tokens and boundary
    logp REAL NOT NULL          -- nats, summed over the completion
) WITHOUT ROWID
"""
_VARIABLES = 500  # in one SELECT


def default_cache_folder() -> Path:
    """`$PREFOPT_CACHE`, else `$XDG_CACHE_HOME/prefopt`, else `~/.cache/prefopt`."""
    if folder := os.environ.get("PREFOPT_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "prefopt"


class ScoreCache:
    """Log-probabilities of completions under frozen models.

    Args:
        folder: where the file is kept; made when missing.

    Raises:
        RunError: the folder or the file cannot be used.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self.folder = default_cache_folder() if folder is None else Path(folder)
        self.path = self.folder / "scores.sqlite"
        with _usable(self.path):
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._connection() as connection:
                connection.execute(_SCHEMA)

    def get(self, fingerprint: str, groups: Sequence[TokenGroup]) -> Tensor | None:
        """(B,) float64 scores of all completions of the groups, or None if any is missing."""
        keys = list(_keys(fingerprint, groups))
        found: dict[bytes, float] = {}
        with _usable(self.path), self._connection() as connection:
            for start in range(0, len(keys), _VARIABLES):
                part = keys[start : start + _VARIABLES]
                marks = ",".join("?" * len(part))
                query = f"SELECT key, logp FROM scores WHERE key IN ({marks})"
                found.update(connection.execute(query, part))
        if any(key not in found for key in keys):
            return None
        return torch.tensor([found[key] for key in keys], dtype=torch.float64)

    def put(self, fingerprint: str, groups: Sequence[TokenGroup], logps: Tensor) -> None:
        """Store the scores of all completions of the groups, in one transaction."""
        rows = zip(_keys(fingerprint, groups), logps.double().tolist(), strict=True)
        with _usable(self.path), self._connection() as connection:
            connection.executemany("INSERT OR IGNORE INTO scores VALUES (?, ?)", rows)

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        # A connection a call: nothing is shared between threads or inherited by a fork.
        with closing(sqlite3.connect(self.path, timeout=120)) as connection, connection:
            yield connection


def _keys(fingerprint: str, groups: Sequence[TokenGroup]) -> Iterator[bytes]:
    for group in groups:
        prompt = hashlib.blake2b(fingerprint.encode(), digest_size=24)
        prompt.update(len(group.prompt).to_bytes(8, "little"))
        prompt.update(group.prompt.tobytes())
        for completion in group.completions:
            digest = prompt.copy()
            digest.update(completion.tobytes())
            yield digest.digest()


@contextmanager
def _usable(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        raise RunError(
            f"the cache of reference scores cannot be used: {error}",
            file=str(path),
            remedy="free the disk or make the folder writable, set PREFOPT_CACHE to another "
            "folder, or set reference_scores: each_step",
        ) from error
