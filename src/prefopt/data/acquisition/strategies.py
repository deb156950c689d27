"""The strategies: what each reads, and which pairs of a pool it would ask about.

Shapes: N pairs of the pool, M members of an ensemble, d features. A margin is the difference
of two rewards in nats, so that p = σ(margin) is the probability that the first completion of a
pair is better.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from prefopt.data.acquisition.design import Floats, Ints, covariance, greedy
from prefopt.errors import RecipeError

Name = Literal["random", "uncertainty", "bald", "d-optimal", "certainty", "entropy"]


@dataclass(frozen=True)
class Known:
    """What is known of a pool, its pairs in an order in which ties are broken.

    Attributes:
        prompts: (N,) the prompt of each pair.
        per_prompt: most pairs of one prompt that a strategy may choose.
        ridge: λ, how much is known before the first label.
        margins: (M, N), or None.
        features: (N, d), or None.
        entropies: (N,) of each pair's prompt, or None.
        labelled: margins (M, L) and features (L, d) of pairs that have an answer, or None.
    """

    prompts: Ints
    per_prompt: int
    ridge: float
    margins: Floats | None = None
    features: Floats | None = None
    entropies: Floats | None = None
    labelled: tuple[Floats, Floats] | None = None


#: (known, which pairs may be chosen (N,), how many) → positions in order, score of each
Pick = Callable[[Known, NDArray[np.bool_], int], tuple[Ints, Floats]]


@dataclass(frozen=True)
class Strategy:
    """A line of the table.

    Attributes:
        pick: chooses the pairs.
        needs: what of `Known` it reads.
        members: margins it needs of each pair.
    """

    pick: Pick
    needs: tuple[str, ...]
    members: int = 1


# -- scores --------------------------------------------------------------------------------


def uncertainty(margins: Floats) -> Floats:
    """−|mean h| of (M, N) margins: highest where the mean is a coin flip.

    It cannot tell a pair of which nothing is known from one that is known to be a tie.

    >>> uncertainty(np.array([[0.0, 2.0], [1.0, 2.0]]))
    array([-0.5, -2. ])
    """
    return np.asarray(-np.abs(margins.mean(axis=0)))


def certainty(margins: Floats) -> Floats:
    """+|mean h| of (M, N) margins (Muldrew et al. 2024, arXiv:2402.08114)."""
    return np.asarray(np.abs(margins.mean(axis=0)))


def bald(margins: Floats) -> Floats:
    """H(mean p) − mean H(p_m) of (M, N) margins, in nats: where the members disagree.

    The information that an answer has about which member is right (Houlsby et al. 2011,
    arXiv:1112.5745): at most log 2, and 0 where all say the same, be it one half.

    >>> bald(np.array([[0.0, 50.0], [0.0, -50.0]])).round(4)
    array([0.    , 0.6931])
    """
    from scipy.special import entr, expit

    first, second = expit(margins), expit(-margins)  # 1 − p loses its digits near p = 1
    together = entr(first.mean(axis=0)) + entr(second.mean(axis=0))
    apart = (entr(first) + entr(second)).mean(axis=0)
    return np.asarray(np.maximum(together - apart, 0.0), dtype=np.float64)


def predictive_entropy(logps: ArrayLike) -> Floats:
    """−mean log π(y|x) over samples y of the policy itself, of (P, S) numbers: (P,) nats.

    The Monte-Carlo estimate of the entropy of a prompt's answers (Muldrew et al. 2024,
    section 4). A prompt with fewer samples than others has NaN in place of the rest.

    >>> predictive_entropy([[-1.0, -3.0], [-4.0, float("nan")]])
    array([2., 4.])
    """
    return np.asarray(-np.nanmean(np.asarray(logps, dtype=np.float64), axis=1))


# -- choices -------------------------------------------------------------------------------


def _highest(score: Callable[[Any], Floats], reads: str) -> Pick:
    """Choose by a score of each pair by itself."""

    def pick(known: Known, allowed: NDArray[np.bool_], count: int) -> tuple[Ints, Floats]:
        values = score(getattr(known, reads))
        ranked = np.argsort(-values, kind="stable")
        kept = _thinned(ranked[allowed[ranked]], known)[:count]
        return kept, values[kept]

    return pick


def _drawn(known: Known, allowed: NDArray[np.bool_], count: int) -> tuple[Ints, Floats]:
    """The first in an order that is a shuffled one."""
    kept = _thinned(np.flatnonzero(allowed), known)[:count]
    return kept, np.full(len(kept), np.nan)


def _designed(known: Known, allowed: NDArray[np.bool_], count: int) -> tuple[Ints, Floats]:
    """D-optimal, on features whose mean squared length is d: λ means the same for any model."""
    assert known.margins is not None and known.features is not None
    width = known.features.shape[1]
    square = float(np.mean(np.sum(known.features**2, axis=1)))
    scale = np.sqrt(width / square) if square > 0 else 1.0
    margins, features = known.labelled or (known.margins[:, :0], known.features[:0])
    chosen, gains, _ = greedy(
        known.features * scale,
        _information(known.margins),
        covariance(features * scale, _information(margins), known.ridge),
        count=count,
        allowed=allowed,
        prompts=known.prompts,
        per_prompt=known.per_prompt,
    )
    return chosen, gains


def _information(margins: Floats) -> Floats:
    """(N,) p(1 − p) of the mean p of (M, N) margins: the Fisher information of one answer."""
    from scipy.special import expit

    return np.asarray(expit(margins).mean(axis=0) * expit(-margins).mean(axis=0))


def _thinned(ranked: Ints, known: Known) -> Ints:
    """Without those that come after `per_prompt` others of their prompt."""
    prompts = known.prompts[ranked]
    by_prompt = np.argsort(prompts, kind="stable")
    begins = np.flatnonzero(np.diff(prompts[by_prompt], prepend=-1))
    before = np.empty(len(ranked), dtype=np.int64)
    runs = np.diff(np.append(begins, len(ranked)))
    before[by_prompt] = np.arange(len(ranked)) - np.repeat(begins, runs)
    return ranked[before < known.per_prompt]


# -- the table -----------------------------------------------------------------------------

STRATEGIES: Mapping[str, Strategy] = {
    # the usual choice: pairs whose answers together say most about the last layer
    "d-optimal": Strategy(_designed, ("margins", "features")),
    # what an ensemble disagrees on; each pair by itself, so large batches say things twice
    "bald": Strategy(_highest(bald, "margins"), ("margins",), members=2),
    # what the policy holds for a coin flip; true ties are among it
    "uncertainty": Strategy(_highest(uncertainty, "margins"), ("margins",)),
    # what the policy is sure of, to find where it is wrong; loses to random where it is right
    "certainty": Strategy(_highest(certainty, "margins"), ("margins",)),
    # prompts that the policy answers most variedly; which of a prompt's pairs is drawn
    "entropy": Strategy(_highest(lambda entropies: entropies, "entropies"), ("entropies",)),
    # needs nothing, and is what the others have to beat
    "random": Strategy(_drawn, ()),
}


def find_strategy(name: str) -> Strategy:
    """The line of the table with that name.

    Raises:
        RecipeError: there is none.
    """
    if name not in STRATEGIES:
        raise RecipeError(
            "there is no such strategy",
            field="strategy",
            value=name,
            remedy="one of " + ", ".join(STRATEGIES),
        )
    return STRATEGIES[name]
