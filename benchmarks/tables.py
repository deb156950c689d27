"""The tables of `results/README.md`, made from the JSON files beside it and from nothing else.

python benchmarks/tables.py          # write them
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from measuring import RESULTS, read_json, write_text

Json = dict[str, Any]
NAMES = {
    "prefopt": "prefopt, cached reference scores",
    "prefopt-each-step": "prefopt, reference each step",
    "trl": "TRL as it comes",
    "trl-best": "TRL at its best",
    "plain": "plain padded loop",
}
KEYS = {
    "pairs_per_second": "pairs/s",
    "whole_pairs_per_second": "whole job",
    "peak_mib": "peak memory",
}


def render(folder: Path) -> str:
    """The whole page."""
    lines = [
        "# What was measured",
        "",
        "Made by `benchmarks/tables.py` from the JSON files in this folder; do not edit it.",
        "",
    ]
    for pattern, section in SECTIONS.items():
        if files := sorted(folder.glob(pattern)):
            lines += section(read_json(files[-1]))
    return "\n".join(lines).rstrip() + "\n"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Markdown, with an empty line after it."""
    every = [head, ["---"] * len(head), *rows]
    return [*(f"| {' | '.join(row)} |" for row in every), ""]


def ranged(row: Json, digits: int, times: float = 1.0) -> str:
    """Median, with the range where there is one."""
    median, least, most = (f"{row[key] * times:,.{digits}f}" for key in ("median", "least", "most"))
    return median if least == most else f"{median} ({least} – {most})"


def answer(row: Json) -> str:
    return {True: "yes", False: "no", None: ""}[row.get("met")]


def where(record: Json) -> str:
    """Machine, versions and commit, in a sentence."""
    machine, versions = record["hardware"], record["versions"]
    packages = ", ".join(
        f"{name} {versions[name]}" for name in ("torch", "transformers", "trl") if versions[name]
    )
    return (
        f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gib']:g} GiB, "
        f"{machine['system']}; {packages}; commit {record['commit']}, {record['measured']}."
    )


# -- versus --------------------------------------------------------------------------------


def versus(known: Json) -> list[str]:
    cases = known["cases"]
    lines = ["## Against TRL and a plain padded loop (`versus.py`)", ""]
    lines += headline(cases)
    for name, record in cases.items():
        lines += versus_case(name, record)
    return lines


def headline(cases: Json) -> list[str]:
    """How many times as fast, and how much of the memory; cached / each step."""

    def cell(record: Json, key: str, baseline: str, digits: int) -> str:
        found = {
            row["ours"]: row["median"]
            for row in record["ratios"]
            if (row["key"], row["baseline"]) == (key, baseline)
        }
        both = [found[name] for name in ("prefopt", "prefopt-each-step") if name in found]
        return " / ".join(f"{ratio:.{digits}f}" for ratio in both) or "–"

    rows = [
        [
            f"`{name}`{' ⚠' if record['under_load'] else ''}",
            *(cell(record, "pairs_per_second", base, 1) for base in ("trl", "trl-best", "plain")),
            *(cell(record, "peak_mib", base, 2) for base in ("trl", "plain")),
            met(record),
        ]
        for name, record in cases.items()
    ]
    head = ("case", "× TRL", "× TRL at its best", "× plain loop", "memory of TRL's")
    return [
        "Pairs a second and peak memory as multiples of theirs, with cached reference scores / "
        "with the reference scored each step. ⚠: something else used the machine meanwhile.",
        "",
        *table((*head, "of the plain loop's", "targets met"), rows),
    ]


def met(record: Json) -> str:
    promised = [row["met"] for row in record["ratios"] if "met" in row]
    return f"{sum(promised)} of {len(promised)}" if promised else ""


def versus_case(name: str, record: Json) -> list[str]:
    """All of one case."""
    model, tokens = record["workload"]["model"], record["workload"]["tokens"]
    lengths = ", ".join(f"{part} {mean:g}" for part, mean in tokens.items())
    batch, plan = record["settings"]["batch"], record["plan"]
    lines = [
        f"### {name}",
        "",
        f"{model['parameters'] / 1e6:.1f} M parameters, vocabulary {model['vocabulary']:,}; rows: "
        f"{record['workload']['rows']}, mean tokens: {lengths}; {batch} pairs a step, "
        f"{plan['steps']} timed steps of rows; {record['settings']['threads']} threads, float32. "
        f"Losses agree within {record['agreement']['largest_relative_difference']:.1e}. "
        f"{where(record)}",
        "",
        *(f"*{note}*\n" for note in record["notes"]),
    ]
    if record["under_load"]:
        lines += ["⚠ Something else used the machine meanwhile.", ""]
    if not record["complete"]:
        lines += [f"Broken off after {len(record['turns'])} of {plan['turns']} turns.", ""]
    rows = [
        [
            NAMES[contender],
            ranged(row["pairs_per_second"], 2),
            ranged(row["whole_pairs_per_second"], 2),
            ranged(row["peak_mib"], 0),
            f"{row['peak_mib']['median'] - row['held_mib']['median']:,.0f}",
            f"{row['steps']} in {row['turns']}",
        ]
        for contender, row in record["summary"].items()
    ]
    head = ("contender", "pairs/s", "whole job, pairs/s", "peak MiB", "training alone MiB")
    lines += table((*head, "timed steps in turns"), rows)
    rows = [
        [
            NAMES[row["ours"]],
            f"{KEYS[row['key']]} against {NAMES[row['baseline']]}",
            ranged(row, 2),
            row.get("target", ""),
            answer(row),
        ]
        for row in record["ratios"]
    ]
    return lines + table(("", "ratio within a turn", "median", "target", "met"), rows)


