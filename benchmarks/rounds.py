"""Rounds against one training with as many labels, over seeds, in a world whose reward is known.

    python benchmarks/rounds.py            # about ten minutes; goes on where it was stopped

For each seed: three rounds of 400 prompts, and one round of 1,200; both with five completions a
prompt, best against worst by the true reward, the same training otherwise. Measured on 200 prompts
that neither saw. Writes results/rounds.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from prefopt.recipe.text import read
from prefopt.rounds import run_rounds
from prefopt.rounds.settings import make_rounds
from prefopt.runs import hardware, versions, write_text

ROOT = Path(__file__).resolve().parent.parent
RECIPE = ROOT / "examples" / "rounds" / "recipe.yaml"
RESULTS = Path(__file__).parent / "results" / "rounds.json"
GATES = dict.fromkeys(("kl", "length_growth", "diversity", "agreement")) | {"falling": False}
#: what is compared; each asks the judge about as many completions
WAYS: dict[str, dict[str, Any]] = {
    "rounds": {},
    "one_shot": {"rounds": 1, "prompts_per_round": 1200},
    "expanded": {"data": "expanded"},
    "previous": {"reference": "previous"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "bench-rounds")
    parser.add_argument("--seeds", type=int, default=3)
    chosen = parser.parse_args()
    found: dict[str, list[list[dict[str, Any]]]] = {way: [] for way in WAYS}
    for seed in range(chosen.seeds):
        for way, change in WAYS.items():
            out = chosen.work / f"{way}-{seed}"
            document, _ = read(RECIPE)
            file = {**document, **change, "out": str(out), "seed": seed, "gates": GATES}
            found[way].append(run_rounds(make_rounds(file))["history"])
    write_text(RESULTS, json.dumps(report(found), indent=2) + "\n")
    print(json.dumps(summary(found), indent=2))


def report(found: dict[str, list[list[dict[str, Any]]]]) -> dict[str, Any]:
    """What the file of results holds."""
    kept = ("value", "kl", "length", "diversity", "initial", "previous")
    return {
        "versions": versions(),
        "hardware": hardware(),
        "summary": summary(found),
        "histories": {
            way: [[{name: row[name] for name in kept} for row in rows] for rows in seeds]
            for way, seeds in found.items()
        },
    }


def summary(found: dict[str, list[list[dict[str, Any]]]]) -> dict[str, Any]:
    """Mean true reward and KL after each round over seeds, with the standard error."""

    def over(values: list[float]) -> dict[str, float | None]:
        error = stdev(values) / len(values) ** 0.5 if len(values) > 1 else None
        return {"mean": fmean(values), "standard_error": error}

    return {
        way: {
            name: [over([rows[place][name] for rows in seeds]) for place in range(len(seeds[0]))]
            for name in ("value", "kl", "length")
        }
        for way, seeds in found.items()
        if seeds
    }


if __name__ == "__main__":
    main()
