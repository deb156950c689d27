"""Does training reach what theory says it must? On worlds small enough to write down."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pytest

from prefopt.data.worlds import EnumerableWorld, total_variation

if TYPE_CHECKING:
    from prefopt.policies.load import Policy

BETA = 0.2


def _fit(world: EnumerableWorld, loss_of: Callable[..., object], pairs: int = 40_000) -> np.ndarray:
    """A table with one logit per sequence, fitted to exact Bradley–Terry probabilities.

    The loss is convex in the logits, so full-batch L-BFGS finds its minimum.
    """
    import torch

    from prefopt.objectives import Comparisons, Scores

    rng = np.random.default_rng(0)
    count = len(world.reward)
    # A ring connects all sequences; the rest are random pairs.
    first = np.concatenate([np.arange(count), rng.integers(count, size=pairs)])
    second = np.concatenate([(np.arange(count) + 1) % count, rng.integers(count, size=pairs)])
    first, second = first[first != second], second[first != second]
    comparisons = Comparisons(
        torch.from_numpy(first),
        torch.from_numpy(second),
        torch.from_numpy(world.probability(first, second)),
        torch.ones(len(first), dtype=torch.float64),
    )
    reference = torch.from_numpy(np.log(world.reference))
    lengths = torch.full((count,), world.sequences.shape[1])
    logits = reference.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [logits],
        max_iter=2000,
        tolerance_grad=1e-12,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        scores = Scores(logits.log_softmax(-1), reference, lengths)
        loss = loss_of(scores, comparisons).mean()  # type: ignore[attr-defined]
        loss.backward()
        return loss

    optimizer.step(step)
    return logits.detach().softmax(-1).numpy()


@pytest.fixture(scope="module")
def world() -> EnumerableWorld:
    return EnumerableWorld.random(seed=0)


def test_the_world_is_what_it_says(world: EnumerableWorld) -> None:
    assert world.sequences.shape == (3125, 5)
    assert len(np.unique(world.sequences, axis=0)) == 3125
    assert world.reference.sum() == pytest.approx(1)
    assert (world.reward.min(), world.reward.max()) == (0, 1)
    # The reference is a bigram model: the next symbol depends on the last one alone.
    joint = world.reference.reshape((5,) * 5).sum(axis=(3, 4))  # the first three symbols
    given_two = joint / joint.sum(axis=2, keepdims=True)
    assert np.ptp(given_two, axis=0).max() < 1e-12


@pytest.mark.parametrize("beta", [1.0, 0.2, 0.05])
def test_the_optimum_is_the_best_there_is(world: EnumerableWorld, beta: float) -> None:
    """E[r] − β·KL is highest at π*, where it equals β·log Z; best-of-n lies below the frontier."""
    best = world.optimum(beta)
    value = world.expected_reward(best) - beta * world.kl(best)
    normalizer = (world.reference * np.exp(world.reward / beta)).sum()
    assert value == pytest.approx(beta * np.log(normalizer))
    rng = np.random.default_rng(0)
    for _ in range(20):
        other = best * np.exp(0.1 * rng.normal(size=len(best)))
        other /= other.sum()
        assert world.expected_reward(other) - beta * world.kl(other) < value
    for n in (1, 2, 4, 16, 64):
        policy = world.best_of(n)
        assert policy.sum() == pytest.approx(1)
        assert world.expected_reward(policy) - beta * world.kl(policy) <= value
        assert world.kl(policy) <= np.log(n) - (n - 1) / n + 1e-12
    assert world.kl(world.best_of(1)) == pytest.approx(0)


def test_soft_label_dpo_recovers_the_optimum(world: EnumerableWorld) -> None:
    from prefopt.objectives import dpo

    fitted = _fit(world, lambda scores, edges: dpo(scores, edges, beta=BETA))
    best = world.optimum(BETA)
    assert total_variation(fitted, best) < 1e-3
    assert total_variation(world.reference, best) > 0.2  # it had somewhere to go
    assert world.expected_reward(fitted) == pytest.approx(world.expected_reward(best), abs=1e-3)
    assert world.kl(fitted) == pytest.approx(world.kl(best), abs=1e-3)


def test_without_the_reference_it_is_another_policy(world: EnumerableWorld) -> None:
    """The article's probabilistic variant drops π_ref: its optimum is exp(r/β)/Z instead."""
    import torch

    from prefopt.objectives import Scores, dpo

    def without(scores: Scores, edges: object) -> torch.Tensor:
        zero = torch.zeros_like(scores.policy)
        return dpo(Scores(scores.policy, zero, scores.lengths), edges, beta=BETA)  # type: ignore[arg-type]

    fitted = _fit(world, without)
    assert total_variation(fitted, world.optimum(BETA)) > 0.1
    uniform = np.exp(world.reward / BETA) / np.exp(world.reward / BETA).sum()
    assert total_variation(fitted, uniform) < 1e-3


def test_the_engine_recovers_it_too(make_policy: Callable[..., Policy]) -> None:
    """The same through trees, a transformer and Adam: 27 completions of one prompt, all pairs.

    The loss knows differences only, so the policy is compared among these completions.
    """
    import torch

    from prefopt.engine.logps import Scorer
    from prefopt.engine.tokens import TokenGroup
    from prefopt.objectives import Comparisons, Scores, dpo

    world = EnumerableWorld.random(seed=1, vocabulary=3, length=3)
    policy = make_policy("llama", initializer_range=0.05)
    completions = tuple((50 + row).astype(np.int32) for row in world.sequences)
    group = TokenGroup(np.array([7, 8, 9], dtype=np.int32), completions)
    first, second = np.triu_indices(len(completions), 1)
    comparisons = Comparisons.of(
        list(zip(first.tolist(), second.tolist(), strict=True)),
        world.probability(first, second).tolist(),
    )
    scorer = Scorer(policy.model)
    with torch.no_grad():
        reference = scorer([group])
    assert scorer.sharing == "trees"
    lengths = torch.full((len(completions),), 3)
    optimizer = torch.optim.Adam(policy.model.parameters(), lr=3e-3, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 600)
    for _ in range(600):
        optimizer.zero_grad()
        dpo(Scores(scorer([group]), reference, lengths), comparisons, beta=BETA).mean().backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        fitted = scorer([group]).double().softmax(-1).numpy()
    start = reference.double().softmax(-1).numpy()
    best = start * np.exp(world.reward / BETA)
    best /= best.sum()
    assert total_variation(fitted, best) < 1e-3
    assert total_variation(start, best) > 0.2
