"""Items and the answers that stand, as groups with votes: what export and statistics are made of.

Items that came of one row of a pool (the same prompt, source, `meta` and media) are one group
again, so that a completion is there once, however many pairs it is in. A vote has the completion
that stood on the left first. `both_bad` is a vote for a tie, and a skip is none. Only somebody's
first answer to an item is a vote: the answer to its repetition is not another person's. Gold items
have no votes here either: their answer was known, and they went to everybody.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, cast

from prefopt.data.aggregation.document import with_comparisons
from prefopt.data.aggregation.reading import Ballots, votes_of_groups
from prefopt.data.aggregation.rules import Method
from prefopt.data.aggregation.rules import aggregate as by_rule
from prefopt.labelling.replaying import Claim, replay
from prefopt.labelling.words import Event, Item
from prefopt.records import Choice, Completion, Group, Vote, prompt_key


@dataclass(frozen=True, slots=True)
class Row:
    """A group, and the items in it.

    Attributes:
        group: with the votes on the normal ones.
        items: in the order of their numbers.
        places: of each, where its first and its second completion are in the group.
    """

    group: Group
    items: Sequence[Item]
    places: Sequence[tuple[int, int]]


def answers_of(events: Iterable[Event]) -> list[Claim]:
    """The answers that stand (votes and skips), in the order in which they were given.

    Args:
        events: of one task, in the order of their numbers.

    Raises:
        DataError: events that cannot have happened.
    """
    given = [claim for claim in replay(events).values() if claim.event is not None]
    return sorted(given, key=lambda claim: claim.event or 0)


def side_of(answer: Claim) -> Literal["left", "right"] | None:
    """Which side of the screen was better; None for a tie, for both bad and for a skip.

    >>> lease = Event(1, "lease", 7, 3, 0, "1", 0.0, {"until": 9.0, "swapped": True})
    >>> vote = Event(2, "vote", 7, 3, 0, "k", 4.0, {"said": "first"})
    >>> [(answer.said, side_of(answer)) for answer in answers_of([lease, vote])]
    [('first', 'right')]
    """
    if answer.said not in ("first", "second"):
        return None
    return "right" if (answer.said == "first") == answer.swapped else "left"


def rows_of(items: Iterable[Item], answers: Iterable[Claim], names: Mapping[int, str]) -> list[Row]:
    """The groups of a task, in the order of their first items.

    Args:
        items: of the task, in the order of their numbers.
        answers: those that stand, in the order in which they were given.
        names: of the annotators.
    """
    said: dict[int, list[Claim]] = defaultdict(list)
    for answer in answers:
        if answer.repeat == 0 and answer.said is not None:
            said[answer.item].append(answer)
    drafts: dict[object, _Draft] = {}
    for item in items:
        drafts.setdefault(_row_of(item), _Draft()).add(item)
    return [draft.row(said, names) for draft in drafts.values()]


@dataclass
class _Draft:
    items: list[Item] = field(default_factory=list)
    places: list[tuple[int, int]] = field(default_factory=list)
    completions: dict[Completion, int] = field(default_factory=dict)

    def add(self, item: Item) -> None:
        first, second = (
            self.completions.setdefault(side, len(self.completions))
            for side in (item.new.first, item.new.second)
        )
        self.items.append(item)
        self.places.append((first, second))

    def row(self, said: Mapping[int, list[Claim]], names: Mapping[int, str]) -> Row:
        cast_votes = [
            (answer, place)
            for item, place in zip(self.items, self.places, strict=True)
            if item.kind == "normal"
            for answer in said.get(item.id, ())
        ]
        cast_votes.sort(key=lambda vote: vote[0].event or 0)
        new = self.items[0].new
        votes = tuple(_vote(answer, place, names) for answer, place in cast_votes)
        group = Group(
            new.prompt, tuple(self.completions), votes=votes, source=new.source, meta=new.meta
        )
        return Row(group, self.items, self.places)


def _row_of(item: Item) -> object:
    new = item.new
    meta = json.dumps(dict(new.meta), sort_keys=True, default=str)
    return prompt_key(new.prompt), new.source, meta, new.media, item.kind


def _vote(answer: Claim, place: tuple[int, int], names: Mapping[int, str]) -> Vote:
    left, right = place[::-1] if answer.swapped else place
    choice = {"left": "first", "right": "second", None: "tie"}[side_of(answer)]
    return Vote(left, right, cast(Choice, choice), names[answer.annotator])


# -- what a rule makes of them ------------------------------------------------------------------


def soft_labels(rows: Sequence[Row], method: Method) -> dict[int, float]:
    """The probability that the first completion of an item is better, of every item with votes.

    Args:
        rows: of a task.
        method: a rule of `data.aggregation.rules`.

    Raises:
        DataError: the votes do not determine what the rule asks for.
    """
    voted = [row for row in rows if row.group.votes]
    if not voted:
        return {}
    votes = votes_of_groups(row.group for row in voted)
    probability = by_rule(votes, method).probability
    starts, start = [], 0
    for row in voted:
        starts.append(start)
        start += len(row.group.completions)
    known: dict[tuple[int, int], float] = {
        (int(low), int(high)): float(p)
        for low, high, p in zip(votes.items.low, votes.items.high, probability, strict=True)
    }
    labels: dict[int, float] = {}
    for row, base in zip(voted, starts, strict=True):
        for item, (first, second) in zip(row.items, row.places, strict=True):
            low, high = sorted((base + first, base + second))
            p = known.get((low, high))
            if p is not None and p == p:
                labels[item.id] = p if first < second else 1.0 - p
    return labels


def with_rule(rows: Sequence[Row], method: Method) -> list[Group]:
    """The groups that have votes, with the comparisons that a rule makes of them.

    Raises:
        DataError: the votes do not determine what the rule asks for.
    """
    groups = [row.group for row in rows if row.group.votes]
    if not groups:
        return []
    votes = votes_of_groups(groups)
    ballots = Ballots(votes, groups, len(groups), unreadable=0, skipped=Counter())
    return list(with_comparisons(ballots, by_rule(votes, method), "prompts"))
