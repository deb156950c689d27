"""Clusters of prompts that are small enough to be moved whole, and prompts that stay together."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_DEPTH = 3  # how often clusters are divided again


class Parts:
    """Clusters, of which those that are too large are divided again, and so on.

    Args:
        prompts: different ones.
        largest: how many of them one part should have at most; more, where they are too alike.
        count: of clusters at first.
        seed: of k-means.
    """

    def __init__(
        self, prompts: Sequence[str], largest: float, *, count: int, seed: int, depth: int = _DEPTH
    ) -> None:
        from prefopt.data.checking.clusters import Clusters

        self._clusters = Clusters.fit(prompts, count=count, seed=seed)
        self._finer: dict[int, tuple[int, Parts]] = {}
        self.count = self._clusters.count
        labels = self._clusters.of(prompts)
        sizes = np.bincount(labels, minlength=self.count)
        for cluster in np.flatnonzero(sizes > largest) if depth else ():
            inside = [prompts[place] for place in np.flatnonzero(labels == cluster).tolist()]
            finer = Parts(
                inside,
                largest,
                count=min(len(inside), math.ceil(2 * len(inside) / largest)),
                seed=seed,
                depth=depth - 1,
            )
            if finer.count > 1:
                self._finer[int(cluster)] = self.count, finer
                self.count += finer.count

    def of(self, prompts: Sequence[str]) -> NDArray[np.int64]:
        """(N,) the part of each prompt, from 0."""
        labels = self._clusters.of(prompts)
        found = labels.copy()
        for cluster, (start, finer) in self._finer.items():
            places = np.flatnonzero(labels == cluster)
            if len(places):
                found[places] = start + finer.of([prompts[place] for place in places.tolist()])
        return found


def first_of_alike(prompts: Sequence[str], seed: int) -> dict[str, str]:
    """Prompts that say nearly what others say → the first of those, by which all are divided."""
    from prefopt.data.checking.similarity import Index, Shingler, components

    shingles = Shingler()
    near = Index([shingles(prompt) for prompt in prompts], seed=seed).near()
    first = components(len(prompts), near)
    later = np.flatnonzero(first < np.arange(len(prompts)))
    return {prompts[place]: prompts[int(first[place])] for place in later.tolist()}
