"""A reward model fitted to the comparisons, as PPO and best-of-n have one."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from prefopt.evaluation.frontier.policy import SequenceValue, every_sequence
from prefopt.evaluation.frontier.stage import LENGTH, PAIRS, SYMBOLS, Scale, Stage, prepare

EPOCHS = 3
LEARNING_RATE = 1e-3


@cache
def learned_reward(scale: Scale, seed: int) -> tuple[NDArray[np.float64], float]:
    """The reward of all N sequences by a model of Bradley and Terry, and its accuracy.

    Three epochs over the comparisons; of these the one that told most of the held-out ones
    right, which is the accuracy returned. The unit is that of the comparisons' log-odds, r/T.
    """
    stage = prepare(scale, seed)
    model = SequenceValue(SYMBOLS, LENGTH, seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
    trained = torch.from_numpy(stage.labelled.nonzero()[0])
    held_out = torch.from_numpy((~stage.labelled).nonzero()[0])
    draw = torch.Generator().manual_seed(seed)
    best, weights = -1.0, model.state_dict()
    for _ in range(EPOCHS):
        order = trained[torch.randperm(len(trained), generator=draw)]
        for rows in order.split(scale.batch):
            loss = -F.logsigmoid(_gaps(stage, model, rows)).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            accuracy = float((_gaps(stage, model, held_out) > 0).double().mean())
        if accuracy > best:
            best, weights = accuracy, {k: v.clone() for k, v in model.state_dict().items()}
    model.load_state_dict(weights)
    with torch.no_grad():
        rewards = model(every_sequence(SYMBOLS, LENGTH))[:, -1].double().numpy()
    return rewards, best


def _gaps(stage: Stage, model: SequenceValue, rows: Tensor) -> Tensor:
    """(G, 6) r(preferred) − r(dispreferred) of the comparisons of some groups."""
    groups = stage.groups[rows]
    rewards = model(groups.flatten(0, 1))[:, -1].view(groups.shape[:2])
    first, second = torch.tensor(PAIRS).T
    won = torch.from_numpy(stage.first_won[rows.numpy()])
    gaps: Tensor = (rewards[:, first] - rewards[:, second]) * (won.to(rewards.dtype) * 2 - 1)
    return gaps
