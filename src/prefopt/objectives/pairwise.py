"""Objectives on comparisons: one pure function each, one loss per comparison.

Shapes: `scores` holds B completions, `comparisons` T edges; every function returns (T,)
losses in nats, unreduced and unweighted. β is in rewards per nat. With ρ = log π − log π_ref
of a completion, h = ρ_preferred − ρ_dispreferred and p the comparison's probability.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from prefopt.objectives.scores import Comparisons, Scores


def dpo(scores: Scores, comparisons: Comparisons, *, beta: float = 0.1) -> Tensor:
    """Direct Preference Optimization with soft labels: −p·log σ(βh) − (1−p)·log σ(−βh).

    Rafailov et al. 2023 (arXiv:2305.18290), eq. 7, for p = 1; for other p the conservative
    form of Mitchell's note on cDPO (2023), whose optimum is βh = logit(p).

    >>> import torch
    >>> scores = Scores(
    ...     policy=torch.tensor([-10.0, -14.0]),
    ...     reference=torch.tensor([-12.0, -11.0]),
    ...     lengths=torch.tensor([5, 6]),
    ... )
    >>> dpo(scores, Comparisons.of([(0, 1)]), beta=0.2)   # h = 2 − (−3) = 5, βh = 1
    tensor([0.3133])
    """
    logits = beta * _log_ratio_gap(scores, comparisons)
    p = comparisons.probability
    return -p * F.logsigmoid(logits) - (1 - p) * F.logsigmoid(-logits)


def ipo(
    scores: Scores, comparisons: Comparisons, *, beta: float = 0.1, length_normalize: bool = True
) -> Tensor:
    """Identity Preference Optimisation: (h̄ − (2p−1)/(2β))².

    Azar et al. 2023 (arXiv:2310.12036), eq. 17, with β the paper's τ; soft labels replace
    the two signed targets of eq. 16 by their mean. h̄ is the difference of *per-token means*
    by default, so that the target 1/(2β) is in nats per token; `length_normalize=False`
    uses sums over the completion, as the paper writes it. The two are not interchangeable.

    >>> import torch
    >>> scores = Scores(
    ...     policy=torch.tensor([-10.0, -14.0]),
    ...     reference=torch.tensor([-12.0, -11.0]),
    ...     lengths=torch.tensor([4, 6]),
    ... )
    >>> ipo(scores, Comparisons.of([(0, 1)]), beta=0.5)   # h̄ = 2/4 + 3/6 = 1, target 1
    tensor([0.])
    """
    ratios = scores.log_ratios
    if length_normalize:
        ratios = ratios / scores.lengths
    gap = ratios[comparisons.preferred] - ratios[comparisons.dispreferred]
    return (gap - (2 * comparisons.probability - 1) / (2 * beta)) ** 2


def sft(scores: Scores, comparisons: Comparisons, *, length_normalize: bool = True) -> Tensor:
    """Negative log-likelihood of the preferred completion: the stage before preferences.

    In nats per token by default, in nats per completion with `length_normalize=False`.
    Only `comparisons.preferred` is read; no reference is needed.

    >>> import torch
    >>> scores = Scores(torch.tensor([-10.0]), None, torch.tensor([5]))
    >>> edge = torch.tensor([0])
    >>> sft(scores, Comparisons(edge, edge, torch.ones(1), torch.ones(1)))
    tensor([2.])
    """
    log_likelihood = scores.policy
    if length_normalize:
        log_likelihood = log_likelihood / scores.lengths
    return -log_likelihood[comparisons.preferred]


def _log_ratio_gap(scores: Scores, comparisons: Comparisons) -> Tensor:
    """h = ρ_preferred − ρ_dispreferred, (T,) nats."""
    ratios = scores.log_ratios
    return ratios[comparisons.preferred] - ratios[comparisons.dispreferred]
