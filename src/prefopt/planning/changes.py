"""What does not fit, and the smallest change to the recipe that makes it fit.

Changes are tried in the order of what they cost: first those that change nothing but the time
of a step, then those that change the optimizer's numbers, then those that train less of the
model, and at last more machines. Each is checked by the same estimate as the recipe itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from prefopt.errors import PrefoptError
from prefopt.planning.machines import Machine
from prefopt.planning.plan import Fit, Planner
from prefopt.recipe import Recipe

#: micro-batches smaller than this waste more time than they save memory
_SMALLEST = 256
#: numbers of devices that are tried
_DEVICES = (2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


@dataclass(frozen=True)
class Change:
    """Lines to set in a recipe, and what that does.

    Attributes:
        settings: dotted name → value.
        fit: the training with them.
        slower: time with them over time without, on the same number of devices.
        cost: what else it changes, as a sentence.
    """

    settings: Mapping[str, Any]
    fit: Fit
    slower: float
    cost: str

    def to_dict(self) -> dict[str, Any]:
        """As `prefopt plan --json` prints it."""
        return {
            "settings": dict(self.settings),
            "devices": self.fit.machine.count,
            "memory": self.fit.memory.total,
            "seconds": self.fit.seconds.total,
            "slower": self.slower,
            "cost": self.cost,
        }


@dataclass(frozen=True)
class Candidate:
    """A change that may help.

    Attributes:
        settings: dotted name → value.
        cost: what it changes beside time and memory.
        devices: how many it needs; None for as many as there are.
    """

    settings: Mapping[str, Any]
    cost: str
    devices: int | None = None


NOTHING = "the result stays the same"


def smallest_change(planner: Planner, machine: Machine, fit: Fit) -> Change | None:
    """The smallest change that makes a training fit; None if it fits, or nothing helps.

    One setting alone is tried before several together.

    Args:
        planner: of the recipe.
        machine: where it does not fit.
        fit: how it is there.
    """
    if fit.fits or fit.memory.process >= machine.memory:
        return None
    smaller = _smaller(planner.recipe)
    if smaller and _tried(planner, machine, fit, smaller[-1]):  # else none of them does
        return next(filter(None, (_tried(planner, machine, fit, each) for each in smaller)))
    others = list(candidates(planner.recipe, machine))
    for candidate in others:
        if found := _tried(planner, machine, fit, candidate):
            return found
    together: dict[str, Any] = {}
    costs: list[str] = []
    for candidate in [*smaller[-1:], *others]:
        if candidate.devices is None:
            together |= candidate.settings
            costs += [candidate.cost] if candidate.cost not in (NOTHING, *costs) else []
            joined = Candidate(dict(together), "; ".join(costs) or NOTHING)
            if found := _tried(planner, machine, fit, joined):
                return found
    return None


def _smaller(recipe: Recipe) -> list[Candidate]:
    """Smaller micro-batches, the largest first."""
    found, tokens = [], recipe.microbatch_tokens // 2
    while tokens >= _SMALLEST:
        found.append(Candidate({"microbatch_tokens": tokens}, NOTHING))
        tokens //= 2
    return found


def candidates(recipe: Recipe, machine: Machine) -> Iterator[Candidate]:
    """Changes to a recipe beside the micro-batch, the smallest first."""
    if recipe.reference_scores == "each_step" and not recipe.reference.moves:
        yield Candidate({"reference_scores": "cache"}, NOTHING)
    for kind in ("selective", True):
        if recipe.gradient_checkpointing is False or (kind is True and
                                                      recipe.gradient_checkpointing != True):  # noqa: E712  # fmt: skip
            yield Candidate({"gradient_checkpointing": kind}, NOTHING)
    full = recipe.adapter is None
    if full and recipe.optimizer.name == "adamw" and recipe.weights == "fp32":
        if recipe.parallel.strategy == "ddp" or machine.count == 1:
            yield Candidate({"optimizer": "adamw_8bit"}, "the optimizer rounds its state")
    if machine.count > 1 and recipe.parallel.strategy == "ddp":
        yield Candidate({"parallel": "fsdp"}, NOTHING)
    if full:
        yield Candidate({"adapter": "lora"}, "an adapter is trained in place of all weights")
    if recipe.quantize is None:
        yield Candidate(
            {"adapter": "lora", "quantize": "nf4"} if full else {"quantize": "nf4"},
            "the base's weights are rounded to 4 bits"
            + (", and an adapter is trained in their place" if full else ""),
        )
    for devices in _DEVICES:
        if devices > machine.count and machine.kind == "accelerator":
            yield Candidate({"parallel": "fsdp"}, f"{devices} devices are needed", devices)


def _tried(planner: Planner, machine: Machine, fit: Fit, candidate: Candidate) -> Change | None:
    """The candidate, if the recipe allows it and it fits."""
    count = candidate.devices or machine.count
    try:
        recipe = planner.changed(candidate.settings)
        then = planner.fit(replace(machine, count=count), recipe)
    except PrefoptError:  # this objective or this model does not go with it
        return None
    if not then.fits:
        return None
    slower = then.seconds.total * count / (fit.seconds.total * machine.count)
    return Change(candidate.settings, then, slower, candidate.cost)
