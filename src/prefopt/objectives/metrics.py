"""What a step or an evaluation reports: means over judgements, weighted as the loss is.

Shapes: B completions, T judgements, R rows of a table. Log-probabilities in nats per
completion, lengths in tokens. Rewards are the objective's own where it defines some, else
β·(log π − log π_ref), which DPO's derivation makes the implicit reward.

Every number is a mean of rows. A comparison is a row and so is a label; a ranked list is
all of its pairs, which share its weight equally, so that a list of two is a comparison.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from prefopt.objectives.objective import Head
from prefopt.objectives.scores import Comparisons, Judgements, Labels, Rankings, Scores, on_device

#: bins of the calibration error: a tenth of probability wide, from ½ to 1
BINS = 5
#: a difference of two float32 sums by this share of them is rounding
ROUNDING = 2.0**-20


@dataclass(frozen=True)
class Table:
    """Rows to be averaged.

    Attributes:
        columns: (R,) values by metric.
        counts: (R,) bool by metric, which rows have it; metrics that all rows have are not in.
        weight: (R,) of each row.
        judgement: (R,) which judgement a row belongs to.
    """

    columns: Mapping[str, Tensor]
    counts: Mapping[str, Tensor]
    weight: Tensor
    judgement: Tensor


def comparison_metrics(
    scores: Scores, comparisons: Comparisons, losses: Tensor, rewards: Tensor | None
) -> Table:
    """One row for each comparison.

    A comparison of a completion with itself, which is how a likelihood objective such as
    `sft` says "this one", has a loss and a length and nothing else.

    >>> policy, reference = torch.tensor([-10.0, -14.0]), torch.tensor([-12.0, -11.0])
    >>> scores = Scores(policy, reference, lengths=torch.tensor([5, 6]))
    >>> edge, rewards = Comparisons.of([(0, 1)]), 0.1 * scores.log_ratios
    >>> table = comparison_metrics(scores, edge, torch.zeros(1), rewards)
    >>> table.columns["margin"], table.columns["accuracy"]        # 0.1 · (2 − (−3))
    (tensor([0.5000]), tensor([1.]))
    """
    first, second = comparisons.preferred, comparisons.dispreferred
    distinct = first != second
    columns, counts = {"loss": losses}, {}
    for name, values in _of_completions(scores, rewards).items():
        for side, index in (("preferred", first), ("dispreferred", second)):
            columns[f"{name}_{side}"] = values[index]
            counts[f"{name}_{side}"] = distinct
    del counts["length_preferred"]
    if rewards is not None:
        margin = rewards[first] - rewards[second]
        columns |= {"margin": margin, "accuracy": agreement(margin, comparisons.probability)}
        columns["probability"] = comparisons.probability
        columns["confidence"], columns["outcome"] = certainty(margin, comparisons.probability)
        new = ("margin", "accuracy", "probability", "confidence", "outcome")
        counts |= dict.fromkeys(new, distinct)
    return Table(columns, counts, comparisons.weight, torch.arange(len(first)))


def label_metrics(scores: Scores, labels: Labels, losses: Tensor, rewards: Tensor | None) -> Table:
    """One row for each label, its completion under `_desirable` or under `_undesirable`.

    The accuracy asks for the sign of the reward: above zero where the completion is
    desirable, below where it is not. That is where the policy moved it from the reference,
    not on which side of an objective's own baseline (KTO's z0, BCO's δ) it lies.

    >>> scores = Scores(torch.tensor([-10.0, -14.0]), None, lengths=torch.tensor([5, 6]))
    >>> marks, rewards = Labels.of([(0, True), (1, False)]), torch.tensor([0.2, 0.3])
    >>> label_metrics(scores, marks, torch.zeros(2), rewards).columns["accuracy"]
    tensor([1., 0.])
    """
    sides = {"desirable": labels.desirable, "undesirable": ~labels.desirable}
    columns, counts = {"loss": losses}, {}
    for name, values in _of_completions(scores, rewards).items():
        for side, there in sides.items():
            columns[f"{name}_{side}"] = values[labels.completion]
            counts[f"{name}_{side}"] = there
    if rewards is not None:
        wanted = labels.desirable.to(rewards.dtype)
        columns["accuracy"] = agreement(rewards[labels.completion], wanted)
    return Table(columns, counts, labels.weight, torch.arange(len(labels)))


def ranking_metrics(
    scores: Scores, rankings: Rankings, losses: Tensor, rewards: Tensor | None
) -> Table:
    """One row for each pair of each list, the better completion preferred.

    So `accuracy` is the share of a list's pairs in the right order and `reward_preferred`
    the mean reward of the better ones of its pairs. A list of one is a completion alone.

    >>> scores = Scores(torch.tensor([-3.0, -1.0, -2.0]), None, torch.tensor([5, 6, 7]))
    >>> table = ranking_metrics(scores, Rankings.of([[0, 1, 2]]), torch.zeros(1), scores.policy)
    >>> table.columns["margin"], table.weight                     # 0 ≻ 1, 0 ≻ 2, 1 ≻ 2
    (tensor([-2., -1.,  1.]), tensor([0.3333, 0.3333, 0.3333]))
    """
    pairs: list[tuple[int, int]] = []
    lists: list[int] = []
    for index, order in enumerate(rankings.order.split(rankings.sizes.tolist())):
        places = order.tolist()
        found = [(a, b) for at, a in enumerate(places) for b in places[at + 1 :]]
        pairs += found or [(places[0], places[0])]
        lists += [index] * (len(found) or 1)
    judgement = torch.tensor(lists, dtype=torch.int64)
    share = rankings.weight / torch.bincount(judgement, minlength=len(rankings))
    comparisons = Comparisons.of(pairs, dtype=rankings.weight.dtype)
    table = comparison_metrics(scores, comparisons, losses[judgement], rewards)
    return Table(table.columns, table.counts, share[judgement], judgement)


def agreement(margin: Tensor, probability: Tensor) -> Tensor:
    """Whether a margin points the way the label does, (T,): 1, 0, or ½ where either is a tie.

    >>> agreement(torch.tensor([2., -1., 0., 3.]), torch.tensor([1., 0.2, 0.9, 0.5]))
    tensor([1.0000, 1.0000, 0.5000, 0.5000])
    """
    return (1 + torch.sign(margin) * torch.sign(probability - 0.5)) / 2


def certainty(margin: Tensor, probability: Tensor) -> tuple[Tensor, Tensor]:
    """How sure a policy is of the side it prefers, and how right the label says it is, (T,).

    σ(|margin|) in [½, 1], and p, or 1 − p where it is the other side; a margin of zero
    prefers neither and has the outcome ½. Their means are the same for a policy that knows
    what it does not know.

    >>> certainty(torch.tensor([3.0, 1 / 3]).log(), torch.ones(2))
    (tensor([0.7500, 0.7500]), tensor([1., 0.]))
    """
    return torch.sigmoid(margin.abs()), (1 + torch.sign(margin) * (2 * probability - 1)) / 2


def calibration_error(margin: Tensor, probability: Tensor, weight: Tensor) -> float:
    """Expected calibration error of σ(margin) as the probability of being preferred.

    Σ_b (w_b / w) · |mean confidence − mean outcome|, over bins b of confidence (Guo et al.,
    arXiv:1706.04599, eq. 3), every mean weighted. The side with the higher reward is the
    prediction, whose confidence and outcome `certainty` gives. The five bins, each 0.1 wide,
    are what is left of ten over [0, 1].

    Which completion is written first thus changes nothing. Bins of σ(margin) against p
    itself would not do: data mostly has the better one first, so every p is 1, and a policy
    would have to be sure of everything to be called calibrated.

    Args:
        margin: (R,) reward of the first completion minus that of the second, in nats.
        probability: (R,) that the first is really better.
        weight: (R,) 0 or more.

    >>> margin = torch.tensor([3.0, 1 / 3]).log()        # sure to 3/4, and right in one of two
    >>> round(calibration_error(margin, torch.ones(2), torch.ones(2)), 6)
    0.25
    """
    confidence, outcome = certainty(margin, probability)
    bins = ((confidence - 0.5) * 2 * BINS).long().clamp(0, BINS - 1)
    gaps = torch.zeros(BINS, dtype=margin.dtype, device=margin.device)
    gaps.index_add_(0, bins, weight * (confidence - outcome))
    return float(gaps.abs().sum() / weight.sum())


def at_rest(scores: Scores) -> Scores:
    """The scores with the reference equal to the policy where rounding is all that differs.

    A policy that has not moved has its reference's log-probabilities but for the last digits,
    which depend on how micro-batches are cut; a cache keeps those of the first that asked. The
    sign of such a difference is no opinion, and no metric may count it as one.

    >>> policy, reference = torch.tensor([-90.00001, -90.0]), torch.tensor([-90.0, -90.1])
    >>> moved = at_rest(Scores(policy, reference, lengths=torch.tensor([9, 9]))).log_ratios
    >>> [round(value, 4) for value in moved.tolist()]
    [0.0, 0.1]
    """
    if scores.reference is None:
        return scores
    still = scores.log_ratios.abs() <= ROUNDING * scores.policy.abs()
    return replace(scores, reference=torch.where(still, scores.policy, scores.reference))


class Tally:
    """Collects the judgements of a step's micro-batches; `means` is what they come to.

    Nothing leaves the device before `means` is asked for, so collecting never waits for it.

    Args:
        head: of the model that the scores are from; a reward model has no log-probabilities.
    """

    def __init__(self, head: Head = "words") -> None:
        self._head = head
        self._parts: list[tuple[Scores, Judgements, Tensor, Tensor | None]] = []
        self._sources: list[str | None] = []

    def add(
        self,
        scores: Scores,
        judgements: Judgements,
        losses: Tensor,
        sources: Sequence[str | None],
        rewards: Tensor | None,
    ) -> None:
        """Add T judgements.

        Args:
            scores: of B completions.
            judgements: T of them.
            losses: (T,) nats.
            sources: (T,) names of the data sources.
            rewards: (B,) of the completions; None where the objective has none.
        """
        kept = Scores(scores.policy, scores.reference, scores.lengths).detached()
        own = None if rewards is None else rewards.detach()
        self._parts.append((kept, judgements, losses.detach(), own))
        self._sources += sources

    def means(self) -> dict[str, Any]:
        """Weighted mean of each metric, the number of judgements, and the same by source.

        `confidence`, `outcome` and `calibration_error` are there for comparisons and
        rankings with rewards; for labels, `margin` is the mean reward of the desirable minus
        that of the undesirable. A named source is told even where it is the only one: the
        next step may have another. A metric that only some micro-batches have is left out:
        it would be a mean of part.
        """
        table = _joined([_table(*part) for part in self._parts])
        if self._head == "reward":
            kept = {n: c for n, c in table.columns.items() if not n.startswith("logp_")}
            table = replace(table, columns=kept)
        result = _means(table)
        if set(self._sources) != {None}:
            result["sources"] = {
                str(source): self._of_source(table, source)
                for source in dict.fromkeys(self._sources)
            }
        return result

    def _of_source(self, table: Table, source: str | None) -> dict[str, Any]:
        named = torch.tensor([name == source for name in self._sources])
        means = _means(_rows(table, named[table.judgement]))
        kept = ("loss", "accuracy", "margin", "comparisons")
        return {name: means[name] for name in kept if name in means}


# -- tables --------------------------------------------------------------------------------


def _of_completions(scores: Scores, rewards: Tensor | None) -> dict[str, Tensor]:
    """(B,) by the first word of a metric."""
    values = {"length": scores.lengths, "logp": scores.policy}
    if scores.reference is not None:
        values["log_ratio"] = scores.log_ratios
    if rewards is not None:
        values["reward"] = rewards
    return values


def _table(scores: Scores, judgements: Judgements, losses: Tensor, rewards: Tensor | None) -> Table:
    """The table of a micro-batch, on the CPU and in double precision."""
    scores, judgements = on_device(scores, "cpu"), on_device(judgements, "cpu")
    reference = None if scores.reference is None else scores.reference.double()
    wide = Scores(scores.policy.double(), reference, scores.lengths)
    losses, rewards = losses.cpu().double(), None if rewards is None else rewards.cpu().double()
    if isinstance(judgements, Labels):
        return label_metrics(wide, judgements, losses, rewards)
    if isinstance(judgements, Rankings):
        return ranking_metrics(wide, judgements, losses, rewards)
    return comparison_metrics(wide, judgements, losses, rewards)


def _joined(tables: Sequence[Table]) -> Table:
    columns = set(tables[0].columns).intersection(*(table.columns for table in tables))
    judgements, before = [], 0
    for table in tables:
        judgements.append(table.judgement + before)
        before += len(table.judgement.unique())
    return Table(
        {
            name: torch.cat([table.columns[name].double() for table in tables])
            for name in tables[0].columns
            if name in columns
        },
        {
            name: torch.cat([table.counts[name] for table in tables])
            for name in tables[0].counts
            if name in columns
        },
        torch.cat([table.weight.double() for table in tables]),
        torch.cat(judgements),
    )


def _rows(table: Table, chosen: Tensor) -> Table:
    return Table(
        {name: column[chosen] for name, column in table.columns.items()},
        {name: there[chosen] for name, there in table.counts.items()},
        table.weight[chosen],
        table.judgement[chosen],
    )


def _means(table: Table) -> dict[str, Any]:
    means: dict[str, Any] = {}
    everywhere = torch.ones_like(table.weight, dtype=torch.bool)
    for name, column in table.columns.items():
        there = table.counts.get(name, everywhere)
        weight = table.weight[there]
        if name == "loss" or (len(weight) and float(weight.sum()) > 0):
            means[name] = float((column[there] * weight).sum() / weight.sum())
    if means.pop("probability", None) is not None:
        there = table.counts["probability"]
        means["calibration_error"] = calibration_error(
            table.columns["margin"][there], table.columns["probability"][there], table.weight[there]
        )
    if "reward_desirable" in means and "reward_undesirable" in means:
        means["margin"] = means["reward_desirable"] - means["reward_undesirable"]
    means["comparisons"] = len(table.judgement.unique())
    return means
