"""The one thing that every judge is: who can compare two completions, or score one.

A probability is that of the first completion being the better one; ½ is a tie. A verdict that
could not be read has no probability, and whoever asks counts it: it is never a tie.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from prefopt.errors import RecipeError
from prefopt.records import Prompt

#: (done, of how many)
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Question:
    """Which of two completions of a prompt is better?"""

    prompt: Prompt
    first: str
    second: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a judge says to a question.

    Attributes:
        probability: in [0, 1], that the first is the better one; None if nothing could be read.
        rationale: why, in the judge's words, or None.
        order_consistent: whether it says the same with the completions in the other order; None
            for a judge that cannot see an order, or that was asked in one only.
        transcript: what was said on the way (a debate, both orders), as plain JSON.
    """

    probability: float | None
    rationale: str | None = None
    order_consistent: bool | None = None
    transcript: Mapping[str, Any] = field(default_factory=dict)


def parts_of(transcript: Any) -> Iterator[Mapping[str, Any]]:
    """A transcript and those of the judges inside of a wrapper, an ensemble or a constitution."""
    if isinstance(transcript, Mapping):
        yield transcript
        members = [member.get("transcript") for member in transcript.get("members", ())]
        for inside in (transcript.get("judge"), *members, *transcript.get("judges", {}).values()):
            yield from parts_of(inside)


@runtime_checkable
class Judge(Protocol):
    """Who compares completions.

    A judge that cannot score a completion by itself raises `RecipeError` in `score_all`
    (`cannot_score`); one that scores compares by its scores (`scoring.compare_by_scores`).

    It may also have, and whoever asks looks for it:

    * `sees_order = False`: it asks both orders itself, or sees one completion at a time, so
      `orders.fairly` asks it once;
    * `compare_each(questions)` and `score_each(answers)`: iterators of (position, result) as they
      come, which `kept.Kept` keeps one by one;
    * `side_by_side = True`: it tells two answers apart better than by points for each, so whoever
      can choose lets it compare;
    * `chunk`: else, how many questions it is given at once where verdicts are kept;
    * `failures`: a Counter of replies that could not be read, by kind, up to date whenever
      something is handed over;
    * `remember_in(folder)`: lets everybody whom it asks on the way to a verdict keep the replies;
    * `unscored`: else, by answer, one word for why it has no score.
    """

    #: one word and what distinguishes it: `longest`, `reward:runs/rm`, `server:gpt-x`
    name: str

    def identity(self) -> Mapping[str, Any]:
        """Everything that its verdicts depend on, as plain JSON: the key of the cache."""
        ...

    def compare_all(
        self, questions: Sequence[Question], progress: Progress | None = None
    ) -> list[Verdict]:
        """A verdict for each question, in order."""
        ...

    def score_all(
        self, answers: Sequence[tuple[Prompt, str]], progress: Progress | None = None
    ) -> list[float | None]:
        """How good each completion is, higher is better; None if nothing could be read."""
        ...


def compare(judge: Judge, prompt: Prompt, a: str, b: str) -> Verdict:
    """One verdict."""
    return judge.compare_all([Question(prompt, a, b)])[0]


def score(judge: Judge, prompt: Prompt, completion: str) -> float | None:
    """One score."""
    return judge.score_all([(prompt, completion)])[0]


def cannot_score(judge: Judge) -> RecipeError:
    """The refusal of a judge that only compares."""
    return RecipeError(
        f"the judge {judge.name} compares completions and gives no scores",
        field="judge",
        value=judge.name,
        remedy="use a reward model, a rule or a judge with a rubric of points",
    )
