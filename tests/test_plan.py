"""`prefopt plan`: what it counts is what happens, and what it says can be done."""

from __future__ import annotations

import json
import mmap
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from prefopt.cli.app import run as run_command
from prefopt.errors import PolicyError, RecipeError
from prefopt.planning import measuring
from prefopt.planning.changes import smallest_change
from prefopt.planning.machines import MACHINES, Machine, counted, named
from prefopt.planning.memory import Footprint, per_device
from prefopt.planning.needs import Needs
from prefopt.planning.plan import LATER, Planner, make_planner
from prefopt.planning.standin import fakes, find_outline, job_of, stand_in
from prefopt.planning.tracing import deeper, trace, trace_update
from prefopt.planning.tracking import Tracker
from prefopt.policies.load import load_policy
from prefopt.recipe import load_recipe
from prefopt.training.prepare import Learner, load_learner, make_job, make_lasting, make_learner

WORDS = "good bad dull bright film story quiet loud cast plot".split()
HERE = Machine("here", "cpu", memory=1 << 40, rate=1e12, bandwidth=1e10, bf16=False)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """12 pairs of different lengths."""
    draw = random.Random(0)

    def text() -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(1, 8)))

    path = tmp_path / "rows.jsonl"
    pairs = [
        {
            "prompt": f"Review {i}: {text()} ",
            "chosen": f"{text()} good",
            "rejected": f"{text()} bad",
        }
        for i in range(12)
    ]
    path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    return path


@pytest.fixture
def planner_of(
    save_policy: Callable[..., Path], rows: Path, tmp_path: Path
) -> Callable[..., Planner]:
    """`planner_of(architecture="llama", config={}, **settings)`."""

    def make(architecture: str = "llama", config: Any = None, **settings: Any) -> Planner:
        model = save_policy(architecture, **(config or {}))
        given = {
            "model": str(model), "data": str(rows), "out": str(tmp_path / "run"), "batch_size": 4,
            "microbatch_tokens": 96, "device": "cpu", **settings,
        }  # fmt: skip
        return make_planner(lambda further: load_recipe(None, {**given, **further}))

    return make


def needs_of(planner: Planner, **changes: Any) -> Needs:
    return planner.needs(planner.recipe.model_copy(update=changes), readers=1, bf16=False)


# -- the tracker, by hand ------------------------------------------------------------------


def test_a_linear_layer_holds_its_output_and_multiplies_so_often() -> None:
    tracker = Tracker()
    x, w = torch.zeros(8, 16), torch.zeros(32, 16)
    assert tracker.show([x, w]) == 4 * (8 * 16 + 32 * 16)
    before = tracker.live
    with tracker:
        y = x @ w.T
    assert tracker.live - before == 4 * 8 * 32  # the transposed weight is a view
    assert tracker.operations == 2 * 8 * 16 * 32
    del y
    assert tracker.live == before
    assert tracker.peak == before + 4 * 8 * 32


def test_two_layers_keep_what_their_backward_pass_needs() -> None:
    """Forward: h (8, 32) and y (8, 4) are there. Backward, in order: dy is given; the second
    weight's gradient and dh; then y is gone, h's square is 2·h·dh, then the first's gradient."""
    tracker = Tracker()
    x = torch.zeros(8, 16)
    first = torch.zeros(32, 16, requires_grad=True)
    second = torch.zeros(4, 32, requires_grad=True)
    tracker.show([x, first, second])
    before = tracker.live
    with tracker:
        y = (x @ first.T).relu() @ second.T
        hidden, out = 4 * 8 * 32, 4 * 8 * 4
        assert tracker.live - before == hidden + out  # relu keeps its result, not its argument
        assert tracker.peak - before == 2 * hidden  # which was there when the result was made
        y.sum().backward()
        del y
    gradients = 4 * (32 * 16 + 4 * 32)
    assert tracker.live - before == gradients
    assert tracker.operations == 2 * (8 * 16 * 32 + 8 * 32 * 4) + 2 * (8 * 16 * 32 + 2 * 8 * 32 * 4)


