"""Whether data covers what it should: topics, evaluated topics, and the shares of a category.

Each distinct prompt counts once. With an evaluation set the clusters are made of its prompts and
of as many others, so that a topic which only the evaluation has gets a cluster of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from prefopt.data.checking.clusters import Clusters, Embed
from prefopt.data.checking.facts import Example, Facts, Texts
from prefopt.data.checking.findings import Finding

FEWEST = 100  # prompts, or comparisons with a category, for saying that shares are uneven
EVEN_CLUSTERS = 0.6  # entropy of the shares over that of equal shares, below which a note is due
EVEN_CATEGORIES = 0.8
COVERED = 0.25  # of the share that evaluation has, which training should have at the least
LEVEL = 0.05  # of the tests of all clusters together

_BALANCED = 2000  # prompts of the data that take part at least beside those of an evaluation
_LISTED = 20  # clusters that details show


@dataclass(frozen=True)
class Coverage:
    """How prompts are spread over clusters.

    Attributes:
        clusters: what they are.
        data: (N,) the cluster of each distinct prompt of the sample.
        prompts: (N,) these prompts.
        evaluation: (M,) the same of the evaluation set, or nothing.
        evaluation_prompts: (M,)
        whole: whether the sample was everything.
    """

    clusters: Clusters
    data: NDArray[np.int64]
    prompts: Sequence[str]
    evaluation: NDArray[np.int64]
    evaluation_prompts: Sequence[str]
    whole: bool

    def counts(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(k,) distinct prompts of the data and of the evaluation set in each cluster."""
        size = self.clusters.count
        return np.bincount(self.data, minlength=size), np.bincount(self.evaluation, minlength=size)


def measure(
    texts: Texts, against: Texts | None = None, *, seed: int = 0, embed: Embed | None = None
) -> Coverage | None:
    """Find the clusters; None where there are no prompts.

    Args:
        texts: a sample of the data.
        against: a sample of the evaluation set.
        seed: of k-means.
        embed: as for `Clusters.fit`.
    """
    prompts = sorted({example.prompt for example in texts.examples})
    others = sorted({example.prompt for example in against.examples}) if against else []
    if not prompts:
        return None
    size = max(len(others), _BALANCED)
    chosen = prompts
    if others and len(prompts) > size:
        picked = np.random.default_rng(seed).choice(len(prompts), size, replace=False)
        chosen = [prompts[place] for place in picked]
    clusters = Clusters.fit([*chosen, *others], seed=seed, embed=embed)
    return Coverage(
        clusters=clusters,
        data=clusters.of(prompts),
        prompts=prompts,
        evaluation=clusters.of(others),
        evaluation_prompts=others,
        whole=texts.whole and (against is None or against.whole),
    )


def find(
    facts: Facts,
    coverage: Coverage | None,
    against: tuple[Facts, Texts] | None = None,
    *,
    most: int = 20,
) -> Iterator[Finding]:
    """Findings of the kinds uneven_coverage, uncovered_region and uneven_categories.

    Args:
        facts: the columns of the data.
        coverage: what `measure` found for its texts (and those of the evaluation set).
        against: the evaluation set, whose rows are named.
        most: rows that a finding names.
    """
    if coverage is not None:
        yield from _uneven_clusters(coverage)
        if against is not None:
            yield from _uncovered(coverage, *against, most)
    yield from _uneven_categories(facts)


def figures(coverage: Coverage | None) -> dict[str, Any]:
    """What the page draws, as plain JSON.

    Returns:
        `clusters`: objects with `words`, `prompts`, `share`, `evaluation_prompts` and
        `evaluation_share` (null without an evaluation set), the largest first; `evenness`
        (entropy of the shares over that of equal shares) and `effective` (e to the entropy: of
        how many equal clusters it would be that), or null; `prompts`, different ones; `whole`:
        whether that is all of them and no sample.
    """
    if coverage is None:
        return {"clusters": [], "evenness": None, "effective": None, "prompts": 0, "whole": True}
    data, _ = coverage.counts()
    return {
        "clusters": [_described(coverage, cluster) for cluster in range(len(data))],
        "evenness": evenness(data[data > 0]),
        "effective": math.exp(entropy(data)),
        "prompts": len(coverage.prompts),
        "whole": coverage.whole,
    }


def entropy(counts: ArrayLike) -> float:
    """Of the shares, in nats.

    >>> round(entropy([2, 1, 1]), 4), round(1.5 * math.log(2), 4)
    (1.0397, 1.0397)
    """
    numbers = np.asarray(counts, dtype=np.float64)
    shares = numbers[numbers > 0] / max(numbers.sum(), 1)
    return float(-(shares * np.log(shares)).sum() + 0.0)


def evenness(counts: ArrayLike) -> float | None:
    """Entropy of the shares over that of equal shares; None for fewer than two.

    >>> evenness([5, 5]), round(evenness([9, 1]), 3), evenness([4])
    (1.0, 0.469, None)
    """
    size = np.asarray(counts).size
    return entropy(counts) / math.log(size) if size > 1 else None


