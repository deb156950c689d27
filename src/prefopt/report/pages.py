"""Templates of pages that need nothing but themselves: no script, no font, no network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def fill(template: str, page: Mapping[str, Any]) -> str:
    """A template of this room with a page's words and drawings in it.

    Half a surrogate pair, which a byte-level model may well write, has no bytes of its own:
    it becomes a question mark.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("prefopt.report"),
        autoescape=True,  # completions and file names are anybody's text
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = environment.get_template(template).render(page) + "\n"
    return text.encode("utf-8", "replace").decode("utf-8")
