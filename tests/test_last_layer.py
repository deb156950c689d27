"""The last layer's MLP sees what predicts, and nothing else changes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch

from prefopt.engine import attention
from prefopt.engine.forest import build_forest
from prefopt.engine.logps import Scorer
from prefopt.engine.tokens import TokenGroup

GROUPS = [
    TokenGroup(np.arange(5, 45, dtype=np.int32), (np.arange(50, 57), np.arange(60, 63))),
    TokenGroup(np.arange(9, 39, dtype=np.int32), (np.arange(70, 75), np.arange(71, 75))),
]


def rows_of_the_last_mlp(model: Any) -> list[int]:
    seen: list[int] = []
    last = model.get_decoder().layers[-1].mlp
    last.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[1]))
    return seen


def gradients(model: Any, scores: torch.Tensor) -> torch.Tensor:
    model.zero_grad()
    (scores * torch.linspace(-1, 2, len(scores))).sum().backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "mistral"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_only_what_predicts_goes_through_the_last_mlp(
    architecture: str,
    checkpointing: bool,
    make_model: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = make_model(architecture).train()
    scorer = Scorer(model)
    scorer.check(GROUPS)
    if checkpointing:
        scorer.enable_checkpointing()
    forest = build_forest(GROUPS)
    assert 0 < len(forest.predictors) < len(forest) / 3

    seen = rows_of_the_last_mlp(model)
    scores = scorer(GROUPS)
    found = gradients(model, scores)
    assert set(seen) == {len(forest.predictors)}
    assert len(seen) == (2 if checkpointing else 1)
    assert not any("forward" in vars(module) for module in model.modules())

    monkeypatch.setattr(attention, "trimmed", lambda decoder: nullcontext())
    seen.clear()
    whole = scorer(GROUPS)
    wanted = gradients(model, whole)
    assert set(seen) == {len(forest)}
    torch.testing.assert_close(scores, whole, atol=1e-5, rtol=0)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("architecture", ["gemma2", "cohere", "granite"])
def test_a_layer_with_other_code_keeps_it(
    architecture: str, make_model: Callable[..., Any]
) -> None:
    model = make_model(architecture)
    scorer = Scorer(model)
    scorer.check(GROUPS)
    seen = rows_of_the_last_mlp(model)
    scorer(GROUPS)
    assert set(seen) == {len(build_forest(GROUPS))}
    assert scorer.sharing == "trees"


def test_a_layer_whose_forward_was_replaced_is_left_alone(make_model: Callable[..., Any]) -> None:
    model = make_model("llama")
    last = model.get_decoder().layers[-1]
    own = last.forward
    last.forward = lambda *args, **options: own(*args, **options)
    scorer = Scorer(model)
    seen = rows_of_the_last_mlp(model)
    scores = scorer(GROUPS)
    assert len(build_forest(GROUPS)) in seen
    del last.forward
    torch.testing.assert_close(scorer(GROUPS), scores, atol=1e-5, rtol=0)
