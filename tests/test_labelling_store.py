"""What the store promises to annotators and to the team, on both databases."""

from __future__ import annotations

import multiprocessing
import os
import signal
import ssl
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from prefopt.errors import DataError, RecipeError, RunError
from prefopt.labelling import database as database_module
from prefopt.labelling import tables
from prefopt.labelling.assigning import APART, moment, sides
from prefopt.labelling.connecting import postgresql_arguments
from prefopt.labelling.contents import Added
from prefopt.labelling.database import Database, open_database
from prefopt.labelling.refusals import AwayError, LeaseError, UnknownTaskError
from prefopt.labelling.replaying import replay
from prefopt.labelling.store import Store
from prefopt.labelling.words import Answer, NewItem, Progress, Shown, Task
from prefopt.records import Completion, Message
from tests.clock import Clock


@pytest.fixture
def store(database_url: str, clock: Clock) -> Iterator[Store]:
    with open_database(database_url) as database:
        yield Store(database, clock=clock)


def asked(n: int, **more: Any) -> NewItem:
    return NewItem(f"prompt {n}", Completion("a"), Completion("b"), **more)


def task_with(store: Store, items: int, *, gold: int = 0, **settings: Any) -> list[int]:
    """A task `t` with items, and three annotators; returns their numbers."""
    store.add_task(Task("t", **{"gold_share": 0.0, "repeat_share": 0.0, **settings}))
    store.add_items("t", [asked(n) for n in range(items)])
    store.add_items("t", [asked(n + items, gold="first") for n in range(gold)])
    return [store.add_annotator(name).id for name in ("ada", "bo", "cy")]


def ask(store: Store, who: int) -> Shown:
    shown = store.next("t", who)
    assert shown is not None
    return shown


def say(store: Store, who: int, pressed: Any = "left", **detail: Any) -> int:
    """Answer the next question; returns its item."""
    shown = ask(store, who)
    store.answer("t", who, shown.lease, f"key {shown.lease}", Answer(pressed, **detail))
    return shown.item.id


# -- what the team brings ------------------------------------------------------------------------


def test_whatever_a_completion_contains_comes_back(store: Store) -> None:
    text = "NUL \0, surrogate \ud800, \u202eright to left, \U0001f469‍\U0001f52c, '; DROP TABLE"
    new = NewItem(
        (Message("system", text), Message("user", "hi")), Completion(text, 0.5, "one"),
        Completion("", None, None), priority=-1.5, gold="both_bad", source="s",
        meta={"deep": [1, {"a": None}], text: text}, media=("00ff",),
    )  # fmt: skip
    store.add_task(Task("t"))
    store.add_items("t", [new])
    (item,) = store.items("t")
    assert item.new == new and item.kind == "gold" and len(item.key) == 32


def test_items_are_known_by_content_and_take_the_new_priority(store: Store) -> None:
    (who, *_) = task_with(store, 0)
    assert store.add_items("t", [asked(1), asked(2), asked(1)]) == Added(new=2, known=1)
    assert store.add_items("t", [asked(3), replace(asked(2), priority=-1.0)]) == Added(1, 1)
    assert [item.new.priority for item in store.items("t")] == [0.0, -1.0, 0.0]
    assert ask(store, who).item.new.prompt == "prompt 2"
    with pytest.raises(DataError, match="another known answer"):
        store.add_items("t", [asked(4), asked(2, gold="first")])
    with pytest.raises(DataError, match="another known answer"):
        store.add_items("t", [asked(5, gold="first"), asked(5, gold="tie")])
    assert len(list(store.items("t"))) == 3, "all or none"
    store.add_items("t", [asked(6, meta={"gold": "first"})])  # of the row, and no known answer
    with pytest.raises(DataError, match="another known answer"):
        store.add_items("t", [asked(6, gold="first")])


def test_many_items_are_read_in_order(store: Store) -> None:
    task_with(store, 503)
    assert [item.new.prompt for item in store.items("t")] == [f"prompt {n}" for n in range(503)]


