"""The tables of the newest schema, as the store reads and writes them.

Truth, which is only ever added to: `tasks`, `settings`, `items`, `annotators`, `events`,
`media`, and what access rests on (`links`, `sessions`, `departures`, `revocations`).

Projections of the events, changed in the transaction that adds the event, so that giving out a
question reads a few rows instead of all: `claims` (what became of a question with an
annotator), `places` (how far an item is), `members` (how far an annotator is). `rebuilding`
makes them anew. `attempts` counts for the rate limit and is cleared as time passes.

`migrations.py` has the steps that lead here; a test holds the two against each other.
"""

from __future__ import annotations

import sqlalchemy as sa

metadata = sa.MetaData()

#: 64 bits on either database; SQLite numbers rows by itself only in a column called INTEGER
Number = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def numbered() -> sa.Column[int]:
    """A primary key that the database counts up, and never gives again."""
    return sa.Column("id", Number, primary_key=True, autoincrement=True)


def pointing(name: str, target: str) -> sa.Column[int]:
    """A column with the number of a row elsewhere."""
    return sa.Column(name, Number, sa.ForeignKey(f"{target}.id"), nullable=False)


tasks = sa.Table(
    "tasks",
    metadata,
    numbered(),
    sa.Column("name", sa.Text, nullable=False, unique=True),
    sa.Column("at", sa.Double, nullable=False),
    sa.Column("normal_items", sa.Integer, nullable=False),  # how many there are of either kind
    sa.Column("gold_items", sa.Integer, nullable=False),
    sqlite_autoincrement=True,
)

#: what a task was set to and when; the last row of a task counts
settings = sa.Table(
    "settings",
    metadata,
    numbered(),
    pointing("task", "tasks"),
    sa.Column("at", sa.Double, nullable=False),
    sa.Column("document", sa.Text, nullable=False),
    sa.Index("settings_of_task", "task", "id"),
    sqlite_autoincrement=True,
)

