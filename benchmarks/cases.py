"""What `versus.py` measures, in the order of importance, and what prefopt promises of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from measuring import spread

CONTENDERS = ("prefopt", "prefopt-each-step", "trl", "trl-best", "plain")
OURS = ("prefopt", "prefopt-each-step")
#: packages that a contender needs beside prefopt's own
NEEDS = {"trl": ("trl", "datasets"), "trl-best": ("trl", "datasets")}


@dataclass(frozen=True)
class Case:
    """A workload and a model.

    Attributes:
        workload, model: names in `workload.py`.
        batch: pairs to a step.
        steps: most timed steps before the rows repeat; at least two are made.
        turns: most turns of every contender; at least two are made.
        minutes: what the turns may take. Slow contenders get fewer steps and turns for it.
        check: pairs to a step where losses are compared.
    """

    workload: str
    model: str
    batch: int
    steps: int = 2
    turns: int = 2
    minutes: float = 5.0
    check: int = 2

    @property
    def name(self) -> str:
        return f"{self.workload}-{self.model}"

    def settings(self) -> dict[str, Any]:
        return asdict(self)


_ALL = (
    Case("hh", "14M", batch=8, steps=4, turns=3, minutes=9),
    Case("four", "14M", batch=12, check=6, minutes=6),
    Case("long_prompts", "14M", batch=4),
    Case("long_answers", "14M", batch=4),
    Case("lora", "14M", batch=4),
    Case("hh", "14M-150k", batch=2),
    Case("hh", "100M", batch=2, minutes=8),
    # the rest of the table: hours with TRL on two cores, so only when asked for
    Case("four", "100M", batch=6, check=6),
    Case("lora", "100M", batch=2),
    Case("long_prompts", "100M", batch=2, check=1),
    Case("long_answers", "100M", batch=2, check=1),
    Case("four", "14M-150k", batch=6, check=6),
    Case("lora", "14M-150k", batch=2),
    Case("long_prompts", "14M-150k", batch=2),
    Case("long_answers", "14M-150k", batch=2),
)
CASES = {case.name: case for case in _ALL}
#: every workload and every model once
MAIN = tuple(CASES)[:7]
_SMOKES = (
    Case("hh", "smoke", batch=4, turns=1),
    Case("four", "smoke", batch=6, turns=1, check=6),
    Case("lora", "smoke", batch=4, turns=1),
)
SMOKES = {case.name: case for case in _SMOKES}


@dataclass(frozen=True)
class Target:
    """A promise: in this case, ours is this many times the baseline's.

    Attributes:
        at_least: the ratio must not be lower; otherwise it must not be higher.
    """

    case: str
    ours: str
    baseline: str
    key: str
    value: float
    at_least: bool = True

    def met(self, ratio: float) -> bool:
        return ratio >= self.value if self.at_least else ratio <= self.value

    @property
    def text(self) -> str:
        return f"≥ {self.value:g}" if self.at_least else f"≤ 1/{1 / self.value:g}"


SPEED, WHOLE, MEMORY = "pairs_per_second", "whole_pairs_per_second", "peak_mib"
TARGETS = (
    *(Target("hh-14M", "prefopt", name, SPEED, 15) for name in ("trl", "trl-best")),
    Target("hh-14M", "prefopt", "plain", SPEED, 9),
    *(Target("hh-14M", "prefopt-each-step", name, SPEED, 10) for name in ("trl", "trl-best")),
    Target("hh-14M", "prefopt-each-step", "plain", SPEED, 6),
    Target("long_prompts-14M", "prefopt", "trl", SPEED, 18),
    Target("long_prompts-14M", "prefopt", "plain", SPEED, 11),
    Target("four-14M", "prefopt", "trl", SPEED, 40),
    *(Target(name, ours, "trl", MEMORY, 1 / 5, at_least=False) for name in CASES for ours in OURS),
)


def summary(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Of one contender: what its turns gave, and how many steps stand behind it."""
    keys = (SPEED, WHOLE, MEMORY, "held_mib")
    found: dict[str, Any] = {key: spread([result[key] for result in results]) for key in keys}
    return found | {"turns": len(results), "steps": sum(result["steps"] for result in results)}


def ratios(case: str, turns: list[dict[str, dict[str, Any]]]) -> list[dict[str, Any]]:
    """Ours over each baseline, within a turn; the median of the turns, and the target."""
    rows = []
    present = set(turns[0]) if turns else set()
    for ours in OURS:
        for baseline in CONTENDERS[len(OURS) :]:
            for key in (SPEED, MEMORY, WHOLE):
                if {ours, baseline} <= present:
                    values = [turn[ours][key] / turn[baseline][key] for turn in turns]
                    row = {"ours": ours, "baseline": baseline, "key": key, **spread(values)}
                    rows.append(row | _promised(case, row))
    return rows


def _promised(case: str, row: dict[str, Any]) -> dict[str, Any]:
    for target in TARGETS:
        wanted = (target.case, target.ours, target.baseline, target.key)
        if wanted == (case, row["ours"], row["baseline"], row["key"]):
            return {"target": target.text, "met": target.met(row["median"])}
    return {}
