"""Layouts with two sides and a verdict: arenas, and judges of two models.

    arena   conversation_a, conversation_b, winner; model_a, model_b, judge, turn where known
            prompt, response_a, response_b, winner (or winner_model_a, winner_model_b, winner_tie)

MT-Bench's judgements are such rows, with `turn` naming the answer that was judged. Rows of this
kind without texts say which model won and nothing that a policy could learn from: they are read
by `aggregation.reading`.
"""

from __future__ import annotations

from typing import Any

from prefopt.data import fields
from prefopt.data.fields import refuse
from prefopt.data.files import Row
from prefopt.data.pairs import Draft, Edges
from prefopt.data.verdicts import choice_of
from prefopt.records import Choice, Completion, Prompt, Vote

_CONVERSATIONS = ("conversation_a", "conversation_b")
_ANSWERS = (("response_a", "response_b"), ("answer_a", "answer_b"))
_MODELS = ("model_a", "model_b")
_WINNERS = ("winner", "verdict", "judgment", "judgement")
_FLAGS: dict[str, Choice] = {
    "winner_model_a": "first", "winner_model_b": "second", "winner_tie": "tie",
}  # fmt: skip
_JUDGES = ("judge", "annotator")


def fits(row: Row) -> bool:
    """Whether two sides come with a verdict."""
    return _verdict_column(row) is not None and any(
        row.get(first) is not None and row.get(second) is not None
        for first, second in (_CONVERSATIONS, *_ANSWERS, _MODELS)
    )


def without_texts(row: Row) -> bool:
    """Whether it names the models and has nothing of what they said."""
    return fits(row) and _texts(row) is None and all(row.get(name) for name in _MODELS)


def arena(row: Row, edges: Edges) -> Draft:
    """Two answers to one prompt and a vote between them."""
    fields.refuse_media(row)
    names = _texts(row)
    if names is None:
        refuse(
            "missing_field",
            "the row has a verdict and no texts, so nothing can be learnt from it",
            _CONVERSATIONS[0],
            value=sorted(row),
            remedy="give conversation_a and conversation_b, or prompt, response_a and response_b; "
            "prefopt aggregate takes such rows as they are",
        )
    if names == _CONVERSATIONS:
        prompt, texts = _conversations(row)
        used: tuple[str, ...] = names
    else:
        prompt = fields.prompt(fields.required(row, "prompt"), "prompt")
        texts = [fields.completion(row[name], name) for name in names]
        used = ("prompt", *names)
    fields.distinct(texts[0], texts[1], names[1])
    sources = [row.get(name) if isinstance(row.get(name), str) else None for name in _MODELS]
    return {
        "prompt": prompt,
        "completions": tuple(
            Completion(text, source=source) for text, source in zip(texts, sources, strict=True)
        ),
        "votes": (Vote(0, 1, choice(row), judge(row)),),
        "meta": fields.meta(row, (*used, *_MODELS, *_WINNERS, *_FLAGS, *_JUDGES)),
    }


def choice(row: Row) -> Choice:
    """What the verdict of a row is; a judge's whole text will do.

    Raises:
        DataError: it is none (`unreadable_verdict`).
    """
    column = _verdict_column(row)
    if column in _FLAGS:
        held = [name for name in _FLAGS if row.get(name) in (1, True)]
        if len(held) == 1:
            return _FLAGS[held[0]]
        refuse("unreadable_verdict", "exactly one of the winner columns must be 1", column,
               value={name: row.get(name) for name in _FLAGS})  # fmt: skip
    value = None if column is None else row[column]
    found = choice_of(value)
    if found is None:
        refuse("unreadable_verdict", "the verdict is neither side nor a tie", column, value=value)
    return found


def judge(row: Row) -> str | None:
    """Who gave the verdict, as one name."""
    for name in _JUDGES:
        value = row.get(name)
        if value is not None:
            parts = value if isinstance(value, list | tuple) else [value]
            return "/".join(map(str, parts))
    return None


def question(row: Row) -> str:
    """What the models were asked, as one name: the question, and its turn where there are some."""
    name = str(fields.required(row, "question_id"))
    turn = row.get("turn")
    return name if turn is None else f"{name} (turn {turn})"


def models(row: Row) -> tuple[str, str]:
    """The two models of a row.

    Raises:
        DataError: a name is not text, or both are the same.
    """
    first, second = (fields.text(fields.required(row, name), name) for name in _MODELS)
    if first == second:
        refuse("identical_sides", "a model is compared with itself", _MODELS[1], value=first)
    return first, second


def _verdict_column(row: Row) -> str | None:
    return next((name for name in (*_WINNERS, *_FLAGS) if row.get(name) is not None), None)


def _texts(row: Row) -> tuple[str, str] | None:
    """The columns with what was said, if there are any."""
    for names in (_CONVERSATIONS, *_ANSWERS):
        if all(row.get(name) is not None for name in names):
            return names
    return None


def _conversations(row: Row) -> tuple[Prompt, list[str]]:
    """The conversation before the answer that was judged, and that answer of each side."""
    prompts: list[Any] = []
    texts = []
    for name in _CONVERSATIONS:
        turns = fields.messages(row[name], name)
        answers = [i for i, turn in enumerate(turns) if turn.role == "assistant"]
        turn = row.get("turn")
        number = turn if type(turn) is int else len(answers)
        if not 1 <= number <= len(answers):
            refuse("out_of_range", f"there is no answer of turn {number}", name, value=turn)
        end = answers[number - 1]
        prompts.append(fields.open_conversation(turns[:end], name))
        texts.append(fields.answer(turns[end].content, name))
    if prompts[0] != prompts[1]:
        refuse(
            "prompt_mismatch",
            "the two conversations differ before the answer that was judged",
            _CONVERSATIONS[1],
            remedy="leave these rows out: each answer was to another conversation",
        )
    return prompts[0], texts
