"""Comparisons that cannot all be right: the same pair both ways, cycles, annotators who disagree.

Only what one voice says both ways is a contradiction: votes of different annotators are counted
as disagreement, which is no noise but often says that a prompt can be understood in several ways.
Cycles of raw majorities prove little. In one arena none of 305 three-cycles survived the
intervals of its edges, so each cycle is told here with whether it does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prefopt.data.checking.facts import Facts
from prefopt.data.checking.findings import Finding
from prefopt.data.checking.grouping import Indices, Pairs, by_prompt, numbered
from prefopt.data.checking.similarity import mixed
from prefopt.data.jeffreys import certain

FEWEST = 10  # items that two or more judged, for saying something about agreement
AGREED = 0.8  # alpha from which on annotators agree, by Krippendorff's custom
SLIGHT = 0.2  # alpha below which they hardly agree more than chance would

_PATHS = 1 << 22  # paths of two edges followed at once
_MOST_PATHS = 1 << 26  # in all; more are drawn from


def find(facts: Facts, *, seed: int = 0, most: int = 20) -> Iterator[Finding]:
    """Findings of the kinds contradiction, cycle and disagreement.

    Args:
        facts: the columns of E comparisons.
        seed: of the bootstrap, and of which paths are followed where there are too many.
        most: rows that a finding names.
    """
    yield from _both_ways(facts, most)
    yield from _cycles(facts, seed, most)
    yield from _disagreement(facts, seed, most)


# -- the same pair both ways ---------------------------------------------------------------


def _both_ways(facts: Facts, most: int) -> Iterator[Finding]:
    """Comparisons that say the opposite of an earlier one.

    A vote contradicts only votes of the same annotator. A pair of a preferred and a dispreferred
    side, which is trained on as it is, contradicts every other such pair.
    """
    later, others, shown = [], 0, 0
    for block in by_prompt(facts.prompt):
        pairs = Pairs(facts, block)
        stated = facts.stated[pairs.comparisons]
        annotator = facts.annotator[pairs.comparisons]
        told = (pairs.direction != 0) & ~(stated & (annotator == 0))
        voice = np.where(stated, annotator, 0)
        same = numbered(pairs.prompt, pairs.low, pairs.high, stated, voice)
        opposite = _opposite(same, np.where(told, pairs.direction, 0))
        against = np.flatnonzero(opposite >= 0)
        earlier = opposite[against]
        later.append(pairs.comparisons[against])
        here, there = annotator[against], annotator[earlier]
        others += int(np.count_nonzero((here != there) & (here > 0) & (there > 0)))
        first = facts.first[pairs.comparisons]
        shown += int(np.count_nonzero(stated[against] & (first[against] != first[earlier])))
    found = np.concatenate(later) if later else np.empty(0, dtype=np.int64)
    if not len(found):
        return
    message = "the same two completions are preferred both ways"
    message += f": {len(found):,} comparisons say the opposite of an earlier one"
    if others:
        message += f", {others:,} of them by another annotator, which is disagreement"
    if shown:
        message += f", {shown:,} with the two sides shown the other way round"
    yield Finding(
        "contradiction",
        count=len(np.unique(facts.row[found])),
        places=facts.places(found, most),
        message=message,
        details={
            "comparisons": len(found),
            "by_another_annotator": others,
            "shown_the_other_way_round": shown,
        },
    )


def _opposite(same: Indices, direction: NDArray[np.int8]) -> Indices:
    """(n,) the first place that says the opposite and stands before, or −1."""
    count, places = int(same.max(initial=-1)) + 1, np.arange(len(same))
    found = np.full(len(same), -1, dtype=np.int64)
    for sign in (1, -1):
        begins = np.full(count, len(same), dtype=np.int64)
        np.minimum.at(begins, same[direction == -sign], places[direction == -sign])
        earlier = begins[same]
        hit = (direction == sign) & (earlier < places)
        found[hit] = earlier[hit]
    return found


# -- cycles --------------------------------------------------------------------------------


@dataclass
class _Tally:
    """Three-cycles of all prompts, added up."""

    cycles: int = 0
    surviving: int = 0
    prompts: int = 0
    paths: int = 0  # of two edges, which there are
    followed: int = 0  # of them
    comparisons: tuple[Indices, ...] = ()


def _cycles(facts: Facts, seed: int, most: int) -> Iterator[Finding]:
    """Three completions of a prompt of which each is preferred to the next one."""
    tally = _Tally()
    rng = np.random.default_rng(seed)
    for block in by_prompt(facts.prompt, least=3):
        _of_block(facts, Pairs(facts, block), tally, rng)
    if not tally.cycles:
        return
    message = (
        f"three completions of a prompt are each preferred to the next one: {tally.cycles:,} "
        f"cycles of majorities on {tally.prompts:,} prompts, of which {tally.surviving:,} remain "
        "when an edge counts only if its 95 % interval excludes one half"
    )
    if tally.followed < tally.paths:
        share = 100 * tally.followed / tally.paths
        message += f" (of the {share:.1f} % of paths that were followed)"
    found = np.concatenate(tally.comparisons)
    yield Finding(
        "cycle",
        count=tally.cycles,
        places=facts.places(found, most),
        message=message,
        details={
            "cycles": tally.cycles,
            "surviving": tally.surviving,
            "prompts": tally.prompts,
            "comparisons": len(found),
            "followed": tally.followed / tally.paths,
        },
        level="warning" if tally.surviving else "note",
    )


@dataclass
class _Graph:
    """Majorities among the completions of many prompts: edges from the winner to the loser.

    Attributes:
        winner, loser: (G,) nodes, which are completions of prompts.
        certain: (G,) whether the interval of the winner's share excludes one half.
        edge: (n,) which edge a comparison belongs to, or −1.
        nodes: how many there are.
    """

    winner: Indices
    loser: Indices
    certain: NDArray[np.bool_]
    edge: Indices
    nodes: int


def _of_block(facts: Facts, pairs: Pairs, tally: _Tally, rng: np.random.Generator) -> None:
    graph = _majorities(facts, pairs)
    cycles = _three_cycles(graph, tally, rng)
    if not len(cycles):
        return
    tally.cycles += len(cycles)
    tally.surviving += int(np.count_nonzero(graph.certain[cycles].all(axis=1)))
    inside = np.zeros(len(graph.winner) + 1, dtype=bool)  # the last one is of comparisons without
    inside[cycles.ravel()] = True
    held = inside[graph.edge]
    tally.comparisons += (pairs.comparisons[held],)
    tally.prompts += len(np.unique(pairs.prompt[held]))


def _majorities(facts: Facts, pairs: Pairs) -> _Graph:
    pair = numbered(pairs.prompt, pairs.low, pairs.high)
    count = int(pair.max(initial=-1)) + 1
    # a probability is a share of one vote: nobody knows how many are behind it
    share = facts.probability[pairs.comparisons].astype(np.float64)
    won = np.where(pairs.direction > 0, share, np.where(pairs.direction < 0, 1 - share, 0.5))
    trials = np.bincount(pair, minlength=count).astype(np.float64)
    wins = np.bincount(pair, weights=won, minlength=count)
    size = len(pairs)
    node = numbered(
        np.concatenate([pairs.prompt, pairs.prompt]), np.concatenate([pairs.low, pairs.high])
    )
    low, high = np.zeros((2, count), dtype=np.int64)
    low[pair], high[pair] = node[:size], node[size:]
    decided = np.abs(2 * wins - trials) > 1e-6
    number = np.cumsum(decided) - 1
    ahead = (2 * wins > trials)[decided]
    low, high = low[decided], high[decided]
    return _Graph(
        winner=np.where(ahead, low, high),
        loser=np.where(ahead, high, low),
        certain=certain(np.maximum(wins, trials - wins)[decided], trials[decided]),
        edge=np.where(decided, number, -1)[pair],
        nodes=int(node.max(initial=-1)) + 1,
    )


def _three_cycles(graph: _Graph, tally: _Tally, rng: np.random.Generator) -> Indices:
    """(C, 3) edges of each cycle, once."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import connected_components

    none = np.empty((0, 3), dtype=np.int64)
    if len(graph.winner) < 3:
        return none
    links = csr_array(
        (np.ones(len(graph.winner), dtype=np.int8), (graph.winner, graph.loser)),
        shape=(graph.nodes, graph.nodes),
    )
    _, component = connected_components(links, connection="strong")
    # every cycle lies within a strongly connected component; most data has none of two nodes
    kept = np.flatnonzero(component[graph.winner] == component[graph.loser])
    if not len(kept):
        return none
    order = kept[np.lexsort((graph.loser[kept], graph.winner[kept]))]
    winner, loser = graph.winner[order], graph.loser[order]
    key = winner * graph.nodes + loser  # ascending
    begin = np.searchsorted(winner, loser, side="left")
    counts = np.searchsorted(winner, loser, side="right") - begin
    starts = np.arange(len(order))
    tally.paths += int(counts.sum())
    if counts.sum() > _MOST_PATHS:
        starts = rng.permutation(len(order))
        starts = np.sort(starts[: np.searchsorted(np.cumsum(counts[starts]), _MOST_PATHS)])
    tally.followed += int(counts[starts].sum())
    cycles = []
    pieces = np.searchsorted(np.cumsum(counts[starts]), np.arange(0, counts[starts].sum(), _PATHS))
    for part in np.split(starts, np.unique(pieces[1:])):
        first = np.repeat(part, counts[part])
        ahead = np.arange(len(first)) - np.repeat(np.cumsum(counts[part]), counts[part])
        second = begin[first] + ahead + counts[first]
        closing = loser[second] * graph.nodes + winner[first]
        third = np.minimum(np.searchsorted(key, closing), len(key) - 1)
        # of the three turns of a cycle the one that begins at its first node
        once = (winner[first] < loser[first]) & (winner[first] < loser[second])
        hit = once & (key[third] == closing)
        cycles.append(np.stack([first[hit], second[hit], third[hit]], axis=1))
    return order[np.concatenate(cycles)] if cycles else none


