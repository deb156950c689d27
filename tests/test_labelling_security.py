"""The labelling room under attack, over the network as an attacker has it, on both databases."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.postgres import Cluster
from tests.served import (
    Json,
    Reply,
    Server,
    Visitor,
    free_port,
    link_of,
    make_task,
    opened,
    plain_items,
    visitor,
)

COOKIE = "prefopt_session"
HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


class House:
    """A task of two votes an item, two annotators who are in, and a lead: fresh in each test."""

    made = 0

    def __init__(self, server: Server) -> None:
        House.made += 1
        self.server = server
        self.room, self.other = f"room-{House.made}", f"other-{House.made}"
        with opened(server.url) as store:
            make_task(store, self.room, plain_items(8), overlap=2)
            make_task(store, self.other, plain_items(2, prefix="elsewhere"))
            self.names = {f"{who}-{House.made}": who for who in ("anna", "ben", "lea")}
            self.tokens = {
                who: link_of(store, name, role="lead" if who == "lea" else "annotator")
                for name, who in self.names.items()
            }
        self.anna, self.ben, self.lea = (visitor(server, token) for token in self.tokens.values())

    @property
    def url(self) -> str:
        return self.server.url

    @property
    def path(self) -> str:
        return f"/tasks/{self.room}"

    def name(self, who: str) -> str:
        return next(name for name, known in self.names.items() if known == who)

    def nobody(self, **jar: str) -> Visitor:
        made = Visitor(self.server.port)
        made.jar |= jar
        return made

    def votes(self, task: str = "") -> list[tuple[str, str]]:
        """Whose they are, and their keys."""
        with opened(self.url) as store:
            people = {person.id: person.name for person in store.annotators()}
            return [
                (self.names[people[event.annotator]], event.key)
                for event in store.events(task or self.room)
                if event.kind == "vote"
            ]


@pytest.fixture(scope="module")
def sqlite_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("sqlite")
    with Server(f"sqlite:///{folder / 'votes.db'}", folder) as server:
        yield server


@pytest.fixture(scope="module")
def postgresql_server(
    postgresql: Cluster, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    with Server(postgresql.create(), tmp_path_factory.mktemp("postgresql")) as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def house(request: pytest.FixtureRequest) -> House:
    """On either database, on a server that the tests of this file share."""
    return House(request.getfixturevalue(f"{request.param}_server"))


@pytest.fixture
def sqlite_house(sqlite_server: Server) -> House:
    """Where the database makes no difference."""
    return House(sqlite_server)


@pytest.fixture
def own_house(database_url: str, tmp_path: Path) -> Iterator[House]:
    """On a server of its own: failures to sign in are counted by address."""
    with Server(database_url, tmp_path) as server:
        yield House(server)


def refused(reply: Reply, status: int) -> None:
    """Refused with that status, in words, without a look inside."""
    assert reply.status == status, (reply.status, reply.text[:500])
    for inside in ("Traceback", "sqlalchemy", "sqlite3", "pg8000", "site-packages", ".py"):
        assert inside not in reply.text


# -- who may do what ------------------------------------------------------------------------


def test_nobody_answers_for_somebody_else(house: House) -> None:
    """Another's lease, another's word against forgery, another's key: not one of them works."""
    annas, bens = house.anna.question(house.room), house.ben.question(house.room)
    refused(house.ben.answer(house.room, bens | {"lease": annas["lease"]}, "left"), 409)
    refused(house.ben.answer(house.room, bens | {"csrf": annas["csrf"]}, "left"), 403)
    refused(house.ben.answer(house.room, bens | {"lease": 10**15}, "left"), 409)
    refused(house.ben.answer(house.other, bens, "left"), 409)
    assert house.votes() == [] == house.votes(house.other)
    assert house.anna.answer(house.room, annas, "left").status == 200
    # The key that Anna used means nothing in Ben's name.
    reply = house.ben.answer(house.room, bens | {"key": annas["key"]}, "left")
    assert (reply.status, reply.json["repeated"]) == (200, False)
    assert sorted(house.votes()) == [("anna", annas["key"]), ("ben", annas["key"])]


