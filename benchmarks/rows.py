"""Data of any size: the peak memory of a training, and how fast its data is prepared.

    python benchmarks/rows.py                              # 20,000 and 2,000,000 generated rows
    python benchmarks/rows.py --hh harmless_base.jsonl.gz  # rates on real rows, prompts varied
    python benchmarks/rows.py --smoke                      # seconds; a tiny model

Each training runs in a process of its own, from an empty cache: it fingerprints, reads and
tokenises the file, scores the reference of its steps and trains them. Its peak resident set
is what the system says (VmHWM), the start of the process and all imports included. The same
training is done once more in another process, which finds the tokens of the first.

Rates are of `load_sources`: rows of the file over the time from its first byte to the plan,
and, as the machine may be busy, also over the processor time of all threads.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
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
from workload import SIZES, save_models, train_tokenizer

SCRIPTS = ("rows.py", "workload.py", "measuring.py")
STEPS, BATCH, MICROBATCH = 20, 32, 4096
FLAT = 1.10  # most that memory may grow by
Row = dict[str, str]


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_arguments(arguments)
    if options.child:
        print(json.dumps(CHILDREN[options.child](Path(options.folder), Path(options.rows))))
        return 0
    with tempfile.TemporaryDirectory(dir=options.work) as work:
        report = measure(Path(work), options)
    write_json(options.out, report)
    memory, rates = report["memory"], report["rates"]
    for name, run in memory["runs"].items():
        print(f"{int(name):>9,} rows: {run['peak_mib']:7.1f} MiB, "
              f"{run['rows_per_second']:,.0f} rows/s prepared")  # fmt: skip
    print(f"peak memory, most rows over fewest: {memory['ratio']:.3f} (at most {FLAT})")
    for name, rate in rates.items():
        print(f"{name}: {rate['rows_per_second']:,.0f} rows/s, "
              f"{rate['rows_per_processor_second']:,.0f} a second of processor time, "
              f"{rate['again']['rows_per_second']:,.0f} rows/s from the store")  # fmt: skip
    print(options.out)
    return 0 if memory["ratio"] <= FLAT else 1


def measure(work: Path, options: argparse.Namespace) -> Json:
    """All figures, with what they were measured on."""
    size = SIZES["smoke" if options.smoke else "14M"]
    texts = ("".join(row.values()) for row in rows_of(2000, options.seed))
    save_models(work, train_tokenizer(texts, size.vocabulary), size, options.seed)
    share = busy()
    memory: Json = {"steps": STEPS, "batch_size": BATCH, "runs": {}}
    for count in options.counts:
        path = work / f"rows-{count}.jsonl"
        say(f"writing {count:,} rows")
        write_rows(path, rows_of(count, options.seed))
        say(f"training on {count:,} rows")
        first, again = (child("train", work, path, options) for _ in range(2))
        shutil.rmtree(work / "cache")
        say(f"{count:,} rows: {first['peak_mib']:.1f} MiB, {json.dumps(first)}")
        if first["fingerprint"] != again["fingerprint"]:
            raise SystemExit("what came back from the store is not what went in")
        memory["runs"][str(count)] = {**first, "bytes": path.stat().st_size, "again": again}
        path.unlink()
    peaks = [run["peak_mib"] for run in memory["runs"].values()]
    memory["ratio"] = peaks[-1] / peaks[0]
    return {
        **provenance(SCRIPTS),
        "smoke": options.smoke,
        "under_load": under_load([share]),
        "busy": share,
        "memory": memory,
        "rates": rates(work, options, size.vocabulary),
    }


def rates(work: Path, options: argparse.Namespace, vocabulary: int) -> Json:
    """Rows a second of real transcripts, if there are any, as text and as conversations."""
    found: Json = {}
    sources = {"generated": list(rows_of(options.rate_rows, options.seed + 1))}
    if options.hh is not None:
        sources["hh"] = list(varied(read_lines(options.hh), options.rate_rows))
    for name, rows in sources.items():
        say(f"preparing {len(rows):,} rows: {name}")
        folder = work / name
        texts = ("".join(row.values()) for row in rows[:2000])
        save_models(folder, train_tokenizer(texts, vocabulary), SIZES["smoke"], options.seed)
        for part in ("policy", "reference"):
            add_template(folder / part)
        write_rows(folder / "rows.jsonl", iter(rows))
        found[name] = child("prepare", folder, folder / "rows.jsonl", options)
        found[name]["again"] = child("prepare", folder, folder / "rows.jsonl", options)
    return found


# -- rows ----------------------------------------------------------------------------------


def rows_of(count: int, seed: int) -> Iterator[Row]:
    """Short rows of made-up words, each with a prompt of its own; half of them are polite."""
    draw = random.Random(seed)
    syllables = [a + b for a in "bdfgklmnprstvw" for b in "aeiou"]
    words = ["".join(draw.choices(syllables, k=draw.randint(1, 4))) for _ in range(3000)]
    for index in range(count):
        first, second, third, fourth = draw.choices(words, k=4)
        yield {
            "prompt": f"{index} {first} {second}?",
            "chosen": f" Gladly, {third}.",
            "rejected": f" No, {fourth}.",
        }


def varied(rows: Sequence[Row], count: int) -> Iterator[Row]:
    """Transcripts again and again, with another beginning each time."""
    for index, row in zip(range(count), cycle(rows), strict=False):
        opening = f"\n\nHuman: ({index})"
        yield {side: row[side].replace("\n\nHuman:", opening, 1) for side in ("chosen", "rejected")}


def read_lines(path: Path) -> list[Row]:
    data = path.read_bytes()
    text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
    return [json.loads(line) for line in text.splitlines()]


def write_rows(path: Path, rows: Iterator[Row]) -> None:
    with path.open("w", encoding="utf-8") as stream:
        stream.writelines(json.dumps(row) + "\n" for row in rows)


def add_template(folder: Path) -> None:
    """A chat template, for rows that are conversations."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = (
        "{% for turn in messages %}{{ '\n\nHuman: ' if turn['role'] == 'user' else "
        "'\n\nAssistant: ' }}{{ turn['content'] }}{% if turn['role'] == 'assistant' %}"
        "{{ eos_token }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '\n\nAssistant: ' }}{% endif %}"
    )
    tokenizer.save_pretrained(folder)


