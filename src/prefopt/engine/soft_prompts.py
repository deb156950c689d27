"""Virtual tokens before every sequence, for trees and for rows.

A soft prompt is the root of every tree: each segment has it among its ancestors, and real
tokens stand m positions later. Embeddings go through the decoder as rows of the forest, keys
and values as its cache. PEFT's own forward knows neither trees nor padding on the left; what
is computed here is the same number as its forward of one plain row (tests say so).

Shapes: m virtual tokens, N rows of a forest, B rows of W tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prefopt.engine.forest import Forest, Segment
from prefopt.policies.load import base_model
from prefopt.policies.switches import is_soft_prompt, prompt_is_on


@dataclass(frozen=True)
class SoftPrompt:
    """The virtual tokens of a PEFT model, as they are now and with their gradient.

    Attributes:
        model: the PEFT model.
        length: m.
        cached: whether they are keys and values, and not embeddings.
    """

    model: Any
    length: int
    cached: bool

    @property
    def rows(self) -> int:
        """How many rows of the decoder's output are theirs."""
        return 0 if self.cached else self.length

    def rooted(self, forest: Forest) -> Forest:
        """The forest with the virtual tokens as the root of every tree.

        The root is among the keys in any case; among the outputs, and so among the rows that
        predict, only where the virtual tokens are embeddings.
        """
        m = self.length
        segments = (
            Segment(0, m, 0, ()),
            *(
                Segment(s.start + m, s.stop + m, s.depth + m, (0, *(i + 1 for i in s.path)))
                for s in forest.segments
            ),
        )
        return replace(
            forest,
            tokens=np.concatenate([np.zeros(m, dtype=np.int64), forest.tokens]),
            positions=np.concatenate([np.arange(m), forest.positions + m]),
            segments=segments,
            predictors=forest.predictors + self.rows,
        )

    def before(self, tokens: Tensor, mask: Tensor) -> dict[str, Tensor | Any]:
        """A decoder's inputs for (B, W) tokens with the virtual ones before all of them.

        `mask` (B, W) says which tokens are real; right-padded rows and a forest's one row.
        """
        ones = mask.new_ones(len(mask), self.length)
        inputs: dict[str, Any] = {"attention_mask": torch.cat([ones, mask], dim=1)}
        virtual = self.model.get_prompt(batch_size=len(tokens))
        if self.cached:
            return {**inputs, "input_ids": tokens, "past_key_values": virtual}
        embedded = base_model(self.model).get_input_embeddings()(tokens)
        virtual = virtual.to(embedded.dtype)
        return {**inputs, "inputs_embeds": torch.cat([virtual, embedded], dim=1)}

    def to_continue(self, tokens: Tensor, mask: Tensor) -> tuple[dict[str, Any], int]:
        """What `generate` of the base continues: (B, W) tokens that are padded on the left.

        Returns:
            Its inputs, and at which column of its output the new tokens begin.
        """
        m = self.length
        if self.cached:  # it looks only at tokens that the cache does not cover
            known = torch.cat([tokens.new_zeros(len(tokens), m), tokens], dim=1)
            return {**self.before(tokens, mask), "input_ids": known}, known.shape[1]
        inputs = self.before(tokens, mask)
        # PEFT would leave the padding between the virtual tokens and the real ones.
        place = torch.argsort(inputs["attention_mask"] != 0, dim=1, stable=True)
        embeds = inputs["inputs_embeds"]
        return {
            "inputs_embeds": embeds.gather(1, place[..., None].expand_as(embeds)),
            "attention_mask": inputs["attention_mask"].gather(1, place),
        }, 0


def behind(prompt: SoftPrompt | None, tokens: Tensor, mask: Tensor) -> dict[str, Any]:
    """A decoder's inputs for (B, W) tokens, behind virtual ones if there are any."""
    if prompt is None:
        return {"input_ids": tokens, "attention_mask": mask}
    return prompt.before(tokens, mask)


def row_logits(model: Any, tokens: Tensor, mask: Tensor, places: Tensor) -> Tensor:
    """(B, P, V) float32 logits of the model's own forward at these P columns of (B, W) tokens."""
    prompt = soft_prompt(model)
    if prompt is not None:
        places = places + prompt.rows
    # PEFT's forward of a soft prompt would put it before the tokens even if it is off.
    forward = base_model(model) if is_soft_prompt(model) else model
    inputs = behind(prompt, tokens, mask)
    logits: Tensor = forward(**inputs, use_cache=False, logits_to_keep=places).logits
    return logits.float()


def soft_prompt(model: Any) -> SoftPrompt | None:
    """What stands before a model's tokens now, if anything does."""
    if not prompt_is_on(model):
        return None
    config = model.active_peft_config
    return SoftPrompt(model, config.num_virtual_tokens, config.peft_type == "PREFIX_TUNING")
