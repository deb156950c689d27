"""Anybody's text on a page of the labelling room: harmless, and as visible as can be."""

from __future__ import annotations

import html
import re
import time
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefopt.labelling.web import rendering
from prefopt.labelling.web.rendering import MOST, MOST_MARKDOWN, OPEN, markdown, render

ALLOWED = {
    "a": {"href", "target", "rel"},
    "ol": {"start"},
    "span": {"class"},
    **{
        name: set()
        for name in "blockquote br code del em h4 h5 h6 hr li p pre s strong table tbody td th "
        "thead tr ul".split()
    },
}


class Elements(HTMLParser):
    """What a browser would make of it: elements with attributes, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def elements(text: str) -> Elements:
    found = markdown(text)
    assert found is not None
    return Elements(str(found))


def check_harmless(found: Elements) -> None:
    for tag, attributes in found.found:
        assert tag in ALLOWED, tag
        assert set(attributes) <= ALLOWED[tag], (tag, attributes)
        if attributes.get("href"):
            assert re.match(r"(https?|mailto):", str(attributes["href"])), attributes
        if tag == "a":
            assert attributes["rel"] == "noopener noreferrer nofollow"
        if tag == "span":
            assert attributes["class"] in {"unseen", "target", "picture", "info"}


def test_markdown_is_rendered() -> None:
    text = "# A\n\n**b** *c* `d`\n\n1. e\n2. f\n\n| g | h |\n|---|---|\n| i | j |\n\n~~k~~\nl"
    tags = [tag for tag, _ in elements(text).found]
    assert tags == [
        "h4", "p", "strong", "em", "code", "ol", "li", "li",
        "table", "thead", "tr", "th", "th", "tbody", "tr", "td", "td", "p", "s", "br",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>",
        "<img src=x onerror=alert(1)>",
        "<b onclick=x>b</b>",
        "<!-- hidden -->",
        "</div></section>",
        "<style>*{display:none}</style>",
    ],
)
def test_html_is_text(text: str) -> None:
    found = elements(text)
    check_harmless(found)
    assert [tag for tag, _ in found.found] == ["p"]
    assert found.text.strip() == text


@pytest.mark.parametrize(
    "target",
    [
        "javascript:alert(1)", "JaVaScRiPt:alert(1)", "&#106;avascript:alert(1)", "vbscript:x",
        "data:text/html,x", "file:///etc/passwd", "//evil.example/x", "/leave", "#left", "?x",
    ],
)  # fmt: skip
def test_links_lead_nowhere_but_to_the_web(target: str) -> None:
    found = elements(f"[word]({target})")
    check_harmless(found)
    assert not any("href" in attributes for _, attributes in found.found)
    assert "word" in found.text


def test_a_link_shows_where_it_leads() -> None:
    found = elements('[bank](https://evil.example/x "My bank")')
    assert dict(found.found)["a"] == {
        "href": "https://evil.example/x",
        "target": "_blank",
        "rel": "noopener noreferrer nofollow",
    }
    assert found.text.strip() == "bank (https://evil.example/x “My bank”)"
    assert elements("<https://a.example>").text.strip() == "https://a.example"  # once


def test_pictures_are_named_and_never_loaded() -> None:
    for target in ("https://evil.example/p.png?secret", "data:image/png;base64,AAAA"):
        found = elements(f"![a *cat*]({target})")
        check_harmless(found)
        assert "Image, not loaded: a cat" in found.text and target in found.text


def test_nothing_is_loaded_by_anything() -> None:
    text = "![a](http://x/1) [![b](http://x/2)](http://x/3) <video src=http://x/4>"
    assert not re.search(r"\b(src|srcset|style|background)=", str(markdown(text)).split("&lt;")[0])


def test_what_markdown_would_hide_is_shown() -> None:
    """Definitions of links, the language of a code block, what is nested too deep."""
    assert elements("[secret]: http://x 'words'\n\nend").text.split() == [
        "[secret]:", "http://x", "'words'", "end",
    ]  # fmt: skip
    assert "secret words" in elements("```secret words\ncode\n```").text
    assert markdown(">" * 60 + " deep") is None
    deep = render(">" * 60 + " deep")
    assert deep.rich is None and "deep" in deep.written and deep.note


@pytest.mark.parametrize(
    "wrap", ["{}", "`{}`", "**{}**", "```\n{}\n```", "    {}", "[{}](http://x)"]
)
def test_the_unseen_is_named_everywhere(wrap: str) -> None:
    for character in "\u200b\u202e\u2066\ufeff\x07":
        found = elements(wrap.format(f"a{character}b"))
        assert character not in found.text, wrap
        assert f"aU+{ord(character):04X}b" in found.text, wrap


def test_an_entity_is_no_way_around() -> None:
    assert "U+202E" in elements("&#x202e;").text
    assert elements("&lt;script&gt;").text.strip() == "<script>"


def test_headings_stay_below_those_of_the_page() -> None:
    text = "\n\n".join(f"{'#' * n} {n}" for n in range(1, 7))
    assert [tag for tag, _ in elements(text).found] == ["h4", "h5", "h6", "h6", "h6", "h6"]


def test_half_a_surrogate_pair_is_survived() -> None:
    shown = render("a \ud83d b [x](http://y/\udc00)")
    assert shown.rich is not None
    str(shown.rich).encode()
    assert "U+D83D" in shown.written


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            "<script> </p> <a href= javascript: ![ [ ]( ) ` ``` ~~~ > # - * ** _ | \n \n\n "
            "& &lt; \" ' http://x data: <!-- --> <svg/onload= \u202e \ud800 \0 1. \\ : {{ x".split(
                " "
            )
        )
        | st.text(max_size=4),
        max_size=30,
    ).map("".join)
)
def test_no_text_makes_anything_else(text: str) -> None:
    found = markdown(text)
    if found is not None:
        check_harmless(Elements(str(found)))


def test_the_second_wall_stands_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the parser let HTML through one day, nothing would come of it."""
    from markdown_it import MarkdownIt

    monkeypatch.setattr(rendering, "_parser", lambda: MarkdownIt("commonmark", {"html": True}))
    text = "<script>x</script><img src=x onerror=y><a href='javascript:z' onclick=w id=left>b</a>!"
    found = Elements(str(markdown.__wrapped__(text)))
    check_harmless(found)
    assert [tag for tag, _ in found.found] == ["a"] and "x" not in found.text


