"""Rewards of completions: what a reward model says where each of them ends.

The same trees as for log-probabilities: a prompt is computed once for all of its completions.
The head for rewards is one number of d, and is asked at the last token of each completion only,
which is where `AutoModelForSequenceClassification` reads it too.

Shapes: B completions, U distinct ones, d channels of the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from prefopt.engine.forest import build_forest
from prefopt.engine.kernel_choice import KernelChoice
from prefopt.engine.logps import Scorer
from prefopt.engine.predictors import padded, through_trees
from prefopt.engine.tokens import TokenGroup
from prefopt.policies.load import base_model


class RewardScorer(Scorer):
    """Rewards the completions of token groups under one reward model.

    As `Scorer`, with (B,) float32 rewards in place of nats: the first call computes them both
    ways, and gives trees up where they differ by more than a thousandth of a reward (of its size,
    where that is above 1). Per-token values are none of a reward model's.

    Args:
        model: a sequence classifier of `transformers` with one output and a head called `score`,
            or a PEFT model around one.
        sharing, precision: as for `Scorer`.
    """

    unit = "rewards"

    def _trees(self, groups: Sequence[TokenGroup], kernels: KernelChoice | None = None) -> Tensor:
        ends = through_trees(self.model, build_forest(groups, ends=True), kernels)
        return ends.each_token(self._rewards(ends.hidden))

    def _rewards(self, hidden: Tensor) -> Tensor:
        """(U,) of (U, d) outputs of the decoder, in float32 whatever the rest is computed in."""
        head = base_model(self.model).score
        with torch.autocast(hidden.device.type, enabled=False):
            rewards: Tensor = head(hidden.float())[:, 0].float()
        return rewards

    def _rows(self, groups: Sequence[TokenGroup]) -> Tensor:
        base = base_model(self.model)
        device = next(base.parameters()).device
        tokens, real, _ = padded(groups)
        last = {int(ids[-1]) for group in groups for ids in group.completions}
        config: Any = base.config.get_text_config()
        before = config.pad_token_id
        # The library finds the end of a text by its first pad: no text may end with one.
        pad = before if before is not None and before not in last else _unused(last)
        config.pad_token_id = pad
        try:
            ids = torch.from_numpy(tokens).to(device)
            mask = torch.from_numpy(real).to(device)
            logits: Tensor = base(
                input_ids=ids.masked_fill(mask == 0, pad), attention_mask=mask, use_cache=False
            ).logits
        finally:
            config.pad_token_id = before
        return logits[:, 0].float()

    def _units(self, groups: Sequence[TokenGroup], rows: Tensor) -> Tensor:
        return rows.abs().clamp(min=1.0)


def _unused(ids: set[int]) -> int:
    return next(token for token in range(len(ids) + 1) if token not in ids)
