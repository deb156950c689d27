"""Where a training's probe and its first multipliers come from: recipe and learner."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prefopt.constraints import ConstrainedLoss, Measure
from prefopt.data.prompts import read_prompts
from prefopt.engine.logps import FrozenScorer, Scorer
from prefopt.errors import DataError, RecipeError
from prefopt.policies.load import Policy
from prefopt.recipe import Recipe
from prefopt.records import Prompt
from prefopt.sampling.generate import encode_prompts
from prefopt.training import distributed
from prefopt.training.examples import Prepared
from prefopt.training.loop import Record
from prefopt.training.one_shot import (
    make_training_reward,
    reward_column,
    reward_scale,
    solve_multipliers,
)
from prefopt.training.prepare import Learner, make_lasting
from prefopt.training.probe import Probe
from prefopt.training.sharding import copy_of


def make_reward_of(recipe: Recipe) -> Measure | None:
    """What the probe's samples are worth, if the recipe says.

    Raises:
        RecipeError, PolicyError: it cannot be made, or a constraint needs one and there is none.
    """
    needing = [choice for choice in recipe.constraints if choice.mode == "one_shot"]
    chosen = recipe.probe.reward if recipe.probe is not None else None
    if chosen is None:
        if needing:
            raise RecipeError(
                f"constraint '{needing[0].name}' is solved before training (mode one_shot), "
                "which weighs costs against rewards, and there is no reward",
                field="probe.reward",
                remedy="give probe.reward a rule, a reward_model, or a policy that was trained "
                "on these preferences; or use mode lagrangian, which needs none",
            )
        return None
    other = recipe.reference.name != "none" and not recipe.reference.own
    compared = recipe.reference.name if other else recipe.model
    return make_training_reward(chosen, reference=compared, device=recipe.device)


def columns_for(learner: Learner) -> dict[str, Any]:
    """Columns of the training data that solving multipliers reads."""
    if learner.reward is None or not _one_shot(learner):
        return {}
    return dict(reward_column(learner.reward))


def find_prompts(learner: Learner) -> Sequence[Prompt] | None:
    """What the recipe's probe asks, read before anything is written.

    Raises:
        DataError: there are no prompts, or one leaves no room for an answer.
    """
    probe = learner.recipe.probe
    if probe is None:
        return None
    prompts = _prompts(learner)
    try:
        encode_prompts(learner.policy, prompts, probe.max_new_tokens)
    except DataError as error:
        error.file = error.file or probe.prompts
        raise
    return prompts


def make_probe(learner: Learner) -> Probe | None:
    """The probe that the recipe asks for; it keeps a reference of its own alive.

    Raises:
        DataError: there are no prompts.
    """
    recipe = learner.recipe
    if recipe.probe is None:
        return None
    return Probe(
        policy=learner.policy,
        prompts=_prompts(learner),
        score=learner.scorer,
        reference=_original(learner) if learner.reference is not None else None,
        constraints=learner.constraints,
        reward=learner.reward,
        beta=learner.beta,
        samples=recipe.probe.samples,
        max_new_tokens=recipe.probe.max_new_tokens,
        microbatch_tokens=recipe.microbatch_tokens,
        seed=recipe.seed,
    )


def first_running(learner: Learner, data: Prepared) -> tuple[dict[str, Any], Record | None]:
    """The running state before the first step, and a record of how multipliers were solved.

    Raises:
        RecipeError: a limit that no multiplier reaches.
    """
    if not isinstance(learner.loss, ConstrainedLoss):
        return {}, None
    running, recipe = learner.loss.start, learner.recipe
    if not _one_shot(learner):
        return running, None
    assert learner.reward is not None
    assert recipe.probe is not None
    frozen = make_lasting(learner)
    policy = learner.policy
    groups = (group for group in data.examples.groups if group.comparisons)
    with frozen.state():
        record = solve_multipliers(
            Policy(frozen.scorer.model, policy.tokenizer, policy.name),
            _prompts(learner),
            learner.constraints,
            learner.reward,
            scale=reward_scale(groups),
            beta=learner.beta,
            max_new_tokens=recipe.probe.max_new_tokens,
            seed=recipe.seed,
        )
    running["multipliers"] = {**running["multipliers"], **record["multipliers"]}
    return distributed.broadcast((running, record))  # the same for all, to the last bit


def _original(learner: Learner) -> FrozenScorer:
    """The reference as it is now, also if it is going to follow the policy."""
    frozen = make_lasting(learner)
    if learner.mover is None:
        return frozen
    scorer = frozen.scorer
    kept = copy_of(Policy(scorer.model, learner.policy.tokenizer), learner.spread)
    return FrozenScorer(
        Scorer(kept.model, sharing=learner.recipe.sharing, precision=scorer.precision)
    )


def _prompts(learner: Learner) -> Sequence[Prompt]:
    probe = learner.recipe.probe
    assert probe is not None
    given = learner.prompts
    found = list(dict.fromkeys(read_prompts([probe.prompts]) if given is None else given))
    if not found:
        raise DataError(
            "there are no prompts to ask the policy", kind="no_prompts", field="prompts",
            remedy="give at least one",
        )  # fmt: skip
    return found[: probe.max_prompts]


def _one_shot(learner: Learner) -> bool:
    return any(constraint.mode == "one_shot" for constraint in learner.constraints)
