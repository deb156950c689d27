"""docs/scale.md says what the planner says."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def making() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_scale", ROOT / "docs" / "make_scale.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_tables_are_what_the_program_writes(making: ModuleType) -> None:
    text, traced = making.PAGE.read_text(), json.loads(making.TRACED.read_text())
    assert making.page(text, traced) == text, "run `make docs`"
    more = json.loads(json.dumps(traced))
    more["70B"]["every layer"]["step"]["weights"] *= 2
    assert making.page(text, more) != text


def test_what_a_copy_needs_is_what_the_planner_finds(making: ModuleType) -> None:
    """The engine changes; when a pass needs more or less, the page has to be written again."""
    known = json.loads(making.TRACED.read_text())["70B"]["every layer"]
    found = making.trace("70B", {"every layer": True})["every layer"]
    assert found["parameters"] == known["parameters"] == 70_553_706_496  # of this shape, by hand
    assert found["microbatch"] == known["microbatch"] == making.MICROBATCH
    for name in ("weights", "gradients", "optimizer", "layer", "root"):
        assert found["step"][name] == known["step"][name]
    assert found["step"]["activations"] == pytest.approx(known["step"]["activations"], rel=0.03)
    assert found["operations"] == pytest.approx(known["operations"], rel=0.03)


def test_traffic_by_hand(making: ModuleType) -> None:
    """A model of 1,000 parameters, 16 devices, one micro-batch each."""
    found = {"parameters": 1000, "tokens": 8, "microbatch": 256}
    shape = {"num_hidden_layers": 2, "hidden_size": 4}
    received = making.traffic(found, "fsdp", 16, shape)
    assert sum(received.values()) == pytest.approx(3 * 4000 * 15 / 16)
    assert received["inside"] == pytest.approx(3 * 4000 * 7 / 16)  # from seven neighbours
    received = making.traffic(found, "tensor", 16, shape)
    assert received["between"] == pytest.approx(8 * 3 * 500 / 2)  # two groups, eight pieces each
    assert received["inside"] == pytest.approx(8 * (4 * 2 * 256 * 4 * 2) * 2 * 7 / 8)
    received = making.traffic(found, "hybrid", 128, shape)
    summed, gathered = 2 * 4000 / 64 / 2, 3 * 4000 * 63 / 64
    assert received["between"] == pytest.approx(gathered * 56 / 63 + summed)
