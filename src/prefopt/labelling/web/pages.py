"""Templates, and the files that go with them: all of it from this folder, none of it inline."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from prefopt.data.visible import visible
from prefopt.labelling.web.rendering import render

_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


@dataclass(frozen=True, slots=True)
class Static:
    """A file of the app: its bytes, its type, and the address that changes when it does."""

    content: bytes
    type: str
    address: str


class Pages:
    """Fills templates; knows the static files by name."""

    def __init__(self) -> None:
        self.static = {static.address: static for static in _static()}
        names = {address.rpartition("/")[2]: address for address in self.static}
        self._environment = Environment(
            loader=PackageLoader("prefopt.labelling.web"),
            autoescape=True,  # names, prompts and comments are anybody's text
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._environment.globals.update({"static": names, "key": _key})
        self._environment.filters.update(
            {"visible": visible, "render": render, "percent": _percent, "seconds": _seconds}
        )

    def fill(self, template: str, page: Mapping[str, Any]) -> bytes:
        """A page; half a surrogate pair, which has no bytes of its own, is a question mark."""
        return self._environment.get_template(template).render(page).encode("utf-8", "replace")


def _static() -> list[Static]:
    found = []
    for entry in sorted(files("prefopt.labelling.web").joinpath("static").iterdir(), key=str):
        kind = _TYPES.get("." + entry.name.rpartition(".")[2])
        if kind is not None:
            content = entry.read_bytes()
            digest = hashlib.blake2b(content, digest_size=8).hexdigest()
            found.append(Static(content, kind, f"/static/{digest}/{entry.name}"))
    return found


def _key(name: str) -> Markup:
    """A key of the keyboard on a button; `aria-keyshortcuts` says it to those who hear the page."""
    return Markup(' <kbd aria-hidden="true">{}</kbd>').format(name)


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.0f} %"


def _seconds(value: float | None) -> str:
    """`4.2 s`, `3 min`.

    >>> _seconds(4.21), _seconds(200.0), _seconds(None)
    ('4.2 s', '3 min', '–')
    """
    if value is None:
        return "–"
    return f"{value:.1f} s" if value < 100 else f"{value / 60:.0f} min"
