"""A judge as evaluation asks it: by its spec, with verdicts kept where a folder is given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prefopt.errors import RecipeError
from prefopt.judges.judge import Judge, Progress, Question, Verdict
from prefopt.judges.kept import NOT_ASKED, Kept


@dataclass(frozen=True)
class Asker:
    """A judge, and what it was asked.

    Attributes:
        judge: who is asked; a `Kept` one where verdicts are kept.
    """

    judge: Judge

    @classmethod
    def of(
        cls,
        spec: str | Mapping[str, Any],
        *,
        cache: str | None = None,
        budget: int | None = None,
        account: str = "",
        device: str | None = None,
    ) -> Asker:
        """The judge of a spec (`judges.table`).

        Args:
            spec: what kind of judge.
            cache: folder in which verdicts are kept, so that nothing is asked twice.
            budget: most questions that are asked on `account`; needs a folder.
            account: see `Kept`.
            device: where models compute.

        Raises:
            RecipeError: there is no such judge, or there is a budget and no folder.
            PolicyError: its model cannot be loaded.
            RunError: the folder cannot be used.
        """
        from prefopt.judges.table import make_judge

        if budget is not None and cache is None:
            raise RecipeError(
                "a budget is kept with the verdicts, and there is no folder for them",
                field="budget", value=budget, remedy="name a folder with --cache",
            )  # fmt: skip
        judge = make_judge(spec, device=device)
        if cache is not None:
            judge = Kept(judge, cache, budget=budget, account=account)
        return cls(judge)

    def verdicts(
        self, questions: Sequence[Question], progress: Progress | None = None
    ) -> list[Verdict]:
        """A verdict for each question, in order."""
        return self.judge.compare_all(questions, progress)

    def about(self) -> dict[str, Any]:
        """Who was asked, and how often: `name`, `identity`, and with a folder `asked`, `known`."""
        about: dict[str, Any] = {"name": self.judge.name, "identity": dict(self.judge.identity())}
        if isinstance(self.judge, Kept):
            about |= {"asked": self.judge.asked, "known": self.judge.known,
                      "not_asked": self.judge.not_asked}  # fmt: skip
        return about


def was_asked(verdict: Verdict) -> bool:
    """Whether the question was put to the judge at all, and was not beyond its budget."""
    return not any(verdict.transcript.get(name) == value for name, value in NOT_ASKED.items())
