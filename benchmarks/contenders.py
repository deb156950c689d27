"""One contender, one process: train on the work folder's rows, print what it cost as JSON.

Every contender is timed by the same clock, a hook that PyTorch calls after each optimizer
step: the seconds of N steps are those between the end of the last warm-up step and the end
of the last step, data loading, reference, gradient clipping and logging included. Memory
is the peak of the process's resident set while it trains, beside what it held before.

All train float32 weights with AdamW at a constant learning rate on the same batches. A fast
contender goes through the timed rows several times, so that it is timed for long enough: what
it does for each row stays the same, and so do the rows.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tasks import Meter, Outcome, Task
from workload import ALPHA, RANK, encode, load_adapter_weights, lora_config

BETA = 0.1


# -- the contenders ------------------------------------------------------------------------


def prefopt(task: Task, meter: Meter) -> Outcome:
    """`DPOTrainer.fit` as it comes: reference scores once, before the first step."""
    return _prefopt(task, meter, reference_scores="cache")


def prefopt_each_step(task: Task, meter: Meter) -> Outcome:
    """`DPOTrainer.fit` with the reference scored anew in each step, as TRL does."""
    return _prefopt(task, meter, reference_scores="each_step")


def _prefopt(task: Task, meter: Meter, **options: Any) -> Outcome:
    from prefopt import DPOTrainer
    from prefopt.engine.tokens import Encoder

    groups, placed = _groups(task)
    if task.adapter:
        options["adapter"] = {
            "name": "lora",
            "rank": RANK,
            "alpha": ALPHA,
            "target_modules": "all-linear",
        }
    with tempfile.TemporaryDirectory() as cache:
        os.environ["PREFOPT_CACHE"] = cache  # empty: nothing is known from an earlier run
        trainer = DPOTrainer(
            task.folder / "policy",
            None if task.adapter else task.folder / "reference",
            beta=BETA,
            lr=task.learning_rate,
            batch_size=task.batch,
            epochs=task.epochs,
            schedule="constant",
            warmup=0.0,
            seed=0,
            **options,
        )
        if task.adapter:  # the reference is the policy with its adapter off
            load_adapter_weights(trainer.model, task.folder)
        meter.start()
        history = trainer.fit(placed)
    outcome = Outcome(losses=[record["loss"] for record in history])
    for group in Encoder(trainer.policy.tokenizer)(groups):
        for edge in group.comparisons:
            sides = (group.completions[edge.preferred], group.completions[edge.dispreferred])
            outcome.tokens.append(tuple(ids.tolist() for ids in (group.prompt, *sides)))
    return outcome


def _groups(task: Task) -> tuple[list[Any], list[Any]]:
    """The groups of the rows, once each; and all in the order in which `fit` is to get them.

    `fit` shuffles: its first epoch then visits them in the order of the rows.
    """
    from prefopt.data.formats import read_groups
    from prefopt.data.mixture import epoch_order

    by_prompt = {group.prompt: group for group in read_groups(task.folder / "groups.jsonl")}
    visits = []
    for row in task.order:
        if not visits or visits[-1].prompt != row["prompt"]:
            visits.append(by_prompt[row["prompt"]])
    counts = [len(group.comparisons) for group in visits]
    shuffle = epoch_order([None] * len(visits), counts, None, seed=0, epoch=0)
    placed = [group for _, group in sorted(zip(shuffle, visits, strict=True), key=lambda p: p[0])]
    return list({group.prompt: group for group in visits}.values()), placed


def plain(task: Task, meter: Meter) -> Outcome:
    """A good short loop: one padded batch, chosen then rejected, and full logits."""
    policy, tokenizer = _load(task.folder / "policy")
    if task.adapter:
        from peft import PeftModel

        policy = PeftModel.from_pretrained(policy, task.folder / "adapter", is_trainable=True)
        reference, reference_state = policy, policy.disable_adapter
    else:
        reference, _ = _load(task.folder / "reference")
        reference.requires_grad_(False)
        reference_state = contextlib.nullcontext
    optimizer = torch.optim.AdamW(
        [weight for weight in policy.parameters() if weight.requires_grad],
        lr=task.learning_rate,
        weight_decay=0.0,
        fused=True,
    )
    begin = time.perf_counter()
    outcome = Outcome(tokens=[encode(row, tokenizer) for row in task.order])
    outcome.prepared = time.perf_counter() - begin
    meter.start()
    for _ in range(task.epochs):
        for start in range(0, len(outcome.tokens), task.batch):
            pairs = outcome.tokens[start : start + task.batch]
            ids, mask, labels = _pad(pairs, tokenizer.pad_token_id)
            logps = _plain_logps(policy, ids, mask, labels)
            with torch.no_grad(), reference_state():
                reference_logps = _plain_logps(reference, ids, mask, labels)
            preferred, dispreferred = (logps - reference_logps).chunk(2)
            loss = -F.logsigmoid(BETA * (preferred - dispreferred)).mean()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            outcome.losses.append(loss.item())
    return outcome


def _plain_logps(
    model: Any, ids: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """(2·pairs,) nats from (2·pairs, length) ids; −100 in `labels` is not scored."""
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
    losses = F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), reduction="none")
    return -losses.view(len(ids), -1).sum(1)


def _pad(pairs: list[tuple[list[int], ...]], pad: int) -> tuple[torch.Tensor, ...]:
    rows = [(p, c) for p, c, _ in pairs] + [(p, r) for p, _, r in pairs]
    width = max(len(p) + len(c) for p, c in rows)
    ids = torch.full((len(rows), width), pad)
    labels = torch.full((len(rows), width), -100)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for i, (p, c) in enumerate(rows):
        end = len(p) + len(c)
        ids[i, :end] = torch.tensor(p + c)
        labels[i, len(p) : end] = torch.tensor(c)
        mask[i, :end] = 1
    return ids, mask, labels


def trl(task: Task, meter: Meter) -> Outcome:
    """TRL's DPOTrainer as it comes: checkpointed gradients, a reference forward each step.

    Against its defaults only float32 (it would choose bfloat16, which this comparison does
    not have), a constant learning rate, rows in the given order, no saving, no reports.
    """
    return _trl(task, meter)


def trl_best(task: Task, meter: Meter) -> Outcome:
    """TRL's DPOTrainer at its best on a CPU.

    No checkpointed gradients, reference scores computed before training and the timed rows
    sorted by length, so that little is padded.
    """
    if task.epochs == 1:
        warm = task.warmup * task.batch
        task.rows[warm:] = sorted(
            task.rows[warm:],
            key=lambda r: len(r["prompt"]) + max(map(len, (r["chosen"], r["rejected"]))),
        )
    return _trl(task, meter, gradient_checkpointing=False, precompute_ref_log_probs=True)


def _trl(task: Task, meter: Meter, **options: Any) -> Outcome:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    policy, tokenizer = _load(task.folder / "policy")
    reference = None if task.adapter else _load(task.folder / "reference")[0]
    with tempfile.TemporaryDirectory() as out:
        arguments = DPOConfig(
            out,
            beta=BETA,
            per_device_train_batch_size=task.batch,
            num_train_epochs=task.epochs,
            learning_rate=task.learning_rate,
            lr_scheduler_type="constant",
            train_sampling_strategy="sequential",
            bf16=False,
            use_cpu=True,
            dataloader_pin_memory=False,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            logging_steps=1 if task.epochs > 1 else 10,
            **options,
        )
        begin = time.perf_counter()
        trainer = DPOTrainer(
            policy,
            reference,
            arguments,
            train_dataset=Dataset.from_list(task.order),
            processing_class=tokenizer,
            peft_config=lora_config() if task.adapter else None,
        )
        outcome = Outcome(prepared=time.perf_counter() - begin)
        if task.adapter:  # the reference is the policy with its adapter off
            load_adapter_weights(trainer.model, task.folder)
        if options.get("precompute_ref_log_probs"):
            trainer.ref_model = reference = None  # its scores are all that is needed now
        meter.start()
        trainer.train()
    outcome.losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    columns = ("prompt_ids", "chosen_ids", "rejected_ids")
    outcome.tokens = [tuple(row[name] for name in columns) for row in trainer.train_dataset]
    return outcome


CONTENDERS: dict[str, Callable[[Task, Meter], Outcome]] = {
    "prefopt": prefopt,
    "prefopt-each-step": prefopt_each_step,
    "plain": plain,
    "trl": trl,
    "trl-best": trl_best,
}


def _load(folder: Path) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(folder)


# -- one process ---------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("contender", choices=CONTENDERS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--rows", type=int, required=True, help="how many, from the first")
    parser.add_argument("--warmup", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--cycles", type=int, default=1, help="passes over the timed rows")
    parser.add_argument("--learning-rate", type=float, default=1e-6)
    parser.add_argument("--profile", action="store_true", help="where the time goes, as a table")
    options = parser.parse_args(arguments)
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    lines = (options.folder / "rows.jsonl").read_text().splitlines()[: options.rows]
    task = Task(
        folder=options.folder,
        rows=[json.loads(line) for line in lines],
        batch=options.batch,
        warmup=options.warmup,
        epochs=options.epochs,
        cycles=options.cycles,
        learning_rate=options.learning_rate,
    )
    if options.profile:
        print(profiled(options.contender, task))
    else:
        print(json.dumps(measure(options.contender, task)))


def measure(contender: str, task: Task) -> dict[str, Any]:
    """Train once; what it cost and what it did.

    Raises:
        RuntimeError: it did not make the steps it was asked for.
    """
    meter = Meter()
    outcome = CONTENDERS[contender](task, meter)
    peak = meter.stop()
    if len(meter.ends) != task.steps:
        raise RuntimeError(f"{contender} made {len(meter.ends)} steps of {task.steps}")
    begin = meter.ends[task.warmup - 1] if task.warmup else meter.started
    seconds = meter.ends[-1] - begin
    pairs = (task.steps - task.warmup) * task.batch
    once = task.warmup + task.timed  # steps of a job that visits each row once
    prepared = outcome.prepared * len(task.rows) / len(task.order)
    whole = prepared + meter.ends[once - 1] - meter.started
    return {
        "contender": contender,
        "seconds": seconds,
        "steps": task.steps - task.warmup,
        "pairs": pairs,
        "pairs_per_second": pairs / seconds,
        "step_seconds": [b - a for a, b in zip(meter.ends, meter.ends[1:], strict=False)],
        "whole_pairs_per_second": once * task.batch / whole,
        "peak_mib": peak,
        "held_mib": meter.held_mib,
        "losses": outcome.losses,
        "tokens": digest(outcome.tokens),
    }


def profiled(contender: str, task: Task) -> str:
    """The operators that cost most, over the whole training."""
    with torch.profiler.profile(profile_memory=True) as profile:
        CONTENDERS[contender](task, Meter())
    return str(
        profile.key_averages().table(
            sort_by="self_cpu_time_total", row_limit=30, max_name_column_width=45
        )
    )


def digest(tokens: list[tuple[list[int], ...]]) -> str:
    """The same for the same rows of token ids, in whatever order and however often they come."""
    distinct = {tuple(tuple(map(int, ids)) for ids in row) for row in tokens}
    rows = sorted([list(ids) for ids in row] for row in distinct)
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]


if __name__ == "__main__":
    main()
