"""Prompts of the demonstration's world that its training has not seen: to probe, and to test."""

from __future__ import annotations

import json
from pathlib import Path

from prefopt.data.worlds import ReviewWorld

WORLD = ReviewWorld()
FOLDER = Path("runs/world")


def reward(prompt: str, completion: str) -> float:
    """What a review is worth: the reward that the world's comparisons were made with."""
    return WORLD.reward(prompt, completion)


if __name__ == "__main__":
    for name, split, count in (("probe", "validation", 60), ("test", "test", 200)):
        prompts = WORLD.prompts(count, 0, split=split)
        rows = "".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts)
        (FOLDER / f"{name}.jsonl").write_text(rows, encoding="utf-8")
