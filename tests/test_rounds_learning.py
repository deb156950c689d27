"""Rounds gain something: the true reward rises, and beats one training with as many labels."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from prefopt.data.worlds import ReviewWorld
from prefopt.demo import QUICK, Demo
from prefopt.rounds.loop import run_rounds
from prefopt.rounds.settings import make_rounds

SCALE = replace(QUICK, documents=1000)
PROMPTS = 300


def rewards(folder: Path, seed: int, first: Path, **change: Any) -> list[float]:
    """True reward before the first round and after each."""
    world = ReviewWorld()
    for name, count, split in (("prompts", 2 * PROMPTS, "train"), ("test", 100, "test")):
        texts = world.prompts(count, seed, split=split)  # type: ignore[arg-type]
        rows = "".join(json.dumps({"prompt": text}) + "\n" for text in texts)
        (folder / f"{name}.jsonl").write_text(rows)
    gates = dict.fromkeys(("kl", "length_growth", "diversity", "agreement"))
    settings = {
        "out": str(folder / "-".join(map(str, change.values()))), "seed": seed, "rounds": 2,
        "model": str(first), "prompts": str(folder / "prompts.jsonl"), "judge": "world",
        "prompts_per_round": PROMPTS, "sample": {"n": 4, "max_new_tokens": 48},
        "train": {"objective": {"name": "dpo", "beta": 0.2}, "learning_rate": 5e-4,
                  "batch_size": 24, "epochs": 2},
        "evaluate": {"prompts": str(folder / "test.jsonl"), "count": 100},
        "gates": {**gates, "falling": False}, **change,
    }  # fmt: skip
    document = run_rounds(make_rounds(settings), progress=False)
    return [row["value"] for row in document["history"]]


@pytest.mark.slow
def test_the_true_reward_rises_and_beats_one_training_with_as_many_labels(tmp_path: Path) -> None:
    looped, once = [], []
    for seed in range(3):
        folder = tmp_path / str(seed)
        demo = Demo(folder / "world", SCALE, seed, False)
        demo.make_world()
        demo.fine_tune()
        looped.append(rewards(folder, seed, demo.sft.model, rounds=2))
        once.append(rewards(folder, seed, demo.sft.model, rounds=1, prompts_per_round=2 * PROMPTS))
    for history in looped:
        assert history[0] < history[1] < history[2]
    assert fmean(history[-1] for history in looped) > fmean(history[-1] for history in once)
