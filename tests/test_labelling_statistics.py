"""What the team sees: every number worked out by hand on a small history."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from prefopt.data.acquisition.stopping import share_interval
from prefopt.data.aggregation.agreement import alpha
from prefopt.data.aggregation.shares import smoothed
from prefopt.labelling.statistics import Team, team_of
from prefopt.labelling.voted import answers_of, rows_of, side_of, soft_labels, with_rule
from prefopt.labelling.words import Annotator, Event, Item, NewItem, Said, Task
from prefopt.records import Comparison, Completion, Vote

PEOPLE = [Annotator(1, "ann"), Annotator(2, "bob"), Annotator(3, "eve", "lead")]
TASK = Task("t", overlap=2)


def item(number: int, *, gold: Said | None = None, prompt: str | None = None) -> Item:
    new = NewItem(prompt or f"prompt {number}", Completion("a"), Completion("b"), gold=gold)
    return Item(number, f"{number:032x}", "gold" if gold else "normal", new)


class Diary:
    """Events as a store would write them."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def add(self, kind: str, item: int, who: int, repeat: int, **payload: Any) -> int:
        number = len(self.events) + 1
        key = str(number) if kind == "lease" else f"k{number}"
        self.events.append(
            Event(number, kind, item, who, repeat, key, 100.0 + number, payload)  # type: ignore[arg-type]
        )
        return number

    def says(
        self, who: int, item: int, said: str, *, swapped: bool = False, repeat: int = 0, **more: Any
    ) -> int:
        self.add("lease", item, who, repeat, until=1e9, swapped=swapped)
        if said == "skip":
            return self.add("skip", item, who, repeat, **more)
        return self.add("vote", item, who, repeat, said=said, **more)

    def undoes(self, who: int, item: int, event: int, repeat: int = 0) -> int:
        return self.add("undo", item, who, repeat, event=event)


@pytest.fixture
def diary() -> Diary:
    return Diary()


def seen(items: Iterable[Item], diary: Diary, **options: Any) -> Team:
    return team_of(TASK, list(items), diary.events, PEOPLE, **options)


def of(team: Team, name: str) -> dict[str, Any]:
    (row,) = [row for row in team.annotators if row["annotator"] == name]
    return row


# -- votes as shown --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "swapped", "side"),
    [
        ("first", False, "left"),
        ("first", True, "right"),
        ("second", False, "right"),
        ("second", True, "left"),
        ("tie", True, None),
        ("both_bad", False, None),
    ],
)
def test_a_side_is_a_matter_of_what_stood_there(
    diary: Diary, said: str, swapped: bool, side: str | None
) -> None:
    diary.says(1, 1, said, swapped=swapped)
    (answer,) = answers_of(diary.events)
    assert side_of(answer) == side
    ((group,), (row,)) = (
        with_rule(rows_of([item(1)], [answer], {1: "ann"}), "smoothed"),
        rows_of([item(1)], [answer], {1: "ann"}),
    )
    (vote,) = row.group.votes
    assert (vote.first, vote.second) == ((1, 0) if swapped else (0, 1))
    assert vote.choice == {"left": "first", "right": "second", None: "tie"}[side]
    # the left side first or not: the comparison says what was meant
    meant = {"first": 0.75, "second": 0.25}.get(said, 0.5)
    (edge,) = group.comparisons
    first = edge.probability if edge.preferred == 0 else 1 - edge.probability
    assert first == meant


def test_items_of_one_row_are_one_group_with_each_completion_once(diary: Diary) -> None:
    texts = [Completion("x"), Completion("y"), Completion("z")]
    pairs = [(0, 1), (0, 2), (1, 2)]
    items = [
        replace(item(n), new=NewItem("p", texts[a], texts[b], meta={"row": 1}))
        for n, (a, b) in enumerate(pairs, start=1)
    ]
    other = replace(item(4), new=NewItem("p", texts[0], texts[1], meta={"row": 2}))
    diary.says(1, 3, "second", swapped=True)
    diary.says(2, 1, "first")
    rows = rows_of([*items, other], answers_of(diary.events), {1: "ann", 2: "bob"})
    assert [len(row.items) for row in rows] == [3, 1]
    group = rows[0].group
    assert group.completions == tuple(texts)
    assert rows[0].places == pairs
    assert group.votes == (Vote(2, 1, "first", "ann"), Vote(0, 1, "first", "bob"))
    assert (group.meta, rows[1].group.meta) == ({"row": 1}, {"row": 2})
    (aggregated,) = with_rule(rows, "smoothed")  # the other row has no votes
    assert aggregated.comparisons == (Comparison(0, 1, 0.75), Comparison(2, 1, 0.75))
    assert soft_labels(rows, "smoothed") == {1: 0.75, 3: 0.25}


