"""Layouts with a chosen and a rejected completion: where the prompt ends, and what is compared."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal

from prefopt.data import fields
from prefopt.data.fields import refuse
from prefopt.data.files import Row
from prefopt.records import Comparison, Completion, Message, Prompt

Edges = Literal["all", "best_worst"]
#: keyword arguments of a Group
Draft = dict[str, Any]

_SIDES = ("chosen", "rejected")
_SCORES = (("score_chosen", "score_rejected"), ("chosen_score", "rejected_score"))
_SCORE_NAMES = frozenset(name for names in _SCORES for name in names)
_USED = ("prompt", *_SIDES, "probability", "weight", *_SCORE_NAMES)
#: other people's names for the prompt: with one of them, the prompt is not in the completions
_PROMPTS = ("question", "instruction", "query", "input", "context", "post", "history")

_HUMAN, _ASSISTANT = "\n\nHuman:", "\n\nAssistant:"
_TURN = re.compile(r"\n\n(Human|Assistant):")
_TRANSCRIPT = re.compile(r"\s*Human:")
_REMEDY_SPLIT = "correct or remove the row, or give the prompt in a column 'prompt'"


def explicit(row: Row, edges: Edges) -> Draft:
    """TRL's prompt, chosen, rejected; also UltraFeedback binarized, where the sides hold all."""
    fields.refuse_media(row)
    prompt, sides = fields.required(row, "prompt"), _sides(row)
    if isinstance(prompt, str) and all(type(side) is list and len(side) > 1 for side in sides):
        draft = implicit(row, edges)
        if prompt not in {turn.content for turn in draft["prompt"]}:
            refuse(
                "prompt_mismatch",
                "the prompt is not a turn of the conversations",
                "prompt",
                value=prompt,
                remedy=_REMEDY_SPLIT,
            )
        return draft
    chosen, rejected = (fields.completion(row[name], name) for name in _SIDES)
    return _pair(row, matching(fields.prompt(prompt, "prompt"), *sides), chosen, rejected)


def is_implicit(row: Row) -> bool:
    """Whether the prompt can only be in the completions."""
    return all(row.get(name) is not None for name in _SIDES) and not any(
        row.get(name) for name in _PROMPTS
    )


def implicit(row: Row, edges: Edges) -> Draft:
    """TRL's chosen, rejected whose common beginning is the prompt."""
    fields.refuse_media(row)
    chosen, rejected = _sides(row)
    if isinstance(chosen, str) and isinstance(rejected, str):
        if is_transcript(row):
            refuse(
                "mixed_layout",
                "the row is a Human/Assistant transcript and those before it were not",
            )
        fields.answer(chosen, "chosen")
        fields.answer(rejected, "rejected")
        fields.distinct(chosen, rejected, "rejected")
        end = _last_word(chosen, _common(chosen, rejected))
        return _pair(row, chosen[:end], chosen[end:], rejected[end:])
    sides = [
        fields.messages(side, name) for side, name in zip((chosen, rejected), _SIDES, strict=True)
    ]
    if sides[0] == sides[1]:
        refuse("identical_sides", "both conversations are the same", "rejected")
    end = min(_common(*sides), len(sides[0]) - 1, len(sides[1]) - 1)
    if end < 1:
        _mismatch("the two conversations do not begin with the same turn", *sides)
    answers = [
        fields.completion(_turns(side[end:]), name)
        for side, name in zip(sides, _SIDES, strict=True)
    ]
    return _pair(row, fields.open_conversation(sides[0][:end], "chosen"), *answers)


def is_transcript(row: Row) -> bool:
    """Whether both sides are Anthropic's whole transcripts."""
    return "prompt" not in row and all(
        isinstance(row.get(name), str) and _TRANSCRIPT.match(row[name]) for name in _SIDES
    )


def transcripts(row: Row, edges: Edges) -> Draft:
    """Anthropic HH: both sides share the conversation up to the last assistant turn."""
    (prompt, chosen), (other, rejected) = (
        _last_turn(fields.text(side, name), name)
        for side, name in zip(_sides(row), _SIDES, strict=True)
    )
    turns = _conversation(prompt)
    if prompt != other and turns != _conversation(other):
        _mismatch("the two sides differ before their last assistant turn", prompt, other)
    if turns[-1].role != "user":
        _mismatch("the last assistant turn does not follow a human turn", prompt, other)
    for name, answer in zip(_SIDES, (chosen, rejected), strict=True):
        fields.answer(answer, name)
    return _pair(row, turns, chosen, rejected)


def sharegpt(row: Row, edges: Edges) -> Draft:
    """LLaMA-Factory's conversations, chosen, rejected."""
    fields.refuse_media(row)
    turns = fields.messages(row["conversations"], "conversations")
    prompt = fields.open_conversation(with_system(row, turns), "conversations")
    chosen, rejected = (fields.completion(fields.required(row, name), name) for name in _SIDES)
    draft = _pair(row, prompt, chosen, rejected)
    for name in ("conversations", "system"):
        draft["meta"].pop(name, None)
    return draft