def test_a_task_is_added_once_and_changed_by_name(store: Store) -> None:
    task = Task("t", guidelines="# Be kind", overlap=2)
    assert store.add_task(task) == store.add_task(task) == store.task("t")
    with pytest.raises(RecipeError, match="exists with other settings: overlap"):
        store.add_task(replace(task, overlap=3))
    store.change_task(replace(task, guidelines="# Be kinder"))
    store.add_task(Task("other"))
    assert store.tasks() == [replace(task, guidelines="# Be kinder"), Task("other")]
    rows = store.database.read(sa.select(tables.settings).where(tables.settings.c.task == 1))
    assert len(rows) == 2, "earlier settings stay on record"
    for action in (store.task, store.progress, store.events, lambda name: store.next(name, 1)):
        with pytest.raises(UnknownTaskError, match="no such task"):
            action("nothing")
    with pytest.raises(UnknownTaskError):
        store.change_task(Task("nothing"))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "a/b"), ("name", ""), ("overlap", 0), ("lease_seconds", 0), ("gold_share", 1.5),
        ("repeat_share", -0.1), ("repeat_share", 0.99),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused(tmp_path: Path, field: str, value: Any) -> None:
    with open_database(str(tmp_path / "votes.db")) as database:
        store = Store(database)
        with pytest.raises(RecipeError) as caught:
            store.add_task(replace(Task("t"), **{field: value}))
    assert caught.value.field == field and caught.value.remedy


def test_a_larger_overlap_opens_items_and_a_smaller_one_closes_them(store: Store) -> None:
    ada, bo, _ = task_with(store, 1)
    say(store, ada)
    assert store.next("t", bo) is None
    store.change_task(replace(store.task("t"), overlap=2))
    assert store.progress("t") == Progress(wanted=2, votes=1, done=0, items=1, mine=0)
    say(store, bo)
    assert store.progress("t", bo) == Progress(wanted=2, votes=2, done=1, items=1, mine=1)
    store.change_task(replace(store.task("t"), overlap=1))
    assert store.progress("t") == Progress(wanted=1, votes=2, done=1, items=1, mine=0)
    assert store.undo("t", bo, "u") is not None
    assert store.progress("t").done == 1


def test_media_are_kept_by_content(store: Store) -> None:
    digest = store.add_media(b"\x89PNG\0", "image/png")
    assert store.add_media(b"\x89PNG\0", "image/png") == digest and len(digest) == 64
    assert store.media(digest) == (b"\x89PNG\0", "image/png")
    assert store.media("0" * 64) is None


# -- what is asked next --------------------------------------------------------------------------


def test_lower_priority_first_then_fewest_answers_then_order(store: Store) -> None:
    ada, bo, cy = task_with(store, 0, overlap=2)
    store.add_items("t", [asked(0, priority=2.0), asked(1, priority=1.0), asked(2, priority=1.0)])
    first, second, third = (item.id for item in store.items("t"))
    assert say(store, ada) == second
    assert say(store, bo) == third, "of two with the same priority the one with fewer answers"
    assert [say(store, ada), say(store, ada)] == [third, first]
    assert [say(store, cy), say(store, cy)] == [second, first]
    assert store.next("t", cy) is None


def test_reloading_gives_the_same_question(store: Store) -> None:
    ada, bo, _ = task_with(store, 3)
    assert ask(store, ada) == ask(store, ada)
    assert ask(store, bo).item != ask(store, ada).item
    assert sum(event.kind == "lease" for event in store.events("t")) == 2


def test_a_slot_is_free_again_when_its_lease_ends(store: Store, clock: Clock) -> None:
    ada, bo, _ = task_with(store, 1, lease_seconds=60)
    old = ask(store, ada)
    clock.now += 59.5
    assert store.next("t", bo) is None
    clock.now += 0.5
    count = len(list(store.events("t")))
    new = ask(store, bo)
    assert new.item == old.item and new.until == clock.now + 60
    assert len(list(store.events("t"))) == count + 1, "that a lease ends is no event"
    with pytest.raises(LeaseError, match="somebody else has it"):
        store.answer("t", ada, old.lease, "late", Answer("left"))
    assert store.answer("t", ada, old.lease, "late", Answer("skip")).event  # takes no slot
    store.answer("t", bo, new.lease, "in time", Answer("left"))


