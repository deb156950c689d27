"""Comparisons written down in a test, as the columns and texts that the checks look at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np

from prefopt.data.checking.facts import Example, Facts, Texts


@dataclass(frozen=True)
class Said:
    """`better` over `worse`, or a tie of the two.

    Attributes:
        stated: whether it is a vote, which says what stood first: `better` unless `turned`.
        row: of the file, if several comparisons are in one.
    """

    prompt: str
    better: str
    worse: str
    tie: bool = False
    stated: bool = False
    turned: bool = False
    annotator: str = ""
    category: str = ""
    probability: float = 1.0
    file: int = 0
    row: int | None = None


def told(*said: Said, files: Sequence[str] = ("a.jsonl", "b.jsonl")) -> tuple[Facts, Texts]:
    """Each in a row of its own, unless it says which."""
    annotators, categories = ({"": 0}, {"": 0})
    for one in said:
        annotators.setdefault(one.annotator, len(annotators))
        categories.setdefault(one.category, len(categories))
    rows: dict[tuple[int, int], int] = {}
    of = [
        rows.setdefault((one.file, place if one.row is None else one.row), len(rows))
        for place, one in enumerate(said, start=1)
    ]
    columns: dict[str, Any] = {
        "file": [file for file, _ in rows],
        "number": [number for _, number in rows],
        "row": of,
        "prompt": digests(one.prompt for one in said),
        "first": digests(one.worse if one.turned else one.better for one in said),
        "second": digests(one.better if one.turned else one.worse for one in said),
        "toward": [0 if one.tie else -1 if one.turned else 1 for one in said],
        "stated": [one.stated for one in said],
        "probability": [0.5 if one.tie else one.probability for one in said],
        "preferred_length": [len(one.better) for one in said],
        "dispreferred_length": [len(one.worse) for one in said],
        "category": [categories[one.category] for one in said],
        "annotator": [annotators[one.annotator] for one in said],
    }
    facts = plain(
        len(said),
        files=files,
        annotators=tuple(annotators),
        categories=tuple(categories),
        **columns,
    )
    examples = [
        Example(place, one.prompt, one.prompt, one.better, one.worse)
        for place, one in enumerate(said)
    ]
    return facts, Texts(examples, whole=True)


def digests(texts: Any) -> Any:
    """(N,) uint64, the same for the same text."""
    return np.array(
        [int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big") for text in texts],
        np.uint64,
    )


def plain(size: int, **columns: Any) -> Facts:
    """Comparisons in which nothing is noteworthy, but for the columns given."""
    default: dict[str, Any] = {
        "files": ["rows.jsonl"],
        "file": np.zeros(size, np.uint16),
        "number": np.arange(1, size + 1, dtype=np.uint32),
        "row": np.arange(size, dtype=np.uint32),
        "prompt": np.arange(size, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15),
        "first": np.arange(size, dtype=np.uint64) * np.uint64(2),
        "second": np.arange(size, dtype=np.uint64) * np.uint64(2) + np.uint64(1),
        "toward": np.ones(size, np.int8),
        "stated": np.zeros(size, np.bool_),
        "probability": np.ones(size, np.float32),
        "weight": np.ones(size, np.float32),
        "preferred_length": np.full(size, 100, np.uint32),
        "dispreferred_length": np.full(size, 100, np.uint32),
        "preferred_marks": np.zeros(size, np.uint16),
        "dispreferred_marks": np.zeros(size, np.uint16),
        "source": np.zeros(size, np.uint16),
        "category": np.zeros(size, np.uint16),
        "annotator": np.zeros(size, np.uint32),
    }
    given = {
        name: np.asarray(value, default[name].dtype) if isinstance(default.get(name), np.ndarray)
        else value
        for name, value in columns.items()
    }  # fmt: skip
    return Facts(**{**default, **given})


def many(size: int, prompts: int, completions: int = 4, seed: int = 0, **columns: Any) -> Facts:
    """Random comparisons whose completions have an order that all of them keep."""
    rng = np.random.default_rng(seed)
    prompt = rng.integers(prompts, size=size).astype(np.uint64)
    sides = rng.integers(completions, size=(size, 2))
    sides[:, 1] += sides[:, 0] == sides[:, 1]
    key = prompt * np.uint64(1000) + np.uint64(1)
    first, second = (
        (key + side.astype(np.uint64)) * np.uint64(0x9E3779B97F4A7C15) for side in sides.T
    )
    own = {
        "prompt": prompt * np.uint64(0x9E3779B97F4A7C15),
        "first": first,
        "second": second,
        "toward": np.where(sides[:, 0] < sides[:, 1], 1, -1),
    }
    return plain(size, files=("a.jsonl",), **{**own, **columns})


def turned(facts: Facts, order: Any) -> Facts:
    """The same comparisons, read in another order; each row has one."""
    columns = {
        name: getattr(facts, name)[order]
        for name in (
            "prompt", "first", "second", "toward", "stated", "probability", "weight",
            "preferred_length", "dispreferred_length", "preferred_marks", "dispreferred_marks",
            "source", "category", "annotator",
        )
    }  # fmt: skip
    return Facts(
        files=facts.files, file=facts.file[order], number=facts.number, row=facts.row,
        sources=facts.sources, categories=facts.categories, annotators=facts.annotators, **columns,
    )  # fmt: skip
