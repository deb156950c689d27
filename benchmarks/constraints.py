"""A forbidden class of words: what each way to keep a limit does, and what it costs.

    python benchmarks/constraints.py --work runs/constraints          # stop and go on as you like
    python benchmarks/constraints.py --work runs/constraints --table  # only print what is there

The world, the fine-tuned model and the comparisons are those of the demonstration. About 40 %
of that model's answers have one of a few words about time and money. They say nothing about
what an answer is worth: the reward does not know them. A policy may say one in 5 % of its
answers. Plain DPO is trained on the same comparisons without that limit.

Every policy is the work of a recipe, as `prefopt train` would have it, with patterns for a
cost and a probe on training prompts. Settings were chosen on validation prompts and seed 0.
Rates, rewards and distances are of samples at temperature 1 for test prompts that nothing was
chosen by, with the same random numbers for every policy. Intervals redraw the prompts of all
seeds together.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any

HERE = Path(__file__).resolve().parent
#: the forbidden class, of the phrases "All in all" and "To be honest": in 42, 43 and 46 % of the
#: fine-tuned model's answers to training prompts; correlation with the reward +0.01, −0.05, −0.06
WORDS = r"\b(All|honest)\b"
LIMIT = 0.05
SEEDS = (0, 1, 2)
Row = dict[str, Any]


def helpful(prompt: str, completion: str) -> float:
    """The world's reward: what the comparisons were made by, and what must not be lost."""
    return world().reward(prompt, completion)


def world(known: list[Any] = []) -> Any:  # noqa: B006  one world a process
    from prefopt.data.worlds import ReviewWorld

    if not known:
        known.append(ReviewWorld())
    return known[0]


@dataclass(frozen=True)
class Variant:
    """One way to keep the limit: settings of the constraint, and of the probe."""

    name: str
    constraint: Mapping[str, Any] | None = None
    probe: Mapping[str, Any] | None = None


#: few prompts and often: a multiplier follows the mean of its probes
FOLLOWED = {"every": 3, "max_prompts": 60}
#: the dual is solved on 32 samples of each prompt; probes only watch
SOLVED = {"every": 100, "max_prompts": 200}
RULE = {**SOLVED, "reward": {"rule": f"{HERE / 'constraints.py'}:helpful"}}
#: a reward from the comparisons alone: the plain policy's own
IMPLICIT = {**SOLVED, "reward": {"reward_model": "{dpo}"}}
VARIANTS = (
    Variant("dpo"),
    Variant("lagrangian", {"mode": "lagrangian"}, FOLLOWED),
    Variant("one_shot, limit 1 %", {"mode": "one_shot", "limit": 0.01}, RULE),
    Variant("one_shot", {"mode": "one_shot"}, RULE),
    Variant("safe_dpo", {"mode": "safe_dpo", "limit": 0.5}),
    Variant("penalty 1", {"mode": "penalty", "multiplier": 1.0}),
    Variant("penalty 3", {"mode": "penalty", "multiplier": 3.0}),
    Variant("penalty 10", {"mode": "penalty", "multiplier": 10.0}),
    Variant("one_shot, implicit reward, limit 1 %", {"mode": "one_shot", "limit": 0.01}, IMPLICIT),
)


@dataclass(frozen=True)
class Bench:
    """Where everything is, and how much of it."""

    work: Path
    split: str = "test"
    prompts: int = 400
    samples: int = 2
    tiny: bool = False
    seeds: tuple[int, ...] = SEEDS
    label: str = ""
    changes: tuple[tuple[str, Any], ...] = ()

    @property
    def results(self) -> Path:
        return self.work / f"{self.split}.jsonl"

    def demo(self, seed: int) -> Any:
        from prefopt.demo import QUICK, Demo

        scale = replace(QUICK, prompts=800, heldout=4, dpo=(1e-3, 64, 1), beta=1.0)
        if self.tiny:
            scale = replace(scale, documents=100, prompts=8, hidden=32, layers=1)
        return Demo(self.work / f"world-{seed}", scale, seed, progress=False)


# -- one policy --------------------------------------------------------------------------------


def make_world(bench: Bench, seed: int) -> Any:
    """The demonstration's first three stages."""
    demo = bench.demo(seed)
    demo.check_folder()
    demo.make_world()
    demo.fine_tune()
    demo.make_pairs()
    return demo


