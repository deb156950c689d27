"""`prefopt sweep`: one recipe at many settings, and which of them is best."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Annotated, Any

from prefopt.cli.options import described
from prefopt.cli.outcome import Outcome

if TYPE_CHECKING:
    from rich.table import Table

    from prefopt.sweeps import SweepResult


def sweep(
    file: str,
    /,
    *,
    out: Annotated[
        str | None, described("Folder of the sweep, instead of the file's.", metavar="FOLDER")
    ] = None,
    retry: Annotated[bool, described("Try again the trials that failed before.")] = False,
) -> Outcome:
    """Train one recipe at many settings, and choose.

    The sweep file names a recipe, what to search, and the goal: evaluation accuracy, win rate
    or reward, at a budget of KL if you like. Each trial is a run folder; all share tokens and
    reference scores. Run the same command again to continue after an interruption, or with
    more points in the file.

    `prefopt sweep sweep.yaml`

    The folder gets `sweep.json`, `report.html`, and in `trials/` every run. With `--json`:
    what `sweep.json` holds, and `report`. It exits with 1 if every trial failed.

    Parameters
    ----------
    file
        The sweep file, YAML: recipe, out, search, goal, method, trials, seed, seeds, workers,
        devices, test_data.
    """
    from prefopt.sweeps import load_sweep, run_sweep

    result = run_sweep(load_sweep(file, {} if out is None else {"out": out}), retry=retry)
    return Outcome(result.document, _shown(result), exit_code=1 if result.failed else 0)


def _shown(result: SweepResult) -> list[Any]:
    document = result.document
    shown: list[Any] = [_table(result)]
    failed = document["counts"].get("failed", 0)
    if failed:
        logs = f"{document['out']}/logs"
        shown.append(f"{failed} of {sum(document['counts'].values())} trials failed: see {logs}")
    best = document["best"]
    if best is None:
        shown.append("No point can be chosen.")
    else:
        shown.append("The best was chosen by these numbers, so they are optimistic.")
        shown += _tested(document["test"])
        shown.append(f"To train it again: {shlex.join(best['command'])}")
    return [*shown, f"Report: {document['report']}"]


def _tested(test: dict[str, Any] | None) -> list[str]:
    from prefopt.sweeps.choosing import Mean
    from prefopt.sweeps.page import measured

    if test is None:
        return []
    words = [
        f"{name.replace('_', ' ')} {measured(Mean(value['mean'], value['spread'], value['seeds']))}"
        for name, value in test["measures"].items()
        if value is not None
    ]
    return [f"On {test['data']}, which no trial saw: {', '.join(words)}"]


def _table(result: SweepResult) -> Table:
    """Points, best first."""
    from rich.table import Table

    from prefopt.recipe.text import flow
    from prefopt.sweeps.page import measured
    from prefopt.sweeps.points import short

    names = list(dict.fromkeys(name for s in result.ranked for name in s.point))
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in names:
        table.add_column(short(name, names))
    for column in (result.document["goal"]["measure"], "KL"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("")
    chosen = next((s for s in result.ranked if s.eligible), None)
    for standing in result.ranked:
        values = [flow(standing.point[n]) if n in standing.point else "–" for n in names]
        state = "best" if standing is chosen else "" if standing.eligible else standing.state
        table.add_row(*values, measured(standing.value), measured(standing.kl), state)
    return table
