"""Texts with placeholders that people may edit: rubrics, and what debaters and critics are told.

They are Jinja2 templates in a sandbox: a file can say what it likes, and do nothing. What comes
from the data is put between boundaries with a mark that nobody who wrote it could know, so that a
completion that says "[[A]]" or "ignore the above" is seen to stand inside of an answer.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import StrictUndefined, TemplateError, meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from prefopt.errors import RecipeError
from prefopt.recipe.text import read
from prefopt.records import Prompt

SHIPPED = Path(__file__).parent / "rubrics"
_ENVIRONMENT = ImmutableSandboxedEnvironment(
    undefined=StrictUndefined, keep_trailing_newline=False, trim_blocks=True, lstrip_blocks=True
)
_BOUNDARY = re.compile(r"^<<<[a-zA-Z][a-zA-Z ]{0,20}\d* ?[0-9a-f]{8}\s*$", re.MULTILINE)
#: what every template may use
_ALWAYS = {"mark"}


def read_templates(
    name: str, setting: str, keys: Sequence[str] = ()
) -> tuple[dict[str, Any], str, Mapping[str, int]]:
    """The settings of a YAML file with templates, its path, and the row of every key.

    Args:
        name: a path, or the name of a shipped file.
        setting: where it was named, for messages.
        keys: of which a shipped file has one, to be among those that a message proposes.

    Raises:
        RecipeError: there is no such file.
    """
    path = Path(name)
    if not path.suffix and not path.exists():
        path = SHIPPED / f"{name}.yaml"
    if not path.is_file():
        shipped = sorted(
            file.stem for file in SHIPPED.glob("*.yaml") if not keys or {*read(file)[0]} & {*keys}
        )
        raise RecipeError(
            "there is no such file of instructions",
            field=setting,
            value=name,
            remedy=f"give the path of a YAML file, or one of {', '.join(shipped)}",
        )
    document, rows = read(path)
    return document, str(path), rows


def check_template(
    text: Any,
    *,
    allowed: Collection[str],
    required: Collection[str],
    file: str,
    row: int | None,
    field: str,
) -> str:
    """A template that can be filled in.

    Raises:
        RecipeError: it is no text or no template, names what is not there, or leaves out what
            it is about.
    """
    place: dict[str, Any] = {"file": file, "row": row, "field": field}
    if not isinstance(text, str) or not text.strip():
        raise RecipeError("it must be a text", value=text, **place)
    try:
        used = meta.find_undeclared_variables(_ENVIRONMENT.parse(text))
    except TemplateError as error:
        raise RecipeError(
            f"not a template: {error}", remedy="write placeholders as {{ prompt }}", **place
        ) from None
    names = ", ".join(sorted({*allowed, *_ALWAYS}))
    if unknown := used - {*allowed, *_ALWAYS}:
        raise RecipeError(
            f"there is no placeholder '{sorted(unknown)[0]}'", remedy=f"there are {names}", **place
        )
    if missing := set(required) - used:
        raise RecipeError(
            f"the template does not show {sorted(missing)[0]}",
            remedy=f"put {{{{ {sorted(missing)[0]} }}}} where it belongs",
            **place,
        )
    return text


def fill(text: str, *, file: str, field: str, **values: Any) -> str:
    """A template with its placeholders filled in.

    Raises:
        RecipeError: it fails.
    """
    try:
        return _ENVIRONMENT.from_string(text).render(**values).strip()
    except (TemplateError, TypeError, ValueError, ArithmeticError) as error:
        raise RecipeError(
            f"the template cannot be filled in: {error}", file=file, field=field
        ) from error


def mark_of(*texts: str) -> str:
    """Eight digits that none of the texts has in it, the same for the same texts in any order.

    >>> mark_of("a", "b") == mark_of("b", "a")
    True
    """
    content = "\0".join(sorted(texts)).encode("utf-8", "surrogatepass")
    for salt in range(1000):
        mark = hashlib.blake2b(content, digest_size=4, salt=str(salt).encode()).hexdigest()
        if not any(mark in text for text in texts):
            return mark
    raise AssertionError("a thousand marks cannot all be in the texts")


def bounded(name: str, text: str, mark: str) -> str:
    """A text between its boundaries.

    >>> print(bounded("answer A", "Four.", "1f"))
    <<<answer A 1f
    Four.
    answer A 1f>>>
    """
    return f"<<<{name} {mark}\n{text.strip()}\n{name} {mark}>>>"


def has_boundary(text: str) -> bool:
    """Whether a text has what looks like a boundary in it, as if it were not all one answer.

    >>> has_boundary(bounded("critique 1", "Nothing is wrong.", "0123abcd")), has_boundary("<<<EOF")
    (True, False)
    """
    return _BOUNDARY.search(text) is not None


def prompt_text(prompt: Prompt) -> str:
    """A prompt as text: a conversation of one turn as what was said, others with their roles."""
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1:
        return prompt[0].content
    return "\n\n".join(f"{turn.role}: {turn.content}" for turn in prompt)
