"""Does it help to choose which comparisons to label, and what does choosing cost?

    python benchmarks/acquisition.py
    python benchmarks/acquisition.py --smoke

Learning: a logistic model of margins with 16 features learns from batches of 4 labels, which are
Bradley–Terry draws of a known truth, 1,500 pairs are in the pool, and the accuracy is that of
the sign of the margins of fresh pairs. Every strategy sees the same worlds and first batch. It
is a world in which the model is right about everything but its weights, so it shows what a
strategy can gain, not what it will.

Cost: seconds of `select` for a pool of 100,000 pairs with 64 features.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefopt.data.acquisition import STRATEGIES, select

WIDTH, POOL, HELD_OUT, BATCH, MEMBERS = 16, 1500, 2000, 4, 5
POINTS = (24, 40, 80, 160)
POOLS = ("isotropic", "skewed")
#: those that a world without prompts and samples has
COMPARED = tuple(name for name in STRATEGIES if name != "entropy")
Floats = NDArray[np.float64]


def fit(features: Floats, answers: Floats) -> tuple[Floats, Floats]:
    """Weights of a logistic model with prior N(0, I), and the Hessian there: Newton's method."""
    weights = np.zeros(WIDTH)
    hessian = np.eye(WIDTH)
    for _ in range(12):
        p = 1 / (1 + np.exp(-features @ weights))
        hessian = (features.T * (p * (1 - p))) @ features + np.eye(WIDTH)
        weights = weights + np.linalg.solve(hessian, features.T @ (answers - p) - weights)
    return weights, hessian


def learn(
    strategy: str, seed: int, points: Sequence[int] = POINTS, pool: str = "isotropic"
) -> list[float]:
    """Accuracy on fresh pairs after so many labels, each a multiple of `BATCH`."""
    rng, draws = np.random.default_rng(seed), np.random.default_rng(seed + 1000)
    truth = rng.normal(size=WIDTH)
    scale = np.ones(WIDTH) if pool == "isotropic" else np.arange(1, WIDTH + 1) ** -0.5
    features = rng.normal(size=(POOL, WIDTH)) * scale
    fresh = rng.normal(size=(HELD_OUT, WIDTH)) * scale
    answers = (rng.random(POOL) < 1 / (1 + np.exp(-features @ truth))).astype(float)
    keys = [row.tobytes() for row in features]
    how: dict[str, Any] = {"count": BATCH, "keys": keys, "controls": 0, "seed": seed}
    asked = select(strategy="random", **how).indices
    found = []
    while True:
        weights, hessian = fit(features[asked], answers[asked])
        if len(asked) in points:
            found.append(float(np.mean((fresh @ weights > 0) == (fresh @ truth > 0))))
        if len(asked) >= max(points):
            return found
        spread = np.linalg.inv(np.linalg.cholesky(hessian))  # of the posterior, as a normal one
        members = weights + draws.normal(size=(MEMBERS, WIDTH)) @ spread
        margins = members @ features.T if strategy == "bald" else features @ weights
        known = (margins[..., asked], features[asked]) if strategy == "d-optimal" else None
        chosen = select(
            margins, features, strategy=strategy, asked=asked, labelled=known, **how
        ).indices
        assert not set(chosen.tolist()) & set(asked.tolist())
        asked = np.concatenate([asked, chosen])


def learning(seeds: int, points: Sequence[int]) -> dict[str, Any]:
    """Mean accuracy by pool and strategy, and the gain over random with its standard error."""
    found: dict[str, Any] = {}
    for pool in POOLS:
        runs = {
            name: np.array([learn(name, seed, points, pool) for seed in range(seeds)])
            for name in COMPARED
        }
        gains = {name: accuracy - runs["random"] for name, accuracy in runs.items()}
        found[pool] = {
            name: {
                "accuracy": accuracy.mean(0).round(4).tolist(),
                "gain": gains[name].mean(0).round(4).tolist(),
                "error": (gains[name].std(0, ddof=1) / np.sqrt(seeds)).round(4).tolist(),
            }
            for name, accuracy in runs.items()
        }
    return found


def cost(pairs: int, width: int, counts: Sequence[int]) -> list[dict[str, Any]]:
    """Seconds of choosing from a large pool, digests of the pairs included."""
    rng = np.random.default_rng(0)
    margins, features = rng.normal(size=(MEMBERS, pairs)), rng.normal(size=(pairs, width))
    keys = [number.to_bytes(16, "little") for number in range(pairs)]
    found = []
    for strategy in ("d-optimal", "bald", "random"):
        for count in counts:
            begin = time.perf_counter()
            chosen = select(margins, features, count=count, strategy=strategy, keys=keys)
            seconds = round(time.perf_counter() - begin, 3)
            assert len(chosen) == count
            found.append({"strategy": strategy, "count": count, "seconds": seconds})
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    from measuring import RESULTS, provenance, say, write_json

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--smoke", action="store_true", help="a minute's worth, figures mean nothing"
    )
    parser.add_argument("--seeds", type=int, default=25)
    parser.add_argument("--out", type=Path, default=RESULTS / "acquisition.json")
    asked = parser.parse_args(arguments)
    points = POINTS[:1] if asked.smoke else POINTS
    say("learning")
    record = {
        **provenance(("acquisition.py", "measuring.py")),
        "points": list(points),
        "seeds": 2 if asked.smoke else asked.seeds,
    }
    record["learning"] = learning(record["seeds"], points)
    say("cost")
    pairs, counts = (500, (20,)) if asked.smoke else (100_000, (100, 1000))
    record["cost"] = {"pairs": pairs, "width": 64, "runs": cost(pairs, 64, counts)}
    write_json(asked.out, record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
