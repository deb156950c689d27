"""The head, from hidden states to log-probabilities of tokens, without a tensor of logits.

A head that is one matrix of float32 numbers on a CPU, which is nearly every model's there, is
computed in chunks of tokens that stay in the processor's cache; only probabilities are kept, and
only where a gradient is wanted. The gradient g·(onehot − p) never exists as a whole: its products
with the matrix and the hidden states are those of p, scaled afterwards by token.

Shapes: U tokens, d channels, V words of the vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from prefopt.engine.fused import fusible, is_one_matrix

#: rows of logits at a time
_CHUNK = 256
#: below this a probability's logarithm is computed from the logits: it may be denormal, or zero
_SMALL = 1e-30


class HeadLogps(torch.autograd.Function):
    """log softmax(hidden · weightᵀ)[target]: (U, d), (V, d), (U,) → (U,) nats."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        rows = len(hidden)
        learning = any(ctx.needs_input_grad)
        kept = hidden.new_empty(rows if learning else min(_CHUNK, rows), len(weight))
        chosen = hidden.new_empty(rows)
        for start in range(0, rows, _CHUNK):
            part = slice(start, min(start + _CHUNK, rows))
            chunk = kept[part] if learning else kept[: part.stop - start]
            torch.mm(hidden[part], weight.t(), out=chunk)
            torch.softmax(chunk, -1, out=chunk)
            torch.gather(chunk, 1, targets[part, None], out=chosen[part, None])
        ctx.save_for_backward(hidden, weight, targets, kept if learning else None)
        logps = chosen.log()
        small = (chosen < _SMALL).nonzero()[:, 0]
        if len(small):
            logits = hidden[small] @ weight.t()
            logps[small] = torch.log_softmax(logits, -1).gather(1, targets[small, None])[:, 0]
        return logps

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        hidden, weight, targets, probabilities = ctx.saved_tensors
        gradient = gradients[0][:, None]
        by_hidden = by_weight = None
        if ctx.needs_input_grad[0]:
            by_hidden = torch.mm(probabilities, weight).neg_().add_(weight[targets]).mul_(gradient)
        if ctx.needs_input_grad[1]:
            scaled = hidden * gradient
            by_weight = torch.mm(probabilities.t(), -scaled).index_add_(0, targets, scaled)
        return by_hidden, by_weight, None


def head_logps(head: nn.Module, hidden: Tensor, targets: Tensor) -> Tensor | None:
    """(U,) log-probabilities of the targets in nats, differentiable; None for another head.

    >>> head = nn.Linear(2, 2, bias=False)
    >>> head.weight = nn.Parameter(torch.eye(2))
    >>> logps = head_logps(head, torch.tensor([[1.0, 0.0]]), torch.tensor([1]))
    >>> round(logps.item(), 4)      # −log(1 + e)
    -1.3133
    """
    if not isinstance(head, nn.Linear) or not is_one_matrix(head):
        return None
    if not fusible(hidden, head.weight):
        return None
    logps: Tensor = HeadLogps.apply(hidden, head.weight, targets)  # type: ignore[no-untyped-call]
    return logps
