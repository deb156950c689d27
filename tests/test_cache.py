"""The cache of reference scores: content-addressed, shared, and there after a kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from prefopt.engine.cache import ScoreCache, default_cache_folder
from prefopt.engine.tokens import TokenGroup
from prefopt.errors import RunError
from prefopt.policies.fingerprint import fingerprint_model, fingerprint_tokenizer


def group(prompt: list[int], *completions: list[int]) -> TokenGroup:
    array = lambda ids: np.array(ids, dtype=np.int32)  # noqa: E731
    return TokenGroup(array(prompt), tuple(map(array, completions)))


GROUPS = [group([1, 2], [3, 4], [5]), group([1], [2, 3, 4])]


def test_what_was_put_is_got_back_exactly(tmp_path: Path) -> None:
    cache = ScoreCache(tmp_path)
    assert cache.get("a", GROUPS) is None
    scores = torch.tensor([-1.1, -2.2, -3.3])
    cache.put("a", GROUPS, scores)
    assert torch.equal(ScoreCache(tmp_path).get("a", GROUPS), scores.double())
    assert torch.equal(cache.get("a", GROUPS[1:]), scores[2:].double())


@pytest.mark.parametrize(
    ("fingerprint", "other"),
    [
        ("b", GROUPS[0]),  # another model
        ("a", group([1, 2, 3], [4], [5])),  # the same tokens, another boundary
        ("a", group([1, 2], [3], [5])),  # another completion
    ],
)
def test_nothing_else_is_mistaken_for_it(
    fingerprint: str, other: TokenGroup, tmp_path: Path
) -> None:
    cache = ScoreCache(tmp_path)
    cache.put("a", GROUPS, torch.zeros(3))
    assert cache.get(fingerprint, [other]) is None


def test_a_row_is_never_changed(tmp_path: Path) -> None:
    cache = ScoreCache(tmp_path)
    cache.put("a", GROUPS, torch.ones(3))
    cache.put("a", GROUPS, torch.zeros(3))
    assert torch.equal(cache.get("a", GROUPS), torch.ones(3).double())


def test_many_rows(tmp_path: Path) -> None:
    many = [group([n], [n + 1], [n + 2]) for n in range(1500)]
    cache = ScoreCache(tmp_path)
    cache.put("a", many, torch.arange(3000.0))
    assert torch.equal(cache.get("a", many), torch.arange(3000.0).double())


_WRITER = """
import sys, numpy as np, torch
from prefopt.engine.cache import ScoreCache
from prefopt.engine.tokens import TokenGroup
cache, name = ScoreCache(sys.argv[1]), int(sys.argv[2])
ids = lambda *n: np.array(n, dtype=np.int32)
print("ready", flush=True)
for step in range(int(sys.argv[3])):
    groups = [TokenGroup(ids(name, step), tuple(ids(k) for k in range(20)))]
    cache.put("a", groups, torch.full((20,), float(step)))
    print(step, flush=True)
"""


def writer(folder: Path, name: int, steps: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", _WRITER, str(folder), str(name), str(steps)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def written(cache: ScoreCache, name: int, step: int) -> Any:
    ids = lambda *n: np.array(n, dtype=np.int32)  # noqa: E731
    groups = [TokenGroup(ids(name, step), tuple(ids(k) for k in range(20)))]
    return cache.get("a", groups)


def test_several_processes_write_at_once(tmp_path: Path) -> None:
    writers = [writer(tmp_path, name, 20) for name in range(3)]
    assert [process.wait(60) for process in writers] == [0, 0, 0]
    for process in writers:
        assert process.stdout is not None
        process.stdout.close()
    cache = ScoreCache(tmp_path)
    for name in range(3):
        for step in range(20):
            assert torch.equal(written(cache, name, step), torch.full((20,), float(step)).double())


def test_a_kill_leaves_whole_transactions(tmp_path: Path) -> None:
    process = writer(tmp_path, 0, 100_000)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.3)
    os.kill(process.pid, signal.SIGKILL)
    acknowledged = [int(line) for line in process.stdout.read().split()]
    process.stdout.close()
    process.wait()
    cache = ScoreCache(tmp_path)
    assert acknowledged
    for step in acknowledged:
        assert written(cache, 0, step) is not None
    later = cache.path  # one transaction may be there beyond the last word, but only whole
    assert later.exists()
    import sqlite3

    connection = sqlite3.connect(later)
    (rows,) = connection.execute("SELECT count(*) FROM scores").fetchone()
    connection.close()
    assert rows % 20 == 0
    assert rows >= 20 * len(acknowledged)


def test_unusable_folder(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with pytest.raises(RunError, match="cache of reference scores") as caught:
        ScoreCache(blocked / "inside")
    assert "PREFOPT_CACHE" in str(caught.value.remedy)


def test_a_file_that_is_no_cache(tmp_path: Path) -> None:
    (tmp_path / "scores.sqlite").write_bytes(b"garbage " * 400)
    with pytest.raises(RunError, match="not a database"):
        ScoreCache(tmp_path)


def test_default_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PREFOPT_CACHE", str(tmp_path / "mine"))
    assert default_cache_folder() == tmp_path / "mine"
    monkeypatch.delenv("PREFOPT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_folder() == tmp_path / "prefopt"


# -- fingerprints --------------------------------------------------------------------------


def test_equal_weights_have_equal_fingerprints(
    make_model: Callable[..., Any], tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    model = make_model("llama")
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert fingerprint_model(model) == fingerprint_model(loaded)


def test_any_difference_shows(make_model: Callable[..., Any]) -> None:
    seen = {fingerprint_model(make_model("llama"))}
    other = make_model("llama")
    with torch.no_grad():
        other.model.norm.weight[3] += 1e-6
    seen.add(fingerprint_model(other))
    seen.add(fingerprint_model(make_model("llama", seed=1)))
    seen.add(fingerprint_model(make_model("llama", rms_norm_eps=1e-4)))  # only the config
    seen.add(fingerprint_model(make_model("llama").to(torch.bfloat16)))
    assert len(seen) == 5


def test_tokenizer_fingerprint(tiny_tokenizer: Any) -> None:
    before = fingerprint_tokenizer(tiny_tokenizer)
    assert before == fingerprint_tokenizer(tiny_tokenizer)
    tiny_tokenizer("padding and truncation are not part of it", padding="max_length", max_length=9)
    tiny_tokenizer.chat_template = "{{ messages }}"
    assert fingerprint_tokenizer(tiny_tokenizer) != before
