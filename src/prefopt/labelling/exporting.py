"""A task as files: votes, comparisons, and everything that happened, so that nothing is lost.

    task.json          the task, its annotators (names and roles, no secrets), its media
    votes.jsonl        groups with votes; `meta.labelling` has items, answers and events
    comparisons.jsonl  the groups with votes, and what a rule makes of them: ready to train on
    media/             images and audio, named by their digests
    manifest.json      fingerprints of the above and the rule; written last

Numbers of items and events count from 1 within the task, and annotators are known by their names,
so the same history gives the same bytes from every database.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefopt import __version__
from prefopt.data.aggregation.rules import Method
from prefopt.labelling.media import COLUMNS, TYPES
from prefopt.labelling.replaying import Claim
from prefopt.labelling.voted import Row, answers_of, rows_of, with_rule
from prefopt.labelling.words import Annotator, Event, Item, Task
from prefopt.records import Group, to_json
from prefopt.runs import atomic_folder, empty_folder, explained

if TYPE_CHECKING:
    from prefopt.labelling.store import Store

FORMAT = "prefopt labelling task"
VERSION = 1
LABELLING = "labelling"
#: keys that the export writes into `meta` itself; a row's own go to `labelling.meta`
RESERVED = (LABELLING, *COLUMNS)


@dataclass(frozen=True)
class History:
    """Everything that a database knows of a task.

    Attributes:
        task: the task.
        items, events: in the order of their numbers.
        annotators: those who did anything in it, by number.
        media: type of every image and recording, by digest.
    """

    task: Task
    items: Sequence[Item]
    events: Sequence[Event]
    annotators: Mapping[int, Annotator]
    media: Mapping[str, str]

    def rows(self) -> list[Row]:
        """Its groups with votes."""
        names = {number: one.name for number, one in self.annotators.items()}
        return rows_of(self.items, answers_of(self.events), names)


def history(store: Store, task: str) -> History:
    """Everything that a database knows of a task.

    Raises:
        RecipeError: there is no such task.
    """
    found = store.task(task)
    events = list(store.events(task))  # first: what they name is there by then
    items = list(store.items(task))
    active = {event.annotator for event in events}
    annotators = {one.id: one for one in store.annotators() if one.id in active}
    media = {}
    for digest in dict.fromkeys(digest for item in items for digest in item.new.media):
        kept = store.media(digest)
        assert kept is not None  # what an item names was added before it
        media[digest] = kept[1]
    return History(found, items, events, annotators, media)


def votes_lines(store: Store, task: str) -> Iterator[str]:
    """The lines of `votes.jsonl`, each with its newline."""
    known = history(store, task)
    return _votes_lines(known, known.rows())


def comparisons_lines(store: Store, task: str, *, rule: Method = "smoothed") -> Iterator[str]:
    """The lines of `comparisons.jsonl`, each with its newline; none where nobody voted.

    Raises:
        DataError: the votes do not determine what the rule asks for.
    """
    known = history(store, task)
    return _comparisons_lines(known, known.rows(), rule)


def export_task(
    store: Store, task: str, out: str | Path, *, rule: Method = "smoothed"
) -> dict[str, Any]:
    """Write a task into a folder, whole or not at all.

    Returns:
        The manifest, and `out`.

    Raises:
        RecipeError: there is no such task.
        DataError: the votes do not determine what the rule asks for.
        RunError: the folder holds something, or it cannot be written.
    """
    target = empty_folder(out, "an export")
    with store.database.moment():
        known = history(store, task)
    with explained(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(target) as folder:
        manifest = write_task(store, known, folder, rule)
    return {"out": str(out), **manifest}


def write_task(store: Store, known: History, folder: Path, rule: Method) -> dict[str, Any]:
    """Write a task's files into a folder that is there, the manifest last; returns that."""
    rows = known.rows()
    comparisons = list(_comparisons_lines(known, rows, rule))
    files = {
        "task.json": [_pretty(_task_document(known))],
        "votes.jsonl": _votes_lines(known, rows),
        "comparisons.jsonl": comparisons,
    }
    prints = {name: _write(folder / name, lines) for name, lines in files.items()}
    for digest, type in known.media.items():
        kept = store.media(digest)
        assert kept is not None
        name = media_file(digest, type)
        (folder / "media").mkdir(exist_ok=True)
        (folder / name).write_bytes(kept[0])
        prints[name] = f"sha256:{hashlib.sha256(kept[0]).hexdigest()}"
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "prefopt": __version__,
        "task": known.task.name,
        "rule": rule,
        "items": len(known.items),
        "events": len(known.events),
        "annotators": len(known.annotators),
        "votes": sum(len(row.group.votes) for row in rows),
        "groups": len(rows),
        "compared": len(comparisons),
        "files": prints,
    }
    _write(folder / "manifest.json", [_pretty(manifest)])
    return manifest


