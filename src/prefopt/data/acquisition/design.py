"""D-optimal designs: questions whose answers together say most about a linear model.

A logistic model with margin θ·φ and prior N(0, I/λ) that has seen pairs with weights
w = p(1 − p) knows θ up to the covariance S = (λI + Σ wφφᵀ)⁻¹. One more answer adds
log(1 + wφᵀSφ) to log det S⁻¹. Greedy choice of the largest gain is within 1 − 1/e of the best
set, because the gains shrink as the set grows (Kveton et al. 2025, arXiv:2503.01076, apply it
to the last layer under DPO).

Shapes: N pairs of the pool, d features of each.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def covariance(features: Floats, weights: Floats, ridge: float) -> Floats:
    """(d, d) S = (λI + Σ wφφᵀ)⁻¹ of labelled pairs.

    >>> covariance(np.array([[2.0, 0.0]]), np.array([0.25]), ridge=1.0)
    array([[0.5, 0. ],
           [0. , 1. ]])
    """
    information = ridge * np.eye(features.shape[1]) + (features.T * weights) @ features
    inverse = np.linalg.inv(information)
    return np.asarray((inverse + inverse.T) / 2, dtype=np.float64)


def greedy(
    features: Floats,
    weights: Floats,
    start: Floats,
    *,
    count: int,
    allowed: NDArray[np.bool_],
    prompts: Ints,
    per_prompt: int,
) -> tuple[Ints, Floats, Floats]:
    """Pairs of largest gain, one after the other, each after what the earlier ones will say.

    S follows by a rank-one update (Sherman and Morrison 1950). As gains only shrink, those of
    earlier rounds are upper bounds, and only pairs whose bound reaches the best exact gain are
    looked at again (Minoux 1978): the same choice, at a fraction of the cost.

    Args:
        features: (N, d).
        weights: (N,) p(1 − p) of each pair.
        start: (d, d) covariance before the first choice.
        count: most pairs to choose.
        allowed: (N,) which pairs may be chosen.
        prompts: (N,) the prompt of each.
        per_prompt: most pairs of one prompt.

    Returns:
        positions in the order of choice, the gain of each in nats, and the covariance after
        all of them. Of equal gains the earlier position is taken.
    """
    current = start.copy()

    def worth(pairs: Ints) -> Floats:
        """(n,) wφᵀSφ of some pairs as S is now."""
        part = features[pairs]
        return np.asarray(weights[pairs] * np.einsum("nd,nd->n", part @ current, part))

    bounds = np.full(len(features), -np.inf)
    bounds[allowed] = worth(np.flatnonzero(allowed))
    taken: Counter[int] = Counter()
    chosen: list[int] = []
    gains: list[float] = []
    while len(chosen) < count and bounds.max() > -np.inf:
        top = np.array([bounds.argmax()])
        bounds[top] = worth(top)
        reaching = np.flatnonzero(bounds >= bounds[top])
        bounds[reaching] = worth(reaching)
        best = int(bounds.argmax())
        chosen.append(best)
        gains.append(float(np.log1p(bounds[best])))
        direction = current @ features[best]
        factor = weights[best] / (1 + weights[best] * (features[best] @ direction))
        current -= factor * np.outer(direction, direction)
        bounds[best] = -np.inf
        prompt = int(prompts[best])
        taken[prompt] += 1
        if taken[prompt] == per_prompt:
            bounds[prompts == prompt] = -np.inf
    return np.array(chosen, dtype=np.int64), np.array(gains, dtype=np.float64), current
