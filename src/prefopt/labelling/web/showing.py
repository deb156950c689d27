"""A question as the page and as JSON have it: two views of the same `Shown`."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from starlette.requests import Request

from prefopt.labelling.media import TYPES
from prefopt.labelling.web.answers import CHOICES, REASONS, STRENGTHS
from prefopt.labelling.web.room import Form, room_of
from prefopt.labelling.web.sessions import Visitor
from prefopt.labelling.words import Shown, Task
from prefopt.records import Message, Prompt

#: characters and turns before the last one that are open; more of them fold
OPEN_BEFORE, OPEN_TURNS = 1_200, 4
_ROLES = {
    "system": "System",
    "user": "User",
    "assistant": "Assistant",
    "tool": "Tool",
}


@dataclass(frozen=True, slots=True)
class Medium:
    """An image or a recording of a prompt."""

    address: str
    type: str

    @property
    def kind(self) -> str:
        """`image` or `audio`."""
        return self.type.partition("/")[0]


def new_key() -> str:
    """An idempotency key for one form."""
    return secrets.token_urlsafe(16)


def turns(prompt: Prompt) -> tuple[Message, ...]:
    """A prompt as turns; text for a plain language model is one turn in the role `text`."""
    return (Message("text", prompt),) if isinstance(prompt, str) else prompt


def media_of(request: Request, digests: tuple[str, ...]) -> list[Medium]:
    """What belongs to a prompt and is of a type that is shown."""
    room, found = room_of(request), []
    for digest in digests:
        if digest not in room.types:
            stored = room.store.media(digest)
            room.types[digest] = stored[1] if stored is not None else ""
        if room.types[digest] in TYPES:
            found.append(Medium(f"/media/{digest}", room.types[digest]))
    return found


def pressed_of(before: Mapping[str, Any], shown: Shown) -> str | None:
    """What an earlier answer said, in terms of the screen."""
    said = before.get("said")
    if said in ("first", "second"):
        return "left" if (said == "first") != shown.swapped else "right"
    return said if said in CHOICES else "skip" if said is None else None


def document(request: Request, visitor: Visitor, task: Task, shown: Shown | None) -> dict[str, Any]:
    """A question, or that there is none, for programs.

    Returns:
        Always `task`, `csrf`, `key` (for the next form), `progress` and `done`. Of a question
        also `lease`, `repeat`, `until` (seconds since the epoch), `prompt` (`role` and
        `content`), `media` (`url` and `type`), `left`, `right` and `before`: the answer that was
        taken back, with its `choice` on the screen, or null.
    """
    progress = room_of(request).store.progress(task.name, visitor.annotator.id)
    always = {
        "task": task.name,
        "csrf": visitor.csrf,
        "key": new_key(),
        "progress": asdict(progress),
        "done": shown is None,
    }
    if shown is None:
        return always
    before = shown.before
    media = media_of(request, shown.item.new.media)
    return {
        "lease": shown.lease,
        "repeat": shown.repeat,
        "until": shown.until,
        **always,
        "prompt": [asdict(turn) for turn in turns(shown.item.new.prompt)],
        "media": [{"url": medium.address, "type": medium.type} for medium in media],
        "left": shown.left.text,
        "right": shown.right.text,
        "before": None if before is None else {**before, "choice": pressed_of(before, shown)},
    }


def question(
    request: Request,
    visitor: Visitor,
    task: Task,
    shown: Shown,
    *,
    form: Form | None = None,
    problem: object = None,
) -> dict[str, Any]:
    """What the page of a question is filled with.

    Args:
        form: what was sent and refused: it is in the fields again.
        problem: why it was refused.
    """
    conversation = turns(shown.item.new.prompt)
    earlier = conversation[:-1]
    before = shown.before or {}
    if form is not None:
        filled = {name: form.get(name, "") for name in ("strength", "reason", "comment")}
        filled["flag"] = form.get("flag", "")
    else:
        filled = {
            "strength": str(before.get("strength") or ""),
            "reason": before.get("reason") or "",
            "comment": before.get("comment") or "",
            "flag": "1" if before.get("flagged") else "",
        }
    return {
        **frame(request, visitor, task),
        "shown": shown,
        "chat": not isinstance(shown.item.new.prompt, str),
        "earlier": earlier,
        "last": conversation[-1] if conversation else None,
        "fold": len(earlier) > OPEN_TURNS
        or sum(len(turn.content) for turn in earlier) > OPEN_BEFORE,
        "roles": _ROLES,
        "media": media_of(request, shown.item.new.media),
        "choices": CHOICES,
        "strengths": STRENGTHS,
        "reasons": REASONS,
        "filled": filled,
        "open": any(filled.values()),
        "was": pressed_of(before, shown) if shown.before is not None else None,
        "problem": problem,
        "key_of_form": new_key(),
    }


def frame(request: Request, visitor: Visitor, task: Task) -> dict[str, Any]:
    """What every page of a task is filled with."""
    return {
        "task": task,
        "visitor": visitor,
        "progress": room_of(request).store.progress(task.name, visitor.annotator.id),
        "undo_key": new_key(),
    }
