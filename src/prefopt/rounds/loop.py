"""All rounds: sample, select, judge, check, train, evaluate, and again until a gate stops it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefopt.errors import RecipeError
from prefopt.judges.kept import Kept
from prefopt.judges.people import WaitingForPeople
from prefopt.judges.table import make_judge
from prefopt.recipe import load_recipe
from prefopt.rounds import judging, sampling
from prefopt.rounds.gates import best_round, reasons
from prefopt.rounds.ground import Ground, prepare, prompts_of
from prefopt.rounds.ledger import Ledger
from prefopt.rounds.page import write_page
from prefopt.rounds.settings import Rounds, training
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
    ledger = Ledger(rounds)
    ledger.folder.mkdir(parents=True, exist_ok=True)
    with held(ledger.folder):
        return Loop(ledger, progress).run()


@dataclass
class Loop:
    """One loop over its folder."""

    ledger: Ledger
    progress: bool

    def __post_init__(self) -> None:
        self.rounds, self.file = self.ledger.rounds, self.ledger.rounds.file
        self.display = Display(self.progress)
        self.history: list[dict[str, Any]] = []
        self.done: list[dict[str, Any]] = []
        self.stopped: dict[int, list[str]] = {}
        self.ledger.write("running", history=[], rounds=[])

    def run(self) -> dict[str, Any]:
        """All rounds; see `run_rounds`."""
        self.check_training()
        self._say("What the rounds stand on")
        self.ground: Ground = prepare(self.ledger, progress=self.progress)
        state, reason = "done", None
        try:
            self.history.append(self.measure(0))
            for number in range(1, self.file.rounds + 1):
                self.round(number)
                self.stopped[number] = reasons(self.history, self.file.gates)
                self.record("running")
                if self.stopped[number]:
                    state, reason = "stopped", "; ".join(self.stopped[number])
                    break
        except WaitingForPeople as waiting:
            state, reason = "waiting", f"{waiting.message}; {waiting.remedy}"
        return self.record(state, reason=reason)

    def check_training(self) -> None:
        """Refuse now what the objective would refuse after an hour of sampling."""
        from prefopt.training.prepare import settle

        settings = training(self.file, "model", ["data"], "out", "initial")
        try:
            settle(load_recipe(None, settings, origin="train"))
        except RecipeError as error:
            error.file, error.field = self.rounds.path, f"train.{error.field}"
            error.row = self.rounds.rows.get(error.field)
            raise

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

    def round(self, number: int) -> None:
        """All stages of a round, those that are finished only read."""
        figures: dict[str, Any] = {"round": number}
        self.done.append(figures)
        for name, work in (
            ("sample", self.sample), ("select", self.select), ("judge", self.judge),
            ("check", self.check), ("train", self.train),
        ):  # fmt: skip
            if not self.ledger.done(number, name):
                self._say(f"Round {number}: {name}")
            figures[name] = work(number)
        self.history.append(self.measure(number))

    def sample(self, number: int) -> dict[str, Any]:
        def work(folder: Path) -> Mapping[str, Any]:
            return sampling.sample(
                folder,
                self.file,
                self.policy(number - 1),
                prompts_of(self.ground, self.rounds, number),
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
                way=judging.way_of(self.judge_of(number), self.rounds),
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
            found = check(self.pairs(number), seed=self.file.seed, processes=1)
            write_text(folder / "check.json", json.dumps(found) + "\n")
            data_page.write(found, folder / "check.html")
            levels = [finding["level"] for finding in found["findings"]]
            kinds = {finding["kind"]: finding["count"] for finding in found["findings"]}
            longer = next(
                (f["value"] for f in found["findings"] if f["kind"] == "length_bias"), None
            )
            return {
                "errors": levels.count("error"), "warnings": levels.count("warning"),
                "notes": levels.count("note"), "kinds": kinds, "longer_preferred": longer,
            }  # fmt: skip

        return self.ledger.stage(number, "check", work)

    def train(self, number: int) -> dict[str, Any]:
        from prefopt.training.train import train

        def work(folder: Path) -> Mapping[str, Any]:
            first = 1 if self.file.data == "expanded" else number
            data = [
                {"path": str(self.pairs(past)), "name": f"round-{past}"}
                for past in range(first, number + 1)
            ]
            start, reference = self.start_of(number), self.reference_of(number)
            settings = training(self.file, start, data, str(folder), reference)
            if number > 1 and self.file.start == "previous":
                settings.pop("adapter", None)  # the one that is there goes on
            train(load_recipe(None, settings, origin="rounds"), progress=self.progress)
            return {}

        return self.ledger.stage(number, "train", work)

    def measure(self, number: int) -> dict[str, Any]:
        from prefopt.rounds.measuring import measure

        def work(folder: Path) -> Mapping[str, Any]:
            evaluating = self.evaluating()
            past = [0, number - 1] if number else []
            return measure(
                folder,
                self.file,
                self.ground.evaluation,
                models=(self.policy(number), self.ground.model),
                judges=(evaluating, self.judge_of(number)),
                before=[self.ledger.stage_folder(n, "evaluate") / "samples.jsonl" for n in past],
                scored=judging.scores(evaluating),
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

    def pairs(self, number: int) -> Path:
        return self.ledger.stage_folder(number, "judge") / "pairs.jsonl"

    def start_of(self, number: int) -> str:
        """The model that a round trains."""
        if self.file.start == "initial" or number == 1:
            return self.ground.model
        return str(self.ledger.stage_folder(number - 1, "train") / "model")

    def reference_of(self, number: int) -> str:
        """The `reference` of a round's recipe: a word where that saves a second copy."""
        if number == 1:
            return "initial"
        starts_anew = self.file.start == "initial"
        if self.file.reference == "initial":
            if starts_anew:
                return "initial"
            return "base" if self.file.train.get("adapter") else self.ground.model
        if not starts_anew:
            return "initial"
        return str(self.ledger.stage_folder(number - 1, "train") / "model")

    def judge_of(self, number: int, *, budget: int | None = None) -> Kept:
        """The judge of a round; `{policy}` and `{initial}` in its settings are that round's."""
        names = {"{policy}": self.policy(max(0, number - 1)), "{initial}": self.ground.model}
        judge = make_judge(
            _filled(self.file.judge, names), device=self.file.device, file=self.rounds.path
            if isinstance(self.file.judge, Mapping) else None,
            rows=self.rounds.rows, prefix="judge.",
        )  # fmt: skip
        return Kept(judge, self.ledger.verdicts, budget=budget, account=f"round-{number}")

    def evaluating(self) -> Kept:
        """Who says how good a policy is: in a world its own reward, unless another was named."""
        spec = self.file.evaluate.judge
        if spec is None:
            spec = "world" if self.file.world is not None else self.file.judge
        names = {"{policy}": self.ground.model, "{initial}": self.ground.model}
        judge = make_judge(_filled(spec, names), device=self.file.device)
        return Kept(judge, self.ledger.verdicts, account="evaluation")

    def _say(self, title: str) -> None:
        from rich.console import Console

        Console(stderr=True, quiet=not self.progress).rule(f"[bold]{title}", align="left")


def _filled(spec: Any, names: Mapping[str, str]) -> Any:
    """A judge's settings with the names of this round's policies in them."""
    if isinstance(spec, str):
        for name, value in names.items():
            spec = spec.replace(name, value)
        return spec
    if isinstance(spec, Mapping):
        return {key: _filled(value, names) for key, value in spec.items()}
    return [_filled(item, names) for item in spec] if isinstance(spec, Sequence) else spec
