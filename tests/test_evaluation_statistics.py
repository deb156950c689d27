"""The statistics of an evaluation: by hand, against brute force, and by simulation."""

from __future__ import annotations

import math
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prefopt.data.aggregation.reading import read_votes
from prefopt.data.aggregation.table import TIE
from prefopt.data.checking.estimates import share
from prefopt.errors import DataError
from prefopt.evaluation.length_control import LengthControlled, length_controlled
from prefopt.evaluation.paired import by_prompt, holm, paired, permutation_test, sign_test
from prefopt.evaluation.ranking import rank

# -- paired tests --------------------------------------------------------------------------


def test_permutations_by_brute_force() -> None:
    rng = np.random.default_rng(0)
    for size in (1, 4, 9):
        gaps = rng.normal(0.3, 1, size)
        every = [abs(np.dot(signs, gaps)) for signs in product((1, -1), repeat=size)]
        expected = np.mean([total >= abs(gaps.sum()) - 1e-12 for total in every])
        assert permutation_test(gaps) == pytest.approx(expected)
    assert permutation_test([0.0, 0.0]) == 1.0
    # prompts on which nothing differs say nothing
    assert permutation_test([0.5, 0.5, 0.5, 0.5]) == permutation_test([0.5] * 4 + [0.0] * 30)


def test_drawn_signs_agree_with_all_of_them() -> None:
    gaps = np.random.default_rng(1).normal(0.45, 1, 16)
    signs = np.array(list(product((1.0, -1.0), repeat=16)))
    exact = float((np.abs(signs @ gaps) >= abs(gaps.sum()) - 1e-9).mean())
    assert 0.001 < exact < 0.2
    assert permutation_test(gaps, seed=2) == pytest.approx(exact, abs=0.01)
    assert permutation_test(gaps, seed=2) == permutation_test(gaps, seed=2)
    assert permutation_test(np.full(60, 0.5)) == 1 / 10_001  # never 0


def test_signs_by_hand() -> None:
    assert sign_test(7, 1) == pytest.approx(2 * (1 + 8) / 2**8)
    assert sign_test(1, 7) == sign_test(7, 1)
    assert (sign_test(0, 0), sign_test(4, 4)) == (1.0, 1.0)


def test_pairs_by_hand() -> None:
    one = by_prompt([1.0, 0.0, 1.0, None, 1.0], ["a", "a", "b", "b", "c"])
    assert one == {"a": 0.5, "b": 1.0, "c": 1.0}
    found = paired(one, {"a": 0.5, "b": 0.0, "x": 1.0})
    assert (found.first, found.second, found.difference) == (0.75, 0.25, 0.5)
    assert (found.better, found.worse, found.same, found.prompts) == (1, 0, 1, 2)
    assert (found.p, found.sign_p) == (1.0, 1.0)
    turned = paired({"a": 0.5, "b": 0.0, "x": 1.0}, one)
    assert (turned.difference, turned.p) == (-0.5, found.p)
    with pytest.raises(DataError, match="no prompt in common"):
        paired({"a": 1.0}, {"b": 1.0})


def test_the_paired_test_is_wrong_as_often_as_it_says() -> None:
    """Two runs that are equally good, on prompts of which some are hard for both."""
    rng = np.random.default_rng(3)
    alarms, covered, rounds = 0, 0, 200
    for number in range(rounds):
        hard = rng.beta(0.5, 0.5, 40)
        sides = [dict(enumerate(rng.binomial(2, hard) / 2)) for _ in range(2)]
        found = paired(sides[0], sides[1], seed=number)
        alarms += found.p <= 0.05
        covered += found.interval[0] <= 0 <= found.interval[1]
    assert alarms / rounds <= 0.05 + 2.5 * math.sqrt(0.05 * 0.95 / rounds)
    assert alarms > 0
    assert covered / rounds >= 0.90


def test_pairing_sees_what_two_separate_intervals_do_not() -> None:
    rng = np.random.default_rng(4)
    hard = rng.beta(0.3, 0.3, 150)
    base = {i: float(p) for i, p in enumerate(hard)}
    better = {i: float(min(1.0, p + rng.uniform(0, 0.06))) for i, p in enumerate(hard)}
    assert paired(better, base).p < 0.001
    ends = [share(list(side.values()), np.arange(150)).ends for side in (base, better)]
    assert ends[0][1] > ends[1][0]