def test_nobody_takes_back_what_another_said(house: House) -> None:
    annas, bens = house.anna.question(house.room), house.ben.question(house.room)
    assert house.anna.answer(house.room, annas, "left").status == 200
    fields = {"csrf": bens["csrf"], "key": "undo-1"}
    reply = house.ben.send("POST", f"{house.path}/undo", fields, json=True)
    assert reply.status < 500
    with opened(house.url) as store:
        assert [event for event in store.events(house.room) if event.kind == "undo"] == []
    forged = {"csrf": bens["csrf"], "key": "undo-2"}
    refused(house.anna.send("POST", f"{house.path}/undo", forged, json=True), 403)


def test_nobody_sees_what_another_said(house: House) -> None:
    """Not on a page, not in JSON, not among the leads' pages."""
    annas = house.anna.question(house.room)
    reply = house.anna.answer(house.room, annas, "left", comment="annas-own-words", flag="1")
    assert reply.status == 200
    for path in ("/", house.path, f"{house.path}/guidelines"):
        for as_json in (False, True):
            reply = house.ben.send("GET", path, json=as_json)
            assert reply.status == 200
            assert "annas-own-words" not in reply.text and "anna" not in reply.text.lower()
    for path in ("team", "team.json", "votes.jsonl", "comparisons.jsonl"):
        refused(house.ben.send("GET", f"{house.path}/{path}"), 403)
        refused(house.nobody().send("GET", f"{house.path}/{path}"), 401)
        assert house.lea.send("GET", f"{house.path}/{path}").status == 200
    assert "annas-own-words" in house.lea.send("GET", f"{house.path}/votes.jsonl").text


def test_sources_stay_hidden(database_url: str, tmp_path: Path) -> None:
    """Who wrote an answer, its score, what the row brought along, which one is gold."""
    from prefopt.labelling.words import NewItem
    from prefopt.records import Completion

    item = NewItem(
        prompt="p", first=Completion("x", score=0.123, source="model-secret"),
        second=Completion("y", score=0.987, source="human-secret"), gold="first",
        source="pool-secret", meta={"hint": "meta-secret"},
    )  # fmt: skip
    with opened(database_url) as store:
        make_task(store, "room", [item, *plain_items(3)], gold_share=0.9)
        token = link_of(store, "anna")
    with Server(database_url, tmp_path) as server:
        anna = visitor(server, token)
        for _ in range(4):
            pages = [anna.send("GET", "/tasks/room", json=as_json) for as_json in (False, True)]
            for reply in pages:
                assert "secret" not in reply.text and "gold" not in reply.text.lower()
                assert "0.123" not in reply.text and "0.987" not in reply.text
            if pages[1].json.get("done"):
                break
            anna.answer("room", pages[1].json, "tie")


# -- links and sessions ---------------------------------------------------------------------


def test_links_that_are_good_no_more(own_house: House) -> None:
    house = own_house
    with opened(house.url) as store:
        expired = link_of(store, house.name("anna"), hours=-1)
        revoked = link_of(store, "carl")
        store.revoke(store.annotator("carl"))
    for token in (house.tokens["anna"], expired, revoked, "x" * 43, "0", "%00", "a%27--"):
        stranger = house.nobody()
        refused(stranger.send("POST", f"/enter/{token}", {}), 403)
        assert COOKIE not in stranger.jar
        refused(stranger.send("GET", house.path), 401)


def test_looking_at_a_link_does_not_use_it(own_house: House) -> None:
    house = own_house
    with opened(house.url) as store:
        token = link_of(store, f"dora-{house.room}")
    for method in ("GET", "HEAD", "GET"):
        stranger = house.nobody()
        assert stranger.send(method, f"/enter/{token}").status == 200
        assert COOKIE not in stranger.jar
    assert house.nobody().enter(token).status == 303
    assert house.nobody().enter(token).status == 403


