"""Numbers of completions in their order, however they are packed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from prefopt.engine.forest import pack
from prefopt.engine.tokens import TokenGroup


def in_order(
    score: Callable[[Sequence[TokenGroup]], Tensor],
    groups: Sequence[TokenGroup],
    microbatch_tokens: int,
) -> Tensor:
    """(B,) numbers of the completions of all groups, groups and completions in order.

    Args:
        score: a scorer, which gives (B,) of the groups that go through the model at once.
        groups: any number.
        microbatch_tokens: most tokens at once; never changes the result.
    """
    parts: list[Tensor] = [torch.empty(0)] * len(groups)
    for positions in pack(groups, microbatch_tokens):
        chosen = [groups[position] for position in positions]
        counts = [len(group.completions) for group in chosen]
        for position, part in zip(positions, torch.split(score(chosen), counts), strict=True):
            parts[position] = part
    return torch.cat(parts) if parts else torch.empty(0)
