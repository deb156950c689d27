"""The labelling room in a real browser: mouse, keyboard, phone, dark, and without JavaScript."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import parse_qs

import pytest

from tests.browser import OpenContext, faint, sideways, snapshot, watch

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext, Page, Route

    from tests.served import Room

BUTTONS = {
    "left": "Left is better",
    "right": "Right is better",
    "tie": "Tie",
    "both_bad": "Both bad",
    "skip": "Skip",
}
KEYS = {"left": "1", "right": "2", "tie": "3", "both_bad": "4", "skip": "s"}
PHONE = {
    "viewport": {"width": 390, "height": 844},
    "has_touch": True,
    "is_mobile": True,
    "device_scale_factor": 3,
}


def until(page: Page, happened: Callable[[], Any], what: str = "it") -> Any:
    """Wait for something; the page's own scripts may not be asked to, under its policy."""
    deadline = time.monotonic() + 10
    while not (found := happened()):
        assert time.monotonic() < deadline, f"{what} did not happen"
        page.wait_for_timeout(20)
    return found


def enter(context: BrowserContext, room: Room, token: str) -> Page:
    """Sign in by the link that somebody was sent."""
    page = context.new_page()
    page.goto(f"{room.server.address}/enter/{token}")
    page.get_by_role("button").first.click()
    page.wait_for_url(f"{room.server.address}/")
    return page


def begin(context: BrowserContext, room: Room, token: str, task: str) -> Page:
    """Sign in and go to the first question."""
    page = enter(context, room, token)
    page.goto(f"{room.server.address}/tasks/{task}")
    return page


def asked(page: Page) -> str:
    """The prompt on the screen, or nothing when all is done."""
    return str(_shown(page)["prompt"])


def _shown(page: Page) -> dict[str, Any]:
    found: dict[str, Any] = until(page, lambda: _look(page), "a question, or the end,")
    return found


def _look(page: Page) -> dict[str, Any] | None:
    from playwright.sync_api import Error

    try:
        found: dict[str, Any] | None = page.evaluate(
            """() => {
              const prompt = document.querySelector("#prompt");
              const lease = document.querySelector("input[name=lease]");
              return prompt && lease ? {prompt: prompt.innerText, lease: lease.value}
                : document.querySelector(".done") ? {prompt: "", lease: ""} : null;
            }"""
        )
        return found
    except Error:  # between two pages
        return None


def number(page: Page) -> int:
    """Of the question on the screen, in tasks of `plain_items`."""
    return int(re.findall(r"question (\d+)", asked(page))[0])


def moves(page: Page, act: Callable[[], object]) -> None:
    """Do something and wait for another question, or for the same one given out anew."""
    before = _shown(page)["lease"]
    act()
    until(page, lambda: _shown(page)["lease"] != before, "another question")


def press(page: Page, choice: str) -> None:
    """Click the button of an answer and wait for the next question."""
    moves(page, page.get_by_role("button", name=BUTTONS[choice], exact=True).click)


def undo(page: Page) -> None:
    moves(page, page.get_by_role("button", name="Undo", exact=True).click)


# -- the whole path -------------------------------------------------------------------------


