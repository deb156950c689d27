"""A language model as a judge: a rubric, both orders of every comparison, and replies counted.

It reads what the model writes (`text`), or the probabilities of the answers that it could give
(`logprobs`), where nothing has to be read. What cannot be read is asked again with another seed
and counted by kind; a comparison is known only when both of its orders are.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from prefopt.data.verdicts import outcome_of
from prefopt.errors import RecipeError
from prefopt.judges import settings
from prefopt.judges.judge import Judge, Progress, Question, Verdict, cannot_score
from prefopt.judges.orders import SAME, merged, same, swapped
from prefopt.judges.points import points_of
from prefopt.judges.remembered import Remembered
from prefopt.judges.rubric import Rubric, claimed_verdicts, load_rubric
from prefopt.judges.speakers import speaker_of
from prefopt.judges.speaking import Ask, Said, Speaker
from prefopt.judges.table import Context
from prefopt.judges.weighing import expected, share_of_first
from prefopt.records import Prompt

Mode = Literal["text", "logprobs"]
LETTERS = ("A", "B")
#: between the seeds of a judgement's tries, so that no two replies share one
_STRIDE = 1_000_003
#: of replies that have to differ from one another
_VARIED = 0.7
_WORTH: Mapping[str, float] = {"first": 1.0, "tie": 0.5, "second": 0.0}


@dataclass
class _Sheet:
    """What is known so far of one question.

    Attributes:
        texts: what is asked: both orders of a comparison, or the one text of a score.
        said: for each of them, numbers and what the model wrote, as they came.
        missing: replies still to come.
        failures: replies that could not be read, by kind.
        refusal: of who gave no reply, in their words.
        mass: by log-probabilities, how probable it was at all that one of the answers is said.
    """

    texts: tuple[str, ...]
    missing: int
    said: list[list[tuple[float, str | None]]] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)
    refusal: str = ""
    mass: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.said = [[] for _ in self.texts]

    def mean(self, order: int) -> float | None:
        """Mean of an order's replies; None if none could be read."""
        return fmean(number for number, _ in self.said[order]) if self.said[order] else None

    def fail(self, kind: str, words: str = "") -> None:
        """One more reply that could not be read."""
        self.failures[kind] += 1
        self.refusal = self.refusal or words


