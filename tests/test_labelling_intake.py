"""From files to questions: pools, what `acquire` chose, gold, images and audio."""

from __future__ import annotations

import base64
import json
import math
import struct
import wave
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from prefopt.data.acquisition import acquire
from prefopt.data.formats import read_groups, write_groups
from prefopt.errors import DataError
from prefopt.labelling import media
from prefopt.labelling.database import open_database
from prefopt.labelling.intake import Taken, take_in
from prefopt.labelling.store import Store
from prefopt.labelling.words import Answer, Item, Task

Row = dict[str, Any]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(open_database(str(tmp_path / "labels.db")))
    made.add_task(Task("t"))
    return made


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    def write(*rows: Row, name: str = "pool.jsonl") -> str:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return str(path)

    return write


Write = Callable[..., str]


def texts(items: Iterable[Item]) -> list[tuple[str, str]]:
    return [(item.new.first.text, item.new.second.text) for item in items]


def added(taken: Taken) -> tuple[int, int, int, int]:
    return taken.new, taken.known, taken.gold, taken.gold_known


THREE = {"prompt": "p", "completions": [{"text": "c"}, {"text": "a", "source": "m"}, {"text": "b"}]}


# -- pairs -----------------------------------------------------------------------------------


def test_all_pairs_of_a_group_without_comparisons(store: Store, write: Write) -> None:
    taken = take_in(store, "t", [write(THREE)])
    items = list(store.items("t"))
    assert texts(items) == [("a", "c"), ("b", "c"), ("a", "b")]  # by text, whoever came first
    assert items[0].new.first.source == "m"
    assert (taken.rows, added(taken)) == (1, (3, 0, 0, 0))


def test_given_pairs_where_there_are_some(store: Store, write: Write) -> None:
    row = {**THREE, "comparisons": [{"preferred": 0, "dispreferred": 2},
                                    {"preferred": 2, "dispreferred": 0}]}  # fmt: skip
    take_in(store, "t", [write(row)])
    assert texts(store.items("t")) == [("b", "c")]  # one question, whatever was said of it
    assert take_in(store, "t", [write(row)], pairs="all").new == 2
    store.add_task(Task("given"))
    other = {**THREE, "prompt": "q"}
    assert take_in(store, "given", [write(row, other)], pairs="given").new == 1


def test_every_layout_that_training_reads(store: Store, write: Write) -> None:
    pairs = {"prompt": "p", "chosen": "x", "rejected": "y", "category": "style"}
    hh = {
        "chosen": "\n\nHuman: hi\n\nAssistant: good day",
        "rejected": "\n\nHuman: hi\n\nAssistant: what",
    }
    files = [write(pairs, name="pairs.jsonl"), write(hh, name="hh.jsonl")]
    assert take_in(store, "t", files).new == 2
    first, second = store.items("t")
    assert first.new.meta == {"category": "style"}
    assert (first.new.first.text, first.kind, first.new.gold) == ("x", "normal", None)
    assert second.new.prompt[0].content == "hi"  # type: ignore[union-attr]


def test_the_same_pool_again_adds_nothing_and_moves_nothing(store: Store, write: Write) -> None:
    pool = write(THREE)
    take_in(store, "t", [pool])
    before = list(store.items("t"))
    swapped = {**THREE, "completions": THREE["completions"][::-1]}
    assert added(take_in(store, "t", [pool])) == (0, 3, 0, 0)
    assert added(take_in(store, "t", [write(swapped, name="swapped.jsonl")])) == (0, 3, 0, 0)
    assert list(store.items("t")) == before


def test_a_pool_with_nothing_to_compare_is_refused(store: Store, write: Write) -> None:
    same = {"prompt": "p", "completions": [{"text": "a"}, {"text": "a"}]}
    single = {"prompt": "q", "completions": [{"text": "a"}]}
    with pytest.raises(DataError, match="no group of the pool") as caught:
        take_in(store, "t", [write(same, single)])
    assert caught.value.file is not None and "--pairs all" in (caught.value.remedy or "")
    assert take_in(store, "t", [write(same, single, THREE)]).new == 3