def test_a_late_vote_is_taken_while_the_slot_is_free(store: Store, clock: Clock) -> None:
    ada, bo, cy = task_with(store, 1, lease_seconds=60)
    old = ask(store, ada)
    clock.now += 61
    gone = ask(store, bo)
    clock.now += 61  # nobody has it any more
    store.answer("t", ada, old.lease, "late", Answer("left"))
    assert store.next("t", cy) is None
    with pytest.raises(LeaseError, match="somebody else has it"):
        store.answer("t", bo, gone.lease, "later", Answer("left"))
    assert store.progress("t") == Progress(wanted=1, votes=1, done=1, items=1, mine=0)


def test_gold_items_go_to_everybody_and_take_no_slots(store: Store) -> None:
    ada, bo, _ = task_with(store, 40, gold=3, gold_share=0.1)
    given = [say(store, ada) for _ in range(30)] + [say(store, bo) for _ in range(13)]
    gold = [item.id for item in store.items("t") if item.kind == "gold"]
    assert Counter(item for item in given[:30] if item in gold) == Counter(gold)
    assert sum(item in gold for item in given[30:]) >= 1
    assert store.progress("t", ada) == Progress(
        wanted=40, votes=43 - sum(item in gold for item in given), done=store.progress("t").done,
        items=40, mine=30,
    )  # fmt: skip


def test_a_task_of_gold_items_alone_asks_all_of_them(store: Store) -> None:
    ada, bo, _ = task_with(store, 0, gold=4, gold_share=0.05)
    assert {say(store, ada) for _ in range(4)} == {say(store, bo) for _ in range(4)}
    assert store.next("t", ada) is None
    assert store.progress("t") == Progress(wanted=0, votes=0, done=0, items=0, mine=0)


def test_repeats_are_earlier_votes_with_the_sides_swapped(store: Store) -> None:
    ada, *_ = task_with(store, 60, repeat_share=0.2)
    shown = []
    while (one := store.next("t", ada)) is not None:
        pressed: Any = "skip" if len(shown) % 7 == 0 else "left"
        store.answer("t", ada, one.lease, f"k{one.lease}", Answer(pressed))
        shown.append((one, pressed))
    repeats = [n for n, (one, _) in enumerate(shown) if one.repeat]
    assert len(shown) == 60 + len(repeats) and 12 <= len(repeats) <= 15
    first = {
        one.item.id: (n, one, pressed) for n, (one, pressed) in enumerate(shown) if not one.repeat
    }
    for n in repeats:
        one = shown[n][0]
        before, original, pressed = first[one.item.id]
        assert pressed != "skip" and one.swapped != original.swapped
        assert one.left == original.right
        assert n - before > APART
    assert len({shown[n][0].item.id for n in repeats}) == len(repeats), "once each"


def test_the_same_answers_lead_to_the_same_questions(store: Store) -> None:
    settings = {"repeat_share": 0.2, "gold_share": 0.2, "seed": 7, "overlap": 3}
    ada, *_ = task_with(store, 30, gold=5, **settings)
    other = Store(store.database, clock=store.clock)
    other.add_task(replace(store.task("t"), name="u"))
    other.add_items("u", [item.new for item in store.items("t")])

    def course(task: str) -> list[tuple[Any, ...]]:
        found = []
        while (one := store.next(task, ada)) is not None:
            store.answer(task, ada, one.lease, f"k{one.lease}", Answer("tie"))
            found.append((one.item.key, one.repeat, one.swapped))
        return found

    assert course("t") == course("u")


def test_sides_are_even_and_depend_on_seed_item_and_annotator() -> None:
    drawn = [sides(1, f"{n:032x}", 5, 0) for n in range(2000)]
    assert 900 < sum(drawn) < 1100
    for other in (
        [sides(2, f"{n:032x}", 5, 0) for n in range(2000)],
        [sides(1, f"{n:032x}", 6, 0) for n in range(2000)],
    ):
        assert 900 < sum(one == two for one, two in zip(drawn, other, strict=True)) < 1100
    assert [sides(1, f"{n:032x}", 5, 1) for n in range(2000)] == [not one for one in drawn]


@pytest.mark.parametrize("share", [0.03, 0.05, 0.1, 0.25, 0.3, 0.5, 0.75, 1.0])
def test_one_moment_in_each_stretch(share: float) -> None:
    found = {moment(share, n, "x") for n in range(1000)}
    assert len(found) == pytest.approx(1000 * share, abs=1)
    for first, drawn in found:
        assert first <= drawn < first + 1 / share + 1
        assert moment(share, drawn, "x") == (first, drawn)
    places = {drawn - first for first, drawn in found}
    assert share > 0.5 or len(places) > 1, "it cannot be foreseen"


