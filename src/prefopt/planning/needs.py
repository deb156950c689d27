"""What one recipe's training needs of memory, phase by phase, on one device that has it all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from prefopt.constraints import Constraint
from prefopt.objectives.loss import Weighted
from prefopt.planning.memory import Footprint
from prefopt.planning.standin import Outline, job_of, stand_in
from prefopt.planning.tracing import Counted, Pass, Update, deeper, depths, trace, trace_update
from prefopt.policies.adapters import has_adapter
from prefopt.policies.load import Policy, base_model
from prefopt.policies.reward import HEAD
from prefopt.recipe import Recipe
from prefopt.training.batches import Step
from prefopt.training.examples import Prepared
from prefopt.training.prepare import Learner

#: bytes of a frozen weight in a quantized linear layer, with the scale of its block
_QUANTIZED = {"nf4": 0.5 + 4 / 64, "int8": 1.0}
#: of 8-bit Adam: parameters smaller than this keep their state in float32, others in blocks
_SMALL, _BLOCK = 4096, 256


@dataclass(frozen=True)
class Parameters:
    """How many numbers the policy has.

    Attributes:
        total: with an adapter, if there is one.
        trainable: of them.
        parts: the same by part: embeddings, layers, head, adapter, other.
    """

    total: int
    trainable: int
    parts: dict[str, int]


@dataclass(frozen=True)
class Piece:
    """One micro-batch of a step.

    Attributes:
        step: the step.
        positions: of its groups.
        tokens: of them.
        alone: whether it is the only one that its device has of the step.
    """

    step: Step
    positions: tuple[int, ...]
    tokens: int
    alone: bool


@dataclass(frozen=True)
class Needs:
    """What a training is made of, in bytes on one device, and what its micro-batch costs.

    Attributes:
        parameters: of the policy.
        weights: of the policy.
        gradients: of what is trainable.
        reference: of a second model.
        update: of the optimizer.
        largest: the largest micro-batch.
        traced: what it takes.
        layer, root: weights of the largest layer, and of all that is not in layers.
        each_step: whether the second model stays while the policy is trained.
        cached: whether reference scores are computed before training.
        passes: forward passes of the policy in a step: 2 where scores are needed beforehand.
    """

    parameters: Parameters
    weights: int
    gradients: int
    reference: int
    update: Update
    largest: Piece
    traced: Pass
    layer: int
    root: int
    each_step: bool
    cached: bool
    passes: int

    def phases(self, *, evaluated: bool) -> dict[str, Footprint]:
        """Name of a phase → what is in memory in it.

        Args:
            evaluated: whether there is evaluation data.
        """
        trained = self.gradients / self.weights if self.weights else 0.0
        lasting = self.reference if self.each_step else 0

        def phase(held: int, *, gradients: int = 0, optimizer: int = 0, reference: int = lasting):  # type: ignore[no-untyped-def]
            return Footprint(
                self.weights, gradients, optimizer, reference, max(0, held), self.layer, self.root,
                min(1.0, trained),
            )  # fmt: skip

        state, learning = self.update.state, self.traced.learning.held
        # A micro-batch alone makes the gradients itself; they are in what it holds.
        made = self.traced.kept
        found = {
            "first check": phase(self.traced.checking.held, reference=self.reference),
            "step": phase(learning - made, gradients=self.gradients, optimizer=state),
            "update": phase(self.update.held, gradients=self.gradients, optimizer=state),
        }
        if self.cached:
            held = self.traced.scoring.held
            found["reference scores"] = phase(held, reference=self.reference)
        if evaluated:
            found["evaluation"] = phase(self.traced.scoring.held, optimizer=state)
        return found


def find_needs(
    recipe: Recipe,
    loss: Weighted,
    outline: Outline,
    reference: Outline | None,
    data: Prepared,
    piece: Piece,
    *,
    constraints: tuple[Constraint, ...] = (),
    bf16: bool = False,
) -> Needs:
    """Trace a recipe's training.

    Args:
        recipe: settled.
        loss: what it minimises.
        outline: of the model.
        reference: of the other model, where the recipe names one.
        data: prepared; whatever of `recipe` it depends on is the same.
        piece: the largest micro-batch.
        constraints: what else must be kept.
        bf16: compute in bf16, as accelerators do.

    Raises:
        RecipeError, PolicyError: what training would raise.
    """

    def learner_of(depth: int | None) -> Learner:
        other = None
        if reference is not None:
            other = reference.policy(_same_share(depth, outline, reference))
        return stand_in(
            outline.policy(depth), _plain(recipe), loss, reference=other, constraints=constraints,
            bf16=bf16,
        )  # fmt: skip

    whole = learner_of(None)
    job = job_of(whole, data)  # which also makes a frozen copy, where one is needed
    second = _second(whole)
    traced = _traced(whole, learner_of, outline, data, piece)
    policy = whole.policy
    layer, root = _layer_and_root(policy)
    scoring = whole.reference is not None
    return Needs(
        parameters=count_parameters(policy),
        weights=_weights(policy.model, recipe),
        gradients=sum(_size(w) for w in policy.model.parameters() if w.requires_grad),
        reference=_weights(second, recipe) if second is not None else 0,
        update=_update(whole, job, recipe),
        largest=piece,
        traced=_with_dequantised(traced, policy.model, recipe),
        layer=layer,
        root=root,
        each_step=scoring and (recipe.reference_scores == "each_step" or recipe.probe is not None),
        cached=scoring and recipe.reference_scores == "cache",
        passes=2 if loss.couples_batch and not piece.alone else 1,
    )


def _traced(
    whole: Learner,
    learner_of: Callable[[int | None], Learner],
    outline: Outline,
    data: Prepared,
    piece: Piece,
) -> Pass:
    """What the micro-batch takes; of a deep model from two shallow ones."""
    chosen = depths(outline.layers, outline.period)
    learners = [whole] if len(chosen) == 1 else [learner_of(depth) for depth in chosen]
    passes = [
        trace(learner, job_of(learner, data), piece.step, piece.positions, alone=piece.alone)
        for learner in learners
    ]
    if len(passes) == 1:
        return passes[0]
    return deeper(passes[0], passes[1], (chosen[0], chosen[1]), outline.layers)


def count_parameters(policy: Policy) -> Parameters:
    """The policy's numbers, by part."""
    model, base = policy.model, base_model(policy.model)
    adapted = has_adapter(model)
    embeddings = base.get_input_embeddings().weight
    head = {id(w) for w in _head(base).parameters()}
    layers = {id(w) for layer in _layers(base) for w in layer.parameters()}
    parts = dict.fromkeys(("embeddings", "layers", "head", "adapter", "other"), 0)
    for weight in model.parameters():
        if adapted and weight.requires_grad:
            name = "adapter"
        elif weight is embeddings:
            name = "embeddings"
        elif id(weight) in head:
            name = "head"
        else:
            name = "layers" if id(weight) in layers else "other"
        parts[name] += weight.numel()
    trainable = sum(w.numel() for w in model.parameters() if w.requires_grad)
    named = {name: count for name, count in parts.items() if count}
    return Parameters(sum(named.values()), trainable, named)


