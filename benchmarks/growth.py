"""How the cost of a training grows: seconds and memory against what makes it larger.

    python benchmarks/growth.py
    python benchmarks/growth.py --smoke

Along each axis one thing grows and all else stays: tokens of the prompt, completions of a
prompt, words of the vocabulary, parameters of the model, rows of the file. Every point is a
process of its own; every point is written as soon as it is measured, and one that was
measured with the same code is not measured again. The slope of the logarithms is the power
that the cost grows with: 1 in proportion, 0 not at all.

Seconds are those of the median step (along `rows`: of reading, tokenising and planning).
Memory is what training adds to what the process held before it (along `rows`: the peak of
the whole process, in a training of two steps).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from measuring import (
    RESULTS,
    Json,
    busy,
    comparable,
    provenance,
    python,
    read_json,
    result_of,
    say,
    under_load,
    write_json,
)
from tables import growth

SCRIPTS = ("growth.py", "phases.py", "contenders.py", "tasks.py", "workload.py", "measuring.py")
#: everything has these lengths where it is not the length that grows
EVEN = {"prompt": 128, "answer": 32, "prompt_spread": 0.05, "answer_spread": 0.05}


@dataclass(frozen=True)
class Point:
    """One training.

    Attributes:
        size: what grows; None where it is read off the workload (tokens, parameters).
        batch: comparisons to a step.
        kind, shape: what of the rows and of the model is different, as `workload.py` has it.
        file_rows: rows of the file, along `rows`.
    """

    size: int | None
    batch: int
    kind: dict[str, Any] = field(default_factory=dict)
    shape: dict[str, Any] = field(default_factory=dict)
    file_rows: int | None = None


def axes(smoke: bool) -> dict[str, list[Point]]:
    """What grows, and how far."""
    if smoke:
        return {
            "prompt tokens": [Point(None, 2, {"prompt": prompt}) for prompt in (8, 24)],
            "rows": [Point(rows, 2, file_rows=rows) for rows in (20, 40)],
        }
    models = ((128, 344, 4, 2), (256, 688, 8, 4), (512, 1376, 8, 8), (768, 2048, 12, 12))
    names = ("hidden", "intermediate", "layers", "heads")
    return {
        "prompt tokens": [Point(None, 4, EVEN | {"prompt": n}) for n in (32, 96, 288, 800)],
        "completions": [
            Point(count, count * (count - 1), EVEN | {"completions": count})  # two prompts
            for count in (2, 4, 8, 16)
        ],
        "vocabulary": [Point(n, 4, EVEN, {"vocabulary": n}) for n in (8192, 32768, 131_072)],
        "parameters": [Point(None, 4, EVEN, dict(zip(names, m, strict=True))) for m in models],
        "rows": [Point(n, 4, EVEN, file_rows=n) for n in (1000, 4000, 16_000)],
    }


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_arguments(arguments)
    if options.child:
        print(json.dumps(train_on_file(options.child)))
        return 0
    known = read_json(options.out) if options.out else {}
    settings = {"threads": options.threads, "seed": options.seed}
    here = provenance(SCRIPTS) | {"settings": settings}
    if not comparable(known, here) or known["settings"] != settings:
        known = {}
    record = here | {"axes": known.get("axes", {})}
    for axis, points in axes(options.smoke).items():
        done = record["axes"].setdefault(axis, {"points": []})["points"]
        for point in points[len(done) :]:
            done.append(measure(axis, point, options))
            record["axes"][axis] = fitted(axis, done)
            if options.out:
                write_json(options.out, record)
    if options.out:
        draw(record, options.out.with_suffix(".svg"))
    print("\n".join(growth(record)))
    return 0


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="tiny model, few points")
    parser.add_argument("--out", type=Path, help="where the figures go, as JSON")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.out is None and not options.smoke:
        options.out = RESULTS / "growth.json"
    return options


# -- a point -------------------------------------------------------------------------------


def measure(axis: str, point: Point, options: argparse.Namespace) -> Json:
    """Train once; what it cost."""
    run = partial(python, threads=options.threads, inside=options.smoke)
    steps = 2 if options.smoke else 4
    with tempfile.TemporaryDirectory() as folder:
        model = "smoke" if options.smoke else "14M"
        kind, shape = json.dumps(point.kind), json.dumps(point.shape)
        rows = point.file_rows or point.batch * (1 + steps)
        run("workload.py", folder, "--model", model, "--count", str(rows), "--kind", kind,
            "--size", shape, "--seed", str(options.seed))  # fmt: skip
        before = busy(0.02 if options.smoke else 0.5)
        if point.file_rows:
            cost = result_of(run("growth.py", "--child", folder))
        else:
            task = ("--batch", str(point.batch), "--rows", str(rows), "--warmup", "1")
            result = result_of(run("contenders.py", "prefopt", folder, *task))
            cost = {
                "seconds": statistics.median(result["step_seconds"]),
                "mib": max(result["peak_mib"] - result["held_mib"], 0.1),
            }
        workload = read_json(Path(folder) / "workload.json")
    reads = {"prompt tokens": workload["tokens"]["prompt"]}
    reads |= {"parameters": workload["model"]["parameters"]}
    size = point.size or round(reads[axis])
    say(f"{axis} {size:,}: {cost['seconds']:.3f} s, {cost['mib']:.0f} MiB")
    return {"size": size, **cost, "tokens": workload["tokens"], "others": [before]}


def train_on_file(folder: Path) -> Json:
    """Two steps on a file: what preparing it took, and the peak of the process."""
    import torch
    from phases import Watch
    from tasks import Meter

    from prefopt import DPOTrainer

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    with tempfile.TemporaryDirectory() as cache:
        os.environ["PREFOPT_CACHE"] = cache
        trainer = DPOTrainer(
            folder / "policy", folder / "reference", lr=1e-6, batch_size=4, max_steps=2
        )
        watch, meter = Watch(), Meter()
        meter.start()
        with watch.watching():
            trainer.fit(folder / "groups.jsonl")
    return {"seconds": watch.clocks.seconds["preparing"], "mib": meter.stop()}


# -- what comes of it ----------------------------------------------------------------------


def fitted(axis: str, points: list[Json]) -> Json:
    """The points of an axis with the slopes of their costs."""
    fits = {}
    if len(points) > 1:
        sizes = [point["size"] for point in points]
        fits = {key: slope(sizes, [p[key] for p in points]) for key in ("seconds", "mib")}
    step, alone = "seconds a step", "MiB that training adds"
    units = {"seconds": step, "mib": alone}
    if axis == "rows":
        units = {"seconds": "seconds to prepare", "mib": "MiB, the peak of the process"}
    shares = [share for point in points for share in point["others"]]
    return {"points": points, "fits": fits, "units": units, "under_load": under_load(shares)}


def slope(sizes: Sequence[float], costs: Sequence[float]) -> dict[str, float]:
    """Least squares through the logarithms: the slope, and R².

    >>> slope([1, 10, 100], [3, 300, 30000])
    {'slope': 2.0, 'r2': 1.0}
    """
    x, y = [math.log(size) for size in sizes], [math.log(cost) for cost in costs]
    line = statistics.linear_regression(x, y)
    left = sum((b - line.slope * a - line.intercept) ** 2 for a, b in zip(x, y, strict=True))
    total = sum((b - statistics.fmean(y)) ** 2 for b in y)
    return {"slope": round(line.slope, 4), "r2": round(1 - left / total, 4) if total else 1.0}


def draw(record: Json, path: Path) -> None:
    """A panel for every axis: both costs, doubly logarithmic."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    settings = {"svg.hashsalt": "growth", "svg.fonttype": "none", "font.size": 8}
    with matplotlib.rc_context(settings):
        every = record["axes"].items()
        figure, panels = pyplot.subplots(
            2, len(every), figsize=(2.5 * len(every), 4.4), squeeze=False, layout="constrained"
        )
        for column, (axis, found) in zip(panels.T, every, strict=True):
            for panel, key in zip(column, ("seconds", "mib"), strict=True):
                points = found["points"]
                panel.loglog([p["size"] for p in points], [p[key] for p in points], "o-", ms=3)
                panel.set_title(f"{found['units'][key]}\nslope {found['fits'][key]['slope']:+.2f}")
                panel.set_xlabel(axis)
                panel.grid(alpha=0.3)
        unfinished = path.with_name(f".{path.name}.part")
        figure.savefig(unfinished, format="svg", metadata={"Date": None})
        pyplot.close(figure)
    unfinished.replace(path)


if __name__ == "__main__":
    sys.exit(main())