def test_shapes_without_numbers_are_tracked_alike() -> None:
    def peak(weight: torch.Tensor) -> tuple[int, int, int]:
        tracker = Tracker()
        tracker.show([weight])
        with tracker:
            (torch.ones(5, 16) @ weight).tanh().sum().backward()
        return tracker.peak, tracker.live, tracker.operations

    with fakes():
        fake = torch.empty(16, 7)
    assert peak(fake.requires_grad_()) == peak(torch.zeros(16, 7, requires_grad=True))


# -- a traced step is what a real one does -------------------------------------------------


def real_learner(planner: Planner) -> Learner:
    recipe = planner.recipe
    policy = load_learner(recipe, planner.loss.head)
    reference = None
    if planner.reference is not None:
        reference = load_policy(recipe.reference.name, device="cpu")
        reference.model.requires_grad_(False)
    learner = make_learner(policy, recipe, planner.loss, reference=reference)
    if planner.recipe.reference_scores == "each_step":
        make_lasting(learner)
    scorers = [learner.scorer]
    if learner.reference is not None and learner.reference.score is not None:
        scorers.append(learner.reference.score.scorer)
    for scorer in scorers:
        scorer.sharing = "rows" if recipe.sharing == "off" else "trees"
        scorer._head_known = True
    return learner


@pytest.mark.parametrize(
    ("architecture", "settings"),
    [
        ("llama", {}),
        ("llama", {"adapter": "lora"}),
        ("llama", {"gradient_checkpointing": True}),
        ("llama", {"gradient_checkpointing": "selective", "objective": "kto"}),
        ("llama", {"objective": "tdpo"}),
        ("gpt2", {"objective": "sft"}),
        ("gemma2", {}),
        ("gemma3", {"microbatch_tokens": 100}),
        ("llama", {"objective": "reward"}),
        ("llama", {"objective": "reward", "adapter": "lora"}),
        ("gpt2", {"objective": "reward", "gradient_checkpointing": True}),
        ("gemma3", {"objective": "reward", "sharing": "off"}),
    ],
)
def test_a_traced_micro_batch_holds_what_a_real_one_does(
    planner_of: Callable[..., Planner], architecture: str, settings: dict[str, Any]
) -> None:
    """The engine's own step, once without numbers and once with them."""
    planner = planner_of(architecture, **settings)
    needs = needs_of(planner)
    learner = real_learner(planner)
    job = make_job(learner, planner.data)
    piece = needs.largest
    assert trace(learner, job, piece.step, piece.positions, alone=piece.alone) == needs.traced
    assert trace_update_real(learner, job) == needs.update.state
    real = sum(w.numel() * w.element_size() for w in learner.policy.model.parameters())
    trained = [w for w in learner.policy.model.parameters() if w.requires_grad]
    assert needs.weights == real
    assert needs.gradients == sum(w.numel() * w.element_size() for w in trained)
    assert needs.parameters.trainable == sum(w.numel() for w in trained)
    assert sum(needs.parameters.parts.values()) == needs.parameters.total


def trace_update_real(learner: Learner, job: Any) -> int:
    """Bytes of state after a real step."""
    for weight in job.parameters:
        weight.grad = torch.zeros_like(weight)
    job.optimizer.step()
    states = job.optimizer.state.values()
    tensors = [t for state in states for t in state.values() if isinstance(t, torch.Tensor)]
    return sum(t.numel() * t.element_size() for t in tensors)


@pytest.mark.parametrize("optimizer", ["adafactor", "rmsprop"])
def test_other_optimizers_state_is_what_they_keep(
    planner_of: Callable[..., Planner], optimizer: str
) -> None:
    planner = planner_of(optimizer=optimizer)
    learner = real_learner(planner)
    job = make_job(learner, planner.data)
    assert needs_of(planner).update.state == trace_update_real(learner, job)


