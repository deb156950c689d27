"""Generation by transformers' own `generate`, for models whose state we cannot take apart.

Shapes: R rows padded on the left, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from prefopt.engine.soft_prompts import soft_prompt
from prefopt.engine.tokens import Ids
from prefopt.policies.computing import computing
from prefopt.policies.load import base_model
from prefopt.sampling.continuous import Row, Rules
from prefopt.sampling.drawing import InverseTransform, real_device

if TYPE_CHECKING:
    from prefopt.policies.load import Policy


@torch.no_grad()
def generate(
    policy: Policy, prompts: Sequence[Ids], rows: Iterable[Row], rules: Rules, batch_size: int
) -> Iterator[Row]:
    """Draw rows, a batch after the other; like `continuous.generate`, without log π."""
    waiting = iter(rows)
    with _own_settings(policy, rules.max_new_tokens):
        while batch := list(islice(waiting, batch_size)):
            new = _generate(policy, [prompts[row.prompt] for row in batch], batch, rules)
            for row, tokens in zip(batch, new.tolist(), strict=True):
                for token in tokens:
                    row.tokens.append(token)
                    if rules.end(row):
                        break
                yield row


def _generate(policy: Policy, prompts: Sequence[Ids], batch: Sequence[Row], rules: Rules) -> Tensor:
    """(R, new) token ids that follow the prompts; filled with pads after an end of turn."""
    width = max(len(ids) for ids in prompts)
    tokens = np.zeros((len(prompts), width), dtype=np.int64)
    mask = np.zeros_like(tokens)
    for row, ids in enumerate(prompts):
        tokens[row, width - len(ids) :] = ids
        mask[row, width - len(ids) :] = 1
    model: Any = policy.model
    held, real = (
        torch.from_numpy(tokens).to(policy.device),
        torch.from_numpy(mask).to(policy.device),
    )

    def continued() -> Tensor:
        # PEFT's own `generate` of a soft prompt is wrong for rows that are padded on the left.
        prompt = soft_prompt(model)
        speaker, inputs, start = model, {"input_ids": held, "attention_mask": real}, width
        if prompt is not None:
            speaker, (inputs, start) = base_model(model), prompt.to_continue(held, real)
        processors = LogitsProcessorList(rules.shaped_by)
        uniforms = [row.uniforms for row in batch if row.uniforms is not None]
        if uniforms:
            numbers = torch.from_numpy(np.stack(uniforms)).to(real_device(policy.device))
            processors.append(InverseTransform(numbers, start))
        stopping = StoppingCriteriaList()
        if rules.stops is not None:
            stopping.append(_Stops(rules.stops, start))
        whole: Tensor = speaker.generate(
            **inputs, logits_processor=processors, stopping_criteria=stopping
        )
        return whole[:, start:].cpu()

    return computing(model, continued)


class _Stops(StoppingCriteria):
    """Ends the rows whose text has come to a stop."""

    def __init__(self, stops: Callable[[Sequence[int]], bool], start: int) -> None:
        self.stops = stops
        self.start = start

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
        stopped = [self.stops(row) for row in input_ids[:, self.start :].tolist()]
        return torch.tensor(stopped, device=input_ids.device)


@contextmanager
def _own_settings(policy: Policy, max_new_tokens: int) -> Iterator[None]:
    """A generation config of our own, put back afterwards.

    `generate` fills what a config leaves open from the model's own, so passing one is not
    enough: it has to take its place, in the base of an adapter as well.
    """
    model: Any = policy.model
    ends = sorted(policy.end_of_turn)
    pad = policy.tokenizer.pad_token_id
    config = GenerationConfig(  # type: ignore[no-untyped-call]
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=ends,
        bos_token_id=policy.tokenizer.bos_token_id,
        pad_token_id=ends[0] if pad is None else pad,
        use_cache=True,
    )
    base = base_model(model)
    before = base.generation_config
    try:
        for holder in {id(base): base, id(model): model}.values():
            holder.generation_config = config
        yield
    finally:
        for holder in {id(base): base, id(model): model}.values():
            holder.generation_config = before