# -- long texts --------------------------------------------------------------------------------


def test_short_texts_are_open_and_long_ones_fold() -> None:
    short, long, lines = render("a"), render("words " * (OPEN // 5)), render("- a\n" * 90)
    assert not short.folded and short.rest is None
    assert long.folded and long.rest is None and lines.folded
    assert long.length == OPEN // 5 * 6


def test_very_long_texts_are_shown_as_written_and_wholly() -> None:
    text = "words " * (MOST_MARKDOWN // 5)
    shown = render(text)
    assert shown.rich is None and shown.rest is not None and not shown.folded
    assert html.unescape(str(shown.written) + str(shown.rest)) == text
    assert len(shown.written) <= OPEN and shown.written.endswith(" ")
    one_word = render("w" * (MOST_MARKDOWN + 1))
    assert len(one_word.written) == OPEN


def test_there_is_an_end() -> None:
    shown = render("x" * (MOST + 5))
    assert len(shown.written) + len(shown.rest or "") == MOST
    assert f"{MOST:,} of {MOST + 5:,}" in shown.note


@pytest.mark.parametrize(
    "text",
    ["[" * 30_000, "![" * 15_000, "*a_ " * 7_500, "> " * 15_000, "`" * 15_000 + "a" + "`" * 14_000,
     "<a" * 15_000, "[a](<" * 6_000, "|a" * 15_000, "- " * 15_000, "&" * 30_000, "\\" * 30_000],
    ids=lambda text: text[:3],
)  # fmt: skip
def test_no_text_takes_long(text: str) -> None:
    begun = time.process_time()
    markdown.__wrapped__(text[:MOST_MARKDOWN])
    assert time.process_time() - begun < 3