class LanguageJudge:
    """A language model that follows a rubric.

    Args:
        speaker: the model.
        rubric: what it is told.
        mode: read what it writes, or the probabilities of what it could write.
        judgements: replies to each question in each order, averaged.
        retries: further tries of a reply that cannot be read.
        temperature: of replies; None for 0 of one and 0.7 of several.
        max_new_tokens: of a reply.
        seed: of replies.

    Attributes:
        failures: replies that could not be read, by kind, counted as each question is done:
            `empty`, `unreadable`, `contradictory`, `out_of_range`, `cut` (it ended for lack of
            room before it came to a verdict), `too_long` (the question, for the model), `refused`
            or `filtered` (by its server), and `no_answer` (none among the likeliest, by
            log-probabilities).
        refusal: of the first question that got no reply at all, why.

    Raises:
        RecipeError: settings that go against each other.
    """

    #: it asks both orders itself
    sees_order = False

    def __init__(
        self,
        speaker: Speaker,
        rubric: Rubric,
        *,
        mode: Mode = "text",
        judgements: int = 1,
        retries: int = 1,
        temperature: float | None = None,
        max_new_tokens: int = 512,
        seed: int = 0,
    ) -> None:
        self.name = speaker.name
        self.rubric = rubric
        self.side_by_side = rubric.compare is not None
        self.failures: Counter[str] = Counter()
        self.refusal = ""
        self._speaker, self._mode, self._judgements = speaker, mode, judgements
        self._retries, self._max_new_tokens, self._seed = retries, max_new_tokens, seed
        if temperature is None:
            temperature = _VARIED if judgements > 1 else 0.0
        self._temperature = temperature
        self._check()

    def _check(self) -> None:
        several = self._judgements > 1
        if several and self._temperature == 0:
            raise RecipeError(
                "several judgements have no effect: at temperature 0 all replies are the same",
                field="judgements",
                value=self._judgements,
                remedy="set judgements: 1, or a temperature above 0",
            )
        digits = self.rubric.low >= 0 and self.rubric.high <= 9
        if self._mode == "logprobs" and self.rubric.compare is None and not digits:
            raise self._no_digits()

    def _no_digits(self) -> RecipeError:
        return RecipeError(
            "by log-probabilities points are read off the next token, so they need one digit",
            file=self.rubric.file,
            field="points",
            value=[self.rubric.low, self.rubric.high],
            remedy="use points within 0 to 9, or mode: text",
        )

    def remember_in(self, folder: Path) -> None:
        """Keep every reply, for whoever needs several questions before there is a verdict."""
        self._speaker = Remembered(self._speaker, folder)

    def identity(self) -> Mapping[str, Any]:
        read = {} if self._mode == "logprobs" else {
            "judgements": self._judgements, "retries": self._retries,
            "temperature": self._temperature, "max_new_tokens": self._max_new_tokens,
            "seed": self._seed,
        }  # fmt: skip
        return {
            "kind": "language", "speaker": dict(self._speaker.identity()),
            "rubric": dict(self.rubric.identity()), "mode": self._mode, **read,
        }  # fmt: skip

    # -- comparing -------------------------------------------------------------------------

    def compare_all(
        self, questions: Sequence[Question], progress: Progress | None = None
    ) -> list[Verdict]:
        return _in_order(self.compare_each(questions), len(questions), progress)

    def compare_each(self, questions: Sequence[Question]) -> Iterator[tuple[int, Verdict]]:
        """(position, verdict) as they come; a question that is there twice is asked once.

        Answers that are the same are a tie, and nobody is asked.

        Raises:
            RecipeError: the rubric cannot compare.
        """
        if self.rubric.compare is None:
            raise RecipeError(
                "the rubric only scores, and completions are to be compared",
                file=self.rubric.file,
                field="rubric",
                remedy="use a rubric with a template under compare, such as pairwise or both",
            )
        letters = self._mode == "logprobs"
        places = _places(questions)
        asked = [one for one in places if not same(one)]
        for one in places:
            if same(one):
                yield from ((place, SAME) for place in places[one])
        texts = [
            tuple(self.rubric.comparison(one, letters=letters) for one in (this, swapped(this)))
            for this in asked
        ]
        filled = self._weighed(texts, LETTERS, share_of_first) if letters else self._said(
            texts, _choice
        )  # fmt: skip
        for index, sheet in filled:
            self._note(sheet)
            verdict = _verdict(sheet, asked[index])
            yield from ((place, verdict) for place in places[asked[index]])

    # -- scoring ---------------------------------------------------------------------------

    def score_all(
        self, answers: Sequence[tuple[Prompt, str]], progress: Progress | None = None
    ) -> list[float | None]:
        return _in_order(self.score_each(answers), len(answers), progress)

    def score_each(
        self, answers: Sequence[tuple[Prompt, str]]
    ) -> Iterator[tuple[int, float | None]]:
        """(position, score) as they come; an answer that is there twice is scored once.

        Raises:
            RecipeError: the rubric cannot score.
        """
        rubric = self.rubric
        if rubric.score is None:
            refusal = cannot_score(self)
            refusal.file, refusal.remedy = rubric.file, "use a rubric with a template under score"
            raise refusal
        letters = self._mode == "logprobs"
        if letters and not (rubric.low >= 0 and rubric.high <= 9):
            raise self._no_digits()
        places = _places(answers)
        asked = list(places)
        texts = [(rubric.scoring(*answer, letters=letters),) for answer in asked]
        points = range(rubric.low, rubric.high + 1)
        filled = (
            self._weighed(texts, [str(p) for p in points], lambda w: expected(w, points))
            if letters
            else self._said(texts, lambda reply: points_of(reply, rubric.low, rubric.high))
        )
        for index, sheet in filled:
            self._note(sheet)
            yield from ((place, sheet.mean(0)) for place in places[asked[index]])

    # -- asking ----------------------------------------------------------------------------

    def _said(
        self, texts: Sequence[tuple[str, ...]], read: Callable[[str], float | str]
    ) -> Iterator[tuple[int, _Sheet]]:
        """Sheets as they are filled with what the model wrote and `read` made of it."""
        sheets = [_Sheet(each, len(each) * self._judgements) for each in texts]
        todo = [
            (index, order, judgement)
            for index, sheet in enumerate(sheets)
            for order in range(len(sheet.texts))
            for judgement in range(self._judgements)
        ]
        for attempt in range(self._retries + 1):
            again = []
            asks = [self._ask(sheets[i].texts[order], j, attempt) for i, order, j in todo]
            for position, reply in self._speaker.say(asks, max_new_tokens=self._max_new_tokens):
                index, order, judgement = todo[position]
                sheet = sheets[index]
                number = read(reply.answer) if reply.text is not None else reply.failure
                if isinstance(number, str):
                    sheet.fail("cut" if reply.cut else number, reply.words)
                    if attempt < self._retries and reply.text is not None:
                        again.append((index, order, judgement))
                        continue
                else:
                    sheet.said[order].append((number, reply.text))
                sheet.missing -= 1
                if sheet.missing == 0:
                    yield index, sheet
            todo = again

    def _note(self, sheet: _Sheet) -> None:
        self.failures.update(sheet.failures)
        self.refusal = self.refusal or sheet.refusal

    def _ask(self, text: str, judgement: int, attempt: int) -> Ask:
        # What was unreadable once would be so again, word for word, at temperature 0.
        temperature = self._temperature if attempt == 0 else self._temperature or _VARIED
        return Ask(text, self._seed + judgement + attempt * _STRIDE, temperature)

    def _weighed(
        self,
        texts: Sequence[tuple[str, ...]],
        answers: Sequence[str],
        read: Callable[[list[float]], float | None],
    ) -> Iterator[tuple[int, _Sheet]]:
        """Sheets as they are filled with what `read` made of the answers' log-probabilities."""
        sheets = [_Sheet(each, len(each)) for each in texts]
        todo = [(index, order) for index, each in enumerate(texts) for order in range(len(each))]
        flat = [texts[index][order] for index, order in todo]
        for position, logps in self._speaker.weigh(flat, answers):
            index, order = todo[position]
            sheet = sheets[index]
            if isinstance(logps, Said):
                sheet.fail(logps.failure, logps.words)
            elif (number := read(logps)) is None:
                sheet.fail("no_answer")
            else:
                sheet.said[order].append((number, None))
                sheet.mass.append(sum(map(math.exp, logps)))
            sheet.missing -= 1
            if sheet.missing == 0:
                yield index, sheet


