"""One contender on an accelerator, one process: train on each work folder's rows, print JSON.

Weights are made on the device from a seed, which is the same in every process: the sizes are
those of published models, the numbers are random, as no model is downloaded. The reference has
other weights than the policy, so that the first loss is not log 2, where any mistake agrees.

Time is taken after each optimizer step, once the device has finished it. Memory is the most
that the device's allocator held during the timed steps: weights, gradients, optimizer,
activations. The reference is scored before them, by every contender.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from contenders import BETA, _groups, digest
from counting import Architecture, count
from tasks import Outcome, Task
from torch.optim.optimizer import register_optimizer_step_post_hook

RATE = 1e-6


@dataclass(frozen=True)
class Shape:
    """The size of a Qwen3 model, as its published config says."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int = 8
    head_dim: int = 128
    vocab_size: int = 151_936


SHAPES = {
    "0.6B": Shape(1024, 3072, 28, 16),
    "1.7B": Shape(2048, 6144, 28, 16),
    "smoke": Shape(64, 96, 2, 2, num_key_value_heads=1, head_dim=32, vocab_size=384),
}


@dataclass
class Machine:
    """Where it runs, and what a process measures there.

    Attributes:
        device: `cuda`, or `cpu` in a smoke run.
        shape: of the model.
        warmup: steps before the clock and the gauge are started.
    """

    device: torch.device
    shape: Shape
    warmup: int

    def __post_init__(self) -> None:
        self.ends: list[float] = []
        register_optimizer_step_post_hook(self._stepped)

    def _stepped(self, *_: Any) -> None:
        self.wait()
        self.ends.append(time.perf_counter())
        if len(self.ends) == self.warmup and self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    @property
    def peak_mib(self) -> float | None:
        return torch.cuda.max_memory_allocated() / 2**20 if self.device.type == "cuda" else None

    def model(self, seed: int, tokenizer: Any) -> Any:
        """Random weights in float32."""
        from transformers import Qwen3Config, Qwen3ForCausalLM

        config = Qwen3Config(
            **asdict(self.shape),
            max_position_embeddings=4096,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        torch.manual_seed(seed)
        with self.device:
            return Qwen3ForCausalLM(config)


# -- the contenders ------------------------------------------------------------------------


def prefopt(task: Task, machine: Machine) -> Outcome:
    """`DPOTrainer.fit` as it comes."""
    return _prefopt(task, machine)


def prefopt_compiled(task: Task, machine: Machine) -> Outcome:
    """The same with its layers compiled."""
    return _prefopt(task, machine, compile=True)


def prefopt_wide(task: Task, machine: Machine) -> Outcome:
    """The same with room for the logits of a whole step: no head is computed twice."""
    return _prefopt(task, machine, logits_budget=32 << 30)


def _prefopt(
    task: Task, machine: Machine, logits_budget: int | None = None, **options: Any
) -> Outcome:

    from prefopt import DPOTrainer
    from prefopt.engine.forest import build_forest
    from prefopt.engine.tokens import Encoder

    tokenizer = _tokenizer(task)
    groups, placed = _groups(task)
    with tempfile.TemporaryDirectory() as cache:
        os.environ["PREFOPT_CACHE"] = cache
        trainer = DPOTrainer(
            machine.model(0, tokenizer),
            machine.model(1, tokenizer),
            beta=BETA,
            lr=task.learning_rate,
            tokenizer=tokenizer,
            batch_size=task.batch,
            microbatch_tokens=16_384,
            schedule="constant",
            warmup=0.0,
            seed=0,
            **options,
        )
        if logits_budget is not None:
            trainer._learner.scorer.logits_budget = logits_budget
        history = trainer.fit(placed)
    outcome = Outcome(losses=[record["loss"] for record in history])
    encoded = list(Encoder(tokenizer)(groups))
    for group in encoded:
        for edge in group.comparisons:
            sides = (group.completions[edge.preferred], group.completions[edge.dispreferred])
            outcome.tokens.append(tuple(ids.tolist() for ids in (group.prompt, *sides)))
    scorer = trainer._learner.scorer
    outcome.engine = {  # type: ignore[attr-defined]
        "sharing": scorer.sharing,
        "reason": scorer.reason,
        "attention": scorer.kernels.to_json(),
        "work": _work(machine.shape, [build_forest([group]) for group in encoded]),
    }
    return outcome


def _work(shape: Shape, forests: list[Any]) -> dict[str, Any]:
    """What the rows need once, forward and backward: unique tokens, predicted heads."""
    from transformers import LlamaConfig

    # Qwen3's products are those of a Llama with such heads; its norms of queries are none.
    work = count(Architecture.of(LlamaConfig(**asdict(shape))), forests)
    training = ("forward", "backward")
    return {
        "tokens": work.tokens,
        "predictions": work.predictions,
        "operations": sum(sum(work.by_phase[name].values()) for name in training),
    }


def trl(task: Task, machine: Machine, *, rows_at_once: int) -> Outcome:
    """TRL's DPOTrainer at its best: bf16, no checkpointing, reference scores before training,
    its fused head and optimizer, and the rows of each step sorted by length."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    tokenizer = _tokenizer(task)
    policy, reference = machine.model(0, tokenizer), machine.model(1, tokenizer)
    at_once = min(rows_at_once, task.batch)
    on_cpu = machine.device.type == "cpu"
    with tempfile.TemporaryDirectory() as out:
        arguments = DPOConfig(
            out,
            beta=BETA,
            per_device_train_batch_size=at_once,
            gradient_accumulation_steps=task.batch // at_once,
            precompute_ref_batch_size=at_once,
            precompute_ref_log_probs=True,
            gradient_checkpointing=False,
            num_train_epochs=1,
            max_length=None,
            learning_rate=task.learning_rate,
            lr_scheduler_type="constant",
            optim="adamw_torch_fused",
            train_sampling_strategy="sequential",
            bf16=not on_cpu,
            use_cpu=on_cpu,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            logging_steps=1,
        )
        trainer = DPOTrainer(
            policy,
            reference,
            arguments,
            train_dataset=Dataset.from_list(_sorted(task)),
            processing_class=tokenizer,
        )
        del reference
        trainer.ref_model = None
        trainer.train()
    outcome = Outcome(losses=[e["loss"] for e in trainer.state.log_history if "loss" in e])
    columns = ("prompt_ids", "chosen_ids", "rejected_ids")
    outcome.tokens = [tuple(row[name] for name in columns) for row in trainer.train_dataset]
    return outcome


def _sorted(task: Task) -> list[dict[str, str]]:
    """The rows of every step by length: a step is the same mean in any order."""

    def length(row: dict[str, str]) -> int:
        return len(row["prompt"]) + max(len(row["chosen"]), len(row["rejected"]))

    steps = [task.rows[at : at + task.batch] for at in range(0, len(task.rows), task.batch)]
    return [row for step in steps for row in sorted(step, key=length)]


def _trl_with(rows: int) -> Callable[[Task, Machine], Outcome]:
    return lambda task, machine: trl(task, machine, rows_at_once=rows)


CONTENDERS: dict[str, Callable[[Task, Machine], Outcome]] = {
    "prefopt": prefopt,
    "prefopt-wide": prefopt_wide,
    "prefopt-compiled": prefopt_compiled,
    **{f"trl-{rows}": _trl_with(rows) for rows in (4, 16, 32, 64)},
}


# -- one process ---------------------------------------------------------------------------


def _tokenizer(task: Task) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(task.folder / "tokenizer")


def measure(contender: str, task: Task, machine: Machine) -> dict[str, Any]:
    """Train once; what it cost and what it did.

    Raises:
        RuntimeError: it did not make the steps it was asked for.
    """
    machine.ends = []
    outcome = CONTENDERS[contender](task, machine)
    if len(machine.ends) != task.steps:
        raise RuntimeError(f"{contender} made {len(machine.ends)} steps of {task.steps}")
    ends = machine.ends[task.warmup - 1 :]
    steps = sorted(b - a for a, b in zip(ends, ends[1:], strict=False))
    seconds = ends[-1] - ends[0]
    found = {
        "pairs_per_second": len(steps) * task.batch / seconds,
        "seconds": seconds,
        "steps": len(steps),
        "step_seconds": steps,
        "peak_mib": machine.peak_mib,
        "losses": outcome.losses,
        "tokens": digest(outcome.tokens),
        **getattr(outcome, "engine", {}),
    }
    if "work" in found:  # of all rows; the timed steps are a part of them
        share = len(steps) / task.steps
        found["operations_per_second"] = found["work"]["operations"] * share / seconds
    return found


def product_rate(device: torch.device) -> float:
    """Operations a second of large matrix products in bfloat16: the best of twenty."""
    size = 8192 if device.type == "cuda" else 256
    kind = torch.bfloat16 if device.type == "cuda" else torch.float32
    a, b = (torch.randn(size, size, device=device, dtype=kind) for _ in range(2))
    best = float("inf")
    for _ in range(20):
        if device.type == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(4):
            a @ b
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, (time.perf_counter() - began) / 4)
    return float(2 * size**3 / best)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("contender", choices=CONTENDERS)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--model", choices=SHAPES, required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--warmup", type=int, default=2)
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    machine = Machine(device, SHAPES[options.model], options.warmup)
    found: dict[str, Any] = {"product_rate": product_rate(device)}
    for folder in options.folders:
        about = json.loads((folder / "workload.json").read_text())
        lines = (folder / "rows.jsonl").read_text().splitlines()
        task = Task(
            folder=folder,
            rows=[json.loads(line) for line in lines],
            batch=about["batch"],
            warmup=options.warmup,
            epochs=1,
            cycles=1,
            learning_rate=RATE,
        )
        found[folder.name] = measure(options.contender, task, machine)
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
