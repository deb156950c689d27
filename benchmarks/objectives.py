"""Every objective on the demonstration's world: what each makes of the same comparisons.

    python benchmarks/objectives.py --work runs/objectives           # stop and start as you like
    python benchmarks/objectives.py --work runs/objectives --table   # only print what is there

For each seed the demonstration's own code makes a world, a fine-tuned model and comparisons
of its samples. Every objective then sees the same grid of learning rates and strengths (β, or
what stands in its place) on seed 0. The two points that give the highest true reward on
*validation* prompts are tried on the other seeds too, the one with the higher mean over all
seeds is chosen, and its policies are measured on test prompts that nothing was chosen by. Each
finished run is one line of `runs.jsonl`, found again by its settings.

How to read it. The true reward is the world's, which no objective is shown except those marked
"reward". KL is to the fine-tuned model, in nats a completion, from the policy's own samples.
Win rates are against that model on the same test prompts. Their interval redraws the prompts
of all seeds together: it is about these trainings, not about another seed, for which the range
over the seeds is given.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from statistics import fmean
from typing import Any

HERE = Path(__file__).resolve().parent
RATES = (3e-4, 1e-3)
STRENGTHS = (0.05, 0.2, 1.0, 5.0)
SEEDS = (0, 1, 2)
FINALISTS = 2  # points of the grid that are tried on every seed
#: judgements a step, by what is read: about as many steps an epoch for every objective
BATCH = {"comparisons": 32, "preferred": 16, "labels": 32, "rankings": 4}
#: what the manifest counts, where it is not comparisons
COUNTED = {"labels": "labels", "rankings": "rankings"}
#: what takes the place of β in the grid, where the strength of the preference is called otherwise
STRENGTH_OF = {"orpo": "odds_weight"}
#: prompts of at most so many words seldom say what is reviewed: the two sources of `group_dro`
SHORT = 4
FAMILIES = {
    "pairwise": "differences of log-ratios",
    "absolute": "each side by itself",
    "divergences": "other divergences",
    "coupled": "coupled over the step",
    "adaptive": "adaptive",
    "corrupted": "with companions",
    "tokenwise": "token-level",
    "listwise": "rankings",
    "unpaired": "labels",
    "likelihood": "without a reference",
    "sums": "sums and a moving reference",
}
Row = dict[str, Any]


@dataclass(frozen=True)
class Variant:
    """An objective, or a sum of some, as one row of the table.

    Attributes:
        name: of the row.
        family: key of `FAMILIES`.
        reads: what it reads of the comparisons.
        settings: of the recipe, without data, learning rate and strength.
        strengths: dotted settings that the grid's strength is given to.
        sources: whether the data is handed over as two sources.
        shown_reward: whether it is shown the true reward of each completion.
    """

    name: str
    family: str
    reads: str
    settings: Mapping[str, Any]
    strengths: tuple[str, ...]
    sources: bool = False
    shown_reward: bool = False


def variants() -> list[Variant]:
    """Every row of the registry, and a few sums, divergences and a moving reference."""
    from prefopt.objectives import OBJECTIVES

    rows = []
    for name, row in OBJECTIVES.items():
        if row.head != "words":
            continue  # a reward model is no policy
        option = STRENGTH_OF.get(name, "beta")
        rows.append(
            Variant(
                name,
                row.function.__module__.rsplit(".", 1)[-1],
                row.reads,
                {"objective.name": name},
                (f"objective.{option}",) if option in row.options else (),
                sources=row.needs_sources,
                shown_reward=row.needs_rewards,
            )
        )
    of = {row.name: row for row in rows}

    def other(base: str, name: str, settings: Mapping[str, Any], **changes: Any) -> Variant:
        start = of[base]
        return replace(start, name=name, settings={**start.settings, **settings}, **changes)

    moving = {"reference.update_every": 16, "reference.mixture": 0.6}
    mpo = {"objective.plus.sft": 1.25, "objective.plus.bco.weight": 0.25}
    return [
        *rows,
        other("dpo", "dpo + sft (RPO)", {"objective.plus.sft": 1.0}, family="sums"),
        other(
            "dpo",
            "dpo + bco/4 + 5 sft/4 (MPO)",
            mpo,
            family="sums",
            strengths=("objective.beta", "objective.plus.bco.beta"),
        ),
        other("dpo", "dpo, moving reference (TR-DPO)", moving, family="sums"),
        other("ipo", "ipo, sums", {"objective.length_normalize": False}),
        other("f_dpo", "f_dpo, forward KL", {"objective.divergence": "forward_kl"}),
    ]


@dataclass(frozen=True)
class Task:
    """One training and one measurement."""

    variant: str
    seed: int
    rate: float
    strength: float | None
    split: str

    @property
    def key(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)


@dataclass(frozen=True)
class Bench:
    """Where everything is, and how much of it."""

    work: Path
    validation: int
    test: int
    tiny: bool = False
    rates: tuple[float, ...] = RATES
    strengths: tuple[float, ...] = STRENGTHS
    seeds: tuple[int, ...] = SEEDS

    @property
    def runs(self) -> Path:
        return self.work / "runs.jsonl"

    def demo(self, seed: int) -> Any:
        from prefopt.demo import QUICK, Demo, Scale

        tiny = Scale(documents=100, prompts=8, heldout=4, hidden=32, layers=1, dpo=(1e-3, 32, 1))
        scale = tiny if self.tiny else QUICK
        return Demo(self.work / f"world-{seed}", scale, seed, progress=False)

    def grid(self, variant: Variant) -> list[Task]:
        strengths = self.strengths if variant.strengths else (None,)
        return [
            Task(variant.name, self.seeds[0], rate, strength, "validation")
            for rate in self.rates
            for strength in strengths
        ]

    def further(self, finalists: Sequence[Task]) -> list[Task]:
        """The finalists on the seeds that the grid was not for."""
        return [replace(task, seed=seed) for task in finalists for seed in self.seeds[1:]]

    def finals(self, best: Task) -> list[Task]:
        return [replace(best, seed=seed, split="test") for seed in self.seeds]


# -- one run, in a worker ----------------------------------------------------------------------


def make_world(bench: Bench, seed: int) -> None:
    """The demonstration's first three stages, and the comparisons as two sources."""
    from prefopt.data.formats import read_groups, write_groups

    one_thread()
    demo = bench.demo(seed)
    demo.check_folder()
    demo.make_world()
    demo.fine_tune()
    demo.make_pairs()
    groups = list(read_groups(demo.pairs))
    for path, short in zip(source_files(demo), (True, False), strict=True):
        kept = [group for group in groups if (len(str(group.prompt).split()) <= SHORT) == short]
        write_groups(path, kept)


