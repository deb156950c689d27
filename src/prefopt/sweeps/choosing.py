"""Which point is best: means over seeds, a budget of KL, and nothing chosen beyond it.

β and the learning rate both decide how far a policy goes, so trials are compared by what
they gain at a bounded divergence, not at an equal step.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from prefopt.sweeps.points import Point, said
from prefopt.sweeps.settings import Goal
from prefopt.sweeps.trials import Result

KL = "probe.kl"


@dataclass(frozen=True)
class Mean:
    """A number over seeds.

    Attributes:
        mean: of all seeds.
        spread: standard deviation between seeds; None of a single one.
        count: how many there were.
    """

    mean: float
    spread: float | None
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Mean | None:
        """None of no values."""
        if not values:
            return None
        return cls(fmean(values), stdev(values) if len(values) > 1 else None, len(values))

    def to_dict(self) -> dict[str, Any]:
        return {"mean": self.mean, "spread": self.spread, "seeds": self.count}


@dataclass(frozen=True)
class Standing:
    """A point with what its seeds came to.

    Attributes:
        point: the searched settings.
        results: one a seed.
        value: of the goal, over the seeds that are done.
        kl: nats a completion, likewise; None where no probe measures it.
        over_budget: whether the mean KL is beyond the goal's budget.
    """

    point: Point
    results: tuple[Result, ...]
    value: Mean | None
    kl: Mean | None
    over_budget: bool

    @property
    def complete(self) -> bool:
        """Whether all seeds are done: a setting that diverges with one seed is no winner."""
        return all(result.state == "done" for result in self.results)

    @property
    def eligible(self) -> bool:
        """Whether it may be chosen."""
        return self.complete and self.value is not None and not self.over_budget

    @property
    def state(self) -> str:
        """In a word or two, for tables."""
        states = [result.state for result in self.results]
        failed = states.count("failed")
        if failed:
            return "failed" if failed == len(states) else f"{failed} of {len(states)} failed"
        if not self.complete:
            return "running" if "running" in states else "waiting"
        return "over the budget" if self.over_budget else "done"

    def to_dict(self) -> dict[str, Any]:
        return {
            "settings": self.point,
            "state": self.state,
            "value": self.value and self.value.to_dict(),
            "kl": self.kl and self.kl.to_dict(),
            "within_budget": None if self.kl is None else not self.over_budget,
            "trials": [result.trial.name for result in self.results],
        }


def standings(results: Iterable[Result], goal: Goal) -> list[Standing]:
    """Points from best to worst: first those that may be chosen, then those over the budget.

    Args:
        results: of all trials; those of one point belong together.
        goal: what is better.
    """
    points: dict[str, list[Result]] = {}
    for result in results:
        points.setdefault(json.dumps(result.trial.point, sort_keys=True), []).append(result)
    return sorted((_standing(group, goal) for group in points.values()), key=_order(goal))


def best(ranked: Sequence[Standing]) -> Standing | None:
    """The first that may be chosen."""
    return next((standing for standing in ranked if standing.eligible), None)


def _standing(group: Sequence[Result], goal: Goal) -> Standing:
    done = [result for result in group if result.state == "done"]
    value = Mean.of([r.numbers[goal.name] for r in done if goal.name in r.numbers])
    kl = Mean.of([r.numbers[KL] for r in done if KL in r.numbers])
    over = goal.kl_budget is not None and (kl is None or kl.mean > goal.kl_budget)
    return Standing(group[0].trial.point, tuple(group), value, kl, bool(done) and over)


def _order(goal: Goal) -> Any:
    sign = -1 if goal.maximise else 1

    def key(standing: Standing) -> tuple[Any, ...]:
        value = standing.value
        return (
            not standing.eligible,
            not standing.complete,
            value is None,
            sign * value.mean if value is not None else 0.0,
            said(standing.point),
        )

    return key
