"""The implicit reward of a policy as a judge: β(log π − log π_ref) of a completion.

What a policy that was trained on preferences says about completions without a word (Rafailov et
al. 2023, arXiv:2305.18290, eq. 5). Of a run the reference and β are known.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefopt.errors import PolicyError
from prefopt.judges import settings
from prefopt.judges.judge import Judge
from prefopt.judges.reward import Rewarding
from prefopt.judges.table import Context

if TYPE_CHECKING:
    from torch import Tensor

    from prefopt.engine.tokens import TokenGroup


def make_implicit(chosen: settings.Implicit, context: Context) -> Judge:
    """A policy and what it was trained from.

    Raises:
        RecipeError: the reference or β is not said, and no run says it.
        PolicyError: one of the two cannot be loaded, they have different tokenizers, or what the
            run was trained from has changed since.
    """
    from prefopt.engine.logps import Scorer
    from prefopt.policies.export import model_folder
    from prefopt.policies.fingerprint import fingerprint_model, fingerprint_tokenizer
    from prefopt.policies.load import load_policy
    from prefopt.policies.reference import load_reference

    name, beta = _reference(chosen, context), _beta(chosen, context)
    policy = load_policy(model_folder(chosen.model), device=context.device)
    reference = load_reference(model_folder(name), policy)
    ours, theirs = Scorer(policy.model), Scorer(reference.model)
    was = fingerprint_model(reference.model)
    if chosen.reference is None and _began_as(chosen.model) not in (None, was):
        raise PolicyError(
            f"the model in {name} has changed since the run was trained from it",
            field=f"{context.prefix}reference",
            value=chosen.model,
            remedy="restore it, or set reference to the model that it is to be compared with",
        )

    def rewards(groups: Sequence[TokenGroup]) -> Tensor:
        return beta * (ours(groups).double() - theirs(groups).double())

    about = {
        "kind": "implicit",
        "model": fingerprint_model(policy.model),
        "reference": was,
        "tokenizer": fingerprint_tokenizer(policy.tokenizer),
        "beta": beta,
    }
    return Rewarding(
        f"implicit:{chosen.model}",
        policy,
        rewards,
        about,
        temperature=chosen.temperature,
        microbatch_tokens=chosen.microbatch_tokens,
    )


def _reference(chosen: settings.Implicit, context: Context) -> str:
    """What is taken away from log π: as said, or as the run that the policy is of was trained."""
    if chosen.reference is not None:
        return chosen.reference
    recipe = _recipe(chosen.model)
    if recipe is None:
        raise context.refusal(
            "it is not said what the policy was trained from",
            "reference",
            value=chosen.model,
            remedy="set reference to that model; of a run's folder it is known",
        )
    name: str = recipe.reference.name
    if name == "initial":
        return str(recipe.model)
    if name in ("none", "base", "initial_prompt"):
        raise context.refusal(
            f"the run was trained with reference: {name}, which is no model of its own",
            "reference",
            value=chosen.model,
            remedy="set reference to the model that it is to be compared with",
        )
    return name


def _beta(chosen: settings.Implicit, context: Context) -> float:
    """Rewards per nat: as said, or as the run's objective has it if its reward is βρ."""
    recipe = _recipe(chosen.model)
    if chosen.beta is not None or recipe is None:
        return 0.1 if chosen.beta is None else chosen.beta
    from prefopt.objectives.registry import find_objective

    row = find_objective(recipe.objective.name)
    beta = {**row.options, **recipe.objective.options}.get("beta")
    if row.head == "reward":
        raise context.refusal(
            "the run made a reward model, which has no implicit reward",
            "model",
            value=chosen.model,
            remedy=f"use it as reward:{chosen.model}",
        )
    if row.reward is not None or not row.needs_reference or beta is None:
        raise context.refusal(
            f"the run's objective, {row.name}, does not make β·(log π − log π_ref) its reward",
            "beta",
            value=chosen.model,
            remedy="set beta, if that is what is to judge nevertheless",
        )
    return float(beta)


def _began_as(model: str) -> str | None:
    """Fingerprint of the model that a run began with, if that is its reference as it is stored."""
    recipe, run = _recipe(model), _run(model)
    if run is None or recipe.reference.name != "initial" or recipe.quantize:
        return None
    if recipe.weights != "fp32":
        return None
    policy = json.loads((run / "manifest.json").read_bytes()).get("policy") or {}
    found: str | None = policy.get("fingerprint")
    return found


def _recipe(model: str) -> Any:
    """The recipe of the run that a folder is, or that its model is in; None if it is none."""
    from prefopt.recipe import load_recipe

    run = _run(model)
    return None if run is None else load_recipe(run / "recipe.yaml", {}).recipe


def _run(model: str) -> Path | None:
    folder = Path(model)
    for place in (folder, folder.parent):
        if (place / "recipe.yaml").exists() and (place / "manifest.json").exists():
            return place
    return None
