"""Every method against the exact optimum, over seeds: `prefopt frontier`, kept as a record.

    python benchmarks/frontier.py          # about fifteen minutes; goes on where it was stopped

Nothing is chosen here: the methods, the grids and the scale are those of the command, and each
seed has a world, a reference and comparisons of its own. Writes results/frontier.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from prefopt.cli.frontier import METHODS
from prefopt.evaluation.frontier.frontier import measure
from prefopt.runs import hardware, versions, write_text
from prefopt.workers import cores

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).parent / "results" / "frontier.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "bench-frontier")
    parser.add_argument("--seeds", type=int, default=3)
    chosen = parser.parse_args()
    found = measure(
        METHODS.split(","), seeds=range(chosen.seeds), folder=chosen.work, processes=cores()
    ).to_dict()
    found.pop("optimum")  # it follows from the seed, and is most of the file
    write_text(
        RESULTS,
        json.dumps({"versions": versions(), "hardware": hardware(), **found}) + "\n",
    )
    for row in found["summary"]:
        print(
            f"{row['title']:24} KL ≤ {row['budget']:<4g} {row['reward']:.3f} "
            f"± {row['standard_error'] or 0:.3f}  {row['share_of_optimum']:.0%} of the optimum"
        )


if __name__ == "__main__":
    main()
