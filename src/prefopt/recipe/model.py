"""The typed recipe: everything that decides a training, and where each value came from.

A recipe is a YAML file, flags of the same name on the command line, or both; flags win.
Loading is strict: an unknown key, a value out of range or a setting without effect is an
error that names the key and what would be right. Paths are relative to the working
directory. Nothing here knows torch: what only the objective or the model can judge is
checked when training starts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

Positive = Annotated[int, Field(ge=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Source(_Strict):
    """One source of groups; several make a mixture."""

    path: str = Field(min_length=1, description="file, folder or hub id of a data set")
    name: str | None = Field(
        default=None,
        min_length=1,
        description="name in the metrics; of several sources, the file's name",
    )
    share: float | None = Field(
        default=None,
        gt=0,
        description="relative share of the comparisons that come from this source",
    )
    format: str = Field(default="auto", description="layout of the rows; auto recognises it")


class ObjectiveChoice(_Strict):
    """An objective by name, with its own options beside the name."""

    model_config = ConfigDict(extra="allow")

    name: str = Field(default="dpo", description="which loss: dpo, ipo, sft")

    @property
    def options(self) -> dict[str, Any]:
        """Hyper-parameters that were given, for `objectives.registry.find_objective(name).bind`."""
        return dict(self.model_extra or {})


class AdapterChoice(_Strict):
    """An adapter by name; what is not a field here is an option of PEFT's configuration."""

    model_config = ConfigDict(extra="allow")

    name: str = Field(default="lora", description="which adapter: lora")
    rank: Positive = Field(default=16, description="rank of the update")
    alpha: Positive = Field(
        default=32, description="scale of the update; it is multiplied by alpha / rank"
    )
    target_modules: str | list[str] = Field(
        default="all-linear",
        description="which layers get one: all-linear, or a list of module names",
    )

    @property
    def options(self) -> dict[str, Any]:
        """Further options of the PEFT configuration."""
        return dict(self.model_extra or {})


