"""Several judges as one: the mean of what they say, what most of them say, or a weighted mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any, Literal

from prefopt.judges import settings
from prefopt.judges.judge import Judge, Progress, Question, Verdict, cannot_score
from prefopt.judges.orders import fairly, side
from prefopt.judges.remembered import remember_in
from prefopt.judges.table import Context
from prefopt.records import Prompt

Rule = Literal["mean", "majority", "weighted"]


class Ensemble:
    """Judges, and a rule.

    A member that could not read its verdict is left out of the mean; what the others say counts.
    Each verdict's transcript has `members` (what each said), `disagreement` (standard deviation
    of their probabilities) and `dissent` (share of those with a verdict who are for another side
    than the ensemble is).

    Args:
        judges: at least two.
        rule: `mean` of probabilities; `majority`: the share of those who are for a side that are
            for the first, made 1, ½ or 0; `weighted` mean.
        weights: of the judges; for `weighted`.
    """

    #: members that see the order are asked in both
    sees_order = False
    chunk = 16

    def __init__(
        self,
        judges: Sequence[Judge],
        *,
        rule: Rule = "mean",
        weights: Sequence[float] | None = None,
    ) -> None:
        self.name = f"ensemble:{'+'.join(judge.name for judge in judges)}"
        self._judges = list(judges)
        self.side_by_side = any(getattr(judge, "side_by_side", False) for judge in judges)
        self._rule = rule
        self._weights = list(weights) if weights is not None else [1.0] * len(judges)

    def remember_in(self, folder: Path) -> None:
        """Keep what is said on the way to a verdict."""
        remember_in(folder, *self._judges)

    def identity(self) -> Mapping[str, Any]:
        return {
            "kind": "ensemble",
            "judges": [dict(judge.identity()) for judge in self._judges],
            "rule": self._rule,
            "weights": self._weights,
        }

    def compare_all(
        self, questions: Sequence[Question], progress: Progress | None = None
    ) -> list[Verdict]:
        said = []
        for number, judge in enumerate(self._judges):
            said.append(fairly(judge, questions, _part(progress, number, len(self._judges))))
        return [self._joined(verdicts) for verdicts in zip(*said, strict=True)]

    def score_all(
        self, answers: Sequence[tuple[Prompt, str]], progress: Progress | None = None
    ) -> list[float | None]:
        """The (weighted) mean of the members' scores, whose scales should be alike.

        None where a member that counts gives none: on another scale, the mean of the others would
        be no better or worse, only different.

        Raises:
            RecipeError: the rule is `majority`, or a member gives no scores.
        """
        if self._rule == "majority":
            raise cannot_score(self)
        said = [
            judge.score_all(answers, _part(progress, number, len(self._judges)))
            for number, judge in enumerate(self._judges)
        ]
        return [self._score(scores) for scores in zip(*said, strict=True)]

    def _score(self, scores: Sequence[float | None]) -> float | None:
        counted = [x for x, weight in zip(scores, self._weights, strict=True) if weight]
        return None if None in counted else self._mean(scores)

    def _joined(self, verdicts: Sequence[Verdict]) -> Verdict:
        probability = self._probability([verdict.probability for verdict in verdicts])
        known = [v.probability for v in verdicts if v.probability is not None]
        transcript: dict[str, Any] = {
            "members": [
                {
                    "judge": judge.name,
                    "probability": verdict.probability,
                    "order_consistent": verdict.order_consistent,
                    "rationale": verdict.rationale,
                    "transcript": dict(verdict.transcript),
                }
                for judge, verdict in zip(self._judges, verdicts, strict=True)
            ]
        }
        if probability is not None:
            transcript["disagreement"] = pstdev(known)
            transcript["dissent"] = fmean(side(one) != side(probability) for one in known)
        consistent = [v.order_consistent for v in verdicts if v.order_consistent is not None]
        return Verdict(
            probability,
            next((v.rationale for v in verdicts if v.rationale), None),
            all(consistent) if consistent else None,
            transcript,
        )

    def _probability(self, said: Sequence[float | None]) -> float | None:
        if self._rule != "majority":
            return self._mean(said)
        sides = [side(one) for one in said if one is not None]
        return (1 + side(0.5 + sum(sides))) / 2 if sides else None

    def _mean(self, said: Sequence[float | None]) -> float | None:
        known = [(x, w) for x, w in zip(said, self._weights, strict=True) if x is not None and w]
        if not known:
            return None
        return sum(x * w for x, w in known) / sum(w for _, w in known)


def _part(progress: Progress | None, number: int, count: int) -> Progress | None:
    """Progress of one of several judges as progress of the whole."""
    if progress is None:
        return None
    return lambda done, total: progress((number * total + done) // count, total)


def make_ensemble(chosen: settings.Ensemble, context: Context) -> Judge:
    """Judges by their specs.

    Raises:
        RecipeError: a judge or the weights are wrong.
    """
    weighted = chosen.rule == "weighted"
    if weighted != (chosen.weights is not None):
        raise context.refusal(
            "weights and rule: weighted belong together",
            "weights",
            value=chosen.weights,
            remedy="give both, or neither",
        )
    if chosen.weights is not None and (
        len(chosen.weights) != len(chosen.judges) or sum(chosen.weights) <= 0
    ):
        raise context.refusal(
            f"there are {len(chosen.judges)} judges and {len(chosen.weights)} weights"
            if sum(chosen.weights) > 0
            else "all weights are 0",
            "weights",
            value=chosen.weights,
            remedy="give one for each judge, and one of them above 0",
        )
    judges = [context.judge(spec, f"judges.{index}") for index, spec in enumerate(chosen.judges)]
    return Ensemble(judges, rule=chosen.rule, weights=chosen.weights)
