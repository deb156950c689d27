"""The labelling room under a crowd: 50 annotators, 20,000 votes, four server processes.

    python benchmarks/labelling.py                # some 20 minutes on two idle cores
    python benchmarks/labelling.py --smoke        # seconds

The server is `prefopt label serve`, the annotators are threads of one more process with real
links, cookies and words against forgery; on a machine with two cores they share those with the
server and the database. Two kinds of traffic, each on a fresh database:

*hurried*  every annotator answers at once, without looking: how many votes a second there can be,
           and whether a slot is ever given out beyond its overlap, or a vote lost or doubled.
*steady*   annotators think `--think` seconds on average, exponentially distributed, which is still
           several times as fast as anybody reads: what one of them waits for. The promise is
           about this.

A time is that of one answer with the next question in its reply, seen by the annotator, from the
first byte sent to the last byte read. Afterwards the books are audited: every acknowledged vote is
in the database once and as it was given, no item has more votes than wanted, and replaying the
events gives the same state.

PostgreSQL is a private cluster with its own settings of durability (fsync is on).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from measuring import (
    HERE,
    RESULTS,
    Json,
    busy,
    provenance,
    python,
    result_of,
    say,
    under_load,
    versions,
    write_json,
)
from tables import labelling

sys.path.insert(0, str(HERE.parent))  # the crowd and the private cluster are the tests' own

SCRIPTS = ("labelling.py", "measuring.py")
PACKAGES = ("starlette", "uvicorn", "sqlalchemy", "pg8000")
#: milliseconds that nineteen of twenty answers may take
PROMISE = 100.0


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_arguments(arguments)
    if options.child:
        print(json.dumps(measure(options)))
        return 0
    share = busy()
    record: Json = provenance(SCRIPTS) | {
        "smoke": options.smoke, "busy": share, "under_load": under_load([share]),
        "people": options.people, "processes": options.processes, "think": options.think,
        "cases": {},
    }  # fmt: skip
    record["versions"] |= versions(PACKAGES)
    for database in options.databases:
        for traffic in ("hurried", "steady"):
            votes = options.votes if traffic == "hurried" else options.steady_votes
            name = f"{database} {traffic}"
            say(f"{name}: {votes:,} votes")
            given = (
                *("--child", database, "--traffic", traffic, "--votes", str(votes)),
                *("--people", str(options.people), "--processes", str(options.processes)),
                *("--think", str(options.think)),
            )
            record["cases"][name] = result_of(python("labelling.py", *given, threads=1))
            say(json.dumps(record["cases"][name]))
            write_json(options.out, record)
    print("\n".join(labelling(record)))
    return 0 if options.smoke or met(record) else 1


def met(record: Json) -> bool:
    """Whether nineteen of twenty answers came in time, on either database."""
    return all(
        case["answer_ms"]["p95"] < PROMISE
        for name, case in record["cases"].items()
        if name.endswith("steady")
    )


def measure(options: argparse.Namespace) -> Json:
    """One database under one kind of traffic."""
    from tests.crowd import Manners, audit, crowd
    from tests.served import Server, link_of, make_task, opened

    think = options.think if options.traffic == "steady" else 0.0
    manners = Manners(think=think, skip=0.02, undo=0.01, again=0.01, reload=0.1)
    names = [f"annotator-{number}" for number in range(options.people)]
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        url, system = stack.enter_context(database(options.child, folder))
        with opened(url) as store:
            overlap = 5 if options.people > 10 else 2
            items = list(questions(-(-options.votes // overlap)))
            make_task(
                store, "load", items, overlap=overlap, repeat_share=0.02, guidelines="Be fair."
            )
            tokens = [link_of(store, name) for name in names]
        server = stack.enter_context(Server(url, folder, processes=options.processes))
        people = crowd(server.port, tokens, "load", manners)
        began, mine = processor_seconds(), time.process_time()
        served = server.processor_seconds
        started = time.perf_counter()
        people.start()
        people.wait(3600)
        seconds = time.perf_counter() - started
        ours = time.process_time() - mine
        used = processor_seconds() - began
        served = server.processor_seconds - served
        with opened(url) as store:
            books = audit(store, "load", dict(zip(names, people.labellers, strict=True)))
            progress = store.progress("load")
        size = system()
    assert progress.votes == progress.wanted, "not all that was wanted was asked for"
    answering = [time for person in people.labellers for time in person.answering]
    reloading = [time for person in people.labellers for time in person.reloading]
    troubles = sum((person.troubles for person in people.labellers), Counter())
    return {
        "votes": progress.votes,
        "items": progress.items,
        "overlap": overlap,
        **books,
        "troubles": dict(troubles),
        "seconds": seconds,
        "answers_per_second": len(answering) / seconds,
        "answer_ms": percentiles(answering),
        "reload_ms": percentiles(reloading),
        "processors": used / seconds,
        "of_it_annotators": ours / seconds,
        "server_ms_per_answer": 1000 * served / len(answering),
        "bytes_per_answer": size / books["answers"],
    }


@contextlib.contextmanager
def database(kind: str, folder: Path) -> Iterator[tuple[str, Callable[[], int]]]:
    """The address of an empty one, and what tells how many bytes it has."""
    if kind == "sqlite":
        path = folder / "votes.db"
        yield (
            f"sqlite:///{path}",
            lambda: sum(part.stat().st_size for part in folder.glob("votes*")),
        )
        return
    from tests.postgres import cluster

    with cluster() as server:
        url = server.create()
        yield url, lambda: server.size(url)


def questions(count: int) -> Iterator[object]:
    """Of the length that chat answers have: some 300 words each."""
    from prefopt.labelling.words import NewItem
    from prefopt.records import Completion, Message

    said = "Some words of an answer, with *stress* and `code`. " * 30
    listed = "\n".join(f"- point {number} of it" for number in range(8))
    for number in range(count):
        yield NewItem(
            prompt=(Message("user", f"Question {number}: what should one do about it?"),),
            first=Completion(f"First answer to {number}.\n\n{said}\n\n{listed}"),
            second=Completion(f"Second answer to {number}.\n\n{said}"),
        )


def percentiles(seconds: Sequence[float]) -> Json:
    """p50, p95, p99 and the longest, in milliseconds."""
    ordered = sorted(seconds)
    return {
        name: 1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))]
        for name, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99), ("most", 1.0))
    }


def processor_seconds() -> float:
    """That all processes of the machine have used since it started."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    ticks = [int(field) for field in fields]
    return (sum(ticks) - ticks[3] - ticks[4]) / os.sysconf("SC_CLK_TCK")


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--votes", type=int, help="of the hurried traffic (default: 20,000)")
    parser.add_argument("--steady-votes", type=int, help="default: 20,000")
    parser.add_argument("--people", type=int, default=50)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--think", type=float, default=1.0, help="seconds (default: 1)")
    parser.add_argument(
        "--databases", nargs="+", choices=("sqlite", "postgresql"), default=["sqlite", "postgresql"]
    )
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS / "labelling.json")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--traffic", default="hurried", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.smoke:
        options.people, options.think = 4, 0.02
    options.votes = options.votes or (60 if options.smoke else 20_000)
    options.steady_votes = options.steady_votes or (60 if options.smoke else 20_000)
    return options


if __name__ == "__main__":
    raise SystemExit(main())