def test_a_link_entered_twice_at_once_opens_one_door(own_house: House) -> None:
    from concurrent.futures import ThreadPoolExecutor

    house = own_house
    with opened(house.url) as store:
        token = link_of(store, f"emil-{house.room}")
    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda _: house.nobody().enter(token).status, range(8)))
    assert sorted(replies) == [303] + [403] * 7


def test_revocation_ends_sessions_and_links_at_once(own_house: House) -> None:
    house = own_house
    question = house.anna.question(house.room)
    with opened(house.url) as store:
        unused = link_of(store, house.name("anna"))
        store.revoke(store.annotator(house.name("anna")))
    refused(house.anna.answer(house.room, question, "left"), 401)
    refused(house.anna.send("GET", "/"), 401)
    refused(house.nobody().enter(unused), 403)
    assert house.votes() == []
    assert house.ben.send("GET", "/").status == 200
    with opened(house.url) as store:
        assert house.nobody().enter(link_of(store, house.name("anna"))).status == 303


def test_leaving_ends_the_session_on_the_server(house: House) -> None:
    """A copy of the cookie is worth nothing afterwards."""
    copied = house.anna.jar[COOKIE]
    question = house.anna.question(house.room)
    refused(house.anna.send("POST", "/leave", {"csrf": "x"}), 403)
    assert house.anna.send("POST", "/leave", {"csrf": question["csrf"]}).status == 303
    assert COOKIE not in house.anna.jar
    refused(house.nobody(**{COOKIE: copied}).send("GET", house.path), 401)


@pytest.mark.parametrize(
    "cookie", ["", "x", "1", "0" * 43, "' OR 1=1 --", "../../etc/passwd", "é", "a" * 3000, "null"]
)
def test_forged_cookies(sqlite_house: House, cookie: str) -> None:
    stranger = sqlite_house.nobody()
    raw = {"Cookie": f"{COOKIE}={cookie}"}
    for path in ("/", sqlite_house.path, f"{sqlite_house.path}/team.json"):
        refused(stranger.send("GET", path, headers=_latin(raw)), 401)


def _latin(headers: dict[str, str]) -> dict[str, Any]:
    return {name: value.encode("utf-8") for name, value in headers.items()}


def test_a_session_is_new_at_every_sign_in(house: House) -> None:
    """Whoever plants a cookie before does not share the session afterwards."""
    with opened(house.url) as store:
        token = link_of(store, f"fay-{house.room}")
    planted = house.nobody(**{COOKIE: "planted"})
    reply = planted.enter(token)
    assert reply.status == 303 and planted.jar[COOKIE] != "planted"
    [cookie] = reply.cookies
    words = {word.strip().lower() for word in cookie.split(";")[1:]}
    assert {"httponly", "samesite=strict", "path=/"} <= words
    assert "secure" not in words  # http on the loopback interface
    assert len(planted.jar[COOKIE]) >= 43


# -- forged requests ------------------------------------------------------------------------