# -- answers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("pressed", ["left", "right", "tie", "both_bad"])
def test_what_is_stored_is_in_terms_of_first_and_second(store: Store, pressed: Any) -> None:
    ada, *_ = task_with(store, 8)
    swapped = set()
    while (shown := store.next("t", ada)) is not None:
        strength = 2 if pressed in ("left", "right") else None
        answer = Answer(pressed, strength, "correct", True, "so \0", 1.25)
        told = store.answer("t", ada, shown.lease, f"k{shown.lease}", answer)
        (event,) = (event for event in store.events("t") if event.id == told.event)
        better = {"left": shown.left, "right": shown.right}.get(pressed)
        said = (
            pressed
            if better is None
            else ("second" if shown.swapped == (pressed == "left") else "first")
        )
        assert event.payload == {
            "said": said, "strength": strength, "reason": "correct", "flagged": True,
            "comment": "so \0", "seconds": 1.25,
        }  # fmt: skip
        assert (event.item, event.annotator, event.repeat) == (shown.item.id, ada, 0)
        swapped.add(shown.swapped)
    assert swapped == {True, False}


@pytest.mark.parametrize(
    ("field", "answer"),
    [
        ("choice", {"pressed": "first"}),
        ("strength", {"pressed": "left", "strength": 4}),
        ("strength", {"pressed": "left", "strength": True}),
        ("strength", {"pressed": "tie", "strength": 1}),
        ("comment", {"pressed": "left", "comment": "x" * 2001}),
        ("reason", {"pressed": "left", "reason": ""}),
        ("seconds", {"pressed": "left", "seconds": float("nan")}),
        ("seconds", {"pressed": "left", "seconds": -1.0}),
    ],
)
def test_an_answer_that_cannot_be_is_refused(
    tmp_path: Path, field: str, answer: dict[str, Any]
) -> None:
    with open_database(str(tmp_path / "votes.db")) as database:
        store = Store(database)
        ada, *_ = task_with(store, 1)
        lease = ask(store, ada).lease
        with pytest.raises(DataError) as caught:
            store.answer("t", ada, lease, "k", Answer(**answer))
        assert caught.value.field == field
        for key in ("", "x" * 201, "a\0b"):
            with pytest.raises(DataError):
                store.answer("t", ada, lease, key, Answer("left"))
        assert [event.kind for event in store.events("t")] == ["lease"]


def test_a_request_that_comes_again_finds_its_receipt(store: Store, clock: Clock) -> None:
    ada, bo, _ = task_with(store, 2, overlap=2)
    shown = ask(store, ada)
    answer = Answer("left", strength=1, comment="first")
    told = store.answer("t", ada, shown.lease, "k", answer)
    clock.now += 10**6
    again = store.answer("t", ada, shown.lease, "k", replace(answer, seconds=3.0))
    assert (again.event, again.repeated, told.repeated) == (told.event, True, False)
    for other in (replace(answer, comment="second"), Answer("right", 1, None, False, "first")):
        with pytest.raises(LeaseError, match="used for another answer"):
            store.answer("t", ada, shown.lease, "k", other)
    with pytest.raises(LeaseError, match="used for another answer"):
        store.answer("t", ada, ask(store, ada).lease, "k", answer)
    with pytest.raises(LeaseError, match="used for an answer"):
        store.undo("t", ada, "k")
    with pytest.raises(LeaseError, match="answered this question already"):
        store.answer("t", ada, shown.lease, "another key", answer)
    theirs = ask(store, bo)
    assert not store.answer("t", bo, theirs.lease, "k", answer).repeated, "keys are a person's own"


def test_nobody_answers_for_somebody_else(store: Store) -> None:
    ada, bo, _ = task_with(store, 2)
    shown = ask(store, ada)
    for who, lease in ((bo, shown.lease), (ada, 10**9), (ada, 0)):
        with pytest.raises(LeaseError, match="not given to you"):
            store.answer("t", who, lease, "k", Answer("left"))
    with pytest.raises(RecipeError, match="no such annotator"):
        store.next("t", 10**9)
    say(store, bo)
    assert store.undo("t", ada, "u") is None, "there is nothing of theirs to undo"
    store.add_task(Task("u"))
    with pytest.raises(LeaseError, match="not given to you"):
        store.answer("u", ada, shown.lease, "k", Answer("left"))


