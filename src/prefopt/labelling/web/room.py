"""What every address of the app works with, and how it answers: a page, JSON, or an error."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from prefopt.errors import PrefoptError, RunError
from prefopt.labelling.refusals import AccessError, AwayError, LeaseError, UnknownTaskError
from prefopt.labelling.store import Store
from prefopt.labelling.web.errors import FieldError, MediaTypeError, RefusedError
from prefopt.labelling.web.pages import Pages
from prefopt.labelling.words import Task

if TYPE_CHECKING:
    from prefopt.labelling.statistics import Team

_LOG = logging.getLogger("prefopt.labelling")
_FORM = "application/x-www-form-urlencoded"
_MOST_FIELDS = 50
Form = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Counted:
    """What the team saw of a task, when it had these settings and so many items and events.

    Attributes:
        good: until when it may be shown even if something happened since, by the monotonic clock.
    """

    team: Team
    task: Task
    size: tuple[int, int]
    good: float


@dataclass(frozen=True, slots=True)
class Room:
    """The app's own things.

    Attributes:
        store: where everything is kept.
        pages: its templates.
        secure: it is reached by HTTPS.
        types: of images and recordings that were asked for, by digest: what a digest stands for
            never changes, and their bytes need not be read to write a page.
        teams: what leads have seen, by task; `counting` is held while it is made anew.
    """

    store: Store
    pages: Pages
    secure: bool
    types: dict[str, str] = field(default_factory=dict)
    teams: dict[str, Counted] = field(default_factory=dict)
    counting: threading.Lock = field(default_factory=threading.Lock)


def room_of(request: Request) -> Room:
    """The room that a request came to."""
    room: Room = request.app.state.room
    return room


def wants_json(request: Request) -> bool:
    """Whether a program asks rather than a browser."""
    return "application/json" in request.headers.get("accept", "")


def page(
    request: Request,
    template: str,
    document: Mapping[str, Any],
    status: int = 200,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """A page for people."""
    content = room_of(request).pages.fill(template, document)
    return Response(content, status, headers, media_type="text/html")


def as_json(document: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """An object for programs; half a surrogate pair, which JSON can hold, is escaped."""
    content = json.dumps(document, ensure_ascii=True, allow_nan=False)
    return Response(content, status, headers, media_type="application/json")


def see_other(address: str) -> Response:
    """After a form was taken: the browser asks for what comes next."""
    return RedirectResponse(address, 303)


def status_of(error: PrefoptError) -> int:
    """The HTTP status of an error: its own, or that of `_REFUSALS`."""
    return error.status if isinstance(error, RefusedError) else _refusal(error)[0]


def refused(request: Request, error: PrefoptError) -> Response:
    """An error as a page or as JSON."""
    status = status_of(error)
    retry = error.retry_after if isinstance(error, RefusedError) else _AWAY.get(status)
    headers = {"retry-after": str(retry)} if retry else None
    heading = error.heading if isinstance(error, RefusedError) else _refusal(error)[1]
    if status == 503:
        _LOG.error("%s", error)  # where the database lies is the log's business alone
        error = AwayError(
            "this could not be done now; the server's log says why",
            remedy="wait a little and send it again: the same answer never counts twice",
        )
    if wants_json(request):
        return as_json({"error": error.to_dict()}, status, headers)
    task = request.path_params.get("task") if status in _GO_ON else None
    filled = {"heading": heading, "error": error, "status": status, "task": task}
    return page(request, "error.html.j2", filled, status, headers)


#: what the store refuses: the status, and the heading of the page
_REFUSALS: tuple[tuple[type[PrefoptError], int, str], ...] = (
    (LeaseError, 409, "This question is no longer yours"),
    (AwayError, 503, "The database does not answer"),
    (RunError, 503, "Nothing can be stored at the moment"),
    (UnknownTaskError, 404, "There is no such task"),
    (AccessError, 403, "This link cannot be used"),
)
#: after these the next question is a click away
_GO_ON = (403, 409, 413, 422, 503)
_AWAY = {503: 2}  # seconds after which it is worth trying again


def _refusal(error: PrefoptError) -> tuple[int, str]:
    for kind, status, heading in _REFUSALS:
        if isinstance(error, kind):
            return status, heading
    return 500, "Something went wrong here"


def posted(
    work: Callable[[Request, Form], Response],
) -> Callable[[Request], Awaitable[Response]]:
    """An address that takes a form; the work, which asks the database, runs in a thread."""

    async def endpoint(request: Request) -> Response:
        form = await _form(request)
        return await run_in_threadpool(work, request, form)

    return endpoint


async def _form(request: Request) -> Form:
    kind = request.headers.get("content-type", _FORM).partition(";")[0].strip().lower()
    if kind != _FORM:
        raise MediaTypeError(kind)
    body = await request.body()
    try:
        pairs = parse_qsl(
            body.decode("utf-8"),
            keep_blank_values=True,
            errors="strict",
            max_num_fields=_MOST_FIELDS,
        )
    except ValueError as error:  # UnicodeDecodeError is one
        raise FieldError("the form cannot be read", remedy="send UTF-8") from error
    return dict(pairs)
