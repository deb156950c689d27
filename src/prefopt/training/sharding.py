"""A model held by PyTorch's own engine: DDP, FSDP2 (`fully_shard`) or tensor parallelism.

Gradients of all readers are added up, not averaged, because a loss is already divided by the
weight of its whole step. Weights may be on the first process alone, the others having only
the model's shape (`policies.load.shape_alone`): they are handed out as shards, so that no
memory ever holds more than one whole copy.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from prefopt.errors import RecipeError
from prefopt.policies.adapters import has_adapter
from prefopt.policies.computing import Whole, hold, holder_of, shape_of
from prefopt.policies.load import (
    Policy,
    base_model,
    load_policy,
    load_tokenizer,
    usable_device,
)
from prefopt.policies.reference import freeze, frozen_copy
from prefopt.recipe import Recipe
from prefopt.training.distributed import by_main, processes
from prefopt.training.parallel import Spread

META = torch.device("meta")
#: optimizers that treat every number by itself, so that one in shards is the same
_BY_ELEMENT = ("adamw", "rmsprop")


def load_for(
    name: str, recipe: Recipe, load_whole: Callable[..., Policy] = load_policy, **options: Any
) -> Policy:
    """Load a model as its strategy wants it: whole, or where it is going to be sharded, whole
    on the first process and a shape on the others.

    Args:
        name: a folder or hub id.
        recipe: of the training.
        load_whole: what loads it whole; a policy by default.
        **options: further ones of that.

    Raises:
        PolicyError: as `load_policy` does, in every process.
    """
    if processes() == 1 or recipe.parallel.strategy == "ddp":
        return load_whole(name, device=recipe.device, **options)
    loaded: list[Policy] = []

    def load() -> Any:
        loaded.append(load_whole(name, device="cpu", **options))
        return shape_alone(loaded[0].model)

    shape = by_main(load)
    return loaded[0] if loaded else Policy(shape, load_tokenizer(name), name)


def home_of(policy: Policy, recipe: Recipe) -> torch.device:
    """Where a policy is computed, which one that is going to be sharded may not have reached."""
    if processes() == 1 or recipe.parallel.strategy == "ddp":
        return policy.device
    return usable_device(recipe.device)


def check_sharding(recipe: Recipe, spread: Spread) -> None:
    """Refuse what needs the whole of a weight where no process has it.

    Raises:
        RecipeError: an optimizer or weights that cannot be sharded.
    """
    optimizer = recipe.optimizer.name
    for field, value, sharded in (
        ("optimizer", optimizer, optimizer in _BY_ELEMENT),
        ("weights", recipe.weights, recipe.weights == "fp32"),
        ("quantize", recipe.quantize, recipe.quantize is None),
    ):
        if spread.sharded and not sharded:
            raise RecipeError(
                f"{field}: {value} cannot be had with weights in shards",
                field=field,
                value=value,
                remedy=f"leave out {field}, or set parallel: ddp",
            )


def spread_out(model: Any, spread: Spread, device: torch.device) -> None:
    """Give a model to the engine of its strategy, in place.

    Args:
        model: whole on every process, or on the first and a shape on the others.
        spread: how it is spread.
        device: where it is computed.

    Raises:
        RecipeError: this model cannot be spread this way.
    """
    if holder_of(model) is not None:  # from an earlier training of the same object
        return
    if spread.strategy == "ddp":
        if any(weight.requires_grad for weight in model.parameters()):
            hold(model, _replicated(model))
        return
    if not spread.sharded:
        return
    for name, weight in model.named_parameters():
        if weight.dtype != torch.float32:
            raise RecipeError(
                f"only float32 weights can be sharded, and {name} is {weight.dtype}".replace(
                    "torch.", ""
                ),
                field="parallel.strategy",
                value=spread.strategy,
                remedy="set parallel: ddp, or leave out what makes weights small",
            )
    shape = shape_alone(model)
    whole = _handed_out(model)
    held = _divided(model, spread)
    if whole is not None:
        _make_room(model, device)
        _receive(model, whole, device)
    elif spread.shards is None:
        model.to(device)
    hold(model, held, shape)


def shape_alone(model: nn.Module) -> Any:
    """A copy of a model without its weights: every tensor of it is on the meta device."""
    memo: dict[int, Any] = {}
    for weight in model.parameters():
        empty = torch.empty_like(weight, device=META)
        memo[id(weight)] = nn.Parameter(empty, requires_grad=weight.requires_grad)
    for buffer in model.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device=META)
    return copy.deepcopy(model, memo)


def copy_of(policy: Policy, spread: Spread) -> Policy:
    """The policy as it is now, frozen and spread in the same way, in memory of its own."""
    if not spread.sharded:
        return frozen_copy(policy)
    let_go(policy.model)
    device = policy.device
    model: Any = copy.deepcopy(shape_of(policy.model))
    shape = shape_alone(model)
    held = _divided(model, spread)
    _make_room(model, device)
    hold(model, held, shape)
    ours = [*policy.model.named_parameters(), *policy.model.named_buffers()]
    theirs = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    with torch.no_grad():
        for name, tensor in ours:
            _local(theirs[name]).copy_(_local(tensor))
    return freeze(Policy(model, policy.tokenizer, policy.name))


def last_of_step(model: nn.Module, last: bool) -> None:
    """Tell the engine whether a micro-batch is the last of its step, before its forward pass.

    Replicas add up their gradients once a step. Shards do so after every micro-batch, since
    what is not added up yet is a gradient of the whole model; unless memory is there for it.
    """
    held: Any = holder_of(model)
    if isinstance(held, nn.parallel.DistributedDataParallel):
        held.require_backward_grad_sync = last
    elif hasattr(held, "set_requires_gradient_sync") and held.prefopt_keeps_whole:
        held.set_requires_gradient_sync(last)
        held.set_reshard_after_backward(last)


def let_go(model: nn.Module) -> None:
    """Free gathered weights: what is read or changed next are the shards."""
    from torch.distributed.fsdp import FSDPModule

    held = holder_of(model)
    for module in held.modules() if held is not None else ():
        if isinstance(module, FSDPModule):
            module.reshard()


# -- replicas ------------------------------------------------------------------------------


def _replicated(model: nn.Module) -> nn.Module:
    held = nn.parallel.DistributedDataParallel(
        Whole(model), forward_sync_buffers=False, gradient_as_bucket_view=True
    )
    # Without annotations, which DDP would compare as objects and finds as words.
    held.register_comm_hook(None, lambda state, bucket: _add_up(bucket))
    return held


def _add_up(bucket: Any) -> Any:
    """Sum of a bucket of gradients; DDP's own would be the mean."""
    work = torch.distributed.all_reduce(bucket.buffer(), async_op=True)
    return work.get_future().then(lambda future: future.value()[0])


