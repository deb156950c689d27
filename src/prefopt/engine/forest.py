"""The forest: sequences that begin alike are computed once, as far as they are alike.

A micro-batch is a set of token sequences, one for each completion with its prompt. Here they
become trees of *segments* (runs of tokens), laid out one after the other in a single row,
parents before children. What is shared follows from the tokens alone: the completions of a
group share their prompt, and any prefix that happens to be equal besides. What is *scored*
is separate: every sequence says where its completion begins.

Shapes: N rows of the forest, B sequences, S scored tokens of all sequences, U distinct ones
(a scored token that two sequences share is one number).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from prefopt.engine.tokens import Ids, TokenGroup

Rows = NDArray[np.int64]

#: A prefix shorter than this is computed again rather than shared: a branch costs an
#: attention call in every layer, which is worth a few tokens.
MIN_SHARED = 4


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of tokens that are always together.

    Attributes:
        start, stop: its rows in the forest.
        depth: position of its first token in the sequences it is part of.
        path: indices of its ancestors, from the root down; itself not included.
    """

    start: int
    stop: int
    depth: int
    path: tuple[int, ...]


@dataclass(frozen=True)
class Forest:
    """B sequences as one row of N tokens.

    Attributes:
        tokens: (N,) token ids.
        positions: (N,) position of each token in its sequences.
        segments: the runs that the row is made of, in order.
        predictors: (U,) row whose output predicts each distinct scored token.
        targets: (U,) the token that is predicted.
        scored: (S,) which of the distinct tokens each scored token is.
        owners: (S,) the sequence it belongs to, ascending.
        sequences: B.
    """

    tokens: Rows
    positions: Rows
    segments: tuple[Segment, ...]
    predictors: Rows
    targets: Rows
    scored: Rows
    owners: Rows
    sequences: int

    def __len__(self) -> int:
        return len(self.tokens)

    @cached_property
    def depth(self) -> int:
        """Length of the longest sequence, in tokens."""
        return int(self.positions.max()) + 1

    @cached_property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each segment."""
        return tuple(segment.stop - segment.start for segment in self.segments)

    @cached_property
    def subtree_end(self) -> Rows:
        """(N,) first row after the subtree of each row: k is an ancestor of q, or q itself,
        exactly when k ≤ q < subtree_end[k]."""
        last = [segment.stop for segment in self.segments]
        for index in reversed(range(len(self.segments))):
            for ancestor in self.segments[index].path:
                last[ancestor] = max(last[ancestor], last[index])
        return np.repeat(np.asarray(last), self.lengths)


def build_forest(groups: Sequence[TokenGroup], *, ends: bool = False) -> Forest:
    """Lay the completions of all groups out as trees, groups and completions in order.

    Args:
        groups: of any prompts.
        ends: what is read is not what predicts each token, but the last token of each
            completion, where all of it is known: S = B, and `targets` are those tokens.
    """
    prompts = [group.prompt for group in groups for _ in group.completions]
    answers = [ids for group in groups for ids in group.completions]
    sequences = [np.concatenate(pair) for pair in zip(prompts, answers, strict=True)]
    segments, pieces, paths = _tries(sequences)

    positions = [np.arange(s.depth, s.depth + s.stop - s.start) for s in segments]
    predictors, targets, owners = [], [], []
    for index, (prompt, sequence) in enumerate(zip(prompts, sequences, strict=True)):
        rows = np.concatenate(
            [np.arange(segments[s].start, segments[s].stop) for s in paths[index]]
        )
        first = len(sequence) - 1 if ends else len(prompt)
        predictors.append(rows[first:] if ends else rows[first - 1 : -1])
        targets.append(sequence[first:])
        owners.append(np.full(len(targets[-1]), index))
    pairs = np.concatenate(predictors).astype(np.int64) << 32 | np.concatenate(targets)
    distinct, scored = np.unique(pairs, return_inverse=True)
    return Forest(
        tokens=np.concatenate(pieces).astype(np.int64),
        positions=np.concatenate(positions).astype(np.int64),
        segments=tuple(segments),
        predictors=distinct >> 32,
        targets=distinct & 0xFFFFFFFF,
        scored=scored.astype(np.int64),
        owners=np.concatenate(owners).astype(np.int64),
        sequences=len(sequences),
    )


def pack(groups: Sequence[TokenGroup], microbatch_tokens: int) -> list[list[int]]:
    """Distribute groups over micro-batches of at most `microbatch_tokens` tokens.

    A group's tokens are its prompt once and all its completions. Returns lists of positions
    in `groups`, each ascending, ordered by their first.
    """
    return first_fit([group_tokens(group) for group in groups], microbatch_tokens)


def first_fit(sizes: Sequence[int], limit: int) -> list[list[int]]:
    """Distribute things of these sizes over bins of at most `limit`.

    First fit, largest first, so that few bins are needed; what is above the limit is alone
    in its own. Returns lists of positions, each ascending, ordered by their first.

    >>> first_fit([3, 5, 2, 9], limit=8)
    [[0, 1], [2], [3]]
    """
    bins: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        for place, free in enumerate(room):
            if sizes[index] <= free:
                bins[place].append(index)
                room[place] -= sizes[index]
                break
        else:
            bins.append([index])
            room.append(limit - sizes[index])
    return sorted(sorted(members) for members in bins)


def group_tokens(group: TokenGroup) -> int:
    """Tokens that a group costs: its prompt once and all its completions."""
    return len(group.prompt) + sum(len(ids) for ids in group.completions)


def _tries(sequences: Sequence[Ids]) -> tuple[list[Segment], list[Ids], list[list[int]]]:
    """Segments in row order, their tokens, and the path of segments of each sequence.

    Sorted sequences that share a prefix are neighbours, so the trie of a range of them
    branches first at the smallest common prefix of two neighbours.
    """
    order = sorted(range(len(sequences)), key=lambda i: sequences[i].astype(">i4").tobytes())
    common = [0] + [_common_prefix(sequences[a], sequences[b]) for a, b in pairwise(order)]
    segments: list[Segment] = []
    pieces: list[Ids] = []
    paths: list[list[int]] = [[] for _ in sequences]
    row = 0
    # Depth first, children in order: (first and last sequence of the range, depth, path).
    pending: list[tuple[int, int, int, tuple[int, ...]]] = [(0, len(order), 0, ())]
    while pending:
        first, stop, depth, path = pending.pop()
        model = sequences[order[first]]
        branch = min(common[first + 1 : stop], default=len(model))
        if stop - first == 1 or branch - depth >= MIN_SHARED:
            if branch > depth:
                segments.append(Segment(row, row + branch - depth, depth, path))
                pieces.append(model[depth:branch])
                path = (*path, len(segments) - 1)
                row += branch - depth
            depth = branch
        if stop - first == 1:
            paths[order[first]] = list(path)
            continue
        cuts = [i for i in range(first + 1, stop) if common[i] == branch]
        bounds = [first, *cuts, stop]
        pending += [(low, high, depth, path) for low, high in reversed(list(pairwise(bounds)))]
    return segments, pieces, paths


def _common_prefix(a: Ids, b: Ids) -> int:
    length = min(len(a), len(b))
    different = np.flatnonzero(a[:length] != b[:length])
    return int(different[0]) if len(different) else length
