"""Votes out and in: exports, imports, backups, and the commands that do it."""

from __future__ import annotations

import json
import math
import random
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefopt.data.aggregation.reading import read_votes
from prefopt.data.formats import read_groups
from prefopt.errors import DataError, RecipeError, RunError
from prefopt.labelling.backup import backup_sqlite, backup_tasks, restore
from prefopt.labelling.database import open_database
from prefopt.labelling.exporting import comparisons_lines, export_task, votes_lines
from prefopt.labelling.importing import import_task, read_export
from prefopt.labelling.intake import take_in
from prefopt.labelling.replaying import replay
from prefopt.labelling.statistics import team
from prefopt.labelling.store import Store
from prefopt.labelling.words import Answer, NewItem, Pressed, Task
from prefopt.records import Completion, Message, Prompt
from tests.clock import Clock
from tests.test_labelling_intake import png

Call = Callable[..., tuple[int, str, str]]

ODD = (
    "",
    "fine",
    'a "quote" \\ and \n a line',
    "\u2028\u202e\u200b",
    "\ud800",
    "\0",
    "😀",
    "</script>",
)
PEOPLE = ("ann", "Zoë 😀", "d'Arc, Jeanne")


@contextmanager
def databases(count: int) -> Iterator[tuple[list[Store], Path, Clock]]:
    """Empty databases, and a folder for whatever else."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        stores = [Store(open_database(str(folder / f"{n}.db")), clock) for n in range(count)]
        yield stores, folder, clock
        for store in stores:
            store.database.close()


def questions(store: Store, *, gold: int = 1) -> list[NewItem]:
    """Two rows of three completions, one with an image; pairs of plain text; gold."""
    picture = store.add_media(png(3), "image/png")
    chat = (Message("system", "s\0"), Message("user", "u 😀\u2028"))
    rows: tuple[tuple[Prompt, tuple[str, ...]], ...] = (("p", ()), (chat, (picture,)))
    a, b, c = Completion("a", 0.1, "who"), Completion("b", None, "who"), Completion("c", -2.0)
    items = [  # of the two rows in turn: neither is together
        NewItem(prompt, *sides, source="s", meta={"row": [1, {"x": None}]}, media=media)
        for sides in ((a, b), (a, c), (b, c))
        for prompt, media in rows
    ]
    items += [
        NewItem(f"q{n}", Completion("x"), Completion("y\\"), priority=-n / 3) for n in range(3)
    ]
    # keys that the export uses itself come back too
    items.append(
        NewItem(
            "r", Completion("x"), Completion("z"), meta={"images": 3, "labelling": {"a": 1}, "z": 0}
        )
    )
    return items + [
        NewItem(f"g{n}", Completion("good"), Completion("bad"), gold="first") for n in range(gold)
    ]


def history(store: Store, clock: Clock, rng: random.Random, steps: int, task: str = "t") -> None:
    """A random one: answers of all kinds, undone, late, given out and left."""
    people = [store.add_annotator(name) for name in PEOPLE]
    for step in range(steps):
        person = rng.choice(people)
        clock.now += rng.choice((0.0, 0.5, 3.25, 400.0))
        if rng.random() < 0.2:
            store.undo(task, person.id, f"u{step}")
            continue
        shown = store.next(task, person.id)
        if shown is None or rng.random() < 0.15:
            continue
        pressed = cast(Pressed, rng.choice(("left", "right", "left", "tie", "both_bad", "skip")))
        sided = pressed in ("left", "right")
        answer = Answer(
            pressed,
            strength=rng.choice((None, 1, 3)) if sided else None,
            reason=rng.choice((None, "facts")),
            flagged=rng.random() < 0.2,
            comment=rng.choice(ODD),
            seconds=rng.choice((None, 0.1, 7.123456789, 1e-9)),
        )
        store.answer(task, person.id, shown.lease, f"k{step} é", answer)


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


TASK = Task(
    "t", guidelines="# Hi\n😀", overlap=2, lease_seconds=300, gold_share=0.3, repeat_share=0.3
)


@given(seed=st.integers(0, 10**6), steps=st.integers(0, 40))
@settings(max_examples=10, deadline=None)
def test_export_import_export_gives_the_same_bytes(seed: int, steps: int) -> None:
    with databases(2) as ((here, there), folder, clock):
        # other tasks and people first, so that no number is the same in both
        for name in ("somebody", PEOPLE[1], "else"):
            there.add_annotator(name)
        there.add_task(Task("other"))
        there.add_items("other", questions(there))
        history(there, clock, random.Random(seed + 1), 5, "other")
        here.add_task(TASK)
        here.add_items("t", questions(here, gold=2))
        history(here, clock, random.Random(seed), steps)
        export_task(here, "t", folder / "one")
        done = import_task(there, folder / "one")
        assert (done["known"], done["items"]) == (False, 12)
        export_task(there, "t", folder / "two")
        assert files_of(folder / "one") == files_of(folder / "two")
        # and both know the same of it, projection and all
        assert there.task("t") == here.task("t")
        assert [item.new for item in there.items("t")] == [item.new for item in here.items("t")]
        assert there.progress("t") == here.progress("t")
        claims = [
            sorted(
                (claim.state, claim.said or "", claim.comment, claim.until)
                for claim in store.claims("t")
            )
            for store in (here, there)
        ]
        assert claims[0] == claims[1]
        assert len(replay(there.events("t"))) == len(claims[0])
        # once more changes nothing
        assert import_task(there, folder / "one")["known"] is True
        export_task(there, "t", folder / "three")
        assert files_of(folder / "two") == files_of(folder / "three")


@pytest.fixture(scope="module")
def lived_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database in which people have worked, to be copied."""
    path = tmp_path_factory.mktemp("lived in") / "labels.db"
    made = Store(open_database(str(path)))
    made.add_task(TASK)
    made.add_items("t", questions(made, gold=2))
    history(made, Clock(), random.Random(5), 30)
    made.database.close()
    return path


