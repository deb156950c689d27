"""Recursive reward modelling: whoever judges is helped by critiques (Leike et al. 2018,
arXiv:1811.07871; McAleese et al. 2024, arXiv:2407.00215).

A critic writes about each answer by itself, and what it writes stands below the answer. At a
further level it has read its earlier critiques, and writes about them too. `critic_groups` makes
the data from which the critic of the next level is trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prefopt.judges import settings
from prefopt.judges.judge import Judge, Progress, Question, Verdict
from prefopt.judges.orders import fairly
from prefopt.judges.remembered import remember_in
from prefopt.judges.table import Context
from prefopt.judges.writing import (
    Turn,
    Writer,
    beside,
    load_instructions,
    make_writer,
    silence,
)
from prefopt.records import Comparison, Completion, Group, Message, Prompt

_Answer = tuple[Prompt, str]


class Recursive:
    """Any judge, shown a critic's critiques.

    Args:
        judge: who decides.
        critic: who writes about each answer.
        levels: critiques of an answer; each later one has read those before it.
        seed: of critiques.
    """

    #: the judge is asked in both orders
    sees_order = False
    chunk = 16

    def __init__(self, judge: Judge, critic: Writer, *, levels: int = 1, seed: int = 0) -> None:
        self.name = f"recursive:{judge.name}"
        self.side_by_side = getattr(judge, "side_by_side", False)
        self._judge, self._critic, self._levels, self._seed = judge, critic, levels, seed

    def remember_in(self, folder: Path) -> None:
        """Keep what is said on the way to a verdict."""
        remember_in(folder, self._judge, self._critic)

    def identity(self) -> Mapping[str, Any]:
        return {
            "kind": "recursive",
            "judge": dict(self._judge.identity()),
            "critic": dict(self._critic.identity()),
            "levels": self._levels,
            "seed": self._seed,
        }

    def compare_all(
        self, questions: Sequence[Question], progress: Progress | None = None
    ) -> list[Verdict]:
        """Verdicts of the judge, whose transcript has the critiques."""
        sides = [(q.prompt, text) for q in questions for text in (q.first, q.second)]
        written = self.criticise(sides)
        shown = [
            Question(q.prompt, beside(q.first, "critique", written[q.prompt, q.first]),
                     beside(q.second, "critique", written[q.prompt, q.second]))
            for q in questions
        ]  # fmt: skip
        verdicts = fairly(self._judge, shown, progress)
        new = dict(written)
        return [
            Verdict(
                verdict.probability,
                verdict.rationale,
                verdict.order_consistent,
                {
                    "critiques": {
                        "first": written[question.prompt, question.first],
                        "second": written[question.prompt, question.second],
                    },
                    "judge": dict(verdict.transcript),
                    # Of an answer in several questions they are counted once.
                    **silence(
                        *new.pop((question.prompt, question.first), []),
                        *new.pop((question.prompt, question.second), []),
                    ),
                },
            )
            for question, verdict in zip(questions, verdicts, strict=True)
        ]

    def score_all(
        self, answers: Sequence[_Answer], progress: Progress | None = None
    ) -> list[float | None]:
        """The judge's scores of the answers with their critiques."""
        written = self.criticise(answers)
        shown = [
            (prompt, beside(text, "critique", written[prompt, text])) for prompt, text in answers
        ]
        return self._judge.score_all(shown, progress)

    def criticise(self, answers: Sequence[_Answer]) -> dict[_Answer, list[str]]:
        """The critiques of each distinct answer, one for each level."""
        written: dict[_Answer, list[str]] = {answer: [] for answer in answers}
        for level in range(1, self._levels + 1):
            turns = [
                Turn(prompt, text, None, tuple(said), (), level, self._levels,
                     self._seed * 1009 + level)
                for (prompt, text), said in written.items()
            ]  # fmt: skip
            for said, text in zip(written.values(), self._critic.write(turns), strict=True):
                said.append(text)
        return written


def critic_groups(
    judge: Judge, critic: Writer, audited: Sequence[tuple[Question, float]], *, seed: int = 0
) -> list[Group]:
    """Preferences between critiques: the better one moves the judge closer to the truth.

    Two critiques are written about each side of each question, and the judge is asked once with
    each of them, the other side having none.

    Args:
        judge: of the level below.
        critic: who is to be trained on the result.
        audited: questions, and the true probability that the first answer is better.
        seed: of critiques.

    Returns:
        Groups with two critiques of one answer and a comparison, where one of them brought the
        judge nearer to the truth than the other did.
    """
    turns, owners = [], []
    for place, (question, _) in enumerate(audited):
        for side, text in enumerate((question.first, question.second)):
            for try_ in (0, 1):
                turns.append(
                    Turn(question.prompt, text, None, (), (), 1, 1, seed * 1009 + 1 + try_)
                )
                owners.append((place, side))
    texts = critic.write(turns)
    asked = []
    for (place, side), text in zip(owners, texts, strict=True):
        question = audited[place][0]
        sides = [question.first, question.second]
        sides[side] = beside(sides[side], "critique", [text])
        asked.append(Question(question.prompt, *sides))
    errors = [
        None if verdict.probability is None else abs(verdict.probability - audited[place][1])
        for (place, _), verdict in zip(owners, fairly(judge, asked), strict=True)
    ]
    groups = []
    for start in range(0, len(turns), 2):
        first, second = errors[start], errors[start + 1]
        if first is None or second is None or first == second or texts[start] == texts[start + 1]:
            continue
        better = 0 if first < second else 1
        groups.append(
            Group(
                _critic_prompt(turns[start]),
                (Completion(texts[start]), Completion(texts[start + 1])),
                (Comparison(better, 1 - better),),
                meta={"errors": [first, second]},
            )
        )
    return groups


def _critic_prompt(turn: Turn) -> Prompt:
    """What the shipped critic is told, as the prompt that its critiques answer."""
    return (Message("user", load_instructions("critic", "critique").filled(turn)),)


def make_recursive(chosen: settings.Recursive, context: Context) -> Judge:
    """A judge and a critic, by their specs.

    Raises:
        RecipeError: the judge, the critic or its instructions are wrong.
    """
    critic = make_writer(
        chosen.critic, context, "critic", lambda: load_instructions(chosen.prompts, "critique")
    )
    judge = context.judge(chosen.judge, "judge")
    return Recursive(judge, critic, levels=chosen.levels, seed=chosen.seed)
