"""A step is the same however it is cut: into micro-batches, or over processes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from prefopt.objectives import OBJECTIVES
from tests import stepping

if TYPE_CHECKING:
    from prefopt.policies.load import Policy

COUPLED = sorted(name for name, row in OBJECTIVES.items() if row.couples_batch)


def assert_same_step(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one["means"].keys() == other["means"].keys()
    for key, value in one["means"].items():
        if key != "sources":
            assert other["means"][key] == pytest.approx(value, rel=2e-4, abs=2e-5), key
    assert one["gradients"].keys() == other["gradients"].keys()
    largest = max(float(gradient.abs().max()) for gradient in one["gradients"].values())
    assert largest > 0
    for key, gradient in one["gradients"].items():
        assert float((gradient - other["gradients"][key]).abs().max()) < 2e-4 * largest, key


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_micro_batches_change_nothing(name: str, save_policy: Callable[..., Path]) -> None:
    policy = stepping.learner_of(name, save_policy("llama"))
    whole = stepping.step(policy, name, 100_000)
    cut = stepping.step(policy, name, 60)
    assert whole["pieces"] == 1
    assert cut["pieces"] > 2
    assert_same_step(whole, cut)
    assert whole["running"].keys() == cut["running"].keys()


@pytest.mark.parametrize("name", COUPLED)
def test_a_coupled_loss_is_not_that_of_its_pieces(
    name: str, make_policy: Callable[..., Policy], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the two passes are for: piece by piece, the same objective is another one."""
    from prefopt.training import loop

    policy = make_policy("llama")
    whole = stepping.step(policy, name, 60)
    monkeypatch.setattr(loop, "_together", loop._one_by_one)
    pieces = stepping.step(policy, name, 60)
    with pytest.raises(AssertionError):
        assert_same_step(whole, pieces)


@pytest.mark.slow
def test_processes_change_nothing(tiny_policy_folder: Path, tmp_path: Path) -> None:
    """One process against three, some of which have no micro-batch of a step."""
    results = [_run(tiny_policy_folder, tmp_path / f"{count}.pt", count) for count in (1, 3)]
    for name in OBJECTIVES:
        assert_same_step(results[0][name], results[1][name])
        assert results[0][name]["running"].keys() == results[1][name]["running"].keys()


def _run(model: Path, out: Path, processes: int) -> dict[str, Any]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": processes, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    started = [
        subprocess.Popen(
            [sys.executable, stepping.__file__, str(model), str(out), *sorted(OBJECTIVES)],
            env={**os.environ, **{k: str(v) for k, v in shared.items()}, "RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(processes)
    ]
    for process in started:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    result: dict[str, Any] = torch.load(out, weights_only=False)
    return result