def test_eight_bit_state_is_a_quarter_and_weights_in_bf16_are_half(
    planner_of: Callable[..., Planner],
) -> None:
    pytest.importorskip("bitsandbytes")
    planner = planner_of(config={"hidden_size": 64, "intermediate_size": 128})
    full = needs_of(planner)
    eight = planner.needs(planner.changed({"optimizer": "adamw_8bit"}), readers=1, bf16=False)
    assert 0.24 * full.update.state < eight.update.state < 0.32 * full.update.state
    half = planner.needs(planner.changed({"weights": "bf16"}), readers=1, bf16=False)
    assert half.weights == full.weights / 2
    assert half.gradients == full.gradients / 2


def test_the_frozen_copy_and_the_other_model_are_counted(
    planner_of: Callable[..., Planner], save_policy: Callable[..., Path]
) -> None:
    other = str(save_policy(seed=1, num_hidden_layers=4))
    cached, copied = needs_of(planner_of()), needs_of(planner_of(reference_scores="each_step"))
    assert (cached.reference, copied.reference) == (0, copied.weights)
    larger = needs_of(planner_of(reference=other, reference_scores="each_step"))
    assert larger.reference > larger.weights
    phases = larger.phases(evaluated=False)
    assert phases["step"].reference == larger.reference
    lent = needs_of(planner_of(reference=other)).phases(evaluated=False)
    assert lent["reference scores"].reference == larger.reference
    assert lent["step"].reference == 0  # it is gone by then
    assert needs_of(planner_of(adapter="lora", reference_scores="each_step")).reference == 0


def test_a_reward_model_has_a_head_of_one_and_no_words(planner_of: Callable[..., Planner]) -> None:
    """In place of logits over V words: one product with d channels, and none for each token."""
    words, reward = (
        needs_of(planner_of(objective="simpo")),
        needs_of(planner_of(objective="reward")),
    )
    width, vocabulary = 32, words.parameters.parts["head"] // 32
    assert reward.parameters.parts["head"] == width
    assert reward.parameters.total == words.parameters.total - width * (vocabulary - 1)
    assert reward.traced.learning.held < words.traced.learning.held
    assert reward.traced.learning.operations < words.traced.learning.operations
    assert (reward.reference, reward.cached, reward.each_step) == (0, False, False)
    assert set(reward.phases(evaluated=False)) == {"first check", "step", "update"}


def test_a_reward_model_that_goes_on_is_planned_from_its_folder(
    planner_of: Callable[..., Planner], tmp_path: Path
) -> None:
    """Whole, and as an adapter with its head; what cannot go on is refused as training does."""
    from peft import LoraConfig, get_peft_model

    from prefopt.policies.reward import load_reward_model

    planner = planner_of(objective="reward")
    whole, adapter = tmp_path / "whole", tmp_path / "adapter"
    policy = load_reward_model(planner.recipe.model, device="cpu", seed=0)
    policy.model.save_pretrained(whole)
    policy.tokenizer.save_pretrained(whole)
    outline = find_outline(str(whole), "reward")
    theirs = {name: weight.shape for name, weight in policy.model.named_parameters()}
    assert {n: w.shape for n, w in outline.policy().model.named_parameters()} == theirs
    assert outline.policy().end_of_turn == policy.end_of_turn
    adapted = get_peft_model(policy.model, LoraConfig(task_type="SEQ_CLS", r=4))
    adapted.save_pretrained(adapter)
    policy.tokenizer.save_pretrained(adapter)
    there = load_reward_model(adapter, device="cpu").model
    shapes = find_outline(str(adapter), "reward").policy().model
    assert {n: w.shape for n, w in shapes.named_parameters()} == {
        n: w.shape for n, w in there.named_parameters()
    }
    for folder in (whole, adapter):
        with pytest.raises(PolicyError, match="is a reward model: it gives completions a number"):
            find_outline(str(folder))


