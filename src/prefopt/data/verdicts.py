"""What a judge said, as text, becomes a choice: the first, the second, a tie, or nothing at all.

The first of these that a text has decides, and nothing is guessed from prose:

    brackets    [[A]], [[B]], [[C]] or [[tie]] (MT-Bench); [[A>>B]], [[A>B]], [[A=B]] (Arena-Hard)
    JSON        an object with `winner`, `verdict`, `choice`, `preferred`, `better` or `answer`
    a line      the whole text, or its last line after a label: `A`, `Winner: model_b`, `A > B`

Brackets (or keys) that contradict each other are a verdict of their own: nobody knows which was
meant. Letters and brackets of other widths are what they look like.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from typing import Any, Literal
from unicodedata import normalize

from prefopt.records import Choice

#: what can come of a text: a choice, two that contradict each other, something else, nothing
Outcome = Literal["first", "second", "tie", "contradictory", "unreadable", "empty"]
OUTCOMES: tuple[Outcome, ...] = ("first", "second", "tie", "contradictory", "unreadable", "empty")
_MADE: dict[Outcome, Choice] = {"first": "first", "second": "second", "tie": "tie"}

_LONGEST = 1 << 20  # characters of the end of a text that are looked at
_LINE = 200  # of the line with a label
_KEYS = ("winner", "verdict", "choice", "preferred", "better", "answer")
_SIDES: dict[Choice, tuple[str, ...]] = {
    "first": ("a", "model_a", "response_a", "answer_a", "assistant_a", "first", "1"),
    "second": ("b", "model_b", "response_b", "answer_b", "assistant_b", "second", "2"),
    "tie": (
        "c", "tie", "tied", "draw", "equal", "same", "both", "neither", "tie_(bothbad)",
        "tie_(both_bad)", "tie_(inconsistent)", "bothbad", "both_bad",
    ),
}  # fmt: skip
_WORDS: dict[str, Choice] = {word: choice for choice, words in _SIDES.items() for word in words}

_BRACKETS = re.compile(r"\[\[([^\[\]\n]{1,40})\]\]")
_ORDER = re.compile(r"(a|b|1|2)_?(>{1,3}|<{1,3}|={1,2}|~)_?(a|b|1|2)")
_LABEL = re.compile(
    r"(?:(?:the|my|final|overall) ){0,3}"
    r"(?:verdict|winner|choice|answer|decision|judge?ment|preferred|preference|better)"
    r"(?: response| answer| assistant| is)?\s*(?:is|:|=)\s*(.{1,60})",
    re.IGNORECASE,
)
_DECORATION = " \t\r\n.,;:!*_`\"'#()[]{}"


def choice_of(text: Any) -> Choice | None:
    """The choice that a verdict makes; None if it makes none.

    >>> [choice_of(text) for text in ("I like B better: [[B]]", "A>>B", "tie", "Both have merit")]
    ['second', 'first', 'tie', None]
    """
    return _MADE.get(outcome_of(text))


def outcome_of(text: Any) -> Outcome:
    """What a verdict comes to, whatever it is; never raises.

    Args:
        text: what the judge said; anything that is not text is unreadable.
    """
    if not isinstance(text, str):
        return "empty" if text is None else "unreadable"
    text = normalize("NFKC", text[-_LONGEST:]).strip()
    if not text:
        return "empty"
    said = {_word(inside) for inside in _BRACKETS.findall(text)} - {None}
    if len(said) > 1:
        return "contradictory"
    if said:
        return said.pop() or "unreadable"
    last = text[text.rfind("\n") + 1 :]
    label = _LABEL.fullmatch(last.strip(_DECORATION)) if len(last) < _LINE else None
    return (
        _of_json(text)
        or _word(text)
        or _word(last)
        or (_word(label[1]) if label else None)
        or "unreadable"
    )


def count_outcomes(texts: Iterable[Any]) -> dict[Outcome, int]:
    """How many verdicts come to what; every outcome is there, in the order of OUTCOMES."""
    counted = Counter(outcome_of(text) for text in texts)
    return {outcome: counted[outcome] for outcome in OUTCOMES}


def _word(text: str) -> Choice | None:
    """The choice that a word, or an order such as A>B, stands for."""
    if len(text) > 80:
        return None
    plain = "_".join(text.lower().split()).strip(_DECORATION)
    if order := _ORDER.fullmatch(plain):
        left, sign, right = order.groups()
        if _WORDS[left] == _WORDS[right]:
            return None
        if sign[0] in "=~":
            return "tie"
        return _WORDS[left if sign[0] == ">" else right]
    return _WORDS.get(plain) or _WORDS.get(plain.removesuffix(")") + ")")


def _of_json(text: str) -> Choice | Literal["contradictory"] | None:
    """The verdict in a JSON object, alone, between fences or at the end of a text."""
    end = text.rfind("}") + 1
    for start in (text.find("{"), text.rfind("{")) if end else ():
        try:
            found = json.loads(text[start:end])
        except (ValueError, RecursionError):
            continue
        said = {_word(value) for key in _KEYS if isinstance(value := found.get(key), str)} - {None}
        if len(said) > 1:
            return "contradictory"
        if said:
            return said.pop()
    return None
