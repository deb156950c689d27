"""Training: the plan, the step, the loop, what a run folder holds, and what is refused."""

from __future__ import annotations

import json
import math
import random
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prefopt.cli.app import run as run_command
from prefopt.engine.tokens import TokenGroup
from prefopt.errors import (
    DataError,
    MissingExtraError,
    NonFiniteError,
    PrefoptError,
    RecipeError,
    RunError,
)
from prefopt.objectives import Scores
from prefopt.objectives.loss import Term, Weighted, weighted_sum
from prefopt.objectives.objective import Objective
from prefopt.policies.load import Policy, load_policy
from prefopt.recipe import load_recipe
from prefopt.records import Comparison, Group, Label
from prefopt.runs import Run
from prefopt.training.batches import Examples, MicroBatch, Step
from prefopt.training.examples import prepare_data
from prefopt.training.loop import Job, State, accumulate, fit
from prefopt.training.numerics import choose_precision
from prefopt.training.optimizer import make_optimizer, rate_at
from prefopt.training.prepare import make_job, make_learner, settle
from prefopt.training.reading import as_read
from prefopt.training.steps import plan, step_bounds
from prefopt.training.train import TrainResult, train

WORDS = "good bad dull bright film story quiet loud cast plot".split()


def rows(count: int, seed: int) -> list[dict[str, str]]:
    """Pairs whose preferred side ends in `good`; of different lengths."""
    draw = random.Random(seed)

    def text() -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(1, 6)))

    return [
        {"prompt": f"Review {i}: ", "chosen": f"{text()} good", "rejected": f"{text()} bad"}
        for i in range(count)
    ]


def write(path: Path, content: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in content))
    return path


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    return write(tmp_path / "pairs.jsonl", rows(24, seed=0))


@pytest.fixture
def run_it(tiny_policy_folder: Path, pairs: Path, tmp_path: Path) -> Callable[..., TrainResult]:
    """`run_it(**settings)`: a whole small training into `tmp_path/run`."""

    def go(**overrides: Any) -> TrainResult:
        common = {
            "model": str(tiny_policy_folder),
            "data": str(pairs),
            "out": str(tmp_path / "run"),
            "batch_size": 8,
            "learning_rate": 1e-3,
        }
        return train(load_recipe(None, {**common, **overrides}), progress=False)

    return go


def token_group(prompt: int, *lengths: int, edges: Any = None, **more: Any) -> TokenGroup:
    """A group of K completions with seeded tokens, compared in a chain by default."""
    draw = np.random.default_rng([prompt, *lengths])
    if edges is None:
        edges = tuple(Comparison(i, i + 1) for i in range(len(lengths) - 1))
    return TokenGroup(
        draw.integers(4, 300, prompt, dtype=np.int32),
        tuple(draw.integers(4, 300, length, dtype=np.int32) for length in lengths),
        edges,
        **more,
    )


# -- what an objective reads ---------------------------------------------------------------


def test_the_more_probable_side_becomes_the_preferred_one() -> None:
    group = token_group(3, 2, 5, edges=(Comparison(0, 1, probability=0.2, weight=3.0),))
    part = as_read(group, "comparisons")
    assert part is not None
    assert part.comparisons == (Comparison(1, 0, probability=0.8, weight=3.0),)


def test_completions_that_no_comparison_names_are_not_scored() -> None:
    group = token_group(3, 2, 5, 4, edges=(Comparison(2, 0), Comparison(1, 0, weight=0.0)))
    part = as_read(group, "comparisons")
    assert part is not None
    assert [len(ids) for ids in part.completions] == [2, 4]
    assert part.comparisons == (Comparison(1, 0),)


