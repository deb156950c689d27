"""PPO with a penalty for every token's divergence: the baseline that DPO was compared with.

Schulman et al. 2017 (arXiv:1707.06347) as it is used on language models (Ziegler et al. 2019,
arXiv:1909.08593): the reward comes with the last token, −κ·(log π − log π_ref) with each, so the
maximum is that of E[r] − κ·KL. With what Xu et al. 2024 (arXiv:2404.10719) found to matter:
advantages are whitened and batches are large. The value function is a network of its own, so its
loss needs no weight, and it is not clipped; the two share no more than the limit of the gradient.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prefopt.evaluation.frontier.policy import SequenceValue, place
from prefopt.evaluation.frontier.preferences import Point
from prefopt.evaluation.frontier.stage import LENGTH, SYMBOLS, Stage

LEARNING_RATE = 5e-4
EPOCHS, PARTS = 4, 2  # passes over an iteration's samples, and optimizer steps in each
CLIP = 0.2  # of the ratio of probabilities
LAMBDA = 0.95  # of generalized advantage estimation; γ = 1
WARM_UP = 5  # iterations in which only the value function learns


def train(stage: Stage, reward: NDArray[np.float64], kappa: float) -> list[Point]:
    """Train a copy of the reference on its own samples, and place it every few iterations.

    Args:
        stage: where it starts.
        reward: (N,) of every sequence: the true one over T, or a model's.
        kappa: nats of reward that a nat of divergence costs.
    """
    policy = stage.reference.copy().requires_grad_(True)
    value = SequenceValue(SYMBOLS, LENGTH, stage.seed)
    weights = [*policy.parameters(), *value.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=LEARNING_RATE, weight_decay=0.0)
    updates = EPOCHS * PARTS * (WARM_UP + stage.scale.iterations)
    slower = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, updates)
    worth = torch.from_numpy(reward - reward @ stage.world.reference).float()
    rng = np.random.default_rng([stage.seed, 2])
    every = max(1, stage.scale.iterations * stage.scale.every // stage.scale.steps)
    points = [(0, *place(stage.world, policy))]
    for iteration in range(1 - WARM_UP, stage.scale.iterations + 1):
        drawn = rng.choice(len(reward), p=policy.distribution(), size=stage.scale.samples)
        sequences = torch.from_numpy(stage.world.sequences[drawn])
        with torch.no_grad():
            before = policy.token_logps(sequences)
            divergence = before - stage.reference.token_logps(sequences)
            rewards = -kappa * divergence
            rewards[:, -1] += worth[drawn]
            advantages, returns = estimated(rewards, value(sequences)[:, :-1])
            advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        for _ in range(EPOCHS):
            for part in torch.from_numpy(rng.permutation(len(drawn))).chunk(PARTS):
                told = value(sequences[part])[:, :-1]
                loss = (told - returns[part]).square().mean() / 2
                if iteration > 0:
                    loss = loss + clipped(
                        policy.token_logps(sequences[part]), before[part], advantages[part]
                    )
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(weights, 1.0)
                optimizer.step()
                slower.step()
        if iteration > 0 and iteration % every == 0:
            points.append((iteration, *place(stage.world, policy)))
    return points


def estimated(rewards: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Advantages and returns (B, L) of (B, L) rewards and values, from the last token on.

    Generalized advantage estimation (Schulman et al. 2016, arXiv:1506.02438) with γ = 1:
    A_t = δ_t + λ·A_{t+1}, δ_t = r_t + V_{t+1} − V_t, and V is 0 after the last token.

    >>> estimated(torch.tensor([[0.0, 1.0]]), torch.tensor([[0.5, 0.5]]))[0]
    tensor([[0.4750, 0.5000]])
    """
    following = torch.nn.functional.pad(values[:, 1:], (0, 1))
    surprises = rewards + following - values
    advantages = torch.zeros_like(values)
    carried = torch.zeros(len(values))
    for step in reversed(range(values.shape[1])):
        carried = surprises[:, step] + LAMBDA * carried
        advantages[:, step] = carried
    return advantages, advantages + values


def clipped(logps: Tensor, before: Tensor, advantages: Tensor) -> Tensor:
    """−mean of min(ρA, clip(ρ, 1 ± 0.2)A), ρ = π/π_before of each token (eq. 7).

    >>> clipped(torch.tensor([[0.5]]), torch.tensor([[0.0]]), torch.tensor([[1.0]]))
    tensor(-1.2000)
    """
    ratio = (logps - before).exp()
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - CLIP, 1 + CLIP) * advantages).mean()
