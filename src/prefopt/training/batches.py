"""What an optimizer step is made of, and its micro-batches as tensors.

Which groups a step has is the business of `planning`. Nothing here depends on the number of
processes or on `microbatch_tokens`, which only says how a step is cut into pieces that fit
the memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prefopt.data.mixture import Named
from prefopt.engine.forest import first_fit, group_tokens
from prefopt.engine.store import Sizes, TokenStore
from prefopt.engine.tokens import TokenGroup
from prefopt.objectives.objective import Reads
from prefopt.objectives.scores import Comparisons, Judgements, Labels, Rankings, on_device
from prefopt.training.companions import Companions
from prefopt.training.cutting import balanced
from prefopt.training.known import KnownScores
from prefopt.training.reading import judgements_in, weights_in


@dataclass(frozen=True, slots=True)
class Step:
    """One optimizer step.

    Attributes:
        epoch: epochs done when it is done, as a fraction.
        microbatches: positions of groups, each tuple a piece that fits the memory.
        comparisons: how many judgements the step has.
        weight: the sum of their weights, which the loss is divided by.
        tokens: of its groups, each prompt counted once.
        companions: position of a group → position of its companions' group.
        sizes: position of a group → tokens that it costs with its companions.
        limit: most tokens of a piece.
    """

    epoch: float
    microbatches: tuple[tuple[int, ...], ...]
    comparisons: int
    weight: float
    tokens: int
    companions: Mapping[int, int] = field(default_factory=dict)
    sizes: Mapping[int, int] = field(default_factory=dict)
    limit: int = 0

    def pieces(self, readers: int) -> Sequence[tuple[int, ...]]:
        """The step cut for so many processes; for one, its micro-batches."""
        if readers == 1:
            return self.microbatches
        positions = [position for piece in self.microbatches for position in piece]
        sizes = [self.sizes[position] for position in positions]
        cut = balanced(sizes, self.limit, readers)
        return [tuple(positions[place] for place in places) for places in cut]

    def positions(self, microbatch: Sequence[int]) -> list[int]:
        """Of all groups that a micro-batch scores: its own, then their companions."""
        return [*microbatch, *(self.companions[p] for p in microbatch if p in self.companions)]


@dataclass(frozen=True)
class MicroBatch:
    """Groups that are scored together: B completions and T judgements that point into them.

    Attributes:
        groups: the groups, in order.
        judgements: T comparisons, labels or rankings with indices into the B completions.
        lengths: (B + C,) tokens of each completion and of each companion.
        reference: (B + C,) cached reference scores, None where there are none.
        rewards: (B,) what the data says each completion is worth, None if it is not asked.
        costs: (B, J) of each completion under J constraints, None without any.
        prompts: (B,) which of the groups each completion is in.
        sources: (T,) data source of each judgement.
        owners: (T,) which of the groups each judgement is in.
        companions: further groups with one completion for each judgement, C = T in all, or
            none.
    """

    groups: tuple[TokenGroup, ...]
    judgements: Judgements
    lengths: Tensor
    reference: Tensor | None
    rewards: Tensor | None
    costs: Tensor | None
    prompts: Tensor
    sources: tuple[str | None, ...]
    owners: tuple[int, ...]
    companions: tuple[TokenGroup, ...] = ()

    @property
    def scored(self) -> tuple[TokenGroup, ...]:
        """All groups that go through the model."""
        return self.groups + self.companions

    def places(self, chosen: Tensor) -> list[str]:
        """Where the groups of the chosen judgements, a (T,) mask, were read."""
        marks = zip(self.owners, chosen.tolist(), strict=True)
        return list(dict.fromkeys(self.groups[owner].place for owner, mark in marks if mark))


@dataclass
class Examples:
    """Groups as an objective reads them, and their reference scores once they are known.

    Attributes:
        groups: in memory or on disk; every one has a judgement with a weight above zero.
        reads: what the objective reads.
        rewards: whether it wants the column `score`.
        costs: the columns that are constraints' costs.
        sources: names of the data sources, for objectives that tell them apart.
        reference: scores of the groups and companions that are known.
        companions: further groups that a plan wants scored; their positions are behind those
            of the data.
    """

    groups: Sequence[TokenGroup]
    reads: Reads = "comparisons"
    rewards: bool = False
    costs: tuple[str, ...] = ()
    sources: tuple[str, ...] = ("",)
    reference: KnownScores | None = None
    companions: list[Companions] = field(default_factory=list)

    @cached_property
    def sizes(self) -> Sizes:
        """What a plan must know of the groups; those on disk need not be read for it."""
        if isinstance(self.groups, TokenStore):
            return self.groups.sizes
        weights = (weight for group in self.groups for weight in weights_in(group, self.reads))
        return Sizes(
            np.array([judgements_in(group, self.reads) for group in self.groups], dtype=np.int64),
            np.array([group_tokens(group) for group in self.groups], dtype=np.int64),
            Named.of(group.source for group in self.groups),
            all(weight == 1 for weight in weights),
        )

    def group(self, position: int) -> TokenGroup:
        """The group at a position, of the data or of the companions behind it."""
        if position < len(self.groups):
            return self.groups[position]
        part = next(c for c in reversed(self.companions) if c.start <= position)
        return part[position - part.start]

    def microbatch(self, step: Step, positions: Sequence[int], device: torch.device) -> MicroBatch:
        """The groups at these positions of a step as tensors on a device."""
        groups = tuple(self.groups[position] for position in positions)
        every = step.positions(positions)
        scored = [*groups, *map(self.group, every[len(groups) :])]
        counts = [judgements_in(group, self.reads) for group in groups]
        lengths = [len(ids) for group in scored for ids in group.completions]
        owners = [place for place, count in enumerate(counts) for _ in range(count)]
        prompts = [place for place, group in enumerate(groups) for _ in group.completions]
        reference = None
        if self.reference is not None:
            known = [
                self.reference.of(position, len(group.completions))
                for position, group in zip(every, scored, strict=True)
            ]
            reference = torch.from_numpy(np.concatenate(known)).to(device, torch.float32)
        return MicroBatch(
            groups,
            on_device(self._judgements(groups, owners), device),
            torch.tensor(lengths, device=device),
            reference,
            self._columns(groups, ("score",), device)[:, 0] if self.rewards else None,
            self._columns(groups, self.costs, device) if self.costs else None,
            torch.tensor(prompts, device=device),
            tuple(groups[owner].source for owner in owners),
            tuple(owners),
            tuple(scored[len(groups) :]),
        )

    def _judgements(self, groups: Sequence[TokenGroup], owners: Sequence[int]) -> Judgements:
        offsets = [0]
        for group in groups:
            offsets.append(offsets[-1] + len(group.completions))
        weight = [value for group in groups for value in weights_in(group, self.reads)]
        starts = dict(zip(range(len(groups)), offsets, strict=False))
        if self.reads == "labels":
            marks = [
                (starts[place] + label.completion, label.desirable)
                for place, group in enumerate(groups)
                for label in group.labels
            ]
            return Labels.of(marks, weight)
        if self.reads == "rankings":
            lists = [
                range(starts[place], starts[place] + len(group.completions))
                for place, group in enumerate(groups)
            ]
            return Rankings.of(lists, weight)
        pairs = [
            (starts[place] + edge.preferred, starts[place] + edge.dispreferred)
            for place, group in enumerate(groups)
            for edge in group.comparisons
        ]
        probability = [edge.probability for group in groups for edge in group.comparisons]
        edges = Comparisons.of(pairs, probability, weight)
        if len(self.sources) == 1:
            return edges
        source = [self.sources.index(str(groups[owner].source)) for owner in owners]
        return replace(edges, source=torch.tensor(source), sources=len(self.sources))

    def _columns(
        self, groups: Sequence[TokenGroup], names: Sequence[str], device: torch.device
    ) -> Tensor:
        """(B, J) of the named columns."""
        rows: list[Any] = [
            row
            for group in groups
            for row in zip(*(group.columns[name] for name in names), strict=True)
        ]
        return torch.tensor(rows, dtype=torch.float32, device=device)


def make_step(
    examples: Examples,
    positions: Sequence[int],
    epoch: float,
    microbatch_tokens: int,
    companions: Mapping[int, int],
) -> Step:
    """A step of the groups at these positions, cut into micro-batches.

    Args:
        examples: what the positions point into.
        positions: of the step's groups.
        epoch: epochs done when it is done.
        microbatch_tokens: most tokens that are computed at once.
        companions: positions of companions by those of their groups.
    """
    sizes = [int(examples.sizes.tokens[position]) for position in positions]
    counts = [int(examples.sizes.judgements[position]) for position in positions]
    further = [
        _further_tokens(examples, position, companions[position]) if companions else 0
        for position in positions
    ]
    if examples.sizes.unweighted:
        weight = float(sum(counts))
    else:
        groups = (examples.groups[position] for position in positions)
        weight = sum(value for group in groups for value in weights_in(group, examples.reads))
    costs = [own + more for own, more in zip(sizes, further, strict=True)]
    pieces = first_fit(costs, microbatch_tokens)
    return Step(
        epoch=epoch,
        microbatches=tuple(tuple(positions[place] for place in places) for places in pieces),
        comparisons=sum(counts),
        weight=weight,
        tokens=sum(sizes) + sum(further),
        companions=companions,
        sizes=dict(zip(positions, costs, strict=True)),
        limit=microbatch_tokens,
    )


def _further_tokens(examples: Examples, position: int, companion: int) -> int:
    """Tokens that a group's companions cost; a prompt that both have is computed once."""
    group, beside = examples.groups[position], examples.group(companion)
    shared = np.array_equal(group.prompt, beside.prompt)
    return group_tokens(beside) - (len(group.prompt) if shared else 0)