def test_requests_that_other_sites_have_a_browser_send(house: House) -> None:
    question = house.anna.question(house.room)
    without = {name: question[name] for name in ("lease", "key")} | {"choice": "left"}
    path = f"{house.path}/answers"
    refused(house.anna.send("POST", path, without, json=True), 403)
    refused(house.anna.send("POST", path, without | {"csrf": ""}, json=True), 403)
    refused(house.anna.send("POST", path, without | {"csrf": "é"}, json=True), 403)
    whole = without | {"csrf": question["csrf"]}
    for headers in (
        {"Origin": "https://evil.example"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site", "Origin": "http://localhost:1"},
    ):
        refused(house.anna.send("POST", path, whole, headers=headers, json=True), 403)
    assert house.votes() == []
    reply = house.anna.send("POST", path, whole, headers={"Origin": house.server.address})
    assert reply.status == 303
    assert len(house.votes()) == 1


def test_changes_are_never_made_by_looking(house: House) -> None:
    question = house.anna.question(house.room)
    query = "&".join(f"{name}={question[name]}" for name in ("csrf", "lease", "key"))
    for path in (f"{house.path}/answers", f"{house.path}/undo", "/leave"):
        assert house.anna.send("GET", f"{path}?{query}&choice=left").status in (404, 405)
    assert house.votes() == []
    assert house.anna.send("GET", "/").status == 200


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", ""])
def test_another_name_for_this_machine_is_not_answered(sqlite_house: House, host: str) -> None:
    """A page whose name is made to point here must not read what is here (DNS rebinding)."""
    for path in ("/", "/health", sqlite_house.path, "/nothing"):
        reply = sqlite_house.anna.send("GET", path, headers={"Host": host})
        assert reply.status == 400, reply.text[:300]
        assert "question" not in reply.text


def test_the_names_of_the_loopback_interface_are_answered(sqlite_house: House) -> None:
    port = sqlite_house.server.port
    for host in (f"127.0.0.1:{port}", f"localhost:{port}"):
        assert sqlite_house.anna.send("GET", "/", headers={"Host": host}).status == 200


# -- what is sent ---------------------------------------------------------------------------


def test_bodies_that_are_too_large_or_no_forms(house: House) -> None:
    question = house.anna.question(house.room)
    refused(house.anna.answer(house.room, question, "left", comment="x" * 2_000_000), 413)
    path = f"{house.path}/answers"
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    multipart = {"Content-Type": "multipart/form-data; boundary=x"}
    for body, headers in (
        (b"--x\r\n" * 1000, multipart),
        (b"{}", {"Content-Type": "application/json"}),
        (b"\xff\xfe\x00" * 100, form),
        (b"&" * 60_000, form),
        (b"a=1&" * 15_000, form),
        (b"%" * 1000, form),
        (b"", form),
    ):
        reply = house.anna.send("POST", path, body=body, headers=headers, json=True)
        assert reply.status in (400, 403, 413, 415, 422), (body[:20], reply.status)
        refused(reply, reply.status)
    assert house.votes() == []
    assert house.anna.answer(house.room, question, "left").status == 200


def test_a_body_without_an_end_is_cut_off(sqlite_house: House) -> None:
    """Chunks without a length that go on and on: refused after the limit, not kept in memory."""
    house = sqlite_house
    cookie = f"{COOKIE}={house.anna.jar[COOKIE]}"
    with socket.create_connection(("127.0.0.1", house.server.port), timeout=20) as raw:
        raw.sendall(
            f"POST {house.path}/answers HTTP/1.1\r\nHost: 127.0.0.1:{house.server.port}\r\n"
            f"Cookie: {cookie}\r\nContent-Type: application/x-www-form-urlencoded\r\n"
            "Transfer-Encoding: chunked\r\n\r\n".encode()
        )
        sent = 0
        chunk = b"10000\r\n" + b"a" * 0x10000 + b"\r\n"
        try:
            while sent < 200:
                raw.sendall(chunk)
                sent += 1
        except OSError:
            pass
        try:
            raw.shutdown(socket.SHUT_WR)
            answer = raw.recv(4096)
        except OSError:
            answer = b""
    assert b" 200 " not in answer.partition(b"\r\n")[0]
    if answer:
        assert b" 413 " in answer.partition(b"\r\n")[0]
    assert house.anna.send("GET", "/").status == 200


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("choice", "first"), ("choice", ""), ("choice", "left\x00"), ("choice", "LEFT"),
        ("strength", "9"), ("strength", "-1"), ("strength", "1e0"), ("strength", "٣"),
        ("reason", "because"), ("reason", "' OR 1=1 --"),
        ("seconds", "nan"), ("seconds", "inf"), ("seconds", "-5"), ("seconds", "1e999"),
        ("lease", "-1"), ("lease", "9" * 40), ("lease", "1; DROP TABLE events"), ("lease", "١"),
        ("key", ""), ("key", "k" * 5000), ("key", "a\x00b"), ("key", "a\nb"),
        ("comment", "c" * 2001), ("comment", "nul \x00"),
    ],
)  # fmt: skip
def test_a_bad_field_is_named(sqlite_house: House, field: str, value: str) -> None:
    question = sqlite_house.anna.question(sqlite_house.room)
    given: Json = {name: question[name] for name in ("csrf", "lease", "key")}
    fields = given | {"choice": "left", field: value}
    reply = sqlite_house.anna.send("POST", f"{sqlite_house.path}/answers", fields, json=True)
    refused(reply, 422)
    assert reply.json["error"]["field"] == field
    assert sqlite_house.votes() == []
    page = sqlite_house.anna.send("POST", f"{sqlite_house.path}/answers", fields)
    refused(page, 422)
    assert field in page.text


