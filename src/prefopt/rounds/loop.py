"""All rounds: sample, select, judge, check, train, evaluate, and again until a gate stops it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from prefopt.data.checking.findings import LEVELS
from prefopt.judges.kept import Kept
from prefopt.judges.people import WaitingForPeople
from prefopt.recipe import load_recipe
from prefopt.rounds import judging, sampling
from prefopt.rounds.gates import best_round, reason_of_check, reasons
from prefopt.rounds.ground import Ground, prepare
from prefopt.rounds.judges import Judges, check_judges
from prefopt.rounds.ledger import Ledger
from prefopt.rounds.page import write_page
from prefopt.rounds.settings import Rounds
from prefopt.rounds.teaching import Teaching, data_of, pairs_of, teaching
from prefopt.runs import held, write_text
from prefopt.training.display import Display


def run_rounds(rounds: Rounds, *, progress: bool = True) -> dict[str, Any]:
    """Run what the file says, or go on where it was stopped.

    Args:
        rounds: the file.
        progress: say on stderr what happens.

    Returns:
        What `rounds.json` holds: `state` (`done`, `stopped` by a gate, `waiting` for people),
        `reason`, `best` (`round`, `model`, `value`), `history` (the figures of the policy
        before the first round and after each) and `rounds` (the figures of every stage).

    Raises:
        RunError: the folder holds something else, or another process works in it.
        RecipeError: there are too few prompts, or nothing can be trained on.
        PrefoptError: whatever a stage raises; the same call goes on with that stage.
    """
    for problem in check_judges(rounds):
        raise problem
    how = teaching(rounds)
    ledger = Ledger(rounds)
    with held(ledger.folder):
        return Loop(ledger, how, progress).run()


@dataclass
class Loop:
    """One loop over its folder."""

    ledger: Ledger
    teaching: Teaching
    progress: bool

    def __post_init__(self) -> None:
        self.rounds, self.file = self.ledger.rounds, self.ledger.rounds.file
        self.display = Display(self.progress)
        self.history: list[dict[str, Any]] = []
        self.done: list[dict[str, Any]] = []
        self.stopped: dict[int, list[str]] = {}

    def run(self) -> dict[str, Any]:
        """All rounds; see `run_rounds`."""
        self._say("What the rounds stand on")
        self.ground: Ground = prepare(self.ledger, progress=self.progress)
        self.judges = Judges(self.rounds, self.ledger.verdicts, self.ground.model)
        self.begin()
        state, reason = "done", None
        try:
            self.history.append(self.measure(0))
            self.so_far(0)
            for number in range(1, self.file.rounds + 1):
                self.stopped[number] = self.round(number)
                if self.stopped[number]:
                    state, reason = "stopped", "; ".join(self.stopped[number])
                    break
                self.so_far(number)
        except WaitingForPeople as waiting:
            state, reason = "waiting", f"{waiting.message}; {waiting.remedy}"
        return self.record(state, reason=reason)

    def begin(self) -> None:
        """Refuse judges that cannot be, then make the folder this loop's: from here on it is."""
        if self.ledger.begun:
            return
        _ = self.way
        self.judges.evaluating()
        self.ledger.write("running", best=None, history=[], rounds=[])

    def so_far(self, number: int) -> None:
        """Write down what is known after a round, unless more was known before."""
        last = number == self.file.rounds
        if not last and not self.ledger.done(number + 1, "evaluate"):
            self.record("running")

    def record(self, state: str, **further: Any) -> dict[str, Any]:
        """Write down where the loop is, with the best round so far."""
        best = None
        if self.history:
            number = best_round(self.history, self.stopped)
            model = self.ledger.keep(number) or self.ground.model
            best = {"round": number, "model": model, "value": self.history[number]["value"]}
        known = {"best": best, "history": self.history, "rounds": self.done}
        document = self.ledger.write(
            state, **further, stopped_by=dict(self.stopped), **known, report=str(self.ledger.report)
        )
        write_page(self.ledger.folder, document)
        return document

    # -- one round ---------------------------------------------------------------------------

    def round(self, number: int) -> list[str]:
        """All stages of a round, those that are finished only read; why the loop stops then."""
        figures: dict[str, Any] = {"round": number}
        self.done.append(figures)
        for name, work in (
            ("sample", self.sample), ("select", self.select), ("judge", self.judge),
            ("check", self.check), ("train", self.train),
        ):  # fmt: skip
            if not self.ledger.done(number, name):
                self._say(f"Round {number}: {name}")
            figures[name] = work(number)
            if name == "check":
                stopped = reason_of_check(figures[name].get("found", {}), self.file.gates)
                if stopped is not None:
                    return [f"before round {number} trains, {stopped}"]
        self.history.append(self.measure(number))
        return reasons(self.history, self.file.gates)

    def sample(self, number: int) -> dict[str, Any]:
        def work(folder: Path) -> Mapping[str, Any]:
            return sampling.sample(
                folder,
                self.file,
                self.policy(number - 1),
                self.ground.prompts[number - 1],
                name=f"round-{number - 1}",
                seed=self.file.seed + number,
                display=self.display,
            )

        return self.ledger.stage(number, "sample", work)

    def select(self, number: int) -> dict[str, Any]:
        def work(folder: Path) -> Mapping[str, Any]:
            return judging.select(
                folder,
                self.rounds,
                self.ledger.stage_folder(number, "sample") / "samples.jsonl",
                way=self.way,
                policies=(self.policy(number - 1), self.ground.model),
                seed=self.file.seed + number,
            )

        return self.ledger.stage(number, "select", work)

    def judge(self, number: int) -> dict[str, Any]:
        def work(folder: Path) -> Mapping[str, Any]:
            selected = self.ledger.stage(number, "select", lambda _: {})
            return judging.judge(
                folder,
                self.rounds,
                self.ledger.stage_folder(number, "select") / "questions.jsonl",
                self.judge_of(number, budget=self.file.select.budget),
                way=selected["by"],
                seed=self.file.seed + number,
                display=self.display,
            )

        return self.ledger.stage(number, "judge", work)

    def check(self, number: int) -> dict[str, Any]:
        """What is wrong with this round's comparisons; training refuses errors by itself."""
        from prefopt.data.checking.check import check
        from prefopt.report import data_page

        def work(folder: Path) -> Mapping[str, Any]:
            found = check(pairs_of(self.ledger, number), seed=self.file.seed, processes=1)
            write_text(folder / "check.json", json.dumps(found) + "\n")
            data_page.write(found, folder / "check.html")
            levels: dict[str, dict[str, int]] = {level: {} for level in LEVELS}
            for finding in found["findings"]:
                levels[finding["level"]][finding["kind"]] = finding["count"]
            return {"found": levels}

        return self.ledger.stage(number, "check", work)

    def train(self, number: int) -> dict[str, Any]:
        from prefopt.report import build_report
        from prefopt.training.train import train

        def work(folder: Path) -> Mapping[str, Any]:
            data = data_of(self.ledger, number)
            settings = self.teaching.recipe(self.ledger, self.ground.model, number, data)
            train(load_recipe(None, settings, origin="rounds"), progress=self.progress)
            return {}

        figures = self.ledger.stage(number, "train", work)
        folder = self.ledger.stage_folder(number, "train")
        if not (folder / "report.html").exists():  # a training finishes before it has its page
            build_report(folder)
        return figures

    def measure(self, number: int) -> dict[str, Any]:
        from prefopt.rounds.measuring import measure

        def work(folder: Path) -> Mapping[str, Any]:
            past = [0, number - 1] if number else []
            before = self.policy(max(0, number - 1))
            return measure(
                folder,
                self.rounds,
                self.ground,
                self.policy(number),
                judges=lambda: self.judges.measuring(before),
                before=[self.ledger.stage_folder(n, "evaluate") / "samples.jsonl" for n in past],
                display=self.display,
            )

        if not self.ledger.done(number, "evaluate"):
            self._say(f"Round {number}: evaluate" if number else "The first policy")
        return self.ledger.stage(number, "evaluate", work)

    # -- who and what ------------------------------------------------------------------------

    def policy(self, number: int) -> str:
        """What the policy after a round is loaded from; 0 is the first one."""
        if number == 0:
            return self.ground.model
        return str(self.ledger.stage_folder(number, "train"))

    @cached_property
    def way(self) -> judging.Way:
        """How the judge is asked, the same in all rounds."""
        return judging.way_of(self.judge_of(1), self.rounds)

    def judge_of(self, number: int, *, budget: int | None = None) -> Kept:
        """The judge of a round, with the policy that wrote its answers."""
        return self.judges.of_rounds(self.policy(number - 1), f"round-{number}", budget=budget)

    def _say(self, title: str) -> None:
        from rich.console import Console

        Console(stderr=True, quiet=not self.progress).rule(f"[bold]{title}", align="left")
