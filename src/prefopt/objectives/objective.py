"""What a row of the table says: an objective's function and what it must be given."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError, create_model
from torch import Tensor

from prefopt.errors import RecipeError
from prefopt.objectives.scores import Scores
from prefopt.recipe.refusals import described

Reads = Literal["comparisons", "preferred", "labels", "rankings"]
Head = Literal["words", "reward"]

#: state of an objective that goes on from step to step, as plain JSON
Running = Mapping[str, Any]


@dataclass(frozen=True)
class Objective:
    """A row of the table.

    Attributes:
        function: `(scores, judgements, **options) -> (T,)` losses.
        use: when to choose it, in one sentence.
        needs_reference: whether `scores.reference` is read.
        reads: what it gives one loss for each of. "comparisons" scores every completion that
            is compared; "preferred" only those that are preferred (or all of a group that
            compares nothing), each as a comparison with itself; "labels" those that are
            marked (of a comparison, the preferred one as desirable and the other as not);
            "rankings" the completions of every group whose comparisons put them in one order.
        soft: whether a comparison's probability is read; if not, data with one is refused.
        weighted: whether a comparison may weigh more than another; if not, such data is refused.
        needs_rewards: whether `scores.rewards` is read.
        rewards_option: the option that, above 0, makes it read them.
        needs_sources: whether it tells the data's sources apart, of which there must be two.
        tokens: names of the per-token values (`Scores.tokens`) that it reads.
        companions: further sequences that are scored for each judgement: "mismatched", a
            completion of another prompt under this prompt; "corrupted", the preferred
            completion under this prompt with most of its tokens cut out.
        couples_batch: whether one loss depends on the other judgements of the step.
        running: `(scores, judgements, running, **options) -> running`, the state after a step
            whose scores these are; None for objectives without any. The function then takes
            it as `running`; None stands for no state yet.
        reward: `(scores, **options) -> (B,)`, where it defines its own; β·ρ otherwise.
        head: which head of the model gives `scores.policy`: that for words, log-probabilities;
            or that of a reward model, one number read where a completion ends.
    """

    function: Callable[..., Tensor]
    use: str = ""
    needs_reference: bool = True
    reads: Reads = "comparisons"
    soft: bool = True
    weighted: bool = True
    needs_rewards: bool = False
    rewards_option: str | None = None
    needs_sources: bool = False
    tokens: tuple[str, ...] = ()
    companions: Literal["mismatched", "corrupted"] | None = None
    couples_batch: bool = False
    running: Callable[..., Running] | None = None
    reward: Callable[..., Tensor] | None = None
    head: Head = "words"

    @property
    def name(self) -> str:
        return self.function.__name__

    @property
    def options(self) -> Mapping[str, Any]:
        """Hyper-parameters and their defaults, read from the signature."""
        parameters = inspect.signature(self.function).parameters.values()
        return {
            p.name: p.default
            for p in parameters
            if p.kind is p.KEYWORD_ONLY and p.name != "running"
        }

    @cached_property
    def schema(self) -> type[BaseModel]:
        """The options as a model that refuses unknown ones, other types and wrong ranges."""
        hints = get_type_hints(self.function, include_extras=True)
        fields: dict[str, Any] = {
            name: (hints[name], default) for name, default in self.options.items()
        }
        config = ConfigDict(extra="forbid", strict=True)
        return create_model(f"Options of {self.name}", __config__=config, **fields)

    def check(self, options: Mapping[str, Any], *, field: str = "objective") -> None:
        """Refuse options that the objective does not have, or cannot have.

        Raises:
            RecipeError: an unknown option, a wrong type, or a value out of range.
        """
        try:
            self.schema.model_validate(dict(options))
        except ValidationError as error:
            problem = min(error.errors(), key=lambda item: item["type"] != "extra_forbidden")
        else:
            return
        name = str(problem["loc"][0])
        place = {"field": f"{field}.{name}", "value": options[name]}
        if problem["type"] == "extra_forbidden":
            raise RecipeError(
                f"objective '{self.name}' has no option '{name}'",
                remedy=f"its options are: {', '.join(self.options) or 'none'}",
                **place,
            ) from None
        allowed = described(self.schema.model_json_schema()["properties"][name])
        if isinstance(options[name], float) and not math.isfinite(options[name]):
            allowed = allowed.replace("a number", "a finite number")
        raise RecipeError(
            f"option '{name}' of objective '{self.name}' must be {allowed}",
            remedy=f"leave it out for {self.options[name]}",
            **place,
        ) from None

    def wants_rewards(self, options: Mapping[str, Any]) -> bool:
        """Whether `scores.rewards` is read with these options."""
        option = self.rewards_option
        return self.needs_rewards or bool(option and {**self.options, **options}[option] > 0)

    def bind(self, **options: Any) -> Callable[..., Tensor]:
        """The objective with its hyper-parameters fixed.

        Raises:
            RecipeError: an option that this objective does not have, or a wrong value.
        """
        self.check(options)
        return lambda scores, judgements, **further: self.function(
            scores, judgements, **options, **further
        )

    def rewards(self, scores: Scores, options: Mapping[str, Any]) -> Tensor | None:
        """(B,) reward of each completion, None where the objective defines none."""
        if self.reward is not None:
            wanted = inspect.signature(self.reward).parameters
            known = {**self.options, **options}
            return self.reward(scores, **{k: v for k, v in known.items() if k in wanted})
        if scores.reference is None:
            return None
        return float({**self.options, **options}.get("beta", 1.0)) * scores.log_ratios