@pytest.fixture
def store(lived_in: Path, tmp_path: Path) -> Iterator[Store]:
    made = Store(open_database(shutil.copy(lived_in, tmp_path / "labels.db").as_posix()))
    yield made
    made.database.close()


def test_an_export_is_preferences_that_everything_reads(store: Store, tmp_path: Path) -> None:
    odd = Answer("left", comment="plain")
    eve = store.add_annotator("eve")
    while shown := store.next("t", eve.id):
        store.answer("t", eve.id, shown.lease, f"e{shown.lease}", odd)
    said = export_task(store, "t", tmp_path / "out")
    rows = lines_of(tmp_path / "out" / "votes.jsonl")
    assert [len(row["completions"]) for row in rows] == [3, 3, 2, 2, 2, 2, 2, 2]
    items = [item for row in rows for item in row["meta"]["labelling"]["items"]]
    assert sorted(item["number"] for item in items) == list(range(1, 13))
    assert [item["number"] for item in items[:6]] == [1, 3, 5, 2, 4, 6]
    # every event is there once, and in order
    numbers = sorted(event["number"] for item in items for event in item["events"])
    assert numbers == list(range(1, said["events"] + 1))
    # a vote for each first answer that stands on an ordinary item, and no other
    standing = [
        answer for item in items if "gold" not in item for answer in item["answers"]
        if answer["repeat"] == 0 and answer["said"] != "skip"
    ]  # fmt: skip
    votes = [vote for row in rows for vote in row.get("votes", ())]
    assert len(votes) == len(standing) == said["votes"] > 8
    assert sum(vote["choice"] == "tie" for vote in votes) == sum(
        answer["said"] in ("tie", "both_bad") for answer in standing
    )
    # eve always pressed left: what is first in her votes is what stood there
    assert {vote["choice"] for vote in votes if vote["annotator"] == "eve"} == {"first"}
    assert rows[1]["meta"]["images"] == [f"media/{rows[1]['meta']['labelling']['media'][0]}.png"]
    assert (tmp_path / "out" / rows[1]["meta"]["images"][0]).read_bytes() == png(3)
    text = (tmp_path / "out" / "votes.jsonl").read_text(encoding="utf-8")
    assert "token" not in text and "swapped" in text


