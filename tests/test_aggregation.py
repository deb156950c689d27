"""The rules by which votes become comparisons."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from typing import get_args

import numpy as np
import pytest

from prefopt.data.aggregate import comparisons_from_votes
from prefopt.data.aggregation import dawid_skene
from prefopt.data.aggregation.reading import votes_of_groups
from prefopt.data.aggregation.rules import RULES, Method, aggregate, best_options, compare
from prefopt.data.aggregation.table import Votes
from prefopt.errors import DataError, RecipeError
from prefopt.records import Completion, Group, Vote

TURNED = {"first": "second", "second": "first", "tie": "tie"}
ORDERS = ("majority", "borda", "copeland", "maximin")


def table(*groups: Sequence[Vote], options: int = 2, sources: bool = False) -> Votes:
    """Votes on groups of completions 'a', 'b', …, which may be written by sources A, B, …"""
    completions = tuple(
        Completion(chr(97 + i), source=chr(65 + i) if sources else None) for i in range(options)
    )
    return votes_of_groups(
        Group(f"question {i}", completions, votes=tuple(votes)) for i, votes in enumerate(groups)
    )


def tally(first: int, second: int, ties: int = 0, pair: tuple[int, int] = (0, 1)) -> list[Vote]:
    """So many votes for either side of a pair, by nobody in particular."""
    choices = ["first"] * first + ["second"] * second + ["tie"] * ties
    return [Vote(*pair, choice) for choice in choices]  # type: ignore[arg-type]


def crowd(
    items: int, accuracies: Iterable[float], seed: int, ties: float = 0.0
) -> tuple[list[list[Vote]], np.ndarray]:
    """Everybody's vote on every pair, and which side is the better one (1 is the first)."""
    rng = random.Random(seed)
    truth = [rng.random() < 0.5 for _ in range(items)]
    rows = []
    for better in truth:
        votes = []
        for name, accuracy in enumerate(accuracies):
            says = better if rng.random() < accuracy else not better
            shown = rng.random() < 0.5
            first, second = (0, 1) if shown else (1, 0)
            choice = "tie" if rng.random() < ties else "first" if says == shown else "second"
            votes.append(Vote(first, second, choice, f"annotator {name}"))
        rows.append(votes)
    return rows, np.array(truth)


def some_votes(seed: int = 0, groups: int = 12, options: int = 4) -> list[list[Vote]]:
    """Votes of six annotators on pairs of several options, some of them ties."""
    rng = random.Random(seed)
    made = []
    for _ in range(groups):
        votes = []
        for _ in range(rng.randrange(1, 25)):
            first, second = rng.sample(range(options), 2)
            choice = rng.choices(("first", "second", "tie"), (3 + second, 3 + first, 2))[0]
            votes.append(Vote(first, second, choice, rng.choice("uvwxyz")))
        made.append(votes)
    return made


# -- values by hand ------------------------------------------------------------------------


def test_every_rule_is_in_the_table_and_says_what_it_is() -> None:
    assert tuple(RULES) == get_args(Method)
    for name, rule in RULES.items():
        assert (rule.run.__doc__ or "").startswith(f"{name}: ")
        assert aggregate(table(tally(2, 1)), name).method == name


@pytest.mark.parametrize(
    ("votes", "share"), [((1, 0), 0.75), ((3, 1), 0.7), ((1, 0, 2), 0.625), ((0, 0, 4), 0.5)]
)
def test_smoothed_is_the_share_with_half_a_vote_more_for_each(
    votes: tuple[int, ...], share: float
) -> None:
    assert aggregate(table(tally(*votes)), "smoothed").probability == pytest.approx([share])


def test_smoothed_is_what_reading_makes_of_votes() -> None:
    rows = some_votes()
    made = aggregate(table(*rows, options=4), "smoothed").probability
    expected = [
        edge.probability if edge.preferred < edge.dispreferred else 1 - edge.probability
        for votes in rows
        for edge in sorted(
            comparisons_from_votes(votes), key=lambda e: sorted((e.preferred, e.dispreferred))
        )
    ]
    assert made == pytest.approx(expected, abs=1e-12)


