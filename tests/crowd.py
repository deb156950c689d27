"""A crowd of annotators over HTTP, and the books that are audited when they have gone home.

Each annotator is a thread with a connection of its own. What the server acknowledged is written
down by who was told so, and `audit` then looks for it in the database.
"""

from __future__ import annotations

import http.client
import random
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from prefopt.labelling.store import Store
from prefopt.labelling.words import Event
from tests.served import Json, Reply, Visitor

CHOICES = ("left", "right", "tie", "both_bad")


@dataclass(frozen=True)
class Acknowledged:
    """An answer that the server said it has."""

    key: str
    lease: int
    pressed: str
    event: int
    repeated: bool


@dataclass
class Manners:
    """How annotators behave.

    Attributes:
        think: mean seconds between seeing a question and answering it; drawn exponentially.
        skip, undo: shares of questions that are skipped, and of answers that are taken back.
        again: share of requests that are sent twice although they were answered.
        reload: share of questions that are asked for once more before they are answered.
        patience: seconds to go on trying when the server is away; 0 gives up at once.
    """

    think: float = 0.0
    skip: float = 0.05
    undo: float = 0.02
    again: float = 0.02
    reload: float = 0.1
    patience: float = 0.0


@dataclass
class Labeller:
    """One annotator: signs in, and answers until there is nothing left to do for anybody.

    Who is told that all is done stays until the others are too: one of them may skip a question.
    From then on nobody skips or takes back, so that there is an end.
    """

    port: int
    token: str
    task: str
    seed: int
    manners: Manners
    others_busy: Callable[[], bool]
    acknowledged: list[Acknowledged] = field(default_factory=list)
    undone: list[str] = field(default_factory=list)
    answering: list[float] = field(default_factory=list)
    reloading: list[float] = field(default_factory=list)
    troubles: Counter[str] = field(default_factory=Counter)
    resting: bool = False
    rested: bool = False
    failure: BaseException | None = None

    def run(self) -> None:
        """What the thread does; whatever goes wrong is kept for `crowd` to raise."""
        try:
            self._draw = random.Random(self.seed)
            self._visitor = Visitor(self.port)
            self._enter()
            self._label()
        except BaseException as failure:
            self.failure = failure
        finally:
            self.resting = True
            self._visitor.close()

    def _enter(self) -> None:
        reply = self._sure("POST", f"/enter/{self.token}", {}, json=False)
        assert reply.status == 303, (reply.status, reply.text[:500])

    def _label(self) -> None:
        manners, draw = self.manners, self._draw
        question = self._question()
        while (question := self._rest(question)) is not None:
            if manners.think:
                time.sleep(draw.expovariate(1 / manners.think))
            if draw.random() < manners.reload:
                started = time.perf_counter()
                again = self._question()
                self.reloading.append(time.perf_counter() - started)
                assert again.get("lease") == question["lease"], "a reload moved on"
                question = again
            question = self._answer(question)
            if draw.random() < manners.undo and not self.rested:
                question = self._undo(question)

    def _rest(self, question: Json) -> Json | None:
        """The next question, after waiting for one if there is none now; None: go home."""
        while question.get("done"):
            self.resting = self.rested = True
            last = not self.others_busy()
            if not last:
                time.sleep(0.2)
            question = self._question()
            if last and question.get("done"):
                return None
        self.resting = False
        return question

    def _question(self) -> Json:
        reply = self._sure("GET", f"/tasks/{self.task}", None)
        assert reply.status == 200, (reply.status, reply.text[:500])
        return reply.json

    def _answer(self, question: Json) -> Json:
        skips = self._draw.random() < self.manners.skip and not self.rested
        pressed = "skip" if skips else self._draw.choice(CHOICES)
        fields = {name: question[name] for name in ("csrf", "lease", "key")}
        fields |= {"choice": pressed, "seconds": f"{self._draw.uniform(1, 60):.2f}"}
        path = f"/tasks/{self.task}/answers"
        started = time.perf_counter()
        reply = self._sure("POST", path, fields)
        self.answering.append(time.perf_counter() - started)
        if reply.status == 409:  # the lease went to somebody else while the server was away
            self.troubles["409"] += 1
            return self._question()
        assert reply.status == 200, (reply.status, reply.text[:500])
        found = reply.json
        told = Acknowledged(
            fields["key"], int(fields["lease"]), pressed, found["event"], found["repeated"]
        )
        self.acknowledged.append(told)
        if self._draw.random() < self.manners.again:
            second = self._sure("POST", path, fields)
            assert second.status == 200, (second.status, second.text[:500])
            assert (second.json["event"], second.json["repeated"]) == (told.event, True)
            return dict(second.json["next"])
        return dict(found["next"])

    def _undo(self, question: Json) -> Json:
        fields = {"csrf": question["csrf"], "key": f"undo-{len(self.answering)}"}
        reply = self._sure("POST", f"/tasks/{self.task}/undo", fields)
        assert reply.status == 200, (reply.status, reply.text[:500])
        if reply.json["undone"]:  # a skip whose slot somebody else has filled since stays one
            self.undone.append(fields["key"])
        return self._question()

    def _sure(
        self, method: str, path: str, fields: Mapping[str, object] | None, *, json: bool = True
    ) -> Reply:
        """Send, and send the very same again while the server is away."""
        until = time.monotonic() + self.manners.patience
        while True:
            try:
                reply = self._visitor.send(method, path, fields, json=json)
            except (OSError, http.client.HTTPException) as broken:
                trouble = type(broken).__name__
            else:
                if reply.status != 503:
                    return reply
                trouble = "503"
            self.troubles[trouble] += 1
            if time.monotonic() > until:
                raise AssertionError(f"{method} {path.partition('enter')[0]}: {trouble}")
            time.sleep(self._draw.uniform(0.02, 0.1))


