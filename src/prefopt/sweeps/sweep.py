"""A whole sweep: from its file to trials, the best of them, and a page about all.

Everything is checked before the first trial starts. Trials are run folders made by the
ordinary training; what is finished is not done again, so the same command goes on where a
sweep was stopped, and a longer file adds what is new.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from prefopt.data.files import find_files
from prefopt.errors import RunError
from prefopt.runs import held
from prefopt.sweeps.choosing import Standing, standings
from prefopt.sweeps.ledger import Ledger
from prefopt.sweeps.page import write_page
from prefopt.sweeps.points import combinations, corners, draw, grid
from prefopt.sweeps.schedule import Schedule
from prefopt.sweeps.settings import MOST, Sweep
from prefopt.sweeps.suggesting import Suggested, check_optuna
from prefopt.sweeps.trials import Result, title
from prefopt.sweeps.winner import measure_winner


@dataclass(frozen=True)
class SweepResult:
    """What a sweep came to.

    Attributes:
        document: what `sweep.json` holds.
        ranked: points from best to worst.
        report: the page.
        failed: every trial that was tried has failed.
    """

    document: dict[str, Any]
    ranked: list[Standing]
    report: Path
    failed: bool


def run_sweep(sweep: Sweep, *, retry: bool = False, progress: bool = True) -> SweepResult:
    """Do what is left of a sweep, and report on the whole.

    Args:
        sweep: what `load_sweep` returns.
        retry: try again what failed before.
        progress: say on stderr what happens.

    Raises:
        RecipeError, MissingExtraError: a wrong setting; nothing was written.
        RunError: the folder cannot be used, or holds another sweep.
        TrainingError: the winner cannot be measured on test data.
        KeyboardInterrupt: Ctrl-C, after every training saved a checkpoint.
    """
    if sweep.file.method == "optuna":
        check_optuna()
    ledger = Ledger(sweep, retry=retry)
    points = _points(sweep)
    for point in points or corners(sweep.search):
        ledger.recipes.trials(point)  # refuses what is wrong
    _check_test_data(ledger, points or corners(sweep.search))
    console = Console(stderr=True, quiet=not progress, highlight=False, markup=False)
    with _held(ledger.folder):
        if points is None:
            schedule = _suggested(ledger, console)
        else:
            waiting = [result for point in points for result in ledger.add(point)]
            schedule = _listed(ledger, waiting, console)
        ledger.write()
        try:
            schedule.work()
            chosen = ledger.best
            if chosen is not None and sweep.file.test_data is not None:
                ledger.test = measure_winner(ledger, chosen, console.print)
        finally:
            ledger.write()
            write_page(ledger)
    states = {result.state for result in ledger.results.values()}
    return SweepResult(
        ledger.to_dict() | {"report": str(ledger.report), "out": str(ledger.folder)},
        ledger.ranked,
        ledger.report,
        failed=states == {"failed"},
    )


def _points(sweep: Sweep) -> list[dict[str, Any]] | None:
    """All points, where they are known beforehand.

    Raises:
        RecipeError: more are asked for than there are.
    """
    file, there = sweep.file, combinations(sweep.search)
    if file.method == "optuna":
        return None
    asked = there if file.method == "grid" else file.trials or 0
    if asked > MOST:
        raise sweep.refuse(
            f"{asked:,.0f} points are more than one sweep can have, which is {MOST:,}",
            "search" if file.method == "grid" else "trials",
            remedy="search fewer values, or set method: random with fewer trials",
        )
    if file.method == "grid":
        return grid(sweep.search)
    points = draw(sweep.search, int(min(asked, there)), file.seed or 0)
    if len(points) < asked:
        raise sweep.refuse(
            f"the search has only {len(points)} points",
            "trials",
            value=file.trials,
            remedy="set fewer trials, or wider ranges; all of a list's are method: grid",
        )
    return points


# -- who works, and what is said of it -------------------------------------------------------


def _listed(ledger: Ledger, all_of_them: list[Result], console: Console) -> Schedule:
    waiting = [result for result in all_of_them if result.state == "waiting"]
    count, done = len(ledger.results), len(ledger.results) - len(waiting)
    if done:
        console.print(f"{done} of {count} trials were done before", soft_wrap=True)
    return Schedule(ledger, waiting, ended=lambda result: _say(ledger, result, console, count))


def _suggested(ledger: Ledger, console: Console) -> Schedule:
    """Trials of one suggestion after the other; each is told once all its seeds have ended."""
    study = Suggested(ledger.sweep, ledger.folder / "optuna.sqlite")
    open_points: dict[int, list[Result]] = {}
    per_point = len(ledger.sweep.file.seeds or (None,))
    count = (ledger.sweep.file.trials or 0) * per_point

    def settle() -> None:
        for number, results in list(open_points.items()):
            if all(result.state in ("done", "failed") for result in results):
                (standing,) = standings(results, ledger.sweep.file.goal)
                study.tell(number, standing)
                del open_points[number]

    def more() -> list[Result]:
        asked = study.ask()
        if asked is None:
            return []
        number, point = asked
        open_points[number] = ledger.add(point)
        settle()  # a point that was tried before is known already
        return ledger.add(point)

    def ended(result: Result) -> None:
        settle()
        _say(ledger, result, console, count)

    return Schedule(ledger, [], more=more, ended=ended)


def _say(ledger: Ledger, result: Result, console: Console, count: int) -> None:
    """One line about a trial that has ended."""
    goal = ledger.sweep.file.goal
    done = sum(r.state in ("done", "failed") for r in ledger.results.values())
    line = f"{done} of {count}: {title(result.trial)}: "
    if result.state == "failed":
        line += f"failed: {result.message}"
    else:
        line += f"{goal.measure} {result.numbers[goal.name]:.4g}"
        if (kl := result.numbers.get("probe.kl")) is not None:
            line += f", KL {kl:.3g}"
            line += " (over the budget)" if kl > (goal.kl_budget or math.inf) else ""
        line += f", {result.seconds:.0f} s"
    console.print(line, soft_wrap=True)


# -- what is refused ---------------------------------------------------------------------------


def _check_test_data(ledger: Ledger, points: list[dict[str, Any]]) -> None:
    """Refuse test data that took part in the choice, or that nothing could measure.

    Raises:
        RecipeError: it is among the trials' data, or there is no reference to compare with.
        DataError: there is no such file.
    """
    data, sweep = ledger.sweep.file.test_data, ledger.sweep
    if data is None:
        return
    find_files([data])
    for point in points:
        recipe = ledger.recipes.trials(point)[0].resolved.recipe
        seen = [source.path for source in (*recipe.data, *(recipe.eval_data or ()))]
        seen += [recipe.probe.prompts] if recipe.probe is not None else []
        if any(Path(data).resolve() == Path(path).resolve() for path in seen):
            raise sweep.refuse(
                "test_data is among the data of the trials, so it would prove nothing",
                "test_data",
                value=data,
                remedy="give data that is neither trained on, nor evaluated on, nor probed",
            )
        rewarded = recipe.probe is not None and recipe.probe.reward is not None
        scored = sweep.file.goal.name.startswith("eval.")
        if recipe.reference.name == "none" or not (scored or rewarded):
            raise sweep.refuse(
                "nothing can measure the winner on test_data: there is no "
                + ("reward of samples" if recipe.reference.name != "none" else "reference"),
                "test_data",
                value=data,
                remedy="remove test_data, or choose a goal and a recipe that have one",
            )


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Hold the sweep's folder against every other process.

    Raises:
        RunError: another sweep is at work there.
    """
    try:
        with held(folder):
            yield
    except RunError as error:
        if error.message.startswith("another process"):
            error.message = error.message.replace("this run", "this sweep")
        raise