def test_a_task_gets_its_settings_once_the_files_are_good(store: Store, write: Write) -> None:
    bad = write(THREE, with_media(images=["nothing.png"]))
    for task in (Task("new", overlap=3), Task("t", overlap=3)):
        with pytest.raises(DataError):
            take_in(store, task, [bad])
        assert [one.overlap for one in store.tasks()] == [1]
    take_in(store, Task("new", overlap=3), [write(THREE)])
    take_in(store, Task("new", overlap=2), [write(THREE)])
    assert [(one.name, one.overlap) for one in store.tasks()] == [("t", 1), ("new", 2)]
    assert len(list(store.items("new"))) == 3


# -- what acquire chose ----------------------------------------------------------------------


def pool_of(count: int) -> list[Row]:
    return [
        {"prompt": f"p{n}", "completions": [{"text": f"x{n}"}, {"text": f"y{n}"}]}
        for n in range(count)
    ]


def asked(path: str, out: Path, **how: Any) -> list[str]:
    """What `acquire` chose of a pool: the prompts in its order."""
    chosen = acquire(read_groups(path), strategy="random", **how).chosen
    write_groups(out, (question.group for question in chosen))
    return [question.group.prompt_text for question in chosen]


def in_order(store: Store) -> list[str]:
    items = sorted(store.items("t"), key=lambda item: (item.new.priority, item.id))
    return [str(item.new.prompt) for item in items]


def test_what_acquire_chose_is_asked_first_in_its_order(
    store: Store, write: Write, tmp_path: Path
) -> None:
    pool = write(*pool_of(12))
    take_in(store, "t", [pool])
    first, second = tmp_path / "ask.jsonl", tmp_path / "more.jsonl"
    order = asked(pool, first, count=5, seed=3)
    assert order != sorted(order)
    taken = take_in(store, "t", [str(first)])
    assert taken.acquired and added(taken) == (0, 5, 0, 0)
    assert in_order(store)[:5] == order
    # the same again, and the plain pool again, move nothing
    before = list(store.items("t"))
    take_in(store, "t", [str(first)])
    assert take_in(store, "t", [pool]).acquired is False
    assert list(store.items("t")) == before
    # what was chosen later goes first
    later = asked(pool, second, count=4, seed=4)
    take_in(store, "t", [str(second)])
    rest = [prompt for prompt in order if prompt not in later]
    assert in_order(store)[: 4 + len(rest)] == later + rest
    # and an annotator is asked in that order
    ann = store.add_annotator("ann")
    seen = []
    while (shown := store.next("t", ann.id)) and len(seen) < 4:
        seen.append(str(shown.item.new.prompt))
        store.answer("t", ann.id, shown.lease, f"k{len(seen)}", Answer("tie"))
    assert seen == later


def test_a_task_of_acquired_questions_keeps_their_marks(
    store: Store, write: Write, tmp_path: Path
) -> None:
    chosen = tmp_path / "ask.jsonl"
    asked(write(*pool_of(8)), chosen, count=6, controls=0.5)
    assert take_in(store, "t", [str(chosen)]).new == 6
    marks = [dict(item.new.meta) for item in store.items("t")]
    assert [mark["rank"] for mark in marks] == [1, 2, 3, 4, 5, 6]
    assert sum(mark["control"] for mark in marks) == 3
    # a plain pool that comes later is asked later
    take_in(store, "t", [write(*pool_of(8))])
    assert in_order(store)[:6] == [group.prompt for group in read_groups(str(chosen))]


# -- gold ------------------------------------------------------------------------------------

KNOWN = [
    {"prompt": "p0", "chosen": "y0", "rejected": "x0"},
    {"prompt": "p1", "chosen": "x1", "rejected": "y1"},
]


