"""From a recipe and a policy to everything that the loop needs.

Settings are checked here against what only the objective and the model can know: that an
option exists, that a setting has an effect, that the device can do what is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch

from prefopt.constraints import Constraint, Measure, constrain
from prefopt.engine.cache import ScoreCache
from prefopt.engine.logps import FrozenScorer, Precision, Scorer
from prefopt.engine.memory import keep_freed_memory
from prefopt.engine.rewards import RewardScorer
from prefopt.errors import RecipeError
from prefopt.objectives.loss import Loss, Weighted, weighted_sum
from prefopt.objectives.objective import Head
from prefopt.policies.adapters import kind_of
from prefopt.policies.export import model_folder
from prefopt.policies.fingerprint import fingerprint_model, fingerprint_tokenizer
from prefopt.policies.half import to_bf16
from prefopt.policies.load import Policy
from prefopt.policies.reference import load_reference
from prefopt.policies.reward import check_head, load_reward_model
from prefopt.policies.switches import has_adapter
from prefopt.recipe import Recipe, ResolvedRecipe, check_reference
from prefopt.records import Prompt
from prefopt.training.adapting import OwnReference, dress, own_reference, settle_adapter
from prefopt.training.distributed import by_main
from prefopt.training.examples import Prepared, adopt_sources
from prefopt.training.loop import Job
from prefopt.training.numerics import compile_layers, precision_of, recompute
from prefopt.training.optimizer import check_optimizer, make_optimizer, rate_at
from prefopt.training.parallel import Spread, make_spread
from prefopt.training.references import (
    MovingReference,
    ReferenceScores,
    cache_key,
    each_step,
    from_cache,
    initial_weights_gone,
    no_reference,
    score_examples,
)
from prefopt.training.scoring import OF_REFERENCE, Scoring
from prefopt.training.sharding import (
    check_sharding,
    copy_of,
    home_of,
    last_of_step,
    let_go,
    load_for,
    spread_out,
)


@dataclass
class Reference:
    """What the policy is kept close to.

    Attributes:
        name: `initial`, or the path it was loaded from.
        fingerprint: of its weights.
        score: scores groups under it; None once that is no longer possible.
        lasting: whether `score` stays right while the policy is trained.
    """

    name: str
    fingerprint: str
    score: FrozenScorer | None
    lasting: bool


@dataclass
class Learner:
    """A policy that is about to be trained.

    Attributes:
        policy: with its adapter, if it gets one.
        recipe: the resolved recipe.
        loss: the objective with its options, what is added to it, and its constraints.
        constraints: those constraints.
        scorer: of the policy.
        precision: what `auto` came to on this device.
        fingerprint: of the policy's weights as it starts.
        reference: None for objectives that need none.
        mover: takes the reference a step towards the policy, if it is to move.
        reward: what its samples are worth, where something can tell.
        prompts: what it answers in a probe; by default the recipe's file says.
        spread: how the policy, and every model beside it, is spread over processes.
    """

    policy: Policy
    recipe: Recipe
    loss: Loss
    constraints: tuple[Constraint, ...]
    scorer: Scorer
    precision: Precision
    fingerprint: str
    reference: Reference | None
    mover: MovingReference | None = None
    reward: Measure | None = None
    prompts: Sequence[Prompt] | None = None
    spread: Spread = field(default_factory=Spread)

    @property
    def beta(self) -> float:
        """The objective's β, which scales rewards; 1 where it has none."""
        return float(self.recipe.objective.options.get("beta", 1.0))

    @property
    def cache_key(self) -> str:
        assert self.reference is not None
        tokenizer = fingerprint_tokenizer(self.policy.tokenizer)
        return cache_key(self.reference.fingerprint, tokenizer, self.precision)


def settle(resolved: ResolvedRecipe) -> tuple[ResolvedRecipe, Weighted]:
    """The recipe with the objective's defaults written out, checked against the objective.

    Raises:
        RecipeError: an unknown objective or option, a wrong value, terms that cannot be
            summed, or a setting without effect.
    """
    resolved = settle_adapter(resolved)
    choice = resolved.recipe.objective
    loss = weighted_sum(choice.terms)
    check_reference(resolved, needs_reference=loss.needs_reference)
    if loss.tokens & OF_REFERENCE:
        resolved = resolved.with_default(
            "reference_scores",
            "each_step",
            owner=choice.name,
            reason=f"objective '{choice.name}' compares the two models token by token",
        )
    if loss.head == "reward":
        _refuse_around_rewards(resolved)
    return resolved.with_objective_options(loss.terms[0].objective.options), loss


