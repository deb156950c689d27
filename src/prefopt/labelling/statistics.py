"""What the team sees of a task: how far it is, how well people agree, and where to look.

Everything is computed from items and events, so it is the same on every database and after
every import. Shares have 95 % intervals: Jeffreys' for one annotator's, drawn prompts for
agreement. What is said of an item again by the same annotator counts for self-consistency and for
telling conflicts from ties, and nowhere else.
"""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from prefopt.data.acquisition.stopping import divided, share_interval, verdict
from prefopt.data.aggregation.agreement import Judgements, alpha, alpha_interval, between
from prefopt.data.aggregation.annotators import judged
from prefopt.data.aggregation.reading import votes_of_groups
from prefopt.data.aggregation.rules import Method
from prefopt.data.aggregation.table import Ints
from prefopt.labelling.replaying import Claim
from prefopt.labelling.voted import answers_of, rows_of, side_of, soft_labels
from prefopt.labelling.words import Annotator, Event, Item, Task
from prefopt.records import Group, prompt_key

if TYPE_CHECKING:
    from prefopt.labelling.store import Store

#: an answer given sooner was not read, unless the texts are a word each
FAST = 1.0
_SHOWN = 80  # characters of a prompt that stand for it
_VALUES = {"first": 0, "second": 1, "tie": 2, "both_bad": 2}
_FOR_FIRST = {"first": 1.0, "second": 0.0, "tie": 0.5, "both_bad": 0.5}


@dataclass(frozen=True)
class Share:
    """So many of so many, with the 95 % Jeffreys interval of the share; None of none."""

    count: int
    of: int

    def to_dict(self) -> dict[str, Any]:
        """`count`, `of`, `share` and `interval`."""
        known = self.of > 0
        return {
            "count": self.count,
            "of": self.of,
            "share": self.count / self.of if known else None,
            "interval": list(share_interval(self.count, self.of)) if known else None,
        }


@dataclass(frozen=True)
class Team:
    """What the team sees of a task.

    Attributes:
        task: its name.
        progress: `items`, `done` (with all the votes they want), `votes`, `wanted`, `gold`
            (items), `answers` (of all kinds that stand), `skips`, `undone`, `last` (seconds since
            the epoch).
        agreement: `alpha` (Krippendorff's, of first, second and tie; None where it is not
            defined), its `interval`, `items` (that two people or more voted on), `compared` and
            `agreed` (pairs of votes of two people on one item).
        annotators: one object each, see `_annotator`; those with most answers first.
        counts: how many items are in each of the lists below, however many are listed; and of
            the voted items how many are `decided` and `open` (`acquisition.stopping`).
        conflicts: items of which some say first and others second.
        ties: items with at least as many votes for a tie as for the two sides together.
        both_bad, flagged: items with such an answer. What is listed of an item: `_place`.
        labels: the current soft label of every item with votes: `item`, `key`, `prompt`,
            `probability` (that the first completion is better, by `rule`), `votes`, `share` and
            `interval` (of its votes for the first, ties half), `state`.
        rule: of the soft labels.
    """

    task: str
    progress: dict[str, Any]
    agreement: dict[str, Any]
    annotators: list[dict[str, Any]]
    counts: dict[str, int]
    conflicts: list[dict[str, Any]]
    ties: list[dict[str, Any]]
    both_bad: list[dict[str, Any]]
    flagged: list[dict[str, Any]]
    labels: list[dict[str, Any]]
    rule: str

    def to_dict(self) -> dict[str, Any]:
        """As `prefopt label status --json` and `team.json` show it."""
        return asdict(self)


def team(store: Store, task: str, *, rule: Method = "smoothed") -> Team:
    """What the team sees of a task of a database.

    Raises:
        RecipeError: there is no such task.
        DataError: the rule asks for more votes than there are.
    """
    settings = store.task(task)
    events = list(store.events(task))  # first: what they name is there by then
    return team_of(settings, list(store.items(task)), events, store.annotators(), rule=rule)


def team_of(
    task: Task,
    items: Sequence[Item],
    events: Sequence[Event],
    annotators: Iterable[Annotator],
    *,
    rule: Method = "smoothed",
    listed: int = 200,
) -> Team:
    """The same of items and events, in the order of their numbers.

    Args:
        listed: most items in each list.
    """
    people = {annotator.id: annotator for annotator in annotators}
    answers = answers_of(events)
    rows = rows_of(items, answers, {number: one.name for number, one in people.items()})
    said: dict[int, list[Claim]] = {item.id: [] for item in items}
    for answer in answers:
        said[answer.item].append(answer)
    labels = _labels(items, said, soft_labels(rows, rule))
    found = {name: [item for item in items if wanted(said[item.id])]
             for name, wanted in _LISTS.items()}  # fmt: skip
    states = Counter(label["state"] for label in labels)
    return Team(
        task=task.name,
        progress=_progress(task, items, answers, events),
        agreement=_agreement([row.group for row in rows if row.group.votes]),
        annotators=_annotators(items, answers, events, people),
        counts={**{name: len(part) for name, part in found.items()},
                "decided": states["decided"], "open": states["open"]},
        labels=labels,
        rule=rule,
        **{name: [_place(item, said[item.id], people) for item in part[:listed]]
           for name, part in found.items()},
    )  # fmt: skip


