"""Statistics of an evaluation against independent computations, and by simulation.

Every simulation has prompts of different difficulty with several answers each: intervals and
tests that took pairs for independent would fail here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from prefopt.data.checking.estimates import mean, share
from prefopt.errors import DataError
from prefopt.evaluation.comparing import compared
from prefopt.evaluation.evaluate import evaluate
from prefopt.evaluation.intervals import clustered_bootstrap
from prefopt.evaluation.length_control import LengthControlled, length_controlled
from prefopt.evaluation.matches import Match
from prefopt.evaluation.ranking import rank
from prefopt.judges.judge import Verdict

Floats = NDArray[np.float64]


def answered(rng: np.random.Generator, prompts: int, rate: float) -> tuple[Floats, Any]:
    """Wins, ties and losses on prompts of one to six answers, that resemble each other."""
    hard = rng.beta(3 * rate, 3 * (1 - rate), prompts)
    of = np.repeat(np.arange(prompts), rng.integers(1, 7, prompts))
    chance = hard[of]
    drawn = rng.random(len(of))
    tie = rng.random(len(of)) < 0.2
    return np.where(tie, np.where(drawn < 2 * chance - 1, 1.0, np.where(
        drawn < 2 * chance, 0.5, 0.0)), drawn < chance), of  # fmt: skip


def covered(ends: Callable[[Floats, Any], tuple[float, float]], prompts: int, trials: int) -> float:
    """How often an interval holds the truth; half of the time this is 0.5, else 0.7."""
    rng, hits = np.random.default_rng(prompts), 0
    for trial in range(trials):
        rate = (0.5, 0.7)[trial % 2]
        low, high = ends(*answered(rng, prompts, rate))
        hits += low <= rate <= high
    return hits / trials


@pytest.mark.parametrize("prompts", [20, 60, 200])
@pytest.mark.parametrize(
    "ends",
    [
        lambda values, of: share(values, of).ends,
        lambda values, of: mean(values, of).ends,
        lambda values, of: clustered_bootstrap(values, of, resamples=400).ends,
    ],
    ids=["share", "mean", "bootstrap"],
)
def test_intervals_hold_the_truth_as_often_as_they_say(ends: Any, prompts: int) -> None:
    assert 0.915 <= covered(ends, prompts, 400) <= 0.98


@pytest.mark.parametrize("prompts", [20, 60])
def test_the_permutation_test_is_wrong_as_often_as_it_says(prompts: int) -> None:
    """Equally good policies; beside it the test that takes pairs for independent."""
    rng, alarms, naive, trials = np.random.default_rng(prompts), 0, 0, 150
    for _ in range(trials):
        values, of = answered(rng, prompts, 0.5)
        alarms += compared(matches(values, of), control=False)["p"] <= 0.05
        spread = values.std(ddof=1) / len(values) ** 0.5
        naive += abs(values.mean() - 0.5) > 1.96 * spread
    assert 0 < alarms <= 0.05 * trials + 2.5 * (0.05 * 0.95 * trials) ** 0.5
    assert naive > 2.5 * 0.05 * trials


def matches(values: Floats, of: Any) -> list[Match]:
    return [
        Match(f"p{prompt}", "ours", "base", (f"a{place}", "bb"), Verdict(float(value)))
        for place, (value, prompt) in enumerate(zip(values, of, strict=True))
    ]


def test_the_test_is_of_the_rate_however_many_answers_a_prompt_has() -> None:
    """Ten wins on one prompt and six losses on others: the rate is above a half."""
    values, of = np.array([1.0] * 10 + [0.0] * 6), np.array([0] * 10 + [1, 2, 3, 4, 5, 6])
    found = compared(matches(values, of), control=False)
    assert found["rate"]["value"] == 10 / 16
    sums = np.array([5.0] + [-0.5] * 6)
    every = [abs(np.dot(signs, sums)) for signs in product((1, -1), repeat=7)]
    assert found["p"] == np.mean([total >= abs(sums.sum()) for total in every]) > 0.9


@pytest.mark.parametrize("prompts", [20, 100])
def test_many_ties_make_no_interval_too_wide(prompts: int) -> None:
    """Seven of ten verdicts flip: the values lie closer together than wins and losses would."""
    rng, hits, trials = np.random.default_rng(prompts), 0, 400
    for _ in range(trials):
        values, of = answered(rng, prompts, 0.65)
        values = np.where(rng.random(len(values)) < 0.7, 0.5, values)
        low, high = share(values, of).ends
        hits += low <= 0.5 + 0.3 * 0.15 <= high
    assert 0.915 <= hits / trials <= 0.985


def test_prompts_that_balance_each_other_are_no_more_than_independent_values() -> None:
    """Nearly every prompt won once and lost once: their sums hardly differ."""
    values = np.array([1.0, 0.0] * 49 + [1.0, 1.0])
    found = share(values, np.repeat(np.arange(50), 2))
    free = share(values, np.arange(100))
    assert found.high - found.low == pytest.approx(free.high - free.low, rel=0.02)


# -- length --------------------------------------------------------------------------------


@pytest.mark.parametrize("lost", [1, 2])
def test_a_policy_that_wins_nearly_everything_keeps_its_rate(lost: int) -> None:
    """Folds without a loss have no maximum but for the penalty, which is weak."""
    values, gaps = np.ones(30), np.arange(30) % 7 - 3.0
    values[[0, 4][:lost]] = 0.0
    found = length_controlled(values, gaps, range(30), samples=5)
    turned = length_controlled(1 - values, -gaps, range(30), samples=5)
    assert isinstance(found, LengthControlled) and isinstance(turned, LengthControlled)
    assert found.rate == pytest.approx(1 - lost / 30, abs=0.1)  # the penalty pulls to a half
    assert turned.rate == pytest.approx(1 - found.rate, abs=1e-4)
    assert all(math.isfinite(end) for end in found.interval)


def test_the_penalty_is_the_one_of_least_loss_on_other_prompts() -> None:
    """Fitted by hand with SciPy for every strength and fold."""
    from scipy.optimize import minimize

    rng = np.random.default_rng(8)
    gaps = rng.normal(0, 100, 90)
    values = (rng.random(90) < 1 / (1 + np.exp(-0.4 + np.tanh(gaps / 100)))).astype(float)
    prompts = np.repeat(np.arange(45), 2)
    found = length_controlled(values, gaps, prompts, samples=2, seed=5)
    assert isinstance(found, LengthControlled)
    design = np.column_stack([np.ones(90), np.tanh(gaps / gaps.std())])
    # the folds as they are drawn, of prompts in the order of their names
    order = np.unique([repr(one) for one in prompts], return_inverse=True)[1]
    folds = np.random.default_rng(5).permutation(np.arange(45) % 5)[order]

    def fitted(kept: Any, strength: float) -> Floats:
        def loss(w: Floats) -> float:
            margin = design[kept] @ w
            return float(strength * (np.logaddexp(0, margin) - values[kept] * margin).sum()
                         + np.abs(w).sum())  # fmt: skip

        options = {"xatol": 1e-7, "fatol": 1e-10, "maxiter": 4000}
        return np.asarray(minimize(loss, [0.1, -0.1], method="Nelder-Mead", options=options).x)

    losses = {}
    for strength in np.logspace(-4, 4, 10):
        total = 0.0
        for fold in range(5):
            margin = design[folds == fold] @ fitted(folds != fold, strength)
            total += (np.logaddexp(0, margin) - values[folds == fold] * margin).sum()
        losses[strength] = total
    best = min(losses, key=lambda strength: losses[strength])
    assert losses[best] < min(losses[1e-4], losses[min(losses, key=lambda s: abs(s - 1e4))])
    assert found.strength == pytest.approx(best)
    assert (found.theta, found.phi) == pytest.approx(tuple(fitted(slice(None), best)), abs=2e-3)


# -- ranking -------------------------------------------------------------------------------


def fitted_scores(results: Any, ridge: float) -> dict[str, float]:
    """Bradley–Terry with ties half a win, by SciPy."""
    from scipy.optimize import minimize

    names = sorted({name for row in results for name in row[:2]})

    def loss(scores: Floats) -> float:
        own = dict(zip(names, scores, strict=True))
        total = ridge / 2 * float(scores @ scores) + 1e-9 * float(scores.sum()) ** 2
        for one, other, value, _ in results:
            gap = own[one] - own[other]
            total += value * np.logaddexp(0, -gap) + (1 - value) * np.logaddexp(0, gap)
        return total

    found = minimize(loss, np.zeros(len(names)), method="BFGS", options={"gtol": 1e-8}).x
    return dict(zip(names, found - found.mean(), strict=True))


def tournament(seed: int) -> list[tuple[str, str, float, int]]:
    """Four policies, wins, ties and losses, not everybody on every prompt."""
    rng = np.random.default_rng(seed)
    names = "abcd"
    return [
        (names[one], names[other], float(rng.choice([0.0, 0.5, 1.0], p=[0.25, 0.3, 0.45])), prompt)
        for prompt in range(12)
        for one, other in (rng.permutation(4)[:2] for _ in range(3))
    ]


def test_scores_and_their_intervals_are_those_of_the_likelihood() -> None:
    results = tournament(1)
    found = rank(results, samples=25, seed=3)
    truth = fitted_scores(results, 0.0)
    assert found.ridge == 0.0
    assert {row["policy"]: row["score"] for row in found.rows} == pytest.approx(truth, abs=1e-4)
    # the same draws of prompts, each fitted by SciPy
    rng, drawn = np.random.default_rng(3), []
    order = sorted({row[3] for row in results}, key=repr)
    for _ in range(25):
        chosen = [order[place] for place in rng.integers(12, size=12)]
        drawn.append(fitted_scores(
            [row for prompt in chosen for row in results if row[3] == prompt], 0.0))  # fmt: skip
    for row in found.rows:
        ends = np.quantile([one[row["policy"]] for one in drawn], (0.025, 0.975))
        assert row["interval"] == pytest.approx(list(ends), abs=2e-3)


def test_with_a_ridge_scores_are_those_of_the_penalised_likelihood() -> None:
    results = [("a", "b", 1.0, p) for p in range(8)] + [("b", "c", (p % 3) / 2, p)
                                                        for p in range(9)]  # fmt: skip
    found = rank(results, samples=5)
    truth = fitted_scores(results, found.ridge)
    assert found.ridge > 0
    assert {row["policy"]: row["score"] for row in found.rows} == pytest.approx(truth, abs=1e-4)


def test_policies_that_never_met_have_no_order() -> None:
    apart = [("a", "b", 1.0 - p % 2, p) for p in range(8)]
    apart += [("c", "d", p % 2, p) for p in range(8)]
    with pytest.raises(DataError, match="common order: a, b; c, d"):
        rank(apart)
    given = [
        Match(f"p{p}", one, other, ("x", "yy"), Verdict(value)) for one, other, value, p in apart
    ]
    found = evaluate(given)
    assert found["ranking"] is None
    assert "never met" in found["unranked"]
    assert evaluate(given[:8])["unranked"] is None  # two need no ranking


def test_a_draw_in_which_somebody_met_nobody_is_none() -> None:
    """Of c only one prompt tells: a third of all draws has it not, and would place c at 0."""
    results = [("a", "b", float(p % 3 > 0), p) for p in range(30)]
    results += [("b", "c", value, 0) for value in (1.0, 1.0, 0.0)]
    found = rank(results, samples=60)
    assert found.ridge > 0
    assert next(row for row in found.rows if row["policy"] == "c")["interval"][1] < 1