@pytest.mark.parametrize("scripts", [True, False], ids=["scripts", "no scripts"])
def test_the_whole_path_with_the_mouse(
    room: Room, open_context: OpenContext, scripts: bool
) -> None:
    from tests.served import plain_items

    task = room.task(plain_items(6), guidelines="# Be fair\n\nRead **both** answers.")
    name, token = room.person()
    context = open_context(java_script_enabled=scripts)
    watched = watch(context)
    page = enter(context, room, token)
    page.get_by_role("link", name=re.compile(task)).first.click()
    page.wait_for_url(f"{room.server.address}/tasks/{task}")
    first = number(page)
    sides = {page.locator("#left").inner_text(), page.locator("#right").inner_text()}
    assert any(f"first answer to {first}" in side for side in sides)
    assert any(f"second answer to {first}" in side for side in sides)
    assert page.locator("#progress").get_attribute("value") in ("0", "0.0")
    pressed = []
    for choice in ("left", "right", "tie", "both_bad", "skip"):
        pressed.append((f"question {number(page)}", choice))
        press(page, choice)
    assert [(one.prompt, one.pressed) for one in room.said(task, name)] == pressed
    undo(page)  # the skip is taken back, and asked again
    assert f"question {number(page)}" == pressed[-1][0]
    press(page, "right")
    pressed[-1] = (pressed[-1][0], "right")
    pressed.append((f"question {number(page)}", "left"))
    press(page, "left")
    assert asked(page) == ""
    assert "done" in page.locator("main").inner_text().lower()
    assert [(one.prompt, one.pressed) for one in room.said(task, name)] == pressed
    assert all(0 < (one.payload["seconds"] or 0.01) < 60 for one in room.said(task, name))
    if scripts:
        assert all(one.payload["seconds"] for one in room.said(task, name))
    watched.quiet(room.server.address)


def test_everything_that_can_be_said_beside_the_choice(
    room: Room, open_context: OpenContext
) -> None:
    from tests.served import plain_items

    task = room.task(plain_items(2))
    name, token = room.person()
    page = begin(open_context(), room, token, task)
    open_details(page)
    fill_details(page)
    snapshot(page, "details")
    press(page, "right")
    [one] = room.said(task, name)
    assert one.pressed == "right"
    assert one.payload["strength"] == 2
    assert one.payload["reason"]
    assert one.payload["flagged"] is True
    assert one.payload["comment"] == "the second is <b>longer</b>"
    undo(page)
    assert page.locator("[name=comment]").input_value() == "the second is <b>longer</b>"


def open_details(page: Page) -> None:
    """Unfold what may be said beside the choice, if it is folded."""
    details = page.locator("details", has=page.locator("[name=comment]"))
    if details.count() and details.get_attribute("open") is None:
        details.locator("summary").first.click()


def fill_details(page: Page) -> None:
    strength = page.locator("[name=strength]")
    if strength.first.evaluate("e => e.tagName") == "SELECT":
        strength.select_option("2")
    else:
        page.locator("[name=strength][value='2']").check()
    reason = page.locator("[name=reason]")
    if reason.first.evaluate("e => e.tagName") == "SELECT":
        reason.select_option(index=1)
    else:
        page.locator("[name=reason]:not([value=''])").first.check()
    page.locator("[name=flag]").check()
    page.locator("[name=comment]").fill("the second is <b>longer</b>")


def test_the_whole_path_with_the_keyboard_alone(room: Room, open_context: OpenContext) -> None:
    from tests.served import plain_items

    task = room.task(plain_items(6))
    name, token = room.person()
    context = open_context()
    watched = watch(context)
    page = context.new_page()
    page.goto(f"{room.server.address}/enter/{token}")
    tab_to(page, lambda: focused(page)["tag"] == "BUTTON")
    page.keyboard.press("Enter")
    page.wait_for_url(f"{room.server.address}/")
    tab_to(page, lambda: task in (focused(page)["href"] or ""))
    page.keyboard.press("Enter")
    page.wait_for_url(f"{room.server.address}/tasks/{task}")
    pressed = []
    for choice in ("left", "right", "tie", "both_bad"):
        pressed.append((f"question {number(page)}", choice))
        moves(page, lambda choice=choice: page.keyboard.press(KEYS[choice]))
    skipped = number(page)
    moves(page, lambda: page.keyboard.press("S"))
    moves(page, lambda: page.keyboard.press("u"))
    assert number(page) == skipped
    pressed.append((f"question {skipped}", "tie"))
    moves(page, lambda: page.keyboard.press("3"))
    # By Tab to a button, and Enter on it.
    tab_to(page, lambda: focused(page)["text"].startswith("Right is better"))
    pressed.append((f"question {number(page)}", "right"))
    moves(page, lambda: page.keyboard.press("Enter"))
    assert [(one.prompt, one.pressed) for one in room.said(task, name)] == pressed
    watched.quiet(room.server.address)


