"""What a model makes of every completion: the file between `prefopt score` and `acquire`.

Margins and features of a pair are differences of what is kept of its completions, so K
completions of a prompt take K rows, not one for each of their pairs. Completions are known by
content (`questions.completion_key`).

`.npz` is what `prefopt score --features` writes: `keys` (B, 32) uint8, `rewards` (B,) and
`logps` (B,) float64, `features` (B, d) float32, and `about`, a JSON text. `.jsonl` is for
other models: a row a completion, with `prompt`, `completion`, `reward`, and perhaps `logp` and
`features`.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefopt.data import fields
from prefopt.data.acquisition.questions import completion_key
from prefopt.data.files import Row, stream_rows
from prefopt.errors import DataError
from prefopt.records import prompt_key
from prefopt.runs import atomic_file

_KEY = 32  # bytes
_ENDINGS = (".npz", ".jsonl", ".jsonl.gz", ".jsonl.zst")
_REMEDY = "write it with `prefopt score MODEL --reference BASE --data POOL --features FILE.npz`"


@dataclass(frozen=True)
class Scores:
    """Numbers of B completions under one model.

    Attributes:
        keys: (B,) of the completions.
        rewards: (B,) nats, β·(log π − log π_ref) for a policy.
        features: (B, d) of the last layer, or None.
        logps: (B,) nats, log π of each, or None.
        about: which model, reference, β; plain JSON.
    """

    keys: Sequence[bytes]
    rewards: NDArray[np.float64]
    features: NDArray[np.float32] | None = None
    logps: NDArray[np.float64] | None = None
    about: Mapping[str, Any] = field(default_factory=dict)

    def rows(self, keys: Sequence[bytes]) -> NDArray[np.int64]:
        """The row of each completion, −1 for one that was not scored."""
        found = (self._places.get(key, -1) for key in keys)
        return np.fromiter(found, dtype=np.int64, count=len(keys))

    @cached_property
    def _places(self) -> dict[bytes, int]:
        return {key: row for row, key in enumerate(self.keys)}


def write_scores(path: str | Path, scores: Scores) -> None:
    """Write an `.npz`, whole or not at all; the same scores give the same bytes.

    Raises:
        RunError: it cannot be written.
    """
    keys = np.frombuffer(b"".join(scores.keys), dtype=np.uint8).reshape(-1, _KEY)
    about = json.dumps(dict(scores.about), ensure_ascii=False, sort_keys=True)
    columns: dict[str, Any] = {
        "keys": keys,
        "rewards": scores.rewards,
        "about": np.array(about),
    }
    for name in ("features", "logps"):
        if (column := getattr(scores, name)) is not None:
            columns[name] = column
    with atomic_file(path) as handle:
        np.savez(handle, **columns)


def read_scores(path: str) -> Scores:
    """Read an `.npz` of `write_scores`, or a `.jsonl` (also .gz or .zst) of another model.

    Raises:
        DataError: there is no such file, it is another one, or numbers in it are missing or
            not finite.
    """
    if not Path(path).is_file() or not path.endswith(_ENDINGS):
        raise DataError(
            f"there is no such file of scores ({', '.join(_ENDINGS)})",
            kind="unreadable_file",
            file=path,
            remedy=_REMEDY,
        )
    scores = _read_npz(path) if path.endswith(".npz") else _read_rows(path)
    _check(scores, path)
    return scores


def _read_npz(path: str) -> Scores:
    try:
        with open(path, "rb") as handle, np.load(handle, allow_pickle=False) as file:
            names = set(file.files)
            keys, rewards = file["keys"], file["rewards"]
            optional = {n: file[n] for n in ("features", "logps") if n in names}
            about = json.loads(str(file["about"])) if "about" in names else {}
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(
            f"the file is not one of scores: {error}",
            kind="unreadable_file",
            file=path,
            remedy=_REMEDY,
        ) from error
    rows = [row.tobytes() for row in keys] if keys.shape[1:] == (_KEY,) else []
    return Scores(rows, rewards, about=about, **optional)


def _read_rows(path: str) -> Scores:
    keys: list[bytes] = []
    columns: dict[str, list[Any]] = {"reward": [], "logp": [], "features": []}
    number = 0
    try:
        for at, row in stream_rows(path):
            number = at
            if isinstance(row, DataError):
                raise row
            keys.append(_note(row, columns))
    except DataError as error:
        error.file, error.row = path, number or None
        raise
    features = np.array(columns["features"], dtype=np.float32) if columns["features"] else None
    logps = np.array(columns["logp"]) if columns["logp"] else None
    return Scores(keys, np.array(columns["reward"], dtype=np.float64), features, logps)


def _note(row: Row, columns: Mapping[str, list[Any]]) -> bytes:
    """Append the numbers of one row to the columns; returns the completion's key."""
    prompt = fields.prompt(fields.required(row, "prompt"), "prompt")
    text = fields.text(fields.required(row, "completion"), "completion")
    columns["reward"].append(fields.number(fields.required(row, "reward"), "reward"))
    if row.get("logp") is not None:
        columns["logp"].append(fields.number(row["logp"], "logp"))
    if row.get("features") is not None:
        numbers = fields.items(row["features"], "features")
        columns["features"].append([fields.number(number, "features") for number in numbers])
    for name in ("logp", "features"):
        if len(columns[name]) not in (0, len(columns["reward"])):
            fields.refuse("missing_field", "some rows have it and others do not", name)
    if len({len(numbers) for numbers in columns["features"][-2:]}) > 1:
        fields.refuse("out_of_range", "rows have different numbers of features", "features")
    return completion_key(prompt_key(prompt), text)


def _check(scores: Scores, path: str) -> None:
    columns = {
        "rewards": (scores.rewards, 1),
        "features": (scores.features, 2),
        "logps": (scores.logps, 1),
    }
    for name, (column, dimensions) in columns.items():
        if column is None:
            continue
        shape = column.shape
        if len(shape) != dimensions or shape[0] != len(scores.keys) or shape[0] == 0:
            problem = f"the shape {shape} does not fit {len(scores.keys)} completions"
        elif column.dtype.kind != "f" or not np.isfinite(column).all():
            problem = "some are not finite numbers"
        else:
            continue
        raise DataError(problem, kind="out_of_range", file=path, field=name, remedy=_REMEDY)