# -- shards --------------------------------------------------------------------------------


def _divided(model: Any, spread: Spread) -> Whole:
    """Split a model's matrices and shard its layers, as far as its strategy does; its holder."""
    if spread.split is not None:
        _split_matrices(model, spread)
    held = Whole(model)
    if spread.shards is not None:
        _shard(model, held, spread)
    return held


def _shard(model: Any, held: Any, spread: Spread) -> None:
    """A group of shards for each layer, and one for everything else."""
    from torch.distributed.fsdp import fully_shard
    from transformers.modeling_layers import GradientCheckpointingLayer

    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            fully_shard(module, mesh=spread.shards, reshard_after_forward=spread.reshard)
    # The head is used in chunks, as many as a process has tokens for: it stays gathered.
    fully_shard(held, mesh=spread.shards, reshard_after_forward=False)
    for module in held.modules():
        if hasattr(module, "set_gradient_divide_factor"):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo has no other
    held.prefopt_keeps_whole = not spread.reshard


def _handed_out(model: nn.Module) -> dict[str, Tensor] | None:
    """What the first process has to hand out; None where every process has all weights."""
    import torch.distributed as dist

    tensors = {**model.state_dict(keep_vars=True), **dict(model.named_buffers())}
    missing = torch.tensor(int(any(tensor.is_meta for tensor in tensors.values())))
    dist.all_reduce(missing, dist.ReduceOp.MAX)
    if not missing:
        return None
    return {name: tensor.detach() for name, tensor in tensors.items()}


