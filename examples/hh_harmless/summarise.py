"""What held-out rows say before and after: accuracies with intervals, and log-probabilities.

    python examples/hh_harmless/summarise.py runs/hh/heldout-scores.jsonl

reads the rows that `prefopt score … --out` wrote, policy DPO and reference SFT. The implicit
reward compares the two, so of SFT alone it is zero everywhere; what SFT itself prefers is
which answer it finds more likely, as a whole and per token.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

from prefopt.evaluation.intervals import clustered_bootstrap

Row = dict[str, Any]
GAPS: dict[str, Callable[[Row], float]] = {
    "implicit reward, DPO over SFT": lambda row: row["margin"],
    "log-probability, SFT": lambda row: gap(row, "reference_logp"),
    "log-probability, DPO": lambda row: gap(row, "logp"),
    "log-probability per token, SFT": lambda row: gap(row, "reference_logp", per_token=True),
    "log-probability per token, DPO": lambda row: gap(row, "logp", per_token=True),
    "the longer answer": lambda row: gap(row, "length"),
}


def main() -> None:
    rows = [json.loads(line) for line in Path(sys.argv[1]).read_text().splitlines()]
    prompts = [row["prompt"] for row in rows]
    print(f"{len(rows)} comparisons on {len(set(prompts))} prompts\n")
    print("| ranked by | accuracy | 95 % interval |\n|---|---|---|")
    for name, measure in GAPS.items():
        correct = [half_step(measure(row)) for row in rows]
        share = clustered_bootstrap(correct, prompts, seed=0)
        print(f"| {name} | {share.mean:.4f} | {share.ends[0]:.4f} – {share.ends[1]:.4f} |")
    print("\n| mean nats of a completion | preferred | dispreferred |\n|---|---|---|")
    for name, key in (("SFT", "reference_logp"), ("DPO", "logp")):
        sides = (fmean(row[f"{key}_{side}"] for row in rows) for side in SIDES)
        print(f"| {name} | {' | '.join(f'{nats:.2f}' for nats in sides)} |")


SIDES = ("preferred", "dispreferred")


def gap(row: Row, key: str, *, per_token: bool = False) -> float:
    """How much more of `key` the preferred side has."""
    preferred, dispreferred = (
        row[f"{key}_{side}"] / (row[f"length_{side}"] if per_token else 1) for side in SIDES
    )
    return float(preferred - dispreferred)


def half_step(difference: float) -> float:
    """1 for more, 0 for less, ½ for equal."""
    return 1.0 if difference > 0 else 0.0 if difference < 0 else 0.5


if __name__ == "__main__":
    main()
