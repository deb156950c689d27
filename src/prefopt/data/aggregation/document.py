"""Votes to an answer: what `prefopt aggregate` prints, and the groups that it writes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from prefopt.data.aggregation.annotators import annotator_table, chance_corrected
from prefopt.data.aggregation.bradley_terry import Wins, fit_scores
from prefopt.data.aggregation.reading import Ballots, voted_groups
from prefopt.data.aggregation.rules import Method, Over, aggregate, compare
from prefopt.data.aggregation.table import CHOICES, Aggregate, Floats, Votes
from prefopt.data.aggregation.types import described, fit_types
from prefopt.errors import DataError, RecipeError
from prefopt.records import Comparison, Group

_SAMPLES = 200  # draws of questions for the intervals of scores


def document(
    ballots: Ballots,
    method: Method = "smoothed",
    *,
    over: Over = "prompts",
    comparing: bool = False,
    types: int | None = None,
    seed: int = 0,
    **options: float | None,
) -> tuple[dict[str, Any], Aggregate]:
    """Everything that is known of some votes, and what a rule makes of them.

    Args:
        ballots: the votes.
        method, over, options: as `rules.aggregate` takes them.
        comparing: whether to ask every other rule too.
        types: how many types of annotators to look for.
        seed: of intervals and of where the search for types begins.

    Returns:
        The object that `--json` prints, and what the rule said.

    Raises:
        DataError, RecipeError: as `rules.aggregate` and `types.fit_types`.
    """
    if types is not None and types < 2:
        raise RecipeError(
            "one type is no types", field="types", value=types, remedy="ask for 2 or more"
        )
    votes = ballots.votes
    chosen = aggregate(votes, method, over=over, **options)
    probability = of_questions(votes, chosen, over)
    cast = np.bincount(votes.choice, minlength=len(CHOICES))
    result: dict[str, Any] = {
        "method": method,
        "over": over,
        "rows": ballots.rows,
        "questions": len(np.unique(votes.question[votes.voted])),
        "items": len(votes.items),
        "votes": len(votes),
        "comparisons": int((~np.isnan(probability)).sum()),
        "ties": int((probability == 0.5).sum()),
        **chance_corrected(votes, seed=seed),
        "counts": {**dict(zip(CHOICES, map(int, cast), strict=True)),
                   "unreadable": ballots.unreadable},
        "skipped": dict(ballots.skipped),
        "fit": chosen.details,
        "annotators": annotator_table(votes, chosen.reliability),
    }  # fmt: skip
    if over == "sources":
        result["sources"] = source_table(votes, chosen, seed=seed)
    if comparing:
        given: dict[str, Any] = {
            name: value for name, value in options.items() if value is not None
        }
        result.update(compare(votes, chosen, over=over, **given))
    if types is not None:
        pool = votes.over_sources() if over == "sources" else votes
        result["types"] = described(pool, fit_types(pool, types, seed=seed))
    return result, chosen


def of_questions(votes: Votes, chosen: Aggregate, over: Over) -> Floats:
    """(M,) probabilities of the items as they were read, if the rule was asked about `over`.

    NaN where both completions are of one source, of which sources say nothing.
    """
    if over == "prompts":
        return chosen.probability
    pool, count = votes.over_sources().items, max(len(votes.sources), 1)
    low, high = votes.source[votes.items.low], votes.source[votes.items.high]
    wanted = np.minimum(low, high) * count + np.maximum(low, high)
    keys = pool.low * count + pool.high
    found = np.minimum(np.searchsorted(keys, wanted), max(len(keys) - 1, 0))
    probability = np.where(low < high, chosen.probability[found], 1 - chosen.probability[found])
    return np.where(low == high, np.nan, probability)


def refuse_without_texts(ballots: Ballots) -> None:
    """Refuse votes of which no groups can be made.

    Raises:
        DataError: the rows have no texts.
    """
    if ballots.groups is None:
        raise DataError(
            "the rows have no texts, so they give no comparisons to train on",
            kind="missing_field",
            field="conversation_a",
            remedy="leave out --out, or give rows with the texts that were judged",
        )


def with_comparisons(ballots: Ballots, chosen: Aggregate, over: Over) -> Iterator[Group]:
    """The groups with what the rule says; pairs without votes keep their comparisons.

    Each comparison points from the option that is more probably better; of a tie it does not
    matter from where. `meta.aggregation` names the rule.

    Raises:
        DataError: the rows have no texts, so there are no groups.
    """
    refuse_without_texts(ballots)
    assert ballots.groups is not None
    votes, probability = ballots.votes, of_questions(ballots.votes, chosen, over)
    questions = np.arange(len(votes.questions) + 1)
    bases = np.searchsorted(votes.question, questions)
    ends = np.searchsorted(votes.question[votes.items.low], questions)
    pairs = np.column_stack([votes.items.low, votes.items.high])
    for group, number in voted_groups(ballots.groups):
        if number is None:
            yield group
            continue
        here = slice(ends[number], ends[number + 1])
        local = [(int(a), int(b)) for a, b in pairs[here] - bases[number]]
        kept = [
            edge for edge in group.comparisons
            if tuple(sorted((edge.preferred, edge.dispreferred))) not in set(local)
        ]  # fmt: skip
        made = [
            Comparison(low, high, p) if p >= 0.5 else Comparison(high, low, 1.0 - p)
            for (low, high), p in zip(local, map(float, probability[here]), strict=True)
            if p == p  # NaN: nothing is said of the pair
        ]
        rule = {"method": chosen.method, "over": over}
        yield replace(
            group,
            comparisons=(*kept, *made),
            meta={**group.meta, "aggregation": rule},
        )


def source_table(votes: Votes, chosen: Aggregate, *, seed: int = 0) -> list[dict[str, Any]]:
    """One row a source, the best first.

    Returns:
        Rows of `source`, `votes`, `share` (of its votes that it won, ties half), `score` (the
        rule's, None if it has none) and for `bradley-terry` `interval` (95 %, by drawing
        questions; None where a draw often has no finite scores).
    """
    pool = votes.over_sources()
    items, count = pool.items, len(pool.sources)
    won = np.bincount(items.low, items.wins[:, 0], count)
    won += np.bincount(items.high, items.wins[:, 1], count)
    cast = np.bincount(np.append(items.low, items.high), np.tile(items.total, 2), count)
    with np.errstate(invalid="ignore"):
        share = won / cast
    scores = chosen.scores
    ends = None
    if chosen.method == "bradley-terry":
        ends = _score_intervals(votes, float(chosen.details["ridge"]), seed)
    order = np.lexsort((np.arange(count), -(share if scores is None else scores)))
    return [
        {
            "source": pool.sources[code],
            "votes": int(cast[code]),
            "share": float(share[code]),
            "score": None if scores is None else float(scores[code]),
            "interval": None if ends is None else [float(end) for end in ends[:, code]],
        }
        for code in order
        if cast[code]
    ]


def _score_intervals(votes: Votes, ridge: float, seed: int) -> Floats | None:
    """(2, S) ends of the scores of a Bradley–Terry fit over sources."""
    from scipy import sparse

    pool = votes.over_sources()
    asked = votes.question[votes.first][votes.source[votes.first] != votes.source[votes.second]]
    number, question = np.unique(asked, return_inverse=True)
    items = pool.items
    low = np.where(items.said == len(CHOICES) - 1, 0.5, items.said == 0)
    shape = (len(number), len(items))
    by_question = [
        sparse.coo_array((part, (question, items.of)), shape=shape).tocsr().T.tocsr()
        for part in (low, 1 - low)
    ]
    rng, drawn = np.random.default_rng(seed), []
    start = None
    for _ in range(_SAMPLES):
        times = np.bincount(rng.integers(len(number), size=len(number)), minlength=len(number))
        wins = np.column_stack([part @ times for part in by_question])
        try:
            start = fit_scores(
                Wins.of(items.low, items.high, wins), pool.options, ridge=ridge, start=start
            )
        except DataError:
            continue
        drawn.append(start)
    if len(drawn) < 0.9 * _SAMPLES:
        return None
    return np.asarray(np.quantile(np.stack(drawn), (0.025, 0.975), axis=0))