# -- limit ---------------------------------------------------------------------------------


def limit(known: Json) -> list[str]:
    lines = ["## How near to the floor (`limit.py`)", ""]
    lines += [
        "The floor is the time that the matrix products which the work needs would take alone, at "
        "the rates measured here for their shapes: every distinct token once, the head only where "
        "a token is predicted, the reference once. A share of the floor is floor / time.",
        "",
    ]
    rows = [
        [
            f"`{name}`{' ⚠' if case['under_load'] else ''}",
            f"{case['model']['parameters'] / 1e6:.1f} M",
            *(f"{case[part]['share']:.0%}" for part in ("steps", "training", "whole")),
            case["target"],
            answer(case),
        ]
        for name, case in known["cases"].items()
    ]
    head = ("case", "parameters", "the steps", "with the reference", "the whole run", "target")
    lines += table((*head, "met"), rows)
    for name, case in known["cases"].items():
        lines += limit_case(name, case)
    return lines


def limit_case(name: str, case: Json) -> list[str]:
    work = case["work"]
    lines = [
        f"### {name}: phases",
        "",
        f"{work['steps']} steps of {case['settings']['batch']} pairs, {work['tokens']:,} distinct "
        f"tokens, {work['predictions']:,} predictions. {where(case)}",
        "",
    ]
    rows = [
        [
            phase,
            f"{row['seconds']:.2f}",
            f"{row['seconds'] / case['whole']['seconds']:.1%}",
            f"{row['gflop']:,.0f}" if row["gflop"] else "",
            f"{row['floor']:.2f}" if row["floor"] else "",
            f"{row['share']:.0%}" if row["floor"] else "",
        ]
        for phase, row in case["phases"].items()
    ]
    lines += table(("phase", "seconds", "of the run", "GFLOP", "floor, s", "share of it"), rows)
    prepared = case["preparing"]
    lines += [
        f"Reading, tokenising and packing: {prepared['rows_per_second']:,.0f} rows a second "
        f"(target ≥ 5,000: {answer(prepared)}).",
        "",
        "Rates by shape (GFLOP/s): "
        + ", ".join(f"{shape} {rate:,.0f}" for shape, rate in case["rates"].items())
        + ".",
        "",
    ]
    if spent := case.get("spent"):
        lines += ["Where the time of the steps goes, by PyTorch's profiler:", ""]
        lines += table(
            ("kind", "seconds", "share", "most of it"),
            [
                [kind, f"{row['seconds']:.2f}", f"{row['share']:.1%}", ", ".join(row["most"])]
                for kind, row in spent.items()
            ],
        )
    return lines


# -- growth --------------------------------------------------------------------------------


def growth(known: Json) -> list[str]:
    lines = ["## How cost grows (`growth.py`)", ""]
    lines += [
        "Slope of the logarithm of the cost against the logarithm of the size: 1 is in "
        "proportion, 0 is flat. R² tells how straight the line is.",
        "",
        "![cost against size](growth.svg)",
        "",
    ]
    rows = []
    for axis, found in known["axes"].items():
        sizes = [f"{point['size']:,}" for point in found["points"]]
        for measure, fit in found["fits"].items():
            unit = found["units"][measure]
            values = [f"{point[measure]:,.3g}" for point in found["points"]]
            slope, straight = f"{fit['slope']:+.2f}", f"{fit['r2']:.3f}"
            rows.append([axis, ", ".join(sizes), unit, ", ".join(values), slope, straight])
    lines += table(("against", "sizes", "cost", "measured", "slope", "R²"), rows)
    return [*lines, where(known), ""]


# -- data of any size, plans, devices ------------------------------------------------------


def rows(known: Json) -> list[str]:
    memory = known["memory"]
    lines = ["## Data of any size (`rows.py`)", ""]
    found = [
        [f"{int(count):,}", f"{run['peak_mib']:,.0f}", f"{run['rows_per_second']:,.0f}"]
        for count, run in memory["runs"].items()
    ]
    lines += table(("rows of the file", "peak MiB of a training", "rows/s prepared"), found)
    load = " Something else used the machine meanwhile." if known["under_load"] else ""
    return [*lines, f"Most over fewest: {memory['ratio']:.3f}.{load} {where(known)}", ""]


