"""The web app of the labelling room, on a real store: what it answers, and whom it refuses."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from prefopt.labelling import statistics
from prefopt.labelling.database import open_database
from prefopt.labelling.refusals import AwayError
from prefopt.labelling.store import Store
from prefopt.labelling.web import guard, teams
from prefopt.labelling.web.app import create_app
from prefopt.labelling.web.guard import LIMIT
from prefopt.labelling.words import Annotator, NewItem, Task
from prefopt.records import Completion, Message
from tests.clock import Clock

JSON = {"accept": "application/json"}
PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(100))


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[Store]:
    database = open_database(f"sqlite:///{tmp_path / 'votes.db'}")
    made = Store(database, clock)
    made.add_task(Task("kind", "# Be *fair*", gold_share=0, repeat_share=0))
    made.add_items("kind", [item(n) for n in range(4)])
    yield made
    database.close()


def item(number: int, **more: Any) -> NewItem:
    first, second = Completion(f"one {number}", source="model-a"), Completion(f"two {number}")
    return NewItem(f"question {number}", first, second, priority=number, **more)


Client = Callable[..., TestClient]


@pytest.fixture
def client(store: Store) -> Iterator[Client]:
    """`client(name, role)` is somebody's browser; without a name nobody is signed in."""
    opened = []

    def make(name: str | None = None, role: Any = "annotator", **options: Any) -> TestClient:
        made = TestClient(create_app(store, **options), follow_redirects=False)
        made.__enter__()
        opened.append(made)
        if name is not None:
            link = store.issue_link(person(store, name, role))
            assert made.post(f"/enter/{link}").status_code == 303
        return made

    yield make
    for made in opened:
        made.__exit__(None, None, None)


def person(store: Store, name: str, role: Any = "annotator") -> Annotator:
    known = {one.name: one for one in store.annotators()}
    return known.get(name) or store.add_annotator(name, role)


def ask(browser: TestClient, task: str = "kind") -> dict[str, Any]:
    reply = browser.get(f"/tasks/{task}", headers=JSON)
    assert reply.status_code == 200, reply.text
    found: dict[str, Any] = reply.json()
    return found


def fields(question: dict[str, Any], choice: str = "left", **more: Any) -> dict[str, Any]:
    return {name: question[name] for name in ("csrf", "lease", "key")} | {"choice": choice, **more}


def send(browser: TestClient, form: dict[str, Any], *, task: str = "kind", **headers: str) -> Any:
    return browser.post(f"/tasks/{task}/answers", data=form, headers=JSON | headers)


def votes(store: Store, task: str = "kind") -> list[str]:
    return [event.payload["said"] for event in store.events(task) if event.kind == "vote"]


