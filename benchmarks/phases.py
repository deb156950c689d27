"""One training, one process: what each phase of it took, or where the profiler saw its time.

Clocks are put around the functions of the engine that the phases go through; the time of an
inner phase is not part of the outer one. What no clock is around is `rest`: reading a
micro-batch out of the examples, the loss, clipping, metrics, forgetting gradients.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from counting import Architecture, Work, count, floor, measure_rates
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from workload import ALPHA, RANK, load_adapter_weights

PHASES = ("preparing", "reference", "check", "forward", "backward", "optimizer", "rest")
#: steps under the profiler, which remembers every operator
PROFILED = 3
Function = Callable[..., Any]


class Clocks:
    """Seconds by phase; of phases within each other only the innermost one counts."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self._open: list[str] = []
        self._since = 0.0

    def enter(self, phase: str) -> None:
        self._credit()
        self._open.append(phase)

    def leave(self) -> None:
        self._credit()
        self._open.pop()

    def _credit(self) -> None:
        now = time.perf_counter()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now

    def around(self, function: Function, phase: str | Callable[[], str]) -> Function:
        """The function with a clock around it."""

        def clocked(*arguments: Any, **options: Any) -> Any:
            self.enter(phase if isinstance(phase, str) else phase())
            try:
                return function(*arguments, **options)
            finally:
                self.leave()

        return clocked


class Watch:
    """A `fit` with clocks in it, and what it trained on.

    Attributes:
        clocks: seconds by phase.
        job: the loop's job.
        prepare: reads, tokenises and plans the groups that it is given.
    """

    def __init__(self) -> None:
        self.clocks = Clocks()
        self.job: Any = None
        self.prepare: Function = lambda groups: None

    @contextmanager
    def watching(self) -> Iterator[None]:
        from prefopt.engine.logps import Scorer
        from prefopt.training import trainer

        around = self.clocks.around
        hooks = (
            register_optimizer_step_pre_hook(lambda *_: self.clocks.enter("optimizer")),
            register_optimizer_step_post_hook(lambda *_: self.clocks.leave()),
        )
        places = (
            (trainer, "prepare_data", around(self._noting(trainer.prepare_data), "preparing")),
            (trainer, "score_reference", around(trainer.score_reference, "reference")),
            (trainer, "make_job", self._keeping(trainer.make_job)),
            (Scorer, "_check", around(Scorer._check, "check")),
            (Scorer, "__call__", around(Scorer.__call__, _scoring)),
            (torch.autograd, "backward", around(torch.autograd.backward, "backward")),
        )
        with ExitStack() as stack:
            for owner, name, replacement in places:
                stack.enter_context(patch.object(owner, name, replacement))
            stack.callback(lambda: [hook.remove() for hook in hooks])
            self.clocks.enter("rest")
            try:
                yield
            finally:
                self.clocks.leave()

    def _noting(self, prepare_data: Function) -> Function:
        def noted(policy: Any, recipe: Any, loss: Any, groups: Any, **options: Any) -> Any:
            self.prepare = lambda more: prepare_data(policy, recipe, loss, more, **options)
            return prepare_data(policy, recipe, loss, groups, **options)

        return noted

    def _keeping(self, make_job: Function) -> Function:
        def kept(*arguments: Any, **options: Any) -> Any:
            self.job = make_job(*arguments, **options)
            return self.job

        return kept


def _scoring() -> str:
    """Scores with gradient are the policy's, those without are the reference's."""
    return "forward" if torch.is_grad_enabled() else "reference"


def make_trainer(folder: Path, batch: int) -> Any:
    """A trainer as `versus.py` has it, whose checks and allocations are done."""
    from prefopt import DPOTrainer

    adapter = (folder / "adapter").exists()
    lora = {"name": "lora", "rank": RANK, "alpha": ALPHA, "target_modules": "all-linear"}
    trainer = DPOTrainer(
        folder / "policy",
        None if adapter else folder / "reference",
        lr=1e-6,
        batch_size=batch,
        schedule="constant",
        warmup=0.0,
        seed=0,
        **({"adapter": lora} if adapter else {}),
    )
    if adapter:
        load_adapter_weights(trainer.model, folder)
    lines = (folder / "groups.jsonl").read_text().splitlines(keepends=True)
    (folder / "first.jsonl").write_text("".join(lines[:batch]))
    (folder / "timed.jsonl").write_text("".join(lines[batch:]))
    trainer.fit(folder / "first.jsonl")
    return trainer


