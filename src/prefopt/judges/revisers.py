"""Who criticises and revises answers by a principle: a language model, or a function."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from prefopt.errors import DataError, RecipeError
from prefopt.judges.code import called, code_of
from prefopt.judges.constitution import Constitution, Principle
from prefopt.judges.remembered import Remembered
from prefopt.judges.settings import Spec
from prefopt.judges.speakers import choose
from prefopt.judges.speaking import Ask, Said, Speaker
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
class Draft:
    """An answer that is to be revised by a principle."""

    prompt: Prompt
    completion: str
    principle: Principle
    seed: int


@dataclass(frozen=True, slots=True)
class Revised:
    """What became of it.

    Attributes:
        text: the answer as it is now; None if there is none.
        critique: what was said of the draft.
        failure: why there is none: `empty`, `cut` (it ended for lack of room, in the middle of
            something), `too_long` (the draft, for the model), `refused` or `filtered` (by its
            server).
        words: of a server that refused it.
    """

    text: str | None
    critique: str | None = None
    failure: str = ""
    words: str = ""


class Reviser(Protocol):
    """Who criticises and revises."""

    name: str

    def identity(self) -> Mapping[str, Any]:
        """Everything that its texts depend on beside the drafts, as plain JSON."""
        ...

    def revise(self, drafts: Sequence[Draft]) -> list[Revised]:
        """What becomes of each draft, in order."""
        ...


class RuleReviser:
    """A function: (prompt, completion, principle) → the revised text, or (critique, text).

    Args:
        name: of it.
        function: gives the text; the same text where there is nothing to revise.
    """

    def __init__(self, name: str, function: Callable[[Prompt, str, Principle], Any]) -> None:
        self.name = name
        self._function = function

    def identity(self) -> Mapping[str, Any]:
        code = code_of(self._function, self.name.removeprefix("python:"))
        return {"kind": "python", "function": self.name, "code": code}

    def revise(self, drafts: Sequence[Draft]) -> list[Revised]:
        return [self._one(draft) for draft in drafts]

    def _one(self, draft: Draft) -> Revised:
        asked = (draft.prompt, draft.completion, draft.principle)
        said = called(self._function, self.name, *asked, about=draft.completion)
        critique, text = said if isinstance(said, tuple) and len(said) == 2 else (None, said)
        if not isinstance(text, str) or not isinstance(critique, str | None):
            raise DataError(
                f"{self.name} must return a text, or a critique and a text",
                kind="wrong_type",
                field="speaker",
                value=said,
                remedy="return the revised answer; the answer itself if it may stay",
            )
        return Revised(text, critique) if text.strip() else Revised(None, critique, "empty")


class SpokenReviser:
    """A language model: it is asked for a critique, and then, shown it, for the revision.

    Args:
        speaker: the model.
        constitution: whose templates and examples it is shown.
        temperature, max_new_tokens: of what it writes.

    Raises:
        RecipeError: the constitution's file of templates is wrong.
    """

    def __init__(
        self,
        speaker: Speaker,
        constitution: Constitution,
        *,
        temperature: float = 0.7,
        max_new_tokens: int = 512,
    ) -> None:
        self.name = speaker.name
        self._speaker = speaker
        self._temperature, self._max_new_tokens = temperature, max_new_tokens
        self._examples = [example.model_dump() for example in constitution.examples]
        self._file, self._templates = _templates(constitution.instructions)

    def identity(self) -> Mapping[str, Any]:
        return {
            "speaker": dict(self._speaker.identity()), "templates": self._templates,
            "temperature": self._temperature, "max_new_tokens": self._max_new_tokens,
        }  # fmt: skip

    def remember_in(self, folder: Path) -> None:
        """Keep every critique and every revision as it comes."""
        self._speaker = Remembered(self._speaker, folder)

    def revise(self, drafts: Sequence[Draft]) -> list[Revised]:
        asks = [self._ask("critique", draft, draft.principle.critique) for draft in drafts]
        critiques = self._said(asks)
        told = [place for place, critique in enumerate(critiques) if critique.answer]
        asks = [
            self._ask(
                "revision", drafts[place], drafts[place].principle.revision, critiques[place].answer
            )
            for place in told
        ]
        texts = dict(zip(told, self._said(asks), strict=True))
        return [
            _revised(draft, critiques[place], texts.get(place))
            for place, draft in enumerate(drafts)
        ]

    def _said(self, asks: Sequence[Ask]) -> list[Said]:
        """Replies in order."""
        said = dict(self._speaker.say(asks, max_new_tokens=self._max_new_tokens))
        return [said[place] for place in range(len(asks))]

    def _ask(self, field: str, draft: Draft, request: str, critique: str | None = None) -> Ask:
        prompt = prompt_text(draft.prompt)
        mark = mark_of(prompt, draft.completion, critique or "")
        shown = {} if critique is None else {"critique": bounded("critique", critique, mark)}
        text = fill(
            self._templates[field],
            file=self._file,
            field=field,
            mark=mark,
            prompt=bounded("question", prompt, mark),
            completion=bounded("answer", draft.completion, mark),
            request=request,
            examples=self._examples,
            **shown,
        )
        return Ask(text, draft.seed, self._temperature)


def make_reviser(
    spec: Spec,
    constitution: Constitution,
    *,
    device: str | None = None,
    temperature: float = 0.7,
    max_new_tokens: int = 512,
) -> Reviser:
    """The reviser that a spec names (`speakers.choose`).

    Raises:
        RecipeError: it is none, or the constitution's templates are wrong.
        PolicyError: its model cannot be loaded.
    """
    chosen = choose(
        spec, Context(device=device), "speaker", without=("temperature", "max_new_tokens")
    )
    if chosen.speaker is None:
        return RuleReviser(f"python:{chosen.argument}", chosen.function("speaker"))
    _templates(constitution.instructions)  # before a model is loaded for them
    return SpokenReviser(
        chosen.speaker(), constitution, temperature=temperature, max_new_tokens=max_new_tokens
    )


def _templates(name: str) -> tuple[str, dict[str, str]]:
    """The file of instructions, and its two templates."""
    document, file, rows = read_templates(name, "instructions")
    shown = {
        "critique": ("prompt", "completion", "request"),
        "revision": ("prompt", "completion", "request", "critique"),
    }
    for key in document:
        if key not in shown:
            raise RecipeError(
                f"there is no setting '{key}' here", file=file, row=rows.get(key), field=key,
                remedy=f"the settings are: {', '.join(shown)}",
            )  # fmt: skip
    return file, {
        field: check_template(
            document.get(field), allowed=(*required, "examples"), required=required,
            file=file, row=rows.get(field), field=field,
        )
        for field, required in shown.items()
    }  # fmt: skip


def _revised(draft: Draft, critique: Said, text: Said | None) -> Revised:
    """What came of a draft: without the boundaries that a model may repeat, and with the space that
    the answer began with."""
    last = critique if text is None else text
    said, before = critique.answer or None, draft.completion
    answer = "" if text is None or text.cut else text.answer
    lines = answer.splitlines()
    if len(lines) > 2 and lines[0].startswith("<<<") and lines[-1].endswith(">>>"):
        answer = "\n".join(lines[1:-1]).strip()
    if answer:
        return Revised(before[: len(before) - len(before.lstrip())] + answer, said)
    failure = last.failure or ("cut" if last.cut else "empty")
    return Revised(None, said, failure, last.words)
