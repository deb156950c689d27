"""What `exporting` wrote, back into a database: the same items, annotators and events.

`votes.jsonl` and `task.json` are read; `comparisons.jsonl` and the answers in `meta` follow from
the events. A task that has another history is never touched.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefopt.errors import DataError, RecipeError
from prefopt.labelling.documents import item_key, item_kind
from prefopt.labelling.exporting import (
    FORMAT,
    LABELLING,
    RESERVED,
    VERSION,
    encoded,
    votes_lines,
)
from prefopt.labelling.media import TYPES, type_of
from prefopt.labelling.words import Annotator, Event, Item, NewItem, Task
from prefopt.records import Group, from_json
from prefopt.runs import explained, fingerprint_file

if TYPE_CHECKING:
    from prefopt.labelling.store import Store


@dataclass(frozen=True)
class Export:
    """An exported task, read.

    Attributes:
        task: the task.
        annotators: those who did anything in it; their numbers count from 1.
        items, events: numbered from 1 within the task.
        media: the bytes and the type of every image and recording, by digest.
    """

    task: Task
    annotators: list[Annotator]
    items: list[Item]
    events: list[Event]
    media: Mapping[str, tuple[bytes, str]]


def import_task(store: Store, folder: str | Path, *, name: str | None = None) -> dict[str, Any]:
    """Bring an exported task into a database.

    Annotators are matched by their names; those that the database lacks are added, with no way to
    sign in until they are given a link. The same export a second time changes nothing.

    Args:
        store: the database.
        folder: what `export_task` wrote.
        name: of the task here, if another than there.

    Returns:
        `task`, `items`, `events`, `annotators` (in it), `added` (annotators that are new here),
        `media`, `known` (the task was here already, with the same history).

    Raises:
        DataError: the folder is not a whole export.
        RecipeError: the task is there with another history.
        RunError: the folder cannot be read.
    """
    path = Path(folder)
    export = read_export(path)
    task = export.task if name is None else replace(export.task, name=name)
    known = _known(store, task, path)
    here = {one.name for one in store.annotators()}
    if not known:
        store.add_task(task)
        people = {}
        for one in export.annotators:
            there = one.name in here
            people[one.id] = (
                store.annotator(one.name) if there else store.add_annotator(one.name, one.role)
            )
        for digest, (data, type) in export.media.items():
            if store.add_media(data, type) != digest:
                raise _damaged(path, f"media/{digest}", "its content is not what its name says")
        store.restore(task.name, export.items, people, export.events)
    return {
        "task": task.name,
        "items": len(export.items),
        "events": len(export.events),
        "annotators": len(export.annotators),
        "added": 0 if known else sum(one.name not in here for one in export.annotators),
        "media": len(export.media),
        "known": known,
    }


def _known(store: Store, task: Task, folder: Path) -> bool:
    """Whether the task is there with this very history; an empty one is as good as none.

    Raises:
        RecipeError: it has another one.
    """
    if task.name not in {there.name for there in store.tasks()}:
        return False
    if store.task(task.name) == task:
        if next(store.items(task.name), None) is None:
            return False
        with explained(folder / "votes.jsonl"), open(folder / "votes.jsonl", "rb") as file:
            if list(map(encoded, votes_lines(store, task.name))) == list(file):
                return True
    raise RecipeError(
        f"the database has a task '{task.name}' already, with other settings or another history",
        field="task",
        value=task.name,
        remedy="import it under another name with --task, or into another database with --db",
    )


# -- reading ------------------------------------------------------------------------------------


def read_export(folder: Path) -> Export:
    """Read an exported task, and check that it is whole.

    Raises:
        DataError: a file is missing, damaged or of another kind.
        RunError: a file cannot be read.
    """
    _check(folder)
    document = _json(folder / "task.json")
    try:
        task = Task(**document["task"])
        annotators = [
            Annotator(number, one["name"], one["role"])
            for number, one in enumerate(document["annotators"], start=1)
        ]
        media = {one["digest"]: one["type"] for one in document["media"]}
        people = {one.name: one.id for one in annotators}
        items: list[Item] = []
        events: list[Event] = []
        for group in _groups(folder / "votes.jsonl"):
            labelling = group.meta[LABELLING]
            for row in labelling["items"]:
                items.append(_item(group, row))
                events += [_event(row["number"], event, people) for event in row["events"]]
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise _damaged(folder, "votes.jsonl", f"it is not of the form of an export: {error!r}") \
            from error  # fmt: skip
    items.sort(key=lambda item: item.id)
    events.sort(key=lambda event: event.id)
    return Export(task, annotators, items, events, {
        digest: _medium(folder, digest, type) for digest, type in media.items()
    })  # fmt: skip


def _check(folder: Path) -> None:
    manifest = _json(folder / "manifest.json")
    if manifest.get("format") != FORMAT:
        raise _damaged(folder, "manifest.json", "this is no export of a labelling task")
    if manifest.get("version") != VERSION:
        raise DataError(
            f"the export is of version {manifest.get('version')}, and this is {VERSION}",
            kind="unreadable_file", file=str(folder),
            remedy="use a newer prefopt",
        )  # fmt: skip
    for name, wanted in manifest["files"].items():
        inside = (folder / name).resolve().is_relative_to(folder.resolve())
        if not inside or fingerprint_file(folder / name) != wanted:
            raise _damaged(folder, name, "the file is not as it was written")


def _json(path: Path) -> Any:
    with explained(path):
        text = path.read_text(encoding="utf-8")
    try:
        document = json.loads(text)
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise _damaged(path.parent, path.name, "the file is not a JSON object")
    return document


def _groups(path: Path) -> Iterator[Group]:
    with explained(path), open(path, "rb") as lines:
        for line in lines:
            yield from_json(json.loads(line))


def _item(group: Group, row: Mapping[str, Any]) -> Item:
    labelling = group.meta[LABELLING]
    meta = {name: value for name, value in group.meta.items() if name not in RESERVED}
    new = NewItem(
        group.prompt, group.completions[row["first"]], group.completions[row["second"]],
        priority=row["priority"], gold=row.get("gold"), source=group.source,
        meta={**meta, **labelling.get("meta", {})}, media=tuple(labelling.get("media", ())),
    )  # fmt: skip
    return Item(row["number"], item_key(new), item_kind(new), new)


def _event(item: int, row: Mapping[str, Any], people: Mapping[str, int]) -> Event:
    number = row["number"]
    return Event(
        number, row["kind"], item, people[row["annotator"]], row["repeat"],
        row.get("key", str(number)), row["at"], row["payload"],
    )  # fmt: skip


def _medium(folder: Path, digest: str, type: str) -> tuple[bytes, str]:
    if type not in TYPES or not digest.isalnum():
        raise _damaged(folder, "task.json", f"media of type {type} are not shown")
    path = folder / f"media/{digest}{TYPES[type][0]}"
    with explained(path):
        data = path.read_bytes()
    if type_of(data) != type:
        raise _damaged(folder, str(path.relative_to(folder)), f"the file is not {type}")
    return data, type


def _damaged(folder: Path, name: str, message: str) -> DataError:
    return DataError(
        message, kind="unreadable_file", file=str(folder / name),
        remedy="give a folder that `prefopt label export` wrote, as it was written",
    )  # fmt: skip
