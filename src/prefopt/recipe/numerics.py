"""Optimizers, precisions and recomputation that do not go together."""

from __future__ import annotations

from collections.abc import Iterator

from prefopt.errors import RecipeError
from prefopt.recipe.model import Recipe
from prefopt.recipe.optimizers import OPTIMIZERS


def optimizer_problems(recipe: Recipe) -> Iterator[RecipeError]:
    """Options that the optimizer does not read, and combinations that do not fit."""
    choice, reads = recipe.optimizer, OPTIMIZERS[recipe.optimizer.name]
    for name in type(choice).model_fields:
        if name != "name" and name not in reads and getattr(choice, name) is not None:
            readers = " and ".join(other for other, own in OPTIMIZERS.items() if name in own)
            yield RecipeError(
                f"optimizer.{name} has no effect: {choice.name} does not read it",
                field=f"optimizer.{name}",
                value=getattr(choice, name),
                remedy=f"remove it; {readers} would read it",
            )
    if choice.name == "rmsprop" and recipe.weight_decay:
        yield RecipeError(
            "rmsprop has no decoupled weight decay",
            field="weight_decay",
            value=recipe.weight_decay,
            remedy="remove weight_decay, or set optimizer: adamw",
        )
    sharded = recipe.parallel.strategy != "ddp"
    if sharded and choice.name.endswith("8bit"):
        yield RecipeError(
            f"{choice.name} does not take weights that are in shards",
            field="optimizer",
            value=choice.name,
            remedy="set optimizer: adamw, whose state is in shards then, or parallel: ddp",
        )


def number_problems(recipe: Recipe) -> Iterator[RecipeError]:
    """Precisions, weights and recomputation that do not go together."""
    half = recipe.weights == "bf16"
    if half and recipe.precision == "fp32":
        yield RecipeError(
            "precision: fp32 has no effect: weights in bf16 are computed with in bf16",
            field="precision",
            value="fp32",
            remedy="remove precision, or set weights: fp32",
        )
    if half and recipe.adapter is None and recipe.optimizer.name != "adamw":
        yield RecipeError(
            f"{recipe.optimizer.name} cannot train weights in bf16: it would round its steps away",
            field="weights",
            value="bf16",
            remedy="set optimizer: adamw, which rounds them stochastically, or weights: fp32",
        )
    if half and recipe.parallel.strategy != "ddp":
        yield RecipeError(
            "weights in bf16 cannot be in shards: their first batch is checked in fp32",
            field="weights",
            value="bf16",
            remedy="set weights: fp32, or parallel: ddp",
        )
    if half and recipe.reference.mixture not in (None, 1):
        yield RecipeError(
            "a reference in bf16 cannot be mixed: small steps would be rounded away",
            field="reference.mixture",
            value=recipe.reference.mixture,
            remedy="set reference.mixture: 1, or weights: fp32",
        )
    if recipe.offload_activations and not recipe.gradient_checkpointing:
        yield RecipeError(
            "offload_activations has no effect: it keeps what gradient checkpointing starts from, "
            "and there is none",
            field="offload_activations",
            value=True,
            remedy="set gradient_checkpointing: true, or remove offload_activations",
        )
    if recipe.compile and recipe.gradient_checkpointing:
        yield RecipeError(
            "compile has no effect with gradient checkpointing: layers that are computed again "
            "are not compiled",
            field="compile",
            value=True,
            remedy="remove compile, or gradient_checkpointing",
        )