def test_a_reward_model_is_outlined_as_it_would_be_loaded(
    tiny_policy_folder: Path, tmp_path: Path
) -> None:
    """What ends an answer is what the language model's generation config says; one output."""
    from transformers import LlamaForSequenceClassification

    from prefopt.policies.reward import load_reward_model

    config = json.loads((tiny_policy_folder / "generation_config.json").read_text())
    config["eos_token_id"] = [config["eos_token_id"], 3]
    (tiny_policy_folder / "generation_config.json").write_text(json.dumps(config))
    loaded = load_reward_model(tiny_policy_folder, device="cpu", seed=0)
    outlined = find_outline(str(tiny_policy_folder), "reward").policy()
    assert outlined.end_of_turn == loaded.end_of_turn >= {3}
    classes = loaded.model.config
    classes.num_labels = 3
    LlamaForSequenceClassification(classes).save_pretrained(tmp_path / "classes")
    loaded.tokenizer.save_pretrained(tmp_path / "classes")
    with pytest.raises(PolicyError, match="a reward model has one output, and the one in"):
        find_outline(str(tmp_path / "classes"), "reward").policy()


def test_an_adapter_of_a_policy_is_no_beginning_of_a_reward_model(
    tiny_policy_folder: Path, tmp_path: Path
) -> None:
    from peft import LoraConfig, get_peft_model

    base = load_policy(tiny_policy_folder)
    adapted = get_peft_model(base.model, LoraConfig(task_type="CAUSAL_LM", r=4))
    adapted.save_pretrained(tmp_path / "adapter")
    base.tokenizer.save_pretrained(tmp_path / "adapter")
    with pytest.raises(PolicyError, match="cannot begin on top of one"):
        find_outline(str(tmp_path / "adapter"), "reward")


# -- invariances ---------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_a_deep_model_is_known_from_two_shallow_ones(
    planner_of: Callable[..., Planner], architecture: str
) -> None:
    kinds = {"layer_types": ["sliding_attention", "full_attention"] * 5}
    config = {"num_hidden_layers": 10, **(kinds if architecture == "gemma3" else {})}
    planner = planner_of(architecture, config)
    needs = needs_of(planner)
    piece = needs.largest
    learner = stand_in(planner.outline.policy(), planner.recipe, planner.loss)
    job = job_of(learner, planner.data)
    whole = trace(learner, job, piece.step, piece.positions, alone=piece.alone)
    assert needs.traced == whole
    assert trace_update(job).state == needs.update.state


def test_each_layer_adds_the_same(planner_of: Callable[..., Planner]) -> None:
    held = {
        layers: needs_of(planner_of(config={"num_hidden_layers": layers})).traced.learning.held
        for layers in (1, 2, 4)
    }
    assert held[4] - held[2] == 2 * (held[2] - held[1])
    passes = [needs_of(planner_of(config={"num_hidden_layers": n})).traced for n in (2, 3)]
    assert deeper(*passes, (2, 3), 4).learning.held == held[4]


def test_memory_follows_the_micro_batch_and_not_the_batch(
    planner_of: Callable[..., Planner],
) -> None:
    def step(**settings: Any) -> int:
        fit = planner_of(**settings).fit(HERE)
        return fit.phases["step"] - fit.memory.process  # which this process adds to as it goes

    assert step(batch_size=6, microbatch_tokens=64) == pytest.approx(
        step(batch_size=12, microbatch_tokens=64), rel=0.1
    )
    small, large = (
        needs_of(planner_of(batch_size=12, microbatch_tokens=n)).traced.learning for n in (64, 400)
    )
    assert large.held > 4 * small.held
    assert large.operations > 4 * small.operations


