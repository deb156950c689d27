"""Answers, criticised and revised by principles, as preferences: revised ≻ original.

Every answer goes through some rounds; each draws a principle, and revises what the round before
left. What was written is kept in a file as it comes, so that a run that was killed goes on.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any

from prefopt.judges.constitution import Constitution, Principle
from prefopt.judges.judge import Judge, Progress, Question
from prefopt.judges.lines import Lines
from prefopt.judges.orders import fairly, settled
from prefopt.judges.revisers import Draft, Revised, Reviser
from prefopt.judges.speaking import NO_REPLY
from prefopt.records import Comparison, Completion, Group, Prompt, prompt_key

#: answers that go through their rounds together, and are kept together
_CHUNK = 32


@dataclass(frozen=True, slots=True)
class Step:
    """One round.

    Attributes:
        principle: its name.
        critique: what was said of the answer.
        text: the answer after it; None if nothing came of it, and the answer before stays.
        failure: why nothing came of it, in a word (`revisers.Revised`).
        words: of a server that refused it.
    """

    principle: str
    critique: str | None
    text: str | None
    failure: str = ""
    words: str = ""


@dataclass(frozen=True, slots=True)
class Trail:
    """What became of an answer, round by round."""

    prompt: Prompt
    original: str
    steps: tuple[Step, ...]

    @property
    def texts(self) -> list[str]:
        """The answer as it was, and after each round."""
        texts = [self.original]
        for step in self.steps:
            texts.append(texts[-1] if step.text is None else step.text)
        return texts

    @property
    def changed(self) -> bool:
        """Whether the rounds left another answer; other spaces at its ends are none."""
        return self.texts[-1].strip() != self.original.strip()

    @property
    def failed(self) -> bool:
        """Whether in any of the rounds nothing was written."""
        return any(step.text is None for step in self.steps)


class Journal:
    """What was written, on disk before anybody hears of it (`lines`).

    Args:
        path: of the file; None keeps nothing.
        about: what the texts depend on beside prompt and answer, as plain JSON.

    Raises:
        RunError: it cannot be read.
    """

    def __init__(self, path: str | Path | None, about: Mapping[str, Any]) -> None:
        self._lines = None if path is None else Lines(Path(path))
        if self._lines is not None:
            self._lines.refresh()
        self._trails: dict[str, tuple[Step, ...]] = {}
        plain = json.dumps(about, sort_keys=True, ensure_ascii=True, default=str)
        self._about = hashlib.blake2b(plain.encode(), digest_size=16).digest()

    def get(self, prompt: Prompt, answer: str) -> tuple[Step, ...] | None:
        """The rounds of an answer, if they are known."""
        key = self._key(prompt, answer)
        line = None if self._lines is None else self._lines.get(key)
        if line is not None and key not in self._trails:
            self._trails[key] = tuple(Step(*step) for step in line["steps"])
        return self._trails.get(key)

    def add(self, trails: Iterable[Trail]) -> None:
        """Keep some; they are on disk when this returns.

        A trail without a reply from anybody is not kept: it cost nothing, and another server with
        more room may give one.
        """
        lines = []
        for trail in trails:
            key = self._key(trail.prompt, trail.original)
            self._trails[key] = trail.steps
            if any(step.critique or step.failure not in NO_REPLY for step in trail.steps):
                lines.append({"key": key, "steps": [[*astuple(step)] for step in trail.steps]})
        if self._lines is not None and lines:
            self._lines.add(lines)

    @contextmanager
    def asking(self) -> Iterator[None]:
        """Hold the right to ask, which one process has at a time, and know what others wrote."""
        if self._lines is None:
            yield
            return
        with self._lines.asking():
            self._lines.refresh()
            yield

    def _key(self, prompt: Prompt, answer: str) -> str:
        content = self._about + prompt_key(prompt) + answer.encode("utf-8", "surrogatepass")
        return hashlib.blake2b(content, digest_size=16).hexdigest()


def revise(
    answers: Sequence[tuple[Prompt, str]],
    constitution: Constitution,
    reviser: Reviser,
    *,
    rounds: int = 1,
    seed: int = 0,
    journal: str | Path | None = None,
    progress: Progress | None = None,
) -> list[Trail]:
    """Take answers through rounds of critique and revision.

    Args:
        answers: prompts and completions; one that is there twice is revised once.
        constitution: the principles.
        reviser: who writes.
        rounds: principles drawn for each answer.
        seed: of the drawing, and of what is written.
        journal: a file where what was written is kept, and found again.
        progress: told the answers done, and of how many.

    Returns:
        A trail for each distinct answer, in order.

    Raises:
        RunError: the journal cannot be read or written.
        PrefoptError: the reviser failed; what it wrote before is kept.
    """
    about = {
        "constitution": constitution.identity(), "reviser": reviser.identity(),
        "rounds": rounds, "seed": seed,
    }  # fmt: skip
    book = Journal(journal, about)
    distinct = list(dict.fromkeys(answers))

    def missing() -> list[tuple[Prompt, str]]:
        return [answer for answer in distinct if book.get(*answer) is None]

    if missing():
        with book.asking():
            left = missing()  # who had the right to ask before may have written some
            for start in range(0, len(left), _CHUNK):
                if progress is not None:
                    progress(len(distinct) - len(left) + start, len(distinct))
                chosen = left[start : start + _CHUNK]
                book.add(_rounds(chosen, constitution, reviser, rounds, seed))
    if progress is not None:
        progress(len(distinct), len(distinct))
    return [Trail(*answer, book.get(*answer) or ()) for answer in distinct]


def _rounds(
    answers: Sequence[tuple[Prompt, str]],
    constitution: Constitution,
    reviser: Reviser,
    rounds: int,
    seed: int,
) -> list[Trail]:
    drawn = [constitution.drawn(*answer, rounds, seed) for answer in answers]
    trails = [Trail(*answer, ()) for answer in answers]
    for number in range(rounds):
        drafts = [
            Draft(trail.prompt, trail.texts[-1], principles[number], seed * 1009 + number)
            for trail, principles in zip(trails, drawn, strict=True)
        ]
        trails = [
            Trail(trail.prompt, trail.original, (*trail.steps, _step(draft.principle, revised)))
            for trail, draft, revised in zip(trails, drafts, reviser.revise(drafts), strict=True)
        ]
    return trails


def _step(principle: Principle, revised: Revised) -> Step:
    return Step(principle.name, revised.critique, revised.text, revised.failure, revised.words)


def pairs_of(
    trails: Iterable[Trail],
    *,
    reviser: str,
    sources: Callable[[Prompt, str], str | None] = lambda prompt, answer: None,
) -> list[Group]:
    """A group for each answer that was changed: the revision, preferred, and the original.

    Args:
        trails: of the answers.
        reviser: name of who revised, the source of the revisions.
        sources: who the originals are of.

    Returns:
        Groups whose `meta` has, under `constitution`, every round: principle, critique and text.
    """
    return [
        Group(
            trail.prompt,
            (
                Completion(trail.texts[-1], source=reviser),
                Completion(trail.original, source=sources(trail.prompt, trail.original)),
            ),
            (Comparison(0, 1),),
            meta={
                "constitution": [
                    {"principle": step.principle, "critique": step.critique, "text": step.text}
                    for step in trail.steps
                ]
            },
        )
        for trail in trails
        if trail.changed
    ]


def failures_of(trails: Iterable[Trail]) -> tuple[Counter[str], str | None]:
    """Rounds in which nothing was written, by kind, and what the first server that refused said."""
    failed = [step for trail in trails for step in trail.steps if step.text is None]
    words = next((step.words for step in failed if step.words), None)
    return Counter(step.failure for step in failed), words


@dataclass
class Tally:
    """What came of a principle.

    Attributes:
        asked: rounds that drew it.
        changed: of them, those that left another answer.
        failed: of them, those in which nothing was written.
        verdicts: of a judge on what was changed, revised against before: `better`, `worse`,
            `tied` and `unreadable`; empty without a judge.
    """

    asked: int = 0
    changed: int = 0
    failed: int = 0
    verdicts: Counter[str] = field(default_factory=Counter)

    def to_dict(self) -> dict[str, Any]:
        counts = {"asked": self.asked, "changed": self.changed, "failed": self.failed}
        return {**counts, **dict(self.verdicts)}


def tallies(
    trails: Iterable[Trail],
    constitution: Constitution,
    judge: Judge | None = None,
    progress: Progress | None = None,
) -> dict[str, Tally]:
    """Statistics of every principle, by name; also of those that were never drawn.

    Args:
        trails: of the answers.
        constitution: whose principles they were revised by.
        judge: compares what a round left with what it found, in both orders.
        progress: told the comparisons done.
    """
    found = {principle.name: Tally() for principle in constitution.principles}
    questions: dict[Question, list[str]] = {}
    for trail in trails:
        texts = trail.texts
        for place, step in enumerate(trail.steps):
            tally = found[step.principle]
            tally.asked += 1
            tally.failed += step.text is None
            if texts[place].strip() != texts[place + 1].strip():
                tally.changed += 1
                question = Question(trail.prompt, texts[place + 1], texts[place])
                questions.setdefault(question, []).append(step.principle)
    if judge is None:
        return found
    for tally in found.values():
        tally.verdicts.update(dict.fromkeys(("better", "worse", "tied", "unreadable"), 0))
    verdicts = fairly(judge, list(questions), progress)
    for names, verdict in zip(questions.values(), verdicts, strict=True):
        for name in names:
            found[name].verdicts[_WORDS[settled(verdict)]] += 1
    return found


_WORDS = {None: "unreadable", 1.0: "better", 0.5: "tied", 0.0: "worse"}
