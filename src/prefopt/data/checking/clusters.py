"""What prompts are about: clusters of prompts that share their words, and which clusters there are.

TF-IDF of the words (or embeddings, if somebody gives them), reduced to 100 dimensions (latent
semantic analysis), then k-means. The same prompts give the same clusters, in whatever order they
come.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefopt.data.checking.similarity import words

#: texts to (N, D) numbers: anything that puts texts about the same thing close together
Embed = Callable[[Sequence[str]], NDArray[np.floating[Any]]]

MOST = 100  # clusters, unless more are asked for
FITTED = 20_000  # prompts that clusters are made of; if there are more, as many are drawn
SAME = 0.5  # cosine of the centres of clusters that are one

_DIMENSIONS = 100
_VOCABULARY = 30_000
_OFTEN = 0.5  # share of the prompts that have a word, from which on it tells nothing
_FEW = 20  # prompts, of which too little is known to say which words are in most
_LISTED = 12  # words of a cluster that are kept
_AT_ONCE = 2048  # prompts turned into numbers at once

Points = NDArray[np.float32]


def usual_count(prompts: int) -> int:
    """How many clusters by default: √(N/2), between 1 and 100.

    >>> [usual_count(prompts) for prompts in (1, 50, 800, 20_000, 10_000_000)]
    [1, 5, 20, 100, 100]
    """
    return max(1, min(MOST, round(math.sqrt(prompts / 2))))


def drawn(texts: Iterable[str], most: int, *, seed: int = 0) -> list[str]:
    """Different texts, sorted: all of them or `most` drawn evenly, in whatever order they come.

    >>> drawn("banana", 9), drawn("banana", 2) == drawn("nab", 2)
    (['a', 'b', 'n'], True)
    """
    key = (seed % (1 << 64)).to_bytes(8, "little")
    kept: dict[bytes, str] = {}
    last = b"\xff" * 9  # beyond every digest
    for text in texts:
        digest = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8, key=key).digest()
        if digest < last:
            kept[digest] = text
        if len(kept) > 2 * most:
            last = sorted(kept)[most]
            kept = {digest: text for digest, text in kept.items() if digest < last}
    return sorted(kept[digest] for digest in sorted(kept)[:most])


class Clusters:
    """Prompts that share their words, together. The largest cluster is the first.

    Attributes:
        count: how many clusters there are.
    """

    def __init__(
        self,
        space: _Space,
        centres: Points,
        number: NDArray[np.int64],
        listed: list[list[str]],
    ) -> None:
        self._space = space
        self._centres = centres
        self._number = number  # the cluster of each centre
        self._listed = listed
        self.count = len(listed)

    @classmethod
    def fit(
        cls,
        prompts: Iterable[str],
        *,
        count: int | None = None,
        seed: int = 0,
        embed: Embed | None = None,
    ) -> Clusters:
        """Clusters of these prompts.

        Args:
            prompts: one at least; each counts once, however often it comes. Of more than
                20,000 as many are drawn, and more than twice that are never held.
            count: how many clusters k-means makes (fewer, where there are fewer different
                prompts). By default `usual_count`, of which those are joined that are about the
                same: on average the cosine of their centres is ½ or more.
            seed: of k-means and of that draw.
            embed: what to use in place of TF-IDF.

        Raises:
            ValueError: there are no prompts, or `count` is not positive.
        """
        distinct = drawn(prompts, FITTED, seed=seed)
        if not distinct or (count is not None and count < 1):
            raise ValueError("clusters need a prompt at least, and so does each of them")
        vectors = _Words.fit(distinct)
        space = _Embedded(embed) if embed else _Reduced.fit(vectors, distinct, seed)
        points = _all_points(space, distinct)
        centres = _k_means(points, count or usual_count(len(distinct)), seed)
        joined = _joined(centres) if count is None else np.arange(len(centres))
        labels = joined[_nearest(points, centres)]
        # by size, so that numbers mean something; equal ones by their first prompt
        sizes = np.bincount(labels, minlength=int(joined.max()) + 1)
        begins = np.full(len(sizes), len(labels))
        np.minimum.at(begins, labels, np.arange(len(labels)))
        rank = np.argsort(np.lexsort((begins, -sizes)))
        listed = vectors.telling(distinct, rank[labels], len(sizes))
        return cls(space, centres, rank[joined], listed)

    def of(self, prompts: Sequence[str]) -> NDArray[np.int64]:
        """(N,) the cluster of each prompt, from 0; also of prompts that were not fitted."""
        parts = [np.empty(0, dtype=np.int64)]
        for points in _points(self._space, prompts):
            parts.append(self._number[_nearest(points, self._centres)])
        return np.concatenate(parts)

    def words(self, cluster: int, most: int = 8) -> list[str]:
        """What sets a cluster apart: words that are more frequent in it than elsewhere."""
        return self._listed[cluster][:most]


# -- texts to numbers ----------------------------------------------------------------------


@dataclass(frozen=True)
class _Words:
    """TF-IDF of words; `vectorizer` is None where the prompts have none that tell anything."""

    vectorizer: Any

    @classmethod
    def fit(cls, prompts: Sequence[str]) -> _Words:
        from sklearn.feature_extraction.text import TfidfVectorizer

        for often in (_OFTEN, 1.0) if len(prompts) >= _FEW else (1.0,):
            vectorizer = TfidfVectorizer(
                analyzer=_telling_words,
                sublinear_tf=True,
                max_df=often,
                max_features=_VOCABULARY,
                dtype=np.float32,
            )
            try:
                return cls(vectorizer.fit(prompts))
            except ValueError:  # no word is left
                continue
        return cls(None)

    def of(self, prompts: Sequence[str]) -> Any:
        """(N, V) sparse rows of length one, or of zeros."""
        return self.vectorizer.transform(prompts)

    def telling(
        self, prompts: Sequence[str], labels: NDArray[np.int64], count: int
    ) -> list[list[str]]:
        """Of each cluster the words whose mean weight is furthest above that of all prompts."""
        if self.vectorizer is None:
            return [[] for _ in range(count)]
        rows = self.of(prompts)
        names = self.vectorizer.get_feature_names_out()
        usual = np.asarray(rows.mean(axis=0)).ravel()
        listed: list[list[str]] = []
        for cluster in range(count):
            inside = np.flatnonzero(labels == cluster)
            if not len(inside):
                listed.append([])
                continue
            above = np.asarray(rows[inside].mean(axis=0)).ravel()
            if len(inside) < len(prompts):
                above = above - usual
            order = np.lexsort((names, -above))[:_LISTED]
            listed.append([str(names[place]) for place in order if above[place] > 0])
        return listed


def _telling_words(text: str) -> list[str]:
    """Its words without those that English needs everywhere, and without single letters."""
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    return [
        word
        for word in words(text)
        if word not in ENGLISH_STOP_WORDS and (len(word) > 1 or not word.isascii())
    ]


class _Reduced:
    """TF-IDF on its strongest directions, each text of length one."""

    def __init__(self, vectors: _Words, directions: NDArray[np.float32] | None) -> None:
        self._vectors = vectors
        self._directions = directions

    @classmethod
    def fit(cls, vectors: _Words, prompts: Sequence[str], seed: int) -> _Reduced:
        if vectors.vectorizer is None:
            return cls(vectors, None)
        rows = vectors.of(prompts)
        if min(rows.shape) <= _DIMENSIONS:
            return cls(vectors, None if rows.shape[1] <= _DIMENSIONS else _basis(rows))
        from sklearn.utils.extmath import randomized_svd

        _, _, directions = randomized_svd(rows, _DIMENSIONS, random_state=seed % (1 << 32))
        return cls(vectors, directions.T.astype(np.float32))

    def __call__(self, prompts: Sequence[str]) -> Points:
        if self._vectors.vectorizer is None:
            return np.zeros((len(prompts), 1), dtype=np.float32)
        rows = self._vectors.of(prompts)
        points = rows.toarray() if self._directions is None else rows @ self._directions
        return _unit(np.asarray(points, dtype=np.float32))


def _basis(rows: Any) -> NDArray[np.float32]:
    """An orthonormal basis of what a few rows span: nothing is lost."""
    left, sizes, _ = np.linalg.svd((rows @ rows.T).toarray().astype(np.float64))
    kept = sizes > 1e-9 * sizes[0]
    basis: NDArray[np.float32] = (rows.T @ (left[:, kept] / np.sqrt(sizes[kept]))).astype(
        np.float32
    )
    return basis


class _Embedded:
    """What somebody else made of the texts, each of length one."""

    def __init__(self, embed: Embed) -> None:
        self._embed = embed

    def __call__(self, prompts: Sequence[str]) -> Points:
        return _unit(np.asarray(self._embed(prompts), dtype=np.float32))


_Space = _Reduced | _Embedded


def _unit(points: Points) -> Points:
    lengths: Points = np.linalg.norm(points, axis=1, keepdims=True)
    lengths[lengths == 0] = 1
    return points / lengths


def _points(space: _Space, prompts: Sequence[str]) -> Iterator[Points]:
    for begin in range(0, len(prompts), _AT_ONCE):
        yield space(prompts[begin : begin + _AT_ONCE])


def _all_points(space: _Space, prompts: Sequence[str]) -> Points:
    return np.concatenate(list(_points(space, prompts)))


# -- numbers to clusters -------------------------------------------------------------------


def _k_means(points: Points, count: int, seed: int) -> Points:
    """(k, D) centres, k at most `count`."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    count = min(count, len(np.unique(points.round(4), axis=0)))
    with warnings.catch_warnings():
        # told where fewer points are different than clusters were asked for: then there are fewer
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = KMeans(count, n_init=1, max_iter=100, random_state=seed % (1 << 32)).fit(points)
    centres: Points = model.cluster_centers_.astype(np.float32)
    return centres


def _nearest(points: Points, centres: Points) -> NDArray[np.int64]:
    distances = (centres**2).sum(axis=1) - 2 * points @ centres.T
    nearest: NDArray[np.int64] = distances.argmin(axis=1)
    return nearest


def _joined(centres: Points) -> NDArray[np.int64]:
    """(k,) the same number for centres in the same direction, by average linkage."""
    if len(centres) < 2:
        return np.zeros(len(centres), dtype=np.int64)
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import squareform

    directions = _unit(centres).astype(np.float64)
    distances = np.clip(1 - directions @ directions.T, 0, 2)
    np.fill_diagonal(distances, 0)
    tree = linkage(squareform(distances, checks=False), method="average")
    joined: NDArray[np.int64] = fcluster(tree, 1 - SAME, criterion="distance").astype(np.int64) - 1
    return joined