# -- findings ------------------------------------------------------------------------------


def _uneven_clusters(coverage: Coverage) -> Iterator[Finding]:
    counts, _ = coverage.counts()
    present = counts[counts > 0]
    if len(coverage.prompts) < FEWEST:
        return
    value = evenness(present)
    if value is not None and value >= EVEN_CLUSTERS:
        return
    largest = int(counts.argmax())
    share = counts[largest] / counts.sum()
    about = ", ".join(coverage.clusters.words(largest, 5))
    sample = "" if coverage.whole else " of a sample"
    if value is None:
        message = f"all {len(coverage.prompts):,} prompts{sample} are about the same: {about}"
    else:
        message = (
            f"{len(coverage.prompts):,} prompts{sample} are in {len(present)} clusters as unevenly "
            f"as if there were {math.exp(entropy(present)):.1f} equal ones; {100 * share:.0f} % "
            f"are about: {about}"
        )
    yield Finding(
        "uneven_coverage",
        count=int(counts[largest]),
        value=value,
        message=message,
        details={
            "effective": math.exp(entropy(present)),
            "clusters": [
                _described(coverage, int(cluster))
                for cluster in np.argsort(-counts, kind="stable")[:_LISTED]
            ],
        },
    )


def _uncovered(coverage: Coverage, facts: Facts, texts: Texts, most: int) -> Iterator[Finding]:
    """Clusters of the evaluation set of which training has less than a quarter of the share.

    If training had exactly that quarter, of the n prompts of a cluster a binomial number would be
    training's. A cluster counts if so few are below 5 % probable, Bonferroni over all clusters.
    """
    data, evaluation = coverage.counts()
    asked = np.flatnonzero(evaluation)
    if not len(asked):
        return
    from scipy.stats import binom

    expected = COVERED * data.sum() / (COVERED * data.sum() + evaluation.sum())
    chances = binom.cdf(data[asked], data[asked] + evaluation[asked], expected)
    bare = asked[chances < LEVEL / len(asked)]
    if not len(bare):
        return
    bare = bare[np.argsort(-evaluation[bare], kind="stable")]
    inside = np.isin(coverage.evaluation, bare)
    prompts = {coverage.evaluation_prompts[place] for place in np.flatnonzero(inside).tolist()}
    share = evaluation[bare].sum() / evaluation.sum()
    topics = "; ".join(", ".join(coverage.clusters.words(int(one), 4)) for one in bare[:3])
    sample = "" if coverage.whole else ", counted in samples,"
    yield Finding(
        "uncovered_region",
        count=int(inside.sum()),
        places=facts.places(named(texts.examples, prompts), most),
        value=float(share),
        message=(
            f"{100 * share:.0f} % of the evaluation prompts{sample} are in {len(bare)} clusters of "
            f"which training has less than a quarter of that share, or nothing; about: {topics}"
        ),
        details={"clusters": [_described(coverage, int(one)) for one in bare[:_LISTED]]},
    )


def _uneven_categories(facts: Facts) -> Iterator[Finding]:
    counts = _category_counts(facts)
    value = evenness(list(counts.values()))
    if value is None or value >= EVEN_CATEGORIES or sum(counts.values()) < FEWEST:
        return
    total = sum(counts.values())
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    shares = ", ".join(f"{name} {100 * count / total:.0f} %" for name, count in ordered[:6])
    if len(ordered) > 6:
        shares += f" and {len(ordered) - 6} more"
    yield Finding(
        "uneven_categories",
        count=ordered[0][1],
        value=value,
        message=f"the categories have very different shares of the comparisons: {shares}",
        details={
            "categories": [
                {"category": name, "comparisons": count, "share": count / total}
                for name, count in ordered[:_LISTED]
            ]
        },
    )


def _category_counts(facts: Facts) -> dict[str, int]:
    """Comparisons of each category that occurs; those without one are left out."""
    counts = np.bincount(facts.category, minlength=len(facts.categories))
    return {
        name: count
        for name, count in list(zip(facts.categories, counts.tolist(), strict=True))[1:]
        if count
    }


def _described(coverage: Coverage, cluster: int) -> dict[str, Any]:
    data, evaluation = coverage.counts()
    held = bool(len(evaluation)) and evaluation.sum() > 0
    return {
        "words": coverage.clusters.words(cluster),
        "prompts": int(data[cluster]),
        "share": float(data[cluster] / data.sum()),
        "evaluation_prompts": int(evaluation[cluster]) if held else None,
        "evaluation_share": float(evaluation[cluster] / evaluation.sum()) if held else None,
    }


def named(examples: Sequence[Example], prompts: set[str]) -> NDArray[np.int64]:
    """(n,) comparisons of the sample that have one of these prompts."""
    return np.array(
        [example.comparison for example in examples if example.prompt in prompts], dtype=np.int64
    )
