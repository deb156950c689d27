"""Public layouts of preference data: which one a row has, and what group it stands for.

`LAYOUTS` is the table. A layout is recognised by the names and types of the columns of one
row; its converter gives the keyword arguments of a `records.Group` or raises a `DataError`
with kind, field, value and remedy (the reader adds file and row).

    prefopt         prompt, completions [{text, score?, source?}], comparisons, labels, votes, ...
    ranked          prompt, completions | responses | answers [text], ranking | ranks (1 = best)
    votes           prompt, completions | responses [text], votes [{pair, choice, annotator}]
    ultrafeedback   prompt | instruction, completions [{response, overall_score, annotations}]
    pairs           prompt, chosen, rejected              (TRL's explicit prompt)
    sharegpt        conversations, chosen, rejected       (LLaMA-Factory)
    hh              chosen, rejected: Anthropic's "\\n\\nHuman: ...\\n\\nAssistant: ..." transcripts
    implicit_pairs  chosen, rejected with a common beginning   (TRL's implicit prompt)
    arena           conversation_a, conversation_b | prompt, response_a, response_b, with a winner
    unpaired        prompt, completion, label
    demonstrations  prompt, completion
    messages        messages | conversations that end with the assistant's turn

Pair rows may have `probability`, `weight` and the two scores. Further columns go to `meta`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from prefopt.data import fields, judged, pairs, several
from prefopt.data.fields import refuse
from prefopt.data.files import Row
from prefopt.data.pairs import Draft, Edges
from prefopt.errors import DataError, RecipeError
from prefopt.records import Completion, Label, from_json


@dataclass(frozen=True, slots=True)
class Layout:
    """One line of the table.

    Attributes:
        name: what `format` calls it.
        columns: what a row must have, for messages about rows that lack something.
        fits: whether a row has this layout; the first of the table that fits is taken.
        convert: a row, and which comparisons to make of many completions, to a group.
    """

    name: str
    columns: tuple[str, ...]
    fits: Callable[[Row], bool]
    convert: Callable[[Row, Edges], Draft]


def recognise(row: Row) -> Layout:
    """The layout of a row.

    Raises:
        DataError: no layout has its columns (`missing_field` if one lacks a single column).
    """
    for layout in LAYOUTS:
        if layout.fits(row):
            return layout
    present = {name for name, value in row.items() if value is not None}
    for layout in LAYOUTS:
        missing = [name for name in layout.columns if name not in present]
        if len(missing) == 1 and len(present & set(layout.columns) - {"prompt"}) > 0:
            refuse(
                "missing_field",
                f"the columns are those of layout '{layout.name}', but '{missing[0]}' is missing",
                missing[0],
                value=sorted(row),
                remedy=f"'{layout.name}' rows have the columns {', '.join(layout.columns)}",
            )
    raise DataError(
        "the columns fit no known layout",
        kind="unknown_layout",
        value=sorted(row),
        remedy="rename the columns to prompt, chosen and rejected (or another layout: "
        f"{', '.join(layout.name for layout in LAYOUTS)})",
    )


def find_layout(name: str) -> Layout:
    """The layout with a name.

    Raises:
        RecipeError: there is none.
    """
    for layout in LAYOUTS:
        if layout.name == name:
            return layout
    raise RecipeError(
        "unknown data format",
        field="format",
        value=name,
        remedy="one of auto, " + ", ".join(layout.name for layout in LAYOUTS),
    )


# -- prefopt's own -------------------------------------------------------------------------

_NUMBER, _TEXT = {int, float}, {str}
_OPTIONAL_TEXT = _TEXT | {type(None)}
_OWN: dict[str, dict[str, set[Any]]] = {
    "completions": {"text": _TEXT, "score": _NUMBER | {type(None)}, "source": _OPTIONAL_TEXT},
    "comparisons": {
        "preferred": {int}, "dispreferred": {int}, "probability": _NUMBER, "weight": _NUMBER,
    },
    "labels": {"completion": {int}, "desirable": {bool}, "weight": _NUMBER},
    "votes": {"first": {int}, "second": {int}, "choice": _TEXT, "annotator": _OPTIONAL_TEXT},
}  # fmt: skip
_OWN_COLUMNS = {*_OWN, "prompt", "source", "meta"}


def _is_own(row: Row) -> bool:
    ours = row.keys() <= _OWN_COLUMNS or "comparisons" in row or "labels" in row
    return ours and several.first_list(row, ("completions",), "text") is not None


def _own(row: Row, edges: Edges) -> Draft:
    document = {name: value for name, value in row.items() if value is not None}
    if unknown := sorted(document.keys() - _OWN_COLUMNS):
        refuse(
            "unknown_layout",
            f"prefopt's own layout has no columns {', '.join(unknown)}",
            unknown[0],
            remedy="put further columns into 'meta'",
        )
    if isinstance(document.get("votes"), list):
        document["votes"] = [several.placed(vote) for vote in document["votes"]]
    for name, types in _OWN.items():
        if name in document:
            document[name] = [_own_item(item, name, types) for item in document[name]]
    for vote in document.get("votes", ()):
        if vote.get("choice") not in several.CHOICES:
            refuse("out_of_range", "a vote's choice is first, second or tie", "votes.choice",
                   value=vote.get("choice"))  # fmt: skip
    prompt = fields.required(row, "prompt")
    for turn in () if isinstance(prompt, str) else prompt:
        if not isinstance(turn, dict) or turn.keys() != {"role", "content"}:
            refuse("wrong_type", "a turn has a role and a content", "prompt", value=turn)
        fields.text(turn["role"], "prompt"), fields.text(turn["content"], "prompt")
    for name, kind in (("source", str), ("meta", dict)):
        if name in document and not isinstance(document[name], kind):
            refuse("wrong_type", f"must be of type {kind.__name__}", name, value=document[name])
    group = from_json(document)
    return {name: getattr(group, name) for name in _OWN_COLUMNS}


def _own_item(item: Any, name: str, types: dict[str, set[Any]]) -> Row:
    if not isinstance(item, dict):
        refuse("wrong_type", "must be a list of objects", name, value=item)
    kept = {part: value for part, value in item.items() if value is not None}
    for part, value in kept.items():
        if type(value) not in types.get(part, ()):
            refuse(
                "wrong_type" if part in types else "unknown_layout",
                f"'{part}' has the wrong type" if part in types else f"unknown part '{part}'",
                name,
                value=value,
            )
        if type(value) in _NUMBER:
            fields.number(value, f"{name}.{part}")
    return kept


# -- one completion ------------------------------------------------------------------------


def _unpaired(row: Row, edges: Edges) -> Draft:
    draft = _demonstration({**row, "label": None}, edges)
    label = fields.required(row, "label")
    if type(label) is not bool and label not in (0, 1):
        refuse(
            "wrong_type",
            "the label must be true or false",
            "label",
            value=label,
            remedy="true for a desirable completion, false for an undesirable one",
        )
    weight = fields.number(row["weight"], "weight", 0.0) if row.get("weight") is not None else 1.0
    draft["meta"].pop("weight", None)
    return {**draft, "labels": (Label(0, bool(label), weight),)}


def _demonstration(row: Row, edges: Edges) -> Draft:
    if row.get("label") is not None:
        refuse(
            "mixed_layout",
            "the row has a label and those before it had none",
            "label",
        )
    fields.refuse_media(row)
    completion = fields.completion(fields.required(row, "completion"), "completion")
    prompt = fields.prompt(fields.required(row, "prompt"), "prompt")
    return {
        "prompt": pairs.matching(prompt, row["completion"]),
        "completions": (Completion(completion),),
        "meta": fields.meta(row, ("prompt", "completion", "label")),
    }


def _messages(row: Row, edges: Edges) -> Draft:
    name = "messages" if row.get("messages") is not None else "conversations"
    fields.refuse_media(row)
    turns = fields.messages(fields.required(row, name), name)
    if not turns or turns[-1].role != "assistant":
        refuse(
            "wrong_role",
            "the conversation must end with the assistant's turn",
            name,
            value=[turn.role for turn in turns],
            remedy="the last turn is what the model learns to say",
        )
    prompt = fields.open_conversation(pairs.with_system(row, turns[:-1]), name)
    return {
        "prompt": prompt,
        "completions": (Completion(fields.answer(turns[-1].content, name)),),
        "meta": fields.meta(row, (name, "system")),
    }


# -- the table -----------------------------------------------------------------------------


def _has(*columns: str) -> Callable[[Row], bool]:
    return lambda row: all(row.get(column) is not None for column in columns)


LAYOUTS: tuple[Layout, ...] = (
    Layout("prefopt", ("prompt", "completions"), _is_own, _own),
    Layout("ranked", ("prompt", "completions", "ranking"), several.has_ranks, several.ranked),
    Layout("votes", ("prompt", "completions", "votes"), several.has_votes, several.votes),
    Layout("ultrafeedback", ("prompt", "completions"),
           several.is_ultrafeedback, several.ultrafeedback),
    Layout("pairs", ("prompt", "chosen", "rejected"),
           _has("prompt", "chosen", "rejected"), pairs.explicit),
    Layout("sharegpt", ("conversations", "chosen", "rejected"),
           _has("conversations", "chosen", "rejected"), pairs.sharegpt),
    Layout("hh", ("chosen", "rejected"), pairs.is_transcript, pairs.transcripts),
    Layout("implicit_pairs", ("chosen", "rejected"), pairs.is_implicit, pairs.implicit),
    Layout("arena", ("conversation_a", "conversation_b", "winner"), judged.fits, judged.arena),
    Layout("unpaired", ("prompt", "completion", "label"),
           _has("prompt", "completion", "label"), _unpaired),
    Layout("demonstrations", ("prompt", "completion"),
           _has("prompt", "completion"), _demonstration),
    Layout("messages", ("messages",),
           lambda row: bool(several.first_list(row, ("messages", "conversations"))), _messages),
)  # fmt: skip
