"""`prefopt agreement`: how far judges agree with people, and people with each other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from prefopt.cli.options import Device, OnError, described, judge_spec, seeded
from prefopt.cli.outcome import Outcome, counting, counts, percent, table

if TYPE_CHECKING:
    from prefopt.evaluation.asking import Asker

Spec = Annotated[
    str | None,
    judge_spec("Asked about every pair with votes, if the rows have texts"),
]
Cache = Annotated[
    str | None,
    described(
        "Keep the judge's verdicts in this folder, so that nothing is asked twice.",
        metavar="FOLDER",
    ),
]
By = Annotated[
    list[str] | None,
    described(
        "Tell apart by this column of the rows (or of their meta); repeat it for more. Rows with "
        "a `turn` are told apart by it if nothing else is asked for.",
        metavar="COLUMN",
    ),
]


def agreement(
    judgements: tuple[str, ...],
    /,
    *,
    judge: Spec = None,
    cache: Cache = None,
    by: By = None,
    kind: Annotated[
        list[str] | None,
        described(
            "A kind of voices and a pattern of annotators, such as people=expert_*; repeat it "
            "for more. Others are left out.",
            metavar="NAME=PATTERN",
        ),
    ] = None,
    on_error: OnError = "raise",
    device: Device = None,
    seed: Annotated[int, seeded("Seed of the intervals.")] = 0,
) -> Outcome:
    """Measure how far judges and people agree.

    Of all pairs of judgements of the same two answers, how many are equal: between every two
    kinds of voices, and between different people of one kind; with ties, and of the judgements
    that are none. Beside the shares are kappa (Cohen's between kinds, Fleiss' within one: what is
    beyond chance) and Krippendorff's alpha. Intervals are 95 %, by drawing prompts.

    Annotators that are called alike but for a number (`expert_4`, `expert_17`) are one kind; all
    others are of the kind of their file. Where there are texts, "the longer text" is among the
    kinds: a judge should agree with people more than length does.

    `prefopt agreement human.jsonl.gz gpt4_pair.jsonl.gz`

    `prefopt agreement votes.jsonl --judge lm:runs/judge --cache verdicts/`

    With `--json`: `files`, `judgements`, `items` (pairs of answers), `prompts`, `unreadable`,
    `skipped`, `left_out`, `kinds`, `tables` (`by`, `value`, `rows` of `first`, `second`,
    `with_ties`, `without_ties`, each with `agreed`, `compared`, `share`, `interval`, `kappa`,
    `kappa_interval`) and `alpha`.

    Parameters
    ----------
    judgements
        Files with votes, comparisons, or verdicts between models (`model_a`, `model_b`,
        `question_id`, `winner`), in any layout.
    """
    from prefopt.data.aggregation.statements import Reader
    from prefopt.evaluation.agreement import agreement as measure

    reader = Reader(list(judgements), on_error=on_error)
    options: dict[str, Any] = {"by": by or (), "kinds": kind or (), "seed": seed}
    if judge is None:
        result = measure(reader, **options)
    else:
        from prefopt.evaluation.asking import Asker

        asker = Asker.of(judge, cache=cache, device=device)
        result = _with_judge(reader, asker, options)
    return Outcome(result, _shown(result))


def _with_judge(reader: Any, asker: Asker, options: dict[str, Any]) -> dict[str, Any]:
    from prefopt.evaluation.agreement import agreement as measure

    with counting("judging", "pairs") as progress:
        result = measure(reader, judge=asker.judge, progress=progress, **options)
    return {**result, "judge": asker.about()}


def _shown(result: dict[str, Any]) -> list[Any]:
    rows = {
        "judgements": f"{result['judgements']:,} of {result['items']:,} pairs of answers to "
        f"{result['prompts']:,} prompts",
        "kinds": "\n".join(map(_kind, result["kinds"])),
    }
    if result["unreadable"]:
        rows["unreadable"] = f"{result['unreadable']:,} verdicts, which are no ties"
    if result["skipped"]:
        rows["left out"] = counts(result["skipped"])
    if result["left_out"]:
        rows["of no kind"] = f"{result['left_out']:,} judgements"
    parts: list[Any] = [table(rows)]
    for found in result["tables"]:
        parts += ["", _agreements(found)]
    if len(result["tables"]) > 6:
        parts.append("Among many parts some differ by chance: look at the intervals.")
    return [*parts, "", _alphas(result["alpha"])]


def _kind(row: dict[str, Any]) -> str:
    who = f" by {row['annotators']:,} annotators" if row["annotators"] > 1 else ""
    ties = f"{percent(row['ties'])} ties"
    return f"{row['kind']}: {row['judgements']:,}{who} on {row['items']:,} pairs, {ties}"


def _agreements(found: dict[str, Any]) -> Any:
    title = "all" if found["by"] is None else f"{found['by']} {found['value']}"
    grid = grid_of("who", "ties", "agreed", "", "95 %", "kappa", title=title)
    for row in found["rows"]:
        same = row["first"] == row["second"]
        who = f"{row['first']} among themselves" if same else f"{row['first']} – {row['second']}"
        grid.add_row(who, "with", *_cells(row["with_ties"]))
        grid.add_row("", "without", *_cells(row["without_ties"]))
    return grid


def _cells(part: dict[str, Any] | None) -> tuple[str, str, str, str]:
    if part is None:
        return "0/0", "–", "", "–"
    ends = part["interval"]
    spread = "" if ends is None else f"{100 * ends[0]:.1f} to {100 * ends[1]:.1f}"
    kappa = "–" if part["kappa"] is None else f"{part['kappa']:.3f}"
    return f"{part['agreed']}/{part['compared']}", percent(part["share"]), spread, kappa


def _alphas(rows: list[dict[str, Any]]) -> Any:
    if not rows:
        return "No two people judged one pair, so Krippendorff's alpha is not defined."
    grid = grid_of("Krippendorff's alpha", "", "95 % interval", "judged more than once")
    for row in rows:
        low, high = row["interval"]
        defined = row["alpha"] == row["alpha"]
        value = f"{row['alpha']:.4f}" if defined else "–"
        spread = f"{low:.4f} to {high:.4f}" if defined else ""
        grid.add_row(row["who"], value, spread, f"{row['items']:,} pairs")
    return grid


def grid_of(*columns: str, title: str | None = None) -> Any:
    """A table with the first column on the left and the rest on the right."""
    from rich.table import Table

    grid = Table(box=None, pad_edge=False, header_style="bold", title=title, title_justify="left")
    for number, name in enumerate(columns):
        grid.add_column(name, overflow="fold", justify="left" if number == 0 else "right")
    return grid
