"""The seam between models and objectives: scores of completions, and judgements of them.

Shapes: B completions, T judgements (comparisons, labels or rankings) that point into them by
index, S tokens of all completions. A completion is scored once, however many judgements it
is in. All log-probabilities are in nats, summed over the completion's tokens, the end-of-turn
token included.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor


@dataclass(frozen=True)
class Scores:
    """What an objective may know about B completions.

    Attributes:
        policy: (B,) log-probability of each completion under the policy; carries gradient. For
            an objective that trains a reward model, its reward of each completion.
        reference: (B,) the same under the frozen reference; None where none is needed.
        lengths: (B,) tokens of each completion, data and never inferred.
        rewards: (B,) what the data says each completion is worth (its `score`, higher is
            better); None for objectives that do not ask for it.
        tokens: per-token values by name, (S,) each: the completions one after the other.
            `policy` and `reference` are log-probabilities of the tokens, `log_collision` is
            log Σ_v π(v)² and `kl` is KL(π_ref ‖ π), both of the distribution that each token
            was drawn from. Only those that the objective declares are there.
        companions: scores (T,) of one further sequence for each judgement, for objectives
            that declare some: the completion of another prompt under this prompt, or the
            preferred completion under a corrupted prompt.
        costs: (B, J) what each completion costs under each of J constraints.
        prompts: (B,) int64, which prompt each completion answers.
    """

    policy: Tensor
    reference: Tensor | None
    lengths: Tensor
    rewards: Tensor | None = None
    tokens: Mapping[str, Tensor] = field(default_factory=dict)
    companions: Scores | None = None
    costs: Tensor | None = None
    prompts: Tensor | None = None

    @property
    def log_ratios(self) -> Tensor:
        """ρ = log π − log π_ref, (B,) nats.

        Raises:
            ValueError: there is no reference.
        """
        if self.reference is None:
            raise ValueError("this objective needs reference scores and none were given")
        return self.policy - self.reference

    @cached_property
    def owners(self) -> Tensor:
        """(S,) which completion each token belongs to."""
        places = torch.arange(len(self.lengths), device=self.lengths.device)
        return places.repeat_interleave(self.lengths)

    @cached_property
    def positions(self) -> Tensor:
        """(S,) place of each token in its completion, from 0."""
        starts = self.lengths.cumsum(0) - self.lengths
        return torch.arange(len(self.owners), device=self.owners.device) - starts[self.owners]

    def token_values(self, name: str) -> Tensor:
        """(S,) one of the per-token values.

        Raises:
            ValueError: it was not given.
        """
        if name not in self.tokens:
            raise ValueError(f"this objective needs the per-token values '{name}'")
        return self.tokens[name]

    def differentiable(self) -> list[Tensor]:
        """The tensors that a loss may send gradient to."""
        tokens = [self.tokens[name] for name in ("policy", "kl") if name in self.tokens]
        beside = self.companions.differentiable() if self.companions is not None else []
        return [self.policy, *tokens, *beside]

    def as_leaves(self) -> Scores:
        """The same numbers cut off from whatever computed them, ready to collect gradient."""
        leaves = {
            name: self.tokens[name].detach().requires_grad_()
            for name in ("policy", "kl")
            if name in self.tokens
        }
        return replace(
            self,
            policy=self.policy.detach().requires_grad_(),
            tokens={**self.tokens, **leaves},
            companions=self.companions.as_leaves() if self.companions is not None else None,
        )

    def detached(self) -> Scores:
        """The same numbers without gradient."""
        return replace(
            self,
            policy=self.policy.detach(),
            tokens={name: values.detach() for name, values in self.tokens.items()},
            companions=self.companions.detached() if self.companions is not None else None,
        )

    def totals(self, values: Tensor) -> Tensor:
        """Sums over each completion, (B,), of per-token values (S,)."""
        return values.new_zeros(len(self.lengths)).index_add(0, self.owners, values)


@dataclass(frozen=True)
class Comparisons:
    """T edges between completions.

    Attributes:
        preferred: (T,) int64 index of the preferred completion.
        dispreferred: (T,) int64 index of the other one.
        probability: (T,) that the first is really better, in [0, 1].
        weight: (T,) how much each comparison counts, 0 or more.
        source: (T,) int64 index of the data source of each; None where all are of one.
        sources: how many sources the data has.
    """

    preferred: Tensor
    dispreferred: Tensor
    probability: Tensor
    weight: Tensor
    source: Tensor | None = None
    sources: int = 1

    @classmethod
    def of(
        cls,
        pairs: Sequence[tuple[int, int]],
        probability: Sequence[float] | None = None,
        weight: Sequence[float] | None = None,
        *,
        dtype: torch.dtype = torch.float32,
    ) -> Comparisons:
        """Comparisons from plain numbers; probabilities and weights default to one.

        >>> Comparisons.of([(0, 1), (2, 0)]).preferred
        tensor([0, 2])
        """
        count = len(pairs)
        indices = torch.tensor(list(pairs), dtype=torch.int64).reshape(count, 2)
        return cls(
            preferred=indices[:, 0],
            dispreferred=indices[:, 1],
            probability=_column(probability, count, dtype),
            weight=_column(weight, count, dtype),
        )

    def __len__(self) -> int:
        return int(self.preferred.shape[0])


@dataclass(frozen=True)
class Labels:
    """T marks on completions: desirable or not, each on its own.

    Attributes:
        completion: (T,) int64 index of the completion that is marked.
        desirable: (T,) bool.
        weight: (T,) how much each label counts, 0 or more.
    """

    completion: Tensor
    desirable: Tensor
    weight: Tensor

    @classmethod
    def of(
        cls,
        marks: Sequence[tuple[int, bool]],
        weight: Sequence[float] | None = None,
        *,
        dtype: torch.dtype = torch.float32,
    ) -> Labels:
        """Labels from plain values; weights default to one.

        >>> Labels.of([(0, True), (1, False)]).desirable
        tensor([ True, False])
        """
        return cls(
            completion=torch.tensor([index for index, _ in marks], dtype=torch.int64),
            desirable=torch.tensor([mark for _, mark in marks], dtype=torch.bool),
            weight=_column(weight, len(marks), dtype),
        )

    def __len__(self) -> int:
        return int(self.completion.shape[0])


@dataclass(frozen=True)
class Rankings:
    """T ranked lists of completions, each of its own length.

    Attributes:
        order: (M,) int64 indices of completions, list after list, each from best to worst.
        sizes: (T,) int64 completions in each list; M in all.
        weight: (T,) how much each list counts, 0 or more.
    """

    order: Tensor
    sizes: Tensor
    weight: Tensor

    @classmethod
    def of(
        cls,
        lists: Sequence[Sequence[int]],
        weight: Sequence[float] | None = None,
        *,
        dtype: torch.dtype = torch.float32,
    ) -> Rankings:
        """Rankings from lists of indices, best first; weights default to one.

        >>> Rankings.of([[2, 0, 1], [3, 4]]).sizes
        tensor([3, 2])
        """
        return cls(
            order=torch.tensor([index for one in lists for index in one], dtype=torch.int64),
            sizes=torch.tensor([len(one) for one in lists], dtype=torch.int64),
            weight=_column(weight, len(lists), dtype),
        )

    def __len__(self) -> int:
        return int(self.sizes.shape[0])


#: what an objective gives one loss for each of
Judgements: TypeAlias = Comparisons | Labels | Rankings
_J = TypeVar("_J", bound=Judgements)
_R = TypeVar("_R", bound=Scores | Judgements)


def on_device(record: _R, device: torch.device | str) -> _R:
    """The same scores or judgements with their tensors on another device."""

    def moved(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.to(device)
        if isinstance(value, Mapping):
            return {name: moved(inner) for name, inner in value.items()}
        return on_device(value, device) if isinstance(value, Scores) else value

    columns: dict[str, Any] = {
        item.name: moved(getattr(record, item.name)) for item in fields(record)
    }
    return replace(record, **columns)


def join(parts: Sequence[tuple[Scores, _J]]) -> tuple[Scores, _J]:
    """Several batches as one: completions and judgements in order, indices shifted.

    Args:
        parts: at least one; all know the same things.
    """
    scores, judgements = [part for part, _ in parts], [part for _, part in parts]
    starts = [0]
    for part in scores:
        starts.append(starts[-1] + len(part.policy))
    merged: dict[str, Any] = {}
    for name, value in vars(judgements[0]).items():
        if isinstance(value, Tensor):
            columns = [getattr(part, name) for part in judgements]
            if name in _INDICES:
                columns = [column + start for column, start in zip(columns, starts, strict=False)]
            merged[name] = torch.cat(columns)
    return _join_scores(scores), replace(judgements[0], **merged)


#: columns of judgements that point to completions
_INDICES = ("preferred", "dispreferred", "completion", "order")


def _join_scores(parts: Sequence[Scores]) -> Scores:
    def cat(name: str) -> Any:
        values = [getattr(part, name) for part in parts]
        return None if values[0] is None else torch.cat(values)

    prompts = None
    if parts[0].prompts is not None:
        columns, count = [], 0
        for part in parts:
            assert part.prompts is not None
            columns.append(part.prompts + count)
            count += int(part.prompts.max()) + 1
        prompts = torch.cat(columns)
    companions = [part.companions for part in parts if part.companions is not None]
    return Scores(
        policy=cat("policy"),
        reference=cat("reference"),
        lengths=cat("lengths"),
        rewards=cat("rewards"),
        tokens={n: torch.cat([part.tokens[n] for part in parts]) for n in parts[0].tokens},
        companions=_join_scores(companions) if companions else None,
        costs=cat("costs"),
        prompts=prompts,
    )


def _column(values: Sequence[float] | None, count: int, dtype: torch.dtype) -> Tensor:
    return torch.tensor([1.0] * count if values is None else list(values), dtype=dtype)
