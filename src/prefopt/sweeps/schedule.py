"""Which trial runs where and when: one on each slot, and none that does another's work.

Reference scores and tokens are kept by content, so all trials of a sweep can have those of
the first. Only a race would compute them twice. Therefore the first trial of those that
share goes ahead alone; the others start once it has written its first metrics, which it
does as soon as the reference is scored.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

from prefopt.errors import RunError
from prefopt.runs import held
from prefopt.sweeps import running
from prefopt.sweeps.ledger import Ledger
from prefopt.sweeps.running import Running
from prefopt.sweeps.trials import Result, Trial

POLL = 0.1  # seconds between two looks at the processes


@dataclass
class _Slot:
    """A place where one trial runs at a time."""

    device: str | None
    result: Result | None = None
    process: Running | None = None
    further: list[list[str]] = field(default_factory=list)


class Schedule:
    """Trials that wait, and the slots they run on.

    Args:
        ledger: where results go.
        waiting: what is to be done, in order.
        more: asked for further trials when a slot has nothing to do; none when that is all.
        ended: told each trial that is done or has failed.
    """

    def __init__(
        self,
        ledger: Ledger,
        waiting: Sequence[Result],
        *,
        more: Callable[[], list[Result]] = list,
        ended: Callable[[Result], None] = lambda result: None,
    ) -> None:
        self.ledger = ledger
        self.waiting = list(waiting)
        self.more = more
        self.ended = ended
        self.slots = [_Slot(device) for device in ledger.sweep.slots]
        self._prepared: set[str] = set()

    def work(self) -> None:
        """Until nothing waits and nothing runs.

        Raises:
            KeyboardInterrupt: Ctrl-C or SIGTERM, once every training saved a checkpoint.
        """
        with _terminable():
            try:
                while self._fill() or any(slot.result for slot in self.slots):
                    time.sleep(POLL)
                    for slot in self.slots:
                        self._look(slot)
            except BaseException:
                self._stop()
                raise

    # -- starting --------------------------------------------------------------------------------

    def _fill(self) -> bool:
        """Give every free slot a trial; returns whether any is left that waits."""
        for slot in self.slots:
            if slot.result is None and (result := self._next()) is not None:
                self._begin(slot, result)
        return bool(self.waiting)

    def _next(self) -> Result | None:
        """The first trial that may start now."""
        ready = next(filter(self._ready, self.waiting), None)
        while ready is None and not self.waiting and (further := self.more()):
            self.waiting = [result for result in further if result.state == "waiting"]
            ready = next(filter(self._ready, self.waiting), None)
        if ready is not None:
            self.waiting.remove(ready)
        return ready

    def _ready(self, result: Result) -> bool:
        return self._may_share(result.trial) and not _busy(result.trial)

    def _may_share(self, trial: Trial) -> bool:
        """Whether what it shares is there, or nobody else is about to make it."""
        key = trial.shares
        if key is None or key in self._prepared:
            return True
        results = self.ledger.results.values()
        if any(r.trial.shares == key and r.trial.run.metrics_size() for r in results):
            self._prepared.add(key)
            return True
        return all(slot.result is None or slot.result.trial.shares != key for slot in self.slots)

    def _begin(self, slot: _Slot, result: Result) -> None:
        if self.ledger.look(result):  # another process has finished it in the meantime
            self._end(result)
            return
        trial, run = result.trial, result.trial.run
        recipe = self.ledger.write_recipe(trial)
        slot.result, result.state = result, "running"
        arguments, _ = running.placed(slot.device, len(self.slots))
        train = ["prefopt", "train", str(recipe), "--json", *arguments]
        answers = str(self.ledger.folder / "answers")
        judge = ["prefopt.sweeps.judging", str(run.folder), "--answers", answers, *arguments]
        slot.further = [train] if not run.finished else []
        slot.further += [judge] if self.ledger.judged else []
        self.ledger.write()
        self._step(slot)

    def _step(self, slot: _Slot) -> None:
        """Start the slot's next command."""
        assert slot.result is not None
        _, environment = running.placed(slot.device, len(self.slots))
        log = self.ledger.log_of(slot.result.trial)
        slot.process = running.start(slot.further.pop(0), log, environment)

    # -- ending ----------------------------------------------------------------------------------

    def _look(self, slot: _Slot) -> None:
        """Go on where a command has ended."""
        if slot.process is None or (ended := slot.process.poll()) is None:
            return
        slot.process, result = None, slot.result
        assert result is not None
        if ended.problem is None and slot.further:
            self._step(slot)
            return
        slot.result, slot.further = None, []
        if ended.interrupted:  # by somebody else: this process was not
            raise KeyboardInterrupt
        if ended.problem is not None:
            result.state, result.message = "failed", ended.problem
        elif not self.ledger.look(result):
            result.state, result.message = "failed", "its run was not finished"
        self._end(result)

    def _end(self, result: Result) -> None:
        self.ledger.write()
        self.ended(result)

    def _stop(self) -> None:
        """End what runs: each training finishes its step and saves, or is ended after a while."""
        busy = [slot for slot in self.slots if slot.process is not None]
        for slot in busy:
            assert slot.process is not None
            slot.process.interrupt()
        try:
            until = time.monotonic() + running.GRACE
            while busy and time.monotonic() < until:
                time.sleep(POLL)
                busy = [slot for slot in busy if slot.process and slot.process.poll() is None]
        finally:  # Ctrl-C once more
            for slot in busy:
                assert slot.process is not None
                slot.process.kill()
            for slot in self.slots:
                if slot.result is not None and not self.ledger.look(slot.result):
                    slot.result.state = "interrupted"
            self.ledger.write()


def _busy(trial: Trial) -> bool:
    """Whether a process of an earlier sweep, which was killed, still trains it."""
    folder = trial.run.folder
    if not folder.is_dir():
        return False
    try:
        with held(folder):
            return False
    except RunError:
        return True


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM, as schedulers send it, ends a sweep as Ctrl-C does."""

    def stop(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # outside the main thread nothing is changed
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
