"""What every method starts from: the world, the reference fitted to it, and the preferences.

As in section 6.1 of the DPO paper (Rafailov et al. 2023, arXiv:2305.18290): a supervised model,
four completions of it a time, every two of them compared by the known reward. Comparisons are
drawn from σ((r₁ − r₂)/T), so that an objective with coefficient β has the optimum
π_ref·exp(r/(βT)), as PPO with the reward r/T and the coefficient β.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prefopt.data.worlds import EnumerableWorld
from prefopt.evaluation.frontier.policy import SequencePolicy

SYMBOLS, LENGTH = 5, 5
COMPLETIONS = 4
PAIRS = tuple(combinations(range(COMPLETIONS), 2))


@dataclass(frozen=True)
class Scale:
    """How large the experiment is.

    Attributes:
        demonstrations: sequences that the reference is fitted to.
        groups: fours of completions that are compared.
        steps: optimizer steps of a method on comparisons.
        batch: groups in one step.
        every: steps between two points of a curve.
        iterations: of PPO, each with `samples` fresh sequences.
        samples: sequences of an iteration.
        temperature: T of the comparisons.
    """

    demonstrations: int = 40_000
    groups: int = 4000
    steps: int = 400
    batch: int = 64
    every: int = 10
    iterations: int = 60
    samples: int = 512
    temperature: float = 0.1


@dataclass(frozen=True)
class Stage:
    """Where all methods start.

    Attributes:
        world: its `reference` is the fitted model's own distribution, so KL and optimum are
            exact for the policies that start there.
        scale: of the experiment.
        seed: of everything.
        reference: the fitted model.
        groups: (G, 4, L) symbols of the completions.
        numbers: (G, 4) the completions as numbers of the world's sequences.
        first_won: (G, 6) which of two completions was preferred, in the order of `PAIRS`.
        rankings: (G, 4) places of the completions from best to worst, drawn by themselves
            (Plackett–Luce at the same temperature).
    """

    world: EnumerableWorld
    scale: Scale
    seed: int
    reference: SequencePolicy
    groups: Tensor
    numbers: NDArray[np.int64]
    first_won: NDArray[np.bool_]
    rankings: NDArray[np.int64]

    @property
    def labelled(self) -> NDArray[np.bool_]:
        """(G,) groups to train on; the others choose the reward model's epoch."""
        return np.arange(len(self.numbers)) >= len(self.numbers) // 10


@cache  # a few megabytes a seed, and seconds to make again
def prepare(scale: Scale, seed: int) -> Stage:
    """Fit the reference and draw the preferences; the same for the same arguments."""
    bigrams = EnumerableWorld.random(seed, vocabulary=SYMBOLS, length=LENGTH)
    rng = np.random.default_rng([seed, 1])
    reference = _fitted(bigrams, scale, rng, seed)
    world = replace(bigrams, reference=reference.distribution())
    shape = (scale.groups, COMPLETIONS)
    numbers = rng.choice(len(world.reward), p=world.reference, size=shape)
    worth = world.reward[numbers] / scale.temperature
    first, second = np.array(PAIRS).T
    odds = worth[:, second] - worth[:, first]
    return Stage(
        world=world,
        scale=scale,
        seed=seed,
        reference=reference,
        groups=torch.from_numpy(world.sequences[numbers]),
        numbers=numbers,
        first_won=rng.random(odds.shape) < 1 / (1 + np.exp(odds)),
        rankings=np.argsort(-(worth + rng.gumbel(size=worth.shape)), axis=1),
    )


def _fitted(
    world: EnumerableWorld, scale: Scale, rng: np.random.Generator, seed: int
) -> SequencePolicy:
    """A policy after one pass over samples of the world's own distribution."""
    policy = SequencePolicy(SYMBOLS, LENGTH, seed)
    drawn = rng.choice(len(world.reward), p=world.reference, size=scale.demonstrations)
    sequences = torch.from_numpy(world.sequences[drawn])
    optimizer = torch.optim.AdamW(policy.parameters(), lr=3e-3, weight_decay=0.0)
    batches = sequences.split(256)
    slower = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, len(batches))
    for batch in batches:
        loss = -policy.token_logps(batch).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        slower.step()
    return policy.eval().requires_grad_(False)
