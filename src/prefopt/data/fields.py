"""What is in a column: text, numbers, conversations, or a `DataError` that says what is not.

The errors carry kind, field, value and remedy; whoever reads the file adds file and row.
A column that is null counts as missing: Parquet cannot leave a column out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from prefopt.data.files import Row
from prefopt.data.kinds import KINDS
from prefopt.errors import DataError
from prefopt.records import Message, Prompt

#: the names that data sets give to the four roles
_ROLES = {
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "system": "system",
    "developer": "system",
    "tool": "tool",
    "observation": "tool",
}
#: columns that change what the model sees and that a text conversation cannot hold
_MEDIA = frozenset(("image", "images", "audio", "audios", "video", "videos", "tools", "tool_calls"))


def refuse(kind: str, message: str, field: str | None = None, **place: Any) -> NoReturn:
    """Raise the `DataError` of one row, with the usual remedy of its kind if none is given."""
    raise DataError(message, **{"kind": kind, "field": field, "remedy": KINDS[kind][2], **place})


def refuse_media(row: Mapping[str, Any]) -> None:
    """Refuse what would silently be left out of the prompt."""
    if _MEDIA.isdisjoint(row):
        return
    for name in sorted(_MEDIA):
        if row.get(name):
            refuse(
                "unsupported_media",
                f"'{name}' would be left out of what the model sees",
                name,
                remedy=f"remove the rows that have '{name}', or the column if it is not needed",
            )


def required(row: Row, name: str) -> Any:
    """A column that must be there."""
    value = row.get(name)
    if value is None:
        refuse(
            "missing_field",
            f"the column '{name}' is missing or null",
            name,
            value=sorted(row),
            remedy=f"every row of this layout needs '{name}'",
        )
    return value


def text(value: Any, field: str) -> str:
    """A text, possibly empty."""
    if not isinstance(value, str):
        refuse("wrong_type", f"must be text, not {_type(value)}", field, value=value)
    return value


def number(value: Any, field: str, low: float = -math.inf, high: float = math.inf) -> float:
    """A finite number in [low, high]."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        refuse("wrong_type", f"must be a number, not {_type(value)}", field, value=value)
    try:
        number = float(value)
    except OverflowError:  # a whole number beyond what a float holds
        number = math.inf
    if not math.isfinite(number) or not low <= number <= high:
        limits = f" between {low:g} and {high:g}" if math.isfinite(low) else ""
        refuse("out_of_range", f"must be a finite number{limits}", field, value=value)
    return number


def items(value: Any, field: str) -> Sequence[Any]:
    """A list with at least one item."""
    if not isinstance(value, list | tuple):
        refuse("wrong_type", f"must be a list, not {_type(value)}", field, value=value)
    if not value:
        refuse("missing_field", "the list is empty", field)
    return value


def message(value: Any, field: str) -> Message:
    """One turn: `{"role", "content"}`, or ShareGPT's `{"from", "value"}`."""
    if not isinstance(value, Mapping):
        refuse("wrong_type", f"a turn must be an object, not {_type(value)}", field, value=value)
    role = value.get("role") or value.get("from")
    content = value.get("content") if value.get("content") is not None else value.get("value")
    if role is None or content is None:
        refuse(
            "missing_field",
            "a turn needs a role and a content",
            field,
            value=value,
            remedy='write turns as {"role": "user", "content": "..."}',
        )
    refuse_media(value)
    known = _ROLES.get(role) if isinstance(role, str) else None
    if known is None:
        refuse(
            "wrong_role",
            f"unknown role {role!r}",
            field,
            remedy="roles are system, user, assistant and tool",
        )
    return Message(known, _content(content, field))


def messages(value: Any, field: str) -> tuple[Message, ...]:
    """A conversation with at least one turn."""
    if not isinstance(value, list | tuple):
        refuse("wrong_type", f"must be a list of turns, not {_type(value)}", field, value=value)
    return tuple(message(turn, field) for turn in value)


def prompt(value: Any, field: str) -> Prompt:
    """Text that is not empty, or a conversation at whose end the model must speak."""
    if isinstance(value, str):
        if not value.strip():
            refuse(
                "empty_prompt",
                "the prompt is empty",
                field,
                remedy="remove the row, or give a prompt",
            )
        return value
    if not isinstance(value, list | tuple):
        refuse("wrong_type", f"must be text or turns, not {_type(value)}", field, value=value)
    return open_conversation(messages(value, field), field)


def open_conversation(turns: tuple[Message, ...], field: str) -> tuple[Message, ...]:
    """A prompt of messages: it has turns, and the last is not the assistant's."""
    if not turns:
        refuse("empty_prompt", "the prompt has no turns", field)
    if turns[-1].role == "assistant":
        refuse(
            "wrong_role",
            "the prompt ends with an assistant turn, so it is not the model's turn to speak",
            field,
            value=turns[-1].content,
        )
    return turns


def completion(value: Any, field: str) -> str:
    """One assistant turn: text, a message, or a list with a single message."""
    if isinstance(value, str):
        return answer(value, field)
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, list | tuple):
        refuse("wrong_type", f"must be text or a turn, not {_type(value)}", field, value=value)
    turns = messages(value, field)
    if len(turns) > 1:
        refuse(
            "several_turns",
            f"a completion is one assistant turn, here are {len(turns)}",
            field,
            value=[turn.role for turn in turns],
        )
    if turns and turns[0].role != "assistant":
        refuse("wrong_role", f"a completion is the assistant's, not the {turns[0].role}'s", field)
    return answer(turns[0].content if turns else "", field)


def answer(value: str, field: str) -> str:
    """The text of a completion, which must have something in it."""
    if not value.strip():
        refuse(
            "empty_completion",
            "the completion is empty",
            field,
        )
    return value


def distinct(first: str, second: str, field: str) -> None:
    """Refuse a comparison of a completion with itself."""
    if first == second:
        refuse(
            "identical_sides",
            "both sides of the comparison are the same text",
            field,
            value=first,
        )


def meta(row: Row, used: tuple[str, ...]) -> dict[str, Any]:
    """The columns that a layout does not use; those of a column `meta` come first."""
    rest = {name: value for name, value in row.items() if name not in used and value is not None}
    if isinstance(rest.get("meta"), Mapping):
        return {**rest.pop("meta"), **rest}
    return rest


def _content(value: Any, field: str) -> str:
    """The text of a turn; transformers also writes it as a list of parts."""
    if isinstance(value, list | tuple):
        for part in value:
            if not isinstance(part, Mapping) or not isinstance(part.get("text"), str):
                refuse(
                    "unsupported_media",
                    "a turn has parts that are not text",
                    field,
                    value=part,
                )
        return "".join(part["text"] for part in value)
    return text(value, field)


def _type(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false"}
    return names.get(type(value), "null" if value is None else type(value).__name__)