# -- undo ----------------------------------------------------------------------------------------


def test_an_undo_shows_the_question_again_with_the_answer(store: Store, clock: Clock) -> None:
    ada, bo, _ = task_with(store, 2)
    first = ask(store, ada)
    answer = Answer("left", 3, "correct", True, "because", 4.0)
    told = store.answer("t", ada, first.lease, "k", answer)
    current = ask(store, ada)
    clock.now += 5
    shown = store.undo("t", ada, "u")
    assert shown is not None and shown.before is not None
    assert (shown.item, shown.swapped, shown.repeat) == (first.item, first.swapped, 0)
    assert shown.before["comment"] == "because" and shown.until == clock.now + 900
    assert store.undo("t", ada, "u") == shown, "the same request"
    assert store.next("t", ada) == replace(shown, before=None)
    assert store.next("t", bo) is None, "nothing is free"
    assert store.progress("t", ada) == Progress(wanted=2, votes=0, done=0, items=2, mine=0)
    undo = [event for event in store.events("t") if event.kind == "undo"]
    assert [event.payload for event in undo] == [{"event": told.event}]
    store.answer("t", ada, shown.lease, "k2", Answer("tie"))
    assert store.next("t", ada) == current
    assert store.undo("t", ada, "u") is None, "answered since"
    kinds = [event.kind for event in store.events("t")]
    assert kinds == ["lease", "vote", "lease", "undo", "lease", "vote"]


def test_several_answers_are_taken_back_one_after_the_other(store: Store) -> None:
    ada, *_ = task_with(store, 3)
    items = [say(store, ada, pressed) for pressed in ("left", "skip", "tie")]
    back = [store.undo("t", ada, f"u{n}") for n in range(4)]
    assert [one and one.item.id for one in back] == [*reversed(items), None]
    assert [say(store, ada) for _ in items] == items


def test_a_skip_whose_slot_is_taken_stays_a_skip(store: Store, clock: Clock) -> None:
    ada, bo, _ = task_with(store, 1, lease_seconds=60)
    say(store, ada, "skip", reason="unclear")
    theirs = ask(store, bo)
    assert store.undo("t", ada, "u") is None
    assert store.next("t", ada) is None
    clock.now += 60
    shown = store.undo("t", ada, "u")
    assert shown is not None and shown.item == theirs.item
    assert store.next("t", bo) is None, "the undo has filled the slot"
    assert shown.before == {"reason": "unclear", "flagged": False, "comment": "", "seconds": None}


# -- many at once --------------------------------------------------------------------------------


def test_one_request_sent_many_times_at_once_is_one_vote(store: Store) -> None:
    ada, *_ = task_with(store, 1)
    lease = ask(store, ada).lease
    with ThreadPoolExecutor(8) as pool:
        told = list(
            pool.map(lambda _: store.answer("t", ada, lease, "k", Answer("left")), range(8))
        )
    assert len({one.event for one in told}) == 1
    assert sum(not one.repeated for one in told) == 1


def test_one_annotator_in_many_windows_has_one_question(store: Store) -> None:
    ada, *_ = task_with(store, 20)
    with ThreadPoolExecutor(8) as pool:
        assert (
            len({ask.lease for ask in pool.map(lambda _: store.next("t", ada), range(8)) if ask})
            == 1
        )


def _label(url: str, people: list[int], gate: Any, results: Any) -> None:
    """A process of a few annotators, each a thread, that answer until nothing is left."""
    done: list[int] = []
    with open_database(url) as database:
        store = Store(database)

        def work(who: int) -> None:
            count = 0
            while (shown := store.next("t", who)) is not None:
                store.answer("t", who, shown.lease, f"k{shown.lease}", Answer("left"))
                count += 1
            done.append(count)

        threads = [threading.Thread(target=work, args=(who,)) for who in people]
        gate.wait(60)
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    results.put(done)


