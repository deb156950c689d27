"""Log-probabilities of completions: the number that everything else is made of.

Shapes: B completions, S tokens of all completions, U distinct ones (what two completions share
is computed once), V words of the vocabulary, d channels of the model.
Every number is in nats and accumulated in float32 whatever the precision of the model.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from prefopt.engine import attention
from prefopt.engine.checkpointing import Kind, enable
from prefopt.engine.forest import build_forest
from prefopt.engine.head import head_logps
from prefopt.engine.kernel_choice import KernelChoice
from prefopt.engine.packed import in_order
from prefopt.engine.predictors import Predictors, padded, through_rows, through_trees
from prefopt.engine.soft_prompts import row_logits
from prefopt.engine.token_values import (
    divergence,
    in_chunks,
    log_collision,
    logit_transform,
    token_logps,
)
from prefopt.engine.tokens import Encoder, TokenGroup
from prefopt.errors import PolicyError
from prefopt.policies.computing import computing
from prefopt.policies.half import in_float32
from prefopt.policies.load import Policy, base_model
from prefopt.records import Group

logger = logging.getLogger(__name__)

Sharing = Literal["auto", "off"]
Precision = Literal["fp32", "bf16"]

#: nats a token by which trees may differ from separate rows before they are given up
TOLERANCE = 1e-3
#: bytes of logits that are kept at once; above it the head runs in chunks, twice
LOGITS_BUDGET = 1 << 30
#: what `Scorer.token_values` can tell of a token; what has gradient comes first, because the
#: backward pass stops computing again where nothing more is needed
TOKEN_VALUES = ("policy", "kl", "reference", "log_collision")


class Scorer:
    """Scores the completions of token groups under one model.

    The first call scores its groups both ways, as trees and as separate rows, in float32
    and without gradient. If the two differ by more than `TOLERANCE` nats a token (models
    whose layers mix neighbouring rows, such as linear attention), or if the trees cannot go
    through the model at all, every call uses separate rows from then on, and says so once.

    Args:
        model: a causal model of `transformers`, or a PEFT model around one.
        sharing: "off" scores separate rows from the start.
        precision: "bf16" runs the model under autocast; weights stay as they are.
        logits_budget: bytes of float32 logits beyond which the head runs in chunks.

    Attributes:
        sharing: "trees" or "rows"; None before the first call of an "auto" scorer.
        reason: why rows are used, if they are.
        difference: largest difference of the two ways seen in the check, nats a token.
        kernels: which kernel computes attention, settled on the first forest.
    """

    unit = "nats a token"

    def __init__(
        self,
        model: Any,
        *,
        sharing: Sharing = "auto",
        precision: Precision = "fp32",
        logits_budget: int = LOGITS_BUDGET,
    ) -> None:
        self.model = model
        self.precision = precision
        self.logits_budget = logits_budget
        self.sharing: Literal["trees", "rows"] | None = "rows" if sharing == "off" else None
        self.reason: str | None = "sharing: off" if sharing == "off" else None
        self.difference: float | None = None
        self.kernels = KernelChoice(base_model(model).config.get_text_config().num_hidden_layers)
        self._head_known = False

    def __call__(self, groups: Sequence[TokenGroup]) -> Tensor:
        """(B,) float32 nats: groups in order, and the completions of each in order."""
        return computing(self.model, lambda: self._score(groups))

    def _score(self, groups: Sequence[TokenGroup]) -> Tensor:
        if self.sharing is None:
            self._check(groups)
        with self._autocast():
            if self.sharing == "trees":
                return self._trees(groups, self.kernels)
            return self._rows(groups)

    def check(self, groups: Sequence[TokenGroup]) -> None:
        """Decide on these groups how all later ones are scored, if it is not decided yet."""
        if self.sharing is None:
            computing(self.model, lambda: self._check(groups))

    def token_values(
        self,
        groups: Sequence[TokenGroup],
        names: Collection[str],
        reference: FrozenScorer | None = None,
    ) -> dict[str, Tensor]:
        """Values of every completion token, read off the distributions chunk by chunk.

        Args:
            groups: S tokens in all their completions.
            names: which values. `policy` is the log-probability of the token, `reference` the
                same under the reference, `log_collision` is log Σ_v π(v)² and `kl` is
                KL(π_ref ‖ π), both of the distribution that the token was drawn from.
            reference: for `reference` and `kl`. It may be this scorer in another state, which
                is then entered again during the backward pass.

        Returns:
            (S,) float32 nats by name: groups, completions and tokens in order. `policy` and
            `kl` carry gradient to the policy, the others none.

        Raises:
            ValueError: an unknown name, or no reference for one that needs it.
            PolicyError: the model does to its logits what is not known here, or the reference
                has another vocabulary.
        """
        if unknown := set(names) - set(TOKEN_VALUES):
            raise ValueError(f"there are no per-token values {sorted(unknown)}")
        if {"reference", "kl"}.isdisjoint(names):
            reference = None
        elif reference is None:
            raise ValueError("the per-token values 'reference' and 'kl' need a reference")
        return computing(self.model, lambda: self._token_values(groups, names, reference))

    def _token_values(
        self,
        groups: Sequence[TokenGroup],
        names: Collection[str],
        reference: FrozenScorer | None,
    ) -> dict[str, Tensor]:
        learning = torch.is_grad_enabled() and not {"policy", "kl"}.isdisjoint(names)
        with torch.set_grad_enabled(learning):
            own = self._predictors(groups)
            columns = [own.hidden, own.targets]
            if reference is not None:
                columns.append(reference.predictors(groups).in_order_of(own))
            kept = 1 if reference is None else 2
            values = in_chunks(self._reader(names, reference), self._chunk(kept), *columns)
        order = [name for name in TOKEN_VALUES if name in names]
        return {name: own.each_token(u) for name, u in zip(order, values, strict=True)}

    def enable_checkpointing(self, kind: Kind = True, *, offload: bool = False) -> None:
        """Recompute activations in the backward pass: of layers, or of parts of them."""
        base = base_model(self.model)
        trees = partial(attention.attending_to_trees, base)
        enable(base, kind, lambda: trees() if self.sharing == "trees" else nullcontext(), offload)

    # -- the head --------------------------------------------------------------------------

    def _logits(self, hidden: Tensor) -> Tensor:
        """(U, V) float32 logits of (U, d) outputs of the decoder."""
        base = base_model(self.model)
        finish = logit_transform(base.config.get_text_config())
        logits: Tensor = base.get_output_embeddings()(hidden).float()
        return logits if finish is None else finish(logits)

    def _chunk(self, kept: int) -> int:
        """Tokens whose logits fit the budget, where those of `kept` models are there at once."""
        vocabulary: int = base_model(self.model).config.get_text_config().vocab_size
        return max(1, self.logits_budget // (4 * vocabulary * kept))

    def _token_logps(self, predictors: Predictors) -> Tensor:
        """(S,) log-probabilities of the scored tokens."""
        columns, chunk = (predictors.hidden, predictors.targets), self._chunk(1)
        with self._autocast(keep=True):  # one cast of the head for all chunks
            (logps,) = in_chunks(lambda *part: (self._logps(*part),), chunk, *columns)
        return predictors.each_token(logps)

    def _logps(self, hidden: Tensor, words: Tensor) -> Tensor:
        """(U,) log-probabilities of words after (U, d) outputs of the decoder."""
        base = base_model(self.model)
        if logit_transform(base.config.get_text_config()) is None:
            logps = head_logps(base.get_output_embeddings(), hidden, words)
            if logps is not None:
                return logps
        return token_logps(self._logits(hidden), words)

    def _reader(
        self, names: Collection[str], reference: FrozenScorer | None
    ) -> Callable[..., tuple[Tensor, ...]]:
        """What reads the values, in the order of `TOKEN_VALUES`, off a chunk of hidden states."""

        def read(hidden: Tensor, words: Tensor, *beside: Tensor) -> tuple[Tensor, ...]:
            values = []
            with self._autocast():
                logits = self._logits(hidden)
            if "policy" in names:
                values.append(token_logps(logits, words))
            if reference is not None:
                frozen = reference.logits(*beside)
                _refuse_other_vocabulary(logits, frozen)
                if "kl" in names:
                    values.append(divergence(logits, frozen))
                if "reference" in names:
                    values.append(token_logps(frozen, words))
            if "log_collision" in names:
                values.append(log_collision(logits))
            return tuple(values)

        return read

    def _predictors(self, groups: Sequence[TokenGroup]) -> Predictors:
        """What predicts the groups' completion tokens, under a head that is known."""
        if self.sharing is None:
            self._check(groups)
        if not self._head_known:
            with in_float32(self.model):
                self._check_head(groups[:1])
        with self._autocast():
            if self.sharing == "trees":
                return through_trees(self.model, build_forest(groups), self.kernels)
            return through_rows(self.model, groups)

    # -- the two ways ----------------------------------------------------------------------

    def _trees(self, groups: Sequence[TokenGroup], kernels: KernelChoice | None = None) -> Tensor:
        """What completions share computed once."""
        forest = build_forest(groups)
        logps = self._token_logps(through_trees(self.model, forest, kernels))
        owners = torch.from_numpy(forest.owners).to(logps.device)
        return logps.new_zeros(forest.sequences).index_add(0, owners, logps)

    def _rows(self, groups: Sequence[TokenGroup]) -> Tensor:
        """The plain way: each completion with its own copy of the prompt, padded on the right,
        through the model's own forward with its own attention and head."""
        device = next(self.model.parameters()).device
        tokens, real, scored = padded(groups)
        first = min(len(group.prompt) for group in groups if group.completions)
        input_ids = torch.from_numpy(tokens).to(device)
        predictors = torch.arange(first - 1, tokens.shape[1] - 1, device=device)
        logits = row_logits(self.model, input_ids, torch.from_numpy(real).to(device), predictors)
        logps = -F.cross_entropy(
            logits.flatten(0, 1), input_ids[:, first:].flatten(), reduction="none"
        ).view(len(tokens), -1)
        mask = torch.from_numpy(scored[:, first:]).to(device)
        return logps.masked_fill(~mask, 0.0).sum(-1)

    # -- the checks of the first batch -----------------------------------------------------

    @torch.no_grad()
    def _check(self, groups: Sequence[TokenGroup]) -> None:
        with in_float32(self.model):
            self._compare(groups)

    def _compare(self, groups: Sequence[TokenGroup]) -> None:
        # group by group: as padded rows of one batch their logits would set the peak of a run
        rows = torch.cat([self._rows([group]).cpu() for group in groups])
        try:
            trees = self._trees(groups).cpu()
        except torch.OutOfMemoryError:
            raise  # separate rows would need more, not less
        except (
            NotImplementedError,
            RuntimeError,
            TypeError,
            ValueError,
            AttributeError,
            KeyError,
        ) as error:
            self._give_up(f"trees cannot go through this model: {type(error).__name__}: {error}")
            return
        apart = (trees - rows).abs() / self._units(groups, rows)
        self.difference = float(apart.nan_to_num(torch.inf).max())
        if self.difference <= TOLERANCE:
            self.sharing, self._head_known = "trees", True
        else:
            self._give_up(
                f"trees and separate rows differ by {self.difference:.3g} {self.unit} "
                f"(tolerance {TOLERANCE:g})"
            )

    def _units(self, groups: Sequence[TokenGroup], rows: Tensor) -> Tensor:
        """(B,) what a difference of the two ways is measured in: its tokens."""
        return _lengths(groups)

    @torch.no_grad()
    def _check_head(self, groups: Sequence[TokenGroup]) -> None:
        """Rows go through the model's own head, per-token values through its last layer."""
        logps = self._token_logps(through_rows(self.model, groups)).cpu()
        lengths = _lengths(groups)
        sums = torch.stack([part.sum() for part in logps.split(lengths.tolist())])
        difference = float(((sums - self._rows(groups).cpu()).abs() / lengths).max())
        if not difference <= TOLERANCE:
            raise PolicyError(
                "the model does something to its logits that is not known here: computed without "
                f"its own forward they differ by {difference:.3g} nats a token",
                field="model",
                value=type(base_model(self.model)).__name__,
                remedy="choose an objective that reads no per-token values, such as dpo",
            )
        self._head_known = True

    def _give_up(self, reason: str) -> None:
        self.sharing, self.reason = "rows", reason
        logger.warning("prefix sharing is off, every completion gets its own row: %s", reason)

    def _autocast(self, *, keep: bool = False) -> AbstractContextManager[Any]:
        """Casts of weights are not kept, as a second model; with `keep` they are, if it is on."""
        device = next(self.model.parameters()).device.type
        if self.precision == "fp32" or (keep and not torch.is_autocast_enabled(device)):
            return nullcontext()
        return torch.autocast(device, dtype=torch.bfloat16, cache_enabled=keep)


