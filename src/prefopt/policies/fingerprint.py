"""Fingerprints: two models with the same fingerprint give the same scores."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import is_fake

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: config entries that say where a model came from or how it runs, not what it computes
_INCIDENTAL = {
    "_name_or_path",
    "architectures",
    "attn_implementation",
    "dtype",
    "torch_dtype",
    "transformers_version",
    "use_cache",
}


#: name of the frozen copy of an adapter, which is beside the policy and no part of it
START = "prefopt_start"
#: the head of a reward model that an adapter's own stands before, which nothing computes with
_BEHIND = "score.original_module."


def fingerprint_model(model: nn.Module) -> str:
    """Digest of a model's config, parameters and persistent buffers, adapters included.

    Costs one pass over the weights (about 1 GB a second). An adapter that is present but
    switched off is part of it: take the fingerprint of the base model by itself.
    """
    digest = hashlib.sha256()
    config: Any = getattr(model, "config", None)
    if config is not None and hasattr(config, "to_dict"):
        digest.update(_canonical(_without_incidental(config.to_dict())))
    for name, tensor in sorted(model.state_dict().items()):
        if START in name or _BEHIND in name:
            continue
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(_raw_bytes(tensor))
    return f"sha256:{digest.hexdigest()}"


def fingerprint_without_adapter(fingerprint: str) -> str:
    """What stands for a model with its adapter off, where that is the fingerprint with it on."""
    return f"sha256:{hashlib.sha256(f'{fingerprint} without its adapter'.encode()).hexdigest()}"


def fingerprint_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """Digest of what a tokenizer does to text: its backend, special tokens and template."""
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    content = (
        backend.to_str() if backend is not None else _canonical(tokenizer.get_vocab()).decode()
    )
    settings = {"special": tokenizer.special_tokens_map, "template": tokenizer.chat_template}
    digest = hashlib.sha256(content.encode("utf-8", "surrogatepass"))
    digest.update(_canonical(settings))
    return f"sha256:{digest.hexdigest()}"


def _raw_bytes(tensor: torch.Tensor) -> memoryview:
    if is_fake(tensor):  # a plan's model has shapes and no numbers
        return memoryview(b"")
    whole: torch.Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    flat = whole.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


def _without_incidental(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: _without_incidental(item)
            for key, item in value.items()
            if key not in _INCIDENTAL and not str(key).startswith("_")
        }
    return value


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, default=str).encode(
        "utf-8", "surrogatepass"
    )
