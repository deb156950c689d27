"""Trainings in processes that meet once, or alone; what they came to, as rank 0 sees it.

    python spreading.py CASES OUT         (with torchrun's environment)

CASES is a JSON file: name → a `Case`. OUT gets, by name, the metrics of every step, the final
model's weights, and what went wrong.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass
class Case:
    """One training.

    Attributes:
        settings: overrides of the recipe.
        stop_at: die before the step that follows so many, and leave the last checkpoint.
        copy: the folder of a training that this one goes on with, in a copy of it.
    """

    settings: dict[str, Any]
    stop_at: int | None = None
    copy: str | None = None


def run(folder: Path, cases: dict[str, Case], processes: int) -> dict[str, Any]:
    """The cases in so many processes, what each came to; one process is this one."""
    folder.mkdir(parents=True, exist_ok=True)
    if processes == 1:
        return {name: train_case(vars(case)) for name, case in cases.items()}
    import torch

    tasks, out = folder / "cases.json", folder / "out.pt"
    tasks.write_text(json.dumps({name: vars(case) for name, case in cases.items()}))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {
        "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes, "PREFOPT_CACHE": folder / "cache",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "PREFOPT_PATIENCE": 100,
    }  # fmt: skip
    started = [
        subprocess.Popen(
            [sys.executable, __file__, str(tasks), str(out)],
            env={
                **os.environ,
                **{key: str(value) for key, value in shared.items()},
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(processes)
    ]
    said = [process.communicate(timeout=400)[0] for process in started]
    assert not any(process.returncode for process in started), "\n\n".join(said)
    result: dict[str, Any] = torch.load(out, weights_only=False)
    return result


def train_case(case: dict[str, Any]) -> dict[str, Any]:
    """One training of this process, or of all that met."""
    from unittest.mock import patch

    from prefopt.errors import PrefoptError
    from prefopt.policies.export import load_any
    from prefopt.recipe import load_recipe
    from prefopt.training import distributed, loop
    from prefopt.training.train import train

    settings = {"device": "cpu", **case["settings"]}
    out = Path(settings["out"])
    if case["copy"] is not None:
        distributed.by_main(lambda: shutil.copytree(case["copy"], out))
    real = loop.accumulate
    pieces: list[list[bool]] = []

    def accumulate(job: Any, step: Any, state: Any) -> Any:
        if state.step == case["stop_at"]:
            raise RuntimeError("killed")
        pieces.append([counts for _, counts in job.spread.share(step.pieces(job.spread.readers))])
        return real(job, step, state)

    result: dict[str, Any] = {}
    with patch.object(loop, "accumulate", accumulate):
        try:
            train(load_recipe(None, settings), progress=False)
        except PrefoptError as error:
            result["error"] = str(error)
        except RuntimeError as error:
            if str(error) != "killed":
                raise
    for thread in threading.enumerate():
        if thread.name.startswith("checkpoint"):
            thread.join()
    result["pieces"] = distributed.gather(pieces)
    result["errors"] = distributed.gather(result.get("error"))
    if distributed.main():
        if (out / "metrics.jsonl").exists():
            lines = (out / "metrics.jsonl").read_text().splitlines()
            result["metrics"] = [json.loads(line) for line in lines]
        result["checkpoints"] = sorted(path.name for path in out.glob("checkpoints/*step-*"))
        if (out / "model").exists():
            model = load_any(out / "model", device="cpu").model
            result["weights"] = {n: w.detach().clone() for n, w in model.state_dict().items()}
            manifest = json.loads((out / "manifest.json").read_text())
            result["fingerprint"] = manifest["result"]["fingerprint"]
    return result


def main(tasks: str, out: str) -> None:
    import torch

    from prefopt.training import distributed

    torch.set_num_threads(1)
    with distributed.start():
        cases = json.loads(Path(tasks).read_text())
        results = {name: train_case(case) for name, case in cases.items()}
        if distributed.main():
            torch.save(results, out)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