class Recipe(_Strict):
    """Everything that decides a training. The descriptions are also those of `--help`."""

    model: str = Field(min_length=1, description="folder or hub id of the model to train")
    data: tuple[Source, ...] = Field(
        min_length=1, description="preferences to train on: a path, or a list of named sources"
    )
    eval_data: tuple[Source, ...] | None = Field(
        default=None, min_length=1, description="preferences to evaluate on, never trained on"
    )
    out: str = Field(min_length=1, description="folder of the run")
    objective: ObjectiveChoice = Field(
        default_factory=ObjectiveChoice, description="the loss and its options"
    )
    reference: str = Field(
        default="initial",
        min_length=1,
        description="what the policy is kept close to: initial (itself as it starts), none, or a "
        "path",
    )
    reference_scores: Literal["cache", "each_step"] = Field(
        default="cache", description="score the reference once and keep it on disk, or at each step"
    )
    adapter: AdapterChoice | None = Field(
        default=None, description="train a small adapter instead of all weights"
    )
    learning_rate: float | None = Field(
        default=None,
        gt=0,
        description="peak learning rate; by default 5e-7, with an adapter 5e-6, for sft 2e-5, for "
        "sft with an adapter 2e-4",
    )
    schedule: Literal["cosine", "linear", "constant"] = Field(
        default="cosine", description="learning rate after the warm-up"
    )
    warmup: float = Field(
        default=0.1, ge=0, le=1, description="share of the steps in which it rises"
    )
    weight_decay: float = Field(default=0.0, ge=0, description="decoupled weight decay of AdamW")
    max_grad_norm: float = Field(
        default=1.0, gt=0, description="gradients are clipped to this norm"
    )
    batch_size: Positive = Field(default=64, description="comparisons in one optimizer step")
    microbatch_tokens: Positive = Field(
        default=8192, description="tokens computed at once: memory against speed, never the result"
    )
    epochs: Positive = Field(default=1, description="passes over the data")
    max_steps: Positive | None = Field(default=None, description="stop after this many steps")
    max_length: int | None = Field(
        default=None, ge=2, description="most tokens of a prompt and its completion together"
    )
    too_long: Literal["error", "drop", "cut_prompt_start", "cut_completion"] = Field(
        default="error", description="what happens to rows beyond max_length"
    )
    on_error: Literal["raise", "skip"] = Field(
        default="raise", description="stop at the first wrong row, or leave it out and count it"
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        default="auto", description="auto: bf16 autocast where the device has it; weights stay fp32"
    )
    gradient_checkpointing: bool = Field(
        default=False, description="recompute activations in the backward pass: less memory, slower"
    )
    sharing: Literal["auto", "off"] = Field(
        default="auto", description="compute shared prefixes once, where the model allows it"
    )
    device: str | None = Field(
        default=None,
        description="where to compute, such as cpu or cuda; by default the first accelerator",
    )
    seed: int = Field(default=0, ge=0, lt=2**63, description="seed of everything random")
    eval_every: Positive | None = Field(
        default=None,
        description="steps between evaluations; there is one before the first step and one at "
        "the end in any case",
    )
    early_stop: Positive | None = Field(
        default=None, description="stop after this many evaluations without a lower loss"
    )
    checkpoint_every: Positive | None = Field(
        default=500, description="steps between checkpoints; Ctrl-C saves one too"
    )
    resume: Literal["auto", "never"] = Field(
        default="auto", description="continue the run in the folder, or start it over"
    )
    track: Literal["none", "tensorboard", "trackio", "wandb"] = Field(
        default="none", description="where metrics are also sent"
    )

    @field_validator("data", "eval_data", mode="before")
    @classmethod
    def _sources(cls, value: Any) -> Any:
        """A path, a list of paths and a list of mappings are all lists of sources."""
        if value is None:
            return None
        items = value if isinstance(value, list | tuple) else [value]
        return tuple({"path": item} if isinstance(item, str) else item for item in items)

    @field_validator("data", "eval_data", mode="after")
    @classmethod
    def _name_sources(cls, sources: tuple[Source, ...] | None) -> tuple[Source, ...] | None:
        if sources is None or len(sources) == 1:
            return sources
        return tuple(
            source if source.name else source.model_copy(update={"name": Path(source.path).name})
            for source in sources
        )

    @field_validator("objective", mode="before")
    @classmethod
    def _objective_by_name(cls, value: Any) -> Any:
        """`objective: ipo` is short for `objective: {name: ipo}`."""
        return {"name": value} if isinstance(value, str) else value

    @field_validator("adapter", mode="before")
    @classmethod
    def _adapter_by_name(cls, value: Any) -> Any:
        """`adapter: lora` is short for `adapter: {name: lora}`, and `adapter: none` for null."""
        return None if value == "none" else {"name": value} if isinstance(value, str) else value


#: settings that change neither what is learned nor from what, so a run may go on with others
NOT_LEARNED = frozenset(
    {"out", "resume", "track", "checkpoint_every", "microbatch_tokens", "gradient_checkpointing",
     "reference_scores", "device"}
)  # fmt: skip

SECTIONS = ("objective", "adapter")


@dataclass(frozen=True)
class ResolvedRecipe:
    """A recipe whose every value is known, and where each came from.

    Attributes:
        recipe: the recipe; `learning_rate` is a number.
        origins: dotted name (`objective.beta`) → `default`, `default for …`, the file's name
            or `command line`.
    """

    recipe: Recipe
    origins: Mapping[str, str]

    def values(self) -> dict[str, Any]:
        """Dotted name → value, in the order of the recipe; what `origins` has keys for."""
        return flat(self.recipe)

    def with_objective_options(self, defaults: Mapping[str, Any]) -> ResolvedRecipe:
        """The same recipe with the objective's own defaults written out where none was given."""
        objective = self.recipe.objective
        added = {name: value for name, value in defaults.items() if name not in objective.options}
        values = {**objective.model_dump(), **added}
        origins = {f"objective.{name}": f"default for {objective.name}" for name in added}
        return ResolvedRecipe(
            self.recipe.model_copy(update={"objective": ObjectiveChoice(**values)}),
            {**self.origins, **origins},
        )


def flat(recipe: Recipe) -> dict[str, Any]:
    """Dotted name → plain value; objective and adapter are opened, lists of sources are not."""
    values: dict[str, Any] = {}
    for key, value in recipe.model_dump().items():
        if key in SECTIONS and value is not None:
            values |= {f"{key}.{inner}": item for inner, item in value.items()}
        elif key in ("data", "eval_data") and value is not None:
            sources = getattr(recipe, key)
            values[key] = [source.model_dump(exclude_defaults=True) for source in sources]
        else:
            values[key] = value
    return values
