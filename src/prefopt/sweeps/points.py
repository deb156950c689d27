"""Points of a search: every combination, or so many at random; and what they are called.

A point is a value for every searched setting, by the setting's dotted name.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import random
import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

from prefopt.recipe.text import flow
from prefopt.sweeps.settings import Range, Space

Point: TypeAlias = dict[str, Any]
_DIGITS = 4
_PATIENCE = 10_000  # draws without a new point, after which there is none


def grid(search: Mapping[str, Space]) -> list[Point]:
    """Every combination, the last setting fastest.

    >>> from prefopt.sweeps.settings import Choices
    >>> grid({"b": Choices(choices=[1, 2]), "c": Range(low=0, high=1, step=0.5)})[:4]
    [{'b': 1, 'c': 0.0}, {'b': 1, 'c': 0.5}, {'b': 1, 'c': 1.0}, {'b': 2, 'c': 0.0}]
    """
    values = [space.values or [] for space in search.values()]
    return [dict(zip(search, combined, strict=True)) for combined in itertools.product(*values)]


def combinations(search: Mapping[str, Space]) -> float:
    """How many points there are; infinitely many where a range has no step."""
    counts = [space.values for space in search.values()]
    return math.prod(math.inf if values is None else len(values) for values in counts)


def draw(search: Mapping[str, Space], count: int, seed: int) -> list[Point]:
    """So many different points, each value drawn by itself; fewer where no others turn up.

    The first points of a longer draw are those of a shorter one, and a value depends only on
    the seed, its place and its setting's name: a sweep can be made longer.
    """
    points: dict[str, Point] = {}
    found_at = 0
    for index in itertools.count():
        if len(points) == count or index - found_at > _PATIENCE:
            return list(points.values())
        point = {
            name: _draw(space, random.Random(f"{seed} {index} {name}"))
            for name, space in search.items()
        }
        if (key := json.dumps(point, sort_keys=True)) not in points:
            points[key], found_at = point, index
    raise AssertionError("count() never ends")


def corners(search: Mapping[str, Space]) -> list[Point]:
    """Points that between them have every choice and both ends of every range.

    What a recipe refuses about single values shows in one of these.
    """
    ends = {
        name: space.values or [_number(space, 0.0), _number(space, 1.0)]
        if isinstance(space, Range)
        else space.choices
        for name, space in search.items()
    }
    longest = max(len(values) for values in ends.values())
    return [
        {name: values[min(index, len(values) - 1)] for name, values in ends.items()}
        for index in range(longest)
    ]


def said(point: Mapping[str, Any]) -> str:
    """A point in words.

    >>> said({"objective.beta": 0.1, "learning_rate": 3e-4})
    'beta 0.1, learning_rate 0.0003'
    """
    return ", ".join(f"{short(name, point)} {flow(value)}" for name, value in point.items())


def short(name: str, among: Iterable[str]) -> str:
    """A setting without its section, where no other one ends alike.

    >>> short("objective.beta", ["objective.beta", "learning_rate"])
    'beta'
    >>> short("objective.name", ["objective.name", "adapter.name"])
    'objective.name'
    """
    last = name.rpartition(".")[2]
    alike = [other for other in among if other.rpartition(".")[2] == last]
    return last if len(alike) == 1 else name


def folder_name(point: Mapping[str, Any], seed: int) -> str:
    """A name for the trial's folder: readable, and its own by a digest of the point."""
    digest = hashlib.sha256(json.dumps(point, sort_keys=True).encode()).hexdigest()[:8]
    words = "_".join(f"{short(name, point)}-{flow(value)}" for name, value in point.items())
    readable = re.sub(r"[^A-Za-z0-9.+_-]+", "-", words)[:60].strip("-.")
    return f"{readable}_seed-{seed}_{digest}"


def _draw(space: Space, rng: random.Random) -> Any:
    values = space.values
    return _number(space, rng.random()) if values is None else rng.choice(values)


def _number(space: Space, place: float) -> float:
    """The number so far along a range."""
    assert isinstance(space, Range)
    low, high = space.low, space.high
    number = low * (high / low) ** place if space.log else low + (high - low) * place
    return rounded(number, space)


def rounded(number: float, space: Space) -> float:
    """A drawn number with few digits: what is printed is what was trained."""
    assert isinstance(space, Range)
    return min(max(float(f"{number:.{_DIGITS}g}"), space.low), space.high)