def media_file(digest: str, type: str) -> str:
    """The path of an image or a recording in an export."""
    return f"media/{digest}{TYPES[type][0]}"


# -- lines --------------------------------------------------------------------------------------


def _task_document(known: History) -> dict[str, Any]:
    people = sorted(known.annotators.values(), key=lambda one: one.name)
    return {
        "format": FORMAT,
        "version": VERSION,
        "task": asdict(known.task),
        "annotators": [{"name": one.name, "role": one.role} for one in people],
        "media": [
            {"digest": digest, "type": type, "file": media_file(digest, type)}
            for digest, type in known.media.items()
        ],
    }


def _votes_lines(known: History, rows: Iterable[Row]) -> Iterator[str]:
    places = {item.id: number for number, item in enumerate(known.items, start=1)}
    numbers = {event.id: number for number, event in enumerate(known.events, start=1)}
    answers: dict[int, list[Claim]] = defaultdict(list)
    for answer in answers_of(known.events):
        answers[answer.item].append(answer)
    events: dict[int, list[Event]] = defaultdict(list)
    for event in known.events:
        events[event.item].append(event)
    for row in rows:
        items = [
            {
                "number": places[item.id],
                "first": first,
                "second": second,
                "priority": item.new.priority,
                **({"gold": item.new.gold} if item.new.gold else {}),
                "answers": [_answer(one, known, numbers) for one in answers[item.id]],
                "events": [_event(one, known, numbers) for one in events[item.id]],
            }
            for item, (first, second) in zip(row.items, row.places, strict=True)
        ]
        yield _line(replace(row.group, meta=_meta(row, known, {"items": items})))


def _comparisons_lines(known: History, rows: Sequence[Row], rule: Method) -> Iterator[str]:
    voted = [row for row in rows if row.group.votes]
    groups = with_rule(voted, rule)  # at once: a refusal must not come amid the file
    return (
        _line(replace(group, meta=_meta(row, known, None, group)))
        for row, group in zip(voted, groups, strict=True)
    )


def _meta(
    row: Row, known: History, labelling: dict[str, Any] | None, group: Group | None = None
) -> dict[str, Any]:
    """A row's `meta` with its media as paths in the export, and what happened if it is wanted."""
    own = (group or row.group).meta
    meta = {name: value for name, value in own.items() if name not in RESERVED}
    digests = row.items[0].new.media
    for column, kind in COLUMNS.items():
        listed = [media_file(one, known.media[one]) for one in digests
                  if known.media[one].startswith(kind)]  # fmt: skip
        if listed:
            meta[column] = listed
    if labelling is not None:
        shadowed = {name: value for name, value in own.items() if name in RESERVED}
        if shadowed:
            labelling["meta"] = shadowed
        if digests:
            labelling["media"] = list(digests)
        meta[LABELLING] = labelling
    return meta


def _answer(answer: Claim, known: History, numbers: Mapping[int, int]) -> dict[str, Any]:
    """An answer that stands, to be read without replaying events."""
    return {
        "event": numbers[answer.event or 0],
        "annotator": known.annotators[answer.annotator].name,
        "repeat": answer.repeat,
        "at": answer.at,
        "said": answer.said or "skip",
        "left": "second" if answer.swapped else "first",
        "strength": answer.strength,
        "reason": answer.reason,
        "flagged": answer.flagged,
        "comment": answer.comment,
        "seconds": answer.seconds,
    }


def _event(event: Event, known: History, numbers: Mapping[int, int]) -> dict[str, Any]:
    payload = dict(event.payload)
    if event.kind == "undo":
        payload["event"] = numbers[payload["event"]]
    key = {} if event.kind == "lease" else {"key": event.key}  # a lease's is its own number
    return {
        "number": numbers[event.id],
        "kind": event.kind,
        "annotator": known.annotators[event.annotator].name,
        "repeat": event.repeat,
        **key,
        "at": event.at,
        "payload": payload,
    }


def _line(group: Group) -> str:
    return json.dumps(to_json(group), ensure_ascii=False, allow_nan=False) + "\n"


def _pretty(document: Any) -> str:
    return json.dumps(document, ensure_ascii=False, allow_nan=False, indent=2) + "\n"


def encoded(line: str) -> bytes:
    """A line as UTF-8; half of a surrogate pair, which has no UTF-8, as JSON's escape."""
    return line.encode("utf-8", "backslashreplace")


def _write(path: Path, lines: Iterable[str]) -> str:
    """Write lines; returns the file's fingerprint."""
    seen = hashlib.sha256()
    with open(path, "wb") as file:
        for line in map(encoded, lines):
            seen.update(line)
            file.write(line)
    return f"sha256:{seen.hexdigest()}"
