"""A plain model folder from a run, an adapter or a model, and the proof that it is the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prefopt.errors import PolicyError, RunError
from prefopt.policies.adapters import has_adapter
from prefopt.policies.load import Policy, load_policy
from prefopt.runs import atomic_folder

#: nats; merging and saving in float32 is off by rounding only
_TOLERANCE = 1e-3
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
        `model` (the folder), `merged` (whether there was an adapter), `parameters`, and
        `difference`: the largest difference of a log-probability on a probe, in nats.

    Raises:
        RunError: `out` holds something, or cannot be written.
        PolicyError: the source cannot be loaded, its adapter cannot be merged, or what was
            written is not the same model. Nothing is left behind.
    """
    target = Path(out)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise RunError(
            "there is something already",
            file=str(target),
            field="out",
            remedy="choose another --out; an export never overwrites",
        )
    policy = load_policy(model_folder(source), device="cpu")
    before = _probe(policy.model)
    model, merged = _merged(policy)
    with atomic_folder(target) as part:
        model.save_pretrained(part)
        policy.tokenizer.save_pretrained(part)
        difference = float((_probe(load_policy(part, device="cpu").model) - before).abs().max())
        if not difference <= _TOLERANCE:  # also when it is not a number
            raise PolicyError(
                f"the exported model differs from its source by {difference:.2g} nats",
                field="source",
                value=str(source),
                remedy="its adapter may not be mergeable; use the adapter as it is",
            )
    return {
        "model": str(target),
        "merged": merged,
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "difference": difference,
    }


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
    """(_PROBE, V) log-probabilities after tokens from all over the vocabulary."""
    vocabulary = model.get_input_embeddings().num_embeddings
    ids = torch.linspace(0, vocabulary - 1, _PROBE).long()[None]
    logits = model.eval()(input_ids=ids).logits
    return torch.log_softmax(logits[0].float(), -1)
