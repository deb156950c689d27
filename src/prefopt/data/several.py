"""Layouts with many completions a prompt: ranked, scored by a judge, or voted on."""

from __future__ import annotations

import re
from typing import Any, get_args

from prefopt.data import fields, pairs
from prefopt.data.fields import refuse
from prefopt.data.files import Row
from prefopt.data.pairs import Draft, Edges
from prefopt.records import Choice, Completion, Prompt, Vote

_LISTS = ("completions", "responses", "answers")
_RANKS = ("ranking", "ranks", "rankings")
_SCORES = ("overall_score", "score")
_TEXTS = ("text", "response", "answer", "completion", "content")
CHOICES: tuple[str, ...] = get_args(Choice)


def first_list(row: Row, names: tuple[str, ...], part: str | None = None) -> str | None:
    """The first of the columns that is a list (of objects with that part)."""
    for name in names:
        value = row.get(name)
        if not isinstance(value, list) or not value:
            continue
        if part is None or (isinstance(value[0], dict) and part in value[0]):
            return name
    return None


def has_ranks(row: Row) -> bool:
    """Whether completions come with their ranks, beside them or in each."""
    ranks = any(isinstance(row.get(name), list) for name in _RANKS)
    return "prompt" in row and bool(first_list(row, _LISTS, None if ranks else "rank"))


def ranked(row: Row, edges: Edges) -> Draft:
    """A list of completions and the rank of each; 1 is the best, equal ranks are ties."""
    name, completions = _completions(row)
    column = next((rank for rank in _RANKS if row.get(rank) is not None), None)
    ranks = row[column] if column else [_part(item, "rank") for item in row[name]]
    column = column or f"{name}.rank"
    if len(fields.items(ranks, column)) != len(completions):
        refuse(
            "out_of_range",
            f"{len(ranks)} ranks for {len(completions)} completions",
            column,
            value=ranks,
            remedy="one rank a completion, in their order; 1 is the best",
        )
    values = [-fields.number(rank, column, 1.0) for rank in ranks]
    draft = _compared(row, completions, values, edges)
    return {**draft, "meta": fields.meta(row, ("prompt", "instruction", name, *_RANKS))}


def is_ultrafeedback(row: Row) -> bool:
    """Whether completions come with a judge's score or ratings."""
    return any(first_list(row, _LISTS, part) for part in (*_SCORES, "annotations"))


def ultrafeedback(row: Row, edges: Edges) -> Draft:
    """Several completions of a prompt, each with a score; equal scores are ties."""
    name, completions = _completions(row)
    scores = [_score(item, name) for item in row[name]]
    completions = [
        Completion(item.text, score, item.source)
        for item, score in zip(completions, scores, strict=True)
    ]
    draft = _compared(row, completions, scores, edges)
    return {**draft, "meta": fields.meta(row, ("prompt", "instruction", name))}


def _completions(row: Row) -> tuple[str, list[Completion]]:
    """The column with the completions, and what is in it."""
    name = first_list(row, _LISTS) or "completions"
    completions = []
    for item in fields.items(fields.required(row, name), name):
        source = _part(item, "model") or _part(item, "source")
        if isinstance(item, dict) and "role" not in item:
            item = next((item[part] for part in _TEXTS if item.get(part) is not None), None)
        text = fields.completion(item, name)
        completions.append(Completion(text, source=source if isinstance(source, str) else None))
    return name, completions


def _part(item: Any, name: str) -> Any:
    return item.get(name) if isinstance(item, dict) else None


def _score(item: Any, name: str) -> float:
    """The judge's overall score, or the mean of its ratings by aspect."""
    for part in _SCORES:
        if _part(item, part) is not None:
            return fields.number(item[part], f"{name}.{part}")
    annotations = _part(item, "annotations")
    aspects = annotations.values() if isinstance(annotations, dict) else ()
    ratings = [str(_part(aspect, "Rating")) for aspect in aspects]  # some are "N/A"
    known = [float(rating) for rating in ratings if re.fullmatch(r"\d+(\.\d+)?", rating)]
    if not known:
        refuse("missing_field", "a completion has neither a score nor ratings", name, value=item)
    return sum(known) / len(known)


