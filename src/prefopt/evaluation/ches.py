"""CHES: which comparisons push the preferred completion down as well.

The centred hidden embedding similarity of a comparison (Razin et al. 2024,
arXiv:2410.08847) tells before training which pairs displace likelihood most: those whose sides
look alike to the model. The paper trains on the pairs of lowest score; what matters is the
order of pairs under one model, not the number.

Shapes: B completions, T comparisons, S tokens of all completions, d channels of the model.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from prefopt.engine.forest import build_forest, pack
from prefopt.engine.logps import Scorer, Sharing
from prefopt.engine.predictors import through_rows, through_trees
from prefopt.engine.tokens import Encoder, TokenGroup
from prefopt.records import Comparison, Group

if TYPE_CHECKING:
    from prefopt.policies.load import Policy


def ches_scores(
    policy: Policy,
    groups: Iterable[Group],
    *,
    length_normalize: bool = False,
    microbatch_tokens: int = 8192,
    sharing: Sharing = "auto",
) -> Tensor:
    """CHES of every comparison: ⟨Σh⁺, Σh⁻⟩ − ‖Σh⁺‖².

    h are the outputs of the last layer, those that the head reads, from the last token of the
    prompt to the last but one of the completion: each predicts one of the completion's tokens.
    The sides are ordered so that the first is the one that is more probably better.

    Args:
        policy: the model that is going to be trained.
        groups: prompts with comparisons.
        length_normalize: divide by the tokens: ⟨Σh⁺, Σh⁻⟩/(|y⁺||y⁻|) − ‖Σh⁺‖²/|y⁺|². The
            plain score grows with the square of the lengths, so it compares pairs of like
            lengths only.
        microbatch_tokens: tokens that go through the model at once; never changes the result.
        sharing: "off" gives every completion a row of its own, without shared prefixes.

    Returns:
        (T,) float64; groups in order, and the comparisons of each in order.

    Raises:
        DataError: a group cannot be encoded, or is longer than the model's context.
    """
    encoder = Encoder(
        policy.tokenizer, end_of_turn=policy.end_of_turn, max_length=policy.max_length
    )
    encoded = list(encoder(groups))
    if not encoded:
        return torch.empty(0, dtype=torch.float64)
    scorer = Scorer(policy.model, sharing=sharing)
    plain, normalized = ches_of_tokens(scorer, encoded, microbatch_tokens)
    return normalized if length_normalize else plain


def ches_of_tokens(
    scorer: Scorer, groups: Sequence[TokenGroup], microbatch_tokens: int
) -> tuple[Tensor, Tensor]:
    """CHES and length-normalised CHES of groups of tokens, (T,) float64 each."""
    sums = hidden_sums(scorer, groups, microbatch_tokens)
    means = (
        sums / torch.tensor([len(ids) for group in groups for ids in group.completions])[:, None]
    )
    sides = [
        [start + side for side in _ordered(edge)]
        for group, start in zip(groups, _starts(groups), strict=True)
        for edge in group.comparisons
    ]
    better, worse = torch.tensor(sides, dtype=torch.int64).reshape(-1, 2).unbind(1)
    return similarity(sums[better], sums[worse]), similarity(means[better], means[worse])


def similarity(better: Tensor, worse: Tensor) -> Tensor:
    """⟨h⁺, h⁻⟩ − ‖h⁺‖² of (T, d) sums (or means) of hidden states, (T,).

    >>> similarity(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, -1.0]]))    # 3 − 2 − 5
    tensor([-4.])
    """
    return (better * (worse - better)).sum(-1)


@torch.no_grad()
def hidden_sums(scorer: Scorer, groups: Sequence[TokenGroup], microbatch_tokens: int) -> Tensor:
    """(B, d) float64 sums of the hidden states that predict each completion's tokens."""
    parts: dict[int, Tensor] = {}
    training = scorer.model.training
    scorer.model.eval()
    try:
        for positions in pack(groups, microbatch_tokens):
            chosen = [groups[position] for position in positions]
            counts = [len(group.completions) for group in chosen]
            parts.update(zip(positions, _sums(scorer, chosen).split(counts), strict=True))
    finally:
        scorer.model.train(training)
    return torch.cat([parts[position] for position in range(len(groups))])


def _sums(scorer: Scorer, groups: Sequence[TokenGroup]) -> Tensor:
    if scorer.sharing is None:
        scorer(groups)  # its check of the first batch says whether trees are exact here
    if scorer.sharing == "trees":
        predictors = through_trees(scorer.model, build_forest(groups))
    else:
        predictors = through_rows(scorer.model, groups)
    hidden = predictors.each_token(predictors.hidden).double().cpu()
    lengths = torch.tensor([len(ids) for group in groups for ids in group.completions])
    owners = torch.arange(len(lengths)).repeat_interleave(lengths)
    return hidden.new_zeros(len(lengths), hidden.shape[1]).index_add(0, owners, hidden)


def _ordered(edge: Comparison) -> tuple[int, int]:
    """The side that is more probably better, and the other."""
    if edge.probability < 0.5:
        return edge.dispreferred, edge.preferred
    return edge.preferred, edge.dispreferred


def _starts(groups: Sequence[TokenGroup]) -> list[int]:
    """Which of all completions is the first of each group."""
    starts = [0]
    for group in groups[:-1]:
        starts.append(starts[-1] + len(group.completions))
    return starts