def _plain(recipe: Recipe) -> Recipe:
    """The recipe with what a model without numbers cannot have; it is counted by formula."""
    changes: dict[str, Any] = {"quantize": None}
    if recipe.optimizer.name.endswith("8bit"):
        changes["optimizer"] = type(recipe.optimizer)()
    return recipe.model_copy(update=changes)


def _second(learner: Learner) -> nn.Module | None:
    """The reference's own model, if it has one."""
    reference = learner.reference
    if reference is None or reference.score is None:
        return None
    model = reference.score.scorer.model
    return None if model is learner.policy.model else model


def _same_share(depth: int | None, outline: Outline, other: Outline) -> int | None:
    """Layers of the other model that are to it what `depth` layers are to the policy."""
    if depth is None or outline.layers == other.layers:
        return depth
    return max(1, round(depth * other.layers / outline.layers))


def _update(learner: Learner, job: Any, recipe: Recipe) -> Update:
    """What the optimizer keeps and needs."""
    if not recipe.optimizer.name.endswith("8bit"):
        return trace_update(job)
    state = 0
    for weight in job.parameters:
        count = weight.numel()
        blocks = -(-count // _BLOCK)
        state += 8 * count if count < _SMALL else 2 * (count + 4 * blocks)
    return Update(state, 0)


def _weights(model: nn.Module, recipe: Recipe) -> int:
    if recipe.quantize is None:
        return sum(map(_size, model.parameters()))
    each = _QUANTIZED[recipe.quantize]
    inside = {id(w) for w in _quantizable(model)}
    return round(sum(w.numel() * each if id(w) in inside else _size(w) for w in model.parameters()))


def _quantizable(model: nn.Module) -> list[Tensor]:
    """Weights of linear layers but the head's, and not those of an adapter."""
    head = _head(base_model(model))
    linear = [m for m in model.modules() if isinstance(m, nn.Linear) and m is not head]
    return [m.weight for m in linear if not m.weight.requires_grad]


def _with_dequantised(traced: Pass, model: nn.Module, recipe: Recipe) -> Pass:
    """A quantized layer's weights are whole while it computes."""
    if recipe.quantize is None:
        return traced
    more = max((4 * w.numel() for w in _quantizable(model)), default=0)

    def with_it(counted: Counted) -> Counted:
        return Counted(counted.held + more, counted.operations)

    return Pass(
        with_it(traced.learning), with_it(traced.scoring), with_it(traced.checking), traced.kept
    )


def _head(base: Any) -> nn.Module:
    """What gives words their logits, or a reward model its reward."""
    found: nn.Module = base.get_output_embeddings() or getattr(base, HEAD)
    return found


def _layer_and_root(policy: Policy) -> tuple[int, int]:
    sizes = [sum(map(_size, layer.parameters())) for layer in _layers(base_model(policy.model))]
    total = sum(map(_size, policy.model.parameters()))
    return max(sizes, default=0), total - sum(sizes)


def _layers(base: Any) -> nn.ModuleList:
    """The decoder's layers: its longest list of modules."""
    lists = [m for m in base.get_decoder().modules() if isinstance(m, nn.ModuleList)]
    return max(lists, key=len, default=nn.ModuleList())


def _size(weight: Tensor) -> int:
    return weight.numel() * weight.element_size()