# -- several annotators --------------------------------------------------------------------


def _disagreement(facts: Facts, seed: int, most: int) -> Iterator[Finding]:
    """Krippendorff's alpha of what named annotators said of the same pairs.

    The sides of a pair have no order. Which of them is called the first is a coin toss for each
    pair, the same in every run, so that agreement by chance is what guessing the better side would
    give. `prefopt aggregate` calls sides by the order of the row; its alpha can differ a little.
    """
    judged = _judged_twice(facts)
    items = len(np.unique(judged.item))
    if items < FEWEST:
        return
    from prefopt.data.aggregation.agreement import alpha, alpha_interval

    coded = (judged.item, judged.annotator, judged.value)
    value, (low, high) = alpha(*coded), alpha_interval(*coded, seed=seed)
    if math.isnan(value) or not low < AGREED:
        return
    divided = _divided(judged)
    annotators = len(np.unique(judged.annotator))
    yield Finding(
        "disagreement",
        count=int(divided.sum()),
        places=facts.places(judged.comparison[divided[judged.item]], most),
        value=value,
        interval=(low, high),
        message=(
            f"{annotators:,} annotators disagree on {int(divided.sum()):,} of the {items:,} pairs "
            f"that two or more of them judged (Krippendorff's alpha {value:.2f}, 95 % interval "
            f"{low:.2f} to {high:.2f}; 1 is agreement, 0 is chance). Disagreement is not noise: "
            "often the prompt leaves open what is better"
        ),
        details={
            "alpha": value, "items": items, "divided": int(divided.sum()),
            "annotators": annotators, "judgements": len(judged.item),
        },
        level="warning" if high < SLIGHT else "note",
    )  # fmt: skip


