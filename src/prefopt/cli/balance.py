"""`prefopt balance`: weights that even out what comparisons are about."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from cyclopts.validators import Number

from prefopt.cli.options import Format, OnError, check_target, described, seeded
from prefopt.cli.outcome import Outcome, UsageError, counting, counts, percent

_SHOWN = 40  # values in the table; `--json` has all

Limit = Annotated[
    float,
    described(
        "Most that a factor may be, in smallest factors: what is rare cannot outweigh all.",
        validator=Number(gte=1),
        metavar="MAXRATIO",
    ),
]


def balance(
    data: tuple[str, ...],
    /,
    *,
    by: Annotated[
        str,
        described(
            "What to even out: a column of the rows (such as category or annotator), source, "
            "cluster (of prompts), or length.",
            metavar="COLUMN",
        ),
    ],
    out: Annotated[
        str,
        described("File to write: .jsonl, or .jsonl.gz, .jsonl.zst. Must be new.", metavar="FILE"),
    ],
    limit: Limit = 10.0,
    seed: Annotated[int, seeded("Seed of the clusters.")] = 0,
    format: Format = "auto",
    on_error: OnError = "raise",
) -> Outcome:
    """Write comparisons again, with weights that even something out.

    Each value of a column, or each cluster of prompts, gets the same total weight. By length,
    comparisons in which the longer side is preferred weigh as much as those in which the shorter
    one is, among differences of the same size. The mean weight is 1, and what comparisons weighed
    before is multiplied. No comparison is left out, and none is gained: the effective sample size
    says how many evenly weighted ones the result is worth.

    `prefopt balance pairs.jsonl --by category --out even.jsonl`

    With `--json`: `by`, `groups` (of each value `before`, `after`, `weight`, `comparisons`),
    `comparisons`, `effective_sample_size`, `effective_share`, `limited`, `unbalanced`, `out`,
    `skipped`.

    Parameters
    ----------
    data
        Files (JSONL, JSON, Parquet, also .gz or .zst), folders, or hub ids of data sets.
    """
    from prefopt.data.balancing import balance as run_balance

    check_target(out, ".jsonl", ".jsonl.gz", ".jsonl.zst", read=data)
    _check_new(out)
    with counting("reading", "rows") as progress:
        result = run_balance(
            list(data),
            by,
            out,
            limit=limit,
            seed=seed,
            format=format,
            on_error=on_error,
            progress=progress,
        )
    return Outcome(result, _shown(result))


def _check_new(out: str) -> None:
    if Path(out).exists():
        raise UsageError(
            "the file is there already",
            field="--out",
            value=out,
            remedy="choose another --out, or remove the file first",
        )


def _shown(result: dict[str, Any]) -> list[Any]:
    from rich.table import Table
    from rich.text import Text

    listed = Table(box=None, pad_edge=False, header_style="bold")
    listed.add_column(result["by"], overflow="fold")
    for heading in ("comparisons", "before", "after", "weight"):
        listed.add_column(heading, justify="right")
    entries = list(result["groups"].items())
    for name, entry in entries[:_SHOWN]:
        listed.add_row(
            Text(name),
            f"{entry['comparisons']:,}",
            percent(entry["before"]),
            percent(entry["after"]),
            f"{entry['weight']:.3g}",
        )
    shown: list[Any] = [listed]
    if len(entries) > _SHOWN:
        shown.append(f"and {len(entries) - _SHOWN:,} more; --json has all")
    if result["limited"]:
        shown.append(f"Held by --limit: {_listed(result['limited'])}.")
    if result["unbalanced"]:
        shown.append(f"Nothing to be even with: {_counted(result['unbalanced'])}.")
    if result["skipped"]:
        shown.append(f"Left out: {counts(result['skipped'])}.")
    shown.append(
        f"{result['out']}: as good as {result['effective_sample_size']:,.1f} of "
        f"{result['comparisons']:,} comparisons ({percent(result['effective_share'])})."
    )
    return shown


def _counted(parts: dict[str, int]) -> str:
    """`equally long (3), longer by 16 to 31 (1)`, the first few."""
    return _listed([f"{name} ({count:,})" for name, count in parts.items()])


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - 5:,} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more
