"""Is the difference between two runs more than chance? Tests by prompt, on the same prompts.

Rows of one prompt resemble each other, and two runs that answer the same prompts find the same
ones hard. So a prompt is one observation: the difference of the two runs' means on it.

Shapes: P prompts.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from prefopt.errors import DataError
from prefopt.evaluation.intervals import clustered_bootstrap

Floats = NDArray[np.float64]
_EXACT = 14  # prompts that differ, up to which every assignment of signs is counted
_DRAWN = 10_000  # assignments that are drawn beyond that
_BLOCK = 4_000_000  # signs held in memory at once


@dataclass(frozen=True, slots=True)
class Paired:
    """Two runs on the prompts that both have.

    Attributes:
        first, second: mean over prompts of each run's mean on them.
        difference: the first less the second.
        interval: 95 %, by drawing prompts (percentiles of the bootstrap).
        p: of the permutation test, two-sided: under "no difference" a prompt's difference would
            as well have had the other sign.
        better, worse, same: prompts on which the first did better, worse, or as well.
        sign_p: of the sign test, two-sided and exact; it asks only which was better how often.
        prompts: P.
    """

    first: float
    second: float
    difference: float
    interval: tuple[float, float]
    p: float
    better: int
    worse: int
    same: int
    sign_p: float
    prompts: int

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "first": self.first, "second": self.second, "difference": self.difference,
            "interval": list(self.interval), "p": self.p, "better": self.better,
            "worse": self.worse, "same": self.same, "sign_p": self.sign_p,
            "prompts": self.prompts,
        }  # fmt: skip


def paired(
    first: Mapping[Hashable, float], second: Mapping[Hashable, float], *, seed: int = 0
) -> Paired:
    """Compare two runs on the prompts that they share.

    Args:
        first, second: the mean of each run on each of its prompts, as `by_prompt` gives them.
        seed: of the bootstrap and of the signs that are drawn.

    Raises:
        DataError: they share no prompt.

    >>> found = paired({"a": 1.0, "b": 1.0, "c": 0.5}, {"a": 0.0, "b": 0.0, "c": 0.5})
    >>> round(found.difference, 4), found.p, found.better, found.same
    (0.6667, 0.5, 2, 1)
    """
    shared = sorted(set(first) & set(second), key=repr)
    if not shared:
        raise DataError(
            "the two have no prompt in common, so nothing can be compared in pairs",
            kind="prompt_mismatch",
            remedy="measure both on the same prompts",
        )
    one = np.array([first[key] for key in shared], dtype=np.float64)
    other = np.array([second[key] for key in shared], dtype=np.float64)
    gaps = one - other
    drawn = clustered_bootstrap(gaps, range(len(gaps)), seed=seed)
    better, worse = int((gaps > 0).sum()), int((gaps < 0).sum())
    return Paired(
        float(one.mean()), float(other.mean()), drawn.mean, drawn.ends,
        permutation_test(gaps, seed=seed), better, worse, len(gaps) - better - worse,
        sign_test(better, worse), len(gaps),
    )  # fmt: skip


def by_prompt(values: Iterable[float | None], prompts: Iterable[Hashable]) -> dict[Hashable, float]:
    """The mean of the values on each prompt; what could not be read is left out."""
    sums: dict[Hashable, tuple[float, int]] = {}
    for value, prompt in zip(values, prompts, strict=True):
        if value is not None:
            total, count = sums.get(prompt, (0.0, 0))
            sums[prompt] = total + value, count + 1
    return {prompt: total / count for prompt, (total, count) in sums.items()}


def permutation_test(differences: ArrayLike, *, seed: int = 0) -> float:
    """Two-sided p of a mean of 0, when each of (P,) differences may have either sign.

    The sum is compared with that of all 2^P assignments of signs, or with 10,000 that are drawn,
    the one that was found included (Phipson and Smyth 2010: a p from draws is never 0).

    >>> permutation_test([0.5, 0.5, 0.5, 0.0])       # of 8 assignments two are as far from 0
    0.25
    """
    gaps = np.asarray(differences, dtype=np.float64)
    gaps = gaps[gaps != 0]
    if len(gaps) == 0:
        return 1.0
    found = abs(gaps.sum()) * (1 - 1e-12)
    if len(gaps) <= _EXACT:
        signs = np.array(list(product((1.0, -1.0), repeat=len(gaps))))
        return float((np.abs(signs @ gaps) >= found).mean())
    rng, extreme = np.random.default_rng(seed), 0
    rows = max(1, _BLOCK // len(gaps))
    for start in range(0, _DRAWN, rows):
        signs = rng.integers(2, size=(min(rows, _DRAWN - start), len(gaps)), dtype=np.int8)
        extreme += int((np.abs((2.0 * signs - 1.0) @ gaps) >= found).sum())
    return (1 + extreme) / (1 + _DRAWN)


def sign_test(better: int, worse: int) -> float:
    """Two-sided exact p that of so many differing prompts as many would fall on one side.

    >>> sign_test(5, 0), sign_test(3, 3)
    (0.0625, 1.0)
    """
    from scipy.special import bdtr

    count = better + worse
    return min(1.0, 2.0 * float(bdtr(min(better, worse), count, 0.5))) if count else 1.0


def holm(tests: Mapping[str, float]) -> dict[str, float]:
    """p of several tests at once, so that any false alarm among them is as rare as said.

    Holm 1979, "A simple sequentially rejective multiple test procedure".

    >>> {name: round(p, 4) for name, p in holm({"a": 0.01, "b": 0.04, "c": 0.03}).items()}
    {'a': 0.03, 'b': 0.06, 'c': 0.06}
    """
    adjusted: dict[str, float] = {}
    highest = 0.0
    for place, name in enumerate(sorted(tests, key=tests.__getitem__)):
        highest = max(highest, min(1.0, (len(tests) - place) * tests[name]))
        adjusted[name] = highest
    return {name: adjusted[name] for name in tests}
