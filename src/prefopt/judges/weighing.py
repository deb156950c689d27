"""The probabilities of what a model could say, as one number: nothing is written or parsed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

#: marks that tokenizers write for a space
_SPACES = "Ġ▁"


def mass(top: Mapping[str, float], answer: str) -> float:
    """Log of the probability of all tokens that are the answer, with or without a space.

    >>> round(math.exp(mass({"A": math.log(0.5), " A": math.log(0.25), "B": -2.0}, "A")), 6)
    0.75
    """
    shares = [math.exp(logp) for token, logp in top.items() if token.strip(f" {_SPACES}") == answer]
    return math.log(sum(shares)) if sum(shares) > 0 else -math.inf


def share_of_first(logps: list[float]) -> float | None:
    """P(A) / (P(A) + P(B)); None if neither can be.

    >>> round(share_of_first([math.log(0.6), math.log(0.2)]), 6)
    0.75
    """
    weights = _weights(logps)
    return None if weights is None else weights[0]


def expected(logps: list[float], points: Sequence[int]) -> float | None:
    """Mean of the points, each as probable as its digit (G-Eval, Liu et al. 2023,
    arXiv:2303.16634)."""
    weights = _weights(logps)
    if weights is None:
        return None
    return sum(weight * point for weight, point in zip(weights, points, strict=True))


def _weights(logps: list[float]) -> list[float] | None:
    highest = max(logps)
    if highest == -math.inf:
        return None
    shares = [math.exp(logp - highest) for logp in logps]
    return [share / sum(shares) for share in shares]
