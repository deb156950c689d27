"""How near prefopt comes to what the machine could do: the time of a training over its floor.

    python benchmarks/limit.py --rows harmless_base.jsonl.gz
    python benchmarks/limit.py --smoke

The floor is what the matrix products that the work needs (`counting.py`) take at the rates
measured for their shapes, in the same process right after the training. A real
`DPOTrainer.fit` is timed by phase with clocks around the engine's own functions, after a first
`fit` on other rows, so that checks and first allocations are not in it. Where the rest goes
is seen by PyTorch's profiler in a process of its own, since profiling costs time.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from measuring import (
    RESULTS,
    Json,
    busy,
    comparable,
    fingerprint,
    provenance,
    python,
    read_json,
    result_of,
    say,
    under_load,
    write_json,
)
from tables import limit_case

SCRIPTS = ("limit.py", "phases.py", "counting.py", "workload.py", "measuring.py")
#: rows that reading, tokenising and packing are timed on, and the rate that is promised
PREPARED, PREPARED_RATE = 4000, 5000


@dataclass(frozen=True)
class Case:
    """A training whose floor is counted.

    Attributes:
        workload, model: names in `workload.py`.
        batch, steps: pairs to a step, and how many steps are timed.
        share: of the floor that is promised, None for no promise.
    """

    workload: str
    model: str
    batch: int
    steps: int
    share: float | None = None

    @property
    def name(self) -> str:
        return f"{self.workload}-{self.model}"


_ALL = (
    Case("hh", "14M", batch=8, steps=12, share=0.75),
    Case("hh", "100M", batch=8, steps=3, share=0.80),
    Case("lora", "14M", batch=8, steps=8),
)
CASES = {case.name: case for case in _ALL}
SMOKES = {"lora-smoke": Case("lora", "smoke", batch=4, steps=2)}


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_arguments(arguments)
    for case in options.cases:
        key = asdict(case) | {
            "rows": fingerprint(options.rows),
            "threads": options.threads,
            "seed": options.seed,
        }
        known = read_json(options.out) if options.out else {}
        record = known.get("cases", {}).get(case.name, {})
        here = provenance(SCRIPTS)
        if comparable(record, here) and record.get("settings") == key:
            say(f"{case.name}: measured before with the same code and settings")
        else:
            record = here | {"settings": key} | measure(case, options)
            if options.out:
                cases = known.get("cases", {}) | {case.name: record}
                write_json(options.out, {"cases": cases})
        print("\n".join(limit_case(case.name, record)))
    return 0


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=Path, help="Anthropic HH transcripts, .jsonl or .jsonl.gz")
    parser.add_argument("--cases", default=",".join(CASES), help=f"of {', '.join(CASES)}")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="tiny model, generated rows")
    parser.add_argument("--out", type=Path, help="where the figures go, as JSON")
    options = parser.parse_args(arguments)
    cases = SMOKES if options.smoke else CASES
    names = list(SMOKES) if options.smoke else options.cases.split(",")
    if unknown := set(names) - set(cases):
        parser.error(f"no such case: {', '.join(sorted(unknown))}; of {', '.join(cases)}")
    options.cases = [cases[name] for name in names]
    if options.out is None and not options.smoke:
        options.out = RESULTS / "limit.json"
    return options


def measure(case: Case, options: argparse.Namespace) -> Json:
    """Train once with clocks and once under the profiler; the case's record."""
    run = partial(python, threads=options.threads, inside=options.smoke)
    with tempfile.TemporaryDirectory() as folder:
        say(f"{case.name}: making rows, tokenizer and weights")
        rows = ("--rows", str(options.rows)) if options.rows else ()
        count = str(case.batch * (case.steps + 1))
        names = ("--workload", case.workload, "--model", case.model)
        seed = ("--seed", str(options.seed))
        run("workload.py", folder, *names, "--count", count, *rows, *seed)
        task = (folder, "--batch", str(case.batch))
        before = busy()
        say(f"{case.name}: training with clocks")
        prepared = str(20 if options.smoke else PREPARED)
        timed = result_of(run("phases.py", *task, "--prepare", prepared))
        after = busy()
        say(f"{case.name}: training under the profiler")
        spent = result_of(run("phases.py", *task, "--profile"))
        workload = read_json(Path(folder) / "workload.json")
    return shares(case, timed) | {
        "workload": workload,
        "model": workload["model"],
        "others": [before, after],
        "under_load": under_load([before, after]),
        "spent": spent,
    }


def shares(case: Case, timed: Json) -> Json:
    """What the phases come to, beside the floor.

    `steps` is the loop, `training` has the reference scores too, `whole` everything that
    `fit` does.
    """
    phases = {name: _with_share(row) for name, row in timed["phases"].items()}
    loop = ("forward", "backward", "optimizer", "rest")
    found: Json = {"work": timed["work"], "rates": timed["rates"], "phases": phases}
    for part, names in (
        ("steps", loop),
        ("training", ("reference", *loop)),
        ("whole", tuple(phases)),
    ):
        rows = [phases[name] for name in names]
        total = {key: sum(row[key] for row in rows) for key in ("seconds", "floor", "gflop")}
        found[part] = _with_share(total)
    if case.share is not None:
        found |= {"target": f"≥ {case.share:.0%}", "met": found["training"]["share"] >= case.share}
    rate = timed["rows_per_second"]
    preparing = {"rows_per_second": rate, "met": rate >= PREPARED_RATE}
    return {"target": ""} | found | {"preparing": preparing}


def _with_share(row: dict[str, Any]) -> Json:
    return row | {"share": row["floor"] / row["seconds"] if row["seconds"] else 0.0}


if __name__ == "__main__":
    sys.exit(main())
