"""Signing in with a one-time link, and out again.

The link's own address shows a page with one button and changes nothing: the preview of a chat
program must not use the link up.
"""

from __future__ import annotations

import ipaddress
from typing import NoReturn

from starlette.requests import Request
from starlette.responses import Response

from prefopt.labelling.refusals import AccessError
from prefopt.labelling.web.errors import LinkError, TooManyError
from prefopt.labelling.web.room import Form, as_json, page, posted, room_of, see_other, wants_json
from prefopt.labelling.web.sessions import (
    HOURS,
    check_csrf,
    forget,
    keep,
    visitor_of,
    visitor_or_none,
)

#: failed attempts to sign in from one address, and the seconds in which they are counted
ATTEMPTS, WINDOW = 10, 60.0


def door(request: Request) -> Response:
    """The page behind a link: who it is for, and the button that uses it."""
    _check_attempts(request)
    annotator = room_of(request).store.look(request.path_params["token"])
    if annotator is None:
        _count_failure(request)
    already = visitor_or_none(request)
    if wants_json(request):
        return as_json({"annotator": annotator.name})
    return page(request, "enter.html.j2", {"annotator": annotator, "already": already})


@posted
def enter(request: Request, form: Form) -> Response:
    """Use the link up and begin a session."""
    _check_attempts(request)
    room = room_of(request)
    try:
        session = room.store.enter(request.path_params["token"], hours=HOURS)
    except AccessError:
        _count_failure(request)
    response = as_json({"entered": True}) if wants_json(request) else see_other("/")
    keep(response, session, secure=room.secure)
    return response


@posted
def leave(request: Request, form: Form) -> Response:
    """End the session."""
    room = room_of(request)
    visitor = visitor_of(request)
    check_csrf(visitor, form)
    room.store.leave(visitor.session)
    response = as_json({"left": True}) if wants_json(request) else see_other("/left")
    forget(response, secure=room.secure)
    return response


def left(request: Request) -> Response:
    """What is shown to somebody who has left."""
    return page(request, "left.html.j2", {})


def _check_attempts(request: Request) -> None:
    """After too many failures nothing is looked up: a good link is not told from a bad one."""
    who = _who(request)
    if room_of(request).store.exhausted(who, limit=ATTEMPTS, window=WINDOW):
        raise TooManyError


def _count_failure(request: Request) -> NoReturn:
    if not room_of(request).store.attempt(_who(request), limit=ATTEMPTS, window=WINDOW):
        raise TooManyError
    raise LinkError


def _who(request: Request) -> str:
    return f"enter {address_of(request)}"


def address_of(request: Request) -> str:
    """Where a request comes from; of IPv6 the network, which is one household's."""
    host = request.client.host if request.client else "unknown"
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if address.version == 6:
        return str(ipaddress.ip_network(f"{host.partition('%')[0]}/64", strict=False))
    return str(address)
