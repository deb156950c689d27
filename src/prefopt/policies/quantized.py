"""Base weights in 4 or 8 bits, frozen, with an adapter on top: QLoRA (arXiv:2305.14314).

`nf4` keeps weights in 4 bits and computes with what they stand for, so the policy is exactly
the model with those weights, and can be exported as one. `int8` (LLM.int8, arXiv:2208.07339)
rounds activations too, which no plain model does.
"""

from __future__ import annotations

import importlib.util
import json
import logging
from pathlib import Path
from typing import Any

import torch

from prefopt.errors import MissingExtraError, PolicyError
from prefopt.runs import write_text

#: what bitsandbytes and transformers log: that a kernel is not on a hub, that inputs are cast
#: to half precision in each of a thousand calls, that weights are dequantised when asked to
for _logger in (
    "bitsandbytes.backends.cpu.ops",
    "bitsandbytes.autograd._functions",
    "transformers.integrations.bitsandbytes",
):
    logging.getLogger(_logger).setLevel(logging.ERROR)

#: file beside an adapter that says how its base is to be loaded
_NOTE = "prefopt_policy.json"


def quantization_of(model: Any) -> str | None:
    """`nf4` or `int8`; the method's own name for weights that came quantized otherwise."""
    config: Any = getattr(model.config.get_text_config(), "quantization_config", None)
    config = config or getattr(model.config, "quantization_config", None)
    if config is None:
        return None
    settings = config if isinstance(config, dict) else config.to_dict()
    if settings.get("load_in_8bit"):
        return "int8"
    if settings.get("load_in_4bit"):
        return str(settings.get("bnb_4bit_quant_type"))
    return str(settings.get("quant_method"))


def loading_options(how: str, device: torch.device) -> dict[str, Any]:
    """What `from_pretrained` must be told to quantize a model while it is loaded.

    Raises:
        MissingExtraError: bitsandbytes is not installed.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise MissingExtraError(
            f"weights in {how} need bitsandbytes, which is not installed",
            field="quantize",
            value=how,
            remedy="pip install 'prefopt[quantized]'",
        )
    import transformers

    make: Any = transformers.BitsAndBytesConfig
    if how == "int8":
        return {"quantization_config": make(load_in_8bit=True), "device_map": {"": device}}
    able = device.type == "cuda" and torch.cuda.is_bf16_supported()
    config = make(
        load_in_4bit=True,
        bnb_4bit_quant_type=how,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16 if able else torch.float32,
    )
    return {"quantization_config": config, "device_map": {"": device}}


def one_arithmetic(model: Any) -> None:
    """Compute with and without gradient alike.

    On CPUs with AVX512-BF16, bitsandbytes repacks the weights at the first forward without
    gradient, and computes in bfloat16 from then on: the reference would be rounded otherwise
    than the policy, and the weights changed for good.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def dequantized(model: Any) -> Any:
    """The model with plain float32 weights: the numbers that the quantized ones stand for."""
    plain = model.dequantize()
    # How a checkpoint in few bits was read cannot be done backwards, and need not be.
    known = getattr(plain, "_weight_conversions", None) or ()
    plain._weight_conversions = [step for step in known if _reversible(step)]
    plain.is_loaded_in_4bit = plain.is_loaded_in_8bit = False  # adapters ask before they merge
    return plain.float()


def _reversible(conversion: Any) -> bool:
    try:
        conversion.reverse_transform()
    except NotImplementedError:
        return False
    return True


def write_note(model: Any, folder: Path) -> None:
    """Say beside an adapter that was trained on quantized weights how they were quantized."""
    how = quantization_of(model)
    if how in ("nf4", "int8") and (folder / "adapter_config.json").exists():
        write_text(folder / _NOTE, json.dumps({"quantize": how}) + "\n")


def wanted(source: str, asked: str | None) -> str | None:
    """How a folder's weights are to be quantized: as asked, or as its adapter was trained.

    Raises:
        PolicyError: the two differ, or the weights are in few bits as they are.
    """
    note, config = Path(source) / _NOTE, Path(source) / "config.json"
    trained = json.loads(note.read_text())["quantize"] if note.exists() else None
    if asked and trained and asked != trained:
        raise PolicyError(
            f"the adapter was trained on weights in {trained}",
            field="quantize",
            value=asked,
            remedy=f"leave it out, or set it to {trained}",
        )
    if asked and config.exists() and "quantization_config" in json.loads(config.read_text()):
        raise PolicyError(
            "the model's weights are quantized already",
            field="quantize",
            value=asked,
            remedy="leave it out",
        )
    return asked or trained
