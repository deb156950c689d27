"""Step 1: tasks with their settings, items, annotators, events, and claims."""

from __future__ import annotations

import sqlalchemy as sa

_NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade(connection: sa.Connection) -> None:
    """Make the tables."""
    schema = sa.MetaData()
    _truth(schema)
    _claims(schema)
    schema.create_all(connection, checkfirst=False)


def _truth(schema: sa.MetaData) -> None:
    sa.Table(
        "tasks", schema, _id(),
        sa.Column("name", sa.Text, nullable=False, unique=True),
        sa.Column("at", sa.Double, nullable=False),
        sqlite_autoincrement=True,
    )  # fmt: skip
    sa.Table(
        "settings", schema, _id(), _of("task", "tasks"),
        sa.Column("at", sa.Double, nullable=False),
        sa.Column("document", sa.Text, nullable=False),
        sa.Index("settings_of_task", "task", "id"),
        sqlite_autoincrement=True,
    )  # fmt: skip
    sa.Table(
        "items", schema, _id(), _of("task", "tasks"),
        sa.Column("key", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("priority", sa.Double, nullable=False),
        sa.Column("document", sa.Text, nullable=False),
        sa.UniqueConstraint("task", "key", name="items_known_by_content"),
        sqlite_autoincrement=True,
    )  # fmt: skip
    sa.Table(
        "annotators", schema, _id(),
        sa.Column("name", sa.Text, nullable=False, unique=True),
        sa.Column("role", sa.Text, nullable=False),
        sa.Column("at", sa.Double, nullable=False),
        sqlite_autoincrement=True,
    )  # fmt: skip
    sa.Table(
        "events", schema, _id(), _of("task", "tasks"),
        sa.Column("kind", sa.Text, nullable=False),
        _of("item", "items"), _of("annotator", "annotators"),
        sa.Column("repeat", sa.Integer, nullable=False),
        sa.Column("key", sa.Text),
        sa.Column("at", sa.Double, nullable=False),
        sa.Column("payload", sa.Text, nullable=False),
        sa.Index("events_of_task", "task", "id"),
        sa.Index("events_once", "annotator", "task", "key", unique=True),
        sqlite_autoincrement=True,
    )  # fmt: skip


def _claims(schema: sa.MetaData) -> None:
    sa.Table(
        "claims", schema,
        sa.Column("item", _NUMBER, sa.ForeignKey("items.id"), primary_key=True),
        sa.Column("annotator", _NUMBER, sa.ForeignKey("annotators.id"), primary_key=True),
        sa.Column("repeat", sa.Integer, primary_key=True),
        _of("task", "tasks"),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("lease", _NUMBER, nullable=False),
        sa.Column("until", sa.Double, nullable=False),
        sa.Column("swapped", sa.Boolean, nullable=False),
        sa.Column("event", _NUMBER),
        sa.Column("answered", sa.Double),
        sa.Column("payload", sa.Text),
        sa.Index("claims_of_task", "task", "annotator"),
    )  # fmt: skip


def _id() -> sa.Column[int]:
    return sa.Column("id", _NUMBER, primary_key=True, autoincrement=True)


def _of(name: str, table: str) -> sa.Column[int]:
    return sa.Column(name, _NUMBER, sa.ForeignKey(f"{table}.id"), nullable=False)