def test_backward_is_twice_the_forward_and_recomputing_once_more(
    planner_of: Callable[..., Planner],
) -> None:
    plain = needs_of(planner_of()).traced
    assert plain.learning.operations == pytest.approx(3 * plain.scoring.operations, rel=0.05)
    again = needs_of(planner_of(gradient_checkpointing=True)).traced
    assert again.learning.held < plain.learning.held
    assert plain.learning.operations < again.learning.operations
    assert again.learning.operations < 4 * plain.scoring.operations
    frozen = needs_of(planner_of(adapter={"name": "lora", "rank": 1})).traced
    assert frozen.learning.operations < plain.learning.operations


# -- several devices -----------------------------------------------------------------------

WHOLE = Footprint(
    weights=800, gradients=800, optimizer=1600, reference=400, activations=100, layer=20, root=40
)


@pytest.mark.parametrize("strategy", ["alone", "ddp", "fsdp", "hybrid", "tensor"])
def test_one_device_has_everything(strategy: Any) -> None:
    assert per_device(WHOLE, strategy, 1).total == 800 + 800 + 1600 + 400 + 100


def test_strategies_share_what_they_share() -> None:
    assert per_device(WHOLE, "ddp", 16).total == per_device(WHOLE).total
    sharded = per_device(WHOLE, "fsdp", 16)
    assert (sharded.weights, sharded.optimizer, sharded.reference) == (50, 100, 25)
    assert sharded.gathered == 40 + 2 * 20 + 40  # outside the layers, two layers, one gradient
    assert sharded.activations == 100
    hybrid = per_device(WHOLE, "hybrid", 16, shards=4)
    assert (hybrid.weights, hybrid.optimizer) == (200, 400)
    assert per_device(WHOLE, "hybrid", 16) == per_device(WHOLE, "hybrid", 16, shards=8)
    split = per_device(WHOLE, "tensor", 8)
    assert split.gathered == 0
    assert split.weights == 100
    assert 50 < split.activations < 100
    kept = per_device(WHOLE, "fsdp", 16, reshard=False)
    assert kept.weights + kept.gradients + kept.gathered == 800 + 800
    frozen = per_device(replace(WHOLE, trained=0.0), "fsdp", 16)
    assert frozen.gathered == 40 + 2 * 20
    for shards in (3, 64):  # what training refuses too
        with pytest.raises(RecipeError, match=f"groups of {shards}"):
            per_device(WHOLE, "hybrid", 16, shards=shards)


def test_more_readers_have_smaller_micro_batches(planner_of: Callable[..., Planner]) -> None:
    planner = planner_of(batch_size=12, microbatch_tokens=4096)
    alone = planner.needs(planner.recipe, readers=1, bf16=False).largest
    among = planner.needs(planner.recipe, readers=4, bf16=False).largest
    assert among.tokens < alone.tokens / 2


# -- machines ------------------------------------------------------------------------------


def test_machines_are_named_with_a_count() -> None:
    assert named("h100:8") == replace(MACHINES["h100"], count=8)
    assert counted("this:2") == ("this", 2)
    for wrong in ("h1000", "h100:0", "h100:many", "h100:", "this:0", "this:-1", "this:many"):
        with pytest.raises(RecipeError, match=r"machine|number"):
            counted(wrong)


def test_a_larger_machine_is_faster_and_two_are_twice_as_fast(
    planner_of: Callable[..., Planner],
) -> None:
    planner = planner_of()
    once, twice = planner.fit(named("a100-80")), planner.fit(named("a100-80:2"))
    assert once.seconds.training > planner.fit(named("b200")).seconds.training
    assert once.seconds.reference == pytest.approx(2 * twice.seconds.reference, rel=0.2)
    slow = planner.fit(named("a100-80"), planner.changed({"precision": "fp32"}))
    assert slow.seconds.reference > 5 * once.seconds.reference


# -- what does not fit ---------------------------------------------------------------------