class Page(HTMLParser):
    """Forms of a page with their fields, and everything by id."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.forms: list[dict[str, Any]] = []
        self.ids: dict[str, dict[str, str | None]] = {}
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append((tag, found))
        if found.get("id"):
            assert found["id"] not in self.ids, "an id is there twice"
            self.ids[str(found["id"])] = found
        if tag == "form":
            self.forms.append({"action": found.get("action"), "fields": {}})
        name = found.get("name")
        if tag == "input" and name and found.get("type") == "hidden":
            self.forms[-1]["fields"][name] = found["value"]

    def form(self, ends: str) -> dict[str, Any]:
        return next(form for form in self.forms if str(form["action"]).endswith(ends))


# -- signing in --------------------------------------------------------------------------------


def test_a_link_is_used_by_its_button_only(store: Store, client: Client) -> None:
    browser = client()
    link = store.issue_link(store.add_annotator("Ann <b>"))
    for _ in range(2):
        page = browser.get(f"/enter/{link}")
        assert page.status_code == 200 and "set-cookie" not in page.headers
        assert "Ann &lt;b&gt;" in page.text and "Ann <b>" not in page.text
    reply = browser.post(f"/enter/{link}")
    assert (reply.status_code, reply.headers["location"]) == (303, "/")
    cookie = reply.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=strict" in cookie and "Path=/" in cookie
    assert "Secure" not in cookie
    for method in ("GET", "POST"):
        used = client().request(method, f"/enter/{link}")
        assert used.status_code == 403 and "used already" in used.text
    assert "kind" in browser.get("/").text


def test_behind_https_cookies_are_for_https(store: Store, client: Client) -> None:
    reply = client(secure=True).post(f"/enter/{store.issue_link(store.add_annotator('ann'))}")
    assert "Secure" in reply.headers["set-cookie"]
    assert reply.headers["strict-transport-security"].startswith("max-age=")


def test_attempts_are_limited_for_an_address(store: Store, client: Client, clock: Clock) -> None:
    good = store.issue_link(store.add_annotator("ann"))
    browser = client()
    replies = [browser.request(("GET", "POST")[n % 2], f"/enter/{n}") for n in range(12)]
    assert [reply.status_code for reply in replies] == [403] * 10 + [429] * 2
    assert replies[-1].headers["retry-after"] == "60"
    assert browser.post(f"/enter/{good}").status_code == 429  # nor is a good one told from them
    clock.now += 61
    assert browser.post(f"/enter/{good}").status_code == 303


def test_good_links_do_not_count(store: Store, client: Client) -> None:
    for n in range(15):  # a team behind one address
        client(f"annotator {n}")


def test_nobody_sees_anything(client: Client) -> None:
    for path in (
        "/",
        "/tasks/kind",
        "/tasks/kind/guidelines",
        "/tasks/kind/team",
        "/media/" + "a" * 64,
    ):
        page, found = client().get(path), client().get(path, headers=JSON)
        assert page.status_code == found.status_code == 401
        assert "You are not signed in" in page.text and "open the link" in page.text
        assert found.json()["error"]["type"] == "NotSignedInError"


def test_leaving_ends_the_session(store: Store, client: Client) -> None:
    browser = client("ann")
    csrf = browser.get("/", headers=JSON).json()["csrf"]
    assert browser.post("/leave", data={"csrf": "x"}).status_code == 403
    cookie = browser.cookies["prefopt_session"]
    reply = browser.post("/leave", data={"csrf": csrf})
    assert (reply.status_code, reply.headers["location"]) == (303, "/left")
    assert "signed out" in browser.get("/left").text
    assert store.who(cookie) is None and "prefopt_session" not in browser.cookies


# -- the question ------------------------------------------------------------------------------


def test_a_question_for_programs(client: Client) -> None:
    question = ask(client("ann"))
    assert question["prompt"] == [{"role": "text", "content": "question 0"}]
    assert {question["left"], question["right"]} == {"one 0", "two 0"}
    assert question["progress"] == {"wanted": 4, "votes": 0, "done": 0, "items": 4, "mine": 0}
    assert question["repeat"] == 0 and question["before"] is None and question["done"] is False
    assert len(question["csrf"]) == 64 and len(question["key"]) >= 16
    assert "model-a" not in str(question)


def test_a_question_for_people(client: Client) -> None:
    browser = client("ann")
    text = browser.get("/tasks/kind").text
    page = Page(text)
    assert {"prompt", "left", "right", "progress", "answer", "undo"} <= set(page.ids)
    assert page.ids["progress"]["value"] == "0" and page.ids["progress"]["max"] == "4"
    choices = [found["value"] for tag, found in page.tags if found.get("name") == "choice"]
    assert choices == ["left", "right", "tie", "both_bad", "skip"]
    first = next(found for tag, found in page.tags if tag == "button" and "type" in found)
    assert "disabled" in first  # so that Enter in a field is not an answer
    assert "question 0" in text and "<em>fair</em>" in text
    assert "model-a" not in text and "gold" not in text
    assert ask(browser)["lease"] == int(page.form("/answers")["fields"]["lease"])


def test_the_whole_path_without_scripts(store: Store, client: Client) -> None:
    """Only what a browser does with forms."""
    browser = client("ann")
    for choice in ("left", "tie", "skip", "right"):
        form = Page(browser.get("/tasks/kind").text).form("/answers")
        reply = browser.post(form["action"], data=form["fields"] | {"choice": choice})
        assert (reply.status_code, reply.headers["location"]) == (303, "/tasks/kind")
    done = browser.get("/tasks/kind")
    assert "All done" in done.text and 'id="prompt"' not in done.text
    form = Page(done.text).form("/undo")
    again = browser.post(form["action"], data=form["fields"])
    assert again.status_code == 200
    assert "You took back <b>Right is better</b>" in again.text and "question 3" in again.text
    form = Page(again.text).form("/answers")
    browser.post(form["action"], data=form["fields"] | {"choice": "both_bad"})
    assert len(votes(store)) == 4 and votes(store)[-1] == "both_bad"


def test_sides_are_told_in_terms_of_the_screen(store: Store, client: Client) -> None:
    browser = client("ann")
    expected = []
    for n in range(4):
        question = ask(browser)
        expected.append("first" if question["left"] == f"one {n}" else "second")
        assert send(browser, fields(question, "left")).status_code == 200
    assert votes(store) == expected


def test_everything_that_is_said_arrives(store: Store, client: Client) -> None:
    browser = client("ann")
    more = {
        "strength": "2",
        "reason": "clear",
        "flag": "1",
        "comment": " a\r\n<b> ",
        "seconds": "4.25",
    }
    reply = send(browser, fields(ask(browser), "right", **more))
    assert reply.status_code == 200
    [event] = [event for event in store.events("kind") if event.kind == "vote"]
    assert reply.json()["event"] == event.id and reply.json()["repeated"] is False
    assert reply.json()["next"]["prompt"][0]["content"] == "question 1"
    said = {
        name: event.payload[name]
        for name in ("strength", "reason", "flagged", "comment", "seconds")
    }
    assert said == {
        "strength": 2, "reason": "clear", "flagged": True, "comment": "a\n<b>", "seconds": 4.25,
    }  # fmt: skip


def test_the_same_request_counts_once(store: Store, client: Client) -> None:
    browser = client("ann")
    form = fields(ask(browser))
    first, again = send(browser, form).json(), send(browser, form | {"seconds": "9"}).json()
    assert again["repeated"] and first["event"] == again["event"]
    assert len(votes(store)) == 1


def test_undo_shows_what_was_said(client: Client) -> None:
    browser = client("ann")
    question = ask(browser)
    more = {"strength": "3", "reason": "safe", "comment": "</textarea>x"}
    following = send(browser, fields(question, "left", **more)).json()["next"]
    form = {"csrf": following["csrf"], "key": following["key"]}
    for _ in range(2):  # the same request twice takes back one answer
        undone = browser.post("/tasks/kind/undo", data=form, headers=JSON).json()
        assert undone["undone"] and undone["next"]["before"]["choice"] == "left"
        assert undone["next"]["left"] == question["left"]
    page = browser.post("/tasks/kind/undo", data=form).text
    assert "&lt;/textarea&gt;x</textarea>" in page
    assert re.search(r'value="3" checked', page) and re.search(r'value="safe" selected', page)


def test_what_was_said_is_told_in_terms_of_the_screen(store: Store, client: Client) -> None:
    browser = client("ann")
    for n, choice in enumerate(("left", "right", "tie", "skip")):
        following = send(browser, fields(ask(browser), choice)).json()["next"]
        form = {"csrf": following["csrf"], "key": f"undo {n}".replace(" ", "-")}
        before = browser.post("/tasks/kind/undo", data=form, headers=JSON).json()["next"]
        assert before["before"]["choice"] == choice
        other = {"left": "right", "right": "left"}.get(choice, "left")
        send(browser, fields(before, other))
    swaps = {event.payload["swapped"] for event in store.events("kind") if event.kind == "lease"}
    assert swaps == {True, False}  # else the sides would not have been put to the test


def test_undo_with_nothing_to_undo(client: Client) -> None:
    browser = client("ann")
    question = ask(browser)
    form = {"csrf": question["csrf"], "key": "u"}
    refusal(browser.post("/tasks/kind/undo", data=form | {"csrf": "x"}, headers=JSON), 403)
    assert browser.post("/tasks/kind/undo", data=form, headers=JSON).json()["undone"] is False
    assert browser.post("/tasks/kind/undo", data=form).status_code == 303


def test_conversations_show_roles_and_fold_when_long(store: Store, client: Client) -> None:
    store.add_task(Task("talk", gold_share=0, repeat_share=0))
    said = [Message(("user", "assistant")[n % 2], f"turn {n} " * 100) for n in range(6)]
    prompt = (Message("system", "be kind"), *said, Message("wizard\u202e", "last turn"))
    short = (Message("user", "hi"), Message("assistant", "ho"), Message("user", "hm"))
    two = Completion("a"), Completion("b")
    store.add_items("talk", [NewItem(prompt, *two), NewItem(short, *two, priority=1)])
    browser = client("ann")
    text = browser.get("/tasks/talk").text
    fold = re.search(r'<details class="earlier">(.*?)</details>', text, re.DOTALL)
    assert (
        fold and "7 earlier turns" in fold[1] and "System" in fold[1] and "last turn" not in fold[1]
    )
    assert 'wizard<span class="unseen">U+202E</span>' in text
    question = ask(browser, "talk")
    assert [turn["role"] for turn in question["prompt"]][:3] == ["system", "user", "assistant"]
    send(browser, fields(question), task="talk")
    assert '<details class="earlier">' not in browser.get("/tasks/talk").text


def test_hostile_texts_are_only_text(store: Store, client: Client) -> None:
    evil = "<script>alert(1)</script></section></main><img src=x onerror=y> {{ 7*7 }} \u202e"
    store.add_task(Task("evil", evil, gold_share=0, repeat_share=0))
    store.add_items("evil", [NewItem((Message(evil, evil),), Completion(evil), Completion("`b`"))])
    browser = client("lea", "lead")
    send(browser, fields(ask(browser, "evil"), comment=evil, flag="1"), task="evil")
    pages = [browser.get(f"/tasks/evil{path}").text for path in ("", "/guidelines", "/team")]
    form = {"csrf": ask(browser, "evil")["csrf"], "key": "u"}
    pages.append(browser.post("/tasks/evil/undo", data=form).text)
    for text in pages:
        tags = [(tag, found) for tag, found in Page(text).tags if tag in ("script", "img")]
        assert [found.get("src", "")[:8] for _, found in tags] == ["/static/"]
        text = re.sub(r"<textarea.*?</textarea>", "", text, flags=re.DOTALL)  # one's own words
        assert "\u202e" not in text and "49" not in re.sub(r"/static/\S+|value=\S+", "", text)
        assert text.count("<main") == text.count("</main>") == 1


# -- refusals ----------------------------------------------------------------------------------


def refusal(reply: Any, status: int) -> dict[str, Any]:
    assert reply.status_code == status, reply.text
    error: dict[str, Any] = reply.json()["error"]
    assert {"type", "message", "field", "value", "remedy"} <= set(error)
    return error


def test_forms_of_elsewhere_are_refused(store: Store, client: Client) -> None:
    ann, ben = client("ann"), client("ben")
    form, bens = fields(ask(ann)), ask(ben)
    for csrf in ("", "x", bens["csrf"], "é"):
        assert refusal(send(ann, form | {"csrf": csrf}), 403)["field"] == "csrf"
    for headers in (
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"origin": "https://evil.example"},
    ):
        refusal(send(ann, form, **headers), 403)
    assert votes(store) == []
    for headers in (
        {"origin": "null"},
        {"origin": "http://testserver"},
        {"sec-fetch-site": "none"},
    ):
        assert send(ann, form, **headers).status_code == 200


def test_a_lease_is_its_owners(store: Store, client: Client) -> None:
    ann, ben = client("ann"), client("ben")
    anns, bens = ask(ann), ask(ben)
    assert refusal(send(ben, fields(bens) | {"lease": anns["lease"]}), 409)["type"] == "LeaseError"
    page = ben.post("/tasks/kind/answers", data=fields(bens) | {"lease": anns["lease"]})
    assert page.status_code == 409 and "no longer yours" in page.text
    assert 'href="/tasks/kind"' in page.text  # the way on
    assert votes(store) == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("choice", "first"), ("choice", None), ("strength", "4"), ("strength", "1.5"),
        ("reason", "because"), ("flag", "maybe"), ("comment", "x" * 2001), ("comment", "\0"),
        ("seconds", "-1"), ("seconds", "nan"), ("seconds", "inf"), ("seconds", "soon"),
        ("lease", "1e3"), ("lease", "-1"), ("lease", None), ("key", ""), ("key", "a b"),
        ("key", "k" * 129),
    ],
)  # fmt: skip
def test_a_field_that_cannot_be_is_named(
    store: Store, client: Client, field: str, value: str | None
) -> None:
    browser = client("ann")
    form = {**fields(ask(browser), comment="my own words"), field: value}
    form = {name: text for name, text in form.items() if text is not None}
    error = refusal(send(browser, form), 422)
    assert error["field"] == field and error["remedy"]
    page = browser.post("/tasks/kind/answers", data=form)
    assert page.status_code == 422 and f"{field}: " in page.text
    if field not in ("lease", "comment"):
        assert "my own words" in page.text  # nothing that was typed is lost
    assert votes(store) == []


def test_a_strength_needs_a_side(client: Client) -> None:
    browser = client("ann")
    assert (
        refusal(send(browser, fields(ask(browser), "tie", strength="2")), 422)["field"]
        == "strength"
    )
    assert send(browser, fields(ask(browser), "tie", strength="")).status_code == 200


def test_what_is_not_there(client: Client) -> None:
    browser = client("ann")
    for path in (
        "/tasks/none",
        "/tasks/none/team",
        "/nothing",
        "/media/" + "a" * 64,
        "/static/x/room.js",
    ):
        assert refusal(browser.get(path, headers=JSON), 403 if path.endswith("team") else 404)
        assert "/tasks" in browser.get(path).text or "To the tasks" in browser.get(path).text
    assert refusal(browser.delete("/", headers=JSON), 405)
    form = fields(ask(browser))
    refusal(send(browser, form, task="none"), 404)


def test_too_much_is_not_read(client: Client) -> None:
    browser = client("ann")
    form = fields(ask(browser), comment="x" * LIMIT)
    assert refusal(send(browser, form), 413)["remedy"] == "shorten the comment"

    def endless() -> Iterator[bytes]:
        yield from [b"x" * 1000] * (LIMIT // 1000 + 2)

    headers = JSON | {"content-type": "application/x-www-form-urlencoded"}
    refusal(browser.post("/tasks/kind/answers", content=endless(), headers=headers), 413)


def test_only_forms_are_read(client: Client) -> None:
    browser = client("ann")
    refusal(browser.post("/tasks/kind/answers", json={}, headers=JSON), 415)
    headers = JSON | {"content-type": "application/x-www-form-urlencoded"}
    refusal(browser.post("/tasks/kind/answers", content=b"\xff=1", headers=headers), 422)
    refusal(browser.post("/tasks/kind/answers", content=b"a=1&" * 99, headers=headers), 422)


def test_when_the_database_is_away(
    store: Store, client: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    browser = client("ann")
    form = fields(ask(browser))

    def away(*_: object) -> None:
        raise AwayError("postgresql://me@db.internal cannot be reached", remedy="try again")

    monkeypatch.setattr(store, "answer", away)
    reply = send(browser, form)
    assert refusal(reply, 503)["type"] == "AwayError"
    assert "db.internal" not in reply.text and "db.internal" in caplog.text
    assert reply.headers["retry-after"] == "2"
    assert "does not answer" in browser.post("/tasks/kind/answers", data=form).text
    monkeypatch.undo()
    assert send(browser, form).json()["repeated"] is False


def test_a_mistake_of_ours_says_nothing_of_the_inside(
    store: Store, client: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    browser = client("ann")

    def broken(*_: object) -> None:
        raise ZeroDivisionError("secret inside")

    monkeypatch.setattr(store, "look", broken)
    monkeypatch.setattr(store, "next", broken)
    reply = browser.get("/tasks/kind")
    assert (
        reply.status_code == 500 and "secret" not in reply.text and "nobody foresaw" in reply.text
    )
    assert reply.headers["content-security-policy"]
    assert "secret inside" in caplog.text
    browser.get("/enter/the-token")
    ours = [record for record in caplog.records if record.name.startswith("prefopt")]
    assert len(ours) == 2 and "the-token" not in str([record.getMessage() for record in ours])


def test_other_names_are_not_answered(client: Client) -> None:
    """Rebinding: somebody's own name, made to point to this machine."""
    browser = client("ann", hosts=("localhost", "127.0.0.1", "::1", "testserver"))
    for host in ("evil.example", "localhost.evil.example", "", "10.0.0.1", "local host"):
        assert refusal(browser.get("/", headers=JSON | {"host": host}), 400)["field"] == "host"
    for host in ("localhost:8000", "LOCALHOST", "127.0.0.1", "[::1]:8000"):
        assert browser.get("/", headers={"host": host}).status_code == 200
    anywhere = client(hosts=("localhost", "*"))
    assert anywhere.get("/left", headers={"host": "10.0.0.1:8000"}).status_code == 200
    assert anywhere.get("/left", headers={"host": "evil.example"}).status_code == 400


