"""Training on comparisons with any objective of the table, and its curve of exact points."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from prefopt.errors import RecipeError
from prefopt.evaluation.frontier.policy import SequencePolicy, place
from prefopt.evaluation.frontier.stage import COMPLETIONS, PAIRS, Stage
from prefopt.objectives.loss import Weighted, weighted_sum
from prefopt.objectives.scores import Comparisons, Judgements, Labels, Rankings, Scores

LEARNING_RATE = 1e-3

#: (step, KL in nats, mean reward)
Point = tuple[int, float, float]
#: (scores, judgements, running state) → losses (T,), and the state after the step
Losses = Callable[[Scores, Judgements, dict[str, Any]], tuple[Tensor, dict[str, Any]]]


def by_objective(name: str, options: dict[str, Any]) -> tuple[Weighted, Losses]:
    """An objective of the table.

    Raises:
        RecipeError: there is none of that name or with such options, or it needs what this
            world does not have: a prompt to corrupt, several sources, a second reward.
    """
    loss = weighted_sum([(name, 1.0, options)])
    lacks = {
        "several sources of data": loss.needs_sources,
        "rewards in the data": loss.needs_rewards,
        "prompts": loss.companions == "corrupted",
    }
    for what, needed in lacks.items():
        if needed:
            raise RecipeError(
                f"'{name}' needs {what}, which the generated world has not",
                field="objectives",
                value=name,
                remedy="leave it out",
            )

    def losses(scores: Scores, judgements: Judgements, running: dict[str, Any]) -> Any:
        values = loss(scores, judgements, running)
        return values, dict(loss.advance(running, scores.detached(), judgements))

    return loss, losses


def unlikelihood(alpha: float) -> Losses:
    """−log π(w) + α·log π(l), in nats a sequence: the baseline of the DPO paper, section 6.

    It has no lower bound, and its samples degenerate (table 3 there).
    """

    def losses(scores: Scores, judgements: Judgements, running: dict[str, Any]) -> Any:
        assert isinstance(judgements, Comparisons)
        better, worse = judgements.preferred, judgements.dispreferred
        return -scores.policy[better] + alpha * scores.policy[worse], running

    return losses


def train(stage: Stage, losses: Losses, loss: Weighted | None = None) -> list[Point]:
    """Train a copy of the reference, and place it every few steps.

    Args:
        stage: where it starts, and what it learns from.
        losses: what is minimised.
        loss: the objective, which says what it reads; None for comparisons alone.
    """
    policy = stage.reference.copy().requires_grad_(True)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    slower = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, stage.scale.steps)
    running: dict[str, Any] = {}
    points = [(0, *place(stage.world, policy))]
    for step, rows in enumerate(_batches(stage), start=1):
        scores = _scores(stage, policy, rows, loss)
        values, running = losses(scores, judged(stage, rows, loss), running)
        optimizer.zero_grad()
        values.mean().backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        slower.step()
        if step % stage.scale.every == 0:
            points.append((step, *place(stage.world, policy)))
    return points


def _batches(stage: Stage) -> Iterator[Tensor]:
    """(batch,) groups of each step, epoch after epoch in a new order."""
    draw = torch.Generator().manual_seed(stage.seed)
    groups = torch.from_numpy(stage.labelled.nonzero()[0])
    left = torch.empty(0, dtype=torch.int64)
    for _ in range(stage.scale.steps):
        while len(left) < stage.scale.batch:
            left = torch.cat([left, groups[torch.randperm(len(groups), generator=draw)]])
        batch, left = left[: stage.scale.batch], left[stage.scale.batch :]
        yield batch


def _scores(stage: Stage, policy: SequencePolicy, rows: Tensor, loss: Weighted | None) -> Scores:
    """Scores of the completions of some groups, four after four."""
    sequences = stage.groups[rows].flatten(0, 1)
    steps = policy.log_softmax(sequences)
    with torch.no_grad():
        before = stage.reference.log_softmax(sequences)
    ours, theirs = (part.gather(-1, sequences[..., None]).squeeze(-1) for part in (steps, before))
    lengths = torch.full((len(sequences),), sequences.shape[1])
    known = {
        "policy": lambda: ours.flatten(),
        "reference": lambda: theirs.flatten(),
        "kl": lambda: (before.exp() * (before - steps)).sum(-1).flatten(),
        "log_collision": lambda: (2 * steps.detach()).logsumexp(-1).flatten(),
    }
    scores = Scores(
        policy=ours.sum(-1),
        reference=theirs.sum(-1),
        lengths=lengths,
        tokens={name: known[name]() for name in (loss.tokens if loss else ())},
        prompts=torch.arange(len(rows)).repeat_interleave(COMPLETIONS),
    )
    if loss is None or loss.companions is None:
        return scores
    # There is one prompt, so a completion of another group is one under the same prompt. Each
    # comparison makes two labels, and each of these has a companion.
    others = torch.arange(2 * len(PAIRS) * len(rows)) % len(sequences)
    others = others.roll(COMPLETIONS)
    beside = Scores(scores.policy[others].detach(), scores.reference[others], lengths[others])  # type: ignore[index]
    return Scores(**{**vars(scores), "companions": beside})


def judged(stage: Stage, rows: Tensor, loss: Weighted | None) -> Judgements:
    """What the data says about the completions of some groups, as the objective reads it."""
    reads = loss.reads if loss else "comparisons"
    starts = COMPLETIONS * torch.arange(len(rows))[:, None]
    if reads == "rankings":
        order = torch.from_numpy(stage.rankings[rows.numpy()]) + starts
        sizes = torch.full((len(rows),), COMPLETIONS)
        return Rankings(order.flatten(), sizes, torch.ones(len(rows)))
    won = torch.from_numpy(stage.first_won[rows.numpy()])
    first, second = torch.tensor(PAIRS).T
    better = (torch.where(won, first, second) + starts).flatten()
    worse = (torch.where(won, second, first) + starts).flatten()
    if reads == "labels":
        marks = F.pad(torch.ones(len(better), dtype=torch.bool), (0, len(worse)))
        return Labels(torch.cat([better, worse]), marks, torch.ones(len(marks)))
    ones = torch.ones(len(better))
    return Comparisons(better, better if reads == "preferred" else worse, ones, ones)
