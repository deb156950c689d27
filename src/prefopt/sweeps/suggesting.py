"""Points as Optuna suggests them: TPE, asked and told here, kept in a SQLite file.

Bergstra et al. 2011 (Algorithms for Hyper-Parameter Optimization); Akiba et al. 2019
(arXiv:1907.10902). A budget of KL is a constraint of the search: points that may meet it are
tried first. Trials are not pruned: a policy's KL, and so whether it can be chosen, is only
known at the end.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefopt.errors import MissingExtraError
from prefopt.sweeps.choosing import Standing
from prefopt.sweeps.points import Point, rounded
from prefopt.sweeps.settings import Range, Space, Sweep


def check_optuna() -> None:
    """Find out before anything is done that Optuna is there.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import optuna  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(
            "method optuna needs Optuna, which is not installed",
            field="method",
            value="optuna",
            remedy="pip install 'prefopt[sweep]', or set method: random",
        ) from error


class Suggested:
    """A study in a file: what it suggests is asked one by one, and told what came of it.

    Args:
        sweep: the file; its number of trials counts suggestions.
        path: the SQLite file.

    Raises:
        MissingExtraError: Optuna is not installed.
    """

    def __init__(self, sweep: Sweep, path: Path) -> None:
        check_optuna()
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._optuna = optuna
        self._sweep = sweep
        self._space = {name: _distribution(space) for name, space in sweep.search.items()}
        goal = sweep.file.goal
        path.parent.mkdir(parents=True, exist_ok=True)
        storage = optuna.storages.RDBStorage(f"sqlite:///{path}")
        # Another search or goal is another study: what was learned does not carry over.
        described = json.dumps([sweep.file.search, goal.model_dump()], sort_keys=True)
        name = hashlib.sha256(described.encode()).hexdigest()[:16]
        self._study = optuna.create_study(
            storage=storage,
            study_name=name,
            direction="maximize" if goal.maximise else "minimize",
            load_if_exists=True,
        )
        # A generator that began anew would repeat the first draws of a study that goes on.
        done = len(self._study.trials)
        self._study.sampler = optuna.samplers.TPESampler(seed=(sweep.file.seed or 0) + done)
        self._asked: dict[int, Any] = {}
        self._open = [
            optuna.trial.Trial(self._study, trial._trial_id)
            for trial in self._study.trials
            if not trial.state.is_finished()
        ]

    def ask(self) -> tuple[int, Point] | None:
        """The number and point of the next suggestion; None when there were enough.

        Those that an earlier process asked for and never told come first.
        """
        if self._open:
            trial = self._open.pop(0)
        elif len(self._study.trials) < (self._sweep.file.trials or 0):
            trial = self._study.ask(self._space)
        else:
            return None
        self._asked[trial.number] = trial
        return trial.number, self._point(trial.params)

    def tell(self, number: int, standing: Standing) -> None:
        """What came of a suggestion."""
        states = self._optuna.trial.TrialState
        if not standing.complete or standing.value is None:
            self._study.tell(number, state=states.FAIL)
            return
        budget = self._sweep.file.goal.kl_budget
        if budget is not None and standing.kl is not None:
            self._asked[number].set_constraint("kl", standing.kl.mean - budget)
        self._study.tell(number, standing.value.mean)

    def _point(self, chosen: Mapping[str, Any]) -> Point:
        spaces = self._sweep.search
        return {
            name: rounded(value, spaces[name]) if spaces[name].values is None
            else (spaces[name].values or [])[value]
            for name, value in ((name, chosen[name]) for name in spaces)
        }  # fmt: skip


def _distribution(space: Space) -> Any:
    """A range as it is; values as their places in the list, so that any value may be one."""
    import optuna

    if isinstance(space, Range):
        if space.values is None:
            return optuna.distributions.FloatDistribution(space.low, space.high, log=space.log)
        return optuna.distributions.IntDistribution(0, len(space.values) - 1)
    return optuna.distributions.CategoricalDistribution(tuple(range(len(space.values))))
