"""A loop of rounds over a tiny policy, judged by length: seconds a round."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

PROMPTS = [f"Tell me about number {number}." for number in range(40)]


def small_loop(folder: Path, policy: Path) -> dict[str, Any]:
    """The settings of a loop in `folder`, whose prompts are written there."""
    prompts = folder / "prompts.jsonl"
    write_prompts(prompts, PROMPTS)
    return {
        "out": str(folder / "rounds"),
        "model": str(policy),
        "prompts": str(prompts),
        "rounds": 2,
        "prompts_per_round": 6,
        "sample": {"n": 3, "max_new_tokens": 8},
        "judge": "shortest",
        "train": {"objective": "dpo", "learning_rate": 1e-3, "batch_size": 4},
        "evaluate": {"count": 8, "judge": "longest"},
        "gates": {"length_growth": None, "diversity": None, "falling": False, "agreement": None},
    }


def write_prompts(path: Path, prompts: list[str]) -> None:
    """A file of prompts."""
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in prompts))
