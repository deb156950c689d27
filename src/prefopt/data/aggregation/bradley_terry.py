"""Bradley–Terry: every option has a score, and the difference of two says who is preferred.

P(i ≻ j) = σ(s_i − s_j) (Bradley and Terry 1952). The likelihood is concave; its maximum is found
by Newton's method on the sparse graph of the options, for all questions at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from prefopt.data.aggregation.table import Aggregate, Floats, Ints, Votes, settled
from prefopt.errors import DataError

#: with it a single vote gives 0.74, as the smoothed share does (0.75)
RIDGE = 0.5

_STEPS = 200  # Newton's method needs about eight
_HALVINGS = 60
_DENSE = 200  # options up to which a plain matrix is quicker than a sparse one
_SLOPE = 1e-10  # of the log-likelihood, for each vote of the option with the most


class Wins(NamedTuple):
    """E weighted wins of one option over another."""

    winner: Ints
    loser: Ints
    weight: Floats

    @classmethod
    def of(cls, low: Ints, high: Ints, wins: Floats) -> Wins:
        """From pairs and the (M, 2) wins of their lower and higher option."""
        winner, loser = np.append(low, high), np.append(high, low)
        weight = np.append(wins[:, 0], wins[:, 1])
        won = weight > 0
        return cls(winner[won], loser[won], weight[won])


def bradley_terry(votes: Votes, *, ridge: float = RIDGE) -> Aggregate:
    """bradley-terry: σ(s_i − s_j), with s of the highest likelihood; a tie is half a win each.

    Maximises Σ w_ij log σ(s_i − s_j) − ridge/2 · Σ s². The scores of a question have mean 0.
    With `ridge` 0 this is the maximum of the likelihood alone, which is refused where it is not
    finite.

    Raises:
        DataError: `ridge` is 0 and some options won, or lost, against all others.
    """
    items = votes.items
    scores = fit_scores(Wins.of(items.low, items.high, items.wins), votes.options, ridge=ridge,
                        names=named(votes))  # fmt: skip
    scores[~votes.voted] = np.nan
    return Aggregate(
        "bradley-terry", settled(probabilities(votes, scores)), scores, details={"ridge": ridge}
    )


def probabilities(votes: Votes, scores: Floats) -> Floats:
    """(M,) σ of the difference of the two options' scores."""
    from scipy.special import expit

    return np.asarray(expit(scores[votes.items.low] - scores[votes.items.high]))


def fit_scores(
    wins: Wins,
    options: int,
    *,
    ridge: float,
    offset: float = 0.0,
    start: Floats | None = None,
    names: Sequence[str] = (),
) -> Floats:
    """The scores that maximise Σ w log σ(s_winner − s_loser − offset) − ridge/2 · Σ s².

    Args:
        wins: who won against whom, how often.
        options: O, how many there are; those in no pair get 0.
        ridge: 0 or more.
        offset: how much better an option must be to win as often as not.
        start: (O,) scores to begin with.
        names: of the options, for a message.

    Returns:
        (O,) scores; those of options that are connected by wins have mean 0.

    Raises:
        DataError: `ridge` is 0 and no finite scores have the highest likelihood.
    """
    scores = np.zeros(options) if start is None else start.copy()
    free = np.ones(options, dtype=bool)
    part = None
    if ridge == 0:
        # The scores of a part can all be shifted: the first of each stays at 0.
        part = parts_with_a_maximum(wins, options, names)
        fixed = np.unique(part, return_index=True)[1]
        free[fixed] = False
        scores -= scores[fixed][part]
    enough = _SLOPE * max(1.0, float(np.bincount(wins.winner, wins.weight, 1).max(initial=0.0)))
    value = _likelihood(wins, scores, ridge, offset)
    for _ in range(_STEPS):
        slope, curve = _derivatives(wins, scores, ridge, offset)
        if not free.any() or np.abs(slope[free]).max() <= enough:
            return scores if part is None else _centred(scores, part)
        step = _newton_step(wins, slope, curve, ridge, free)
        for _ in range(_HALVINGS):
            new = _likelihood(wins, scores + step, ridge, offset)
            if new >= value - 1e-13 * abs(value):
                break
            step /= 2
        scores, value = scores + step, new
    raise DataError(
        "the scores did not converge",
        kind="too_few_votes",
        remedy="use a larger ridge",
    )


