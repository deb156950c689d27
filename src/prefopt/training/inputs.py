"""What callers of the article's interface may hand over, turned into what training works on.

Shapes: B completions, T comparisons, L tokens in a padded row.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from prefopt.data.formats import read_groups
from prefopt.engine.tokens import TokenGroup
from prefopt.errors import DataError, PolicyError, RecipeError
from prefopt.objectives.scores import Comparisons
from prefopt.policies.export import model_folder
from prefopt.policies.load import Policy, load_policy
from prefopt.recipe import Recipe, ResolvedRecipe, load_recipe
from prefopt.records import Group

#: indices of completions, one per comparison
Indices: TypeAlias = Tensor | Sequence[int]

#: a preference file, several, or groups
Data: TypeAlias = str | Path | Iterable[str | Path | Group]

#: settings that belong to a run folder, which a trainer does not have
_OF_A_RUN = ("data", "eval_data", "out", "resume", "checkpoint_every", "track")


def recipe_of(
    model: Any, ref_model: Any, beta: float, lr: float, options: Mapping[str, Any]
) -> ResolvedRecipe:
    """The recipe that a trainer's arguments spell.

    Raises:
        RecipeError: an option is unknown, wrong, without effect, or belongs to a run folder.
    """
    if "constraints" in options:
        raise RecipeError(
            "this trainer keeps no constraints",
            field="constraints",
            value=options["constraints"],
            remedy="use ConstitutionalDPOTrainer",
        )
    for name in (*_OF_A_RUN, "objective", "reference", "model", "learning_rate"):
        if name in options:
            raise RecipeError(
                f"a trainer has no option '{name}'",
                field=name,
                value=options[name],
                remedy="it is called `lr` here"
                if name == "learning_rate"
                else "it trains DPO without a run folder; use prefopt.train for that",
            )
    in_memory = "(in memory)"
    overrides = {
        "model": str(model) if isinstance(model, str | Path) else in_memory,
        "data": in_memory,
        "out": in_memory,
        "objective.beta": beta,
        "learning_rate": lr,
        **options,
    }
    if ref_model is not None:
        overrides["reference"] = str(ref_model) if isinstance(ref_model, str | Path) else in_memory
    if "eval_every" in options:  # the data comes with `fit`, which checks that it does
        overrides["eval_data"] = in_memory
    return load_recipe(None, overrides)


def check_evaluation(recipe: Recipe, eval_data: Any) -> None:
    """Refuse settings of an evaluation where there is nothing to evaluate on.

    Raises:
        RecipeError: there is such a setting.
    """
    for name in ("eval_every", "early_stop"):
        value = getattr(recipe, name)
        if eval_data is None and value is not None:
            raise RecipeError(
                f"{name} has no effect without eval_data",
                field=name,
                value=value,
                remedy="call fit(data, eval_data)",
            )


def as_policy(
    model: Any,
    tokenizer: Any,
    device: str | None,
    *,
    name: str = "(in memory)",
    quantize: Literal["nf4", "int8"] | None = None,
) -> Policy:
    """A policy from a path, a hub id, a model object, or itself.

    Raises:
        PolicyError: it cannot be loaded, or is not a causal model; or a model in memory is to
            be quantized, which happens while one is loaded.
    """
    if isinstance(model, str | Path):
        if tokenizer is not None:
            raise PolicyError(
                "a model that is loaded from a path brings its own tokenizer",
                field="tokenizer",
                remedy="leave tokenizer out",
            )
        return load_policy(model_folder(model), device=device, quantize=quantize)
    if quantize is not None:
        raise PolicyError(
            "weights are quantized while they are loaded, and this model is in memory",
            field="quantize",
            value=quantize,
            remedy="give the path of the model, or load it with load_policy(…, quantize=…)",
        )
    policy = model if isinstance(model, Policy) else None
    if policy is None:
        if not callable(getattr(model, "get_output_embeddings", None)):
            raise PolicyError(
                f"a policy is a causal model of transformers, not {type(model).__name__}",
                field="model",
                remedy="give a path, a Policy, or a model such as AutoModelForCausalLM returns",
            )
        policy = Policy(model, tokenizer, name)
    if device is not None:
        torch.nn.Module.to(policy.model, device)
    return policy


def groups_of(data: Data, tokenizer: Any, on_error: Literal["raise", "skip"]) -> Iterable[Group]:
    """Groups from a path, several, or themselves.

    Raises:
        PolicyError: there is no tokenizer to read their text with.
        DataError: there is no such file.
    """
    if tokenizer is None:
        raise PolicyError(
            "text needs a tokenizer, and the model was given without one",
            field="tokenizer",
            remedy="give tokenizer=… when the trainer is made",
        )
    if isinstance(data, str | Path):
        return read_groups(data, on_error=on_error)
    items = list(data)
    groups = [item for item in items if isinstance(item, Group)]
    if items and len(groups) == len(items):
        return groups
    paths = [item for item in items if isinstance(item, str | Path)]
    if len(paths) < len(items):
        raise _refusal("data", "must be paths or groups", items[0])
    return read_groups(paths, on_error=on_error)


def refuse_shared(policy: Any, reference: Any) -> None:
    """Refuse a reference that would change with the policy.

    Raises:
        PolicyError: the two share weights.
    """
    weights = {id(weight) for weight in policy.parameters()}
    if any(id(weight) in weights for weight in reference.parameters()):
        raise PolicyError(
            "model and ref_model share weights, so the reference would be trained too",
            field="ref_model",
            remedy="leave ref_model out to keep close to the policy as it starts, or give "
            "copy.deepcopy(model)",
        )


def check_logps(pi_logps: Tensor, ref_logps: Tensor) -> None:
    """Log-probabilities must be one number per completion.

    Raises:
        DataError: they are not.
    """
    for name, logps in (("pi_logps", pi_logps), ("ref_logps", ref_logps)):
        if logps.ndim != 1 or logps.shape != pi_logps.shape:
            raise DataError(
                f"{name} must have one number per completion, shape (B,), "
                f"and has shape {tuple(logps.shape)}",
                kind="wrong_shape",
                field=name,
                remedy="gather each label token's log-probability and sum over the completion; "
                "prefopt.completion_logps does",
            )


def comparisons_of(
    like: Tensor, yw_idxs: Indices, yl_idxs: Indices, probability: Tensor | float | None
) -> Comparisons:
    """T comparisons of the completions whose scores (B,) are `like`.

    Raises:
        DataError: indices or probabilities are out of range, or not one per comparison.
    """
    preferred, dispreferred = (
        torch.as_tensor(indices, dtype=torch.int64, device=like.device)
        for indices in (yw_idxs, yl_idxs)
    )
    count, completions = len(preferred), len(like)
    for name, indices in (("yw_idxs", preferred), ("yl_idxs", dispreferred)):
        if indices.shape != (count,) or count == 0:
            raise _refusal(name, "must be (T,) indices, T of them and at least one", indices)
        if int(indices.min()) < 0 or int(indices.max()) >= completions:
            raise _refusal(name, f"must point to one of {completions} completions", indices)
    weight = torch.ones(count, device=like.device, dtype=like.dtype)
    chance = weight
    if probability is not None:
        chance = torch.as_tensor(probability, device=like.device, dtype=like.dtype)
        if chance.ndim == 0:
            chance = chance.expand(count)
        if chance.shape != (count,):
            raise _refusal("preference_prob", f"must be one number or ({count},)", chance)
        if not bool(((chance >= 0) & (chance <= 1)).all()):
            raise _refusal("preference_prob", "must be in [0, 1]", chance)
    return Comparisons(preferred, dispreferred, chance, weight)


def groups_of_rows(x: Any) -> tuple[list[TokenGroup], Tensor]:
    """Token groups from padded rows; rows with the same prompt share a group.

    Args:
        x: (B, L) tensors `input_ids`, `attention_mask` and `completion_mask`. Masks are
            data: what is padding and where a completion begins is never guessed.

    Returns:
        The groups, and (B,) where each row's completion is among all of theirs.

    Raises:
        DataError: a mask is missing, or a row is not a prompt followed by a completion.
    """
    names = ("input_ids", "attention_mask", "completion_mask")
    missing = [name for name in names if name not in x]
    if missing:
        raise _refusal(missing[0], "is missing from the batch", sorted(x))
    ids, real, scored = (torch.as_tensor(x[name]).cpu().numpy() for name in names)
    if not ids.ndim == 2 or not ids.shape == real.shape == scored.shape:
        raise _refusal("input_ids", "and both masks must have one shape (B, L)", ids.shape)
    members: dict[bytes, list[int]] = {}
    pairs = []
    for row in range(len(ids)):
        kept = real[row].astype(bool)
        tokens, answer = ids[row][kept].astype("int32"), scored[row][kept].astype(bool)
        start = len(tokens) - int(answer.sum())
        if not 0 < start < len(tokens) or not answer[start:].all():
            raise _refusal("completion_mask", "must mark the end of each row, after a prompt", row)
        pairs.append((tokens[:start], tokens[start:]))
        members.setdefault(tokens[:start].tobytes(), []).append(row)
    groups = [
        TokenGroup(pairs[rows[0]][0], tuple(pairs[row][1] for row in rows))
        for rows in members.values()
    ]
    order = torch.empty(len(ids), dtype=torch.int64)
    order[[row for rows in members.values() for row in rows]] = torch.arange(len(ids))
    return groups, order


def _refusal(field: str, message: str, value: Any) -> DataError:
    return DataError(f"{field} {message}", kind="wrong_batch", field=field, value=value)
