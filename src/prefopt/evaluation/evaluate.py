"""Policies side by side: from matches to the answer that `prefopt evaluate` gives."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from itertools import combinations
from typing import Any

from prefopt.errors import DataError, RecipeError
from prefopt.evaluation.comparing import by_category, check_columns, compared
from prefopt.evaluation.matches import Match, between
from prefopt.evaluation.paired import by_prompt, paired
from prefopt.evaluation.ranking import rank
from prefopt.records import prompt_key


def evaluate(
    matches: Sequence[Match],
    *,
    baseline: str | None = None,
    by: Sequence[str] = (),
    against: Sequence[Match] = (),
    seed: int = 0,
) -> dict[str, Any]:
    """Everything that some matches say.

    Args:
        matches: between any policies.
        baseline: against whom the others are tested in pairs.
        by: columns for a breakdown.
        against: matches of another run, judged on the same prompts.
        seed: of everything that is drawn.

    Returns:
        `comparisons` (one for every two policies that met: `policy`, `baseline`, what `compared`
        says, and `categories`), `ranking` (None with two policies), `unranked` (why there is none
        of more), `paired` (policies that met the baseline on the same prompts) and `against`.

    Raises:
        RecipeError: nobody met the baseline, or no match has a column of `by`.
        DataError: `against` has no prompt or no policy in common with the matches.
    """
    check_columns((match.columns for match in matches), by)
    met = list(dict.fromkeys((match.first, match.second) for match in matches))
    met = [pair for i, pair in enumerate(met) if pair[::-1] not in met[:i]]
    if baseline is not None:
        if not any(baseline in pair for pair in met):
            raise RecipeError(
                "no policy has the name of the baseline", field="baseline", value=baseline,
                remedy=f"choose {', '.join(dict.fromkeys(name for pair in met for name in pair))}",
            )  # fmt: skip
        met = [pair[::-1] if pair[0] == baseline else pair for pair in met]
    comparisons = []
    for first, second in met:
        here = between(matches, first, second)
        comparisons.append({
            "policy": first, "baseline": second, **compared(here, seed=seed),
            "categories": by_category(here, by, seed=seed),
        })  # fmt: skip
    ranking, unranked = _ranking(matches, seed)
    return {
        "comparisons": comparisons,
        "ranking": ranking,
        "unranked": unranked,
        "paired": [] if baseline is None else _paired(matches, met, baseline, seed),
        "against": _against(matches, against, met, seed) if against else [],
    }


def values_on_prompts(matches: Sequence[Match], first: str, second: str) -> dict[Hashable, float]:
    """On each prompt, how often the first of two policies was the better one, ties half."""
    here = between(matches, first, second)
    return by_prompt((m.value for m in here), (prompt_key(m.prompt) for m in here))


def _ranking(matches: Sequence[Match], seed: int) -> tuple[dict[str, Any] | None, str | None]:
    results = [(m.first, m.second, m.value, prompt_key(m.prompt))
               for m in matches if m.value is not None]  # fmt: skip
    if len({name for first, second, *_ in results for name in (first, second)}) < 3:
        return None, None
    try:
        return rank(results, seed=seed).to_dict(), None
    except DataError as error:
        return None, error.message


def _paired(
    matches: Sequence[Match], met: Sequence[tuple[str, str]], baseline: str, seed: int
) -> list[dict[str, Any]]:
    """Every two policies that met the baseline, on the prompts that both answered."""
    rows = []
    rivals = [first for first, second in met if second == baseline]
    for one, other in combinations(rivals, 2):
        sides = [values_on_prompts(matches, rival, baseline) for rival in (one, other)]
        if set(sides[0]) & set(sides[1]):
            found = paired(sides[0], sides[1], seed=seed).to_dict()
            rows.append({"policy": one, "other": other, "baseline": baseline, **found})
    return rows


def _against(
    matches: Sequence[Match],
    others: Sequence[Match],
    met: Sequence[tuple[str, str]],
    seed: int,
) -> list[dict[str, Any]]:
    """These matches and those of another run, prompt by prompt.

    Two runs with one pair each are compared whatever the policies are called: a run before and
    a run after. Otherwise policies and baselines must have the same names.
    """
    theirs = list(dict.fromkeys((match.first, match.second) for match in others))
    alone = len(met) == 1 and len(theirs) == 1
    rows = []
    for pair in met:
        other = pair
        if alone:
            other = theirs[0][::-1] if theirs[0][0] == pair[1] else theirs[0]
        before = values_on_prompts(others, *other)
        if not before:
            continue
        found = paired(values_on_prompts(matches, *pair), before, seed=seed).to_dict()
        rows.append({"policy": pair[0], "baseline": pair[1], "other": other[0],
                     "other_baseline": other[1], **found})  # fmt: skip
    if not rows:
        raise DataError(
            "the other run has no match of policies that these have",
            kind="prompt_mismatch", field="against",
            value="; ".join(f"{first} – {second}" for first, second in theirs),
            remedy="compare runs of the same policies, or one pair of policies each",
        )  # fmt: skip
    return rows
