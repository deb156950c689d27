"""What an annotator is asked next.

In this order: the question they already have; a gold one or an earlier one of theirs again,
where one of these is due; the open item with the lowest priority, the fewest filled slots among
equals, and the lowest number. None of it looks at more than a few rows: `places` has its open
items in this order, and what somebody has answered is left out by key.

Gold and repeated questions come once in each stretch of 1/share questions, at a place in it that
is drawn from the task's seed, the annotator and the stretch: so the share is kept, nobody can
count on when it happens, and the same answers lead to the same questions.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any

import sqlalchemy as sa

from prefopt.labelling.tables import claims, places, tasks
from prefopt.labelling.turns import FILLING, Turn
from prefopt.labelling.words import Shown

#: an item comes again after so many other answers, as long as there is something else to ask
APART = 10


_task: sa.BindParameter[Any] = sa.bindparam("of_task")
_annotator: sa.BindParameter[Any] = sa.bindparam("of_annotator")
_mine = sa.and_(claims.c.task == _task, claims.c.annotator == _annotator)
_LIVE = (
    sa.select(claims)
    .where(_mine, claims.c.place.is_(None), claims.c.until > sa.bindparam("now"))
    .order_by(claims.c.lease.desc())
    .limit(1)
)
_SINCE = sa.select(claims.c.item).where(_mine, claims.c.place >= sa.bindparam("first")).limit(1)
#: what of the two kinds was asked in this stretch
_ASKED = {
    "repeat": _SINCE.where(claims.c.repeat == 1),
    "gold": _SINCE.join(places, places.c.item == claims.c.item).where(places.c.kind == "gold"),
}
_answered = sa.select(claims.c.item).where(
    claims.c.item == places.c.item, claims.c.annotator == _annotator,
    claims.c.repeat == 0, claims.c.place.is_not(None),
)  # fmt: skip
#: items of a kind that this annotator has neither answered nor skipped, in order
_UNANSWERED = (
    sa.select(places.c.item)
    .where(
        places.c.task == _task, places.c.kind == sa.bindparam("of_kind"), places.c.open == 1,
        ~_answered.exists(),
    )
    .order_by(places.c.priority, places.c.filled, places.c.item)
    .limit(1)
)  # fmt: skip


def _taking(skip_locked: bool) -> Any:
    """Fill a slot of the first of them; rows that others hold are passed over or waited for."""
    inner = _UNANSWERED.with_for_update(skip_locked=skip_locked).correlate(None)
    return (
        places.update()
        .where(places.c.item == inner.scalar_subquery())
        .where(places.c.filled < sa.bindparam("overlap"))
        .values(**FILLING)
        .returning(places.c.item)
    )


_TAKE, _TAKE_WAITING = _taking(True), _taking(False)
_again = claims.alias("again")
_came = sa.select(_again.c.item).where(
    _again.c.item == claims.c.item, _again.c.annotator == _annotator,
    _again.c.repeat == 1, _again.c.place.is_not(None),
)  # fmt: skip
#: votes of this annotator that may be asked for again
_VOTED = (
    sa.select(claims.c.item, claims.c.swapped)
    .join(places, places.c.item == claims.c.item)
    .where(
        _mine, claims.c.repeat == 0, claims.c.state == "voted", places.c.kind == "normal",
        ~_came.exists(), claims.c.place <= sa.bindparam("last"),
    )
    .limit(1)
)  # fmt: skip
_start: sa.BindParameter[Any] = sa.bindparam("start")
_FROM = _VOTED.where(claims.c.place >= _start).order_by(claims.c.place)
_BEFORE = _VOTED.where(claims.c.place < _start).order_by(claims.c.place.desc())


def next_question(turn: Turn) -> Shown | None:
    """Give out the next question, or the one that this annotator has; None if there is none."""
    live = _live(turn)
    if live is not None:
        return live
    turn.release_late()
    if _due(turn, turn.task.gold_share, "gold"):
        shown = _gold(turn)
        if shown is not None:
            return shown
    again = _due(turn, turn.task.repeat_share, "repeat")
    shown = _repeat(turn, APART) if again else None
    if shown is None:
        shown = _normal(turn)
    if shown is None and again:
        shown = _repeat(turn, 1)
    if shown is None and _only_gold(turn):
        shown = _gold(turn)
    return shown


def sides(seed: int, key: str, annotator: int, repeat: int) -> bool:
    """Whether the second completion stands on the left; a repeat is the other way round.

    >>> sides(0, "ab", 1, 0) != sides(0, "ab", 1, 1)
    True
    """
    return (_drawn(f"sides/{seed}/{key}/{annotator}") < 0.5) != (repeat == 1)


def _drawn(what: str) -> float:
    """A number in [0, 1) that depends on nothing but `what`."""
    return int.from_bytes(hashlib.blake2b(what.encode(), digest_size=6).digest(), "big") / 2**48


def moment(share: float, answered: int, what: str) -> tuple[int, int]:
    """Of the stretch that a question is in: its first question, and the one drawn from it.

    Args:
        share: of such questions, in (0, 1].
        answered: how many questions came before this one.
        what: which draw this is; the stretch's number is added.

    >>> first, drawn = moment(0.05, 47, "gold")
    >>> first, first <= drawn < 60
    (40, True)
    """
    stretch = math.floor(answered * share + 1e-9)
    first = math.ceil(stretch / share - 1e-9)
    last = math.ceil((stretch + 1) / share - 1e-9) - 1
    drawn = first + math.floor(_drawn(f"{what}/{stretch}") * (last - first + 1))
    return first, drawn


def _due(turn: Turn, share: float, what: str) -> bool:
    """Whether the moment of this stretch has come and nothing of the kind was asked in it."""
    if share <= 0:
        return False
    first, drawn = moment(share, turn.answered, f"{what}/{turn.task.seed}/{turn.annotator}")
    if turn.answered < drawn:
        return False
    return turn.connection.execute(_ASKED[what], {**_of(turn), "first": first}).first() is None


def _of(turn: Turn) -> dict[str, Any]:
    return {"of_task": turn.number, "of_annotator": turn.annotator}


def _live(turn: Turn) -> Shown | None:
    """The question that this annotator has; the one given out last, if undoing left several."""
    row = turn.connection.execute(_LIVE, {**_of(turn), "now": turn.now}).one_or_none()
    if row is None:
        return None
    return Shown(row.lease, turn.item(row.item), row.repeat, row.swapped, row.until)


def _normal(turn: Turn) -> Shown | None:
    """The next item with a free slot, which is filled."""
    known = {
        **_of(turn), "of_kind": "normal", "overlap": turn.task.overlap, "more_filled": 1,
    }  # fmt: skip
    found = turn.connection.execute(_TAKE, known).scalar_one_or_none()
    if found is None and not turn.database.is_sqlite:
        # What others hold at this moment was passed over; nobody is told that all is done
        # because of that.
        found = turn.connection.execute(_TAKE_WAITING, known).scalar_one_or_none()
    return None if found is None else _first_time(turn, found)


def _gold(turn: Turn) -> Shown | None:
    found = turn.connection.scalar(_UNANSWERED, {**_of(turn), "of_kind": "gold"})
    return None if found is None else _first_time(turn, found)


def _first_time(turn: Turn, number: int) -> Shown:
    item = turn.item(number)
    return turn.lease(item, 0, swapped=sides(turn.task.seed, item.key, turn.annotator, 0))


def _repeat(turn: Turn, apart: int) -> Shown | None:
    """An earlier question of theirs again: from a place drawn among their votes, or before it."""
    last = turn.answered - 1 - apart
    if last < 0:
        return None
    drawn = _drawn(f"which/{turn.task.seed}/{turn.annotator}/{turn.answered}")
    start = math.floor(drawn * (last + 1))
    known = {**_of(turn), "start": start, "last": last}
    for votes in (_FROM, _BEFORE):
        row = turn.connection.execute(votes, known).one_or_none()
        if row is not None:
            return turn.lease(turn.item(row.item), 1, swapped=not row.swapped)
    return None


def _only_gold(turn: Turn) -> bool:
    """A task of nothing but gold items (a test of annotators) asks all of them."""
    return not turn.connection.scalar(
        sa.select(tasks.c.normal_items).where(tasks.c.id == turn.number)
    )
