"""What became of every question with every annotator: events to claims, without a database.

The projection that the store keeps must be what this gives; nothing else decides what it is.
A lease's end is no event: it is a matter of the clock, and whoever reads a claim compares.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple

from prefopt.errors import DataError
from prefopt.labelling.words import Event, Said

State = Literal["leased", "voted", "skipped"]


class Asked(NamedTuple):
    """One question to one annotator, the first time (repeat 0) or again (1)."""

    item: int
    annotator: int
    repeat: int


@dataclass(frozen=True, slots=True)
class Claim:
    """What became of one question with one annotator.

    Attributes:
        item, annotator, repeat: which question, whose, and whether it came again.
        state: given out (perhaps long ago: see `until`), voted or skipped.
        lease: the event that gave it out last.
        until: when that lease ends, seconds since the epoch.
        swapped: the item's second completion stands on the left.
        event: the vote or skip that stands; None while it is leased.
        at: when that was.
        place: it is the so-many-th answer of this annotator in this task, from 0.
        said: None if skipped or leased; strength, reason, flagged, comment, seconds: as in
            `words.Answer`.
    """

    item: int
    annotator: int
    repeat: int
    state: State
    lease: int
    until: float
    swapped: bool
    event: int | None = None
    at: float | None = None
    place: int | None = None
    said: Said | None = None
    strength: int | None = None
    reason: str | None = None
    flagged: bool = False
    comment: str = ""
    seconds: float | None = None


def replay(events: Iterable[Event]) -> dict[Asked, Claim]:
    """The claims that the events of one task lead to.

    Args:
        events: in the order of their numbers.

    Raises:
        DataError: an event that cannot follow those before it.

    >>> lease = Event(1, "lease", 7, 3, 0, "1", 0.0, {"until": 9.0, "swapped": True})
    >>> vote = Event(2, "vote", 7, 3, 0, "k", 4.0, {"said": "first"})
    >>> replay([lease, vote])[7, 3, 0].said
    'first'
    >>> undo = Event(3, "undo", 7, 3, 0, "u", 5.0, {"event": 2})
    >>> replay([lease, vote, undo])[7, 3, 0].state
    'leased'
    """
    history = _History()
    for event in events:
        history.add(event)
    return history.claims


@dataclass
class _History:
    claims: dict[Asked, Claim] = field(default_factory=dict)
    #: what each annotator has answered, oldest first: only the last of it can be taken back
    answered: dict[int, list[Asked]] = field(default_factory=dict)

    def add(self, event: Event) -> None:
        asked = Asked(event.item, event.annotator, event.repeat)
        claim = self.claims.get(asked)
        mine = self.answered.setdefault(event.annotator, [])
        if event.kind == "lease":
            self._lease(asked, claim, event)
        elif event.kind == "undo":
            if claim is None or not mine or mine[-1] != asked:
                raise _impossible(event, "it takes back what is not their last answer")
            if claim.event != event.payload.get("event"):
                raise _impossible(event, "it takes back another event than their last answer")
            mine.pop()
            self.claims[asked] = open_again(claim)
        else:
            if claim is None or claim.state != "leased":
                raise _impossible(event, "the question was not open for this annotator")
            self.claims[asked] = answered(
                claim,
                state="voted" if event.kind == "vote" else "skipped",
                event=event.id,
                at=event.at,
                place=len(mine),
                payload=event.payload,
            )
            mine.append(asked)

    def _lease(self, asked: Asked, claim: Claim | None, event: Event) -> None:
        if claim is not None and claim.state != "leased":
            raise _impossible(event, "the question has been answered")
        self.claims[asked] = Claim(
            *asked,
            state="leased",
            lease=event.id,
            until=float(event.payload["until"]),
            swapped=bool(event.payload["swapped"]),
        )


def open_again(claim: Claim) -> Claim:
    """The claim after its answer was taken back."""
    return Claim(
        claim.item, claim.annotator, claim.repeat,
        "leased", claim.lease, claim.until, claim.swapped,
    )  # fmt: skip


def answered(
    claim: Claim, *, state: State, event: int, at: float, place: int, payload: Any
) -> Claim:
    """The claim after an answer."""
    return replace(
        claim,
        state=state,
        event=event,
        at=at,
        place=place,
        said=payload.get("said"),
        strength=payload.get("strength"),
        reason=payload.get("reason"),
        flagged=bool(payload.get("flagged", False)),
        comment=payload.get("comment") or "",
        seconds=payload.get("seconds"),
    )


def _impossible(event: Event, why: str) -> DataError:
    return DataError(
        f"event {event.id}, a {event.kind} on item {event.item} by annotator "
        f"{event.annotator}, cannot have happened: {why}",
        kind="impossible_event",
    )