def _choice(reply: str) -> float | str:
    outcome = outcome_of(reply)
    return _WORTH.get(outcome, outcome)


def _verdict(sheet: _Sheet, question: Question) -> Verdict:
    """Both orders as one verdict, with everything that was said on the way."""
    both = merged(Verdict(sheet.mean(0)), Verdict(sheet.mean(1)))
    transcript: dict[str, Any] = {**both.transcript}
    for name, said in zip(("forward", "backward"), sheet.said, strict=True):
        transcript[name] = {"said": [number for number, _ in said]}
        if replies := [reply for _, reply in said if reply is not None]:
            transcript[name]["replies"] = replies
    if sheet.failures:
        transcript["failures"] = dict(sheet.failures)
    if sheet.mass:
        transcript["mass"] = fmean(sheet.mass)
    if sheet.refusal:
        transcript["refusal"] = sheet.refusal
    if claims := claimed_verdicts(question.first, question.second):
        transcript["claimed_verdicts"] = claims
    rationale = next((reply for _, reply in sheet.said[0]), None)
    return Verdict(both.probability, rationale, both.order_consistent, transcript)


def _places(items: Sequence[Any]) -> dict[Any, list[int]]:
    """The distinct items, each with its positions."""
    places: dict[Any, list[int]] = {}
    for position, item in enumerate(items):
        places.setdefault(item, []).append(position)
    return places


def _in_order(
    coming: Iterator[tuple[int, Any]], count: int, progress: Progress | None
) -> list[Any]:
    found: dict[int, Any] = {}
    for position, item in coming:
        found[position] = item
        if progress is not None:
            progress(len(found), count)
    return [found[position] for position in range(count)]


def make_language(chosen: settings.Local | settings.Server, context: Context) -> Judge:
    """A model on this machine, or behind a server.

    Raises:
        RecipeError: the rubric, the URL or the settings are wrong.
        PolicyError: the model cannot be loaded.
        MissingExtraError: the package openai is not installed.
    """
    rubric = load_rubric(chosen.rubric)
    return reader(chosen, context)(rubric)


def reader(
    chosen: settings.Local | settings.Server, context: Context
) -> Callable[[Rubric], LanguageJudge]:
    """A model that is loaded once, and judges by any rubric.

    Raises:
        As `make_language`.
    """
    reading = _reading(chosen, context)
    speaker = speaker_of(chosen, context)
    return lambda rubric: LanguageJudge(speaker, rubric, **reading)


#: settings of replies that are written
_OF_TEXT = ("judgements", "retries", "temperature", "max_new_tokens", "seed")


def _reading(chosen: settings.Local | settings.Server, context: Context) -> dict[str, Any]:
    if chosen.mode == "logprobs":
        for name in _OF_TEXT:
            if name in chosen.model_fields_set:
                raise context.refusal(
                    f"{name} has no effect: by log-probabilities nothing is written",
                    name,
                    value=getattr(chosen, name),
                    remedy=f"remove {name}, or set mode: text",
                )
    return {name: getattr(chosen, name) for name in ("mode", *_OF_TEXT)}
