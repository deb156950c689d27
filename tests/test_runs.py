"""Run folders: whole files, one writer, and nothing of another run overwritten."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from prefopt.errors import RunError
from prefopt.recipe import ResolvedRecipe, load_recipe
from prefopt.runs import (
    Run,
    atomic_file,
    atomic_folder,
    fingerprint_file,
    hardware,
    versions,
    write_text,
)


def resolved(**settings: Any) -> ResolvedRecipe:
    named = {name.replace("__", "."): value for name, value in settings.items()}
    return load_recipe(None, {"model": "m", "data": "d", "out": "o", **named})


# -- the life of a run ---------------------------------------------------------------------


def test_the_same_recipe_finds_its_run_again(tmp_path: Path) -> None:
    run = Run(tmp_path / "deep" / "run")
    assert run.begin(resolved()) is False
    assert load_recipe(run.recipe, {}).recipe == resolved().recipe
    assert run.begin(resolved()) is True
    assert run.begin(resolved(microbatch_tokens=17, track="none", device="cpu")) is True
    assert not run.finished


def test_a_run_that_learned_differently_is_not_overwritten(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.begin(resolved())
    before = run.recipe.read_bytes()
    with pytest.raises(RunError) as caught:
        run.begin(resolved(seed=1, objective__beta=0.3))
    assert "seed was 0 and is 1" in caught.value.message
    assert "objective.beta was None and is 0.3" in caught.value.message
    assert "resume: never" in str(caught.value.remedy)
    assert run.recipe.read_bytes() == before


def test_resume_never_starts_over_and_removes_only_what_a_run_writes(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.begin(resolved())
    run.append_metrics({"step": 1})
    run.write_json(run.manifest, {"kind": "train"})
    (run.model / "deep").mkdir(parents=True)
    run.checkpoints.mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    assert run.finished
    assert run.begin(resolved(seed=1, resume="never")) is False
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt", "recipe.yaml"]
    assert load_recipe(run.recipe, {}).recipe.seed == 1


@pytest.mark.parametrize("name", ["thesis.tex", "recipe.yaml"])
@pytest.mark.parametrize("resume", ["auto", "never"])
def test_a_folder_with_something_else_is_refused(tmp_path: Path, name: str, resume: str) -> None:
    (tmp_path / name).write_text("model: m\ndata: d\nout: o\n")
    with pytest.raises(RunError, match="choose another --out"):
        Run(tmp_path).begin(resolved(resume=resume))
    assert (tmp_path / name).read_text() == "model: m\ndata: d\nout: o\n"


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(RunError, match="a file is where a folder is needed"):
            Run(path).begin(resolved())
        with pytest.raises(RunError), Run(path).locked():
            pass


# -- one writer ----------------------------------------------------------------------------

_HOLD = (
    "import sys, time\nfrom prefopt.runs import Run\n"
    "with Run(sys.argv[1]).locked():\n    print('held', flush=True)\n    time.sleep(60)\n"
)


def test_two_processes_cannot_write_one_run_and_a_kill_frees_it(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(RunError, match=f"process {holder.pid}"), Run(tmp_path).locked():
            pass
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        with Run(tmp_path).locked():
            pass
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()  # type: ignore[union-attr]


# -- metrics -------------------------------------------------------------------------------


def test_metrics_are_appended_read_and_cut_to_a_checkpoint(tmp_path: Path) -> None:
    run = Run(tmp_path)
    assert run.read_metrics() == []
    size = run.append_metrics({"step": 1, "loss": 0.5})
    assert size == run.metrics_size() == run.metrics.stat().st_size
    run.append_metrics({"step": 2, "loss": 0.25})
    with open(run.metrics, "a") as handle:
        handle.write('{"step": 3, "lo')
    assert [record["step"] for record in run.read_metrics()] == [1, 2]
    run.truncate_metrics(size)
    run.append_metrics({"step": 2, "loss": 0.125})
    assert run.read_metrics() == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.125}]
    with pytest.raises(RunError, match="metrics end before"):
        run.truncate_metrics(10_000)


def test_broken_metrics_are_named_with_their_row(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.metrics.write_text('{"step": 1}\n{"step"\n{"step": 3}\n')
    with pytest.raises(RunError) as caught:
        run.read_metrics()
    assert caught.value.row == 2


def test_json_holds_numbers_of_numpy_and_refuses_nan(tmp_path: Path) -> None:
    import numpy as np

    run = Run(tmp_path)
    run.append_metrics({"loss": np.float32(0.5), "step": np.int64(3)})
    assert run.read_metrics() == [{"loss": 0.5, "step": 3}]
    with pytest.raises(ValueError, match="JSON compliant"):
        run.write_json(run.manifest, {"loss": float("nan")})
    assert not run.manifest.exists()


# -- whole or not at all -------------------------------------------------------------------


def test_a_file_keeps_its_content_until_the_new_one_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with suppress(KeyboardInterrupt), atomic_file(path) as handle:
        handle.write(b"ne")
        assert path.read_text() == "old"
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    write_text(path, "new")
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_folder_is_replaced_only_by_a_complete_one(tmp_path: Path) -> None:
    target = tmp_path / "model"
    with atomic_folder(target) as part:
        (part / "one").write_text("1")
    with suppress(ZeroDivisionError), atomic_folder(target) as part:
        (part / "two").write_text("2")
        raise ZeroDivisionError
    assert os.listdir(target) == ["one"]
    with atomic_folder(target) as part:
        (part / "two").write_text("2")
    assert os.listdir(target) == ["two"]
    assert os.listdir(tmp_path) == ["model"]


_FILL = """
import resource, signal, sys
from prefopt.errors import RunError
from prefopt.runs import write_text
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
write_text(sys.argv[1], "small")
try:
    write_text(sys.argv[1], "x" * 5000)
except RunError as error:
    print(error)
"""


def test_a_full_disk_is_said_and_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    done = subprocess.run(
        [sys.executable, "-c", _FILL, str(path)], capture_output=True, text=True, check=True
    )
    assert "the disk is full" in done.stdout
    assert "make room" in done.stdout
    assert path.read_text() == "small"
    assert os.listdir(tmp_path) == ["manifest.json"]


def test_a_place_that_cannot_be_written_is_said() -> None:
    with pytest.raises(RunError) as caught:
        Run("/proc/prefopt").begin(resolved())
    assert caught.value.file == "/proc/prefopt"
    assert caught.value.exit_code == 1


# -- what a manifest records ---------------------------------------------------------------


def test_a_file_is_known_by_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(b"preferences" * 100_000)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert fingerprint_file(path) == f"sha256:{digest}"
    with pytest.raises(RunError, match="no such file"):
        fingerprint_file(tmp_path / "nope")


def test_versions_and_hardware_are_known_without_torch() -> None:
    program = (
        "import sys\nfrom prefopt.runs import hardware, versions\n"
        "versions(); hardware()\nassert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
    assert {"python", "prefopt", "torch", "transformers"} <= set(versions())
    assert hardware()["cores"] >= 1