def parts_with_a_maximum(wins: Wins, options: int, names: Sequence[str] = ()) -> Ints:
    """(O,) which part of the graph of wins each option is in; parts share no votes.

    Raises:
        DataError: the likelihood of a part has no finite maximum. It has one where everyone won
            against everyone, directly or over others (Ford 1957).
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    ones = np.ones(len(wins.winner))
    graph = coo_array((ones, (wins.winner, wins.loser)), shape=(options, options)).tocsr()
    count, part = connected_components(graph, directed=True, connection="weak")
    strong, group = connected_components(graph, directed=True, connection="strong")
    if strong > count:
        across = group[wins.winner] != group[wins.loser]
        won = np.bincount(group[wins.winner], across, strong) > 0
        lost = np.bincount(group[wins.loser], across, strong) > 0
        lonely = np.flatnonzero(won != lost)
        few = int(lonely[np.argmin(np.bincount(group, minlength=strong)[lonely])])
        raise DataError(
            "no finite scores have the highest likelihood: "
            f"{_listed(np.flatnonzero(group == few), names)} "
            f"{'won' if won[few] else 'lost'} every vote against the others",
            kind="too_few_votes",
            remedy="use a ridge above 0, or collect more votes",
        )
    return np.asarray(part, dtype=np.int64)


def named(votes: Votes) -> Sequence[str]:
    """What to call the options in a message: their sources, if those are what is compared."""
    return votes.sources if len(votes.sources) == votes.options else ()


def _listed(options: NDArray[np.int64], names: Sequence[str]) -> str:
    shown = [names[i] if names else f"option {i}" for i in options[:3]]
    more = f" and {len(options) - 3} more" if len(options) > 3 else ""
    return ", ".join(shown) + more


def _likelihood(wins: Wins, scores: Floats, ridge: float, offset: float) -> float:
    from scipy.special import log_expit

    margin = scores[wins.winner] - scores[wins.loser] - offset
    return float(wins.weight @ log_expit(margin) - ridge / 2 * scores @ scores)


def _derivatives(wins: Wins, scores: Floats, ridge: float, offset: float) -> tuple[Floats, Floats]:
    """The (O,) slope, and the (E,) curvature that each pair of options has from each edge."""
    from scipy.special import expit

    missing = expit(-(scores[wins.winner] - scores[wins.loser] - offset))
    pull = wins.weight * missing
    count = len(scores)
    slope = np.bincount(wins.winner, pull, count) - np.bincount(wins.loser, pull, count)
    return slope - ridge * scores, pull * (1.0 - missing)


def _newton_step(
    wins: Wins, slope: Floats, curve: Floats, ridge: float, free: NDArray[np.bool_]
) -> Floats:
    """(O,) the step of the options that are free to move; 0 of the others."""
    from scipy.sparse import csc_array
    from scipy.sparse.linalg import splu

    options, count = len(slope), int(free.sum())
    degree = np.bincount(wins.winner, curve, options) + np.bincount(wins.loser, curve, options)
    diagonal = (degree + ridge)[free]
    number = np.cumsum(free) - 1
    inside = free[wins.winner] & free[wins.loser]
    one, other, curve = number[wins.winner[inside]], number[wins.loser[inside]], curve[inside]
    step = np.zeros(options)
    if count <= _DENSE:
        matrix = np.diag(diagonal)
        np.subtract.at(matrix, (one, other), curve)
        np.subtract.at(matrix, (other, one), curve)
        step[free] = np.linalg.solve(matrix, slope[free])
        return step
    every = np.arange(count)
    place = np.concatenate([one, other, every]), np.concatenate([other, one, every])
    matrix = csc_array((np.concatenate([-curve, -curve, diagonal]), place), shape=(count, count))
    step[free] = splu(matrix).solve(slope[free])
    return step


def _centred(scores: Floats, part: Ints) -> Floats:
    size = np.bincount(part)
    return scores - (np.bincount(part, scores) / size)[part]