def source_files(demo: Any) -> tuple[Path, Path]:
    return demo.folder / "pairs-short.jsonl", demo.folder / "pairs-long.jsonl"


def work(bench: Bench, variant: Variant, task: Task) -> Row:
    """Train and measure; a training that breaks is a row that says so."""
    from prefopt.errors import TrainingError
    from prefopt.runs import Run

    one_thread()
    started = time.perf_counter()
    demo = known_demo(bench, task.seed)
    run = Run(bench.work / "policies" / folder_name(task))
    row: Row = {**asdict(task), "error": None}
    try:
        demo.train(run, settings_of(demo, variant, task))
    except TrainingError as error:
        row["error"] = str(error)
    else:
        manifest = run.read_json(run.manifest)
        data = manifest["data"]["train"]
        read = data[COUNTED.get(variant.reads, "comparisons")]
        row |= {"steps": manifest["result"]["steps"], "read": read, "groups": data["groups"]}
        count = bench.validation if task.split == "validation" else bench.test
        row |= measure(bench, demo, run, task.split, count)
    return {**row, "seconds": round(time.perf_counter() - started, 2)}


def one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def folder_name(task: Task) -> str:
    plain = "".join(letter if letter.isalnum() else "-" for letter in task.variant)
    return f"{plain}-{task.rate}-{task.strength}-{task.seed}"


def settings_of(demo: Any, variant: Variant, task: Task) -> dict[str, Any]:
    """The recipe: the demonstration's, with another objective."""
    pairs: Any = [str(demo.pairs)]
    if variant.sources:
        pairs = [{"path": str(path), "name": path.stem} for path in source_files(demo)]
    strengths = dict.fromkeys(variant.strengths, task.strength)
    return {
        "model": str(demo.sft.model),
        "data": pairs,
        **variant.settings,
        **strengths,
        "learning_rate": task.rate,
        "batch_size": BATCH[variant.reads],
        "epochs": demo.scale.dpo[2],
    }