def test_a_completion_that_came_earlier_may_be_the_second(diary: Diary) -> None:
    x, y, z = Completion("x"), Completion("y"), Completion("z")
    items = [replace(item(1), new=NewItem("p", x, y)), replace(item(2), new=NewItem("p", z, x))]
    diary.says(1, 2, "first")
    rows = rows_of(items, answers_of(diary.events), {1: "ann"})
    assert rows[0].places == [(0, 1), (2, 0)]
    assert soft_labels(rows, "smoothed") == {2: 0.75}


def test_what_was_taken_back_skipped_repeated_or_gold_is_no_vote(diary: Diary) -> None:
    taken = diary.says(1, 1, "first")
    diary.undoes(1, 1, taken)
    diary.says(2, 1, "skip")
    diary.says(1, 2, "second")
    diary.says(1, 2, "first", repeat=1, swapped=True)
    diary.says(1, 3, "first")
    items = [item(1), item(2), item(3, gold="first")]
    rows = rows_of(items, answers_of(diary.events), {1: "ann", 2: "bob"})
    assert [row.group.votes for row in rows] == [(), (Vote(0, 1, "second", "ann"),), ()]


# -- numbers by hand -------------------------------------------------------------------------


def test_progress(diary: Diary) -> None:
    for who in (1, 2):
        diary.says(who, 1, "first")
    diary.says(1, 2, "tie")
    diary.says(2, 2, "skip")
    diary.undoes(1, 3, diary.says(1, 3, "first"))
    diary.says(1, 4, "second")
    team = seen([item(1), item(2), item(3), item(4, gold="first")], diary)
    assert team.progress == {
        "items": 3, "done": 1, "votes": 3, "wanted": 6, "gold": 1, "answers": 5, "skips": 1,
        "undone": 1, "last": 100.0 + len(diary.events),
    }  # fmt: skip
    assert (of(team, "ann")["undone"], of(team, "bob")["undone"]) == (1, 0)


def test_agreement_is_krippendorffs_over_first_votes_on_normal_items(diary: Diary) -> None:
    said = {1: "ff", 2: "ss", 3: "ft", 4: "fs", 5: "tb"}
    words = {"f": "first", "s": "second", "t": "tie", "b": "both_bad"}
    for number, pair in said.items():
        for who, letter in enumerate(pair, start=1):
            diary.says(who, number, words[letter], swapped=bool((number + who) % 2))
    # neither of these counts: a repetition, and an item of which the answer is known
    diary.says(1, 4, "second", repeat=1)
    diary.says(1, 6, "first"), diary.says(2, 6, "first")
    team = seen([*map(item, said), item(6, gold="first")], diary)
    values = {"f": 0, "s": 1, "t": 2, "b": 2}
    columns = [
        (number, who, values[letter])
        for number, pair in said.items()
        for who, letter in enumerate(pair)
    ]
    assert team.agreement["alpha"] == pytest.approx(alpha(*zip(*columns, strict=True)))
    low, high = team.agreement["interval"]
    assert low <= team.agreement["alpha"] <= high
    assert (team.agreement["items"], team.agreement["compared"]) == (5, 5)
    assert team.agreement["agreed"] == 3
    for name in ("ann", "bob"):
        assert (of(team, name)["agreement"]["agreed"], of(team, name)["agreement"]["compared"]) == (
            3,
            5,
        )
        assert of(team, name)["agreement"]["share"] == 0.6


def test_intervals_of_agreement_draw_prompts(diary: Diary) -> None:
    """Copies of a prompt's questions say nothing new: the interval is no narrower for them."""
    items = []
    for prompt in range(8):
        for copy in range(6):
            number = 6 * prompt + copy + 1
            sides = Completion(f"a{copy}"), Completion(f"b{copy}")
            new = NewItem(f"prompt {prompt}", *sides)
            items.append(replace(item(number), new=new))
            diary.says(1, number, "second" if prompt in (1, 2) else "first")
            diary.says(2, number, "second" if prompt in (1, 4) else "first")
    apart = [replace(one, new=replace(one.new, prompt=str(one.id))) for one in items]

    def width(ends: list[float]) -> float:
        return ends[1] - ends[0]

    here, there = seen(items, diary), seen(apart, diary)
    assert here.agreement["alpha"] == there.agreement["alpha"]
    assert width(here.agreement["interval"]) > 1.7 * width(there.agreement["interval"])
    mine, others = (of(team, "ann")["agreement"] for team in (here, there))
    assert mine["share"] == others["share"] == 0.75
    assert width(mine["interval"]) > 1.7 * width(others["interval"])


