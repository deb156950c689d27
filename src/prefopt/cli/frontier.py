"""`prefopt frontier`: reward against KL in a world where the optimum is known."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts.validators import Number

from prefopt.cli.options import described, seeded
from prefopt.cli.outcome import Outcome, counting, percent

if TYPE_CHECKING:
    from rich.table import Table

#: the first six have colours of their own
METHODS = "dpo,ppo,ppo-true,best-of-n,unlikelihood,ipo,kto,preferred-sft,best-of-n-true"


def frontier(
    *,
    out: Annotated[str, described("Folder for the page and the curves.", metavar="FOLDER")],
    methods: Annotated[
        str,
        described(
            "What to compare, with commas between: ppo, ppo-true, best-of-n, best-of-n-true, "
            "preferred-sft, unlikelihood, and any objective on comparisons, labels or rankings.",
            metavar="NAMES",
        ),
    ] = METHODS,
    seeds: Annotated[
        int, described("So many worlds, each with its own curves.", validator=Number(gte=1))
    ] = 1,
    seed: Annotated[int, seeded("Seed of the first world.")] = 0,
    grid: Annotated[
        str | None,
        described("β of objectives and κ of PPO, with commas between.", metavar="NUMBERS"),
    ] = None,
    processes: Annotated[
        int | None,
        described("Trainings at the same time; by default one a core.", validator=Number(gte=1)),
    ] = None,
) -> Outcome:
    """Reward against KL of many methods, in a world where the optimum is known exactly.

    Figure 2 of the DPO paper, in minutes: a supervised reference, comparisons by a known reward,
    and every method trained at several strengths. All sequences of this world can be written
    down, so KL and reward are exact, and so is the line that no method can cross.

    `prefopt frontier --out runs/frontier`

    The folder gets `frontier.html`, `frontier.json` and `curves.jsonl`; the same command goes on
    where it was stopped. With `--json`: what `frontier.json` holds.
    """
    import json

    from prefopt.evaluation.frontier.frontier import measure
    from prefopt.report import frontier_page
    from prefopt.runs import write_text
    from prefopt.workers import cores

    names = [name.strip() for name in methods.split(",") if name.strip()]
    folder = Path(out)
    with counting("frontier", "trainings") as progress:
        found = measure(
            names,
            seeds=range(seed, seed + seeds),
            grid=None if grid is None else _numbers(grid),
            folder=folder,
            processes=processes or cores(),
            progress=progress,
        )
    document = found.to_dict()
    write_text(folder / "frontier.json", json.dumps(document) + "\n")
    frontier_page.write(document, folder / "frontier.html")
    page = str(folder / "frontier.html")
    return Outcome({**document, "page": page}, [_table(document), _told(document), f"Page: {page}"])


def _numbers(text: str) -> list[float]:
    from prefopt.cli.outcome import UsageError

    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(
            "a grid is numbers with commas between", field="--grid", value=text
        ) from None


def _table(document: dict[str, Any]) -> Table:
    """Methods and budgets."""
    from rich.table import Table

    budgets = sorted({row["budget"] for row in document["summary"]})
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("method")
    for budget in budgets:
        table.add_column(f"KL ≤ {budget:g}", justify="right")
    cells: dict[str, list[str]] = {}
    for row in document["summary"]:
        error = row["standard_error"]
        spread = "" if error is None else f" ± {error:.3f}"
        text = f"{row['reward']:.3f}{spread} ({100 * row['share_of_optimum']:.0f} %)"
        cells.setdefault(row["title"], []).append(text)
    for title, row in cells.items():
        table.add_row(title, *row)
    return table


def _told(document: dict[str, Any]) -> str:
    """What the table shows, and how near the optimum policies are, wherever they went."""
    seeds = len(document["seeds"])
    means = f" Mean over {seeds} seeds ± standard error." if seeds > 1 else ""
    near = [
        (row["mean"], row["title"]) for row in document["efficiency"] if row["mean"] is not None
    ]
    shares = "; ".join(f"{title} {percent(mean)}" for mean, title in sorted(near, reverse=True))
    return (
        "The most reward that a method's policies reach within so many nats, and its share of "
        f"what the optimum gains there.{means}\n"
        f"Of what the optimum gains at a policy's own KL, on average: {shares}."
    )