def measure(bench: Bench, demo: Any, run: Any, split: str, count: int) -> Row:
    """The policy's own answers: their true reward, length, distance and who wins."""
    from prefopt.evaluation.win_rate import by_reward, sampled_kl, win_rate
    from prefopt.policies.load import load_policy

    prompts, before, old = baseline(bench, demo.seed, split, count)
    after = load_policy(run.model)
    tokens, texts = demo.sampled(after, prompts, 1, demo.seed + 1)
    wins = win_rate(prompts, texts, old, by_reward(demo.world.reward), seed=demo.seed)
    rewards = [demo.world.reward(p, text) for p, (text,) in zip(prompts, texts, strict=True)]
    old_rewards = [demo.world.reward(p, text) for p, (text,) in zip(prompts, old, strict=True)]
    row: Row = {
        "reward": fmean(rewards),
        "reward_sft": fmean(old_rewards),
        "win_rate": wins.rate,
        "win_rate_interval": list(wins.interval),
        "length": fmean(len(group.completions[0]) for group in tokens),
        "rewards": [round(value, 4) for value in rewards],
        "rewards_sft": [round(value, 4) for value in old_rewards],
        "example": texts[0][0],
    }
    if split == "test":  # nothing is chosen by it
        divergence = sampled_kl(after, before, tokens, sharing="off")  # one answer a prompt
        row |= {"kl": divergence.kl, "kl_standard_error": divergence.standard_error}
    return row


@lru_cache(maxsize=8)
def known_demo(bench: Bench, seed: int) -> Any:
    """The same for every run of a worker: its world takes seconds to know what is good English."""
    return bench.demo(seed)


@lru_cache(maxsize=8)
def baseline(bench: Bench, seed: int, split: str, count: int) -> tuple[list[str], Any, Any]:
    """Prompts, the fine-tuned model and its answers: the same for every run of a worker."""
    from prefopt.policies.load import load_policy

    demo = known_demo(bench, seed)
    prompts = demo.world.prompts(count, seed, split=split)
    before = load_policy(demo.sft.model)
    _, old = demo.sampled(before, prompts, 1, seed + 1)
    return prompts, before, old


# -- all of them -------------------------------------------------------------------------------


def collect(bench: Bench, rows: Sequence[Variant], workers: int) -> dict[str, Row]:
    """Do what is not done yet: the grid of each variant, then its choice on every seed."""
    done = read_runs(bench)
    of = {variant.name: variant for variant in rows}
    waiting = [task for variant in rows for task in due(bench, variant, done)]
    waiting += [task for variant in rows for task in bench.grid(variant) if task.key not in done]
    asked = {task.key for task in waiting}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        list(pool.map(make_world, [bench] * len(bench.seeds), bench.seeds))
        running: dict[Future[Row], Task] = {}
        while waiting or running:
            while waiting and len(running) < workers:
                task = waiting.pop(0)
                running[pool.submit(work, bench, of[task.variant], task)] = task
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                task, row = running.pop(future), future.result()
                done[task.key] = row
                with bench.runs.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"key": task.key, **row}) + "\n")
                say(task, row, left=len(waiting))
                new = [t for t in due(bench, of[task.variant], done) if t.key not in asked]
                waiting[:0] = new
                asked |= {t.key for t in new}
    return done


def due(bench: Bench, variant: Variant, done: Mapping[str, Row]) -> list[Task]:
    """The trainings that a finished grid asks for, and then those that its choice asks for."""
    wanted = bench.further(finalists(bench, variant, done))
    best = choice(bench, variant, done)
    wanted += bench.finals(best) if best else []
    return [task for task in wanted if task.key not in done]


def finalists(bench: Bench, variant: Variant, done: Mapping[str, Row]) -> list[Task]:
    """The best points of the grid by validation reward, the best first, once all are there."""
    grid = bench.grid(variant)
    if any(task.key not in done for task in grid):
        return []
    whole = [task for task in grid if done[task.key]["error"] is None]
    return sorted(whole, key=lambda task: -float(done[task.key]["reward"]))[:FINALISTS]