def test_agreement_is_not_a_number_made_up(diary: Diary) -> None:
    diary.says(1, 1, "first")
    team = seen([item(1), item(2)], diary)
    assert team.agreement == {
        "alpha": None, "interval": None, "items": 0, "compared": 0, "agreed": 0,
    }  # fmt: skip
    assert of(team, "ann")["agreement"]["share"] is None
    assert seen([item(1)], Diary()).agreement["alpha"] is None


def test_somebody_who_leans_left_is_marked(diary: Diary) -> None:
    for number in range(1, 21):
        diary.says(1, number, "first", swapped=number % 2 == 0)  # by content: ten to each side
        diary.says(2, number, "second" if number % 2 == 0 else "first", swapped=number % 2 == 0)
        diary.says(3, number, "tie")
    team = seen(map(item, range(1, 21)), diary)
    assert of(team, "ann")["left"] == {
        "count": 10, "of": 20, "share": 0.5, "interval": list(share_interval(10, 20)),
        "marked": False,
    }  # fmt: skip
    assert of(team, "bob")["left"]["count"] == of(team, "bob")["left"]["of"] == 20
    assert of(team, "bob")["left"]["marked"] is True
    assert of(team, "eve")["left"] == {
        "count": 0, "of": 0, "share": None, "interval": None, "marked": False,
    }  # fmt: skip


def test_seconds_gold_and_self_consistency(diary: Diary) -> None:
    diary.says(1, 1, "first", seconds=0.4)
    diary.says(1, 2, "tie", seconds=8.0, flagged=True, comment="unclear")
    diary.says(1, 3, "skip", seconds=2.0)
    diary.says(1, 4, "both_bad")
    diary.says(1, 5, "first"), diary.says(1, 6, "first"), diary.says(1, 7, "skip")
    diary.says(1, 1, "first", repeat=1, swapped=True)
    diary.says(1, 2, "second", repeat=1, swapped=True)
    diary.says(1, 4, "tie", repeat=1)  # both bad is a tie
    items = [*map(item, range(1, 5)), item(5, gold="first"), item(6, gold="second"),
             item(7, gold="second")]  # fmt: skip
    row = of(seen(items, diary), "ann")
    assert row["seconds"] == {"median": 2.0, "fast": 1, "of": 3}
    assert row["gold"] == {
        "count": 1, "of": 2, "share": 0.5, "interval": list(share_interval(1, 2)),
    }  # fmt: skip
    assert (row["self"]["count"], row["self"]["of"]) == (2, 3)
    counted = {name: row[name] for name in ("answers", "votes", "skips", "ties", "both_bad",
                                            "flags", "comments")}  # fmt: skip
    assert counted == {
        "answers": 10, "votes": 3, "skips": 2, "ties": 1, "both_bad": 1, "flags": 1, "comments": 1,
    }  # fmt: skip


def test_a_repetition_whose_first_answer_was_a_skip_says_nothing_of_consistency(
    diary: Diary,
) -> None:
    diary.says(1, 1, "skip")
    diary.says(1, 1, "first", repeat=1)
    assert of(seen([item(1)], diary), "ann")["self"]["of"] == 0


def test_where_to_look(diary: Diary) -> None:
    diary.says(1, 1, "first"), diary.says(2, 1, "second", reason="wrong", strength=3)
    diary.says(1, 2, "tie"), diary.says(2, 2, "first")
    diary.says(1, 3, "both_bad"), diary.says(2, 3, "first"), diary.says(3, 3, "first")
    diary.says(1, 4, "skip", flagged=True, comment="two languages")
    diary.says(1, 5, "first")
    team = seen(map(item, range(1, 7)), diary)
    listed = {
        name: [place["item"] for place in getattr(team, name)]
        for name in ("conflicts", "ties", "both_bad", "flagged")
    }
    assert listed == {"conflicts": [1], "ties": [2], "both_bad": [3], "flagged": [4]}
    assert {name: team.counts[name] for name in listed} == dict.fromkeys(listed, 1)
    (conflict,) = team.conflicts
    assert conflict["prompt"] == "prompt 1"
    assert [(said["annotator"], said["said"], said["reason"]) for said in conflict["answers"]] == [
        ("ann", "first", None),
        ("bob", "second", "wrong"),
    ]
    assert team.flagged[0]["answers"][0]["said"] == "skip"
    assert team.flagged[0]["answers"][0]["comment"] == "two languages"