def test_comments_are_kept_as_they_are(house: House) -> None:
    comment = "'; DROP TABLE events; -- <script>alert(1)</script> {{7*7}} \u202e \U0001f600 é"
    question = house.anna.question(house.room)
    assert house.anna.answer(house.room, question, "left", comment=comment).status == 200
    with opened(house.url) as store:
        [vote] = [event for event in store.events(house.room) if event.kind == "vote"]
    assert vote.payload["comment"] == comment
    page = house.lea.send("GET", f"{house.path}/team").text
    assert "<script>alert" not in page


PATHS = [
    "/tasks/nothing", "/tasks/room'--", "/tasks/room%00", "/tasks/..%2f..%2fetc%2fpasswd",
    "/tasks/%2e%2e/%2e%2e/etc/passwd", "/static/../../../../etc/passwd",
    "/static/..%2f..%2f..%2f..%2fetc%2fpasswd", "/static/%2e%2e/app.py", "/static//etc/passwd",
    "/media/..%2f..%2fetc%2fpasswd", "/media/0", "/media/" + "a" * 64, "/media/%00",
    "/enter", "/enter/", "/docs", "/openapi.json", "/.git/config", "/.env", "//evil.example",
    "/tasks/room/team/../votes.jsonl/x", "/tasks/" + "x" * 5000, "/%ff%fe", "/tasks/%F0%9F%98%80",
    "/tasks/room/votes.jsonl%00.css", "/static/", "/static",
]  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
def test_paths_that_lead_nowhere(sqlite_house: House, path: str) -> None:
    for who in (sqlite_house.lea, sqlite_house.nobody()):
        reply = who.send("GET", path)
        refused(reply, reply.status)
        assert reply.status in (400, 401, 403, 404, 405), reply.status
        assert "root:" not in reply.text
        assert "evil.example" not in reply.headers.get("location", "")


@pytest.mark.parametrize("raw", [
    b"GET / HTTP/1.1\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"GET /" + b"x" * 200_000 + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n" + b"X: y\r\n" * 20_000 + b"\r\n",
    b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: -1\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n"
    b"\r\n0\r\n\r\nGET /health HTTP/1.1\r\nHost: x\r\n\r\n",
    b"POST /tasks/room/answers HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1_0\r\n\r\n",
])  # fmt: skip
def test_requests_that_are_none(sqlite_house: House, raw: bytes) -> None:
    """Nothing of this is answered with a page, and the server goes on."""
    with socket.create_connection(("127.0.0.1", sqlite_house.server.port), timeout=10) as wire:
        try:
            wire.sendall(raw)
            wire.shutdown(socket.SHUT_WR)
            answer = wire.recv(65_536)
        except OSError:
            answer = b""
    assert b" 200 " not in answer.partition(b"\r\n")[0]
    assert b"Traceback" not in answer
    assert sqlite_house.server.healthy()


