"""Two constitutions on the demonstration's world: what each changes, and what it costs.

    python benchmarks/constitution.py --work runs/constitution          # stop and go on as you like
    python benchmarks/constitution.py --work runs/constitution --table  # only print what is there

The model after fine-tuning answers training prompts. A rule criticises and revises the answers,
by `prefopt revise`; DPO on "revised preferred to original" trains the policy, with the revisions'
own likelihood beside it (Constitutional AI fine-tunes on revisions first; this is both at once).

`no phrases`: about two of five answers say "All in all" or "To be honest", about which the world's
reward does not care; the reviser takes them out. `same ending`: the reviser lets every answer end
with one sentence, which hardly any does.

How often either happens, and what helpfulness is left, is measured on fresh samples for test
prompts that nothing was chosen by, with the same random numbers for all policies of a seed.
Helpfulness is 1 − F of the world: good English, finished, not too long; the reward S − F is shown
beside it. Settings were chosen on validation prompts and seed 0. Intervals redraw prompts, those
of all seeds together.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any

HERE = Path(__file__).resolve().parent
SEEDS = (0, 1, 2)
ENDING = "It began on time."
PHRASES = re.compile(r"\b(All in all|To be honest)\b")
SAMPLES = 4  # of each training prompt and of each test prompt
Row = dict[str, Any]

CONSTITUTIONS = {
    "no phrases": """\
principles:
  - name: no-phrases
    critique: Does the review say "All in all" or "To be honest"?
    revision: Write the review again without these phrases.
    judge: "pattern:All in all|To be honest"
""",
    "same ending": f"""\
principles:
  - name: same-ending
    critique: Does the review end with "{ENDING}"?
    revision: Write the review again so that it ends with that sentence.
    judge: {{kind: pattern, patterns: ['{re.escape(ENDING)}$'], prefer: with}}
