"""What every completion of a data set is to a policy: its reward, and where the last layer is.

The features of a completion are the mean of the hidden states that predict its tokens, the
inputs of the head (see `ches.hidden_sums`). Their difference between two completions is what a
linear correction of the last layer would read, so a D-optimal choice of pairs works on it
(Kveton et al. 2025, arXiv:2503.01076). Wider layers are projected to 64 numbers by a fixed
Gaussian matrix, which keeps distances to about a tenth and is the same for every
file and policy of that width.

Shapes: B completions, d channels of the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from prefopt.data.acquisition.questions import completion_key
from prefopt.data.acquisition.scores import Scores
from prefopt.engine.logps import Scorer
from prefopt.engine.tokens import Column, TokenGroup
from prefopt.evaluation.ches import hidden_sums
from prefopt.records import Prompt, prompt_key

#: most features of a completion
WIDTH = 64
_COLUMN = "place among the completions"


class Collected:
    """Takes down the completions of a data set while a policy scores them.

    Attributes:
        columns: for the encoder, so that tokens are known by the text that they come from.
    """

    def __init__(self) -> None:
        self.columns: Mapping[str, Column] = {_COLUMN: self._note}
        self._seen: list[bytes] = []  # of all texts, also of those that tokenising left out
        self._keys: list[bytes] = []
        self._rewards: list[NDArray[np.float64]] = []
        self._logps: list[NDArray[np.float64]] = []
        self._features: list[NDArray[np.float32]] = []

    def __len__(self) -> int:
        return len(self._keys)

    def add(
        self,
        scorer: Scorer,
        groups: Sequence[TokenGroup],
        logps: NDArray[np.float64],
        rewards: NDArray[np.float64],
        microbatch_tokens: int,
    ) -> None:
        """Note the completions of groups that were encoded with `columns`.

        Args:
            scorer: of the policy.
            groups: with B completions.
            logps: (B,) nats under the policy.
            rewards: (B,) nats.
            microbatch_tokens: tokens that go through the model at once.
        """
        for group in groups:
            self._keys += [self._seen[int(place or 0)] for place in group.columns[_COLUMN]]
        self._logps.append(logps)
        self._rewards.append(rewards)
        lengths = torch.tensor([len(ids) for group in groups for ids in group.completions])
        means = hidden_sums(scorer, groups, microbatch_tokens) / lengths[:, None]
        self._features.append(projected(means.numpy()).astype(np.float32))

    def scores(self, about: Mapping[str, Any]) -> Scores:
        """All that was noted, as `prefopt acquire` reads it.

        Raises:
            ValueError: nothing was.
        """
        return Scores(
            self._keys,
            np.concatenate(self._rewards),
            np.concatenate(self._features),
            np.concatenate(self._logps),
            about,
        )

    def _note(self, prompt: Prompt, texts: Sequence[str]) -> list[float]:
        """A column of the encoder: the place of each text among those seen."""
        start, key = len(self._seen), prompt_key(prompt)
        self._seen += [completion_key(key, text) for text in texts]
        return [float(start + number) for number in range(len(texts))]


def projected(states: NDArray[np.float64]) -> NDArray[np.float64]:
    """(B, d) as (B, 64) with about the same distances, or as they are where d is 64 or less.

    The matrix has independent entries N(0, 1/64) from a seed of its own (Johnson and
    Lindenstrauss 1984).

    >>> projected(np.ones((1, 3))), projected(np.ones((2, 100))).shape
    (array([[1., 1., 1.]]), (2, 64))
    """
    width = states.shape[1]
    if width <= WIDTH:
        return states
    matrix = np.random.default_rng(0).standard_normal((width, WIDTH)) / np.sqrt(WIDTH)
    return np.asarray(states @ matrix)
