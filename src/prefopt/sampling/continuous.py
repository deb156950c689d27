"""Our own generation: a prompt is read once for all its samples, and rows come and go.

transformers has continuous batching too (`generate_batch`). It draws from one generator for
whatever is computed together, so a sample would depend on its neighbours; it knows no virtual
tokens, and changes the model's attention. Here each sample has its own numbers (`drawing`).

Shapes: R rows, W columns, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import islice
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import LogitsProcessor

from prefopt.engine.soft_prompts import SoftPrompt, row_logits, soft_prompt
from prefopt.engine.tokens import Ids
from prefopt.policies.computing import computing
from prefopt.policies.load import base_model
from prefopt.sampling.drawing import next_tokens, real_device
from prefopt.sampling.rows import Rows, empty_cache, may_share, windows

#: nats between log-probabilities with a cache and without: rounding, no more
_ROUNDING = {torch.float32: 1e-2, torch.float64: 1e-6}
_HALF = 0.5  # for narrower weights
_BEYOND = 64  # tokens beyond the widest window that are tried
#: what the code of a model says to a cache that it does not know
_STRANGE = (AttributeError, IndexError, KeyError, NotImplementedError, TypeError, ValueError)

#: model -> whether virtual tokens stand before -> up to which length, and what was found
_TRUSTED: WeakKeyDictionary[Any, dict[bool, tuple[int, bool]]] = WeakKeyDictionary()


@dataclass
class Row:
    """A sample that is to be drawn.

    Attributes:
        prompt: position of its prompt.
        index: its number among the samples of that prompt.
        numbers: gives (steps,) numbers in [0, 1) of its own; None to take the most probable tokens.
        tokens: what was drawn so far.
        logp: log π of that in nats, where it is known.
        stopped: whether a text that ends it has come.
    """

    prompt: int
    index: int = 0
    numbers: Callable[[], NDArray[np.float64]] | None = None
    tokens: list[int] = field(default_factory=list)
    logp: float | None = None
    stopped: bool = False

    @cached_property
    def uniforms(self) -> NDArray[np.float64] | None:
        """Drawn when they are needed: of many rows that wait they would fill the memory."""
        return None if self.numbers is None else self.numbers()


@dataclass(frozen=True)
class Rules:
    """How rows are drawn and when they end.

    Attributes:
        shaped_by: what reshapes the distribution.
        ends: tokens that end a row.
        stops: whether the text of some last tokens ends it.
        max_new_tokens: longest row.
    """

    shaped_by: Sequence[LogitsProcessor]
    ends: frozenset[int]
    stops: Callable[[Sequence[int]], bool] | None
    max_new_tokens: int

    def end(self, row: Row) -> bool:
        """Whether a row ends with its last token; marks it if a text has stopped it."""
        if row.tokens[-1] in self.ends:
            return True
        row.stopped = self.stops is not None and self.stops(row.tokens)
        return row.stopped or len(row.tokens) >= self.max_new_tokens


def serves(model: Any, length: int) -> bool:
    """Whether this generation serves a model up to so many tokens; the library's serves others.

    Keys and values that are kept wrongly give texts that look right. So each model is asked once
    with a cache and once without: rows of different lengths, padded, copied, read in pieces, and
    longer than what its layers look back on.
    """
    base = base_model(model)
    if not may_share(base):
        return False
    enough = max(windows(base), default=0) + _BEYOND
    length = min(length, enough)
    kind = soft_prompt(model) is not None
    known = _TRUSTED.setdefault(base, {})
    if known.get(kind, (0, True))[0] < length:
        known[kind] = (length, _agrees(model, length))
    return known[kind][1]


@torch.no_grad()
def generate(
    model: Any, prompts: Sequence[Ids], rows: Iterable[Row], rules: Rules, batch_size: int
) -> Iterator[Row]:
    """Draw rows; each is given out, and let go, as soon as it has ended.

    Args:
        model: in eval mode.
        prompts: token ids.
        rows: begun in this order; those of one prompt should stand together.
        rules: how to draw.
        batch_size: rows computed at once.
    """
    coming = iter(rows)
    waiting = deque(islice(coming, batch_size))
    batch = _Batch(model, prompts, rules, batch_size)
    while batch.fill(waiting):
        waiting.extend(islice(coming, batch_size - len(waiting)))
        yield from batch.draw()
        batch.read()


class _Batch:
    """The rows that are computed together now; of those that ended some are still among them."""

    def __init__(self, model: Any, prompts: Sequence[Ids], rules: Rules, size: int) -> None:
        self.reader = _Reader(model, prompts)
        self.rules = rules
        self.size = size
        self.few = max(1, size // 4)  # moving rows copies all they hold: not for a single one
        self.rows: list[Row | None] = []  # None: it has ended
        self.tokens = torch.empty(0, dtype=torch.long)  # (R,) drawn, and not read yet
        self.state: Rows | None = None
        self.logits = torch.empty(0)  # (R, V)

    def fill(self, waiting: deque[Row]) -> bool:
        """Let enough ended rows go and as many waiting ones in; returns whether any are left."""
        alive = [place for place, row in enumerate(self.rows) if row is not None]
        gone = len(self.rows) - len(alive)
        if gone and (gone >= self.few or not alive):
            self._keep(alive)
        room = self.size - len(self.rows)
        if waiting and room >= min(self.few, len(waiting)):
            self._admit([waiting.popleft() for _ in range(min(room, len(waiting)))])
        return bool(self.rows)

    def _keep(self, places: list[int]) -> None:
        self.rows = [self.rows[place] for place in places]
        if not places or self.state is None:
            self.state = None
            return
        index = torch.tensor(places, device=self.logits.device)
        self.state, self.logits = self.state.take(index), self.logits[index]

    def _admit(self, rows: list[Row]) -> None:
        state, logits = self.reader.prompts_of(rows)
        if self.state is None:
            self.state, self.logits = state, logits
        else:
            self.state, self.logits = self.state.join(state), torch.cat([self.logits, logits])
        self.rows += rows

    def draw(self) -> list[Row]:
        """A token for every row; returns the rows that end with it."""
        numbers = None
        if any(row is not None and row.numbers is not None for row in self.rows):
            drawn = [0.0 if r is None or r.uniforms is None else r.uniforms[len(r.tokens)]
                     for r in self.rows]  # fmt: skip
            device = real_device(self.logits.device)
            numbers = torch.tensor(drawn, dtype=torch.float64, device=device)
        self.tokens = next_tokens(self.logits, self.rules.shaped_by, numbers)
        chosen = self.logits.gather(-1, self.tokens[:, None]).squeeze(-1)
        logps = (chosen - self.logits.logsumexp(-1)).tolist()
        ended = []
        for place, (token, logp) in enumerate(zip(self.tokens.tolist(), logps, strict=True)):
            row = self.rows[place]
            if row is None:
                continue
            row.tokens.append(token)
            row.logp = (row.logp or 0.0) + logp
            if self.rules.end(row):
                ended.append(row)
                self.rows[place] = None
        return ended

    def read(self) -> None:
        """Compute what follows the tokens that were drawn."""
        if self.state is not None and any(row is not None for row in self.rows):
            self.logits = self.reader.further(self.state, self.tokens[:, None])


class _Reader:
    """A model, behind its virtual tokens if it has any, that keeps what it has read."""

    def __init__(self, model: Any, prompts: Sequence[Ids]) -> None:
        self.model = model
        self.base = base_model(model)
        self.prompts = prompts
        self.virtual: SoftPrompt | None = soft_prompt(model)
        self.device = next(model.parameters()).device
        takes = inspect.signature(self.base.forward).parameters
        self.last = {"logits_to_keep": 1} if "logits_to_keep" in takes else {}

    def prompts_of(self, rows: Sequence[Row]) -> tuple[Rows, Tensor]:
        """The rows behind their prompts, each of which is read once, and (R, V) logits."""
        distinct = list(dict.fromkeys(row.prompt for row in rows))
        # Virtual keys and values stand in the first columns: no padding may come between.
        parts = self._of_one_length(distinct) if self.virtual is not None else [distinct]
        read = [self._read([self.prompts[prompt] for prompt in part]) for part in parts]
        state, logits = read[0]
        for more, its_logits in read[1:]:
            state, logits = state.join(more), torch.cat([logits, its_logits])
        place = {prompt: i for i, prompt in enumerate(prompt for part in parts for prompt in part)}
        index = torch.tensor([place[row.prompt] for row in rows], device=self.device)
        return state.take(index), logits[index]

    def _of_one_length(self, prompts: Sequence[int]) -> list[list[int]]:
        parts: dict[int, list[int]] = {}
        for prompt in prompts:
            parts.setdefault(len(self.prompts[prompt]), []).append(prompt)
        return list(parts.values())

    def _read(self, prompts: Sequence[Ids]) -> tuple[Rows, Tensor]:
        width = max(len(ids) for ids in prompts)
        tokens = np.zeros((len(prompts), width), dtype=np.int64)
        mask = np.zeros_like(tokens)
        for row, ids in enumerate(prompts):
            tokens[row, width - len(ids) :] = ids
            mask[row, width - len(ids) :] = 1
        inputs: dict[str, Any] = {
            "input_ids": torch.from_numpy(tokens).to(self.device),
            "attention_mask": torch.from_numpy(mask).to(self.device),
        }
        if self.virtual is not None:
            inputs = self.virtual.before(inputs["input_ids"], inputs["attention_mask"])
        whole = inputs["attention_mask"]
        cache = empty_cache(inputs.pop("past_key_values", None))
        places = (whole.cumsum(-1) - 1).clamp(min=0)[:, cache.get_seq_length() :]
        logits = self._forward(**inputs, past_key_values=cache, position_ids=places)
        return Rows(cache, whole), logits

    def further(self, state: Rows, tokens: Tensor) -> Tensor:
        """(R, V) logits behind (R, T) more tokens of every row."""
        state.grow(tokens.shape[1])
        places = state.mask.cumsum(-1)[:, -tokens.shape[1] :] - 1
        return self._forward(
            input_ids=tokens,
            attention_mask=state.mask,
            past_key_values=state.cache,
            position_ids=places,
        )

    def _forward(self, **inputs: Any) -> Tensor:
        output = computing(self.model, lambda: self.base(**inputs, use_cache=True, **self.last))
        logits: Tensor = output.logits[:, -1].float()
        return logits


@torch.no_grad()
def _agrees(model: Any, length: int) -> bool:
    """Whether sequences of that length have the same logits with our cache as without."""
    numbers = np.random.default_rng(0).integers(0, base_model(model).config.vocab_size, length)
    whole, end = numbers.astype(np.int64), max(1, length // 2)
    prompts = [whole[:end].astype(np.int32), whole[: (end + 1) // 2].astype(np.int32)]
    reader = _Reader(model, prompts)
    rows = [Row(0), Row(1), Row(0)]
    single = max(end, length - 2)  # up to there at once, then a token at a time
    pieces = [(end, single), *((place, place + 1) for place in range(single, length))]
    try:
        state, logits = reader.prompts_of(rows)
        for start, stop in pieces:
            if stop > start:
                piece = torch.from_numpy(whole[start:stop]).to(reader.device)
                logits = reader.further(state, piece.expand(3, -1))
    except _STRANGE:
        return False
    worst = 0.0
    for place, row in enumerate(rows):
        tokens = np.concatenate([prompts[row.prompt], whole[end:]]).astype(np.int64)
        held = torch.from_numpy(tokens).to(reader.device)[None]
        last = torch.tensor([len(tokens) - 1], device=reader.device)
        plain = computing(model, partial(row_logits, model, held, torch.ones_like(held), last))
        distance = plain[0, 0].log_softmax(-1) - logits[place].log_softmax(-1)
        worst = max(worst, float(distance.abs().max()))
    return worst <= _ROUNDING.get(next(model.parameters()).dtype, _HALF)
