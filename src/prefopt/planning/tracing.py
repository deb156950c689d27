"""What a training holds at once, by going through a step of it without computing it.

The engine's own forward and backward run over a model of shapes (`standin.py`) while a tracker
counts. So the numbers hold for any architecture, adapter, objective, gradient checkpointing
and way to cut the head, without a formula for any of them. A micro-batch is memory for the
layers and for the head; of a deep model two depths are traced, and what a layer adds is
multiplied.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from prefopt.planning.standin import fakes
from prefopt.planning.tracking import Tracker
from prefopt.training.batches import MicroBatch, Step
from prefopt.training.loop import Job
from prefopt.training.prepare import Learner

#: models deeper than this are traced at two smaller depths
TRACED_WHOLE = 6


@dataclass(frozen=True)
class Counted:
    """Numbers of one pass over a micro-batch.

    Attributes:
        held: most bytes at once beside what was there before.
        operations: floating-point operations.
    """

    held: int
    operations: int


@dataclass(frozen=True)
class Pass:
    """A micro-batch, scored and learned from.

    Attributes:
        learning: forward and backward, with the reference in between if it is scored then.
        scoring: forward without gradient.
        checking: the first groups as separate rows, which trees are compared with once.
        kept: bytes of gradients that the backward pass leaves where there were none.
    """

    learning: Counted
    scoring: Counted
    checking: Counted
    kept: int = 0


def trace(
    learner: Learner, job: Job, step: Step, positions: Sequence[int], *, alone: bool = True
) -> Pass:
    """Go through one micro-batch.

    Args:
        learner: around a policy of fake parameters.
        job: made of it.
        step: which has the micro-batch.
        positions: of the micro-batch's groups.
        alone: no other micro-batch of the step was before it, and there are no gradients yet.
    """
    batch = job.examples.microbatch(step, positions, torch.device("cpu"))
    model = learner.policy.model
    model.zero_grad(set_to_none=True)
    tracker = Tracker()
    tracker.show(model.parameters())
    if learner.reference is not None and learner.reference.score is not None:
        tracker.show(learner.reference.score.scorer.model.parameters())

    if not alone:
        give_gradients(job.parameters)
        tracker.show(_gradients(job.parameters))

    def learn() -> None:
        scores = job.score(batch)
        wanted = [t for t in scores.differentiable() if t.requires_grad]
        torch.autograd.backward(wanted, [torch.ones_like(t) for t in wanted])

    before = tracker.live
    learning = _counted(tracker, learn)
    kept = tracker.live - before
    scorer = learner.scorer
    with torch.no_grad():
        scoring = _counted(tracker, lambda: scorer(batch.scored))
        checking = _counted(tracker, lambda: _rows(learner, batch))
    model.zero_grad(set_to_none=True)
    return Pass(learning, scoring, checking, kept)


def _rows(learner: Learner, batch: MicroBatch) -> None:
    """The largest group the plain way, as the engine's check of its first batch has it."""
    if learner.scorer.sharing == "rows":
        return
    largest = max(batch.scored, key=_cells)
    learner.scorer._rows([largest])


def _cells(group: object) -> int:
    completions: Sequence[Sequence[int]] = group.completions  # type: ignore[attr-defined]
    return len(completions) * max(map(len, completions))


def _counted(tracker: Tracker, work: Callable[[], object]) -> Counted:
    tracker.rest()
    live, operations = tracker.live, tracker.operations
    with tracker:
        work()
    return Counted(tracker.peak - live, tracker.operations - operations)


def deeper(shallow: Pass, deep: Pass, layers: tuple[int, int], depth: int) -> Pass:
    """What a model of `depth` layers would take, from two with fewer layers of the same kinds.

    What a layer adds is the same for each, so the numbers are on a straight line.
    """

    def line(a: int, b: int) -> int:
        each = (b - a) / (layers[1] - layers[0])
        return round(a + each * (depth - layers[0]))

    def counted(a: Counted, b: Counted) -> Counted:
        return Counted(line(a.held, b.held), line(a.operations, b.operations))

    return Pass(
        counted(shallow.learning, deep.learning),
        counted(shallow.scoring, deep.scoring),
        counted(shallow.checking, deep.checking),
        line(shallow.kept, deep.kept),
    )


def depths(layers: int, period: int) -> tuple[int, ...]:
    """The depths that are traced: all layers, or two numbers of them with all their kinds.

    Three at least: a first layer, a last one, and what is repeated between them.

    >>> depths(4, 1), depths(32, 1), depths(48, 6)
    ((4,), (3, 6), (6, 12))
    """
    first = period * -(-3 // period)
    if layers <= max(TRACED_WHOLE, 2 * first):
        return (layers,)
    return (first, 2 * first)


@dataclass(frozen=True)
class Update:
    """An optimizer step.

    Attributes:
        state: bytes that the optimizer keeps.
        held: most bytes at once during clipping and step, beside weights, gradients and state.
    """

    state: int
    held: int


def trace_update(job: Job) -> Update:
    """Go through the clipping of gradients and two optimizer steps."""
    weights: list[nn.Parameter] = job.parameters
    tracker = Tracker()
    tracker.show(weights)
    give_gradients(weights)
    tracker.show(_gradients(weights))
    before = tracker.live

    def update() -> None:
        clip_grad_norm_(weights, job.max_grad_norm)
        job.optimizer.step()

    _counted(tracker, update)  # which makes the state
    state = tracker.live - before
    held = _counted(tracker, update).held
    job.optimizer.zero_grad(set_to_none=True)
    return Update(state, held)


def give_gradients(weights: Sequence[nn.Parameter]) -> None:
    """As a micro-batch before this one would have left them."""
    with fakes():
        for weight in weights:
            weight.grad = torch.zeros_like(weight)


def _gradients(weights: Sequence[nn.Parameter]) -> list[Tensor]:
    return [weight.grad for weight in weights if weight.grad is not None]
