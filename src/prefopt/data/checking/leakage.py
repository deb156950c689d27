"""Prompts of an evaluation set that are trained on: the same, nearly the same, about the same.

The same prompts are found among all, from digests. For those that are nearly the same the samples
of texts are compared, so of large data only a part is found. That a prompt shares its topic with
training says little: data for the same task always does, and naive decontamination by topic or by
short runs of words throws away much that never leaked. So that is told as a note, with numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from prefopt.data.checking.coverage import Coverage, named
from prefopt.data.checking.facts import Example, Facts, Texts
from prefopt.data.checking.findings import Finding
from prefopt.data.checking.similarity import THRESHOLD, Index, Near, Shingler

_SHOWN, _CUT = 5, 240  # pairs of texts that details show, and characters of each


def find(
    facts: Facts,
    texts: Texts,
    against: tuple[Facts, Texts],
    *,
    coverage: Coverage | None = None,
    seed: int = 0,
    most: int = 20,
) -> Iterator[Finding]:
    """Findings of the kinds leaked_prompt, leaked_near_duplicate and shared_cluster.

    The rows that are named are those of the evaluation set.

    Args:
        facts, texts: of what is trained on.
        against: the same of the evaluation set.
        coverage: the clusters of both, for shared_cluster.
        seed: of MinHash.
        most: rows that a finding names.
    """
    yield from leaked_prompts(facts, against[0], most=most)
    yield from _near_duplicates((facts, texts), against, seed, most)
    if coverage is not None:
        yield from _shared_clusters(coverage)


def leaked_prompts(facts: Facts, against: Facts, *, most: int = 20) -> Iterator[Finding]:
    """Prompts of the evaluation set that are in training too, all of them.

    Args:
        facts: of what is trained on.
        against: of the evaluation set.
        most: rows that the finding names.
    """
    trained, begins = np.unique(facts.prompt, return_index=True)
    asked = np.unique(against.prompt)
    leaked = np.intersect1d(asked, trained, assume_unique=True)
    if not len(leaked):
        return
    found = np.flatnonzero(np.isin(against.prompt, leaked))
    share = len(leaked) / len(asked)
    origins = begins[np.searchsorted(trained, leaked)]
    yield Finding(
        "leaked_prompt",
        count=len(leaked),
        places=against.places(found, most),
        value=share,
        message=(
            f"{len(leaked):,} of {len(asked):,} evaluation prompts ({100 * share:.1f} %) are "
            f"trained on, with {len(found):,} of {len(against):,} comparisons of the evaluation"
        ),
        details={
            "prompts": len(leaked),
            "of": len(asked),
            "comparisons": len(found),
            "in_training": [place.to_dict() for place in facts.places(np.sort(origins), most)],
        },
    )


def _near_duplicates(
    data: tuple[Facts, Texts], against: tuple[Facts, Texts], seed: int, most: int
) -> Iterator[Finding]:
    """Evaluation prompts that say nearly what a prompt of training says, and not the same."""
    (facts, texts), (others, asked) = data, against
    rows = np.array([example.comparison for example in asked.examples], dtype=np.int64)
    trained = np.isin(others.prompt[rows], facts.prompt)
    exact = {asked.examples[place].prompt for place in np.flatnonzero(trained).tolist()}
    here, there = _prompts(texts), _prompts(asked)
    there = [example for example in there if example.prompt not in exact]
    if not here or not there:
        return
    shingles = Shingler()
    train, test = (
        Index([shingles(example.prompt) for example in part], seed=seed) for part in (here, there)
    )
    near = train.near(test)
    leaked = np.unique(near.second)
    if not len(leaked):
        return
    prompts = {there[place].prompt for place in leaked}
    share = len(leaked) / len(_prompts(asked))
    sample = ""
    if not (texts.whole and asked.whole):
        sample = (
            f", in samples of {len(texts.examples):,} and {len(asked.examples):,} comparisons: "
            "there are more"
        )
    yield Finding(
        "leaked_near_duplicate",
        count=len(leaked),
        places=others.places(named(asked.examples, prompts), most),
        value=share,
        message=(
            f"{len(leaked):,} evaluation prompts ({100 * share:.1f} %) say nearly what a prompt of "
            f"training says: at least {100 * THRESHOLD:.0f} % of their runs of three words are the "
            f"same{sample}. Prompts made from one template can be alike without having leaked"
        ),
        details={
            "prompts": len(leaked),
            "whole": texts.whole and asked.whole,
            "examples": _shown(facts, here, others, there, near),
        },
    )


def _shared_clusters(coverage: Coverage) -> Iterator[Finding]:
    """Evaluation prompts about something that is also trained on."""
    data, evaluation = coverage.counts()
    shared = np.flatnonzero((data > 0) & (evaluation > 0))
    if not len(shared):
        return
    prompts = int(evaluation[shared].sum())
    share = prompts / int(evaluation.sum())
    largest = shared[np.argsort(-evaluation[shared], kind="stable")][:20]
    yield Finding(
        "shared_cluster",
        count=prompts,
        value=share,
        message=(
            f"{100 * share:.0f} % of the evaluation prompts are in one of {len(shared)} clusters "
            "of prompts that training has too. A topic in common is no leak, and most of these "
            "will be false alarms; it only means that the evaluation does not measure how well "
            "training carries over to other topics"
        ),
        details={
            "clusters": [
                {
                    "words": coverage.clusters.words(int(cluster)),
                    "prompts": int(data[cluster]),
                    "evaluation_prompts": int(evaluation[cluster]),
                }
                for cluster in largest
            ]
        },
    )


def _prompts(texts: Texts) -> list[Example]:
    """The first example of each prompt."""
    found: dict[str, Example] = {}
    for example in texts.examples:
        found.setdefault(example.prompt, example)
    return list(found.values())


def _shown(
    facts: Facts, here: list[Example], others: Facts, there: list[Example], near: Near
) -> list[dict[str, Any]]:
    """Pairs of prompts with their similarity, the most alike first."""
    order = np.argsort(-near.similarity, kind="stable")[:_SHOWN]
    shown = []
    for place in order:
        one, other = here[near.first[place]], there[near.second[place]]
        rows = (
            facts.places(np.array([one.comparison]), 1)[0],
            others.places(np.array([other.comparison]), 1)[0],
        )
        shown.append({
            "similarity": float(near.similarity[place]),
            "places": [row.to_dict() for row in rows],
            "texts": [one.prompt[:_CUT], other.prompt[:_CUT]],
        })  # fmt: skip
    return shown
