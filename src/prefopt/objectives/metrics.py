"""What a step or an evaluation reports: means over comparisons, weighted as the loss is.

Shapes: B completions, T comparisons. Log-probabilities in nats per completion, lengths in
tokens, rewards β·(log π − log π_ref), which DPO's derivation makes the implicit reward.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from prefopt.objectives.scores import Comparisons, Scores


def comparison_metrics(
    scores: Scores, comparisons: Comparisons, losses: Tensor, *, beta: float = 1.0
) -> dict[str, Tensor]:
    """One number per comparison for each metric, detached, (T,) each.

    A comparison of a completion with itself, which is how a likelihood objective such as
    `sft` says "this one", has a loss and a length and nothing else.

    >>> policy, reference = torch.tensor([-10.0, -14.0]), torch.tensor([-12.0, -11.0])
    >>> scores = Scores(policy, reference, lengths=torch.tensor([5, 6]))
    >>> edge = Comparisons.of([(0, 1)])
    >>> metrics = comparison_metrics(scores, edge, torch.zeros(1), beta=0.1)
    >>> metrics["margin"], metrics["accuracy"]        # 0.1 · (2 − (−3))
    (tensor([0.5000]), tensor([1.]))
    """
    first, second = comparisons.preferred, comparisons.dispreferred
    columns = {"loss": losses, "length_preferred": scores.lengths[first]}
    if not torch.equal(first, second):
        columns |= {
            "length_dispreferred": scores.lengths[second],
            "logp_preferred": scores.policy[first],
            "logp_dispreferred": scores.policy[second],
        }
        if scores.reference is not None:
            rewards = beta * scores.log_ratios
            margin = rewards[first] - rewards[second]
            columns |= {
                "reward_preferred": rewards[first],
                "reward_dispreferred": rewards[second],
                "margin": margin,
                "accuracy": agreement(margin, comparisons.probability),
            }
    return {name: column.detach() for name, column in columns.items()}


def agreement(margin: Tensor, probability: Tensor) -> Tensor:
    """Whether a margin points the way the label does, (T,): 1, 0, or ½ where either is a tie.

    >>> agreement(torch.tensor([2., -1., 0., 3.]), torch.tensor([1., 0.2, 0.9, 0.5]))
    tensor([1.0000, 1.0000, 0.5000, 0.5000])
    """
    return (1 + torch.sign(margin) * torch.sign(probability - 0.5)) / 2


class Tally:
    """Collects the comparisons of a step's micro-batches; `means` is what they come to.

    Nothing leaves the device before `means` is asked for, so collecting never waits for it.

    Args:
        beta: scale of the rewards.
    """

    def __init__(self, beta: float = 1.0) -> None:
        self.beta = beta
        self._columns: list[dict[str, Tensor]] = []
        self._sources: list[str | None] = []

    def add(
        self,
        scores: Scores,
        comparisons: Comparisons,
        losses: Tensor,
        sources: Sequence[str | None],
    ) -> None:
        """Add T comparisons; `sources` (T,) names the data source of each."""
        columns = comparison_metrics(scores, comparisons, losses, beta=self.beta)
        self._columns.append({**columns, "weight": comparisons.weight})
        self._sources += sources

    def means(self) -> dict[str, Any]:
        """Weighted mean of each metric, the number of comparisons, and the same by source.

        A named source is told even where it is the only one: the next step may have another.
        A metric that only some micro-batches have is left out: it would be a mean of part.
        """
        names = set(self._columns[0]).intersection(*self._columns)
        table = {
            name: torch.cat([columns[name].double() for columns in self._columns]).cpu()
            for name in self._columns[0]
            if name in names
        }
        result: dict[str, Any] = _weighted_means(table)
        if set(self._sources) != {None}:
            result["sources"] = {
                str(source): self._of_source(table, source)
                for source in dict.fromkeys(self._sources)
            }
        return result

    def _of_source(self, table: Mapping[str, Tensor], source: str | None) -> dict[str, Any]:
        chosen = torch.tensor([name == source for name in self._sources])
        means = _weighted_means({name: column[chosen] for name, column in table.items()})
        kept = ("loss", "accuracy", "margin", "comparisons")
        return {name: means[name] for name in kept if name in means}


def _weighted_means(table: Mapping[str, Tensor]) -> dict[str, Any]:
    weight = table["weight"]
    means: dict[str, Any] = {
        name: float((column * weight).sum() / weight.sum())
        for name, column in table.items()
        if name != "weight"
    }
    means["comparisons"] = len(weight)
    return means