# -- headers --------------------------------------------------------------------------------


def addresses(app: Any, room: str, prefix: str = "") -> list[str]:
    """Every address of the app, with something in place of what varies."""
    found: list[str] = []
    for route in app.routes:
        path = prefix + re.sub(r"\{task[^}]*\}", room, route.path)
        path = re.sub(r"\{[^}]*\}", "x", path)
        found += addresses(route, room, path) if getattr(route, "routes", None) else [path]
    return found


def test_every_answer_carries_the_headers(tmp_path: Path) -> None:
    from prefopt.labelling.web.app import create_app

    with Server(f"sqlite:///{tmp_path / 'votes.db'}", tmp_path) as server:
        house = House(server)
        with opened(house.url) as store:
            paths = addresses(create_app(store), house.room)
        assert len(paths) >= 12 and f"{house.path}/team" in paths
        for who in (house.lea, house.nobody()):
            for path in [*paths, "/nothing", "/static/nothing.css"]:
                for method in ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "TRACE"):
                    if (method, path) == ("POST", "/leave"):
                        continue
                    reply = who.send(method, path, {} if method == "POST" else None)
                    assert reply.status != 500, (method, path)
                    check_headers(reply, f"{method} {path}")
        for reply in (
            house.nobody().send("GET", "/", headers={"Host": "evil.example"}),
            house.anna.send("POST", f"{house.path}/answers", body=b"x" * 200_000),
        ):
            assert reply.status in (400, 413)
            check_headers(reply, str(reply.status))


def check_headers(reply: Reply, where: str) -> None:
    headers = reply.headers
    assert HEADERS.items() <= headers.items(), where
    policy = {
        part.split()[0]: part.split()[1:] for part in headers["content-security-policy"].split(";")
    }
    assert policy["default-src"] == ["'none'"], where
    assert policy["frame-ancestors"] == ["'none'"], where
    assert policy["base-uri"] == ["'none'"] and policy["form-action"] == ["'self'"], where
    allowed = {source for sources in policy.values() for source in sources}
    assert allowed <= {"'none'", "'self'"}, where
    if "/static/" not in where and "/media/" not in where:
        assert headers["cache-control"] == "no-store", where
    assert "server" not in headers or "/" not in headers["server"]
    assert "x-powered-by" not in headers
    assert "access-control-allow-origin" not in headers, where


def test_static_files_are_kept_by_content(sqlite_house: House) -> None:
    page = sqlite_house.nobody().send("GET", "/").text
    found = set(re.findall(r'(?:href|src)="(/static/[^"]+)"', page))
    assert found
    for path in found:
        reply = sqlite_house.nobody().send("GET", path)
        assert reply.status == 200
        assert "immutable" in reply.headers["cache-control"]
    assert not re.search(r"(href|src|action)=\"https?:", page)
    assert "style=" not in page and "onclick" not in page


# -- how often ------------------------------------------------------------------------------


def test_sign_in_is_limited_over_all_processes(database_url: str, tmp_path: Path) -> None:
    with opened(database_url) as store:
        make_task(store, "room", plain_items(1))
        good = link_of(store, "anna")
    with Server(database_url, tmp_path, processes=4) as server:
        started = time.monotonic()
        replies = []
        for number in range(40):  # each on a connection of its own: any of the four takes it
            stranger = Visitor(server.port)
            replies.append(stranger.enter(f"{number:043d}"))
            stranger.close()
        assert time.monotonic() - started < 50
        statuses = [reply.status for reply in replies]
        assert statuses == [403] * 10 + [429] * 30
        assert int(replies[-1].headers["retry-after"]) >= 1
        refused(Visitor(server.port).send("GET", f"/enter/{'y' * 43}"), 429)
        # A good link is not told from a bad one by trying on.
        assert Visitor(server.port).enter(good).status == 429
        assert "Traceback" not in server.log.read_text()


