"""From scores to comparisons: no tie is broken by order, and RSO has its exact distribution."""

from __future__ import annotations

import math
from collections import Counter
from itertools import permutations
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefopt.errors import DataError, RecipeError
from prefopt.records import Completion, Group, Origin
from prefopt.sampling.rejection import accepted
from prefopt.sampling.selecting import Selection, select, select_all, select_pairs


def _group(*answers: tuple[str, float | None]) -> Group:
    return Group("prompt", tuple(Completion(text, score) for text, score in answers))


def _texts(group: Group, **how: Any) -> set[tuple[str, str]]:
    pairs = select(group, Selection(**how)).pairs
    texts = [completion.text for completion in group.completions]
    return {(texts[pair.better], texts[pair.worse]) for pair in pairs}


FOUR = _group(("c", 2.0), ("a", 4.0), ("d", 1.0), ("b", 3.5))


def test_pairs_of_four() -> None:
    assert _texts(FOUR) == {("a", "d")}
    every = {("a", "b"), ("a", "c"), ("a", "d"), ("b", "c"), ("b", "d"), ("c", "d")}
    assert _texts(FOUR, pairs="all") == every
    assert _texts(FOUR, pairs="all", margin=1.5) == every - {("a", "b"), ("c", "d")}
    assert _texts(FOUR, margin=3.0) == {("a", "d")}
    assert _texts(FOUR, margin=3.1) == set()
    assert _texts(FOUR, keep="top_k", k=2) == {("a", "b")}
    assert _texts(FOUR, keep="top_k", k=3) == {("a", "c")}
    assert _texts(FOUR, keep="rso", k=3, beta=0.0) == {("a", "c")}
    rounds = [_texts(FOUR, pairs="random", seed=seed) for seed in range(60)]
    assert {frozenset(found) for found in rounds} == {
        frozenset(two) for two in ((("a", "b"), ("c", "d")), (("a", "c"), ("b", "d")),
                                   (("a", "d"), ("b", "c")))
    }  # fmt: skip
    margins = [pair.margin for pair in select(FOUR, Selection()).pairs]
    assert margins == [3.0]


def test_ties_are_broken_by_chance_or_not_at_all() -> None:
    group = _group(("a", 1.0), ("b", 1.0), ("c", 0.0), ("d", 0.0), ("e", 0.5))
    found = Counter(next(iter(_texts(group, seed=seed))) for seed in range(400))
    assert set(found) == {("a", "c"), ("a", "d"), ("b", "c"), ("b", "d")}
    assert min(found.values()) > 60  # of 100 each: nobody stands in front
    assert _texts(group, ties="drop") == set()
    assert select(group, Selection(ties="drop")).left_out == {"tied_ends": 1}
    assert ("a", "b") not in _texts(group, pairs="all")
    assert select(group, Selection(pairs="all")).left_out == {"tied": 2}
    third = Counter(next(iter(_texts(group, keep="top_k", k=4, seed=s))) for s in range(200))
    assert {worse for _, worse in third} == {"c", "d"}
    assert select(group, Selection(keep="top_k", k=4, ties="drop")).left_out == {"tied_ends": 1}
    cut = Selection(keep="top_k", k=4, ties="drop", pairs="all")
    assert select(group, cut).left_out == {"tied_ends": 1}
    clear = Selection(keep="top_k", k=3, ties="drop", pairs="all")
    assert _texts(group, keep="top_k", k=3, ties="drop", pairs="all") == {("a", "e"), ("b", "e")}
    assert select(group, clear).left_out == {"tied": 1}


def test_chance_is_of_the_texts_as_well() -> None:
    """With one seed and one prompt not every tie goes to the same place."""
    groups = [_group((f"a{i}", 1.0), (f"b{i}", 1.0), ("c", 0.0)) for i in range(200)]
    first = sum(("a" + str(i), "c") in _texts(group) for i, group in enumerate(groups))
    assert 70 < first < 130