def test_comparisons_are_what_aggregate_makes_of_the_votes(
    store: Store, tmp_path: Path, call: Call
) -> None:
    for rule in ("smoothed", "dawid-skene", "majority"):
        out = tmp_path / rule
        export_task(store, "t", out, rule=cast(Any, rule))
        # odd comments are half characters, which only JSON's escapes can write: not read as text
        rows = lines_of(out / "votes.jsonl")
        for row in rows:
            del row["meta"]["labelling"]
        (tmp_path / "votes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        code, _, err = call("aggregate", tmp_path / "votes.jsonl", "--method", rule, "--out",
                            tmp_path / "aggregated.jsonl")  # fmt: skip
        assert code == 0, err
        wanted = [group for group in read_groups(tmp_path / "aggregated.jsonl") if group.votes]
        assert list(read_groups(out / "comparisons.jsonl")) == wanted
        assert wanted and all(group.comparisons for group in wanted)
    assert (
        "".join(comparisons_lines(store, "t", rule="majority")).encode()
        == (tmp_path / "majority" / "comparisons.jsonl").read_bytes()
    )
    lines = "".join(votes_lines(store, "t")).encode("utf-8", "backslashreplace")
    assert lines == (tmp_path / "majority" / "votes.jsonl").read_bytes()
    ballots = read_votes(str(tmp_path / "votes.jsonl"))
    assert len(ballots.votes) == sum(len(group.votes) for group in wanted)
    probability = {label["probability"] for label in team(store, "t", rule="majority").labels}
    assert probability <= {0.0, 0.5, 1.0}


def test_an_export_can_be_served_again(store: Store, tmp_path: Path) -> None:
    eve = tmp_path / "plain"
    with databases(1) as ((plain,), _, _clock):
        plain.add_task(Task("t"))
        plain.add_items("t", [one for one in questions(plain) if one.meta.get("images") != 3])
        export_task(plain, "t", eve)
        plain.add_task(Task("again"))
        take_in(plain, "again", [str(eve / "votes.jsonl")])
        first, again = (
            {
                (str(new.prompt), *sorted((new.first.text, new.second.text)), new.media)
                for new in news
            }
            for news in ([item.new for item in plain.items(name)] for name in ("t", "again"))
        )
        assert first == again


def test_a_task_nobody_has_answered_can_be_exported(tmp_path: Path) -> None:
    with databases(2) as ((here, there), folder, _):
        here.add_task(Task("empty"))
        assert export_task(here, "empty", folder / "e")["votes"] == 0
        assert (folder / "e" / "comparisons.jsonl").read_bytes() == b""
        assert import_task(there, folder / "e")["items"] == 0
        here.add_items("empty", questions(here))
        export_task(here, "empty", folder / "f")
        assert import_task(there, folder / "f")["items"] == 11  # into the empty one of that name


# -- refusals --------------------------------------------------------------------------------


def test_an_import_never_touches_another_history(store: Store, tmp_path: Path) -> None:
    export_task(store, "t", tmp_path / "one")
    with databases(1) as ((there,), folder, clock):
        there.add_task(TASK)
        there.add_items("t", questions(there))
        history(there, clock, random.Random(1), 5)
        before = list(there.events("t"))
        with pytest.raises(RecipeError, match="another history") as caught:
            import_task(there, tmp_path / "one")
        assert "--task" in (caught.value.remedy or "")
        assert list(there.events("t")) == before
        done = import_task(there, tmp_path / "one", name="theirs")
        assert (done["task"], done["added"]) == ("theirs", 0)
        export_task(there, "theirs", folder / "two")
        one, two = files_of(tmp_path / "one"), files_of(folder / "two")
        assert one["votes.jsonl"] == two["votes.jsonl"]
        assert json.loads(two["task.json"])["task"] == {**asdict(TASK), "name": "theirs"}


