"""In which order an epoch visits the groups: a pure function of (seed, epoch).

Without shares an epoch is a seeded permutation of all groups. With shares every source has
an endless stream of its own, one freshly shuffled pass over its groups after another, and
an epoch takes the next piece of each stream: as many comparisons as the share asks for.
Where an epoch ends within a pass, the next epoch goes on from there, so that no group is
seen a second time before the others of its source were seen once.

An epoch of a mixture has as many comparisons as the data: shares decide what they are made
of, not how many there are. The sources are spread evenly over the epoch, so that every
stretch of it, and so every batch, has about the shares asked for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from prefopt.errors import RecipeError

Indices = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Named(Sequence[str | None]):
    """(G,) names as numbers, where there are many more entries than names.

    Attributes:
        names: in the order of their first entry; every one occurs.
        codes: (G,) which of them each entry is.
    """

    names: tuple[str | None, ...]
    codes: NDArray[np.integer[Any]]

    @classmethod
    def of(cls, entries: Iterable[str | None]) -> Named:
        """From the names themselves."""
        known: dict[str | None, int] = {}
        codes = np.fromiter((known.setdefault(name, len(known)) for name in entries), np.int32)
        return cls(tuple(known), codes)

    def __len__(self) -> int:
        return len(self.codes)

    @overload
    def __getitem__(self, index: int) -> str | None: ...

    @overload
    def __getitem__(self, index: slice) -> list[str | None]: ...

    def __getitem__(self, index: int | slice) -> str | list[str | None] | None:
        if isinstance(index, slice):
            return [self.names[code] for code in self.codes[index]]
        return self.names[int(self.codes[index])]

    def __iter__(self) -> Iterator[str | None]:
        return (self.names[code] for code in self.codes)


def epoch_order(
    sources: Sequence[str | None],
    counts: Sequence[int] | NDArray[np.integer[Any]],
    shares: Mapping[str, float] | None,
    *,
    seed: int,
    epoch: int,
) -> Indices:
    """The order in which one epoch visits the groups.

    Args:
        sources: (G,) name of the source of each group.
        counts: (G,) comparisons of each group (or whatever a batch is counted in).
        shares: relative share of comparisons of every source; None for the shares that
            the data has. They need not add up to 1.
        seed: the run's seed, 0 or more.
        epoch: counted from 0.

    Returns:
        (E,) indices of groups. E = G without shares; with shares a group may occur several
        times or not at all. Each source contributes its share of the comparisons, to
        within one group.

    Raises:
        RecipeError: a share is not a positive number, names no source, or is missing.
        ValueError: `sources` and `counts` differ in length.
    """
    if len(sources) != len(counts):
        raise ValueError(f"{len(sources)} sources for {len(counts)} counts")
    if shares is None:
        return _shuffled(np.arange(len(counts)), seed, "", epoch)
    members = _members(sources)
    sizes = np.asarray(counts, dtype=np.int64)
    _check_shares(shares, members, sizes)

    share_total, comparisons = sum(shares.values()), int(sizes.sum())
    pieces, positions = [], []
    for name, groups in members.items():
        quota = shares[name] / share_total * comparisons
        piece, begins = _piece(groups, sizes, quota, name, seed, epoch)
        pieces.append(piece)
        positions.append((begins + sizes[piece] / 2) / quota)  # where in the epoch, 0 to 1
    order = np.argsort(np.concatenate(positions), kind="stable")
    return np.concatenate(pieces)[order]


def _piece(
    groups: Indices, sizes: Indices, quota: float, name: str, seed: int, epoch: int
) -> tuple[Indices, NDArray[np.float64]]:
    """The groups of one source's stream that begin within [epoch · quota, (epoch + 1) · quota).

    Returns the groups and where each begins, in comparisons from the start of the epoch.
    """
    pass_size = int(sizes[groups].sum())
    start, stop = epoch * quota, (epoch + 1) * quota
    pieces, begins = [], []
    for turn in range(int(start // pass_size), int(stop // pass_size) + 1):
        shuffled = _shuffled(groups, seed, name, turn)
        lengths = sizes[shuffled]
        begin = turn * pass_size + np.cumsum(lengths) - lengths
        inside = (begin >= start) & (begin < stop)
        pieces.append(shuffled[inside])
        begins.append(begin[inside] - start)
    return np.concatenate(pieces), np.concatenate(begins)


def _shuffled(groups: Indices, seed: int, name: str, turn: int) -> Indices:
    # the name's digest, not its position: another source in the mixture changes nothing here
    digest = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")
    return np.random.default_rng([seed, digest, turn]).permutation(groups)


def _members(sources: Sequence[str | None]) -> dict[str, Indices]:
    named = sources if isinstance(sources, Named) else Named.of(sources)
    members: dict[str, Indices] = {}
    for code, name in enumerate(named.names):
        if name is None:
            raise RecipeError(
                "shares need every source of the data to have a name",
                field="data.name",
                remedy="give each source a name, or leave out the shares",
            )
        members[name] = np.flatnonzero(named.codes == code)
    return members


def _check_shares(
    shares: Mapping[str, float], members: Mapping[str, Indices], sizes: Indices
) -> None:
    for name, share in shares.items():
        if not 0.0 < share < float("inf"):
            raise RecipeError(
                f"the share of '{name}' must be a positive number",
                field="data.share",
                value=share,
                remedy="remove the source if it should not be used",
            )
        if name not in members or not sizes[members[name]].any():
            raise RecipeError(
                f"the source '{name}' has a share and nothing to train on",
                field="data.share",
                remedy="check its path, or remove it",
            )
    for name in members:
        if name not in shares:
            raise RecipeError(
                f"the source '{name}' has no share while others have one",
                field="data.share",
                remedy="give every source a share, or none of them",
            )