def test_four_processes_fill_every_slot_once(store: Store, database_url: str) -> None:
    task_with(store, 40, overlap=3, gold=4, gold_share=0.1, repeat_share=0.1)
    people = [store.add_annotator(f"person {n}").id for n in range(8)]
    context = multiprocessing.get_context("spawn")
    gate, results = context.Event(), context.Queue()
    workers = [
        context.Process(target=_label, args=(database_url, people[n::4], gate, results))
        for n in range(4)
    ]
    for worker in workers:
        worker.start()
    gate.set()
    counts = [results.get(timeout=120) for _ in workers]
    for worker in workers:
        worker.join(60)
    assert [len(done) for done in counts] == [2] * 4, "every thread came to its end"
    normal = {item.id for item in store.items("t") if item.kind == "normal"}
    votes = Counter(
        claim.item for claim in store.claims("t") if claim.item in normal and not claim.repeat
    )
    assert votes == dict.fromkeys(normal, 3), "full, and none above its overlap"
    assert store.progress("t") == Progress(wanted=120, votes=120, done=40, items=40, mine=0)
    events = list(store.events("t"))
    assert sum(map(sum, counts)) == sum(event.kind == "vote" for event in events)
    found = {(claim.item, claim.annotator, claim.repeat): claim for claim in store.claims("t")}
    assert found == replay(events)


def _vote_for_ever(url: str, who: int, told: Any) -> None:
    store = Store(open_database(url))
    while (shown := store.next("t", who)) is not None:
        told.send(store.answer("t", who, shown.lease, f"k{shown.lease}", Answer("left")).event)


def test_what_was_acknowledged_survives_a_kill(store: Store, database_url: str) -> None:
    ada, *_ = task_with(store, 300)
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    worker = context.Process(target=_vote_for_ever, args=(database_url, ada, there))
    worker.start()
    told = [here.recv() for _ in range(20)]
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    worker.join(60)
    while here.poll():
        told.append(here.recv())
    there.close()
    here.close()
    votes = [event.id for event in store.events("t") if event.kind == "vote"]
    assert set(told) <= set(votes) and len(votes) - len(told) in (0, 1)
    assert {tuple(key): claim for key, claim in replay(store.events("t")).items()} == {
        (claim.item, claim.annotator, claim.repeat): claim for claim in store.claims("t")
    }
    say(store, ada)


def _read_after_fork(store: Store, told: Any) -> None:
    store.add_annotator("child")
    told.put([one.name for one in store.annotators()])


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_process_gets_connections_of_its_own(store: Store) -> None:
    store.add_annotator("parent")
    context = multiprocessing.get_context("fork")
    told = context.SimpleQueue()
    child = context.Process(target=_read_after_fork, args=(store, told))
    child.start()
    assert told.get() == ["parent", "child"]
    child.join(60)
    store.add_annotator("parent again")
    assert len(store.annotators()) == 3


# -- export and import ---------------------------------------------------------------------------


def test_events_are_restored_into_another_database(
    store: Store, clock: Clock, tmp_path: Path
) -> None:
    ada, bo, _ = task_with(store, 12, gold=2, overlap=2, gold_share=0.2, repeat_share=0.2)
    for n in range(10):
        say(store, ada, ("left", "right", "skip", "tie")[n % 4])
        say(store, bo)
    store.undo("t", ada, "u")
    with open_database(str(tmp_path / "other.db")) as opened:
        other = Store(opened, clock=clock)
        other.add_task(Task("before"))
        other.add_items("before", [asked(99)])
        people = {bo: other.add_annotator("bo"), ada: other.add_annotator("ada")}
        other.add_task(store.task("t"))
        brought = list(store.items("t")), people, list(store.events("t"))
        other.restore("t", *brought)
        assert [item.new for item in other.items("t")] == [item.new for item in store.items("t")]
        shift = {
            one.id: two.id for one, two in zip(store.items("t"), other.items("t"), strict=True)
        }
        numbers: dict[int, int] = {}
        for one, two in zip(store.events("t"), other.events("t"), strict=True):
            numbers[one.id] = two.id
            payload = dict(one.payload)
            if one.kind == "undo":
                payload["event"] = numbers[payload["event"]]
            assert two == replace(
                one, id=two.id, item=shift[one.item], annotator=people[one.annotator].id,
                key=str(two.id) if one.kind == "lease" else one.key, payload=payload,
            )  # fmt: skip
        assert other.progress("t", people[ada].id) == store.progress("t", ada)
        with pytest.raises(RecipeError, match="only an empty task"):
            other.restore("t", *brought)
        other.add_task(replace(store.task("t"), name="bad"))
        with pytest.raises(DataError, match="names something that is not there"):
            other.restore("bad", brought[0][1:], people, brought[2])
        with pytest.raises(DataError, match="cannot have happened"):
            other.restore("bad", brought[0], people, brought[2][1:])
        assert not list(other.items("bad")) and not list(other.events("bad")), "all or none"


