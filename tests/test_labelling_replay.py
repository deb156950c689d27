"""Any sequence of leases, answers, undoings and waiting: the events say all that there is.

The store is driven by generated sequences, and after each step it is held against an account of
it by brute force: every event is looked at again, nothing is remembered in between.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prefopt.errors import DataError
from prefopt.labelling.database import open_database
from prefopt.labelling.refusals import LeaseError
from prefopt.labelling.replaying import replay
from prefopt.labelling.store import Store
from prefopt.labelling.tables import claims, members, places
from prefopt.labelling.turns import Turn
from prefopt.labelling.words import Answer, Event, NewItem, Shown, Task
from prefopt.records import Completion
from tests.clock import Clock

LEASE = 100
_tasks = itertools.count()


# -- an account by brute force -----------------------------------------------------------------


@dataclass
class Account:
    """What is so at one moment, from the events alone."""

    votes: dict[int, set[int]] = field(default_factory=dict)  # item -> who voted, repeat 0
    leases: dict[int, dict[int, float]] = field(default_factory=dict)  # item -> who -> until
    answered: dict[int, list[tuple[int, int]]] = field(default_factory=dict)

    def __init__(self, events: list[Event]) -> None:
        undone = {event.payload["event"] for event in events if event.kind == "undo"}
        self.votes, self.leases, self.answered = {}, {}, {}
        for event in events:
            asked = event.item, event.repeat
            if event.kind == "lease" and event.repeat == 0:
                live = self.leases.setdefault(event.item, {})
                live[event.annotator] = event.payload["until"]
            if event.kind in ("vote", "skip") and event.id not in undone:
                self.answered.setdefault(event.annotator, []).append(asked)
                if event.kind == "vote" and event.repeat == 0:
                    self.votes.setdefault(event.item, set()).add(event.annotator)
                if event.repeat == 0:
                    self.leases.get(event.item, {}).pop(event.annotator, None)
        for annotator, done in self.answered.items():
            for item, repeat in done:
                if repeat == 0:  # answered, undone, answered again: the later lease is used up
                    self.leases.get(item, {}).pop(annotator, None)

    def filled(self, item: int, now: float, *, but: int | None = None) -> int:
        """Slots of an item that are not free, those of one annotator left out."""
        live = {who for who, until in self.leases.get(item, {}).items() if until > now}
        return len((self.votes.get(item, set()) | live) - {but})

    def can_have(self, annotator: int, normal: set[int], overlap: int, now: float) -> set[int]:
        mine = {item for item, repeat in self.answered.get(annotator, []) if repeat == 0}
        return {item for item in normal - mine if self.filled(item, now, but=annotator) < overlap}


# -- the store, driven ---------------------------------------------------------------------------


class Room:
    """A task with a few items and annotators, and what they hold in their hands."""

    def __init__(self, store: Store, clock: Clock, task: Task, normal: int, gold: int) -> None:
        self.store, self.clock, self.task = store, clock, task
        store.add_task(task)
        store.add_items(
            task.name,
            [
                NewItem(
                    f"prompt {n}", Completion("a"), Completion("b"), priority=float(n % 2),
                    gold="first" if n >= normal else None,
                )
                for n in range(normal + gold)
            ],
        )  # fmt: skip
        items = list(store.items(task.name))
        self.normal = {item.id for item in items if item.kind == "normal"}
        self.people = [store.add_annotator(f"person {n}").id for n in range(3)]
        self.seen: dict[int, list[Shown]] = {who: [] for who in self.people}
        self.sent: list[tuple[int, int, str, Answer, int]] = []
        self.keys = itertools.count()

    def events(self) -> list[Event]:
        return list(self.store.events(self.task.name))

    def ask(self, who: int) -> None:
        before = Account(self.events())
        shown = self.store.next(self.task.name, who)
        possible = before.can_have(who, self.normal, self.task.overlap, self.clock.now)
        if shown is None:
            assert not possible, "told that all is done while there was something to do"
            return
        assert shown.until > self.clock.now
        old = [one for one in self.seen[who] if one.lease == shown.lease]
        if old:
            assert replace(old[-1], before=None) == shown, "the question they have, unchanged"
        elif shown.item.id in self.normal and shown.repeat == 0:
            assert shown.item.id in possible
        first = [one for one in self.seen[who] if one.item.id == shown.item.id]
        for one in first:
            assert shown.swapped == (one.swapped != (one.repeat != shown.repeat))
        self.seen[who].append(shown)

    def answer(self, who: int, pressed: str, back: int) -> None:
        """Answer the question that they saw last, or an earlier one, from an old window."""
        if len(self.seen[who]) <= back:
            return
        shown = self.seen[who][-1 - back]
        account = Account(self.events())
        done = (shown.item.id, shown.repeat) in account.answered.get(who, [])
        slot = shown.repeat or shown.item.id not in self.normal or pressed == "skip"
        slot = slot or account.filled(shown.item.id, self.clock.now, but=who) < self.task.overlap
        key, answer = f"key {next(self.keys)}", Answer(pressed)  # type: ignore[arg-type]
        try:
            told = self.store.answer(self.task.name, who, shown.lease, key, answer)
        except LeaseError:
            # A lease that nobody has used the end of is as good as a live one, and the account
            # by the clock is stricter than the store, never the other way round.
            assert done or not slot
            return
        assert not done and not told.repeated
        self.sent.append((who, shown.lease, key, answer, told.event))

    def send_again(self, which: int) -> None:
        if not self.sent:
            return
        who, lease, key, answer, event = self.sent[which % len(self.sent)]
        before = len(self.events())
        told = self.store.answer(self.task.name, who, lease, key, replace(answer, seconds=9.0))
        assert (told.event, told.repeated) == (event, True)
        other = Answer("tie" if answer.pressed != "tie" else "left")
        with pytest.raises(LeaseError):
            self.store.answer(self.task.name, who, lease, key, other)
        assert len(self.events()) == before

    def undo(self, who: int) -> None:
        before = self.events()
        account = Account(before)
        key = f"key {next(self.keys)}"
        shown = self.store.undo(self.task.name, who, key)
        if shown is None:
            assert len(self.events()) == len(before)
            assert self.store.undo(self.task.name, who, key) is None
            if account.answered.get(who):
                item, repeat = account.answered[who][-1]
                assert repeat == 0 and item in self.normal
                assert account.filled(item, self.clock.now, but=who) >= self.task.overlap
            return
        assert (shown.item.id, shown.repeat) == account.answered[who][-1]
        assert shown.before is not None
        assert self.store.undo(self.task.name, who, key) == shown
        self.seen[who].append(shown)

    def wait(self, seconds: int) -> None:
        self.clock.now += seconds

    def overlap(self, to: int) -> None:
        """More or fewer annotators are wanted; what is there stays."""
        if to >= self.task.overlap:  # fewer would make past leases look like too many
            self.task = replace(self.task, overlap=to)
            self.store.change_task(self.task)

    def check(self) -> None:
        """The projections are what the events say, and no slot is filled twice."""
        name, now = self.task.name, self.clock.now
        events = self.events()
        account = Account(events)
        for item in self.normal:
            assert account.filled(item, now) <= self.task.overlap
        for done in account.answered.values():
            assert len(done) == len(set(done)), "asked twice"
        found = {(c.item, c.annotator, c.repeat): c for c in self.store.claims(name)}
        assert found == replay(events)
        progress = self.store.progress(name, self.people[0])
        votes = [len(account.votes.get(item, ())) for item in self.normal]
        assert progress.votes == sum(votes)
        assert progress.done == sum(count >= self.task.overlap for count in votes)
        assert progress.mine == len(account.answered.get(self.people[0], []))

    def projections(self) -> dict[str, Any]:
        """Everything that is kept beside the events; slots of ended leases are free."""
        number = self.store._number(self.task.name)
        read = self.store.database.read
        rows = {
            table.name: [tuple(row) for row in read(sa.select(table).where(table.c.task == number))]
            for table in (claims, places)
        }
        done = members.c.answered, members.c.votes
        standing = sa.select(members.c.annotator, *done).where(
            members.c.task == number, members.c.answered > 0
        )
        completed = sa.select(sa.func.sum(members.c.completed)).where(members.c.task == number)
        return {
            **{name: sorted(found, key=repr) for name, found in rows.items()},
            "members": sorted(tuple(row) for row in read(standing)),
            "completed": read(completed)[0][0] or 0,
        }


WHO = st.sampled_from([0, 1, 0, 1, 2])
STEPS = st.one_of(
    st.tuples(st.just("ask"), WHO),
    st.tuples(st.just("ask"), WHO),
    st.tuples(
        st.just("answer"), WHO, st.sampled_from(["left", "right", "tie", "both_bad", "skip"]),
        st.sampled_from([0, 0, 0, 1, 2]),
    ),
    st.tuples(
        st.just("answer"), WHO, st.sampled_from(["left", "right", "skip"]), st.just(0),
    ),
    st.tuples(st.just("undo"), WHO),
    st.tuples(st.just("send_again"), st.integers(0, 5)),
    st.tuples(st.just("wait"), st.sampled_from([1, LEASE // 2, LEASE, LEASE, LEASE])),
    st.tuples(st.just("overlap"), st.integers(1, 3)),
)  # fmt: skip
ANSWERS = st.sampled_from(["left", "right", "skip"])
# What single steps seldom come to by themselves: one slot, wanted by two.
LATE = st.builds(
    lambda one, other, says, also: [
        ("ask", one), ("wait", LEASE), ("ask", other), *([("answer", other, says, 0)] * also),
        ("answer", one, says, 0),
    ],
    WHO, WHO, ANSWERS, st.booleans(),
)  # fmt: skip
SKIP_UNDONE = st.builds(
    lambda one, other, says, early: [
        ("ask", one), ("answer", one, "skip", 0), *([("ask", other)] * early), ("undo", one),
        ("ask", other), ("answer", other, says, 0), ("answer", one, says, 0),
    ],
    WHO, WHO, ANSWERS, st.booleans(),
)  # fmt: skip
SEQUENCES = st.lists(
    st.one_of(STEPS.map(lambda step: [step]), LATE, SKIP_UNDONE), min_size=5, max_size=9
).map(lambda parts: list(itertools.chain.from_iterable(parts)))


@pytest.fixture
def room(database_url: str) -> Iterator[Callable[..., Room]]:
    """`room(overlap=…, normal=…, gold=…, share=…)`: a task of its own in one database."""
    clock = Clock()
    database = open_database(database_url)
    store = Store(database, clock=clock)

    def make(*, overlap: int = 1, normal: int = 4, gold: int = 0, share: float = 0.0) -> Room:
        task = Task(
            f"task-{next(_tasks)}", overlap=overlap, lease_seconds=LEASE, repeat_share=share,
            gold_share=share if gold else 0.0,
        )  # fmt: skip
        return Room(store, clock, task, normal, gold)

    yield make
    database.close()


SLOW = settings(
    max_examples=30, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip


@SLOW
@given(
    steps=SEQUENCES,
    overlap=st.integers(1, 2),
    shape=st.sampled_from([(1, 0, 0.0), (1, 0, 0.0), (2, 0, 0.0), (4, 2, 0.3), (3, 1, 0.5)]),
)
def test_any_sequence_is_what_its_events_say(
    room: Callable[..., Room], steps: list[tuple[Any, ...]], overlap: int, shape: Any
) -> None:
    normal, gold, share = shape
    made = room(overlap=overlap, normal=normal, gold=gold, share=share)
    for name, *arguments in steps:
        if name in ("ask", "answer", "undo"):
            arguments[0] = made.people[arguments[0]]
        getattr(made, name)(*arguments)
        made.check()
    # Slots of ended leases are freed when somebody needs one; here, so that the two compare.
    made.store._turn(made.task.name, made.people[0], Turn.release_late)
    before = made.projections()
    made.store.rebuild(made.task.name)
    assert made.projections() == before


# -- the replaying itself, by hand ---------------------------------------------------------------


def event(number: int, kind: Any, **payload: Any) -> Event:
    return Event(number, kind, 7, 3, 0, f"k{number}", float(number), payload)


LEASED = event(1, "lease", until=9.0, swapped=True)
VOTED = event(2, "vote", said="first", strength=2, flagged=True, comment="so", seconds=1.5)
UNDONE = event(3, "undo", event=2)


def test_a_vote_is_on_its_claim() -> None:
    (claim,) = replay([LEASED, VOTED]).values()
    assert (claim.state, claim.said, claim.strength, claim.flagged) == ("voted", "first", 2, True)
    assert (claim.comment, claim.seconds, claim.event, claim.at) == ("so", 1.5, 2, 2.0)
    assert (claim.lease, claim.until, claim.swapped, claim.place) == (1, 9.0, True, 0)


def test_after_an_undo_the_claim_is_as_before_the_vote() -> None:
    assert replay([LEASED, VOTED, UNDONE]) == replay([LEASED])


def test_a_lease_given_again_is_the_one_that_counts() -> None:
    again = event(4, "lease", until=99.0, swapped=True)
    (claim,) = replay([LEASED, VOTED, UNDONE, again]).values()
    assert (claim.lease, claim.until, claim.state) == (4, 99.0, "leased")


@pytest.mark.parametrize(
    "events",
    [
        [VOTED],
        [UNDONE],
        [LEASED, UNDONE],
        [LEASED, VOTED, event(3, "vote", said="second")],
        [LEASED, VOTED, event(3, "lease", until=9.0, swapped=True)],
        [LEASED, VOTED, event(3, "undo", event=1)],
        [LEASED, VOTED, UNDONE, event(4, "undo", event=2)],
    ],
)
def test_what_cannot_have_happened_is_refused(events: list[Event]) -> None:
    with pytest.raises(DataError, match="cannot have happened"):
        replay(events)


def test_only_the_last_answer_of_somebody_can_be_taken_back() -> None:
    other = [
        Event(4, "lease", 8, 3, 0, "4", 4.0, {"until": 9.0, "swapped": False}),
        Event(5, "vote", 8, 3, 0, "k5", 5.0, {"said": "tie"}),
    ]
    replay([LEASED, VOTED, *other, Event(6, "undo", 8, 3, 0, "k6", 6.0, {"event": 5}),
            Event(7, "undo", 7, 3, 0, "k7", 7.0, {"event": 2})])  # fmt: skip
    with pytest.raises(DataError, match="not their last"):
        replay([LEASED, VOTED, *other, Event(6, "undo", 7, 3, 0, "k6", 6.0, {"event": 2})])


def test_places_count_the_answers_that_stand() -> None:
    counted = Counter(claim.place for claim in replay([LEASED, VOTED]).values())
    assert counted == {0: 1}
