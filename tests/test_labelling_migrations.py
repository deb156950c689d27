"""Databases of every earlier schema, with people's work in them, are brought up to the present."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from prefopt.errors import RecipeError
from prefopt.labelling import migrations, tables
from prefopt.labelling.database import Database, open_database
from prefopt.labelling.documents import item_key, item_to_text, task_to_text
from prefopt.labelling.migrations import NEWEST, STEPS, migrate, version
from prefopt.labelling.replaying import replay
from prefopt.labelling.store import Store
from prefopt.labelling.words import Answer, NewItem, Task
from prefopt.records import Completion

NOW = 2000.0
TASK = Task("old", overlap=2, repeat_share=0.0, gold_share=0.0)
ITEMS = [
    NewItem("plain", Completion("a"), Completion("b"), priority=2.0),
    NewItem("plain too", Completion("a"), Completion("b"), priority=1.0, meta={"row": 7}),
    NewItem("known", Completion("a"), Completion("b"), gold="first"),
    NewItem("nobody's", Completion("a"), Completion("b"), priority=3.0),
]


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    with open_database(database_url) as opened:
        yield opened


def run(connection: sa.Connection, statement: str, **values: Any) -> None:
    connection.execute(sa.text(statement), values)


def fill(connection: sa.Connection) -> None:
    """What schema 1 would have had: two annotators, votes of every kind, an undo, two leases."""
    run(connection, "INSERT INTO tasks (name, at) VALUES ('old', 1)")
    for text in (task_to_text(Task("old", overlap=9)), task_to_text(TASK)):
        run(
            connection,
            "INSERT INTO settings (task, at, document) VALUES (1, 1, :text)",
            text=text,
        )
    for new in ITEMS:
        run(
            connection,
            "INSERT INTO items (task, key, kind, priority, document) VALUES (1, :k, :g, :p, :d)",
            k=item_key(new), g="gold" if new.gold else "normal", p=new.priority,
            d=item_to_text(new),
        )  # fmt: skip
    for name in ("ada", "bo"):
        run(
            connection, f"INSERT INTO annotators (name, role, at) VALUES ('{name}', 'annotator', 1)"
        )
    #        kind, item, annotator, repeat, payload
    history: list[tuple[str, int, int, int, dict[str, Any]]] = [
        ("lease", 1, 1, 0, {"until": 900.0, "swapped": False}),
        ("vote", 1, 1, 0, vote("first")),
        ("lease", 1, 2, 0, {"until": 901.0, "swapped": True}),
        ("vote", 1, 2, 0, vote("tie", comment="hm")),
        ("lease", 1, 1, 1, {"until": 902.0, "swapped": True}),
        ("vote", 1, 1, 1, vote("second")),
        ("lease", 3, 1, 0, {"until": 903.0, "swapped": False}),
        ("skip", 3, 1, 0, {"flagged": True, "comment": "", "seconds": None}),
        ("lease", 2, 2, 0, {"until": 904.0, "swapped": False}),
        ("vote", 2, 2, 0, vote("first")),
        ("undo", 2, 2, 0, {"event": 10}),
        ("lease", 2, 2, 0, {"until": NOW + 500, "swapped": False}),  # still theirs
        ("lease", 2, 1, 0, {"until": 905.0, "swapped": True}),  # ended long ago
    ]
    for number, (kind, item, annotator, repeat, payload) in enumerate(history, 1):
        run(
            connection,
            "INSERT INTO events (task, kind, item, annotator, repeat, key, at, payload) "
            "VALUES (1, :kind, :item, :annotator, :repeat, :key, :at, :payload)",
            kind=kind, item=item, annotator=annotator, repeat=repeat, at=float(number),
            key=None if kind == "lease" else f"key {number}", payload=json.dumps(payload),
        )  # fmt: skip
    claim = (
        "INSERT INTO claims (item, annotator, repeat, task, state, lease, until, swapped, event, "
        "answered, payload) VALUES (:i, :a, :r, 1, :s, :l, :u, :w, :e, :t, :p)"
    )
    for i, a, r, s, lease, e in (
        (1, 1, 0, "voted", 1, 2), (1, 2, 0, "voted", 3, 4), (1, 1, 1, "voted", 5, 6),
        (3, 1, 0, "skipped", 7, 8), (2, 2, 0, "leased", 12, None), (2, 1, 0, "leased", 13, None),
    ):  # fmt: skip
        given = history[lease - 1][4]
        run(
            connection, claim, i=i, a=a, r=r, s=s, l=lease, u=given["until"], w=given["swapped"],
            e=e, t=None if e is None else float(e),
            p=None if e is None else json.dumps(history[e - 1][4]),
        )  # fmt: skip


def vote(said: str, comment: str = "") -> dict[str, Any]:
    return {
        "said": said, "strength": None, "reason": None, "flagged": False, "comment": comment,
        "seconds": 2.5,
    }  # fmt: skip


@pytest.mark.parametrize("start", sorted(set(STEPS) - {NEWEST}))
def test_an_earlier_schema_with_data_becomes_the_present_one(
    database: Database, start: int
) -> None:
    migrate(database, to=1)
    database.write(fill)
    migrate(database, to=start)
    assert database.write(version) == start

    store = Store(database, clock=lambda: NOW)
    assert database.write(version) == NEWEST
    assert store.tasks() == [TASK]
    assert [item.new for item in store.items("old")] == ITEMS
    assert [item.kind for item in store.items("old")] == ["normal", "normal", "gold", "normal"]
    claims = {(claim.item, claim.annotator, claim.repeat): claim for claim in store.claims("old")}
    assert claims == replay(store.events("old"))
    assert claims[1, 2, 0].comment == "hm" and claims[1, 1, 1].said == "second"

    progress = store.progress("old", 1)
    assert (progress.wanted, progress.votes, progress.done, progress.items) == (6, 2, 1, 3)
    assert progress.mine == 3
    # The item of the lease that has ended has one slot free, and the lowest priority.
    shown = store.next("old", 1)
    assert shown is not None and shown.item.id == 2
    kept = [tuple(row) for row in database.read(sa.select(tables.places).order_by("item"))]
    store.rebuild("old")
    anew = [tuple(row) for row in database.read(sa.select(tables.places).order_by("item"))]
    assert anew == kept and store.progress("old", 1) == progress
    assert store.next("old", 2) is not None
    store.answer("old", 1, shown.lease, "new key", Answer("left"))
    assert store.progress("old", 1).votes == 3
    assert store.who(store.enter(store.issue_link(store.annotator("ada")))) is not None


def test_the_steps_lead_to_the_tables_that_the_store_uses(database: Database) -> None:
    database.migrate()

    def found(connection: sa.Connection) -> dict[str, Any]:
        schema = sa.MetaData()
        schema.reflect(connection)
        return described(schema)

    there = database.write(found)
    del there["schema_steps"]
    assert there == described(tables.metadata)


def described(schema: sa.MetaData) -> dict[str, Any]:
    """Of each table: its columns, keys and indexes, in words that both databases share."""
    return {
        table.name: {
            "columns": {column.name: column.nullable for column in table.columns},
            "key": [column.name for column in table.primary_key],
            "points": sorted(
                (key.parent.name, key.column.table.name) for key in table.foreign_keys
            ),
            "indexes": sorted(
                (str(index.name), [column.name for column in index.columns], bool(index.unique))
                for index in table.indexes
                if "duplicates_constraint" not in index.dialect_kwargs
            ),
            "unique": sorted(
                [column.name for column in constraint.columns]
                for constraint in table.constraints
                if isinstance(constraint, sa.UniqueConstraint)
            ),
        }
        for table in schema.sorted_tables
    }


def test_processes_that_start_together_migrate_once(database_url: str) -> None:
    def start(_: int) -> int:
        with open_database(database_url) as mine:  # connections of its own, as in a process
            mine.migrate()
            return mine.write(version)

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(start, range(4))) == [NEWEST] * 4


def test_a_step_that_fails_leaves_the_schema_before_it(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    migrate(database, to=1)
    database.write(fill)

    def broken(connection: sa.Connection) -> None:
        connection.execute(sa.text("CREATE TABLE half (number INTEGER)"))
        connection.execute(sa.text("UPDATE tasks SET name = 'lost'"))
        raise RuntimeError("the power went")

    monkeypatch.setitem(migrations.STEPS, NEWEST, ("breaks", broken))
    with pytest.raises(RuntimeError, match="the power went"):
        migrate(database)
    assert database.write(version) == 1
    names = database.write(lambda connection: sa.inspect(connection).get_table_names())
    assert "half" not in names and "links" not in names
    monkeypatch.undo()
    migrate(database)
    assert Store(database).task("old") == TASK


def test_a_database_of_a_newer_version_is_refused(database: Database) -> None:
    database.migrate()
    newer = f"INSERT INTO schema_steps (number, what, at) VALUES ({NEWEST + 1}, 'x', 1)"
    database.write(lambda connection: run(connection, newer))
    with pytest.raises(RecipeError, match=f"schema {NEWEST + 1}, here {NEWEST}") as caught:
        Store(database)
    assert ":secret" not in str(caught.value)


def test_the_database_of_something_else_is_refused(database: Database) -> None:
    database.write(lambda connection: run(connection, "CREATE TABLE tasks (anything INTEGER)"))
    with pytest.raises(RecipeError, match="a table tasks that is not of prefopt"):
        database.migrate()


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "letter.db"
    file.write_text("Dear all, " * 500)
    with open_database(str(file)) as opened, pytest.raises(RecipeError, match="read as SQLite"):
        opened.migrate()
    assert file.read_text() == "Dear all, " * 500