@pytest.mark.parametrize(
    ("edges", "labels", "kept"),
    [
        ((Comparison(1, 0), Comparison(1, 2)), (), {5: 1.0}),
        ((Comparison(0, 1, probability=0.1), Comparison(2, 1, weight=0.5)), (), {5: 1.0, 4: 0.5}),
        ((), (Label(0, True, weight=2.0), Label(1, False)), {2: 2.0}),
        ((), (Label(0, False),), {}),
        ((), (), {2: 1.0, 5: 1.0, 4: 1.0}),
    ],
)
def test_sft_reads_what_is_preferred(
    edges: tuple[Comparison, ...], labels: tuple[Label, ...], kept: dict[int, float]
) -> None:
    group = token_group(3, 2, 5, 4, edges=edges, labels=labels)
    part = as_read(group, "preferred")
    if not kept:
        assert part is None
        return
    assert part is not None
    found = {
        len(part.completions[edge.preferred]): edge.weight
        for edge in part.comparisons
        if edge.preferred == edge.dispreferred
    }
    assert found == kept


# -- the plan ------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(1, 9), min_size=1, max_size=40),
    batch_size=st.integers(1, 12),
)
def test_steps_hold_whole_groups_up_to_the_batch_size(counts: list[int], batch_size: int) -> None:
    order = list(range(len(counts)))
    bounds = step_bounds(np.array(counts), batch_size).tolist()
    steps = [order[first:last] for first, last in pairwise(bounds)]
    assert [position for step in steps for position in step] == order  # none lost, none twice
    for step, following in zip(steps, [*steps[1:], None], strict=True):
        size = sum(counts[position] for position in step)
        assert size <= batch_size or len(step) == 1
        if following is not None:  # it was full: the next group did not fit
            assert size + counts[following[0]] > batch_size


def test_the_plan_is_a_function_of_seed_and_epoch_and_not_of_memory() -> None:
    groups = [token_group(4 + i % 5, 3 + i % 7, 2 + i % 3) for i in range(30)]

    def contents(**options: Any) -> list[set[int]]:
        options = {"batch_size": 7, "microbatch_tokens": 64, "epochs": 2, "seed": 3, **options}
        return [{p for m in s.microbatches for p in m} for s in plan(Examples(groups), **options)]

    assert contents() == contents(microbatch_tokens=1) == contents(microbatch_tokens=10**6)
    assert contents() != contents(seed=4)
    first, second = contents()[:5], contents()[5:]
    assert first != second
    assert set().union(*first) == set().union(*second) == set(range(30))
    assert contents(epochs=3)[:10] == contents()
    assert contents(max_steps=4) == contents()[:4]


def test_a_step_knows_its_weight_and_its_tokens() -> None:
    groups = [
        token_group(4, 3, 2, edges=(Comparison(0, 1, weight=0.5),)),
        token_group(5, 1, 1, 1, edges=(Comparison(0, 1), Comparison(1, 2, weight=2.0))),
    ]
    (step,) = plan(Examples(groups), batch_size=64, microbatch_tokens=64)
    assert (step.comparisons, step.weight, step.tokens) == (3, 3.5, 4 + 5 + 5 + 3)
    assert step.epoch == 1.0


# -- the optimizer -------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
@pytest.mark.parametrize(("warmup", "rising"), [(0.0, 0), (0.1, 2), (0.11, 3), (1.0, 20)])
def test_the_rate_rises_to_the_peak_and_then_follows_the_schedule(
    schedule: str, warmup: float, rising: int
) -> None:
    rates = [
        rate_at(step, total=20, peak=2.0, warmup=warmup, schedule=schedule) for step in range(20)
    ]
    assert all(rate > 0 for rate in rates)
    assert max(rates) == 2.0
    assert rates[:rising] == pytest.approx([2.0 * (i + 1) / rising for i in range(rising)])
    for step in range(rising, 20):
        done = (step - rising) / (20 - rising)
        left = {"cosine": (1 + math.cos(math.pi * done)) / 2, "linear": 1 - done, "constant": 1}
        assert rates[step] == pytest.approx(2.0 * left[schedule])


def test_only_matrices_decay_and_frozen_weights_are_left_out() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.LayerNorm(3), torch.nn.Linear(3, 1))
    model[2].requires_grad_(False)
    optimizer = make_optimizer(model.parameters(), learning_rate=0.1, weight_decay=0.5)
    decaying, others = optimizer.param_groups
    assert decaying["weight_decay"] == 0.5
    assert others["weight_decay"] == 0.0
    assert [tuple(weight.shape) for weight in decaying["params"]] == [(3, 3)]
    assert len(others["params"]) == 3  # one bias, and the norm's two
    assert decaying["fused"]


