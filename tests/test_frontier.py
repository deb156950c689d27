"""The controlled experiment: exact numbers, a bound that nobody crosses, and methods that learn."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from prefopt.data.worlds import EnumerableWorld
from prefopt.errors import RecipeError, RunError
from prefopt.evaluation.frontier import ppo, preferences
from prefopt.evaluation.frontier.frontier import (
    BUDGETS,
    Curve,
    Frontier,
    efficiency,
    measure,
    summary,
)
from prefopt.evaluation.frontier.methods import METHODS, Experiment, experiments, find_method, run
from prefopt.evaluation.frontier.policy import SequencePolicy, SequenceValue, every_sequence, place
from prefopt.evaluation.frontier.reaching import optimal_reward, reachable
from prefopt.evaluation.frontier.reward_model import learned_reward
from prefopt.evaluation.frontier.stage import PAIRS, Scale, Stage, prepare
from prefopt.objectives.registry import OBJECTIVES
from prefopt.objectives.scores import Comparisons, Labels, Rankings, Scores
from prefopt.report.frontier_page import shares_within

SMALL = Scale(
    demonstrations=4000, groups=400, steps=24, batch=32, every=6, iterations=6, samples=128
)


@pytest.fixture(scope="module")
def stage() -> Stage:
    return prepare(SMALL, 0)


def test_a_distribution_is_the_product_of_its_tokens_and_sums_to_one() -> None:
    policy = SequencePolicy(3, 4, seed=5)
    distribution = policy.distribution()
    with torch.no_grad():
        direct = policy.token_logps(every_sequence(3, 4)).double().sum(1).exp().numpy()
    assert distribution.sum() == pytest.approx(1, abs=1e-12)
    np.testing.assert_allclose(distribution, direct, rtol=2e-6)


def test_a_policy_cannot_see_the_future() -> None:
    policy, value = SequencePolicy(3, 4, seed=5), SequenceValue(3, 4, seed=5)
    torch.nn.init.normal_(value.head.weight)
    one, other = torch.tensor([[0, 1, 2, 0]]), torch.tensor([[0, 1, 1, 2]])
    with torch.no_grad():
        torch.testing.assert_close(policy.log_softmax(one)[:, :3], policy.log_softmax(other)[:, :3])
        torch.testing.assert_close(value(one)[:, :3], value(other)[:, :3])
        assert (value(one)[:, 3] != value(other)[:, 3]).all()


def test_sequences_are_in_the_order_of_the_world() -> None:
    world = EnumerableWorld.random(0, vocabulary=3, length=4)
    assert (every_sequence(3, 4).numpy() == world.sequences).all()


def test_the_reference_is_fitted_and_is_the_worlds_own(stage: Stage) -> None:
    bigrams = EnumerableWorld.random(0).reference
    before = SequencePolicy(5, 5, seed=0).distribution()
    ours = stage.world.reference

    def kl(p: Any, q: Any) -> float:
        return float(p @ np.log(p / q))

    assert kl(bigrams, ours) < 0.25 * kl(bigrams, before)
    assert place(stage.world, stage.reference)[0] == pytest.approx(0, abs=1e-12)


def test_comparisons_are_drawn_from_the_reward() -> None:
    stage = prepare(replace(SMALL, groups=4000), 0)
    worth = stage.world.reward[stage.numbers] / SMALL.temperature
    first, second = np.array(PAIRS).T
    likely = 1 / (1 + np.exp(worth[:, second] - worth[:, first]))
    error = (likely * (1 - likely)).sum() ** 0.5
    assert abs(stage.first_won.sum() - likely.sum()) < 4 * error
    # a ranking puts the first of two before the second as often: Plackett-Luce
    places = np.argsort(stage.rankings, axis=1)
    above = places[:, first] < places[:, second]
    assert abs(above[:, 0].sum() - likely[:, 0].sum()) < 4 * error
    confident = np.abs(likely - 0.5) > 0.4
    assert (stage.first_won == (likely > 0.5))[confident].mean() > 0.9


def test_the_optimum_at_a_divergence_is_that_of_its_beta(stage: Stage) -> None:
    for beta in (0.05, 0.2, 1.0):
        best = stage.world.optimum(beta)
        found = optimal_reward(stage.world, stage.world.kl(best))
        assert found == pytest.approx(stage.world.expected_reward(best), abs=1e-9)
    assert optimal_reward(stage.world, 1e9) == stage.world.reward.max()


@pytest.mark.parametrize("name", [*METHODS, "dpo", "ipo", "kto", "plackett_luce", "tdpo", "bco"])
def test_no_method_lies_above_the_optimum(stage: Stage, name: str) -> None:
    method = find_method(name)
    points, accuracy = run(
        (SMALL, Experiment(name, method.setting, (method.grid or (None,))[0], 0))
    )
    assert len(points) > 3
    assert (accuracy is not None) == (name in ("ppo", "best-of-n"))
    for _, kl, reward in points:
        assert kl >= -1e-9
        assert reward <= optimal_reward(stage.world, kl) + 1e-6
    gained = points[-1][2] - points[0][2]
    assert gained > 0.02, f"{name} learned nothing"


def test_every_objective_runs_or_is_refused_with_what_it_lacks() -> None:
    refused = set()
    tiny = replace(SMALL, steps=2, every=1, groups=80, demonstrations=512)
    for name, row in OBJECTIVES.items():
        try:
            method = find_method(name)
        except RecipeError:
            refused.add(name)
            continue
        points = method.run(prepare(tiny, 0), (method.grid or (float("nan"),))[0])
        assert len(points) == 3 and np.isfinite(points).all(), name
        assert ("beta" in row.options) == (method.setting == "beta")
    needing = {
        name
        for name, row in OBJECTIVES.items()
        if row.needs_rewards or row.needs_sources or row.companions == "corrupted"
    }
    assert refused >= needing
    assert refused - needing <= {"reward"}


def test_unlikelihood_by_hand() -> None:
    policy = torch.tensor([-2.0, -5.0])
    scores = Scores(policy, policy, torch.tensor([5, 5]))
    values, _ = preferences.unlikelihood(0.5)(scores, Comparisons.of([(0, 1)]), {})
    assert values.tolist() == [2.0 - 2.5]


def test_groups_are_judged_as_their_objective_reads_them(stage: Stage) -> None:
    rows = torch.tensor([3, 7])
    for name, kind in (("dpo", Comparisons), ("kto", Labels), ("plackett_luce", Rankings)):
        loss, _ = preferences.by_objective(name, {})
        assert isinstance(preferences.judged(stage, rows, loss), kind)
    edges = preferences.judged(stage, rows, None)
    assert isinstance(edges, Comparisons)
    for index in range(12):
        first, second = PAIRS[index % 6]
        won = stage.first_won[rows[index // 6], index % 6]
        better, worse = (first, second) if won else (second, first)
        start = 4 * (index // 6)
        assert (int(edges.preferred[index]), int(edges.dispreferred[index])) == (
            start + better,
            start + worse,
        )


def test_generalized_advantages_telescope_with_lambda_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ppo, "LAMBDA", 1.0)
    rewards, values = torch.randn(3, 5), torch.randn(3, 5)
    _, returns = ppo.estimated(rewards, values)
    to_go = rewards.flip(1).cumsum(1).flip(1)
    torch.testing.assert_close(returns, to_go)


def test_a_ratio_beyond_the_clip_has_no_gradient_where_it_pays() -> None:
    logps = torch.tensor([[0.5, -0.5, 0.0]], requires_grad=True)
    ppo.clipped(logps, torch.zeros(1, 3), torch.tensor([[1.0, -1.0, 1.0]])).backward()
    assert logps.grad is not None
    assert logps.grad.tolist() == [[0.0, 0.0, pytest.approx(-1 / 3)]]


def test_a_reward_model_ranks_as_the_reward_does(stage: Stage) -> None:
    rewards, accuracy = learned_reward(SMALL, 0)
    assert rewards.shape == stage.world.reward.shape
    assert np.corrcoef(rewards, stage.world.reward)[0, 1] > 0.4
    assert 0.6 < accuracy < 0.95


def test_the_same_curves_from_one_process_and_from_two(tmp_path: Path) -> None:
    names = ["dpo", "best-of-n-true"]
    alone = measure(names, grid=[0.5], scale=SMALL, folder=tmp_path / "a")
    together = measure(names, grid=[0.5], scale=SMALL, folder=tmp_path / "b", processes=2)
    assert alone.to_dict() == together.to_dict()
    assert [curve.experiment.method for curve in alone.curves] == names


def test_what_is_finished_is_not_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = measure(["best-of-n-true"], scale=SMALL, folder=tmp_path)
    path = tmp_path / "curves.jsonl"
    path.write_text(path.read_text() + '{"method": "dpo", "cut')  # killed in the middle of a line
    calls: list[Any] = []
    monkeypatch.setattr(
        "prefopt.evaluation.frontier.frontier.run",
        lambda task: calls.append(task) or ([(0, 0, 0.4)], None),
    )
    measure(["best-of-n-true", "preferred-sft"], scale=SMALL, folder=tmp_path)
    assert [task[1].method for task in calls] == ["preferred-sft"]
    kept = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["method"] for row in kept] == ["best-of-n-true", "preferred-sft"]
    assert [tuple(p) for p in kept[0]["points"]] == list(first.curves[0].points)
    with pytest.raises(RunError, match="another scale"):
        measure(["best-of-n-true"], scale=replace(SMALL, steps=5), folder=tmp_path)


def test_a_summary_is_what_can_be_had_within_each_budget(tmp_path: Path) -> None:
    found = measure(["best-of-n-true"], seeds=[0, 1], scale=SMALL, folder=tmp_path)
    rows = {row["budget"]: row for row in summary(found)}
    assert set(rows) == set(BUDGETS)
    for budget, row in rows.items():
        best = [
            float(reachable([point[1:] for point in curve.points], budget))
            for curve in found.curves
        ]
        assert row["reward"] == pytest.approx(np.mean(best))
        assert row["standard_error"] == pytest.approx(np.std(best, ddof=1) / 2**0.5)
        assert 0 < row["share_of_optimum"] <= 1
    (row,) = efficiency(found)
    gains = [
        (reward - start) / (optimal_reward(found.worlds[curve.experiment.seed], kl) - start)
        for curve in found.curves
        for start in (curve.points[0][2],)
        for _, kl, reward in curve.points[1:]
    ]
    assert row["mean"] == pytest.approx(np.mean(gains))
    assert (row["lowest"], row["highest"]) == pytest.approx((min(gains), max(gains)))
    assert row["lowest"] > 0.8 and row["highest"] <= 1


def test_a_policy_that_never_moved_is_near_nothing(stage: Stage) -> None:
    start = (0, 0.0, stage.world.expected_reward(stage.world.reference))
    still = Curve(Experiment("dpo", "beta", 1e6, 0), [start, (6, 1e-9, start[2])])
    moved = Curve(Experiment("dpo", "beta", 0.1, 0), [start, (6, 1.0, 0.6)])
    about: dict[str, Any] = {"worlds": {0: stage.world}, "accuracy": {}, "scale": SMALL}
    (row,) = efficiency(Frontier(curves=[still], **about))
    assert (row["mean"], row["lowest"], row["highest"]) == (None, None, None)
    (row,) = efficiency(Frontier(curves=[still, moved], **about))
    assert row["mean"] == row["lowest"] == row["highest"] > 0


def test_what_is_reached_is_the_concave_hull_by_brute_force() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        points = [(0.0, 0.3), *zip(rng.uniform(0, 4, 9), rng.uniform(0, 1, 9), strict=True)]
        for budget in (0.0, 0.7, 2.0, 5.0):
            mixtures = [
                share * one[1] + (1 - share) * other[1]
                for one in points
                for other in points
                for share in np.linspace(0, 1, 401)
                if share * one[0] + (1 - share) * other[0] <= budget + 1e-12
            ]
            assert float(reachable(points, budget)) == pytest.approx(max(mixtures), abs=4e-3)


def test_a_mixture_costs_no_more_than_its_parts(stage: Stage) -> None:
    """Why the hull can be had: reward is linear in a policy, and KL convex."""
    world = stage.world
    one, other = world.optimum(0.3), world.best_of(16)
    half = (one + other) / 2
    assert world.expected_reward(half) == pytest.approx(
        (world.expected_reward(one) + world.expected_reward(other)) / 2
    )
    assert world.kl(half) < (world.kl(one) + world.kl(other)) / 2
    points = [(world.kl(p), world.expected_reward(p)) for p in (world.reference, one, other)]
    for kl in (0.2, 0.9, 1.7):
        assert float(reachable(points, kl)) <= optimal_reward(world, kl) + 1e-9


@pytest.mark.parametrize(
    ("names", "grid", "field"),
    [
        (["nonsense"], None, "methods"),
        (["group_dro"], None, "objectives"),
        (["reward"], None, "methods"),
        (["pppo"], None, "methods"),
        ([], None, "methods"),
        (["best-of-n", "unlikelihood"], [0.1], "grid"),
        (["dpo"], [], "grid"),
        (["dpo"], [0.1, -1.0], "grid"),
    ],
)
def test_refusals(names: list[str], grid: list[float] | None, field: str) -> None:
    with pytest.raises(RecipeError) as caught:
        experiments(names, [0], grid)
    assert caught.value.field == field


def test_the_command_writes_its_page(
    tmp_path: Path, call: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prefopt.evaluation.frontier.frontier.Scale", lambda: SMALL)
    out = tmp_path / "frontier"
    wanted = ("--methods", "best-of-n-true,dpo", "--grid", "0.5", "--processes", 1)
    code, _, error = call("frontier", "--out", out, *wanted)
    assert code == 0, error
    page = (out / "frontier.html").read_text()
    assert (
        "best of n, true reward" in page and "<svg" in page and "http" not in page.split("arXiv")[0]
    )
    document = json.loads((out / "frontier.json").read_text())
    assert {row["method"] for row in document["summary"]} == {"best-of-n-true", "dpo"}
    for row in document["summary"]:
        drawn = shares_within(document, row["method"], np.array([row["budget"]]))
        assert drawn == pytest.approx([row["share_of_optimum"]], abs=0.005)
    own = {row["title"]: f"{100 * row['mean']:.1f} %" for row in document["efficiency"]}
    assert all(f"{title} ({share})" in page for title, share in own.items())
    assert page.count("<svg viewBox") == page.count("</svg>") and "What each method reaches" in page
    code, _, error = call("frontier", "--out", out, "--grid", "a,b")
    assert code == 2 and "numbers with commas" in error


def test_several_worlds_are_shown_with_their_spread(
    tmp_path: Path, call: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prefopt.evaluation.frontier.frontier.Scale", lambda: SMALL)
    wanted = ("frontier", "--out", tmp_path, "--methods", "best-of-n-true", "--processes", 1)
    code, shown, _ = call(*wanted)
    assert code == 0 and "±" not in shown
    code, shown, _ = call(*wanted, "--seeds", 2)
    row = json.loads((tmp_path / "frontier.json").read_text())["summary"][0]
    assert code == 0 and "Mean over 2 seeds ± standard error" in " ".join(shown.split())
    assert f"{row['reward']:.3f} ± {row['standard_error']:.3f}" in shown


def test_a_name_that_is_nearly_a_method_is_told() -> None:
    with pytest.raises(RecipeError) as caught:
        experiments(["ppo-tru"], [0])
    assert "did you mean 'ppo-true'?" in str(caught.value.remedy)


@pytest.mark.parametrize("below", ["", "below"])
def test_a_file_in_the_place_of_the_folder(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RunError, match="a file is where a folder is needed"):
        measure(["best-of-n-true"], scale=SMALL, folder=tmp_path / "file" / below)


def test_the_reward_model_is_not_fitted_again_for_its_accuracy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = measure(["best-of-n"], scale=SMALL, folder=tmp_path)
    monkeypatch.setattr("prefopt.evaluation.frontier.methods.learned_reward", None)
    again = measure(["best-of-n"], scale=SMALL, folder=tmp_path)
    assert again.accuracy == first.accuracy == {0: learned_reward(SMALL, 0)[1]}
    assert again.to_dict() == first.to_dict()


@pytest.mark.parametrize(
    "line",
    [
        '{"foo": 1}',
        "[1]",
        '{"scale": SCALE, "points": [[0, 1]]}',
        '{"scale": SCALE, "points": [], "accuracy": null, "x": 1}',
    ],
)
def test_a_file_of_curves_that_holds_something_else(tmp_path: Path, line: str) -> None:
    line = line.replace("SCALE", json.dumps(asdict(SMALL)))
    (tmp_path / "curves.jsonl").write_text(line + "\n")
    with pytest.raises(RunError, match="no curve") as caught:
        measure(["best-of-n-true"], scale=SMALL, folder=tmp_path)
    assert caught.value.row == 1
