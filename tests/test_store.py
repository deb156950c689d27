"""Token stores: what goes in comes out, nothing half-written is used, nothing is read twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from prefopt.engine.forest import group_tokens
from prefopt.engine.store import StoreWriter, TokenStore
from prefopt.engine.tokens import TokenGroup
from prefopt.errors import DataError, RunError
from prefopt.recipe import load_recipe
from prefopt.records import Comparison, Label, Origin
from prefopt.training import sources
from prefopt.training.kept import kept_store
from prefopt.training.train import train

# -- groups on disk ------------------------------------------------------------------------

_ids = st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=6).map(
    lambda ids: np.array(ids, dtype=np.int32)
)
_number = st.floats(allow_nan=False, width=64)
_chance = st.floats(0, 1)
_weight = st.floats(0, 1e300)


@st.composite
def token_groups(draw: st.DrawFn) -> TokenGroup:
    completions = tuple(draw(st.lists(_ids, min_size=1, max_size=4)))
    count = len(completions)
    index = st.integers(0, count - 1)
    column = st.lists(st.none() | _number, min_size=count, max_size=count).map(tuple)
    return TokenGroup(
        draw(_ids),
        completions,
        tuple(draw(st.lists(st.builds(Comparison, index, index, _chance, _weight), max_size=3))),
        tuple(draw(st.lists(st.builds(Label, index, st.booleans(), _weight), max_size=3))),
        draw(st.none() | st.text()),
        tuple(draw(st.lists(st.builds(Origin, st.text(), st.integers(1, 2**40)), max_size=3))),
        draw(st.dictionaries(st.text(), column, max_size=3)),
    )


def as_plain(group: TokenGroup) -> tuple[Any, ...]:
    """A group as a value that can be compared."""
    return (
        group.prompt.dtype,
        group.prompt.tolist(),
        [ids.tolist() for ids in group.completions],
        *(group.comparisons, group.labels, group.source, group.origins, dict(group.columns)),
    )


def write(folder: Path, groups: list[TokenGroup], files: list[str] | None = None) -> Path:
    folder.mkdir()
    with StoreWriter(folder, files or []) as writer:
        for place, group in enumerate(groups):
            writer.add(group, place + 1, unweighted=True)
        writer.finish({"any": ["notes", 1.5, None]})
    return folder


@settings(max_examples=30, deadline=None)
@given(groups=st.lists(token_groups(), min_size=1, max_size=5))
def test_any_group_comes_back_as_it_was(
    groups: list[TokenGroup], tmp_path_factory: pytest.TempPathFactory
) -> None:
    store = TokenStore(write(tmp_path_factory.mktemp("store") / "it", groups))
    assert len(store) == len(groups)
    assert [*map(as_plain, store)] == [*map(as_plain, groups)]
    assert as_plain(store[-1]) == as_plain(groups[-1])
    assert [*map(as_plain, store[1:])] == [*map(as_plain, groups[1:])]
    assert store.sizes.tokens.tolist() == [*map(group_tokens, groups)]
    assert store.sizes.judgements.tolist() == [*range(1, len(groups) + 1)]
    assert list(store.sizes.sources) == [group.source for group in groups]
    assert store.notes == {"any": ["notes", 1.5, None]}
    with pytest.raises(IndexError):
        store[len(groups)]


FILES = ["däta/ä b.jsonl"]


def small(count: int = 3) -> list[TokenGroup]:
    return [
        TokenGroup(
            np.array([1, 2, place], dtype=np.int32),
            (np.array([3], dtype=np.int32), np.array([4, 5], dtype=np.int32)),
            (Comparison(0, 1),),
            origins=(Origin(FILES[0], place + 1),),
        )
        for place in range(count)
    ]


def test_rows_are_named_by_where_their_file_is_now(tmp_path: Path) -> None:
    folder = write(tmp_path / "store", small(), files=FILES)
    assert TokenStore(folder)[2].place == "däta/ä b.jsonl:3"
    assert TokenStore(folder, ["moved.jsonl"])[2].place == "moved.jsonl:3"
    with pytest.raises(ValueError, match="number of files"):
        TokenStore(folder, ["one", "two"])


def test_a_store_that_is_removed_while_it_is_open_is_still_there(tmp_path: Path) -> None:
    import shutil

    store = TokenStore(write(tmp_path / "store", small()))
    shutil.rmtree(tmp_path / "store")
    assert [*map(as_plain, store)] == [*map(as_plain, small())]


@pytest.mark.parametrize("name", ["groups.bin", "starts.bin", "judgements.bin", "tokens.bin"])
def test_what_was_cut_off_is_no_store(tmp_path: Path, name: str) -> None:
    folder = write(tmp_path / "store", small())
    path = folder / name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=f"{name} has another size"):
        TokenStore(folder)


def test_a_changed_byte_is_noticed(tmp_path: Path) -> None:
    folder = write(tmp_path / "store", small())
    records, starts = folder / "groups.bin", folder / "starts.bin"
    changed = bytearray(records.read_bytes())
    changed[-1] ^= 1
    records.write_bytes(changed)
    store = TokenStore(folder)
    assert as_plain(store[0]) == as_plain(small()[0])
    with pytest.raises(RunError, match="group 2 was changed on the disk"):
        store[2]
    changed = bytearray(starts.read_bytes())
    changed[8] ^= 1
    starts.write_bytes(changed)
    with pytest.raises(ValueError, match=r"starts\.bin was changed"):
        TokenStore(folder)


def test_an_unfinished_or_foreign_folder_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "unfinished").mkdir()
    with StoreWriter(tmp_path / "unfinished") as writer:
        writer.add(small()[0], 1, unweighted=True)
    with pytest.raises(FileNotFoundError):
        TokenStore(tmp_path / "unfinished")
    folder = write(tmp_path / "other", small())
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps({**meta, "format": 99}))
    with pytest.raises(ValueError, match="another format"):
        TokenStore(folder)


# -- stores in the cache -------------------------------------------------------------------


def writing(groups: list[TokenGroup], calls: list[int]) -> Callable[[StoreWriter], Any]:
    def write(writer: StoreWriter) -> dict[str, Any]:
        calls.append(len(groups))
        for group in groups:
            writer.add(group, 1, unweighted=True)
        return {}

    return write


def test_a_store_is_written_once_and_a_ruin_again(prefopt_cache: Path) -> None:
    calls: list[int] = []
    for _ in range(2):
        store = kept_store("abc", FILES, writing(small(), calls))
        assert [*map(as_plain, store)] == [*map(as_plain, small())]
    assert calls == [3]
    (prefopt_cache / "tokens" / "abc" / "starts.bin").write_bytes(b"x")
    assert len(kept_store("abc", FILES, writing(small(), calls))) == 3
    assert calls == [3, 3]
    assert len(kept_store("other", FILES, writing(small(2), calls))) == 2
    assert sorted(path.name for path in (prefopt_cache / "tokens").iterdir()) == ["abc", "other"]


def test_a_store_without_a_key_leaves_nothing_behind(prefopt_cache: Path) -> None:
    calls: list[int] = []
    for _ in range(2):
        store = kept_store(None, FILES, writing(small(), calls))
        assert not [*(prefopt_cache / "tokens").iterdir()]
        assert [*map(as_plain, store)] == [*map(as_plain, small())]
    assert calls == [3, 3]


@pytest.mark.parametrize("error", [DataError("wrong", kind="wrong_type"), KeyboardInterrupt()])
@pytest.mark.parametrize("key", ["abc", None])
def test_an_error_while_writing_leaves_nothing(
    prefopt_cache: Path, error: BaseException, key: str | None
) -> None:
    def fails(writer: StoreWriter) -> dict[str, Any]:
        writer.add(small()[0], 1, unweighted=True)
        raise error

    with pytest.raises(type(error)):
        kept_store(key, [], fails)
    assert not [*(prefopt_cache / "tokens").iterdir()]


def test_a_folder_that_cannot_be_used_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PREFOPT_CACHE", str(tmp_path / "file"))
    with pytest.raises(RunError, match="cannot be kept") as caught:
        kept_store("abc", [], writing(small(), []))
    assert "PREFOPT_CACHE" in str(caught.value.remedy)


_KILLED = """
import sys, time
sys.path.insert(0, sys.argv[1])
from test_store import FILES, small
from prefopt.training.kept import kept_store

