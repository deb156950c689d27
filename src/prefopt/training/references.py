"""Reference scores: where they come from, and when they are computed.

By default every group is scored once, before the first step and in the plan's own
micro-batches, through a cache on disk. After that no reference model is in memory. Each
step's scores can also be computed when they are needed, which costs a forward pass a step.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from prefopt.engine.cache import ScoreCache
from prefopt.engine.logps import FrozenScorer
from prefopt.engine.tokens import TokenGroup
from prefopt.errors import PolicyError, TrainingError
from prefopt.training.batches import Examples, MicroBatch, Step
from prefopt.training.known import KnownScores

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
        self.model = model
        self.mixture = mixture
        self._pairs = [(theirs[name], weight) for name, weight in ours.items()]

    @torch.no_grad()
    def __call__(self) -> None:
        for theirs, ours in self._pairs:
            theirs.lerp_(ours.to(theirs.dtype), self.mixture)


def initial_weights_gone() -> TrainingError:
    """The reference is the policy as it started, and it is not that any more."""
    return TrainingError(
        "the reference is the policy as it started, whose weights are gone: it has been trained",
        remedy="give ref_model=copy.deepcopy(model) when the trainer is made",
    )


def score_examples(
    examples: Examples,
    steps: Iterable[Step],
    score: Callable[[Sequence[TokenGroup]], Tensor] | None,
    cache: ScoreCache,
    key: str,
    advance: Callable[[int], None] = lambda comparisons: None,
) -> int:
    """Fill `examples.reference` for every group in the plan; returns how many were computed.

    A micro-batch is looked up and, if any of its scores is missing, computed as a whole, as
    the plan cuts it. What then counts is what the cache has: of tokens that occur twice, in
    the data or among companions, the numbers that were first. So an interrupted pass, and a
    training that goes on, continue with the same numbers to the last bit.

    Args:
        examples: groups to score.
        steps: the plan; groups that it visits again are scored once.
        score: the reference; None if its model is gone and only the cache is left.
        cache: where scores are kept.
        key: `cache_key` of the reference.
        advance: told the comparisons of each step when it is done.

    Raises:
        TrainingError: a score is missing and there is no reference to compute it.
    """
    known = KnownScores() if examples.reference is None else examples.reference
    computed = 0
    for step in steps:
        for positions in step.microbatches:
            every = step.positions(positions)
            if all(position in known for position in every):
                continue
            groups = [examples.group(position) for position in every]
            logps = cache.get(key, groups)
            if logps is None:
                if score is None:
                    raise initial_weights_gone()
                logps = score(groups).double().cpu()
                cache.put(key, groups, logps)
                kept = cache.get(key, groups)
                logps = logps if kept is None else kept
                computed += len(groups)
            counts = [len(group.completions) for group in groups]
            for position, part in zip(every, logps.split(counts), strict=True):
                known.add(position, part.tolist())
        advance(step.comparisons)
    examples.reference = known
    return computed
