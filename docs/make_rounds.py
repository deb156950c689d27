"""Write the table of settings of `rounds.md`, between its markers, from the rounds file's model.

    make docs

`tests/test_rounds_measuring.py` fails when the page is not what this program writes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from prefopt.rounds.settings import Evaluation, Gates, RoundsFile, Sampling, Selection, World

PAGE = Path(__file__).with_name("rounds.md")
BEGIN, END = "<!-- settings: written by make docs -->", "<!-- end of settings -->"
#: settings that have settings of their own
PARTS: dict[str, type[BaseModel]] = {
    "world": World, "sample": Sampling, "select": Selection, "evaluate": Evaluation, "gates": Gates,
}  # fmt: skip


def main() -> None:
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


def page(text: str) -> str:
    """The page with what its markers enclose written anew."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{table()}\n{rest[rest.index(END) :]}"


def table() -> str:
    lines = ["| setting | default | what it is |", "|---|---|---|"]
    return "\n".join([*lines, *rows(RoundsFile)])


def rows(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """A row for each field, and those of its parts below it."""
    for name, field in model.model_fields.items():
        part, choices = PARTS.get(name), ", ".join(f"`{one}`" for one in allowed(field.annotation))
        said = f"{field.description}: {choices}" if choices else field.description
        yield f"| `{prefix}{name}` | {default(field, part)} | {said} |"
        if part is not None:
            yield from rows(part, f"{name}.")


def default(field: FieldInfo, part: type[BaseModel] | None) -> str:
    if field.is_required():
        return "must be given"
    value = field.get_default(call_default_factory=True)
    return "" if part is not None and value is not None else f"`{json.dumps(value)}`"


def allowed(annotation: Any) -> list[str]:
    """The words of a choice, also of one that may be left open."""
    if get_origin(annotation) is Literal:
        return [str(one) for one in get_args(annotation)]
    return [word for part in get_args(annotation) for word in allowed(part)]


if __name__ == "__main__":
    main()
