"""What `exporting` wrote, back into a database: the same items, annotators and events.

`votes.jsonl` and `task.json` are read; `comparisons.jsonl` and the answers in `meta` follow from
the events. A task that has another history is never touched.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from prefopt.errors import DataError, RecipeError
from prefopt.labelling.answering import check_answer, check_key
from prefopt.labelling.contents import check_task
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
from prefopt.labelling.replaying import replay
from prefopt.labelling.words import Annotator, Answer, Event, Item, NewItem, Said, Task
from prefopt.records import Group, from_json
from prefopt.runs import explained, fingerprint_file

if TYPE_CHECKING:
    from prefopt.labelling.store import Store

_DIGEST = re.compile(r"[0-9a-f]{64}")


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
    check_task(task)
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
        for data, type in export.media.values():
            store.add_media(data, type)
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
        task = _task(document["task"])
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
        items.sort(key=lambda item: item.id)
        events.sort(key=lambda event: event.id)
        _check_whole(items, events, media)
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        if isinstance(error, DataError) and error.file:
            raise
        why = error.message if isinstance(error, DataError) else repr(error)
        raise _damaged(folder, "votes.jsonl", f"it is not of the form of an export: {why}") \
            from error  # fmt: skip
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
    files = manifest.get("files")
    if not isinstance(files, dict) or not {"task.json", "votes.jsonl"} <= set(files):
        raise _damaged(folder, "manifest.json", "it does not say what the files are")
    for name, wanted in files.items():
        inside = (folder / name).resolve().is_relative_to(folder.resolve())
        if not inside or fingerprint_file(folder / name) != wanted:
            raise _damaged(folder, name, "the file is not as it was written")


def _json(path: Path) -> Any:
    with explained(path):
        data = path.read_bytes()
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise _damaged(path.parent, path.name, "the file is not a JSON object")
    return document


def _groups(path: Path) -> Iterator[Group]:
    with explained(path), open(path, "rb") as lines:
        for line in lines:
            yield from_json(json.loads(line))


def _task(document: Mapping[str, Any]) -> Task:
    """The task of settings that are of the right types; `check_task` looks at what they are."""
    task = Task(**document)
    for name, usual in asdict(Task("")).items():
        kinds = (int, float) if isinstance(usual, float) else type(usual)
        if isinstance(value := document.get(name, usual), bool) or not isinstance(value, kinds):
            raise TypeError(f"{name} is {value!r}")
    return task


def _check_whole(items: list[Item], events: list[Event], media: Mapping[str, str]) -> None:
    """Refuse what no database would hold, before anything is written to one.

    Raises:
        DataError, ValueError: saying what.
    """
    if any(len({getattr(item, name) for item in items}) < len(items) for name in ("id", "key")):
        raise ValueError("a question is there twice")
    if len({event.id for event in events}) < len(events):
        raise ValueError("an event is there twice")
    for item in items:
        if missing := set(item.new.media) - set(media):
            raise ValueError(f"there is no file of {min(missing)}")
    for event in events:
        _check_event(event)
    replay(events)


def _check_event(event: Event) -> None:
    payload, times = event.payload, [event.at]
    check_key(event.key)
    if event.kind == "lease":
        times.append(payload["until"])
        fits = isinstance(payload["swapped"], bool)
    elif event.kind == "undo":
        fits = type(payload["event"]) is int
    else:
        sides: dict[Any, Any] = {"first": "left", "second": "right"}
        said = payload["said"] if event.kind == "vote" else "skip"
        check_answer(Answer(
            sides.get(said, said), payload.get("strength"), payload.get("reason"),
            payload["flagged"], payload["comment"], payload["seconds"],
        ))  # fmt: skip
        known = {"vote": get_args(Said), "skip": ("skip",)}
        fits = said in known.get(event.kind, ())
        fits = fits and isinstance(payload["flagged"], bool) and isinstance(payload["comment"], str)
        fits = fits and isinstance(payload.get("reason"), str | None)
    if not (fits and all(map(math.isfinite, times)) and event.repeat in (0, 1)):
        raise ValueError(f"event {event.id} cannot be")


def _item(group: Group, row: Mapping[str, Any]) -> Item:
    labelling = group.meta[LABELLING]
    meta = {name: value for name, value in group.meta.items() if name not in RESERVED}
    new = NewItem(
        group.prompt, group.completions[row["first"]], group.completions[row["second"]],
        priority=row["priority"], gold=row.get("gold"), source=group.source,
        meta={**meta, **labelling.get("meta", {})}, media=tuple(labelling.get("media", ())),
    )  # fmt: skip
    if new.gold not in (None, *get_args(Said)) or not math.isfinite(new.priority):
        raise ValueError(f"question {row['number']} cannot be")
    return Item(row["number"], item_key(new), item_kind(new), new)


def _event(item: int, row: Mapping[str, Any], people: Mapping[str, int]) -> Event:
    number = row["number"]
    return Event(
        number, row["kind"], item, people[row["annotator"]], row["repeat"],
        row.get("key", str(number)), row["at"], row["payload"],
    )  # fmt: skip


def _medium(folder: Path, digest: str, type: str) -> tuple[bytes, str]:
    if type not in TYPES:
        raise _damaged(folder, "task.json", f"media of type {type} are not shown")
    path = folder / f"media/{digest}{TYPES[type][0]}"
    if not _DIGEST.fullmatch(digest):  # it is part of a path
        raise _damaged(folder, "task.json", "this is not the name of an image or a recording")
    with explained(path):
        data = path.read_bytes()
    if type_of(data) != type:
        raise _damaged(folder, str(path.relative_to(folder)), f"the file is not {type}")
    if hashlib.sha256(data).hexdigest() != digest:
        raise _damaged(folder, str(path.relative_to(folder)), "the file is not what its name says")
    return data, type


def _damaged(folder: Path, name: str, message: str) -> DataError:
    return DataError(
        message, kind="unreadable_file", file=str(folder / name),
        remedy="give a folder that `prefopt label export` wrote, as it was written",
    )  # fmt: skip
