"""What numbers are computed in and what is computed again: settings that a device may not fit."""

from __future__ import annotations

from typing import Any

import torch

from prefopt.engine import attention
from prefopt.engine.logps import Precision, Scorer
from prefopt.errors import RecipeError
from prefopt.policies.load import base_model
from prefopt.recipe import Recipe


def precision_of(recipe: Recipe, device: torch.device) -> Precision:
    """What a recipe's policy is computed in on a device.

    Raises:
        RecipeError: bf16 is asked for where it is not there, or hundreds of times slower.
    """
    if recipe.weights == "bf16":  # for the memory, wherever it is
        return "bf16"
    return choose_precision(recipe.precision, device)


def choose_precision(wanted: str, device: torch.device) -> Precision:
    """What `auto` means on a device: bf16 autocast on accelerators that have it, else fp32.

    Raises:
        RecipeError: bf16 is asked for where it is not there, or hundreds of times slower.
    """
    able = device.type != "cpu" and (device.type != "cuda" or torch.cuda.is_bf16_supported())
    if wanted == "bf16" and not able:
        raise RecipeError(
            f"precision bf16 needs an accelerator that has it, and the policy is on {device}",
            field="precision",
            value=wanted,
            remedy="set precision: auto or fp32; on a CPU fp32 is the fast one",
        )
    return "bf16" if able and wanted != "fp32" else "fp32"


def recompute(scorer: Scorer, recipe: Recipe, device: torch.device) -> None:
    """Set gradient checkpointing as a recipe says.

    Raises:
        RecipeError: activations are to be moved to the memory where they are.
    """
    if recipe.offload_activations and device.type == "cpu":
        raise RecipeError(
            "offload_activations has no effect on a CPU: there is no other memory to move to",
            field="offload_activations",
            value=True,
            remedy="remove offload_activations",
        )
    assert recipe.gradient_checkpointing is not False
    scorer.enable_checkpointing(recipe.gradient_checkpointing, offload=recipe.offload_activations)


def compile_layers(model: Any, device: torch.device, **how: Any) -> None:
    """Compile every decoder layer, but for its attention, which has compiled kernels.

    Lengths differ from batch to batch, so sizes are symbols from the start, and all layers and
    batches share a few graphs.

    Args:
        model: the policy's.
        device: where it is.
        how: what `torch.compile` is told beside that.

    Raises:
        RecipeError: the policy is on a CPU, where it only costs.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    if device.type == "cpu" and not how:
        raise RecipeError(
            "torch.compile does not pay on a CPU: it took 51 seconds to start, 57 more for another "
            "length, and was no faster from 256 channels up",
            field="compile",
            value=True,
            remedy="remove compile",
        )
    attention.keep_from_compilers()
    for layer in base_model(model).get_decoder().modules():
        if isinstance(layer, GradientCheckpointingLayer):
            layer.compile(dynamic=True, **how)