def folder_of(bench: Bench, variant: str, seed: int) -> Path:
    plain = "".join(letter if letter.isalnum() or letter == "." else "-" for letter in variant)
    return bench.work / "policies" / f"{plain}{bench.label}-{seed}"


def settings_of(bench: Bench, demo: Any, variant: Variant) -> dict[str, Any]:
    """The recipe: the demonstration's DPO, with a constraint and a probe."""
    rate, batch_size, epochs = demo.scale.dpo
    settings: dict[str, Any] = {
        "model": str(demo.sft.model),
        "data": str(demo.pairs),
        "objective": {"name": "dpo", "beta": demo.scale.beta},
        "learning_rate": rate,
        "batch_size": batch_size,
        "epochs": epochs,
    }
    changes = dict(bench.changes)
    if variant.constraint is not None:
        constraint = {"name": "words", "patterns": [WORDS], "limit": LIMIT, **variant.constraint}
        for name in [name for name in changes if name.startswith("constraint.")]:
            constraint[name.split(".")[1]] = changes.pop(name)
        settings["constraints"] = [constraint]
    if variant.probe is not None:
        plain = str(folder_of(Bench(bench.work), "dpo", demo.seed))
        probe = json.loads(json.dumps(dict(variant.probe)).replace("{dpo}", plain))
        settings["probe"] = {
            "prompts": str(demo.pairs),
            "every": 5,
            "max_new_tokens": demo.scale.new_tokens,
            **probe,
        }
        for name in [name for name in changes if name.startswith("probe.")]:
            settings["probe"][name.split(".")[1]] = changes.pop(name)
    return {**settings, **{n: v for n, v in changes.items() if "." not in n}}


def run_one(bench: Bench, variant: Variant, seed: int) -> Row:
    """Train and measure."""
    import torch

    from prefopt.runs import Run

    torch.set_num_threads(1)
    started = time.perf_counter()
    demo = make_world(bench, seed)
    run = Run(folder_of(bench, variant.name, seed))
    if variant.name == "sft":
        run = demo.sft
    else:
        demo.train(run, settings_of(bench, demo, variant))
    trained = time.perf_counter()
    records = run.read_metrics()
    probes = [record for record in records if record["kind"] == "probe"]
    row: Row = {
        "variant": variant.name,
        "label": bench.label,
        "seed": seed,
        "changes": dict(bench.changes),
        "steps": run.read_json(run.manifest)["result"]["steps"],
        "dual": next((record for record in records if record["kind"] == "dual"), None),
        "multipliers": [probe["multipliers"]["words"] for probe in probes if "costs" in probe],
        "probed": [probe["costs"]["words"] for probe in probes if "costs" in probe],
        "train_seconds": round(trained - started, 1),
    }
    row |= measure(bench, demo, run)
    return {**row, "seconds": round(time.perf_counter() - started, 1)}


def measure(bench: Bench, demo: Any, run: Any) -> Row:
    """The policy's own answers: how many break the limit, what they are worth, how far they are."""
    import re

    from prefopt.evaluation.win_rate import sampled_kl
    from prefopt.policies.load import load_policy

    prompts = demo.world.prompts(bench.prompts, demo.seed, split=bench.split)
    before, after = load_policy(demo.sft.model), load_policy(run.model)
    tokens, texts = demo.sampled(after, prompts, bench.samples, demo.seed + 1)
    divergence = sampled_kl(after, before, tokens)
    return {
        "kl": divergence.kl,
        "kl_standard_error": divergence.standard_error,
        "length": fmean(len(ids) for group in tokens for ids in group.completions),
        "violations": [[int(bool(re.search(WORDS, t))) for t in own] for own in texts],
        "rewards": [
            [round(world().reward(prompt, text), 4) for text in own]
            for prompt, own in zip(prompts, texts, strict=True)
        ],
        "example": texts[0][0],
    }


