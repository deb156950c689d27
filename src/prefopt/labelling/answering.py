"""What an answer and an undo do: one event each, and the claims after it.

A request carries a key of its own. Coming again, it finds its event and adds nothing: a page
that was sent twice, a browser that tried again after a broken connection, a server that was
killed after the commit and before the reply. With another content it is refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from prefopt.errors import DataError
from prefopt.labelling.documents import dumped, payload_from_text
from prefopt.labelling.refusals import LeaseError
from prefopt.labelling.tables import claims, events, places
from prefopt.labelling.turns import Turn, needs_slot
from prefopt.labelling.words import Answer, Recorded, Shown

PRESSED = ("left", "right", "tie", "both_bad", "skip")
LONGEST_COMMENT = 2000
_LONGEST_KEY = 200


_task: sa.BindParameter[Any] = sa.bindparam("of_task")
_annotator: sa.BindParameter[Any] = sa.bindparam("of_annotator")
_item: sa.BindParameter[Any] = sa.bindparam("of_item")
_earlier = events.alias("earlier")
#: the question of a lease, and the event that this very request has led to before
_GIVEN = (
    sa.select(
        events.c.item, events.c.repeat, places.c.kind, places.c.filled, places.c.votes,
        *(_earlier.c[name].label(f"earlier_{name}") for name in
          ("id", "kind", "item", "repeat", "payload")),
    )
    .join(places, places.c.item == events.c.item)
    .outerjoin(_earlier, sa.and_(
        _earlier.c.annotator == _annotator, _earlier.c.task == _task,
        _earlier.c.key == sa.bindparam("of_key"),
    ))
    .where(
        events.c.id == sa.bindparam("lease"), events.c.kind == "lease",
        events.c.task == _task, events.c.annotator == _annotator,
    )
    .with_for_update(of=places)
)  # fmt: skip
_BEFORE = sa.select(events).where(
    events.c.annotator == _annotator, events.c.task == _task, events.c.key == sa.bindparam("of_key")
)
_one = sa.and_(
    claims.c.item == _item, claims.c.annotator == _annotator,
    claims.c.repeat == sa.bindparam("of_repeat"),
)  # fmt: skip
_CLAIM = sa.select(claims).where(_one)
_SETTLE = claims.update().where(_one)
_LAST = (
    sa.select(claims)
    .where(claims.c.task == _task, claims.c.annotator == _annotator, claims.c.place.is_not(None))
    .order_by(claims.c.place.desc())
    .limit(1)
)


def check_key(key: str) -> None:
    """Refuse what cannot be the key of a request.

    Raises:
        DataError: it is empty, too long or has characters that do not print.
    """
    if not 0 < len(key) <= _LONGEST_KEY or not key.isprintable():
        raise _wrong("a request needs a key of 1 to 200 printable characters", "key", key)


def check_answer(answer: Answer) -> None:
    """Refuse an answer that says what it cannot.

    Raises:
        DataError: naming the field.
    """
    if answer.pressed not in PRESSED:
        raise _wrong("an answer is left, right, tie, both_bad or skip", "choice", answer.pressed)
    if answer.strength is not None:
        if answer.pressed not in ("left", "right"):
            raise _wrong("only left or right has a strength", "strength", answer.strength)
        if isinstance(answer.strength, bool) or answer.strength not in (1, 2, 3):
            raise _wrong("a strength is 1, 2 or 3", "strength", answer.strength)
    if len(answer.comment) > LONGEST_COMMENT:
        raise _wrong("a comment has at most 2,000 characters", "comment", len(answer.comment))
    if answer.reason is not None and not 0 < len(answer.reason) <= 100:
        raise _wrong("a reason is a word of the form", "reason", answer.reason)
    seconds = answer.seconds
    if seconds is not None and not (math.isfinite(seconds) and seconds >= 0):
        raise _wrong("seconds are 0 or more", "seconds", seconds)


def payload_of(answer: Answer, *, swapped: bool) -> dict[str, Any]:
    """An answer as its event carries it: in terms of first and second.

    >>> payload_of(Answer("left", strength=2), swapped=True)["said"]
    'second'
    """
    detail: dict[str, Any] = {
        "flagged": answer.flagged, "comment": answer.comment, "seconds": answer.seconds,
    }  # fmt: skip
    if answer.pressed == "skip":
        return detail if answer.reason is None else {"reason": answer.reason, **detail}
    said: str = answer.pressed
    if said in ("left", "right"):
        said = "second" if (said == "left") == swapped else "first"
    return {"said": said, "strength": answer.strength, "reason": answer.reason, **detail}


def record_answer(turn: Turn, lease: int, key: str, answer: Answer) -> Recorded:
    """Take an answer to a question that was given out.

    Raises:
        LeaseError: it is not this annotator's to answer (any more), or the key was used for
            something else.
    """
    known = {"of_task": turn.number, "of_annotator": turn.annotator}
    asked = turn.connection.execute(_GIVEN, {**known, "lease": lease, "of_key": key}).one_or_none()
    if asked is None:
        raise _lost("this question was not given to you")
    claim = _claim(turn, asked.item, asked.repeat)
    payload = payload_of(answer, swapped=claim.swapped)
    kind = "skip" if answer.pressed == "skip" else "vote"
    if asked.earlier_id is not None:
        same = (kind, asked.item, asked.repeat) == (
            asked.earlier_kind, asked.earlier_item, asked.earlier_repeat,
        )  # fmt: skip
        if not same or not _alike(payload, payload_from_text(asked.earlier_payload)):
            raise _lost("this request was used for another answer")
        return Recorded(asked.earlier_id, repeated=True)
    if claim.state != "leased":
        raise _lost("you have answered this question already")

    slotted = needs_slot(asked.kind, asked.repeat)
    held = claim.holds_until is not None
    voted = slotted and answer.pressed != "skip"
    if voted and not held and not _free(turn, asked.item, asked.filled):
        raise _lost("your time for this question was over, and somebody else has it now")
    event = turn.record(kind, asked.item, asked.repeat, payload, key)
    _settle(turn, claim, event, payload, answer)
    turn.move(asked.item, filled=int(voted) - int(held), votes=int(voted))
    turn.count(
        answered=1,
        votes=int(voted),
        completed=int(voted and asked.votes + 1 == turn.task.overlap),
    )
    return Recorded(event, repeated=False)


def take_back(turn: Turn, key: str) -> Shown | None:
    """Undo this annotator's last vote or skip in the task, and give its question out again.

    Returns:
        The question; None if there is nothing to undo, or if it was a skip whose slot somebody
        else has filled since: then nothing is changed.

    Raises:
        LeaseError: the key was used for an answer.
    """
    known = {"of_task": turn.number, "of_annotator": turn.annotator}
    before = turn.connection.execute(_BEFORE, {**known, "of_key": key}).one_or_none()
    if before is not None:
        return _taken_back(turn, before)
    last = turn.connection.execute(_LAST, known).one_or_none()
    if last is None:
        return None
    place = turn.connection.execute(
        sa.select(places).where(places.c.item == last.item).with_for_update()
    ).one()
    slotted = needs_slot(place.kind, last.repeat)
    voted = slotted and last.state == "voted"
    if slotted and not voted and not _free(turn, last.item, place.filled):
        return None
    turn.record("undo", last.item, last.repeat, {"event": last.event}, key)
    turn.move(last.item, filled=int(slotted and not voted), votes=-int(voted))
    turn.count(
        answered=-1,
        votes=-int(voted),
        completed=-int(voted and place.votes == turn.task.overlap),
    )
    item = turn.item(last.item)
    said = payload_from_text(last.payload)
    return turn.lease(item, last.repeat, swapped=last.swapped, before=said)


def _taken_back(turn: Turn, undo: Any) -> Shown | None:
    """What the undo of this key gave, as long as it is not answered."""
    if undo.kind != "undo":
        raise _lost("this request was used for an answer")
    claim = _claim(turn, undo.item, undo.repeat)
    if claim.state != "leased":
        return None
    number = payload_from_text(undo.payload)["event"]
    said = turn.connection.scalar(sa.select(events.c.payload).where(events.c.id == number))
    return Shown(
        claim.lease, turn.item(undo.item), undo.repeat, claim.swapped, claim.until,
        payload_from_text(said or "{}"),
    )  # fmt: skip


def _claim(turn: Turn, item: int, repeat: int) -> Any:
    known = {"of_item": item, "of_annotator": turn.annotator, "of_repeat": repeat}
    return turn.connection.execute(_CLAIM, known).one()


def _free(turn: Turn, item: int, filled: int) -> bool:
    """Whether an item has a slot, when leases that have ended no longer count."""
    if filled < turn.task.overlap:
        return True
    turn.release_late(item)
    now = turn.connection.scalar(sa.select(places.c.filled).where(places.c.item == item))
    return now is not None and now < turn.task.overlap


def _settle(turn: Turn, claim: Any, event: int, payload: Mapping[str, Any], answer: Answer) -> None:
    turn.connection.execute(
        _SETTLE,
        {
            "of_item": claim.item, "of_annotator": claim.annotator, "of_repeat": claim.repeat,
            "state": "skipped" if answer.pressed == "skip" else "voted",
            "event": event, "answered": turn.now, "place": turn.answered,
            "payload": dumped(payload), "holds_until": None,
        },
    )  # fmt: skip


def _alike(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """The same answer; a page may measure the time anew when it sends it again."""
    return {**one, "seconds": None} == {**other, "seconds": None}


def _lost(message: str) -> LeaseError:
    return LeaseError(message, remedy="go on with the next question")


def _wrong(message: str, field: str, value: Any) -> DataError:
    return DataError(message, kind="bad_answer", field=field, value=value)
