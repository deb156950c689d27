"""Numbers, times and lists as a person writes them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime
from typing import Any


def number(value: Any) -> str:
    """Three significant digits, thousands separated, a real minus sign.

    >>> number(1204), number(0.8767), number(-12.34), number(5e-7), number(0.0)
    ('1,204', '0.877', '−12.3', '5e-7', '0')
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return "–" if value is None else str(value)
    if not math.isfinite(value):
        return "not finite"
    if isinstance(value, int) or abs(value) >= 1000:
        return f"{value:,.0f}".replace("-", "−")
    if value == 0:
        return "0"
    if abs(value) < 1e-3:
        mantissa, exponent = f"{value:.2e}".split("e")
        mantissa = mantissa.rstrip("0").rstrip(".")
        # the exponent keeps its plain minus, as a recipe writes it
        return f"{mantissa.replace('-', '−')}e{int(exponent)}"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{min(digits, 3)}f}".replace("-", "−")


def percent(value: float) -> str:
    """A share of one, out of a hundred.

    >>> percent(0.7133)
    '71.3 %'
    """
    return f"{100 * value:.1f} %"


def share(value: float) -> str:
    """An accuracy or a rate, two decimals.

    >>> share(0.7351)
    '0.74'
    """
    return f"{value:.2f}" if math.isfinite(value) else "not finite"


def counted(count: Any, noun: str) -> str:
    """A count with its noun.

    >>> counted(1, "group"), counted(1204, "group")
    ('1 group', '1,204 groups')
    """
    return f"{number(count)} {noun}{'' if count == 1 else 's'}"


def parameters(count: Any) -> str:
    """How large a model is.

    >>> parameters(14_200_000), parameters(7_300_000_000), parameters(950)
    ('14.2 M', '7.3 B', '950')
    """
    if not isinstance(count, int):
        return number(count)
    for unit, letter in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if count >= unit:
            return f"{count / unit:.3g} {letter}"
    return number(count)


def duration(seconds: float) -> str:
    """
    >>> duration(0.4), duration(71), duration(7322)
    ('0.4 s', '1 min 11 s', '2 h 2 min')
    """
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def moment(text: Any) -> str:
    """A time stamp to the minute; anything that is not one as it is.

    >>> moment("2026-03-01T14:05:33+00:00"), moment("today")
    ('1 March 2026, 14:05 UTC', 'today')
    """
    try:
        when = datetime.fromisoformat(str(text))
    except ValueError:
        return str(text)
    zone = when.tzname() or ""
    return f"{when.day} {_MONTHS[when.month - 1]} {when.year}, {when:%H:%M} {zone}".rstrip()


_MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September",
    "October", "November", "December",
)  # fmt: skip


def listed(items: Sequence[str], limit: int = 3) -> str:
    """
    >>> listed(["a", "b"]), listed(["a", "b", "c", "d", "e"])
    ('a and b', 'a, b, c and 2 more')
    """
    if len(items) > limit:
        return f"{', '.join(items[:limit])} and {len(items) - limit} more"
    return " and ".join(part for part in (", ".join(items[:-1]), *items[-1:]) if part)


def plain(name: str) -> str:
    """A machine's name for something, in words: `too_long` is 'too long'."""
    return name.replace("_", " ")
