"""Anybody's text as HTML that can do no harm, and that hides as little as can be.

Completions are untrusted. Markdown is rendered without HTML, images are named and never
loaded, a link shows where it leads, and what has no shape of its own (zero-width characters,
controls of the direction of writing) is named in a frame. Definitions of links, which Markdown
makes disappear, stay text. What comes out is checked once more against a short list of elements.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from prefopt.data.visible import visible

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.token import Token

#: characters and lines of a text that are open; a longer one folds
OPEN, OPEN_LINES = 5_000, 80
#: characters that are rendered as Markdown; a longer text is shown as it was written
MOST_MARKDOWN = 20_000
#: characters that are shown at all
MOST = 1_000_000

_SURROGATES = re.compile("[\ud800-\udfff]")
_HEADINGS = {"h1": "h4", "h2": "h5"}  # below the headings of the page
_LONGEST_TARGET = 300
_DEEPEST = 40


@dataclass(frozen=True, slots=True)
class Rendered:
    """A text in both its forms.

    Attributes:
        rich: its Markdown, rendered; None where it is too long or too deep for that.
        written: every character as it was written; without `rich` the beginning of a long text.
        rest: what follows then. It is laid out only when somebody opens it, since a browser
            would take seconds for it.
        length: characters.
        folded: it is long and has both its forms, and opens on request.
        note: what is not shown, if something is not.
    """

    rich: Markup | None
    written: Markup
    rest: Markup | None
    length: int
    folded: bool
    note: str = ""


def render(text: str) -> Rendered:
    """A completion or a turn of a conversation, fit for a page."""
    note = ""
    if len(text) > MOST:
        note = f"Only the first {MOST:,} of {len(text):,} characters are shown."
    rich = markdown(text) if len(text) <= MOST_MARKDOWN else None
    if rich is None and not note:
        note = "Shown as written: too long or too deep to be laid out."
    long = len(text) > OPEN or text.count("\n") > OPEN_LINES
    cut = _place_to_cut(text) if long and rich is None else MOST
    return Rendered(
        rich=rich,
        written=visible(text[:cut]),
        rest=visible(text[cut:MOST]) if cut < len(text) else None,
        length=len(text),
        folded=long and rich is not None,
        note=note,
    )


def _place_to_cut(text: str) -> int:
    """Where the open part of a long text ends: after a line or a word, if one ends near there."""
    start = "\n".join(text[:OPEN].split("\n")[:OPEN_LINES])
    ends = (start.rfind("\n") + 1, start.rfind(" ") + 1)
    return next((end for end in ends if end > len(start) // 2), len(start))


@lru_cache(maxsize=256)  # an item is shown to several people
def markdown(text: str) -> Markup | None:
    """Markdown as safe HTML; None where it is nested too deep, since the parser drops that.

    >>> print(markdown("**bold** <b>not</b>"))
    <p><strong>bold</strong> &lt;b&gt;not&lt;/b&gt;</p>
    <BLANKLINE>
    >>> print(markdown("[a](javascript:alert(1))"))
    <p>[a](javascript:alert(1))</p>
    <BLANKLINE>
    """
    import nh3

    parser = _parser()
    env: dict[str, Any] = {}
    # half a surrogate pair has no bytes of its own, which the second wall asks for
    tokens = parser.parse(_SURROGATES.sub("\ufffd", text), env)
    if any(token.level >= _DEEPEST - 2 for token in tokens):
        return None
    return Markup(
        nh3.clean(
            parser.renderer.render(tokens, parser.options, env),
            tags=_ELEMENTS,
            attributes={"a": {"href", "target"}, "ol": {"start"}},
            allowed_classes={"span": {"unseen", "target", "picture", "info"}},
            url_schemes={"http", "https", "mailto"},
            url_relative="deny",
            link_rel="noopener noreferrer nofollow",
            strip_comments=True,
        )
    )


_ELEMENTS = set(
    "a blockquote br code del em h4 h5 h6 hr li ol p pre s span strong "
    "table tbody td th thead tr ul".split()
)
_Tokens = Sequence["Token"]


@cache
def _parser() -> MarkdownIt:
    from markdown_it import MarkdownIt
    from markdown_it.renderer import RendererHTML

    class Renderer(RendererHTML):
        """Text through `visible`, links with their target, pictures by name."""

        def text(self, tokens: _Tokens, idx: int, options: Any, env: Any) -> str:
            return visible(tokens[idx].content)

        def code_inline(self, tokens: _Tokens, idx: int, options: Any, env: Any) -> str:
            return f"<code>{visible(tokens[idx].content)}</code>"

        def code_block(self, tokens: _Tokens, idx: int, options: Any, env: Any) -> str:
            return f"<pre><code>{visible(tokens[idx].content)}</code></pre>\n"

        def fence(self, tokens: _Tokens, idx: int, options: Any, env: Any) -> str:
            block = self.code_block(tokens, idx, options, env)
            info = tokens[idx].info.strip()
            return f'<span class="info">{visible(info)}</span>{block}' if info else block

        def image(self, tokens: _Tokens, idx: int, options: Any, env: Any) -> str:
            name = visible(self.renderInlineAsText(tokens[idx].children, options, env))
            target = _target(tokens[idx], "src")
            return f'<span class="picture">Image, not loaded: {name} {target}</span>'

        def link_open(self, tokens: _Tokens, idx: int, options: Any, env: Any) -> str:
            token = tokens[idx]
            href = str(token.attrGet("href"))
            shown = "" if tokens[idx + 1].content == href else f" {_target(token, 'href')}"
            env.setdefault("links", []).append(shown)
            token.attrs = {"href": href, "target": "_blank"}
            return self.renderToken(tokens, idx, options, env)

        def link_close(self, tokens: _Tokens, idx: int, options: Any, env: Any) -> str:
            return f"</a>{env['links'].pop()}"

    parser = MarkdownIt(
        "commonmark", {"html": False, "breaks": True, "maxNesting": _DEEPEST}, renderer_cls=Renderer
    )
    parser.enable(["table", "strikethrough"]).disable("reference")
    parser.core.ruler.push("headings", _lower_headings)
    return parser


def _lower_headings(state: Any) -> None:
    for token in state.tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = _HEADINGS.get(token.tag, "h6")


def _target(token: Token, name: str) -> Markup:
    """Where a link or a picture leads, as the browser would be told, and its title."""
    href, title = str(token.attrGet(name) or ""), str(token.attrGet("title") or "")
    said = f"{href} “{title}”" if title else href
    short = said if len(said) <= _LONGEST_TARGET else said[:_LONGEST_TARGET] + "…"
    return Markup('<span class="target">({})</span>').format(visible(short))
