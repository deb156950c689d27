"""Several policies in one order: Bradley–Terry scores, with intervals by drawing prompts.

P(i beats j) = σ(s_i − s_j), ties half a win each, mean 0. Every draw of prompts is fitted again,
so that the intervals know what comes of one prompt's matches together.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefopt.data.aggregation.bradley_terry import (
    RIDGE,
    Wins,
    fit_scores,
    parts_with_a_maximum,
)
from prefopt.data.aggregation.table import Floats, Ints, summed
from prefopt.errors import DataError

_SAMPLES = 400
_ENDS = (0.025, 0.975)


@dataclass(frozen=True, slots=True)
class Ranking:
    """Policies from best to worst.

    Attributes:
        rows: `policy`, `score` (a logit), `interval`, `rank` (from 1), `rank_interval`,
            `win_rate` (the mean over the other policies of what the scores say), `matches`.
        ridge: of the fit: 0, or more where somebody won, or lost, everything (also in more than
            a tenth of the draws), so that the likelihood alone has no maximum. Scores are then
            drawn together.
        samples: draws that the intervals come from.
        prompts: that were drawn.
    """

    rows: tuple[dict[str, Any], ...]
    ridge: float
    samples: int
    prompts: int

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {"policies": list(self.rows), "ridge": self.ridge, "samples": self.samples,
                "prompts": self.prompts}  # fmt: skip


def rank(
    results: Iterable[tuple[str, str, float, Hashable]],
    *,
    seed: int = 0,
    samples: int = _SAMPLES,
) -> Ranking:
    """Bradley–Terry scores of everybody in some results.

    Args:
        results: first, second, value (1 the first won, 0 the second, ½ a tie, or a probability)
            and prompt of each match.
        seed: of the draws.
        samples: how many.

    Raises:
        DataError: there is no result, or some never met the others, directly or over others.

    >>> results = [("a", "b", 1.0 if prompt < 20 else 0.0, prompt) for prompt in range(30)]
    >>> found = rank(results, samples=20)
    >>> round(found.rows[0]["score"] - found.rows[1]["score"], 4)     # log(20 / 10)
    0.6931
    """
    table = _Table.of(list(results))
    _refuse_apart(table)
    for ridge in (0.0, RIDGE):
        scores = table.fit(np.ones(table.prompts), ridge)
        drawn = None if scores is None else table.draws(ridge, scores, samples, seed)
        if scores is not None and drawn is not None:
            return _ranking(table, scores, drawn, ridge)
    raise AssertionError("a ridge above 0 always has a maximum")


@dataclass(frozen=True)
class _Table:
    """R results as arrays.

    Attributes:
        names: of the policies, sorted.
        low, high: (M,) the pairs that met.
        pair, prompt: (R,) of each result.
        value: (R,) what the lower one of the pair won.
        prompts: how many there are.
    """

    names: list[str]
    low: Ints
    high: Ints
    pair: Ints
    prompt: Ints
    value: Floats
    prompts: int

    @classmethod
    def of(cls, results: Sequence[tuple[str, str, float, Hashable]]) -> _Table:
        if not results:
            raise DataError("there is no verdict to rank by", kind="too_few_votes",
                            remedy="compare at least two policies on one prompt")  # fmt: skip
        names = sorted({name for row in results for name in row[:2]})
        code = {name: number for number, name in enumerate(names)}
        first = np.array([code[row[0]] for row in results])
        second = np.array([code[row[1]] for row in results])
        value = np.array([row[2] for row in results], dtype=np.float64)
        low, high = np.minimum(first, second), np.maximum(first, second)
        keys, pair = np.unique(low * len(names) + high, return_inverse=True)
        order = sorted({row[3] for row in results}, key=repr)  # not that of the rows
        known = {key: number for number, key in enumerate(order)}
        prompt = np.array([known[row[3]] for row in results])
        lows, highs = np.divmod(keys, len(names))
        won = np.where(first < second, value, 1.0 - value)
        return cls(names, lows, highs, pair, prompt, won, len(known))

    def fit(self, times: Floats, ridge: float, start: Floats | None = None) -> Floats | None:
        """Scores with each prompt counted so many times; None if there are no finite ones.

        Nor are there any between policies that did not meet, directly or over others.
        """
        weight, count = times[self.prompt], len(self.low)
        won = np.column_stack(
            [summed(self.pair, weight * part, count) for part in (self.value, 1.0 - self.value)]
        )
        wins = Wins.of(self.low, self.high, won)
        try:
            if ridge == 0 and parts_with_a_maximum(wins, len(self.names)).any():
                return None
            return fit_scores(wins, len(self.names), ridge=ridge, start=start)
        except DataError:
            return None

    def draws(self, ridge: float, start: Floats, samples: int, seed: int) -> Floats | None:
        """(S, O) scores of draws of prompts; None if a tenth of them have no finite ones."""
        rng, found = np.random.default_rng(seed), []
        for _ in range(samples):
            drawn = rng.integers(self.prompts, size=self.prompts)
            times = np.bincount(drawn, minlength=self.prompts).astype(np.float64)
            scores = self.fit(times, ridge, start)
            if scores is not None:
                found.append(scores)
        return np.stack(found) if len(found) >= 0.9 * samples else None


def _refuse_apart(table: _Table) -> None:
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    size = len(table.names)
    met = coo_array((np.ones(len(table.low)), (table.low, table.high)), shape=(size, size))
    count, part = connected_components(met, directed=False)
    if count > 1:
        sides = [", ".join(name for name, own in zip(table.names, part, strict=True) if own == one)
                 for one in range(count)]  # fmt: skip
        raise DataError(
            "policies that never met, directly or over others, have no common order: "
            + "; ".join(sides),
            kind="too_few_votes",
            remedy="let one of each group meet one of another",
        )


def _ranking(table: _Table, scores: Floats, drawn: Floats, ridge: float) -> Ranking:
    low, high = np.quantile(drawn, _ENDS, axis=0)
    ranks = _ranks(drawn)
    first, last = np.quantile(ranks, _ENDS, axis=0, method="nearest").astype(np.int64)
    here = _ranks(scores[None])[0]
    met = np.bincount(table.pair, minlength=len(table.low))
    count = len(table.names)
    matches = np.bincount(table.low, met, count) + np.bincount(table.high, met, count)
    rows = tuple(
        {
            "policy": table.names[code],
            "score": float(scores[code]),
            "interval": [float(low[code]), float(high[code])],
            "rank": int(here[code]),
            "rank_interval": [int(first[code]), int(last[code])],
            "win_rate": _expected(scores, code),
            "matches": int(matches[code]),
        }
        for code in np.lexsort((np.arange(count), -scores))
    )
    return Ranking(rows, ridge, len(drawn), table.prompts)


def _ranks(scores: Floats) -> NDArray[np.int64]:
    """(S, O) places from 1; those with equal scores share the best of theirs."""
    return np.asarray(1 + (scores[:, None, :] > scores[:, :, None] + 1e-9).sum(axis=2))


def _expected(scores: Floats, code: int) -> float | None:
    from scipy.special import expit

    others = np.delete(scores, code)
    return float(expit(scores[code] - others).mean()) if len(others) else None