def test_what_is_left_out_is_counted() -> None:
    group = _group(("a", 1.0), ("a", 1.0), ("b", None), ("c", 0.9))
    selected = select(group, Selection(margin=0.5))
    assert selected.pairs == ()
    assert selected.left_out == {"unscored": 1, "duplicate": 1, "margin": 1}
    assert select(_group(("a", 1.0), ("a", 1.0)), Selection()).left_out["too_few"] == 1
    assert select(_group(("a", 1.0), ("b", 1.0)), Selection()).left_out == {"tied": 1}
    two_minds = _group(("a", 1.0), ("a", 0.0))  # one text with two scores is not better than itself
    assert select(two_minds, Selection()).left_out == {"duplicate": 1}


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
def test_scores_that_are_no_numbers_are_refused(score: float) -> None:
    answers = (Completion("a", 1.0), Completion("b", score))
    group = Group("Which?", answers, origins=(Origin("scored.jsonl", 7),))
    with pytest.raises(DataError, match="which no other can be compared with") as caught:
        select(group, Selection())
    assert (caught.value.file, caught.value.row) == ("scored.jsonl", 7)
    assert caught.value.value == "Which?"


def test_one_completion_is_no_pair() -> None:
    for how in ({}, {"pairs": "all"}, {"pairs": "random"}, {"keep": "rso", "k": 2, "beta": 1.0}):
        assert select(_group(("a", 1.0)), Selection(**how)).left_out == {"too_few": 1}  # type: ignore[arg-type]


def test_groups_get_their_comparisons() -> None:
    left_out: Counter[str] = Counter()
    groups = [FOUR, _group(("a", 1.0), ("b", 1.0))]
    (group,) = select_all(groups, Selection(), left_out)
    assert [(edge.preferred, edge.dispreferred) for edge in group.comparisons] == [(1, 2)]
    assert group.completions == FOUR.completions
    assert left_out == {"no_pair": 1, "tied": 1}


def test_rules_by_name() -> None:
    def pairs(rule: str, **options: Any) -> list[tuple[int, int]]:
        groups, _ = select_pairs([FOUR], rule=rule, **options)
        return [(edge.preferred, edge.dispreferred) for edge in groups[0].comparisons]

    assert pairs("best_worst") == [(1, 2)]
    assert len(pairs("all_pairs")) == 6
    assert sorted(pairs("top_k", k=3)) == [(1, 0), (1, 3), (3, 0)]
    assert len(pairs("rso", k=4)) == 2
    assert select_pairs([FOUR], rule="rso", k=5) == ([], {"too_few": 1, "no_pair": 1})
    with pytest.raises(RecipeError, match="no rule"):
        pairs("best")


@given(
    st.lists(
        st.tuples(st.sampled_from("abcdef"), st.sampled_from([None, 0.0, 1.0, 2.0])),
        min_size=1,
        max_size=7,
    ),
    st.sampled_from(
        [{}, {"pairs": "all"}, {"pairs": "random"}, {"keep": "top_k", "k": 3},
         {"keep": "rso", "k": 3, "beta": 0.7}, {"ties": "drop"}]
    ),
    st.randoms(),
)  # fmt: skip
def test_the_order_of_completions_changes_nothing(
    answers: list[Any], how: dict[str, Any], random: Any
) -> None:
    shuffled = list(answers)
    random.shuffle(shuffled)
    one, other = _group(*answers), _group(*shuffled)
    assert _texts(one, **how) == _texts(other, **how)
    assert select(one, Selection(**how)).left_out == select(other, Selection(**how)).left_out
    for pair in select(one, Selection(**how)).pairs:
        better, worse = one.completions[pair.better], one.completions[pair.worse]
        assert better.score is not None and worse.score is not None
        assert better.score - worse.score == pair.margin > 0