def with_system(row: Row, turns: tuple[Message, ...]) -> tuple[Message, ...]:
    """The turns with the system message of a separate column in front."""
    if not row.get("system"):
        return turns
    return (Message("system", fields.text(row["system"], "system")), *turns)


def matching(prompt: Prompt, *sides: Any) -> Prompt:
    """A text prompt becomes a user's turn where the completions are messages."""
    if isinstance(prompt, str) and str not in map(type, sides):
        return (Message("user", prompt),)
    return prompt


def compare(values: Sequence[float], *, best_worst: bool) -> tuple[Comparison, ...]:
    """Comparisons of completions by value (higher is better); equal values give none."""
    order = sorted(range(len(values)), key=lambda index: -values[index])
    pairs = (
        [(order[0], order[-1])]
        if best_worst
        else [(better, worse) for i, better in enumerate(order) for worse in order[i + 1 :]]
    )
    return tuple(
        Comparison(better, worse) for better, worse in pairs if values[better] > values[worse]
    )


def _sides(row: Row) -> tuple[Any, Any]:
    return fields.required(row, "chosen"), fields.required(row, "rejected")


def _pair(row: Row, prompt: Prompt, chosen: str, rejected: str) -> Draft:
    fields.distinct(chosen, rejected, "rejected")
    edge: dict[str, float] = {}
    if row.get("probability") is not None:
        edge["probability"] = fields.number(row["probability"], "probability", 0.0, 1.0)
    if row.get("weight") is not None:
        edge["weight"] = fields.number(row["weight"], "weight", 0.0)
    scores = _scores(row)
    tie = scores[0] is not None and scores[0] == scores[1]
    meta = fields.meta(row, _USED)
    if meta.get("messages") == row["chosen"]:
        del meta["messages"]  # UltraFeedback binarized repeats the chosen side
    return {
        "prompt": prompt,
        "completions": (Completion(chosen, scores[0]), Completion(rejected, scores[1])),
        "comparisons": () if tie else (Comparison(0, 1, **edge),),
        "meta": meta,
    }


def _scores(row: Row) -> tuple[float | None, float | None]:
    if _SCORE_NAMES.isdisjoint(row):
        return None, None
    for names in _SCORES:
        if any(row.get(name) is not None for name in names):
            chosen, rejected = (fields.number(fields.required(row, name), name) for name in names)
            if chosen < rejected:
                refuse(
                    "score_order",
                    f"the chosen completion has the lower score, {chosen:g} < {rejected:g}",
                    names[0],
                    remedy="swap the sides, or rename the score columns if lower is better",
                )
            return chosen, rejected
    return None, None


def _common(first: Sequence[Any], second: Sequence[Any]) -> int:
    """How many items two sequences begin with in common."""
    low, high = 0, min(len(first), len(second))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if first[:middle] == second[:middle] else (low, middle - 1)
    return low


def _last_word(text: str, end: int) -> int:
    """Where the last whitespace before `end` begins: a prompt must not end within a word."""
    head = text[:end]
    cut = max((match.start() for match in re.finditer(r"\s+", head)), default=0)
    if not head[:cut].strip():
        refuse(
            "prompt_mismatch",
            "the two sides have no beginning in common that could be the prompt",
            "chosen",
            value=text,
            remedy="give the prompt in a column 'prompt'",
        )
    return cut


def _last_turn(text: str, field: str) -> tuple[str, str]:
    """A transcript up to its last assistant turn, and that turn."""
    fields.answer(text, field)
    prompt, marker, answer = ("\n\n" + text.lstrip()).rpartition(_ASSISTANT)
    if not marker:
        refuse(
            "prompt_mismatch",
            "the transcript has no assistant turn",
            field,
            value=text,
            remedy=_REMEDY_SPLIT,
        )
    if _HUMAN in answer:
        refuse(
            "several_turns",
            "the transcript goes on with a human turn after the last assistant turn",
            field,
            value=answer,
        )
    return prompt, answer.strip()


def _conversation(transcript: str) -> tuple[Message, ...]:
    _, *parts = _TURN.split(transcript)
    roles = {"Human": "user", "Assistant": "assistant"}
    return tuple(
        Message(roles[role], content.strip())
        for role, content in zip(parts[::2], parts[1::2], strict=True)
    )


def _turns(turns: Sequence[Message]) -> list[dict[str, str]]:
    return [{"role": turn.role, "content": turn.content} for turn in turns]


def _mismatch(message: str, first: Sequence[Any], second: Sequence[Any]) -> None:
    start = max(0, _common(first, second) - 40)
    value = f"chosen …{first[start : start + 80]!r}, rejected …{second[start : start + 80]!r}"
    refuse("prompt_mismatch", message, "chosen", value=value, remedy=_REMEDY_SPLIT)
