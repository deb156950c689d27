"""Statistical rejection sampling: from samples of one policy to samples of a better one.

Liu et al. 2023 (arXiv:2309.06657, RSO), algorithm 1. Of N samples of π those that are accepted
follow π·exp(r/β) the better the larger N is beside n: for 64 → 8 the distance is some thousandths,
for 8 → 4 a tenth. The paper's program keeps candidates in a dictionary, which drops what was
sampled twice and fails when n are not left; here they are a list.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from prefopt.errors import RecipeError


def accepted(
    rewards: Sequence[float], n: int, *, beta: float, random: np.random.Generator
) -> list[int]:
    """Positions of n candidates, accepted with probability exp((r − r_max)/β).

    Passes go over those not yet accepted, r_max is the largest reward among them, and the order
    is shuffled first: what stands in front has no advantage.

    Args:
        rewards: of the candidates, samples of one policy; equal texts are candidates of their own.
        n: how many.
        beta: 0 takes the n best (ties at random), infinity any n.
        random: where chance comes from.

    Raises:
        RecipeError: fewer than n candidates, a negative β, or a reward that is not a number.

    >>> accepted([0.1, 3.0, 2.0], 2, beta=0.0, random=np.random.default_rng(0))
    [1, 2]
    """
    if not 1 <= n <= len(rewards):
        raise RecipeError(
            f"cannot accept {n} of {len(rewards)} candidates",
            field="n",
            value=n,
            remedy="sample more completions a prompt (eight times as many as are kept)",
        )
    if not beta >= 0.0:
        raise RecipeError("must be 0 or more", field="beta", value=beta)
    if not all(math.isfinite(reward) for reward in rewards):
        raise RecipeError("a reward is not a finite number", field="rewards", value=list(rewards))
    remaining = [int(place) for place in random.permutation(len(rewards))]
    taken: list[int] = []
    while len(taken) < n:
        best = max(rewards[place] for place in remaining)
        left = []
        for place in remaining:  # the best is always accepted, so every pass takes one
            full = len(taken) == n
            if not full and random.random() < _chance(rewards[place] - best, beta):
                taken.append(place)
            else:
                left.append(place)
        remaining = left
    return taken


def _chance(below: float, beta: float) -> float:
    """exp(below/β) for a reward that much (≤ 0) from the best."""
    if below == 0.0 or math.isinf(beta):
        return 1.0
    return math.exp(below / beta) if beta > 0.0 else 0.0