def choice(bench: Bench, variant: Variant, done: Mapping[str, Row]) -> Task | None:
    """The finalist with the highest mean validation reward over all seeds, once all are there."""
    known = finalists(bench, variant, done)
    if any(task.key not in done for task in bench.further(known)):
        return None

    def mean(task: Task) -> float:
        rows = [done[each.key] for each in (task, *bench.further([task]))]
        return fmean(-math.inf if row["error"] else float(row["reward"]) for row in rows)

    return max(known, key=mean, default=None)


def read_runs(bench: Bench) -> dict[str, Row]:
    if not bench.runs.exists():
        return {}
    rows = [json.loads(line) for line in bench.runs.read_text(encoding="utf-8").splitlines()]
    return {row.pop("key"): row for row in rows}


def forget(bench: Bench, names: Sequence[str]) -> None:
    """Drop what is known of some variants, because their code has changed."""
    kept = [line for line in read_runs(bench).items() if line[1]["variant"] not in names]
    lines = [json.dumps({"key": key, **row}) + "\n" for key, row in kept]
    bench.runs.write_text("".join(lines), encoding="utf-8")


def say(task: Task, row: Row, left: int) -> None:
    told = row["error"] or (
        f"reward {row['reward']:+.3f}  win rate {row['win_rate']:.3f}  "
        f"KL {row.get('kl', math.nan):6.2f}  {row['length']:.0f} tokens"
    )
    where = f"{task.variant:32} seed {task.seed} rate {task.rate:g} strength {task.strength}"
    print(f"{where:70} {told}  {row['seconds']:.0f} s, {left} left", flush=True)


# -- the table ---------------------------------------------------------------------------------


def summary(bench: Bench, rows: Sequence[Variant], done: Mapping[str, Row]) -> list[Row]:
    """One row for each variant whose seeds are all measured, in the order of the families."""
    found = []
    against = finals_of(bench, next(v for v in rows if v.name == "dpo"), done)
    for variant in sorted(rows, key=lambda v: list(FAMILIES).index(v.family)):
        best, finals = choice(bench, variant, done), finals_of(bench, variant, done)
        if best is None or not finals:
            continue
        rewards = [row["reward"] for row in finals]
        low, high = pooled(finals, finals, "rewards_sft", lambda a, b: (a > b) + (a == b) / 2)[1:]
        found.append(
            {
                "variant": variant.name,
                "family": FAMILIES[variant.family],
                "shown_reward": variant.shown_reward,
                "rate": best.rate,
                "strength": best.strength,
                "on_the_edge": best.strength in (bench.strengths[0], bench.strengths[-1]),
                "steps": finals[0]["steps"],
                "read": finals[0]["read"],
                "reward": fmean(rewards),
                "reward_range": [min(rewards), max(rewards)],
                "beyond_dpo": pooled(finals, against, "rewards", lambda a, b: a - b)
                if against
                else None,
                "kl": fmean(row["kl"] for row in finals),
                "length": fmean(row["length"] for row in finals),
                "win_rate": fmean(row["win_rate"] for row in finals),
                "win_rate_interval": [low, high],
                "win_rates": [row["win_rate"] for row in finals],
                "broken": sum(done[task.key]["error"] is not None for task in bench.grid(variant)),
            }
        )
    return found


def finals_of(bench: Bench, variant: Variant, done: Mapping[str, Row]) -> list[Row]:
    """Its rows on test prompts, a seed each; none if one is missing or broke."""
    best = choice(bench, variant, done)
    found = [done.get(task.key) for task in bench.finals(best)] if best else []
    whole = [row for row in found if row is not None and row["error"] is None]
    return whole if len(whole) == len(bench.seeds) else []


def pooled(
    ours: Sequence[Row], theirs: Sequence[Row], column: str, of: Callable[[float, float], float]
) -> tuple[float, float, float]:
    """Mean of a function of two rewards of one prompt, with its interval over all prompts."""
    from prefopt.evaluation.intervals import clustered_bootstrap

    values, clusters = [], []
    for mine, other in zip(ours, theirs, strict=True):
        for place, (a, b) in enumerate(zip(mine["rewards"], other[column], strict=True)):
            values.append(of(a, b))
            clusters.append((mine["seed"], place))
    estimate = clustered_bootstrap(values, clusters)
    return estimate.mean, *estimate.ends


