"""Length-controlled win rate: what a policy would win if its answers were as long as the others.

AlpacaEval's regression (Dubois et al. 2024, arXiv:2404.04475), without its third term:

    logit P(the policy wins on x) = θ + φ·tanh(Δlen_x / sd(Δlen)) + ψ·γ_x

Δlen is the baseline's length less the policy's, in characters; there is no intercept beside θ,
targets may be between 0 and 1, and the fit is L1-regularised with the strength of 5-fold
cross-validation. The rate is σ(θ): what remains where both are equally long.

It is an approximation, for two reasons. γ_x, how hard an instruction is, was fitted by AlpacaEval
on the verdicts of many models for its own 805 instructions: other prompts have none. And their
fit adds a penalty against answers made long or short on purpose. Length is also only controlled
as far as tanh of it describes what the judge does.

Shapes: N pairs.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

_FOLDS = 5
_STRENGTHS = 10.0 ** np.arange(-4.0, 4.5, 8 / 9)  # scikit-learn's own ten
_SAMPLES = 200  # draws of prompts for the interval
_NOTHING = 1e-9  # of a verdict
_ITERATIONS = 10_000
_FEWEST = 20  # prompts without which five folds say nothing
APPROXIMATE = (
    "an approximation of AlpacaEval's: without the difficulty of each instruction, which is "
    "known for its own prompts only"
)


@dataclass(frozen=True, slots=True)
class LengthControlled:
    """What is left of a win rate where lengths are equal.

    Attributes:
        rate: σ(θ).
        interval: 95 %, by drawing prompts and fitting again, at the same strength.
        theta: logit of the rate.
        phi: what length does: below 0 the judge prefers the longer one.
        strength: scikit-learn's C, of the cross-validation.
        folds: of it.
    """

    rate: float
    interval: tuple[float, float]
    theta: float
    phi: float
    strength: float
    folds: int

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON, with what is approximate about it."""
        return {
            "rate": self.rate, "interval": list(self.interval), "theta": self.theta,
            "phi": self.phi, "strength": self.strength, "folds": self.folds,
            "approximation": APPROXIMATE,
        }  # fmt: skip


def length_controlled(
    values: ArrayLike,
    differences: ArrayLike,
    clusters: Sequence[Hashable],
    *,
    seed: int = 0,
    samples: int = _SAMPLES,
) -> LengthControlled | str:
    """The win rate with the effect of length taken out.

    Args:
        values: (N,) between 0 and 1, that the policy won.
        differences: (N,) the baseline's length less the policy's.
        clusters: (N,) prompts; those of one prompt are in one fold.
        seed: of the folds and of the interval.
        samples: draws for the interval.

    Returns:
        The fit, or why there is none.
    """
    targets, gaps = (np.asarray(part, dtype=np.float64) for part in (values, differences))
    place = np.unique(np.array([repr(c) for c in clusters], dtype=object), return_inverse=True)[1]
    prompts = int(place.max(initial=-1)) + 1
    if prompts < _FEWEST:
        return f"{prompts} prompts are too few to tell length from the rest; {_FEWEST} are needed"
    spread = float(gaps.std())
    if spread == 0:
        return "all differences of length are the same, so length cannot be told from the rest"
    if targets.min() == targets.max():
        return "all verdicts are the same, so there is nothing that length could explain"
    features = np.column_stack([np.ones(len(gaps)), np.tanh(gaps / spread)])
    rng = np.random.default_rng(seed)
    folds = rng.permutation(np.arange(prompts) % _FOLDS)[place]
    strength = _chosen(features, targets, folds)
    theta, phi = _fit(features, targets, np.ones(len(gaps)), strength)
    drawn = []
    for _ in range(samples):
        times = np.bincount(rng.integers(prompts, size=prompts), minlength=prompts)
        drawn.append(_fit(features, targets, times[place].astype(np.float64), strength)[0])
    low, high = np.quantile(_logistic(np.array(drawn)), (0.025, 0.975))
    rate = float(_logistic(np.array(theta)))
    return LengthControlled(rate, (float(low), float(high)), theta, phi, float(strength), _FOLDS)


def _chosen(features: Floats, targets: Floats, folds: NDArray[np.int64]) -> float:
    """The C of lowest log-loss on the folds that it was not fitted on; the smallest of equals."""
    losses = []
    for strength in _STRENGTHS:
        lost = 0.0
        for fold in range(_FOLDS):
            out = folds == fold
            fitted = _fit(features[~out], targets[~out], np.ones(int((~out).sum())), strength)
            margin = features[out] @ np.array(fitted)
            lost += float((np.logaddexp(0.0, margin) - targets[out] * margin).sum())
        losses.append(lost)
    return float(_STRENGTHS[int(np.argmin(losses))])


def _fit(
    features: Floats, targets: Floats, weights: Floats, strength: float
) -> tuple[float, float]:
    """θ and φ. A target between 0 and 1 is a win and a loss, weighted by it.

    The penalty alone holds θ back where all of some data is won, or lost; the library refuses
    such data, so next to nothing of the other class is added.
    """
    from sklearn.linear_model import LogisticRegression

    both = np.concatenate([targets * weights, (1.0 - targets) * weights])
    wins = np.repeat([1, 0], len(targets))
    held = both > 0
    held[[0, len(targets)]] = True
    model = LogisticRegression(
        C=strength,
        l1_ratio=1.0,
        solver="liblinear",
        fit_intercept=False,
        random_state=0,
        max_iter=_ITERATIONS,
    )
    weight = np.maximum(both[held], _NOTHING)
    model.fit(np.concatenate([features, features])[held], wins[held], sample_weight=weight)
    theta, phi = model.coef_[0]
    return float(theta), float(phi)


def _logistic(logits: Floats) -> Floats:
    from scipy.special import expit

    return np.asarray(expit(logits))
