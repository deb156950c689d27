"""What an adapter decides about a training: its settings, what is trained, and what the
reference can be without a second model."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from prefopt.errors import RecipeError
from prefopt.policies.adapters import attach_adapter, kind_of, settled, train_adapter
from prefopt.policies.fingerprint import fingerprint_model, fingerprint_without_adapter
from prefopt.policies.quantized import quantization_of
from prefopt.policies.switches import (
    adapter_off,
    as_it_started,
    has_adapter,
    is_soft_prompt,
    keep_start,
)
from prefopt.training.distributed import by_main, processes

if TYPE_CHECKING:
    from prefopt.policies.load import Policy
    from prefopt.recipe import Recipe, ResolvedRecipe

_TWO = "base (the model without the prompt) or initial_prompt (with the prompt as it starts)"


def settle_adapter(resolved: ResolvedRecipe) -> ResolvedRecipe:
    """The recipe with the adapter's own defaults written out.

    A fresh soft prompt begins as words that nobody chose, so by default the policy is kept
    close to the base, as if they were not there.

    Raises:
        RecipeError: the adapter or one of its settings cannot be, or the reference is said in a
            word that a soft prompt gives two meanings.
    """
    choice, name = resolved.recipe.adapter, resolved.recipe.reference.name
    if choice is None:
        return resolved
    choice = settled(choice)
    resolved = resolved.with_adapter(choice)
    soft = kind_of(choice.name).soft_prompt
    if name == "initial_prompt" and not soft:
        raise _no_prompt(choice.name)
    if not soft or name != "initial":
        return resolved
    if not resolved.origins["reference.name"].startswith("default"):
        raise RecipeError(
            "the policy as it starts has a soft prompt already, so `initial` could mean two things",
            field="reference",
            value="initial",
            remedy=f"set reference: {_TWO}",
        )
    return resolved.with_reference("base", owner=choice.name)


@dataclass(frozen=True)
class OwnReference:
    """The policy's own model in another state: what it is kept close to costs no second one.

    Attributes:
        state: with the adapter off, or with a frozen copy of the adapter as it starts.
        fingerprint: of the model in that state.
    """

    state: Callable[[], AbstractContextManager[None]]
    fingerprint: str


def dress(policy: Policy, recipe: Recipe) -> Policy:
    """The policy with what is trained: a fresh adapter, the one that it has, or all weights.

    Raises:
        RecipeError: all weights are to be trained, and they are quantized; or something does
            not go with a soft prompt.
    """
    if recipe.adapter is not None:
        policy = attach_adapter(policy, recipe.adapter, seed=recipe.seed)
    elif has_adapter(policy.model):
        train_adapter(policy.model)
    elif (how := quantization_of(policy.model)) is not None:
        raise RecipeError(
            f"the policy's weights are in {how}, which no gradient step can be added to",
            field="adapter",
            value=None,
            remedy="set adapter: lora, or leave out quantize",
        )
    if is_soft_prompt(policy.model):
        _refuse_around_prompts(policy.model, recipe)
    return policy


def _refuse_around_prompts(model: Any, recipe: Recipe) -> None:
    prefix = model.active_peft_config.peft_type == "PREFIX_TUNING"
    if recipe.gradient_checkpointing and prefix:
        raise RecipeError(
            "a prefix goes through the layers as their cache, which a layer that is computed "
            "twice would fill twice",
            field="gradient_checkpointing",
            value=True,
            remedy="leave it out, or use prompt_tuning",
        )
    if recipe.parallel.strategy != "ddp" and processes() > 1:
        raise RecipeError(
            "a soft prompt stands before the layers, and PEFT cannot save it from shards",
            field="parallel.strategy",
            value=recipe.parallel.strategy,
            remedy="set parallel: ddp, or use lora",
        )


def own_reference(policy: Policy, recipe: Recipe, fingerprint: str) -> OwnReference | None:
    """What the policy's own model is as the reference, where it has an adapter.

    To be called before the model is spread over processes: a frozen copy of the adapter is a
    part of it from then on.

    Args:
        policy: as `dress` returned it.
        recipe: whose reference is one of the policy's own.
        fingerprint: of the policy before it got a fresh adapter, if it gets one.

    Raises:
        RecipeError: there is no adapter to be without, or no soft prompt.
    """
    name, model, fresh = recipe.reference.name, policy.model, recipe.adapter is not None
    if not has_adapter(model) and name == "base":
        raise RecipeError(
            "the policy has no adapter to be without: as it starts, it is the base",
            field="reference",
            value=name,
            remedy="set reference: initial, or ./base for a folder of that name",
        )
    if name == "initial_prompt" and not is_soft_prompt(model):
        raise _no_prompt("the one it has" if has_adapter(model) else "none")
    if not has_adapter(model):
        return None
    if name == "base" or (fresh and name == "initial"):
        bare = fingerprint if fresh else fingerprint_without_adapter(fingerprint)
        return OwnReference(partial(adapter_off, model), bare)
    start = by_main(lambda: fingerprint_model(model)) if fresh else fingerprint
    keep_start(model)
    return OwnReference(partial(as_it_started, model), start)


def _no_prompt(adapter: str) -> RecipeError:
    return RecipeError(
        f"there is no soft prompt to start from: the adapter is {adapter}",
        field="reference",
        value="initial_prompt",
        remedy="set reference: initial or base",
    )