# -- one step ------------------------------------------------------------------------------


def make(policy: Policy, groups: list[Group], **overrides: Any) -> tuple[Job, Any]:
    """A job on groups in memory, as `train` makes it, and its learner."""
    placeholders = {"model": "m", "data": "d", "out": "o", "learning_rate": 1e-3}
    resolved, objective = settle(load_recipe(None, {**placeholders, **overrides}))
    recipe = resolved.recipe.model_copy(update={"reference_scores": "each_step"})
    learner = make_learner(policy, recipe, objective)
    data = prepare_data(learner.policy, recipe, objective, groups, training=True)
    return make_job(learner, data), learner


def as_groups(count: int, seed: int = 0) -> list[Group]:
    from prefopt.records import Completion

    return [
        Group(
            row["prompt"],
            (Completion(row["chosen"]), Completion(row["rejected"])),
            (Comparison(0, 1, weight=0.5 + (i % 3)),),
        )
        for i, row in enumerate(rows(count, seed))
    ]


@pytest.mark.parametrize("name", ["dpo", "ipo", "sft"])
def test_microbatches_never_change_a_step(make_policy: Callable[..., Policy], name: str) -> None:
    gradients = []
    for tokens in (1, 100, 10**6):
        job, learner = make(
            make_policy(), as_groups(9), microbatch_tokens=tokens, **{"objective.name": name}
        )
        (step,) = job.steps
        accumulate(job, step, State())
        weights = learner.policy.model.parameters()
        gradients.append((len(step.microbatches), torch.cat([w.grad.flatten() for w in weights])))
    (nine, alone), (some, apart), (one, whole) = gradients
    assert nine == 9
    assert 9 > some > 1
    assert one == 1
    scale = whole.abs().max()
    assert torch.allclose(apart, whole, rtol=1e-5, atol=1e-5 * scale)
    assert torch.allclose(alone, whole, rtol=1e-5, atol=1e-5 * scale)


def test_a_step_is_the_weighted_mean_of_its_comparisons(make_policy: Callable[..., Policy]) -> None:
    """Against a loss written out here, on log-probabilities scored one by one."""
    import torch.nn.functional as F

    from prefopt.engine.logps import completion_logps

    groups = as_groups(5)
    job, learner = make(make_policy(), groups, **{"objective.beta": 0.3})
    (step,) = job.steps
    tally, _ = accumulate(job, step, State())
    gradient = learner.policy.model.lm_head.weight.grad.clone()

    other = make_policy()
    logps = completion_logps(other, groups, sharing="off").reshape(5, 2)
    start = logps.detach()
    gap = (logps[:, 0] - start[:, 0]) - (logps[:, 1] - start[:, 1])
    weight = torch.tensor([group.comparisons[0].weight for group in groups])
    loss = (-F.logsigmoid(0.3 * gap) * weight).sum() / weight.sum()
    loss.backward()
    assert tally.means()["loss"] == pytest.approx(float(loss.detach()), rel=1e-6)
    expected = other.model.lm_head.weight.grad
    assert torch.allclose(gradient, expected, rtol=1e-4, atol=1e-5 * expected.abs().max())


def test_gradient_checkpointing_changes_nothing(
    run_it: Callable[..., TrainResult], tmp_path: Path
) -> None:
    plain = run_it(max_steps=2, out=str(tmp_path / "plain"))
    recomputed = run_it(max_steps=2, gradient_checkpointing=True)
    assert recomputed.final_loss == pytest.approx(plain.final_loss, rel=1e-6)


# -- the loop ------------------------------------------------------------------------------


