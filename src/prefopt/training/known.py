"""Reference scores that are known, by the position of their group.

Only what was scored takes memory: eight bytes a completion and, a page of positions at a
time, eight a group. A position may be that of a companions' group, behind those of the data.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

_PAGE = 512  # positions


class KnownScores:
    """Scores of groups, in nats, in the order of their completions."""

    def __init__(self) -> None:
        self._scores = array("d", [0.0])  # the first place is nobody's: 0 stands for unknown
        self._places: dict[int, NDArray[np.int64]] = {}

    def __contains__(self, position: int) -> bool:
        return self._place(position) > 0

    def add(self, position: int, scores: Iterable[float]) -> None:
        """Keep the scores of a group, unless it has some: what was first counts."""
        if position in self:
            return
        page = self._places.setdefault(position // _PAGE, np.zeros(_PAGE, dtype=np.int64))
        page[position % _PAGE] = len(self._scores)
        self._scores.extend(scores)

    def of(self, position: int, count: int) -> NDArray[np.float64]:
        """(K,) the scores of a group with this many completions.

        Raises:
            KeyError: they are not known.
        """
        place = self._place(position)
        if not place:
            raise KeyError(position)
        return np.array(self._scores[place : place + count])

    def _place(self, position: int) -> int:
        page = self._places.get(position // _PAGE)
        return 0 if page is None else int(page[position % _PAGE])
