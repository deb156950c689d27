"""The optimizer of a recipe: its name, its options, and what the numbers are kept in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from prefopt.errors import RecipeError
from prefopt.recipe.sections import Strict

if TYPE_CHECKING:
    from prefopt.recipe.model import Recipe

_ADAM: Mapping[str, Any] = {"betas": [0.9, 0.999], "eps": 1e-8}

#: what each optimizer reads, with its defaults
OPTIMIZERS: Mapping[str, Mapping[str, Any]] = {
    "adamw": _ADAM,
    "adamw_8bit": _ADAM,
    "paged_adamw_8bit": _ADAM,
    "adafactor": {"beta2_decay": -0.8, "clip_threshold": 1.0},
    "rmsprop": {"alpha": 0.99, "eps": 1e-8, "momentum": 0.0},
}

Share = Annotated[float, Field(ge=0, lt=1)]


class OptimizerChoice(Strict):
    """An optimizer by name, with options that it reads."""

    name: Literal["adamw", "adamw_8bit", "paged_adamw_8bit", "adafactor", "rmsprop"] = Field(
        default="adamw",
        description="adamw: fused; adamw_8bit: its state in a quarter of the memory; "
        "paged_adamw_8bit: which moves to the host's memory when the GPU's is full; adafactor: "
        "hardly any state, and a learning rate relative to the weights; rmsprop: DPO's own",
    )
    betas: list[Share] | None = Field(
        default=None,
        min_length=2,
        max_length=2,
        description="decay of the two averages (adamw)",
        json_schema_extra={"allowed": "two numbers at least 0 and below 1"},
    )
    eps: float | None = Field(
        default=None, gt=0, description="added to the divisor (adamw, rmsprop)"
    )
    alpha: Share | None = Field(default=None, description="decay of the average (rmsprop)")
    momentum: Share | None = Field(default=None, description="momentum (rmsprop)")
    beta2_decay: float | None = Field(
        default=None,
        le=0,
        description="how the average slows down, as a power of the step (adafactor)",
    )
    clip_threshold: float | None = Field(
        default=None,
        gt=0,
        description="most that an update measures, in root mean squares (adafactor)",
    )

    @property
    def options(self) -> dict[str, Any]:
        """What was given, or is the default, for the optimizer."""
        given = {name: getattr(self, name) for name in type(self).model_fields if name != "name"}
        return {**OPTIMIZERS[self.name], **{k: v for k, v in given.items() if v is not None}}

    def resolved(self) -> OptimizerChoice:
        """The same with every default written out."""
        return self.model_copy(update=self.options)

    @model_serializer(mode="wrap")
    def _read(self, whole: SerializerFunctionWrapHandler) -> Any:
        """Without the options of other optimizers."""
        return {name: value for name, value in whole(self).items() if value is not None}


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
