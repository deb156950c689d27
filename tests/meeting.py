"""Two processes that meet, tell each other things, and end badly; run by tests/test_launch.py.

    python meeting.py FOLDER      (with RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT)

Each stands for a machine of its own: it is the first process there, with its own cache.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


def hold(folder: Path) -> list[dict[str, Any]]:
    """Run both; returns what each wrote down."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    here = {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    children = [
        subprocess.Popen(
            [sys.executable, __file__, str(folder)], env={**os.environ, **here, "RANK": str(rank)}
        )
        for rank in range(2)
    ]
    for child in children:
        child.wait(timeout=300)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def _told(action: Callable[[], object]) -> str:
    from prefopt.errors import PrefoptError

    try:
        return str(action())
    except PrefoptError as error:
        return f"{type(error).__name__}: {error}"


def _scores(folder: Path, rank: int) -> dict[str, Any]:
    """Four micro-batches of two groups with one completion each, scored by both."""
    import numpy as np
    import torch

    from prefopt.engine.cache import ScoreCache
    from prefopt.engine.tokens import TokenGroup
    from prefopt.records import Comparison
    from prefopt.training.batches import Examples
    from prefopt.training.parallel import Spread
    from prefopt.training.references import score_examples
    from prefopt.training.steps import in_order

    answers = (np.array([5, 6], np.int32), np.array([7], np.int32))
    groups = [
        TokenGroup(np.array([number], np.int32), answers, (Comparison(0, 1),))
        for number in range(4)
    ]

    def scored(cache: Path) -> tuple[list[int], list[float]]:
        computed = []

        def score(part: Sequence[TokenGroup]) -> torch.Tensor:
            (number,) = (int(group.prompt[0]) for group in part)
            computed.append(number)
            return torch.tensor([number + 0.1 + rank / 1000, -number], dtype=torch.float64)

        examples = Examples(list(groups))
        steps = in_order(examples, batch_size=1, microbatch_tokens=8192)
        spread = Spread("ddp", readers=2, reader=rank)
        score_examples(examples, steps, score, ScoreCache(cache), "key", spread=spread)
        assert examples.reference is not None
        found = [examples.reference.of(place, 2).tolist() for place in range(len(groups))]
        return computed, [number for pair in found for number in pair]

    computed, scores = scored(folder / f"cache-{rank}")
    own = ScoreCache(folder / f"cache-{rank}").get("key", groups)
    # Now the second machine is new, and has nothing.
    again, scores_again = scored(folder / f"cache-{rank}" if rank == 0 else folder / "new")
    return {
        "computed": computed,
        "scores": scores,
        "cached": None if own is None else own.tolist(),
        "again": again,
        "scores_again": scores_again,
    }


def main(folder: Path) -> None:
    from prefopt.errors import DataError, RunError
    from prefopt.training import distributed

    said: dict[str, Any] = {}

    def full() -> None:
        assert distributed.main()
        raise RunError("the disk is full")

    def read(rank: int) -> None:
        if rank == 1:
            raise DataError("row 7 of process 1")

    try:
        with distributed.start():
            rank = distributed.rank()
            said = {
                "rank": rank,
                "highest": distributed.highest(rank),
                "any": distributed.any_process(rank == 1),
                "broadcast": distributed.broadcast(f"of {rank}"),
                "gather": distributed.gather(rank),
                "by_main": [_told(lambda: distributed.by_main(full)),
                            _told(lambda: distributed.by_main(lambda: 42))],
                "agree": _told(lambda: distributed.agree("policy", rank)),
                "leaders_first": _told(lambda: distributed.leaders_first(lambda: read(rank))),
                **_scores(folder, rank),
            }  # fmt: skip
            if rank == 1:
                print(1 // 0)
            distributed.any_process(False)
    except Exception as error:
        said["end"] = [type(error).__name__, getattr(error, "speaks", None)]
    (folder / f"{said['rank']}.json").write_text(json.dumps(said))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
