"""Answers, criticised and revised by principles, as preferences: revised ≻ original.

Every answer goes through some rounds; each draws a principle, and revises what the round before
left. What was written is kept in a file as it comes, so that a run that was killed goes on.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prefopt.judges.constitution import Constitution, Principle
from prefopt.judges.judge import Judge, Progress, Question
from prefopt.judges.orders import fairly
from prefopt.judges.revisers import Draft, Revised, Reviser
from prefopt.records import Comparison, Completion, Group, Prompt, prompt_key
from prefopt.runs import explained

#: answers that go through their rounds together, and are kept together
_CHUNK = 32


@dataclass(frozen=True, slots=True)
class Step:
    """One round.

    Attributes:
        principle: its name.
        critique: what was said of the answer.
        text: the answer after it; None if nothing came of it, and the answer before stays.
    """

    principle: str
    critique: str | None
    text: str | None


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
    """What was written, on disk before anybody hears of it.

    Args:
        path: of the file; None keeps nothing.
        about: what the texts depend on beside prompt and answer, as plain JSON.
    """

    def __init__(self, path: str | Path | None, about: Mapping[str, Any]) -> None:
        self._path = None if path is None else Path(path)
        plain = json.dumps(about, sort_keys=True, ensure_ascii=True, default=str)
        self._about = hashlib.blake2b(plain.encode(), digest_size=16).digest()
        self._known: dict[str, tuple[Step, ...]] = {}
        if self._path is not None and self._path.exists():
            with explained(self._path):
                lines = self._path.read_bytes().split(b"\n")
            for line in lines:
                self._take(line)

    def get(self, prompt: Prompt, answer: str) -> tuple[Step, ...] | None:
        """The rounds of an answer, if they are known."""
        return self._known.get(self._key(prompt, answer))

    def add(self, trails: Iterable[Trail]) -> None:
        """Keep some; they are on disk when this returns."""
        lines = []
        for trail in trails:
            key = self._key(trail.prompt, trail.original)
            self._known[key] = trail.steps
            steps = [[step.principle, step.critique, step.text] for step in trail.steps]
            lines.append(json.dumps({"key": key, "steps": steps}))
        if self._path is None or not lines:
            return
        with explained(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with open(self._path, "ab") as handle:
                # A process that was killed while it wrote has left a line without an end.
                handle.write(b"\n" + "\n".join(lines).encode() + b"\n")
                handle.flush()
                os.fsync(handle.fileno())

    def _take(self, line: bytes) -> None:
        try:
            found = json.loads(line)
            self._known[found["key"]] = tuple(Step(*step) for step in found["steps"])
        except (ValueError, TypeError, KeyError):
            return  # not whole: it will be asked again

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
    """
    about = {
        "constitution": constitution.identity(), "reviser": reviser.identity(),
        "rounds": rounds, "seed": seed,
    }  # fmt: skip
    book = Journal(journal, about)
    distinct = list(dict.fromkeys(answers))
    left = [answer for answer in distinct if book.get(*answer) is None]
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
    text = revised.text if revised.text is not None and revised.text.strip() else None
    return Step(principle.name, revised.critique, text)


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
            found[name].verdicts[_word(verdict.probability)] += 1
    return found


def _word(probability: float | None) -> str:
    if probability is None:
        return "unreadable"
    return "better" if probability > 0.5 else "worse" if probability < 0.5 else "tied"
