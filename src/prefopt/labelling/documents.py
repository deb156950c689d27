"""Settings, items and payloads as the text that a database keeps, and back.

JSON in ASCII: characters that PostgreSQL's text cannot hold (NUL, lone surrogates) come
through as escapes, so whatever a completion contains is given back as it was.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from prefopt.labelling.words import Kind, NewItem, Task
from prefopt.records import Completion, Group, from_json, to_json


def dumped(document: Any) -> str:
    """Compact JSON in ASCII; NaN and infinities are refused.

    Raises:
        ValueError, TypeError: it cannot be JSON.
    """
    return json.dumps(document, separators=(",", ":"), allow_nan=False)


def task_to_text(task: Task) -> str:
    """The settings of a task, without its name."""
    document = asdict(task)
    del document["name"]
    return dumped(document)


def task_from_text(name: str, text: str) -> Task:
    """The inverse of `task_to_text`."""
    return Task(name=name, **json.loads(text))


def item_key(new: NewItem) -> str:
    """32 hex digits that are equal for equal questions: prompt, texts, order and media.

    >>> from dataclasses import replace
    >>> one = NewItem("hi", Completion("a"), Completion("b"))
    >>> item_key(one) == item_key(replace(one, priority=3.0, source="there"))
    True
    >>> item_key(one) == item_key(replace(one, second=Completion("c")))
    False
    """
    group = Group(new.prompt, (Completion(new.first.text), Completion(new.second.text)))
    asked = dumped([to_json(group), list(new.media)])
    return hashlib.blake2b(asked.encode(), digest_size=16).hexdigest()


def item_kind(new: NewItem) -> Kind:
    """Gold where the answer is known."""
    return "normal" if new.gold is None else "gold"


def item_to_text(new: NewItem) -> str:
    """An item without its priority, which may change."""
    group = Group(new.prompt, (new.first, new.second), source=new.source, meta=dict(new.meta))
    return dumped({"group": to_json(group), "gold": new.gold, "media": list(new.media)})


def gold_of_text(text: str) -> str | None:
    """The known answer of an item's text."""
    gold: str | None = json.loads(text)["gold"]
    return gold


def item_from_text(text: str, priority: float) -> NewItem:
    """The inverse of `item_to_text`."""
    document = json.loads(text)
    group = from_json(document["group"])
    first, second = group.completions
    return NewItem(
        prompt=group.prompt,
        first=first,
        second=second,
        priority=priority,
        gold=document["gold"],
        source=group.source,
        meta=group.meta,
        media=tuple(document["media"]),
    )


def payload_from_text(text: str) -> Mapping[str, Any]:
    """What an event carries."""
    payload: dict[str, Any] = json.loads(text)
    return payload
