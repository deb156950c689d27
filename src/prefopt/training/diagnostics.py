"""What the metrics of a training say about it, with what can be done.

Pure functions of the history, each with its threshold beside it; `diagnose` asks them all.
They compare the last tenth of the steps with what is expected, never single steps, which
are too noisy to alarm anybody.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

Record = dict[str, Any]

#: nats per token that preferred completions may fall below the reference
DISPLACEMENT = 0.05
#: mean margin at which σ(margin) = 0.99: almost nothing is left to learn from such pairs
SATURATION = math.log(0.99 / 0.01)
#: how many times as long preferred completions may be
LENGTH_RATIO = 1.25
#: share of its lowest value by which a held-out loss may end above it
OVERFITTING = 0.05
#: steps below which a history says nothing
SHORTEST = 10


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One finding.

    Attributes:
        name: which one.
        level: a warning asks for something to be done, a note is good to know.
        message: what was seen, with numbers.
        remedy: what to do about it.
        step: the step after which it was seen.
    """

    name: str
    level: Literal["warning", "note"]
    message: str
    remedy: str
    step: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def diagnose(history: Sequence[Record], *, beta: float) -> list[Diagnostic]:
    """All findings on a metrics history (the records of `metrics.jsonl`).

    Args:
        history: train and eval records, in order.
        beta: scale of the rewards in it.
    """
    train = [record for record in history if record["kind"] == "train"]
    if len(train) < SHORTEST:
        return []
    found = (
        likelihood_displacement(train, beta=beta),
        saturated_margins(train),
        length_drift(train),
        overfitting([record for record in history if record["kind"] == "eval"]),
    )
    return [diagnostic for diagnostic in found if diagnostic is not None]


def likelihood_displacement(train: Sequence[Record], *, beta: float) -> Diagnostic | None:
    """The log-probability of preferred completions keeps falling below the reference.

    Both sides of a pair may fall while their margin grows; the probability then goes to
    completions that nobody preferred (Razin et al. 2024, arXiv:2410.08847).
    """
    if "reward_preferred" not in train[-1]:
        return None
    third = len(train) // 3
    middle, end = train[third : 2 * third], train[-third:]
    before, now = (
        _mean(part, "reward_preferred") / beta / _mean(part, "length_preferred")
        for part in (middle, end)
    )
    if now > -DISPLACEMENT or now >= before:
        return None
    return Diagnostic(
        "likelihood_displacement",
        "warning",
        f"preferred completions keep losing probability: in the last third of the steps they "
        f"were {-now:.2f} nats a token below the reference, in the third before {-before:.2f}",
        "raise objective.beta, lower learning_rate, train fewer steps, or run `sft` on the "
        "preferred completions first",
        train[-1]["step"],
    )


def saturated_margins(train: Sequence[Record]) -> Diagnostic | None:
    """Margins are so wide that the gradient of a logistic loss is all but gone."""
    end = _end(train)
    if "margin" not in train[-1] or _mean(end, "margin") < SATURATION:
        return None
    return Diagnostic(
        "saturated_margins",
        "note",
        f"the mean margin reached {_mean(end, 'margin'):.1f}: the policy gives the preferred "
        f"side more than 99 % with {_mean(end, 'accuracy'):.0%} accuracy on what it trains on",
        "stop earlier (eval_data with early_stop), raise objective.beta, use `ipo`, or give "
        "comparisons a probability below 1",
        train[-1]["step"],
    )


def length_drift(train: Sequence[Record]) -> Diagnostic | None:
    """Preferred completions are so much longer that length alone is a way to win."""
    if "length_dispreferred" not in train[-1]:
        return None
    ratio = _mean(train, "length_preferred") / _mean(train, "length_dispreferred")
    if 1 / LENGTH_RATIO < ratio < LENGTH_RATIO:
        return None
    longer, how = ("longer", "as long") if ratio > 1 else ("shorter", "as short")
    return Diagnostic(
        "length_drift",
        "warning",
        f"preferred completions are {max(ratio, 1 / ratio):.1f} times {how} as the others, "
        f"so the policy will learn to answer {longer}",
        "compare the lengths of samples before and after, add pairs of equal length, or use "
        "`ipo`, which compares means per token",
        train[-1]["step"],
    )


def overfitting(evaluations: Sequence[Record]) -> Diagnostic | None:
    """The held-out loss has risen again since it was lowest."""
    if not evaluations:
        return None
    best, last = min(evaluations, key=lambda record: record["loss"]), evaluations[-1]
    if last["loss"] <= best["loss"] * (1 + OVERFITTING):
        return None
    return Diagnostic(
        "overfitting",
        "warning",
        f"the held-out loss was {best['loss']:.3g} after step {best['step']} and is "
        f"{last['loss']:.3g} at the end",
        "set early_stop and eval_every, train fewer epochs, lower learning_rate, or raise "
        "objective.beta",
        last["step"],
    )


def _end(train: Sequence[Record]) -> Sequence[Record]:
    return train[-max(1, len(train) // 10) :]


def _mean(records: Sequence[Record], name: str) -> float:
    """Mean over the comparisons of all records."""
    total = sum(record["comparisons"] for record in records)
    return float(sum(record[name] * record["comparisons"] for record in records) / total)
