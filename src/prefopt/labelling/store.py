"""The labelling room's memory: one object over one database, for any thread and process.

Every method is one transaction, and what it returned is on disk. Events are the truth and are
only ever added; see `tables` for what is kept beside them, `assigning` for what is asked next,
`answering` for what an answer does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TypeVar

import sqlalchemy as sa

from prefopt.errors import RecipeError
from prefopt.labelling import access, attempts, contents, projecting, turns
from prefopt.labelling.answering import check_answer, check_key, record_answer, take_back
from prefopt.labelling.assigning import next_question
from prefopt.labelling.contents import Added, unknown_task
from prefopt.labelling.database import Database
from prefopt.labelling.documents import item_from_text, task_from_text, task_to_text
from prefopt.labelling.replaying import Claim
from prefopt.labelling.tables import (
    annotators,
    claims,
    events,
    items,
    media,
    members,
    places,
    settings,
    tasks,
)
from prefopt.labelling.words import (
    Annotator,
    Answer,
    Event,
    Item,
    NewItem,
    Progress,
    Recorded,
    Role,
    Shown,
    Task,
)

Result = TypeVar("Result")
_PAGE = 500  # items read at once


class Store:
    """Tasks, items, annotators and what they said.

    All methods raise `AwayError` when the database cannot be reached or is busy for too long,
    and `RunError` when it cannot be written; those with a `task` raise `UnknownTaskError`.

    Args:
        database: brought up to the present schema here, if it is older.
        clock: seconds since the epoch; leases, links and sessions end by it.

    Raises:
        RecipeError: a newer prefopt has written the database.
    """

    def __init__(self, database: Database, clock: Callable[[], float] = time.time) -> None:
        database.migrate()
        self.database = database
        self.clock = clock
        self._numbers: dict[str, int] = {}  # of tasks, which are never removed

    # -- the team --------------------------------------------------------------------------

    def add_task(self, task: Task) -> Task:
        """Add a task; the same settings again change nothing.

        Raises:
            RecipeError: the name is taken by other settings, or one of them cannot be.
        """
        contents.check_task(task)

        def add(connection: sa.Connection) -> None:
            self.database.lock(connection, 0, shared=False)
            contents.add_task(connection, task, self.clock())

        self.database.write(add)
        return task

    def change_task(self, task: Task) -> Task:
        """Give a task new settings; those before stay on record.

        Votes stay as they are: an overlap below what an item has makes it done, nothing more.
        """
        contents.check_task(task)
        number = self._number(task.name)

        def change(connection: sa.Connection) -> None:
            self.database.lock(connection, number, shared=False)
            before = contents.current(connection, task.name)
            if before == task:
                return
            connection.execute(
                settings.insert().values(task=number, at=self.clock(), document=task_to_text(task))
            )
            if before is None or before.overlap != task.overlap:
                projecting.rebuild(connection, number, task, self.clock())

        self.database.write(change)
        return task

    def task(self, name: str) -> Task:
        """A task as it is set now."""
        for row in self.database.read(contents.newest_settings().where(tasks.c.name == name)):
            return task_from_text(row.name, row.document)
        raise unknown_task(name)

    def tasks(self) -> list[Task]:
        """All tasks, the oldest first."""
        rows = self.database.read(contents.newest_settings().order_by(tasks.c.id))
        return [task_from_text(row.name, row.document) for row in rows]

    def add_items(self, task: str, items: Iterable[NewItem]) -> Added:
        """Add questions, all or none; one that the task has takes the new priority.

        Raises:
            DataError: a question came twice, with different known answers.
        """
        number = self._number(task)
        new, again = contents.prepared(items)

        def add(connection: sa.Connection) -> Added:
            self.database.lock(connection, number, shared=False)
            return contents.add_items(connection, number, new)

        added = self.database.write(add)
        return replace(added, known=added.known + again)

    def add_media(self, data: bytes, type: str) -> str:
        """Keep an image or a recording; returns the SHA-256 of its bytes."""
        return self.database.write(
            lambda connection: contents.add_media(
                self.database, connection, data, type, self.clock()
            )
        )

    def media(self, digest: str) -> tuple[bytes, str] | None:
        """The bytes and the type of an image or a recording."""
        for row in self.database.read(sa.select(media).where(media.c.digest == digest)):
            return bytes(row.data), row.type
        return None

    def add_annotator(self, name: str, role: Role = "annotator") -> Annotator:
        """Add somebody; the same name and role again find them.

        Raises:
            RecipeError: they are there in another role, or this cannot be a name.
        """
        return self.database.write(
            lambda connection: contents.add_annotator(
                self.database, connection, name, role, self.clock()
            )
        )

    def annotator(self, name: str) -> Annotator:
        """Somebody by name.

        Raises:
            RecipeError: there is no such annotator.
        """
        found = annotators.c.name == contents.as_name(name)
        for row in self.database.read(sa.select(annotators).where(found)):
            return Annotator(row.id, row.name, row.role)
        raise RecipeError("there is no such annotator", field="annotator", value=name)

    def annotators(self) -> list[Annotator]:
        """Everybody, in the order in which they were added."""
        rows = self.database.read(sa.select(annotators).order_by(annotators.c.id))
        return [Annotator(row.id, row.name, row.role) for row in rows]

    # -- access ----------------------------------------------------------------------------

    def issue_link(self, annotator: Annotator, *, hours: float = 72) -> str:
        """The token of a new one-time link; it is shown once and kept as a digest."""
        return self.database.write(
            lambda connection: access.issue_link(connection, annotator.id, hours, self.clock())
        )

    def look(self, token: str) -> Annotator | None:
        """Whom a link would let in, without using it; None if it is not good."""
        rows = self.database.read(access.looking(token, self.clock()))
        return access.annotator_of(rows[0]) if rows else None

    def enter(self, token: str, *, hours: float = 24 * 14) -> str:
        """Use a link; returns the token of a session.

        Raises:
            AccessError: the link was used, has expired, was revoked or never existed.
        """
        return self.database.write(
            lambda connection: access.enter(self.database, connection, token, hours, self.clock())
        )

    def who(self, session: str) -> Annotator | None:
        """Whose session this is; None if it is not good (any more)."""
        rows = self.database.read(access.knowing(session, self.clock()))
        return access.annotator_of(rows[0]) if rows else None

    def leave(self, session: str) -> None:
        """End a session."""
        self.database.write(
            lambda connection: access.leave(self.database, connection, session, self.clock())
        )

    def revoke(self, annotator: Annotator) -> None:
        """Make all links and sessions of an annotator void; their votes stay."""
        self.database.write(
            lambda connection: access.revoke(connection, annotator.id, self.clock())
        )

    def attempt(self, who: str, *, limit: int, window: float) -> bool:
        """Count an attempt; False if there were `limit` in the last `window` seconds."""
        return self.database.write(
            lambda connection: attempts.attempt(
                self.database, connection, who, limit, window, self.clock()
            )
        )

    def exhausted(self, who: str, *, limit: int, window: float) -> bool:
        """Whether the next attempt would be one too many; this one is not counted."""
        (row,) = self.database.read(attempts.recent(who, window, self.clock()))
        return int(row[0]) >= limit

    # -- annotating ------------------------------------------------------------------------

    def next(self, task: str, annotator: int) -> Shown | None:
        """What an annotator is to answer: what they have, or a new question; None if all is done.

        Never an item that they answered or skipped (but for a repeat), and never one whose slots
        are filled by votes and live leases of others.
        """
        return self._turn(task, annotator, next_question)

    def answer(self, task: str, annotator: int, lease: int, key: str, answer: Answer) -> Recorded:
        """Take an answer; the same request again is given the first receipt.

        Args:
            lease: of the question, as `next` gave it.
            key: of the request; one answer has one key, however often it is sent.

        Raises:
            LeaseError: the lease has ended and the slot is somebody else's, the question was
                answered, or the key was used for another answer.
            DataError: the answer cannot be.
        """
        check_key(key)
        check_answer(answer)
        return self._turn(task, annotator, lambda turn: record_answer(turn, lease, key, answer))

    def undo(self, task: str, annotator: int, key: str) -> Shown | None:
        """Take back an annotator's last vote or skip of a task, and ask it again.

        Returns:
            The question, with `before`; None if there is nothing to undo, or if it was a skip and
            somebody else has the slot now.

        Raises:
            LeaseError: the key was used for an answer.
        """
        check_key(key)
        return self._turn(task, annotator, lambda turn: take_back(turn, key))

    def progress(self, task: str, annotator: int | None = None) -> Progress:
        """How far a task is, and how much of it this annotator has answered."""
        mine = sa.case((members.c.annotator == (annotator or 0), members.c.answered), else_=0)
        overlap = self.task(task).overlap
        (row,) = self.database.read(
            sa.select(
                tasks.c.normal_items,
                sa.func.coalesce(sa.func.sum(members.c.votes), 0).label("votes"),
                sa.func.coalesce(sa.func.sum(members.c.completed), 0).label("done"),
                sa.func.coalesce(sa.func.sum(mine), 0).label("mine"),
            )
            .outerjoin(members, members.c.task == tasks.c.id)
            .where(tasks.c.name == task)
            .group_by(tasks.c.id, tasks.c.normal_items)
        )
        return Progress(
            wanted=overlap * row.normal_items,
            votes=int(row.votes),
            done=int(row.done),
            items=row.normal_items,
            mine=int(row.mine),
        )

    # -- reading ---------------------------------------------------------------------------

    def items(self, task: str) -> Iterator[Item]:
        """The items of a task, in the order in which they were added."""
        query = (
            sa.select(items.c.id, items.c.key, items.c.kind, items.c.document, places.c.priority)
            .join(places, places.c.item == items.c.id)
            .where(items.c.task == self._number(task))
            .order_by(items.c.id)
            .limit(_PAGE)
        )
        last = 0
        while rows := self.database.read(query.where(items.c.id > last)):
            for row in rows:
                new = item_from_text(row.document, row.priority)
                yield Item(row.id, row.key, row.kind, new)
            last = rows[-1].id

    def events(self, task: str) -> Iterator[Event]:
        """Everything that happened in a task up to this call, in order."""
        rows = self.database.read(projecting.all_events(self._number(task)))
        return map(projecting.event_of, rows)

    def size(self, task: str) -> tuple[int, int]:
        """How many items and events a task has: both only grow."""
        here = sa.select(sa.func.count()).where(events.c.task == tasks.c.id).scalar_subquery()
        of_items = (tasks.c.normal_items + tasks.c.gold_items).label("items")
        query = sa.select(of_items, here.label("events")).where(tasks.c.name == task)
        for row in self.database.read(query):
            return row.items, row.events
        raise unknown_task(task)

    def claims(self, task: str) -> Iterator[Claim]:
        """What became of every question with every annotator, as it is at this call."""
        query = sa.select(claims).where(claims.c.task == self._number(task))
        order = (claims.c.item, claims.c.annotator, claims.c.repeat)
        return map(projecting.claim_of, self.database.read(query.order_by(*order)))

    def restore(
        self,
        task: str,
        items: Iterable[Item],
        annotators: Mapping[int, Annotator],
        events: Iterable[Event],
    ) -> None:
        """Bring items and events of elsewhere into an empty task, all or none.

        Args:
            items: with the numbers that the events use; here they get new ones.
            annotators: those of this database, by the numbers that the events use.
            events: in order; here they get new numbers, in the same order.

        Raises:
            RecipeError: the task is not empty.
            DataError: the events cannot have happened, or name what is not there.
        """
        number, brought, history = self._number(task), list(items), list(events)

        def bring(connection: sa.Connection) -> None:
            self.database.lock(connection, number, shared=False)
            projecting.restore(connection, number, brought, annotators, history)
            self._rebuild(connection, task, number)

        self.database.write(bring)

    def rebuild(self, task: str) -> None:
        """Make the projections of a task anew from its events.

        Raises:
            DataError: the events cannot have happened.
        """
        number = self._number(task)

        def build(connection: sa.Connection) -> None:
            self.database.lock(connection, number, shared=False)
            self._rebuild(connection, task, number)

        self.database.write(build)

    # -- inside ----------------------------------------------------------------------------

    def _rebuild(self, connection: sa.Connection, task: str, number: int) -> None:
        now = contents.current(connection, task)
        if now is None:
            raise unknown_task(task)
        projecting.rebuild(connection, number, now, self.clock())

    def _turn(self, task: str, annotator: int, action: Callable[[turns.Turn], Result]) -> Result:
        number = self._number(task)

        def act(connection: sa.Connection) -> Result:
            return action(
                turns.begin(self.database, connection, number, task, annotator, self.clock())
            )

        return self.database.write(act)

    def _number(self, task: str) -> int:
        if task not in self._numbers:
            rows = self.database.read(sa.select(tasks.c.id).where(tasks.c.name == task))
            if not rows:
                raise unknown_task(task)
            self._numbers[task] = rows[0].id
        return self._numbers[task]
