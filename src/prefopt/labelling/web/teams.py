"""What leads see: the team's page, and the same as files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from prefopt.labelling import exporting, statistics
from prefopt.labelling.store import Store
from prefopt.labelling.web.answers import REASONS
from prefopt.labelling.web.questions import task_of
from prefopt.labelling.web.room import as_json, page, room_of
from prefopt.labelling.web.sessions import lead_of
from prefopt.labelling.web.showing import frame

#: soft labels that the page lists; the file has all
LISTED = 100


def team(request: Request) -> Response:
    """Progress, agreement, annotators, and where to look."""
    visitor = lead_of(request)
    task = task_of(request)
    found = statistics.team(room_of(request).store, task.name)
    labels = sorted(
        found.labels, key=lambda label: (abs(label["probability"] - 0.5), label["item"])
    )
    filled = {
        **frame(request, visitor, task),
        "team": found,
        "labels": labels[:LISTED],
        "unlisted": max(0, len(labels) - LISTED),
        "reasons": REASONS,
    }
    return page(request, "team.html.j2", filled)


def team_json(request: Request) -> Response:
    """The same for programs."""
    lead_of(request)
    task = task_of(request)
    return as_json(_plain(statistics.team(room_of(request).store, task.name).to_dict()))


def votes(request: Request) -> Response:
    """Every event, a line each."""
    return _file(request, "votes", exporting.votes_lines)


def comparisons(request: Request) -> Response:
    """Groups with their votes aggregated, as prefopt's own JSONL."""
    return _file(request, "comparisons", exporting.comparisons_lines)


def _file(request: Request, name: str, lines_of: Callable[[Store, str], Iterator[str]]) -> Response:
    lead_of(request)
    task = task_of(request)
    lines = iter(lines_of(room_of(request).store, task.name))
    first = next(lines, None)  # what can be refused is refused before anything is sent

    def content() -> Iterator[bytes]:
        if first is not None:
            yield _line(first)
            yield from map(_line, lines)

    return StreamingResponse(
        content(),
        media_type="application/jsonl",
        headers={"content-disposition": f'attachment; filename="{task.name}-{name}.jsonl"'},
    )


def _line(line: str) -> bytes:
    return line.rstrip("\n").encode("utf-8", "backslashreplace") + b"\n"


def _plain(value: Any) -> Any:
    """Without numbers that JSON has no word for."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and value - value != 0 else value