def test_a_name_that_is_there_is_that_annotator(store: Store, tmp_path: Path) -> None:
    export_task(store, "t", tmp_path / "one")
    with databases(1) as ((there,), _, _clock):
        lead = there.add_annotator("ann", "lead")
        done = import_task(there, tmp_path / "one")
        assert done["added"] == done["annotators"] - 1
        assert there.annotator("ann") == lead  # and keeps the role here
        assert any(event.annotator == lead.id for event in there.events("t"))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("votes.jsonl", lambda data: data[:-20]),
        ("votes.jsonl", lambda data: data.replace(b'"first"', b'"second"', 1)),
        ("task.json", lambda data: data.replace(b'"overlap": 2', b'"overlap": 3')),
        ("comparisons.jsonl", lambda data: data + b"\n"),
        ("manifest.json", lambda data: b"{}"),
        ("manifest.json", lambda data: b"[1"),
        ("media", lambda data: data[:-1]),
    ],
)
def test_a_damaged_export_is_refused(
    store: Store, tmp_path: Path, name: str, change: Callable[[bytes], bytes]
) -> None:
    out = tmp_path / "one"
    export_task(store, "t", out)
    path = next(out.glob("media/*")) if name == "media" else out / name
    path.write_bytes(change(path.read_bytes()))
    with databases(1) as ((there,), _, _clock):
        with pytest.raises(DataError) as caught:
            import_task(there, out)
        assert caught.value.file == str(path) and caught.value.remedy
        assert there.tasks() == [] and there.annotators() == []


def signed(folder: Path, **changed: Any) -> None:
    """Write an export's manifest so that its files count as whole."""
    from prefopt.runs import fingerprint_file

    path = folder / "manifest.json"
    manifest = {**json.loads(path.read_text()), **changed}
    names = [name for name in manifest["files"] if (folder / name).exists()]
    manifest["files"] |= {name: fingerprint_file(folder / name) for name in names}
    path.write_text(json.dumps(manifest))


