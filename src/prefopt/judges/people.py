"""People as a judge: a labelling task is opened, and its votes are the verdicts.

People take hours, so nobody has to wait for them: what has its votes is handed over, and
`WaitingForPeople` says how much is still out and how they can answer. Whoever asks again later, in
another process, gets what has come in since. The questions are items of the labelling room, known
by their content: none is asked twice.
"""

from __future__ import annotations

import shlex
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from prefopt.errors import MissingExtraError, PrefoptError, RecipeError
from prefopt.judges import settings
from prefopt.judges.judge import Judge, Progress, Question, Verdict, cannot_score
from prefopt.judges.table import Context
from prefopt.records import Completion, Prompt, prompt_key

if TYPE_CHECKING:
    from prefopt.labelling.store import Store

_WORTH = {"first": 1.0, "second": 0.0, "tie": 0.5, "both_bad": 0.5}
_POLL = 2.0  # seconds between two looks at the database
#: of an item: its prompt and both texts
_Content = tuple[bytes, str, str]


class WaitingForPeople(PrefoptError):
    """Not all votes are in. It is no failure: ask again when people have answered.

    Attributes:
        done: questions with all the votes that they want.
        wanted: questions in all.
        task: name of the task.
        command: serves the page on which they are answered.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, task: str, done: int, wanted: int, command: str) -> None:
        super().__init__(
            f"waiting for people: {done:,} of {wanted:,} questions of the task '{task}' have their "
            "votes",
            remedy=f"let them answer with {command}, and run this again",
        )
        self.task, self.done, self.wanted, self.command = task, done, wanted, command


class People:
    """A task of the labelling room as a judge.

    The probability is the share of the votes for the first, a tie (or "both bad") counting half.
    On which side of the screen an answer stands is drawn for each item and annotator, so no
    order is left to correct.

    Args:
        store: the labelling room.
        database: how people name it, for the command.
        task: name; it is made if it is not there.
        overlap: annotators for each question.
        guidelines: Markdown.
        wait: seconds to wait for votes.

    Raises:
        RecipeError: the name cannot be, or the task is there and wants fewer people.
    """

    sees_order = False

    def __init__(
        self,
        store: Store,
        database: str,
        task: str,
        *,
        overlap: int = 1,
        guidelines: str = "",
        wait: float = 0.0,
    ) -> None:
        from prefopt.labelling.words import Task

        self.name = f"people:{task}"
        self._store, self._database, self._task = store, database, task
        self._overlap, self._guidelines, self._wait = overlap, guidelines, wait
        there = next((known for known in store.tasks() if known.name == task), None)
        if there is None:
            store.add_task(Task(task, guidelines=guidelines, overlap=overlap))
        elif there.overlap < overlap:
            raise RecipeError(
                f"the task wants {there.overlap} people for a question, so {overlap} never come",
                field="overlap",
                value=overlap,
                remedy=f"set overlap: {there.overlap}, or prefopt label serve --task {task} "
                f"--overlap {overlap}",
            )

    @property
    def command(self) -> str:
        """What serves the page to the annotators."""
        # A URL is shown without its password.
        shown = self._store.database.name if "://" in self._database else self._database
        words = ["prefopt", "label", "serve", "--db", shown, "--task", self._task]
        return shlex.join(words)

    def identity(self) -> Mapping[str, Any]:
        return {
            "kind": "people", "database": self._store.database.name, "task": self._task,
            "overlap": self._overlap, "guidelines": self._guidelines,
        }  # fmt: skip

    def compare_all(
        self, questions: Sequence[Question], progress: Progress | None = None
    ) -> list[Verdict]:
        """A verdict for each question.

        Raises:
            WaitingForPeople: some have not all their votes yet.
        """
        found: dict[int, Verdict] = {}
        for place, verdict in self.compare_each(questions):
            found[place] = verdict
            if progress is not None:
                progress(len(found), len(questions))
        return [found[place] for place in range(len(questions))]

    def compare_each(self, questions: Sequence[Question]) -> Iterator[tuple[int, Verdict]]:
        """(position, verdict) of the questions that have their votes, as they come.

        Raises:
            WaitingForPeople: at the end, if some have not.
        """
        items = self._items(questions)
        waiting = dict(enumerate(questions))
        end = time.monotonic() + self._wait
        while True:
            votes = self._votes()
            for place, question in list(waiting.items()):
                item, swapped = items[_content(question)]
                said = votes.get(item, [])
                if len(said) >= self._overlap:
                    del waiting[place]
                    yield place, _verdict(said, swapped=swapped)
            if not waiting:
                return
            if time.monotonic() >= end:
                break
            time.sleep(min(_POLL, max(0.0, end - time.monotonic())))
        raise WaitingForPeople(
            self._task, len(questions) - len(waiting), len(questions), self.command
        )

    def score_all(
        self, answers: Sequence[tuple[Prompt, str]], progress: Progress | None = None
    ) -> list[float | None]:
        raise cannot_score(self)

    def _items(self, questions: Sequence[Question]) -> dict[_Content, tuple[int, bool]]:
        """The number of each question's item, and whether its sides are the other way round."""
        from prefopt.labelling.words import NewItem

        known = self._known()
        new: dict[_Content, NewItem] = {}
        for question in questions:
            content = _content(question)
            # The same two answers in the other order are the same question to people.
            if content not in known and _other_way(content) not in new:
                new[content] = NewItem(
                    question.prompt, Completion(question.first), Completion(question.second)
                )
        if new:
            self._store.add_items(self._task, new.values())
            known = self._known()
        return known

    def _known(self) -> dict[_Content, tuple[int, bool]]:
        found: dict[_Content, tuple[int, bool]] = {}
        for item in self._store.items(self._task):
            new = item.new
            content = (prompt_key(new.prompt), new.first.text, new.second.text)
            found.setdefault(content, (item.id, False))
            found.setdefault(_other_way(content), (item.id, True))
        return found

    def _votes(self) -> dict[int, list[str]]:
        """What was said of each item; what comes again to see who agrees with themselves is
        left out."""
        votes: dict[int, list[str]] = defaultdict(list)
        for claim in self._store.claims(self._task):
            if claim.said is not None and claim.repeat == 0:
                votes[claim.item].append(claim.said)
        return votes


