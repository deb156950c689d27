"""The training loop, from the first step to the last.

Losses are divided by the weight of the whole step before the backward pass, and an objective
that couples the step's judgements sees them all at once. So how a step is cut into
micro-batches, or over processes, never changes it. Nothing random happens here: the order is
in the plan, dropout is off, and the learning rate is a function of the step.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prefopt.errors import NonFiniteError
from prefopt.objectives.loss import Loss
from prefopt.objectives.metrics import Tally, at_rest
from prefopt.objectives.scores import Judgements, Scores, join, on_device
from prefopt.training import distributed
from prefopt.training.batches import Examples, MicroBatch, Step
from prefopt.training.clipping import clip_gradients
from prefopt.training.interrupts import Stopped, between_steps
from prefopt.training.parallel import Spread

Record = dict[str, Any]
#: a micro-batch, and whether it counts; one that does not is there to keep step with others
Piece = tuple[MicroBatch, bool]


@dataclass
class State:
    """Where a training is: with weights and optimizer, all that a checkpoint has to hold.

    Attributes:
        step: optimizer steps done.
        evaluated: the step of the last evaluation.
        probed: the step of the last probe.
        evaluation: its metrics.
        best_loss: the lowest evaluation loss so far.
        waiting: evaluations since then.
        stopped: why training ended before its last step.
        seconds: time spent training, over all resumptions.
        engine: how completions are scored, decided on the first micro-batch and kept.
        running: what the loss carries from step to step (baselines, group weights,
            multipliers), as plain JSON.
    """

    step: int = 0
    evaluated: int | None = None
    probed: int | None = None
    evaluation: Record | None = None
    best_loss: float = math.inf
    waiting: int = 0
    stopped: str | None = None
    seconds: float = 0.0
    engine: Record = field(default_factory=dict)
    running: Record = field(default_factory=dict)


@dataclass
class Job:
    """All that one training is made of.

    Attributes:
        examples: what it trains on.
        steps: the plan, every optimizer step in order.
        score: scores of a micro-batch, with gradient to the policy.
        loss: losses (T,) of scores and judgements.
        optimizer: over the trainable parameters.
        rate: learning rate of a step, counted from 0.
        device: where the policy is.
        max_grad_norm: gradients are clipped to this norm.
        spread: which pieces of a step are this process's, and what the others have.
        last_of_step: told before each micro-batch whether gradients are complete after it.
        evaluation: what it is evaluated on, with a plan of its own.
        eval_every: steps between evaluations; there is always one before the first step
            and one at the end.
        early_stop: evaluations without a lower loss after which training stops.
        probe: looks at what the policy itself would say, and may change `State.running`.
        probe_every: steps between probes; there is always one before the first step and one
            at the end.
        move_reference: takes the reference a step towards the policy.
        reference_every: steps between such moves.
        checkpoint_every: steps between checkpoints.
        record: takes each metrics record as it is made.
        save: writes a checkpoint; None where the training has no folder.
        last_checkpoint: the last good one, for messages.
    """

    examples: Examples
    steps: Sequence[Step]
    score: Callable[[MicroBatch], Scores]
    loss: Loss
    optimizer: torch.optim.Optimizer
    rate: Callable[[int], float]
    device: torch.device
    max_grad_norm: float = 1.0
    spread: Spread = field(default_factory=Spread)
    last_of_step: Callable[[bool], None] = lambda last: None
    evaluation: tuple[Examples, Sequence[Step]] | None = None
    eval_every: int | None = None
    early_stop: int | None = None
    probe: Callable[[State], Record] | None = None
    probe_every: int | None = None
    move_reference: Callable[[], None] | None = None
    reference_every: int | None = None
    checkpoint_every: int | None = None
    record: Callable[[Record], None] = lambda record: None
    save: Callable[[State], Path] | None = None
    last_checkpoint: Path | None = None

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [weight for group in self.optimizer.param_groups for weight in group["params"]]


def fit(job: Job, state: State) -> State:
    """Train from `state` to the end of the plan, to an early stop, or until a signal says stop.

    Raises:
        NonFiniteError: a loss or gradient is not finite; the weights are untouched by it.
        Stopped: Ctrl-C or SIGTERM, once the step is finished and a checkpoint saved.
    """
    with between_steps() as asked_to_stop:
        if job.evaluation and state.evaluated is None:
            evaluate(job, state, epoch=0.0)  # what there was before, to compare with
        if job.probe and state.probed is None:
            probe(job, state)
        for step in job.steps[state.step :]:
            if state.stopped:
                break
            started = time.perf_counter()
            tally, losses = accumulate(job, step, state)
            norm = clip_gradients(job.parameters, job.max_grad_norm)
            means = tally.means()
            refuse_non_finite(job, state, losses, means["loss"], norm)
            rate = job.rate(state.step)
            for group in job.optimizer.param_groups:
                group["lr"] = rate
            job.optimizer.step()
            job.optimizer.zero_grad(set_to_none=True)
            state.step += 1
            if job.move_reference and due(job.reference_every, state.step):
                job.move_reference()

            record = {
                "kind": "train",
                "step": state.step,
                "epoch": step.epoch,
                **means,
                "gradient_norm": norm,
                "learning_rate": rate,
            }
            seconds = time.perf_counter() - started
            state.seconds += seconds
            job.record({**record, **speed(step, seconds)})

            if job.evaluation and due(job.eval_every, state.step):
                evaluate(job, state, step.epoch)
            if job.probe and due(job.probe_every, state.step):
                probe(job, state)
            signum = asked_to_stop()
            if job.save and (due(job.checkpoint_every, state.step) or signum):
                job.last_checkpoint = job.save(state)
            if signum:
                raise Stopped(signum, job.last_checkpoint)
        if job.evaluation and state.evaluated != state.step:
            evaluate(job, state, job.steps[state.step - 1].epoch)
        if job.probe and state.probed != state.step:
            probe(job, state)
    return state


def accumulate(job: Job, step: Step, state: State) -> tuple[Tally, list[tuple[MicroBatch, Tensor]]]:
    """Gradients of one step's mean loss, added up over its micro-batches.

    Returns the metrics and, for messages, this process's micro-batches with their losses.
    """
    pieces = _pieces(job, job.examples, step)
    work = _together if job.loss.couples_batch else _one_by_one
    done = [
        (batch, scores.detached(), losses.detach())
        for (batch, counts), (scores, losses) in zip(
            pieces, work(job, step, state, pieces), strict=True
        )
        if counts
    ]
    measured = [
        (*_sent(job, scores, batch.judgements), losses.to(_outside(job)), batch.sources)
        for batch, scores, losses in done
    ]
    return _tally(job, job.spread.exchange(measured)), [(batch, ls) for batch, _, ls in done]


def _pieces(job: Job, examples: Examples, step: Step) -> list[Piece]:
    """What this process scores of a step."""
    return [
        (examples.microbatch(step, positions, job.device), counts)
        for positions, counts in job.spread.share(step.pieces(job.spread.readers))
    ]


def _one_by_one(
    job: Job, step: Step, state: State, pieces: Sequence[Piece]
) -> list[tuple[Scores, Tensor]]:
    """Forward and backward of each micro-batch in turn."""
    done = []
    for place, (batch, counts) in enumerate(pieces, start=1):
        job.last_of_step(place == len(pieces))
        scores = job.score(batch)
        losses = job.loss(scores, batch.judgements, state.running)
        share = (losses * batch.judgements.weight).sum() / step.weight
        (share if counts else 0.0 * share).backward()
        done.append((scores.detached(), losses.detach()))
    return done


def _together(
    job: Job, step: Step, state: State, pieces: Sequence[Piece]
) -> list[tuple[Scores, Tensor]]:
    """The whole step's scores first, the loss and its gradient on them, then the backward
    passes of the micro-batches with their share of that gradient.

    A step of one micro-batch is scored once; of several twice, since keeping all their
    activations is what micro-batches are there to avoid.
    """
    job.last_of_step(len(pieces) == 1)
    only = job.score(pieces[0][0]) if len(pieces) == 1 else None
    with torch.no_grad():
        measured = [only or job.score(batch) for batch, _ in pieces]
    own_parts = [
        _sent(job, scores.detached(), batch.judgements)
        for scores, (batch, counts) in zip(measured, pieces, strict=True)
        if counts
    ]
    parts = job.spread.exchange(own_parts)
    leaves = [
        (on_device(scores, job.device).as_leaves(), on_device(judgements, job.device))
        for scores, judgements in parts
    ]
    scores, judgements = join(leaves)
    state.running = dict(job.loss.advance(state.running, scores.detached(), judgements))
    losses = job.loss(scores, judgements, state.running)
    ((losses * judgements.weight).sum() / step.weight).backward()

    own = losses.detach().split([len(part) for _, part in parts])
    done = []
    for turn, (batch, counts) in enumerate(pieces):
        # One that does not count is a copy of the last one, and gets its gradient times zero.
        place = min(job.spread.reader + turn * job.spread.readers, len(parts) - 1)
        job.last_of_step(turn == len(pieces) - 1)
        again = only or job.score(batch)
        gradients = [leaf.grad for leaf in leaves[place][0].differentiable()]
        pairs = [
            (tensor, gradient if counts else torch.zeros_like(gradient))
            for tensor, gradient in zip(again.differentiable(), gradients, strict=True)
            if gradient is not None and tensor.requires_grad
        ]
        if pairs:
            torch.autograd.backward([t for t, _ in pairs], [g for _, g in pairs])
        done.append((again.detached(), own[place]))
    return done


def _outside(job: Job) -> torch.device:
    """Where tensors are that other processes are told."""
    return job.device if job.spread.readers == 1 else torch.device("cpu")


def _sent(job: Job, scores: Scores, judgements: Judgements) -> tuple[Scores, Judgements]:
    place = _outside(job)
    return on_device(scores, place), on_device(judgements, place)


def _tally(
    job: Job, measured: Sequence[tuple[Scores, Judgements, Tensor, Sequence[str | None]]]
) -> Tally:
    tally = Tally(job.loss.head)
    for raw, judgements, losses, sources in measured:
        scores = at_rest(raw)
        tally.add(scores, judgements, losses, sources, job.loss.rewards(scores))
    return tally


@torch.no_grad()
def evaluate(job: Job, state: State, epoch: float) -> None:
    """Score the evaluation data, record it, and decide whether to stop early."""
    assert job.evaluation is not None
    examples, steps = job.evaluation
    started = time.perf_counter()
    measured = []
    for step in steps:
        own = [
            (*_sent(job, job.score(batch), batch.judgements), batch.sources, counts)
            for batch, counts in _pieces(job, examples, step)
        ]
        parts = job.spread.exchange([part[:3] for part in own if part[3]])
        scores, judgements = join([(scores, judgements) for scores, judgements, _ in parts])
        scores, judgements = on_device(scores, job.device), on_device(judgements, job.device)
        losses = job.loss(scores, judgements, state.running)
        sources = [source for _, _, own_sources in parts for source in own_sources]
        measured.append((scores, judgements, losses, sources))
    means = distributed.broadcast(_tally(job, measured).means())
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


def probe(job: Job, state: State) -> None:
    """Let the policy speak, and record what it says."""
    assert job.probe is not None
    started = time.perf_counter()
    record, state.running = distributed.broadcast((job.probe(state), state.running))
    job.record({**record, "seconds": time.perf_counter() - started})
    state.probed = state.step


def refuse_non_finite(
    job: Job,
    state: State,
    losses: Sequence[tuple[MicroBatch, Tensor]],
    mean: float,
    norm: float,
) -> None:
    """Stop before the weights are touched if the step's loss or gradient is not finite.

    All processes know the mean and the norm, so all stop, and say where each looked.
    """
    if math.isfinite(mean) and math.isfinite(norm):
        return
    told = distributed.gather(
        (
            [place for batch, loss in losses for place in batch.places(~loss.isfinite())],
            [group.place for batch, _ in losses for group in batch.groups],
        )
    )
    wrong = [place for bad, _ in told for place in bad]
    what = "loss" if wrong else "gradient"
    places = list(dict.fromkeys(wrong or [place for _, every in told for place in every]))
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