def test_an_export_that_was_made_up_is_refused(store: Store, tmp_path: Path) -> None:
    out = tmp_path / "one"
    export_task(store, "t", out)
    (secret := tmp_path / "secret").write_text("x")
    whole = json.loads((out / "manifest.json").read_text())
    with databases(1) as ((there,), _, _clock):

        def refused(match: str) -> None:
            with pytest.raises(DataError, match=match):
                import_task(there, out)
            assert list(there.tasks()) == []

        signed(out, version=99)
        refused("version 99")
        signed(out, version=1, files={**whole["files"], "../secret": "sha256:0"})
        refused("not as it was written")
        assert secret.read_text() == "x"
        # an image that is a program
        (medium,) = out.glob("media/*")
        medium.write_bytes(b"<svg><script/></svg>")
        signed(out, files=whole["files"])
        refused("is not image/png")
        medium.write_bytes(png(3))
        task = json.loads((out / "task.json").read_text())
        task["media"][0]["type"] = "image/svg+xml"
        (out / "task.json").write_text(json.dumps(task))
        signed(out, files=whole["files"])
        refused("not shown")
        # a vote before its question was given out
        del task["media"]
        (out / "task.json").write_text(json.dumps(task))
        signed(out, files=whole["files"])
        refused("not of the form")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda task, rows: task["task"].update(overlap="2"), "overlap is '2'"),
        (lambda task, rows: task["task"].update(guidelines=[]), "guidelines is"),
        (lambda task, rows: task["task"].update(else_=1), "else_"),
        (lambda task, rows: task["media"].append({"digest": "../" * 3 + "a", "type": "image/png"}),
         "not the name of an image"),
        (lambda task, rows: task["media"].clear(), "no file of"),
        (lambda task, rows: _item_of(rows).update(first=9), "not of the form"),
        (lambda task, rows: _item_of(rows).update(priority=math.nan), "question"),
        (lambda task, rows: _item_of(rows).update(gold="best"), "question"),
        (lambda task, rows: rows[0]["meta"]["labelling"]["items"].append(_item_of(rows)), "twice"),
        (lambda task, rows: rows[0]["meta"].update(labelling=[]), "not of the form"),
        (lambda task, rows: _vote_of(rows)["payload"].update(said="<b>"), "an answer is"),
        (lambda task, rows: _vote_of(rows)["payload"].update(said="left"), "cannot be"),
        (lambda task, rows: _vote_of(rows)["payload"].update(seconds="x"), "not of the form"),
        (lambda task, rows: _vote_of(rows)["payload"].update(comment=3), "not of the form"),
        (lambda task, rows: _vote_of(rows).update(kind="veto"), "cannot be|payload"),
        (lambda task, rows: _vote_of(rows).update(kind="lease"), "not of the form"),
        (lambda task, rows: _vote_of(rows).update(annotator="nobody"), "nobody"),
        (lambda task, rows: _vote_of(rows).update(number=1), "twice"),
        (lambda task, rows: _item_of(rows).update(events=_item_of(rows)["events"][1:]),
         "cannot have happened"),
    ],
)  # fmt: skip
def test_what_no_task_can_be_is_refused_before_anything_is_written(
    store: Store, tmp_path: Path, change: Callable[[Any, list[Any]], None], match: str
) -> None:
    out = tmp_path / "one"
    export_task(store, "t", out)
    task = json.loads((out / "task.json").read_text())
    rows = [json.loads(line) for line in (out / "votes.jsonl").read_bytes().splitlines()]
    change(task, rows)
    (out / "task.json").write_text(json.dumps(task))
    (out / "votes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    signed(out)
    with databases(1) as ((there,), _, _clock):
        with pytest.raises(DataError, match=match) as caught:
            import_task(there, out)
        assert caught.value.file and caught.value.remedy
        assert there.tasks() == [] and there.annotators() == []


def _item_of(rows: list[Any]) -> Any:
    """The first question with a vote."""
    items = [item for row in rows for item in row["meta"]["labelling"]["items"]]
    return next(item for item in items if any(one["kind"] == "vote" for one in item["events"]))


def _vote_of(rows: list[Any]) -> Any:
    return next(event for event in _item_of(rows)["events"] if event["kind"] == "vote")


@pytest.mark.parametrize("text", ["{}", '{"files": []}', "[" * 100_000])
def test_a_manifest_that_says_nothing_is_refused(store: Store, tmp_path: Path, text: str) -> None:
    export_task(store, "t", tmp_path / "one")
    said = '{"format": "prefopt labelling task", "version": 1, '
    (tmp_path / "one" / "manifest.json").write_text(said + text[1:] if text[0] == "{" else text)
    with databases(1) as ((there,), _, _clock), pytest.raises(DataError, match="manifest"):
        restore(there, tmp_path / "one")


@pytest.mark.parametrize("tasks", [["../one"], ["/one"], "one", [3], None])
def test_a_backup_names_only_tasks_of_its_own(store: Store, tmp_path: Path, tasks: Any) -> None:
    export_task(store, "t", tmp_path / "one")
    (tmp_path / "all").mkdir()
    document = {"format": "prefopt labelling backup", "version": 1, "tasks": tasks}
    (tmp_path / "all" / "manifest.json").write_text(json.dumps(document))
    with databases(1) as ((there,), _, _clock):
        with pytest.raises(DataError, match="which tasks"):
            restore(there, tmp_path / "all")
        assert there.tasks() == []


def test_an_export_is_of_one_moment(database_url: str, tmp_path: Path) -> None:
    store = Store(open_database(database_url), clock := Clock())
    other = Store(open_database(database_url), clock)
    store.add_task(TASK)
    store.add_items("t", questions(store))
    history(store, clock, random.Random(3), 20)
    before = list(store.events("t"))
    with store.database.moment():
        assert list(store.events("t")) == before
        late = other.add_annotator("late").id
        shown = other.next("t", late)
        assert shown is not None
        other.answer("t", late, shown.lease, "late", Answer("tie"))
        other.add_task(Task("later"))
        assert list(store.events("t")) == before and [one.name for one in store.tasks()] == ["t"]
    assert len(list(store.events("t"))) > len(before) and len(store.tasks()) == 2
    store.database.close()
    other.database.close()


def test_a_folder_that_holds_something_is_not_written(store: Store, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("x")
    with pytest.raises(RunError, match="something already"):
        export_task(store, "t", tmp_path / "out")
    with pytest.raises(RunError, match="something already"):
        backup_tasks(store, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]
    with pytest.raises(RunError, match="something already"):
        backup_sqlite(tmp_path / "labels.db", tmp_path / "out" / "mine.txt")


def test_a_rule_that_cannot_be_leaves_nothing_behind(store: Store, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="unknown rule"):
        export_task(store, "t", tmp_path / "out", rule=cast(Any, "nope"))
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".*part*"))


