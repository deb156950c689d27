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
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator
from pydantic.config import JsonDict

from prefopt.errors import RecipeError
from prefopt.recipe.optimizers import OptimizerChoice
from prefopt.recipe.sections import (
    AdapterChoice,
    ConstraintChoice,
    ObjectiveChoice,
    ParallelChoice,
    PositiveInt,
    ProbeChoice,
    ReferenceChoice,
    Source,
    Strict,
    TermChoice,
    Text,
)

#: parts of a recipe with settings of their own, and the one that a plain word stands for
SECTIONS = {
    "objective": "name", "reference": "name", "adapter": "name", "probe": "prompts",
    "parallel": "strategy", "optimizer": "name",
}  # fmt: skip

_SOURCES: JsonDict = {
    "allowed": "a path, a list of paths, or a list of {path, name, share, format}"
}
_NAMED: JsonDict = {"allowed": "a name, or a mapping of settings"}


class Recipe(Strict):
    """Everything that decides a training. The descriptions are also those of `--help`."""

    model: Text = Field(description="folder or hub id of the model to train")
    data: tuple[Source, ...] = Field(
        min_length=1,
        description="preferences to train on: a path, or a list of named sources",
        json_schema_extra=_SOURCES,
    )
    eval_data: tuple[Source, ...] | None = Field(
        default=None,
        min_length=1,
        description="preferences to evaluate on, never trained on",
        json_schema_extra=_SOURCES,
    )
    out: Text = Field(description="folder of the run")
    objective: ObjectiveChoice = Field(
        default_factory=ObjectiveChoice,
        description="the loss, by name; docs/objectives.md lists them",
        json_schema_extra=_NAMED,
    )
    reference: ReferenceChoice = Field(
        default_factory=ReferenceChoice,
        description="what the policy is kept close to: initial (itself as it starts), none, or a "
        "path; with an adapter also base (without it), with a soft prompt initial_prompt",
        json_schema_extra={
            "allowed": "initial, base, initial_prompt, none, a path, or a mapping of settings"
        },
    )
    reference_scores: Literal["cache", "each_step"] | None = Field(
        default=None,
        description="score the reference once and keep it on disk, or at each step; by default "
        "cache, or each_step where the reference moves or is read token by token",
    )
    constraints: tuple[ConstraintChoice, ...] = Field(
        default=(),
        description="limits to costs of the policy's completions, measured by patterns, a rule, "
        "a classifier or a reward_model",
        json_schema_extra={"allowed": "a list of constraints, each a mapping of settings"},
    )
    probe: ProbeChoice | None = Field(
        default=None,
        description="prompts that the policy answers while it trains, to measure what it does",
        json_schema_extra={"allowed": "a path of prompts, or a mapping of settings"},
    )
    adapter: AdapterChoice | None = Field(
        default=None,
        description="train a small adapter, such as lora, instead of all weights; "
        "docs/adapters.md lists them",
        json_schema_extra=_NAMED,
    )
    quantize: Literal["nf4", "int8"] | None = Field(
        default=None, description="keep the model's frozen weights in 4 or 8 bits, under an adapter"
    )
    learning_rate: float | None = Field(
        default=None,
        gt=0,
        description="peak learning rate; by default 5e-7, with an adapter 5e-6, for sft 2e-5, for "
        "sft with an adapter 2e-4, for soft prompts 1e-2",
    )
    schedule: Literal["cosine", "linear", "constant"] = Field(
        default="cosine", description="learning rate after the warm-up"
    )
    warmup: float = Field(
        default=0.1, ge=0, le=1, description="share of the steps in which it rises"
    )
    optimizer: OptimizerChoice = Field(
        default_factory=OptimizerChoice,
        description="what follows the gradient: adamw, adamw_8bit, paged_adamw_8bit, adafactor or "
        "rmsprop",
        json_schema_extra={
            "allowed": "adamw, adamw_8bit, paged_adamw_8bit, adafactor, rmsprop, or a mapping of "
            "settings"
        },
    )
    weight_decay: float = Field(default=0.0, ge=0, description="decoupled, of matrices only")
    max_grad_norm: float = Field(
        default=1.0, gt=0, description="gradients are clipped to this norm"
    )
    batch_size: PositiveInt = Field(default=64, description="comparisons in one optimizer step")
    microbatch_tokens: PositiveInt = Field(
        default=8192, description="tokens computed at once: memory against speed, never the result"
    )
    epochs: PositiveInt = Field(default=1, description="passes over the data")
    max_steps: PositiveInt | None = Field(default=None, description="stop after this many steps")
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
        default="auto", description="auto: bf16 autocast where the device has it"
    )
    weights: Literal["fp32", "bf16"] = Field(
        default="fp32",
        description="what weights are kept in; bf16 halves them and their gradients, and rounds "
        "steps stochastically; beside an adapter only what is frozen",
    )
    gradient_checkpointing: Literal["selective"] | bool | Annotated[int, Field(ge=2)] = Field(
        default=False,
        description="recompute activations in the backward pass: less memory, slower; of every "
        "layer (true), every N-th (N), or all but products and attention (selective)",
        json_schema_extra={"allowed": "true, false, selective, or a whole number at least 2"},
    )
    offload_activations: bool = Field(
        default=False,
        description="keep what gradient checkpointing starts from in the host's memory",
    )
    compile: bool = Field(
        default=False, description="compile the layers with torch.compile, on accelerators"
    )
    sharing: Literal["auto", "off"] = Field(
        default="auto", description="compute shared prefixes once, where the model allows it"
    )
    device: str | None = Field(
        default=None,
        description="where to compute, such as cpu or cuda; by default the first accelerator",
    )
    parallel: ParallelChoice = Field(
        default_factory=ParallelChoice,
        description="how the model is spread over several processes: ddp, fsdp, hybrid or tensor",
        json_schema_extra={"allowed": "ddp, fsdp, hybrid, tensor, or a mapping of settings"},
    )
    seed: int = Field(default=0, ge=0, lt=2**63, description="seed of everything random")
    eval_every: PositiveInt | None = Field(
        default=None,
        description="steps between evaluations; there is one before the first step and one at "
        "the end in any case",
    )
    early_stop: PositiveInt | None = Field(
        default=None, description="stop after this many evaluations without a lower loss"
    )
    checkpoint_every: PositiveInt | None = Field(
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

    @field_validator("constraints", mode="before")
    @classmethod
    def _constraints(cls, value: Any) -> Any:
        """One constraint is a list of one."""
        return (
            (value,)
            if isinstance(value, dict)
            else tuple(value)
            if isinstance(value, list)
            else value
        )

    @field_validator(*SECTIONS, mode="before")
    @classmethod
    def _by_name(cls, value: Any, info: ValidationInfo) -> Any:
        """`objective: ipo` is short for `objective: {name: ipo}`, `adapter: none` for null."""
        if value == "none" and info.field_name in ("adapter", "probe"):
            return None
        return {SECTIONS[str(info.field_name)]: value} if isinstance(value, str) else value


#: settings that change neither what is learned nor from what, so a run may go on with others
NOT_LEARNED = frozenset(
    {"out", "resume", "track", "checkpoint_every", "microbatch_tokens", "gradient_checkpointing",
     "offload_activations", "compile",
     "reference_scores", "device", *(f"parallel.{name}" for name in ParallelChoice.model_fields)}
)  # fmt: skip


@dataclass(frozen=True)
class ResolvedRecipe:
    """A recipe whose every value is known, and where each came from.

    Attributes:
        recipe: the recipe; what depends on other settings, such as `learning_rate`, is known.
        origins: dotted name (`objective.beta`) → `default`, `default for …`, the file's name
            or `command line`.
    """

    recipe: Recipe
    origins: Mapping[str, str]

    def values(self) -> dict[str, Any]:
        """Dotted name → value, in the order of the recipe; what `origins` has keys for."""
        return flat(self.recipe)

    def with_objective_options(
        self,
        defaults: Mapping[str, Any],
        plus: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
    ) -> ResolvedRecipe:
        """The same recipe with the objectives' own defaults written out where none was given.

        Args:
            defaults: of the main term.
            plus: of the further terms, by their names.
        """
        choice, origins = self.recipe.objective, dict(self.origins)
        added = {name: value for name, value in defaults.items() if name not in choice.options}
        origins |= {f"objective.{name}": f"default for {choice.name}" for name in added}
        terms = dict(choice.plus)
        for name, options in plus.items():
            whole = {"weight": terms[name].weight, **options, **terms[name].options}
            terms[name] = TermChoice.model_validate(whole)
        if terms != choice.plus:
            origins["objective.plus"] += ", with the defaults of its terms"
        values = {"name": choice.name, "plus": terms, **choice.options, **added}
        return self._changed({"objective": ObjectiveChoice(**values)}, origins)

    def with_adapter(self, choice: AdapterChoice) -> ResolvedRecipe:
        """The same recipe with the adapter's own defaults written out where none was given."""
        before, origins = self.recipe.adapter, dict(self.origins)
        for name in AdapterChoice.model_fields:
            if getattr(choice, name) != getattr(before, name):
                origins[f"adapter.{name}"] = f"default for {choice.name}"
        return self._changed({"adapter": choice}, origins)

    def with_reference(self, name: str, *, owner: str) -> ResolvedRecipe:
        """The same recipe with another reference by default, which `owner` asks for."""
        reference = self.recipe.reference.model_copy(update={"name": name})
        origins = {**self.origins, "reference.name": f"default for {owner}"}
        return self._changed({"reference": reference}, origins)

    def with_default(self, name: str, value: Any, *, owner: str, reason: str) -> ResolvedRecipe:
        """The same recipe with another default, which only something outside it can know.

        Args:
            name: a setting without dots.
            value: what it must be, or is best.
            owner: what asks for it; its origin becomes `default for OWNER`.
            reason: why another value cannot be, as a sentence.

        Raises:
            RecipeError: another value was given.
        """
        if getattr(self.recipe, name) == value:
            return self
        if not self.origins[name].startswith("default"):
            raise RecipeError(
                f"{name} cannot be {getattr(self.recipe, name)}: {reason}",
                field=name,
                value=getattr(self.recipe, name),
                remedy=f"remove {name} ({self.origins[name]}), or set {name}: {value}",
            )
        return self._changed({name: value}, {**self.origins, name: f"default for {owner}"})

    def _changed(self, values: dict[str, Any], origins: Mapping[str, str]) -> ResolvedRecipe:
        return ResolvedRecipe(self.recipe.model_copy(update=values), origins)


def flat(recipe: Recipe) -> dict[str, Any]:
    """Dotted name → plain value; sections are opened, what is inside of them or in lists is not."""
    values: dict[str, Any] = {}
    for key, value in recipe.model_dump().items():
        if key in SECTIONS and value is not None:
            values |= {f"{key}.{inner}": _shown(item) for inner, item in value.items()}
        elif key in ("data", "eval_data") and value is not None:
            sources = getattr(recipe, key)
            values[key] = [source.model_dump(exclude_defaults=True) for source in sources]
        elif key == "constraints":
            values[key] = [{"name": item["name"], **_shown(item)} for item in value]
        else:
            values[key] = value
    return values


def _shown(value: Any) -> Any:
    """A mapping without what is not set: which of several ways was taken is plain to see."""
    if not isinstance(value, dict):
        return value
    return {key: item for key, item in value.items() if item is not None}
