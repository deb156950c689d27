"""Anybody's text made fit to be looked at: what cannot be seen is named, what is long folds.

A page that shows data must not be changed by it. Control characters, zero-width characters and
those that turn the direction of writing are replaced by their code points, in a frame.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from markupsafe import Markup

#: characters and lines of a text that are open; of a longer one the rest folds out
OPEN, OPEN_LINES = 360, 10
#: characters that are shown at all
MOST = 6000

# what may have no shape of its own is looked at, with its repetitions; most texts have none
_SUSPECT = re.compile(r"([^\n\t -~\u00a1-\u00ac\u00ae-\u02ff\u0370-\u0373\u0400-\u052f])\1*")
_JOINERS = "\u200c\u200d"
_SHAPELESS = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
#: so many of one in a row are named one by one; more are counted
_NAMED = 4


@dataclass(frozen=True, slots=True)
class Shown:
    """A text as markup: its beginning, the whole of it if that is longer, and a remark."""

    start: Markup
    whole: Markup | None = None
    note: str = ""


def visible(text: str) -> Markup:
    """The text escaped for HTML, with a name for every character that has no shape.

    >>> visible("a<b\\u202e c")
    Markup('a&lt;b<span class="unseen">U+202E</span> c')
    >>> visible("\\u200b" * 300)
    Markup('<span class="unseen">U+200B ×300</span>')
    """
    from markupsafe import Markup, escape

    text = text.replace("\r\n", "\n")
    if _SUSPECT.search(text) is None:
        return escape(text)
    parts: list[str] = []
    seen = 0
    for match in _SUSPECT.finditer(text):
        place, count = match.start(), len(match[0])
        if _has_shape(text, place):
            continue
        name, many = f"U+{ord(match[1]):04X}", count > _NAMED
        frame = f'<span class="unseen">{name}{f" ×{count:,}" if many else ""}</span>'
        parts += [escape(text[seen:place]), frame if many else frame * count]
        seen = match.end()
    return Markup("".join([*parts, escape(text[seen:])]))


def shown(text: str) -> Shown:
    """The text with its end folded away where it is long."""
    start = "\n".join(text[:OPEN].split("\n")[:OPEN_LINES])
    if len(text) <= OPEN * 4 // 3 and text.count("\n") <= OPEN_LINES:
        return Shown(visible(text))
    note = f"all {len(text):,} characters"
    if len(text) > MOST:
        note = f"the first {MOST:,} of {len(text):,} characters"
    return Shown(visible(start.rstrip()), visible(text[:MOST]), note)


def _has_shape(text: str, place: int) -> bool:
    """Whether a reader sees the character, or it joins two that belong together."""
    character = text[place]
    if character in _JOINERS:
        around = text[place - 1 : place] + text[place + 1 : place + 2]
        shapes = all(unicodedata.category(other) not in _SHAPELESS for other in around)
        return len(around) == 2 and not around.isascii() and shapes
    return unicodedata.category(character) not in _SHAPELESS
