"""People as a judge: a task of the labelling room is opened, and its votes are the verdicts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prefopt.errors import RecipeError
from prefopt.judges.judge import Question, score
from prefopt.judges.kept import Kept
from prefopt.judges.people import People, WaitingForPeople
from prefopt.judges.table import make_judge
from prefopt.labelling.database import open_database
from prefopt.labelling.store import Store
from prefopt.labelling.words import Answer, NewItem, Task
from prefopt.records import Completion

QUESTIONS = [Question(f"Question {n}?", f"good {n}", f"bad {n}") for n in range(3)]


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Store]:
    database = open_database(str(tmp_path / "votes.db"))
    yield Store(database)
    database.close()


def answer(room: Store, name: str, count: int, says: Callable[[str], bool | None]) -> None:
    """Somebody answers questions: True for the side whose text `says` likes, None for a tie."""
    person = room.add_annotator(name)
    for _ in range(count):
        shown = room.next("round", person.id)
        assert shown is not None
        liked = says(shown.left.text)
        pressed = "tie" if liked is None else "left" if liked else "right"
        key = f"{name} {shown.lease}"
        room.answer("round", person.id, shown.lease, key, Answer(pressed))  # type: ignore[arg-type]


def people(room: Store, **settings: Any) -> People:
    return People(room, "votes.db", "round", **settings)


def test_a_task_is_opened_and_what_is_missing_is_said(room: Store) -> None:
    judge = people(room, guidelines="Be fair.")
    with pytest.raises(WaitingForPeople) as caught:
        judge.compare_all(QUESTIONS)
    assert (caught.value.done, caught.value.wanted) == (0, 3)
    assert "prefopt label serve --db votes.db --task round" in str(caught.value)
    assert room.task("round").guidelines == "Be fair."
    assert room.progress("round").wanted == 3


def test_votes_become_probabilities_whichever_way_the_question_is_asked(room: Store) -> None:
    judge = people(room, overlap=2)
    with pytest.raises(WaitingForPeople):
        judge.compare_all(QUESTIONS)
    answer(room, "ann", 3, lambda text: text.startswith("good"))
    with pytest.raises(WaitingForPeople) as caught:
        people(room, overlap=2).compare_all(QUESTIONS)
    assert caught.value.done == 0  # one vote of two is not enough
    answer(room, "bob", 3, lambda text: None if "0" in text else text.startswith("bad"))
    verdicts = people(room, overlap=2).compare_all(QUESTIONS)
    assert [v.probability for v in verdicts] == [0.75, 0.5, 0.5]
    assert verdicts[0].transcript == {"votes": {"first": 1, "tie": 1}}
    mirrored = [Question(q.prompt, q.second, q.first) for q in QUESTIONS]
    again = people(room, overlap=2).compare_all(mirrored)
    assert [v.probability for v in again] == [0.25, 0.5, 0.5]
    assert again[0].transcript == {"votes": {"second": 1, "tie": 1}}
    assert room.progress("round").items == 3  # nothing was asked twice


def test_what_is_answered_is_kept_while_the_rest_is_out(room: Store, tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    with pytest.raises(WaitingForPeople):
        Kept(people(room), folder).compare_all(QUESTIONS)
    answer(room, "ann", 2, lambda text: text.startswith("good"))
    kept = Kept(people(room), folder)
    with pytest.raises(WaitingForPeople) as caught:
        kept.compare_all(QUESTIONS)
    assert (kept.asked, caught.value.done) == (2, 2)
    answer(room, "ann", 1, lambda text: text.startswith("good"))
    kept = Kept(people(room), folder)
    assert [v.probability for v in kept.compare_all(QUESTIONS)] == [1.0] * 3
    assert (kept.asked, kept.known) == (1, 2)


def test_people_are_waited_for_when_that_is_wanted(
    room: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = people(room, wait=3600.0)

    def meanwhile(seconds: float) -> None:
        answer(room, "ann", 1, lambda text: text.startswith("good"))

    monkeypatch.setattr("prefopt.judges.people.time.sleep", meanwhile)
    assert [v.probability for v in judge.compare_all(QUESTIONS)] == [1.0] * 3


def test_a_task_that_is_there_is_used_if_it_wants_enough_people(room: Store) -> None:
    room.add_task(Task("round", overlap=2, repeat_share=0.0))
    item = NewItem(QUESTIONS[0].prompt, Completion("bad 0"), Completion("good 0"), meta={"a": 1})
    room.add_items("round", [item])
    with pytest.raises(RecipeError, match="overlap 3"):
        people(room, overlap=3)
    judge = people(room, overlap=1)
    answer(room, "ann", 1, lambda text: text.startswith("good"))
    assert judge.compare_all(QUESTIONS[:1])[0].probability == 1.0
    assert room.progress("round").items == 1
    with pytest.raises(RecipeError, match="gives no scores"):
        score(judge, "p", "a")


def test_an_item_that_comes_again_is_no_further_vote(
    room: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = people(room)
    with pytest.raises(WaitingForPeople):
        judge.compare_all(QUESTIONS)
    answer(room, "ann", 3, lambda text: text.startswith("good"))
    claims = list(room.claims("round"))
    again = [replace(claim, repeat=1, said="tie") for claim in claims]
    monkeypatch.setattr(room, "claims", lambda task: iter(claims + again))
    assert [v.transcript["votes"] for v in judge.compare_all(QUESTIONS)] == [{"first": 1}] * 3


def test_wrong_settings_are_refused(tmp_path: Path) -> None:
    spec = {"kind": "people", "database": str(tmp_path / "v.db"), "task": "round"}
    with pytest.raises(RecipeError, match="no such file"):
        make_judge({**spec, "guidelines": "nope.md"})
    with pytest.raises(RecipeError, match="name of a task"):
        make_judge({**spec, "task": "a b"})


def test_the_command_waits_without_failing_and_goes_on(
    room: Store, tmp_path: Path, call: Callable[..., tuple[int, str, str]]
) -> None:
    (tmp_path / "people.yaml").write_text("kind: people\ndatabase: votes.db\ntask: round\n")
    data, out = tmp_path / "samples.jsonl", tmp_path / "judged.jsonl"
    data.write_text(
        json.dumps({"prompt": "p", "completions": [{"text": "good"}, {"text": "bad"}]}) + "\n"
    )
    command = ("judge", data, "--judge", tmp_path / "people.yaml", "--out", out)
    code, text, _ = call(*command, "--json")
    assert code == 0
    document = json.loads(text)
    assert document["waiting"] is True
    assert (document["judged"], document["questions"]) == (0, 1)
    assert "label serve" in document["command"]
    assert not out.exists()
    assert "Waiting for people" in call(*command)[1]
    answer(room, "ann", 1, lambda text: text == "good")
    code, text, _ = call(*command)
    assert code == 0
    assert json.loads(out.read_text())["comparisons"] == [{"preferred": 0, "dispreferred": 1}]
