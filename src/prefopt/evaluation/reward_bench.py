"""Rewards in RewardBench's way: right only if the chosen completion scores strictly higher.

Lambert et al. 2024 (arXiv:2403.13787): a subset's score is its accuracy, and the whole is the mean
over subsets, however many comparisons each has. A tie is wrong, so a reward that is the same for
everything scores 0 and not one half. Comparisons that are ties themselves have no right answer
and are not counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from prefopt.data.checking.estimates import share
from prefopt.errors import DataError, RecipeError
from prefopt.evaluation.comparing import codes_of, value_of
from prefopt.evaluation.intervals import clustered_bootstrap
from prefopt.judges.judge import Judge, Progress, Question
from prefopt.judges.scoring import preference
from prefopt.records import Comparison, Group


class Columns:
    """Groups as they come, and what their rows have in a column, by where they were read.

    Tokens know the place of their row and nothing else of it.
    """

    def __init__(self, groups: Iterable[Group], column: str) -> None:
        self._groups = groups
        self._column = column
        self._values: dict[tuple[str | None, int | None], str] = {}

    def __iter__(self) -> Iterator[Group]:
        for group in self._groups:
            for origin in group.origins:
                self._values[origin.file, origin.row] = subset_of(group, self._column)
            yield group

    def of(self, row: Mapping[str, Any]) -> str:
        """Of a row of `score_policy`."""
        return self._values.get((row["file"], row["row"]), value_of({}, self._column))


def subset_of(group: Group, column: str) -> str:
    """What a group has in a column; `source` is one."""
    return value_of({"source": group.source, **group.meta}, column)


def strict(rows: Sequence[Mapping[str, Any]], subsets: Sequence[str] | None) -> dict[str, Any]:
    """Accuracies of rows that say whether the better side scored higher.

    Args:
        rows: with `prompt`, `correct` (1, 0, ½ for equal scores), `longer` (the same of lengths),
            and `probability` (½ where the data itself is a tie). `correct` None is unreadable.
        subsets: of each row; None where there are none.

    Returns:
        `strict` (`accuracy`, an estimate with its interval, and `longest`, that of "the longer one
        is better"), `equal` (scores that were), `ties` (of the data, left out), and with subsets
        `subsets` (rows of `subset`, `comparisons`, `accuracy`, `longest`, `equal`) and
        `subset_mean`, `subset_mean_longest`.

    Raises:
        RecipeError: no row is of any subset.
    """
    kept = [(row, subsets[i] if subsets else None) for i, row in enumerate(rows)
            if row["probability"] != 0.5 and row["correct"] is not None]  # fmt: skip
    result: dict[str, Any] = {
        "strict": _accuracies([row for row, _ in kept]),
        "equal": sum(row["correct"] == 0.5 for row, _ in kept),
        "ties": sum(row["probability"] == 0.5 for row in rows),
    }
    if subsets is None:
        return result
    if set(subsets) == {value_of({}, "")}:
        raise RecipeError("no row has this column", field="by", remedy="choose one of the data's")
    parts: dict[str, list[Mapping[str, Any]]] = {}
    for row, subset in kept:
        parts.setdefault(str(subset), []).append(row)
    table = [
        {
            "subset": subset,
            "comparisons": len(parts[subset]),
            **(_accuracies(parts[subset]) or {}),
            "equal": sum(row["correct"] == 0.5 for row in parts[subset]),
        }
        for subset in sorted(parts)
    ]
    result["subsets"] = table
    for name, key in (("subset_mean", "accuracy"), ("subset_mean_longest", "longest")):
        values = [row[key]["value"] for row in table]
        result[name] = float(np.mean(values)) if values else None
    return result


def _accuracies(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    if not rows:
        return None
    codes = codes_of([row["prompt"] for row in rows])
    return {
        name: share([row[key] == 1.0 for row in rows], codes).to_dict()
        for name, key in (("accuracy", "correct"), ("longest", "longer"))
    }


# -- any judge -----------------------------------------------------------------------------


def judge_rows(
    judge: Judge, groups: Iterable[Group], progress: Progress | None = None
) -> tuple[list[dict[str, Any]], list[Group], str]:
    """What a judge says of every comparison of a data set.

    By its scores; a judge that gives none compares the two sides, in the order of their texts.

    Returns:
        Rows with `prompt`, `file`, `row`, `source`, `preferred`, `dispreferred`, `probability`,
        `weight`, `correct` (None if unreadable), `longer` (in characters) and `score_preferred`,
        `score_dispreferred` or `verdict` (probability that the preferred one is better); the
        group of each; and `scores` or `comparisons`: how it was asked.

    Raises:
        DataError: there are no comparisons.
    """
    found = [(group, edge) for group in groups for edge in group.comparisons]
    if not found:
        raise nothing_to_score()
    rows = [_row(group, edge) for group, edge in found]
    how = _by_scores(judge, found, rows, progress) or _by_verdicts(judge, found, rows, progress)
    return rows, [group for group, _ in found], how


def nothing_to_score() -> DataError:
    """The refusal of data without comparisons."""
    return DataError(
        "there are no comparisons to score",
        kind="no_comparisons",
        remedy="give data in which completions of one prompt are compared",
    )


def summary(rows: Sequence[Mapping[str, Any]], *, seed: int = 0) -> dict[str, Any]:
    """Of `judge_rows`: the weighted accuracy in which a tie is half, as `score_policy` has it.

    Returns:
        `comparisons` (that could be read), `unreadable`, `accuracy`, `accuracy_interval`,
        `length_baseline` (of the same comparisons, in characters) and `prompts`.
    """
    read = [row for row in rows if row["correct"] is not None]
    result: dict[str, Any] = {
        "comparisons": len(read), "unreadable": len(rows) - len(read), "accuracy": None,
        "accuracy_interval": None, "length_baseline": None, "prompts": 0,
    }  # fmt: skip
    weights = [row["weight"] for row in read]
    if sum(weights) == 0:
        return result
    undecided = [row["probability"] == 0.5 for row in read]
    right = [0.5 if tie else row["correct"] for tie, row in zip(undecided, read, strict=True)]
    longer = [0.5 if tie else row["longer"] for tie, row in zip(undecided, read, strict=True)]
    clusters = [row["prompt"] for row in read]
    found = clustered_bootstrap(right, clusters, weights=weights, seed=seed)
    return result | {
        "accuracy": found.mean, "accuracy_interval": list(found.ends),
        "length_baseline": float(np.average(longer, weights=weights)), "prompts": found.clusters,
    }  # fmt: skip


def _by_scores(
    judge: Judge,
    found: Sequence[tuple[Group, Comparison]],
    rows: Sequence[dict[str, Any]],
    progress: Progress | None,
) -> str | None:
    """None of a judge that gives no scores."""
    answers = {
        (group.prompt, group.completions[side].text): None
        for group, edge in found
        for side in (edge.preferred, edge.dispreferred)
    }
    try:
        scores = dict(zip(answers, judge.score_all(list(answers), progress), strict=True))
    except RecipeError as error:
        if error.field != "judge":
            raise
        return None
    for (group, _), row in zip(found, rows, strict=True):
        sides = [scores[group.prompt, group.completions[row[side]].text]
                 for side in ("preferred", "dispreferred")]  # fmt: skip
        row["score_preferred"], row["score_dispreferred"] = sides
        if sides[0] is not None and sides[1] is not None:
            row["correct"] = preference(sides[0] - sides[1])
    return "scores"


def _by_verdicts(
    judge: Judge,
    found: Sequence[tuple[Group, Comparison]],
    rows: Sequence[dict[str, Any]],
    progress: Progress | None,
) -> str:
    questions, turned = [], []
    for (group, _), row in zip(found, rows, strict=True):
        sides = [group.completions[row[side]].text for side in ("preferred", "dispreferred")]
        turned.append(sides[0] > sides[1])  # that the right one is first must tell nothing
        questions.append(Question(group.prompt, *sorted(sides)))
    verdicts = judge.compare_all(questions, progress)
    for row, verdict, swapped in zip(rows, verdicts, turned, strict=True):
        probability = verdict.probability
        if probability is not None:
            probability = 1.0 - probability if swapped else probability
            tie = verdict.order_consistent is False
            row["correct"] = 0.5 if tie else preference(probability - 0.5)
        row["verdict"] = probability
    return "comparisons"


def _row(group: Group, edge: Comparison) -> dict[str, Any]:
    """The better side first; without what the judge says."""
    flipped = edge.probability < 0.5
    better, worse = (
        (edge.dispreferred, edge.preferred) if flipped else (edge.preferred, edge.dispreferred)
    )
    texts = group.completions[better].text, group.completions[worse].text
    origin = group.origins[0] if group.origins else None
    return {
        "prompt": group.prompt_key.hex(),
        "file": origin.file if origin else None,
        "row": origin.row if origin else None,
        "source": group.source,
        "preferred": better,
        "dispreferred": worse,
        "probability": max(edge.probability, 1 - edge.probability),
        "weight": edge.weight,
        "correct": None,
        "longer": preference(len(texts[0]) - len(texts[1])),
    }
