"""prefopt against TRL's DPOTrainer and a plain padded loop, on the same rows.

    python benchmarks/versus.py --rows harmless_base.jsonl.gz          # every workload and model
    python benchmarks/versus.py --cases hh-14M --contenders prefopt,plain
    python benchmarks/versus.py --smoke            # seconds; generated rows, a tiny model

A case is a workload and a model. First every contender takes two steps on one batch from the
same weights: they must have seen the same token ids, and their losses must agree, or nothing
is timed. Then they take turns (A B C A B C …), each in a process of its own, and medians over
the turns are reported with the whole range, and ratios as medians of the ratios within a turn.

The first steps also tell how slow each contender is. From that a case chooses how many steps
and turns fit its minutes, two of each at least. All contenders train on the same rows; a fast
one goes through them several times, so that it is timed for some seconds too. How many steps
stand behind a figure is told with it.

Every turn is written to the results as soon as it is done. What was measured with the same
code and settings is not measured again, so a benchmark that was stopped goes on.

How to read it. `pairs/s` is over the timed steps only. Reference scores that are computed
before the first step (`prefopt`, `trl-best`) are not in it; contenders that run the reference
in each step have it there. `whole job` divides all pairs, warm-up included, by all the time
after imports and weights were loaded: tokenising, checks, reference scores and every step.
Memory is the peak resident set of the process while it trains, imports and weights included;
`training alone` leaves out what the process held when training began.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

from cases import CASES, CONTENDERS, MAIN, NEEDS, SMOKES, SPEED, Case, ratios, summary
from measuring import (
    RESULTS,
    Json,
    busy,
    comparable,
    fingerprint,
    missing,
    provenance,
    python,
    read_json,
    result_of,
    say,
    under_load,
    write_json,
)
from tables import versus_case

SCRIPTS = ("versus.py", "cases.py", "contenders.py", "tasks.py", "workload.py", "measuring.py")
LOSS_TOLERANCE = 1e-3  # relative
#: seconds that a fast contender is timed for, by going through the rows again, and how often
LONG_ENOUGH, MOST_CYCLES = 6.0, 10
LEAST_STEPS = LEAST_TURNS = 2


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_arguments(arguments)
    contenders, notes = installed(options.contenders)
    if options.smoke:
        notes.append("a smoke run: that the contenders agree is real, its figures mean nothing")
    ends = time.monotonic() + 60 * options.budget
    skipped, failed = [], []
    for case in options.cases:
        key = settings(case, contenders, options)
        known = stored(options.out, case, key)
        if known.get("complete"):
            say(f"{case.name}: measured before with the same code and settings")
        elif (left := (ends - time.monotonic()) / 60) < key["minutes"] / 2:
            skipped.append(case.name)
            continue
        else:
            minutes = min(left, key["minutes"])
            try:
                known = measure(case, key, known, contenders, notes, minutes, options)
            except SystemExit as error:  # the other cases may still be right
                say(f"{case.name}: {error}")
                failed.append(case.name)
                continue
        print("\n".join(versus_case(case.name, known)))
    if skipped:
        say(f"out of time, and left for the next call: {', '.join(skipped)}")
    if failed:
        say(f"not measured, because something went wrong: {', '.join(failed)}")
    return 1 if failed else 0


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=Path, help="Anthropic HH transcripts, .jsonl or .jsonl.gz")
    parser.add_argument("--cases", default="main", help=f"main, all, or of {', '.join(CASES)}")
    parser.add_argument("--contenders", default=",".join(CONTENDERS))
    parser.add_argument(
        "--budget", type=float, default=60, help="minutes; what does not fit is left"
    )
    parser.add_argument("--minutes", type=float, help="what the turns of each case may take")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="tiny model, generated rows")
    parser.add_argument("--out", type=Path, help="where the figures go, as JSON")
    options = parser.parse_args(arguments)
    cases = SMOKES if options.smoke else CASES
    whole = options.contenders == ",".join(CONTENDERS)
    options.contenders = options.contenders.split(",")
    if unknown := set(options.contenders) - set(CONTENDERS):
        parser.error(f"no such contender: {', '.join(sorted(unknown))}; of {', '.join(CONTENDERS)}")
    names = {"main": MAIN, "all": tuple(CASES)}.get(options.cases, options.cases.split(","))
    if options.smoke:
        names = tuple(SMOKES) if options.cases == "main" else names
    if unknown := set(names) - set(cases):
        parser.error(f"no such case: {', '.join(sorted(unknown))}; of {', '.join(cases)}")
    options.cases = [cases[name] for name in names]
    if options.out is None and whole and not options.smoke:
        options.out = RESULTS / "versus.json"  # never half the contenders, never a smoke run
    return options


def installed(contenders: Iterable[str]) -> tuple[list[str], list[str]]:
    """Contenders that can run here, and a note for each that cannot."""
    present, notes = [], []
    for name in contenders:
        if absent := missing(NEEDS.get(name, ())):
            notes.append(f"{name} was left out: {', '.join(absent)} not installed (extra `bench`)")
        else:
            present.append(name)
    return present, notes


# -- what is known already -----------------------------------------------------------------


def settings(case: Case, contenders: Sequence[str], options: argparse.Namespace) -> Json:
    """All that a case's figures depend on beside the code and the machine."""
    return case.settings() | {
        "minutes": options.minutes or case.minutes,
        "contenders": list(contenders),
        "rows": fingerprint(options.rows),
        "threads": options.threads,
        "seed": options.seed,
        "precision": "float32",
    }


