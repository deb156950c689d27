"""The report of a run: what it says, that it is safe and self-contained, and how it looks."""

from __future__ import annotations

import json
import math
import random
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from prefopt.errors import RunError
from prefopt.report import build_report
from prefopt.report.artefacts import read_artefacts
from prefopt.report.figures import PANELS
from prefopt.report.series import MAX_POINTS, Series, ends, smoothed, thinned

# -- a run, without training one -----------------------------------------------------------

#: text that would run, load or break the layout if it reached the page as markup
HOSTILE = '</div><script>alert("x")</script><img src=http://evil.example/x onerror=alert(1)>'

RECIPE = """\
# Written by prefopt: every setting of this run and where its value came from.
model: models/tiny-llama  # recipe.yaml
data: [{path: 'data/pairs #2.jsonl', name: reviews}, {path: data/help.jsonl, name: help}]  # recipe.yaml
objective:
  name: dpo  # default
  beta: 0.1  # command line
learning_rate: 5e-07  # default for full training
schedule: cosine  # default
max_length: null  # default
batch_size: 64  # default
"""

MANIFEST: dict[str, Any] = {
    "kind": "train",
    "prefopt": "0.1.0",
    "command": ["prefopt", "train", "recipe.yaml", "--objective.beta", "0.1", "--out", "my run"],
    "versions": {"python": "3.11.9", "torch": "2.13.0", "transformers": "5.23.0"},
    "hardware": {"device": "cpu", "threads": 2, "memory_gb": 16},
    "started": "2026-03-01T14:05:33+00:00",
    "finished": "2026-03-01T14:07:44+00:00",
    "seconds": 131.2,
    "policy": {
        "name": "models/tiny-llama",
        "parameters": 14_200_000,
        "trainable": 14_200_000,
        "fingerprint": "sha256:" + "4f" * 32,
    },
    "reference": {"name": "initial", "fingerprint": "sha256:" + "4f" * 32},
    "tokenizer": {"fingerprint": "sha256:" + "a1" * 32},
    "data": {
        "train": {
            "files": [
                {"path": "data/pairs #2.jsonl", "sha256": "sha256:" + "0c" * 32},
                {"path": "data/help.jsonl", "sha256": "sha256:" + "9d" * 32},
            ],
            "groups": 1130,
            "comparisons": 1204,
            "completions": 2291,
            "tokens": 181_204,
            "skipped": {"identical_pair": 7, "too_long": 12},
            "cut": {"prompt_start": 3},
        },
        "eval": {
            "files": [{"path": "data/held_out.jsonl", "sha256": "sha256:" + "77" * 32}],
            "groups": 100,
            "comparisons": 118,
            "completions": 214,
            "tokens": 15_020,
            "skipped": {},
            "cut": {},
        },
    },
    "engine": {"sharing": "trees", "reason": None, "difference": 2.4e-6},
    "diagnostics": [
        {
            "name": "likelihood_displacement",
            "level": "warning",
            "message": "The log-probability of preferred completions fell by 6.1 nats.",
            "remedy": "Lower the learning rate, raise objective.beta, or add an sft term.",
            "step": 140,
        },
        {
            "name": "length_drift",
            "level": "note",
            "message": "Preferred completions are 8 tokens longer than dispreferred ones.",
            "remedy": "Look at the lengths in the data before you trust the win rate.",
            "step": None,
        },
    ],
    "result": {"steps": 240, "final_loss": 0.52, "accuracy": 0.76, "stopped": None, "eval": None},
}

EVALUATION = {
    "win_rate": 0.88,
    "win_rate_interval": [0.84, 0.92],
    "reward_before": 0.12,
    "reward_after": 1.84,
    "kl": 4.21,
    "prompts": 200,
}


def samples() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [
        {
            "prompt": f"Review {i}: the film was",
            "before": "rather long and I left before the end, which says enough. " * (1 + i % 3),
            "after": "a quiet delight, with a splendid cast and a story that stays with you.",
            "reward_before": -0.4 + 0.1 * i,
            "reward_after": 1.3,
        }
        for i in range(9)
    ]
    rows[2]["prompt"] = [{"role": "user", "content": "What did you think of the film?"}]
    rows[3]["after"] = HOSTILE
    rows[4]["after"] = "word" * 120
    return rows


def metrics(steps: int = 240, seed: int = 0) -> list[dict[str, Any]]:
    """Records as a DPO run on two sources writes them: noisy, improving, a spike in the middle."""
    noise = random.Random(seed)
    records = []
    for step in range(steps + 1):
        done = 1 - math.exp(-3 * step / max(steps, 1))
        values = {
            "loss": 0.693 - 0.17 * done,
            "accuracy": 0.5 + 0.26 * done,
            "margin": 1.9 * done,
            "reward_preferred": -0.3 * done,
            "reward_dispreferred": -2.2 * done,
            "logp_preferred": -61.0 - 3 * done,
            "logp_dispreferred": -58.0 - 22 * done,
            "length_preferred": 41.0,
            "length_dispreferred": 38.5,
        }
        if step % 40 == 0:
            records.append(
                {"kind": "eval", "step": step, "epoch": step / steps, "comparisons": 118}
                | {name: value * noise.gauss(1, 0.01) for name, value in values.items()}
                | {"sources": _sources(values, noise)}
            )
        if step > 0:
            records.append(
                {"kind": "train", "step": step, "epoch": step / steps, "comparisons": 64}
                | {name: value * noise.gauss(1, 0.06) for name, value in values.items()}
                | {"gradient_norm": noise.gauss(2, 0.3) + 5 * (step == steps // 2)}
                | {"learning_rate": 5e-7 * min(1, step / 24) * (1 - step / (steps + 1))}
                | {"tokens_per_second": noise.gauss(14_000, 900), "seconds": 0.54 * step}
                | {"comparisons_per_second": noise.gauss(118, 6)}
                | {"sources": _sources(values, noise)}
            )
    return records


def _sources(values: dict[str, float], noise: random.Random) -> dict[str, dict[str, float]]:
    return {
        name: {
            "loss": values["loss"] * noise.gauss(1, 0.02) + shift,
            "accuracy": values["accuracy"] - shift,
            "margin": values["margin"],
            "comparisons": count,
        }
        for name, shift, count in (("reviews", 0.0, 48), ("help", 0.05, 16))
    }


def write_run(folder: Path, **files: Any) -> Path:
    """A run folder; a file given as None is left out, as text it is written as it is."""
    contents: dict[str, Any] = {
        "metrics.jsonl": metrics(),
        "manifest.json": MANIFEST,
        "recipe.yaml": RECIPE,
        "evaluation.json": EVALUATION,
        "samples.jsonl": samples(),
    }
    contents |= {name.replace("__", "."): value for name, value in files.items()}
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        if content is None:
            continue
        if isinstance(content, list):
            content = "".join(json.dumps(row) + "\n" for row in content)
        elif isinstance(content, dict):
            content = json.dumps(content)
        (folder / name).write_text(content, encoding="utf-8")
    return folder