def test_smoothing_is_how_many_votes_are_added() -> None:
    found = aggregate(table(tally(3, 0)), "smoothed", smoothing=2.0)
    assert found.probability == pytest.approx([5 / 7])
    assert found.details == {"smoothing": 2.0}


def test_two_options_have_the_logit_of_their_share_as_score() -> None:
    found = aggregate(table(tally(3, 1)), "bradley-terry", ridge=0.0)
    assert found.scores == pytest.approx([math.log(3) / 2, -math.log(3) / 2])
    assert found.probability == pytest.approx([0.75])
    halves = aggregate(table(tally(2, 0, 2)), "bradley-terry", ridge=0.0)
    assert halves.probability == pytest.approx([0.75])  # a tie is half a win each


def test_the_ridge_balances_the_slope_of_the_likelihood() -> None:
    found = aggregate(table(tally(1, 0)), "bradley-terry", ridge=0.5)
    assert found.scores is not None
    high, low = found.scores
    assert high == pytest.approx(-low)
    # d/ds: σ(s₂ − s₁) = ridge · s₁
    assert 1 / (1 + math.exp(high - low)) == pytest.approx(0.5 * high)
    assert found.probability == pytest.approx([0.7394], abs=1e-4)


def test_bradley_terry_is_the_maximum_that_another_optimiser_finds() -> None:
    from scipy.optimize import minimize

    votes = table(some_votes(1, groups=1)[0] + tally(1, 1, pair=(0, 3)), options=4)
    items = votes.items

    def loss(scores: np.ndarray) -> float:
        margin = scores[items.low] - scores[items.high]
        wins = items.wins
        return float(
            wins[:, 0] @ np.logaddexp(0, -margin) + wins[:, 1] @ np.logaddexp(0, margin)
            + 0.15 * scores @ scores
        )  # fmt: skip

    best = minimize(loss, np.zeros(4), tol=1e-12).x
    found = aggregate(votes, "bradley-terry", ridge=0.3)
    assert found.scores == pytest.approx(best, abs=1e-5)


def test_rao_kupper_fits_one_pair_exactly() -> None:
    # 5 wins, 2 losses, 3 ties: σ(Δ − η) = 0.5 and σ(−Δ − η) = 0.2, so Δ = η = log 2
    found = aggregate(table(tally(5, 2, 3)), "rao-kupper", ridge=0.0)
    assert found.scores == pytest.approx([math.log(2) / 2, -math.log(2) / 2], abs=1e-8)
    assert found.details["tie_width"] == pytest.approx(math.log(2), abs=1e-9)
    assert found.probability == pytest.approx([0.5 + 0.3 / 2])


def test_rao_kupper_without_ties_is_bradley_terry() -> None:
    votes = table(tally(3, 1), tally(2, 5))
    plain = aggregate(votes, "bradley-terry", ridge=0.0)
    assert aggregate(votes, "rao-kupper", ridge=0.0).probability == pytest.approx(plain.probability)


def test_the_zone_of_ties_stays_finite_where_all_votes_are_ties() -> None:
    # T ties, and one tie and one decision more: 1 − e^{−η} = 2(T + 1)/(2T + 3), so η = log(2T + 3)
    found = aggregate(table(tally(0, 0, 3)), "rao-kupper", ridge=0.5)
    assert found.details["tie_width"] == pytest.approx(math.log(9), abs=1e-9)
    assert found.probability.tolist() == [0.5]


