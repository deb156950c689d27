"""Who writes what a judge is shown beside an answer: debaters and critics, models or functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from prefopt.errors import DataError, RecipeError
from prefopt.judges.code import called, code_of
from prefopt.judges.remembered import Remembered
from prefopt.judges.settings import Spec
from prefopt.judges.speakers import choose
from prefopt.judges.speaking import Ask, Speaker
from prefopt.judges.table import Context
from prefopt.judges.templates import (
    bounded,
    check_template,
    fill,
    mark_of,
    prompt_text,
    read_templates,
)
from prefopt.records import Prompt


@dataclass(frozen=True, slots=True)
class Turn:
    """What somebody who speaks for one of two answers, or criticises one, has before them.

    Attributes:
        prompt: what was asked.
        mine: the answer spoken for, or criticised.
        other: the other answer; None for a critic.
        said: what was said for (or about) `mine` before, in order.
        answered: what was said for `other` before.
        number, of: which round or level this is, from 1, and of how many.
        seed: of this text.
    """

    prompt: Prompt
    mine: str
    other: str | None
    said: tuple[str, ...]
    answered: tuple[str, ...]
    number: int
    of: int
    seed: int


class Writer(Protocol):
    """Who writes."""

    name: str

    def identity(self) -> Mapping[str, Any]:
        """Everything that its texts depend on beside the turn, as plain JSON."""
        ...

    def write(self, turns: Sequence[Turn]) -> list[str]:
        """A text for each turn; empty where there is none."""
        ...


class RuleWriter:
    """A function of a turn.

    Args:
        name: of it; two functions of one file need different ones, or they are one to a cache.
        function: gives a text.
    """

    def __init__(self, name: str, function: Callable[[Turn], str]) -> None:
        self.name = name
        self._function = function

    def identity(self) -> Mapping[str, Any]:
        code = code_of(self._function, self.name.removeprefix("python:"))
        return {"kind": "python", "function": self.name, "code": code}

    def write(self, turns: Sequence[Turn]) -> list[str]:
        texts = [called(self._function, self.name, turn, about=turn.mine) for turn in turns]
        for text in texts:
            if not isinstance(text, str):
                raise DataError(
                    f"{self.name} must return a text",
                    kind="wrong_type",
                    field="debaters",
                    value=text,
                    remedy="return what is to be shown to the judge",
                )
        return texts


@dataclass(frozen=True)
class Instructions:
    """What a model is told that writes.

    Attributes:
        file: where it was read.
        field: `argue` or `critique`.
        template: with placeholders.
        words: the most that it is asked for.
    """

    file: str
    field: str
    template: str
    words: int

    def filled(self, turn: Turn) -> str:
        """The text of one turn, everything from the data between boundaries."""
        prompt = prompt_text(turn.prompt)
        texts = (prompt, turn.mine, turn.other or "", *turn.said, *turn.answered)
        mark = mark_of(*texts)

        def several(name: str, said: Sequence[str]) -> str:
            return "\n".join(
                bounded(f"{name} {number}", text, mark) for number, text in enumerate(said, 1)
            )

        common: dict[str, Any] = {
            "mark": mark, "prompt": bounded("question", prompt, mark), "words": self.words,
            "round": turn.number, "rounds": turn.of,
        }  # fmt: skip
        if self.field == "critique":
            values = {
                "completion": bounded("answer", turn.mine, mark),
                "earlier": several("critique", turn.said),
            }
        else:
            values = {
                "mine": bounded("your answer", turn.mine, mark),
                "other": bounded("other answer", turn.other or "", mark),
                "my_arguments": several("your argument", turn.said),
                "their_arguments": several("their argument", turn.answered),
            }
        return fill(self.template, file=self.file, field=self.field, **common, **values)


_PLACEHOLDERS = {
    "argue": (("prompt", "mine", "other"), ("my_arguments", "their_arguments")),
    "critique": (("prompt", "completion"), ("earlier",)),
}


def load_instructions(name: str, field: Literal["argue", "critique"]) -> Instructions:
    """What a debater or critic is told, from a file or a shipped one by its name.

    Raises:
        RecipeError: there is no such file, or something in it is wrong.
    """
    document, file, rows = read_templates(name, "prompts", (field,))
    for key in document:
        if key not in (field, "words"):
            raise RecipeError(
                f"there is no setting '{key}' here", file=file, row=rows.get(key), field=key,
                remedy=f"the settings are: {field}, words",
            )  # fmt: skip
    required, more = _PLACEHOLDERS[field]
    template = check_template(
        document.get(field), allowed=(*required, *more, "words", "round", "rounds"),
        required=required, file=file, row=rows.get(field), field=field,
    )  # fmt: skip
    words = document.get("words", 120)
    if type(words) is not int or words < 1:
        raise RecipeError(
            "words must be a whole number, at least 1", file=file, row=rows.get("words"),
            field="words", value=words,
        )  # fmt: skip
    return Instructions(file, field, template, words)


class SpokenWriter:
    """A language model that writes.

    Args:
        speaker: the model.
        instructions: what it is told.
        temperature, max_new_tokens: of its texts.
    """

    def __init__(
        self,
        speaker: Speaker,
        instructions: Instructions,
        *,
        temperature: float = 0.7,
        max_new_tokens: int = 256,
    ) -> None:
        self.name = speaker.name
        self._speaker, self._instructions = speaker, instructions
        self._temperature, self._max_new_tokens = temperature, max_new_tokens

    def identity(self) -> Mapping[str, Any]:
        return {
            "speaker": dict(self._speaker.identity()),
            "instructions": self._instructions.template, "words": self._instructions.words,
            "temperature": self._temperature, "max_new_tokens": self._max_new_tokens,
        }  # fmt: skip

    def remember_in(self, folder: Path) -> None:
        """Keep every text."""
        self._speaker = Remembered(self._speaker, folder)

    def write(self, turns: Sequence[Turn]) -> list[str]:
        asks = [Ask(self._instructions.filled(t), t.seed, self._temperature) for t in turns]
        texts = [""] * len(asks)
        for place, said in self._speaker.say(asks, max_new_tokens=self._max_new_tokens):
            texts[place] = said.answer
        return texts


def make_writer(
    spec: Spec, context: Context, name: str, instructions: Callable[[], Instructions]
) -> Writer:
    """The writer that a spec names: `lm:FOLDER`, `server:URL`, `python:module:function`.

    Args:
        spec: text, or a mapping with `kind` and settings.
        context: where it was read.
        name: the setting it was said in.
        instructions: what a model is told; a function needs none.

    Raises:
        RecipeError: it is none, or a setting is wrong.
    """
    chosen = choose(spec, context, name)
    if chosen.speaker is None:
        rule = chosen.function(f"{context.prefix}{name}")
        return RuleWriter(f"python:{chosen.argument}", rule)
    told = instructions()  # before a model is loaded for them
    how = chosen.settings
    return SpokenWriter(
        chosen.speaker(), told, temperature=how.temperature, max_new_tokens=how.max_new_tokens
    )


def beside(answer: str, name: str, texts: Sequence[str]) -> str:
    """An answer with what was written about it below, so that it goes wherever the answer goes.

    >>> beside("Four.", "argument", [])
    'Four.'
    """
    shown = [text for text in texts if text]
    if not shown:
        return answer
    mark = mark_of(answer, *shown)
    notes = "\n".join(
        bounded(f"{name} {number}", text, mark) for number, text in enumerate(shown, 1)
    )
    return f"{answer}\n\n{notes}"


def silence(*texts: str) -> dict[str, Any]:
    """What a transcript says of texts of which some are empty.

    >>> silence("because", "")
    {'failures': {'silent': 1}}
    """
    empty = sum(not text for text in texts)
    return {"failures": {"silent": empty}} if empty else {}
