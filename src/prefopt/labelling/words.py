"""What the labelling room speaks of. Everything here is frozen and knows no database.

Sides: an item has a `first` and a `second` completion. On which side of the screen each of
them stands is drawn for every item and annotator and kept with the claim; what is stored of
an answer is always in terms of first and second.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from prefopt.records import Completion, Prompt

Role = Literal["annotator", "lead"]
#: as on the screen / as stored, whichever side the completions stood on
Pressed = Literal["left", "right", "tie", "both_bad", "skip"]
Said = Literal["first", "second", "tie", "both_bad"]
#: `normal` items fill an overlap of annotators; `gold` ones have a known answer and go to everybody
Kind = Literal["normal", "gold"]
EventKind = Literal["lease", "vote", "skip", "undo"]


@dataclass(frozen=True, slots=True)
class Task:
    """One labelling project of a database.

    Attributes:
        name: letters, digits, `-` and `_`; it is part of addresses.
        guidelines: Markdown, shown beside every question.
        overlap: different annotators wanted for each normal item.
        lease_seconds: how long a question is kept for whoever was given it.
        gold_share: share of an annotator's questions that are gold ones, where there are any.
        repeat_share: share of an annotator's questions that are earlier ones of theirs again, with
            the sides swapped.
        seed: of sides, and of which questions come again.
    """

    name: str
    guidelines: str = ""
    overlap: int = 1
    lease_seconds: int = 900
    gold_share: float = 0.05
    repeat_share: float = 0.05
    seed: int = 0


@dataclass(frozen=True, slots=True)
class NewItem:
    """A question to ask: a prompt and two completions.

    Attributes:
        prompt, first, second: as in a `records.Group`; sources are never shown.
        priority: items with a lower one are asked first.
        gold: the known answer, for a gold item.
        meta: what the row brought along, given back by the export.
        media: digests of images and audio that belong to the prompt, in order.
    """

    prompt: Prompt
    first: Completion
    second: Completion
    priority: float = 0.0
    gold: Said | None = None
    source: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)
    media: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Item:
    """A question of a task, as it is stored: `key` is 32 hex digits of its content."""

    id: int
    key: str
    kind: Kind
    new: NewItem


@dataclass(frozen=True, slots=True)
class Annotator:
    """Somebody who labels; a `lead` also sees what the team sees."""

    id: int
    name: str
    role: Role = "annotator"


@dataclass(frozen=True, slots=True)
class Answer:
    """What an annotator pressed, and what they added.

    Attributes:
        pressed: in terms of the screen.
        strength: 1 slightly, 2 clearly, 3 much better; only with left or right.
        reason: one of a few words of the form, or None.
        flagged: somebody should look at this item.
        comment: free text, at most 2,000 characters.
        seconds: from seeing the question to answering it, as the page measured it.
    """

    pressed: Pressed
    strength: int | None = None
    reason: str | None = None
    flagged: bool = False
    comment: str = ""
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened; events are only ever appended.

    Attributes:
        id: in the order of happening within a database.
        repeat: 0 the first time an annotator is asked this item, 1 when it comes again.
        key: idempotency key of the request, unique for an annotator; a lease's is its own number.
        at: seconds since the epoch, by the server's clock.
        payload: of a lease `until` and `swapped` (the second completion stood on the left); of
            a vote `said`, `strength`, `reason`, `flagged`, `comment`, `seconds`; of a skip
            `flagged`, `comment`, `seconds`; of an undo the `event` that it takes back.
    """

    id: int
    kind: EventKind
    item: int
    annotator: int
    repeat: int
    key: str
    at: float
    payload: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Shown:
    """A question as it is given to one annotator.

    Attributes:
        lease: the number to send back with the answer.
        until: when the lease ends, seconds since the epoch.
        swapped: the item's second completion stands on the left.
        before: the annotator's answer that an undo has just taken back, to start from.
    """

    lease: int
    item: Item
    repeat: int
    swapped: bool
    until: float
    before: Mapping[str, Any] | None = None

    @property
    def left(self) -> Completion:
        """What stands on the left."""
        return self.item.new.second if self.swapped else self.item.new.first

    @property
    def right(self) -> Completion:
        """What stands on the right."""
        return self.item.new.first if self.swapped else self.item.new.second


@dataclass(frozen=True, slots=True)
class Recorded:
    """The receipt of an answer: it is on disk.

    Attributes:
        event: its number.
        repeated: this very request had been answered before, and nothing was added.
    """

    event: int
    repeated: bool


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a task is.

    Attributes:
        wanted: votes that the normal items want, overlap times items.
        votes: votes that they have.
        done: normal items with all the votes that they want.
        items: normal items.
        mine: answers of the annotator asking, of all kinds.
    """

    wanted: int
    votes: int
    done: int
    items: int
    mine: int