@dataclass
class Crowd:
    """All of them at once; a context in which they work."""

    labellers: Sequence[Labeller]

    @property
    def acknowledged(self) -> int:
        return sum(len(labeller.acknowledged) for labeller in self.labellers)

    def busy(self) -> bool:
        """Whether anybody has a question, or is about to ask for one."""
        return not all(labeller.resting for labeller in self.labellers)

    def start(self) -> None:
        self._threads = [
            threading.Thread(target=labeller.run, daemon=True) for labeller in self.labellers
        ]
        for thread in self._threads:
            thread.start()

    def working(self) -> bool:
        return any(thread.is_alive() for thread in self._threads)

    def wait(self, seconds: float) -> None:
        """Until all have gone home.

        Raises:
            AssertionError: somebody is still at work; or what went wrong with one of them.
        """
        until = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(timeout=max(0.0, until - time.monotonic()))
        for labeller in self.labellers:
            if labeller.failure is not None:
                raise labeller.failure
        assert not self.working(), "still at work"


def crowd(port: int, tokens: Sequence[str], task: str, manners: Manners) -> Crowd:
    """One labeller for each link."""
    made = Crowd([])
    made.labellers = [
        Labeller(port, token, task, seed, manners, made.busy) for seed, token in enumerate(tokens)
    ]
    return made


# -- the books ------------------------------------------------------------------------------


def audit(store: Store, task: str, people: Mapping[str, Labeller]) -> Json:
    """What the database has, beside what the people were told.

    Args:
        people: by name.

    Raises:
        AssertionError: an acknowledged answer is not there, or is there twice, or says something
            else; an unknown one is there; an item has more votes than its task wants; the
            projection is not what the events amount to.
    """
    events = list(store.events(task))
    by_id = {event.id: event for event in events}
    names = {person.id: person.name for person in store.annotators()}
    said = [event for event in events if event.kind in ("vote", "skip")]
    undos = [event for event in events if event.kind == "undo"]
    told = {(name, one.key): one for name, person in people.items() for one in person.acknowledged}
    written = Counter((names[event.annotator], event.key) for event in said)
    lost = sorted(set(told) - set(written))
    unknown = sorted(set(written) - set(told))
    assert not lost, f"{len(lost)} acknowledged answers are not in the database: {lost[:3]}"
    assert not unknown, f"{len(unknown)} answers that nobody was told of: {unknown[:3]}"
    assert set(written.values()) <= {1}, "an answer is there twice"
    for event in said:
        one = told[names[event.annotator], event.key]
        assert event.id == one.event
        assert _said(by_id[one.lease], event) == one.pressed, "another answer than was given"
    taken_back = {name: list(person.undone) for name, person in people.items() if person.undone}
    found: dict[str, list[str]] = defaultdict(list)
    for event in undos:
        found[names[event.annotator]].append(event.key)
    assert found == taken_back
    standing = _standing(events)
    _no_slot_twice(store, task, standing)
    before = sorted(map(repr, store.claims(task)))
    store.rebuild(task)
    assert sorted(map(repr, store.claims(task))) == before, "replaying gives another state"
    return {
        "answers": len(said),
        "skips": sum(event.kind == "skip" for event in said),
        "undone": len(undos),
        "standing": sum(event.kind == "vote" for event in standing),
        "repeated": sum(one.repeated for one in told.values()),
    }


def _said(lease: Event, event: Event) -> str:
    """What must have been pressed, from the sides that the lease says and the vote as stored."""
    assert lease.kind in ("lease", "undo") and lease.item == event.item
    assert (lease.annotator, lease.repeat) == (event.annotator, event.repeat)
    if event.kind == "skip":
        return "skip"
    said = event.payload["said"]
    if said in ("tie", "both_bad"):
        return str(said)
    return "left" if (said == "second") == lease.payload["swapped"] else "right"


def _standing(events: Sequence[Event]) -> list[Event]:
    """Votes and skips that no undo has taken back."""
    gone = {event.payload["event"] for event in events if event.kind == "undo"}
    return [event for event in events if event.kind in ("vote", "skip") and event.id not in gone]


def _no_slot_twice(store: Store, task: str, standing: Sequence[Event]) -> None:
    overlap = store.task(task).overlap
    normal = {item.id for item in store.items(task) if item.kind == "normal"}
    once = Counter((event.item, event.annotator, event.repeat) for event in standing)
    assert set(once.values()) <= {1}, "somebody's answer to a question stands twice"
    filled = Counter(
        event.item
        for event in standing
        if event.kind == "vote" and event.repeat == 0 and event.item in normal
    )
    over: dict[int, Any] = {item: count for item, count in filled.items() if count > overlap}
    assert not over, f"more votes than the overlap of {overlap}: {over}"
