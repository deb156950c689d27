"""Step 3: counts beside the claims.

Until here the next question was found by counting the claims of every item. Now `places` has
what each item still wants and `members` how far each annotator is; both follow from the claims
that are there. The priority moves to `places`: it is the one thing of an item that changes.
"""

from __future__ import annotations

import json

import sqlalchemy as sa

_CHANGED = (
    "ALTER TABLE tasks ADD COLUMN normal_items INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE tasks ADD COLUMN gold_items INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE claims ADD COLUMN place INTEGER",
    "ALTER TABLE claims ADD COLUMN holds_until DOUBLE PRECISION",
    """CREATE TABLE places (
        item {number} NOT NULL PRIMARY KEY REFERENCES items (id),
        task {number} NOT NULL REFERENCES tasks (id),
        kind TEXT NOT NULL,
        priority DOUBLE PRECISION NOT NULL,
        votes INTEGER NOT NULL,
        filled INTEGER NOT NULL,
        open INTEGER NOT NULL
    )""",
    """CREATE TABLE members (
        task {number} NOT NULL REFERENCES tasks (id),
        annotator {number} NOT NULL REFERENCES annotators (id),
        answered INTEGER NOT NULL,
        votes INTEGER NOT NULL,
        completed INTEGER NOT NULL,
        PRIMARY KEY (task, annotator)
    )""",
)
_COUNTED = (
    """UPDATE tasks SET
        normal_items = (SELECT count(*) FROM items WHERE task = tasks.id AND kind = 'normal'),
        gold_items = (SELECT count(*) FROM items WHERE task = tasks.id AND kind = 'gold')""",
    """UPDATE claims SET place = ordered.place FROM (
        SELECT item, annotator, repeat,
            row_number() OVER (PARTITION BY task, annotator ORDER BY event) - 1 AS place
        FROM claims WHERE event IS NOT NULL
    ) AS ordered WHERE ordered.item = claims.item
        AND ordered.annotator = claims.annotator AND ordered.repeat = claims.repeat""",
    """UPDATE claims SET holds_until = until WHERE state = 'leased' AND repeat = 0
        AND item IN (SELECT id FROM items WHERE kind = 'normal')""",
)
_PLACED = """INSERT INTO places (item, task, kind, priority, votes, filled, open)
    SELECT id, task, kind, priority, votes, votes + held,
        CASE WHEN votes + held < :overlap THEN 1 ELSE 0 END
    FROM (
        SELECT items.id AS id, items.task AS task, items.kind AS kind, priority,
            count(CASE WHEN state = 'voted' AND repeat = 0 AND kind = 'normal' THEN 1 END) AS votes,
            count(holds_until) AS held
        FROM items LEFT JOIN claims ON claims.item = items.id
        WHERE items.task = :task
        GROUP BY items.id, items.task, items.kind, priority
    ) AS counted"""
_JOINED = """INSERT INTO members (task, annotator, answered, votes, completed)
    SELECT task, annotator, count(place),
        count(rank),
        count(CASE WHEN rank = :overlap THEN 1 END)
    FROM (
        SELECT claims.task AS task, annotator, place,
            CASE WHEN state = 'voted' AND repeat = 0 AND kind = 'normal' THEN
                row_number() OVER (
                    PARTITION BY item, state, repeat ORDER BY event
                )
            END AS rank
        FROM claims JOIN items ON items.id = claims.item
        WHERE claims.task = :task
    ) AS ranked GROUP BY task, annotator"""
_FINISHED = (
    "ALTER TABLE items DROP COLUMN priority",
    "DROP INDEX claims_of_task",
    "CREATE INDEX claims_in_order ON claims (task, annotator, place)",
    "CREATE INDEX claims_out ON claims (task, annotator, until) WHERE place IS NULL",
    "CREATE INDEX claims_held ON claims (task, holds_until) WHERE holds_until IS NOT NULL",
    "CREATE INDEX places_to_ask ON places (task, kind, open, priority, filled, item)",
)


def upgrade(connection: sa.Connection) -> None:
    """Add the counts, and fill them in from the claims."""
    number = "BIGINT" if connection.dialect.name == "postgresql" else "INTEGER"
    for statement in (*_CHANGED, *_COUNTED):
        connection.execute(sa.text(statement.format(number=number)))
    newest = sa.text(
        "SELECT task, document FROM settings WHERE id IN "
        "(SELECT max(id) FROM settings GROUP BY task)"
    )
    for task, document in connection.execute(newest).all():
        known = {"task": task, "overlap": json.loads(document)["overlap"]}
        connection.execute(sa.text(_PLACED), known)
        connection.execute(sa.text(_JOINED), known)
    for statement in _FINISHED:
        connection.execute(sa.text(statement))