def _compared(row: Row, completions: list[Completion], values: list[float], edges: Edges) -> Draft:
    """Comparisons of many completions by value, higher is better; equal values give none."""
    best: dict[str, tuple[Completion, float]] = {}
    for completion, value in zip(completions, values, strict=True):
        known = best.setdefault(completion.text, (completion, value))
        if known[1] != value:
            refuse(
                "identical_sides",
                "the same text is ranked twice, differently",
                "completions",
                value=completion.text,
                remedy="remove one of the two",
            )
    ordered = [value for _, value in best.values()]
    return {
        "prompt": _prompt(row),
        "completions": tuple(completion for completion, _ in best.values()),
        "comparisons": pairs.compare(ordered, best_worst=edges == "best_worst"),
    }


def _prompt(row: Row) -> Prompt:
    fields.refuse_media(row)
    name = "instruction" if row.get("prompt") is None and "instruction" in row else "prompt"
    return fields.prompt(fields.required(row, name), name)


def has_votes(row: Row) -> bool:
    """Whether completions come with what annotators said about them."""
    return "prompt" in row and isinstance(row.get("votes"), list) and bool(first_list(row, _LISTS))


def votes(row: Row, edges: Edges) -> Draft:
    """Completions and votes on pairs of them; comparisons are made once rows are merged."""
    name, completions = _completions(row)
    if len({item.text for item in completions}) < len(completions):
        refuse("identical_sides", "two of the completions are the same text", name)
    cast = fields.items(fields.required(row, "votes"), "votes")
    return {
        "prompt": _prompt(row),
        "completions": tuple(completions),
        "votes": tuple(_vote(item, len(completions)) for item in cast),
        "meta": fields.meta(row, ("prompt", "instruction", name, "votes")),
    }


def placed(item: Any) -> Any:
    """A vote with `first` and `second`, from its `pair`; without any of them the first two."""
    if not isinstance(item, dict):
        return item
    rest = {name: value for name, value in item.items() if name != "pair"}
    pair = item.get("pair")
    if rest.get("first") is not None or rest.get("second") is not None:
        if pair is not None:
            refuse("wrong_type", "a vote has `pair`, or `first` and `second`", "votes", value=item)
        return rest
    pair = [0, 1] if pair is None else pair
    if not isinstance(pair, list | tuple) or len(pair) != 2:
        refuse("wrong_type", "a vote's pair is two indices", "votes.pair", value=pair)
    return {**rest, "first": pair[0], "second": pair[1]}


def _vote(item: Any, count: int) -> Vote:
    """`{"pair": [0, 1], "choice": "first", "annotator": ...}` or just the choice."""
    parts = {"choice": item} if isinstance(item, str) else placed(item)
    if not isinstance(parts, dict):
        refuse("wrong_type", "a vote must be an object or a choice", "votes", value=item)
    indices = [parts.get("first"), parts.get("second")]
    if indices == [None, None] and count == 2:
        indices = [0, 1]
    first, second = indices
    if type(first) is not int or type(second) is not int:
        refuse(
            "missing_field",
            "a vote must say which two completions it is about",
            "votes",
            value=item,
            remedy='write {"first": 0, "second": 1, "choice": "first"}',
        )
    if not (0 <= first < count and 0 <= second < count) or first == second:
        refuse("out_of_range", f"a vote needs two of the {count} completions", "votes", value=item)
    choice, annotator = parts.get("choice"), parts.get("annotator")
    if choice not in CHOICES:
        refuse(
            "out_of_range", "a vote's choice is first, second or tie", "votes.choice", value=choice
        )
    return Vote(first, second, choice, None if annotator is None else str(annotator))