def test_questions_do_not_touch_each_other() -> None:
    """Many at once are a sparse system, one alone is a plain matrix."""
    rows = some_votes(7, groups=60)
    together = aggregate(table(*rows, options=4), "bradley-terry").scores
    alone = [aggregate(table(row, options=4), "bradley-terry").scores for row in rows]
    assert together is not None and len(together) == 240
    assert together == pytest.approx(np.concatenate(alone), abs=1e-8, nan_ok=True)  # type: ignore[arg-type]


def test_borda_copeland_and_maximin_by_hand() -> None:
    # a beats b 3:1, b beats c 4:0, c beats a 3:2
    votes = table(
        tally(3, 1, pair=(0, 1)) + tally(4, 0, pair=(1, 2)) + tally(3, 2, pair=(2, 0)), options=3
    )
    borda, copeland, maximin = (aggregate(votes, rule) for rule in ("borda", "copeland", "maximin"))
    assert borda.scores == pytest.approx([(3 / 4 + 2 / 5) / 2, (1 / 4 + 1) / 2, (0 + 3 / 5) / 2])
    assert copeland.scores == pytest.approx([0, 0, 0])
    assert maximin.scores == pytest.approx([2 / 5, 1 / 4, 0])
    assert borda.probability.tolist() == [0.0, 1.0, 1.0]  # a–b, a–c, b–c
    assert copeland.probability.tolist() == [0.5, 0.5, 0.5]
    assert maximin.probability.tolist() == [1.0, 1.0, 1.0]


def test_options_without_votes_have_no_score() -> None:
    found = aggregate(table(tally(2, 1), options=3), "bradley-terry")
    assert found.scores is not None
    assert np.isnan(found.scores).tolist() == [False, False, True]
    assert best_options(table(tally(2, 1), options=3), found).tolist() == [True, False, False]


# -- rules that differ ---------------------------------------------------------------------

GROUPS = (0.33, 0.18, 0.49)
UTILITIES = ((-1.6, -3.9, -5.2), (-3.2, 6.8, -0.1), (0.1, -1.3, 1.1))


def three_options() -> Votes:
    """1,000 votes on each pair, as three groups of people give them by their utilities."""

    def wins(i: int, j: int) -> int:
        chances = [1 / (1 + math.exp(u[j] - u[i])) for u in UTILITIES]
        return round(1000 * sum(share * p for share, p in zip(GROUPS, chances, strict=True)))

    votes = []
    for pair in ((0, 1), (0, 2), (1, 2)):
        votes += tally(wins(*pair), 1000 - wins(*pair), pair=pair)
    return table(votes, options=3)


@pytest.mark.parametrize(
    ("method", "best"),
    [("borda", "a"), ("bradley-terry", "a"), ("rao-kupper", "a"),
     ("copeland", "c"), ("maximin", "c"), ("majority", "c"), ("smoothed", "c")],
)  # fmt: skip
def test_utilitarian_borda_and_condorcet_pick_three_different_options(
    method: Method, best: str
) -> None:
    means = [sum(s * u[i] for s, u in zip(GROUPS, UTILITIES, strict=True)) for i in range(3)]
    assert int(np.argmax(means)) == 1  # the highest mean utility has b
    votes = three_options()
    found = best_options(votes, aggregate(votes, method))
    assert ["abc"[i] for i in np.flatnonzero(found)] == [best]


def test_comparing_shows_what_each_rule_says() -> None:
    votes = three_options()
    found = compare(votes, aggregate(votes, "borda"))
    assert found["rules"]["copeland"] == {"differs": 1, "ties": 0}  # a–c alone
    assert found["rules"]["bradley-terry"] == {"differs": 0, "ties": 0}
    (pair,) = found["disagreements"]
    assert (pair["question"], pair["pair"]) == ("question 0", [0, 2])
    assert pair["says"]["borda"] == 1.0 and pair["says"]["majority"] == 0.0
    (best,) = found["best"]
    assert best["best"]["borda"] == [0] and best["best"]["maximin"] == [2]
    assert (found["disagreement_count"], found["best_count"]) == (1, 1)