def _refuse_around_rewards(resolved: ResolvedRecipe) -> None:
    """What asks for a policy's words, where there will be none."""
    recipe = resolved.recipe
    soft = recipe.adapter is not None and kind_of(recipe.adapter.name).soft_prompt
    for name, value, reason in (
        ("probe", recipe.probe and recipe.probe.prompts, "it cannot answer the probe's prompts"),
        ("constraints", bool(recipe.constraints), "nothing that it says could cost anything"),
        ("adapter", recipe.adapter.name if soft and recipe.adapter else None,
         "its head is not read behind virtual tokens"),
        ("quantize", recipe.quantize, "its weights are kept in float32 here"),
    ):  # fmt: skip
        if value:
            raise RecipeError(
                f"objective '{recipe.objective.name}' trains a reward model: {reason}",
                field=name,
                value=value,
                remedy=f"remove {name}" + (", or use lora" if name == "adapter" else ""),
            )


def load_learner(recipe: Recipe, head: Head) -> Policy:
    """The model that a recipe names, with the head that its objective trains.

    Raises:
        PolicyError: it cannot be loaded, or cannot have that head.
    """
    name = model_folder(recipe.model)
    if head == "reward":
        return load_for(name, recipe, load_reward_model, seed=recipe.seed)
    return load_for(name, recipe, quantize=recipe.quantize)


def make_learner(
    policy: Policy,
    recipe: Recipe,
    loss: Weighted,
    *,
    reference: Policy | None = None,
    constraints: Sequence[Constraint] = (),
) -> Learner:
    """Attach the adapter, find the reference and make the scorer.

    Args:
        policy: as it starts; trained in place.
        recipe: the resolved recipe.
        loss: what it minimises.
        reference: a frozen policy in memory, which stands for `recipe.reference`.
        constraints: what else it must keep.

    Raises:
        RecipeError, PolicyError: what is asked cannot be done with this model or device.
    """
    check_head(policy, loss.head)
    device = home_of(policy, recipe)
    spread = make_spread(recipe.parallel, device)
    check_sharding(recipe, spread)
    if device.type == "cpu":
        keep_freed_memory()
    policy.model.eval()
    if recipe.weights == "bf16":
        to_bf16(policy.model)
    precision = precision_of(recipe, device)
    check_optimizer(recipe.optimizer, device)
    fingerprint = by_main(lambda: fingerprint_model(policy.model))  # which has the weights
    policy = dress(policy, recipe)
    whole = constrain(loss, constraints)
    mine = whole.needs_reference and reference is None and recipe.reference.own
    own = own_reference(policy, recipe, fingerprint) if mine else None
    spread_out(policy.model, spread, device)
    kind = RewardScorer if loss.head == "reward" else Scorer
    scorer = kind(policy.model, sharing=recipe.sharing, precision=precision)
    learner = Learner(
        policy=policy,
        recipe=recipe,
        loss=whole,
        constraints=tuple(constraints),
        scorer=scorer,
        precision=precision,
        fingerprint=fingerprint,
        reference=None,
        spread=spread,
    )
    if learner.loss.needs_reference:
        learner.reference = _find_reference(learner, reference, own)
    if recipe.reference.moves:
        learner.mover = _set_in_motion(learner)
    if recipe.gradient_checkpointing:
        policy.model.train()  # layers recompute in training mode only; dropout is zero
        recompute(scorer, recipe, device)
    if recipe.compile:
        compile_layers(policy.model, device)
    return learner


# -- the job -------------------------------------------------------------------------------


def score_reference(
    learner: Learner, parts: Iterable[Prepared], advance: Callable[[int], None]
) -> int:
    """Reference scores of all groups, from the cache or computed now; returns how many were.

    Afterwards nothing holds a reference model that is not the policy itself.
    """
    reference = learner.reference
    if reference is None or learner.recipe.reference_scores == "each_step":
        return 0
    cache, key = ScoreCache(), learner.cache_key
    return sum(
        score_examples(
            part.examples, part.steps, reference.score, cache, key, advance, learner.spread
        )
        for part in parts
    )