# -- on either database ----------------------------------------------------------------------


def test_on_either_database_and_from_one_to_the_other(database_url: str, tmp_path: Path) -> None:
    store = Store(open_database(database_url), clock := Clock())
    store.add_task(TASK)
    store.add_items("t", questions(store))
    history(store, clock, random.Random(7), 30)
    store.add_task(Task("second"))
    backup_tasks(store, tmp_path / "all")
    assert sorted(path.name for path in (tmp_path / "all").iterdir()) == [
        "manifest.json",
        "second",
        "t",
    ]
    with databases(1) as ((there,), folder, _):
        done = restore(there, tmp_path / "all")
        assert [one["task"] for one in done] == ["t", "second"]
        export_task(there, "t", folder / "t")
        assert files_of(folder / "t") == files_of(tmp_path / "all" / "t")
        assert [one["known"] for one in restore(there, tmp_path / "all")] == [True, False]
        with pytest.raises(DataError, match="2 tasks"):
            restore(there, tmp_path / "all", name="x")
    # and what one person has seen of it is the same as anywhere
    assert team(store, "t").progress["votes"] == store.progress("t").votes
    assert team(store, "t").progress["done"] == store.progress("t").done
    assert read_export(tmp_path / "all" / "t").task == TASK
    store.database.close()


# -- backup ----------------------------------------------------------------------------------


def test_a_backup_of_sqlite_is_a_database_made_amid_the_work(store: Store, tmp_path: Path) -> None:
    source = sqlite3.connect(tmp_path / "labels.db")
    source.execute("BEGIN IMMEDIATE")  # somebody is writing
    source.execute("INSERT INTO attempts (who, at) VALUES (x'00', 0)")
    said = backup_sqlite(tmp_path / "labels.db", tmp_path / "kept" / "monday.db")
    source.rollback(), source.close()
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["monday.db"]
    data = (tmp_path / "kept" / "monday.db").read_bytes()
    assert said["bytes"] == len(data)
    assert data[18:20] == b"\1\1"  # without a log beside it, so it can lie on a read-only disk
    copy = Store(open_database(str(tmp_path / "kept" / "monday.db")))
    assert list(copy.events("t")) == list(store.events("t"))
    assert copy.database.read is not None and copy.annotators() == store.annotators()
    assert copy.next("t", copy.annotator("ann").id) is not None  # it can be worked on
    with pytest.raises(RunError, match="cannot be copied"):
        backup_sqlite(tmp_path / "nothing.db", tmp_path / "kept" / "tuesday.db")
    (tmp_path / "broken.db").write_bytes(b"SQLite format 3\0" + bytes(5000))
    with pytest.raises(RunError, match="cannot be copied"):
        backup_sqlite(tmp_path / "broken.db", tmp_path / "kept" / "tuesday.db")
    assert "tuesday.db" not in [path.name for path in (tmp_path / "kept").iterdir()]


