"""Adapters: a few trainable weights beside frozen ones.

With an adapter switched off the policy *is* the model it started from, to the last bit, so
the reference costs no memory. `adapter_table.py` says which adapters that holds for; what it
does not hold for is refused here rather than trained against a wrong reference.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prefopt.errors import PolicyError, RecipeError
from prefopt.policies import prompts
from prefopt.policies.adapter_table import ADAPTERS, NOT_HERE, REFUSED_EVERYWHERE, AdapterKind
from prefopt.policies.load import Policy, length_limit
from prefopt.policies.quantized import quantization_of
from prefopt.policies.quiet import quietly
from prefopt.policies.switches import adapter_off, has_adapter, is_soft_prompt
from prefopt.recipe import AdapterChoice

__all__ = ["adapter_off", "attach_adapter", "has_adapter", "kind_of", "settled", "train_adapter"]

#: settings of an adapter that not every one reads
_SETTINGS = ("rank", "alpha", "target_modules", "virtual_tokens", "init_text")


def attach_adapter(policy: Policy, choice: AdapterChoice, *, seed: int = 0) -> Policy:
    """The policy with a fresh adapter, its only trainable weights.

    The model is changed in place, as PEFT does it: an object that shares its layers sees the
    adapter too. The global random state is left as it was.

    Args:
        policy: a policy without an adapter.
        choice: which adapter, and its options.
        seed: of the adapter's initial weights.

    Raises:
        RecipeError: there is no such adapter, an option is unknown or has no effect, or it
            would make "adapter off" something else than the policy as it starts.
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
    choice = settled(choice)
    kind, base = kind_of(choice.name), policy.model
    _refuse_quantized(choice.name, kind, base)
    _refuse_too_long(choice, base)
    _make_path_absolute(base)
    devices = [base.device] if base.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), quietly():
        torch.manual_seed(seed)
        words = prompts.first_words(policy, choice) if kind.start_from_text else None
        try:
            model = get_peft_model(base, _config_of(choice, kind, base, words))
        except Exception as error:  # what PEFT makes of a wrong option has no common type
            raise _cannot_attach(choice, error) from error
        _refuse_idle_targets(choice, model)
        if words is not None:
            prompts.begin_with(model, words)
    return Policy(model, policy.tokenizer, policy.name)


def train_adapter(model: Any) -> None:
    """Make the active adapter of a loaded PEFT model trainable; loading leaves it frozen."""
    if is_soft_prompt(model):
        model.prompt_encoder[model.active_adapter].requires_grad_(True)
        return
    for name in model.active_adapters:
        model.set_requires_grad(name, True)


def kind_of(name: str) -> AdapterKind:
    """The row of the table.

    Raises:
        RecipeError: there is none; where PEFT has such an adapter, it says why.
    """
    if name in ADAPTERS:
        return ADAPTERS[name]
    if name in NOT_HERE:
        raise RecipeError(
            f"adapter '{name}' is not trained here: {NOT_HERE[name]}",
            field="adapter.name",
            value=name,
            remedy="use lora, or another one of docs/adapters.md",
        )
    raise RecipeError(
        f"there is no adapter '{name}'",
        field="adapter.name",
        value=name,
        remedy=f"choose one of: {', '.join(_close(name, ADAPTERS) or ADAPTERS)}",
    )


def settled(choice: AdapterChoice) -> AdapterChoice:
    """The choice with the adapter's own defaults written out; the same if they are already.

    Raises:
        RecipeError: there is no such adapter, an option is unknown or refused, or a setting
            has no effect on it.
    """
    kind = kind_of(choice.name)
    given = {name: getattr(choice, name) for name in _SETTINGS}
    for name, value in given.items():
        if value is not None and name not in kind.reads:
            raise RecipeError(
                f"{name} has no effect on adapter '{choice.name}'",
                field=f"adapter.{name}",
                value=value,
                remedy=f"remove it; {choice.name} reads {_listed(kind.reads)}",
            )
    _check_options(choice, kind)
    missing = {k: v for k, v in kind.defaults.items() if given[k] is None}
    if given["init_text"] is not None and given["virtual_tokens"] is None:
        missing.pop("virtual_tokens")  # as many as the text has
    return choice.model_copy(update=missing)


def _check_options(choice: AdapterChoice, kind: AdapterKind) -> None:
    import peft

    types = {option.name: option.type for option in fields(getattr(peft, kind.config))}
    known = set(types)
    ours = {theirs: name for name, theirs in kind.names.items()}
    for name, value in choice.options.items():
        if name in ours and name not in kind.refused:
            raise RecipeError(
                f"adapter option '{name}' is called '{ours[name]}' here",
                field=f"adapter.{name}",
                value=value,
                remedy=f"set adapter.{ours[name]}",
            )
        if name not in known:
            close = _close(name, {*kind.reads, *known} - {*REFUSED_EVERYWHERE, *kind.refused})
            raise RecipeError(
                f"adapter '{choice.name}' has no option '{name}'",
                field=f"adapter.{name}",
                value=value,
                remedy=f"did you mean {' or '.join(close)}?"
                if close
                else f"its options are those of peft.{kind.config}",
            )
        reason = _refusal(name, value, kind)
        if reason is not None:
            raise RecipeError(
                f"adapter option '{name}' cannot be {value!r}: {reason}",
                field=f"adapter.{name}",
                value=value,
                remedy=f"leave out adapter.{name}",
            )
        if types[name] in (bool, "bool") and not isinstance(value, bool):
            raise RecipeError(
                f"adapter option '{name}' must be true or false",
                field=f"adapter.{name}",
                value=value,
                remedy=f"set adapter.{name}: true, or leave it out",
            )