@dataclass
class _Judged:
    """Judgements by named annotators of items that two or more of them judged.

    Attributes:
        comparison: (J,) indices into `Facts`.
        item: (J,) which pair, from 0 without gaps.
        annotator: (J,) codes.
        value: (J,) 0, 1 or 2: one text, a tie, the other text; which is which is tossed for a pair.
    """

    comparison: Indices
    item: Indices
    annotator: Indices
    value: Indices


def _judged_twice(facts: Facts) -> _Judged:
    parts: list[tuple[Indices, ...]] = []
    seen = 0
    named = np.flatnonzero(facts.annotator > 0)
    for block in by_prompt(facts.prompt[named]):
        pairs = Pairs(facts, named[block])
        annotator = facts.annotator[pairs.comparisons].astype(np.int64)
        item = numbered(pairs.prompt, pairs.low, pairs.high)
        lowest = np.full(int(item.max(initial=-1)) + 1, np.iinfo(np.int64).max)
        highest = np.zeros_like(lowest)
        np.minimum.at(lowest, item, annotator)
        np.maximum.at(highest, item, annotator)
        kept = (lowest < highest)[item]
        if not kept.any():
            continue
        item = seen + numbered(item[kept])
        seen = int(item.max()) + 1
        coin = mixed(mixed(pairs.prompt + pairs.low) + pairs.high) & np.uint64(1)
        value = np.where(coin == 0, pairs.direction, -pairs.direction)[kept].astype(np.int64) + 1
        parts.append((pairs.comparisons[kept], item, annotator[kept], value))
    if not parts:
        return _Judged(*(np.empty(0, dtype=np.int64) for _ in range(4)))
    return _Judged(*map(np.concatenate, zip(*parts, strict=True)))


def _divided(judged: _Judged) -> NDArray[np.bool_]:
    """(items,) whether not all judgements of an item are the same."""
    size = int(judged.item.max()) + 1
    lowest, highest = np.full(size, 2, dtype=np.int64), np.zeros(size, dtype=np.int64)
    np.minimum.at(lowest, judged.item, judged.value)
    np.maximum.at(highest, judged.item, judged.value)
    return lowest < highest
