"""Objectives on comparisons that train a reward model: one number for each completion.

Shapes: `scores.policy` holds B rewards in place of log-probabilities, `comparisons` T edges;
every function returns (T,) losses, unreduced and unweighted. With r the reward of a completion
(w preferred, l not) and p the comparison's probability.
"""

from __future__ import annotations

from torch import Tensor

from prefopt.objectives.expectation import cross_entropy
from prefopt.objectives.options import NonNegative
from prefopt.objectives.scores import Comparisons, Scores


def reward(
    scores: Scores,
    comparisons: Comparisons,
    *,
    margin: NonNegative = 0.0,
    centring: NonNegative = 0.0,
) -> Tensor:
    """A Bradley–Terry reward model: −log σ(r_w − r_l − m) + λ(r_w + r_l)².

    Ouyang et al. 2022 (arXiv:2203.02155), eq. 1, one comparison at a time; soft labels enter as
    the cross-entropy with p. m is what the winner must be ahead by before it is pushed half as
    hard (Touvron et al. 2023, arXiv:2307.09288, eq. 2): `margin` times the difference of the two
    completions' scores in the data; 0, the default, reads no scores. λ, `centring`, keeps the
    rewards of a pair around zero, which comparisons alone leave open (Eisenstein et al. 2023,
    arXiv:2312.09244, who use 0.01). There is no reference, and the model is no policy: it has a
    head for rewards and none for words.

    Raises:
        ValueError: there is a margin, and no scores in the data to make it of.

    >>> import torch
    >>> scores = Scores(torch.tensor([3.0, 2.0]), None, torch.ones(2))
    >>> reward(scores, Comparisons.of([(0, 1)]))   # log(1 + e^−1)
    tensor([0.3133])
    >>> reward(scores, Comparisons.of([(0, 1)]), centring=0.01)   # + 0.01·5²
    tensor([0.5633])
    """
    first, second = comparisons.preferred, comparisons.dispreferred
    rewards = scores.policy
    ahead = rewards[first] - rewards[second]
    if margin > 0:
        if scores.rewards is None:
            raise ValueError("a margin needs a score of every completion and none were given")
        ahead = ahead - margin * (scores.rewards[first] - scores.rewards[second])
    centre = (rewards[first] + rewards[second]) ** 2
    return cross_entropy(ahead, comparisons.probability) + centring * centre


def reward_itself(scores: Scores) -> Tensor:
    """r, (B,)."""
    return scores.policy
