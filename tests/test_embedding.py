"""Vectors of texts by a causal language model's hidden states."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from prefopt.evaluation.embedding import Embedding
from prefopt.policies.load import Policy

TEXTS = [
    "The film was a quiet delight and the cast was splendid.",
    "The cast was a delight and the film splendid.",
    "Mix flour, water, salt and yeast, then wait.",
    "Then wait: flour, yeast, salt, water, mix.",
]


def test_a_vector_is_the_standardised_mean_of_the_hidden_states(
    make_policy: Callable[..., Policy],
) -> None:
    policy = make_policy("llama")
    means = []
    for text in TEXTS:
        ids = policy.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            states = policy.model.model(ids).last_hidden_state[0]
        means.append(states.double().mean(0).numpy())
    whole = np.stack(means)
    expected = (whole - whole.mean(0)) / whole.std(0)
    embed = Embedding(policy)
    assert embed(TEXTS) == pytest.approx(expected, abs=1e-3)
    later = (means[1] - whole.mean(0)) / whole.std(0)  # by the texts of the first call
    assert embed(TEXTS[1:2])[0] == pytest.approx(later, abs=1e-3)


def test_texts_without_tokens_and_beyond_the_context(make_policy: Callable[..., Policy]) -> None:
    policy = make_policy("llama", max_position_embeddings=16)
    found = Embedding(policy)(["", "word " * 100, "a"])
    assert found.shape[0] == 3 and np.isfinite(found).all()
