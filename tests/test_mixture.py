"""The order of an epoch: seeded, complete, and made of the shares asked for."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefopt.data.mixture import epoch_order
from prefopt.errors import RecipeError


def test_without_shares_an_epoch_is_a_permutation_that_depends_on_seed_and_epoch() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        return epoch_order(["a"] * 50, [1] * 50, None, seed=seed, epoch=epoch).tolist()

    assert sorted(order(0, 0)) == list(range(50))
    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9


def test_one_source_with_a_share_is_a_permutation_too() -> None:
    order = epoch_order(["a"] * 20, [3] * 20, {"a": 2.0}, seed=1, epoch=4)
    assert sorted(order.tolist()) == list(range(20))


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 30), st.floats(0.05, 10.0)), min_size=1, max_size=4),
    largest=st.integers(1, 6),
    seed=st.integers(0, 2**32),
    epoch=st.integers(0, 5),
)
def test_each_source_contributes_its_share_to_within_a_group(
    sizes: list[tuple[int, float]], largest: int, seed: int, epoch: int
) -> None:
    sources = [f"s{i}" for i, (groups, _) in enumerate(sizes) for _ in range(groups)]
    counts = np.random.default_rng(seed).integers(1, largest + 1, len(sources))
    shares = {f"s{i}": share for i, (_, share) in enumerate(sizes)}
    order = epoch_order(sources, counts.tolist(), shares, seed=seed, epoch=epoch)
    got: Counter[str] = Counter()
    for index in order:
        got[sources[index]] += int(counts[index])
    for name, share in shares.items():
        expected = share / sum(shares.values()) * counts.sum()
        assert abs(got[name] - expected) <= largest


def test_no_group_is_repeated_before_the_others_were_seen() -> None:
    """Over the epochs the visits to the groups of one source differ by at most one."""
    sources, counts = ["big"] * 40 + ["small"] * 7, [1] * 40 + [2] * 7
    visits: Counter[int] = Counter()
    for epoch in range(9):
        order = epoch_order(sources, counts, {"big": 0.3, "small": 0.7}, seed=3, epoch=epoch)
        visits.update(order.tolist())
        for members in (range(40), range(40, 47)):
            seen = [visits[index] for index in members]
            assert max(seen) - min(seen) <= 1


def test_every_stretch_of_an_epoch_has_the_shares() -> None:
    sources = ["a"] * 300 + ["b"] * 100
    order = epoch_order(sources, [1] * 400, {"a": 1, "b": 1}, seed=0, epoch=0)
    for start in range(0, 400, 40):
        stretch = [sources[index] for index in order[start : start + 40]]
        assert abs(stretch.count("a") - 20) <= 1


def test_another_source_does_not_change_the_passes_of_the_first() -> None:
    alone = epoch_order(["a"] * 10, [1] * 10, {"a": 1}, seed=5, epoch=0)
    mixed = epoch_order(["a"] * 10 + ["b"] * 10, [1] * 20, {"a": 1, "b": 1}, seed=5, epoch=0)
    assert [index for index in mixed if index < 10] == alone.tolist()


@pytest.mark.parametrize(
    ("sources", "shares"),
    [
        (["a", "b"], {"a": 1.0}),
        (["a"], {"a": 1.0, "b": 1.0}),
        (["a"], {"a": 0.0}),
        (["a"], {"a": float("nan")}),
        (["a"], {"a": float("inf")}),
        ([None], {"a": 1.0}),
    ],
)
def test_shares_that_make_no_sense_are_refused(
    sources: list[str | None], shares: dict[str, float]
) -> None:
    with pytest.raises(RecipeError):
        epoch_order(sources, [1] * len(sources), shares, seed=0, epoch=0)


def test_a_source_without_comparisons_cannot_fill_a_share() -> None:
    with pytest.raises(RecipeError, match="nothing to train on"):
        epoch_order(["a", "b"], [1, 0], {"a": 1, "b": 1}, seed=0, epoch=0)
