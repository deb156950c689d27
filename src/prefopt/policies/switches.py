"""What a policy with an adapter can be for a moment: the bare base, or itself as it started.

Layers remember which adapter they use and whether they use one at all; flipping these two
switches costs a millisecond, and weights stay where they are. (PEFT's own `disable_adapter`
walks every module: 72 ms for 196 layers. Its `set_adapter` makes what it switches to
trainable.) A soft prompt has no layers: the model itself remembers.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from prefopt.policies.fingerprint import START
from prefopt.policies.quiet import quietly

_OFF = "_prefopt_prompt_off"


def has_adapter(model: Any) -> bool:
    """Whether a model is a PEFT model."""
    return hasattr(model, "peft_config")


def is_soft_prompt(model: Any) -> bool:
    """Whether a model's adapter is virtual tokens before the real ones."""
    return has_adapter(model) and bool(model.active_peft_config.is_prompt_learning)


def prompt_is_on(model: Any) -> bool:
    """Whether virtual tokens stand before the model's tokens now."""
    return is_soft_prompt(model) and not getattr(model, _OFF, None)


@contextmanager
def adapter_off(model: Any) -> Iterator[None]:
    """The model as it is without its adapter, for the length of a `with` block."""
    if is_soft_prompt(model):
        with _switched([model], _OFF, True):
            yield
    else:
        with _switched(_layers(model), "_disable_adapters", True):
            yield


@contextmanager
def as_it_started(model: Any) -> Iterator[None]:
    """The model with its adapter as `keep_start` found it, for the length of a `with` block."""
    if is_soft_prompt(model):
        with _switched([model], "active_adapter", START):
            yield
    else:
        with _switched(_layers(model), "_active_adapter", [START]):
            yield


def keep_start(model: Any) -> None:
    """Keep a frozen copy of the adapter beside it, on the same base: a reference to return to.

    Nothing happens if there is one. What is saved and what is trained stay as they are.
    """
    if START in model.peft_config:
        return
    config = copy.deepcopy(model.peft_config[model.active_adapter])
    config.inference_mode = True
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.no_grad(), quietly():
        (_copy_prompt if is_soft_prompt(model) else _copy_layers)(model, config)
    for key, weight in model.named_parameters():
        if f".{START}" in key:
            weight.requires_grad_(False)
    model.__dict__.pop("_prefopt_switches", None)


def _copy_layers(model: Any, config: Any) -> None:
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    if model.device.type == "meta":  # a shape, whose weights come from another process
        model.add_adapter(START, config, low_cpu_mem_usage=True)
        return
    weights = get_peft_model_state_dict(
        model, adapter_name=model.active_adapter, save_embedding_layers=False
    )
    weights = {key: value.clone() for key, value in weights.items()}
    model.add_adapter(START, config)
    set_peft_model_state_dict(model, weights, adapter_name=START)


def _copy_prompt(model: Any, config: Any) -> None:
    """What the virtual tokens are, without the network that they may come out of."""
    name = model.active_adapter
    encoder, known = model.prompt_encoder[name], model.peft_config[name].inference_mode
    virtual = encoder.embedding.weight
    if not known:
        virtual = encoder(model.prompt_tokens[name].to(virtual.device))
    model.add_adapter(START, config)
    model.prompt_encoder[START].embedding.weight.copy_(virtual)


def _layers(model: Any) -> list[Any]:
    """The layers that have an adapter; looked for once."""
    known: list[Any] | None = model.__dict__.get("_prefopt_switches")
    if known is None:
        known = [layer for layer in model.modules() if hasattr(layer, "_disable_adapters")]
        # A plain attribute would register the layers a second time.
        object.__setattr__(model, "_prefopt_switches", known)
    return known


@contextmanager
def _switched(holders: list[Any], name: str, value: Any) -> Iterator[None]:
    before = [getattr(holder, name, None) for holder in holders]
    for holder in holders:
        object.__setattr__(holder, name, value)
    try:
        yield
    finally:
        for holder, old in zip(holders, before, strict=True):
            object.__setattr__(holder, name, old)