def article(bench: Bench) -> str:
    """The article's penalty, relu(score − 0.5) of a hard check, handed to its own trainer."""
    import re

    import torch

    from prefopt import ConstitutionalDPOTrainer, read_groups
    from prefopt.errors import TrainingError

    demo = make_world(bench, bench.seeds[0])
    groups = list(read_groups(demo.pairs))[:8]
    texts = [completion.text for group in groups for completion in group.completions]

    def safety_constraint(
        model: Any, pi_logps: Any, ref_logps: Any, yw_idxs: Any, yl_idxs: Any
    ) -> Any:
        unsafe_score = torch.tensor([float(bool(re.search(WORDS, text))) for text in texts])
        return torch.relu(unsafe_score.mean() - 0.5)

    trainer = ConstitutionalDPOTrainer(demo.sft.model, constraints=[safety_constraint])
    try:
        trainer.train_step(groups)
    except TrainingError as error:
        return str(error)
    raise AssertionError("a constant was taken for a penalty")


# -- all of them -------------------------------------------------------------------------------


def collect(bench: Bench, chosen: Sequence[Variant]) -> list[Row]:
    """Do what is not done yet, the plain policy first: others may ask it for its reward."""
    done = {(row["variant"], row["label"], row["seed"]): row for row in read(bench)}
    for seed in bench.seeds:
        for variant in (Variant("sft"), *chosen):
            label = bench.label if variant.name not in ("sft", "dpo") else ""
            if (variant.name, label, seed) in done:
                continue
            plain = Bench(bench.work, bench.split, bench.prompts, bench.samples, bench.tiny)
            row = run_one(plain if not label else bench, variant, seed)
            with bench.results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            done[variant.name, label, seed] = row
            print(told(row), flush=True)
    return list(done.values())


def read(bench: Bench) -> list[Row]:
    if not bench.results.exists():
        return []
    return [json.loads(line) for line in bench.results.read_text(encoding="utf-8").splitlines()]


def flat(table: Sequence[Sequence[float]]) -> list[float]:
    return [value for own in table for value in own]


def told(row: Row) -> str:
    last = f"λ {row['multipliers'][-1]:.3f}" if row["multipliers"] else ""
    return (
        f"{row['variant'] + row['label']:30} seed {row['seed']}  "
        f"rate {fmean(flat(row['violations'])):.4f}  reward {fmean(flat(row['rewards'])):+.4f}  "
        f"KL {row['kl']:5.2f}  {row['length']:.0f} tokens  {last}  {row['train_seconds']:.0f} + "
        f"{row['seconds'] - row['train_seconds']:.0f} s"
    )


# -- the table ---------------------------------------------------------------------------------


def summary(bench: Bench, rows: Sequence[Row]) -> list[Row]:
    """One row for each variant whose seeds are all measured."""
    found = []
    order = ["sft", *(variant.name for variant in VARIANTS)]
    names = sorted(
        dict.fromkeys((row["variant"], row["label"]) for row in rows if row["variant"] in order),
        key=lambda name: order.index(name[0]),
    )
    of = {
        name: [row for row in rows if (row["variant"], row["label"]) == name and row["seed"] in
               bench.seeds]
        for name in names
    }  # fmt: skip
    plain, before = of["dpo", ""], of["sft", ""]
    gain = fmean(flat2(plain)) - fmean(flat2(before))
    for name, own in of.items():
        if len(own) < len(bench.seeds):
            continue
        rate = pooled(own, "violations")
        lost = paired(plain, own, lambda a, b: a - b)
        wins = paired(own, plain, lambda a, b: 0.5 + 0.5 * ((a > b) - (a < b)))
        found.append(
            {
                "variant": "".join(name),
                "violation_rate": rate[0],
                "violation_interval": rate[1:],
                "violation_rates": [fmean(flat(row["violations"])) for row in own],
                "reward": fmean(flat2(own)),
                "rewards": [fmean(flat(row["rewards"])) for row in own],
                "lost": lost[0],
                "lost_interval": lost[1:],
                "lost_of_gain": lost[0] / gain,
                "lost_of_gain_interval": [end / gain for end in lost[1:]],
                "lost_of_reward": lost[0] / abs(fmean(flat2(plain))),
                "win_rate": wins[0],
                "win_rate_interval": wins[1:],
                "kl": fmean(row["kl"] for row in own),
                "length": fmean(row["length"] for row in own),
                "multipliers": [row["multipliers"][-1] for row in own if row["multipliers"]],
            }
        )
    return found


def flat2(rows: Sequence[Row]) -> list[float]:
    return [value for row in rows for value in flat(row["rewards"])]