class Slope:
    """A policy of one number: completions score `weight · length`, so everything is by hand."""

    def __init__(self) -> None:
        self.weight = torch.nn.Parameter(torch.tensor(0.0))

    def __call__(self, batch: MicroBatch) -> Scores:
        return Scores(self.weight * batch.lengths, torch.zeros(len(batch.lengths)), batch.lengths)


def slope_job(steps: int, **options: Any) -> tuple[Job, Slope]:
    policy = Slope()
    examples = Examples([token_group(2, 4, 3) for _ in range(steps)])
    job = Job(
        examples=examples,
        steps=plan(examples, batch_size=1, microbatch_tokens=1),
        score=policy,
        loss=weighted_sum([("dpo", 1.0, {"beta": 1.0})]),
        optimizer=torch.optim.SGD([policy.weight], lr=1.0),
        rate=lambda step: 0.1,
        device=torch.device("cpu"),
        **options,
    )
    return job, policy


def test_the_loop_by_hand() -> None:
    history: list[dict[str, Any]] = []
    job, policy = slope_job(3, record=history.append)
    fit(job, State())
    weight = 0.0
    for record in history:  # h = 4w − 3w = w, so dL/dw = −σ(−w)
        assert record["loss"] == pytest.approx(math.log1p(math.exp(-weight)), rel=1e-6)
        assert record["gradient_norm"] == pytest.approx(1 / (1 + math.exp(weight)), rel=1e-6)
        weight += 0.1 / (1 + math.exp(weight))
    assert float(policy.weight.detach()) == pytest.approx(weight, rel=1e-6)
    assert [record["step"] for record in history] == [1, 2, 3]
    assert [record["epoch"] for record in history] == pytest.approx([1 / 3, 2 / 3, 1])


def test_the_gradient_is_clipped() -> None:
    job, policy = slope_job(1, max_grad_norm=0.25)  # the gradient is −0.5
    fit(job, State())
    assert float(policy.weight.detach()) == pytest.approx(0.1 * 0.25, rel=1e-4)


@pytest.mark.parametrize("broken", ["loss", "gradient"])
def test_a_number_that_is_not_finite_stops_before_the_weights_are_touched(broken: str) -> None:
    from prefopt.records import Origin

    job, policy = slope_job(3)
    job.examples.groups = [
        token_group(2, 4, 3, origins=(Origin("pairs.jsonl", row),)) for row in (7, 8, 9)
    ]
    good = job.loss
    bad_step = next(i for i, step in enumerate(job.steps) if step.microbatches == ((1,),))
    job.last_checkpoint = Path("checkpoints/step-000001")
    seen = 0

    def breaking(scores: Scores, comparisons: Any) -> torch.Tensor:
        nonlocal seen
        seen += 1
        losses = good(scores, comparisons, {})
        if seen <= bad_step:
            return losses
        if broken == "loss":
            return losses * torch.inf
        return (scores.policy[:1] * 0).sqrt() + losses.detach()  # d√x/dx at 0 is not finite

    job.loss = Weighted((Term(Objective(breaking)),))
    state = State()
    weights = []
    job.record = lambda record: weights.append(float(policy.weight.detach()))
    with pytest.raises(NonFiniteError, match=f"the {broken} of step {bad_step + 1} ") as caught:
        fit(job, state)
    assert "pairs.jsonl:8" in caught.value.message
    assert "step-000001" in str(caught.value.remedy)
    assert state.step == bad_step
    assert float(policy.weight.detach()) == (weights[-1] if weights else 0.0)


def test_early_stop_waits_for_a_lower_loss() -> None:
    job, _ = slope_job(12)
    job.rate = lambda step: 1.0 if step < 3 else -1.0  # better for three steps, then worse
    job.evaluation = (job.examples, job.steps[:1])
    job.eval_every, job.early_stop = 1, 2
    history: list[dict[str, Any]] = []
    job.record = history.append
    state = fit(job, State())
    assert state.step == 5  # the best evaluation is after step 3; two are worse
    assert state.stopped is not None
    losses = [record["loss"] for record in history if record["kind"] == "eval"]
    assert state.best_loss == min(losses) == losses[3]  # the first is before step 1
    assert len(losses) == 6


