"""The suite for a CUDA device; without one, every test of this folder is skipped.

`PREFOPT_GPU_SUITE=cpu` runs what a CPU can do of it, which shows that the suite itself is right.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            # What drivers and compilers warn of differs from machine to machine.
            item.add_marker(pytest.mark.filterwarnings("default"))


@pytest.fixture(autouse=True)
def device() -> Iterator[Any]:
    """The device of the suite."""
    import torch

    name = os.environ.get("PREFOPT_GPU_SUITE", "cuda")
    if name == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device, and this machine has none")
    yield torch.device(name)
    if name == "cuda":
        torch.cuda.empty_cache()


@pytest.fixture
def cuda(device: Any) -> Any:
    """The device, for what a CPU cannot do at all."""
    if device.type != "cuda":
        pytest.skip("what is tested is only there on CUDA")
    return device


@pytest.fixture
def make_wide(make_model: Callable[..., Any], device: Any) -> Callable[..., Any]:
    """`make_wide(architecture, **config)`: a small model on the device, with heads of 32
    channels: kernels of GPUs want at least 16."""

    def make(architecture: str, **config: Any) -> Any:
        heads = {} if architecture in ("llama", "mistral") else {"head_dim": 32}
        if architecture == "gemma3":
            heads["query_pre_attn_scalar"] = 32
        size = {"hidden_size": 128, "intermediate_size": 256, "initializer_range": 0.08}
        return make_model(architecture, **size, **heads, **config).to(device)

    return make