def test_keys_are_letters_while_somebody_writes(room: Room, open_context: OpenContext) -> None:
    """A comment with digits and an s in it is not an answer; Ctrl and Alt are the browser's."""
    from tests.served import plain_items

    task = room.task(plain_items(3))
    name, token = room.person()
    page = begin(open_context(), room, token, task)
    before = asked(page)
    open_details(page)
    page.locator("[name=comment]").click()
    page.keyboard.type("1 2 3 4 s u")
    for keys in ("Control+1", "Alt+2", "Meta+3", "Control+s"):
        page.keyboard.press(keys)
    page.locator("h1, h2, #prompt").first.click()
    for keys in ("Control+1", "Alt+2", "Meta+3"):
        page.keyboard.press(keys)
    time.sleep(0.3)
    assert asked(page) == before
    assert room.said(task, name) == []
    # With the details open a key chooses, and Enter sends.
    page.keyboard.press("2")
    time.sleep(0.3)
    assert room.said(task, name) == []
    moves(page, lambda: page.keyboard.press("Enter"))
    [one] = room.said(task, name)
    assert (one.pressed, one.payload["comment"]) == ("right", "1 2 3 4 s u")


def test_a_key_that_is_held_down_answers_once(room: Room, open_context: OpenContext) -> None:
    from tests.served import plain_items

    task = room.task(plain_items(5))
    name, token = room.person()
    page = begin(open_context(), room, token, task)

    def hold() -> None:
        for _ in range(8):  # the browser repeats a key that is not let go
            page.keyboard.down("1")

    moves(page, hold)
    time.sleep(0.3)
    page.keyboard.up("1")
    assert len(room.said(task, name)) == 1


def focused(page: Page) -> dict[str, Any]:
    found: dict[str, Any] = page.evaluate(
        """() => {
          const e = document.activeElement, style = getComputedStyle(e);
          return {tag: e.tagName, text: e.innerText || "", href: e.getAttribute("href"),
                  name: e.getAttribute("name"), value: e.getAttribute("value"), id: e.id,
                  outline: style.outlineStyle != "none" && parseFloat(style.outlineWidth) >= 2,
                  ring: style.boxShadow != "none"};
        }"""
    )
    return found


def tab_to(page: Page, there: Callable[[], bool], most: int = 60) -> None:
    """Press Tab until there; what has the focus must show it, all the way."""
    for _ in range(most):
        page.keyboard.press("Tab")
        at = focused(page)
        assert at["tag"] == "BODY" or at["outline"] or at["ring"], f"no visible focus: {at}"
        if there():
            return
    raise AssertionError("not reached with Tab")


# -- the demonstration ----------------------------------------------------------------------


