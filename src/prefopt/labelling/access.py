"""Who may enter: one-time links, the sessions that they open, and their revocation.

A token is 256 random bits and is known to nobody but its holder: the database has its SHA-256.
(A slow hash is for passwords that people choose; random bits cannot be guessed.) Nothing is
overwritten: that a link was used is the session that points to it, of which there can be one;
that a session was left or a person revoked is a further row.
"""

from __future__ import annotations

import hashlib
import secrets
from typing import Any

import sqlalchemy as sa

from prefopt.labelling.database import Database
from prefopt.labelling.refusals import AccessError
from prefopt.labelling.tables import annotators, departures, links, revocations, sessions
from prefopt.labelling.words import Annotator

_BYTES = 32


def digest(token: str) -> bytes:
    """What is kept of a token."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


def issue_link(connection: sa.Connection, annotator: int, hours: float, now: float) -> str:
    """Make a link for an annotator; its token is not kept."""
    token = secrets.token_urlsafe(_BYTES)
    connection.execute(
        links.insert().values(
            annotator=annotator, digest=digest(token), at=now, expires=now + hours * 3600
        )
    )
    return token


def looking(token: str, now: float) -> sa.Select[int, int, str, str]:
    """`link`, and the annotator's `id`, `name` and `role`, if the link can still be used."""
    used = sa.select(sessions.c.id).where(sessions.c.link == links.c.id)
    return _whose(links.c.expires > now, links.c.digest == digest(token), ~used.exists())


def knowing(session: str, now: float) -> sa.Select[int, int, str, str]:
    """The same, if the session is good."""
    left = sa.select(departures.c.session).where(departures.c.session == sessions.c.id)
    return _whose(
        sessions.c.digest == digest(session), sessions.c.expires > now, ~left.exists(),
        opened=True,
    )  # fmt: skip


def _whose(
    *conditions: sa.ColumnElement[bool], opened: bool = False
) -> sa.Select[int, int, str, str]:
    void = sa.select(revocations.c.id).where(
        revocations.c.annotator == links.c.annotator, revocations.c.link >= links.c.id
    )
    query = sa.select(
        links.c.id.label("link"), annotators.c.id, annotators.c.name, annotators.c.role
    ).join(annotators, annotators.c.id == links.c.annotator)
    if opened:
        query = query.join(sessions, sessions.c.link == links.c.id)
    return query.where(*conditions, ~void.exists())


def enter(
    database: Database, connection: sa.Connection, token: str, hours: float, now: float
) -> str:
    """Use a link up; returns the token of the session that it opens.

    Raises:
        AccessError: the link is not good, for whatever reason: who asks is not told which.
    """
    row = connection.execute(looking(token, now)).one_or_none()
    session = secrets.token_urlsafe(_BYTES)
    if row is not None:
        opened = connection.execute(
            database.insert(sessions)
            .values(link=row.link, digest=digest(session), at=now, expires=now + hours * 3600)
            .on_conflict_do_nothing(index_elements=["link"])
        )
        if opened.rowcount == 1:
            return session
    raise AccessError(
        "this link cannot be used: it was used before, is too old, was revoked, or is mistyped",
        remedy="ask for a new one",
    )


def leave(database: Database, connection: sa.Connection, session: str, now: float) -> None:
    """End a session; an unknown one is no error."""
    number = connection.scalar(sa.select(sessions.c.id).where(sessions.c.digest == digest(session)))
    if number is not None:
        connection.execute(
            database.insert(departures).values(session=number, at=now).on_conflict_do_nothing()
        )


def revoke(connection: sa.Connection, annotator: int, now: float) -> None:
    """Make every link and session of an annotator void; later links are good."""
    last = connection.scalar(
        sa.select(sa.func.max(links.c.id)).where(links.c.annotator == annotator)
    )
    if last is not None:
        connection.execute(revocations.insert().values(annotator=annotator, link=last, at=now))


def annotator_of(row: sa.Row[Any]) -> Annotator:
    """Whose link or session it is."""
    return Annotator(row.id, row.name, row.role)
