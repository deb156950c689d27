"""Links, sessions, revocation and the rate limit, on both databases."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa

from prefopt.errors import RecipeError
from prefopt.labelling import tables
from prefopt.labelling.database import open_database
from prefopt.labelling.refusals import AccessError
from prefopt.labelling.store import Store
from tests.clock import Clock


@pytest.fixture
def store(database_url: str, clock: Clock) -> Iterator[Store]:
    with open_database(database_url) as database:
        yield Store(database, clock=clock)


def refused(store: Store, token: str) -> str:
    with pytest.raises(AccessError) as caught:
        store.enter(token)
    return str(caught.value)


def test_a_link_lets_in_once(store: Store) -> None:
    ada = store.add_annotator("ada")
    token = store.issue_link(ada)
    assert store.look(token) == ada == store.look(token)  # looking does not use it
    session = store.enter(token)
    assert store.who(session) == ada
    assert store.look(token) is None
    refused(store, token)
    assert store.who(session) == ada


def test_who_is_refused_is_not_told_why(store: Store, clock: Clock) -> None:
    ada = store.add_annotator("ada")
    used, old, revoked = (store.issue_link(ada, hours=1) for _ in range(3))
    store.enter(used)
    told = {refused(store, token) for token in (used, "never made", "")}
    store.revoke(ada)
    told.add(refused(store, revoked))
    clock.now += 3600
    told.add(refused(store, old))
    assert len(told) == 1
    assert all(store.look(token) is None for token in (used, old, revoked, "never made"))


def test_links_and_sessions_end_by_the_clock(store: Store, clock: Clock) -> None:
    ada = store.add_annotator("ada")
    token, late = store.issue_link(ada, hours=2), store.issue_link(ada, hours=1)
    clock.now += 3600
    assert store.look(late) is None
    session = store.enter(token, hours=10)
    clock.now += 10 * 3600 - 1
    assert store.who(session) == ada
    clock.now += 1
    assert store.who(session) is None


def test_leaving_ends_one_session_and_revoking_ends_all(store: Store) -> None:
    ada, bo = store.add_annotator("ada"), store.add_annotator("bo")
    first, second = store.enter(store.issue_link(ada)), store.enter(store.issue_link(ada))
    others, unused = store.enter(store.issue_link(bo)), store.issue_link(ada)
    store.leave(first)
    store.leave(first)
    store.leave("never made")
    assert (store.who(first), store.who(second)) == (None, ada)
    store.revoke(ada)
    assert store.who(second) is None and store.look(unused) is None
    assert store.who(others) == bo
    again = store.enter(store.issue_link(ada))
    assert store.who(again) == ada and store.who(second) is None
    store.revoke(bo)
    store.revoke(bo)
    assert store.who(others) is None and store.who(again) == ada


def test_secrets_are_not_in_the_database(store: Store) -> None:
    ada = store.add_annotator("ada")
    token = store.issue_link(ada)
    session = store.enter(token)
    assert len(token) >= 22 and len(session) >= 22  # 128 bits in base 64
    assert token != session
    for table in tables.metadata.sorted_tables:
        for row in store.database.read(sa.select(table)):
            for value in row:
                kept = (
                    bytes(value) if isinstance(value, bytes | memoryview) else str(value).encode()
                )
                assert token.encode() not in kept and session.encode() not in kept


def test_a_link_used_by_many_at_once_lets_one_in(store: Store) -> None:
    token = store.issue_link(store.add_annotator("ada"))

    def enter(_: int) -> bool:
        try:
            return store.who(store.enter(token)) is not None
        except AccessError:
            return False

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(enter, range(8))) == 1


def test_attempts_are_counted_within_a_window(store: Store, clock: Clock) -> None:
    def attempt(who: str = "here") -> bool:
        return store.attempt(who, limit=3, window=60)

    assert [attempt(), attempt(), attempt(), attempt(), attempt()] == [True] * 3 + [False] * 2
    assert attempt("elsewhere")
    clock.now += 59
    assert not attempt()
    clock.now += 1
    assert [attempt(), attempt(), attempt(), attempt()] == [True] * 3 + [False]


def test_attempts_at_the_same_time_do_not_pass_together(store: Store) -> None:
    with ThreadPoolExecutor(8) as pool:
        passed = list(pool.map(lambda _: store.attempt("x", limit=3, window=60), range(12)))
    assert sum(passed) == 3


def test_attempts_are_not_kept_for_ever_and_not_in_clear(store: Store, clock: Clock) -> None:
    for n in range(5):
        store.attempt(f"192.0.2.{n}", limit=3, window=60)
    (row, *_) = store.database.read(sa.select(tables.attempts))
    assert b"192.0.2" not in bytes(row.who)
    clock.now += 86400
    store.attempt("192.0.2.9", limit=3, window=60)
    assert len(store.database.read(sa.select(tables.attempts))) == 1


def test_annotators_are_known_by_name(store: Store) -> None:
    ada = store.add_annotator(" Ada ")
    assert ada.name == "Ada" and store.add_annotator("Ada") == ada == store.annotator("Ada")
    lead = store.add_annotator("Grace", "lead")
    assert store.annotators() == [ada, lead] and lead.role == "lead"
    composed, decomposed = "Zo\u00eb", "Zoe\u0308"
    assert store.add_annotator(composed) == store.add_annotator(decomposed)
    with pytest.raises(RecipeError, match="there already, as annotator"):
        store.add_annotator("Ada", "lead")
    for name in ("", "  ", "a\nb", "x" * 101, "a\0b"):
        with pytest.raises(RecipeError, match="1 to 100 characters"):
            store.add_annotator(name)
    with pytest.raises(RecipeError, match="no such annotator"):
        store.annotator("nobody")
    with pytest.raises(RecipeError, match="annotator or lead"):
        store.add_annotator("eve", "admin")  # type: ignore[arg-type]