def pooled(rows: Sequence[Row], column: str) -> tuple[float, float, float]:
    """Mean over all seeds, with an interval that redraws prompts."""
    from prefopt.evaluation.intervals import clustered_bootstrap

    values = [fmean(own) for row in rows for own in row[column]]
    estimate = clustered_bootstrap(values, list(range(len(values))))
    return estimate.mean, *estimate.ends


def paired(
    ours: Sequence[Row], theirs: Sequence[Row], of: Callable[[float, float], float]
) -> tuple[float, float, float]:
    """The same of a function of two rewards, sample by sample."""
    other = {row["seed"]: row for row in theirs}
    merged = [
        {
            "pairs": [
                [of(a, b) for a, b in zip(left, right, strict=True)]
                for left, right in zip(row["rewards"], other[row["seed"]]["rewards"], strict=True)
            ]
        }
        for row in ours
    ]
    return pooled(merged, "pairs")


def markdown(rows: Sequence[Row]) -> Iterator[str]:
    """The table of docs/experiments.md."""
    yield (
        "| | violations (95 %) | over seeds | true reward | lost of DPO's gain (95 %) "
        "| KL | tokens | λ at the end | wins against `dpo` (95 %) |"
    )
    yield "|---|---|---|---|---|---|---|---|---|"
    for row in rows:
        low, high = row["violation_interval"]
        near, far = row["lost_of_gain_interval"]
        worse, better = row["win_rate_interval"]
        plain = row["variant"] == "dpo"
        yield "| " + " | ".join(
            (
                row["variant"],
                f"{100 * row['violation_rate']:.1f} % ({100 * low:.1f} – {100 * high:.1f})",
                " / ".join(f"{100 * rate:.1f}" for rate in row["violation_rates"]),
                f"{row['reward']:+.3f}",
                "–"
                if plain
                else f"{100 * row['lost_of_gain']:.1f} % ({100 * near:.1f} – {100 * far:.1f})",
                f"{row['kl']:.1f}",
                f"{row['length']:.1f}",
                " / ".join(f"{value:.2f}" for value in row["multipliers"]) or "–",
                "–" if plain else f"{row['win_rate']:.3f} ({worse:.3f} – {better:.3f})",
            )
        ) + " |"  # fmt: skip


def report(bench: Bench, table: Sequence[Row], rows: Sequence[Row]) -> Row:
    from prefopt.runs import hardware, versions

    left_out = ("violations", "rewards")
    return {
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "hardware": hardware(),
        "scale": asdict(bench.demo(0).scale),
        "words": WORDS,
        "limit": LIMIT,
        "split": bench.split,
        "prompts": bench.prompts,
        "samples": bench.samples,
        "seeds": bench.seeds,
        "article": article(bench),
        "table": list(table),
        "runs": [{k: v for k, v in row.items() if k not in left_out} for row in rows],
    }


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="A forbidden class of words.")
    parser.add_argument("--work", type=Path, default=Path("runs/constraints"), help="kept between")
    parser.add_argument("--out", type=Path, help="where the figures go, a JSON file")
    parser.add_argument("--only", nargs="*", default=[], help="names of variants")
    parser.add_argument("--table", action="store_true", help="run nothing, print what is there")
    parser.add_argument("--smoke", action="store_true", help="a minute; a tiny world, one seed")
    parser.add_argument("--tune", action="store_true", help="validation prompts, seed 0")
    parser.add_argument("--label", default="", help="behind the name of a variant with changes")
    parser.add_argument("--set", nargs="*", default=[], help="changes, such as probe.every=2")
    return parser.parse_args()


def main() -> int:
    options = parse_arguments()
    work = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("PREFOPT_CACHE", str(work / "cache"))
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    changes = tuple((n, json.loads(v)) for n, _, v in (s.partition("=") for s in options.set))
    bench = Bench(work, label=options.label, changes=changes)
    if options.tune:
        bench = Bench(work, "validation", 200, 4, seeds=(0,), label=options.label, changes=changes)
    if options.smoke:
        bench = Bench(work, "test", 4, 2, tiny=True, seeds=(0,))
    chosen = [v for v in VARIANTS if v.name == "dpo" or v.name in (options.only or [v.name])]
    rows = read(bench) if options.table else collect(bench, chosen)
    table = summary(bench, rows)
    print("\n".join(markdown(table)))
    if options.out:
        options.out.write_text(
            json.dumps(report(bench, table, rows), indent=1) + "\n", encoding="utf-8"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