# -- the database --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "", "sqlite://", "sqlite:///:memory:", "mysql://me:secret@host/x", "postgresql://",
        "postgresql://me:secret@host", "http://me:secret@host/x", "postgresql://me:secret@host:x/y",
        "sqlite:///no/such/folder/votes.db", "sqlite:///votes.db?mode=ro",
    ],
)  # fmt: skip
def test_urls_that_name_no_database_are_refused_without_their_password(url: str) -> None:
    with pytest.raises(RecipeError) as caught:
        open_database(url)
    assert "secret" not in str(caught.value) and "secret" not in str(caught.value.to_dict())


@pytest.mark.parametrize(
    ("query", "match"),
    [
        ("sslmode=sometimes", "no such sslmode"),
        ("sslmode=verify-full&sslrootcert=nothing.pem", "certificates cannot be read"),
        ("channel_binding=require", "not known here"),
    ],
)
def test_what_a_url_asks_and_cannot_have_is_refused(query: str, match: str) -> None:
    with pytest.raises(RecipeError, match=match) as caught:
        open_database(f"postgresql://me:secret@127.0.0.1:1/votes?{query}")
    assert caught.value.remedy and "secret" not in str(caught.value)


def test_the_words_for_encryption_are_those_of_libpq(monkeypatch: pytest.MonkeyPatch) -> None:
    def context(mode: str) -> Any:
        return postgresql_arguments(sa.make_url(f"postgresql://host/v?sslmode={mode}"))

    assert context("disable") == {"ssl_context": False} and context("prefer") == {}
    assert context("require") == {"ssl_context": True}
    assert context("verify-full")["ssl_context"].check_hostname
    checked = context("verify-ca")["ssl_context"]
    assert not checked.check_hostname and checked.verify_mode == ssl.CERT_REQUIRED
    monkeypatch.setenv("PGPASSWORD", "quiet")
    with open_database("postgresql://me@host/v") as database:
        assert database.url.password == "quiet" and "quiet" not in database.name
    with open_database("postgresql://me:said@host/v") as database:
        assert database.url.password == "said"


def test_a_server_that_cannot_encrypt_is_refused_where_that_is_wanted(postgresql: Any) -> None:
    url = postgresql.create()
    with open_database(f"{url}?sslmode=disable&application_name=room") as database:
        Store(database)
        (row,) = database.read(sa.text("SELECT current_setting('application_name')"))
        assert row[0] == "room"
    with open_database(f"{url}?sslmode=require") as database, pytest.raises(AwayError):
        Store(database)


def test_a_database_is_named_by_a_path_or_a_url(tmp_path: Path) -> None:
    path = tmp_path / "votes.db"
    assert open_database(str(path)).name == open_database(f"sqlite:///{path}").name
    with pytest.raises(RecipeError, match="no such database"):
        open_database(str(path), create=False)
    with pytest.raises(RecipeError, match="is a folder"):
        open_database(str(tmp_path))
    for prefix in ("postgresql", "postgres", "postgresql+psycopg"):
        name = open_database(f"{prefix}://me:secret@host/votes").name
        assert name == "postgresql+pg8000://me:***@host/votes"
    with open_database(str(path)) as database:
        database.migrate()
        assert open_database(str(path), create=False).file == path
    odd = tmp_path / "50%25 of #1?mode=ro.db"  # a path is a path
    with open_database(str(odd)) as database:
        database.migrate()
        assert odd.exists() and database.file == odd


def test_a_server_that_is_not_there_is_away_and_its_password_unsaid() -> None:
    with (
        open_database("postgresql://me:secret@127.0.0.1:1/votes") as database,
        pytest.raises(AwayError) as caught,
    ):
        Store(database)
    assert "secret" not in str(caught.value) and "127.0.0.1" in str(caught.value)


