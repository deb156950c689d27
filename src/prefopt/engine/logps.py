"""Log-probabilities of completions: the number that everything else is made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from prefopt.engine.tokens import TokenGroup

Sharing = Literal["auto", "off"]


class Scorer:
    """Scores the completions of token groups under one model. (first version: separate rows)"""

    def __init__(self, model: Any, *, sharing: Sharing = "auto") -> None:
        self.model = model
        self.sharing = sharing

    def __call__(self, groups: Sequence[TokenGroup]) -> Tensor:
        """(B,) float32 nats, groups in order and the completions of each in order."""
        device = next(self.model.parameters()).device
        rows = [(g.prompt, ids) for g in groups for ids in g.completions]
        width = max(len(p) + len(c) for p, c in rows)
        ids = np.zeros((len(rows), width), dtype=np.int64)
        mask = np.zeros_like(ids)
        scored = np.zeros((len(rows), width), dtype=bool)
        for i, (p, c) in enumerate(rows):
            ids[i, : len(p) + len(c)] = np.concatenate([p, c])
            mask[i, : len(p) + len(c)] = 1
            scored[i, len(p) : len(p) + len(c)] = True
        x = torch.from_numpy(ids).to(device)
        logits = self.model(input_ids=x, attention_mask=torch.from_numpy(mask).to(device)).logits
        logps = -F.cross_entropy(logits[:, :-1].float().flatten(0, 1), x[:, 1:].flatten(), reduction="none")
        keep = torch.from_numpy(scored[:, 1:]).to(device)
        return (logps.view(len(rows), -1) * keep).sum(-1)
