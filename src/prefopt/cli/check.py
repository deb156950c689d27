"""`prefopt check`: what is wrong with preference data, before anything is trained on it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from cyclopts.validators import Number

from prefopt.cli.options import Format, check_target, described, seeded
from prefopt.cli.outcome import Outcome, UsageError, counting

_LEVELS = ("note", "warning", "error")
_STYLES = {"error": "bold red", "warning": "yellow", "note": "cyan"}
_PLACES = 3  # rows named beside a finding; `--json` has more

Against = Annotated[
    list[str] | None,
    described(
        "Files or folders that are evaluated on: looks for their prompts in the data, and for "
        "topics that the data lacks.",
        consume_multiple=True,
        metavar="PATH",
    ),
]
Tokenizer = Annotated[
    str | None,
    described(
        "Model or tokenizer folder, or hub id: measures lengths in tokens, as training would.",
        metavar="MODEL",
    ),
]
MaxLength = Annotated[
    int | None,
    described(
        "Most tokens of a prompt and its completion together, with --tokenizer; by default the "
        "model's own limit.",
        validator=Number(gte=2),
    ),
]
Embed = Annotated[
    str | None,
    described(
        "Model folder or hub id whose hidden states say which prompts are alike; by default their "
        "words do.",
        metavar="MODEL",
    ),
]
Page = Annotated[
    str | None, described("Write a page with plots and examples to this .html.", metavar="FILE")
]
Quick = Annotated[
    bool, described("Leave out what compares texts: near-duplicates, clusters, suspect labels.")
]
FailOn = Annotated[
    Literal["error", "warning", "note"] | None,
    described(
        "Exit with 1 if there is a finding of this level or a graver one; by default findings do "
        "not change the exit code."
    ),
]


def check(
    data: tuple[str, ...],
    /,
    *,
    against: Against = None,
    tokenizer: Tokenizer = None,
    max_length: MaxLength = None,
    embed: Embed = None,
    out: Page = None,
    format: Format = "auto",
    quick: Quick = False,
    seed: Annotated[int, seeded("Seed of samples, clusters and intervals.")] = 0,
    fail_on: FailOn = None,
) -> Outcome:
    """Read preferences and say what is wrong with them.

    Errors are rows that training refuses (or leaves out with `on_error: skip`), warnings are
    what it would take and should not, notes are worth knowing. Nothing is changed: `prefopt
    clean`, `balance` and `split` write new files.

    `prefopt check pairs.jsonl --out report.html --fail-on error`

    Every row is read once. Near-duplicates, clusters and suspect labels are looked for in up to
    20,000 comparisons, drawn evenly.

    With `--json`: `rows`, `groups`, `comparisons`, `files`, `findings` (a list of objects with
    `kind`, `level`, `count`, `rows`, `message`, `remedy`, and `value`, `interval` and `details`
    where there are such), `figures`, `sampled`, `against`, `page`.

    Parameters
    ----------
    data
        Files (JSONL, JSON, Parquet, also .gz or .zst), folders, or hub ids of data sets.
    """
    check_target(out, ".html", ".htm", read=[*data, *(against or ())])
    if max_length is not None and tokenizer is None:
        raise _without_effect("--max-length", max_length, "name a model with --tokenizer")
    if embed is not None and quick:
        raise _without_effect("--embed", embed, "leave out --quick, or --embed")
    options = {"format": format, "against": against, "quick": quick, "seed": seed}
    result = _checked(list(data), tokenizer, max_length, embed, options)
    if out is not None:
        from prefopt.report.data_page import write

        write(result, out)
    limit = len(_LEVELS) if fail_on is None else _LEVELS.index(fail_on)
    hit = any(_LEVELS.index(finding["level"]) >= limit for finding in result["findings"])
    document = {**result, "page": out}
    return Outcome(document, _shown(document), exit_code=1 if hit else 0)


def _without_effect(option: str, value: Any, remedy: str) -> UsageError:
    return UsageError("it would have no effect", field=option, value=value, remedy=remedy)


def _checked(
    data: list[str],
    tokenizer: str | None,
    max_length: int | None,
    embed: str | None,
    options: dict[str, Any],
) -> dict[str, Any]:
    from prefopt.data.checking.check import check as run_check

    if tokenizer is not None:
        from prefopt.engine.lengths import load_measure

        options["measure"] = load_measure(tokenizer, max_length)
    if embed is not None:
        from prefopt.evaluation.embedding import Embedding
        from prefopt.policies.load import load_policy

        options["embed"] = Embedding(load_policy(embed))
    with counting("checking", "rows") as progress:
        return run_check(data, progress=progress, **options)


def _shown(result: dict[str, Any]) -> list[Any]:
    from rich.table import Table
    from rich.text import Text

    shown: list[Any] = [
        f"{result['rows']:,} rows: {result['groups']:,} prompts with "
        f"{result['comparisons']:,} comparisons."
    ]
    if not result["findings"]:
        shown.append("Nothing was found that is wrong with them.")
    listed = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("level", "count", "what", "where", "what to do"):
        listed.add_column(
            heading, overflow="fold", justify="right" if heading == "count" else "left"
        )
    for finding in result["findings"]:
        listed.add_row(
            Text(finding["level"], style=_STYLES[finding["level"]]),
            f"{finding['count']:,}",
            Text(f"{finding['message']}{_interval(finding)}"),
            Text(_places(finding, result["files"])),
            Text(finding["remedy"]),
        )
    if result["findings"]:
        shown.append(listed)
    if result["against"] is not None:
        other = result["against"]
        shown.append(
            f"Compared with an evaluation set of {other['rows']:,} rows "
            f"({other['prompts']:,} different prompts, {other['unread']:,} rows without one)."
        )
    if result["page"]:
        shown.append(f"Written to {result['page']}.")
    return shown


def _interval(finding: dict[str, Any]) -> str:
    ends = finding.get("interval")
    return "" if ends is None else f" (95 % interval {ends[0]:.3f} to {ends[1]:.3f})"


def _places(finding: dict[str, Any], files: list[str]) -> str:
    """The first rows concerned; of a single file their numbers say enough."""
    places = finding["rows"][:_PLACES]
    more = f"and {finding['count'] - len(places):,} more" if finding["count"] > len(places) else ""
    if not places:
        return ""
    if all([place["file"]] == files and place["row"] for place in places):
        rows = ", ".join(str(place["row"]) for place in places)
        return f"row{'s' if len(places) > 1 else ''} {rows} {more}".rstrip()
    named = [
        place["file"] if place["row"] is None else f"{place['file']}:{place['row']}"
        for place in places
    ]
    return "\n".join([*named, *([more] if more else [])])