def _make_room(model: nn.Module, device: torch.device) -> None:
    """Give every tensor of a model memory; weights that are one, such as tied ones, stay one."""
    places: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                places.setdefault(id(weight), []).append((module, name))
    model.to_empty(device=device)
    for (first, own), *others in places.values():
        for module, name in others:
            module._parameters[name] = first._parameters[own]


@torch.no_grad()
def _receive(model: nn.Module, whole: dict[str, Tensor], device: torch.device) -> None:
    """Fill the shards of all processes from the first one's weights, one tensor at a time."""
    import torch.distributed as dist
    from torch.distributed.tensor import DTensor, distribute_tensor

    for name, mine in (*model.named_parameters(), *model.named_buffers()):
        sent = whole[name]
        full = sent.to(device) if not sent.is_meta else torch.empty_like(sent, device=device)
        dist.broadcast(full, src=0)
        if isinstance(mine, DTensor):
            full = distribute_tensor(full, mine.device_mesh, mine.placements, src_data_rank=None)
        _local(mine).copy_(_local(full))


def _local(tensor: Tensor) -> Tensor:
    local: Tensor = getattr(tensor, "_local_tensor", tensor)
    return local


# -- split matrices ------------------------------------------------------------------------

#: a style of `transformers` for a small weight that every process has and uses on its own
#: heads alone; its way adds earlier micro-batches' gradients up twice, so it has one of ours
_PARTIAL = "replicated_with_grad_allreduce"


def _split_matrices(model: Any, spread: Spread) -> None:
    """Tensor parallelism by the plan that `transformers` has for the model."""
    from transformers.distributed.tensor_parallel import apply_tensor_parallelism

    plan = _plan_of(model, spread)
    expanded = model._expand_parallel_plan(plan)
    modules = dict(model.named_modules())
    ours = [name for name, style in expanded.items() if style == _PARTIAL]
    apply_tensor_parallelism(
        model, spread.split, {n: style for n, style in expanded.items() if n not in ours}
    )
    for name in ours:
        if name in modules:
            _sum_gradients(modules[name], spread.split)


def _plan_of(model: Any, spread: Spread) -> dict[str, str]:
    """How each kind of module is split.

    Raises:
        RecipeError: this model cannot be split, or not over so many processes.
    """
    from transformers.distributed.tensor_parallel import get_kv_heads_per_rank

    def refuse(reason: str, **where: Any) -> RecipeError:
        return RecipeError(
            f"the matrices of this {type(base_model(model)).__name__} cannot be split: {reason}",
            **(where or {"field": "parallel.strategy", "value": "tensor"}),
            remedy="set parallel: fsdp",
        )

    if has_adapter(model):
        raise refuse("it has an adapter")
    plan = dict(getattr(model, "tp_plan", None) or {})
    if not plan:
        raise refuse("transformers has no plan for it")
    config = model.config.get_text_config()
    heads: int = config.num_key_value_heads
    if get_kv_heads_per_rank(plan, heads, spread.tensor) is None:
        reason = f"its {heads} key heads cannot be divided by {spread.tensor}"
        raise refuse(reason, field="parallel.tensor", value=spread.tensor)
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    names = {name for name, module in model.named_modules() if module in ends}
    if ends[0].weight is ends[1].weight:  # one weight, which splitting would make two
        plan = {name: style for name, style in plan.items() if name not in names}
    return plan


def _sum_gradients(module: nn.Module, mesh: Any) -> None:
    """Add up the gradients of a module's weights, of which each process has a part."""
    from torch.distributed.tensor import DTensor, Partial, Replicate

    forward = module.forward

    def with_parts(*args: Any, **kwargs: Any) -> Any:
        own = dict(module.named_parameters(recurse=False))
        for name, weight in own.items():
            everywhere = DTensor.from_local(weight, mesh, [Replicate()], run_check=False)
            module._parameters[name] = everywhere.to_local(grad_placements=[Partial()])  # type: ignore[assignment]
        try:
            return forward(*args, **kwargs)
        finally:
            module._parameters.update(own)

    module.forward = with_parts