def _refusal(name: str, value: Any, kind: AdapterKind) -> str | None:
    """Why an option cannot have that value."""
    if "dropout" in name:
        return "dropout makes log-ratios noisy, and prefopt trains without" if value else None
    if name in kind.fixed:
        return None if value in kind.fixed[name] else "it does not start at the reference"
    if name == "bias" and value == "none":
        return None
    refused = {**REFUSED_EVERYWHERE, **kind.refused}
    return refused.get(name) if value is not None else None


def _config_of(choice: AdapterChoice, kind: AdapterKind, base: Any, words: Any) -> Any:
    import peft

    settings = {theirs: getattr(choice, ours) for ours, theirs in kind.names.items()}
    settings |= {name: values[0] for name, values in kind.fixed.items()}
    if not kind.soft_prompt:
        settings["target_modules"] = _targets(choice.target_modules, base)
    if words is not None:
        settings["num_virtual_tokens"] = len(words)
    task = "CAUSAL_LM" if base.get_output_embeddings() is not None else "SEQ_CLS"  # with its head
    return getattr(peft, kind.config)(task_type=task, **{**settings, **choice.options})


def _targets(wanted: str | list[str] | None, base: Any) -> str | list[str] | None:
    """`all-linear` of the language model: what sees or hears is left as it is."""
    if wanted != "all-linear":
        return wanted
    decoder, head = base.get_decoder(), base.get_output_embeddings()
    inside = {id(module) for module in decoder.modules()}
    linear = [(n, m) for n, m in base.named_modules() if isinstance(m, nn.Linear) and m is not head]
    beside = [name for name, module in linear if id(module) not in inside]
    return [name for name, module in linear if id(module) in inside] if beside else wanted


def _cannot_attach(choice: AdapterChoice, error: Exception) -> PolicyError:
    message = (str(error).strip().splitlines() or [type(error).__name__])[0]
    where = "target" in message.lower() and choice.target_modules is not None
    return PolicyError(
        f"the adapter cannot be attached: {message}",
        field="adapter.target_modules" if where else "adapter",
        value=choice.target_modules if where else choice.name,
        remedy="use all-linear, or names of linear layers of this model"
        if where
        else f"choose options of {choice.name} that fit the model's layers, or use lora",
    )


def _refuse_quantized(name: str, kind: AdapterKind, base: Any) -> None:
    quantization = quantization_of(base)
    if quantization is not None and quantization not in kind.quantized:
        able = [other for other, row in ADAPTERS.items() if quantization in row.quantized]
        raise PolicyError(
            f"adapter '{name}' does not go on top of weights in {quantization}",
            field="adapter.name",
            value=name,
            remedy=f"use {', '.join(able) or 'plain weights'}, or leave out quantize",
        )


def _refuse_too_long(choice: AdapterChoice, base: Any) -> None:
    """More virtual tokens than a model was made for would leave no room for real ones."""
    limit, virtual = length_limit(base.config), choice.virtual_tokens
    if limit is not None and virtual is not None and virtual >= limit:
        raise RecipeError(
            f"virtual tokens leave no room for others: the model was made for {limit}",
            field="adapter.virtual_tokens",
            value=virtual,
            remedy="set fewer, such as 16",
        )


def _refuse_idle_targets(choice: AdapterChoice, model: Any) -> None:
    """Of several names PEFT passes over those that fit no layer."""
    wanted, reached = choice.target_modules, getattr(model, "targeted_module_names", [])
    if not isinstance(wanted, list) or not reached:
        return
    idle = [name for name in wanted if not any(f".{n}".endswith(f".{name}") for n in reached)]
    if idle:
        raise PolicyError(
            f"no layer is called {' or '.join(idle)}",
            field="adapter.target_modules",
            value=wanted,
            remedy=f"leave it out; layers with an adapter are now such as {reached[0]}",
        )


def _make_path_absolute(base: Any) -> None:
    """An adapter's folder names its base: by a path that does not depend on where one stands."""
    name = getattr(base.config, "_name_or_path", "")
    if name and Path(name).is_dir():
        base.config._name_or_path = base.name_or_path = str(Path(name).resolve())


def _close(name: str, names: Iterable[str]) -> list[str]:
    return difflib.get_close_matches(name, sorted(names), n=3, cutoff=0.5)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none of them"
