"""Why a loop stops after a round, and which round was the best."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from prefopt.data.checking.findings import LEVELS
from prefopt.rounds.settings import Gates

#: figures of the policy before the first round, and after each
History = Sequence[Mapping[str, Any]]


def reasons(history: History, gates: Gates) -> list[str]:
    """What stops the loop after the last of these rounds; nothing if it may go on.

    Args:
        history: `kl`, `length`, `diversity`, `agreement`, `accuracy`, `previous` (the win rate
            against the round before, with its interval); what was not measured is None.
        gates: the limits.
    """
    found = (gate(history, gates) for gate in _GATES)
    return [reason for reason in found if reason is not None]


def reason_of_check(found: Mapping[str, Mapping[str, int]], gates: Gates) -> str | None:
    """What stops the loop before it trains on a round's comparisons; None if it may go on.

    Args:
        found: what `check` found: by level, kind and how often.
        gates: the limits.
    """
    if gates.check is None:
        return None
    levels = LEVELS[: LEVELS.index(gates.check) + 1]
    bad = {kind: count for level in levels for kind, count in found.get(level, {}).items()}
    if not bad:
        return None
    return "check finds in the comparisons: " + ", ".join(
        f"{kind.replace('_', ' ')} ({count:,})" for kind, count in bad.items()
    )


def best_round(history: History, stopped: Mapping[int, Sequence[str]]) -> int:
    """The round with the highest value of those that no gate stopped; 0 is the first policy.

    Args:
        history: with `value` in each; None is a policy that nobody could say it of.
        stopped: reasons by round.
    """
    allowed = [
        number
        for number in range(1, len(history))
        if not stopped.get(number) and history[number]["value"] is not None
    ]
    first = history[0]["value"]
    rounds = [number for number in allowed if first is None or history[number]["value"] > first]
    return max(rounds, key=lambda number: (history[number]["value"], -number), default=0)


def _kl(history: History, gates: Gates) -> str | None:
    kl = history[-1]["kl"]
    if gates.kl is None or kl is None or kl <= gates.kl:
        return None
    return (
        f"the policy is {kl:.1f} nats a completion from the first one, and {gates.kl:g} are allowed"
    )


def _length(history: History, gates: Gates) -> str | None:
    first, last = history[0]["length"], history[-1]["length"]
    if gates.length_growth is None or first == 0 or last <= first * (1 + gates.length_growth):
        return None  # of a policy that said nothing at first no share can be told
    return (
        f"answers are {last / first - 1:.0%} longer than at the start ({first:.0f} to {last:.0f} "
        f"characters), and {gates.length_growth:.0%} is allowed"
    ).replace("%", " %")


def _diversity(history: History, gates: Gates) -> str | None:
    first, last = history[0]["diversity"], history[-1]["diversity"]
    if gates.diversity is None or last >= first * gates.diversity:
        return None
    return (
        f"answers repeat themselves: of the first diversity {last / first:.0%} is left, and "
        f"{gates.diversity:.0%} must be"
    ).replace("%", " %")


def _agreement(history: History, gates: Gates) -> str | None:
    known = [row["agreement"] for row in history if row.get("agreement") is not None]
    if gates.agreement is None or len(known) < 2 or history[-1].get("agreement") is None:
        return None
    if max(known[:-1]) - known[-1] <= gates.agreement:
        return None
    return (
        f"the judge agrees with the evaluating judge in {known[-1]:.2f} of its verdicts, and did "
        f"in {max(known[:-1]):.2f}; a fall of {gates.agreement:g} is allowed"
    )


def _accuracy(history: History, gates: Gates) -> str | None:
    known = [row["accuracy"] for row in history if row.get("accuracy") is not None]
    if gates.accuracy is None or len(known) < 2 or history[-1].get("accuracy") is None:
        return None
    if max(known[:-1]) - known[-1] <= gates.accuracy:
        return None
    return (
        f"the judge is right in {known[-1]:.3f} of what people labelled, and was in "
        f"{max(known[:-1]):.3f}; a fall of {gates.accuracy:g} is allowed"
    )


def _falling(history: History, gates: Gates) -> str | None:
    against = history[-1].get("previous")
    if not gates.falling or against is None or against["interval"] is None:
        return None
    low, high = against["interval"]
    if high >= 0.5:
        return None
    return (
        f"it is worse than the round before: it wins {against['value']:.2f} "
        f"(95 % interval {low:.2f} to {high:.2f})"
    )


_GATES: tuple[Callable[[History, Gates], str | None], ...] = (
    _kl,
    _length,
    _diversity,
    _agreement,
    _accuracy,
    _falling,
)
