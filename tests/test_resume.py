"""A run that is stopped anywhere, by anything, ends with the weights of an undisturbed one."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from prefopt.errors import NonFiniteError, RunError
from prefopt.recipe import load_recipe
from prefopt.runs import Run
from prefopt.training.checkpoint import Checkpoints
from prefopt.training.loop import State
from prefopt.training.optimizer import make_optimizer
from prefopt.training.train import TrainResult, train

ROOT = Path(__file__).resolve().parent.parent

#: where a process kills itself: the function it does so in, and in which of its calls
KILLS: dict[str, tuple[str, int]] = {
    "while the reference is scored": ("prefopt.engine.cache.ScoreCache.put", 3),
    "in the middle of training": ("prefopt.runs.Run.append_metrics", 10),
    "while a checkpoint is written": ("prefopt.training.checkpoint.write_text", 2),
    "while the model is saved": ("prefopt.training.train.save_model", 1),
    "before the manifest is written": ("prefopt.training.train.fingerprint_model", 1),
}

#: what each kill leaves, so that no test passes because nothing was interrupted
LEFT = {
    "while the reference is scored": [],
    # records: an evaluation, steps 1, 2, 3, an evaluation, 4, 5, 6, an evaluation, 7;
    # the last checkpoint is at 6
    "in the middle of training": ["step-000006"],
    # the second one, complete but not yet in its place beside the first
    "while a checkpoint is written": [".step-000004", "step-000002"],
    "while the model is saved": ["step-000012"],
    "before the manifest is written": ["step-000012"],
}

#: the same command again, except that it is killed: after the call, before it returns
PROGRAM = """
import json, os, signal, sys
from pkgutil import resolve_name
from prefopt.recipe import load_recipe
from prefopt.training.train import train

settings, place, call = json.loads(sys.argv[1])
owner, _, name = place.rpartition(".")
owner = resolve_name(owner)
function, calls = getattr(owner, name), 0

def killed(*args, **kwargs):
    global calls
    calls += 1
    if calls == call:
        function(*args, **kwargs)
        os.kill(os.getpid(), signal.SIGKILL)
    return function(*args, **kwargs)

