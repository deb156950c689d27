"""Several trainings in one process of several, or alone; what they came to, as rank 0 sees it.

    python spreading.py CASES OUT         (with torchrun's environment, or none)

CASES is a JSON file: name → the overrides of a recipe, and beside them what `_Case` knows.
OUT gets, by name, the metrics of every step, the final model's weights and what went wrong.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


@dataclass
class Case:
    """One training.

    Attributes:
        settings: overrides of the recipe.
        stop_at: die before this step, as a killed process would, and leave its checkpoint.
        show: also note what this process's micro-batches were.
    """

    settings: dict[str, Any]
    stop_at: int | None = None
    extra: dict[str, Any] = field(default_factory=dict)


def run(folder: Path, cases: dict[str, Case], processes: int) -> dict[str, Any]:
    """The cases in so many processes that join once; what they came to."""
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    tasks, out = folder / "cases.json", folder / "out.pt"
    tasks.write_text(json.dumps({name: vars(case) for name, case in cases.items()}))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes,
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
    }  # fmt: skip
    started = []
    for rank in range(processes):
        place = {**shared, "RANK": rank, "LOCAL_RANK": rank} if processes > 1 else {}
        started.append(
            subprocess.Popen(
                [sys.executable, __file__, str(tasks), str(out)],
                env={**os.environ, **{key: str(value) for key, value in place.items()}},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    said = [process.communicate(timeout=400)[0] for process in started]
    for process, text in zip(started, said, strict=True):
        assert process.returncode == 0, "\n\n".join(said)
    result: dict[str, Any] = torch.load(out, weights_only=False)
    return result


def _one(case: dict[str, Any]) -> dict[str, Any]:
    from unittest.mock import patch

    from prefopt.errors import PrefoptError
    from prefopt.policies.load import load_policy
    from prefopt.recipe import load_recipe
    from prefopt.training import distributed, loop
    from prefopt.training.train import train

    settings = {"device": "cpu", **case["settings"]}
    real = loop.accumulate
    seen: list[Any] = []

    def accumulate(job: Any, step: Any, state: Any) -> Any:
        if state.step == case["stop_at"]:
            raise RuntimeError("killed")
        seen.append([counts for _, counts in job.spread.share(step.pieces(job.spread.readers))])
        return real(job, step, state)

    result: dict[str, Any] = {}
    with patch.object(loop, "accumulate", accumulate):
        try:
            result["result"] = train(load_recipe(None, settings), progress=False).to_dict()
        except PrefoptError as error:
            result["error"] = str(error)
        except RuntimeError as error:
            if str(error) != "killed":
                raise
    result["counts"] = distributed.gather(seen)
    if distributed.main():
        folder = Path(settings["out"])
        if (folder / "metrics.jsonl").exists():
            lines = (folder / "metrics.jsonl").read_text().splitlines()
            result["metrics"] = [json.loads(line) for line in lines]
        if (folder / "model").exists():
            model = load_policy(folder / "model", device="cpu").model
            result["weights"] = {n: w.detach().clone() for n, w in model.state_dict().items()}
            result["manifest"] = json.loads((folder / "manifest.json").read_text())
    return result


def main(tasks: str, out: str) -> None:
    import torch

    from prefopt.training import distributed

    torch.set_num_threads(1)
    with distributed.start():
        cases = json.loads(Path(tasks).read_text())
        results = {name: _one(case) for name, case in cases.items()}
        if distributed.main():
            torch.save(results, out)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
