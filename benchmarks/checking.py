"""How fast `prefopt check` reads, and how much memory that takes: ten million rows, and long ones.

    python benchmarks/checking.py                              # some 6 GB of disk, a quarter hour
    python benchmarks/checking.py --hh harmless_base.jsonl.gz  # long rows are real ones, varied
    python benchmarks/checking.py --smoke                      # seconds

Measured is `check(quick=True)`: everything but what looks at texts again (near-duplicates,
clusters, suspect labels), whose cost does not grow with the data: it is measured once, on the
long rows. Each check runs in a process of its own, which starts as many more as there are
processors. Memory is the largest sum of the resident sets of all of these at one time, looked at
ten times a second; pages that they share count once for each.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from itertools import cycle
from pathlib import Path

from measuring import (
    RESULTS,
    Json,
    busy,
    provenance,
    python,
    result_of,
    say,
    under_load,
    write_json,
)
from tables import checking

SCRIPTS = ("checking.py", "measuring.py")
#: what is promised: rows a second, and GiB for the ten million
RATE, MEMORY = 20_000, 4.0


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_arguments(arguments)
    if options.child:
        print(json.dumps(check_file(Path(options.child), options)))
        return 0
    share = busy()
    record: Json = provenance(SCRIPTS) | {
        "smoke": options.smoke, "processes": options.processes, "busy": share,
        "under_load": under_load([share]), "cases": {},
    }  # fmt: skip
    with tempfile.TemporaryDirectory(dir=options.work) as work:
        for name, rows, flags in cases(options):
            path = Path(work) / f"{name}.jsonl"
            if not path.exists():
                say(f"writing {name}")
                write_lines(path, rows)
            record["cases"][name + " ".join(("", *flags))] = measure(path, flags, options)
            write_json(options.out, record)
    print("\n".join(checking(record)))
    return 0 if options.smoke or met(record) else 1


def cases(options: argparse.Namespace) -> Iterator[tuple[str, Iterator[str], tuple[str, ...]]]:
    """Name, lines and flags; the second case of one name has the file of the first."""
    long = long_lines(options.long_rows, options.seed, options.hh)
    yield "long", long, ("--quick",)
    yield "long", long, ()
    yield "short", short_lines(options.rows, options.seed), ("--quick",)


def met(record: Json) -> bool:
    """Whether the quick checks kept what is promised."""
    return all(
        case["rows_per_second"] >= RATE and case["peak_gib"] < MEMORY
        for case in record["cases"].values()
        if case["quick"]
    )


# -- rows ----------------------------------------------------------------------------------


def sentences(seed: int, count: int, words: int) -> list[str]:
    """Made-up sentences of about so many words, a third of them the small words of English."""
    draw = random.Random(seed)
    syllables = [a + b for a in "bdfgklmnprstvw" for b in "aeiou"]
    known = ["".join(draw.choices(syllables, k=draw.randint(1, 4))) for _ in range(3000)]
    known += "the and of to a in is it you that for was with on are this be as".split() * 100
    made = (
        draw.choices(known, k=draw.randint(words // 2, words + words // 2)) for _ in range(count)
    )
    return [f"{' '.join(said).capitalize()}." for said in made]


def short_lines(count: int, seed: int) -> Iterator[str]:
    """Pairs with some 120 characters a side; nearly every twentieth prompt is an earlier one."""
    said = sentences(seed, 20_000, 9)
    draw = random.Random(seed)
    for index in range(count):
        b, c, d, e = (said[int(draw.random() * 20_000)] for _ in range(4))
        number = index if index % 20 else index // 2
        a = said[number * 7919 % 20_000]
        yield (
            f'{{"prompt": "{number}: {a}", "chosen": "{b} {c}", "rejected": "{d} {e}", '
            f'"category": "c{index % 7}", "source": "s{index % 3}"}}\n'
        )


def long_lines(count: int, seed: int, hh: Path | None) -> Iterator[str]:
    """Transcripts as long as Anthropic's; real ones again and again, each with a number, if any."""
    if hh is None:
        said = sentences(seed, 5000, 17)
        draw = random.Random(seed)
        for index in range(count):
            turns = "".join(
                f"\n\n{who}: {draw.choice(said)} {draw.choice(said)}"
                for who in ("Human", "Assistant", "Human")
            )
            row = {side: f"{turns} ({index})\n\nAssistant: {draw.choice(said)} {draw.choice(said)}"
                   for side in ("chosen", "rejected")}  # fmt: skip
            yield json.dumps(row, ensure_ascii=False) + "\n"
        return
    data = hh.read_bytes()
    text = (gzip.decompress(data) if hh.suffix == ".gz" else data).decode()
    rows = [json.loads(line) for line in text.splitlines()]
    for index, row in zip(range(count), cycle(rows), strict=False):
        opening = f"\n\nHuman: ({index})"
        varied = {side: row[side].replace("\n\nHuman:", opening, 1) for side in row}
        yield json.dumps(varied, ensure_ascii=False) + "\n"


