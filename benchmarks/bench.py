"""`make bench`: everything about speed and memory, and the page of tables.

    python benchmarks/bench.py --rows harmless_base.jsonl.gz

Runs `versus.py`, `limit.py` and `growth.py` one after the other and then writes
`results/README.md`. On two idle cores all of it takes about an hour; after `--budget`
minutes no further case of `versus.py` begins. What was measured with the same code, packages
and settings on the same kind of machine is not measured again: the same command goes on
where it ended, and once everything is there it takes seconds.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import growth
import limit
import tables
import versus
from measuring import RESULTS, say

#: minutes of the budget that are kept for `limit.py` and `growth.py`
KEPT = 13


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=Path, help="Anthropic HH transcripts, .jsonl or .jsonl.gz")
    parser.add_argument("--budget", type=float, default=45, help="minutes")
    parser.add_argument("--cases", default="main", help="of versus.py: main, all, or names")
    parser.add_argument("--contenders", help="of versus.py")
    parser.add_argument("--threads", default="2")
    parser.add_argument("--seed", default="0")
    parser.add_argument("--smoke", action="store_true", help="that all of it runs, in seconds")
    parser.add_argument("--folder", type=Path, default=RESULTS, help="where the figures go")
    options = parser.parse_args(arguments)
    if options.smoke and options.folder == RESULTS:
        parser.error("a smoke run's figures mean nothing: give another --folder")
    every = ["--threads", options.threads, "--seed", options.seed]
    every += ["--smoke"] if options.smoke else []
    rows = ["--rows", str(options.rows)] if options.rows else []
    chosen = ["--contenders", options.contenders] if options.contenders else []
    began = time.monotonic()
    budget = ["--budget", str(max(options.budget - KEPT, 0)), "--cases", options.cases]
    failed = 0
    for script, more in (
        (versus, [*rows, *budget, *chosen]),
        (limit, rows),
        (growth, []),
    ):
        out = options.folder / f"{script.__name__}.json"
        failed |= script.main([*every, *more, "--out", str(out)])
    tables.main(["--folder", str(options.folder)])
    minutes = (time.monotonic() - began) / 60
    say(f"{options.folder / 'README.md'} is written, after {minutes:.0f} min")
    return failed


if __name__ == "__main__":
    sys.exit(main())
