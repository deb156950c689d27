"""What one process of a benchmark has to do, what it says of it, and its clock and gauge."""

from __future__ import annotations

import contextlib
import gc
import resource
import time
from dataclasses import dataclass, field
from pathlib import Path

from torch.optim.optimizer import register_optimizer_step_post_hook
from workload import Row


@dataclass
class Task:
    """What one process has to do.

    Attributes:
        folder: the work folder, as `workload.py` writes it.
        rows: pairs in the order of the steps, `batch` of them to a step.
        batch: pairs to a step; those of one prompt are never in two steps.
        warmup: steps before the clock starts.
        epochs: passes over the rows; more than one only where losses are compared.
        cycles: passes over the timed rows.
        learning_rate: constant.
    """

    folder: Path
    rows: list[Row]
    batch: int
    warmup: int
    epochs: int
    cycles: int
    learning_rate: float

    @property
    def steps(self) -> int:
        return self.epochs * len(self.order) // self.batch

    @property
    def timed(self) -> int:
        """Timed steps of one cycle."""
        return len(self.rows) // self.batch - self.warmup

    @property
    def adapter(self) -> bool:
        return (self.folder / "adapter").exists()

    @property
    def order(self) -> list[Row]:
        """The rows of an epoch: those of the warm-up, then the timed ones again and again."""
        warm = self.warmup * self.batch
        return self.rows[:warm] + self.cycles * self.rows[warm:]


@dataclass
class Outcome:
    """What a contender reports of itself, beside what is measured from outside.

    Attributes:
        losses: of each step, where the contender tells them.
        tokens: (prompt, chosen, rejected) ids of each row.
        prepared: seconds spent before the meter was started on what is part of the job:
            tokenising, and reference scores that are computed in advance.
    """

    losses: list[float] = field(default_factory=list)
    tokens: list[tuple[list[int], ...]] = field(default_factory=list)
    prepared: float = 0.0


class Meter:
    """The clock and the memory gauge."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self._hook = register_optimizer_step_post_hook(
            lambda *_: self.ends.append(time.perf_counter())
        )

    def start(self) -> None:
        """Called when imports, weights and rows are in place and only training is left."""
        gc.collect()
        self.held_mib = _status_mib("VmRSS")
        with contextlib.suppress(OSError):  # Linux: forget the peak so far
            Path("/proc/self/clear_refs").write_text("5")
        self.started = time.perf_counter()

    def stop(self) -> float:
        """No more steps are noted; the peak of the process's memory, in MiB."""
        self._hook.remove()
        return _status_mib("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _status_mib(key: str) -> float:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(key)), 0.0)
