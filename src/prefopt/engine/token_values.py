"""What is read off the distribution a token was drawn from, without keeping it.

The vocabulary is large and a step has many tokens, so a distribution is made, read and
dropped in chunks of tokens; each reduction keeps for the backward pass at most one number
per word.

Shapes: U tokens, V words of the vocabulary. Logits are float32, values are in nats.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


class TokenLogps(torch.autograd.Function):
    """log softmax(logits)[target] of each row, in few passes over the vocabulary.

    logits (U, V) float32, targets (U,) → (U,). The gradient is g·(onehot − softmax), so the
    softmax is what is kept. It also gives the normaliser without another pass: the largest
    probability is at least 1/V, so its logarithm is exact where a small one's is not.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        probabilities = torch.softmax(logits, -1)
        top, where = logits.max(-1)
        normalizer = top - probabilities.gather(-1, where[:, None])[:, 0].log()
        ctx.save_for_backward(probabilities, targets)
        return logits.gather(-1, targets[:, None])[:, 0] - normalizer

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        probabilities, targets = ctx.saved_tensors
        (gradient,) = gradients
        buffer = probabilities * -gradient[:, None]
        return buffer.scatter_add_(-1, targets[:, None], gradient[:, None]), None


class Divergence(torch.autograd.Function):
    """KL(reference ‖ policy) = Σ_v r(v)·(log r(v) − log π(v)) of each row.

    logits and reference_logits (U, V) float32 → (U,). The gradient goes to the first alone
    and is g·(π − r), so that difference is what is kept.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, reference_logits: Tensor) -> Tensor:
        policy = torch.log_softmax(logits, -1)
        reference = torch.log_softmax(reference_logits, -1)
        weight = reference.exp()
        # A word that the reference rules out counts nothing, though its log is −∞.
        terms = reference.sub_(policy).masked_fill_(weight == 0, 0.0).mul_(weight)
        ctx.save_for_backward(policy.exp_().sub_(weight))
        return terms.sum(-1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (difference,) = ctx.saved_tensors
        (gradient,) = gradients
        return difference * gradient[:, None], None


def token_logps(logits: Tensor, targets: Tensor) -> Tensor:
    """(U,) log-probability of each target, differentiable; see `TokenLogps`.

    >>> round(token_logps(torch.tensor([[0.0, 0.0]]), torch.tensor([1])).item(), 4)   # −log 2
    -0.6931
    """
    values: Tensor = TokenLogps.apply(logits, targets)  # type: ignore[no-untyped-call]
    return values


def divergence(logits: Tensor, reference_logits: Tensor) -> Tensor:
    """(U,) KL(reference ‖ policy), differentiable in the policy; see `Divergence`.

    >>> policy, reference = torch.tensor([[0.75, 0.25]]).log(), torch.tensor([[0.5, 0.5]]).log()
    >>> round(divergence(policy, reference).item(), 4)      # ½·log(½/¾) + ½·log(½/¼)
    0.1438
    """
    values: Tensor = Divergence.apply(logits, reference_logits)  # type: ignore[no-untyped-call]
    return values


@torch.no_grad()
def log_collision(logits: Tensor) -> Tensor:
    """(U,) log Σ_v π(v)²: how likely two draws are the same word. Without gradient.

    >>> round(log_collision(torch.tensor([[0.75, 0.25]]).log()).item(), 4)   # log(9/16 + 1/16)
    -0.47
    """
    return torch.softmax(logits, -1).square_().sum(-1).log()


def in_chunks(
    read: Callable[..., tuple[Tensor, ...]], chunk: int, *columns: Tensor
) -> tuple[Tensor, ...]:
    """`read(*columns)` in chunks of rows, computed again in the backward pass if there are many.

    Args:
        read: from columns (u, …) to values (u,) each.
        chunk: most rows that it is given at once.
        columns: (U, …) each.

    Returns:
        The values (U,), joined.
    """
    if len(columns[0]) <= chunk:
        return read(*columns)
    split = zip(*(torch.split(column, chunk) for column in columns), strict=True)
    parts = [checkpoint(read, *part, use_reentrant=False) for part in split]
    return tuple(torch.cat(values) for values in zip(*parts, strict=True))


def logit_transform(config: Any) -> Callable[[Tensor], Tensor] | None:
    """What a model does to its logits after the head, if anything: soft caps and scales."""
    if cap := getattr(config, "final_logit_softcapping", None):  # Gemma
        return lambda logits: cap * torch.tanh(logits / cap)
    if scale := getattr(config, "logit_scale", None):  # Cohere
        return lambda logits: logits * scale
    if divisor := getattr(config, "logits_scaling", None):  # Granite
        return lambda logits: logits / divisor
    return None