items = sa.Table(
    "items",
    metadata,
    numbered(),
    pointing("task", "tasks"),
    sa.Column("key", sa.Text, nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("document", sa.Text, nullable=False),
    sa.UniqueConstraint("task", "key", name="items_known_by_content"),
    sqlite_autoincrement=True,
)

annotators = sa.Table(
    "annotators",
    metadata,
    numbered(),
    sa.Column("name", sa.Text, nullable=False, unique=True),
    sa.Column("role", sa.Text, nullable=False),
    sa.Column("at", sa.Double, nullable=False),
    sqlite_autoincrement=True,
)

events = sa.Table(
    "events",
    metadata,
    numbered(),
    pointing("task", "tasks"),
    sa.Column("kind", sa.Text, nullable=False),
    pointing("item", "items"),
    pointing("annotator", "annotators"),
    sa.Column("repeat", sa.Integer, nullable=False),
    sa.Column("key", sa.Text),  # of a request; none for a lease
    sa.Column("at", sa.Double, nullable=False),
    sa.Column("payload", sa.Text, nullable=False),
    sa.Index("events_of_task", "task", "id"),
    sa.Index("events_once", "annotator", "task", "key", unique=True),
    sqlite_autoincrement=True,
)

claims = sa.Table(
    "claims",
    metadata,
    sa.Column("item", Number, sa.ForeignKey("items.id"), primary_key=True),
    sa.Column("annotator", Number, sa.ForeignKey("annotators.id"), primary_key=True),
    sa.Column("repeat", sa.Integer, primary_key=True),
    pointing("task", "tasks"),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("lease", Number, nullable=False),  # the event that gave it out last
    sa.Column("until", sa.Double, nullable=False),
    sa.Column("swapped", sa.Boolean, nullable=False),
    sa.Column("event", Number),  # the vote or skip
    sa.Column("answered", sa.Double),  # when that was
    sa.Column("place", sa.Integer),  # the how-manieth answer of this annotator in the task
    sa.Column("payload", sa.Text),
    # until when a lease keeps a slot of the item filled; none if it keeps none (any more)
    sa.Column("holds_until", sa.Double),
    sa.Index("claims_in_order", "task", "annotator", "place"),
    sa.Index("claims_out", "task", "annotator", "until", sqlite_where=sa.text("place IS NULL"),
             postgresql_where=sa.text("place IS NULL")),
    sa.Index("claims_held", "task", "holds_until",
             sqlite_where=sa.text("holds_until IS NOT NULL"),
             postgresql_where=sa.text("holds_until IS NOT NULL")),
)  # fmt: skip

places = sa.Table(
    "places",
    metadata,
    sa.Column("item", Number, sa.ForeignKey("items.id"), primary_key=True, autoincrement=False),
    pointing("task", "tasks"),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("priority", sa.Double, nullable=False),
    sa.Column("votes", sa.Integer, nullable=False),  # of different annotators
    sa.Column("filled", sa.Integer, nullable=False),  # votes, and leases that hold a slot
    sa.Column("open", sa.Integer, nullable=False),  # 1 while filled is below the overlap
    sa.Index("places_to_ask", "task", "kind", "open", "priority", "filled", "item"),
)

members = sa.Table(
    "members",
    metadata,
    sa.Column("task", Number, sa.ForeignKey("tasks.id"), primary_key=True, autoincrement=False),
    sa.Column(
        "annotator", Number, sa.ForeignKey("annotators.id"), primary_key=True, autoincrement=False
    ),
    sa.Column("answered", sa.Integer, nullable=False),  # votes and skips, of all kinds
    sa.Column("votes", sa.Integer, nullable=False),  # on normal items, the first time
    sa.Column("completed", sa.Integer, nullable=False),  # items whose last wanted vote was theirs
)

links = sa.Table(
    "links",
    metadata,
    numbered(),
    pointing("annotator", "annotators"),
    sa.Column("digest", sa.LargeBinary, nullable=False, unique=True),
    sa.Column("at", sa.Double, nullable=False),
    sa.Column("expires", sa.Double, nullable=False),
    sqlite_autoincrement=True,
)

sessions = sa.Table(
    "sessions",
    metadata,
    numbered(),
    # unique: a link opens one session
    sa.Column("link", Number, sa.ForeignKey("links.id"), nullable=False, unique=True),
    sa.Column("digest", sa.LargeBinary, nullable=False, unique=True),
    sa.Column("at", sa.Double, nullable=False),
    sa.Column("expires", sa.Double, nullable=False),
    sqlite_autoincrement=True,
)

departures = sa.Table(
    "departures",
    metadata,
    sa.Column(
        "session", Number, sa.ForeignKey("sessions.id"), primary_key=True, autoincrement=False
    ),
    sa.Column("at", sa.Double, nullable=False),
)

#: links up to and including `link`, and the sessions that they opened, are void
revocations = sa.Table(
    "revocations",
    metadata,
    numbered(),
    pointing("annotator", "annotators"),
    sa.Column("link", Number, nullable=False),
    sa.Column("at", sa.Double, nullable=False),
    sa.Index("revocations_of_annotator", "annotator", "link"),
    sqlite_autoincrement=True,
)

media = sa.Table(
    "media",
    metadata,
    sa.Column("digest", sa.Text, primary_key=True),
    sa.Column("type", sa.Text, nullable=False),
    sa.Column("data", sa.LargeBinary, nullable=False),
    sa.Column("at", sa.Double, nullable=False),
)

attempts = sa.Table(
    "attempts",
    metadata,
    numbered(),
    sa.Column("who", sa.LargeBinary, nullable=False),  # a digest: addresses are nobody's business
    sa.Column("at", sa.Double, nullable=False),
    sa.Index("attempts_of_who", "who", "at"),
    sa.Index("attempts_by_time", "at"),
    sqlite_autoincrement=True,
)