def test_gold_has_the_known_answer_and_is_no_ordinary_question(store: Store, write: Write) -> None:
    pool, gold = write(*pool_of(3)), write(*KNOWN, name="gold.jsonl")
    taken = take_in(store, "t", [pool], gold=[gold])
    assert added(taken) == (1, 0, 2, 0)
    by_prompt = {str(item.new.prompt): item for item in store.items("t")}
    assert {prompt: item.kind for prompt, item in by_prompt.items()} == {
        "p0": "gold", "p1": "gold", "p2": "normal",
    }  # fmt: skip
    for prompt, better in (("p0", "y0"), ("p1", "x1")):
        new = by_prompt[prompt].new
        assert getattr(new, str(new.gold)).text == better
    assert added(take_in(store, "t", [pool], gold=[gold])) == (0, 1, 0, 2)
    assert added(take_in(store, "t", [pool])) == (0, 1, 0, 0)


@pytest.mark.parametrize("probability", [0.7, 0.5])
def test_gold_must_be_sure(store: Store, write: Write, probability: float) -> None:
    row = {**KNOWN[1], "probability": probability}
    with pytest.raises(DataError, match="not sure") as caught:
        take_in(store, "t", gold=[write(KNOWN[0], row)])
    assert (caught.value.row, caught.value.value) == (2, probability)
    assert caught.value.file and caught.value.remedy
    assert list(store.items("t")) == []
    taken = take_in(store, "t", gold=[write(KNOWN[0], row)], on_error="skip")
    assert (taken.gold, dict(taken.skipped)) == (1, {"out_of_range": 1})


def test_a_probability_of_zero_is_an_answer_too(store: Store, write: Write) -> None:
    take_in(store, "t", gold=[write({**KNOWN[0], "probability": 0.0})])
    (item,) = store.items("t")
    assert getattr(item.new, str(item.new.gold)).text == "x0"


def test_gold_without_an_answer_or_against_the_task_is_refused(store: Store, write: Write) -> None:
    with pytest.raises(DataError, match="no comparison"):
        take_in(store, "t", gold=[write(THREE)])
    take_in(store, "t", [write(*pool_of(1))])
    with pytest.raises(DataError, match="an ordinary one"):
        take_in(store, "t", gold=[write(KNOWN[0])])
    take_in(store, "t", gold=[write(KNOWN[1])])
    turned = {"prompt": "p1", "chosen": "y1", "rejected": "x1"}
    with pytest.raises(DataError, match="another known answer"):
        take_in(store, "t", gold=[write(turned)])


@pytest.mark.parametrize("apart", [False, True])
def test_gold_that_says_both_is_refused(store: Store, write: Write, apart: bool) -> None:
    turned = {"prompt": "p1", "chosen": "y1", "rejected": "x1"}
    files = [write(KNOWN[1]), write(turned, name="b.jsonl")] if apart else [write(KNOWN[1], turned)]
    with pytest.raises(DataError, match="two different answers") as caught:
        take_in(store, "t", gold=files)
    assert caught.value.file and caught.value.row and caught.value.remedy
    assert list(store.items("t")) == []


# -- images and audio ------------------------------------------------------------------------


def png(colour: int = 0) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        body = name + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    head = struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        (
            chunk(b"IHDR", head),
            chunk(b"IDAT", zlib.compress(bytes([0, colour]))),
            chunk(b"IEND", b""),
        )
    )


def tone(path: Path) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1), file.setsampwidth(1), file.setframerate(8000)
        file.writeframes(bytes(int(128 + 100 * math.sin(n / 3)) for n in range(800)))


def with_media(**meta: Any) -> Row:
    return {**THREE, "completions": THREE["completions"][:2], "meta": {"id": 7, **meta}}


