"""Reference scores: where they come from, and when they are computed.

By default every group is scored once, before the first step and in the plan's own
micro-batches, through a cache on disk. After that no reference model is in memory. Each
step's scores can also be computed when they are needed, which costs a forward pass a step.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from prefopt.engine.cache import ScoreCache
from prefopt.engine.logps import FrozenScorer
from prefopt.engine.tokens import TokenGroup
from prefopt.errors import PolicyError, TrainingError
from prefopt.training import distributed
from prefopt.training.batches import Examples, MicroBatch, Step
from prefopt.training.known import KnownScores
from prefopt.training.parallel import Spread
from prefopt.training.sharding import let_go

#: micro-batches a process, between two exchanges
_EACH = 8

ReferenceScores = Callable[[MicroBatch], Tensor | None]


def no_reference(batch: MicroBatch) -> None:
    """For objectives that need none."""


def from_cache(batch: MicroBatch) -> Tensor | None:
    """The scores that were computed before training."""
    return batch.reference


def each_step(score: FrozenScorer) -> ReferenceScores:
    """Scores computed when they are needed."""
    return lambda batch: score(batch.scored)


def cache_key(model: str, tokenizer: str, precision: str) -> str:
    """What a cached score depends on beside the tokens: fingerprints and precision."""
    return hashlib.sha256(f"{model} {tokenizer} {precision}".encode()).hexdigest()


class MovingReference:
    """A reference that follows the policy, as in TR-DPO (arXiv:2404.09656).

    A call makes every weight of the reference mixture · policy + (1 − mixture) · reference.

    Args:
        policy: the model that is trained.
        model: the reference, of the same kind and with weights of its own.
        mixture: in (0, 1]; 1 copies the policy.

    Raises:
        PolicyError: the two models do not have the same weights by name and shape.
    """

    def __init__(self, policy: nn.Module, model: nn.Module, mixture: float) -> None:
        ours, theirs = dict(policy.named_parameters()), dict(model.named_parameters())
        shapes = {name: weight.shape for name, weight in ours.items()}
        if shapes != {name: weight.shape for name, weight in theirs.items()}:
            raise PolicyError(
                "the reference cannot follow the policy: it is another kind of model",
                field="reference.update_every",
                remedy="use a reference of the policy's architecture, or let it stay",
            )
        self.policy = policy
        self.model = model
        self.mixture = mixture
        self._pairs = [(theirs[name], weight) for name, weight in ours.items()]

    @torch.no_grad()
    def __call__(self) -> None:
        for model in (self.policy, self.model):
            let_go(model)
        for theirs, ours in self._pairs:
            theirs.lerp_(ours.to(theirs.dtype), self.mixture)


def initial_weights_gone() -> TrainingError:
    """The reference is the policy as it started, and it is not that any more."""
    return TrainingError(
        "the reference is the policy as it started, whose weights are gone: it has been trained",
        remedy="give ref_model=copy.deepcopy(model) when the trainer is made",
    )


@dataclass(frozen=True)
class _Part:
    """A micro-batch of the plan that is to be scored."""

    positions: list[int]
    groups: list[TokenGroup]


def score_examples(
    examples: Examples,
    steps: Iterable[Step],
    score: FrozenScorer | Callable[[Sequence[TokenGroup]], Tensor] | None,
    cache: ScoreCache,
    key: str,
    advance: Callable[[int], None] = lambda comparisons: None,
    spread: Spread | None = None,
) -> int:
    """Fill `examples.reference` for every group in the plan; returns how many were computed.

    A micro-batch is looked up and, if any of its scores is missing, computed as a whole, as
    the plan cuts it. What then counts is what the cache has: of tokens that occur twice, in
    the data or among companions, the numbers that were first. So an interrupted pass, and a
    training that goes on, continue with the same numbers to the last bit.

    Several processes divide the micro-batches, and each ends up with all numbers, those of
    the main process's cache. One process a machine writes the machine's cache: they need not
    have a common one.

    Args:
        examples: groups to score.
        steps: the plan; groups that it visits again are scored once.
        score: the reference; None if its model is gone and only the cache is left.
        cache: where scores are kept.
        key: `cache_key` of the reference.
        advance: told the comparisons of each step when it is done.
        spread: how the reference is spread over processes.

    Raises:
        TrainingError: a score is missing and there is no reference to compute it.
    """
    known = KnownScores() if examples.reference is None else examples.reference
    spread = spread or Spread()
    computed = 0
    for parts, comparisons in _windows(examples, steps, known, spread):
        found = _looked_up(parts, cache, key)
        missing = [place for place, logps in enumerate(found) if logps is None]
        for place, logps in zip(missing, _computed(parts, missing, score, spread), strict=True):
            found[place] = logps
            computed += len(parts[place].groups)
        for part, logps in zip(parts, _kept(parts, found, missing, cache, key), strict=True):
            counts = [len(group.completions) for group in part.groups]
            for position, scores in zip(part.positions, logps.split(counts), strict=True):
                known.add(position, scores.tolist())
        advance(comparisons)
    examples.reference = known
    return computed


def _windows(
    examples: Examples, steps: Iterable[Step], known: KnownScores, spread: Spread
) -> Iterator[tuple[list[_Part], int]]:
    """Micro-batches that are not known yet, some for each process; comparisons that they end."""
    size = 1 if spread.readers == 1 else _EACH * spread.readers
    parts: list[_Part] = []
    coming: set[int] = set()
    comparisons = 0
    for step in steps:
        for positions in step.microbatches:
            every = step.positions(positions)
            if all(position in known or position in coming for position in every):
                continue
            parts.append(_Part(every, [examples.group(position) for position in every]))
            coming.update(every)
            if len(parts) == size:
                yield parts, comparisons
                parts, coming, comparisons = [], set(), 0
        comparisons += step.comparisons
    yield parts, comparisons


def _looked_up(parts: Sequence[_Part], cache: ScoreCache, key: str) -> list[Tensor | None]:
    """What is in the cache of any machine; all processes get the same."""
    leader = distributed.local_rank() == 0
    own = [cache.get(key, part.groups) if leader else None for part in parts]
    every = zip(*distributed.gather(own), strict=True)
    return [next((logps for logps in found if logps is not None), None) for found in every]


def _computed(
    parts: Sequence[_Part],
    missing: Sequence[int],
    score: FrozenScorer | Callable[[Sequence[TokenGroup]], Tensor] | None,
    spread: Spread,
) -> list[Tensor]:
    """Scores of the micro-batches that are missing, each computed by one of the processes."""
    if not missing:
        return []
    if score is None:
        raise initial_weights_gone()
    if spread.readers > 1 and isinstance(score, FrozenScorer):
        with torch.no_grad(), score.state():  # decided on one micro-batch, for all processes
            score.scorer.check(parts[missing[0]].groups)
    own = [
        (score(parts[place].groups).double().cpu(), counts)
        for place, counts in spread.share(missing)
    ]
    return spread.exchange([logps for logps, counts in own if counts])


def _kept(
    parts: Sequence[_Part],
    found: Sequence[Tensor | None],
    missing: Sequence[int],
    cache: ScoreCache,
    key: str,
) -> list[Tensor]:
    """The scores as the main process's cache has them, once they are in every machine's."""
    kept = [logps for logps in found if logps is not None]
    assert len(kept) == len(parts)
    if distributed.local_rank() == 0:
        for place in missing if distributed.processes() == 1 else range(len(parts)):
            groups = parts[place].groups
            cache.put(key, groups, kept[place])
            first = cache.get(key, groups)
            kept[place] = kept[place] if first is None else first
    return distributed.broadcast(kept)
