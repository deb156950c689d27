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

from prefopt.errors import RecipeError
from prefopt.labelling.database import Database
from prefopt.labelling.documents import dumped, item_from_text, task_from_text
from prefopt.labelling.refusals import UnknownTaskError
from prefopt.labelling.tables import annotators, claims, events, items, members, places, settings
from prefopt.labelling.words import Item, Kind, Shown, Task


@dataclass(frozen=True)
class Turn:
    """A transaction in which one annotator does one thing in one task.

    Attributes:
        number: of the task in the database.
        task: as it is set now.
        annotator: their number.
        now: seconds since the epoch.
        answered: how many questions of the task they have answered or skipped.
    """

    database: Database
    connection: sa.Connection
    number: int
    task: Task
    annotator: int
    now: float
    answered: int

    # -- events and leases -----------------------------------------------------------------

    def record(
        self, kind: str, item: int, repeat: int, payload: Mapping[str, Any], key: str | None = None
    ) -> int:
        """Add an event; returns its number."""
        added = self.connection.execute(
            events.insert()
            .values(
                task=self.number, kind=kind, item=item, annotator=self.annotator, repeat=repeat,
                key=key, at=self.now, payload=dumped(payload),
            )
            .returning(events.c.id)
        )  # fmt: skip
        number: int = added.scalar_one()
        return number

    def lease(
        self, item: Item, repeat: int, *, swapped: bool, before: Mapping[str, Any] | None = None
    ) -> Shown:
        """Give a question out; whoever calls this has filled the slot that it needs."""
        until = self.now + self.task.lease_seconds
        lease = self.record("lease", item.id, repeat, {"until": until, "swapped": swapped})
        state = {
            "state": "leased", "lease": lease, "until": until, "swapped": swapped,
            "event": None, "answered": None, "place": None, "payload": None,
            "holds_until": until if needs_slot(item.kind, repeat) else None,
        }  # fmt: skip
        statement = self.database.insert(claims).values(
            item=item.id, annotator=self.annotator, repeat=repeat, task=self.number, **state
        )
        self.connection.execute(
            statement.on_conflict_do_update(
                index_elements=["item", "annotator", "repeat"], set_=state
            )
        )
        return Shown(lease, item, repeat, swapped, until, before)

    # -- slots -----------------------------------------------------------------------------

    def move(self, item: int, *, filled: int, votes: int = 0) -> None:
        """Change how many slots of an item are filled, and how many of them by votes."""
        if filled or votes:
            self.connection.execute(
                places.update()
                .where(places.c.item == item)
                .values(votes=places.c.votes + votes, **filling(filled, self.task.overlap))
            )

    def release_late(self, item: int | None = None) -> None:
        """Free the slots of leases that have ended: of one item, or of all of the task."""
        late = (
            sa.select(claims.c.item)
            .where(claims.c.task == self.number, claims.c.holds_until <= self.now)
            .distinct()
            .order_by(claims.c.item)
        )
        if item is not None:
            late = late.where(claims.c.item == item)
        for one in self.connection.scalars(late).all():
            self.connection.execute(
                sa.select(places.c.item).where(places.c.item == one).with_for_update()
            )
            freed = self.connection.execute(
                claims.update()
                .where(claims.c.item == one, claims.c.holds_until <= self.now)
                .values(holds_until=None)
            )
            self.move(one, filled=-freed.rowcount)

    # -- reading ---------------------------------------------------------------------------

    def item(self, number: int) -> Item:
        """An item of the task."""
        row = self.connection.execute(
            sa.select(items.c.id, items.c.key, items.c.kind, items.c.document, places.c.priority)
            .join(places, places.c.item == items.c.id)
            .where(items.c.id == number)
        ).one()
        return Item(row.id, row.key, row.kind, item_from_text(row.document, row.priority))

    def count(self, *, answered: int, votes: int = 0, completed: int = 0) -> None:
        """Change how far this annotator is."""
        self.connection.execute(
            members.update()
            .where(members.c.task == self.number, members.c.annotator == self.annotator)
            .values(
                answered=members.c.answered + answered,
                votes=members.c.votes + votes,
                completed=members.c.completed + completed,
            )
        )


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
    database.lock(connection, number, shared=True)  # against `projecting.rebuild`
    mine = (
        sa.select(settings.c.document, members.c.answered)
        .join(members, members.c.task == settings.c.task)
        .where(settings.c.task == number, members.c.annotator == annotator)
        .order_by(settings.c.id.desc())
        .limit(1)
        .with_for_update(of=members)
    )
    row = connection.execute(mine).one_or_none()
    if row is None:
        _join(database, connection, number, annotator)
        row = connection.execute(mine).one_or_none()
    if row is None:
        raise UnknownTaskError("there is no such task", field="task", value=name)
    task = task_from_text(name, row.document)
    return Turn(database, connection, number, task, annotator, now, row.answered)


def _join(database: Database, connection: sa.Connection, number: int, annotator: int) -> None:
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


def filling(by: int, overlap: int) -> dict[str, Any]:
    """The columns of `places` after `by` more slots were filled."""
    filled = places.c.filled + by
    return {"filled": filled, "open": sa.case((filled < overlap, 1), else_=0)}