# -- items ------------------------------------------------------------------------------------


def _firsts(answers: Iterable[Claim]) -> list[Claim]:
    """The votes among answers to one item, without those of its repetitions."""
    return [answer for answer in answers if answer.repeat == 0 and answer.said is not None]


def _divides(answers: Iterable[Claim]) -> bool:
    return {"first", "second"} <= {answer.said for answer in _firsts(answers)}


def _ties(answers: Iterable[Claim]) -> bool:
    votes = _firsts(answers)
    return bool(votes) and 2 * sum(side_of(answer) is None for answer in votes) >= len(votes)


_LISTS: Mapping[str, Callable[[Iterable[Claim]], bool]] = {
    "conflicts": _divides,
    "ties": _ties,
    "both_bad": lambda answers: any(answer.said == "both_bad" for answer in answers),
    "flagged": lambda answers: any(answer.flagged for answer in answers),
}


def _place(item: Item, answers: Iterable[Claim], people: Mapping[int, Annotator]) -> dict[str, Any]:
    """`item`, `key`, `kind`, `prompt` (shortened) and `answers` with who said what and why."""
    return {
        "item": item.id,
        "key": item.key,
        "kind": item.kind,
        "prompt": _shortened(item),
        "answers": [
            {
                "annotator": people[answer.annotator].name,
                "repeat": answer.repeat,
                "said": answer.said or "skip",
                "strength": answer.strength,
                "reason": answer.reason,
                "flagged": answer.flagged,
                "comment": answer.comment,
                "seconds": answer.seconds,
            }
            for answer in answers
        ],
    }


def _shortened(item: Item) -> str:
    prompt = item.new.prompt
    text = prompt if isinstance(prompt, str) else prompt[-1].content if prompt else ""
    plain = " ".join(text[: 4 * _SHOWN].split())
    return plain if len(plain) <= _SHOWN else plain[: _SHOWN - 1] + "…"


def _labels(
    items: Iterable[Item],
    said: Mapping[int, Sequence[Claim]],
    probabilities: Mapping[int, float],
) -> list[dict[str, Any]]:
    labels = []
    for item in items:
        if item.id not in probabilities:
            continue
        votes = _firsts(said[item.id])
        total = sum(_FOR_FIRST[answer.said] for answer in votes if answer.said)
        labels.append({
            "item": item.id,
            "key": item.key,
            "prompt": _shortened(item),
            "probability": probabilities[item.id],
            "votes": len(votes),
            "share": total / len(votes),
            "interval": list(share_interval(total, len(votes))),
            "state": _state(said[item.id]),
        })  # fmt: skip
    return labels


def _state(answers: Iterable[Claim]) -> str:
    """`decided`, `tie` or `open` by the votes; `conflict` where repetitions prove one."""
    answers = list(answers)
    state = verdict(_given(_firsts(answers))).state
    return "conflict" if state != "decided" and divided(_given(answers)) else state


def _given(answers: Iterable[Claim]) -> list[tuple[str | None, float]]:
    return [(str(one.annotator), _FOR_FIRST[one.said]) for one in answers if one.said is not None]


# -- the whole ----------------------------------------------------------------------------------


def _progress(
    task: Task, items: Sequence[Item], answers: Sequence[Claim], events: Sequence[Event]
) -> dict[str, Any]:
    normal = {item.id for item in items if item.kind == "normal"}
    votes = Counter(answer.item for answer in _firsts(answers) if answer.item in normal)
    return {
        "items": len(normal),
        "done": sum(count >= task.overlap for count in votes.values()),
        "votes": votes.total(),
        "wanted": task.overlap * len(normal),
        "gold": len(items) - len(normal),
        "answers": len(answers),
        "skips": sum(answer.said is None for answer in answers),
        "undone": sum(event.kind == "undo" for event in events),
        "last": max((answer.at or 0.0 for answer in answers), default=None),
    }


