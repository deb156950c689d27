"""What `prefopt plan` says a training needs, beside what `prefopt train` then takes.

Every recipe is planned in one process and trained in another, for a few steps; compared are the
predicted and the measured peak of resident memory (VmHWM). The constants of
`prefopt.planning` are set on the recipes of `--calibrate`, never on those that are reported.

    python benchmarks/plan.py --calibrate       # the ratio that its constant stands for
    python benchmarks/plan.py                   # the recipes that are reported
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from measuring import RESULTS, Json, provenance, python, read_json, result_of, say, write_json

SCRIPTS = ("plan.py", "workload.py", "measuring.py")
MIB = 1 << 20


@dataclass(frozen=True)
class Case:
    """One recipe.

    Attributes:
        model: as `workload.py` names it.
        size: what is different about it.
        settings: of the recipe, beside model, data and folder.
        kind: what is different about the rows.
        steps: how many are trained, if not as many as is asked for.
    """

    model: str = "14M"
    size: dict[str, int] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    kind: dict[str, Any] = field(default_factory=dict)
    steps: int | None = None


#: shape of a model of 63 million parameters
_MIDDLE = {"hidden": 640, "intermediate": 1728, "layers": 8, "heads": 10}
_EACH_STEP = {"reference": "{folder}/reference", "reference_scores": "each_step"}

REPORTED = {
    "sft, 14M, all weights, 4096 tokens": Case(
        settings={"objective": "sft", "microbatch_tokens": 4096, "batch_size": 96}
    ),
    "dpo, 14M, LoRA, another reference each step": Case(
        settings={"adapter": "lora", "microbatch_tokens": 6144, "batch_size": 64, **_EACH_STEP}
    ),
    "dpo, 63M, checkpointing, 1024 tokens": Case(
        size=_MIDDLE,
        settings={"gradient_checkpointing": True, "microbatch_tokens": 1024, "batch_size": 10},
        steps=4,
    ),
    "kto, 14M, long answers, evaluation": Case(
        settings={"objective": "kto", "microbatch_tokens": 3072, "batch_size": 24,
                  "eval_data": "{folder}/rows.jsonl"},
        kind={"prompt": 24, "answer": 200, "prompt_spread": 0.5, "answer_spread": 0.35},
    ),
    "simpo, 30M, 3072 tokens": Case(
        size={"hidden": 384, "intermediate": 1024, "heads": 6, "layers": 10},
        settings={"objective": "simpo", "microbatch_tokens": 3072, "batch_size": 32},
        steps=5,
    ),
    "dpo, 63M, 2048 tokens": Case(
        size=_MIDDLE, settings={"microbatch_tokens": 2048, "batch_size": 16}, steps=4
    ),
}  # fmt: skip
CALIBRATION = {
    "dpo, 14M, 2048 tokens": Case(settings={"microbatch_tokens": 2048, "batch_size": 32}),
    "dpo, 14M, 8192 tokens": Case(settings={"microbatch_tokens": 8192, "batch_size": 64}),
    "dpo, 14M, LoRA, 4096 tokens": Case(
        settings={"adapter": "lora", "microbatch_tokens": 4096, "batch_size": 32}
    ),
    "ipo, 30M, checkpointing, each step": Case(
        size={"hidden": 384, "intermediate": 1024, "heads": 6, "layers": 10},
        settings={"objective": "ipo", "gradient_checkpointing": True, "batch_size": 32,
                  "microbatch_tokens": 4096, **_EACH_STEP},
    ),
}  # fmt: skip
SMOKE = {"dpo, tiny": Case(model="smoke", settings={"microbatch_tokens": 512, "batch_size": 4})}


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_arguments(arguments)
    if options.child:
        print(json.dumps(_child(options.child, options.recipe)))
        return 0
    cases = SMOKE if options.smoke else CALIBRATION if options.calibrate else REPORTED
    chosen = {name: case for name, case in cases.items() if options.only in name}
    before = read_json(options.out) if options.out.name else {}
    record: Json = provenance(SCRIPTS) | {"cases": before.get("cases", {})}
    for name, case in chosen.items():
        record["cases"][name] = measure(name, case, options)
        if options.out.name:
            write_json(options.out, record)
    print("\n".join(shown(record["cases"])))
    return 0


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows", type=Path, help="a file of HH rows; generated without one")
    parser.add_argument("--only", default="", help="recipes with this in their name")
    parser.add_argument("--calibrate", action="store_true")
    parser.add_argument("--smoke", action="store_true", help="one tiny recipe")
    parser.add_argument("--out", type=Path, help="where the figures go, as JSON")
    parser.add_argument("--child", choices=("plan", "train"), help=argparse.SUPPRESS)
    parser.add_argument("--recipe", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.out is None:
        reported = not (options.smoke or options.calibrate)
        options.out = RESULTS / "plan.json" if reported else Path()
    return options


def measure(name: str, case: Case, options: argparse.Namespace) -> Json:
    """Plan and train one recipe."""
    run = partial(python, threads=options.threads)
    steps = 2 if options.smoke else case.steps or options.steps
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        rows = steps * int(case.settings["batch_size"])
        file = () if options.rows is None or case.kind else ("--rows", str(options.rows))
        run("workload.py", place, "--model", case.model, "--size", json.dumps(case.size),
            "--kind", json.dumps(case.kind), "--count", str(rows), "--seed", str(options.seed),
            *file)  # fmt: skip
        recipe = _recipe(folder, case, steps)
        os.environ["PREFOPT_CACHE"] = str(folder / "cache")
        child = partial(run, "plan.py", "--recipe", str(recipe), "--child")
        planned = result_of(child("plan"))
        trained = result_of(child("train"))
    (machine,) = planned["machines"]
    memory = machine["memory"]
    activations, allocator = memory["parts"]["activations"], memory["parts"]["allocator"]
    found = {
        "predicted_mib": memory["total"] / MIB,
        "measured_mib": trained["peak"] / MIB,
        "ratio": memory["total"] / trained["peak"],
        "phase": memory["phase"],
        "parts_mib": {part: size / MIB for part, size in memory["parts"].items()},
        # what the allocator kept in vain, for each byte of activations
        "kept": (trained["peak"] - memory["total"] + allocator) / activations,
        "steps": trained["steps"],
        "predicted_seconds": machine["seconds"]["total"],
    }
    predicted, measured = found["predicted_mib"], found["measured_mib"]
    say(f"{name}: {predicted:.0f} MiB predicted, {measured:.0f} measured, kept {found['kept']:.2f}")
    return found


def _recipe(folder: Path, case: Case, steps: int) -> Path:
    settings = {
        "model": "{folder}/policy",
        "data": "{folder}/rows.jsonl",
        "out": "{folder}/run",
        "max_steps": steps,
        "learning_rate": 1e-5,
        **case.settings,
    }
    text = json.dumps(settings).replace("{folder}", str(folder))
    path = folder / "recipe.yaml"  # JSON is YAML
    path.write_text(text)
    return path


def _child(verb: str, recipe: Path) -> Json:
    """Run a verb as the command does; for a training, the peak of this process."""
    from contextlib import redirect_stderr, redirect_stdout
    from io import StringIO

    from prefopt.cli.app import run

    said, told = StringIO(), StringIO()
    with redirect_stdout(said), redirect_stderr(told):
        code = run([verb, str(recipe), "--json"])
    if code:
        sys.exit(f"{verb} failed: {said.getvalue()[-2000:]} {told.getvalue()[-2000:]}")
    result = result_of(said.getvalue())
    if verb == "train":
        status = Path("/proc/self/status").read_text()
        found = re.search(r"VmHWM:\s+(\d+)", status)
        assert found is not None
        result["peak"] = int(found.group(1)) * 1024
    return result


def shown(cases: dict[str, Json]) -> list[str]:
    """The table of docs/experiments.md."""
    lines = [
        "| recipe | most in | predicted MiB | measured MiB | predicted / measured |",
        "|---|---|---|---|---|",
    ]
    return lines + [
        f"| {name} | {case['phase']} | {case['predicted_mib']:.0f} | {case['measured_mib']:.0f} "
        f"| {case['ratio']:.2f} |"
        for name, case in cases.items()
    ]


if __name__ == "__main__":
    sys.exit(main())
