"""`prefopt clean`: the data without the rows that it is told to leave out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from prefopt.cli.options import Format, check_target, described
from prefopt.cli.outcome import Outcome, UsageError, counting, counts

Merge = Annotated[
    Literal["votes"] | None,
    described(
        "Make one comparison of those that contradict each other, with the share that prefers "
        "a side as its probability, instead of removing all of them."
    ),
]


def clean(
    data: tuple[str, ...],
    /,
    *,
    out: Annotated[
        str,
        described(
            "File for what is kept: .jsonl, or .jsonl.gz, .jsonl.zst. Must be new.",
            metavar="FILE",
        ),
    ],
    removed: Annotated[
        str,
        described(
            "File for the removed rows and the reasons: .jsonl. Must be new.", metavar="FILE"
        ),
    ],
    drop: Annotated[
        list[str],
        described(
            "Kinds of findings, as `prefopt check` names them, whose rows are removed.",
            consume_multiple=True,
            metavar="KIND",
        ),
    ],
    merge: Merge = None,
    format: Format = "auto",
) -> Outcome:
    """Write data without the rows of some kinds of findings, and these rows with the reasons.

    Nothing is removed that was not told. Of comparisons that repeat the first is kept. Of a pair
    that is preferred both ways every comparison goes: which one is right, nobody knows. A row is
    removed whole, also if only one of its comparisons is meant.

    Cleaning is not known to make policies more accurate. Train with and without it, and measure.

    `prefopt clean pairs.jsonl --drop duplicate_pair --drop role_marker --out clean.jsonl
    --removed removed.jsonl`

    With `--json`: `rows`, `kept`, `removed`, `kinds` (removed rows of each), `merged`, `groups`,
    `out`, `removed_file`.

    Parameters
    ----------
    data
        Files (JSONL, JSON, Parquet, also .gz or .zst), folders, or hub ids of data sets.
    """
    from prefopt.data.cleaning import clean as run_clean

    check_target(out, ".jsonl", ".jsonl.gz", ".jsonl.zst", read=data)
    _check_removed(removed, out, data)
    with counting("reading", "rows") as progress:
        result = run_clean(
            list(data), out, removed, drop, merge=merge, format=format, progress=progress
        )
    return Outcome(result, _shown(result))


def _check_removed(removed: str, out: str, data: tuple[str, ...]) -> None:
    check_target(removed, ".jsonl", read=data, option="--removed")
    if Path(removed).resolve() == Path(out).resolve():
        raise UsageError(
            "the same file cannot hold both what is kept and what is removed",
            field="--removed",
            value=removed,
            remedy="choose another --removed",
        )
    for option, name in (("--out", out), ("--removed", removed)):
        if Path(name).exists():
            raise UsageError(
                "the file is there already",
                field=option,
                value=name,
                remedy=f"choose another {option}, or remove the file first",
            )


def _shown(result: dict[str, Any]) -> list[Any]:
    shown = [
        f"{result['rows']:,} rows: {result['kept']:,} kept, {result['removed']:,} removed "
        f"({counts(result['kinds'])})."
    ]
    if result["merged"]:
        shown.append(f"{result['merged']:,} comparisons were made of contradicting ones.")
    return [
        *shown,
        f"kept: {result['out']}, {result['groups']:,} groups",
        f"removed: {result['removed_file']}",
        "Cleaning is not known to make policies more accurate: train with and without it, and "
        "measure.",
    ]