def timed(folder: Path, batch: int, prepared: int) -> dict[str, Any]:
    """Seconds, operations and floor of every phase, rates, and the rate of preparing."""
    from prefopt.engine.forest import build_forest

    trainer = make_trainer(folder, batch)
    watch = Watch()
    with watch.watching():
        trainer.fit(folder / "timed.jsonl")
    job = watch.job
    forests = [
        build_forest([job.examples.groups[position] for position in positions])
        for step in job.steps
        for positions in step.microbatches
    ]
    rank = RANK if (folder / "adapter").exists() else None
    config = trainer.policy.model.config
    work = count(Architecture.of(config, rank), forests)
    rates = measure_rates(Architecture.of(config, rank), work, seconds=0.2)
    phases = {}
    for name in PHASES:
        operations = work.by_phase.get(name, Counter())
        phases[name] = {
            "seconds": watch.clocks.seconds[name],
            "gflop": sum(operations.values()) / 1e9,
            "floor": floor(operations, rates),
        }
    return {
        "phases": phases,
        "work": summary(work, len(job.steps)),
        "rates": {" ".join(kind): rate / 1e9 for kind, rate in sorted(rates.items())},
        "rows_per_second": preparing_rate(watch.prepare, folder, prepared),
    }


def summary(work: Work, steps: int) -> dict[str, int]:
    return {
        "steps": steps,
        "microbatches": work.forests,
        "tokens": work.tokens,
        "predictions": work.predictions,
        "seen": work.seen,
        "segments": work.segments,
    }


def preparing_rate(prepare: Function, folder: Path, rows: int) -> float:
    """Rows a second from a file to a plan of steps, the better of two passes.

    The rows are those of the training over and over, each prompt with another number in it.
    """
    from prefopt.data.formats import read_groups

    groups = [json.loads(line) for line in (folder / "groups.jsonl").read_text().splitlines()]
    short = [group for group in groups if len(json.dumps(group)) < 4000] or groups
    path = folder / "many.jsonl"
    with path.open("w") as file:
        for index in range(rows):
            group = short[index % len(short)]
            file.write(json.dumps(group | {"prompt": f"{index}{group['prompt']}"}) + "\n")
    seconds = []
    for _ in range(2):
        began = time.perf_counter()
        prepare(read_groups(path))
        seconds.append(time.perf_counter() - began)
    return rows / min(seconds)


# -- where the time goes -------------------------------------------------------------------

#: kinds of work by what the names of PyTorch's operators contain; the first that fits counts
KINDS = (
    ("attention", ("attention", "flash", "flex")),
    ("optimizer", ("adam", "sgd", "foreach_norm", "clip")),
    ("matrix products", ("mm", "linear", "matmul")),
    ("softmax and head", ("softmax", "logsumexp", "cross_entropy", "nll", "gather")),
    ("embedding and indexing", ("embedding", "index", "scatter", "put")),
    ("copies", ("copy", "cat", "clone", "contiguous", "fill", "zero", "empty", "_to_")),
    ("views", ("view", "transpose", "slice", "expand", "reshape", "as_strided", "squeeze",
               "split", "narrow", "select", "permute", "detach")),
    ("elementwise", ("mul", "add", "silu", "sub", "div", "pow", "sqrt", "neg", "mean", "sum",
                     "sigmoid", "norm", "where", "mask")),
)  # fmt: skip


def kind_of(operator: str) -> str:
    """What kind of work an operator does.

    >>> kind_of("aten::addmm"), kind_of("aten::_log_softmax"), kind_of("autograd::engine")
    ('matrix products', 'softmax and head', 'everything else')
    """
    name = operator.lower()
    return next(
        (kind for kind, words in KINDS if any(word in name for word in words)), "everything else"
    )


def profiled(folder: Path, batch: int) -> dict[str, Any]:
    """Seconds of the processor by kind of work, over a whole `fit` of a few steps."""
    trainer = make_trainer(folder, batch)
    lines = (folder / "timed.jsonl").read_text().splitlines(keepends=True)
    (folder / "few.jsonl").write_text("".join(lines[: PROFILED * batch]))
    with torch.profiler.profile() as profile:
        trainer.fit(folder / "few.jsonl")
    operators: dict[str, Counter[str]] = defaultdict(Counter)
    for event in profile.key_averages():
        operators[kind_of(event.key)][event.key] += event.self_cpu_time_total / 1e6
    total = sum(sum(found.values()) for found in operators.values())
    return {
        kind: {
            "seconds": sum(found.values()),
            "share": sum(found.values()) / total,
            "most": [f"{name} {seconds / total:.1%}" for name, seconds in found.most_common(3)],
        }
        for kind, found in sorted(operators.items(), key=lambda pair: -sum(pair[1].values()))
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--prepare", type=int, default=0, help="rows to time the preparation on")
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args(arguments)
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    with tempfile.TemporaryDirectory() as cache:
        os.environ["PREFOPT_CACHE"] = cache
        if options.profile:
            found = profiled(options.folder, options.batch)
        else:
            found = timed(options.folder, options.batch, options.prepare)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