def test_rules_that_agree_have_no_disagreements() -> None:
    votes = table(tally(9, 1), tally(2, 8), tally(1, 1))  # a tie is no disagreement
    found = compare(votes, aggregate(votes, "smoothed"))
    assert found["disagreements"] == [] and found["best"] == []
    assert all(rule["differs"] == 0 for rule in found["rules"].values())


def test_a_cycle_has_no_best_option_and_no_scores() -> None:
    votes = table(
        [vote for pair in ((0, 1), (1, 2), (2, 0)) for vote in tally(2, 1, pair=pair)], options=3
    )
    majority = aggregate(votes, "majority")
    assert majority.probability.tolist() == [1.0, 0.0, 1.0]
    assert not best_options(votes, majority).any()
    for method in ("bradley-terry", "borda", "copeland", "maximin", "rao-kupper"):
        found = aggregate(votes, method)
        assert found.probability.tolist() == [0.5, 0.5, 0.5], method
        assert best_options(votes, found).all(), method


# -- invariances ---------------------------------------------------------------------------


@pytest.mark.parametrize("method", RULES)
def test_who_stood_first_changes_nothing(method: Method) -> None:
    rows, rng = some_votes(), random.Random(1)
    turned = [
        [Vote(v.second, v.first, TURNED[v.choice], v.annotator) if rng.random() < 0.5 else v
         for v in votes]
        for votes in rows
    ]  # fmt: skip
    before, after = (aggregate(table(*part, options=4), method) for part in (rows, turned))
    assert (before.probability == after.probability).all()


