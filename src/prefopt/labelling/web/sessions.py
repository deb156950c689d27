"""Who is asking: a cookie that scripts cannot read, and a word that only its pages know.

The CSRF word is a keyed digest of the session's own secret, so it is bound to the session,
the same in all processes, and says nothing of the secret.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response

from prefopt.labelling.web.errors import ForgedError, LeadsOnlyError, NotSignedInError
from prefopt.labelling.web.room import Form, room_of
from prefopt.labelling.words import Annotator

COOKIE = "prefopt_session"
#: hours that a session lasts
HOURS = 24 * 14


@dataclass(frozen=True, slots=True)
class Visitor:
    """Somebody who is signed in."""

    annotator: Annotator
    session: str

    @property
    def csrf(self) -> str:
        """What a form of this session must carry."""
        return hmac.new(self.session.encode(), b"prefopt csrf", hashlib.sha256).hexdigest()

    @property
    def leads(self) -> bool:
        """Whether they see what the team sees."""
        return self.annotator.role == "lead"


def visitor_of(request: Request) -> Visitor:
    """Who is asking.

    Raises:
        NotSignedInError: nobody whom the store knows.
    """
    visitor = visitor_or_none(request)
    if visitor is None:
        raise NotSignedInError
    return visitor


def visitor_or_none(request: Request) -> Visitor | None:
    """Who is asking, if they are signed in."""
    session = request.cookies.get(COOKIE)
    annotator = room_of(request).store.who(session) if session else None
    return Visitor(annotator, session) if session and annotator is not None else None


def lead_of(request: Request) -> Visitor:
    """The lead who is asking.

    Raises:
        NotSignedInError, LeadsOnlyError: somebody else is.
    """
    visitor = visitor_of(request)
    if not visitor.leads:
        raise LeadsOnlyError
    return visitor


def check_csrf(visitor: Visitor, form: Form) -> None:
    """Refuse a form that no page of this session has made.

    Raises:
        ForgedError: its word is not there, or another.
    """
    given = form.get("csrf", "").encode("utf-8", "surrogatepass")
    if not hmac.compare_digest(given, visitor.csrf.encode()):
        raise ForgedError


def keep(response: Response, session: str, *, secure: bool) -> None:
    """Have the browser keep a session."""
    response.set_cookie(
        COOKIE, session, max_age=HOURS * 3600, path="/", secure=secure, httponly=True,
        samesite="strict",
    )  # fmt: skip


def forget(response: Response, *, secure: bool) -> None:
    """Have the browser forget its session."""
    response.delete_cookie(COOKIE, path="/", secure=secure, httponly=True, samesite="strict")
