"""The projections anew, from the events; and events of elsewhere into an empty task.

Both have the task to themselves: turns of annotators wait meanwhile.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

import sqlalchemy as sa

from prefopt.errors import DataError, RecipeError
from prefopt.labelling.contents import insert_items
from prefopt.labelling.documents import dumped, payload_from_text
from prefopt.labelling.replaying import Claim, replay
from prefopt.labelling.tables import claims, events, items, members, places
from prefopt.labelling.turns import needs_slot
from prefopt.labelling.words import Annotator, Event, Item, Task

_CHUNK = 500


def event_of(row: Any) -> Event:
    """An event as it is stored; a lease's key is its own number."""
    return Event(
        row.id, row.kind, row.item, row.annotator, row.repeat,
        str(row.id) if row.key is None else row.key, row.at, payload_from_text(row.payload),
    )  # fmt: skip


def claim_of(row: Any) -> Claim:
    """A claim as it is stored."""
    payload = payload_from_text(row.payload) if row.payload else {}
    return Claim(
        row.item, row.annotator, row.repeat, row.state, row.lease, row.until, row.swapped,
        row.event, row.answered, row.place,
        said=payload.get("said"),
        strength=payload.get("strength"),
        reason=payload.get("reason"),
        flagged=bool(payload.get("flagged", False)),
        comment=payload.get("comment") or "",
        seconds=payload.get("seconds"),
    )  # fmt: skip


def all_events(task: int) -> sa.Select[Any]:
    """The events of a task, in order."""
    return sa.select(events).where(events.c.task == task).order_by(events.c.id)


def rebuild(connection: sa.Connection, number: int, task: Task, now: float) -> None:
    """Make claims, places and members of a task what its events say.

    The caller holds the task's lock alone.

    Raises:
        DataError: the events cannot have happened.
    """
    connection.execute(members.delete().where(members.c.task == number))  # ends all turns first
    history = [event_of(row) for row in connection.execute(all_events(number))]
    payloads = {event.id: event.payload for event in history if event.kind in ("vote", "skip")}
    replayed = replay(history).values()
    gold = set(
        connection.scalars(
            sa.select(places.c.item).where(places.c.task == number, places.c.kind == "gold")
        )
    )
    connection.execute(claims.delete().where(claims.c.task == number))
    _insert(connection, claims, (_claim_row(number, one, gold, payloads, now) for one in replayed))
    voted = sorted(
        (one for one in replayed if one.state == "voted" and _slotted(one, gold)),
        key=lambda one: one.event or 0,
    )
    _place(connection, number, task)
    _join(connection, number, task, [one for one in replayed if one.place is not None], voted)


def _slotted(claim: Claim, gold: set[int]) -> bool:
    return needs_slot("gold" if claim.item in gold else "normal", claim.repeat)


def _claim_row(
    task: int, claim: Claim, gold: set[int], payloads: Mapping[int, Any], now: float
) -> dict[str, Any]:
    out = claim.state == "leased" and claim.until > now and _slotted(claim, gold)
    return {
        "item": claim.item, "annotator": claim.annotator, "repeat": claim.repeat, "task": task,
        "state": claim.state, "lease": claim.lease, "until": claim.until,
        "swapped": claim.swapped, "event": claim.event, "answered": claim.at,
        "place": claim.place,
        "payload": None if claim.event is None else dumped(payloads[claim.event]),
        "holds_until": claim.until if out else None,
    }  # fmt: skip


def _place(connection: sa.Connection, number: int, task: Task) -> None:
    """Count the claims, which are there already."""
    here = sa.select(sa.func.count()).select_from(claims).where(claims.c.item == places.c.item)
    voted = here.where(
        claims.c.state == "voted", claims.c.repeat == 0, places.c.kind == "normal"
    ).scalar_subquery()
    held = here.where(claims.c.holds_until.is_not(None)).scalar_subquery()
    mine = places.c.task == number
    connection.execute(places.update().where(mine).values(votes=voted, filled=voted + held))
    open_now = sa.case((places.c.filled < task.overlap, 1), else_=0)
    connection.execute(places.update().where(mine).values(open=open_now))


def _join(
    connection: sa.Connection, number: int, task: Task, answered: list[Claim], voted: list[Claim]
) -> None:
    votes = Counter(one.annotator for one in voted)
    seen: Counter[int] = Counter()
    completed: Counter[int] = Counter()
    for one in voted:
        seen[one.item] += 1
        completed[one.annotator] += seen[one.item] == task.overlap
    _insert(
        connection,
        members,
        (
            {
                "task": number, "annotator": annotator, "answered": count,
                "votes": votes[annotator], "completed": completed[annotator],
            }
            for annotator, count in Counter(one.annotator for one in answered).items()
        ),
    )  # fmt: skip


def restore(
    connection: sa.Connection,
    number: int,
    brought: list[Item],
    people: Mapping[int, Annotator],
    history: list[Event],
) -> None:
    """Put items and events of elsewhere into an empty task; they get numbers of this database.

    Args:
        brought: items, with the numbers that the events use.
        people: the annotators here, by the numbers that the events use.
        history: in order.

    Raises:
        RecipeError: the task is not empty.
        DataError: an event names an item, an annotator or an event that is not there.
    """
    for table in (items, events):
        if connection.execute(sa.select(table.c.id).where(table.c.task == number).limit(1)).first():
            raise RecipeError("only an empty task can be restored", field="task")
    made = insert_items(connection, number, ((one.key, one.new) for one in brought))
    known = {one.id: new for one, new in zip(brought, made, strict=True)}
    _bring(connection, number, known, people, history)


def _bring(
    connection: sa.Connection,
    task: int,
    known: Mapping[int, int],
    people: Mapping[int, Annotator],
    history: list[Event],
) -> None:
    """Add events under new numbers, many at once; an undo must know the number it takes back."""
    numbers: dict[int, int] = {}
    waiting: list[tuple[int, dict[str, Any]]] = []

    def flush() -> None:
        if waiting:
            statement = events.insert().returning(events.c.id, sort_by_parameter_order=True)
            made = connection.scalars(statement, [row for _, row in waiting]).all()
            numbers.update(zip((old for old, _ in waiting), made, strict=True))
            waiting.clear()

    for event in history:
        payload = dict(event.payload)
        if event.kind == "undo" or len(waiting) == _CHUNK:
            flush()
        try:
            if event.kind == "undo":
                payload["event"] = numbers[payload["event"]]
            row = {
                "task": task, "kind": event.kind, "item": known[event.item],
                "annotator": people[event.annotator].id, "repeat": event.repeat,
                "key": None if event.kind == "lease" else event.key, "at": event.at,
                "payload": dumped(payload),
            }  # fmt: skip
        except KeyError as error:
            raise DataError(
                f"event {event.id} names something that is not there: {error}",
                kind="impossible_event",
            ) from None
        waiting.append((event.id, row))
    flush()


def _insert(connection: sa.Connection, table: sa.Table, rows: Iterable[dict[str, Any]]) -> None:
    source = iter(rows)
    while chunk := list(islice(source, _CHUNK)):
        # With something to return, many rows are one statement; without, pg8000 sends each alone.
        connection.execute(table.insert().returning(*table.primary_key), chunk).all()
