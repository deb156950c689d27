"""What leads see: the team's page, and the same as files.

Statistics come with NumPy and are imported when they are first asked for: a server starts in half
the time without them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from prefopt.labelling.store import Store
from prefopt.labelling.web.answers import REASONS
from prefopt.labelling.web.questions import task_of
from prefopt.labelling.web.room import Counted, Room, as_json, page, room_of
from prefopt.labelling.web.sessions import lead_of
from prefopt.labelling.web.showing import frame
from prefopt.labelling.words import Task

if TYPE_CHECKING:
    from prefopt.labelling.statistics import Team

#: soft labels that the page lists; the file has all
LISTED = 100
#: seconds of the processor that are much, and how many times as long such a result is good
_MUCH, _SPARED = 0.5, 10


def team(request: Request) -> Response:
    """Progress, agreement, annotators, and where to look."""
    visitor = lead_of(request)
    task = task_of(request)
    found = _team(request, task)
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
    return as_json(_plain(_team(request, task).to_dict()))


def votes(request: Request) -> Response:
    """Every event, a line each."""
    from prefopt.labelling.exporting import votes_lines

    return _file(request, "votes", votes_lines)


def comparisons(request: Request) -> Response:
    """Groups with their votes aggregated, as prefopt's own JSONL."""
    from prefopt.labelling.exporting import comparisons_lines

    return _file(request, "comparisons", comparisons_lines)


def _team(request: Request, task: Task) -> Team:
    """What the team sees: computed for one reader at a time, and anew when something happened.

    Of a large task that takes seconds, which annotators would wait for: there it may be older, so
    that this process spends at most a tenth of its time with it. Who comes meanwhile is given what
    is known and keeps no thread waiting.
    """
    room = room_of(request)
    known = room.teams.get(task.name)
    if not room.counting.acquire(blocking=known is None) and known is not None:
        return known.team
    try:
        return _counted(room, task).team
    finally:
        room.counting.release()


def _counted(room: Room, task: Task) -> Counted:
    from prefopt.labelling.statistics import team

    now, size = time.monotonic(), room.store.size(task.name)
    known = room.teams.get(task.name)
    if known is not None and known.task == task and (now < known.good or size == known.size):
        return known
    begun = time.thread_time()
    found = team(room.store, task.name)
    spent = time.thread_time() - begun
    good = time.monotonic() + (_SPARED * spent if spent > _MUCH else 0.0)
    room.teams[task.name] = Counted(found, task, size, good)
    return room.teams[task.name]


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
