"""Optimizers by name, and the learning rate as a closed form of the step.

Every optimizer is restored to the last bit from a checkpoint; of the rate there is nothing to
restore.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias, cast

import torch
from torch import nn

from prefopt.errors import MissingExtraError, RecipeError
from prefopt.recipe import OptimizerChoice
from prefopt.training.clipping import by_mesh
from prefopt.training.stochastic import StochasticAdamW

Groups: TypeAlias = list[dict[str, Any]]

#: devices that have the fused kernel; on two CPU cores it is 5 times as fast as the loop
_FUSED = ("cpu", "cuda", "mps", "xpu")

#: share of the peak rate that is left, by share of the decay that is done (0 to 1)
SCHEDULES: Mapping[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "cosine": lambda done: (1 + math.cos(math.pi * done)) / 2,
    "linear": lambda done: 1 - done,
}


def make_optimizer(
    parameters: Iterable[nn.Parameter],
    *,
    learning_rate: float,
    weight_decay: float = 0.0,
    choice: OptimizerChoice | None = None,
    seed: int = 0,
) -> torch.optim.Optimizer:
    """An optimizer over parameters that want a gradient; norms and biases do not decay.

    Args:
        parameters: of one device; frozen ones are left out. Those in bfloat16 are rounded
            stochastically.
        learning_rate: the peak; the loop sets the rate of each step.
        weight_decay: decoupled, for matrices only.
        choice: which optimizer, with its options; by default AdamW.
        seed: of what is drawn in rounding.

    Raises:
        RecipeError: it cannot train these parameters, or has no effect on their device.
        MissingExtraError: a package that it needs is not installed.
    """
    choice = choice or OptimizerChoice()
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    matrices = [parameter for parameter in trainable if parameter.ndim >= 2]
    vectors = [parameter for parameter in trainable if parameter.ndim < 2]
    groups = [
        {"params": alike, "weight_decay": decay}
        for kind, decay in ((matrices, weight_decay), (vectors, 0.0))
        for alike in by_mesh(kind).values()
    ]
    if any(parameter.dtype == torch.bfloat16 for parameter in trainable):
        if choice.name != "adamw":
            raise RecipeError(
                f"{choice.name} cannot train weights in bf16: it would round its steps away",
                field="optimizer",
                value=choice.name,
                remedy="set optimizer: adamw, or weights: fp32",
            )
        return StochasticAdamW(groups, lr=learning_rate, seed=seed, **_adam(choice))
    return _MAKERS[choice.name](groups, learning_rate, choice)


def check_optimizer(choice: OptimizerChoice, device: torch.device) -> None:
    """Whether an optimizer is there and has an effect, before anything is written.

    Raises:
        RecipeError: it has no effect on this device.
        MissingExtraError: a package that it needs is not installed.
    """
    if choice.name == "paged_adamw_8bit" and device.type == "cpu":
        raise RecipeError(
            "paging has no effect on a CPU: there is no other memory to move to",
            field="optimizer",
            value=choice.name,
            remedy="set optimizer: adamw_8bit",
        )
    if choice.name.endswith("8bit"):
        _bitsandbytes(choice.name)


def _adam(choice: OptimizerChoice) -> dict[str, Any]:
    first, second = choice.options["betas"]
    return {"betas": (first, second), "eps": choice.options["eps"]}


def _adamw(groups: Groups, rate: float, choice: OptimizerChoice) -> torch.optim.Optimizer:
    devices = {parameter.device.type for group in groups for parameter in group["params"]}
    return torch.optim.AdamW(groups, lr=rate, fused=devices <= set(_FUSED), **_adam(choice))


def _adamw_8bit(groups: Groups, rate: float, choice: OptimizerChoice) -> torch.optim.Optimizer:
    """State in blocks of 8-bit numbers with a scale each (Dettmers et al. 2021,
    arXiv:2110.02861); of parameters below 4096 numbers in float32."""
    made = _bitsandbytes(choice.name).optim.AdamW8bit(groups, lr=rate, **_adam(choice))
    return cast(torch.optim.Optimizer, made)


def _paged_adamw_8bit(
    groups: Groups, rate: float, choice: OptimizerChoice
) -> torch.optim.Optimizer:
    """The same in unified memory (Dettmers et al. 2023, arXiv:2305.14314)."""
    made = _bitsandbytes(choice.name).optim.PagedAdamW8bit(groups, lr=rate, **_adam(choice))
    return cast(torch.optim.Optimizer, made)


def _adafactor(groups: Groups, rate: float, choice: OptimizerChoice) -> torch.optim.Optimizer:
    """Row and column averages in place of a state (Shazeer & Stern 2018, arXiv:1804.04235)."""
    options = choice.options
    return torch.optim.Adafactor(
        groups, lr=rate, beta2_decay=options["beta2_decay"], d=options["clip_threshold"]
    )


def _rmsprop(groups: Groups, rate: float, choice: OptimizerChoice) -> torch.optim.Optimizer:
    """The optimizer of the DPO paper (arXiv:2305.18290, appendix B)."""
    return torch.optim.RMSprop(groups, lr=rate, **choice.options)


_MAKERS: Mapping[str, Callable[[Groups, float, OptimizerChoice], torch.optim.Optimizer]] = {
    "adamw": _adamw,
    "adamw_8bit": _adamw_8bit,
    "paged_adamw_8bit": _paged_adamw_8bit,
    "adafactor": _adafactor,
    "rmsprop": _rmsprop,
}


def _bitsandbytes(optimizer: str) -> Any:
    try:
        import bitsandbytes
    except ImportError as error:
        raise MissingExtraError(
            f"{optimizer} needs the package bitsandbytes",
            field="optimizer",
            value=optimizer,
            remedy="install it with: pip install 'prefopt[quantized]'",
        ) from error
    return bitsandbytes


def rate_at(
    step: int, *, total: int, peak: float, warmup: float = 0.1, schedule: str = "cosine"
) -> float:
    """Learning rate of a step: a straight line up to the peak, then the schedule down to zero.

    Args:
        step: counted from 0; the rate is above zero for every one of `total` steps.
        total: steps of the whole training.
        peak: the highest rate.
        warmup: share of the steps spent rising, rounded up to whole steps.
        schedule: a key of `SCHEDULES`.

    >>> [round(rate_at(s, total=6, peak=1.0, warmup=0.3, schedule="linear"), 2) for s in range(6)]
    [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    """
    rising = math.ceil(warmup * total)
    if step < rising:
        return peak * (step + 1) / rising
    return peak * SCHEDULES[schedule]((step - rising) / (total - rising))
