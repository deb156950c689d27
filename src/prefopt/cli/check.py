"""`prefopt check`: what is wrong with preference data, before anything is trained on it."""

from __future__ import annotations

from typing import Any, Literal

from prefopt.cli.outcome import Outcome

_LEVELS = ("note", "warning", "error")
_STYLES = {"error": "bold red", "warning": "yellow", "note": "cyan"}
_PLACES = 3  # rows named beside a finding; `--json` has more


def check(
    data: tuple[str, ...],
    /,
    *,
    format: str = "auto",
    fail_on: Literal["error", "warning", "note"] | None = None,
) -> Outcome:
    """Read preferences and say what is wrong with them.

    Errors are rows that training refuses (or leaves out with `on_error: skip`), warnings are
    rows that it would take and should not, notes are worth knowing. Nothing is changed.

    `prefopt check pairs.jsonl --fail-on error`

    With `--json`: `rows`, `groups`, `comparisons`, `findings` (a list of objects with `kind`,
    `level`, `count`, `rows`, `message`, `remedy`).

    Parameters
    ----------
    data
        Files (JSONL, JSON, Parquet, also .gz or .zst), folders, or hub ids of data sets.
    format
        Layout of the rows; auto recognises it.
    fail_on
        Exit with 1 if there is a finding of this level or a graver one; by default findings
        do not change the exit code.
    """
    from prefopt.data.checks import check as run_check

    result = run_check(list(data), format=format)
    findings = result["findings"]
    limit = len(_LEVELS) if fail_on is None else _LEVELS.index(fail_on)
    hit = any(_LEVELS.index(finding["level"]) >= limit for finding in findings)
    return Outcome(result, _shown(result), exit_code=1 if hit else 0)


def _shown(result: dict[str, Any]) -> list[Any]:
    from rich.table import Table
    from rich.text import Text

    read = (
        f"{result['rows']:,} rows: {result['groups']:,} prompts with "
        f"{result['comparisons']:,} comparisons."
    )
    if not result["findings"]:
        return [read, "Nothing is wrong with their structure."]
    listed = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("level", "rows", "what", "where", "what to do"):
        listed.add_column(
            heading, overflow="fold", justify="right" if heading == "rows" else "left"
        )
    for finding in result["findings"]:
        listed.add_row(
            Text(finding["level"], style=_STYLES[finding["level"]]),
            f"{finding['count']:,}",
            Text(finding["message"]),
            Text(_places(finding)),
            Text(finding["remedy"]),
        )
    return [read, listed]


def _places(finding: dict[str, Any]) -> str:
    named = [
        place["file"] if place["row"] is None else f"{place['file']}:{place['row']}"
        for place in finding["rows"][:_PLACES]
    ]
    more = finding["count"] - len(named)
    return "\n".join([*named, *([f"and {more:,} more"] if more > 0 else [])])