def test_a_training_that_did_all_its_steps_was_not_stopped_early() -> None:
    job, _ = slope_job(5)
    job.rate = lambda step: 1.0 if step < 3 else -1.0
    job.evaluation = (job.examples, job.steps[:1])
    job.eval_every, job.early_stop = 1, 2
    state = fit(job, State())
    assert (state.step, state.waiting, state.stopped) == (5, 2, None)


def test_the_last_evaluation_is_at_the_end_and_there_is_one_only() -> None:
    for steps, at in ((4, [0, 2, 4]), (5, [0, 2, 4, 5])):
        job, _ = slope_job(steps, eval_every=2)
        job.evaluation = (job.examples, job.steps[:1])
        history: list[dict[str, Any]] = []
        job.record = history.append
        fit(job, State())
        assert [record["step"] for record in history if record["kind"] == "eval"] == at


# -- whole runs ----------------------------------------------------------------------------


def test_a_run_holds_everything(
    run_it: Callable[..., TrainResult], tmp_path: Path, pairs: Path
) -> None:
    held_out = write(tmp_path / "held-out.jsonl", rows(6, seed=1))
    result = run_it(eval_data=str(held_out), eval_every=2, epochs=2)
    run = Run(tmp_path / "run")
    history = run.read_metrics()
    train_records = [record for record in history if record["kind"] == "train"]
    assert [record["step"] for record in train_records] == [1, 2, 3, 4, 5, 6]
    first, last = train_records[0], train_records[-1]
    assert first["loss"] == pytest.approx(math.log(2), rel=1e-7)
    assert (first["accuracy"], first["margin"]) == (0.5, 0.0)
    assert last["loss"] < first["loss"]
    assert last["epoch"] == 2.0
    assert first["logp_preferred"] < 0 < first["length_preferred"]
    for name in ("gradient_norm", "tokens_per_second", "comparisons_per_second", "learning_rate"):
        assert all(record[name] > 0 for record in train_records)
    evaluations = [record for record in history if record["kind"] == "eval"]
    assert [record["step"] for record in evaluations] == [0, 2, 4, 6]
    assert evaluations[-1]["comparisons"] == 6

    manifest = run.read_json(run.manifest)
    assert manifest["data"]["train"]["files"][0]["path"] == str(pairs)
    assert manifest["data"]["train"]["comparisons"] == 24
    assert manifest["data"]["eval"]["comparisons"] == 6
    assert manifest["engine"]["sharing"] == "trees"
    assert manifest["engine"]["difference"] < 1e-4
    assert manifest["reference"]["fingerprint"] == manifest["policy"]["fingerprint"]
    assert manifest["result"]["fingerprint"] != manifest["policy"]["fingerprint"]
    assert manifest["policy"]["trainable"] == manifest["policy"]["parameters"]
    weighted = sum(r["loss"] * r["comparisons"] for r in train_records) / 48
    assert result.final_loss == manifest["result"]["final_loss"] == pytest.approx(weighted)
    assert result.to_dict()["steps"] == 6
    trained = load_policy(run.model, device="cpu")
    from prefopt.policies.fingerprint import fingerprint_model

    assert fingerprint_model(trained.model) == manifest["result"]["fingerprint"]
    assert not list(run.checkpoints.glob("step-*"))  # only a resume needs them


