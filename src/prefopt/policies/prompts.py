"""Soft prompts: virtual tokens before the real ones, and words for them to begin as.

Prompt tuning trains their embeddings, prefix tuning their keys and values in every layer, and
P-tuning embeddings behind a small network. Numbers drawn at random lie off the manifold that
a model knows, so the first two begin as words: some of the vocabulary, or a text. Even so the
policy does not start where the base is: a soft prompt that changes nothing does not exist.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from prefopt.errors import PolicyError, RecipeError
from prefopt.policies.load import Policy, base_model
from prefopt.recipe import AdapterChoice


def first_words(policy: Policy, choice: AdapterChoice) -> list[int]:
    """(m,) ids that the virtual tokens begin as: of the text, else drawn from the vocabulary.

    Raises:
        RecipeError: the text has no tokens, or more than there are virtual ones.
    """
    tokenizer, count = policy.tokenizer, choice.virtual_tokens
    if choice.init_text is None:
        assert count is not None  # settled
        model: Any = policy.model
        rows = model.get_input_embeddings().num_embeddings
        special = set(tokenizer.all_special_ids)
        words = [i for i in range(min(len(tokenizer), rows)) if i not in special]
        return [words[i] for i in torch.randint(len(words), (count,)).tolist()]
    encoded: list[int] = tokenizer(choice.init_text, add_special_tokens=False)["input_ids"]
    count = count or len(encoded)
    if not 0 < len(encoded) <= count:
        raise RecipeError(
            f"init_text has {len(encoded)} tokens, and there are {count} virtual ones",
            field="adapter.init_text",
            value=choice.init_text,
            remedy="leave out virtual_tokens, for as many as the text has",
        )
    return [encoded[i % len(encoded)] for i in range(count)]


@torch.no_grad()
def begin_with(model: Any, words: list[int]) -> None:
    """Let a fresh soft prompt begin as these words, as the base reads them.

    Raises:
        PolicyError: the base does not keep keys and values as prefix tuning wants them.
    """
    base = base_model(model)
    ids = torch.tensor([words], device=model.device)
    weight = model.prompt_encoder[model.active_adapter].embedding.weight
    if model.active_peft_config.peft_type == "PREFIX_TUNING":
        start = _keys_and_values(base, ids)
        if start.shape != weight.shape:
            raise PolicyError(
                "the model's layers differ in their keys and values, or share them, "
                "so they can have no prefix",
                field="adapter.name",
                value="prefix_tuning",
                remedy="use prompt_tuning, or lora",
            )
    else:
        start = base.get_input_embeddings()(ids)[0]
    weight.copy_(start)


def _keys_and_values(base: Any, ids: Tensor) -> Tensor:
    """(m, 2·layers·heads·channels) of (1, m) tokens, laid out as PEFT keeps a prefix."""
    layers = base(input_ids=ids, use_cache=True).past_key_values.layers
    pairs = [tensor for layer in layers for tensor in (layer.keys[0], layer.values[0])]
    if len({pair.shape for pair in pairs}) != 1:
        return torch.empty(0)
    return torch.stack(pairs).permute(2, 0, 1, 3).flatten(1)  # (2·layers, heads, m, channels)
