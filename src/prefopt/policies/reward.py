"""Reward models: a decoder with one number in place of words.

A folder that `AutoModelForSequenceClassification` loads, with one output. From a language
model's folder the head is new: drawn by a seed, small, so that all rewards begin near zero.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch

from prefopt.errors import PolicyError, PrefoptError
from prefopt.policies.load import (
    END_OF_TURN,
    READS,
    Policy,
    base_model,
    load_tokenizer,
    refuse_no_model,
    unusable,
    usable_device,
)
from prefopt.policies.quiet import quietly, without_report

#: the head, by the name that every decoder of `transformers` has it under
HEAD = "score"


def load_reward_model(
    name: str | Path,
    *,
    device: str | torch.device | None = None,
    seed: int | None = None,
) -> Policy:
    """Load a reward model: a folder or hub id, whole or as an adapter with the base it names.

    Args:
        name: what `save_pretrained` wrote, or a hub id.
        device: defaults to the first accelerator, else the CPU.
        seed: draws the head of a language model, which has none for rewards; without a seed such
            a model is refused. The head is N(0, 1/(d+1)), as Stiennon et al. 2020
            (arXiv:2009.01325) begin; the global random state is left as it was.

    Returns:
        A `Policy` whose model is a sequence classifier with one output.

    Raises:
        PolicyError: there is no such model, it has other outputs than one, or lacks weights.
    """
    source = str(name)
    refuse_no_model(source)
    target = usable_device(device)
    try:
        with quietly(), without_report(), torch.random.fork_rng(devices=[]):
            model, tokenizer = _load(source, seed)
    except PrefoptError:
        raise
    except Exception as error:  # what a broken file makes of a library has no common type
        raise unusable(source, error, kind="reward model") from error
    return Policy(model.to(target), tokenizer, source)


def check_head(policy: Policy, head: str) -> None:
    """Refuse a model that lacks the head that is trained.

    Raises:
        PolicyError: a policy where a reward model is trained, or the other way round.
    """
    has = hasattr(base_model(policy.model), HEAD)
    if has == (head == "reward"):
        return
    is_, wanted = ("reward model", "policy") if has else ("policy", "reward model")
    raise PolicyError(
        f"the objective trains a {wanted}, and the model is a {is_}",
        field="objective",
        value=policy.name,
        remedy="choose an objective of policies, such as dpo"
        if has
        else "train it with `prefopt train --objective.name reward`, which gives it a head",
    )


def _load(source: str, seed: int | None) -> tuple[Any, Any]:
    tokenizer = load_tokenizer(source)
    if (Path(source) / "adapter_config.json").exists():
        model = _with_adapter(source)
    else:
        model = _whole(source, seed)
    settle_head(source, base_model(model), tokenizer)
    return model, tokenizer


def settle_head(source: str, model: Any, tokenizer: Any) -> None:
    """Refuse a classifier whose head is none for rewards, and settle where one is read.

    Args:
        source: what the model was made from.
        model: the classifier, with weights or without; its config is changed.
        tokenizer: its own; it gets the pad that rewards can be read before.

    Raises:
        PolicyError: it has other outputs than one, or is no decoder.
    """
    _refuse_other_outputs(source, model)
    if not hasattr(model, HEAD):
        raise PolicyError(
            f"the reward model in {source} has no head called `{HEAD}`, so it is no decoder",
            field="model",
            value=source,
            remedy="use a decoder with one label, such as LlamaForSequenceClassification",
        )
    _settle_tokens(source, model, tokenizer)


def read_config(source: str) -> tuple[Any, bool]:
    """The config of a reward model in a folder, and whether it was one before.

    A language model's gets one output.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(source)
    made = any(kind.endswith("ForSequenceClassification") for kind in config.architectures or [])
    if not made:
        config.num_labels = 1
    return config, made