def test_a_finished_run_is_not_done_again(
    run_it: Callable[..., TrainResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run_it()
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*.json*")}
    monkeypatch.setattr(
        "prefopt.training.train.load_learner", lambda *a, **k: pytest.fail("loaded")
    )
    assert run_it() == first
    assert {path: path.stat().st_mtime_ns for path in written} == written


def test_a_run_is_not_mixed_with_another(
    run_it: Callable[..., TrainResult], pairs: Path, tmp_path: Path
) -> None:
    run_it()
    with pytest.raises(RunError, match=r"learning_rate was 0\.001 and is 0\.002"):
        run_it(learning_rate=2e-3)
    write(pairs, rows(24, seed=5))
    with pytest.raises(RunError, match="data has changed since"):
        run_it()
    again = run_it(resume="never")
    assert again.steps == 3
    digest = Run(tmp_path / "run").read_json(tmp_path / "run" / "manifest.json")
    assert digest["data"]["train"]["comparisons"] == 24


def test_wrong_data_leaves_no_folder(
    run_it: Callable[..., TrainResult], pairs: Path, tmp_path: Path
) -> None:
    pairs.write_text('{"prompt": "a", "chosen": "b"')
    with pytest.raises(DataError):
        run_it()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("adapter", [None, "lora"])
def test_cached_and_each_steps_reference_train_the_same(
    run_it: Callable[..., TrainResult], tmp_path: Path, adapter: str | None
) -> None:
    common = {"epochs": 2, "adapter": adapter, "microbatch_tokens": 300}
    run_it(out=str(tmp_path / "cached"), **common)
    run_it(out=str(tmp_path / "live"), reference_scores="each_step", **common)
    cached, live = (
        [r["loss"] for r in Run(tmp_path / name).read_metrics()] for name in ("cached", "live")
    )
    assert len(cached) == 6
    assert cached[:3] == live[:3]  # the plan's own micro-batches: the same numbers to the bit
    assert cached == pytest.approx(live, rel=1e-5)


@pytest.mark.parametrize("objective", ["dpo", "kto"])
def test_a_policy_that_has_not_moved_has_no_opinion(
    run_it: Callable[..., TrainResult], pairs: Path, tmp_path: Path, objective: str
) -> None:
    """Other micro-batches round otherwise than those whose reference scores were kept."""
    for tokens in (8192, 1):
        out = tmp_path / str(tokens)
        run_it(
            **{"objective.name": objective, "eval_data": str(pairs), "out": str(out)},
            microbatch_tokens=tokens,
            max_steps=1,
        )
        evaluation, step, _ = Run(out).read_metrics()
        assert {evaluation["accuracy"], step["accuracy"]} == {0.5}
        assert {evaluation["margin"], step["margin"]} == {0.0}


def test_a_reference_from_a_path(
    run_it: Callable[..., TrainResult], save_policy: Callable[..., Path], tmp_path: Path
) -> None:
    other = save_policy("llama", seed=7)
    run_it(reference=str(other), max_steps=1)
    (record,) = Run(tmp_path / "run").read_metrics()
    assert record["loss"] != pytest.approx(math.log(2), abs=1e-3)  # it is another model
    manifest = Run(tmp_path / "run").read_json(tmp_path / "run" / "manifest.json")
    assert manifest["reference"]["name"] == str(other)
    assert manifest["reference"]["fingerprint"] != manifest["policy"]["fingerprint"]


def test_sources_are_mixed_by_share_and_told_apart(
    run_it: Callable[..., TrainResult], tmp_path: Path
) -> None:
    sources = [
        {"path": str(write(tmp_path / "a.jsonl", rows(30, 1))), "name": "a", "share": 3.0},
        {"path": str(write(tmp_path / "b.jsonl", rows(10, 2))), "name": "b", "share": 1.0},
    ]
    run_it(data=sources, batch_size=40)
    (record,) = Run(tmp_path / "run").read_metrics()
    counts = {name: means["comparisons"] for name, means in record["sources"].items()}
    assert counts == {"a": 30, "b": 10}
    mean = (record["sources"]["a"]["loss"] * 30 + record["sources"]["b"]["loss"] * 10) / 40
    assert mean == pytest.approx(record["loss"])


def test_sft_needs_no_reference_and_lowers_the_likelihood_loss(
    run_it: Callable[..., TrainResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prefopt.training.prepare.ScoreCache", lambda: pytest.fail("cache opened"))
    result = run_it(objective="sft", epochs=3, learning_rate=5e-3)
    history = Run(tmp_path / "run").read_metrics()
    assert history[-1]["loss"] < history[0]["loss"]
    assert set(history[0]) >= {"loss", "length_preferred"}
    assert not set(history[0]) & {"accuracy", "margin", "reward_preferred"}
    assert result.accuracy is None


def test_rows_left_out_are_counted_by_reason(
    run_it: Callable[..., TrainResult], pairs: Path
) -> None:
    same = {"prompt": "Same: ", "chosen": "equal", "rejected": "equal"}
    long = {"prompt": "Long: ", "chosen": "good " * 300, "rejected": "bad"}
    write(pairs, [*rows(8, 0), same, long, {"prompt": "x"}])
    with pytest.raises(DataError):
        run_it()
    result = run_it(on_error="skip", too_long="drop", max_length=64)
    assert sum(result.skipped.values()) == 3
    assert result.skipped["too_long"] == 1


# -- what is refused -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings_", "error", "message"),
    [
        ({"objective": {"name": "dpo", "betta": 1.0}}, RecipeError, "no option 'betta'"),
        ({"objective.beta": 0}, RecipeError, "must be a number above 0"),
        ({"objective": {"name": "ipo", "length_normalize": 1}}, RecipeError, "true or false"),
        ({"objective": "sft", "reference": "some/path"}, RecipeError, "reference has no effect"),
        ({"objective": "sft", "reference_scores": "each_step"}, RecipeError, "has no effect"),
        ({"reference": "none"}, RecipeError, "needs a reference"),
        ({"precision": "bf16", "device": "cpu"}, RecipeError, "bf16 needs an accelerator"),
        ({"max_length": 5000}, RecipeError, "512 tokens that the model was made for"),
        ({"max_length": 4}, DataError, "more than max_length = 4"),
    ],
)
def test_settings_that_cannot_be_meant(
    run_it: Callable[..., TrainResult],
    tmp_path: Path,
    settings_: dict[str, Any],
    error: type[PrefoptError],
    message: str,
) -> None:
    with pytest.raises(error, match=message):
        run_it(**settings_)
    assert not (tmp_path / "run").exists()


def test_unpaired_data_is_nothing_for_dpo(run_it: Callable[..., TrainResult], pairs: Path) -> None:
    write(pairs, [{"prompt": "a", "completion": "b", "label": True}])
    with pytest.raises(DataError, match="nothing for objective 'dpo'") as caught:
        run_it()
    assert caught.value.field == "data"
    assert "`sft`" in str(caught.value.remedy)


def test_the_command_shows_held_out_numbers_and_says_when_nothing_was_left_to_do(
    tiny_policy_folder: Path, pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    held_out = write(tmp_path / "held-out.jsonl", rows(6, seed=1))
    command = ["train", "--model", str(tiny_policy_folder), "--data", str(pairs)]
    command += ["--eval-data", str(held_out), "--out", str(tmp_path / "run"), "--max-steps", "1"]
    for said in (False, True):
        assert run_command(command) == 0
        out, err = capsys.readouterr()
        assert "held-out accuracy" in out
        assert "held-out loss" in out
        assert ("finished before" in err) is said


def test_a_tracker_that_is_not_installed(
    run_it: Callable[..., TrainResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(MissingExtraError, match="trackio is not installed"):
        run_it(track="trackio")
    assert not (tmp_path / "run").exists()


def test_a_tracker_gets_every_record(
    run_it: Callable[..., TrainResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []

    class Library:
        init = staticmethod(lambda **settings: calls.append(settings["config"]["batch_size"]))
        log = staticmethod(lambda values, step: calls.append((step, values["train/loss"])))
        finish = staticmethod(lambda: calls.append("finished"))

    monkeypatch.setitem(sys.modules, "wandb", Library)
    run_it(track="wandb")
    assert calls[0] == 8
    assert [step for step, _ in calls[1:-1]] == [1, 2, 3]
    assert calls[-1] == "finished"


def test_auto_precision_is_fp32_on_a_cpu() -> None:
    assert choose_precision("auto", torch.device("cpu")) == "fp32"


def test_a_step_type_is_small() -> None:
    """Plans of many steps are kept in memory."""
    assert not hasattr(Step(1.0, ((0,),), 1, 1.0, 5), "__dict__")