def _content(question: Question) -> _Content:
    return prompt_key(question.prompt), question.first, question.second


def _other_way(content: _Content) -> _Content:
    prompt, first, second = content
    return prompt, second, first


def _verdict(said: Sequence[str], *, swapped: bool) -> Verdict:
    share = sum(_WORTH[one] for one in said) / len(said)
    counted = Counter(said)
    if swapped:
        counted = Counter({_OTHER.get(one, one): count for one, count in counted.items()})
    return Verdict(1 - share if swapped else share, transcript={"votes": dict(counted)})


_OTHER = {"first": "second", "second": "first"}


def make_people(chosen: settings.People, context: Context) -> Judge:
    """A task of the labelling room; it is opened if it is not there.

    Raises:
        RecipeError: no database can be there, or the task cannot have that name.
        MissingExtraError: the labelling room is not installed.
    """
    try:
        from prefopt.labelling.database import open_database
        from prefopt.labelling.store import Store
    except ImportError as error:
        raise MissingExtraError(
            "people are asked through the labelling room, which is not installed",
            remedy="pip install 'prefopt[label]'",
        ) from error
    guidelines = ""
    if chosen.guidelines is not None:
        path = Path(chosen.guidelines)
        if not path.is_file():
            raise context.refusal(
                "there is no such file", "guidelines", value=chosen.guidelines,
                remedy="check the path",
            )  # fmt: skip
        guidelines = path.read_text(encoding="utf-8")
    store = Store(open_database(chosen.database))
    return People(
        store,
        chosen.database,
        chosen.task,
        overlap=chosen.overlap,
        guidelines=guidelines,
        wait=chosen.wait,
    )
