"""What `prefopt check` found, as cards: what it is, how much of it, where, and examples.

Every finding may have details of its own kind. They are drawn by what they are: numbers as
facts, rows of short values as a table, long texts as examples.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prefopt.data.visible import Shown, shown, visible
from prefopt.report.words import number, plain

if TYPE_CHECKING:
    from markupsafe import Markup

#: numbers of rows that are open on a card, rows of a table, examples that are open and in all
ROWS_OPEN, TABLE_ROWS, EXAMPLES_OPEN, EXAMPLES = 24, 20, 3, 12
_LONG = 60  # characters from which a value is a text to be read, not a word
_TEXTS = {"prompt", "preferred", "dispreferred", "chosen", "rejected", "text", "first", "second"}
_LATIN = {"auc": "AUC", "alpha": "α", "bos": "BOS", "eos": "EOS", "p": "P", "kl": "KL"}


@dataclass(frozen=True, slots=True)
class Lines:
    """The rows concerned that are in one file: open ones, and those that fold out."""

    file: Markup
    open: str
    folded: str
    more: int


@dataclass(frozen=True, slots=True)
class Grid:
    """A table of short values; how many of its rows are not shown."""

    caption: Markup
    columns: tuple[Markup, ...]
    rows: tuple[tuple[Markup, ...], ...]
    left_out: int


@dataclass(frozen=True, slots=True)
class Example:
    """Texts that belong together, each with its name, and short facts about them."""

    facts: tuple[tuple[str, Markup], ...]
    texts: tuple[tuple[str, Shown], ...]


@dataclass(frozen=True, slots=True)
class Card:
    """One finding. Everything is text, or markup that was made of text here."""

    anchor: str
    level: str
    kind: str
    name: str
    count: str
    message: Markup
    remedy: Markup
    value: str
    interval: str
    lines: tuple[Lines, ...]
    unlisted: str
    facts: tuple[tuple[str, Markup], ...]
    grids: tuple[Grid, ...]
    examples: tuple[Example, ...]

    @property
    def short(self) -> bool:
        """Whether each example is a single text, so that several fit beside each other."""
        return all(len(example.texts) == 1 for example in self.examples)


def cards(findings: Sequence[Mapping[str, Any]]) -> list[Card]:
    """A card for every finding, in their order."""
    return [_card(finding, index) for index, finding in enumerate(findings)]


def title(word: str) -> str:
    """A machine's word as a person writes it.

    >>> title("length_bias"), title("auc_of_length")
    ('Length bias', 'AUC of length')
    """
    words = " ".join(_LATIN.get(part, part) for part in plain(word).split())
    return words[:1].upper() + words[1:]


def sentence(words: str) -> str:
    words = words[:1].upper() + words[1:]
    return words + ("" if not words or words.endswith((".", "!", "?", ":")) else ".")


def _card(finding: Mapping[str, Any], index: int) -> Card:
    places = list(finding.get("rows", ()))
    facts, grids, examples = _details(finding.get("details") or {})
    interval = finding.get("interval")
    return Card(
        anchor=f"finding-{index}",
        level=str(finding["level"]),
        kind=str(finding["kind"]),
        name=title(str(finding["kind"])),
        count=number(finding["count"]),
        message=visible(sentence(str(finding["message"]))),
        remedy=visible(sentence(str(finding["remedy"]))),
        value="" if finding.get("value") is None else number(float(finding["value"])),
        interval="" if interval is None else " to ".join(number(float(end)) for end in interval),
        lines=tuple(_lines(places)),
        unlisted=_unlisted(places, finding["count"]),
        facts=tuple(facts),
        grids=tuple(grids),
        examples=tuple(examples[:EXAMPLES]),
    )


def _lines(places: Iterable[Mapping[str, Any]]) -> Iterator[Lines]:
    by_file: dict[str, list[int]] = {}
    for place in places:
        rows = by_file.setdefault(str(place.get("file") or "–"), [])
        if place.get("row") is not None:
            rows.append(int(place["row"]))
    for file, rows in by_file.items():
        first, rest = rows[:ROWS_OPEN], rows[ROWS_OPEN:]
        yield Lines(visible(file), _numbers(first), _numbers(rest), len(rest))


def _numbers(rows: Sequence[int]) -> str:
    return ", ".join(str(row) for row in rows)


def _unlisted(places: Sequence[Mapping[str, Any]], count: Any) -> str:
    """That the list is not complete, where it is not."""
    listed = len(places)
    if not listed or not isinstance(count, int) or count <= listed:
        return ""
    return f"The first {listed:,} are listed."


# -- details -------------------------------------------------------------------------------

Facts = list[tuple[str, "Markup"]]


def _details(details: Mapping[str, Any]) -> tuple[Facts, list[Grid], list[Example]]:
    facts: Facts = []
    grids: list[Grid] = []
    examples: list[Example] = []
    if {"sampled", "of"} <= set(details):  # how much was looked at
        looked = " of ".join(_plain(details[name]) for name in ("sampled", "of"))
        details = {name: value for name, value in details.items() if name not in ("sampled", "of")}
        details["looked at"] = looked
    for key, value in details.items():
        if value is None or value == [] or value == {}:
            continue
        if _is_estimate(value):
            facts.append((title(str(key)), _word(value)))
        elif _is_mapping(value) and value and all(_is_short(item) for item in value.values()):
            grids.append(_pairs(str(key), value))
        elif _are_mappings(value):
            if any(_has_text(item) for item in value):
                examples += [_example(item) for item in value]
            else:
                grids.append(_grid(str(key), value))
        elif isinstance(value, str) and not _is_short(value):
            examples.append(Example((), ((title(str(key)), shown(value)),)))
        else:
            facts.append((title(str(key)), _word(value)))
    return facts, grids, examples


def _is_mapping(value: Any) -> bool:
    return isinstance(value, Mapping)


def _is_estimate(value: Any) -> bool:
    """A number with its interval, and what it rests on."""
    return _is_mapping(value) and {"value", "interval"} <= set(value)


def _are_mappings(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(map(_is_mapping, value))


def _is_short(value: Any) -> bool:
    if isinstance(value, str):
        return len(value) <= _LONG and "\n" not in value
    return value is None or isinstance(value, int | float)


def _has_text(item: Mapping[str, Any]) -> bool:
    return "texts" in item or any(_is_text(key, value) for key, value in item.items())


def _is_text(key: str, value: Any) -> bool:
    return isinstance(value, str) and key != "file" and (key in _TEXTS or not _is_short(value))


def _example(item: Mapping[str, Any]) -> Example:
    """Texts beside each other; those of a list are named by where they were read."""
    facts: Facts = []
    texts: list[tuple[str, Shown]] = []
    many = item.get("texts") or ()
    places = item.get("places") or [""] * len(many)
    if isinstance(item.get("file"), str):
        facts.append(("in", _word({"file": item["file"], "row": item.get("row")})))
    for key, value in item.items():
        if _is_text(key, value):
            texts.append((plain(key), shown(value)))
        elif value is not None and key not in ("file", "row", "texts", "places"):
            facts.append(("in" if key == "place" else plain(key), _word(value)))
    for place, text in zip(places, many, strict=False):
        texts.append((_word(place), shown(str(text))))
    return Example(tuple(facts), tuple(texts))


def _pairs(key: str, value: Mapping[str, Any]) -> Grid:
    rows = tuple((visible(str(name)), _word(item)) for name, item in value.items())
    left_out = max(0, len(rows) - TABLE_ROWS)
    return Grid(visible(title(key)), (), rows[:TABLE_ROWS], left_out)


def _grid(key: str, items: Sequence[Mapping[str, Any]]) -> Grid:
    names = list(dict.fromkeys(str(name) for item in items for name in item))
    rows = tuple(tuple(_word(item.get(name)) for name in names) for item in items[:TABLE_ROWS])
    columns = tuple(visible(plain(name)) for name in names)
    return Grid(visible(title(key)), columns, rows, len(items) - len(rows))


def _word(value: Any) -> Markup:
    """A value in a cell."""
    if _is_estimate(value) and value["value"] is not None:
        ends = " to ".join(number(float(end)) for end in value["interval"] or ())
        words = number(float(value["value"]))
        return visible(f"{words}, interval {ends}" if ends else words)
    if _is_mapping(value) and set(value) == {"file", "row"}:
        row = "" if value["row"] is None else f":{value['row']}"
        return visible(f"{value['file']}{row}")
    if isinstance(value, list | tuple) and all(_is_short(item) for item in value):
        rest = len(value) - TABLE_ROWS
        more = f" and {rest:,} more" if rest > 0 else ""
        return visible(", ".join(_plain(item) for item in value[:TABLE_ROWS]) + more)
    if isinstance(value, list | tuple) and _are_mappings(value):
        from markupsafe import Markup

        return Markup(", ").join(_word(item) for item in value[:TABLE_ROWS])
    if isinstance(value, str) or _is_short(value):
        return visible(_plain(value))
    return visible(json.dumps(value, ensure_ascii=False, default=str))


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return value if isinstance(value, str) else number(value)