# -- in a process of its own ---------------------------------------------------------------


def child(what: str, folder: Path, rows: Path, options: argparse.Namespace) -> Json:
    """Do something in a process of its own, whose cache is in the folder."""
    os.environ["PREFOPT_CACHE"] = str(folder / "cache")
    arguments = ("--child", what, "--folder", str(folder), "--rows", str(rows))
    return result_of(python("rows.py", *arguments, threads=options.threads))


def recipe_of(folder: Path, rows: Path) -> Json:
    return {
        "model": str(folder / "policy"), "reference": str(folder / "reference"),
        "data": str(rows), "out": str(folder / "run"), "resume": "never", "on_error": "skip",
        "too_long": "drop", "batch_size": BATCH, "microbatch_tokens": MICROBATCH,
        "max_steps": STEPS, "learning_rate": 1e-5,
    }  # fmt: skip


def prepare(folder: Path, rows: Path) -> Json:
    """Read, tokenise and plan; nothing else."""
    from prefopt.policies.load import load_policy
    from prefopt.recipe import load_recipe
    from prefopt.training.prepare import make_learner, settle
    from prefopt.training.sources import load_sources

    resolved, loss = settle(load_recipe(None, recipe_of(folder, rows)))
    learner = make_learner(load_policy(resolved.recipe.model), resolved.recipe, loss)
    watch = Watch()
    data, _ = load_sources(learner, resolved.recipe.data, training=True)
    return {**watch.read(data.counts), "steps": len(data.steps)}


def train(folder: Path, rows: Path) -> Json:
    """A whole training; how long its data took is measured inside it."""
    from prefopt.recipe import load_recipe
    from prefopt.training import train as stage

    load, told = stage.load_sources, {}

    def timed(*arguments: object, **named: object) -> object:
        watch = Watch()
        found = load(*arguments, **named)
        told.update(watch.read(found[0].counts), fingerprint=found[0].fingerprint)
        return found

    stage.load_sources = timed
    result = stage.train(load_recipe(None, recipe_of(folder, rows)), progress=False)
    assert result.steps == STEPS
    return {**told, "peak_mib": peak_mib(), "loss": result.final_loss}


class Watch:
    """Time since it was made, on the clock and of the processors."""

    def __init__(self) -> None:
        self.started = time.perf_counter(), time.process_time()

    def read(self, counts: Json) -> Json:
        wall, processor = time.perf_counter(), time.process_time()
        seconds, busy_for = wall - self.started[0], processor - self.started[1]
        rows = counts["groups"] + sum(counts["skipped"].values())
        return {
            "rows": rows,
            "tokens": counts["tokens"],
            "skipped": counts["skipped"],
            "seconds": seconds,
            "processor_seconds": busy_for,
            "rows_per_second": rows / seconds,
            "rows_per_processor_second": rows / busy_for,
            "peak_mib": peak_mib(),
        }


def peak_mib() -> float:
    """The largest resident set of this process so far."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise SystemExit("the system does not tell the peak memory of a process")


CHILDREN = {"train": train, "prepare": prepare}


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--counts", type=int, nargs="+", default=None)
    parser.add_argument("--rate-rows", type=int, default=None)
    parser.add_argument("--hh", type=Path, help="Anthropic's transcripts, .jsonl or .jsonl.gz")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--work", type=Path, help="where the rows are written (some 500 MB)")
    parser.add_argument("--out", type=Path)
    for name in ("--child", "--folder", "--rows"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.counts = options.counts or ([700, 1400] if options.smoke else [20_000, 2_000_000])
    options.rate_rows = options.rate_rows or (600 if options.smoke else 40_000)
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    options.out = options.out or RESULTS / f"rows-{stamp}.json"
    return options


if __name__ == "__main__":
    raise SystemExit(main())
