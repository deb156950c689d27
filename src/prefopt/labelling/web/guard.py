"""What stands before every page: whose name is asked for, how much is sent, what a browser may do.

Outermost, so that its headers are on every answer, and so that a mistake of ours ends as a
page that says nothing of what is inside.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from urllib.parse import urlsplit

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from prefopt.labelling.web.errors import (
    BrokenError,
    ForgedError,
    RefusedError,
    TooLargeError,
    TooSlowError,
    UnknownHostError,
)

#: bytes that a request may carry; a comment of 2,000 characters, percent-encoded, fits
LIMIT = 64 * 1024
_DRAINED = 4 * 1024 * 1024
#: seconds in which a request's body must have come
PATIENCE = 30.0
_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
_LOG = logging.getLogger("prefopt.labelling")

HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "media-src 'self'; connect-src 'self'; form-action 'self'; frame-ancestors 'none'; "
        "base-uri 'none'"
    ),
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}


class Guard:
    """The app behind it is reached by requests that pass, and its answers carry `HEADERS`.

    Args:
        app: what is guarded.
        hosts: names and addresses in the Host header that are answered; None: any. Without it
            a page of somebody else's whose name is made to point here could ask in its own name.
        secure: reached by HTTPS only.
        refuse: an error as an answer.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        hosts: Collection[str] | None,
        secure: bool,
        refuse: Callable[[Request, RefusedError], Response],
    ) -> None:
        self.app = app
        self.hosts = None if hosts is None else {host.lower() for host in hosts}
        self.secure = secure
        self.refuse = refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request = Request(scope)
        begun = False

        async def guarded_send(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                self._add_headers(MutableHeaders(scope=message))
            await send(message)

        try:
            self._check(request)
            await self.app(scope, _limited(receive), guarded_send)
        except RefusedError as error:
            if not isinstance(error, TooSlowError):
                await _drain(receive)
            await self.refuse(request, error)(scope, receive, guarded_send)
        except Exception:
            if begun:
                raise
            _LOG.exception("%s %s", request.method, _without_secrets(request.url.path))
            await self.refuse(request, BrokenError())(scope, receive, guarded_send)

    def _check(self, request: Request) -> None:
        host = _name_of(request.headers.get("host", ""))
        if self.hosts is not None and host not in self.hosts and not self._is_ours(host):
            raise UnknownHostError(
                "the server does not answer to this name",
                field="host",
                value=host,
                remedy="open the address that was printed when it started; behind a proxy, "
                "give the server the proxy's name",
            )
        if request.method not in _SAFE_METHODS:
            _check_origin(request, host)
        if int(request.headers.get("content-length") or 0) > LIMIT:
            raise TooLargeError(LIMIT)

    def _is_ours(self, host: str) -> bool:
        """With `*` any address in numbers: rebinding needs a name."""
        if self.hosts is None or "*" not in self.hosts:
            return False
        try:
            ipaddress.ip_address(host)
        except ValueError:
            return False
        return True

    def _add_headers(self, headers: MutableHeaders) -> None:
        for name, value in HEADERS.items():
            headers[name] = value
        headers.setdefault("cache-control", "no-store")
        if self.secure:
            headers["strict-transport-security"] = "max-age=31536000"


def _check_origin(request: Request, host: str) -> None:
    """A second wall beside the CSRF word: the browser's own word on where a form comes from.

    Pages here send no referrer, and with that a browser sends the origin `null` even to itself.
    """
    site = request.headers.get("sec-fetch-site")
    origin = request.headers.get("origin", "null")
    if site is not None:
        foreign = site not in ("same-origin", "none")
    else:
        foreign = origin != "null" and (urlsplit(origin).hostname or "") != host
    if foreign:
        raise ForgedError("the form comes from another site")


def _limited(receive: Receive) -> Receive:
    """The same body, refused where it grows too long, whatever its header said, or takes long."""
    seen, whole, end = 0, False, 0.0

    async def limited() -> Message:
        nonlocal seen, whole, end
        if whole:  # what follows is that the browser is gone, at whatever time
            return await receive()
        end = end or time.monotonic() + PATIENCE  # from when somebody wants it
        try:
            message = await asyncio.wait_for(receive(), end - time.monotonic())
        except TimeoutError:
            raise TooSlowError(PATIENCE) from None
        seen += len(message.get("body", b""))
        whole = not message.get("more_body", False)
        if seen > LIMIT:
            raise TooLargeError(LIMIT)
        return message

    return limited


async def _drain(receive: Receive) -> None:
    """Take what is still being sent, within bounds: who is cut off does not hear the answer."""
    seen, more = 0, True
    with suppress(TimeoutError):
        async with asyncio.timeout(PATIENCE):
            while more and seen < _DRAINED:
                message = await receive()
                seen += len(message.get("body", b""))
                more = message["type"] == "http.request" and message.get("more_body", False)


def _name_of(host: str) -> str:
    """The name in a Host header, without its port.

    >>> _name_of("Localhost:8000"), _name_of("[::1]:80"), _name_of("a b")
    ('localhost', '::1', '')
    """
    try:
        return urlsplit(f"//{host}").hostname or "" if " " not in host else ""
    except ValueError:
        return ""


def _without_secrets(path: str) -> str:
    return "/enter/…" if path.startswith("/enter/") else path
