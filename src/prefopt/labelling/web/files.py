"""Files that a browser asks for: the app's own, and the images and audio of prompts."""

from __future__ import annotations

import re

from starlette.requests import Request
from starlette.responses import Response

from prefopt.labelling.media import TYPES
from prefopt.labelling.web.errors import NotFoundError
from prefopt.labelling.web.room import as_json, room_of
from prefopt.labelling.web.sessions import visitor_of

_DIGEST = re.compile(r"[0-9a-f]{16,128}")
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


def static(request: Request) -> Response:
    """A file of the app; its address has a digest of it, so it may be kept for ever."""
    found = room_of(request).pages.static.get(request.url.path)
    if found is None:
        raise NotFoundError
    forever = {"cache-control": "public, max-age=31536000, immutable"}
    return Response(found.content, headers=forever, media_type=found.type)


def medium(request: Request) -> Response:
    """An image or a recording; a part of it, where a player asks for a part."""
    visitor_of(request)
    digest = request.path_params["digest"]
    stored = room_of(request).store.media(digest) if _DIGEST.fullmatch(digest) else None
    if stored is None or stored[1] not in TYPES:
        raise NotFoundError
    data, kind = stored
    headers = {"accept-ranges": "bytes", "content-disposition": "inline"}
    part = _part(request.headers.get("range", ""), len(data))
    if part is None:
        return Response(data, headers=headers, media_type=kind)
    start, end = part
    headers["content-range"] = f"bytes {start}-{end - 1}/{len(data)}"
    return Response(data[start:end], 206, headers, media_type=kind)


def health(request: Request) -> Response:
    """That the server answers, and its database does."""
    room_of(request).store.tasks()
    return as_json({"status": "ok"})


def _part(asked: str, size: int) -> tuple[int, int] | None:
    """First byte and the one behind the last; None: all of it, which may always be sent.

    >>> _part("bytes=0-1", 10), _part("bytes=-3", 10), _part("bytes=4-", 10), _part("", 10)
    ((0, 2), (7, 10), (4, 10), None)
    """
    match = _RANGE.fullmatch(asked)
    if match is None or not (match[1] or match[2]):
        return None
    if not match[1]:
        start, end = max(0, size - int(match[2])), size
    else:
        start, end = int(match[1]), min(size, int(match[2]) + 1) if match[2] else size
    return (start, end) if start < end else None
