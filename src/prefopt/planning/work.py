"""How much a training computes, and how long that takes at a rate.

Arithmetic is counted on a traced micro-batch and spread over the tokens of the plan: unique
ones, since what completions share is computed once. An optimizer step is memory traffic.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from prefopt.planning.machines import Machine
from prefopt.planning.memory import Strategy
from prefopt.planning.needs import Needs, Piece
from prefopt.training.batches import Step
from prefopt.training.examples import Prepared

#: steps that are looked at; of longer plans so many, evenly spaced
SAMPLED = 64
#: of an accelerator's bf16 rate, what it has in float32
FP32_SHARE = 0.1
#: times that weights, gradients and optimizer state are read or written in an update
TRAFFIC = 2


@dataclass(frozen=True)
class Amount:
    """How much there is to do.

    Attributes:
        steps: optimizer steps.
        judgements: of all of them.
        tokens: that they go through, prompts counted once a group.
        reference_tokens: of distinct groups, whose reference scores are computed before.
        evaluation_tokens: of one evaluation.
        evaluations: how many there are.
    """

    steps: int
    judgements: int
    tokens: int
    reference_tokens: int
    evaluation_tokens: int
    evaluations: int


@dataclass(frozen=True)
class Seconds:
    """How long it takes.

    Attributes:
        reference: scoring the reference before training; less if scores are in the cache.
        training: all steps.
        evaluation: all evaluations.
    """

    reference: float
    training: float
    evaluation: float

    @property
    def total(self) -> float:
        return self.reference + self.training + self.evaluation


def steps_of(data: Prepared) -> list[Step]:
    """Some or all steps of a plan, in order."""
    count = len(data.steps)
    if count <= SAMPLED:
        return list(data.steps)
    return [data.steps[round(place * (count - 1) / (SAMPLED - 1))] for place in range(SAMPLED)]


def amount_of(
    data: Prepared,
    evaluation: Prepared | None,
    *,
    eval_every: int | None,
    scale: float = 1.0,
) -> Amount:
    """Count what a plan holds.

    Args:
        data: what it trains on.
        evaluation: what it is evaluated on.
        eval_every: steps between evaluations.
        scale: how many times the data that is here there really is.
    """
    steps = steps_of(data)
    groups = data.counts["groups"]
    tokens = sum(step.tokens for step in steps) * len(data.steps) / len(steps)
    seen = sum(len(piece) for step in steps for piece in step.microbatches)
    share = min(1.0, seen * len(data.steps) / len(steps) / groups)  # of the groups, in any step
    every = len(data.steps) // eval_every if eval_every else 0
    last = 0 if eval_every and len(data.steps) % eval_every == 0 else 1
    return Amount(
        steps=round(len(data.steps) * scale),
        judgements=round(data.steps.judgements * scale),
        tokens=round(tokens * scale),
        reference_tokens=round(data.counts["tokens"] * share * scale),
        evaluation_tokens=evaluation.counts["tokens"] if evaluation else 0,
        evaluations=(1 + every + last) if evaluation else 0,
    )


def largest_piece(steps: Sequence[Step], readers: int, limit: int) -> Piece:
    """The micro-batch with most tokens.

    Args:
        steps: to choose from.
        readers: processes that divide each step.
        limit: most tokens of a micro-batch.
    """
    return max(_pieces(steps, readers, limit), key=lambda piece: piece.tokens)


def _pieces(steps: Sequence[Step], readers: int, limit: int) -> Iterator[Piece]:
    from dataclasses import replace

    from prefopt.engine.forest import first_fit

    for step in steps:
        if limit != step.limit:
            positions = [p for piece in step.microbatches for p in piece]
            cut = first_fit([step.sizes[p] for p in positions], limit)
            pieces = tuple(tuple(positions[place] for place in places) for places in cut)
            step = replace(step, microbatches=pieces, limit=limit)
        parts = step.pieces(readers)
        for part in parts:
            tokens = sum(step.sizes[position] for position in part)
            yield Piece(step, tuple(part), tokens, alone=len(parts) <= readers)


def operations_of(needs: Needs, amount: Amount) -> dict[str, float]:
    """Floating-point operations by what they are for, over all devices."""
    tokens, traced = needs.largest.tokens, needs.traced
    once = traced.scoring.operations / tokens
    learning = traced.learning.operations / tokens + (needs.passes - 1) * once
    return {
        "reference": once * amount.reference_tokens if needs.cached else 0.0,
        "training": learning * amount.tokens,
        "evaluation": once * amount.evaluation_tokens * amount.evaluations,
    }


def seconds_of(
    needs: Needs,
    amount: Amount,
    machine: Machine,
    *,
    strategy: Strategy,
    bf16: bool,
) -> Seconds:
    """How long a machine takes, if it reaches its share of its rate.

    Traffic between devices is not counted, nor is reading and tokenising the data.
    """
    count = machine.count
    rate = machine.rate * machine.share * count
    if machine.kind == "accelerator" and not bf16:
        rate *= FP32_SHARE
    held = needs.weights + needs.gradients + needs.update.state
    shards = 1 if strategy in ("alone", "ddp") else count
    update = TRAFFIC * held / shards / machine.bandwidth
    work = operations_of(needs, amount)
    return Seconds(
        work["reference"] / rate,
        work["training"] / rate + update * amount.steps,
        work["evaluation"] / rate,
    )


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3.4 h`, `5.2 days`.

    >>> duration(45), duration(750), duration(12240), duration(450000)
    ('45 s', '12 min', '3.4 h', '5.2 days')
    """
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 2 else f"{seconds:.1f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    if seconds < 48 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:.1f} days"
