"""Policies small enough to be written down: a Llama over sequences of one short length.

Shapes: V symbols, L symbols a sequence, N = V^L sequences in the world's order, B of a batch.
Symbol V is the beginning. There is no end of turn: every sequence has the same length, so the
probabilities of all N sum to one and KL and reward are exact, not estimated.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from prefopt.data.worlds import EnumerableWorld

if TYPE_CHECKING:
    from prefopt.data.worlds import Floats


class SequencePolicy(nn.Module):
    """A policy over the sequences of a world.

    Args:
        symbols: V.
        length: L.
        seed: of the weights.
    """

    def __init__(self, symbols: int, length: int, seed: int = 0) -> None:
        super().__init__()
        from transformers import LlamaForCausalLM

        self.symbols, self.length = symbols, length
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.model = LlamaForCausalLM(_config(symbols, length))

    def log_softmax(self, sequences: Tensor) -> Tensor:
        """(B, L, V) log-probabilities of every next symbol along (B, L) sequences."""
        rows = with_beginning(sequences[:, :-1], self.symbols)  # nothing follows the last one
        logits: Tensor = self.model(input_ids=rows, use_cache=False).logits
        return F.log_softmax(logits[..., : self.symbols].float(), dim=-1)

    def token_logps(self, sequences: Tensor) -> Tensor:
        """(B, L) log-probabilities of the symbols of (B, L) sequences, in nats."""
        return self.log_softmax(sequences).gather(-1, sequences[..., None]).squeeze(-1)

    @torch.no_grad()
    def distribution(self) -> Floats:
        """(N,) probability of every sequence, in the world's order; sums to 1."""
        prefixes = every_sequence(self.symbols, self.length - 1)
        whole = torch.cat([prefixes, prefixes.new_zeros(len(prefixes), 1)], dim=1)
        steps = self.log_softmax(whole).double()
        before = steps[:, :-1].gather(-1, prefixes[..., None]).squeeze(-1).sum(dim=1)
        logps = (before[:, None] + steps[:, -1]).flatten().numpy()
        probabilities = np.exp(logps - logps.max())
        return np.asarray(probabilities / probabilities.sum())

    def copy(self) -> SequencePolicy:
        """Another one with the same weights."""
        twin = SequencePolicy(self.symbols, self.length)
        twin.load_state_dict(self.state_dict())
        return twin


class SequenceValue(nn.Module):
    """A number for every place of a sequence: a value function, or a reward at the last place.

    Args:
        symbols, length: of the sequences.
        seed: of the weights.
    """

    def __init__(self, symbols: int, length: int, seed: int = 0) -> None:
        super().__init__()
        from transformers import LlamaModel

        self.symbols = symbols
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.body = LlamaModel(_config(symbols, length))
            self.head = nn.Linear(self.body.config.hidden_size, 1)
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)

    def forward(self, sequences: Tensor) -> Tensor:
        """(B, L + 1) numbers: before the first symbol of (B, L) sequences, and after each."""
        rows = with_beginning(sequences, self.symbols)
        hidden = self.body(input_ids=rows, use_cache=False).last_hidden_state
        values: Tensor = self.head(hidden).squeeze(-1)
        return values


def every_sequence(symbols: int, length: int) -> Tensor:
    """(symbols^length, length) all sequences in the order of `EnumerableWorld`."""
    return torch.from_numpy(np.indices((symbols,) * length).reshape(length, -1).T.copy())


def with_beginning(sequences: Tensor, symbols: int) -> Tensor:
    """(B, L + 1) sequences behind the symbol that begins them."""
    return F.pad(sequences, (1, 0), value=symbols)


def place(world: EnumerableWorld, policy: SequencePolicy) -> tuple[float, float]:
    """Exact KL to the world's reference in nats a sequence, and exact mean reward."""
    distribution = policy.distribution()
    return world.kl(distribution), world.expected_reward(distribution)


def _config(symbols: int, length: int) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=symbols + 1,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=length + 1,
        tie_word_embeddings=False,
        bos_token_id=symbols,
        eos_token_id=None,
        pad_token_id=None,
    )
