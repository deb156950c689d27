"""The page's own script, where things go wrong: nothing that was answered is lost."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.browser import OpenContext
from tests.test_labelling_browser import asked, begin, moves, until

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext, Page

    from tests.served import Room


def trouble(page: Page) -> str:
    return "".join(page.get_by_role("alert").all_inner_texts())


def test_an_answer_on_its_way_survives_a_reload(room: Room, open_context: OpenContext) -> None:
    from tests.served import plain_items

    task = room.task(plain_items(3))
    name, token = room.person()
    page = begin(open_context(), room, token, task)
    page.on("dialog", lambda dialog: dialog.accept())  # whether to leave although it is not saved
    shown = asked(page)
    page.route("**/answers", lambda route: route.abort())
    page.keyboard.press("4")
    until(page, lambda: "Not saved yet" in trouble(page), "a word about it")
    page.reload()
    until(page, lambda: "Not saved yet" in trouble(page), "another try after the reload")
    assert asked(page) == shown and room.said(task, name) == []
    page.unroute("**/answers")
    until(page, lambda: asked(page) != shown, "another question")
    assert [one.pressed for one in room.said(task, name)] == ["both_bad"]
    page.reload()
    assert asked(page) != shown
    assert len(room.said(task, name)) == 1


def test_who_was_signed_out_comes_back_and_nothing_is_lost(
    room: Room, open_context: OpenContext
) -> None:
    from tests.served import plain_items

    task = room.task(plain_items(3))
    name, token = room.person()
    context: BrowserContext = open_context()
    page = begin(context, room, token, task)
    shown = asked(page)
    cookies = context.cookies()
    context.clear_cookies()
    page.keyboard.press("1")
    until(page, lambda: "signed out" in trouble(page), "a word about it")
    assert asked(page) == shown and room.said(task, name) == []
    context.add_cookies(cookies)  # type: ignore[arg-type]
    page.reload()
    until(page, lambda: asked(page) != shown, "another question")
    assert [one.pressed for one in room.said(task, name)] == ["left"]


def test_texts_as_they_were_written(room: Room, open_context: OpenContext) -> None:
    from prefopt.labelling.words import NewItem
    from prefopt.records import Completion

    item = NewItem("*p*", Completion("**one**"), Completion("**two**"))
    task = room.task([item, NewItem("*q*", item.first, item.second, priority=1)])
    _, token = room.person()
    page = begin(open_context(), room, token, task)
    assert "**" not in page.locator("#left").inner_text() and asked(page) == "p"
    page.keyboard.press("w")
    assert "**" in page.locator("#left").inner_text() and asked(page) == "*p*"
    moves(page, lambda: page.keyboard.press("3"))
    assert asked(page) == "*q*"  # it stays as somebody wants it
    page.get_by_text("As written").click()
    assert asked(page) == "q"


def test_guidelines_open_beside_the_question_and_keys_rest(
    room: Room, open_context: OpenContext
) -> None:
    from tests.served import plain_items

    task = room.task(plain_items(2), guidelines="Be **fair**.")
    name, token = room.person()
    page = begin(open_context(), room, token, task)
    page.get_by_role("button", name="Guidelines", exact=True).click()
    panel = page.get_by_role("dialog", name="Guidelines")
    assert "Be fair." in panel.inner_text()
    page.keyboard.press("1")
    page.wait_for_timeout(200)
    assert room.said(task, name) == []
    page.keyboard.press("Escape")
    until(page, lambda: panel.count() == 0, "the panel's end")
    moves(page, lambda: page.keyboard.press("1"))
    assert [one.pressed for one in room.said(task, name)] == ["left"]


def test_details_stay_open_for_those_who_want_it(room: Room, open_context: OpenContext) -> None:
    from tests.served import plain_items

    task = room.task(plain_items(3))
    name, token = room.person()
    page = begin(open_context(), room, token, task)
    page.keyboard.press("d")
    page.get_by_label("Keep this open").check()
    page.get_by_label("much better").check()
    page.keyboard.press("2")
    assert room.said(task, name) == []
    moves(page, lambda: page.keyboard.press("Enter"))
    assert page.locator("[name=comment]").is_visible()
    page.keyboard.press("3")  # a tie has no strength: its field is no part of the answer
    assert page.get_by_label("much better").is_disabled()
    moves(page, page.get_by_role("button", name="Send answer", exact=True).click)
    assert [(one.pressed, one.payload["strength"]) for one in room.said(task, name)] == [
        ("right", 3), ("tie", None),
    ]  # fmt: skip
