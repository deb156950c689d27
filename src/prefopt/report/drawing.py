"""The drawing board: plots as inline SVG that take their colours from the page.

Matplotlib draws with stand-in colours; they are replaced by the page's CSS variables, so
that one drawing serves light and dark. Text stays text in the page's own font. The same
values give the same bytes.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from prefopt.report.words import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: stand-in colours, and the CSS variables they become; unlike any colour drawn on purpose
INK, MUTED, GRID, PAPER = "#000001", "#000002", "#000003", "#000004"
MAIN, PREFERRED, DISPREFERRED = "#000005", "#000006", "#000007"
#: an order of colours, from low to high; the page that uses them sets `--scale-0` and on
SCALE = tuple(f"#0000{16 + index:02x}" for index in range(6))
#: matplotlib's markers, and the same as paths for the legend
MARKERS = ("o", "s", "^", "D", "v", "P")
SHAPES = (
    "M9 5A4 4 0 1 1 1 5A4 4 0 1 1 9 5",
    "M1.5 1.5H8.5V8.5H1.5Z",
    "M5 .8 9.2 8.8H.8Z",
    "M5 .3 9.7 5 5 9.7 .3 5Z",
    "M5 9.2 .8 1.2H9.2Z",
    "M3.5 1H6.5V3.5H9V6.5H6.5V9H3.5V6.5H1V3.5H3.5Z",
)
VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    GRID: "--line",
    PAPER: "--card",
    MAIN: "--accent",
    PREFERRED: "--preferred",
    DISPREFERRED: "--dispreferred",
    **{colour: f"--scale-{index}" for index, colour in enumerate(SCALE)},
}


@contextmanager
def figure_of(width: float, height: float) -> Iterator[tuple[Figure, Axes]]:
    """A figure of `width` × `height` inches, free of the user's own matplotlib settings."""
    from matplotlib import style
    from matplotlib.figure import Figure

    settings: dict[str, Any] = {
        "svg.fonttype": "none",
        "font.size": 8.5,
        "axes.edgecolor": GRID,
        "axes.labelcolor": MUTED,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "path.simplify": False,
    }
    with style.context(settings, after_reset=True):
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure, figure.add_subplot()


def style_axes(axes: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, pad=4)
    axes.margins(x=0.02, y=0.08)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True, min_n_ticks=1))
    axes.yaxis.set_major_locator(MaxNLocator(nbins=4, min_n_ticks=2))
    axes.xaxis.set_major_formatter(FuncFormatter(tick))
    axes.yaxis.set_major_formatter(FuncFormatter(tick))


def tick(value: float, _: int | None = None) -> str:
    """A short label: 12k, 0.25, 5e-7."""
    size = abs(value)
    if size >= 1e6:
        return f"{value / 1e6:.4g}M".replace("-", "−")
    if size >= 1e4:
        return f"{value / 1e3:.4g}k".replace("-", "−")
    if 0 < size < 1e-3:
        return number(value)
    return f"{value:.4g}".replace("-", "−")


_HEAD = re.compile(r"^.*?(?=<svg)", re.DOTALL)
_METADATA = re.compile(r"\s*<metadata>.*?</metadata>", re.DOTALL)
# matplotlib's style sheet would apply to the whole page, not only to its own drawing
_SHEET = re.compile(r"\s*<defs>\s*<style[^>]*>.*?</style>\s*</defs>", re.DOTALL)
_COMMENT = re.compile(r"\s*<!--.*?-->", re.DOTALL)
# a hundredth of a point is enough for a line; the text of a tick keeps its digits
_PLACES = re.compile(r'\b(?:d|x|y|width|height|transform)="[^"]*"')
_DIGITS = re.compile(r"(\d\.\d\d)\d+")
_OPENING = re.compile(r"<svg[^>]*>", re.DOTALL)
_FONT = re.compile(r"font: ([\d.]+)px [^;\"]*")
_COLOUR = re.compile("|".join(VARIABLES))


def to_svg(
    figure: Figure, name: str, spoken: str, titles: Mapping[str, str] = MappingProxyType({})
) -> str:
    """The figure as an `<svg>` element that is read out as `spoken`.

    Args:
        figure: what was drawn.
        name: unique on the page.
        spoken: what somebody hears who cannot see it.
        titles: what a browser shows over a part of the drawing, by the part's `gid`.
    """
    import matplotlib

    buffer = io.StringIO()
    # ids are hashes of what is drawn: salted by name, no two plots of a page share one
    with matplotlib.rc_context({"svg.hashsalt": f"prefopt-{name}"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    for unwanted in (_HEAD, _METADATA, _SHEET, _COMMENT):
        text = unwanted.sub("", text)
    text = _PLACES.sub(lambda match: _DIGITS.sub(r"\1", match[0]), text)
    box = re.search(r'viewBox="([^"]+)"', text)
    assert box is not None, "matplotlib writes a viewBox"
    label = html.escape(spoken, quote=True)
    opening = f'<svg viewBox="{box[1]}" role="img" aria-label="{label}">'
    text = _OPENING.sub(lambda _: opening, text, count=1).replace("xlink:href", "href")
    for gid, title in titles.items():
        part = f'<g id="{gid}">'
        text = text.replace(part, f"{part}<title>{html.escape(title)}</title>", 1)
    text = _FONT.sub(r"font-size: \1px", text)
    text = _COLOUR.sub(lambda match: f"var({VARIABLES[match[0]]})", text)
    used = set(re.findall(r'(?:href="|url\()#([^")]+)', text))
    text = re.sub(r' id="([^"]+)"', lambda match: match[0] if match[1] in used else "", text)
    return re.sub(r"\s*\n\s*", "\n", text).strip()