# -- headers and files ---------------------------------------------------------------------------


def test_headers_are_on_every_answer(store: Store, client: Client) -> None:
    browser = client("ann")
    replies = [
        browser.get("/"), browser.get("/nothing"), browser.delete("/"), browser.get("/tasks/kind"),
        browser.post("/tasks/kind/answers", content=b"x" * (LIMIT + 1)), client().get("/"),
        browser.get("/health"), client(hosts=("a",)).get("/"),
        browser.get("/tasks/kind", headers=JSON),
    ]  # fmt: skip
    assert {reply.status_code for reply in replies} >= {200, 400, 401, 404, 405, 413}
    for reply in replies:
        policy = reply.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'") and "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy and "*" not in policy
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert reply.headers["referrer-policy"] == "no-referrer"
        assert reply.headers["cache-control"] == "no-store"


def test_pages_need_nothing_but_this_server(store: Store, client: Client) -> None:
    """No inline script, no inline style, nothing of elsewhere: the policy would block it."""
    browser = client("lea", "lead")
    link = store.issue_link(store.add_annotator("new"))
    for path in ("/", "/tasks/kind", "/tasks/kind/team", "/tasks/kind/guidelines", f"/enter/{link}",
                 "/nothing", "/left"):  # fmt: skip
        page = Page(browser.get(path).text)
        for tag, found in page.tags:
            assert "style" not in found and not any(name.startswith("on") for name in found)
            assert tag != "style" and (tag != "script" or found["src"])
            for name in ("src", "href", "action"):
                assert str(found.get(name) or "/").startswith(("/", "#")), (tag, found)
        static = [
            found.get("href") or found.get("src")
            for tag, found in page.tags
            if "static" in str(found)
        ]
        assert len(static) == 3


