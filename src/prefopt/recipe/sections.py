"""The parts of a recipe that have settings of their own."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

PositiveInt: TypeAlias = Annotated[int, Field(ge=1)]
Text: TypeAlias = Annotated[str, Field(min_length=1)]


class Strict(BaseModel):
    """Unknown keys, other types and numbers that are not finite are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Source(Strict):
    """One source of groups; several make a mixture."""

    path: Text = Field(description="file, folder or hub id of a data set")
    name: Text | None = Field(
        default=None, description="name in the metrics; of several sources, the file's name"
    )
    share: float | None = Field(
        default=None,
        gt=0,
        description="relative share of the comparisons that come from this source",
    )
    format: str = Field(default="auto", description="layout of the rows; auto recognises it")


# -- what is learned -----------------------------------------------------------------------


class TermChoice(Strict):
    """A further term of the loss: its weight, with its own options beside it.

    A number is short for `{weight: number}`, and is what it is written as.
    """

    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={"allowed": "a weight above 0, or {weight: …} with options beside it"},
    )

    weight: float = Field(gt=0, description="what the term is multiplied by before it is added")

    @property
    def options(self) -> dict[str, Any]:
        """Hyper-parameters that were given."""
        return dict(self.model_extra or {})

    @model_validator(mode="before")
    @classmethod
    def _weight_alone(cls, value: Any) -> Any:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return {"weight": value} if number else value

    @model_serializer(mode="wrap")
    def _short(self, whole: SerializerFunctionWrapHandler) -> Any:
        return whole(self) if self.model_extra else self.weight


class ObjectiveChoice(Strict):
    """An objective by name, with its own options beside the name, and what is added to it."""

    model_config = ConfigDict(extra="allow")

    name: Text = Field(default="dpo", description="which loss; docs/objectives.md lists them")
    plus: dict[str, TermChoice] = Field(
        default={},
        description="further terms and their weights, summed to the loss",
        json_schema_extra={"allowed": "objectives and their weights, such as {sft: 0.2}"},
    )

    @property
    def options(self) -> dict[str, Any]:
        """Hyper-parameters of the main term, for `find_objective(name).bind`."""
        return dict(self.model_extra or {})

    @property
    def terms(self) -> tuple[tuple[str, float, dict[str, Any]], ...]:
        """(name, weight, options) of every term, the main one first with weight 1.

        >>> ObjectiveChoice.model_validate({"name": "ipo", "beta": 0.2, "plus": {"sft": 0.5}}).terms
        (('ipo', 1.0, {'beta': 0.2}), ('sft', 0.5, {}))
        """
        further = ((name, term.weight, term.options) for name, term in self.plus.items())
        return ((self.name, 1.0, self.options), *further)


class ReferenceChoice(Strict):
    """What the policy is kept close to, and whether that follows the policy.

    TR-DPO (arXiv:2404.09656): after every `update_every` steps the reference becomes
    mixture · policy + (1 − mixture) · reference, weight by weight. A mixture of 1 is the
    paper's hard update.
    """

    name: Text = Field(
        default="initial",
        description="initial (the policy as it starts), base (without its adapter), "
        "initial_prompt (with its soft prompt as it starts), none, or a path",
        json_schema_extra={
            "allowed": "initial, base, initial_prompt, none, or the path of a model"
        },
    )
    update_every: PositiveInt | None = Field(
        default=None,
        description="steps after which the reference follows the policy; by default it stays",
    )
    mixture: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="share of the policy in the updated reference; by default 1",
    )

    @property
    def moves(self) -> bool:
        return self.update_every is not None

    @property
    def own(self) -> bool:
        """Whether it is the policy itself in another state, and not another model."""
        return self.name in ("initial", "base", "initial_prompt")


class AdapterChoice(Strict):
    """An adapter by name; what is not a field here is an option of PEFT's configuration.

    What an adapter does not read must be left out, and what is left out gets the adapter's own
    default when training starts.
    """

    model_config = ConfigDict(extra="allow")

    name: str = Field(default="lora", description="which adapter; docs/adapters.md lists them")
    rank: PositiveInt | None = Field(
        default=None, description="rank of the update; by default 16 for lora"
    )
    alpha: PositiveInt | None = Field(
        default=None,
        description="scale of the update, which is multiplied by alpha / rank; by default 32 "
        "for lora",
    )
    target_modules: str | list[str] | None = Field(
        default=None,
        description="which layers get one: all-linear (of the language model), or a list of "
        "module names; by default all-linear for lora",
    )
    virtual_tokens: PositiveInt | None = Field(
        default=None, description="length of a soft prompt; by default 16, or as init_text"
    )
    init_text: Text | None = Field(
        default=None,
        description="text that a soft prompt begins as; by default words drawn from the vocabulary",
    )

    @property
    def options(self) -> dict[str, Any]:
        """Further options of the PEFT configuration."""
        return dict(self.model_extra or {})