@pytest.mark.parametrize(
    ("how", "field"),
    [
        ({"k": 3}, "k"),
        ({"keep": "top_k"}, "k"),
        ({"keep": "top_k", "k": 1}, "k"),
        ({"keep": "top_k", "k": 3, "beta": 1.0}, "beta"),
        ({"keep": "rso", "k": 3}, "beta"),
        ({"keep": "rso", "k": 3, "beta": -1.0}, "beta"),
        ({"margin": -1.0}, "margin"),
        ({"margin": math.nan}, "margin"),
    ],
)
def test_settings_that_are_refused(how: dict[str, Any], field: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Selection(**how)
    assert caught.value.field == field


# -- rejection sampling --------------------------------------------------------------------


def _exactly(rewards: list[float], n: int, beta: float) -> dict[tuple[int, ...], float]:
    """Probability of every set of n, by enumeration of orders and of acceptances."""
    found: Counter[tuple[int, ...]] = Counter()

    def go_on(order: tuple[int, ...], taken: tuple[int, ...], chance: float) -> None:
        """A pass over what is left."""
        if len(taken) == n or chance == 0.0:
            found[tuple(sorted(taken))] += chance
            return
        best = max(rewards[i] for i in order)

        def step(place: int, left: tuple[int, ...], taken: tuple[int, ...], p: float) -> None:
            if place == len(order) or len(taken) == n:
                go_on(left + order[place:], taken, p)
                return
            i = order[place]
            accept = math.exp((rewards[i] - best) / beta)
            step(place + 1, left, (*taken, i), p * accept)
            if accept < 1.0:
                step(place + 1, (*left, i), taken, p * (1 - accept))

        step(0, (), taken, chance)

    for order in permutations(range(len(rewards))):
        go_on(order, (), 1 / math.factorial(len(rewards)))
    return dict(found)


@pytest.mark.parametrize(
    ("rewards", "n", "beta"),
    [([0.0, 1.0, 2.0], 1, 1.0), ([0.0, 1.0, 1.0, 3.0], 2, 1.5), ([0.0, 0.5, 2.0, 2.0], 3, 0.5)],
)
def test_rejection_sampling_has_its_exact_distribution(
    rewards: list[float], n: int, beta: float
) -> None:
    expected = _exactly(rewards, n, beta)
    assert sum(expected.values()) == pytest.approx(1.0)
    random, draws = np.random.default_rng(0), 20_000
    found = Counter(
        tuple(sorted(accepted(rewards, n, beta=beta, random=random))) for _ in range(draws)
    )
    for which, chance in expected.items():
        spread = math.sqrt(chance * (1 - chance) / draws)
        assert abs(found[which] / draws - chance) < 4 * spread + 1e-9, which


def _distance(candidates: int, n: int, draws: int) -> float:
    """Total variation between what is accepted and π·exp(r/β), for a π on six responses."""
    policy = np.array([0.3, 0.25, 0.2, 0.15, 0.07, 0.03])
    rewards, beta = np.array([0.0, 0.5, 1.0, 0.2, 1.5, 2.0]), 0.7
    target = policy * np.exp(rewards / beta)
    target /= target.sum()
    random = np.random.default_rng(1)
    found = np.zeros(6)
    for _ in range(draws):
        pool = random.choice(6, size=candidates, p=policy)
        for place in accepted(list(rewards[pool]), n, beta=beta, random=random):
            found[pool[place]] += 1
    return float(abs(found / found.sum() - target).sum() / 2)


def test_what_is_accepted_follows_the_tilted_policy_when_there_are_many() -> None:
    """As methods have it: thousandths for 64 → 8, a tenth for 8 → 4."""
    assert _distance(64, 1, 4000) < 0.03
    assert _distance(64, 8, 2000) < 0.03
    assert _distance(8, 4, 4000) > 0.08


def test_the_limits_of_beta() -> None:
    random = np.random.default_rng(0)
    rewards = [3.0, 1.0, 2.0, 0.0]
    assert all(sorted(accepted(rewards, 2, beta=0.0, random=random)) == [0, 2] for _ in range(50))
    assert all(sorted(accepted(rewards, 2, beta=1e-9, random=random)) == [0, 2] for _ in range(50))
    plain = Counter(
        i for _ in range(4000) for i in accepted(rewards, 2, beta=math.inf, random=random)
    )
    assert all(abs(count - 2000) < 160 for count in plain.values())
    tied = Counter(accepted([1.0, 1.0, 1.0], 1, beta=0.0, random=random)[0] for _ in range(3000))
    assert all(abs(tied[i] - 1000) < 130 for i in range(3))


def test_equal_candidates_are_candidates_of_their_own() -> None:
    random = np.random.default_rng(0)
    assert sorted(accepted([1.0] * 4, 4, beta=0.5, random=random)) == [0, 1, 2, 3]
    assert sorted(accepted([-1e9, 0.0], 2, beta=0.5, random=random)) == [0, 1]
    with pytest.raises(RecipeError, match="5 of 4"):
        accepted([1.0] * 4, 5, beta=0.5, random=random)
    with pytest.raises(RecipeError, match="finite"):
        accepted([math.nan, 1.0], 1, beta=0.5, random=random)
    # Sampled twice counts twice: the duplicate makes its text more likely.
    group = _group(("a", 1.0), ("a", 1.0), ("a", 1.0), ("b", 1.0), ("c", 0.0))
    kept = [_texts(group, keep="rso", k=2, beta=1.0, seed=seed) for seed in range(300)]
    assert sum(("a", "c") in found for found in kept) > 2 * sum(
        ("b", "c") in found for found in kept
    )
