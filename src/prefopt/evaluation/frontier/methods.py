"""The methods that are compared: a table, and the grid of each."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from prefopt.data.worlds import EnumerableWorld
from prefopt.errors import RecipeError
from prefopt.evaluation.frontier import ppo, preferences
from prefopt.evaluation.frontier.preferences import Point, by_objective, unlikelihood
from prefopt.evaluation.frontier.reward_model import learned_reward
from prefopt.evaluation.frontier.stage import Scale, Stage, prepare
from prefopt.objectives.registry import OBJECTIVES, find_objective

#: β of an objective and κ of PPO: nats of reward that a nat of divergence costs
BETAS = (0.2, 0.5, 1.0, 2.0, 5.0)
#: α of unlikelihood, as in the DPO paper
ALPHAS = (0.05, 0.1, 0.5, 1.0)
#: n of best-of-n
COUNTS = (1, 2, 4, 8, 16, 32, 64, 128)


@dataclass(frozen=True)
class Experiment:
    """One curve: a method at one setting from one seed.

    Attributes:
        method: a line of the table, or an objective.
        setting: name of what its grid is over.
        value: on the grid; None where there is none.
        seed: of the world and of everything in it.
    """

    method: str
    setting: str | None
    value: float | None
    seed: int


@dataclass(frozen=True)
class Method:
    """A line of the table.

    Attributes:
        title: as people say it.
        run: (stage, value) → its points.
        setting: name of what its grid is over.
        grid: the values.
        trained: whether its points are moments of a training, or policies of their own.
    """

    title: str
    run: Callable[[Stage, float], list[Point]]
    setting: str | None = None
    grid: Sequence[float] = ()
    trained: bool = True


def _preferred_only(stage: Stage, _: float) -> list[Point]:
    loss, losses = by_objective("sft", {})
    return preferences.train(stage, losses, loss)


def _unlikelihood(stage: Stage, alpha: float) -> list[Point]:
    return preferences.train(stage, unlikelihood(alpha))


def _ppo(stage: Stage, kappa: float) -> list[Point]:
    return ppo.train(stage, learned_reward(stage.scale, stage.seed)[0], kappa)


def _ppo_true(stage: Stage, kappa: float) -> list[Point]:
    return ppo.train(stage, stage.world.reward / stage.scale.temperature, kappa)


def _best_of(stage: Stage, _: float) -> list[Point]:
    """The exact distributions of the best of n by the reward model."""
    reward = learned_reward(stage.scale, stage.seed)[0]
    return _best_by(replace(stage.world, reward=reward), stage)


def _best_of_true(stage: Stage, _: float) -> list[Point]:
    return _best_by(stage.world, stage)


def _best_by(judged: EnumerableWorld, stage: Stage) -> list[Point]:
    """Where the best of n by one world's reward are in the true one."""
    found = [(n, judged.best_of(n)) for n in COUNTS]
    return [(n, stage.world.kl(p), stage.world.expected_reward(p)) for n, p in found]


METHODS: Mapping[str, Method] = {
    "ppo": Method("PPO, reward model", _ppo, "kappa", BETAS),
    "ppo-true": Method("PPO, true reward", _ppo_true, "kappa", BETAS),
    "best-of-n": Method("best of n, reward model", _best_of, trained=False),
    "best-of-n-true": Method("best of n, true reward", _best_of_true, trained=False),
    "preferred-sft": Method("preferred only, SFT", _preferred_only),
    "unlikelihood": Method("unlikelihood", _unlikelihood, "alpha", ALPHAS),
}
#: those that are told by a reward model what is good
MODELLED = ("ppo", "best-of-n")


def find_method(name: str) -> Method:
    """A line of the table, or an objective over a grid of its β.

    Raises:
        RecipeError: there is neither, or the objective cannot be trained in this world.
    """
    if name in METHODS:
        return METHODS[name]
    near = difflib.get_close_matches(name, METHODS, n=1, cutoff=0.75)
    if near and name not in OBJECTIVES:
        raise RecipeError(
            f"there is no method '{name}'", field="methods", value=name,
            remedy=f"did you mean '{near[0]}'?",
        )  # fmt: skip
    objective = find_objective(name, field="methods")
    tuned = "beta" in objective.options
    loss, _ = by_objective(name, {})  # refuses what this world cannot serve
    if loss.head == "reward":
        raise RecipeError(
            "trains a reward model, which is no policy to place here", field="methods", value=name,
            remedy="name ppo or best-of-n, which use one",
        )  # fmt: skip

    def run(stage: Stage, beta: float) -> list[Point]:
        loss, losses = by_objective(name, {"beta": beta} if tuned else {})
        return preferences.train(stage, losses, loss)

    title = name.upper() if len(name) == 3 else {"simpo": "SimPO"}.get(name, name)
    return Method(title, run, *(("beta", BETAS) if tuned else ()))


def experiments(
    methods: Sequence[str], seeds: Sequence[int], grid: Sequence[float] | None = None
) -> list[Experiment]:
    """Every curve that is wanted, those of PPO first: they take longest.

    Args:
        methods: names of the table, or objectives.
        seeds: each with a world of its own.
        grid: of β and κ, instead of the usual one.

    Raises:
        RecipeError: there is no such method or none at all, or the grid is not of positive
            numbers, or nothing reads it.
    """
    if not methods:
        raise RecipeError(
            "no method is named", field="methods", remedy=f"name some of {', '.join(METHODS)}, dpo"
        )
    if grid is not None and (not grid or not all(0 < value < float("inf") for value in grid)):
        raise RecipeError(
            "a grid has numbers above 0", field="grid", value=list(grid), remedy="such as 0.1,1"
        )
    wanted: list[Experiment] = []
    for name in sorted(dict.fromkeys(methods), key=lambda name: not name.startswith("ppo")):
        method = find_method(name)
        values: Sequence[float | None] = method.grid or (None,)
        if grid is not None and method.setting in ("beta", "kappa"):
            values = tuple(dict.fromkeys(grid))
        wanted += [Experiment(name, method.setting, v, seed) for v in values for seed in seeds]
    if grid is not None and all(one.setting not in ("beta", "kappa") for one in wanted):
        raise RecipeError(
            "has no effect: none of the methods has a β or a κ", field="grid", value=list(grid),
            remedy="leave it out",
        )  # fmt: skip
    return wanted


def run(task: tuple[Scale, Experiment]) -> tuple[list[Point], float | None]:
    """The points of one curve, and how well the reward model tells that it rests on, if any."""
    import torch

    torch.set_num_threads(1)  # matrices are tiny, and every core has a process
    scale, experiment = task
    stage = prepare(scale, experiment.seed)
    value = float("nan") if experiment.value is None else experiment.value
    points = find_method(experiment.method).run(stage, value)
    modelled = experiment.method in MODELLED
    return points, learned_reward(scale, experiment.seed)[1] if modelled else None
