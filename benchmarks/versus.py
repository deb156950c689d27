"""prefopt against TRL's DPOTrainer and a plain padded loop, on the same rows.

    python benchmarks/versus.py --rows harmless_base.jsonl.gz
    python benchmarks/versus.py --smoke            # seconds; generated rows, a tiny model

First every contender takes two steps on one batch from the same weights: they must have
seen the same token ids, and their losses must agree, or nothing is timed. Then they take
turns (A B C A B C …), each in a process of its own, and medians over the turns are
reported with the whole range, and ratios as medians of the ratios within a turn.

How to read it. `pairs/s` is over the timed steps only. Reference scores that are computed
before the first step (`prefopt`, `trl-best`) are not in it; contenders that run the reference
in each step have it there. `whole job` divides all pairs, warm-up included, by all the time
after imports and weights were loaded: tokenising, checks, reference scores and every step.
Memory is the peak resident set of the process while it trains, imports and weights included;
`training alone` leaves out what the process held when training began.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

HERE = Path(__file__).resolve().parent
CONTENDERS = ("prefopt", "prefopt-each-step", "trl", "trl-best", "plain")
NEEDS = {"trl": ("trl", "datasets"), "trl-best": ("trl", "datasets")}
LOSS_TOLERANCE = 1e-3  # relative
#: what prefopt is compared in, the baseline, the key, and the target where there is one
TARGETS = (
    ("pairs/s against TRL", "trl", "pairs_per_second", ">=", 8.0),
    ("pairs/s against the plain loop", "plain", "pairs_per_second", ">=", 4.0),
    ("peak memory against TRL", "trl", "peak_mib", "<=", 1 / 3),
    ("pairs/s against TRL at its best", "trl-best", "pairs_per_second", None, None),
    ("peak memory against TRL at its best", "trl-best", "peak_mib", None, None),
    ("whole job against TRL", "trl", "whole_pairs_per_second", None, None),
    ("whole job against the plain loop", "plain", "whole_pairs_per_second", None, None),
)
Result = dict[str, Any]
console = Console(stderr=True)


def main() -> int:
    options = parse_arguments()
    contenders, notes = installed(options.contenders)
    if options.smoke:
        notes.append("a smoke run: that the contenders agree is real, its figures mean nothing")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(options.work or scratch)
        prepare(folder, options)
        if options.profile:
            print(child(options.profile, folder, options, "--profile"))
            return 0
        agreement = check_agreement(contenders, folder, options)
        turns = [
            {name: run(name, folder, options, turn) for name in contenders}
            for turn in range(options.repeats)
        ]
        workload = json.loads((folder / "workload.json").read_text())
    report = {
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "hardware": hardware(),
        "versions": versions(),
        "settings": settings(options),
        "workload": workload,
        "agreement": agreement,
        "notes": notes,
        "summary": {name: summary([turn[name] for turn in turns]) for name in contenders},
        "ratios": ratios(turns),
        "turns": turns,
    }
    show(report)
    if options.out:
        write(options.out, report)
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=Path, help="Anthropic HH transcripts, .jsonl or .jsonl.gz")
    parser.add_argument("--smoke", action="store_true", help="tiny model, generated rows")
    parser.add_argument("--contenders", default=",".join(CONTENDERS))
    parser.add_argument("--batch", type=int, default=8, help="pairs to a step")
    parser.add_argument("--steps", type=int, default=6, help="timed steps")
    parser.add_argument("--warmup", type=int, default=1, help="steps before the clock starts")
    parser.add_argument("--repeats", type=int, default=3, help="turns of each contender")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", help="folder for rows and weights; a temporary one otherwise")
    parser.add_argument("--out", type=Path, help="where the figures go, as JSON")
    parser.add_argument(
        "--profile", metavar="CONTENDER", nargs="?", const="prefopt", help="profile one, and stop"
    )
    options = parser.parse_args()
    if options.smoke:
        options.batch, options.steps, options.repeats = 4, 2, 1
    elif options.rows is None:
        parser.error("give --rows FILE, or --smoke")
    elif options.out is None:
        options.out = HERE / "results" / f"versus-{datetime.now(UTC):%Y%m%d-%H%M%S}.json"
    options.contenders = options.contenders.split(",")
    if unknown := set(options.contenders) - set(CONTENDERS):
        parser.error(f"no such contender: {', '.join(sorted(unknown))}; of {', '.join(CONTENDERS)}")
    return options


def installed(contenders: Iterable[str]) -> tuple[list[str], list[str]]:
    """Contenders that can run here, and a note for each that cannot."""
    present, notes = [], []
    for name in contenders:
        missing = [m for m in NEEDS.get(name, ()) if importlib.util.find_spec(m) is None]
        if missing:
            notes.append(f"{name} was left out: {', '.join(missing)} not installed (extra `bench`)")
        else:
            present.append(name)
    return present, notes


# -- processes -----------------------------------------------------------------------------


def prepare(folder: Path, options: argparse.Namespace) -> None:
    """Rows, tokenizer and weights, made in a process of their own: this one stays small."""
    console.print("making rows, tokenizer and weights")
    count = options.batch * (options.warmup + options.steps)
    arguments = ["--count", str(count), "--seed", str(options.seed)]
    arguments += ["--smoke"] if options.smoke else ["--rows", str(options.rows)]
    python("workload.py", str(folder), *arguments, threads=options.threads)


def child(name: str, folder: Path, options: argparse.Namespace, *more: str) -> str:
    rows = options.batch * (options.warmup + options.steps)
    arguments = [name, str(folder), "--batch", str(options.batch)]
    if "--rows" not in more:
        arguments += ["--rows", str(rows), "--warmup", str(options.warmup)]
    return python("contenders.py", *arguments, *more, threads=options.threads)


def python(script: str, *arguments: str, threads: int) -> str:
    """Run a script of this folder; its stdout.

    Raises:
        SystemExit: it failed; the end of what it said is shown.
    """
    environment = os.environ | {
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    command = [sys.executable, str(HERE / script), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    return done.stdout


def result_of(stdout: str) -> Result:
    result: Result = json.loads(stdout.strip().splitlines()[-1])
    return result


def check_agreement(contenders: list[str], folder: Path, options: argparse.Namespace) -> Result:
    """Two steps of each on the same batch: same tokens, same losses.

    The second loss depends on the first step's gradients, so those are compared as well.

    Raises:
        SystemExit: two contenders do not compute the same thing.
    """
    results = {}
    for name in contenders:
        console.print(f"checking {name}")
        more = ("--rows", str(options.batch), "--epochs", "2", "--learning-rate", "1e-4")
        results[name] = result_of(child(name, folder, options, *more))
    losses = {name: result["losses"] for name, result in results.items()}
    difference = max(
        (max(step) - min(step)) / min(step) for step in zip(*losses.values(), strict=True)
    )
    same_tokens = len({result["tokens"] for result in results.values()}) == 1
    if not same_tokens or difference > LOSS_TOLERANCE:
        seen = {name: (result["tokens"], result["losses"]) for name, result in results.items()}
        raise SystemExit(f"the contenders do not agree, nothing was timed: {seen}")
    return {"losses": losses, "largest_relative_difference": difference, "same_tokens": True}


def run(name: str, folder: Path, options: argparse.Namespace, turn: int) -> Result:
    load = os.getloadavg()[0]
    result = result_of(child(name, folder, options))
    console.print(
        f"turn {turn + 1}: {name:18} {result['pairs_per_second']:6.2f} pairs/s "
        f"{result['peak_mib']:6.0f} MiB"
    )
    del result["losses"], result["tokens"]
    return result | {"load_before": load}


# -- what came out -------------------------------------------------------------------------


def summary(results: list[Result]) -> Result:
    """Median, least and most over the turns of everything that is a number."""
    keys = ("pairs_per_second", "whole_pairs_per_second", "peak_mib", "held_mib")
    return {
        key: {
            "median": statistics.median(values),
            "least": min(values),
            "most": max(values),
        }
        for key in keys
        for values in [[result[key] for result in results]]
    }


def ratios(turns: list[dict[str, Result]]) -> list[Result]:
    """prefopt over each baseline, within a turn; the median of the turns, and the target."""
    rows = []
    for contender in ("prefopt", "prefopt-each-step"):
        for what, baseline, key, sense, target in TARGETS:
            if {contender, baseline} <= set(turns[0]):
                values = [turn[contender][key] / turn[baseline][key] for turn in turns]
                median = statistics.median(values)
                row = {"contender": contender, "what": what, "median": median}
                row |= {"least": min(values), "most": max(values)}
                if target is not None:
                    met = median >= target if sense == ">=" else median <= target
                    row |= {"target": f"{sense} {target:.3g}", "met": met}
                rows.append(row)
    return rows


def show(report: Result) -> None:
    """The figures, on stdout."""
    out = Console()
    table = Table("contender", title="median (least – most)")
    for column in ("pairs/s", "whole job, pairs/s", "peak MiB", "training alone MiB"):
        table.add_column(column, justify="right")
    for name, row in report["summary"].items():
        alone = row["peak_mib"]["median"] - row["held_mib"]["median"]
        speeds = (ranged(row[key], 2) for key in ("pairs_per_second", "whole_pairs_per_second"))
        table.add_row(name, *speeds, ranged(row["peak_mib"], 0), f"{alone:.0f}")
    out.print(table)
    words = {True: "yes", False: "no", None: ""}
    table = Table("contender", "what", "ratio", "target", "met", title="ratios within a turn")
    for row in report["ratios"]:
        cells = (row["contender"], row["what"], ranged(row, 2), row.get("target", ""))
        table.add_row(*cells, words[row.get("met")])
    out.print(table)
    model, settings = report["workload"]["model"], report["settings"]
    out.print(
        f"{model['parameters'] / 1e6:.1f} M parameters, vocabulary {model['vocabulary']}, "
        f"{settings['batch']} pairs a step, mean tokens {report['workload']['tokens']}; "
        f"{report['hardware']['processor']}, {settings['threads']} threads; losses agree "
        f"within {report['agreement']['largest_relative_difference']:.1e}"
    )
    for note in report["notes"]:
        out.print(f"note: {note}")


def ranged(row: Result, digits: int) -> str:
    median, least, most = (f"{row[key]:.{digits}f}" for key in ("median", "least", "most"))
    return median if least == most else f"{median} ({least} – {most})"


def write(path: Path, report: Result) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(json.dumps(report, indent=1) + "\n")
    unfinished.replace(path)
    console.print(f"figures in {path}")


def settings(options: argparse.Namespace) -> Result:
    names = ("batch", "steps", "warmup", "repeats", "threads", "seed", "smoke")
    return {name: getattr(options, name) for name in names} | {"precision": "float32"}


def versions() -> Result:
    names = ("torch", "transformers", "trl", "accelerate", "datasets", "numpy")
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return {"python": platform.python_version(), **found}


def hardware() -> Result:
    """The processor, its cores and the memory, as far as the system tells."""
    processor = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        processor = names[0] if names else processor
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    except (OSError, ValueError):
        memory = 0.0
    system = f"{platform.system()} {platform.release().split('-')[0]}"
    cores = os.cpu_count()
    return {
        "processor": processor,
        "cores": cores,
        "memory_gib": round(memory, 1),
        "system": system,
    }


def commit() -> str | None:
    """The commit measured, with a + where files differ from it."""
    command = ["git", "-C", str(HERE), "describe", "--always", "--abbrev=12", "--dirty=+"]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return done.stdout.strip() or None


if __name__ == "__main__":
    sys.exit(main())