@dataclass
class FrozenScorer:
    """A scorer that never builds a graph, under a state of the model that is the reference.

    Attributes:
        scorer: of the reference model, or of the policy's own.
        state: what makes the model the reference while it is scored, such as adapter off.
    """

    scorer: Scorer
    state: Callable[[], AbstractContextManager[None]] = nullcontext

    def __call__(self, groups: Sequence[TokenGroup]) -> Tensor:
        """(B,) float32 nats, without gradient."""
        with torch.no_grad(), self.state():
            return self.scorer(groups)

    def predictors(self, groups: Sequence[TokenGroup]) -> Predictors:
        """What predicts the groups' completion tokens under the reference, without gradient."""
        scorer = self.scorer
        with torch.no_grad(), self.state():
            return computing(scorer.model, lambda: scorer._predictors(groups))

    def logits(self, hidden: Tensor) -> Tensor:
        """(U, V) float32, without gradient, of (U, d) outputs of the reference's decoder."""
        with torch.no_grad(), self.state(), self.scorer._autocast():
            return self.scorer._logits(hidden)


def completion_logps(
    policy: Policy,
    groups: Iterable[Group],
    *,
    sharing: Sharing = "auto",
    microbatch_tokens: int = 8192,
) -> Tensor:
    """Log-probability of every completion given its prompt, differentiable.

    Args:
        policy: what is asked.
        groups: prompts with completions.
        sharing: "off" scores every completion in a row of its own, without shared prefixes.
        microbatch_tokens: tokens that go through the model at once; never changes the result.

    Returns:
        (B,) float32 nats, summed over the completion and its end-of-turn token; groups in
        order, and the completions of each in order.

    Raises:
        DataError: a group cannot be encoded, or is longer than the model's context.
    """
    encoder = Encoder(
        policy.tokenizer, end_of_turn=policy.end_of_turn, max_length=policy.max_length
    )
    scorer = Scorer(policy.model, sharing=sharing)
    return in_order(scorer, list(encoder(groups)), microbatch_tokens)


def _lengths(groups: Sequence[TokenGroup]) -> Tensor:
    """(B,) tokens of each completion."""
    return torch.tensor([len(ids) for group in groups for ids in group.completions])


def _refuse_other_vocabulary(logits: Tensor, reference: Tensor) -> None:
    if logits.shape[-1] != reference.shape[-1]:
        raise PolicyError(
            f"the policy has {logits.shape[-1]} words and the reference {reference.shape[-1]}, "
            "so their distributions cannot be compared",
            field="reference",
            remedy="use a reference with the policy's vocabulary, such as the policy as it starts",
        )