# -- commands --------------------------------------------------------------------------------


def one_object(out: str) -> dict[str, Any]:
    (line,) = out.removesuffix("\n").split("\n")
    document = json.loads(line)
    assert isinstance(document, dict)
    return document


@pytest.fixture
def there(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which `labels.db` is the default."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_people_are_let_in_and_shut_out(there: Path, store: Store, call: Call) -> None:
    code, out, _ = call("label", "add-annotator", "bob", "--json", "--hours", 2, "--url",
                        "https://labels.example.org/")  # fmt: skip
    said = one_object(out)
    assert code == 0 and said["new"] and (said["role"], said["hours"]) == ("annotator", 2)
    head, token = said["link"].rsplit("/", 1)
    assert head == "https://labels.example.org/enter"
    bob = store.annotator("bob")
    assert store.look(token) == bob
    again = one_object(call("label", "add-annotator", "bob", "--json")[1])
    assert again["new"] is False and again["link"].startswith("http://127.0.0.1:8000/enter/")
    session = store.enter(token)
    assert store.who(session) == bob
    code, out, _ = call("label", "revoke", "bob", "--json")
    assert (code, one_object(out)) == (0, {"annotator": "bob"})
    assert store.who(session) is None and store.look(again["link"].rsplit("/", 1)[1]) is None
    code, out, _ = call("label", "add-annotator", "lea", "--lead")
    assert code == 0 and out.startswith("http://127.0.0.1:8000/enter/") and "lea (lead)" in out
    assert store.annotator("lea").role == "lead"


@pytest.mark.parametrize(
    "verb",
    ["serve", "demo", "add-annotator", "revoke", "status", "export", "import", "backup"],
)
def test_every_help_page_describes_its_json(call: Call, verb: str) -> None:
    code, out, err = call("label", verb, "--help")
    assert (code, err) == (0, "")
    assert f"Usage: prefopt label {verb}" in out
    assert "With --json" in " ".join(out.split())
    assert verb in call("label", "--help")[1]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ("add-annotator bob --hours 0", 2, "hours"),
        ("add-annotator ann --lead", 2, "is there already, as annotator"),
        ("revoke nobody", 2, "no such annotator"),
        ("status --db nothing.db", 2, "no such database"),
        ("status --task u", 2, "one of t"),
        ("status --db mysql://x/y", 2, "only SQLite and PostgreSQL"),
        ("export labels.db", 1, "something already"),
        ("export out --rule best", 2, "rule"),
        ("import nothing", 1, "no such file or folder"),
        ("import .", 1, "no such file or folder"),
        ("backup labels.db", 1, "something already"),
        ("serve --db empty.db", 2, "no such database"),
        ("add-annotator bob --url labels.example.org", 2, "begins with https://"),
        ("serve nothing.jsonl", 2, "no such file"),
        ("serve --task u --overlap 2", 2, "no such task"),
        ("serve --overlap 0", 2, "at least one annotator"),
        ("serve --guidelines nothing.md", 2, "guidelines cannot be read"),
        ("serve --gold-share 2", 2, "a share is between 0 and 1"),
        ("serve --host 0.0.0.0", 2, "other machines could reach"),
        ("", 2, "label needs a command"),
        ("stats", 2, "no command 'label stats'"),
        ("status --taks t", 2, "Did you mean --task"),
    ],
)
def test_wrong_command_lines_are_told_what_to_do(
    there: Path, call: Call, arguments: str, code: int, message: str
) -> None:
    found, out, err = call("label", *arguments.split())
    assert (found, out) == (code, ""), err
    assert message in err and "Traceback" not in err
    as_json = one_object(call("label", *arguments.split(), "--json")[1])
    assert as_json["error"]["message"]


