"""The main job from end to end on a generated world: preferences in, a preferred policy out.

    world/        a tokenizer and a small Llama made on the spot, and reviews to learn from
    sft/          the model after supervised fine-tuning on the reviews: the reference
    pairs.jsonl   its own samples, compared by the world's reward with Bradley–Terry noise
    heldout.jsonl the same on other prompts, for the curves
    dpo/          the model after DPO, with win rate, samples and report

Each stage is a file or a folder that appears when it is complete, so the same command goes
on where it was stopped. Nothing is chosen by looking at the test prompts.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from rich.console import Console

from prefopt.data.formats import write_groups
from prefopt.data.worlds import ReviewWorld, Split
from prefopt.errors import RunError
from prefopt.recipe import load_recipe
from prefopt.records import Completion, Group
from prefopt.runs import Run, atomic_folder, write_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from prefopt.engine.tokens import TokenGroup
    from prefopt.policies.load import Policy


@dataclass(frozen=True)
class Scale:
    """How much of everything.

    Attributes:
        documents: reviews for supervised fine-tuning.
        prompts: training prompts that completions are sampled for.
        samples: completions a prompt; every two of them are compared.
        heldout: validation prompts, whose comparisons are only watched.
        test: test prompts, which nothing but the final measurement sees.
        hidden, layers: size of the Llama.
        vocabulary: size of the tokenizer.
        new_tokens: longest completion.
        sft, dpo: learning rate, batch size and epochs. A model this small and this young needs
            rates a thousand times those of a real one.
        beta: of DPO. The labels are sharp (their temperature is 0.25), so DPO's optimum is
            π_SFT · exp(4 · reward / beta). At the usual 0.1 and a higher rate the policy went
            22 nats away, and its English suffered.
    """

    documents: int = 5000
    prompts: int = 800
    samples: int = 4
    heldout: int = 60
    test: int = 400
    hidden: int = 128
    layers: int = 3
    vocabulary: int = 1024
    new_tokens: int = 64
    sft: tuple[float, int, int] = (3e-3, 16, 2)
    dpo: tuple[float, int, int] = (5e-4, 64, 2)
    beta: float = 0.2


_BATCH = 256  # completions generated at once
FULL = Scale()
QUICK = Scale(
    documents=1500, prompts=200, heldout=20, test=200, hidden=96, layers=2, dpo=(1e-3, 32, 2)
)


def run_demo(
    out: str | Path = "runs/demo", *, seed: int = 0, quick: bool = False, progress: bool = True
) -> dict[str, Any]:
    """Make the world, train SFT and DPO in it, and measure on prompts never seen.

    Args:
        out: folder for everything; a demonstration that stopped there goes on.
        seed: another seed, another world, other weights and other samples; the same seed
            gives the same numbers.
        quick: a much smaller run that shows the way and proves little.
        progress: say on stderr what happens.

    Returns:
        `win_rate` against SFT with its `win_rate_interval`, mean true reward before and after
        (`reward_before`, `reward_after`), `kl` to SFT in nats a completion, `seconds` of this
        call, path of the `report`, and more of the same.

    Raises:
        RunError: the folder holds something else, or cannot be written.
    """
    started = time.perf_counter()
    demo = Demo(Path(out), QUICK if quick else FULL, seed, progress)
    demo.check_folder()
    with _one_thread():
        demo.stage("A world of reviews, a tokenizer and a small model", demo.make_world)
        demo.stage("Supervised fine-tuning on reviews", demo.fine_tune)
        demo.stage("Sampling pairs and comparing them, with noise", demo.make_pairs)
        demo.stage("Direct Preference Optimization on the pairs", demo.optimize)
        demo.stage("Measuring on prompts never seen", demo.measure)
    result = demo.dpo.read_json(demo.dpo.evaluation)
    return {
        **result,
        "seconds": round(time.perf_counter() - started, 1),
        "report": str(demo.dpo.report),
    }


@dataclass
class Demo:
    """One demonstration: its folder, its scale, its seed."""

    folder: Path
    scale: Scale
    seed: int
    progress: bool

    def __post_init__(self) -> None:
        self.world = ReviewWorld()
        self.settings = json.loads(json.dumps({"seed": self.seed, **asdict(self.scale)}))
        self.made = self.folder / "world"
        self.sft = Run(self.folder / "sft")
        self.dpo = Run(self.folder / "dpo")
        self.pairs = self.folder / "pairs.jsonl"
        self.heldout = self.folder / "heldout.jsonl"

    def check_folder(self) -> None:
        """Refuse a folder that holds another demonstration, or anything else.

        Raises:
            RunError: it does.
        """
        note = self.made / "settings.json"
        if not note.exists():
            strangers = self.folder.glob("[!.]*") if self.folder.is_dir() else ()
            problem = "something that is not a demonstration" if any(strangers) else None
        else:
            before = json.loads(note.read_text(encoding="utf-8"))
            same = before == self.settings
            problem = None if same else "a demonstration with another seed or size"
        if problem:
            raise RunError(
                f"the folder holds {problem}",
                file=str(self.folder),
                field="out",
                remedy="choose another --out",
            )

    def stage(self, title: str, work: Callable[[], None]) -> None:
        console = Console(stderr=True, quiet=not self.progress)
        console.rule(f"[bold]{title}", align="left")
        started = time.perf_counter()
        work()
        console.print(f"[dim]{time.perf_counter() - started:.0f} s")

    # -- the stages --------------------------------------------------------------------------

    def make_world(self) -> None:
        """Reviews as prompts with one completion, and an untrained policy that can spell them."""
        if self.made.exists():
            return
        pairs = self.world.documents(self.scale.documents, self.seed)
        with atomic_folder(self.made) as part:
            write_groups(part / "reviews.jsonl", [Group(p, (Completion(c),)) for p, c in pairs])
            tokenizer = _train_tokenizer([p + c for p, c in pairs], self.scale.vocabulary)
            model = _make_model(tokenizer, self.scale, self.seed)
            tokenizer.save_pretrained(part / "model")
            model.save_pretrained(part / "model")
            write_text(part / "settings.json", json.dumps(self.settings, indent=2) + "\n")

    def fine_tune(self) -> None:
        self.train(
            self.sft,
            {
                "model": str(self.made / "model"),
                "data": str(self.made / "reviews.jsonl"),
                "objective": {"name": "sft"},
                **_schedule(*self.scale.sft),
            },
        )

    def make_pairs(self) -> None:
        """Comparisons of the SFT policy's own completions of training and validation prompts."""
        for path, count, split in (
            (self.pairs, self.scale.prompts, "train"),
            (self.heldout, self.scale.heldout, "validation"),
        ):
            if not path.exists():
                write_groups(path, self._compared(count, split))  # type: ignore[arg-type]

    def _compared(self, count: int, split: Split) -> list[Group]:
        prompts = self.world.prompts(count, self.seed, split=split)
        _, answers = self.sampled(_load(self.sft), prompts, self.scale.samples, self.seed)
        rng = random.Random(f"labels {split} {self.seed}")
        groups = [
            Group(prompt, self._judged(prompt, texts), self.world.label(prompt, texts, rng))
            for prompt, texts in zip(prompts, answers, strict=True)
        ]
        return [group for group in groups if group.comparisons]

    def _judged(self, prompt: str, texts: list[str]) -> tuple[Completion, ...]:
        """Completions with their true reward, which DPO does not read and others may."""
        return tuple(Completion(text, score=self.world.reward(prompt, text)) for text in texts)

    def optimize(self) -> None:
        self.train(
            self.dpo,
            {
                "model": str(self.sft.model),
                "data": str(self.pairs),
                "eval_data": str(self.heldout),
                "objective": {"name": "dpo", "beta": self.scale.beta},
                **_schedule(*self.scale.dpo),
                "eval_every": 40,
            },
        )

    def train(self, run: Run, settings: dict[str, Any]) -> None:
        """Train into that folder with the demonstration's seed; a finished run is left alone."""
        from prefopt.training.train import train

        settings = {**settings, "out": str(run.folder), "seed": self.seed}
        train(load_recipe(None, settings, origin="demo"), progress=self.progress)

    def measure(self) -> None:
        """Both policies answer the same test prompts; the reward says which answer is better."""
        from prefopt.report import build_report

        if not self.dpo.evaluation.exists():
            prompts = self.world.prompts(self.scale.test, self.seed, split="test")
            result, rows = self.compare(prompts)
            write_text(self.dpo.samples, "".join(json.dumps(row) + "\n" for row in rows))
            self.dpo.write_json(self.dpo.evaluation, result)
        build_report(self.dpo.folder)

    def compare(self, prompts: list[str]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """SFT against DPO on these prompts: the figures, and both answers to each prompt."""
        from prefopt.evaluation.win_rate import by_reward, sampled_kl, win_rate

        before, after = _load(self.sft), _load(self.dpo)
        # Other random numbers than those of the training samples, the same for both sides.
        sides = [self.sampled(side, prompts, 1, self.seed + 1) for side in (before, after)]
        texts = [answers for _, answers in sides]
        wins = win_rate(prompts, texts[1], texts[0], by_reward(self.world.reward), seed=self.seed)
        divergence = sampled_kl(after, before, sides[1][0])
        rows = [
            {
                "prompt": prompt,
                "before": old,
                "after": new,
                "reward_before": self.world.reward(prompt, old),
                "reward_after": self.world.reward(prompt, new),
            }
            for prompt, (old,), (new,) in zip(prompts, *texts, strict=True)
        ]

        def mean(key: str) -> float:
            return fmean(row[key] for row in rows)

        result = {
            "win_rate": wins.rate,
            "win_rate_interval": list(wins.interval),
            "ties": wins.ties,
            "reward_before": mean("reward_before"),
            "reward_after": mean("reward_after"),
            "kl": divergence.kl,
            "kl_standard_error": divergence.standard_error,
            "prompts": len(prompts),
            "opponent": "the model after SFT",
        }
        return result, rows

    def sampled(
        self, policy: Policy, prompts: list[str], n: int, seed: int
    ) -> tuple[list[TokenGroup], list[list[str]]]:
        """n answers to every prompt, none longer than the scale allows, as tokens and as text."""
        from prefopt.sampling.generate import sample_tokens, to_texts
        from prefopt.training.display import Display

        with Display(self.progress).bar("sampling, completions", n * len(prompts)) as advance:
            groups = sample_tokens(
                policy,
                prompts,
                n=n,
                max_new_tokens=self.scale.new_tokens,
                seed=seed,
                batch_size=_BATCH,
                progress=lambda *_: advance(1),
            )
        return groups, to_texts(policy, groups)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute on one thread: the same numbers on any number of cores.

    Matrices this small gain little from a second one, and on a busy machine threads that
    wait for each other made the quick run four times slower.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _schedule(rate: float, batch_size: int, epochs: int) -> dict[str, Any]:
    return {"learning_rate": rate, "batch_size": batch_size, "epochs": epochs}


def _load(run: Run) -> Policy:
    from prefopt.policies.load import load_policy

    return load_policy(run.model)


def _train_tokenizer(texts: list[str], size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE of these texts, with an end of text and a pad."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<|end|>", "<|pad|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=core, eos_token="<|end|>", pad_token="<|pad|>"
    )


def _make_model(tokenizer: PreTrainedTokenizerFast, scale: Scale, seed: int) -> Any:
    """A small Llama with seeded random weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=scale.hidden,
        intermediate_size=3 * scale.hidden,
        num_hidden_layers=scale.layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)
