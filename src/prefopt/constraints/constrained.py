"""A loss with constraints around it: what the training loop sees of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from prefopt.constraints.constraint import Constraint, check_together
from prefopt.constraints.tilting import penalty, shifted
from prefopt.errors import RecipeError
from prefopt.objectives.loss import Companions, Loss, Weighted
from prefopt.objectives.objective import Head, Reads, Running
from prefopt.objectives.scores import Judgements, Scores


@dataclass(frozen=True)
class ConstrainedLoss:
    """Another loss, under constraints.

    Modes `lagrangian`, `one_shot` and `safe_dpo` shift the reference by λ·cost/β (`shifted`);
    their multipliers are in `running["multipliers"]`, by name. For objectives whose optimum is
    π_ref · exp(r/β) that is exact; with others, such as an f-divergence, a multiplier that
    follows the samples still meets its limit. Mode `penalty` adds one number to every loss of
    the step, so that their weighted mean is the loss plus the penalty. Mode `stages` changes
    data, reference and β, and nothing here.

    Attributes:
        loss: what is learned from the judgements.
        constraints: in the order of the columns of `scores.costs`.
        beta: nats per reward of the loss, to which multipliers are relative.

    Raises:
        RecipeError: the loss reads no reference, which a constraint would have to shift.
    """

    loss: Loss
    constraints: tuple[Constraint, ...]
    beta: float

    def __post_init__(self) -> None:
        check_together(self.constraints)
        for constraint in self.constraints:
            if constraint.shifts and not self.loss.needs_reference:
                raise _no_reference(constraint, self.loss.name)

    @property
    def name(self) -> str:
        return self.loss.name

    @property
    def reads(self) -> Reads:
        return self.loss.reads

    @property
    def needs_reference(self) -> bool:
        return self.loss.needs_reference or bool(self._penalties)

    @property
    def soft(self) -> bool:
        return self.loss.soft

    @property
    def weighted(self) -> bool:
        return self.loss.weighted

    @property
    def needs_rewards(self) -> bool:
        return self.loss.needs_rewards

    @property
    def needs_sources(self) -> bool:
        return self.loss.needs_sources

    @property
    def tokens(self) -> frozenset[str]:
        return self.loss.tokens

    @property
    def companions(self) -> Companions | None:
        return self.loss.companions

    @property
    def head(self) -> Head:
        return self.loss.head

    @property
    def couples_batch(self) -> bool:
        return self.loss.couples_batch or bool(self._penalties)

    @property
    def start(self) -> dict[str, Any]:
        """The running state before the first step."""
        return {"multipliers": {c.name: c.start for c in self.constraints if c.shifts}}

    def __call__(self, scores: Scores, judgements: Judgements, running: Running) -> Tensor:
        losses = self.loss(self._shifted(scores, running), judgements, running)
        if not self._penalties:
            return losses
        chosen = [self.constraints[place] for place in self._penalties]
        return losses + penalty(
            replace(scores, costs=_costs(scores)[:, self._penalties]),
            [constraint.limit for constraint in chosen],
            [constraint.start for constraint in chosen],
        )

    def advance(self, running: Running, scores: Scores, judgements: Judgements) -> Running:
        return self.loss.advance(running, self._shifted(scores, running), judgements)

    def rewards(self, scores: Scores) -> Tensor | None:
        """The policy's own rewards, costs not counted: what it was moved to, all in all."""
        return self.loss.rewards(scores)

    @property
    def _penalties(self) -> list[int]:
        return [place for place, c in enumerate(self.constraints) if c.mode == "penalty"]

    def _shifted(self, scores: Scores, running: Running) -> Scores:
        """The scores as the loss sees them: the reference behind the costs."""
        places = [place for place, c in enumerate(self.constraints) if c.shifts]
        if not places:
            return scores
        multipliers = {**self.start["multipliers"], **running.get("multipliers", {})}
        columns = []
        for place in places:
            constraint, column = self.constraints[place], _costs(scores)[:, place]
            flags = constraint.mode == "safe_dpo"
            columns.append((column > constraint.limit).to(column) if flags else column)
        moved = shifted(
            replace(scores, costs=torch.stack(columns, 1)),
            [multipliers[self.constraints[place].name] for place in places],
            beta=self.beta,
        )
        return replace(moved, costs=scores.costs)


def constrain(loss: Weighted, constraints: Sequence[Constraint]) -> Loss:
    """The loss under constraints; itself where there are none.

    Raises:
        RecipeError: its main objective reads no reference or has no β, so that nothing says
            how many nats a multiplier is.
    """
    if not constraints:
        return loss
    main = loss.terms[0]
    beta = {**main.objective.options, **main.options}.get("beta")
    for constraint in constraints:
        if constraint.mode != "penalty" and (beta is None or not main.objective.needs_reference):
            raise _no_reference(constraint, loss.name)
    return ConstrainedLoss(loss, tuple(constraints), float(1.0 if beta is None else beta))


def _costs(scores: Scores) -> Tensor:
    if scores.costs is None:
        raise ValueError("a constraint needs the costs of the completions")
    return scores.costs


def _no_reference(constraint: Constraint, objective: str) -> RecipeError:
    return RecipeError(
        f"objective '{objective}' cannot be trained under constraint '{constraint.name}' in mode "
        f"{constraint.mode}: the constrained policy is a reference times exp((r − λc)/β), and "
        "this objective has no reference or no β",
        field=f"constraints.{constraint.name}.mode",
        value=constraint.mode,
        remedy="use an objective with a reference, such as dpo, or mode penalty",
    )
