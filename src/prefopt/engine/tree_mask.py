"""What a layer needs to know to attend over a forest, in the form that each kernel wants it.

The mask that travels through a decoder in place of a tensor is a `TreeMask`: the forest and
the layer's own rule (causal, sliding window, chunks). A token sees its ancestors and itself,
where the rule allows it *by position in the sequence*; rows mean nothing. What a kernel needs
beyond that is made when it is first asked for, and once for all layers with the rule.

Shapes: N rows of the forest, L tokens of its longest sequence, P segments.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.masking_utils import causal_mask_function

from prefopt.engine.forest import Forest


@dataclass(frozen=True)
class Gathered:
    """Every segment's keys, one segment after the other: its ancestors' and then its own.

    Attributes:
        rows: (T,) rows of the forest; those of a shared segment are there once for each reader.
        query_ends, key_ends: (P + 1,) int32, where each segment's queries and keys begin, and
            the end.
        longest_query, longest_keys: of any segment.
    """

    rows: Tensor
    query_ends: Tensor
    key_ends: Tensor
    longest_query: int
    longest_keys: int


class TreeMask:
    """The forest and a layer's rule.

    Args:
        forest: the forest that goes through the model.
        rule: the layer's `mask_function(batch, head, query, key) -> bool` over positions.
        device: where the layer is.
        eager: whether the model computes attention with a function of its own.
        choice: what says which kernel computes attention over it, where it has no such function.
    """

    def __init__(
        self,
        forest: Forest,
        rule: Callable[..., Any],
        device: torch.device,
        eager: bool,
        choice: Callable[..., Any] | None = None,
    ) -> None:
        self.forest = forest
        self.device = device
        self.eager = eager
        self.choice = choice
        self._rule = rule

    def anew(self) -> TreeMask:
        """The same, with nothing made yet."""
        return TreeMask(self.forest, self._rule, self.device, self.eager)

    @cached_property
    def allowed(self) -> Tensor:
        """(L, L) bool: which key positions a query position may see, by the layer's rule."""
        positions = torch.arange(self.forest.depth, device=self.device)
        zero = positions.new_zeros(())
        allowed: Tensor = self._rule(zero, zero, positions[:, None], positions[None, :])
        return allowed.expand(len(positions), len(positions))

    @cached_property
    def causal(self) -> bool:
        """Whether the rule is nothing more than: not after the query."""
        if self._rule is causal_mask_function:  # told without looking at L² pairs
            return True
        return bool(torch.equal(self.allowed, torch.ones_like(self.allowed).tril()))

    @cached_property
    def window(self) -> int | None:
        """How many positions a query sees at most, itself included, where the rule is causal
        within a window and nothing more; None where it is another rule."""
        if self.causal:
            return self.forest.depth
        width = int(self.allowed[-1].sum())
        band = torch.ones_like(self.allowed).tril() & ~torch.ones_like(self.allowed).tril(-width)
        return width if torch.equal(self.allowed, band) else None

    @cached_property
    def additive(self) -> Tensor:
        """(1, 1, L, L) the rule as 0 and −∞ (the most negative number), float32."""
        bias = torch.zeros(self.allowed.shape, device=self.device)
        return bias.masked_fill_(~self.allowed, torch.finfo(bias.dtype).min)[None, None]

    def slice(self, start: int, stop: int, dtype: torch.dtype) -> Tensor:
        """(1, 1, stop − start, stop) additive mask of queries at these positions."""
        return self.additive[:, :, start:stop, :stop].to(dtype)

    @cached_property
    def dense(self) -> Tensor:
        """(1, 1, N, N) bool: which rows each row sees."""
        rows = torch.arange(len(self.forest), device=self.device)
        ancestor = (rows <= rows[:, None]) & (rows[:, None] < self._subtree_end)
        by_position = self.allowed[self._positions[:, None], self._positions]
        return (ancestor & by_position)[None, None]

    @cached_property
    def blocks(self) -> Any:
        """The same as FlexAttention's block mask."""
        from torch.nn.attention.flex_attention import create_block_mask

        position, end, rule = self._positions, self._subtree_end, self._rule
        rows = len(self.forest)

        def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            ancestor = (key <= query) & (query < end[key])
            allowed: Tensor = rule(batch, head, position[query], position[key])
            return ancestor & allowed

        return create_block_mask(visible, 1, 1, rows, rows, device=str(self.device))

    @cached_property
    def gathered(self) -> Gathered:
        """The same for kernels that take queries and keys of many sequences of any lengths."""
        segments, lengths = self.forest.segments, self.forest.lengths
        spans = [np.arange(segment.start, segment.stop) for segment in segments]
        paths = [(*segment.path, index) for index, segment in enumerate(segments)]
        keys = [sum(lengths[i] for i in path) for path in paths]
        return Gathered(
            rows=self._put(np.concatenate([spans[i] for path in paths for i in path])),
            query_ends=self._put(np.array([0, *accumulate(lengths)], dtype=np.int32)),
            key_ends=self._put(np.array([0, *accumulate(keys)], dtype=np.int32)),
            longest_query=max(lengths),
            longest_keys=max(keys),
        )

    @cached_property
    def predictors(self) -> Tensor:
        """(U,) the row of the output that predicts each distinct scored token."""
        return self._put(self.forest.predictors)

    @cached_property
    def _positions(self) -> Tensor:
        return self._put(self.forest.positions)

    @cached_property
    def _subtree_end(self) -> Tensor:
        return self._put(self.forest.subtree_end)

    def _put(self, array: Any) -> Tensor:
        return torch.from_numpy(array).to(self.device)