def write_lines(path: Path, lines: Iterator[str]) -> None:
    with path.open("w", encoding="utf-8") as stream:
        stream.writelines(lines)


# -- measuring -----------------------------------------------------------------------------


def measure(path: Path, flags: tuple[str, ...], options: argparse.Namespace) -> Json:
    """One check of one file in a process of its own."""
    say(f"checking {path.name} {' '.join(flags)}")
    arguments = ("--child", str(path), "--processes", str(options.processes), *flags)
    with Watch() as watch:
        found = result_of(python("checking.py", *arguments, threads=1))
    bytes_ = path.stat().st_size
    case = {
        **found,
        "bytes": bytes_,
        "bytes_per_row": bytes_ / found["rows"],
        "rows_per_second": found["rows"] / found["seconds"],
        "rows_per_second_reading": found["rows"] / found["reading_seconds"],
        "peak_gib": watch.peak / 2**30,
    }
    say(json.dumps(case))
    return case


def check_file(path: Path, options: argparse.Namespace) -> Json:
    """The check itself, timed."""
    from prefopt.data.checking.check import check

    started = time.perf_counter()
    last = [started]

    def progress(done: int) -> None:
        last[0] = time.perf_counter()

    result = check(path, quick=options.quick, processes=options.processes, progress=progress)
    return {
        "quick": options.quick,
        "rows": result["rows"],
        "groups": result["groups"],
        "comparisons": result["comparisons"],
        "findings": {finding["kind"]: finding["count"] for finding in result["findings"]},
        "seconds": time.perf_counter() - started,
        "reading_seconds": last[0] - started,
    }


class Watch:
    """The largest sum of the resident sets of all descendants of this process, in bytes."""

    def __init__(self) -> None:
        self.peak = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _look(self) -> None:
        page = os.sysconf("SC_PAGE_SIZE")
        while not self._stop.wait(0.1):
            self.peak = max(self.peak, sum(map(_pages, descendants(os.getpid()))) * page)


def descendants(process: int) -> list[int]:
    """Every process that this one started, or that those did."""
    found: list[int] = []
    for task in Path(f"/proc/{process}/task").glob("*/children"):
        try:
            children = [int(child) for child in task.read_text().split()]
        except OSError:
            continue
        for child in children:
            found += [child, *descendants(child)]
    return found


def _pages(process: int) -> int:
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1])
    except (OSError, IndexError):  # it has just ended
        return 0


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, help="short ones (default: 10,000,000)")
    parser.add_argument("--long-rows", type=int, help="as long as HH's (default: 200,000)")
    parser.add_argument("--hh", type=Path, help="Anthropic's transcripts, .jsonl or .jsonl.gz")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--threads", type=int, help="the same, as other benchmarks call it")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--work", type=Path, help="where the rows are written (some 6 GB)")
    parser.add_argument("--out", type=Path, default=RESULTS / "checking.json")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.processes = options.threads or options.processes
    options.rows = options.rows or (3000 if options.smoke else 10_000_000)
    options.long_rows = options.long_rows or (800 if options.smoke else 200_000)
    return options


if __name__ == "__main__":
    raise SystemExit(main())
