"""The floating-point operations that a training must do, counted from its forests.

Counted are matrix products, a multiplication and an addition as two operations: every distinct
token once through every layer, attention over what a token sees, the head where a token is
predicted; and of the last layer only the keys and values where none is. A linear layer's backward
pass is two products of the forward's size, for the weight and for the input; of a frozen layer
only the second, and none where nothing below is trained. Attention is two products forward and
four backward. What flash attention computes again, and everything that is no product, is not work
that must be done.

Shapes: N rows of a forest, U distinct predictions, P (query, key) pairs where one sees the
other, r the rank of a LoRA.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

#: kind of product → operations; a kind is a shape class and a direction
Operations = Counter[tuple[str, str]]
FORWARD, TO_INPUT, TO_WEIGHT = "forward", "to the input", "to the weight"
BACKWARD = (TO_INPUT, TO_WEIGHT)


class Sizes(NamedTuple):
    """N, U and P of a forest, and the pairs whose query predicts something."""

    rows: int
    predictions: int
    seen: int
    seen_last: int


@dataclass(frozen=True)
class Linear:
    """Linear layers of one shape.

    Attributes:
        inputs, outputs: its width on both sides.
        layers: how many there are in the model.
        first: how many of them are fed by the embeddings alone.
        last: how many of them only what predicts needs to go through: those of the last layer
            that make no keys or values, and the head.
    """

    inputs: int
    outputs: int
    layers: int
    first: int = 0
    last: int = 1

    def tokens(self, sizes: Sizes) -> int:
        """Tokens through all of them, each as often as there are layers."""
        return sizes.rows * (self.layers - self.last) + sizes.predictions * self.last


@dataclass(frozen=True)
class Architecture:
    """What the count needs to know of a decoder with gated MLPs, such as Llama."""

    linears: Mapping[str, Linear]
    layers: int
    heads: int
    channels: int
    rank: int | None = None

    @classmethod
    def of(cls, config: Any, rank: int | None = None) -> Architecture:
        """Of a Llama-shaped model.

        Raises:
            ValueError: the model has another shape, which would be counted wrongly.
        """
        if config.model_type != "llama":
            raise ValueError(f"the operations of a {config.model_type} are not known here")
        hidden, layers = config.hidden_size, config.num_hidden_layers
        channels = config.head_dim or hidden // config.num_attention_heads
        queries, keys = (
            channels * count for count in (config.num_attention_heads, config.num_key_value_heads)
        )
        linears = {
            "query": Linear(hidden, queries, layers, first=1),
            "key, value": Linear(hidden, keys, 2 * layers, first=2, last=0),
            "output": Linear(queries, hidden, layers),
            "gate, up": Linear(hidden, config.intermediate_size, 2 * layers, last=2),
            "down": Linear(config.intermediate_size, hidden, layers),
            "head": Linear(hidden, config.vocab_size, 1),
        }
        return cls(linears, layers, config.num_attention_heads, channels, rank)

    def forward(self, sizes: Sizes, *, adapter: bool) -> Operations:
        """Operations of one forward pass; `adapter` says whether a LoRA is on."""
        found: Operations = Counter()
        for name, linear in self.linears.items():
            tokens = linear.tokens(sizes)
            found[name, FORWARD] = 2 * tokens * linear.inputs * linear.outputs
            if adapter and self.rank and name != "head":
                found["adapter", FORWARD] += self._adapter(linear, tokens)
        found["attention", FORWARD] = 4 * self.heads * self.channels * self._seen(sizes)
        return found

    def backward(self, sizes: Sizes) -> Operations:
        """Operations of one backward pass."""
        found: Operations = Counter()
        frozen = self.rank is not None
        for name, linear in self.linears.items():
            tokens = linear.tokens(sizes)
            # what the embeddings feed has nothing trained below it
            unneeded = linear.first * (sizes.rows if self.layers > 1 else tokens)
            trained_below = tokens - (unneeded if frozen else 0)
            found[name, TO_INPUT] = 2 * trained_below * linear.inputs * linear.outputs
            if not frozen:
                found[name, TO_WEIGHT] = 2 * tokens * linear.inputs * linear.outputs
            elif name != "head":
                found["adapter", TO_WEIGHT] += self._adapter(linear, tokens)
                first_factor = 2 * unneeded * linear.inputs * (self.rank or 0)
                found["adapter", TO_INPUT] += self._adapter(linear, tokens) - first_factor
        found["attention", TO_INPUT] = 8 * self.heads * self.channels * self._seen(sizes)
        return found

    def _seen(self, sizes: Sizes) -> int:
        """(query, key) pairs of all layers."""
        return sizes.seen * (self.layers - 1) + sizes.seen_last

    def _adapter(self, linear: Linear, tokens: int) -> int:
        """Both factors of a LoRA on these layers, once."""
        return 2 * tokens * (self.rank or 0) * (linear.inputs + linear.outputs)


@dataclass
class Work:
    """All that a training must do, summed over forests.

    Attributes:
        tokens, predictions, seen: N, U and P in all.
        segments: runs of tokens that are always together.
        by_phase: operations of the reference, of forward and of backward passes.
    """

    tokens: int = 0
    predictions: int = 0
    seen: int = 0
    segments: int = 0
    forests: int = 0
    by_phase: dict[str, Operations] = field(default_factory=dict)

    @property
    def operations(self) -> int:
        return sum(sum(part.values()) for part in self.by_phase.values())


def count(architecture: Architecture, forests: Iterable[Any]) -> Work:
    """The work of one epoch over forests, the reference scored once."""
    work = Work(by_phase={name: Counter() for name in ("reference", "forward", "backward")})
    adapter = architecture.rank is not None
    for forest in forests:
        sees = forest.positions + 1
        sizes = Sizes(
            rows=len(forest),
            predictions=len(forest.predictors),
            seen=int(sees.sum()),
            seen_last=int(sees[forest.predictors].sum()),
        )
        work.tokens += sizes.rows
        work.predictions += sizes.predictions
        work.seen += sizes.seen
        work.segments += len(forest.segments)
        work.forests += 1
        work.by_phase["reference"] += architecture.forward(sizes, adapter=False)
        work.by_phase["forward"] += architecture.forward(sizes, adapter=adapter)
        work.by_phase["backward"] += architecture.backward(sizes)
    return work


# -- rates ---------------------------------------------------------------------------------


def measure_rates(architecture: Architecture, work: Work, seconds: float) -> dict[Any, float]:
    """Operations a second of every kind of product, at the mean shape that occurs.

    Float32 `torch.mm` (for attention `torch.bmm` of a segment's queries and the keys it sees),
    on this process's threads; the best of as many repetitions as fit the time, three at least.
    """
    rates = {}
    for kind in {kind for part in work.by_phase.values() for kind in part}:
        rates[kind] = _rate(*_shape(kind, architecture, work), seconds)
    return rates


def _shape(
    kind: tuple[str, str], architecture: Architecture, work: Work
) -> tuple[int, tuple[int, int], tuple[int, int], bool]:
    """(batch, left, right, whether right is transposed in memory) of a kind of product."""
    name, direction = kind
    if name == "attention":
        queries = max(work.tokens // work.segments, 1)
        keys = max(work.seen // work.tokens, 1)
        return (
            architecture.heads,
            (queries, architecture.channels),
            (architecture.channels, keys),
            True,
        )
    if name == "adapter":
        linear, rank = architecture.linears["gate, up"], architecture.rank or 1
        linear = Linear(linear.inputs, rank, 1)
    else:
        linear = architecture.linears[name]
    tokens = max((work.predictions if name == "head" else work.tokens) // work.forests, 1)
    if direction == FORWARD:
        return 1, (tokens, linear.inputs), (linear.inputs, linear.outputs), True
    if direction == TO_INPUT:
        return 1, (tokens, linear.outputs), (linear.outputs, linear.inputs), False
    return 1, (linear.outputs, tokens), (tokens, linear.inputs), False


def _rate(
    batch: int, left: tuple[int, int], right: tuple[int, int], transposed: bool, seconds: float
) -> float:
    import torch

    a = torch.randn(batch, *left)
    b = torch.randn(batch, *reversed(right)).mT if transposed else torch.randn(batch, *right)
    product = torch.bmm
    if batch == 1:
        a, b, product = a[0], b[0], torch.mm
    out = product(a, b)
    operations = 2 * batch * left[0] * left[1] * right[1]
    inner = max(1, round(2e7 / operations))  # so that the clock's own cost does not count
    best, tries, ends = float("inf"), 0, time.perf_counter() + seconds
    while tries < 3 or time.perf_counter() < ends:
        began = time.perf_counter()
        for _ in range(inner):
            product(a, b, out=out)
        best = min(best, (time.perf_counter() - began) / inner)
        tries += 1
    return operations / best


def floor(operations: Operations, rates: Mapping[Any, float]) -> float:
    """Seconds that these operations take at these rates."""
    return sum(count / rates[kind] for kind, count in operations.items())