setattr(owner, name, killed)
train(load_recipe(None, settings), progress=False)
"""


@pytest.fixture
def settings(tiny_policy_folder: Path, tmp_path: Path) -> dict[str, Any]:
    """Twelve steps in two epochs, several micro-batches each, a checkpoint after every other."""
    draw = random.Random(0)
    words = "good bad dull bright film story quiet loud".split()
    pairs = [
        {side: " ".join(draw.choices(words, k=draw.randint(2, 6))) + end for side, end in ends}
        for ends in [(("prompt", ": "), ("chosen", " yes"), ("rejected", " no"))] * 24
    ]
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    return {
        "model": str(tiny_policy_folder),
        "data": str(data),
        "eval_data": str(data),
        "batch_size": 4,
        "epochs": 2,
        "microbatch_tokens": 60,
        "learning_rate": 1e-3,
        "eval_every": 3,
        "checkpoint_every": 2,
    }


@pytest.fixture
def run_it(settings: dict[str, Any], tmp_path: Path) -> Callable[..., TrainResult]:
    """`run_it(name, **settings)`: a training into the folder of that name, in this process."""

    def go(name: str, **overrides: Any) -> TrainResult:
        overrides = {**settings, "out": str(tmp_path / name), **overrides}
        return train(load_recipe(None, overrides), progress=False)

    return go


def weights(folder: Path) -> bytes:
    (path,) = (folder / "model").glob("*.safetensors")
    return path.read_bytes()


def outcome(folder: Path) -> list[dict[str, Any]]:
    """The metrics without what a clock decides."""
    return [
        {name: value for name, value in record.items() if "second" not in name}
        for record in Run(folder).read_metrics()
    ]


def kill(settings: dict[str, Any], out: Path, cache: Path, place: str, call: int) -> Any:
    payload = json.dumps([{**settings, "out": str(out)}, place, call])
    environment = {**os.environ, "PREFOPT_CACHE": str(cache), "PYTHONPATH": str(ROOT / "src")}
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, payload],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_killed_anywhere_and_run_again_gives_the_same_weights(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lora = {**settings, "adapter": {"name": "lora", "rank": 4}}
    trainings = {name: (settings, name, tmp_path / "full") for name in KILLS}
    trainings["lora"] = (lora, "in the middle of training", tmp_path / "undisturbed lora")
    processes = {
        name: kill(given, tmp_path / name, tmp_path / f"cache {name}", *KILLS[place])
        for name, (given, place, _) in trainings.items()
    }
    monkeypatch.setenv("PREFOPT_CACHE", str(tmp_path / "undisturbed cache"))
    for given, out in ((settings, "full"), (lora, "undisturbed lora")):
        train(load_recipe(None, {**given, "out": str(tmp_path / out)}), progress=False)
        assert len(outcome(tmp_path / out)) == 12 + 5
    for name, (given, place, expected) in trainings.items():
        errors = processes[name].communicate(timeout=300)[1]
        assert processes[name].returncode == -signal.SIGKILL, errors
        folder = tmp_path / name
        assert not (folder / "manifest.json").exists()
        left = [path.name.split(".part")[0] for path in (folder / "checkpoints").glob("*step-*")]
        pid = f".{processes[name].pid}"
        assert sorted(part.removesuffix(pid) for part in left) == LEFT[place]

        monkeypatch.setenv("PREFOPT_CACHE", str(tmp_path / f"cache {name}"))
        train(load_recipe(None, {**given, "out": str(folder)}), progress=False)
        assert weights(folder) == weights(expected), name
        assert outcome(folder) == outcome(expected), name
        assert {path.name for path in folder.rglob(".*")} == {".lock"}, name


@contextmanager
def ctrl_c(at: int) -> Iterator[None]:
    """Ctrl-C is pressed while this metrics record is written, counted from 1."""
    append, calls = Run.append_metrics, 0

    def pressing(self: Run, record: Any) -> int:
        nonlocal calls
        calls += 1
        if calls == at:
            signal.raise_signal(signal.SIGINT)
        return append(self, record)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "append_metrics", pressing)
        yield


def test_ctrl_c_saves_and_the_run_goes_on(
    run_it: Callable[..., TrainResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_it("undisturbed", checkpoint_every=None)
    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setenv("PREFOPT_CACHE", str(tmp_path / "another cache"))
    with pytest.raises(KeyboardInterrupt), ctrl_c(7):  # the record of step 5
        run_it("pressed", checkpoint_every=None)
    assert signal.getsignal(signal.SIGINT) is before
    (checkpoint,) = (tmp_path / "pressed" / "checkpoints").glob("step-*")
    assert checkpoint.name == "step-000005"
    run_it("pressed", checkpoint_every=None)
    assert weights(tmp_path / "pressed") == weights(tmp_path / "undisturbed")
    assert outcome(tmp_path / "pressed") == outcome(tmp_path / "undisturbed")


@pytest.fixture
def stopped(run_it: Callable[..., TrainResult]) -> Callable[..., TrainResult]:
    """`stopped(**settings)`: go on with a run that was stopped after step 5."""
    with pytest.raises(KeyboardInterrupt), ctrl_c(7):
        run_it("run")
    return lambda **overrides: run_it("run", **overrides)


def test_a_run_goes_on_only_as_it_began(
    stopped: Callable[..., TrainResult], settings: dict[str, Any]
) -> None:
    with pytest.raises(RunError, match="batch_size was 4 and is 8"):
        stopped(batch_size=8)
    with pytest.raises(RunError, match=r"objective\.beta was 0\.1 and is 0\.2"):
        stopped(**{"objective.beta": 0.2})
    data = Path(settings["data"])
    original = data.read_text()
    data.write_text(original.replace("good", "fine"))
    with pytest.raises(RunError, match="began with another data"):
        stopped()
    data.write_text(original)
    assert stopped().steps == 12


def test_a_run_goes_on_only_from_the_policy_it_began_with(
    stopped: Callable[..., TrainResult], settings: dict[str, Any], make_model: Any
) -> None:
    make_model("llama", seed=9).save_pretrained(settings["model"])
    with pytest.raises(RunError, match="began with another policy") as caught:
        stopped()
    assert caught.value.field == "model"


def test_memory_settings_may_change_on_the_way(
    stopped: Callable[..., TrainResult], run_it: Callable[..., TrainResult], tmp_path: Path
) -> None:
    stopped(microbatch_tokens=10**6, checkpoint_every=None)
    run_it("undisturbed")
    losses, expected = (
        [record["loss"] for record in outcome(tmp_path / name)] for name in ("run", "undisturbed")
    )
    assert losses == pytest.approx(expected, rel=1e-4)


def test_the_decision_of_the_engine_is_kept(
    stopped: Callable[..., TrainResult], tmp_path: Path
) -> None:
    (checkpoint,) = (tmp_path / "run" / "checkpoints").glob("step-*")
    path = checkpoint / "checkpoint.json"
    document = json.loads(path.read_text())
    document["state"]["engine"] |= {"sharing": "rows", "reason": "as it was decided"}
    path.write_text(json.dumps(document))
    stopped()
    manifest = Run(tmp_path / "run").read_json(tmp_path / "run" / "manifest.json")
    assert manifest["engine"]["sharing"] == "rows"
    assert manifest["engine"]["reason"] == "as it was decided"


def test_starting_over_forgets_the_checkpoints(
    stopped: Callable[..., TrainResult], tmp_path: Path
) -> None:
    assert stopped(resume="never", epochs=1).steps == 6
    steps = [r["step"] for r in outcome(tmp_path / "run") if r["kind"] == "train"]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_a_cache_that_was_lost_is_filled_from_the_initial_weights(
    stopped: Callable[..., TrainResult],
    run_it: Callable[..., TrainResult],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing is derived again from half-trained weights."""
    run_it("undisturbed")
    monkeypatch.setenv("PREFOPT_CACHE", str(tmp_path / "empty cache"))
    stopped()
    assert weights(tmp_path / "run") == weights(tmp_path / "undisturbed")


