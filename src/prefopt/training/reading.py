"""What an objective reads of a group, and how many losses that makes.

An objective reads comparisons, preferred completions, labels or rankings. A group that has
the wrong kind is turned into the right one where that loses nothing: a comparison says which
completion is desirable and which is not, and comparisons that leave only one order are a
ranking.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from prefopt.engine.tokens import TokenGroup, restrict
from prefopt.objectives.objective import Reads
from prefopt.records import Comparison, Label


def as_read(group: TokenGroup, reads: Reads) -> TokenGroup | None:
    """The part of a group that is read; None if there is nothing in it to read.

    Completions that no judgement points to are left out, and so are judgements of weight
    zero. The side of a comparison that is more probably better becomes the preferred one.
    """
    return _READERS[reads](group)


def judgements_in(group: TokenGroup, reads: Reads) -> int:
    """How many losses a group gives, once it is `as_read`."""
    if reads == "rankings":
        return 1
    return len(group.labels if reads == "labels" else group.comparisons)


def weights_in(group: TokenGroup, reads: Reads) -> list[float]:
    """The weight of each of them."""
    if reads == "rankings":
        edges = group.comparisons
        return [sum(edge.weight for edge in edges) / len(edges)]
    if reads == "labels":
        return [label.weight for label in group.labels]
    return [edge.weight for edge in group.comparisons]


def _comparisons(group: TokenGroup) -> TokenGroup | None:
    edges = tuple(_oriented(edge) for edge in group.comparisons if edge.weight > 0)
    used = sorted({index for edge in edges for index in (edge.preferred, edge.dispreferred)})
    if len(used) == len(group.completions) and edges == group.comparisons and not group.labels:
        return group
    return restrict(replace(group, comparisons=edges, labels=()), used)


def _preferred_only(group: TokenGroup) -> TokenGroup | None:
    """The preferred or desirable completions, all if nothing is said about any of them.

    Each becomes a comparison with itself: one loss for one completion. It weighs as much as
    the heaviest comparison or label that speaks for it.
    """
    weights: dict[int, float] = {}
    for edge in map(_oriented, group.comparisons):
        weights[edge.preferred] = max(edge.weight, weights.get(edge.preferred, 0.0))
    for label in group.labels:
        if label.desirable:
            weights[label.completion] = max(label.weight, weights.get(label.completion, 0.0))
    if not group.comparisons and not group.labels:
        weights = dict.fromkeys(range(len(group.completions)), 1.0)
    kept = sorted(index for index, weight in weights.items() if weight > 0)
    part = restrict(group, kept)
    if part is None:
        return None
    edges = (Comparison(new, new, weight=weights[old]) for new, old in enumerate(kept))
    return replace(part, comparisons=tuple(edges), labels=())


def _labels(group: TokenGroup) -> TokenGroup | None:
    """Its labels or, if it has none, what its comparisons say of each completion.

    A comparison of weight w and probability p marks the preferred completion as desirable
    with weight w·p and as undesirable with w·(1 − p), the other one the other way round.
    Marks of one kind on one completion are added up, which gives the same gradient as
    keeping them apart.
    """
    weights: dict[tuple[int, bool], float] = {}
    for label in group.labels:
        key = label.completion, label.desirable
        weights[key] = weights.get(key, 0.0) + label.weight
    for edge in group.comparisons if not group.labels else ():
        for side, desirable in ((edge.preferred, True), (edge.dispreferred, False)):
            for mark, share in (
                (desirable, edge.probability),
                (not desirable, 1 - edge.probability),
            ):
                weights[side, mark] = weights.get((side, mark), 0.0) + edge.weight * share
    marks = tuple(Label(index, mark, weight) for (index, mark), weight in sorted(weights.items())
                  if weight > 0)  # fmt: skip
    used = sorted({label.completion for label in marks})
    return restrict(replace(group, comparisons=(), labels=marks), used)


def _ranking(group: TokenGroup) -> TokenGroup | None:
    """The completions from best to worst, if the comparisons leave no other order.

    That is so when each is preferred to the next one in some comparison and no comparison
    points backward. The comparisons between neighbours stay, for their weights.
    """
    edges = [_oriented(edge) for edge in group.comparisons if edge.weight > 0]
    if any(edge.probability == 0.5 for edge in edges):
        return None  # a tie is not an order
    better = {(edge.preferred, edge.dispreferred) for edge in edges}
    left = {index for pair in better for index in pair}
    order: list[int] = []
    while left:
        losers = {worse for winner, worse in better if winner in left}
        best = left - losers
        if len(best) != 1:
            return None  # a cycle, or two that nothing tells apart
        order += best
        left -= best
    part = restrict(replace(group, comparisons=tuple(edges), labels=()), order)
    if part is None:
        return None
    steps = tuple(edge for edge in part.comparisons if edge.dispreferred == edge.preferred + 1)
    return replace(part, comparisons=steps)


def _oriented(edge: Comparison) -> Comparison:
    if edge.probability >= 0.5:
        return edge
    return Comparison(edge.dispreferred, edge.preferred, 1 - edge.probability, edge.weight)


_READERS: Mapping[Reads, Callable[[TokenGroup], TokenGroup | None]] = {
    "comparisons": _comparisons,
    "preferred": _preferred_only,
    "labels": _labels,
    "rankings": _ranking,
}
