"""The web app: which address does what, behind a guard."""

from __future__ import annotations

from collections.abc import Collection

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from prefopt.errors import PrefoptError
from prefopt.labelling.store import Store
from prefopt.labelling.web import entering, files, questions, teams
from prefopt.labelling.web.errors import MethodError, NotFoundError, RefusedError
from prefopt.labelling.web.guard import Guard
from prefopt.labelling.web.pages import Pages
from prefopt.labelling.web.room import Room, refused, status_of

_ADDRESSES = (
    ("GET", "/", questions.tasks),
    ("GET", "/tasks/{task}", questions.next_question),
    ("POST", "/tasks/{task}/answers", questions.answers),
    ("POST", "/tasks/{task}/undo", questions.undo),
    ("GET", "/tasks/{task}/guidelines", questions.guidelines),
    ("GET", "/tasks/{task}/team", teams.team),
    ("GET", "/tasks/{task}/team.json", teams.team_json),
    ("GET", "/tasks/{task}/votes.jsonl", teams.votes),
    ("GET", "/tasks/{task}/comparisons.jsonl", teams.comparisons),
    ("GET", "/enter/{token}", entering.door),
    ("POST", "/enter/{token}", entering.enter),
    ("POST", "/leave", entering.leave),
    ("GET", "/left", entering.left),
    ("GET", "/media/{digest}", files.medium),
    ("GET", "/static/{digest}/{name}", files.static),
    ("GET", "/health", files.health),
)


def create_app(
    store: Store, *, secure: bool = False, hosts: Collection[str] | None = None
) -> Starlette:
    """The labelling room as an ASGI app.

    Args:
        store: where everything is kept.
        secure: it is reached by HTTPS: cookies are for HTTPS only.
        hosts: names in the Host header that are answered, `*` for any address in numbers; None:
            any, for an app that somebody else's server looks after.
    """

    async def refuse(request: Request, error: Exception) -> Response:
        if isinstance(error, HTTPException):
            error = MethodError() if error.status_code == 405 else NotFoundError()
        if not isinstance(error, PrefoptError) or status_of(error) == 500:
            raise error  # a mistake of ours: the guard says so, and the log why
        return refused(request, error)

    def refuse_outside(request: Request, error: RefusedError) -> Response:
        request.scope.setdefault("app", app)
        return refused(request, error)

    guard = Middleware(Guard, hosts=hosts, secure=secure, refuse=refuse_outside)
    app = Starlette(
        routes=[Route(path, work, methods=[method]) for method, path, work in _ADDRESSES],
        middleware=[guard],
        exception_handlers={PrefoptError: refuse, HTTPException: refuse},
    )
    app.router.redirect_slashes = False
    app.state.room = Room(store, Pages(), secure)
    return app
