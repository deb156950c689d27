"""Statements that PostgreSQL keeps: the same answers, one preparation, and errors as before."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from prefopt.labelling.database import open_database
from prefopt.labelling.prepared import MOST, Prepared
from tests.postgres import Cluster


@pytest.fixture
def connection(postgresql: Cluster) -> Iterator[sa.Connection]:
    database = open_database(postgresql.create())
    database.migrate()
    with database._connected().connect() as found:
        yield found
    database.close()


def known(connection: sa.Connection) -> Prepared:
    prepared = connection.connection.driver_connection.execute_unnamed
    assert isinstance(prepared, Prepared)
    return prepared


def test_a_statement_is_prepared_once_and_answers_as_it_should(connection: sa.Connection) -> None:
    statement = sa.text("SELECT CAST(:number AS INTEGER) + 1, CAST(:word AS VARCHAR)")
    before = len(known(connection)._known)
    for number, word in ((1, "a"), (41, 'it\'s %s of $1 "quoted"'), (None, None)):
        row = connection.execute(statement, {"number": number, "word": word}).one()
        assert tuple(row) == (None if number is None else number + 1, word)
    assert len(known(connection)._known) == before + 1


def test_an_error_leaves_the_connection_of_use(connection: sa.Connection) -> None:
    connection.execute(sa.text("CREATE TEMPORARY TABLE seen (number INTEGER PRIMARY KEY)"))
    connection.commit()
    insert = sa.text("INSERT INTO seen VALUES (:number)")
    for _ in range(2):
        connection.execute(insert, {"number": 1})
        with pytest.raises(sa.exc.IntegrityError):
            connection.execute(insert, {"number": 1})
        connection.rollback()
    connection.execute(insert, {"number": 2})
    assert connection.execute(sa.text("SELECT number FROM seen")).scalars().all() == [2]


def test_texts_without_end_are_not_all_kept(connection: sa.Connection) -> None:
    for number in range(MOST + 5):
        statement = sa.text(f"SELECT CAST(:value AS INTEGER) + {number}")
        assert connection.execute(statement, {"value": 1}).scalar() == number + 1
    assert len(known(connection)._known) <= MOST
