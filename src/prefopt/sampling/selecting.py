"""From scored completions of a prompt to comparisons: which are kept, and which are paired.

Nothing depends on the order of the completions. A tie is no comparison; where one of several
equals has to be taken, chance takes it, by the seed, the prompt and the texts.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Literal

import numpy as np

from prefopt.errors import DataError, RecipeError
from prefopt.records import Comparison, Group
from prefopt.sampling.rejection import accepted

Keep = Literal["all", "top_k", "rso"]
Pairs = Literal["best_worst", "all", "random"]
Ties = Literal["random", "drop"]

#: name of a rule -> which candidates, and which pairs of them
RULES: Mapping[str, tuple[Keep, Pairs]] = {
    "best_worst": ("all", "best_worst"),
    "all_pairs": ("all", "all"),
    "top_k": ("top_k", "all"),
    "rso": ("rso", "random"),
}


@dataclass(frozen=True, slots=True)
class Selection:
    """How comparisons are made of scores.

    Attributes:
        keep: candidates: `all`, the `top_k` best, or k by statistical rejection sampling (`rso`).
        k: how many of them, for the latter two.
        beta: of `rso`: 0 is top_k, infinity any k.
        pairs: of the candidates: the `best_worst`, `all` that differ, or each in one pair at most,
            drawn at `random` (the first round of a tournament, as RSO has it).
        margin: smallest difference of scores, in the judge's unit; a tie is never a comparison.
        ties: several best (or worst, or last of the k) ones: one at `random`, or `drop` the prompt.
        seed: of everything that is left to chance.

    Raises:
        RecipeError: a value out of range, or without effect.
    """

    keep: Keep = "all"
    k: int | None = None
    beta: float | None = None
    pairs: Pairs = "best_worst"
    margin: float = 0.0
    ties: Ties = "random"
    seed: int = 0

    def __post_init__(self) -> None:
        rules = (
            ("k", self.k is None, self.keep == "all", "goes with keep: top_k or rso, and only so"),
            ("beta", self.beta is None, self.keep != "rso", "goes with keep: rso, and only so"),
        )
        for name, absent, unused, rule in rules:
            if absent != unused:
                raise RecipeError(rule, field=name, value=getattr(self, name))
        limits = (
            ("k", self.k is None or self.k >= 2, "must be at least 2, to be compared"),
            ("beta", self.beta is None or self.beta >= 0.0, "must be 0 or more"),
            ("margin", 0.0 <= self.margin < math.inf, "must be 0 or more"),
        )
        for name, holds, rule in limits:
            if not holds:
                raise RecipeError(rule, field=name, value=getattr(self, name))


@dataclass(frozen=True, slots=True)
class Pair:
    """A comparison by positions of completions, and how far apart their scores are."""

    better: int
    worse: int
    margin: float


@dataclass(frozen=True, slots=True)
class Selected:
    """What came of one prompt.

    Attributes:
        pairs: the comparisons.
        left_out: completions by reason (`unscored`, `duplicate`), pairs (`tied`, `margin`), and
            the prompt itself (`too_few` candidates, `tied_ends`).
    """

    pairs: tuple[Pair, ...]
    left_out: Counter[str]


def select(group: Group, how: Selection) -> Selected:
    """The comparisons of one prompt's completions by their `score`.

    Of equal texts with equal scores one is a candidate, but in rejection sampling, which needs
    them as they were sampled; there only the pairs are of different texts.

    Raises:
        DataError: a score is not a finite number.

    >>> from prefopt.records import Completion
    >>> group = Group("1 + 1 =", tuple(Completion(t, s) for t, s in [("3", 0.0), ("2", 1.0)]))
    >>> select(group, Selection()).pairs
    (Pair(better=1, worse=0, margin=1.0),)
    """
    left_out: Counter[str] = Counter()
    random = _random(group, how.seed)
    scored = [i for i, c in enumerate(group.completions) if c.score is not None]
    left_out["unscored"] = len(group.completions) - len(scored)
    # A fixed order of the contents, then chance: the order that they came in is forgotten.
    texts = [completion.text for completion in group.completions]
    scores = [_finite(group, completion.score) for completion in group.completions]
    pool = sorted(scored, key=lambda i: (texts[i], scores[i]))
    if how.keep != "rso":
        distinct = list({(texts[i], scores[i]): i for i in reversed(pool)}.values())
        left_out["duplicate"] = len(pool) - len(distinct)
        pool = sorted(distinct, key=lambda i: (texts[i], scores[i]))
    if len(pool) < max(2, how.k or 2):
        return _nothing(left_out, "too_few")
    kept = _kept(pool, scores, how, random)
    if kept is None:
        return _nothing(left_out, "tied_ends")
    pairs = _PAIRINGS[how.pairs](kept, scores, how, random)
    if pairs is None:
        return _nothing(left_out, "tied_ends")
    found, seen = [], set()
    for one, other in pairs:
        better, worse = (one, other) if scores[one] > scores[other] else (other, one)
        margin = scores[better] - scores[worse]
        contents = (texts[better], texts[worse])
        if texts[better] == texts[worse] or contents in seen:
            left_out["duplicate"] += 1
        elif margin == 0.0:
            left_out["tied"] += 1
        elif margin < how.margin:
            left_out["margin"] += 1
        else:
            seen.add(contents)
            found.append(Pair(better, worse, margin))
    return Selected(tuple(found), +left_out)


def select_all(
    groups: Iterable[Group], how: Selection, left_out: Counter[str] | None = None
) -> Iterator[Group]:
    """Groups with their comparisons; prompts without any are left out and counted as `no_pair`.

    Args:
        groups: with scores; comparisons that they have are replaced.
        how: to make them.
        left_out: counts what is not used, by reason.
    """
    for group in groups:
        selected = select(group, how)
        if left_out is not None:
            left_out.update(selected.left_out)
            left_out.update(["no_pair"] if not selected.pairs else [])
        if selected.pairs:
            edges = tuple(Comparison(pair.better, pair.worse) for pair in selected.pairs)
            yield replace(group, comparisons=edges, votes=())


def select_pairs(
    groups: Iterable[Group],
    *,
    rule: str,
    margin: float = 0.0,
    k: int = 2,
    beta: float = 0.5,
    seed: int = 0,
) -> tuple[list[Group], dict[str, int]]:
    """`select_all` by one of four named rules, as recipes have them.

    Args:
        groups: with scores.
        rule: `best_worst`; `all_pairs`; `top_k`, all pairs of the k best; `rso`, k by rejection
            sampling, each in one pair at most.
        margin, seed: as in `Selection`.
        k, beta: of the rules that keep some; the others do not read them.

    Returns:
        The groups that have comparisons, and what was left out, by reason.

    Raises:
        RecipeError: no such rule, or a value out of range.
    """
    if rule not in RULES:
        raise RecipeError("is no rule", field="rule", value=rule, remedy=f"one of {list(RULES)}")
    keep, pairs = RULES[rule]
    how = Selection(
        keep,
        None if keep == "all" else k,
        beta if keep == "rso" else None,
        pairs,
        margin,
        seed=seed,
    )
    left_out: Counter[str] = Counter()
    return list(select_all(groups, how, left_out)), dict(left_out)


# -- which candidates ----------------------------------------------------------------------


def _kept(
    pool: list[int], scores: Sequence[float], how: Selection, random: np.random.Generator
) -> list[int] | None:
    """The candidates; None where a tie would have to be broken and may not be."""
    if how.k is None:
        return pool
    if how.keep == "rso":
        assert how.beta is not None
        places = accepted([scores[i] for i in pool], how.k, beta=how.beta, random=random)
        return [pool[place] for place in places]
    ranked = _ranked(pool, scores, random)
    cut = len(ranked) > how.k and scores[ranked[how.k - 1]] == scores[ranked[how.k]]
    return None if cut and how.ties == "drop" else ranked[: how.k]


def _ranked(pool: Sequence[int], scores: Sequence[float], random: np.random.Generator) -> list[int]:
    """Best first, equals in an order of chance."""
    shuffled = [pool[place] for place in random.permutation(len(pool))]
    return sorted(shuffled, key=lambda i: -scores[i])


# -- which pairs ---------------------------------------------------------------------------


def _best_worst(
    kept: list[int], scores: Sequence[float], how: Selection, random: np.random.Generator
) -> list[tuple[int, int]] | None:
    ranked = _ranked(kept, scores, random)
    best, worst = scores[ranked[0]], scores[ranked[-1]]
    ends = [sum(scores[i] == end for i in kept) for end in (best, worst)]
    if how.ties == "drop" and best > worst and max(ends) > 1:
        return None
    return [(ranked[0], ranked[-1])]


def _all(
    kept: list[int], scores: Sequence[float], how: Selection, random: np.random.Generator
) -> list[tuple[int, int]]:
    return list(combinations(kept, 2))


def _first_round(
    kept: list[int], scores: Sequence[float], how: Selection, random: np.random.Generator
) -> list[tuple[int, int]]:
    order = [kept[place] for place in random.permutation(len(kept))]
    return list(zip(order[::2], order[1::2], strict=False))


_PAIRINGS = {"best_worst": _best_worst, "all": _all, "random": _first_round}


def _nothing(left_out: Counter[str], reason: str) -> Selected:
    left_out[reason] += 1
    return Selected((), +left_out)


def _finite(group: Group, score: float | None) -> float:
    if score is not None and not math.isfinite(score):
        place = group.origins[0] if group.origins else None
        raise DataError(
            f"a score is {score}, which no other can be compared with",
            kind="out_of_range",
            file=place.file if place else None,
            row=place.row if place else None,
            field="score",
            value=group.prompt_text,
            remedy="remove the score: completions without one are left out, and counted",
        )
    return 0.0 if score is None else score


def _random(group: Group, seed: int) -> np.random.Generator:
    """Chance that belongs to a seed, a prompt and its texts in any order."""
    digest = hashlib.blake2b(f"{seed}:".encode() + group.prompt_key, digest_size=16)
    for text in sorted(completion.text for completion in group.completions):
        digest.update(text.encode("utf-8", "surrogatepass") + b"\0")
    key = int.from_bytes(digest.digest(), "little")
    return np.random.Generator(np.random.Philox(key=key))
