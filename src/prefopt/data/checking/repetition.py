"""What occurs more than once, or nearly: comparisons, prompts, and the two sides of a comparison.

What is exactly the same is counted on everything, from digests. What is nearly the same is looked
for in the sample of texts (`similarity.py` says what that means). Of two that resemble each other
a sample has both only by chance, so in a sample these counts are lower bounds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefopt.data.checking.estimates import share
from prefopt.data.checking.facts import Example, Facts, Texts
from prefopt.data.checking.findings import Finding
from prefopt.data.checking.grouping import Indices, Pairs, by_prompt, firsts, numbered
from prefopt.data.checking.similarity import (
    THRESHOLD,
    Index,
    Near,
    Shingler,
    Shingles,
    components,
    jaccard,
    mixed,
)

SIDES = 0.9  # Jaccard similarity of two sides that hardly differ
CROWDED = 0.2  # share of the comparisons that 1 % of the prompts have, worth a note
SHARED = 0.1  # share of the prompts that are in several files, worth a note
FEWEST = 100  # prompts, for a note about how comparisons are spread over them

_SHOWN, _CUT = 5, 240  # pairs of texts that details show, and characters of each


def find(facts: Facts, texts: Texts, *, seed: int = 0, most: int = 20) -> Iterator[Finding]:
    """Findings of the kinds duplicate_pair, crowded_prompt, near_duplicate_prompt,
    near_duplicate_pair and near_identical_sides.

    Args:
        facts: the columns of E comparisons.
        texts: a sample of their texts.
        seed: of MinHash.
        most: rows that a finding names.
    """
    yield from _duplicates(facts, most)
    yield from _crowded(facts, most)
    yield from near_duplicates(facts, texts, seed=seed, most=most)


# -- exactly the same ----------------------------------------------------------------------


def _duplicates(facts: Facts, most: int) -> Iterator[Finding]:
    """Comparisons that say what an earlier one said: the same texts, direction and annotator.

    Votes are judgements of their own unless the same annotator gave them, shown the same way.
    """
    again, before = [], []
    for block in by_prompt(facts.prompt):
        pairs = Pairs(facts, block)
        where = pairs.comparisons
        stated, annotator = facts.stated[where], facts.annotator[where]
        shown = stated & (facts.first[where] != pairs.low)
        same = numbered(
            pairs.prompt, pairs.low, pairs.high, pairs.direction, annotator, stated, shown
        )
        earlier = firsts(same)
        repeated = (earlier < np.arange(len(same))) & ~(stated & (annotator == 0))
        again.append(where[repeated])
        before.append(where[earlier[repeated]])
    found, origin = (np.concatenate([np.empty(0, np.int64), *part]) for part in (again, before))
    if not len(found):
        return
    files = facts.file[facts.row[np.stack([origin, found])]].astype(np.int64)
    across = np.flatnonzero(files[0] != files[1])
    message = f"the same comparison occurs again and counts again: {len(found):,} repetitions"
    if len(across):
        message += f", {len(across):,} of them in another file than the first time"
    yield Finding(
        "duplicate_pair",
        count=len(np.unique(facts.row[found])),
        places=facts.places(found, most),
        message=message,
        details={
            "comparisons": len(found),
            "within_files": len(found) - len(across),
            "across_files": len(across),
            "files": _of_files(facts, files[:, across]),
        },
    )


def _of_files(facts: Facts, files: NDArray[np.int64]) -> list[dict[str, Any]]:
    """Between which files comparisons repeat, the most first."""
    pairs, counts = np.unique(files, axis=1, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:20]
    return [
        {
            "first_in": facts.files[pairs[0, place]],
            "again_in": facts.files[pairs[1, place]],
            "comparisons": int(counts[place]),
        }
        for place in order
    ]


def _crowded(facts: Facts, most: int) -> Iterator[Finding]:
    """Few prompts that have much of the comparisons, or many that are in several files."""
    repeated = np.empty(0, dtype=np.int64)  # comparisons of each prompt that has two or more
    examples = np.empty(0, dtype=np.int64)  # one comparison of each of these
    several = 0  # of them in several files
    for block in by_prompt(facts.prompt):
        prompt = facts.prompt[block]
        begins = np.flatnonzero(np.append(True, prompt[1:] != prompt[:-1]))
        file = facts.file[facts.row[block]]
        lowest, highest = (kind.reduceat(file, begins) for kind in (np.minimum, np.maximum))
        several += int(np.count_nonzero(lowest != highest))
        repeated = np.append(repeated, np.diff(np.append(begins, len(block))))
        examples = np.append(examples, block[begins])
    prompts = len(facts) - int(repeated.sum()) + len(repeated)
    if prompts < FEWEST:
        return
    top = -(-prompts // 100)
    largest = np.argsort(-repeated, kind="stable")[:top]
    held = (int(repeated[largest].sum()) + max(0, top - len(repeated))) / len(facts)
    if held < CROWDED and several < SHARED * prompts:
        return
    busiest = int(repeated.max())
    yield Finding(
        "crowded_prompt",
        count=top if held >= CROWDED else several,
        places=facts.places(examples[largest], most),
        value=held,
        message=(
            f"comparisons are spread unevenly over {prompts:,} prompts: {top:,} of them have "
            f"{100 * held:.0f} % of all comparisons, one alone {busiest:,}; {several:,} prompts "
            "are in more than one file"
        ),
        details={
            "prompts": prompts,
            "repeated": len(repeated),
            "in_several_files": several,
            "top_prompts": top,
            "top_share": held,
            "most_comparisons": busiest,
        },
    )


# -- nearly the same -----------------------------------------------------------------------


@dataclass(frozen=True)
class _Sampled:
    """Examples, each different from all others, and their shingles."""

    examples: Sequence[Example]
    prompt: Sequence[Shingles]
    preferred: Sequence[Shingles]
    dispreferred: Sequence[Shingles]


def near_duplicates(
    facts: Facts, texts: Texts, *, seed: int = 0, most: int = 20
) -> Iterator[Finding]:
    """The findings about texts that are nearly the same; most of the time that `find` takes."""
    if not texts.examples:
        return
    shingles = Shingler()
    sides = ("prompt", "preferred", "dispreferred")
    seen: dict[str, Shingles] = {}
    for example in texts.examples:
        for side in sides:
            text = getattr(example, side)
            if text not in seen:
                seen[text] = shingles(text)
    different: dict[tuple[str, ...], Example] = {}
    for example in texts.examples:
        unordered = sorted((example.preferred, example.dispreferred))
        different.setdefault((example.prompt, *unordered), example)
    kept = list(different.values())
    sampled = _Sampled(kept, *([seen[getattr(one, side)] for one in kept] for side in sides))
    yield from _near_prompts(facts, texts, seen, seed, most)
    yield from _near_pairs(facts, texts, sampled, seed, most)
    yield from _near_sides(facts, texts, seen, most)


def _near_prompts(
    facts: Facts, texts: Texts, seen: Mapping[str, Shingles], seed: int, most: int
) -> Iterator[Finding]:
    firsts_of: dict[str, Example] = {}
    for example in texts.examples:
        firsts_of.setdefault(example.prompt, example)
    prompts = list(firsts_of.values())
    near = Index([seen[example.prompt] for example in prompts], seed=seed).near()
    later = np.flatnonzero(components(len(prompts), near) < np.arange(len(prompts)))
    if not len(later):
        return
    found = {prompts[place].prompt for place in later}
    rows = [example.comparison for example in texts.examples if example.prompt in found]
    yield Finding(
        "near_duplicate_prompt",
        count=len(later),
        places=facts.places(np.array(rows), most),
        message=(
            f"{len(later):,} of {len(prompts):,} prompts{_of_sample(facts, texts)} say nearly what "
            f"an earlier one says: at least {100 * THRESHOLD:.0f} % of their runs of three words "
            "are the same"
        ),
        details={
            "prompts": len(prompts),
            "examples": _shown(facts, prompts, near, "prompt"),
            **_sample(facts, texts),
        },
    )


def _near_pairs(
    facts: Facts, texts: Texts, sampled: _Sampled, seed: int, most: int
) -> Iterator[Finding]:
    """Comparisons whose prompt and whose two sides are nearly those of another one."""
    joined = [
        np.unique(np.concatenate([mixed(prompt), one, other]))
        for prompt, one, other in zip(
            sampled.prompt, sampled.preferred, sampled.dispreferred, strict=True
        )
    ]
    near = Index(joined, seed=seed).near()
    near, turned = _part_by_part(sampled, near)
    count = len(sampled.examples)
    later = np.flatnonzero(components(count, near) < np.arange(count))
    if not len(later):
        return
    rows = np.array([sampled.examples[place].comparison for place in later.tolist()])
    opposite = int(turned.sum())
    message = (
        f"{len(later):,} of {count:,} comparisons{_of_sample(facts, texts)} are nearly an earlier "
        f"one: of the prompt and of both sides at least {100 * THRESHOLD:.0f} % of the runs of "
        "three words are the same"
    )
    if opposite:
        message += f" ({opposite:,} times the other side is preferred)"
    yield Finding(
        "near_duplicate_pair",
        count=len(later),
        places=facts.places(rows, most),
        message=message,
        details={
            "comparisons": count,
            "other_side_preferred": opposite,
            "examples": _shown(facts, sampled.examples, near, "preferred"),
            **_sample(facts, texts),
        },
    )


def _part_by_part(sampled: _Sampled, near: Near) -> tuple[Near, NDArray[np.bool_]]:
    """Those of which every part is nearly the same, and of which the sides are turned."""
    i, j = near.first, near.second

    def alike(one: Sequence[Shingles], other: Sequence[Shingles]) -> NDArray[np.float64]:
        return jaccard(one, i, other, j)

    better, worse = sampled.preferred, sampled.dispreferred
    straight = np.minimum(alike(better, better), alike(worse, worse))
    crossed = np.minimum(alike(better, worse), alike(worse, better))
    least = np.minimum(alike(sampled.prompt, sampled.prompt), np.maximum(straight, crossed))
    kept = least >= THRESHOLD
    return Near(i, j, least).where(kept), (crossed > straight)[kept]


def _near_sides(
    facts: Facts, texts: Texts, seen: Mapping[str, Shingles], most: int
) -> Iterator[Finding]:
    """Comparisons whose two sides hardly differ."""
    sides = [
        [seen[getattr(example, side)] for example in texts.examples]
        for side in ("preferred", "dispreferred")
    ]
    place = np.arange(len(texts.examples))
    similar = jaccard(sides[0], place, sides[1], place)
    same = np.array([example.preferred == example.dispreferred for example in texts.examples])
    near = (similar >= SIDES) & ~same
    if not near.any():
        return
    rows = np.array([example.comparison for example in texts.examples])
    estimate = share(near, numbered(facts.prompt[rows]))
    yield Finding(
        "near_identical_sides",
        count=int(near.sum()),
        places=facts.places(rows[near], most),
        value=estimate.value,
        interval=None if texts.whole else estimate.ends,
        message=(
            f"the two sides of {int(near.sum()):,} of {len(near):,} comparisons"
            f"{_of_sample(facts, texts)} hardly differ: at least {100 * SIDES:.0f} % of their runs "
            "of three words are the same"
        ),
        details={
            "comparisons": len(near),
            "word_for_word": int((near & (similar == 1)).sum()),
            "examples": [
                {
                    "place": facts.places(rows[[one]], 1)[0].to_dict(),
                    "similarity": float(similar[one]),
                    "preferred": texts.examples[one].preferred[:_CUT],
                    "dispreferred": texts.examples[one].dispreferred[:_CUT],
                }
                for one in np.flatnonzero(near)[:_SHOWN]
            ],
            **_sample(facts, texts),
        },
    )


def _shown(
    facts: Facts, examples: Sequence[Example], near: Near, part: str
) -> list[dict[str, Any]]:
    """Pairs of texts with their similarity, the most alike first."""
    order = np.argsort(-near.similarity, kind="stable")[:_SHOWN]
    shown = []
    for similarity, *pair in zip(
        near.similarity[order], near.first[order], near.second[order], strict=True
    ):
        both = [examples[place] for place in pair]
        where: list[Indices] = [np.array([example.comparison]) for example in both]
        shown.append({
            "similarity": float(similarity),
            "places": [facts.places(one, 1)[0].to_dict() for one in where],
            "texts": [getattr(example, part)[:_CUT] for example in both],
        })  # fmt: skip
    return shown


def _of_sample(facts: Facts, texts: Texts) -> str:
    if texts.whole:
        return ""
    return f" in a sample of {len(texts.examples):,} of {len(facts):,} comparisons"


def _sample(facts: Facts, texts: Texts) -> dict[str, int]:
    return {"sampled": len(texts.examples), "of": len(facts)}
