"""Debian's Chromium driven by Playwright, and what a page may never do while it is looked at."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.required import missing

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

    from tests.served import Room

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
_FLAGS = ["--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--disable-quic"]


@dataclass
class Watched:
    """What a browser context did: requests, and everything that should not have happened."""

    requests: list[tuple[str, str]] = field(default_factory=list)
    console: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    dialogs: list[str] = field(default_factory=list)

    def elsewhere(self, address: str) -> list[str]:
        """Requests to other places than this server."""
        return [url for _, url in self.requests if not url.startswith((f"{address}/", "data:,"))]

    def quiet(self, address: str) -> None:
        """Assert that the pages talked to their server alone, and complained of nothing."""
        assert self.elsewhere(address) == []
        assert (self.console, self.errors, self.dialogs) == ([], [], [])


def watch(context: BrowserContext) -> Watched:
    """Write down what happens in a context from now on."""
    watched = Watched()

    def said(message: Any) -> None:
        if message.type in ("error", "warning"):
            watched.console.append(message.text)

    def asked(dialog: Any) -> None:
        watched.dialogs.append(dialog.message)
        dialog.dismiss()

    context.on("request", lambda request: watched.requests.append((request.method, request.url)))
    context.on("console", said)
    context.on("weberror", lambda error: watched.errors.append(str(error.error)))
    context.on("dialog", asked)
    return watched


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """One browser for the tests of a file."""
    if CHROMIUM is None:
        missing("chromium", "no Chromium here (Debian: apt install chromium)")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        flags = [*_FLAGS, *(["--no-sandbox"] if os.geteuid() == 0 else [])]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Room]:
    """A labelling room on SQLite for the tests of a file."""
    from tests.served import Room, Server

    folder = tmp_path_factory.mktemp("room")
    with Server(f"sqlite:///{folder / 'votes.db'}", folder) as server:
        yield Room(server)


OpenContext = Callable[..., "BrowserContext"]


@pytest.fixture
def open_context(chromium: Browser) -> Iterator[OpenContext]:
    """`open_context(**options)`: a fresh browser profile; closed after the test."""
    opened = []

    def open_one(**options: Any) -> BrowserContext:
        context = chromium.new_context(**options)
        context.set_default_timeout(10_000)
        opened.append(context)
        return context

    yield open_one
    for context in opened:
        context.close()


def snapshot(page: Page, name: str) -> None:
    """A picture of the page, where `PREFOPT_SCREENSHOTS` names a folder for them."""
    if folder := os.environ.get("PREFOPT_SCREENSHOTS"):
        page.screenshot(path=str(Path(folder) / f"{name}.png"))


# -- what people see ------------------------------------------------------------------------

_CONTRAST = """() => {
  const dot = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const parse = colour => {  // in whatever notation: painted, and looked at
    dot.clearRect(0, 0, 1, 1);
    dot.fillStyle = colour;
    dot.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = dot.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const over = (top, under) => [0, 1, 2].map(i => top[i] * top[3] + under[i] * (1 - top[3]));
  const behind = element => {
    const layers = [];
    for (let at = element; at; at = at.parentElement)
      layers.push(parse(getComputedStyle(at).backgroundColor));
    const canvas = matchMedia("(prefers-color-scheme: dark)").matches ? [18, 18, 18]
                                                                      : [255, 255, 255];
    return layers.reverse().reduce((under, top) => over(top, under), canvas);
  };
  const light = rgb => {
    const [r, g, b] = rgb.map(v => v / 255)
      .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const element = node.parentElement;
    if (!node.data.trim() || !element.checkVisibility({visibilityProperty: true})) continue;
    if (element.closest("[disabled], script, style")) continue;
    const range = document.createRange();
    range.selectNodeContents(node);
    const box = range.getBoundingClientRect();
    if (box.width < 2 || box.height < 2) continue;
    const style = getComputedStyle(element), paper = behind(element);
    const colour = parse(style.color);
    for (let at = element; at; at = at.parentElement) colour[3] *= getComputedStyle(at).opacity;
    const ink = over(colour, paper);
    const [dim, bright] = [light(ink), light(paper)].sort((a, b) => a - b);
    found.push({text: node.data.trim().slice(0, 40), ink: ink, paper: paper,
                contrast: (bright + 0.05) / (dim + 0.05)});
  }
  return found;
}"""


def contrasts(page: Page) -> list[dict[str, Any]]:
    """Each visible text with its contrast to what is behind it, as WCAG 2 computes it."""
    found: list[dict[str, Any]] = page.evaluate(_CONTRAST)
    return found


def faint(page: Page, least: float = 4.5) -> list[str]:
    """Texts with too little contrast."""
    return [json.dumps(one) for one in contrasts(page) if one["contrast"] < least]


def sideways(page: Page) -> int:
    """Pixels by which the page is wider than its window."""
    found: int = page.evaluate(
        "document.documentElement.scrollWidth - document.documentElement.clientWidth"
    )
    return found
