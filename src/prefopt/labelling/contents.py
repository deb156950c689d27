"""What the team brings: tasks and their settings, items, images and recordings, annotators."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import sqlalchemy as sa

from prefopt.errors import DataError, RecipeError
from prefopt.labelling.database import Database
from prefopt.labelling.documents import (
    gold_of_text,
    item_key,
    item_kind,
    item_to_text,
    task_from_text,
    task_to_text,
)
from prefopt.labelling.refusals import UnknownTaskError
from prefopt.labelling.tables import annotators, items, media, places, settings, tasks
from prefopt.labelling.words import Annotator, NewItem, Role, Task

#: of a task
TASK_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_CHUNK = 500  # rows of one statement


@dataclass(frozen=True, slots=True)
class Added:
    """What became of items that were brought: new ones, and those that the task had."""

    new: int
    known: int


# -- tasks -----------------------------------------------------------------------------------


def check_task(task: Task) -> None:
    """Refuse settings that cannot be.

    Raises:
        RecipeError: naming the setting.
    """

    def refuse(field: str, message: str, remedy: str = "give another number") -> None:
        raise RecipeError(message, field=field, value=getattr(task, field), remedy=remedy)

    if not TASK_NAME.fullmatch(task.name):
        refuse("name", "the name of a task is 1 to 64 letters of ASCII, digits, - and _",
               "choose another name")  # fmt: skip
    if task.overlap < 1:
        refuse("overlap", "at least one annotator is wanted for each item")
    if not 1 <= task.lease_seconds <= 30 * 86400:
        refuse("lease_seconds", "a question is kept for 1 second to 30 days")
    for field in ("gold_share", "repeat_share"):
        if not 0 <= getattr(task, field) <= 1:
            refuse(field, "a share is between 0 and 1")
    if task.gold_share + task.repeat_share > 1:
        refuse("repeat_share", "the shares of gold and of repeated questions exceed 1 together")


def add_task(connection: sa.Connection, task: Task, now: float) -> None:
    """Add a task, or find it as it is.

    Raises:
        RecipeError: it is there with other settings.
    """
    there = current(connection, task.name)
    if there == task:
        return
    if there is not None:
        different = [name for name in Task.__slots__ if getattr(there, name) != getattr(task, name)]
        raise RecipeError(
            f"the task {task.name} exists with other settings: {', '.join(different)}",
            field=different[0],
            value=getattr(task, different[0]),
            remedy="choose another name, or change the task",
        )
    number = connection.execute(
        tasks.insert()
        .values(name=task.name, at=now, normal_items=0, gold_items=0)
        .returning(tasks.c.id)
    ).scalar_one()
    connection.execute(settings.insert().values(task=number, at=now, document=task_to_text(task)))


def current(connection: sa.Connection, name: str) -> Task | None:
    """A task as it is set now."""
    row = connection.execute(
        newest_settings().where(tasks.c.name == name).order_by(settings.c.id)
    ).one_or_none()
    return None if row is None else task_from_text(row.name, row.document)


def newest_settings() -> sa.Select[Any]:
    """`id`, `name` and `document` of every task, as it is set now."""
    newest = sa.select(sa.func.max(settings.c.id)).group_by(settings.c.task)
    return (
        sa.select(tasks.c.id, tasks.c.name, settings.c.document)
        .join(settings, settings.c.task == tasks.c.id)
        .where(settings.c.id.in_(newest))
    )


def unknown_task(name: str) -> UnknownTaskError:
    """The refusal of a name that no task has."""
    return UnknownTaskError("there is no such task", field="task", value=name)


# -- items -----------------------------------------------------------------------------------


def prepared(new: Iterable[NewItem]) -> tuple[dict[str, NewItem], int]:
    """Items by their keys, and how many came more than once.

    Raises:
        DataError: one question came with two known answers.
    """
    found: dict[str, NewItem] = {}
    count = 0
    for one in new:
        key = item_key(one)
        if key in found and found[key].gold != one.gold:
            raise _two_answers(one)
        found[key] = one
        count += 1
    return found, count - len(found)


def add_items(connection: sa.Connection, task: int, new: dict[str, NewItem]) -> Added:
    """Add the items that the task lacks; known ones take the new priority.

    Raises:
        DataError: a known item came with another known answer.
    """
    known = dict[str, tuple[int, str]]()
    for chunk in _chunks(new):
        rows = connection.execute(
            sa.select(items.c.key, items.c.id, items.c.document).where(
                items.c.task == task, items.c.key.in_(chunk)
            )
        )
        known |= {row.key: (row.id, row.document) for row in rows}
    for key, (_, document) in known.items():
        if gold_of_text(document) != new[key].gold:
            raise _two_answers(new[key])
    fresh = [(key, one) for key, one in new.items() if key not in known]
    numbers = insert_items(connection, task, fresh)
    changed = [{"number": number, "new": new[key].priority} for key, (number, _) in known.items()]
    if changed:
        connection.execute(
            places.update()
            .where(places.c.item == sa.bindparam("number"))
            .values(priority=sa.bindparam("new")),
            changed,
        )
    return Added(new=len(numbers), known=len(known))


def insert_items(
    connection: sa.Connection, task: int, new: Iterable[tuple[str, NewItem]]
) -> list[int]:
    """Add items with their places; returns their numbers, in order."""
    numbers: list[int] = []
    golds = 0
    for chunk in _chunks(new):
        rows = [
            {
                "task": task, "key": key, "kind": item_kind(one), "document": item_to_text(one),
            }
            for key, one in chunk
        ]  # fmt: skip
        made = connection.scalars(
            items.insert().returning(items.c.id, sort_by_parameter_order=True), rows
        ).all()
        connection.execute(
            places.insert().returning(places.c.item),  # then many rows are one statement
            [
                {
                    "item": number, "task": task, "kind": item_kind(one),
                    "priority": float(one.priority), "votes": 0, "filled": 0, "open": 1,
                }
                for number, (_, one) in zip(made, chunk, strict=True)
            ],
        ).all()  # fmt: skip
        golds += sum(one.gold is not None for _, one in chunk)
        numbers += made
    connection.execute(
        tasks.update()
        .where(tasks.c.id == task)
        .values(
            normal_items=tasks.c.normal_items + len(numbers) - golds,
            gold_items=tasks.c.gold_items + golds,
        )
    )
    return numbers


def _chunks(values: Iterable[Any]) -> Iterator[list[Any]]:
    source = iter(values)
    while chunk := list(islice(source, _CHUNK)):
        yield chunk


def _two_answers(item: NewItem) -> DataError:
    return DataError(
        "a question that the task has came again with another known answer",
        kind="contradiction",
        field="gold",
        value=item.gold,
        remedy="leave it out, or make a new task",
    )


# -- images and recordings -------------------------------------------------------------------


def add_media(
    database: Database, connection: sa.Connection, data: bytes, type: str, now: float
) -> str:
    """Keep bytes under their SHA-256."""
    digest = hashlib.sha256(data).hexdigest()
    connection.execute(
        database.insert(media)
        .values(digest=digest, type=type, data=data, at=now)
        .on_conflict_do_nothing()
    )
    return digest


# -- annotators ------------------------------------------------------------------------------


def as_name(name: str) -> str:
    """A name as it is kept: however a keyboard composes its letters, they are the same.

    >>> as_name(" Zoe\u0308") == "Zo\u00eb"
    True
    """
    return unicodedata.normalize("NFC", name).strip()


def add_annotator(
    database: Database, connection: sa.Connection, name: str, role: Role, now: float
) -> Annotator:
    """Add somebody, or find them.

    Raises:
        RecipeError: they are there in another role, or this cannot be a name.
    """
    name = as_name(name)
    if not 0 < len(name) <= 100 or not name.isprintable():
        raise RecipeError(
            "a name is 1 to 100 characters that can be printed", field="name", value=name,
            remedy="choose another name",
        )  # fmt: skip
    if role not in ("annotator", "lead"):
        raise RecipeError("a role is annotator or lead", field="role", value=role)
    connection.execute(
        database.insert(annotators).values(name=name, role=role, at=now).on_conflict_do_nothing()
    )
    row = connection.execute(sa.select(annotators).where(annotators.c.name == name)).one()
    if row.role != role:
        raise RecipeError(
            f"{name} is there already, as {row.role}", field="role", value=role,
            remedy="choose another name",
        )  # fmt: skip
    return Annotator(row.id, row.name, row.role)