def test_holm_by_hand() -> None:
    found = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.5})
    assert found == pytest.approx({"a": 0.04, "b": 0.09, "c": 0.09, "d": 0.5})
    assert holm({}) == {}


# -- length --------------------------------------------------------------------------------


def judged_by_length(seed: int, theta: float, phi: float, count: int = 600) -> Any:
    """Verdicts of a judge whom length sways; the policy writes more."""
    rng = np.random.default_rng(seed)
    gaps = rng.normal(-150, 200, count)  # the baseline's length less the policy's
    wins = rng.random(count) < 1 / (1 + np.exp(-(theta + phi * np.tanh(gaps / gaps.std()))))
    return wins.astype(float), gaps, list(range(count))


def test_a_planted_effect_of_length_is_taken_out() -> None:
    values, gaps, prompts = judged_by_length(0, theta=0.0, phi=-1.5)
    found = length_controlled(values, gaps, prompts, samples=100)
    assert isinstance(found, LengthControlled)
    assert values.mean() > 0.6
    assert found.interval[0] < 0.5 < found.interval[1]
    assert found.rate == pytest.approx(0.5, abs=0.06)
    assert found.phi == pytest.approx(-1.5, abs=0.4)


def test_where_length_plays_no_part_the_rate_stays() -> None:
    values, gaps, prompts = judged_by_length(1, theta=0.8, phi=0.0)
    found = length_controlled(values, gaps, prompts, samples=5)
    assert isinstance(found, LengthControlled)
    assert found.rate == pytest.approx(values.mean(), abs=0.03)


def test_what_is_left_is_what_was_planted() -> None:
    """Both at once, from either side, with probabilities in place of verdicts."""
    values, gaps, prompts = judged_by_length(2, theta=0.7, phi=-1.2, count=2000)
    found = length_controlled(values, gaps, prompts, samples=5)
    turned = length_controlled(1 - values, -gaps, prompts, samples=5)
    assert isinstance(found, LengthControlled) and isinstance(turned, LengthControlled)
    assert found.rate == pytest.approx(1 / (1 + math.exp(-0.7)), abs=0.04)
    assert turned.rate == pytest.approx(1 - found.rate, abs=1e-3)
    soft = 1 / (1 + np.exp(-(0.7 - 1.2 * np.tanh(gaps / gaps.std()))))
    exact = length_controlled(soft, gaps, prompts, samples=5)
    assert isinstance(exact, LengthControlled)
    assert (exact.theta, exact.phi) == pytest.approx((0.7, -1.2), abs=0.02)


def test_it_is_the_maximum_of_the_likelihood_where_the_penalty_is_weak() -> None:
    from scipy.optimize import minimize

    values, gaps, prompts = judged_by_length(5, theta=0.4, phi=-0.9)
    found = length_controlled(values, gaps, prompts, samples=5)
    assert isinstance(found, LengthControlled)
    design = np.column_stack([np.ones(len(gaps)), np.tanh(gaps / gaps.std())])

    def loss(w: Any) -> float:
        margin = design @ w
        fit = np.logaddexp(0, margin) - values * margin
        return float(found.strength * fit.sum() + np.abs(w).sum())

    best = minimize(loss, [0.1, -0.1], method="Nelder-Mead", options={"xatol": 1e-6, "fatol": 1e-9})
    assert (found.theta, found.phi) == pytest.approx(tuple(best.x), abs=2e-3)


@pytest.mark.parametrize(
    ("values", "gaps", "said"),
    [([1.0] * 19, range(19), "too few"), ([0.0, 1.0] * 15, [5] * 30, "the same"),
     ([1.0] * 30, range(30), "all verdicts are the same")],
)  # fmt: skip
def test_where_length_cannot_be_told_apart(values: Any, gaps: Any, said: str) -> None:
    found = length_controlled(values, list(gaps), list(range(len(values))))
    assert isinstance(found, str) and said in found


# -- ranking -------------------------------------------------------------------------------


