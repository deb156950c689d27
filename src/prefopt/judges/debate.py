"""Debate: an advocate argues for each of two answers, and a judge who cannot check all decides.

Irving et al. 2018 (arXiv:1805.00899), by the protocol of Khan et al. 2024 (arXiv:2402.06782):
both sides of a round are written at the same time, nobody's place depends on the order of the
answers, and the judge is asked in both orders. Consultancy is the control: only one of the
answers, drawn by chance, has an advocate, and a judge who believes them knows nothing more.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from prefopt.judges import settings
from prefopt.judges.judge import Judge, Progress, Question, Verdict, cannot_score
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
from prefopt.records import Prompt, prompt_key

Form = Literal["debate", "consultancy"]
#: the arguments for the first answer and for the second, round by round
Arguments = tuple[list[str], list[str]]


class Debate:
    """Any judge, shown arguments for both answers.

    The arguments stand below the answer that they speak for, so a judge that swaps the answers
    swaps them too, and a judge that scores reads them as part of the answer.

    Args:
        judge: who decides.
        debaters: one for both sides, or two; which of the two speaks for which answer is drawn
            for each question by its texts, whatever their order.
        rounds: arguments of each side.
        form: with `consultancy` only one answer, drawn, has an advocate.
        seed: of what is drawn, and of arguments.
    """

    #: the judge is asked in both orders
    sees_order = False
    chunk = 16

    def __init__(
        self,
        judge: Judge,
        debaters: Sequence[Writer],
        *,
        rounds: int = 3,
        form: Form = "debate",
        seed: int = 0,
    ) -> None:
        self.name = f"{form}:{judge.name}"
        self._judge, self._debaters = judge, (debaters[0], debaters[-1])
        self._rounds, self._form, self._seed = rounds, form, seed

    def remember_in(self, folder: Path) -> None:
        """Keep what is said on the way to a verdict."""
        remember_in(folder, self._judge, *dict.fromkeys(self._debaters))

    def identity(self) -> Mapping[str, Any]:
        return {
            "kind": self._form,
            "judge": dict(self._judge.identity()),
            "debaters": [dict(debater.identity()) for debater in self._debaters],
            "rounds": self._rounds,
            "seed": self._seed,
        }

    def compare_all(
        self, questions: Sequence[Question], progress: Progress | None = None
    ) -> list[Verdict]:
        """Verdicts of the judge after the debate, whose transcript has all that was said.

        An advocate who wrote nothing is counted there, as a failure: the debate was not even.
        """
        argued = self.argue(questions)
        shown = [
            Question(
                question.prompt,
                beside(question.first, "argument", arguments[0]),
                beside(question.second, "argument", arguments[1]),
            )
            for question, arguments in zip(questions, argued, strict=True)
        ]
        verdicts = fairly(self._judge, shown, progress)
        return [
            Verdict(
                verdict.probability,
                verdict.rationale,
                verdict.order_consistent,
                {
                    "form": self._form,
                    "arguments": {"first": arguments[0], "second": arguments[1]},
                    "judge": dict(verdict.transcript),
                    **silence(*arguments[0], *arguments[1]),
                },
            )
            for verdict, arguments in zip(verdicts, argued, strict=True)
        ]

    def argue(self, questions: Sequence[Question]) -> list[Arguments]:
        """What is said for the two answers of each question; empty where an advocate is silent."""
        argued: list[Arguments] = [([], []) for _ in questions]
        drawn = [_draw(self._seed, question) for question in questions]
        for number in range(1, self._rounds + 1):
            # All turns of a round are taken down before any is spoken.
            turns: list[tuple[int, int, int, Turn]] = []
            for place, question in enumerate(questions):
                for side in (0, 1):
                    debater = side ^ drawn[place]
                    if self._form == "consultancy" and debater == 1:
                        continue
                    turn = self._turn(question, argued[place], side, number, debater)
                    turns.append((debater, place, side, turn))
            for which, writer in enumerate(self._debaters):
                mine = [item for item in turns if item[0] == which]
                texts = writer.write([turn for *_, turn in mine]) if mine else []
                for (_, place, side, _), text in zip(mine, texts, strict=True):
                    argued[place][side].append(text)
        return argued

    def _turn(
        self, question: Question, arguments: Arguments, side: int, number: int, debater: int
    ) -> Turn:
        answers = (question.first, question.second)
        return Turn(
            question.prompt,
            answers[side],
            answers[1 - side],
            tuple(arguments[side]),
            tuple(arguments[1 - side]),
            number,
            self._rounds,
            self._seed * 1009 + number * 2 + debater,
        )

    def score_all(
        self, answers: Sequence[tuple[Prompt, str]], progress: Progress | None = None
    ) -> list[float | None]:
        raise cannot_score(self)


def _draw(seed: int, question: Question) -> int:
    """0 if the first debater speaks for the first answer, else 1: the same for the same two
    answers in the other order, whose first is then the second."""

    def digest(text: str) -> bytes:
        content = (
            f"{seed}:".encode() + prompt_key(question.prompt) + text.encode("utf-8", "replace")
        )
        return hashlib.blake2b(content, digest_size=8).digest()

    return int(digest(question.first) > digest(question.second))


def make_debate(chosen: settings.Debate, context: Context) -> Judge:
    """A debate before a judge, by their specs.

    Raises:
        RecipeError: the judge, a debater or their instructions are wrong.
    """
    debaters = [
        make_writer(
            spec, context, f"debaters.{index}", lambda: load_instructions(chosen.prompts, "argue")
        )
        for index, spec in enumerate(chosen.debaters)
    ]
    judge = context.judge(chosen.judge, "judge")
    return Debate(judge, debaters, rounds=chosen.rounds, form=chosen.form, seed=chosen.seed)