def test_the_demonstration_is_labelled_to_its_end(open_context: OpenContext) -> None:
    """`prefopt label demo` as it is started by hand: two links, and a lead who sees the votes."""
    command = [sys.executable, "-m", "prefopt", "label", "demo", "--json", "--items", "4"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as demo:
        try:
            assert demo.stdout is not None
            told = json.loads(_object(demo.stdout))
            assert told["items"] == 4 and set(told["links"]) == {"annotator", "lead"}
            context = open_context()
            watched = watch(context)
            page = context.new_page()
            page.goto(told["links"]["annotator"])
            page.get_by_role("button").first.click()
            page.goto(f"{told['url']}/tasks/{told['task']}")
            snapshot(page, "demo")
            answered = 0
            while asked(page):
                key = "1234"[answered % 4]
                moves(page, lambda key=key: page.keyboard.press(key))
                answered += 1
            assert answered >= 4
            snapshot(page, "demo-done")
            lead = open_context().new_page()
            lead.goto(told["links"]["lead"])
            lead.get_by_role("button").first.click()
            lead.goto(f"{told['url']}/tasks/{told['task']}/team")
            snapshot(lead, "demo-team")
            assert "ann" in lead.locator("main").inner_text()
            assert sideways(lead) <= 0 and faint(lead) == []
            watched.quiet(told["url"])
        finally:
            demo.send_signal(signal.SIGINT)
        assert demo.wait(timeout=30) == 130


def _object(stream: IO[bytes]) -> str:
    """The lines of the object that is said as soon as the page can be opened."""
    lines: list[str] = []
    while not lines or lines[-1].rstrip() != "}":
        line = stream.readline().decode()
        assert line, "".join(lines)
        lines.append(line)
        if lines[0].rstrip().endswith("}"):
            break
    return "".join(lines)


# -- screens --------------------------------------------------------------------------------

LONG = "A sentence that goes on for a while, as answers do. " * 40


def long_items() -> list[Any]:
    from prefopt.labelling.words import NewItem
    from prefopt.records import Completion, Message

    turns = (
        Message("system", "You are kind."),
        *(Message(("user", "assistant")[n % 2], f"Turn {n}. {LONG}") for n in range(7)),
    )
    code = "```python\ndef add(a, b):\n    return a + b  " + "# wide " * 60 + "\n```\n\n"
    table = "| a | b |\n|---|---|\n" + "| some words | more words |\n" * 4
    return [
        NewItem(
            prompt=turns,
            first=Completion(f"# Short\n\n{code}{table}\n\n- one\n- two"),
            second=Completion(LONG),
        ),
        NewItem(prompt="another", first=Completion("yes"), second=Completion("no")),
    ]


def test_a_phone_has_them_stacked_and_the_answers_in_reach(
    room: Room, open_context: OpenContext
) -> None:
    task = room.task(long_items())
    name, token = room.person()
    context = open_context(**PHONE)
    watched = watch(context)
    page = enter(context, room, token)
    snapshot(page, "phone-tasks")
    assert sideways(page) <= 0
    page.goto(f"{room.server.address}/tasks/{task}")
    snapshot(page, "phone-question")
    assert sideways(page) <= 0
    left, right = (page.locator(side).bounding_box() for side in ("#left", "#right"))
    assert left and right
    assert right["y"] >= left["y"] + left["height"] - 1
    assert left["width"] > 300 and right["width"] > 300
    for choice in BUTTONS.values():  # without scrolling, and wide enough for a thumb
        button = page.get_by_role("button", name=choice, exact=True)
        box = button.bounding_box()
        assert box
        assert box["x"] >= 0 and box["x"] + box["width"] <= 390
        assert box["y"] >= 0 and box["y"] + box["height"] <= 844, f"{choice} is out of reach"
        assert box["height"] >= 40 and box["width"] >= 40
    page.evaluate("scrollTo(0, document.body.scrollHeight)")
    page.wait_for_timeout(100)
    right = page.locator("#right").bounding_box()
    bar = page.get_by_role("button", name="Left is better", exact=True).bounding_box()
    assert right and bar
    assert right["y"] + right["height"] <= bar["y"] + 1, "the bar covers the end of the answer"
    snapshot(page, "phone-end")
    moves(page, page.get_by_role("button", name="Tie", exact=True).tap)
    assert [one.pressed for one in room.said(task, name)] == ["tie"]
    watched.quiet(room.server.address)


@pytest.mark.parametrize("width", [320, 768, 1280, 2560])
def test_no_screen_scrolls_sideways(room: Room, open_context: OpenContext, width: int) -> None:
    task = room.task(long_items())
    _, token = room.person()
    page = begin(open_context(viewport={"width": width, "height": 800}), room, token, task)
    snapshot(page, f"width-{width}")
    assert sideways(page) <= 0
    left, right = (page.locator(side).bounding_box() for side in ("#left", "#right"))
    assert left and right
    if width >= 1280:
        assert abs(left["y"] - right["y"]) < 2 and left["x"] + left["width"] <= right["x"]
        assert abs(left["width"] - right["width"]) < 2, "one side is wider: a bias"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_stands_out(room: Room, open_context: OpenContext, scheme: str) -> None:
    task = room.task(long_items(), guidelines="# Rules\n\nBe *fair*; see `this`.\n\n> quoted")
    _, lead = room.person("lead")
    context = open_context(color_scheme=scheme, viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.goto(f"{room.server.address}/enter/{lead}")
    assert faint(page) == []
    page.get_by_role("button").first.click()
    page.wait_for_url(f"{room.server.address}/")
    snapshot(page, f"{scheme}-tasks")
    assert faint(page) == []
    for path in (f"/tasks/{task}", f"/tasks/{task}/guidelines", f"/tasks/{task}/team", "/nothing"):
        page.goto(room.server.address + path)
        for details in reversed(page.locator("details:not([open]) > summary").all()):
            details.click()
        snapshot(page, f"{scheme}-{path.rpartition('/')[2]}")
        assert faint(page) == [], path
        paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
        dark = sum(map(float, re.findall(r"[\d.]+", paper)[:3])) < 3 * 80
        assert dark == (scheme == "dark"), paper


# -- for those who hear the page ------------------------------------------------------------


def test_names_landmarks_and_the_order_of_focus(room: Room, open_context: OpenContext) -> None:
    from tests.served import plain_items

    task = room.task(plain_items(2), guidelines="Be fair.")
    _, token = room.person()
    page = begin(open_context(), room, token, task)
    for name in (*BUTTONS.values(), "Undo"):
        assert page.get_by_role("button", name=name, exact=True).count() == 1, name
    guidelines = page.get_by_role("button", name="Guidelines", exact=True).or_(
        page.get_by_role("link", name="Guidelines", exact=True)
    )
    assert guidelines.or_(page.get_by_text("Guidelines", exact=True)).count() >= 1
    assert page.get_by_role("main").count() == 1
    assert page.get_by_role("progressbar").count() == 1
    assert page.locator("h1").count() == 1
    assert page.locator("html").get_attribute("lang") == "en"
    assert task in page.title()
    for region in ("#prompt", "#left", "#right"):
        named = page.locator(region).evaluate(
            "e => e.getAttribute('aria-label') || e.getAttribute('aria-labelledby')"
        )
        assert named, f"{region} has no name to be heard"
    assert (
        page.evaluate(
            """() => [...document.querySelectorAll("input:not([type=hidden]), select, textarea")]
          .filter(e => !e.labels.length && !e.getAttribute("aria-label")).map(e => e.name)"""
        )
        == []
    )
    order = []
    for _ in range(40):
        page.keyboard.press("Tab")
        at = focused(page)
        if at["tag"] == "BODY" or (order and at == order[0]):
            break
        order.append(at)
    said = [at["text"].strip().split("\n")[0] for at in order]
    answers = [
        next(i for i, text in enumerate(said) if text.startswith(name)) for name in BUTTONS.values()
    ]
    assert answers == sorted(answers), said
    assert page.evaluate("document.querySelectorAll('[tabindex]:not([tabindex=\"0\"])"
                         ":not([tabindex=\"-1\"])').length") == 0  # fmt: skip


def test_the_shortcuts_are_shown(room: Room, open_context: OpenContext) -> None:
    from tests.served import plain_items

    task = room.task(plain_items(1))
    _, token = room.person()
    page = begin(open_context(viewport={"width": 1280, "height": 800}), room, token, task)
    shown = {text.strip().upper() for text in page.locator("kbd:visible").all_inner_texts()}
    assert {"1", "2", "3", "4", "S", "U", "ENTER"} <= shown


# -- when the network fails -----------------------------------------------------------------


def test_an_answer_that_was_not_sent_is_sent_again(room: Room, open_context: OpenContext) -> None:
    """By the page itself, as soon as it can; meanwhile it says so, and keeps the question."""
    from tests.served import plain_items

    task = room.task(plain_items(3))
    name, token = room.person()
    page = begin(open_context(), room, token, task)
    shown = asked(page)
    tried: list[str] = []

    def fail(route: Route) -> None:
        tried.append(key_of(route))
        route.abort("connectionfailed")

    page.route("**/answers", fail)
    page.get_by_role("button", name="Tie", exact=True).click()
    until(
        page,
        lambda: "Not saved yet" in page.get_by_role("alert").first.inner_text(),
        "a word about it",
    )
    snapshot(page, "network-failure")
    until(page, lambda: len(tried) >= 2, "another try")
    assert asked(page) == shown and room.said(task, name) == []
    moves(page, lambda: page.unroute("**/answers"))
    assert [one.pressed for one in room.said(task, name)] == ["tie"]
    assert len(set(tried)) == 1, "the same answer under several keys"


def test_an_answer_whose_receipt_was_lost_counts_once(
    room: Room, open_context: OpenContext
) -> None:
    from tests.served import plain_items

    task = room.task(plain_items(3))
    name, token = room.person()
    page = begin(open_context(), room, token, task)
    sent: list[str] = []

    def lose(route: Route) -> None:
        route.fetch(max_redirects=0)  # the server has it
        sent.append(key_of(route))
        route.abort("connectionreset")

    page.route("**/answers", lose)
    page.get_by_role("button", name="Both bad", exact=True).click()
    until(page, lambda: len(sent) >= 2, "another try")
    assert [one.pressed for one in room.said(task, name)] == ["both_bad"]
    moves(page, lambda: page.unroute("**/answers"))
    assert [one.pressed for one in room.said(task, name)] == ["both_bad"]
    assert len(set(sent)) == 1


def key_of(route: Route) -> str:
    """The idempotency key in the form that is on its way."""
    return parse_qs(route.request.post_data or "")["key"][0]


def test_an_answer_survives_the_tab_being_closed(room: Room, open_context: OpenContext) -> None:
    """It is in the tab's storage until the server has it: a reload sends it."""
    from tests.served import plain_items

    task = room.task(plain_items(3))
    name, token = room.person()
    page = begin(open_context(), room, token, task)
    page.on("dialog", lambda dialog: dialog.accept())  # "leave the page?"
    page.route("**/answers", lambda route: route.abort("connectionfailed"))
    before = number(page)
    page.get_by_role("button", name="Tie", exact=True).click()
    until(
        page,
        lambda: "Not saved yet" in page.get_by_role("alert").first.inner_text(),
        "a word about it",
    )
    page.unroute("**/answers")
    page.reload()
    until(page, lambda: number(page) != before, "the next question")
    assert [one.pressed for one in room.said(task, name)] == ["tie"]


def test_a_double_click_is_one_answer(room: Room, open_context: OpenContext) -> None:
    from tests.served import plain_items

    for scripts in (True, False):
        task = room.task(plain_items(4))
        name, token = room.person()
        page = begin(open_context(java_script_enabled=scripts), room, token, task)
        moves(page, page.get_by_role("button", name="Left is better", exact=True).dblclick)
        time.sleep(0.3)
        assert [one.pressed for one in room.said(task, name)] == ["left"]


def test_two_windows_of_one_person_are_one_answer(room: Room, open_context: OpenContext) -> None:
    """Both show the same question; the second answer to it is told that it came too late."""
    from tests.served import plain_items

    task = room.task(plain_items(3))
    name, token = room.person()
    context = open_context()
    one = begin(context, room, token, task)
    other = context.new_page()
    other.goto(one.url)
    assert asked(one) == asked(other)
    press(one, "left")
    other.get_by_role("button", name="Right is better", exact=True).click()
    other.wait_for_timeout(400)
    assert [found.pressed for found in room.said(task, name)] == ["left"]
    snapshot(other, "second-window")
    if not asked(other) or number(other) == 0:
        other.goto(one.url)
    assert asked(other) == asked(one)
    press(other, "tie")
    assert [found.pressed for found in room.said(task, name)] == ["left", "tie"]


def test_going_back_does_not_answer_twice(room: Room, open_context: OpenContext) -> None:
    from tests.served import plain_items

    for scripts in (True, False):
        task = room.task(plain_items(4))
        name, token = room.person()
        page = begin(open_context(java_script_enabled=scripts), room, token, task)
        press(page, "left")
        press(page, "right")
        page.go_back()
        page.goto(f"{room.server.address}/tasks/{task}")
        assert number(page) == 2
        page.reload()
        assert number(page) == 2
        assert [found.pressed for found in room.said(task, name)] == ["left", "right"]
