"""Weights in bf16: half the memory, and what has to be done in float32 all the same."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from prefopt.policies.load import base_model


def to_bf16(model: nn.Module) -> None:
    """Keep a model's float32 parameters in bfloat16.

    Buffers stay as they are: the frequencies of rotary positions would be ruined.
    """
    for weight in model.parameters():
        if weight.dtype == torch.float32:
            weight.data = weight.data.bfloat16()
    base_model(model).config.dtype = torch.bfloat16


@contextmanager
def in_float32(model: nn.Module) -> Iterator[None]:
    """While this lasts, bfloat16 parameters are float32: two ways to compute one thing can be
    told apart only where rounding is small."""
    halves = [(weight, weight.data) for weight in model.parameters()]
    halves = [(weight, data) for weight, data in halves if data.dtype == torch.bfloat16]
    try:
        for weight, data in halves:
            weight.data = data.float()
        yield
    finally:
        for weight, data in halves:
            weight.data = data