def stored(out: Path | None, case: Case, key: Json) -> Json:
    """What is known of a case, if it was measured with this code, these settings, here."""
    if out is None:
        return {}
    found: Json = read_json(out).get("cases", {}).get(case.name, {})
    same = found.get("settings") == key and comparable(found, provenance(SCRIPTS))
    return found if same else {}


def store(out: Path | None, name: str, record: Json) -> None:
    if out is not None:
        cases = read_json(out).get("cases", {}) | {name: record}
        order = [*CASES, *SMOKES]
        write_json(out, {"cases": dict(sorted(cases.items(), key=lambda c: order.index(c[0])))})


# -- a case --------------------------------------------------------------------------------


def measure(
    case: Case,
    key: Json,
    known: Json,
    contenders: list[str],
    notes: list[str],
    minutes: float,
    options: argparse.Namespace,
) -> Json:
    """Check the contenders, plan, and take the turns that are missing; the case's record."""
    say(f"{case.name}: making rows, tokenizer and weights")
    run = partial(python, threads=options.threads, inside=options.smoke)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        rows = ("--rows", str(options.rows)) if options.rows else ()
        most = case.batch * (1 + case.steps)
        names = ("--workload", case.workload, "--model", case.model)
        run("workload.py", scratch, *names, "--count", str(most), *rows,
            "--seed", str(options.seed))  # fmt: skip
        if not known:
            agreement, costs = check_agreement(contenders, folder, case, run)
            plan = plan_case(case, costs, 60 * minutes)
            known = provenance(SCRIPTS) | {
                "settings": key,
                "workload": read_json(folder / "workload.json"),
                "agreement": agreement,
                "plan": plan,
                "notes": notes,
                "turns": [],
            }
        plan = known["plan"]
        while len(known["turns"]) < plan["turns"]:
            turn = len(known["turns"]) + 1
            say(f"{case.name}: turn {turn} of {plan['turns']}, {plan['steps']} steps of rows")
            results = {name: take(name, folder, case, plan, run) for name in contenders}
            known["turns"].append(results)
            store(options.out, case.name, finished(case, known))
    return finished(case, known)


