"""`prefopt rounds`: sample, judge, train and evaluate, again and again, in one command."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts.validators import Number

from prefopt.cli.options import described
from prefopt.cli.outcome import Outcome, interval, percent

if TYPE_CHECKING:
    from rich.table import Table


def rounds(
    file: str,
    /,
    *,
    out: Annotated[
        str | None, described("Folder of the rounds, instead of the file's.", metavar="FOLDER")
    ] = None,
    number: Annotated[
        int | None,
        described("How many, instead of the file's.", name="--rounds", validator=Number(gte=1)),
    ] = None,
) -> Outcome:
    """Sample, judge, train and evaluate, round after round.

    Each round samples from the policy, chooses what the judge is asked, has it judged, checks
    the comparisons, trains on them, and measures the new policy on prompts that no round trains
    on. Gates stop the loop when length, KL, diversity, agreement or the win rate say so; the
    best round is kept. Run the same command again after an interruption, or with more rounds:
    nothing that is finished is done twice, and no judge is asked twice.

    `prefopt rounds rounds.yaml`

    The folder gets `rounds.json`, `report.html`, `model` (a link to the best round's) and in
    `round-N/` every stage. With `--json`: what `rounds.json` holds. While it waits for people
    it exits with 0 and says so.

    Parameters
    ----------
    file
        The rounds file, YAML: model, prompts (or world), judge, rounds, sample, select, train,
        reference, start, data, evaluate, gates, seed, out.
    """
    from prefopt.rounds import load_rounds, run_rounds

    given: dict[str, Any] = {"out": out, "rounds": number}
    overrides = {name: value for name, value in given.items() if value is not None}
    document = run_rounds(load_rounds(file, overrides))
    return Outcome(document, _shown(document))


def _shown(document: Mapping[str, Any]) -> list[Any]:
    shown: list[Any] = [_table(document)]
    if document.get("reason"):
        shown.append(f"{document['state'].capitalize()}: {document['reason']}")
    best = document["best"]
    if best is not None:
        shown.append(f"Best: round {best['round']}, {best['model']}")
    return [*shown, f"Report: {document['report']}"]


def _table(document: Mapping[str, Any]) -> Table:
    """A line for the first policy and one for each round."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("round", "score", "wins against the first", "KL", "length", "diversity"):
        table.add_column(column, justify="left" if column == "round" else "right")
    for place, row in enumerate(document["history"]):
        reward = row["reward"]
        table.add_row(
            str(place),
            "–" if reward is None or reward["value"] is None else f"{reward['value']:.3f}",
            _wins(row["initial"]),
            f"{row['kl']:.2f}",
            f"{row['length']:.0f}",
            f"{row['diversity']:.3f}",
        )
    return table


def _wins(wins: Mapping[str, Any] | None) -> str:
    if wins is None or wins["value"] is None:
        return "–"
    ends = wins["interval"]
    return percent(wins["value"]) + (f" ({interval(ends)})" if ends is not None else "")
