"""What a form says, as an `Answer`; every field that cannot be is named."""

from __future__ import annotations

import math
import re
from types import MappingProxyType
from typing import Any, get_args

from prefopt.labelling.web.errors import FieldError
from prefopt.labelling.web.room import Form
from prefopt.labelling.words import Answer, Pressed

#: the words of the form, and what a person reads
CHOICES = MappingProxyType({
    "left": "Left is better",
    "right": "Right is better",
    "tie": "Tie",
    "both_bad": "Both bad",
    "skip": "Skip",
})  # fmt: skip
STRENGTHS = MappingProxyType({1: "slightly better", 2: "clearly better", 3: "much better"})
REASONS = MappingProxyType({
    "correct": "more correct",
    "helpful": "more helpful",
    "follows": "follows the instructions",
    "safe": "safer",
    "clear": "clearer or better written",
    "short": "to the point",
    "other": "something else",
})  # fmt: skip
MOST_COMMENT = 2_000
_MOST_SECONDS = 7 * 24 * 3600.0
_KEY = re.compile(r"[!-~]{1,128}")
_NO = ("", "0", "false", "off")
_YES = ("1", "true", "on")


def answer_of(form: Form) -> Answer:
    """What was pressed and what was added.

    Raises:
        FieldError: a field says something that cannot be.
    """
    pressed = _choice(form)
    strength = _strength(form)
    if strength is not None and pressed not in ("left", "right"):
        raise FieldError(
            "how much better is said only of left or right",
            field="strength",
            value=strength,
            remedy="choose left or right, or leave the strength out",
        )
    reason = form.get("reason", "")
    if reason and reason not in REASONS:
        raise _bad(form, "reason", f"one of {', '.join(REASONS)}, or nothing")
    flag = form.get("flag", "").lower()
    if flag not in _YES + _NO:
        raise _bad(form, "flag", "1, or nothing")
    return Answer(
        pressed=pressed,
        strength=strength,
        reason=reason or None,
        flagged=flag in _YES,
        comment=_comment(form),
        seconds=_seconds(form),
    )


def lease_of(form: Form) -> int:
    """The lease that the answer belongs to."""
    text = form.get("lease", "")
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise _bad(form, "lease", "the number that came with the question")
    return int(text)


def key_of(form: Form) -> str:
    """The idempotency key of the request."""
    if not _KEY.fullmatch(form.get("key", "")):
        raise _bad(form, "key", "1 to 128 characters of ASCII that print")
    return form["key"]


def _choice(form: Form) -> Pressed:
    for choice in get_args(Pressed):
        if form.get("choice") == choice:
            return choice  # type: ignore[no-any-return]
    raise _bad(form, "choice", f"one of {', '.join(CHOICES)}")


def _strength(form: Form) -> int | None:
    text = form.get("strength", "")
    if not text:
        return None
    if text not in {str(strength) for strength in STRENGTHS}:
        raise _bad(form, "strength", "1, 2, 3, or nothing")
    return int(text)


def _comment(form: Form) -> str:
    comment = form.get("comment", "").replace("\r\n", "\n").strip()
    if len(comment) > MOST_COMMENT:
        raise FieldError(
            f"the comment has {len(comment):,} characters, and {MOST_COMMENT:,} fit",
            field="comment",
            remedy="shorten it",
        )
    if "\0" in comment:
        raise _bad(form, "comment", "text")
    return comment


def _seconds(form: Form) -> float | None:
    text = form.get("seconds", "")
    if not text:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds <= _MOST_SECONDS:
        raise _bad(form, "seconds", "seconds from seeing the question to answering it")
    return seconds


def _bad(form: Form, field: str, wanted: str) -> FieldError:
    given: Any = form.get(field)
    return FieldError(
        "is missing" if given is None else "cannot be read",
        field=field,
        value=given,
        remedy=f"give {wanted}",
    )
