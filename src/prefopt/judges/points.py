"""What a judge said, as text, becomes points: a number in a range, or the reason why it is none.

The first of these that a text has decides, and nothing is guessed from prose:

    brackets    [[7]], [[7.5]], [[7/10]]
    JSON        an object with `points`, `score`, `rating` or `grade`
    a line      the whole text, or its last line after a label: `7`, `7/10`, `Score: 7`
"""

from __future__ import annotations

import json
import re
from typing import Any, Literal
from unicodedata import normalize

#: why there are no points
Failure = Literal["empty", "unreadable", "contradictory", "out_of_range"]

_NUMBER = r"([-+]?\d{1,6}(?:\.\d{1,6})?)"
_SHARE = re.compile(rf"{_NUMBER}(?:\s*/\s*(\d{{1,6}}))?")
_BRACKETS = re.compile(r"\[\[([^\[\]\n]{1,40})\]\]")
_LABEL = re.compile(
    r"(?:(?:the|my|final|overall|total) ){0,3}(?:points|score|rating|grade|verdict)\s*(?:is|:|=)\s*"
    rf"({_SHARE.pattern})(?:\s*points?)?",
    re.IGNORECASE,
)
_KEYS = ("points", "score", "rating", "grade")
_DECORATION = " \t\r\n.,;:!*_`\"'#()"
_LONGEST = 1 << 20  # characters of the end of a text that are looked at
_LINE = 200  # of the line with a label


def points_of(text: Any, low: int, high: int) -> float | Failure:
    """The points that a text gives.

    Args:
        text: what the judge said.
        low, high: the fewest and the most points there are; beyond them nothing is meant.

    >>> [points_of(said, 1, 10) for said in ("Good. [[7]]", "Score: 7/10", "[[3]] or [[4]]", "[[11]]")]
    [7.0, 7.0, 'contradictory', 'out_of_range']
    """  # noqa: E501
    if not isinstance(text, str):
        return "empty" if text is None else "unreadable"
    text = normalize("NFKC", text[-_LONGEST:]).strip()
    if not text:
        return "empty"
    bracketed = [_share(inside, high) for inside in _BRACKETS.findall(text)]
    numbers = {number for number in bracketed if number is not None}
    if len(numbers) > 1:
        return "contradictory"
    found = next(iter(numbers)) if numbers else _unbracketed(text, high)
    if found is None or isinstance(found, str):
        return found or "unreadable"
    return found if low <= found <= high else "out_of_range"


def _unbracketed(text: str, high: int) -> float | Literal["contradictory"] | None:
    end = text.rfind("}") + 1
    for start in (text.find("{"), text.rfind("{")) if end else ():
        try:
            document = json.loads(text[start:end])
        except (ValueError, RecursionError):
            continue
        said = {_value(document[key], high) for key in _KEYS if key in document} - {None}
        if len(said) > 1:
            return "contradictory"
        if said:
            return said.pop()
    last = text[text.rfind("\n") + 1 :].strip(_DECORATION)
    for whole in (text.strip(_DECORATION), last):
        if len(whole) < _LINE and (number := _share(whole, high)) is not None:
            return number
    label = _LABEL.fullmatch(last) if len(last) < _LINE else None
    return _share(label[1], high) if label else None


def _share(text: str, high: int) -> float | None:
    """The number of `7` or, where 10 is the most, of `7/10`."""
    found = _SHARE.fullmatch(text.strip().strip(_DECORATION))
    if found is None or (found[2] is not None and int(found[2]) != high):
        return None
    return float(found[1])


def _value(value: Any, high: int) -> float | None:
    if isinstance(value, str):
        return _share(value, high)
    if isinstance(value, int | float) and not isinstance(value, bool) and value - value == 0:
        return float(value)
    return None