def check_agreement(
    contenders: list[str], folder: Path, case: Case, run: partial[str]
) -> tuple[Json, Json]:
    """Two steps of each on the same batch: same tokens, same losses; and what they cost.

    The second loss depends on the first step's gradients, so those are compared as well.

    Raises:
        SystemExit: two contenders do not compute the same thing.
    """
    results, costs = {}, {}
    for name in contenders:
        began = time.monotonic()
        batch = str(case.check)
        more = ("--batch", batch, "--rows", batch, "--epochs", "2", "--learning-rate", "1e-4")
        results[name] = result_of(run("contenders.py", name, str(folder), *more))
        pair = results[name]["step_seconds"][-1] / case.check
        costs[name] = {
            "pair": pair,
            "start": max(time.monotonic() - began - 2 * case.check * pair, 0),
        }
        say(f"{case.name}: {name} agrees so far, {1 / pair:.2f} pairs/s in one step")
    losses = {name: result["losses"] for name, result in results.items()}
    difference = max(
        (max(step) - min(step)) / min(step) for step in zip(*losses.values(), strict=True)
    )
    same_tokens = len({result["tokens"] for result in results.values()}) == 1
    if not same_tokens or difference > LOSS_TOLERANCE:
        seen = {name: (result["tokens"], result["losses"]) for name, result in results.items()}
        raise SystemExit(f"the contenders do not agree, nothing was timed: {seen}")
    agreement = {"losses": losses, "largest_relative_difference": difference, "same_tokens": True}
    return agreement, costs


def plan_case(case: Case, costs: Json, seconds: float) -> Json:
    """How many steps, turns and passes over the rows fit the time, by what a step costs.

    At least two timed steps and two turns, whatever the time (a smoke case has one turn).
    """
    step = {name: case.batch * cost["pair"] for name, cost in costs.items()}

    def turn(steps: int) -> float:
        return sum(
            cost["start"] + step[name] + max(steps * step[name], LONG_ENOUGH)
            for name, cost in costs.items()
        )

    choices = [
        (steps, turns)
        for turns in range(case.turns, min(case.turns, LEAST_TURNS) - 1, -1)
        for steps in range(case.steps, LEAST_STEPS - 1, -1)
    ]
    fitting = [choice for choice in choices if choice[1] * turn(choice[0]) <= seconds]
    steps, turns = fitting[0] if fitting else choices[-1]
    long_enough = 0.0 if case.model == "smoke" else LONG_ENOUGH
    cycles = {
        name: min(max(round(long_enough / (steps * step[name])), 1), MOST_CYCLES) for name in costs
    }
    return {
        "steps": steps,
        "turns": turns,
        "cycles": cycles,
        "expected_minutes": round(turns * turn(steps) / 60, 1),
    }


def take(name: str, folder: Path, case: Case, plan: Json, run: partial[str]) -> Json:
    """One contender's turn, and how busy the machine was before and after it."""
    pause = 0.02 if case.model == "smoke" else 0.5
    before = busy(pause)
    rows = case.batch * (1 + plan["steps"])
    more = ("--rows", str(rows), "--warmup", "1", "--cycles", str(plan["cycles"][name]))
    result = result_of(run("contenders.py", name, str(folder), "--batch", str(case.batch), *more))
    after = busy(pause)
    say(
        f"{case.name}: {name:18} {result[SPEED]:7.2f} pairs/s {result['peak_mib']:6.0f} MiB "
        f"({result['steps']} steps)"
    )
    del result["losses"], result["tokens"]
    return result | {"others": [before, after]}


def finished(case: Case, known: Json) -> Json:
    """The record of a case with what its turns come to."""
    turns = known["turns"]
    shares = [share for turn in turns for result in turn.values() for share in result["others"]]
    return known | {
        "complete": len(turns) == known["plan"]["turns"],
        "under_load": under_load(shares),
        "summary": {name: summary([turn[name] for turn in turns]) for name in turns[0]},
        "ratios": ratios(case.name, turns),
    }


if __name__ == "__main__":
    sys.exit(main())