""",
}


def revise(prompt: str, completion: str, principle: Any) -> str:
    """The reviser: what a language model would do at its best, as a rule."""
    if principle.name == "same-ending":
        return completion if completion.endswith(ENDING) else f"{completion.rstrip()} {ENDING}"

    def rest(found: re.Match[str]) -> str:
        """ "All in all, it was" → "It was"; what followed the phrase begins the sentence."""
        return found[2].upper()

    return re.sub(r"\b(All in all|To be honest),? (\w)", rest, completion)


@dataclass(frozen=True)
class Bench:
    """Where the work is, and how much there is of it."""

    work: Path
    seeds: tuple[int, ...] = SEEDS
    split: str = "test"
    tiny: bool = False
    rate: float = 1e-3
    batch: int = 32
    epochs: int = 3
    beta: float = 0.1
    likelihood: float = 0.3

    def demo(self, seed: int) -> Any:
        from prefopt.demo import QUICK, Demo, Scale

        tiny = Scale(
            documents=60, prompts=6, test=3, hidden=16, layers=1, vocabulary=300, new_tokens=12,
            sft=(1e-2, 16, 1),
        )  # fmt: skip
        return Demo(self.work / f"world-{seed}", tiny if self.tiny else QUICK, seed, progress=False)


def make_samples(bench: Bench, seed: int) -> Path:
    """The world, the fine-tuned model, and its answers to training prompts."""
    from prefopt.data.formats import write_groups
    from prefopt.policies.load import load_policy
    from prefopt.records import Completion, Group

    demo = bench.demo(seed)
    path: Path = demo.folder / "samples.jsonl"
    demo.check_folder()
    demo.make_world()
    demo.fine_tune()
    if not path.exists():
        prompts = demo.world.prompts(demo.scale.prompts, seed, split="train")
        _, texts = demo.sampled(load_policy(demo.sft.model), prompts, SAMPLES, seed)
        write_groups(
            path,
            [
                Group(p, tuple(map(Completion, answers)))
                for p, answers in zip(prompts, texts, strict=True)
            ],
        )
    return path


def make_pairs(bench: Bench, seed: int, name: str) -> tuple[Path, Row]:
    """`prefopt revise` on those answers; the pairs, and what it says of them."""
    from prefopt.data.formats import read_groups, write_groups
    from prefopt.judges.constitution import read_constitution
    from prefopt.judges.revisers import make_reviser
    from prefopt.judges.revising import pairs_of, tallies
    from prefopt.judges.revising import revise as revise_all
    from prefopt.judges.table import make_judge

    folder = bench.demo(seed).folder
    stem = name.replace(" ", "-")
    rules = folder / f"{stem}.yaml"
    rules.write_text(CONSTITUTIONS[name], encoding="utf-8")
    found = read_constitution(rules)
    reviser = make_reviser(f"python:{HERE / 'constitution.py'}:revise", found)
    answers = [
        (group.prompt, one.text)
        for group in read_groups([str(make_samples(bench, seed))])
        for one in group.completions
    ]
    trails = revise_all(answers, found, reviser, seed=seed)
    pairs = pairs_of(trails, reviser="rule")
    path = folder / f"{stem}.jsonl"
    write_groups(path, pairs)
    (tally,) = tallies(trails, found, make_judge(f"constitution:{rules}")).values()
    return path, {"answers": len(trails), "pairs": len(pairs), "principle": tally.to_dict()}


def make_policy(bench: Bench, seed: int, name: str, pairs: Path) -> Path:
    """DPO on the pairs, from the fine-tuned model."""
    from prefopt.recipe import load_recipe
    from prefopt.training.train import train

    demo = bench.demo(seed)
    out = demo.folder / f"dpo-{name.replace(' ', '-')}"
    likelihood = {"sft": {"weight": bench.likelihood, "length_normalize": False}}
    settings = {
        "model": str(demo.sft.model), "data": str(pairs), "out": str(out), "seed": seed,
        "objective": {"name": "dpo", "beta": bench.beta, "plus": likelihood},
        "learning_rate": bench.rate, "batch_size": bench.batch, "epochs": bench.epochs,
        "device": "cpu",
    }  # fmt: skip
    train(load_recipe(None, settings, origin="benchmark"), progress=False)
    return out


def measured(bench: Bench, seed: int, folder: Path) -> Row:
    """Fresh answers of a policy to prompts it has not seen, one list for each prompt."""
    from prefopt.evaluation.win_rate import sampled_kl
    from prefopt.policies.load import load_policy

    demo = bench.demo(seed)
    prompts = demo.world.prompts(demo.scale.test, seed, split=bench.split)
    policy = load_policy(folder / "model")
    groups, texts = demo.sampled(policy, prompts, SAMPLES, seed + 1)
    pairs = [(p, answers) for p, answers in zip(prompts, texts, strict=True)]

    def each(number: Any) -> list[list[float]]:
        return [[float(number(prompt, text)) for text in answers] for prompt, answers in pairs]

    return {
        "phrases": each(lambda p, text: PHRASES.search(text) is not None),
        "ending": each(lambda p, text: text.endswith(ENDING)),
        "helpful": each(lambda p, text: 1 - demo.world.faults(p, text)),
        "reward": each(demo.world.reward),
        "words": each(lambda p, text: len(text.split())),
        "kl": sampled_kl(policy, load_policy(demo.sft.model), groups).kl,
    }


def run(bench: Bench, seed: int, policy: str) -> Row:
    """One policy of one seed, from the beginning."""
    started = time.perf_counter()
    about: Row = {}
    if policy == "fine-tuned":
        make_samples(bench, seed)
        folder = bench.demo(seed).sft.folder
    else:
        pairs, about = make_pairs(bench, seed, policy)
        folder = make_policy(bench, seed, policy, pairs)
    numbers = measured(bench, seed, folder)
    seconds = round(time.perf_counter() - started, 1)
    return {"policy": policy, "seed": seed, **about, **numbers, "seconds": seconds}


def summary(rows: Sequence[Row]) -> list[Row]:
    """A line for each policy over all seeds: means, intervals by prompt, and what was lost."""
    from prefopt.evaluation.intervals import clustered_bootstrap

    lines: list[Row] = []
    for policy in ("fine-tuned", *CONSTITUTIONS):
        own = [row for row in rows if row["policy"] == policy]
        if not own:
            continue
        line: Row = {"policy": policy, "seeds": [row["seed"] for row in own]}
        for name in ("phrases", "ending", "helpful", "reward", "words"):
            values, prompts = [], []
            for row in own:
                for place, answers in enumerate(row[name]):
                    values += answers
                    prompts += [f"{row['seed']} {place}"] * len(answers)
            found = clustered_bootstrap(values, prompts, seed=0)
            line[name] = {
                "mean": found.mean,
                "interval": list(found.ends),
                "seeds": [fmean(v for answers in row[name] for v in answers) for row in own],
            }
        line["kl"] = fmean(row["kl"] for row in own)
        line["pairs"] = [row["pairs"] for row in own if "pairs" in row]
        before = lines[0]["helpful"] if lines else line["helpful"]
        line["helpfulness_lost"] = 1 - line["helpful"]["mean"] / before["mean"]
        line["helpfulness_lost_by_seed"] = [
            1 - after / at
            for after, at in zip(line["helpful"]["seeds"], before["seeds"], strict=False)
        ]
        lines.append(line)
    return lines


def show(lines: Sequence[Row]) -> str:
    """The table as Markdown."""
    head = "| policy | pairs | phrases | same ending | helpful | lost | reward | words | KL |"
    text = [head, "|---|" + "---:|" * 8]
    for line in lines:

        def shown(name: str, digits: int = 3, line: Row = line) -> str:
            low, high = line[name]["interval"]
            return f"{line[name]['mean']:.{digits}f} ({low:.{digits}f} – {high:.{digits}f})"

        pairs = ", ".join(map(str, line["pairs"])) or "–"
        text.append(
            f"| {line['policy']} | {pairs} | {shown('phrases')} | {shown('ending')} | "
            f"{shown('helpful')} | {100 * line['helpfulness_lost']:.1f} % | {shown('reward')} | "
            f"{shown('words', 1)} | {line['kl']:.1f} |"
        )
    return "\n".join(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "constitution.json")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--split", choices=("validation", "test"), default="test")
    parser.add_argument("--table", action="store_true", help="only print what is there")
    for name in ("rate", "beta", "likelihood"):
        parser.add_argument(f"--{name}", type=float, default=getattr(Bench, name))
    parser.add_argument("--epochs", type=int, default=Bench.epochs)
    given = parser.parse_args()
    os.environ.setdefault("PREFOPT_CACHE", str(given.work / "cache"))
    bench = Bench(
        given.work, tuple(given.seeds), given.split, rate=given.rate, beta=given.beta,
        likelihood=given.likelihood, epochs=given.epochs,
    )  # fmt: skip
    given.work.mkdir(parents=True, exist_ok=True)
    kept = given.work / f"rows-{given.split}.jsonl"
    lines = kept.read_text(encoding="utf-8").splitlines() if kept.exists() else []
    rows = [json.loads(line) for line in lines]
    done = {(row["policy"], row["seed"]) for row in rows}
    for seed in bench.seeds:
        for policy in ("fine-tuned", *CONSTITUTIONS):
            if given.table or (policy, seed) in done:
                continue
            rows.append(run(bench, seed, policy))
            with open(kept, "a", encoding="utf-8") as handle:
                handle.write(json.dumps(rows[-1]) + "\n")
            print(f"{policy}, seed {seed}: {rows[-1]['seconds']} s", file=sys.stderr)
    table = summary([row for row in rows if row["seed"] in bench.seeds])
    print(show(table))
    if not given.table and given.split == "test":
        from prefopt.runs import hardware, versions, write_text

        document = {
            "when": datetime.now(UTC).isoformat(timespec="seconds"),
            "settings": {
                "rate": bench.rate, "batch": bench.batch, "epochs": bench.epochs,
                "beta": bench.beta, "likelihood": bench.likelihood, "samples": SAMPLES,
                "seeds": list(bench.seeds),
            },
            "seconds": sum(row["seconds"] for row in rows),
            "versions": versions(), "hardware": hardware(), "policies": table,
        }  # fmt: skip
        write_text(given.out, json.dumps(document, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