# -- checkpoints ---------------------------------------------------------------------------


@pytest.fixture
def trained(make_model: Any) -> tuple[Any, torch.optim.Optimizer]:
    """A model with tied weights after one step."""
    model = make_model("llama", tie_word_embeddings=True)
    optimizer = make_optimizer(model.parameters(), learning_rate=1e-2, weight_decay=0.1)
    advance(model, optimizer, seed=0)
    return model, optimizer


def advance(model: Any, optimizer: torch.optim.Optimizer, seed: int) -> None:
    ids = torch.randint(4, 300, (2, 9), generator=torch.Generator().manual_seed(seed))
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def test_a_checkpoint_restores_everything(
    trained: tuple[Any, torch.optim.Optimizer], make_model: Any, tmp_path: Path
) -> None:
    model, optimizer = trained
    state = State(step=1, evaluated=1, evaluation={"loss": 0.5}, best_loss=0.5, waiting=2)
    path = Checkpoints(tmp_path, model, optimizer).save(state, metrics=77)
    drawn = torch.rand(3), random.random()
    advance(model, optimizer, seed=1)

    again = make_model("llama", seed=3, tie_word_embeddings=True)
    fresh = make_optimizer(again.parameters(), learning_rate=1e-2, weight_decay=0.1)
    restored, further = Checkpoints(tmp_path, again, fresh).load(path)
    assert restored == state
    assert further == {"metrics": 77}
    assert torch.equal(torch.rand(3), drawn[0])
    assert random.random() == drawn[1]
    advance(again, fresh, seed=1)
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_the_newest_complete_checkpoint_is_the_only_one_kept(
    trained: tuple[Any, torch.optim.Optimizer], tmp_path: Path
) -> None:
    checkpoints = Checkpoints(tmp_path, *trained)
    assert checkpoints.latest() is None
    for step in (9, 999_999, 1_000_000):
        newest = checkpoints.save(State(step=step))
    (tmp_path / ".step-1000001.77.part" / "state").mkdir(parents=True)
    (tmp_path / "step-1000002").mkdir()  # without its last file: never complete
    assert checkpoints.latest() == newest
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-1000000", "step-1000002"]


