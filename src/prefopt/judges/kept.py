"""Verdicts that are kept: nothing is asked twice, in one call, over restarts, or by two processes.

A folder has two files for each judge, named by a digest of what its verdicts depend on:

    <digest>.json     that identity, for people
    <digest>.jsonl    one line for each question that was asked, added as its verdict came

A line is on disk before anybody hears of the verdict (`lines`). Of two processes with one judge
and one folder the second waits until the first has asked, and then asks the rest. A question that
got no reply at all, as it is too long or the server refuses it, is not kept: it cost nothing, and
another server with more room may take it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from prefopt.judges.judge import Judge, Progress, Question, Verdict, parts_of
from prefopt.judges.lines import Line, Lines
from prefopt.judges.orders import SAME, swapped, turned
from prefopt.judges.remembered import remember_in
from prefopt.judges.scoring import Scored, scored_all, scored_each
from prefopt.judges.speaking import NO_REPLY
from prefopt.records import Prompt, prompt_key
from prefopt.runs import explained, write_text

#: questions asked at once of a judge that only gives all its verdicts together
_CHUNK = 32
#: of the transcript of a question that was beyond the budget
NOT_ASKED = {"not_asked": True}
T = TypeVar("T")


class Kept:
    """A judge that remembers.

    Questions are put to the judge in an order that their texts decide, so a question and the
    same with its answers swapped are one, and neither side gains from how a file was written. Two
    answers that are one text are a tie, and nobody is asked.

    Args:
        judge: who is asked what is not known.
        folder: where verdicts are kept; made if it is not there.
        budget: most questions that are asked on this account, ever: of a run that was killed,
            what it had asked counts. None for no limit. What is known costs nothing.
        account: whose budget it is; the folder remembers who asked for what.

    Attributes:
        asked: questions (and scores) that the judge was asked, by this object.
        known: questions that needed no asking: kept before, or the same as another one.
        not_asked: questions that were beyond the budget.

    Raises:
        RunError: the folder cannot be used.
    """

    def __init__(
        self,
        judge: Judge,
        folder: str | Path,
        *,
        budget: int | None = None,
        account: str = "",
    ) -> None:
        self.judge = judge
        self.name = judge.name
        self.sees_order = getattr(judge, "sees_order", True)
        self.budget, self.account = budget, account
        self.asked = self.known = self.not_asked = 0
        identity = json.dumps(dict(judge.identity()), sort_keys=True, ensure_ascii=False)
        digest = hashlib.sha256(identity.encode("utf-8", "surrogatepass")).hexdigest()[:24]
        self._lines = Lines(Path(folder) / f"{digest}.jsonl")
        self._about = Path(folder) / f"{digest}.json"
        with explained(Path(folder)):
            Path(folder).mkdir(parents=True, exist_ok=True)
        if not hasattr(judge, "compare_each"):  # one that says much before there is a verdict
            remember_in(Path(folder), judge)

    def identity(self) -> Mapping[str, Any]:
        return self.judge.identity()

    def compare_all(
        self, questions: Sequence[Question], progress: Progress | None = None
    ) -> list[Verdict]:
        """Verdicts, from what is kept where that has them.

        A question beyond the budget has no probability, and `not_asked` in its transcript.
        """
        canonical = [_canonical(question) for question in questions]
        keys = [_key("compare", one.prompt, one.first, one.second) for one in canonical]
        for question, key in zip(canonical, keys, strict=True):
            if question.first == question.second:
                self._lines.hold({"key": key, **_line(SAME)})
        self._learn(keys, canonical, _verdicts, progress)
        verdicts = []
        for question, one, key in zip(questions, canonical, keys, strict=True):
            verdict = _verdict(self._lines.get(key))
            verdicts.append(verdict if one == question else turned(verdict))
        return verdicts

    def score_all(
        self, answers: Sequence[tuple[Prompt, str]], progress: Progress | None = None
    ) -> list[float | None]:
        """Scores, from what is kept where that has them; None beyond the budget too."""
        return [score for score, _ in self.scored(answers, progress)]

    def scored(
        self, answers: Sequence[tuple[Prompt, str]], progress: Progress | None = None
    ) -> list[Scored]:
        """Scores, each with the replies that could not be read on the way to it."""
        keys = [_key("score", *answer) for answer in answers]
        self._learn(keys, answers, _scores, progress)
        lines = [self._lines.get(key) or {} for key in keys]
        return [(line.get("score"), line.get("failures", {})) for line in lines]

    def spent(self) -> int:
        """Questions that were ever asked on this account."""
        self._lines.refresh()
        return self._lines.accounts.get(self.account, 0)

    def _learn(
        self, keys: Sequence[str], items: Sequence[Any], ask: Any, progress: Progress | None
    ) -> None:
        """Ask what is not known yet, and keep each answer as it comes."""
        self._lines.refresh()
        if all(self._lines.get(key) is not None for key in keys):
            self.known += len(keys)
            if progress is not None:
                progress(len(keys), len(keys))
            return
        with self._lines.asking():
            if not self._about.exists():
                write_text(self._about, json.dumps(dict(self.identity()), indent=2) + "\n")
            self._ask(keys, dict(zip(keys, items, strict=True)), ask, progress)

    def _ask(
        self, keys: Sequence[str], wanted: Mapping[str, Any], ask: Any, progress: Progress | None
    ) -> None:
        spent = self.spent()
        unknown = [key for key in wanted if self._lines.get(key) is None]
        if self.budget is not None:
            allowed = max(0, self.budget - spent)
            beyond = set(unknown[allowed:])
            unknown = unknown[:allowed]
            self.not_asked += sum(key in beyond for key in keys)
            self.known -= sum(key in beyond for key in keys)
        self.known += len(keys) - len(unknown)
        done = len(keys) - len(unknown)
        if progress is not None:
            progress(done, len(keys))
        with closing(ask(self.judge, [wanted[key] for key in unknown])) as coming:
            for lines in coming:
                said = [
                    {"key": unknown[position], "account": self.account, **line}
                    for position, line in lines
                ]
                if kept := [line for line in said if _replied(line)]:
                    self._lines.add(kept)
                for line in said:
                    self._lines.hold(line)
                self.asked += len(lines)
                done += len(lines)
                if progress is not None:
                    progress(done, len(keys))


def inner(judge: Judge) -> Judge:
    """The judge whose verdicts are kept, or the judge itself."""
    return judge.judge if isinstance(judge, Kept) else judge


def _verdicts(judge: Judge, questions: Sequence[Question]) -> Iterator[list[tuple[int, Line]]]:
    """Lines for verdicts as they come, a few at a time."""
    each = getattr(judge, "compare_each", None)
    for said in _coming(questions, each, judge.compare_all, judge):
        yield [(position, _line(verdict)) for position, verdict in said]


def _scores(
    judge: Judge, answers: Sequence[tuple[Prompt, str]]
) -> Iterator[list[tuple[int, Line]]]:
    """Lines for scores as they come, a few at a time."""
    each = partial(scored_each, judge) if hasattr(judge, "score_each") else None
    for said in _coming(answers, each, partial(scored_all, judge), judge):
        yield [(place, {"score": score, "failures": why}) for place, (score, why) in said]


def _coming(items: Sequence[T], each: Any, ask: Any, judge: Judge) -> Iterator[list[Any]]:
    """What a judge says: one by one if it hands that over, else a chunk at a time."""
    if each is not None:
        with closing(each(items)) as coming:
            yield from ([one] for one in coming)
        return
    size = getattr(judge, "chunk", _CHUNK)
    numbered = iter(enumerate(items))
    while chunk := list(islice(numbered, size)):
        said = ask([item for _, item in chunk])
        yield list(zip((position for position, _ in chunk), said, strict=True))


def _canonical(question: Question) -> Question:
    """The question in the order in which it is asked, which its texts decide."""
    first, second = (_digest(question.prompt, side) for side in (question.first, question.second))
    return question if first <= second else swapped(question)


def _replied(line: Line) -> bool:
    """Whether somebody has said something, if only what could not be read."""
    if line.get("probability") is not None or line.get("score") is not None:
        return True
    told = [line, *parts_of(line.get("transcript"))]
    failures = {kind for part in told for kind in part.get("failures") or ()}
    return not failures or not failures <= NO_REPLY


def _line(verdict: Verdict) -> Line:
    return {
        "probability": verdict.probability,
        "rationale": verdict.rationale,
        "order_consistent": verdict.order_consistent,
        "transcript": dict(verdict.transcript),
    }


def _verdict(line: Line | None) -> Verdict:
    if line is None:
        return Verdict(None, transcript=dict(NOT_ASKED))
    return Verdict(
        line["probability"], line["rationale"], line["order_consistent"], line["transcript"]
    )


def _digest(prompt: Prompt, text: str) -> bytes:
    content = prompt_key(prompt) + text.encode("utf-8", "surrogatepass")
    return hashlib.blake2b(content, digest_size=16).digest()


def _key(what: str, prompt: Prompt, *texts: str) -> str:
    content = b"".join(_digest(prompt, text) for text in texts)
    return hashlib.blake2b(what.encode() + content, digest_size=16).hexdigest()