def test_lists_are_cut_and_counted_whole(diary: Diary) -> None:
    for number in range(1, 6):
        diary.says(1, number, "both_bad")
    team = seen(map(item, range(1, 6)), diary, listed=2)
    assert (len(team.both_bad), team.counts["both_bad"]) == (2, 5)


def test_soft_labels_are_those_of_the_rule(diary: Diary) -> None:
    for who, said in ((1, "first"), (2, "first"), (3, "tie")):
        diary.says(who, 1, said, swapped=who == 2)
    for who in (1, 2, 3):
        diary.says(who, 2, "second", swapped=True)
        diary.says(who, 2, "second", repeat=1)  # the same people again: no more votes
    team = seen([item(1), item(2), item(3)], diary)
    probability = [label["probability"] for label in team.labels]
    assert probability == pytest.approx([(2.5 + 0.5) / 4, 0.5 / 4])
    assert [label["votes"] for label in team.labels] == [3, 3]
    assert [label["share"] for label in team.labels] == pytest.approx([2.5 / 3, 0.0])
    assert [label["state"] for label in team.labels] == ["open", "open"]
    assert (team.counts["open"], team.counts["decided"], team.rule) == (2, 0, "smoothed")
    majority = seen([item(1), item(2), item(3)], diary, rule="majority")
    assert [label["probability"] for label in majority.labels] == [1.0, 0.0]


def test_five_of_one_mind_decide(diary: Diary) -> None:
    people = [Annotator(n, f"p{n}") for n in range(1, 6)]
    for who in range(1, 6):
        diary.says(who, 1, "second", swapped=who > 2)
    team = team_of(TASK, [item(1)], diary.events, people)
    assert (team.labels[0]["state"], team.counts["decided"]) == ("decided", 1)
    assert team.labels[0]["interval"] == list(share_interval(0, 5))


def test_a_conflict_that_repetitions_prove_is_called_one(diary: Diary) -> None:
    for who, said in ((1, "first"), (2, "second"), (3, "first")):
        for repeat in range(2):
            diary.says(who, 1, said, repeat=repeat)
    people = [Annotator(n, f"p{n}") for n in range(1, 13)]
    for who in range(4, 13):
        for repeat in range(2):
            diary.says(who, 1, "first" if who % 2 else "second", repeat=repeat)
    (label,) = team_of(TASK, [item(1)], diary.events, people).labels
    assert (label["state"], label["votes"]) == ("conflict", 12)


def test_it_is_plain_json_and_does_not_depend_on_numbers(diary: Diary) -> None:
    for number in range(1, 8):
        diary.says(1, number, "first" if number % 3 else "tie", seconds=float(number))
        diary.says(2, number, "second" if number % 2 else "first", swapped=number % 2 == 0)
    items = [item(number) for number in range(1, 8)]
    said = seen(items, diary).to_dict()
    assert json.loads(json.dumps(said, allow_nan=False)) == said
    # other numbers of items, annotators and events, as another database gives
    moved = list(_moved(diary.events, 40, 9))
    people = [replace(one, id=one.id + 9) for one in PEOPLE]
    there = team_of(TASK, [replace(one, id=one.id + 40) for one in items], moved, people).to_dict()
    for part in (said, there):
        for name in ("conflicts", "ties", "both_bad", "flagged", "labels"):
            for place in part[name]:
                del place["item"]
    assert there == said


def _moved(events: Iterable[Event], items: int, people: int) -> Iterator[Event]:
    for event in events:
        yield replace(
            event, id=event.id + 1000, item=event.item + items, annotator=event.annotator + people
        )


def test_no_votes_at_all() -> None:
    team = seen([item(1)], Diary())
    assert (team.labels, team.annotators, team.progress["last"]) == ([], [], None)
    assert smoothed.__name__ == team.rule
