"""The table of rules by which votes become comparisons, and where they disagree.

Social choice has many rules and no best one: where annotators want different things, the rule
decides what the policy will learn (Conitzer et al. 2024, arXiv:2404.10271). So it always has a
name, and `compare` shows what the others would have said.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from prefopt.data.aggregation.bradley_terry import bradley_terry
from prefopt.data.aggregation.dawid_skene import dawid_skene
from prefopt.data.aggregation.rao_kupper import rao_kupper
from prefopt.data.aggregation.reliability import reliability
from prefopt.data.aggregation.shares import borda, copeland, majority, maximin, smoothed
from prefopt.data.aggregation.table import Aggregate, Floats, Votes, place
from prefopt.errors import DataError, RecipeError

Method = Literal[
    "smoothed", "majority", "dawid-skene", "bradley-terry", "reliability", "rao-kupper",
    "borda", "copeland", "maximin",
]  # fmt: skip
Over = Literal["prompts", "sources"]


@dataclass(frozen=True)
class Rule:
    """A rule, when to use it, and whether sources can be compared by it."""

    run: Callable[..., Aggregate]
    use: str
    pooled: bool = True

    @property
    def options(self) -> frozenset[str]:
        """What it can be told."""
        return frozenset(inspect.signature(self.run).parameters) - {"votes"}


RULES: Mapping[Method, Rule] = {
    "smoothed": Rule(smoothed, "few votes a pair, annotators alike: the share of the votes"),
    "majority": Rule(majority, "an order, not a probability: what most said"),
    "dawid-skene": Rule(
        dawid_skene, "annotators who differ in how reliable they are", pooled=False
    ),
    "bradley-terry": Rule(bradley_terry, "many options a prompt, or sources to be ranked"),
    "reliability": Rule(reliability, "the same, with annotators who differ in reliability"),
    "rao-kupper": Rule(rao_kupper, "the same as bradley-terry, with many votes for a tie"),
    "borda": Rule(borda, "an order by the mean share: what plain DPO on pooled votes learns"),
    "copeland": Rule(copeland, "an order by majorities won: the Condorcet winner, if any, is best"),
    "maximin": Rule(maximin, "an order by the worst comparison: nothing beats the best by much"),
}

#: rules that need no ridge where sources are compared: their likelihood has a maximum then
_PLAIN_OVER_SOURCES = {"bradley-terry", "rao-kupper"}


def aggregate(
    votes: Votes,
    method: Method = "smoothed",
    *,
    over: Over = "prompts",
    **options: float | None,
) -> Aggregate:
    """What a rule makes of votes.

    Args:
        votes: as they were read; with `over` sources they are pooled here.
        method: a key of RULES.
        over: whether completions of each prompt are compared, or their sources over all prompts.
        options: of the rule; None leaves its default. The ridge of `bradley-terry` and
            `rao-kupper` over sources is 0 unless it is given: the maximum of the likelihood.

    Raises:
        RecipeError: there is no such rule, it has no such option, or it cannot compare sources:
            over all prompts no one side of a pair is the true one.
        DataError: the votes do not determine what it asks for.
    """
    if method not in RULES:
        raise RecipeError(
            "unknown rule", field="method", value=method, remedy=f"one of {', '.join(RULES)}"
        )
    rule = RULES[method]
    given = {name: value for name, value in options.items() if value is not None}
    for name, value in given.items():
        if name not in rule.options:
            knowing = [other for other, row in RULES.items() if name in row.options]
            raise RecipeError(
                f"the rule {method} has no {name}, so this would have no effect",
                field=name,
                value=value,
                remedy=f"leave it out, or use {' or '.join(knowing) or 'another rule'}",
            )
    if over == "sources" and not rule.pooled:
        raise RecipeError(
            f"the rule {method} asks which side of a pair is the true one, and over all prompts "
            "none is",
            field="method",
            value=method,
            remedy="use reliability or bradley-terry, or aggregate over prompts",
        )
    if over == "sources" and method in _PLAIN_OVER_SOURCES:
        given.setdefault("ridge", 0.0)
    asked = votes.over_sources() if over == "sources" else votes
    if not len(asked):
        raise DataError("there are no votes to aggregate", kind="too_few_votes")
    return rule.run(asked, **given)


# -- where rules disagree ------------------------------------------------------------------


def compare(
    votes: Votes, chosen: Aggregate, *, over: Over = "prompts", most: int = 50, **options: Any
) -> dict[str, Any]:
    """What every rule says, and where it is another thing than the chosen one says.

    Args:
        votes: as they were read.
        chosen: what the rule that is used made of them.
        over: what it was asked about.
        most: disagreements and questions listed.
        options: of any rule, given to those that have them.

    Returns:
        `rules` (for each: on how many pairs it is for the other side than the chosen one, and how
        many ties it has; or why it does not apply), `disagreements` (pairs on which rules are for
        different sides, with the probability that each gives; a tie is for neither),
        `disagreement_count` (how many there are), `best` (questions where a rule has other best
        options than the chosen one, and no common ones, with those of each rule), `best_count`.
    """
    pool = votes.over_sources() if over == "sources" else votes
    said: dict[str, Aggregate] = {chosen.method: chosen}
    rules: dict[str, dict[str, Any]] = {}
    for method, rule in RULES.items():
        if method != chosen.method:
            known = {name: value for name, value in options.items() if name in rule.options}
            try:
                said[method] = aggregate(votes, method, over=over, **known)
            except (DataError, RecipeError) as error:
                rules[method] = {"refused": error.message}
                continue
        sides = np.sign(said[method].probability - 0.5)
        differs = int((sides * np.sign(chosen.probability - 0.5) < 0).sum())
        rules[method] = {"differs": differs, "ties": int((sides == 0).sum())}
    sides = np.stack([np.sign(part.probability - 0.5) for part in said.values()])
    apart = np.flatnonzero((sides > 0).any(axis=0) & (sides < 0).any(axis=0))
    best = {method: best_options(pool, part) for method, part in said.items()}
    contested = _contested(pool, best[chosen.method], best.values())
    return {
        "rules": rules,
        "disagreement_count": len(apart),
        "disagreements": [
            {**place(pool, int(item)),
             "says": {name: float(part.probability[item]) for name, part in said.items()}}
            for item in apart[:most]
        ],
        "best_count": len(contested),
        "best": [_best_of(pool, best, int(question)) for question in contested[:most]],
    }  # fmt: skip


def best_options(votes: Votes, aggregate: Aggregate) -> NDArray[np.bool_]:
    """(O,) the options that nothing in their question is above.

    By the rule's scores; for a rule that only compares pairs, those that lose to nothing and
    were compared with every other option that has votes (weak Condorcet winners): in a cycle
    there are none.
    """
    if aggregate.scores is not None:
        highest = np.full(int(votes.question.max()) + 1, -np.inf)
        known = np.where(votes.voted, aggregate.scores, -np.inf)
        np.maximum.at(highest, votes.question, known)
        return np.asarray(votes.voted & (known >= highest[votes.question] - 1e-9))
    items = votes.items
    count = np.bincount(votes.question[votes.voted], minlength=int(votes.question.max()) + 1)
    unbeaten = _unbeaten(votes, aggregate.probability)
    return np.asarray(votes.voted & (unbeaten == count[votes.question] - 1) & (len(items) > 0))


def _contested(
    votes: Votes, chosen: NDArray[np.bool_], others: Iterable[NDArray[np.bool_]]
) -> NDArray[np.int64]:
    """Questions for which there are best options, and others by another rule."""
    size = int(votes.question.max()) + 1

    def has(options: NDArray[np.bool_]) -> NDArray[np.bool_]:
        return np.bincount(votes.question[options], minlength=size) > 0

    found = np.zeros(size, dtype=bool)
    for other in others:
        found |= has(chosen) & has(other) & ~has(chosen & other)
    return np.flatnonzero(found)


def _unbeaten(votes: Votes, probability: Floats) -> NDArray[np.int64]:
    """(O,) how many options each does not lose to."""
    low, high = votes.items.low, votes.items.high
    return np.bincount(
        np.append(low[probability >= 0.5], high[probability <= 0.5]), minlength=votes.options
    )


def _best_of(votes: Votes, best: Mapping[str, NDArray[np.bool_]], question: int) -> dict[str, Any]:
    """The best options of a question by each rule: by their sources, else their numbers in it."""
    here = np.flatnonzero(votes.question == question)
    sources = [votes.sources[code] if code >= 0 else None for code in votes.source[here]]
    named = all(sources) and len(set(sources)) == len(sources)
    return {
        "question": votes.questions[question],
        "best": {
            rule: [sources[i] if named else int(i) for i in np.flatnonzero(part[here])]
            for rule, part in best.items()
        },
    }
