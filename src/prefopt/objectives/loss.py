"""What training minimises: one objective with its options, or a weighted sum of several."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from torch import Tensor

from prefopt.errors import RecipeError
from prefopt.objectives.objective import Head, Objective, Reads, Running
from prefopt.objectives.registry import find_objective
from prefopt.objectives.scores import Judgements, Scores

Companions = Literal["mismatched", "corrupted"]


class Loss(Protocol):
    """What the training loop knows of a loss; `Weighted` and constraints around it are some."""

    @property
    def name(self) -> str: ...
    @property
    def needs_reference(self) -> bool: ...
    @property
    def reads(self) -> Reads: ...
    @property
    def soft(self) -> bool: ...
    @property
    def weighted(self) -> bool: ...
    @property
    def needs_rewards(self) -> bool: ...
    @property
    def needs_sources(self) -> bool: ...
    @property
    def tokens(self) -> frozenset[str]: ...
    @property
    def companions(self) -> Companions | None: ...
    @property
    def couples_batch(self) -> bool: ...
    @property
    def head(self) -> Head: ...

    def __call__(self, scores: Scores, judgements: Judgements, running: Running) -> Tensor:
        """(T,) losses in nats."""

    def advance(self, running: Running, scores: Scores, judgements: Judgements) -> Running:
        """The running state after a training step with these scores, as plain JSON."""

    def rewards(self, scores: Scores) -> Tensor | None:
        """(B,) reward of each completion, where there is such a thing."""


@dataclass(frozen=True)
class Term:
    """An objective with its options and its weight in a sum."""

    objective: Objective
    options: Mapping[str, Any] = field(default_factory=dict)
    weight: float = 1.0


@dataclass(frozen=True)
class Weighted:
    """A sum of objectives, the first of which names it and gives the rewards.

    Mixed preference optimisation (MPO, arXiv:2411.10442) and the likelihood term of RPO
    (arXiv:2404.19733) are such sums.

    Attributes:
        terms: at least one; all read the same judgements.
    """

    terms: tuple[Term, ...]

    @property
    def name(self) -> str:
        return self.terms[0].objective.name

    @property
    def reads(self) -> Reads:
        return self.terms[0].objective.reads

    @property
    def head(self) -> Head:
        return self.terms[0].objective.head

    @property
    def needs_reference(self) -> bool:
        return any(term.objective.needs_reference for term in self.terms)

    @property
    def soft(self) -> bool:
        return all(term.objective.soft for term in self.terms)

    @property
    def weighted(self) -> bool:
        return all(term.objective.weighted for term in self.terms)

    @property
    def needs_rewards(self) -> bool:
        return any(term.objective.wants_rewards(term.options) for term in self.terms)

    @property
    def needs_sources(self) -> bool:
        return any(term.objective.needs_sources for term in self.terms)

    @property
    def tokens(self) -> frozenset[str]:
        return frozenset(name for term in self.terms for name in term.objective.tokens)

    @property
    def companions(self) -> Companions | None:
        return next((t.objective.companions for t in self.terms if t.objective.companions), None)

    @property
    def couples_batch(self) -> bool:
        return any(term.objective.couples_batch for term in self.terms)

    def __call__(self, scores: Scores, judgements: Judgements, running: Running) -> Tensor:
        parts = [
            term.weight * self._losses(term, scores, judgements, running) for term in self.terms
        ]
        return sum(parts[1:], start=parts[0])

    def advance(self, running: Running, scores: Scores, judgements: Judgements) -> Running:
        changed = {
            term.objective.name: term.objective.running(
                scores, judgements, running.get(term.objective.name), **term.options
            )
            for term in self.terms
            if term.objective.running is not None
        }
        return {**running, **changed}

    def rewards(self, scores: Scores) -> Tensor | None:
        return self.terms[0].objective.rewards(scores, self.terms[0].options)

    @staticmethod
    def _losses(term: Term, scores: Scores, judgements: Judgements, running: Running) -> Tensor:
        objective = term.objective
        if objective.running is None:
            return objective.function(scores, judgements, **term.options)
        state = running.get(objective.name)
        return objective.function(scores, judgements, running=state, **term.options)


def weighted_sum(chosen: Iterable[tuple[str, float, Mapping[str, Any]]]) -> Weighted:
    """The loss that a recipe names: (name, weight, options) of each term, the main one first.

    Raises:
        RecipeError: an unknown objective or option, a wrong value, or terms that cannot be
            summed because they read different judgements or other companions.
    """
    terms: list[Term] = []
    for name, weight, options in chosen:
        place = f"objective.plus.{name}" if terms else "objective"
        objective = find_objective(name, field=place if terms else "objective.name")
        objective.check(options, field=place)
        terms.append(Term(objective, dict(options), weight))
    main = terms[0].objective
    for term in terms[1:]:
        other = term.objective
        if other.head != main.head:
            raise _cannot_add(main, other, "trains another head of a model")
        alike = other.reads == main.reads or (main.reads, other.reads) == (
            "comparisons",
            "preferred",
        )
        if not alike:
            raise _cannot_add(main, other, f"reads {other.reads}, and '{main.name}' {main.reads}")
        if main.companions and other.companions and main.companions != other.companions:
            raise _cannot_add(main, other, "needs other companions")
    if len({term.objective.name for term in terms}) < len(terms):
        raise _cannot_add(main, main, "is there twice")
    return Weighted(tuple(terms))


def _cannot_add(main: Objective, other: Objective, reason: str) -> RecipeError:
    return RecipeError(
        f"'{other.name}' cannot be added to '{main.name}': it {reason}",
        field=f"objective.plus.{other.name}",
        remedy="sum objectives that read the same judgements",
    )