def test_the_order_of_mt_bench(shared_data: Path) -> None:
    votes = read_votes(shared_data / "mtbench" / "human.jsonl.gz").votes
    values = np.where(votes.choice == TIE, 0.5, votes.choice == 0)
    first, second = (votes.source[side] for side in (votes.first, votes.second))
    questions = [votes.questions[i].split()[0] for i in votes.question[votes.first]]
    found = rank(
        (votes.sources[a], votes.sources[b], float(v), q)
        for a, b, v, q in zip(first, second, values, questions, strict=True)
    )
    scores = {row["policy"].removesuffix("-v1.2"): f"{row['score']:.4f}" for row in found.rows}
    assert list(scores.items()) == [
        ("gpt-4", "1.0211"), ("claude-v1", "0.6429"), ("gpt-3.5-turbo", "0.5996"),
        ("vicuna-13b", "-0.0569"), ("alpaca-13b", "-0.7616"), ("llama-13b", "-1.4451"),
    ]  # fmt: skip
    assert (found.ridge, found.prompts) == (0.0, 80)
    for row in found.rows:
        assert row["interval"][0] < row["score"] < row["interval"][1]
    ranks = {row["policy"]: row["rank_interval"] for row in found.rows}
    assert ranks["gpt-4"] == [1, 1]
    assert ranks["claude-v1"][1] >= 3  # claude and gpt-3.5 cannot be told apart


def contest(seed: int, prompts: int) -> list[tuple[str, str, float, int]]:
    """Three policies with logits 0.8, 0 and −0.8, two matches a prompt and pair."""
    rng = np.random.default_rng(seed)
    strength = {"a": 0.8, "b": 0.0, "c": -0.8}
    return [
        (x, y, float(rng.random() < 1 / (1 + math.exp(strength[y] - strength[x]))), prompt)
        for prompt in range(prompts)
        for x, y in (("a", "b"), ("b", "c"), ("c", "a"))
        for _ in range(2)
    ]


def test_turned_matches_and_their_order_change_nothing() -> None:
    results = contest(0, 40)
    turned = [(y, x, 1 - value, prompt) for x, y, value, prompt in results[::-1]]
    one, other = (rank(rows, samples=50).rows for rows in (results, turned))
    for left, right in zip(one, other, strict=True):
        assert left["policy"] == right["policy"]
        assert left["score"] == pytest.approx(right["score"], abs=1e-8)


def test_intervals_of_scores_cover_them() -> None:
    covered = 0
    for seed in range(25):
        rows = {row["policy"]: row for row in rank(contest(seed, 40), samples=80, seed=seed).rows}
        for name, truth in (("a", 0.8), ("c", -0.8)):
            low, high = rows[name]["interval"]
            covered += low <= truth <= high
    assert 0.84 <= covered / 50 <= 1.0


def test_prompts_that_are_copied_are_no_new_evidence() -> None:
    results = contest(1, 30)
    copied = [row for row in results for _ in range(3)]
    widths = [
        np.subtract(*rank(rows, samples=100).rows[0]["interval"][::-1])
        for rows in (results, copied, [(x, y, v, (p, i)) for i, (x, y, v, p) in enumerate(copied)])
    ]
    assert widths[1] == pytest.approx(widths[0], rel=0.05)
    assert widths[2] < 0.75 * widths[1]


def test_who_wins_everything_has_a_finite_score_and_it_is_said() -> None:
    found = rank([("a", "b", 1.0, p) for p in range(10)] + [("b", "c", 0.5, p) for p in range(10)])
    assert found.ridge > 0
    assert found.rows[0]["policy"] == "a"
    assert all(math.isfinite(end) for row in found.rows for end in row["interval"])
    with pytest.raises(DataError, match="no verdict"):
        rank([])


# -- win rates -----------------------------------------------------------------------------


def test_intervals_of_win_rates_cover_them() -> None:
    """Four answers a prompt that resemble each other; naive intervals would be too narrow."""
    rng = np.random.default_rng(6)
    covered = naive = 0
    for _ in range(300):
        hard = rng.beta(1.2, 0.8, 50)
        wins = (rng.random((50, 4)) < hard[:, None]).astype(float).ravel()
        low, high = share(wins, np.repeat(np.arange(50), 4)).ends
        covered += low <= 0.6 <= high
        low, high = share(wins, np.arange(200)).ends
        naive += low <= 0.6 <= high
    assert 0.92 <= covered / 300 <= 0.98
    assert naive / 300 < 0.89