def test_static_files_may_be_kept(client: Client) -> None:
    browser = client()
    text = browser.get("/left").text
    for name, kind in (
        ("room.css", "text/css"),
        ("room.js", "text/javascript"),
        ("icon.svg", "image/svg"),
    ):
        [address] = re.findall(rf'"(/static/[0-9a-f]+/{re.escape(name)})"', text)
        reply = browser.get(address)
        assert reply.status_code == 200 and reply.headers["content-type"].startswith(kind)
        assert "immutable" in reply.headers["cache-control"]
        assert browser.get(f"/static/0000/{name}").status_code == 404


def test_images_and_audio_of_known_types_are_shown(store: Store, client: Client) -> None:
    store.add_task(Task("seen", gold_share=0, repeat_share=0))
    png, svg = store.add_media(PNG, "image/png"), store.add_media(b"<svg/>", "image/svg+xml")
    ogg = store.add_media(b"OggS" + bytes(50), "audio/ogg")
    store.add_items("seen", [item(0, media=(png, ogg, svg))])
    browser = client("ann")
    assert [medium["type"] for medium in ask(browser, "seen")["media"]] == [
        "image/png",
        "audio/ogg",
    ]
    page = Page(browser.get("/tasks/seen").text)
    assert [found["src"] for tag, found in page.tags if tag == "img"] == [f"/media/{png}"]
    assert [found["src"] for tag, found in page.tags if tag == "audio"] == [f"/media/{ogg}"]
    reply = browser.get(f"/media/{png}")
    assert reply.content == PNG and reply.headers["content-type"] == "image/png"
    assert browser.get(f"/media/{svg}").status_code == 404
    part = browser.get(f"/media/{png}", headers={"range": "bytes=1-3"})
    assert (part.status_code, part.content) == (206, PNG[1:4])
    assert part.headers["content-range"] == f"bytes 1-3/{len(PNG)}"


