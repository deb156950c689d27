"""The training loop, from the first step to the last.

Losses are divided by the weight of the whole step before the backward pass, so how a step is
cut into micro-batches never changes it. Nothing random happens here: the order is in the
plan, dropout is off, and the learning rate is a function of the step.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from prefopt.errors import NonFiniteError
from prefopt.objectives.metrics import Tally
from prefopt.objectives.scores import Comparisons, Scores
from prefopt.training.batches import Examples, MicroBatch, Step

Record = dict[str, Any]


@dataclass
class State:
    """Where a training is: with weights and optimizer, all that a checkpoint has to hold.

    Attributes:
        step: optimizer steps done.
        evaluated: the step of the last evaluation.
        evaluation: its metrics.
        best_loss: the lowest evaluation loss so far.
        waiting: evaluations since then.
        stopped: why training ended before its last step.
        seconds: time spent training, over all resumptions.
        engine: how completions are scored, decided on the first micro-batch and kept.
    """

    step: int = 0
    evaluated: int | None = None
    evaluation: Record | None = None
    best_loss: float = math.inf
    waiting: int = 0
    stopped: str | None = None
    seconds: float = 0.0
    engine: Record = field(default_factory=dict)


@dataclass
class Job:
    """All that one training is made of.

    Attributes:
        examples: what it trains on.
        steps: the plan, every optimizer step in order.
        score: policy scores (B,) of groups, with gradient.
        reference: reference scores (B,) of a micro-batch; None for objectives without one.
        objective: losses (T,) of scores and comparisons.
        optimizer: over the trainable parameters.
        rate: learning rate of a step, counted from 0.
        device: where the policy is.
        beta: scale of the rewards that are reported.
        max_grad_norm: gradients are clipped to this norm.
        evaluation: what it is evaluated on, with a plan of its own.
        eval_every: steps between evaluations; there is always one before the first step
            and one at the end.
        early_stop: evaluations without a lower loss after which training stops.
        checkpoint_every: steps between checkpoints.
        record: takes each metrics record as it is made.
        save: writes a checkpoint; None where the training has no folder.
        last_checkpoint: the last good one, for messages.
    """

    examples: Examples
    steps: Sequence[Step]
    score: Callable[[Sequence[Any]], Tensor]
    reference: Callable[[MicroBatch], Tensor | None]
    objective: Callable[[Scores, Comparisons], Tensor]
    optimizer: torch.optim.Optimizer
    rate: Callable[[int], float]
    device: torch.device
    beta: float = 1.0
    max_grad_norm: float = 1.0
    evaluation: tuple[Examples, Sequence[Step]] | None = None
    eval_every: int | None = None
    early_stop: int | None = None
    checkpoint_every: int | None = None
    record: Callable[[Record], None] = lambda record: None
    save: Callable[[State], Path] | None = None
    last_checkpoint: Path | None = None

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [weight for group in self.optimizer.param_groups for weight in group["params"]]


def fit(job: Job, state: State) -> State:
    """Train from `state` to the end of the plan, to an early stop, or to Ctrl-C.

    Raises:
        NonFiniteError: a loss or gradient is not finite; the weights are untouched by it.
        KeyboardInterrupt: Ctrl-C, once the step is finished and a checkpoint saved.
    """
    with _interruptible() as interrupted:
        if job.evaluation and state.evaluated is None:
            evaluate(job, state, epoch=0.0)  # what there was before, to compare with
        for step in job.steps[state.step :]:
            if state.stopped:
                break
            started = time.perf_counter()
            tally, losses = accumulate(job, step)
            norm = clip_grad_norm_(job.parameters, job.max_grad_norm)
            refuse_non_finite(job, state, losses, norm)
            rate = job.rate(state.step)
            for group in job.optimizer.param_groups:
                group["lr"] = rate
            job.optimizer.step()
            job.optimizer.zero_grad(set_to_none=True)
            state.step += 1

            record = {
                "kind": "train",
                "step": state.step,
                "epoch": step.epoch,
                **tally.means(),
                "gradient_norm": float(norm),
                "learning_rate": rate,
            }
            seconds = time.perf_counter() - started
            state.seconds += seconds
            job.record({**record, **speed(step, seconds)})

            if job.evaluation and due(job.eval_every, state.step):
                evaluate(job, state, step.epoch)
            if job.save and (due(job.checkpoint_every, state.step) or interrupted()):
                job.last_checkpoint = job.save(state)
            if interrupted():
                raise KeyboardInterrupt
        if job.evaluation and state.evaluated != state.step:
            evaluate(job, state, job.steps[state.step - 1].epoch)
    return state


def accumulate(job: Job, step: Step) -> tuple[Tally, list[tuple[MicroBatch, Tensor]]]:
    """Gradients of one step's mean loss, added up over its micro-batches.

    Returns the metrics and, for messages, each micro-batch with its (T,) losses.
    """
    tally = Tally(job.beta)
    done: list[tuple[MicroBatch, Tensor]] = []
    for positions in step.microbatches:
        batch = job.examples.microbatch(positions, job.device)
        scores = Scores(job.score(batch.groups), job.reference(batch), batch.lengths)
        losses = job.objective(scores, batch.comparisons)
        ((losses * batch.comparisons.weight).sum() / step.weight).backward()
        tally.add(scores, batch.comparisons, losses, batch.sources)
        done.append((batch, losses.detach()))
    return tally, done


@torch.no_grad()
def evaluate(job: Job, state: State, epoch: float) -> None:
    """Score the evaluation data, record it, and decide whether to stop early."""
    assert job.evaluation is not None
    examples, steps = job.evaluation
    started = time.perf_counter()
    tally = Tally(job.beta)
    for step in steps:
        for positions in step.microbatches:
            batch = examples.microbatch(positions, job.device)
            scores = Scores(job.score(batch.groups), job.reference(batch), batch.lengths)
            losses = job.objective(scores, batch.comparisons)
            tally.add(scores, batch.comparisons, losses, batch.sources)
    means = tally.means()
    if not math.isfinite(means["loss"]):
        raise NonFiniteError(
            f"the evaluation loss after step {state.step} is not a finite number",
            remedy=f"lower learning_rate, or raise warmup; {_last_checkpoint(job)}",
        )
    seconds = time.perf_counter() - started
    job.record({"kind": "eval", "step": state.step, "epoch": epoch, **means, "seconds": seconds})
    state.evaluated, state.evaluation = state.step, means
    state.waiting = 0 if means["loss"] < state.best_loss else state.waiting + 1
    state.best_loss = min(means["loss"], state.best_loss)
    before_the_end = state.step < len(job.steps)
    if before_the_end and job.early_stop is not None and state.waiting >= job.early_stop:
        state.stopped = (
            f"the evaluation loss has not fallen below {state.best_loss:.4g} "
            f"in {state.waiting} evaluations"
        )


def refuse_non_finite(
    job: Job, state: State, losses: Sequence[tuple[MicroBatch, Tensor]], norm: Tensor
) -> None:
    """Stop before the weights are touched if the step's loss or gradient is not finite."""
    wrong = [place for batch, loss in losses for place in batch.places(~loss.isfinite())]
    if not wrong and math.isfinite(norm):
        return
    what = "loss" if wrong else "gradient"
    places = wrong or [group.place for batch, _ in losses for group in batch.groups]
    more = f" and {len(places) - 5} more" if len(places) > 5 else ""
    raise NonFiniteError(
        f"the {what} of step {state.step + 1} is not a finite number; "
        f"its groups: {'; '.join(places[:5])}{more}",
        remedy=f"look at these rows, lower learning_rate, or raise warmup; {_last_checkpoint(job)}",
    )


def _last_checkpoint(job: Job) -> str:
    if job.last_checkpoint is None:
        return "there is no checkpoint yet"
    return f"the last good checkpoint is {job.last_checkpoint}"


def due(every: int | None, step: int) -> bool:
    return every is not None and step % every == 0


def speed(step: Step, seconds: float) -> Record:
    return {
        "tokens_per_second": step.tokens / seconds,
        "comparisons_per_second": step.comparisons / seconds,
        "seconds": seconds,
    }


@contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """The first Ctrl-C is noted and acted on between steps; a second one acts at once.

    Weights are never left halfway through an update. Outside the main thread Python cannot
    handle signals, and nothing is changed.
    """
    pressed = False

    def note(signum: int, frame: FrameType | None) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True

    try:
        before = signal.signal(signal.SIGINT, note)
    except ValueError:
        yield lambda: False
        return
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, before or signal.SIG_DFL)