def write(writer):
    for group in small():
        writer.add(group, 1, unweighted=True)
    for stream in writer._streams.values():
        stream.flush()
    print("half", flush=True)
    time.sleep(600)

kept_store("abc", FILES, write)
"""


def test_a_kill_while_writing_leaves_nothing_that_is_used(prefopt_cache: Path) -> None:
    folder = Path(__file__).parent
    program = [sys.executable, "-c", _KILLED, str(folder)]
    writer = subprocess.Popen(program, stdout=subprocess.PIPE, cwd=folder)
    assert writer.stdout is not None
    assert writer.stdout.readline() == b"half\n"
    (part,) = (prefopt_cache / "tokens").glob(".*.part")
    old = time.time() - 3600
    os.utime(part, (old, old))
    kept_store("other", FILES, writing(small(), []))  # which sweeps, and finds it in use
    assert part.exists()
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    writer.stdout.close()
    calls: list[int] = []
    assert len(kept_store("abc", FILES, writing(small(2), calls))) == 2
    assert calls == [2] and not part.exists()


def test_two_that_want_one_store_write_it_once(prefopt_cache: Path) -> None:
    """The second waits for the first, which here is another thread with handles of its own."""
    from concurrent.futures import ThreadPoolExecutor
    from threading import Event

    begun, may_end = Event(), Event()
    calls: list[int] = []

    def slow(writer: StoreWriter) -> dict[str, Any]:
        begun.set()
        assert may_end.wait(60)
        return dict(writing(small(), calls)(writer))

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(kept_store, "abc", FILES, slow)
        assert begun.wait(60)
        second = pool.submit(kept_store, "abc", FILES, slow)
        may_end.set()
        assert len(first.result()) == len(second.result()) == 3
    assert calls == [3]


def test_the_fingerprint_of_data_is_what_it_always_was() -> None:
    """Runs that began before there were stores go on: the digest is of the same bytes."""
    from prefopt.training.intake import _digested

    number = partial(int.to_bytes, length=4, byteorder="little")
    edge = "(Comparison(preferred=0, dispreferred=1, probability=1.0, weight=1.0),)"
    group = replace(small()[0], source="a", columns={"score": (1.0, None)})
    text = f"'a' {edge} 3".encode() + b"".join(map(number, (1, 2, 0)))
    answers = [(3,), (4, 5)]
    for ids in answers:
        text += len(ids).to_bytes(8, "little") + b"".join(map(number, ids))
    assert _digested(group, ()) == text
    assert _digested(group, ("score",)) == text + b"() [(1.0, None)]"
    marked = replace(group, labels=(Label(0, True),))
    assert _digested(marked, ()) == text + f"{marked.labels!r} []".encode()


# -- a training from a store ---------------------------------------------------------------


def write_rows(path: Path, count: int = 24, *, first: int = 0) -> Path:
    rows = [
        {"prompt": f"Tell me {place}.", "chosen": f"good {place % 7}", "rejected": f"bad {place}"}
        for place in range(first, first + count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def run_it(tmp_path: Path, tiny_policy_folder: Path) -> Callable[..., dict[str, torch.Tensor]]:
    def run(out: str, data: Path, **more: Any) -> dict[str, torch.Tensor]:
        recipe = {
            "model": str(tiny_policy_folder), "data": str(data), "out": str(tmp_path / out),
            "batch_size": 8, "microbatch_tokens": 64, "learning_rate": 1e-2, **more,
        }  # fmt: skip
        train(load_recipe(None, recipe), progress=False)
        return load_file(tmp_path / out / "model" / "model.safetensors")

    return run


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first | second)


def part_of_manifest(tmp_path: Path, out: str) -> Any:
    return json.loads((tmp_path / out / "manifest.json").read_text())["data"]["train"]


def test_a_second_training_reads_no_rows_and_is_the_same(
    run_it: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_rows(tmp_path / "pairs.jsonl")
    with data.open("a") as stream:
        stream.write('{"prompt": "x", "chosen": "", "rejected": "b"}\n')
    first = run_it("first", data, on_error="skip")
    with monkeypatch.context() as patch:
        patch.setattr(sources, "encode_groups", None)  # to call it would be an error
        again = run_it("again", data, on_error="skip")
        other = run_it("ipo", data, on_error="skip", **{"objective.name": "ipo"})
    assert same(first, again) and not same(first, other)
    told = part_of_manifest(tmp_path, "first")
    assert told == part_of_manifest(tmp_path, "again") == part_of_manifest(tmp_path, "ipo")
    assert told["skipped"] == {"empty_completion": 1} and told["groups"] == 24


def test_a_list_in_memory_and_a_store_give_the_same_weights(
    run_it: Callable[..., Any], tmp_path: Path, tiny_policy_folder: Path
) -> None:
    """`DPOTrainer.fit` keeps its groups in a list, a training its groups on disk."""
    from prefopt import DPOTrainer

    data = write_rows(tmp_path / "pairs.jsonl")
    stored = run_it("run", data, epochs=2)
    trainer = DPOTrainer(
        str(tiny_policy_folder), lr=1e-2, batch_size=8, microbatch_tokens=64, epochs=2
    )
    trainer.fit(data)
    ours = dict(trainer.model.named_parameters())
    assert {name for name in stored if not torch.equal(stored[name], ours[name])} == set()


@pytest.mark.parametrize(
    "change",
    [
        {"max_length": 24, "too_long": "cut_prompt_start"},
        {"on_error": "skip"},
        {"objective.name": "kto"},
        {"objective.name": "sft", "beta": None},
    ],
    ids=str,
)
def test_what_changes_the_tokens_makes_another_store(
    run_it: Callable[..., Any], tmp_path: Path, prefopt_cache: Path, change: dict[str, Any]
) -> None:
    data = write_rows(tmp_path / "pairs.jsonl", 8)
    run_it("first", data, max_steps=1)
    run_it("second", data, max_steps=1, **{k: v for k, v in change.items() if v is not None})
    assert len([*(prefopt_cache / "tokens").iterdir()]) == 2


def test_a_changed_file_makes_another_store_and_a_moved_one_does_not(
    run_it: Callable[..., Any], tmp_path: Path, prefopt_cache: Path
) -> None:
    data = write_rows(tmp_path / "pairs.jsonl", 8)
    run_it("first", data, max_steps=1)
    (tmp_path / "elsewhere").mkdir()
    data = data.rename(tmp_path / "elsewhere" / "pairs.jsonl")
    run_it("second", data, max_steps=1)
    stores = [*(prefopt_cache / "tokens").iterdir()]
    assert len(stores) == 1
    assert part_of_manifest(tmp_path, "second")["files"][0]["path"] == str(data)
    write_rows(data, 9)
    run_it("third", data, max_steps=1)
    assert len([*(prefopt_cache / "tokens").iterdir()]) == 2
    assert part_of_manifest(tmp_path, "third")["groups"] == 9


def test_a_file_that_changes_while_it_is_read_is_not_kept(
    run_it: Callable[..., Any],
    tmp_path: Path,
    prefopt_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = write_rows(tmp_path / "pairs.jsonl", 8)
    encode = sources.encode_groups

    def and_changes(*arguments: Any, **named: Any) -> Any:
        found = encode(*arguments, **named)
        write_rows(data, 9)
        return found

    monkeypatch.setattr(sources, "encode_groups", and_changes)
    with pytest.raises(DataError, match="changed while they were read"):
        run_it("run", data)
    assert not [*(prefopt_cache / "tokens").iterdir()]
    assert not (tmp_path / "run").exists()


def test_rows_of_one_prompt_become_one_group_in_a_store_too(
    run_it: Callable[..., Any], tmp_path: Path
) -> None:
    """What was written before the second row of a prompt came is written again, merged."""
    data = write_rows(tmp_path / "pairs.jsonl", 8)
    text = data.read_text()
    data.write_text(text + text.replace('"good', '"better'))
    run_it("run", data, max_steps=1)
    told = part_of_manifest(tmp_path, "run")
    assert (told["groups"], told["comparisons"], told["completions"]) == (8, 16, 24)


def test_costs_from_code_are_computed_anew(
    run_it: Callable[..., Any], tmp_path: Path, prefopt_cache: Path
) -> None:
    data = write_rows(tmp_path / "pairs.jsonl", 8)
    constraint = {"name": "safe", "patterns": ["bad"], "limit": 0.5, "mode": "safe_dpo"}
    run_it("run", data, max_steps=1, constraints=[constraint])
    assert not [*(prefopt_cache / "tokens").iterdir()]