# -- where it listens -----------------------------------------------------------------------


def test_it_listens_elsewhere_only_when_told_so_twice(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'votes.db'}"
    with opened(url) as store:
        make_task(store, "room", plain_items(1))
    command = [sys.executable, "-m", "prefopt", "label", "serve", "--db", url, "--host", "0.0.0.0",
               "--port", str(free_port())]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2, done.stderr
    assert "TLS" in done.stderr or "https" in done.stderr.lower()
    assert "Traceback" not in done.stderr


def test_by_default_only_this_machine_is_listened_to(sqlite_house: House) -> None:
    port = f"{sqlite_house.server.port:04X}"
    listening = [
        line.split()[1]
        for table in ("tcp", "tcp6")
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]
        if line.split()[3] == "0A" and line.split()[1].endswith(f":{port}")
    ]
    assert set(listening) == {f"0100007F:{port}"}


# -- what lies on disk ----------------------------------------------------------------------


def secrets_of(house: House) -> list[bytes]:
    """Everything that opens a door: links, used and not, sessions, words against forgery."""
    with opened(house.url) as store:
        unused = link_of(store, f"gil-{house.room}")
    question = house.anna.question(house.room)
    assert house.anna.answer(house.room, question, "left").status == 200
    visitors = (house.anna, house.ben, house.lea)
    found = [*house.tokens.values(), unused, question["csrf"]]
    return [secret.encode() for secret in [*found, *(who.jar[COOKIE] for who in visitors)]]


def holds(folder: Path, secrets: list[bytes]) -> list[str]:
    """Files below a folder in which a secret can be read."""
    return [
        str(path)
        for path in folder.rglob("*")
        if path.is_file() and any(secret in path.read_bytes() for secret in secrets)
    ]


def test_no_secret_lies_in_the_database_or_the_log(tmp_path: Path) -> None:
    with Server(f"sqlite:///{tmp_path / 'votes.db'}", tmp_path) as server:
        secrets = secrets_of(House(server))
        (tmp_path / "control").write_bytes(b"x" + secrets[0])
        assert holds(tmp_path, secrets) == [str(tmp_path / "control")]
        assert (
            b"first answer to 1"
            in (tmp_path / "votes.db").read_bytes() + (tmp_path / "votes.db-wal").read_bytes()
        )


def test_no_secret_lies_in_postgresql(fresh_postgresql: Cluster, tmp_path: Path) -> None:
    """Neither in its tables nor in its log of changes, nor in what either server says."""
    with Server(fresh_postgresql.create(), tmp_path) as server:
        secrets = secrets_of(House(server))
    fresh_postgresql.stop()
    assert holds(fresh_postgresql.folder / "data", [b"first answer to 1"])
    assert holds(fresh_postgresql.folder, secrets) == []
    assert holds(tmp_path, [*secrets, fresh_postgresql.password.encode()]) == []


def test_the_database_file_is_the_owners(sqlite_house: House) -> None:
    """Others on the machine need not read votes and names."""
    file = Path(sqlite_house.url.removeprefix("sqlite:///"))
    found = list(file.parent.glob(f"{file.name}*"))
    assert file in found
    for path in found:
        assert path.stat().st_mode & 0o077 == 0, oct(path.stat().st_mode)


# -- a slow or silent visitor ---------------------------------------------------------------


def test_silent_connections_do_not_keep_others_out(sqlite_house: House) -> None:
    wires = [socket.create_connection(("127.0.0.1", sqlite_house.server.port)) for _ in range(200)]
    try:
        for wire in wires:
            wire.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: ")
        started = time.monotonic()
        assert sqlite_house.anna.send("GET", sqlite_house.path).status == 200
        assert time.monotonic() - started < 2
    finally:
        for wire in wires:
            wire.close()
