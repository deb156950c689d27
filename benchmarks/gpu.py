"""prefopt against TRL's best settings on a GPU, with the sizes of real models.

    python benchmarks/gpu.py                    # everything that fits the budget
    python benchmarks/gpu.py --smoke            # on a CPU, in seconds: it still runs

Qwen3-0.6B and 1.7B by their configs, with random weights; full fine-tuning, bfloat16 autocast
over float32 weights; rows with the lengths of Anthropic's HH, and four completions a prompt.
Every contender is a process of its own. Before a figure counts, tokens must be the same and
losses alike. TRL is measured with several numbers of rows at once, and its fastest counts.

Each result is written as soon as it is there. A later call with the same code on the same
machine goes on where the budget ended.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from measuring import (
    RESULTS,
    Json,
    comparable,
    provenance,
    python,
    read_json,
    result_of,
    say,
    write_json,
)
from workload import (
    EOS,
    SHORT,
    WORKLOADS,
    Group,
    Kind,
    _own_layout,
    _splits_alike,
    _write_lines,
    generate,
    token_statistics,
    train_tokenizer,
)

SCRIPTS = ("gpu.py", "gpu_contenders.py", "contenders.py", "counting.py", "tasks.py",
           "workload.py", "measuring.py")  # fmt: skip
#: in the order of what is wanted most
MODELS = ("1.7B", "0.6B")
CONTENDERS = ("prefopt", "trl-32", "trl-16", "prefopt-wide", "trl-64", "prefopt-compiled")
#: pairs to a step; four completions are six pairs
BATCH = {"hh": 64, "four": 96}
#: times as fast as TRL's best, by workload
FASTER = {"hh": 2.0, "four": 4.0}
#: of the measured rate of bfloat16 products, at 1.7B
SHARE = 0.45
#: relative difference of losses: bfloat16 rounds sums of some fifty log-probabilities
ALIKE = 0.02
#: distinct tokens a tokenizer learns from made-up words; the model's vocabulary is larger
KNOWN = 8192


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_arguments(arguments)
    ends = time.monotonic() + options.budget
    here = provenance(SCRIPTS) | {"device": device_name(options.device)}
    record = read_json(options.out) if options.out else {}
    if not (comparable(record, here) and record.get("device") == here["device"]):
        record = here | {"models": {}}
    with tempfile.TemporaryDirectory() as folder:
        folders = [Path(folder) / name for name in BATCH]
        for place in folders:
            prepare(place, options)
        record["rows"] = {p.name: read_json(p / "workload.json") for p in folders}
        for model in options.models:
            results = record["models"].setdefault(model, {})
            for contender in options.contenders:
                if contender in results or time.monotonic() > ends - options.reserve:
                    continue
                results[contender] = run(contender, folders, model, options)
                if options.out:
                    write_json(options.out, record | {"summary": summary(record)})
    record["summary"] = summary(record)
    if options.out:
        write_json(options.out, record)
    print("\n".join(table(record)))
    return 0


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--contenders", default=",".join(CONTENDERS))
    parser.add_argument(
        "--steps", type=int, default=12, help="optimizer steps, two of them warm up"
    )
    parser.add_argument("--budget", type=float, default=540, help="seconds in all")
    parser.add_argument("--reserve", type=float, default=75, help="that a contender may take")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--smoke", action="store_true", help="a tiny model on the CPU")
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--out", type=Path, default=RESULTS / "gpu.json")
    options = parser.parse_args(arguments)
    if options.smoke:
        options.models, options.device, options.steps, options.reserve = "smoke", "cpu", 4, 0.0
        options.contenders = options.contenders if arguments_name(arguments) else "prefopt,trl-4"
        options.out = None if options.out == RESULTS / "gpu.json" else options.out
    options.models = options.models.split(",")
    options.contenders = options.contenders.split(",")
    return options


def arguments_name(arguments: Sequence[str] | None) -> bool:
    """Whether contenders were named."""
    return "--contenders" in (sys.argv if arguments is None else arguments)


def device_name(device: str) -> str:
    """What the device is called.

    Raises:
        SystemExit: it is not there.
    """
    import torch

    if device == "cpu":
        return "cpu"
    if not torch.cuda.is_available():
        raise SystemExit("no CUDA device here; --smoke runs on a CPU")
    return torch.cuda.get_device_name()


def prepare(folder: Path, options: argparse.Namespace) -> None:
    """Write rows, groups and tokenizer of a workload: generated, with its lengths."""
    kind: Kind = WORKLOADS[folder.name]
    batch = BATCH[folder.name]
    if options.smoke:
        kind, batch = replace(kind, **SHORT), 12
    wanted = options.steps * batch // kind.pairs
    candidates = generate(kind, wanted + 50, options.seed)
    texts = ("".join((group.prompt, *group.completions)) for group in candidates)
    tokenizer = train_tokenizer(texts, 384 if options.smoke else KNOWN)
    random.Random(options.seed).shuffle(candidates)
    groups: dict[str, Group] = {}
    for group in candidates:
        if len(groups) < wanted and _splits_alike(group, tokenizer, 2048):
            groups.setdefault(group.prompt, group)
    if len(groups) < wanted:
        raise SystemExit(f"{folder.name}: {len(groups)} usable prompts of {wanted}")
    folder.mkdir(parents=True)
    _write_lines(folder / "rows.jsonl", (row for group in groups.values() for row in group.rows()))
    _write_lines(folder / "groups.jsonl", map(_own_layout, groups.values()))
    tokenizer.save_pretrained(folder / "tokenizer")
    assert tokenizer.eos_token == EOS
    about = {
        "batch": batch,
        "pairs": wanted * kind.pairs,
        "tokens": token_statistics(groups.values(), tokenizer),
    }
    write_json(folder / "workload.json", about)


def run(contender: str, folders: Sequence[Path], model: str, options: argparse.Namespace) -> Json:
    """One contender on all workloads; what went wrong, where something did."""
    say(f"{model}: {contender}")
    arguments = [*map(str, folders), "--model", model, "--device", options.device]
    warmup = "1" if options.smoke else "2"
    try:
        said = python(
            "gpu_contenders.py", contender, *arguments, "--warmup", warmup,
            threads=options.threads, inside=options.smoke,
        )  # fmt: skip
    except SystemExit as error:  # such as memory that does not suffice: the others go on
        if options.smoke:
            raise
        say(str(error))
        return {"failed": str(error)[-1500:]}
    return result_of(said)


# -- what it comes to ----------------------------------------------------------------------


def summary(record: Json) -> Json:
    """By model and workload: agreement, ratios, shares, and what was promised."""
    found: Json = {}
    for model, results in record["models"].items():
        done = {name: result for name, result in results.items() if "failed" not in result}
        for workload in BATCH:
            ours = {n: r[workload] for n, r in done.items() if n.startswith("prefopt")}
            theirs = {n: r[workload] for n, r in done.items() if n.startswith("trl")}
            if not ours:
                continue
            best = max(ours, key=lambda name: ours[name]["pairs_per_second"])
            rate = done[best]["product_rate"]
            entry = {
                "prefopt": best,
                "pairs_per_second": ours[best]["pairs_per_second"],
                "peak_mib": ours[best]["peak_mib"],
                "share_of_product_rate": ours[best]["operations_per_second"] / rate,
                "as_it_comes": ours.get("prefopt", {}).get("pairs_per_second"),
            }
            if theirs:
                entry |= _against(ours[best], theirs)
            entry["promised"] = _promised(model, workload, entry)
            found[f"{model} {workload}"] = entry
    return found


def _against(ours: Json, theirs: dict[str, Json]) -> Json:
    best = max(theirs, key=lambda name: theirs[name]["pairs_per_second"])
    other = theirs[best]
    first = list(zip(ours["losses"], other["losses"], strict=True))
    peaks = ours["peak_mib"], other["peak_mib"]
    return {
        "trl": best,
        "times_as_fast": ours["pairs_per_second"] / other["pairs_per_second"],
        "share_of_memory": peaks[0] / peaks[1] if all(peaks) else None,
        "same_tokens": ours["tokens"] == other["tokens"],
        "largest_relative_difference_of_losses": max(abs(a - b) / abs(b) for a, b in first),
    }


def _promised(model: str, workload: str, entry: Json) -> Json:
    """Promises by name, and whether each is kept; none is where the losses are not alike."""
    kept: Json = {}
    if "trl" in entry:
        alike = entry["same_tokens"] and entry["largest_relative_difference_of_losses"] <= ALIKE
        kept["same_rows_and_losses"] = alike
        kept[f"{FASTER[workload]:g}_times_trl"] = (
            alike and entry["times_as_fast"] >= FASTER[workload]
        )
    if model == "1.7B" and workload == "hh":
        kept[f"{SHARE:.0%}_of_product_rate"] = entry["share_of_product_rate"] >= SHARE
    return kept


def table(record: Json) -> list[str]:
    """The summary as a table of Markdown."""
    lines = [
        f"On {record['device']}, commit {record['commit']}:",
        "",
        "| model, rows | pairs/s | TRL's best | ratio | memory | of bf16 rate | promises |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, entry in record["summary"].items():
        ratio = f"{entry['times_as_fast']:.2f} ×" if "trl" in entry else "–"
        share = entry.get("share_of_memory")
        memory = f"{share:.2f}" if share else "–"
        promises = ", ".join(
            f"{'kept' if kept else 'missed'}: {promise}"
            for promise, kept in entry["promised"].items()
        )
        lines.append(
            f"| {name} | {entry['pairs_per_second']:.1f} ({entry['prefopt']}) "
            f"| {entry.get('trl', '–')} | {ratio} | {memory} "
            f"| {entry['share_of_product_rate']:.0%} | {promises} |"
        )
    for model, results in record["models"].items():
        failed = [name for name, result in results.items() if "failed" in result]
        lines += [f"{model}: {name} failed" for name in failed]
    return lines


if __name__ == "__main__":
    sys.exit(main())
