"""How a token is drawn: a distribution, and a number in it that belongs to the sample alone.

Every sample owns a stream of uniform numbers, one a token, drawn from (seed, prompt, index of
the sample). A token is where its number falls in the cumulated distribution. So what is sampled
depends on nothing else: not on which rows are computed together, nor in which order.

Shapes: R rows, V vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import (
    LogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)


def uniforms(seed: int, key: bytes, index: int, steps: int) -> NDArray[np.float64]:
    """(steps,) numbers in [0, 1) that belong to one sample of one prompt."""
    digest = hashlib.blake2b(f"{seed}:{index}:".encode() + key, digest_size=16).digest()
    bits = np.random.Philox(key=int.from_bytes(digest, "little"))
    return np.random.Generator(bits).random(steps)


def warpers(temperature: float, top_p: float, top_k: int) -> list[LogitsProcessor]:
    """What reshapes the distribution before a token is drawn, in the usual order."""
    found: list[LogitsProcessor] = []
    if temperature not in (0.0, 1.0):
        found.append(TemperatureLogitsWarper(float(temperature)))
    if top_k > 0:
        found.append(TopKLogitsWarper(top_k))
    if top_p < 1.0:
        found.append(TopPLogitsWarper(top_p))
    return found


def tokens_at(scores: Tensor, numbers: Tensor) -> Tensor:
    """(R,) tokens on which (R,) float64 numbers in [0, 1) fall, given (R, V) logits.

    >>> tokens_at(torch.tensor([[0.0, 0.0]]), torch.tensor([0.6], dtype=torch.float64))
    tensor([1])
    """
    # Apple's GPUs have no float64, and a float32 sum over V tokens shifts probabilities.
    logits = scores.cpu() if scores.device.type == "mps" else scores
    cumulated = logits.double().softmax(-1).cumsum(-1)
    places = numbers[:, None].to(cumulated.device) * cumulated[:, -1:]
    found = torch.searchsorted(cumulated, places, right=True)
    return found.clamp(max=scores.shape[-1] - 1).squeeze(-1).to(scores.device)


def next_tokens(
    logits: Tensor, shaped_by: Sequence[LogitsProcessor], numbers: Tensor | None
) -> Tensor:
    """(R,) tokens drawn from (R, V) float32 logits; the most probable ones without numbers."""
    if numbers is None:
        return logits.argmax(-1)
    scores = logits
    for warper in shaped_by:
        scores = warper(None, scores)  # none of them reads the tokens
    return tokens_at(scores, numbers)


class InverseTransform(LogitsProcessor):
    """Turns the library's greedy decoding into sampling: keeps the token that a number falls on.

    Args:
        uniforms: (R, steps) float64 in [0, 1).
        width: tokens of the padded prompts, where step 0 is.
    """

    def __init__(self, uniforms: Tensor, width: int) -> None:
        self.uniforms = uniforms
        self.width = width

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(R, V) logits to (R, V) with 0 at the drawn token and −∞ elsewhere."""
        tokens = tokens_at(scores, self.uniforms[:, input_ids.shape[1] - self.width])
        return torch.full_like(scores, -torch.inf).scatter(-1, tokens[:, None], 0.0)


def real_device(device: torch.device) -> torch.device:
    """Where float64 lives: with the model, unless that is a device without it."""
    return torch.device("cpu") if device.type == "mps" else device