def _agreement(groups: Sequence[Group]) -> dict[str, Any]:
    """Over normal items: gold ones are easy on purpose and would flatter it."""
    if not groups:
        return {"alpha": None, "interval": None, "items": 0, "compared": 0, "agreed": 0}
    votes = votes_of_groups(groups)
    prompts = codes(group.prompt_key for group in groups)[votes.question[votes.items.low]]
    columns = judged(votes)
    found, counts = alpha(*columns), votes.items.counts
    defined = found == found
    return {
        "alpha": found if defined else None,
        "interval": list(alpha_interval(*columns, questions=prompts)) if defined else None,
        "items": int((counts.sum(axis=1) > 1).sum()),
        "compared": int((counts.sum(axis=1) * (counts.sum(axis=1) - 1) // 2).sum()),
        "agreed": int((counts * (counts - 1) // 2).sum()),
    }


# -- annotators ---------------------------------------------------------------------------------


def _annotators(
    items: Iterable[Item],
    answers: Sequence[Claim],
    events: Sequence[Event],
    people: Mapping[int, Annotator],
) -> list[dict[str, Any]]:
    known = {item.id: item for item in items}
    theirs: dict[int, list[Claim]] = defaultdict(list)
    for answer in answers:
        theirs[answer.annotator].append(answer)
    undone = Counter(event.annotator for event in events if event.kind == "undo")
    place = {number: place for place, number in enumerate(known)}
    votes = _judgements([v for v in _firsts(answers) if known[v.item].kind == "normal"], place)
    prompts = codes(prompt_key(item.new.prompt) for item in known.values())
    rows = [
        {
            "annotator": person.name,
            "role": person.role,
            **_annotator(theirs[number], known),
            "undone": undone[number],
            "agreement": _with_others(number, votes, prompts),
        }
        for number, person in people.items()
        if number in theirs or undone[number]
    ]
    return sorted(rows, key=lambda row: (-row["answers"], row["annotator"]))


def _annotator(answers: Sequence[Claim], known: Mapping[int, Item]) -> dict[str, Any]:
    """What is known of one annotator.

    Returns:
        `answers` (all kinds that stand), `votes` (on normal items), `skips`, `ties`, `both_bad`,
        `flags`, `comments`, `last`; `left` (of the votes for one side, those for the one on the
        left), with `marked` where its interval excludes one half; `seconds` (`median`, `fast` under
        a second, `of` with a time); `gold` (right, of gold items); `self` (said the same again, of
        repeated items, both bad being a tie).
    """
    votes = _firsts(answers)
    sides = [side for answer in votes if (side := side_of(answer))]
    left = Share(sides.count("left"), len(sides)).to_dict()
    low, high = left["interval"] or (0.0, 1.0)
    times = [answer.seconds for answer in answers if answer.seconds is not None]
    asked = [(known[one.item].new.gold, one.said) for one in votes if known[one.item].new.gold]
    return {
        "answers": len(answers),
        "votes": sum(known[answer.item].kind == "normal" for answer in votes),
        "skips": sum(answer.said is None for answer in answers),
        "ties": sum(answer.said == "tie" for answer in votes),
        "both_bad": sum(answer.said == "both_bad" for answer in votes),
        "flags": sum(answer.flagged for answer in answers),
        "comments": sum(bool(answer.comment) for answer in answers),
        "last": max((answer.at or 0.0 for answer in answers), default=None),
        "left": {**left, "marked": not low <= 0.5 <= high},
        "seconds": {"median": statistics.median(times) if times else None,
                    "fast": sum(time < FAST for time in times), "of": len(times)},
        "gold": Share(sum(answer == said for answer, said in asked), len(asked)).to_dict(),
        "self": _self_consistency(answers).to_dict(),
    }  # fmt: skip


def _self_consistency(answers: Iterable[Claim]) -> Share:
    first = {answer.item: answer for answer in _firsts(answers)}
    again = [
        (_VALUES[answer.said], _VALUES[before.said])
        for answer in answers
        if answer.repeat > 0 and answer.said is not None
        if (before := first.get(answer.item)) is not None and before.said is not None
    ]
    return Share(sum(now == before for now, before in again), len(again))


def _judgements(votes: Sequence[Claim], place: Mapping[int, int]) -> Judgements:
    """Votes as arrays, items by their places."""
    columns = (
        [place[vote.item] for vote in votes],
        [vote.annotator for vote in votes],
        [_VALUES[vote.said] for vote in votes if vote.said],
    )
    return Judgements(*(np.array(column, dtype=np.int64) for column in columns))


def _with_others(annotator: int, votes: Judgements, prompts: Ints) -> dict[str, Any]:
    """How often the votes of others on the same items say the same; interval by drawing prompts."""
    own = votes.annotators == annotator
    others = ~own & np.isin(votes.items, votes.items[own])
    theirs, rest = (Judgements(*(column[part] for column in votes)) for part in (own, others))
    found = between(theirs, rest, questions=prompts)
    return {
        "agreed": found.agreed,
        "compared": found.compared,
        "share": found.share,
        "interval": list(found.interval) if found.interval else None,
    }


def codes(keys: Iterable[bytes]) -> Ints:
    """A number for each of some keys, the same for the same ones.

    >>> codes([b"x", b"y", b"x"]).tolist()
    [0, 1, 0]
    """
    known: dict[bytes, int] = {}
    return np.array([known.setdefault(key, len(known)) for key in keys], dtype=np.int64)
