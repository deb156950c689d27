"""Step 2: who may enter, the bytes of images and recordings, and the counts of a rate limit."""

from __future__ import annotations

import sqlalchemy as sa

_NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade(connection: sa.Connection) -> None:
    """Make the tables beside those that are there."""
    schema = sa.MetaData()
    schema.reflect(connection, only=["annotators"])
    made = [*_access(schema), *_others(schema)]
    schema.create_all(connection, tables=made, checkfirst=False)


def _access(schema: sa.MetaData) -> list[sa.Table]:
    links = sa.Table(
        "links", schema, _id(), _annotator(),
        sa.Column("digest", sa.LargeBinary, nullable=False, unique=True),
        sa.Column("at", sa.Double, nullable=False),
        sa.Column("expires", sa.Double, nullable=False),
        sqlite_autoincrement=True,
    )  # fmt: skip
    sessions = sa.Table(
        "sessions", schema, _id(),
        sa.Column("link", _NUMBER, sa.ForeignKey("links.id"), nullable=False, unique=True),
        sa.Column("digest", sa.LargeBinary, nullable=False, unique=True),
        sa.Column("at", sa.Double, nullable=False),
        sa.Column("expires", sa.Double, nullable=False),
        sqlite_autoincrement=True,
    )  # fmt: skip
    departures = sa.Table(
        "departures", schema,
        sa.Column("session", _NUMBER, sa.ForeignKey("sessions.id"), primary_key=True,
                  autoincrement=False),
        sa.Column("at", sa.Double, nullable=False),
    )  # fmt: skip
    revocations = sa.Table(
        "revocations", schema, _id(), _annotator(),
        sa.Column("link", _NUMBER, nullable=False),
        sa.Column("at", sa.Double, nullable=False),
        sa.Index("revocations_of_annotator", "annotator", "link"),
        sqlite_autoincrement=True,
    )  # fmt: skip
    return [links, sessions, departures, revocations]


def _others(schema: sa.MetaData) -> list[sa.Table]:
    media = sa.Table(
        "media", schema,
        sa.Column("digest", sa.Text, primary_key=True),
        sa.Column("type", sa.Text, nullable=False),
        sa.Column("data", sa.LargeBinary, nullable=False),
        sa.Column("at", sa.Double, nullable=False),
    )  # fmt: skip
    attempts = sa.Table(
        "attempts", schema, _id(),
        sa.Column("who", sa.LargeBinary, nullable=False),
        sa.Column("at", sa.Double, nullable=False),
        sa.Index("attempts_of_who", "who", "at"),
        sa.Index("attempts_by_time", "at"),
        sqlite_autoincrement=True,
    )  # fmt: skip
    return [media, attempts]


def _id() -> sa.Column[int]:
    return sa.Column("id", _NUMBER, primary_key=True, autoincrement=True)


def _annotator() -> sa.Column[int]:
    return sa.Column("annotator", _NUMBER, sa.ForeignKey("annotators.id"), nullable=False)
