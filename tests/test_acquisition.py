"""Which pairs to ask about next: by hand, against brute force, and what does not matter."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from prefopt.data.acquisition import STRATEGIES, Selection, select
from prefopt.data.acquisition.design import covariance, greedy
from prefopt.data.acquisition.strategies import (
    bald,
    certainty,
    predictive_entropy,
    uncertainty,
)
from prefopt.errors import DataError, RecipeError


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def binary_entropy(p: float) -> float:
    return -p * math.log(p) - (1 - p) * math.log(1 - p)


def a_pool(seed: int = 0, pairs: int = 60, members: int = 3, width: int = 5) -> dict[str, Any]:
    """Everything that any strategy reads, of pairs that are all different."""
    rng = np.random.default_rng(seed)
    return {
        "margins": rng.normal(size=(members, pairs)),
        "features": rng.normal(size=(pairs, width)),
        "entropies": rng.gamma(3.0, size=pairs),
        "keys": [f"question {number}".encode() for number in range(pairs)],
    }


def needed(pool: dict[str, Any], strategy: str) -> dict[str, Any]:
    """The parts of a pool that a strategy reads, and the keys."""
    return {name: pool[name] for name in (*STRATEGIES[strategy].needs, "keys")}


# -- scores by hand ------------------------------------------------------------------------


def test_scores_by_hand() -> None:
    margins = np.array([[1.0, 0.0, -3.0, 2.0], [2.0, 0.0, 1.0, 2.0]])
    assert uncertainty(margins).tolist() == [-1.5, 0.0, -1.0, -2.0]
    assert certainty(margins).tolist() == [1.5, 0.0, 1.0, 2.0]
    p, q = sigmoid(1.0), sigmoid(2.0)
    disagreement = binary_entropy((p + q) / 2) - (binary_entropy(p) + binary_entropy(q)) / 2
    assert bald(margins)[0] == pytest.approx(disagreement, abs=1e-15)
    assert bald(margins)[2] > bald(margins)[0] > bald(margins)[3]


@pytest.mark.parametrize("members", [2, 3, 5, 7])
def test_a_coin_flip_in_every_member_has_no_bald_score_and_the_highest_uncertainty(
    members: int,
) -> None:
    rng = np.random.default_rng(members)
    margins = np.concatenate([np.zeros((members, 1)), rng.normal(size=(members, 50))], axis=1)
    assert abs(bald(margins)[0]) < 1e-15
    assert uncertainty(margins).argmax() == 0
    assert bald(margins)[1:].min() > 1e-6


def test_bald_at_the_ends_of_what_floats_hold() -> None:
    margins = np.array([[800.0, 800.0, 40.0], [-800.0, 800.0, 41.0]])
    assert bald(margins)[0] == pytest.approx(math.log(2), abs=1e-15)
    assert bald(margins)[1] == 0.0
    assert 0 <= bald(margins)[2] < 1e-15


def test_entropy_of_samples_by_hand() -> None:
    # two prompts: of three samples, and of two
    logps = [[-2.0, -4.0, -9.0], [-1.0, -2.0, math.nan]]
    assert predictive_entropy(logps).tolist() == [5.0, 1.5]


def test_entropy_is_estimated_without_bias() -> None:
    """Samples of a known distribution: their mean −log p is its entropy."""
    rng = np.random.default_rng(0)
    p = np.array([0.5, 0.25, 0.125, 0.125])
    samples = rng.choice(4, size=(1, 40_000), p=p)
    exact = 1.75 * math.log(2)
    assert predictive_entropy(np.log(p)[samples])[0] == pytest.approx(exact, rel=0.01)


@pytest.mark.parametrize("strategy", ["uncertainty", "certainty", "bald", "entropy"])
def test_the_highest_scores_are_chosen_in_their_order(strategy: str) -> None:
    pool = a_pool()
    score = {
        "uncertainty": lambda: -np.abs(pool["margins"].mean(0)),
        "certainty": lambda: np.abs(pool["margins"].mean(0)),
        "bald": lambda: bald(pool["margins"]),
        "entropy": lambda: pool["entropies"],
    }[strategy]()
    chosen = select(**needed(pool, strategy), count=7, strategy=strategy, controls=0)
    assert chosen.indices.tolist() == np.argsort(-score)[:7].tolist()
    assert chosen.scores.tolist() == pytest.approx(np.sort(score)[::-1][:7].tolist())
    assert chosen.strategies == (strategy,) * 7


# -- designs -------------------------------------------------------------------------------


def brute_force(
    features: np.ndarray, weights: np.ndarray, start: np.ndarray, count: int
) -> tuple[list[int], list[float]]:
    """The same greedy choice by determinants of all candidates, nothing updated."""
    information = start.copy()
    chosen: list[int] = []
    gains = []
    for _ in range(count):
        now = np.linalg.slogdet(information)[1]
        after = [
            -np.inf
            if index in chosen
            else np.linalg.slogdet(information + w * np.outer(x, x))[1] - now
            for index, (x, w) in enumerate(zip(features, weights, strict=True))
        ]
        best = int(np.argmax(after))
        chosen.append(best)
        gains.append(after[best])
        information += weights[best] * np.outer(features[best], features[best])
    return chosen, gains


@pytest.mark.parametrize("seed", range(5))
def test_greedy_designs_are_those_of_brute_force(seed: int) -> None:
    rng = np.random.default_rng(seed)
    features, before = rng.normal(size=(40, 4)), rng.normal(size=(6, 4))
    weights, old = rng.uniform(0.01, 0.25, size=40), rng.uniform(0.01, 0.25, size=6)
    start = covariance(before, old, 0.5)
    information = 0.5 * np.eye(4) + sum(
        w * np.outer(x, x) for x, w in zip(before, old, strict=True)
    )
    np.testing.assert_allclose(start @ information, np.eye(4), atol=1e-12)
    everything = {"allowed": np.ones(40, bool), "prompts": np.arange(40), "per_prompt": 1}
    chosen, gains, _ = greedy(features, weights, start, count=12, **everything)
    expected, differences = brute_force(features, weights, information, 12)
    assert chosen.tolist() == expected
    assert gains.tolist() == pytest.approx(differences, abs=1e-9)
    assert (np.diff(gains) < 0).all()  # what is known already is worth less


def test_rank_one_updates_are_the_inverse() -> None:
    rng = np.random.default_rng(0)
    features, weights = rng.normal(size=(400, 8)), rng.uniform(0.01, 0.25, size=400)
    chosen, _, after = greedy(
        features, weights, np.eye(8), count=300, allowed=np.ones(400, bool),
        prompts=np.arange(400), per_prompt=1,
    )  # fmt: skip
    assert sorted(set(chosen.tolist())) == sorted(chosen.tolist())
    assert len(chosen) == 300
    inverse = covariance(features[chosen], weights[chosen], 1.0)
    np.testing.assert_allclose(after, inverse, rtol=0, atol=1e-9 * np.abs(inverse).max())


def test_bounds_that_are_kept_change_no_choice() -> None:
    """Against the plain way: every gain of every pair again after every choice."""
    rng = np.random.default_rng(3)
    features = rng.normal(size=(1500, 8)) * rng.gamma(1.0, size=(1500, 1))
    weights, prompts = rng.uniform(0.01, 0.25, size=1500), rng.integers(700, size=1500)
    allowed = rng.random(1500) < 0.8
    current, left, expected, gains = np.eye(8), allowed.copy(), [], []
    for _ in range(150):
        worth = weights * np.einsum("nd,de,ne->n", features, current, features)
        best = int(np.where(left, worth, -np.inf).argmax())
        expected.append(best)
        gains.append(math.log1p(worth[best]))
        current = covariance(features[expected], weights[expected], 1.0)
        left[best] = False
        if sum(prompts[expected] == prompts[best]) == 2:
            left[prompts == prompts[best]] = False
    chosen, found, _ = greedy(
        features, weights, np.eye(8), count=150, allowed=allowed, prompts=prompts, per_prompt=2
    )
    assert chosen.tolist() == expected
    assert found.tolist() == pytest.approx(gains, abs=1e-9)


def test_the_strategy_scales_features_and_weighs_by_what_is_uncertain() -> None:
    pool = a_pool(members=2)
    margins, features = pool["margins"], pool["features"]
    scaled = features * np.sqrt(5 / (features**2).sum(1).mean())
    p = (1 / (1 + np.exp(-margins))).mean(0)
    expected, gains = brute_force(scaled, p * (1 - p), np.eye(5), 10)
    chosen = select(margins, features, count=10, controls=0)
    assert chosen.indices.tolist() == expected
    assert chosen.scores.tolist() == pytest.approx(gains, abs=1e-9)
    # the unit of the features is no part of it
    again = select(margins, 1000 * features, count=10, controls=0)
    assert again.indices.tolist() == expected


def test_what_was_labelled_is_known() -> None:
    """Two directions: after many labels along one, the other is asked about."""
    along = np.array([[1.0, 0.0], [0.0, 0.9]])
    fresh = select(np.zeros(2), along, count=1, controls=0)
    assert fresh.indices.tolist() == [0]
    labelled = np.zeros(20), np.repeat(along[:1], 20, axis=0)
    assert select(np.zeros(2), along, count=1, controls=0, labelled=labelled).indices.tolist() == [
        1
    ]
    # and a pair of whose answer the model is sure tells little
    assert select([9.0, 0.0], along, count=1, controls=0).indices.tolist() == [1]


# -- what is never asked -------------------------------------------------------------------


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_batches_use_the_pool_up_and_ask_nothing_twice(strategy: str) -> None:
    pool = a_pool()
    asked: list[int] = []
    for batch in range(6):
        chosen = select(
            **needed(pool, strategy), count=10, strategy=strategy, asked=asked, seed=batch
        )
        assert len(chosen) == 10
        asked += chosen.indices.tolist()
    assert sorted(asked) == list(range(60))
    empty = select(**needed(pool, strategy), count=10, strategy=strategy, asked=asked)
    assert len(empty) == 0
    mask = np.ones(60, bool)
    mask[[4, 7]] = False
    left = select(**needed(pool, strategy), count=10, strategy=strategy, asked=mask, controls=0)
    assert sorted(left.indices.tolist()) == [4, 7]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_one_question_of_several_rows_with_its_key(strategy: str) -> None:
    pool = a_pool(pairs=30)
    pool["keys"] = [f"question {number % 10}".encode() for number in range(30)]
    chosen = select(**needed(pool, strategy), count=30, strategy=strategy)
    assert sorted(chosen.indices % 10) == list(range(10))
    left = select(**needed(pool, strategy), count=30, strategy=strategy, asked=[13, 25])
    assert sorted(left.indices % 10) == [0, 1, 2, 4, 6, 7, 8, 9]


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("most", [1, 2])
def test_no_more_of_a_prompt_than_was_said(strategy: str, most: int) -> None:
    pool, prompts = a_pool(), np.arange(60) % 12
    wanted = {"strategy": strategy, "prompts": prompts, "per_prompt": most}
    chosen = select(**needed(pool, strategy), count=60, controls=0, **wanted)
    assert np.bincount(prompts[chosen.indices]).tolist() == [most] * 12
    mixed = select(**needed(pool, strategy), count=10, controls=0.3, **wanted)
    evaluated = set(prompts[mixed.indices[mixed.controls]])
    assert evaluated.isdisjoint(prompts[mixed.indices[~mixed.controls]])


def test_prompts_of_the_evaluation_come_as_controls_or_not() -> None:
    pool, prompts = a_pool(), np.arange(60) % 6 + 100
    wanted = {"prompts": prompts, "per_prompt": 10, "reserved": [101, 104, 999]}
    margins, features = pool["margins"], pool["features"]
    chosen = select(margins, features, count=60, controls=0, **wanted)
    assert set(prompts[chosen.indices]) == {100, 102, 103, 105}
    seen = set()
    for seed in range(30):
        one = select(margins, features, count=10, controls=0.5, seed=seed, **wanted)
        seen |= set(prompts[one.indices[one.controls]])
    assert seen == set(range(100, 106))


# -- controls ------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_controls_are_a_share_and_spread_over_the_order(strategy: str) -> None:
    pool = a_pool(pairs=200)
    for count in (10, 16, 23, 40, 100):
        chosen = select(**needed(pool, strategy), count=count, strategy=strategy)
        assert len(chosen) == count
        assert chosen.controls.sum() == int(0.15 * count + 0.5)
        tens = np.convolve(chosen.controls, np.ones(10), "valid")
        assert tens.min() >= 1
        assert np.isnan(chosen.scores[chosen.controls]).all()
        assert set(chosen.strategies) == {strategy, "control"}
        assert len(set(chosen.indices.tolist())) == count


def test_controls_are_drawn_evenly_from_the_pool() -> None:
    """Whatever the strategy likes: each pair as often as any other."""
    pool = a_pool(pairs=20)
    counts = np.zeros(20)
    for seed in range(2000):
        chosen = select(pool["margins"], pool["features"], count=4, controls=0.5, seed=seed,
                        keys=pool["keys"])  # fmt: skip
        counts[chosen.indices[chosen.controls]] += 1
    assert counts.sum() == 4000
    expected, sd = 200, math.sqrt(2000 * 0.1 * 0.9)
    assert np.abs(counts - expected).max() < 4 * sd


def test_the_controls_are_the_same_for_every_strategy() -> None:
    pool = a_pool()
    drawn = {
        tuple(chosen.indices[chosen.controls])
        for strategy in STRATEGIES
        for chosen in [select(**needed(pool, strategy), count=20, strategy=strategy, seed=3)]
    }
    assert len(drawn) == 1


# -- what does not matter ------------------------------------------------------------------


def content(pool: dict[str, Any], chosen: Selection) -> list[Any]:
    """What was chosen, as the rows themselves; a row and its mirror image are the same."""
    rows = np.concatenate([pool["margins"].T, pool["features"]], axis=1)[chosen.indices]
    rows *= np.sign(rows[:, :1])
    return [(*row, name) for row, name in zip(rows.tolist(), chosen.strategies, strict=True)]


@pytest.mark.parametrize(
    ("strategy", "named"),
    [(name, named) for name in STRATEGIES for named in (True, False) if named or name != "random"],
)
def test_neither_the_order_of_the_pool_nor_the_sides_of_a_pair_matter(
    strategy: str, named: bool
) -> None:
    pool, rng = a_pool(), np.random.default_rng(1)
    asked, prompts = np.arange(9), np.arange(60) % 25
    order, turned = rng.permutation(60), rng.choice([-1.0, 1.0], size=60)
    other = {
        "margins": (pool["margins"] * turned)[:, order],
        "features": (pool["features"] * turned[:, None])[order],
        "entropies": pool["entropies"][order],
        "keys": [pool["keys"][index] for index in order],
    }
    parts = [needed(part, strategy) for part in (pool, other)]
    for part in () if named else parts:
        del part["keys"]
    first = select(**parts[0], count=15, strategy=strategy, prompts=prompts, asked=asked, seed=5)
    second = select(
        **parts[1], count=15, strategy=strategy, prompts=prompts[order] + 7,
        asked=np.flatnonzero(order < 9), seed=5,
    )  # fmt: skip
    assert content(pool, first) == content(other, second)
    np.testing.assert_array_equal(first.scores, second.scores)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_seed_decides_ties_and_draws_and_nothing_else_does(strategy: str) -> None:
    pool = a_pool(pairs=40)
    pool["margins"][:] = 0.0
    pool["features"][:] = 1.0
    pool["entropies"][:] = 2.0
    wanted = {**needed(pool, strategy), "count": 8, "strategy": strategy}
    runs = [select(**wanted, seed=seed).indices.tolist() for seed in (0, 0, 1, 2)]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2] != runs[3]


# -- what is refused -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"strategy": "dopt"}, "no such strategy"),
        ({"count": 0}, "'count'"),
        ({"controls": 1.0}, "'controls'"),
        ({"per_prompt": 0}, "'per_prompt'"),
        ({"ridge": 0.0}, "'ridge'"),
        ({"features": None}, "needs features"),
        ({"margins": None, "strategy": "bald"}, "needs margins"),
        ({"margins": np.zeros(60), "strategy": "bald"}, "only one"),
        ({"strategy": "entropy"}, "needs entropies"),
        ({"strategy": "random", "labelled": (np.zeros(1), np.ones((1, 5)))}, "no effect"),
    ],
)
def test_settings_out_of_range_are_refused(change: dict[str, Any], words: str) -> None:
    pool = a_pool()
    wanted = {"margins": pool["margins"], "features": pool["features"], "count": 3, **change}
    with pytest.raises(RecipeError, match=words):
        select(**wanted)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"margins": np.zeros(59)}, "different numbers of pairs"),
        ({"prompts": np.zeros(3)}, "different numbers of pairs"),
        ({"margins": np.full(60, np.nan)}, "not a finite number"),
        ({"features": np.zeros((60, 2, 2))}, "dimensions"),
        ({"margins": None, "features": None, "strategy": "random"}, "no pairs"),
        ({"margins": np.zeros(0), "features": np.zeros((0, 5))}, "no pairs"),
        ({"asked": [60]}, "not in the pool"),
        ({"labelled": (np.zeros(2), np.ones((2, 4)))}, "labelled pairs have"),
    ],
)
def test_arrays_that_do_not_go_together_are_refused(change: dict[str, Any], words: str) -> None:
    pool = a_pool()
    wanted = {"margins": pool["margins"], "features": pool["features"], "count": 3, **change}
    with pytest.raises(DataError, match=words):
        select(**wanted)