def test_the_smallest_change_fits_and_is_the_smallest(planner_of: Callable[..., Planner]) -> None:
    wide = {"hidden_size": 128, "intermediate_size": 512}
    planner = planner_of(config=wide, batch_size=12, microbatch_tokens=512)
    fit = planner.fit(HERE)
    assert fit.fits
    assert smallest_change(planner, HERE, fit) is None
    process = LATER + planner.process
    half = planner.fit(HERE, planner.changed({"microbatch_tokens": 256})).memory.total
    little = replace(HERE, memory=half)
    change = smallest_change(planner, little, planner.fit(little))
    assert change is not None
    assert change.settings == {"microbatch_tokens": 256}
    assert change.fit.memory.total <= little.memory
    assert change.cost == "the result stays the same"
    # So little that weights, gradients and optimizer alone are too much: several together.
    several = {"adapter": "lora", "microbatch_tokens": 256, "gradient_checkpointing": True}
    poor = replace(HERE, memory=planner.fit(HERE, planner.changed(several)).memory.total)
    other = smallest_change(planner, poor, planner.fit(poor))
    assert other is not None
    assert len(other.settings) > 1
    assert other.fit.fits
    nothing = replace(HERE, memory=process)
    assert smallest_change(planner, nothing, planner.fit(nothing)) is None


def test_what_a_change_names_can_be_set(planner_of: Callable[..., Planner]) -> None:
    """A moving reference cannot be cached: that is not proposed."""
    from prefopt.planning.changes import candidates

    planner = planner_of(**{"reference.update_every": 4})
    proposed = [candidate.settings for candidate in candidates(planner.recipe, HERE)]
    assert all("reference_scores" not in settings for settings in proposed)
    assert {"gradient_checkpointing": True} in proposed


# -- the command ---------------------------------------------------------------------------


@pytest.fixture
def command(tiny_policy_folder: Path, rows: Path, tmp_path: Path) -> list[str]:
    return [
        "plan", "--model", str(tiny_policy_folder), "--data", str(rows), "--out",
        str(tmp_path / "run"), "--batch-size", "4", "--device", "cpu",
    ]  # fmt: skip