def _whole(source: str, seed: int | None) -> Any:
    from transformers import AutoModelForSequenceClassification

    config, made = read_config(source)
    loader: Any = AutoModelForSequenceClassification
    model, found = loader.from_pretrained(
        source, config=config, dtype=torch.float32, output_loading_info=True
    )
    missing = set(found["missing_keys"])
    fresh = {key for key in missing if key.startswith(f"{HEAD}.")}
    if made or seed is None or missing - fresh:
        _refuse_missing(source, missing, made=made)
    else:
        head = getattr(model, HEAD)
        generator = torch.Generator().manual_seed(seed)
        size = (head.in_features + 1) ** -0.5
        with torch.no_grad():
            drawn = torch.randn(head.weight.shape, generator=generator) * size
            head.weight.copy_(drawn)
            if head.bias is not None:
                head.bias.zero_()
    return model


def _with_adapter(source: str) -> Any:
    from peft import AutoPeftModelForSequenceClassification, PeftConfig

    refuse_other_adapter(source, PeftConfig.from_pretrained(source))
    model = AutoPeftModelForSequenceClassification.from_pretrained(
        source, num_labels=1, dtype=torch.float32
    )
    # Behind the adapter's head is one that the base got as it was loaded: drawn, and never asked.
    head: Any = getattr(base_model(model), HEAD)
    head.original_module.load_state_dict(head.modules_to_save["default"].state_dict())
    return model


def refuse_other_adapter(source: str, config: Any) -> None:
    """Refuse an adapter, by PEFT's config of it, that is none of a reward model.

    Raises:
        PolicyError: it is another's.
    """
    if config.task_type != "SEQ_CLS":
        raise PolicyError(
            f"{source} is an adapter of a policy, and a reward model cannot begin on top of one",
            field="model",
            value=source,
            remedy="merge it first with `prefopt export`, and give the folder that it writes",
        )


def _refuse_other_outputs(source: str, model: Any) -> None:
    if model.config.num_labels != 1:
        raise PolicyError(
            f"a reward model has one output, and the one in {source} has {model.config.num_labels}",
            field="model",
            value=source,
            remedy="give a reward model, or a language model to make one of",
        )


def _refuse_missing(source: str, missing: Collection[str], *, made: bool) -> None:
    """Weights that no file has would be random numbers, and nobody would see it in a reward."""
    if not missing:
        return
    first = sorted(missing)[0]
    alone = not made and all(key.startswith(f"{HEAD}.") for key in missing)
    raise PolicyError(
        f"{source} is a language model: it has no head for rewards"
        if alone
        else f"{source} lacks {len(missing)} of the model's weights, such as {first}",
        field="model",
        value=source,
        remedy="make a reward model of it with `prefopt train --objective.name reward`"
        if alone
        else "download or save it again, whole",
    )


def _settle_tokens(source: str, model: Any, tokenizer: Any) -> None:
    """Say in the config which tokens end an answer, and which pads a text.

    `transformers` reads a reward at the last token that is not the pad, by its id. Many
    tokenizers pad with what answers end with: the reward would be read a token too early.
    """
    from transformers import GenerationConfig

    config: Any = model.config
    try:  # a language model's own word; a reward model that was saved has it in its config
        declared = GenerationConfig.from_pretrained(source).eos_token_id
    except (OSError, ValueError):
        declared = None
    declared = config.eos_token_id if declared is None else declared
    listed = declared if isinstance(declared, list) else [declared]
    ends = {token for token in (*listed, tokenizer.eos_token_id) if token is not None}
    if declared is not None:
        config.eos_token_id = declared
    candidates = (
        config.pad_token_id, tokenizer.pad_token_id, tokenizer.unk_token_id,
        tokenizer.bos_token_id, *range(len(ends) + 1),
    )  # fmt: skip
    pad = next(token for token in candidates if token is not None and token not in ends)
    config.pad_token_id = config.get_text_config().pad_token_id = pad
    setattr(config, READS, END_OF_TURN)
    if tokenizer.pad_token_id != pad:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad)
