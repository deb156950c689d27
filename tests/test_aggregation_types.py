"""Types of annotators, and whether a pair near one half is a tie or a conflict."""

from __future__ import annotations

import random

import numpy as np
import pytest

from prefopt.data.aggregation.reading import votes_of_groups
from prefopt.data.aggregation.table import Votes
from prefopt.data.aggregation.types import described, fit_types, pair_verdicts
from prefopt.errors import DataError
from prefopt.records import Completion, Group, Vote


def two_groups(
    annotators: int, each: int, pairs: int = 60, faithful: float = 0.9, seed: int = 0
) -> tuple[Votes, np.ndarray]:
    """Annotators of two types with opposite tastes on every second pair, `each` votes a head."""
    rng = random.Random(seed)
    kinds = [i % 3 == 0 for i in range(annotators)]  # a third against two thirds
    cast: list[list[Vote]] = [[] for _ in range(pairs)]
    for number, kind in enumerate(kinds):
        for pair in rng.sample(range(pairs), each):
            wants = kind if pair % 2 else True
            says = wants if rng.random() < faithful else not wants
            name = f"annotator {number:03d}"
            cast[pair].append(Vote(0, 1, "first" if says else "second", name))
    sides = (Completion("a"), Completion("b"))
    return votes_of_groups(
        Group(f"question {i}", sides, votes=tuple(votes)) for i, votes in enumerate(cast) if votes
    ), np.array(kinds)


@pytest.mark.parametrize("seed", range(3))
def test_two_types_are_told_apart(seed: int) -> None:
    votes, kinds = two_groups(48, 20, pairs=40, seed=seed)
    found = fit_types(votes, 2)
    guessed = found.membership.argmax(axis=1) == 1  # the smaller one comes second
    assert (guessed == kinds).mean() > 0.95
    assert found.shares == pytest.approx([2 / 3, 1 / 3], abs=0.05)
    assert found.converged and found.supported
    assert found.membership.sum(axis=1) == pytest.approx(1)


def test_conflicts_are_told_from_ties() -> None:
    votes, _ = two_groups(90, 30)
    verdict, share = pair_verdicts(votes, fit_types(votes, 2))
    opposed = np.arange(60) % 2 == 1
    assert (verdict[opposed] == "conflict").mean() > 0.9
    assert (verdict[~opposed] == "decided").all()
    assert share.shape == (60, 2)
    assert (share[opposed][:, 0] < 0.5).mean() > 0.9 and (share[opposed][:, 1] > 0.5).mean() > 0.9


def test_one_type_that_is_split_is_not_believed() -> None:
    """Any crowd can be split in two that differ; the votes must gain by it."""
    rng = random.Random(3)
    sides = (Completion("a"), Completion("b"))
    votes = votes_of_groups(
        Group(f"q{i}", sides, votes=tuple(
            Vote(0, 1, rng.choice(("first", "second")), f"annotator {j}") for j in range(30)
        ))
        for i in range(20)
    )  # fmt: skip
    found = fit_types(votes, 2)
    assert found.likelihood > found.alone
    assert not found.supported
    document = described(votes, found)
    assert document["pairs"]["conflict"] == 0 and document["conflicts"] == []
    assert document["pairs"]["tie"] >= 17


def test_verdicts_without_types() -> None:
    def choices(first: int, second: int, ties: int = 0) -> tuple[Vote, ...]:
        words = ["first"] * first + ["second"] * second + ["tie"] * ties
        return tuple(Vote(0, 1, word) for word in words)  # type: ignore[arg-type]

    sides = (Completion("a"), Completion("b"))
    counts = ((9, 1), (5, 5), (1, 1), (0, 0, 2), (1, 0), (1, 9))
    votes = votes_of_groups(
        Group(f"q{i}", sides, votes=choices(*part)) for i, part in enumerate(counts)
    )
    verdict, share = pair_verdicts(votes)
    assert verdict.tolist() == ["decided", "tie", "open", "tie", "open", "decided"]
    assert share[:, 0] == pytest.approx([0.9, 0.5, 0.5, 0.5, 1, 0.1])


def test_one_comparison_each_is_refused() -> None:
    votes, _ = two_groups(60, 1)
    with pytest.raises(DataError, match="only one comparison") as caught:
        fit_types(votes, 2)
    assert "several pairs" in (caught.value.remedy or "")


def test_one_pair_voted_on_again_and_again_is_one_comparison() -> None:
    sides = (Completion("a"), Completion("b"))
    cast = tuple(Vote(0, 1, "first", name) for name in "abc" for _ in range(20))
    with pytest.raises(DataError, match="only one comparison"):
        fit_types(votes_of_groups([Group("q", sides, votes=cast)]), 2)


def test_names_are_needed_and_enough_of_them() -> None:
    sides = (Completion("a"), Completion("b"))

    def rows(name: str | None) -> Votes:
        return votes_of_groups(
            Group(f"q{i}", sides, votes=(Vote(0, 1, "first", name),)) for i in range(5)
        )

    with pytest.raises(DataError, match="no vote names"):
        fit_types(rows(None), 2)
    with pytest.raises(DataError, match="fewer annotators"):
        fit_types(rows("ann"), 2)


def test_the_same_seed_gives_the_same_types() -> None:
    votes, _ = two_groups(24, 20, pairs=30)
    one, other = fit_types(votes, 2, seed=1), fit_types(votes, 2, seed=1)
    assert (one.membership == other.membership).all()