def test_images_and_audio_come_along(store: Store, write: Write, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "cat.jpeg").write_bytes(png())  # its name is wrong: what counts is inside
    tone(tmp_path / "in" / "tone.wav")
    uri = "data:image/png;base64," + base64.b64encode(png(9)).decode()
    row = with_media(images=["cat.jpeg", uri], audio=["./tone.wav"])
    take_in(store, "t", [write(row, name="in/pool.jsonl")])
    (item,) = store.items("t")
    assert item.new.meta == {"id": 7}
    kept = [store.media(digest) for digest in item.new.media]
    assert kept == [
        (png(), "image/png"),
        (png(9), "image/png"),
        ((tmp_path / "in" / "tone.wav").read_bytes(), "audio/wav"),
    ]


def test_the_same_texts_with_another_image_are_another_question(store: Store, write: Write) -> None:
    uris = ["data:image/png;base64," + base64.b64encode(png(n)).decode() for n in range(2)]
    rows = [with_media(images=[uri]) for uri in uris]
    assert take_in(store, "t", [write(*rows)]).new == 2


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("https://example.org/cat.png", "nothing is fetched"),
        ("//example.org/cat.png", "nothing is fetched"),
        ("file:///etc/hostname", "nothing is fetched"),
        ("../outside.png", "leaves the folder"),
        ("/outside.png", "leaves the folder"),
        ("link.png", "leaves the folder"),
        ("nothing.png", "no such file"),
        ("in\0side.png", "cannot be read"),
        ("drawing.svg", "of no known type"),
        ("drawing.png", "of no known type"),
        ("tone.wav", "it is audio/wav"),
        ("data:image/svg+xml,%3Csvg%20xmlns='http://www.w3.org/2000/svg'/%3E", "no known type"),
        ("data:image/png;base64,not base64!", "not base64"),
        ("data:nonsense", "cannot be read"),
        ("large.png", "more than"),
        (3, "a path or a data: URI"),
        ("", "a path or a data: URI"),
    ],
)
def test_what_is_not_shown_is_refused_with_its_row(
    store: Store, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reference: Any,
    message: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(media, "LIMIT", 1000)
    folder = tmp_path / "in"
    folder.mkdir()
    (tmp_path / "outside.png").write_bytes(png())
    (folder / "link.png").symlink_to(tmp_path / "outside.png")
    for name in ("drawing.svg", "drawing.png"):
        (folder / name).write_text("<svg xmlns='http://www.w3.org/2000/svg'><script/></svg>")
    (folder / "large.png").write_bytes(png() + bytes(1000))
    tone(folder / "tone.wav")
    path = write(with_media(), with_media(images=[reference]), name="in/pool.jsonl")
    with pytest.raises(DataError, match=message) as caught:
        take_in(store, "t", [path])
    error = caught.value
    assert (error.file, error.row, error.field) == (path, 2, "meta.images")
    assert error.kind == "unsupported_media" and error.remedy
    assert list(store.items("t")) == []  # all or nothing
    skipping = take_in(store, "t", [path], on_error="skip")
    assert dict(skipping.skipped) == {"unsupported_media": 1} and skipping.new == 1


def test_a_data_uri_cannot_get_round_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(media, "LIMIT", 1000)
    plain = "data:image/png;base64," + base64.b64encode(png() + bytes(1000)).decode()
    for uri in (plain, "data:image/png," + "%00" * 2000):
        with pytest.raises(DataError, match="more than"):
            media.load(uri, Path(), "images")


def test_media_must_be_lists(store: Store, write: Write) -> None:
    with pytest.raises(DataError, match="must be a list") as caught:
        take_in(store, "t", [write(with_media(images="cat.png"))])
    assert (caught.value.row, caught.value.field) == (1, "meta.images")


@pytest.mark.parametrize("head", [b"", b"<svg", b"RIFF1234AVI ", b"\x89PNG", b"GIF88a"])
def test_only_known_beginnings_are_types(head: bytes) -> None:
    assert media.type_of(head) is None