def test_a_wrong_password_is_said_plainly(postgresql: Any) -> None:
    url = postgresql.create()
    user, _, rest = url.rpartition("@")
    with (
        open_database(f"{user}wrong@{rest}") as database,
        pytest.raises(RecipeError, match="wrong password") as caught,
    ):
        database.migrate()
    assert postgresql.password not in str(caught.value)
    with open_database(f"{url}_not_there") as database, pytest.raises(RecipeError, match="no data"):
        database.migrate()


def test_connections_that_the_server_cut_are_opened_again(postgresql: Any) -> None:
    with open_database(postgresql.create()) as database:
        store = Store(database)
        store.add_annotator("ada")
        cut = (
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE pid != pg_backend_pid() AND datname = current_database()"
        )
        with open_database(database.url.render_as_string(hide_password=False)) as other:
            other.write(lambda connection: connection.execute(sa.text(cut)))
        store.add_annotator("bo")
        with open_database(database.url.render_as_string(hide_password=False)) as other:
            other.write(lambda connection: connection.execute(sa.text(cut)))
        assert [one.name for one in store.annotators()] == ["ada", "bo"]


def test_a_file_that_somebody_holds_is_busy_for_so_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "votes.db")
    with open_database(path) as one:
        store = Store(one)
        store.add_annotator("ada")
        monkeypatch.setattr(database_module, "PATIENCE", 0.2)

        def holding(connection: sa.Connection) -> str:
            with open_database(path) as two, pytest.raises(AwayError, match="busy") as caught:
                two.write(lambda other: other.execute(sa.text("SELECT 1")))
            assert [who.name for who in store.annotators()] == ["ada"], "reading goes on"
            return str(caught.value)

        assert "too long" in one.write(holding)


def test_a_full_disk_is_said_and_nothing_is_half_written(tmp_path: Path) -> None:
    with open_database(str(tmp_path / "votes.db")) as database:
        store = Store(database)
        store.add_task(Task("t"))
        store.add_items("t", [asked(0)])

        def fill(connection: sa.Connection) -> None:
            connection.execute(sa.text("PRAGMA max_page_count=1"))
            connection.execute(
                tables.media.insert().values(digest="d", type="x", data=b"x" * 10**6, at=0.0)
            )

        with pytest.raises(RunError, match="full"):
            database.write(fill)
        assert store.media("d") is None


def test_a_transaction_that_lost_is_tried_again(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two transactions that wait for each other: PostgreSQL ends one, which must not show."""
    if store.database.is_sqlite:
        pytest.skip("SQLite's writers come one after the other")
    store.add_annotator("ada")
    store.add_annotator("bo")
    both = threading.Barrier(2, timeout=30)
    tries = Counter[str]()

    def change(name: str, first: str, second: str) -> Callable[[sa.Connection], None]:
        def act(connection: sa.Connection) -> None:
            tries[name] += 1
            for target in (first, second):
                connection.execute(
                    tables.annotators.update()
                    .where(tables.annotators.c.name == target)
                    .values(at=tables.annotators.c.at + 1)
                )
                if target == first and sum(tries.values()) <= 2:
                    both.wait()

        return act

    with ThreadPoolExecutor(2) as pool:
        for done in [
            pool.submit(store.database.write, change("one", "ada", "bo")),
            pool.submit(store.database.write, change("two", "bo", "ada")),
        ]:
            done.result()
    assert sum(tries.values()) == 3
    rows = store.database.read(sa.select(tables.annotators.c.at))
    assert [row.at for row in rows] == [store.clock() + 2] * 2


def test_both_databases_promise_what_was_committed(store: Store) -> None:
    """What each is told so that a commit waits for the disk."""
    names = ("synchronous", "journal_mode") if store.database.is_sqlite else ("synchronous_commit",)
    query = "PRAGMA {}" if store.database.is_sqlite else "SHOW {}"
    told = [str(_one(store.database, query.format(name))) for name in names]
    assert told == (["2", "wal"] if store.database.is_sqlite else ["on"])


def _one(database: Database, query: str) -> Any:
    return database.write(lambda connection: connection.execute(sa.text(query)).scalar())
