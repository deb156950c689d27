"""A training is the same alone and in several processes, under every strategy.

Each number of processes is started once and runs all of its cases; the tests read what they
came to. Everything is on CPUs, which talk by gloo.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from prefopt.errors import RecipeError
from prefopt.recipe import ParallelChoice, load_recipe
from prefopt.training.cutting import balanced
from prefopt.training.parallel import Spread, make_spread
from tests import spreading
from tests.conftest import ARCHITECTURES
from tests.spreading import Case
from tests.stepping import PROMPTS, TEXTS

FSDP, TENSOR = {"parallel.strategy": "fsdp"}, {"parallel.strategy": "tensor"}
HYBRID = {"parallel.strategy": "hybrid", "parallel.shards": 2}
LORA = {"adapter.name": "lora", "adapter.rank": 4, "learning_rate": 2e-3}
SMALL = {"microbatch_tokens": 60}  # several micro-batches a step, also for each of two processes
PROMPT = {
    "adapter.name": "prefix_tuning", "adapter.virtual_tokens": 4, "learning_rate": 2e-2,
}  # fmt: skip
RATE = 3e-4

#: name → settings; each is compared with itself in one process
IN_TWO: dict[str, dict[str, Any]] = {
    "ddp": {**SMALL},
    "ddp, coupled": {"objective.name": "aot_unpaired", **SMALL},
    "fsdp": {**FSDP},
    "fsdp, recomputed, evaluated": {
        **FSDP, "gradient_checkpointing": True, "reference_scores": "each_step",
        "eval_data": True, "eval_every": 2,
    },
    "fsdp, kept whole, coupled": {
        **FSDP, "parallel.reshard": False, "objective.name": "aot_unpaired", **SMALL,
    },
    "fsdp, tied": {**FSDP, "model": "tied"},
    "fsdp, tokens": {**FSDP, "objective.name": "tdpo", **SMALL},
    "fsdp, moving reference": {**FSDP, "reference.update_every": 2, "reference.mixture": 0.5},
    "fsdp, fewer groups than processes": {**FSDP, "batch_size": 1},
    "ddp, prefix": {**PROMPT, "reference": "initial_prompt", "reference_scores": "each_step"},
    "fsdp, lora": {**FSDP, **LORA, "reference_scores": "each_step", "probe.prompts": True},
    "fsdp, reward model, lora": {**FSDP, **LORA, "objective.name": "reward"},
    "tensor": {**TENSOR, "model": "qwen3", **SMALL},
    "tensor, tied": {**TENSOR, "model": "tied", "probe.prompts": True},
}  # fmt: skip
IN_FOUR: dict[str, dict[str, Any]] = {
    "hybrid, lora, partial step": {**HYBRID, **LORA, "batch_size": 3},
    "tensor and shards": {**TENSOR, "parallel.tensor": 2, "model": "qwen3", **SMALL},
}
#: name → settings and what is said; the same in every process
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no plan": ({**TENSOR, "model": "gpt2"}, "transformers has no plan"),
    "adapter": ({**TENSOR, **LORA}, "it has an adapter"),
    "prompt": ({**FSDP, **PROMPT}, "a soft prompt stands before the layers"),
    "groups": ({**HYBRID, "parallel.shards": 3}, "2 processes cannot be divided into groups of 3"),
    "optimizer": ({**FSDP, "optimizer.name": "adafactor"}, "cannot be had with weights in shards"),
    "not finite": ({**FSDP, "learning_rate": 1e30}, "not a finite number; its groups: "),
}


class Trainings:
    """What all cases came to, by number of processes and name."""

    def __init__(self, root: Path, models: dict[str, Path]) -> None:
        self.root = root
        self.models = models
        self.data, self.prompts = root / "data.jsonl", root / "prompts.jsonl"
        rows = [
            {
                "prompt": f"{PROMPTS[i % 5]} {i}",
                "chosen": TEXTS[i % 4],
                "rejected": f"{TEXTS[(i + 1 + i // 4) % 4]} {i}",
            }
            for i in range(14)
        ]
        self.data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        self.prompts.write_text("".join(json.dumps({"prompt": p}) + "\n" for p in PROMPTS[:3]))
        self.came_to: dict[int, dict[str, Any]] = {}

    def folder(self, processes: int, name: str) -> Path:
        return self.root / f"{processes} processes" / name

    def case(self, processes: int, name: str, given: dict[str, Any], **more: Any) -> Case:
        settings = {
            "model": "llama", "data": str(self.data), "out": str(self.folder(processes, name)),
            "learning_rate": RATE, "batch_size": 4, "microbatch_tokens": 150, "max_steps": 4,
            "warmup": 0.0, "schedule": "constant", "checkpoint_every": None, **given,
        }  # fmt: skip
        if "stop_at" in more:
            settings["checkpoint_every"] = 2
        settings["model"] = str(self.models[settings["model"]])
        if "eval_data" in given:
            settings["eval_data"] = str(self.data)
        if "probe.prompts" in given:
            short = {"probe.every": 2, "probe.max_new_tokens": 8}
            settings |= {"probe.prompts": str(self.prompts), **short}
        return Case(settings, **more)

    def go_on(self, processes: int, name: str, given: dict[str, Any], other: Path) -> Case:
        return self.case(processes, name, given, copy=str(other))

    def run(self, processes: int, cases: dict[str, Case]) -> None:
        place = self.root / f"started {len(self.came_to)}"
        self.came_to.setdefault(processes, {}).update(spreading.run(place, cases, processes))


@pytest.fixture(scope="module")
def trainings(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Trainings:
    """All of them: alone, in two processes, in four, and alone again."""
    root = tmp_path_factory.mktemp("trainings")
    models = {
        "llama": _model(root, tokenizer_folder, "llama"),
        "tied": _model(root, tokenizer_folder, "llama", tie_word_embeddings=True),
        "qwen3": _model(root, tokenizer_folder, "qwen3"),
        "gpt2": _model(root, tokenizer_folder, "gpt2"),
    }
    every = Trainings(root, models)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFOPT_CACHE", str(root / "cache"))
        alone = {name: every.case(1, name, s) for name, s in (IN_TWO | IN_FOUR).items()}
        every.run(1, alone | {"stopped": every.case(1, "stopped", {}, stop_at=3)})
        stopped = every.folder(2, "stopped")
        two = {name: every.case(2, name, settings) for name, settings in IN_TWO.items()}
        two |= {name: every.case(2, name, settings) for name, (settings, _) in REFUSED.items()}
        two |= {
            "stopped": every.case(2, "stopped", FSDP, stop_at=3),
            "resumed": every.go_on(2, "resumed", FSDP, stopped),
            "one to two": every.go_on(2, "one to two", FSDP, every.folder(1, "stopped")),
            "sharded to whole": every.go_on(2, "sharded to whole", {}, stopped),
        }
        every.run(2, two)
        four = {name: every.case(4, name, settings) for name, settings in IN_FOUR.items()}
        four["two to four"] = every.go_on(4, "two to four", FSDP, stopped)
        four["stopped"] = every.case(4, "stopped", HYBRID, stop_at=3)
        every.run(4, four)
        again = {
            "two to one": every.go_on(1, "two to one", {}, stopped),
            "four to one": every.go_on(1, "four to one", FSDP, every.folder(4, "stopped")),
        }
        every.run(1, again)
    return every


def _model(root: Path, tokenizer: Path, architecture: str, **more: Any) -> Path:
    import transformers

    from tests.conftest import _SHAPE

    config_name, model_name, own = ARCHITECTURES[architecture]
    words = transformers.AutoTokenizer.from_pretrained(tokenizer)
    special = {
        f"{name}_token_id": getattr(words, f"{name}_token_id") for name in ("pad", "bos", "eos")
    }
    shape = {} if architecture == "gpt2" else _SHAPE
    settings = {"vocab_size": len(words), **special, **shape, **own, **more}
    folder = root / "-".join((architecture, *more))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = getattr(transformers, config_name)(**settings)
        getattr(transformers, model_name)(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def assert_same(
    one: dict[str, Any], other: dict[str, Any], rate: float = RATE, loss: float = 1e-6
) -> None:
    """The same losses in every step, and the same model at the end."""
    steps = [[m for m in run["metrics"] if m["kind"] == "train"] for run in (one, other)]
    assert len(steps[0]) == len(steps[1]) == 4
    for mine, theirs in zip(*steps, strict=True):
        assert theirs["loss"] == pytest.approx(mine["loss"], rel=loss)
        assert theirs["gradient_norm"] == pytest.approx(mine["gradient_norm"], rel=5e-6)
    assert max(abs(m["loss"] - math.log(2)) for m in steps[0][1:]) > 1e-3  # it moved
    for name, weight in one["weights"].items():
        # Adam divides by the gradient's size: what is almost 0 may go another way, a little.
        assert float((weight - other["weights"][name]).abs().max()) < 0.05 * rate, name
    assert one["weights"].keys() == other["weights"].keys()


@pytest.mark.parametrize("name", IN_TWO)
def test_two_processes_change_nothing(name: str, trainings: Trainings) -> None:
    _compare(trainings, 2, name, IN_TWO[name])


@pytest.mark.parametrize("name", IN_FOUR)
def test_four_processes_change_nothing(name: str, trainings: Trainings) -> None:
    _compare(trainings, 4, name, IN_FOUR[name])


def _compare(trainings: Trainings, processes: int, name: str, settings: dict[str, Any]) -> None:
    # Split matrices add up their products in another order, in every layer.
    loss = 3e-6 if settings.get("parallel.strategy") == "tensor" else 1e-6
    rate = settings.get("learning_rate", RATE)
    assert_same(trainings.came_to[1][name], trainings.came_to[processes][name], rate, loss)


def test_what_is_left_over_is_computed_for_nothing(trainings: Trainings) -> None:
    """As many passes everywhere: copies that do not count fill what pieces there are not."""
    few = trainings.came_to[2]["fsdp, fewer groups than processes"]["pieces"]
    assert few == [[[True]] * 4, [[False]] * 4]
    partial = trainings.came_to[4]["hybrid, lora, partial step"]["pieces"]
    assert [rank[0] for rank in partial] == [[True], [True], [True], [False]]
    several = trainings.came_to[2]["ddp"]["pieces"]
    assert all(len(pieces) > 1 for rank in several for pieces in rank[:3])


def test_evaluations_and_probes_are_the_same(trainings: Trainings) -> None:
    seen = 0
    for name in IN_TWO:
        runs = [trainings.came_to[count][name]["metrics"] for count in (1, 2)]
        kinds = [[m["kind"] for m in run] for run in runs]
        assert kinds[0] == kinds[1]
        for mine, theirs in zip(*runs, strict=True):
            if mine["kind"] == "train":
                continue
            seen += 1
            for key in {"loss", "accuracy", "length", "distinct", "cut"} & mine.keys():
                assert theirs[key] == pytest.approx(mine[key], rel=1e-6), (name, key)
            if "kl" in mine:
                assert theirs["kl"] == pytest.approx(mine["kl"], abs=1e-4)
    assert seen == 9


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_refused_by_all(name: str, trainings: Trainings) -> None:
    first, second = trainings.came_to[2][name]["errors"]
    assert first == second
    assert REFUSED[name][1] in first
    if name == "not finite":
        rows = first.partition("its groups: ")[2].splitlines()[0]
        assert rows.count("data.jsonl") >= 4  # of both processes


# -- checkpoints ---------------------------------------------------------------------------


def test_a_killed_run_goes_on_to_the_same_bits(trainings: Trainings) -> None:
    whole, stopped, resumed = (trainings.came_to[2][n] for n in ("fsdp", "stopped", "resumed"))
    assert stopped["checkpoints"] == ["step-000002"]
    for name, weight in whole["weights"].items():
        assert torch.equal(weight, resumed["weights"][name]), name
    losses = [
        [m["loss"] for m in run["metrics"] if m["kind"] == "train"] for run in (whole, resumed)
    ]
    assert losses[0] == losses[1]
    assert whole["fingerprint"] == resumed["fingerprint"]


@pytest.mark.parametrize(
    ("processes", "name"),
    [(2, "one to two"), (2, "sharded to whole"), (4, "two to four"), (1, "two to one"),
     (1, "four to one")],
)  # fmt: skip
def test_checkpoints_are_read_by_other_processes(
    processes: int, name: str, trainings: Trainings
) -> None:
    resumed = trainings.came_to[processes][name]
    assert resumed["pieces"] and all(len(rank) == 2 for rank in resumed["pieces"])  # two steps left
    assert_same(trainings.came_to[1]["fsdp"], resumed)


@pytest.mark.parametrize(
    ("strategy", "name", "value"),
    [("ddp", "shards", 2), ("fsdp", "tensor", 2), ("ddp", "reshard", False)],
)
def test_a_setting_that_a_strategy_does_not_read_is_refused(
    strategy: str, name: str, value: object
) -> None:
    settings = {"model": "m", "data": "d", "out": "o", "parallel.strategy": strategy}
    with pytest.raises(RecipeError, match=f"parallel.{name} has no effect"):
        load_recipe(None, {**settings, f"parallel.{name}": value})


def test_with_one_process_every_strategy_is_the_plain_training() -> None:
    for strategy in ("ddp", "fsdp", "hybrid", "tensor"):
        choice = ParallelChoice(strategy=strategy)
        assert make_spread(choice, torch.device("cpu")) == Spread()


# -- the parts -----------------------------------------------------------------------------


def test_shares_are_even_and_put_together_in_order() -> None:
    pieces = list("abcde")
    shares = [Spread("ddp", readers=3, reader=reader).share(pieces) for reader in range(3)]
    assert shares == [
        [("a", True), ("d", True)],
        [("b", True), ("e", True)],
        [("c", True), ("e", False)],
    ]


def test_pieces_fit_and_are_alike() -> None:
    sizes = [7, 30, 12, 9, 25, 14, 8, 3, 21]
    for readers in (2, 3, 4):
        bins = balanced(sizes, 40, readers)
        assert sorted(place for members in bins for place in members) == list(range(len(sizes)))
        assert len(bins) % readers == 0
        totals = [sum(sizes[place] for place in members) for members in bins]
        assert max(totals) <= 40
        assert totals == sorted(totals, reverse=True)
    assert balanced([50, 1, 1], 10, 2) == [[0], [1, 2]]
    assert balanced([5], 10, 4) == [[0]]


def test_a_copy_of_a_model_is_held_by_nothing(make_model: Callable[..., Any]) -> None:
    import copy

    from prefopt.policies.computing import Whole, computing, hold, holder_of

    model = make_model()
    hold(model, Whole(model))
    assert holder_of(copy.deepcopy(model)) is None
    inner: list[str] = []
    computing(model, lambda: computing(model, lambda: inner.append("inside")))
    assert inner == ["inside"]
