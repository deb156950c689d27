"""Bradley–Terry with a reliability of every annotator."""

from __future__ import annotations

import numpy as np

from prefopt.data.aggregation.bradley_terry import RIDGE, Wins, fit_scores, probabilities
from prefopt.data.aggregation.table import HIGH, LOW, Aggregate, Floats, Votes, settled

_FAITHFUL, _FALSE = 4.0, 1.0  # votes of everyone that are taken to be known already
_ROUNDS = 10_000
_SLOPE = 1e-9  # of the log-likelihood, for each vote


def reliability(votes: Votes, *, ridge: float = RIDGE) -> Aggregate:
    """reliability: σ(s_i − s_j), where annotator a says what it gives with probability η_a.

    P(a says i ≻ j) = η_a·σ(s_i − s_j) + (1 − η_a)·σ(s_j − s_i) (Chen et al. 2013, "Pairwise
    ranking aggregation in a crowdsourced setting", eq. 4). With η_a below 1/2 a vote speaks for
    the other side. A tie is half a vote for each. Maximises the likelihood less
    ridge/2 · Σ s², and as if four of five earlier votes of everyone had been faithful. Votes
    without an annotator share one reliability. η is no accuracy: where the two options of a pair
    are close, a faithful annotator too says now this and now that. The answer turned round (all η
    to 1 − η, all s to −s) fits nearly as well; the search (L-BFGS) begins where most are right.
    """
    from scipy.optimize import minimize
    from scipy.special import expit, logit

    items = votes.items
    begin = fit_scores(
        Wins.of(items.low, items.high, items.wins), votes.options, ridge=ridge or RIDGE
    )
    eta = np.full(len(votes.annotators) + 1, _FAITHFUL / (_FAITHFUL + _FALSE))
    found = minimize(
        lambda point: _loss(point, votes, ridge),
        np.append(begin, logit(eta)),
        jac=True,
        method="L-BFGS-B",
        options={
            "maxiter": _ROUNDS,
            "maxfun": 2 * _ROUNDS,
            "maxcor": 30,
            "ftol": 0.0,
            "gtol": _SLOPE,
        },
    )
    scores, eta = found.x[: votes.options], expit(found.x[votes.options :])
    scores[~votes.voted] = np.nan
    rest = float(np.abs(found.jac).max())
    return Aggregate(
        "reliability",
        settled(probabilities(votes, scores)),
        scores,
        eta[: len(votes.annotators)],
        {"ridge": ridge, "converged": rest < 1e-6, "iterations": int(found.nit)},
    )


def _loss(point: Floats, votes: Votes, ridge: float) -> tuple[float, Floats]:
    """What is minimised, for each vote, and its slope along scores and logits of η."""
    from scipy.special import expit

    items, voter, count = votes.items, votes.voter, votes.options
    scores, eta = point[:count], expit(point[count:])
    low = (items.said == LOW) + 0.5 * (items.said > HIGH)
    better = expit(scores[items.low] - scores[items.high])[items.of]
    faithful = eta[voter]
    says_low = faithful * better + (1 - faithful) * (1 - better)
    gain = low / says_low - (1 - low) / (1 - says_low)
    value = low @ np.log(says_low) + (1 - low) @ np.log1p(-says_low)
    value += _FAITHFUL * np.log(eta).sum() + _FALSE * np.log1p(-eta).sum()
    value -= ridge / 2 * scores @ scores
    pull = np.bincount(items.of, gain * (2 * faithful - 1) * better * (1 - better), len(items))
    slope = np.bincount(items.low, pull, count) - np.bincount(items.high, pull, count)
    turn = np.bincount(voter, gain * (2 * better - 1) * faithful * (1 - faithful), len(eta))
    turn += _FAITHFUL * (1 - eta) - _FALSE * eta
    uphill: Floats = np.append(slope - ridge * scores, turn)
    return -float(value) / len(votes), -uphill / len(votes)
