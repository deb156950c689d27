"""The interval of a share: Beta(wins + ½, losses + ½), from Jeffreys' prior.

Brown, Cai and DasGupta 2001, "Interval estimation for a binomial proportion": near its level for
few trials too. The trials must not depend on each other; shares over prompts have their intervals
in `checking.estimates`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

LEVEL = 0.95
_TAIL = (1 - LEVEL) / 2


def interval(wins: ArrayLike, losses: ArrayLike) -> tuple[NDArray[Any], NDArray[Any]]:
    """Both ends of the 95 % interval, each of the shape of the arguments.

    >>> [round(float(end), 4) for end in interval(5, 0)]
    [0.6206, 0.9999]
    """
    from scipy.special import betaincinv

    first, second = np.asarray(wins) + 0.5, np.asarray(losses) + 0.5
    return betaincinv(first, second, _TAIL), betaincinv(first, second, 1 - _TAIL)


def certain(wins: NDArray[np.float64], trials: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether the interval of a majority excludes one half; the ends need not be known for that.

    >>> certain(np.array([3.0, 4.0, 8.0]), np.array([3.0, 4.0, 12.0])).tolist()
    [False, True, False]
    """
    from scipy.special import betainc

    below: NDArray[np.float64] = betainc(wins + 0.5, trials - wins + 0.5, 0.5)
    return below < _TAIL