@pytest.mark.parametrize("method", RULES)
def test_turning_the_completions_round_turns_the_probabilities_round(method: Method) -> None:
    rows = some_votes()
    turned = [[Vote(3 - v.first, 3 - v.second, v.choice, v.annotator) for v in votes]
              for votes in rows]  # fmt: skip
    one, other = table(*rows, options=4), table(*turned, options=4)
    before, after = aggregate(one, method), aggregate(other, method)
    place = {
        (int(a), int(b)): p
        for a, b, p in zip(one.items.low, one.items.high, before.probability, strict=True)
    }
    mirrored = [
        place[4 * (b // 4) + 3 - b % 4, 4 * (a // 4) + 3 - a % 4]
        for a, b in zip(other.items.low, other.items.high, strict=True)
    ]
    assert 1 - after.probability == pytest.approx(mirrored, abs=1e-7)
    assert ((after.probability == 0.5) == (np.array(mirrored) == 0.5)).all()


@pytest.mark.parametrize("method", RULES)
def test_names_of_annotators_and_the_order_of_votes_change_nothing(method: Method) -> None:
    rows, rng = some_votes(), random.Random(2)
    new = dict(zip("uvwxyz", "faceqp", strict=True))
    other = [
        [Vote(v.first, v.second, v.choice, new[v.annotator or ""])
         for v in rng.sample(votes, len(votes))]
        for votes in rows
    ]  # fmt: skip
    before, after = (aggregate(table(*part, options=4), method) for part in (rows, other))
    assert after.probability == pytest.approx(before.probability, abs=1e-7)
    assert ((after.probability == 0.5) == (before.probability == 0.5)).all()
    if before.reliability is not None and after.reliability is not None:
        assert sorted(after.reliability) == pytest.approx(sorted(before.reliability), abs=1e-6)


@pytest.mark.parametrize("method", RULES)
def test_limits(method: Method) -> None:
    one = aggregate(table([Vote(0, 1, "second", "ann")]), method).probability
    assert one[0] < 0.5
    ties = aggregate(table([Vote(0, 1, "tie", name) for name in "abc"]), method).probability
    assert ties.tolist() == [0.5]
    even = aggregate(table(tally(2, 2)), method).probability
    assert even.tolist() == [0.5]
    rows = [[Vote(0, 1, "first", name) for name in "abcde"] for _ in range(10)]
    unanimous = aggregate(table(*rows), method).probability
    assert (unanimous > 0.85).all() and (unanimous <= 1).all()
    assert (one[0] == 0.0) == (method in ORDERS)


def test_without_votes_there_is_nothing_to_aggregate() -> None:
    with pytest.raises(DataError, match="no votes"):
        aggregate(table())
    one = Group("q", (Completion("a", source="A"), Completion("b", source="A")),
                votes=(Vote(0, 1, "first"),))  # fmt: skip
    with pytest.raises(DataError, match="no votes"):
        aggregate(votes_of_groups([one]), over="sources")


# -- annotators ----------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["dawid-skene", "reliability"])
@pytest.mark.parametrize("seed", range(3))
def test_an_adversary_among_five_is_seen_through(method: Method, seed: int) -> None:
    rows, truth = crowd(1000, (0.87, 0.87, 0.87, 0.87, 0.2), seed)
    votes = table(*rows)
    right = {
        name: float((((found.probability > 0.5) == truth) & (found.probability != 0.5)).mean())
        for name, found in ((name, aggregate(votes, name)) for name in (method, "majority"))
    }
    assert right[method] > 0.95 and right[method] > right["majority"] + 0.02
    found = aggregate(votes, method)
    assert found.reliability is not None
    if method == "dawid-skene":
        assert found.reliability == pytest.approx([0.87] * 4 + [0.2], abs=0.05)
    else:  # scores that are not sure take a part of the noise upon them
        assert found.reliability[:4].min() > 0.8 and found.reliability[4] < 0.25
    assert found.details["converged"] is True


def test_dawid_skene_is_calibrated_with_sparse_annotators_and_ties() -> None:
    rng = random.Random(5)
    rows, truth = crowd(2000, [0.95] * 10 + [0.55] * 10, 6, ties=0.1)
    votes = table(*(rng.sample(row, 3) for row in rows))
    found = aggregate(votes, "dawid-skene").probability
    sure = np.abs(found - 0.5) > 0.4
    expected = np.maximum(found, 1 - found)[sure].mean()
    right = ((found > 0.5) == truth)[sure].mean()
    assert sure.sum() > 200
    assert right == pytest.approx(expected, abs=0.03)
    weighed = (((found > 0.5) == truth) & (found != 0.5)).mean()
    counted = aggregate(votes, "majority").probability
    assert weighed > (((counted > 0.5) == truth) & (counted != 0.5)).mean() + 0.02


def test_leaps_end_where_plain_steps_do() -> None:
    rows, _ = crowd(300, [0.9] * 5 + [0.6] * 5, 3, ties=0.2)
    votes = table(*rows)
    known = np.tile([4.0, 1.0, 1.0], (11, 1)), np.ones((11, 2))
    model = dawid_skene._Model(votes.items, votes.voter, *known)
    begin = votes.items.counts / votes.items.total[:, None]
    fit = dawid_skene._climbed(model, begin, 1000)
    assert fit.converged and fit.rounds < 60
    truth, value, values = begin, -math.inf, []
    for _ in range(400):
        truth, value = model.expected(model.maximised(truth))
        values.append(value)
    assert (np.diff(values) > -1e-9).all()  # EM never goes down
    assert np.abs(truth - fit.truth).max() < 1e-5
    assert fit.decided.sum(axis=1) == pytest.approx(1) and fit.tied.sum(axis=1) == pytest.approx(1)


def test_annotators_with_one_vote_lean_on_the_others() -> None:
    rows, _ = crowd(200, (0.9, 0.9, 0.9), 0)
    rows[0].append(Vote(0, 1, "tie", "once"))
    votes = table(*rows)
    found = aggregate(votes, "dawid-skene").reliability
    assert found is not None
    once = found[list(votes.annotators).index("once")]
    assert once == pytest.approx(0.9, abs=0.06)


def test_votes_without_a_name_count_too() -> None:
    rows, truth = crowd(200, (0.9, 0.9, 0.9), 1)
    nameless = [[Vote(v.first, v.second, v.choice) for v in votes] for votes in rows]
    for method in ("dawid-skene", "reliability"):
        found = aggregate(table(*nameless), method)
        assert ((found.probability > 0.5) == truth).mean() > 0.95
        assert found.reliability is not None and len(found.reliability) == 0


# -- over sources, and refusals ------------------------------------------------------------


def test_sources_are_compared_over_all_prompts() -> None:
    rows = [tally(2, 1) + tally(1, 2, pair=(1, 2)), tally(1, 0) + tally(3, 1, pair=(2, 0))]
    votes = table(*rows, options=3, sources=True)
    together = aggregate(table([*rows[0], *rows[1]], options=3), "bradley-terry", ridge=0.0)
    found = aggregate(votes, "bradley-terry", over="sources")
    assert found.scores == pytest.approx(together.scores)
    assert found.details["ridge"] == 0.0
    assert found.scores is not None and found.scores.sum() == pytest.approx(0, abs=1e-9)


def test_a_source_is_not_compared_with_itself() -> None:
    completions = (Completion("a", source="A"), Completion("b", source="A"),
                   Completion("c", source="B"))  # fmt: skip
    votes = tally(5, 0) + tally(2, 1, pair=(1, 2))
    pool = votes_of_groups([Group("q", completions, votes=tuple(votes))]).over_sources()
    assert (len(pool), len(pool.items)) == (3, 1)


def test_sources_must_be_known() -> None:
    with pytest.raises(DataError, match="no source") as caught:
        aggregate(table(tally(1, 1)), over="sources")
    assert caught.value.field == "completions.source"


def test_a_likelihood_without_a_finite_maximum_is_refused() -> None:
    votes = table(tally(3, 0) + tally(1, 1, pair=(1, 2)), options=3, sources=True)
    with pytest.raises(DataError, match="A won every vote") as caught:
        aggregate(votes, "bradley-terry", over="sources")
    assert "ridge" in (caught.value.remedy or "")
    assert aggregate(votes, "bradley-terry", over="sources", ridge=0.1).probability[0] > 0.9
    lost = table(tally(0, 2) + tally(1, 1, pair=(1, 2)), options=3, sources=True)
    with pytest.raises(DataError, match="A lost every vote"):
        aggregate(lost, "bradley-terry", over="sources")
    with pytest.raises(DataError, match="all votes are ties"):
        aggregate(table(tally(0, 0, 3)), "rao-kupper", ridge=0.0)


def test_options_that_a_rule_does_not_have_are_refused() -> None:
    votes = table(tally(2, 1))
    with pytest.raises(RecipeError, match="majority has no ridge") as caught:
        aggregate(votes, "majority", ridge=1.0)
    assert "bradley-terry or reliability or rao-kupper" in (caught.value.remedy or "")
    with pytest.raises(RecipeError, match="unknown rule"):
        aggregate(votes, "plurality")  # type: ignore[arg-type]


def test_sources_have_no_true_side_of_a_pair() -> None:
    votes = table(tally(3, 1), sources=True)
    with pytest.raises(RecipeError, match="which side of a pair is the true one"):
        aggregate(votes, "dawid-skene", over="sources")
    found = compare(votes, aggregate(votes, "smoothed", over="sources"), over="sources")
    assert "true one" in found["rules"]["dawid-skene"]["refused"]


def test_a_rule_that_does_not_apply_says_so_in_a_comparison() -> None:
    votes = table(tally(3, 0), options=2, sources=True)
    found = compare(votes, aggregate(votes, "majority", over="sources"), over="sources")
    assert "no finite scores" in found["rules"]["bradley-terry"]["refused"]
    assert found["rules"]["smoothed"] == {"differs": 0, "ties": 0}