@pytest.mark.parametrize("limit", [20_000, 40_000, 61_440])  # where torch notices differs
def test_a_full_disk_leaves_the_checkpoint_before(
    trained: tuple[Any, torch.optim.Optimizer], tmp_path: Path, limit: int
) -> None:
    checkpoints = Checkpoints(tmp_path, *trained)
    good = checkpoints.save(State(step=1))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))  # no file may grow beyond
    try:
        with pytest.raises(RunError, match="disk is full") as caught:
            checkpoints.save(State(step=2))
        assert "make room" in str(caught.value.remedy)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert checkpoints.latest() == good
    assert [path.name for path in tmp_path.iterdir()] == ["step-000001"]


def test_a_damaged_checkpoint_is_an_error_with_a_remedy(
    trained: tuple[Any, torch.optim.Optimizer], tmp_path: Path
) -> None:
    checkpoints = Checkpoints(tmp_path, *trained)
    path = checkpoints.save(State(step=1))
    for file in (path / "state").glob("*.distcp"):
        file.unlink()
    with pytest.raises(RunError) as caught:
        checkpoints.load(path)
    assert caught.value.remedy


# -- folders that cannot be used -----------------------------------------------------------


def test_a_file_where_the_folder_should_be(
    run_it: Callable[..., TrainResult], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RunError, match="a file is where a folder is needed"):
        run_it("file")
    with pytest.raises(RunError):
        run_it("file/run")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_place_that_cannot_be_written(run_it: Callable[..., TrainResult]) -> None:
    with pytest.raises(RunError):
        run_it("run", out="/proc/prefopt-run")  # nobody may write there, root included


def test_a_full_disk_while_the_model_is_saved(
    run_it: Callable[..., TrainResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("prefopt.training.train.save_model", full)
        with pytest.raises(RunError, match="disk is full"):
            run_it("run")
    folder = tmp_path / "run"
    assert not (folder / "model").exists()
    assert not (folder / "manifest.json").exists()
    assert run_it("run").steps == 12  # from the checkpoint at the end
    run_it("undisturbed")
    assert weights(folder) == weights(tmp_path / "undisturbed")


def test_a_run_that_diverges_names_its_last_good_checkpoint(
    run_it: Callable[..., TrainResult], tmp_path: Path
) -> None:
    with pytest.raises(NonFiniteError) as caught:
        run_it("run", learning_rate=1e30, warmup=0.0, eval_every=None, eval_data=None)
    (checkpoint,) = [*(tmp_path / "run" / "checkpoints").glob("step-*"), None][:1]
    named = str(checkpoint) if checkpoint else "no checkpoint yet"
    assert named in str(caught.value.remedy)
    assert "pairs.jsonl:" in caught.value.message


def test_a_completion_that_occurs_twice_has_one_reference_score(tmp_path: Path) -> None:
    """KTO's companions repeat what the data has, in micro-batches that round differently."""
    from prefopt.engine.cache import ScoreCache
    from prefopt.engine.tokens import TokenGroup
    from prefopt.records import Comparison
    from prefopt.training.batches import Examples
    from prefopt.training.references import score_examples
    from prefopt.training.steps import in_order

    prompts = ([1, 2], [3], [1, 2], [4])
    answers = (np.array([5, 6], np.int32), np.array([7], np.int32))
    groups = [
        TokenGroup(np.array(prompt, np.int32), answers, (Comparison(0, 1),)) for prompt in prompts
    ]
    calls = 0

    def rounded(groups: Sequence[TokenGroup]) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return torch.full((sum(len(group.completions) for group in groups),), float(calls))

    def scores() -> list[list[float]]:
        examples = Examples(list(groups))
        steps = in_order(examples, batch_size=2, microbatch_tokens=8192)
        score_examples(examples, steps, rounded, ScoreCache(tmp_path), "key")
        assert examples.reference is not None
        return [examples.reference.of(place, 2).tolist() for place in range(len(groups))]

    first = scores()
    assert calls == 2 and first[0] == first[2] != first[3]
    assert scores() == first and calls == 2
