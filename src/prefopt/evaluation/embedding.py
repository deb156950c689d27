"""Texts as vectors: what the last layer of a causal language model holds of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from prefopt.engine.logps import Scorer
from prefopt.engine.tokens import Encoder, TokenGroup
from prefopt.evaluation.ches import hidden_sums
from prefopt.policies.load import Policy

_AT_ONCE = 256  # texts in memory as tokens
_TOKENS = 4096  # that go through the model at once; never changes the result


class Embedding:
    """Gives a vector for each text, so that texts about the same thing have similar ones.

    The vector is the mean of the hidden states at the tokens of the text. A few channels of these
    are large whatever the text says, and cosines would be near 1 for all: so channels are
    standardised (Timkey and van Schijndel 2021, arXiv:2109.04404), by the texts of the first call.

    Args:
        policy: any causal language model with its tokenizer.
    """

    def __init__(self, policy: Policy) -> None:
        self._encoder = Encoder(policy.tokenizer)
        self._scorer = Scorer(policy.model)
        self._longest = policy.max_length
        self._mean: NDArray[np.float64] | None = None
        self._deviation: NDArray[np.float64] | None = None

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(N, d) float32, of N ≥ 1 texts; of a text that is too long the end counts."""
        parts = []
        for begin in range(0, len(texts), _AT_ONCE):
            groups = [self._group(text) for text in texts[begin : begin + _AT_ONCE]]
            lengths = np.array([len(group.completions[0]) for group in groups])
            sums = hidden_sums(self._scorer, groups, _TOKENS).numpy()
            parts.append(sums / lengths[:, None])
        means = np.concatenate(parts)
        if self._mean is None or self._deviation is None:
            self._mean, deviation = means.mean(axis=0), means.std(axis=0)
            self._deviation = np.where(deviation > 0, deviation, 1.0)
        return ((means - self._mean) / self._deviation).astype(np.float32)

    def _group(self, text: str) -> TokenGroup:
        """Tokens of which every one predicts something: the last one the end of the text."""
        ids = [*self._encoder.prompt_ids(text).tolist(), self._encoder.eos]
        if self._longest is not None:
            ids = ids[-self._longest :]
        if len(ids) == 1:  # of a text without a token
            ids *= 2
        whole = np.array(ids, dtype=np.int32)
        return TokenGroup(whole[:1], (whole[1:],))
