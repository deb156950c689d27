"""The sweep's folder: what was tried, what came of it, and what may go on there.

    sweep.json     every trial with its settings, results and state; written after each change
    recipes/       the recipe of every trial, complete: `prefopt train` takes it
    trials/        their run folders
    logs/          what each training said
    answers/       the reference's answers, for win rates
    report.html    the page for people

A run folder is the truth about its trial; `sweep.json` is made from them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from prefopt import __version__
from prefopt.errors import RunError
from prefopt.recipe import dump, load_recipe
from prefopt.runs import explained, fingerprint_file, write_text
from prefopt.sweeps.choosing import Standing, best, standings
from prefopt.sweeps.points import Point
from prefopt.sweeps.settings import Sweep
from prefopt.sweeps.trials import Recipes, Result, Trial, differences, numbers_of


class Ledger:
    """All trials of a folder by name, in the order in which they came up.

    Args:
        sweep: the file.
        retry: try again what failed before.

    Raises:
        RunError: the folder holds something else, or trials of another recipe.
    """

    def __init__(self, sweep: Sweep, *, retry: bool = False) -> None:
        self.sweep = sweep
        self.folder = Path(sweep.file.out)
        self.document = self.folder / "sweep.json"
        self.report = self.folder / "report.html"
        self.recipes = Recipes(sweep, self.folder)
        self.results: dict[str, Result] = {}
        self.test: Mapping[str, Any] | None = None
        self._retry = retry
        self._read()

    # -- trials --------------------------------------------------------------------------------

    def add(self, point: Point) -> list[Result]:
        """The point's trials, with what is already known of them."""
        return [self._known(trial) for trial in self.recipes.trials(point)]

    def _known(self, trial: Trial) -> Result:
        known = self.results.get(trial.name)
        if known is None:
            self._check_same(trial)
            known = self.results[trial.name] = Result(trial)
            self.look(known)
        return known

    def write_recipe(self, trial: Trial) -> Path:
        """The trial's recipe in its file."""
        path = self.recipe_of(trial)
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, dump(trial.resolved))
        return path

    def recipe_of(self, trial: Trial) -> Path:
        return self.folder / "recipes" / f"{trial.name}.yaml"

    def log_of(self, trial: Trial) -> Path:
        return self.folder / "logs" / f"{trial.name}.log"

    def look(self, result: Result) -> bool:
        """Whether the trial is done; if it is, its results are read.

        Raises:
            RunError: its data has changed since.
        """
        run = result.trial.run
        if not run.finished or (self.judged and not run.evaluation.exists()):
            return False
        self._check_data(run.read_json(run.manifest))
        result.numbers, result.seconds = numbers_of(run)
        name = self.sweep.file.goal.name
        if name in result.numbers:
            result.state, result.message = "done", None
        else:
            result.state = "failed"
            result.message = f"its results have no {name}; they have {', '.join(result.numbers)}"
        return True

    @property
    def judged(self) -> bool:
        """Whether a trial is done only when its samples were compared with the reference's."""
        return self.sweep.file.goal.name == "win_rate"

    # -- what they come to -----------------------------------------------------------------------

    @property
    def ranked(self) -> list[Standing]:
        """Points from best to worst."""
        return standings(self.results.values(), self.sweep.file.goal)

    @property
    def best(self) -> Standing | None:
        """The point that would be chosen now."""
        return best(self.ranked)

    def counts(self) -> dict[str, int]:
        """How many trials are in each state."""
        states = [result.state for result in self.results.values()]
        return {state: states.count(state) for state in dict.fromkeys(states)}

    def to_dict(self) -> dict[str, Any]:
        """What `sweep.json` holds."""
        ranked = self.ranked
        chosen = best(ranked)
        file = self.sweep.file
        return {
            "prefopt": __version__,
            "goal": {**file.goal.model_dump(), "maximise": file.goal.maximise},
            "recipe": file.recipe,
            "search": file.search,
            "method": file.method,
            "counts": self.counts(),
            "best": None if chosen is None else self._chosen(chosen),
            "test": self.test,
            "points": [standing.to_dict() for standing in ranked],
            "trials": [result.to_dict() for result in self.results.values()],
        }

    def _chosen(self, standing: Standing) -> dict[str, Any]:
        first = standing.results[0].trial
        return {
            **standing.to_dict(),
            "recipe": str(self.recipe_of(first)),
            "command": self.again(first),
            "runs": [str(result.trial.run.folder) for result in standing.results],
        }

    def again(self, trial: Trial) -> list[str]:
        """The command that trains a trial's recipe once more."""
        return ["prefopt", "train", str(self.recipe_of(trial)), "--out", f"{self.folder}-winner"]

    def write(self) -> None:
        """`sweep.json`, whole or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.to_dict(), indent=2, ensure_ascii=False, allow_nan=False)
        write_text(self.document, text + "\n")

    # -- a folder that was there -------------------------------------------------------------

    def _read(self) -> None:
        if not self.document.exists():
            strangers = self.folder.glob("[!.]*") if self.folder.is_dir() else ()
            for stranger in strangers:
                raise RunError(
                    f"the folder is not a sweep: it holds {stranger.name}",
                    file=str(self.folder),
                    field="out",
                    remedy="choose another out; a sweep wants a folder of its own",
                )
            return
        try:
            with explained(self.document):
                document = json.loads(self.document.read_text(encoding="utf-8"))
            columns = ("settings", "seed", "state", "error")
            before = [[row[name] for name in columns] for row in document["trials"]]
        except (ValueError, KeyError, TypeError) as error:
            raise RunError(
                f"not the record of a sweep: {error}",
                file=str(self.document),
                remedy="restore the file, or choose another out",
            ) from error
        for point, seed, state, message in before:
            result = self._known(self.recipes.trial(point, seed))
            if result.state == "waiting" and state == "failed" and not self._retry:
                result.state, result.message = "failed", message
        self.test = document.get("test")

    def _check_same(self, trial: Trial) -> None:
        """Refuse to mix trials of two recipes.

        Raises:
            RunError: a trial of this name was made from another recipe.
        """
        path = self.recipe_of(trial)
        if not path.exists():
            return
        different = differences(load_recipe(path, {}), trial.resolved)
        if different:
            raise RunError(
                "the folder holds trials of another recipe: " + "; ".join(different),
                file=str(self.folder),
                field="out",
                remedy="choose another out, or undo the change; points and seeds can be added",
            )

    def _check_data(self, manifest: Mapping[str, Any]) -> None:
        for part in manifest["data"].values():
            for file in part["files"] if part else ():
                if file["sha256"] is not None and _digest(file["path"]) != file["sha256"]:
                    raise RunError(
                        "the folder holds finished trials, and their data has changed since",
                        file=file["path"],
                        field="out",
                        remedy="restore the file, or choose another out",
                    )


@cache
def _digest(path: str) -> str | None:
    """Once a process and file: all trials have the same."""
    return fingerprint_file(path) if Path(path).exists() else None
