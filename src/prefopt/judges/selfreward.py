"""Self-reward: the policy gives its own answers points (Yuan et al. 2024, arXiv:2401.10020).

Points add up over a rubric of five qualities, several times with other random numbers, and the
mean counts. Nothing outside holds such a loop: in the paper answers grew from 1,092 to 2,552
characters in two rounds. So two monitors watch it, and say when it has to stop.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefopt.errors import RecipeError, TrainingError
from prefopt.judges import settings
from prefopt.judges.judge import Judge, Progress, Question, Verdict
from prefopt.judges.language import LanguageJudge
from prefopt.judges.orders import fairly, settled, side
from prefopt.judges.remembered import remember_in
from prefopt.judges.rubric import load_rubric
from prefopt.judges.scoring import compare_by_scores
from prefopt.judges.speaking import Speaker, local_speaker, served_speaker
from prefopt.judges.table import Context
from prefopt.records import Group, Prompt


class SelfReward:
    """A language model's points for single answers; comparisons follow from them.

    Equal points are a tie, which whoever makes pairs leaves out, as the paper does.

    Args:
        points: who gives them.
    """

    #: it sees one answer at a time
    sees_order = False

    def __init__(self, points: LanguageJudge) -> None:
        self.name = f"selfreward:{points.name}"
        self._points = points
        self.failures = points.failures
        self.score_each = points.score_each

    @property
    def refusal(self) -> str:
        """Why a question got no reply at all."""
        return self._points.refusal

    def remember_in(self, folder: Path) -> None:
        """Keep what is said on the way to a verdict."""
        remember_in(folder, self._points)

    def identity(self) -> Mapping[str, Any]:
        return {**self._points.identity(), "kind": "selfreward"}

    def compare_all(
        self, questions: Sequence[Question], progress: Progress | None = None
    ) -> list[Verdict]:
        return compare_by_scores(self, questions, progress=progress)

    def score_all(
        self, answers: Sequence[tuple[Prompt, str]], progress: Progress | None = None
    ) -> list[float | None]:
        return self._points.score_all(answers, progress)


def make_self_reward(chosen: settings.SelfReward, context: Context) -> Judge:
    """The policy as its own judge.

    Raises:
        RecipeError: there is neither a folder nor a server, a setting is without effect, or the
            rubric is wrong.
    """
    if chosen.model is None and chosen.url is None:
        raise context.refusal(
            "it is not said where the policy is",
            "model",
            remedy="give model: FOLDER, or url: URL",
        )
    idle = {"key"} if chosen.url is None else {"batch_size"}
    for name in sorted(idle & chosen.model_fields_set):
        where = "on this machine" if chosen.url is None else "behind a server"
        raise context.refusal(
            f"{name} has no effect: the policy is {where}", name,
            value=getattr(chosen, name), remedy=f"remove {name}",
        )  # fmt: skip
    rubric = load_rubric(chosen.rubric)
    if rubric.score is None:
        raise RecipeError(
            "self-reward gives points, and the rubric has none",
            file=rubric.file,
            field="rubric",
            remedy="use a rubric with a template under score, such as additive",
        )
    speaker: Speaker = (
        served_speaker(chosen.url, chosen.model, key=chosen.key)
        if chosen.url is not None
        else local_speaker(str(chosen.model), device=context.device, batch_size=chosen.batch_size)
    )
    names = ("judgements", "temperature", "retries", "max_new_tokens", "seed")
    return SelfReward(
        LanguageJudge(speaker, rubric, **{name: getattr(chosen, name) for name in names})
    )


# -- monitors ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Accuracy:
    """How well a judge knows what is known already.

    Attributes:
        share: of the comparisons that it decides rightly; a tie is half right.
        comparisons: that it gave a verdict on.
        ties: verdicts of ½, and those that flip with the order.
        unreadable: comparisons without a verdict, which are not in `share`.
    """

    share: float
    comparisons: int
    ties: int
    unreadable: int


def judge_accuracy(
    judge: Judge, groups: Iterable[Group], progress: Progress | None = None
) -> Accuracy:
    """A judge's accuracy on labelled comparisons; those labelled a tie are passed over.

    Raises:
        ValueError: there is no comparison that could be read.
    """
    questions, truth = [], []
    for group in groups:
        for edge in group.comparisons:
            if edge.probability != 0.5:
                texts = [group.completions[i].text for i in (edge.preferred, edge.dispreferred)]
                questions.append(Question(group.prompt, *texts))
                truth.append(side(edge.probability))
    said = [settled(verdict) for verdict in fairly(judge, questions, progress)]
    right = [
        (1 + side(value) * label) / 2
        for value, label in zip(said, truth, strict=True)
        if value is not None
    ]
    if not right:
        raise ValueError("there is no comparison that could be read")
    ties = said.count(0.5)
    return Accuracy(sum(right) / len(right), len(right), ties, len(said) - len(right))


class LoopStopped(TrainingError):
    """A monitor stops a loop that feeds on itself."""


def reasons_to_stop(
    history: Sequence[Mapping[str, Any]],
    *,
    length_growth: float | None = 0.5,
    accuracy_fall: float | None = 0.03,
) -> list[str]:
    """Why a loop has to stop after its last round; nothing if it may go on.

    Args:
        history: one mapping for the policy before the first round and one for each round since:
            `length` (mean characters of its answers) and, where it was measured,
            `judge_accuracy` (on the same held-out labels each time).
        length_growth: answers may be longer than the first ones by this share.
        accuracy_fall: the judge's accuracy may be below the best so far by this much.

    >>> reasons_to_stop([{"length": 1092}, {"length": 1552}])
    []
    >>> reasons_to_stop([{"length": 1092}, {"length": 1552}, {"length": 2552}])
    ['answers are 134 % longer than at the start (1,092 to 2,552 characters), and 50 % is allowed']
    """
    reasons = []
    lengths = [row["length"] for row in history if row.get("length")]
    if length_growth is not None and len(lengths) > 1:
        growth = lengths[-1] / lengths[0] - 1
        if growth > length_growth:
            reasons.append(
                f"answers are {growth:.0%} longer than at the start ({lengths[0]:,.0f} to "
                f"{lengths[-1]:,.0f} characters), and {length_growth:.0%} is allowed".replace(
                    "%", " %"
                )
            )
    known = [row["judge_accuracy"] for row in history if row.get("judge_accuracy") is not None]
    if accuracy_fall is not None and len(known) > 1:
        best = max(known[:-1])
        if best - known[-1] > accuracy_fall:
            reasons.append(
                f"the judge's accuracy on held-out labels fell from {best:.3f} to {known[-1]:.3f}, "
                f"and {accuracy_fall:.3f} is allowed"
            )
    return reasons


def watch(history: Sequence[Mapping[str, Any]], **limits: float | None) -> None:
    """Stop a loop that has to; see `reasons_to_stop`.

    Raises:
        LoopStopped: it has to; `reasons` says why.
    """
    if reasons := reasons_to_stop(history, **limits):
        raise LoopStopped(
            f"the loop is stopped: {'; '.join(reasons)}",
            remedy="keep the best round; control for length in the judge, or label more by others",
        )
