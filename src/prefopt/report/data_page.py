"""What `prefopt check` found → one page that needs nothing but itself.

No script, no font, no network: it can be mailed, kept beside the data, and read on a phone. The
same result gives the same bytes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefopt.data.visible import visible
from prefopt.report import data_figures
from prefopt.report.data_findings import EXAMPLES_OPEN, Card, cards
from prefopt.report.pages import fill
from prefopt.report.summary import Tile
from prefopt.report.words import counted, listed, number, percent
from prefopt.runs import write_text

if TYPE_CHECKING:
    from markupsafe import Markup

_LEVELS = ("error", "warning", "note")
_HEADINGS = {
    "error": ("Errors", "Training refuses these rows, or leaves them out with on_error: skip."),
    "warning": ("Warnings", "Training would take this as it is. Look at it before you do."),
    "note": ("Notes", "Worth knowing; there may be nothing to do."),
}


def write(result: Mapping[str, Any], path: str | Path) -> None:
    """Write the page of what `prefopt.data.checking.check.check` returned.

    Args:
        result: `rows`, `groups`, `comparisons` and `findings`; `files`, `figures` and `sampled`
            where they are known.
        path: of the page; replaced if it exists.

    Raises:
        RunError: the page cannot be written. Nothing is left half-written.
    """
    write_text(path, render(result))


def render(result: Mapping[str, Any]) -> str:
    """The page as text; a pure function of the result."""
    return fill("data.html.j2", _page(result))


def _page(result: Mapping[str, Any]) -> dict[str, Any]:
    figures = result.get("figures") or {}
    files = [str(file) for file in result.get("files") or ()]
    others = [str(file) for file in (result.get("against") or {}).get("files") or ()]
    found = cards(_with_short_names(result["findings"], [*files, *others]))
    plots = data_figures.plots(figures)
    return {
        "name": _name(files),
        "headline": _headline(result, found),
        "lede": _lede(result),
        "status": _status(found),
        "tiles": _tiles(result, found, figures),
        "cards": found,
        "examples_open": EXAMPLES_OPEN,
        "sections": [
            (level, *_HEADINGS[level], [card for card in found if card.level == level])
            for level in _LEVELS
            if any(card.level == level for card in found)
        ],
        "plots": plots,
        "paired": any(plot.paired for plot in plots),
        "bars": data_figures.bars(figures),
        "files": [
            (term, [visible(file) for file in names])
            for term, names in (("Read", files), ("Compared with", others))
            if names
        ],
        "sampled": _sampled(result.get("sampled")),
    }


def _name(files: Sequence[str]) -> Markup:
    return visible(listed([os.path.basename(file) or file for file in files], 2))


def _with_short_names(value: Any, files: Sequence[str]) -> Any:
    """The same with files called by their last part, where that tells them apart."""
    short = {file: os.path.basename(file) or file for file in files}
    if len(set(short.values())) < len(short):
        return value

    def renamed(part: Any) -> Any:
        if isinstance(part, str):
            return short.get(part, part)
        if isinstance(part, Mapping):
            return {key: renamed(item) for key, item in part.items()}
        return [renamed(item) for item in part] if isinstance(part, list | tuple) else part

    return renamed(value)


def _headline(result: Mapping[str, Any], found: Sequence[Card]) -> str:
    """The verdict in words."""
    kinds = {level: sum(card.level == level for card in found) for level in _LEVELS}
    if not result["rows"]:
        return "There are no rows to train on"
    if not result["comparisons"] and kinds["error"]:
        return "No comparison can be trained on"
    if kinds["error"]:
        return f"Mend {_things(kinds['error'])} before you train on this"
    if kinds["warning"]:
        return f"It can be trained on, and {_things(kinds['warning'])} " + (
            "deserves a look" if kinds["warning"] == 1 else "deserve a look"
        )
    if kinds["note"]:
        return "It can be trained on; nothing graver than a note was found"
    return "Nothing was found that is wrong with this data"


def _things(count: int) -> str:
    words = ("", "one thing", "two things", "three things", "four things", "five things")
    return words[count] if count < len(words) else f"{count} things"


def _lede(result: Mapping[str, Any]) -> str:
    give = "gives" if result["rows"] == 1 else "give"
    words = (
        f"{counted(result['rows'], 'row')} {give} {counted(result['groups'], 'prompt')} with "
        f"{counted(result['comparisons'], 'comparison')} that would be trained on."
    )
    if other := result.get("against"):
        words += f" They were compared with {counted(other['prompts'], 'prompt')} of evaluation."
    return words


def _status(found: Sequence[Card]) -> dict[str, str]:
    counts = {level: sum(card.level == level for card in found) for level in _LEVELS}
    words = [
        f"{number(count)} {'kind' if count == 1 else 'kinds'} of {level}s"
        for level, count in counts.items()
        if count
    ]
    tone = "stopped" if counts["error"] or counts["warning"] else "done"
    return {"tone": tone, "text": f"Found: {listed(words)}" if words else "Nothing was flagged"}


def _tiles(
    result: Mapping[str, Any], found: Sequence[Card], figures: Mapping[str, Any]
) -> list[Tile]:
    tiles = [
        Tile("rows", number(result["rows"]), "as they were read"),
        Tile("prompts", number(result["groups"]), "rows of one prompt are one group"),
        Tile("comparisons", number(result["comparisons"]), "that would be trained on"),
    ]
    longer = figures.get("longer") or {}
    if longer.get("value") is not None:
        low, high = (f"{100 * end:.0f}" for end in longer["interval"])
        tiles.append(
            Tile("longer is preferred", percent(longer["value"]), f"95 %: {low} to {high}")
        )
    errors = sum(card.level == "error" for card in found)
    warnings = sum(card.level == "warning" for card in found)
    tiles.append(Tile("kinds of errors", number(errors), f"and {warnings} of warnings"))
    return tiles


def _sampled(sampled: Any) -> str:
    """How much of the texts was looked at closely."""
    if not sampled:
        return ""
    return (
        "Near duplicates, clusters and suspect labels were looked for in a random sample of the "
        "texts, always the same one for the same seed. Their counts are of that sample."
    )