def checking(known: Json) -> list[str]:
    lines = ["## Checking data (`checking.py`)", ""]
    found = [
        [
            name,
            f"{case['rows']:,}",
            f"{case['bytes_per_row']:,.0f}",
            *(f"{case[key]:,.0f}" for key in ("rows_per_second", "rows_per_second_reading")),
            f"{case['seconds']:,.0f}",
            f"{case['peak_gib']:.2f}",
        ]
        for name, case in known["cases"].items()
    ]
    head = ("rows", "how many", "bytes a row", "rows/s", "while reading", "seconds", "peak GiB")
    load = " Something else used the machine meanwhile." if known["under_load"] else ""
    processes = f"{known['processes']} processes."
    return [*lines, *table(head, found), f"{processes}{load} {where(known)}", ""]


def plan(known: Json) -> list[str]:
    found = [
        [
            name,
            case["phase"],
            *(f"{case[key]:,.0f}" for key in ("predicted_mib", "measured_mib")),
            f"{case['ratio']:.2f}",
        ]
        for name, case in known["cases"].items()
    ]
    head = ("recipe", "most in", "predicted MiB", "measured MiB", "predicted / measured")
    return ["## What `prefopt plan` foretells (`plan.py`)", "", *table(head, found),
            where(known), ""]  # fmt: skip


def gpu(known: Json) -> list[str]:
    def number(entry: Json, key: str, form: str) -> str:
        return "–" if entry.get(key) is None else format(entry[key], form)

    found = [
        [
            name,
            entry["prefopt"],
            number(entry, "pairs_per_second", ".2f"),
            number(entry, "times_as_fast", ".2f"),
            number(entry, "share_of_memory", ".2f"),
            number(entry, "share_of_product_rate", ".0%"),
        ]
        for name, entry in known.get("summary", {}).items()
    ]
    head = ("model and workload", "prefopt", "pairs/s", "× TRL at its best", "memory of TRL's")
    return ["## On a GPU (`gpu.py`)", "",
            *table((*head, "of the matrix-product rate"), found), where(known), ""]  # fmt: skip


def acquisition(known: Json) -> list[str]:
    lines = ["## Which comparisons to label (`acquisition.py`)", ""]
    for pool, runs in known["learning"].items():
        found = [
            [f"`{name}`", *(f"{x:.3f} ({gain:+.3f} ± {error:.3f})" for x, gain, error in
                            zip(run["accuracy"], run["gain"], run["error"], strict=True))]
            for name, run in runs.items()
        ]  # fmt: skip
        head = (f"{pool} pool", *(f"{count} labels" for count in known["points"]))
        lines += table(head, found)
    lines += [
        "Accuracy on fresh pairs (in brackets the gain over `random` and its standard error), mean "
        f"of {known['seeds']} worlds.",
        "",
    ]
    cost = known["cost"]
    found = [
        [f"`{run['strategy']}`", f"{run['count']:,}", f"{run['seconds']:.1f}"]
        for run in cost["runs"]
    ]
    head = (f"of {cost['pairs']:,} pairs with {cost['width']} features", "chosen", "seconds")
    return [*lines, *table(head, found), where(known), ""]


def labelling(known: Json) -> list[str]:
    lines = ["## The labelling room under a crowd (`labelling.py`)", ""]
    lines += [
        f"{known['people']} annotators on {known['processes']} server processes, all on one "
        "machine; a time is that of an answer with the next question in its reply. Hurried: nobody"
        f" thinks. Steady: {known['think']:g} s of thought on average. Afterwards every "
        "acknowledged answer was in the database once, as given; no item had more votes than its "
        "overlap, and replaying the events gave the same state.",
        "",
    ]
    found = [
        [
            name,
            f"{case['votes']:,}",
            f"{case['answers_per_second']:,.0f}",
            *(f"{case['answer_ms'][key]:,.0f}" for key in ("p50", "p95", "p99", "most")),
            f"{case['reload_ms']['p95']:,.0f}",
            f"{case['processors']:.2f} ({case['of_it_annotators']:.2f})",
            f"{case['server_ms_per_answer']:.1f}",
        ]
        for name, case in known["cases"].items()
    ]
    head = ("traffic", "votes", "answers/s", "p50 ms", "p95", "p99", "longest", "p95 of a reload")
    used = ("processors in use (annotators')", "processor ms an answer, server")
    lines += table((*head, *used), found)
    load = "Something else used the machine meanwhile. " if known["under_load"] else ""
    return [*lines, f"{load}{where(known)}", ""]


#: file in the folder → its part of the page; of several files, dated ones, the last counts
SECTIONS: dict[str, Callable[[Json], list[str]]] = {
    "versus.json": versus,
    "limit.json": limit,
    "growth.json": growth,
    "rows*.json": rows,
    "checking.json": checking,
    "plan.json": plan,
    "gpu.json": gpu,
    "acquisition.json": acquisition,
    "labelling.json": labelling,
}


def cells(text: str) -> Iterator[tuple[str, ...]]:
    """The rows of all tables on a page, as what is in their cells."""
    for line in text.splitlines():
        if line.startswith("|"):
            yield tuple(cell.strip() for cell in line.strip("|\n ").split("|"))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="write the page of tables")
    parser.add_argument("--folder", type=Path, default=RESULTS)
    folder = parser.parse_args(arguments).folder
    write_text(folder / "README.md", render(folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
