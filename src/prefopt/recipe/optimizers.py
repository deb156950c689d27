"""The optimizer of a recipe: its name and its options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer

from prefopt.recipe.sections import Strict

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