class ParallelChoice(Strict):
    """How the model is spread over the processes there are; one process holds all of it."""

    strategy: Literal["ddp", "fsdp", "hybrid", "tensor"] = Field(
        default="ddp",
        description="ddp: a copy in every process; fsdp: weights, gradients and optimizer in "
        "shards over all; hybrid: in shards within groups and a copy in every group; tensor: "
        "each layer's matrices split within groups, and shards over those",
    )
    shards: PositiveInt | None = Field(
        default=None,
        description="processes that share one copy of the model (hybrid); by default those of "
        "one machine",
    )
    tensor: PositiveInt | None = Field(
        default=None,
        description="processes that split each matrix (tensor); by default those of one machine",
    )
    reshard: bool | None = Field(
        default=None,
        description="let go of gathered weights after each layer's forward pass, and of whole "
        "gradients after each micro-batch: less memory, more traffic; by default true (fsdp, "
        "hybrid, tensor)",
    )


# -- what completions are measured by ------------------------------------------------------


class Measure(Strict):
    """A number for a prompt and a completion: exactly one of four ways to get it."""

    patterns: list[Text] | None = Field(
        default=None,
        min_length=1,
        description="regular expressions: 1 where one is found in the completion, 0 elsewhere",
        json_schema_extra={"allowed": "a list of regular expressions"},
    )
    rule: Text | None = Field(
        default=None,
        description="module:function of your own, (prompt, completion) -> number",
    )
    classifier: Text | None = Field(
        default=None,
        description="folder or hub id of a text classifier: the probability of its label",
    )
    label: Text | int | None = Field(default=None, description="which label of the classifier")
    reward_model: Text | None = Field(
        default=None,
        description="folder or hub id of a reward model: its number, or as a cost, minus that",
    )

    @property
    def ways(self) -> tuple[str, ...]:
        """Which of the four were given."""
        names = ("patterns", "rule", "classifier", "reward_model")
        return tuple(name for name in names if getattr(self, name) is not None)


class RewardChoice(Measure):
    """What the probe's samples are worth; higher is better."""


Mode: TypeAlias = Literal["lagrangian", "one_shot", "stages", "safe_dpo", "penalty"]


class ConstraintChoice(Measure):
    """A cost of the policy's completions, the limit of its mean, and how that is kept."""

    name: Text = Field(description="name of the constraint, in the metrics and the report")
    limit: float = Field(description="the cost is kept at or below this")
    mode: Mode = Field(
        default="lagrangian",
        description="how it is kept: a multiplier that follows the policy's samples, one that is "
        "solved before training, a stage of its own, changed comparisons, or a penalty",
    )
    multiplier: float | None = Field(
        default=None,
        ge=0,
        description="where the multiplier starts (lagrangian; 0 by default), or what it is "
        "(stages, penalty)",
    )
    step_size: float | None = Field(
        default=None, gt=0, description="step of the multiplier (lagrangian)"
    )
    margin: float | None = Field(
        default=None,
        ge=0,
        description="margin by which safe completions win over unsafe ones (safe_dpo)",
    )


class ProbeChoice(Strict):
    """Samples of the policy, taken while it trains."""

    prompts: Text = Field(description="file of prompts or preferences: what the policy answers")
    every: PositiveInt = Field(
        default=50,
        description="steps between probes; there is one before the first step and one at the end",
    )
    samples: PositiveInt = Field(default=1, description="completions of each prompt")
    max_prompts: PositiveInt | None = Field(
        default=None, description="use only the first so many prompts"
    )
    max_new_tokens: PositiveInt = Field(
        default=128, description="most tokens of a sampled completion"
    )
    reward: RewardChoice | None = Field(
        default=None,
        description="what the samples are worth: one of patterns, rule, classifier, reward_model",
    )
