"""One annotator's turn in one task: what every change of theirs begins with, and its small moves.

A turn holds the annotator's row of the task, so two requests of one annotator (two windows, an
answer sent twice) come one after the other. Whatever fills or frees a slot of an item holds the
item's row in `places` while it does. Rows are taken in this order, own row first, so that turns
of different annotators seldom wait and do not block each other for good.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from prefopt.errors import RecipeError
from prefopt.labelling.database import Database
from prefopt.labelling.documents import dumped, item_from_text, task_from_text
from prefopt.labelling.refusals import UnknownTaskError
from prefopt.labelling.tables import annotators, claims, events, items, members, places, settings
from prefopt.labelling.words import Item, Kind, Shown, Task

# Statements are made once: building one anew takes longer than running it.
_task: sa.BindParameter[Any] = sa.bindparam("of_task")
_annotator: sa.BindParameter[Any] = sa.bindparam("of_annotator")
_item: sa.BindParameter[Any] = sa.bindparam("of_item")
_ended = sa.select(claims.c.item).where(
    claims.c.task == _task, claims.c.holds_until <= sa.bindparam("now")
)
_MINE = (
    sa.select(settings.c.document, members.c.answered, _ended.exists().label("late"))
    .join(members, members.c.task == settings.c.task)
    .where(settings.c.task == _task, members.c.annotator == _annotator)
    .order_by(settings.c.id.desc())
    .limit(1)
    .with_for_update(of=members)
)
_COUNT = (
    members.update()
    .where(members.c.task == _task, members.c.annotator == _annotator)
    .values(
        answered=members.c.answered + sa.bindparam("more_answered"),
        votes=members.c.votes + sa.bindparam("more_votes"),
        completed=members.c.completed + sa.bindparam("more_completed"),
    )
)
_RECORD = events.insert().returning(events.c.id)
_ITEM = (
    sa.select(items.c.id, items.c.key, items.c.kind, items.c.document, places.c.priority)
    .join(places, places.c.item == items.c.id)
    .where(items.c.id == _item)
)
_filled = places.c.filled + sa.bindparam("more_filled")
#: how `places` changes when `more_filled` slots are filled, by `more_votes` votes
FILLING = {"filled": _filled, "open": sa.case((_filled < sa.bindparam("overlap"), 1), else_=0)}
_MOVE = (
    places.update()
    .where(places.c.item == _item)
    .values(votes=places.c.votes + sa.bindparam("more_votes"), **FILLING)
)
_LATE = _ended.distinct().order_by(claims.c.item)
_LATE_HERE = _LATE.where(claims.c.item == _item)
_HOLD = sa.select(places.c.item).where(places.c.item == _item).with_for_update()
_RELEASE = (
    claims.update()
    .where(claims.c.item == _item, claims.c.holds_until <= sa.bindparam("now"))
    .values(holds_until=None)
)
_ASKED = ("item", "annotator", "repeat")


def _upsert(insert: Any) -> Any:
    changed = {column.name: insert.excluded[column.name] for column in claims.c}
    for name in (*_ASKED, "task"):
        del changed[name]
    return insert.on_conflict_do_update(index_elements=_ASKED, set_=changed)


_CLAIM = {True: _upsert(sqlite.insert(claims)), False: _upsert(postgresql.insert(claims))}


@dataclass(frozen=True)
class Turn:
    """A transaction in which one annotator does one thing in one task.

    Attributes:
        number: of the task in the database.
        task: as it is set now.
        annotator: their number.
        now: seconds since the epoch.
        answered: how many questions of the task they have answered or skipped.
        late: some leases of the task have ended, and their slots may still count as filled.
    """

    database: Database
    connection: sa.Connection
    number: int
    task: Task
    annotator: int
    now: float
    answered: int
    late: bool

    # -- events and leases -----------------------------------------------------------------

    def record(
        self, kind: str, item: int, repeat: int, payload: Mapping[str, Any], key: str | None = None
    ) -> int:
        """Add an event; returns its number."""
        number: int = self.connection.execute(
            _RECORD,
            {
                "task": self.number, "kind": kind, "item": item, "annotator": self.annotator,
                "repeat": repeat, "key": key, "at": self.now, "payload": dumped(payload),
            },
        ).scalar_one()  # fmt: skip
        return number

    def lease(
        self, item: Item, repeat: int, *, swapped: bool, before: Mapping[str, Any] | None = None
    ) -> Shown:
        """Give a question out; whoever calls this has filled the slot that it needs."""
        until = self.now + self.task.lease_seconds
        lease = self.record("lease", item.id, repeat, {"until": until, "swapped": swapped})
        self.connection.execute(
            _CLAIM[self.database.is_sqlite],
            {
                "item": item.id, "annotator": self.annotator, "repeat": repeat,
                "task": self.number, "state": "leased", "lease": lease, "until": until,
                "swapped": swapped, "event": None, "answered": None, "place": None,
                "payload": None,
                "holds_until": until if needs_slot(item.kind, repeat) else None,
            },
        )  # fmt: skip
        return Shown(lease, item, repeat, swapped, until, before)

    # -- slots -----------------------------------------------------------------------------

    def move(self, item: int, *, filled: int, votes: int = 0) -> None:
        """Change how many slots of an item are filled, and how many of them by votes."""
        if filled or votes:
            more = {"more_filled": filled, "more_votes": votes, "overlap": self.task.overlap}
            self.connection.execute(_MOVE, {"of_item": item, **more})

    def release_late(self, item: int | None = None) -> None:
        """Free the slots of leases that have ended: of one item, or of all of the task."""
        if not self.late:
            return
        known = {"of_task": self.number, "now": self.now}
        if item is None:
            late = self.connection.scalars(_LATE, known)
        else:
            late = self.connection.scalars(_LATE_HERE, {**known, "of_item": item})
        for one in late.all():
            self.connection.execute(_HOLD, {"of_item": one})
            freed = self.connection.execute(_RELEASE, {"of_item": one, "now": self.now})
            self.move(one, filled=-freed.rowcount)

    # -- reading ---------------------------------------------------------------------------

    def item(self, number: int) -> Item:
        """An item of the task."""
        row = self.connection.execute(_ITEM, {"of_item": number}).one()
        return Item(row.id, row.key, row.kind, item_from_text(row.document, row.priority))

    def count(self, *, answered: int, votes: int = 0, completed: int = 0) -> None:
        """Change how far this annotator is."""
        self.connection.execute(
            _COUNT,
            {
                "of_task": self.number, "of_annotator": self.annotator,
                "more_answered": answered, "more_votes": votes, "more_completed": completed,
            },
        )  # fmt: skip


def begin(
    database: Database,
    connection: sa.Connection,
    number: int,
    name: str,
    annotator: int,
    now: float,
) -> Turn:
    """Start a turn; waits for another one of the same annotator in the same task.

    Raises:
        RecipeError: there is no such annotator.
    """
    known = {"of_task": number, "of_annotator": annotator, "now": now}
    row = connection.execute(_MINE, known).one_or_none()
    if row is None:
        _join(database, connection, number, annotator)
        row = connection.execute(_MINE, known).one_or_none()
    if row is None:
        raise UnknownTaskError("there is no such task", field="task", value=name)
    task = task_from_text(name, row.document)
    return Turn(database, connection, number, task, annotator, now, row.answered, bool(row.late))


def _join(database: Database, connection: sa.Connection, number: int, annotator: int) -> None:
    # `projecting.rebuild` has this lock, then removes all rows of members: who has one waits for
    # that, finds it gone, and comes here.
    database.lock(connection, number, shared=True)
    known = connection.scalar(sa.select(annotators.c.id).where(annotators.c.id == annotator))
    if known is None:
        raise RecipeError("there is no such annotator", field="annotator", value=annotator)
    connection.execute(
        database.insert(members)
        .values(task=number, annotator=annotator, answered=0, votes=0, completed=0)
        .on_conflict_do_nothing()
    )


def needs_slot(kind: Kind, repeat: int) -> bool:
    """Whether an answer counts for the overlap: a normal item, the first time."""
    return kind == "normal" and repeat == 0
