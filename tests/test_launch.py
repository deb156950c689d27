"""Several processes: how they are started, who speaks, and what happens when one dies.

Processes, signals and messages are real. A launch takes seconds, so a run is stopped in
several ways, one after the other, and must still end with the weights of an undisturbed one.
"""

from __future__ import annotations

import json
import os
import random
import shlex
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prefopt.cli.processes import ToldError, as_flags, in_processes
from prefopt.errors import TrainingError
from prefopt.runs import Run
from tests import meeting

ROOT = Path(__file__).resolve().parent.parent
CLUSTER = ROOT / "examples" / "cluster"
PREFOPT = [sys.executable, "-m", "prefopt", "train"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with preferences, where all runs of this file are."""
    folder = tmp_path_factory.mktemp("launch")
    draw = random.Random(0)

    def words() -> str:
        return " ".join(draw.choice(["bread", "sky", "dull", "film"]) for _ in range(4))

    rows = [
        {"prompt": f"{number} {words()}", "chosen": words(), "rejected": f"not {words()}"}
        for number in range(24)
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def recipe(place: Path, tiny_policy_folder: Path) -> Callable[..., str]:
    """`recipe(out, **settings)`: the path of a recipe with many short steps."""

    def write(out: str, **settings: Any) -> str:
        lines = {
            "model": str(tiny_policy_folder),
            "data": "pairs.jsonl",
            "out": out,
            "batch_size": 4,
            "epochs": 10,
            "learning_rate": 0.001,
            "checkpoint_every": 3,
            "microbatch_tokens": 60,
            "device": "cpu",
            **settings,
        }
        path = place / f"{Path(out).name}.yaml"
        path.write_text("".join(f"{name}: {json.dumps(value)}\n" for name, value in lines.items()))
        return str(path)

    return write


class Launched:
    """A command that runs, in a process group of its own."""

    def __init__(self, command: list[str], place: Path, run: Path) -> None:
        self.run = run
        self.child = subprocess.Popen(
            command,
            cwd=place,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def at_step(self, step: int) -> dict[int, int]:
        """Wait until a checkpoint has at least these steps; process ids by rank."""
        deadline = time.monotonic() + 300
        while self.child.poll() is None:
            path = Run(self.run).last_checkpoint
            if path is not None and int(path.name[5:]) >= step:
                return ranks(self.run)
            assert time.monotonic() < deadline
            time.sleep(0.02)
        raise AssertionError(self.child.communicate()[1])

    def ended(self) -> tuple[int, str, str]:
        out, err = self.child.communicate(timeout=300)
        return self.child.returncode, out, err


def ranks(run: Path) -> dict[int, int]:
    """Processes that train a run, by rank: those with its recipe in the command, and RANK set."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes().split(b"\0")
            settings = (folder / "environ").read_bytes().split(b"\0")
        except OSError:  # it has just ended
            continue
        rank = next((word[5:] for word in settings if word.startswith(b"RANK=")), None)
        if rank is not None and any(word.endswith(f"{run.name}.yaml".encode()) for word in command):
            found[int(rank)] = int(folder.name)
    return found


def one_object(stdout: str) -> Any:
    lines = stdout.strip().splitlines()
    assert len(lines) == 1, stdout
    return json.loads(lines[0])


def weights(run: Path) -> bytes:
    return (run / "model" / "model.safetensors").read_bytes()


# -- whole launches ------------------------------------------------------------------------


def test_a_run_that_is_stopped_in_every_way_ends_like_an_undisturbed_one(
    place: Path, recipe: Callable[..., str], tmp_path: Path
) -> None:
    calm, run = place / "calm", place / "stopped"
    line = torchrun_of_the_example(recipe("calm"))
    done = subprocess.run([*line, "--json"], cwd=place, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    result = one_object(done.stdout)
    assert result["steps"] == 60 and Path(place, result["report"]).exists()
    assert done.stderr.count("setting ") == 1  # the table of settings, from one process
    assert done.stderr.count("24 groups") == 1
    manifest = json.loads((calm / "manifest.json").read_text())
    assert manifest["processes"]["count"] == 2
    assert list(manifest["processes"]["hosts"].values()) == [2]
    # Every score is in the cache, though each process computed half of them.
    with sqlite3.connect(tmp_path / "prefopt-cache" / "scores.sqlite") as cache:
        assert cache.execute("SELECT COUNT(*) FROM scores").fetchone() == (48,)

    again = [*PREFOPT, recipe("stopped"), "--processes", "2"]
    launched = Launched(again, place, run)
    launched.at_step(3)
    os.killpg(launched.child.pid, signal.SIGINT)  # what a terminal does
    code, _, err = launched.ended()
    assert code == 130, err
    assert err.count("error: interrupted; the last checkpoint is stopped/checkpoints/step-") == 1
    assert "Traceback" not in err
    assert ranks(run) == {}  # no orphans

    launched = Launched([*again, "--json"], place, run)
    pids = launched.at_step(step_of(run) + 6)
    for pid in (launched.child.pid, *pids.values()):  # what slurm does
        os.kill(pid, signal.SIGTERM)
    code, out, err = launched.ended()
    assert code == 143, err
    message = one_object(out)["error"]["message"]
    assert message.startswith("stopped by SIGTERM; the last checkpoint is stopped/checkpoints/")
    assert "error:" not in err and "Traceback" not in err
    assert ranks(run) == {} and not (run / "manifest.json").exists()

    launched = Launched([*again, "--restarts", "1", "--json"], place, run)
    pids = launched.at_step(step_of(run) + 6)
    os.kill(pids[1], signal.SIGKILL)
    code, out, err = launched.ended()
    assert code == 0, out + err
    assert one_object(out)["steps"] == 60
    told = f"process 1 of this training (pid {pids[1]}) was killed by SIGKILL"
    assert err.count(told) == 1 and "beginning again (restart 1 of 1)" in err
    assert err.count("going on after step") == 2 and "error:" not in err
    assert ranks(run) == {}
    assert weights(run) == weights(calm)


def step_of(run: Path) -> int:
    path = Run(run).last_checkpoint
    assert path is not None
    return int(path.name[5:])


def test_a_mistake_is_told_once(place: Path, recipe: Callable[..., str]) -> None:
    """It is in the data, which every process reads."""
    rows = (place / "pairs.jsonl").read_text().splitlines()
    (place / "wrong.jsonl").write_text("\n".join([*rows, '{"prompt": "a", "chosen": "b"}']))
    path = recipe("wrong", data="wrong.jsonl")
    ours = subprocess.run(
        [*PREFOPT, path, "--processes=2"], cwd=place, capture_output=True, text=True, timeout=300
    )
    assert ours.returncode == 2, ours.stderr
    assert ours.stderr.count("error:") == 1 and "wrong.jsonl, row 25" in ours.stderr
    assert "Traceback" not in ours.stderr and "torch" not in ours.stderr
    assert not (place / "wrong").exists()


# -- what the processes tell each other ----------------------------------------------------


def test_processes_that_met_agree(tmp_path: Path) -> None:
    """On numbers, on errors, and on reference scores, each with a cache of its own."""
    first, second = meeting.hold(tmp_path)
    assert first["rank"] == 0 and second["rank"] == 1
    for said in (first, second):
        assert said["highest"] == 1 and said["any"] is True and said["broadcast"] == "of 0"
        assert said["gather"] == [0, 1]
        assert said["by_main"] == ["RunError: the disk is full", "42"]
        assert "another policy" in said["agree"] and "process 1 on" in said["agree"]
        assert said["leaders_first"] == "DataError: row 7 of process 1"
    # Scores: each computed its half of the four micro-batches, both have all, to the bit.
    assert first["computed"] == [0, 2] and second["computed"] == [1, 3]
    assert first["scores"] == second["scores"] and len(first["scores"]) == 8
    assert first["cached"] == second["cached"] == first["scores"]
    # What one machine's cache has is computed by nobody.
    assert first["again"] == second["again"] == []
    assert first["scores_again"] == first["scores"] == second["scores_again"]
    # The second failed; the first lost it, and leaves the word to it.
    assert second["end"] == ["ZeroDivisionError", True]
    assert first["end"] == ["LostError", False]


def test_restarts_are_for_what_may_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from prefopt.training.launch import Ended

    said: list[dict[str, Any]] = []

    def attempt(command: list[str], processes: int, relay: str) -> Ended:
        assert command[1:] == ["-m", "prefopt", "train", "r.yaml"] and processes == 3
        document, ended = script.pop(0)
        said.append(document)
        if document:
            Path(relay).write_text(json.dumps(document))
        return ended

    monkeypatch.setattr("prefopt.training.launch.attempt", attempt)

    def go(restarts: int) -> dict[str, Any]:
        arguments, run = ["train", "r.yaml"], Run(tmp_path / "run")
        return in_processes(arguments, run, processes=3, restarts=restarts)

    place = {"file": None, "row": None, "field": None, "value": None, "remedy": None}
    wrong = {"error": {"type": "DataError", "message": "empty", **place, "row": 7}, "code": 2}
    odd = {"error": {"type": "OutOfMemoryError", "message": "no memory", **place}, "code": 1}
    lost = ({}, Ended(1, lost="process 2 was killed"))

    script = [(odd, Ended(1)), lost, ({"result": {"steps": 4}}, Ended())]
    assert go(2) == {"steps": 4} and script == []
    assert "no memory; beginning again (restart 1 of 2)" in capfd.readouterr().err
    script = [lost, lost]
    with pytest.raises(TrainingError, match="process 2 was killed") as caught:
        go(1)
    assert "no checkpoint yet" in str(caught.value.remedy)
    script = [(wrong, Ended(2)), lost]
    with pytest.raises(ToldError, match="row 7: empty") as told:
        go(5)
    assert told.value.exit_code == 2 and told.value.to_dict() == wrong["error"]
    assert len(script) == 1


def test_the_first_to_fail_explains_the_end() -> None:
    from types import SimpleNamespace

    from prefopt.training.launch import _judged

    def failure(exitcode: int, **word: int) -> SimpleNamespace:
        return SimpleNamespace(exitcode=exitcode, pid=9, error_file_data=word)

    killed = {0: failure(-15), 1: failure(1), 3: failure(-9), 2: failure(1)}
    ended = _judged(killed)
    assert ended.lost.startswith("process 3 of this training (pid 9) was killed by SIGKILL")
    assert _judged({0: failure(-9), 1: failure(2, timestamp=1)}).code == 2
    assert _judged({0: failure(143), 1: failure(143)}).signum == signal.SIGTERM
    assert "exit code 7" in _judged({0: failure(-15), 1: failure(7)}).lost


def test_sigterm_is_noted_between_steps_and_ends_all_else() -> None:
    from prefopt.training.interrupts import Stopped, between_steps, stoppable

    before = signal.getsignal(signal.SIGTERM)
    with stoppable():
        with between_steps() as asked:
            assert asked() == 0
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)  # from a scheduler and from a launcher
            assert asked() == signal.SIGTERM
        with pytest.raises(Stopped, match="stopped by SIGTERM") as caught:
            signal.raise_signal(signal.SIGTERM)
    assert caught.value.exit_code == 143 and isinstance(caught.value, KeyboardInterrupt)
    with between_steps() as asked:
        signal.raise_signal(signal.SIGINT)
        assert asked() == signal.SIGINT
        with pytest.raises(Stopped, match="interrupted") as caught:  # one who will not wait
            signal.raise_signal(signal.SIGINT)
    assert caught.value.exit_code == 130
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_process_that_failed_is_heard_to_the_end() -> None:
    """The launcher ends the others when one dies, and one of them has something to say."""
    from prefopt.training.interrupts import heard_to_the_end

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with heard_to_the_end():
            assert signal.getsignal(signal.SIGTERM) is before[signal.SIGTERM]
        with pytest.raises(ZeroDivisionError), heard_to_the_end():
            print(1 // 0)
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# -- the command line ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "environment", "message"),
    [
        (["--restarts", "1"], {}, "no effect without several --processes"),
        (["--restarts", "1", "--processes", "1"], {}, "no effect without several --processes"),
        (["--processes", "2"], {"RANK": "0"}, "started already"),
        (["--processes", "0"], {}, "must be at least 1"),
    ],
)
def test_numbers_that_mean_nothing_are_refused(
    flags: list[str],
    environment: dict[str, str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from prefopt.cli.app import run

    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert run(["train", "r.yaml", *flags]) == 2
    assert message in capsys.readouterr().err


def test_of_torchruns_processes_one_tells_a_wrong_recipe(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from prefopt.cli.app import run

    for rank, words in (("0", 1), ("1", 0)):
        monkeypatch.setenv("RANK", rank)
        assert run(["train", "--no-such-flag"]) == 2
        assert capsys.readouterr().err.count("error:") == words


def test_flags_arrive_as_they_were_given() -> None:
    settings = {
        "batch_size": "8",
        "data": ["a.jsonl", "b.jsonl"],
        "objective": "dpo",
        "objective_options": {"beta": "0.2", "plus.sft": "0.1"},
        "constraints": "{name: rude, patterns: [damn], limit: 0.05}",
        "compile": True,
        "out": None,
    }
    assert as_flags(settings) == [
        "--batch-size=8",
        "--data=a.jsonl",
        "--data=b.jsonl",
        "--objective=dpo",
        "--objective.beta=0.2",
        "--objective.plus.sft=0.1",
        "--constraints={name: rude, patterns: [damn], limit: 0.05}",
        "--compile",
    ]
    from prefopt.cli.train import train

    names = set(train.__signature__.parameters)  # type: ignore[attr-defined]
    assert set(settings) <= names


# -- the examples for clusters -------------------------------------------------------------


def torchrun_of_the_example(recipe: str) -> list[str]:
    """The command in examples/cluster/slurm.sh, for two processes on this machine."""
    text = (CLUSTER / "slurm.sh").read_text().replace("\\\n", " ")
    (line,) = [line for line in text.splitlines() if line.startswith("srun ")]
    words = shlex.split(line.rstrip("& "))
    words = words[words.index("torchrun") + 1 :]
    here = {
        "--nnodes": "1",
        "--nproc-per-node": "2",
        "--rdzv-endpoint": "localhost:0",
        "--rdzv-id": "test",
    }
    assert {word.partition("=")[0] for word in words} >= set(here)
    filled = []
    for word in words:
        name, equals, _ = word.partition("=")
        filled.append(f"{name}={here[name]}" if equals and name in here else word)
    return [*TORCHRUN, *(recipe if word == "$RECIPE" else word for word in filled)]


def test_the_slurm_script_passes_the_signal_on_and_requeues(tmp_path: Path) -> None:
    """With stand-ins for Slurm's commands: what it does with a signal, and with a failure."""
    programs = {
        "srun": 'shift; exec "$@"',
        "torchrun": 'echo "$@" > said; trap "exit 1" TERM; touch ready; '
        'case "$*" in *fail.yaml) exit 1;; esac; while :; do sleep 0.05; done',
        "scontrol": 'case $1 in show) echo "first\nsecond";; *) echo "$@" >> requeued;; esac',
    }
    for name, body in programs.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "SLURM_JOB_NODELIST": "many[1-2]",
        "SLURM_JOB_ID": "70",
        "SLURM_NNODES": "2",
        "SLURM_GPUS_ON_NODE": "4",
    }

    def submit(recipe: str) -> subprocess.Popen[bytes]:
        line = ["bash", str(CLUSTER / "slurm.sh"), recipe]
        return subprocess.Popen(line, env=environment, cwd=tmp_path)

    assert submit("fail.yaml").wait(timeout=60) == 1
    assert not (tmp_path / "requeued").exists()
    (tmp_path / "ready").unlink()
    job = submit("r.yaml")
    deadline = time.monotonic() + 60
    while not (tmp_path / "ready").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    job.send_signal(signal.SIGTERM)
    assert job.wait(timeout=60) != 0
    assert (tmp_path / "requeued").read_text() == "requeue 70\n"
    said = (tmp_path / "said").read_text().split()
    assert (
        said[:2] == ["--nnodes=2", "--nproc-per-node=4"] and "--rdzv-endpoint=first:20070" in said
    )
    assert said[-4:] == ["-m", "prefopt", "train", "r.yaml"]


def test_the_kubernetes_job_is_one() -> None:
    import yaml

    (job,) = yaml.safe_load_all((CLUSTER / "pytorchjob.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("kubeflow.org/v1", "PyTorchJob")
    assert job["spec"]["nprocPerNode"] == "8"
    for replica in job["spec"]["pytorchReplicaSpecs"].values():
        pod = replica["template"]["spec"]
        (container,) = pod["containers"]
        assert container["name"] == "pytorch"  # which the operator looks for
        assert container["command"][:4] == ["torchrun", "-m", "prefopt", "train"]
        assert container["resources"]["limits"]["nvidia.com/gpu"] == 8
        names = {volume["name"] for volume in pod["volumes"]}
        assert {mount["name"] for mount in container["volumeMounts"]} == names
        saving = {setting["name"]: setting["value"] for setting in container["env"]}
        grace = pod["terminationGracePeriodSeconds"]
        assert int(saving["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"]) < grace
