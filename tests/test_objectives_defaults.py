"""The defaults are the published ones: what an objective does when nothing is said.

Written out here and nowhere else in the tests, because a run without options depends on them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from prefopt.objectives import OBJECTIVES, Comparisons, Judgements, Labels, Rankings, Scores

DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "dpo": {"beta": 0.1, "label_smoothing": 0.0},
    "robust_dpo": {"beta": 0.1, "label_smoothing": 0.1, "bounded": False},
    "geometric_dpo": {"beta": 0.1},
    "ipo": {"beta": 0.1, "length_normalize": True},
    "hinge": {"beta": 0.1},
    "exo": {"beta": 0.1, "label_smoothing": 1e-3},
    "dpo_norm": {"beta": 5.0},
    "dpop": {"beta": 0.3, "penalty": 50.0},
    "length_dpo": {"beta": 0.1, "alpha": 0.01},
    "discopop": {"beta": 0.05, "temperature": 0.05},
    "modpo": {"beta": 0.1, "preference_weight": 0.5},
    "reward_distillation": {"beta": 0.1},
    "nca": {"beta": 0.1},
    "sppo": {"beta": 1e-3},
    "apo_zero": {"beta": 0.1},
    "apo_down": {"beta": 0.1},
    "f_dpo": {"beta": 0.1, "divergence": "jensen_shannon", "alpha": 0.0},
    "sft": {"length_normalize": True},
    "odds": {},
    "orpo": {"odds_weight": 0.1},
    "simpo": {"beta": 2.0, "gamma": 1.0},
    "cpo": {"beta": 0.1, "length_normalize": True},
    "alpha_po": {"beta": 2.5, "gamma": 0.25, "alpha": 0.25},
    "reward": {"margin": 0.0, "centring": 0.0},
    "bco": {"beta": 0.1, "decay": 0.9},
    "aot": {"beta": 0.1, "label_smoothing": 0.0},
    "aot_unpaired": {"beta": 0.1, "label_smoothing": 0.0},
    "beta_dpo": {"beta": 0.1, "alpha": 0.6, "keep": 0.8, "momentum": 0.9, "seed": 0},
    "group_dro": {"beta": 0.1, "label_smoothing": 0.0, "step_size": 0.01},
    "dpo_corrupted": {
        "beta": 0.1, "conditional_weight": 1.0, "anchor_weight": 1.0, "anchor": 0.0,
    },
    "ld_dpo": {"beta": 0.1, "alpha": 0.5},
    "tdpo": {"beta": 0.1, "alpha": 0.5, "stop_gradient": True},
    "wpo": {"beta": 0.1, "capped": True},
    "plackett_luce": {"beta": 0.1},
    "kto": {"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0},
    "bco_unpaired": {"beta": 0.1, "decay": 0.9},
    "apo_zero_unpaired": {"beta": 0.1},
}  # fmt: skip
STATES: Mapping[str, Mapping[str, Any]] = {
    "bco": {"baseline": 0.3},
    "beta_dpo": {"mean": 0.1, "deviation": 2.0, "step": 4},
    "group_dro": {"weights": [0.3, 0.7]},
    "bco_unpaired": {"desirable": 0.3, "undesirable": -0.2},
}
LENGTHS = torch.tensor([3, 5, 2, 4, 1, 6, 3, 2, 4, 5])


def known(name: str) -> Scores:
    """Ten completions with everything that any objective reads."""
    count = len(judged(name))
    generator = torch.Generator().manual_seed(0)

    def random(count: int) -> Tensor:
        return torch.rand(count, generator=generator, dtype=torch.float64)

    total = int(LENGTHS.sum())
    tokens, other = -2 * random(total) - 0.05, -2 * random(total) - 0.05
    plain = Scores(tokens, None, LENGTHS)
    policy, reference = plain.totals(tokens).requires_grad_(), plain.totals(other)
    return Scores(
        policy=policy,
        reference=reference,
        lengths=LENGTHS,
        rewards=random(10),
        tokens={
            "policy": tokens,
            "reference": other,
            "kl": (3 * random(total)).requires_grad_(),
            "log_collision": -3 * random(total),
        },
        companions=Scores(-3 * random(count), -3 * random(count), LENGTHS[:count]),
    )


def judged(name: str) -> Judgements:
    if OBJECTIVES[name].reads == "labels":
        marks = [(index, index % 3 > 0) for index in range(10)]
        return Labels.of(marks, dtype=torch.float64)
    if OBJECTIVES[name].reads == "rankings":
        return Rankings.of([[0, 2, 1], [4, 3], [5, 7, 6, 8]], dtype=torch.float64)
    pairs = [(index, index + 3) for index in range(7)]
    edges = Comparisons.of(pairs, [0.9, 0.7, 1.0, 0.5, 0.8, 0.6, 0.3], dtype=torch.float64)
    return Comparisons(
        **{**vars(edges), "source": torch.tensor([0, 1, 0, 0, 1, 0, 1]), "sources": 2}
    )


def losses_and_slopes(name: str, options: Mapping[str, Any]) -> tuple[Tensor, list[Tensor]]:
    scores, row = known(name), OBJECTIVES[name]
    state = {} if row.running is None else {"running": STATES[name]}
    losses = row.function(scores, judged(name), **options, **state)
    leaves = [scores.policy, scores.tokens["kl"]]
    slopes = torch.autograd.grad(losses.sum(), leaves, allow_unused=True)
    return losses, [torch.zeros(()) if slope is None else slope for slope in slopes]


def test_the_table_above_is_complete() -> None:
    assert {name: dict(row.options) for name, row in OBJECTIVES.items()} == DEFAULTS


@pytest.mark.parametrize("name", DEFAULTS)
def test_saying_the_defaults_is_saying_nothing(name: str) -> None:
    said, said_slopes = losses_and_slopes(name, DEFAULTS[name])
    losses, slopes = losses_and_slopes(name, {})
    assert torch.equal(losses, said)
    assert all(torch.equal(*pair) for pair in zip(slopes, said_slopes, strict=True))


@pytest.mark.parametrize("name", STATES)
@pytest.mark.parametrize("begun", [False, True])
def test_saying_the_defaults_is_saying_nothing_to_a_running_state(name: str, begun: bool) -> None:
    advance, scores, judgements = OBJECTIVES[name].running, known(name), judged(name)
    assert advance is not None
    state = STATES[name] if begun else None
    assert advance(scores, judgements, state) == advance(
        scores, judgements, state, **DEFAULTS[name]
    )


@pytest.mark.parametrize("name", STATES)
def test_without_a_state_a_batch_is_a_first_step(name: str) -> None:
    row, scores, judgements = OBJECTIVES[name], known(name), judged(name)
    assert row.running is not None
    for options in ({}, {"beta": 0.7}):
        first = row.running(scores, judgements, None, **options)
        alone = row.function(scores, judgements, **options)
        assert torch.equal(alone, row.function(scores, judgements, running=first, **options))
