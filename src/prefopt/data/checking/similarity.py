"""Texts that are nearly the same: MinHash finds candidates, the shingles themselves decide.

A text is the set of its overlapping runs of three words, case and punctuation aside. Two texts
are nearly the same if at least 70 % of the runs in either are in both (Jaccard similarity). 128
MinHash values (Broder 1997) in 25 bands of 5 bring together, of pairs that are 70 % alike, 99 in
100; of pairs that are 80 % alike all but one in 20,000. Candidates are then compared exactly, so
nothing is called nearly the same that is not.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

SHINGLE = 3  # words
THRESHOLD = 0.7  # Jaccard similarity of texts that are nearly the same

Shingles = NDArray[np.uint64]

_PERMUTATIONS, _BANDS, _ROWS = 128, 25, 5
_LEADERS = 20  # of a bucket, with which the others in it are compared
_SLACK = 0.15  # of the estimate; its standard deviation is 0.04
_AT_ONCE = 1 << 14  # pairs compared together
_IDEOGRAPHS = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"  # each a word: no spaces there
_WORD = re.compile(rf"[{_IDEOGRAPHS}]|[^\W_{_IDEOGRAPHS}]+")
_TOKEN = re.compile(rf"{_WORD.pattern}|[^\w\s.,;:!?'\"`()\[\]{{}}…“”‘’¿¡]")


def words(text: str) -> list[str]:
    """Its words, case folded; in Chinese and Japanese each character is one.

    >>> words("Don't PANIC: 42!")
    ['don', 't', 'panic', '42']
    """
    return _WORD.findall(text.casefold())


class Shingler:
    """Texts to the distinct runs of `SHINGLE` words in them, as digests that are always the same.

    Signs such as + and % count as words, punctuation does not. A text of fewer words is one run; of
    a text without any, what is left without spaces.

    >>> make = Shingler()
    >>> len(make("to be or not to be")), len(make("To be, or not to be or not!")), len(make("no"))
    (4, 4, 1)
    """

    def __init__(self) -> None:
        self._digests = _Digests()

    def __call__(self, text: str) -> Shingles:
        tokens = _TOKEN.findall(text.casefold()) or ["".join(text.split())]
        codes = np.array([self._digests[token] for token in tokens], dtype=np.uint64)
        size = min(SHINGLE, len(codes))
        runs = np.full(len(codes) - size + 1, size, dtype=np.uint64)
        for place in range(size):
            runs = mixed(runs + codes[place : place + len(runs)])
        return np.unique(runs)


class _Digests(dict[str, int]):
    """Eight bytes of each word, worked out once."""

    def __missing__(self, word: str) -> int:
        data = word.encode("utf-8", "surrogatepass")
        digest = int.from_bytes(blake2b(data, digest_size=8).digest())
        self[word] = digest
        return digest


def mixed(values: Shingles) -> Shingles:
    """Another number for each, all bits of which matter: SplitMix64 (Steele, Lea, Flood 2014)."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


@dataclass(frozen=True)
class Near:
    """Pairs of texts that are nearly the same.

    Attributes:
        first, second: (P,) indices.
        similarity: (P,) Jaccard.
    """

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    similarity: NDArray[np.float64]

    def where(self, kept: NDArray[np.bool_]) -> Near:
        """Some of them."""
        return Near(self.first[kept], self.second[kept], self.similarity[kept])


