"""Adapters: a few trainable weights beside frozen ones, and how to switch them off.

With an adapter switched off the policy *is* the model it started from, to the last bit, so
the reference costs no memory. That holds for adapters that start as the identity and leave
the base alone; the others are refused here rather than trained against a wrong reference.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from prefopt.errors import PolicyError, RecipeError
from prefopt.policies.load import Policy
from prefopt.recipe import AdapterChoice

#: ways to start a LoRA that leave the base alone and begin with an update of exactly zero;
#: PiSSA, OLoRA, CorDA and LoftQ change the base (0.40 and 0.75 nats off for the first two)
_STARTS_AT_ZERO = (True, "gaussian")

#: warnings of PEFT about what it does right by itself: an adapter beside a tied layer leaves the
#: tie alone, GPT-2's transposed layers are recognised, and an old name still works
_HARMLESS = (".*tie_word_embeddings", "fan_in_fan_out is set to", "`is_gradient_checkpointing`")

#: PEFT's names of what the recipe calls differently
_OUR_NAMES = {"r": "rank", "lora_alpha": "alpha"}


def attach_adapter(policy: Policy, choice: AdapterChoice, *, seed: int = 0) -> Policy:
    """The policy with a fresh adapter, its only trainable weights.

    The model is changed in place, as PEFT does it: an object that shares its layers sees the
    adapter too. The global random state is left as it was.

    Args:
        policy: a policy without an adapter.
        choice: which adapter, and its options.
        seed: of the adapter's initial weights.

    Raises:
        RecipeError: there is no such adapter, an option is unknown, or it would make
            "adapter off" something else than the policy as it starts.
        PolicyError: the policy has an adapter already, or nothing to attach one to.
    """
    from peft import get_peft_model

    if has_adapter(policy.model):
        raise PolicyError(
            "the policy already has an adapter",
            field="adapter",
            value=policy.name,
            remedy="leave out `adapter` to train the one it has, or merge it first "
            "with `prefopt export`",
        )
    config = _config_of(choice)
    base = policy.model
    _make_path_absolute(base)
    devices = [base.device] if base.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), warnings.catch_warnings():
        for harmless in _HARMLESS:
            warnings.filterwarnings("ignore", message=harmless)
        torch.manual_seed(seed)
        try:
            model = get_peft_model(base, config)
        except ValueError as error:
            raise PolicyError(
                f"the adapter cannot be attached: {str(error).splitlines()[0]}",
                field="adapter.target_modules",
                value=choice.target_modules,
                remedy="use all-linear, or names of linear layers of this model",
            ) from error
    return Policy(model, policy.tokenizer, policy.name)


def train_adapter(model: Any) -> None:
    """Make the active adapter of a loaded PEFT model trainable; loading leaves it frozen."""
    for name in model.active_adapters:
        model.set_requires_grad(name, True)


def has_adapter(model: Any) -> bool:
    """Whether a model is a PEFT model."""
    return hasattr(model, "peft_config")


@contextmanager
def adapter_off(model: Any) -> Iterator[None]:
    """The model as it is without its adapter, for the length of a `with` block.

    PEFT's own `disable_adapter` walks every module (72 ms for 196 layers); the layers are
    remembered here and only their switch is flipped (1 ms).
    """
    layers = _switches(model)
    before = [layer._disable_adapters for layer in layers]
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer, value in zip(layers, before, strict=True):
            layer._disable_adapters = value


def _switches(model: Any) -> list[Any]:
    known: list[Any] | None = getattr(model, "_prefopt_switches", None)
    if known is None:
        known = [layer for layer in model.modules() if hasattr(layer, "_disable_adapters")]
        # A plain attribute would register the layers a second time.
        object.__setattr__(model, "_prefopt_switches", known)
    return known


def _config_of(choice: AdapterChoice) -> Any:
    if choice.name not in ADAPTERS:
        raise RecipeError(
            f"there is no adapter '{choice.name}'",
            field="adapter.name",
            value=choice.name,
            remedy=f"choose one of: {', '.join(ADAPTERS)}",
        )
    for name, ours in _OUR_NAMES.items():
        if name in choice.options:
            raise RecipeError(
                f"adapter option '{name}' is called '{ours}' here",
                field=f"adapter.{name}",
                value=choice.options[name],
                remedy=f"set adapter.{ours}",
            )
    return ADAPTERS[choice.name](choice)


def _lora(choice: AdapterChoice) -> Any:
    from peft import LoraConfig

    options = choice.options
    refused = (
        ("lora_dropout", 0.0, "dropout makes log-ratios noisy, and prefopt trains without"),
        ("bias", "none", "biases of the base would be trained too, and stay with adapter off"),
        ("modules_to_save", None, "it trains copies of whole layers; adapt them instead"),
    )
    for name, only, reason in refused:
        if options.get(name, only) != only:
            raise RecipeError(
                f"adapter option '{name}' cannot be {options[name]!r}: {reason}",
                field=f"adapter.{name}",
                value=options[name],
                remedy=f"leave out adapter.{name}",
            )
    start = options.get("init_lora_weights", True)
    if start not in _STARTS_AT_ZERO:
        raise RecipeError(
            f"init_lora_weights = {start!r} does not start at the reference: with the adapter "
            "off, the model would not be the policy as it starts",
            field="adapter.init_lora_weights",
            value=start,
            remedy="leave it out, or use gaussian",
        )
    try:
        return LoraConfig(
            r=choice.rank,
            lora_alpha=choice.alpha,
            target_modules=choice.target_modules,
            task_type="CAUSAL_LM",
            **options,
        )
    except TypeError as error:
        raise RecipeError(
            f"the adapter has an option that PEFT's LoRA has not: {error}",
            field="adapter",
            value=options,
            remedy="its options are those of peft.LoraConfig",
        ) from None


#: name -> PEFT configuration of a choice
ADAPTERS: Mapping[str, Callable[[AdapterChoice], Any]] = {"lora": _lora}


def _make_path_absolute(base: Any) -> None:
    """An adapter's folder names its base: by a path that does not depend on where one stands."""
    name = getattr(base.config, "_name_or_path", "")
    if name and Path(name).is_dir():
        base.config._name_or_path = base.name_or_path = str(Path(name).resolve())