def markdown(rows: Sequence[Row]) -> Iterator[str]:
    """The table of docs/experiments.md."""
    yield (
        "| objective | rate | β | true reward (least – most) | beyond `dpo` (95 %) | KL | tokens "
        "| win rate (95 %) | over seeds |"
    )
    yield "|---|---|---|---|---|---|---|---|---|"
    family = None
    for row in rows:
        if row["family"] != family:
            family = row["family"]
            yield f"| *{family}* | | | | | | | | |"
        name, *rest = row["variant"].split(",")
        label = row["variant"] if "+" in name else ",".join([f"`{name}`", *rest])
        strength = "–" if row["strength"] is None else f"{row['strength']:g}"
        least, most = row["reward_range"]
        low, high = row["win_rate_interval"]
        beyond, below, above = row["beyond_dpo"]
        apart = f"{beyond:+.3f} ({below:+.3f} – {above:+.3f})"
        cells = (
            label + (" ʳ" if row["shown_reward"] else ""),
            f"{row['rate']:g}",
            strength + ("*" if row["on_the_edge"] else ""),
            f"{row['reward']:.3f} ({least:.3f} – {most:.3f})",
            "–" if row["variant"] == "dpo" else apart,
            f"{row['kl']:.1f}",
            f"{row['length']:.1f}",
            f"{row['win_rate']:.3f} ({low:.3f} – {high:.3f})",
            f"{min(row['win_rates']):.3f} – {max(row['win_rates']):.3f}",
        )
        yield f"| {' | '.join(cells)} |"


def report(bench: Bench, rows: Sequence[Row], done: Mapping[str, Row]) -> Row:
    """All that is kept: what was run, the grid, the choices and every seed's figures."""
    from prefopt.runs import hardware, versions

    left_out = ("rewards", "rewards_sft", "example")
    return {
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "versions": versions(),
        "hardware": hardware(),
        "scale": asdict(bench.demo(0).scale),
        "validation_prompts": bench.validation,
        "test_prompts": bench.test,
        "grid": {"rate": bench.rates, "strength": bench.strengths},
        "batch": BATCH,
        "seeds": bench.seeds,
        "table": list(rows),
        "runs": [{k: v for k, v in row.items() if k not in left_out} for row in done.values()],
    }


def commit() -> str:
    """What was run; from a copy without its history, whatever `COMMIT` says."""
    told = os.environ.get("COMMIT")
    asked = ["git", "-C", str(HERE), "rev-parse", "--short", "HEAD"]
    return told or subprocess.run(asked, capture_output=True, text=True).stdout.strip()


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Every objective on the demonstration's world.")
    parser.add_argument("--work", type=Path, default=Path("runs/objectives"), help="kept between")
    parser.add_argument("--out", type=Path, help="where the figures go, a JSON file")
    parser.add_argument("--only", nargs="*", default=[], help="names of variants")
    parser.add_argument("--again", nargs="*", default=[], help="variants to forget first")
    parser.add_argument("--workers", type=int, default=2, help="processes, of one thread each")
    parser.add_argument("--table", action="store_true", help="run nothing, print what is there")
    parser.add_argument("--smoke", action="store_true", help="a minute; a tiny world, one seed")
    return parser.parse_args()


def main() -> int:
    options = parse_arguments()
    work_folder = options.work.resolve()
    work_folder.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("PREFOPT_CACHE", str(work_folder / "cache"))
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    bench = Bench(work_folder, validation=200, test=400)
    if options.smoke:
        bench = replace(bench, validation=4, test=4, tiny=True, rates=(1e-3,), strengths=(0.2,))
        bench = replace(bench, seeds=(0,))
    rows = [v for v in variants() if v.name == "dpo" or v.name in (options.only or [v.name])]
    if options.again:
        forget(bench, options.again)
    done = read_runs(bench) if options.table else collect(bench, rows, options.workers)
    table = summary(bench, rows, done)
    print("\n".join(markdown(table)))
    if options.out:
        text = json.dumps(report(bench, table, done), indent=1)
        options.out.write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