class Index:
    """Sets of shingles that can be looked for.

    Args:
        sets: N of them.
        seed: of the permutations; those of two indices must be the same.
    """

    def __init__(self, sets: Sequence[Shingles], *, seed: int = 0) -> None:
        self.sets = sets
        self.values = _signatures(sets, seed)
        self.bands = np.empty((len(sets), _BANDS), dtype=np.uint64)
        for band in range(_BANDS):
            key = np.full(len(sets), band, dtype=np.uint64)
            for row in range(_ROWS):
                key = mixed(key + self.values[:, band * _ROWS + row].astype(np.uint64))
            self.bands[:, band] = key

    def near(self, others: Index | None = None, *, threshold: float = THRESHOLD) -> Near:
        """Which of these are nearly the same as which of the others, or of these themselves.

        Where very many are alike, not all pairs of them are found but what connects them.

        Returns:
            Indices of these and of the others; among these themselves the first is smaller.
        """
        there = self if others is None else others
        kept = [(np.empty(0, dtype=np.int64),) * 2]
        for first, second in self._candidates(there, within=others is None):
            agree = (self.values[first] == there.values[second]).mean(axis=1)
            likely = agree >= threshold - _SLACK
            kept.append((first[likely], second[likely]))
        first, second = (np.concatenate(side) for side in zip(*kept, strict=True))
        found = jaccard(self.sets, first, there.sets, second)
        return Near(first, second, found).where(found >= threshold)

    def _candidates(
        self, there: Index, *, within: bool
    ) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """Pairs that share a bucket, each pair once; of a bucket only the leaders are compared."""
        codes = [np.empty(0, dtype=np.int64)]
        for band in range(_BANDS):
            order = np.argsort(self.bands[:, band], kind="stable")
            keys, wanted = self.bands[order, band], there.bands[:, band]
            begin, end = (np.searchsorted(keys, wanted, side) for side in ("left", "right"))
            for place in range(_LEADERS):
                second = np.flatnonzero(begin + place < end)
                if not len(second):
                    break
                first = order[begin[second] + place]
                kept = first < second if within else slice(None)
                codes.append(np.unique(first[kept] * len(there.sets) + second[kept]))
        for part in _pieces(np.unique(np.concatenate(codes))):
            yield part // len(there.sets), part % len(there.sets)


def jaccard(
    sets: Sequence[Shingles],
    first: NDArray[np.int64],
    others: Sequence[Shingles],
    second: NDArray[np.int64],
) -> NDArray[np.float64]:
    """(P,) share of the shingles of either set that are in both, for each of P pairs.

    >>> one, two = np.array([1, 2, 3], np.uint64), np.array([2, 3, 4], np.uint64)
    >>> jaccard([one], np.array([0]), [two], np.array([0]))
    array([0.5])
    """
    from scipy.sparse import csr_array

    here, i = np.unique(first, return_inverse=True)
    there, j = np.unique(second, return_inverse=True)
    chosen = [sets[place] for place in here] + [others[place] for place in there]
    if not chosen:
        return np.empty(0)
    sizes = np.array([len(one) for one in chosen])
    columns = np.unique(np.concatenate(chosen), return_inverse=True)[1]
    table = csr_array(
        (np.ones(len(columns), np.int32), columns, np.concatenate(([0], np.cumsum(sizes)))),
        shape=(len(chosen), int(columns.max(initial=0)) + 1),
    )
    j = j + len(here)
    both = [
        np.asarray(table[i[part]].multiply(table[j[part]]).sum(axis=1)).ravel()
        for part in _pieces(np.arange(len(first)))
    ]
    shared = np.concatenate(both)
    found: NDArray[np.float64] = shared / (sizes[i] + sizes[j] - shared)
    return found


def components(count: int, near: Near) -> NDArray[np.int64]:
    """(count,) which texts are connected, as the smallest index among them.

    >>> components(4, Near(np.array([1]), np.array([3]), np.ones(1))).tolist()
    [0, 1, 2, 1]
    """
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import connected_components

    links = csr_array((np.ones(len(near.first)), (near.first, near.second)), shape=(count, count))
    _, label = connected_components(links, directed=False)
    _, begins = np.unique(label, return_index=True)
    smallest: NDArray[np.int64] = begins[label]
    return smallest


def _signatures(sets: Sequence[Shingles], seed: int) -> NDArray[np.uint32]:
    """(N, 128) smallest values of each set under as many permutations."""
    from datasketch import MinHash

    halves = [(one & np.uint64(0xFFFFFFFF)).tolist() for one in sets]
    sketches: list[Any] = MinHash.bulk(
        halves, num_perm=_PERMUTATIONS, seed=seed % (1 << 32), hashfunc=int
    )
    values = np.empty((len(sets), _PERMUTATIONS), dtype=np.uint32)
    for row, sketch in enumerate(sketches):
        values[row] = sketch.hashvalues
    return values


def _pieces(values: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    for begin in range(0, len(values), _AT_ONCE):
        yield values[begin : begin + _AT_ONCE]