def make_job(learner: Learner, data: Prepared, evaluation: Prepared | None = None) -> Job:
    """The loop's job, before it is told where to record and save."""
    recipe = learner.recipe
    assert recipe.learning_rate is not None
    if evaluation is not None:
        adopt_sources(evaluation, data)
    score = _scoring(learner)
    if learner.spread.readers > 1:
        _decide(learner, data)
    let_go(learner.policy.model)  # the optimizer is over the shards
    return Job(
        examples=data.examples,
        steps=data.steps,
        score=score,
        loss=learner.loss,
        optimizer=make_optimizer(
            learner.policy.model.parameters(),
            learning_rate=recipe.learning_rate,
            weight_decay=recipe.weight_decay,
            choice=recipe.optimizer,
            seed=recipe.seed,
        ),
        rate=partial(
            rate_at,
            total=len(data.steps),
            peak=recipe.learning_rate,
            warmup=recipe.warmup,
            schedule=recipe.schedule,
        ),
        device=learner.policy.device,
        max_grad_norm=recipe.max_grad_norm,
        spread=learner.spread,
        last_of_step=partial(last_of_step, learner.policy.model),
        evaluation=(evaluation.examples, evaluation.steps) if evaluation else None,
        eval_every=recipe.eval_every,
        early_stop=recipe.early_stop,
        probe_every=recipe.probe.every if recipe.probe is not None else None,
        move_reference=learner.mover,
        reference_every=recipe.reference.update_every,
        checkpoint_every=recipe.checkpoint_every,
    )


@torch.no_grad()
def _decide(learner: Learner, data: Prepared) -> None:
    """Decide how completions are scored on what all processes have, before each has its own."""
    groups = [data.examples.group(position) for position in data.steps[0].microbatches[0]]
    learner.scorer.check(groups)
    reference = learner.reference.score if learner.reference is not None else None
    if reference is not None:
        with reference.state():
            reference.scorer.check(groups)


def make_lasting(learner: Learner) -> FrozenScorer:
    """A reference that stays right while the policy is trained: a frozen copy if need be.

    Raises:
        TrainingError: the policy has been trained already, and no copy was made before.
    """
    reference = learner.reference
    assert reference is not None
    if reference.score is None:
        raise initial_weights_gone()
    if not reference.lasting:
        copy = copy_of(learner.policy, learner.spread)
        scorer = Scorer(copy.model, sharing=learner.recipe.sharing, precision=learner.precision)
        reference.score, reference.lasting = FrozenScorer(scorer), True
    return reference.score


def _set_in_motion(learner: Learner) -> MovingReference:
    """Give the reference weights of its own, and what moves them towards the policy's.

    Raises:
        RecipeError: an adapter would be mixed, which is not a mixture of the updates.
        PolicyError: the reference is another kind of model.
    """
    reference, choice = learner.reference, learner.recipe.reference
    mixture = 1.0 if choice.mixture is None else choice.mixture
    assert reference is not None and reference.score is not None
    if mixture < 1 and has_adapter(learner.policy.model):
        raise RecipeError(
            "an adapter's factors cannot be mixed: the product of mixed factors is another update",
            field="reference.mixture",
            value=mixture,
            remedy="set reference.mixture: 1, or train without an adapter",
        )
    if choice.name == "base" and has_adapter(learner.policy.model):
        raise RecipeError(
            "the reference is the policy without its adapter, which nothing moves",
            field="reference.update_every",
            value=choice.update_every,
            remedy="set reference: initial (initial_prompt for a soft prompt), or let it stay",
        )
    if choice.own:  # with its adapter, if it has one
        copy = copy_of(learner.policy, learner.spread)
        scorer = Scorer(copy.model, sharing=learner.recipe.sharing, precision=learner.precision)
        reference.score, reference.lasting = FrozenScorer(scorer), True
    return MovingReference(learner.policy.model, reference.score.scorer.model, mixture)


def _scoring(learner: Learner) -> Scoring:
    tokens = learner.loss.tokens
    frozen = make_lasting(learner) if tokens & OF_REFERENCE else None
    return Scoring(learner.scorer, _reference_scores(learner), tokens, frozen)


def _reference_scores(learner: Learner) -> ReferenceScores:
    if learner.reference is None:
        return no_reference
    if learner.recipe.reference_scores == "cache":
        return from_cache
    return each_step(make_lasting(learner))


def _find_reference(learner: Learner, given: Policy | None, own: OwnReference | None) -> Reference:
    recipe = learner.recipe
    if own is not None:
        score = FrozenScorer(learner.scorer, own.state)
        return Reference(recipe.reference.name, own.fingerprint, score, lasting=True)
    if given is None and recipe.reference.own:
        score = FrozenScorer(learner.scorer)
        return Reference("initial", learner.fingerprint, score, lasting=False)
    other = given or load_reference(
        model_folder(recipe.reference.name), learner.policy, load=partial(load_for, recipe=recipe)
    )
    if given is None and recipe.weights == "bf16":
        to_bf16(other.model)
    fingerprint = by_main(lambda: fingerprint_model(other.model))
    spread_out(other.model, learner.spread, home_of(other, recipe))
    scorer = Scorer(other.model, sharing=recipe.sharing, precision=learner.precision)
    return Reference(other.name, fingerprint, FrozenScorer(scorer), lasting=True)
