"""One policy against another: wins, ties and losses, with what length alone would say beside it.

Intervals are 95 % and clustered by prompt (`data.checking.estimates`). A verdict that flips with
the order of the answers is a tie and an inconsistency; one that cannot be read is counted and is
in no rate.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from prefopt.data.checking.estimates import Codes, mean, share
from prefopt.errors import RecipeError
from prefopt.evaluation.asking import was_asked
from prefopt.evaluation.length_control import length_controlled
from prefopt.evaluation.matches import Match, clusters_of
from prefopt.evaluation.paired import holm, permutation_test

_VALUES = 40  # categories of one column that are told apart
_NO_VALUE = "(none)"


def compared(matches: Sequence[Match], *, seed: int = 0, control: bool = True) -> dict[str, Any]:
    """Everything that is said of one policy against another.

    Args:
        matches: all of the same two policies, seen from the first.
        seed: of the permutation test and of the length-controlled fit.
        control: whether to fit the length-controlled win rate.

    Returns:
        `pairs`, `prompts`, `identical`, `unreadable`, `not_asked` (beyond a budget); `wins`,
        `ties`, `losses` (counts), `rate` (mean of 1, ½, 0), `win`, `tie`, `loss` (shares; each
        with `value`, `interval`, `comparisons`, `prompts`; None without a verdict), `p`
        (permutation test by prompt of a rate of ½), `order` (both orders: `asked`,
        `inconsistent`, `rate`, `first_shown`, `second_shown`; None for a judge that sees none),
        `soft` (AlpacaEval's win rate: the mean probability), `length`, `length_controlled`.
    """
    readable = [match for match in matches if match.value is not None]
    keys = list(clusters_of(readable))
    codes = codes_of(keys)
    values = np.array([match.value for match in readable], dtype=np.float64)
    counts = Counter(values.tolist())
    beyond = sum(not was_asked(match.verdict) for match in matches)
    result: dict[str, Any] = {
        "pairs": len(matches),
        "prompts": len(set(clusters_of(matches))),
        "identical": sum(match.identical for match in matches),
        "unreadable": len(matches) - len(readable) - beyond,
        "not_asked": beyond,
        "wins": counts[1.0], "ties": counts[0.5], "losses": counts[0.0],
        "rate": None, "win": None, "tie": None, "loss": None, "soft": None,
        "p": None, "order": _orders(matches), "length": None, "length_controlled": None,
    }  # fmt: skip
    if not readable:
        return result
    result["rate"] = share(values, codes).to_dict()
    for name, value in (("win", 1.0), ("tie", 0.5), ("loss", 0.0)):
        result[name] = share(values == value, codes).to_dict()
    soft = np.array([match.verdict.probability for match in readable], dtype=np.float64)
    result["soft"] = share(soft, codes).to_dict()
    result["p"] = _p_of_half(values, keys, seed)
    result["length"] = _length(readable, values, codes)
    if control:
        result["length_controlled"] = _controlled(readable, soft, keys, seed)
    return result


def by_category(
    matches: Sequence[Match], columns: Sequence[str], *, seed: int = 0
) -> list[dict[str, Any]]:
    """The win rate within each value of some columns.

    Many categories are many chances of a false alarm, so `p` comes with Holm's correction over
    the values of a column.

    Returns:
        For each column `column` and `rows` of `value`, `pairs`, `prompts`, `wins`, `ties`,
        `losses`, `unreadable`, `rate`, `p`, `p_holm`, the most frequent first; `left_out` counts
        values beyond the first forty.
    """
    tables = []
    for column in columns:
        parts: dict[str, list[Match]] = {}
        for match in matches:
            parts.setdefault(value_of(match.columns, column), []).append(match)
        order = sorted(parts, key=lambda value: (-len(parts[value]), value))
        kept = ("pairs", "prompts", "wins", "ties", "losses", "unreadable", "rate", "p")
        rows = []
        for value in order[:_VALUES]:
            found = compared(parts[value], seed=seed, control=False)
            rows.append({"value": value, **{name: found[name] for name in kept}})
        adjusted = holm({row["value"]: row["p"] for row in rows if row["p"] is not None})
        for row in rows:
            row["p_holm"] = adjusted.get(row["value"])
        tables.append({"column": column, "rows": rows, "left_out": max(0, len(order) - _VALUES)})
    return tables


def check_columns(rows: Iterable[Mapping[str, Any]], asked: Sequence[str]) -> None:
    """Refuse a breakdown by what no row has.

    Raises:
        RecipeError: no row has one of the columns.
    """
    known = dict.fromkeys(name for row in rows for name in row)
    for column in asked:
        if column not in known:
            raise RecipeError(
                "no row has this column", field="by", value=column,
                remedy=f"choose {', '.join(known)}" if known else "leave it out: rows have none",
            )  # fmt: skip


def value_of(columns: Mapping[str, Any], column: str) -> str:
    """What a row has in a column, as text.

    >>> value_of({"turn": 1}, "turn"), value_of({}, "turn")
    ('1', '(none)')
    """
    value = columns.get(column)
    return _NO_VALUE if value is None else str(value)


def codes_of(keys: Sequence[Hashable]) -> Codes:
    """(N,) whole numbers from 0 in place of keys."""
    known: dict[Hashable, int] = {}
    return np.array([known.setdefault(key, len(known)) for key in keys], dtype=np.int64)


def _p_of_half(values: Any, keys: Sequence[Hashable], seed: int) -> float:
    """Of the permutation test by prompt: would either policy as well have won?

    A prompt's sum, not its mean, is what may have either sign: then the test is of the rate
    itself, in which every pair counts alike, however many a prompt has.
    """
    sums: dict[Hashable, float] = {}
    for value, key in zip(values.tolist(), keys, strict=True):
        sums[key] = sums.get(key, 0.0) + value - 0.5
    order = sorted(sums, key=repr)  # which signs are drawn must not depend on the rows' order
    return permutation_test([sums[key] for key in order], seed=seed)


def _orders(matches: Sequence[Match]) -> dict[str, Any] | None:
    """How often the verdict turned with the order of the answers."""
    asked = [match for match in matches if match.verdict.order_consistent is not None]
    if not asked:
        return None
    flipped = np.array([match.verdict.order_consistent is False for match in asked])
    shown = Counter(_preferred_place(match) for match in asked)
    return {
        "asked": len(asked),
        "inconsistent": int(flipped.sum()),
        "rate": share(flipped, codes_of(list(clusters_of(asked)))).to_dict(),
        "first_shown": shown["first"],
        "second_shown": shown["second"],
    }


def _preferred_place(match: Match) -> str | None:
    """Which place won in both orders, if it was the place that won."""
    orders = match.verdict.transcript.get("orders")
    if not isinstance(orders, list | tuple) or len(orders) != 2 or None in orders:
        return None
    if all(order > 0.5 for order in orders):
        return "first"
    return "second" if all(order < 0.5 for order in orders) else None


def _length(readable: Sequence[Match], values: Any, codes: Codes) -> dict[str, Any]:
    """What "the longer one is better" would say, and how far the judge says the same."""
    longer = np.array([match.longer for match in readable])
    gaps = np.array([len(match.texts[0]) - len(match.texts[1]) for match in readable])
    decided = (longer != 0.5) & (values != 0.5)
    same = (longer == values)[decided]
    return {
        "longest_wins": share(longer, codes).to_dict(),
        "judge_takes_longer": share(same, codes[decided]).to_dict() if decided.any() else None,
        "difference": mean(gaps, codes).to_dict(),
        "mean": float(np.mean([len(match.texts[0]) for match in readable])),
        "baseline_mean": float(np.mean([len(match.texts[1]) for match in readable])),
    }


def _controlled(
    readable: Sequence[Match], soft: Any, keys: Sequence[Hashable], seed: int
) -> dict[str, Any]:
    """The fit, or why there is none."""
    gaps = [len(match.texts[1]) - len(match.texts[0]) for match in readable]
    found = length_controlled(soft, gaps, keys, seed=seed)
    return {"rate": None, "reason": found} if isinstance(found, str) else found.to_dict()
