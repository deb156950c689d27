"""How much reward can be had for how many nats: by anybody, and by the policies of one method."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from prefopt.data.worlds import EnumerableWorld

Floats = NDArray[np.float64]


def optimal_reward(world: EnumerableWorld, kl: float) -> float:
    """The highest mean reward that any policy has within so many nats of the reference.

    It is that of π* = π_ref·exp(r/β)/Z with the β at which KL(π* ‖ π_ref) is that number; KL
    falls with β, so it is found by bisection. No method can lie above it.
    """
    low, high = 1e-4, 1e8
    if world.kl(world.optimum(low)) <= kl:
        return float(world.reward.max())
    for _ in range(60):
        beta = (low * high) ** 0.5
        if world.kl(world.optimum(beta)) > kl:
            low = beta
        else:
            high = beta
    return world.expected_reward(world.optimum(low))


def reachable(points: Iterable[tuple[float, float]], kls: ArrayLike) -> Floats:
    """The most reward within each of some divergences, for who has certain policies.

    Who draws which of two policies answers has their mean reward, and at most their mean KL,
    which is convex: so everything under the concave hull of the points can be had. Without it a
    method would be judged by where its grid happens to have a point.

    Args:
        points: KL and mean reward of each policy; one of them is the reference, at 0 nats.
        kls: divergences, 0 or more.

    >>> reachable([(0, 0.0), (1, 0.2), (2, 1.0), (4, 0.9)], [1, 3])
    array([0.5, 1. ])
    """
    hull: list[tuple[float, float]] = []
    for kl, reward in sorted((max(kl, 0.0), reward) for kl, reward in points):
        if hull and reward <= hull[-1][1]:
            continue  # no more reward for more nats
        while len(hull) > 1 and not _turns_down(hull[-2], hull[-1], (kl, reward)):
            hull.pop()
        if hull and hull[-1][0] == kl:
            hull.pop()
        hull.append((kl, reward))
    nats, rewards = np.array(hull, dtype=np.float64).T
    found: Floats = np.interp(np.asarray(kls, dtype=np.float64), nats, rewards)
    return found


def _turns_down(
    one: tuple[float, float], other: tuple[float, float], last: tuple[float, float]
) -> bool:
    """Whether the middle one of three points lies above the line between the others."""
    rise = (other[1] - one[1]) * (last[0] - one[0])
    return rise > (last[1] - one[1]) * (other[0] - one[0])