def test_what_is_refused_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Call
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pool.jsonl").write_text('{"prompt": "p", "completions": [{"text": "a"}]}\n')
    for arguments in ("serve", "serve nothing.jsonl", "import nothing", "status", "revoke ann"):
        assert call("label", *arguments.split())[0] in (1, 2)
        assert not (tmp_path / "labels.db").exists(), arguments
    for arguments in ("serve pool.jsonl", "serve --task t --gold pool.jsonl"):
        code, _, err = call("label", *arguments.split())
        assert code == 2, err
    assert one_object(call("label", "status", "--json")[1])["tasks"] == []


def test_status_says_it_to_people_and_programs(there: Path, store: Store, call: Call) -> None:
    code, out, _ = call("label", "status", "--json")
    said = one_object(out)
    assert code == 0 and [one["task"] for one in said["tasks"]] == ["t"]
    assert said["tasks"][0] == json.loads(json.dumps(team(store, "t").to_dict()))
    assert said["db"] == "sqlite:///labels.db"
    code, out, _ = call("label", "status", "--task", "t", "--rule", "majority")
    assert code == 0 and "Task t" in out and "Zoë" in out and "Krippendorff" in out
    assert call("label", "status", "--db", "new.db")[0] == 2


def test_export_import_and_backup(there: Path, store: Store, call: Call) -> None:
    code, out, _ = call("label", "export", "votes", "--json")
    said = one_object(out)
    assert code == 0 and said["out"] == "votes" and said["rule"] == "smoothed"
    assert json.loads((there / "votes" / "manifest.json").read_text()) == {
        name: value for name, value in said.items() if name != "out"
    }
    assert set(said["files"]) == set(files_of(there / "votes")) - {"manifest.json"}
    code, out, _ = call("label", "import", "votes", "--db", "again.db", "--json")
    assert code == 0 and one_object(out)["tasks"][0]["known"] is False
    code, out, _ = call("label", "import", "votes", "--db", "again.db")
    assert code == 0 and "already, with the same history" in out
    code, _, err = call("label", "export", "more", "--db", "again.db", "--rule", "majority")
    assert code == 0, err
    assert files_of(there / "more")["votes.jsonl"] == files_of(there / "votes")["votes.jsonl"]
    code, out, _ = call("label", "backup", "monday.db", "--json")
    assert (code, one_object(out)["kind"]) == (0, "sqlite")
    assert "Task t" in call("label", "status", "--db", "monday.db")[1]
    store.add_task(Task("u"))
    code, _, err = call("label", "export", "which")
    assert code == 2 and "one of t, u" in err


def test_backup_of_postgresql_is_an_export_of_every_task(
    postgresql: Any, tmp_path: Path, call: Call
) -> None:
    url = postgresql.create()
    store = Store(open_database(url), clock := Clock())
    store.add_task(TASK)
    store.add_items("t", questions(store))
    history(store, clock, random.Random(3), 20)
    code, out, _ = call("label", "backup", tmp_path / "all", "--db", url, "--json")
    said = one_object(out)
    assert code == 0 and said["kind"] == "export" and list(said["tasks"]) == ["t"]
    code, _, err = call("label", "import", tmp_path / "all", "--db", tmp_path / "new.db")
    assert code == 0, err
    assert "new links" in call("label", "backup", tmp_path / "more", "--db", url)[1]
    copy = Store(open_database(str(tmp_path / "new.db")))
    assert copy.progress("t") == store.progress("t")
    store.database.close()
