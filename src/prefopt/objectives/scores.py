"""The seam between models and objectives: scores of completions, comparisons of scores.

Shapes: B completions, T comparisons that point into them by index. A completion is scored
once, however many comparisons it is in. All log-probabilities are in nats, summed over
the completion's tokens, the end-of-turn token included.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Scores:
    """What an objective may know about B completions.

    Attributes:
        policy: (B,) log-probability of each completion under the policy; carries gradient.
        reference: (B,) the same under the frozen reference; None where none is needed.
        lengths: (B,) tokens of each completion, data and never inferred.
    """

    policy: Tensor
    reference: Tensor | None
    lengths: Tensor

    @property
    def log_ratios(self) -> Tensor:
        """ρ = log π − log π_ref, (B,) nats.

        Raises:
            ValueError: there is no reference.
        """
        if self.reference is None:
            raise ValueError("this objective needs reference scores and none were given")
        return self.policy - self.reference


@dataclass(frozen=True)
class Comparisons:
    """T edges between completions.

    Attributes:
        preferred: (T,) int64 index of the preferred completion.
        dispreferred: (T,) int64 index of the other one.
        probability: (T,) that the first is really better, in [0, 1].
        weight: (T,) how much each comparison counts, 0 or more.
    """

    preferred: Tensor
    dispreferred: Tensor
    probability: Tensor
    weight: Tensor

    @classmethod
    def of(
        cls,
        pairs: Sequence[tuple[int, int]],
        probability: Sequence[float] | None = None,
        weight: Sequence[float] | None = None,
        *,
        dtype: torch.dtype = torch.float32,
    ) -> Comparisons:
        """Comparisons from plain numbers; probabilities and weights default to one.

        >>> Comparisons.of([(0, 1), (2, 0)]).preferred
        tensor([0, 2])
        """
        count = len(pairs)
        indices = torch.tensor(list(pairs), dtype=torch.int64).reshape(count, 2)
        return cls(
            preferred=indices[:, 0],
            dispreferred=indices[:, 1],
            probability=torch.tensor(
                [1.0] * count if probability is None else list(probability), dtype=dtype
            ),
            weight=torch.tensor([1.0] * count if weight is None else list(weight), dtype=dtype),
        )

    def __len__(self) -> int:
        return int(self.preferred.shape[0])

    def to(self, device: torch.device | str) -> Comparisons:
        """The same comparisons on another device."""
        return Comparisons(
            self.preferred.to(device),
            self.dispreferred.to(device),
            self.probability.to(device),
            self.weight.to(device),
        )