def test_the_command_says_everything_and_writes_only_the_cache(
    command: list[str],
    tmp_path: Path,
    prefopt_cache: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = set(tmp_path.iterdir())
    code = run_command([*command, "--machine", "this", "--machine", "h100:8", "--json"])
    result = json.loads(capsys.readouterr().out)
    assert code == 0
    assert set(tmp_path.iterdir()) == before | {prefopt_cache}
    assert result["work"]["steps"] == 3
    assert result["work"]["judgements"] == 12
    this, eight = result["machines"]
    assert this["memory"]["total"] == sum(this["memory"]["parts"].values())
    assert this["memory"]["total"] == max(this["memory"]["phases"].values())
    assert (eight["devices"], eight["strategy"], eight["fits"]) == (8, "ddp", True)
    kept = {path: path.stat().st_mtime_ns for path in prefopt_cache.rglob("*") if path.is_file()}
    assert run_command(["train", *command[1:], "--json"]) == 0
    trained = json.loads(capsys.readouterr().out)
    assert trained["steps"] == result["work"]["steps"]
    for path, written in kept.items():  # the tokens were there
        assert "tokens" not in str(path) or path.stat().st_mtime_ns == written


def test_people_see_a_table_and_a_bar(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(command) == 0
    shown = capsys.readouterr().out
    for word in ("parameters", "fits", "activations", "optimizer", "█", "time"):
        assert word in shown


def test_a_misfit_is_a_finding_and_an_error_only_if_asked(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(MACHINES, "tiny", replace(HERE, name="tiny", memory=1 << 20))
    assert run_command([*command, "--machine", "tiny", "--json"]) == 0
    (machine,) = json.loads(capsys.readouterr().out)["machines"]
    assert not machine["fits"]
    assert run_command([*command, "--machine", "tiny", "--fail-on", "misfit"]) == 1
    assert "does not fit" in capsys.readouterr().out
    assert run_command([*command, "--fail-on", "misfit"]) == 0


@pytest.mark.parametrize(
    ("extra", "word"),
    [
        (["--machine", "cray"], "h100"),
        (["--machine", "this:0"], "above 0"),
        (["--sample", "0"], "--sample"),
        (["--parallel", "tensor", "--parallel.tensor", "3", "--machine", "h100:8"], "groups of 3"),
        (["--parallel", "hybrid", "--parallel.shards", "16", "--machine", "h100:8"], "of 16"),
        (["--model", "nowhere/at/all"], "not there"),
        (["--adapter", "loraa"], "there is no adapter"),
        (["--objective", "dpoo"], "dpo"),
        (["--data", "missing.jsonl"], "missing.jsonl"),
    ],
)
def test_wrong_input_is_told_as_training_tells_it(
    command: list[str], extra: list[str], word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = list(command)
    if extra[0] in given:
        del given[given.index(extra[0]) : given.index(extra[0]) + 2]
    assert run_command([*given, *extra]) == 2
    assert word in capsys.readouterr().err


def test_a_folder_without_weights_is_enough(command: list[str], tiny_policy_folder: Path) -> None:
    (tiny_policy_folder / "model.safetensors").unlink()
    assert run_command([*command, "--json"]) == 0
    with pytest.raises(PolicyError):
        load_policy(tiny_policy_folder)


def test_an_adapters_folder_is_planned_with_its_base(
    tiny_policy_folder: Path, tmp_path: Path
) -> None:
    from peft import LoraConfig, get_peft_model

    base = load_policy(tiny_policy_folder)
    adapted = get_peft_model(base.model, LoraConfig(r=4, target_modules="all-linear"))
    adapted.save_pretrained(tmp_path / "adapter")
    base.tokenizer.save_pretrained(tmp_path / "adapter")
    shapes = find_outline(str(tmp_path / "adapter")).policy().model
    theirs = {name: weight.shape for name, weight in adapted.named_parameters()}
    assert {name: weight.shape for name, weight in shapes.named_parameters()} == theirs


def test_a_sample_is_spread_over_the_rest(planner_of: Callable[..., Planner]) -> None:
    whole = planner_of(batch_size=2)
    part = make_planner(whole.load, sample=4)
    assert part.amount.steps == whole.amount.steps == 6
    assert part.amount.tokens == pytest.approx(whole.amount.tokens, rel=0.3)
    assert any("4 groups" in note for note in part.notes)


@pytest.mark.parametrize("objective", ["dpo", "reward"])
def test_measured_steps_give_the_time_and_leave_nothing(
    command: list[str], objective: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command([*command, "--objective", objective, "--measure", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    (machine,) = result["machines"]
    assert machine["seconds"]["basis"] == "2 measured steps"
    assert 0 < machine["seconds"]["training"] < 120
    assert not (tmp_path / "run").exists()


def test_the_measured_process_is_this_one() -> None:
    before = measuring.resident()
    with mmap.mmap(-1, 64 << 20) as block:
        block.write(b"1" * (64 << 20))
        assert measuring.resident() - before > 32 << 20


@pytest.mark.slow
def test_the_plan_is_near_what_a_process_takes(tmp_path: Path) -> None:
    """The real thing, in processes of its own; benchmarks/plan.py has the figures."""
    import subprocess
    import sys

    script = Path(__file__).resolve().parent.parent / "benchmarks" / "plan.py"
    out = tmp_path / "plan.json"
    command = [sys.executable, str(script), "--smoke", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    (case,) = json.loads(out.read_text())["cases"].values()
    assert 0.75 < case["ratio"] < 1.25


def test_steps_of_a_loss_that_couples_them_are_scored_twice(
    planner_of: Callable[..., Planner],
) -> None:
    planner = planner_of(objective="kto", microbatch_tokens=64)
    assert planner.loss.couples_batch
    assert needs_of(planner).passes == 2
    assert planner.needs(planner.changed({"microbatch_tokens": 8192}), readers=1,
                         bf16=False).passes == 1  # fmt: skip
