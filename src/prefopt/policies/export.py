"""A plain model folder from a run, an adapter or a model, and the proof that it is the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prefopt.errors import PolicyError
from prefopt.policies.adapter_table import ADAPTERS
from prefopt.policies.load import Policy, base_model, is_reward_model, load_policy
from prefopt.policies.quantized import dequantized, quantization_of
from prefopt.policies.quiet import quietly
from prefopt.policies.reward import HEAD, load_reward_model
from prefopt.policies.switches import has_adapter
from prefopt.runs import atomic_folder, empty_folder

#: nats by which a log-probability may be off. Merging and saving in float32 only rounds, and so
#: do weights in 4 bits, which are computed with as what they stand for; a policy in 8 bits
#: rounds its activations as well, which a plain model does not.
_TOLERANCE = {None: 1e-3, "nf4": 1e-3, "int8": 0.5}
_PROBE = 32  # tokens that the two are compared on


def model_folder(source: str | Path) -> str:
    """What to load for a name that may be a run's folder: the model in it, else the name.

    Raises:
        PolicyError: it is a run that has no model yet.
    """
    model = Path(source) / "model"
    if not (Path(source) / "recipe.yaml").exists() or (Path(source) / "config.json").exists():
        return str(source)
    if not model.is_dir():
        raise PolicyError(
            f"{source} is a run that is not finished, so it has no model yet",
            field="model",
            value=str(source),
            remedy="give its `prefopt train` command again: it goes on where it was stopped",
        )
    return str(model)


def export_model(source: str | Path, out: str | Path) -> dict[str, Any]:
    """Write the model in `source` as a folder that `from_pretrained` loads without PEFT.

    Args:
        source: a run's folder, a model folder, an adapter folder or a hub id.
        out: the folder to write.

    Returns:
        `model` (the folder), `merged` (whether there was an adapter), `dequantized` (from what
        the weights were kept in, or None), `parameters`, and `difference`: the largest
        difference of a log-probability on a probe, in nats.

    Raises:
        RunError: `out` holds something, or cannot be written.
        PolicyError: the source cannot be loaded, its adapter cannot be merged, or what was
            written is not the same model. Nothing is left behind.
    """
    target = empty_folder(out, "an export")
    policy = load_any(model_folder(source), device="cpu")
    _refuse_unmergeable(policy)
    before, quantization = _probe(policy.model), quantization_of(policy.model)
    model, merged = _merged(_with_plain_weights(policy) if quantization else policy)
    with atomic_folder(target) as part:
        model.save_pretrained(part)
        policy.tokenizer.save_pretrained(part)
        difference = float((_probe(load_any(part, device="cpu").model) - before).abs().max())
        if not difference <= _TOLERANCE.get(quantization, 1e-3):  # also when it is not a number
            raise PolicyError(
                f"the exported model differs from its source by {difference:.2g} nats",
                field="source",
                value=str(source),
                remedy="use the adapter as it is, on the weights that it was trained on",
            )
    return {
        "model": str(target),
        "merged": merged,
        "dequantized": quantization,
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "difference": difference,
    }


def load_any(source: str | Path, *, device: Any = None) -> Policy:
    """A policy or a reward model, as the folder says.

    Raises:
        PolicyError: it is neither.
    """
    load = load_reward_model if is_reward_model(source) else load_policy
    return load(source, device=device)


def _refuse_unmergeable(policy: Policy) -> None:
    """What stands before the tokens, or bends what goes through a layer, is no weight."""
    if not has_adapter(policy.model):
        return
    config: Any = policy.model.active_peft_config
    kinds = [kind for kind in ADAPTERS.values() if kind.config == type(config).__name__]
    if kinds and not kinds[0].merges:
        name = str(config.peft_type.value).lower()
        soft = kinds[0].soft_prompt
        raise PolicyError(
            f"{name} cannot be folded into the weights"
            + (": it is virtual tokens before the real ones" if soft else ""),
            field="source",
            value=policy.name,
            remedy="use the adapter as it is: with peft, its folder loads like a model",
        )


def _with_plain_weights(policy: Policy) -> Policy:
    """The same policy with its base in float32: what is merged into few bits would be rounded."""
    if not has_adapter(policy.model):
        return Policy(dequantized(policy.model), policy.tokenizer, policy.name)
    from peft import PeftModel

    adapters: Any = policy.model.peft_config
    source = adapters["default"].base_model_name_or_path
    how: Any = quantization_of(policy.model)
    base = load_policy(source, device="cpu", quantize=how)
    with quietly():
        model = PeftModel.from_pretrained(dequantized(base.model), policy.name)
    return Policy(model, policy.tokenizer, policy.name)


def _merged(policy: Policy) -> tuple[Any, bool]:
    """The model without PEFT around it, and whether there was any."""
    model: Any = policy.model
    if not has_adapter(model):
        return model, False
    try:
        return model.merge_and_unload(), True
    except (AttributeError, NotImplementedError, TypeError, ValueError) as error:
        raise PolicyError(
            f"the adapter of '{policy.name}' cannot be merged: {error}",
            field="source",
            value=policy.name,
            remedy="use the adapter as it is",
        ) from error


@torch.no_grad()
def _probe(model: Any) -> Tensor:
    """(_PROBE, V) log-probabilities after tokens from all over the vocabulary, or rewards."""
    vocabulary = model.get_input_embeddings().num_embeddings
    ids = torch.linspace(0, vocabulary - 1, _PROBE).long()[None]
    base = base_model(model.eval())
    if hasattr(base, HEAD):
        rewards: Tensor = getattr(base, HEAD)(base.get_decoder()(input_ids=ids).last_hidden_state)
        return rewards[0].float()
    logits = model(input_ids=ids).logits
    return torch.log_softmax(logits[0].float(), -1)