# -- leads -------------------------------------------------------------------------------------


def test_the_team_is_for_leads(store: Store, client: Client) -> None:
    ann, lead = client("ann"), client("lea", "lead")
    for _ in range(3):
        send(ann, fields(ask(ann), comment="look <here>", flag="1", strength="1"))
    for path in ("team", "team.json", "votes.jsonl", "comparisons.jsonl"):
        assert (
            refusal(ann.get(f"/tasks/kind/{path}", headers=JSON), 403)["type"] == "LeadsOnlyError"
        )
        assert lead.get(f"/tasks/kind/{path}").status_code == 200
    page = lead.get("/tasks/kind/team").text
    assert "3 of 4 questions have their votes" in page
    assert "look &lt;here&gt;" in page and "ann" in page
    found = lead.get("/tasks/kind/team.json").json()
    assert found["progress"]["votes"] == 3 and found["annotators"][0]["annotator"] == "ann"
    lines = lead.get("/tasks/kind/votes.jsonl")
    assert "attachment" in lines.headers["content-disposition"]
    assert "look <here>" in lines.text and lines.text.endswith("\n")
    assert "Team" in lead.get("/").text and "Team" not in ann.get("/").text


def test_what_leads_see_is_counted_anew_when_something_happened(
    store: Store, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    ann, lead = client("ann"), client("lea", "lead")
    counted = []
    real = statistics.team
    monkeypatch.setattr(statistics, "team", lambda *given: counted.append(1) or real(*given))

    def votes() -> int:
        found: int = lead.get("/tasks/kind/team.json").json()["progress"]["votes"]
        return found

    assert (votes(), votes(), votes()) == (0, 0, 0)
    assert lead.get("/tasks/kind/team").status_code == 200 and len(counted) == 1
    send(ann, fields(ask(ann)))
    assert (votes(), votes()) == (1, 1) and len(counted) == 2
    store.change_task(replace(store.task("kind"), overlap=2))
    assert lead.get("/tasks/kind/team.json").json()["progress"]["wanted"] == 8
    # where it takes long, it may be a little old
    monkeypatch.setattr(teams, "_MUCH", -1.0)
    monkeypatch.setattr(teams, "_SPARED", 1e6)
    send(ann, fields(ask(ann)))
    send(ann, fields(ask(ann)))
    assert votes() == votes() == 3
    send(ann, fields(ask(ann)))
    assert votes() == 3
    # and while somebody's is counted, nobody waits
    monkeypatch.setattr(teams, "_MUCH", 1e6)
    app: Any = lead.app
    app.state.room.teams["kind"] = replace(app.state.room.teams["kind"], good=0.0)
    with app.state.room.counting:
        assert votes() == 3
    assert votes() == 4


def test_a_form_that_does_not_arrive_is_given_up(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    browser = client("ann")
    monkeypatch.setattr(guard, "PATIENCE", 0.2)

    async def post() -> list[Any]:
        sent: list[Any] = []
        parts = [{"type": "http.request", "body": b"csrf=", "more_body": True}]

        async def receive() -> Any:
            if not parts:
                await asyncio.sleep(60)
            return parts.pop()

        async def send(message: Any) -> None:
            sent.append(message)

        headers = [(b"host", b"x"), (b"accept", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": "/leave", "headers": headers,
                 "query_string": b"", "client": ("1.2.3.4", 5), "server": ("x", 80),
                 "scheme": "http", "http_version": "1.1", "root_path": ""}  # fmt: skip
        await asyncio.wait_for(browser.app(scope, receive, send), 10)
        return sent

    begin, body = asyncio.run(post())
    assert begin["status"] == 408
    assert json.loads(body["body"])["error"]["type"] == "TooSlowError"


def test_who_asks_late_for_a_body_that_is_there_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "PATIENCE", 0.1)
    coming = iter([{"type": "http.request", "body": b"a"}, {"type": "http.disconnect"}])

    async def receive() -> Any:
        await asyncio.sleep(0)
        return next(coming)

    async def late() -> list[str]:
        limited = guard._limited(receive)
        await asyncio.sleep(0.15)
        first = await limited()
        await asyncio.sleep(0.15)  # a long download, and then the browser is gone
        return [first["type"], (await limited())["type"]]

    assert asyncio.run(late()) == ["http.request", "http.disconnect"]


def test_health(client: Client, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    assert client().get("/health").json() == {"status": "ok"}

    def away() -> None:
        raise AwayError("the database cannot be reached")

    monkeypatch.setattr(store, "tasks", away)
    assert client().get("/health").status_code == 503
