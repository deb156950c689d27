"""From groups to the hidden states that predict their tokens, as trees or as separate rows.

Shapes: N rows of a forest, B completions, U distinct predictions, S scored tokens of all
completions, d channels of the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prefopt.engine import attention
from prefopt.engine.forest import Forest, Rows
from prefopt.engine.kernel_choice import KernelChoice
from prefopt.engine.soft_prompts import behind, soft_prompt
from prefopt.engine.tokens import TokenGroup
from prefopt.policies.load import base_model


@dataclass(frozen=True)
class Predictors:
    """What predicts the scored tokens; a prediction that two completions share is there once.

    Attributes:
        hidden: (U, d) outputs of the decoder.
        targets: (U,) the token that each predicts.
        scored: (S,) which of them each scored token is: completions in order, tokens in order.
    """

    hidden: Tensor
    targets: Tensor
    scored: Rows

    def each_token(self, values: Tensor) -> Tensor:
        """(S,) from (U,): the value of each scored token."""
        return values[torch.from_numpy(self.scored).to(values.device)]

    def in_order_of(self, other: Predictors) -> Tensor:
        """(U, d) these hidden states, one for each distinct prediction of another model's."""
        first = np.unique(other.scored, return_index=True)[1]  # a token that it predicts
        return self.hidden[torch.from_numpy(self.scored[first]).to(self.hidden.device)]


def through_trees(model: Any, forest: Forest, kernels: KernelChoice | None = None) -> Predictors:
    """One pass of the decoder over a forest, behind the model's virtual tokens if it has some."""
    base, prompt = base_model(model), soft_prompt(model)
    device = next(base.parameters()).device
    tokens = torch.from_numpy(forest.tokens)[None].to(device)
    # Ones, not None: without a mask, positions that restart are taken for packed sequences
    # and a branch would be cut off from its prompt.
    inputs = behind(prompt, tokens, torch.ones_like(tokens))
    forest = forest if prompt is None else prompt.rooted(forest)
    rows_out = len(forest) - (prompt.length - prompt.rows if prompt is not None else 0)
    positions = torch.from_numpy(forest.positions[len(forest) - rows_out :])
    with attention.over(forest, base, kernels):
        hidden = base.get_decoder()(
            **inputs, position_ids=positions[None].to(device), use_cache=False
        ).last_hidden_state[0]
    targets = torch.from_numpy(forest.targets).to(hidden.device)
    if len(hidden) != len(targets):  # not trimmed: a forest has more rows than predictions
        hidden = hidden[torch.from_numpy(forest.predictors).to(hidden.device)]
    return Predictors(hidden, targets, forest.scored)


def through_rows(model: Any, groups: Sequence[TokenGroup]) -> Predictors:
    """One pass of the decoder over separate rows, each with its own copy of the prompt."""
    base, prompt = base_model(model), soft_prompt(model)
    device = next(base.parameters()).device
    tokens, real, scored = padded(groups)
    ids, mask = torch.from_numpy(tokens).to(device), torch.from_numpy(real).to(device)
    hidden = base.get_decoder()(**behind(prompt, ids, mask), use_cache=False).last_hidden_state
    hidden = hidden[:, hidden.shape[1] - tokens.shape[1] :]  # virtual tokens predict nothing
    row, place = scored.nonzero()
    return Predictors(
        hidden[torch.from_numpy(row).to(device), torch.from_numpy(place - 1).to(device)],
        torch.from_numpy(tokens[row, place]).to(device),
        np.arange(len(row)),
    )


def padded(groups: Sequence[TokenGroup]) -> tuple[Rows, Rows, NDArray[np.bool_]]:
    """(B, width) tokens, which are real, and which are scored; padded on the right."""
    pairs = [(group.prompt, ids) for group in groups for ids in group.completions]
    width = max(len(prompt) + len(ids) for prompt, ids in pairs)
    tokens = np.zeros((len(pairs), width), dtype=np.int64)
    real = np.zeros((len(pairs), width), dtype=np.int64)
    scored = np.zeros((len(pairs), width), dtype=bool)
    for row, (prompt, ids) in enumerate(pairs):
        end = len(prompt) + len(ids)
        tokens[row, :end] = np.concatenate([prompt, ids])
        real[row, :end] = 1
        scored[row, len(prompt) : end] = True
    return tokens, real, scored
