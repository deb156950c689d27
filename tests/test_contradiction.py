"""What cannot all be right: pairs both ways, cycles against a formula, and who disagrees."""

from __future__ import annotations

import itertools
import math
import time
from typing import Any

import numpy as np
import pytest
from scipy.stats import beta

from prefopt.data.aggregation.agreement import alpha, alpha_interval
from prefopt.data.checking import contradiction
from prefopt.data.checking.findings import Finding
from prefopt.data.jeffreys import certain
from tests import planting
from tests.telling import Said, many, told, turned


def found(*said: Said, **options: Any) -> dict[str, Finding]:
    return {finding.kind: finding for finding in contradiction.find(told(*said)[0], **options)}


def rows(finding: Finding) -> list[int | None]:
    return [place.row for place in finding.places]


# -- both ways -----------------------------------------------------------------------------


def test_the_same_pair_both_ways_is_named_from_the_second_on() -> None:
    good = Said("why?", "good", "bad")
    finding = found(good, Said("why?", "bad", "good"), good, Said("how?", "bad", "good"))
    assert set(finding) == {"contradiction"}
    assert rows(finding["contradiction"]) == [2, 3] and finding["contradiction"].count == 2


@pytest.mark.parametrize(
    ("said", "contradicts"),
    [
        ([Said("q", "a", "b"), Said("q", "b", "a", tie=True)], False),
        ([Said("q", "a", "b"), Said("r", "b", "a")], False),
        ([Said("q", "a", "b", annotator="ann"), Said("q", "b", "a", annotator="bob")], True),
        ([Said("q", "a", "b", stated=True), Said("q", "b", "a", stated=True)], False),
        ([Said("q", "a", "b", stated=True, annotator="ann"),
          Said("q", "b", "a", stated=True, annotator="bob")], False),
        ([Said("q", "a", "b", stated=True, annotator="ann"),
          Said("q", "b", "a", stated=True, annotator="ann")], True),
    ],
)  # fmt: skip
def test_votes_contradict_only_votes_of_the_same_annotator(
    said: list[Said], contradicts: bool
) -> None:
    assert ("contradiction" in found(*said)) is contradicts


def test_it_is_told_who_contradicts_whom_and_how_it_was_shown() -> None:
    ann, bob = (Said("q", *pair, annotator=name) for pair, name in (("ab", "ann"), ("ba", "bob")))
    assert found(ann, bob)["contradiction"].details == {
        "comparisons": 1, "by_another_annotator": 1, "shown_the_other_way_round": 0,
    }  # fmt: skip
    first = Said("q", "a", "b", stated=True, annotator="ann")
    again = Said("q", "b", "a", stated=True, annotator="ann")
    assert found(first, again)["contradiction"].details["shown_the_other_way_round"] == 1
    same = Said("q", "b", "a", stated=True, annotator="ann", turned=True)
    assert found(first, same)["contradiction"].details["shown_the_other_way_round"] == 0


# -- cycles --------------------------------------------------------------------------------


def ring(*names: str, prompt: str = "q", times: int = 1) -> list[Said]:
    """Each is preferred to the next one, and the last one to the first."""
    return [Said(prompt, a, b) for a, b in zip(names, names[1:] + names[:1], strict=True)] * times


def test_a_cycle_of_single_judgements_does_not_survive_and_one_of_many_does() -> None:
    finding = found(*ring("a", "b", "c"), Said("r", "a", "b"))["cycle"]
    assert (finding.count, finding.details["surviving"], finding.level) == (1, 0, "note")
    assert rows(finding) == [1, 2, 3] and finding.details["prompts"] == 1
    finding = found(*ring("a", "b", "c", times=4))["cycle"]
    assert (finding.count, finding.details["surviving"], finding.level) == (1, 1, "warning")
    # one doubtful edge is enough: four of four, four of four, four of six
    doubt = [Said("q", "a", "c")] * 2
    finding = found(*ring("a", "b", "c", times=4), *doubt)["cycle"]
    assert (finding.count, finding.details["surviving"]) == (1, 0)


def test_what_is_no_cycle() -> None:
    order = [Said("q", a, b) for a, b in itertools.combinations("abcde", 2)]
    across = [Said("q", "a", "b"), Said("q", "b", "c"), Said("r", "c", "a")]
    square = ring("a", "b", "c", "d")  # a cycle, but of four
    undecided = [*ring("a", "b"), *ring("b", "c")]
    tied = [
        [*ring(*names), Said("q", names[0], names[2])] for names in ("abc", "bca", "acb", "cba")
    ]
    for said in (order, across, *tied, square, undecided, [Said("q", "a", "a")] * 3):
        assert "cycle" not in found(*said)


def test_a_probability_is_a_share_of_one_judgement() -> None:
    sure = [
        Said("q", one.better, one.worse, probability=0.9) for one in ring("a", "b", "c", times=8)
    ]
    assert found(*sure)["cycle"].details["surviving"] == 1
    # 0.6 of ten is six of ten, which excludes nothing
    unsure = [
        Said("q", one.better, one.worse, probability=0.6) for one in ring("a", "b", "c", times=10)
    ]
    assert found(*unsure)["cycle"].details["surviving"] == 0


@pytest.mark.parametrize("wins", range(0, 21, 2))
def test_an_edge_is_certain_if_its_interval_excludes_one_half(wins: int) -> None:
    trials = 20
    low, high = beta.ppf([0.025, 0.975], wins + 0.5, trials - wins + 0.5)
    ahead = max(wins, trials - wins)
    assert certain(np.array([ahead]), np.array([trials])).tolist() == [low > 0.5 or high < 0.5]


def tournament(size: int, prompt: str, rng: np.random.Generator) -> tuple[list[Said], int]:
    """Every pair once, at random, and how many three-cycles that has (Kendall, Babington Smith)."""
    wins = dict.fromkeys(range(size), 0)
    said = []
    for i, j in itertools.combinations(range(size), 2):
        better, worse = (i, j) if rng.random() < 0.5 else (j, i)
        wins[better] += 1
        said.append(Said(prompt, f"answer {better}", f"answer {worse}"))
    return said, math.comb(size, 3) - sum(math.comb(count, 2) for count in wins.values())


@pytest.mark.parametrize("paths", [1, 50, 1 << 22])
def test_three_cycles_of_tournaments_are_counted_as_the_formula_says(
    paths: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contradiction, "_PATHS", paths)
    rng = np.random.default_rng(2)
    said, expected = [], 0
    for place, size in enumerate((3, 4, 7, 12, 20, 5)):
        more, cycles = tournament(size, f"prompt {place}", rng)
        said += more
        expected += cycles
    assert expected > 100
    finding = found(*said)["cycle"]
    assert finding.count == expected and finding.details["followed"] == 1.0
    facts = told(*said)[0]
    (other,) = contradiction.find(turned(facts, rng.permutation(len(facts))))
    assert (other.count, other.details["comparisons"]) == (expected, finding.details["comparisons"])


def test_of_too_many_paths_some_are_followed_and_the_message_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said, expected = tournament(24, "q", np.random.default_rng(0))
    monkeypatch.setattr(contradiction, "_MOST_PATHS", 400)
    finding = found(*said)["cycle"]
    assert 0 < finding.count < expected and 0.05 < finding.details["followed"] < 0.5
    assert "of paths that were followed" in str(finding.message)
    assert found(*said)["cycle"] == finding


# -- annotators ----------------------------------------------------------------------------


def votes(items: int, correct: float, seed: int, *, always: bool = False) -> list[Said]:
    """Four judge every item, of which all or every other one is "good", and are right as often."""
    rng = np.random.default_rng(seed)
    said = []
    for item in range(items):
        for name in range(4):
            right = rng.random() < correct
            sides = ("good", "bad") if right == (always or bool(item % 2)) else ("bad", "good")
            said.append(Said(f"q{item}", *sides, stated=True, annotator=f"a{name}"))
    return said


def test_disagreement_is_alpha_of_the_items_that_several_judged() -> None:
    said = votes(60, 0.8, seed=1)
    alone = [Said("alone", f"good {n}", "bad", stated=True, annotator="a0") for n in range(30)]
    unnamed = [Said(f"q{n}", "bad", "good", stated=True) for n in range(60)]
    finding = found(*said, *alone, *unnamed)["disagreement"]
    items, people = np.divmod(np.arange(len(said)), 4)
    values = np.array([int(one.better == "good") for one in said])
    # which side of a pair is called the first is arbitrary: as if it was drawn
    rng = np.random.default_rng(0)
    drawn = [rng.random(60) < 0.5 for _ in range(200)]
    expected = np.mean(
        [alpha(items, people, np.where(d[items], values, 1 - values)) for d in drawn]
    )
    assert finding.value == pytest.approx(expected, abs=0.03)
    ends = alpha_interval(items, people, values, seed=0)
    assert finding.interval == pytest.approx(ends, abs=0.05)
    divided = {
        i for i in range(60) if len({v for v, at in zip(values, items, strict=True) if at == i}) > 1
    }
    assert finding.count == len(divided) and finding.details["items"] == 60
    assert rows(finding) == [n + 1 for n in range(len(said)) if n // 4 in divided][:20]
    assert finding.level == "note" and "not noise" in str(finding.message)


def test_coin_tossing_is_a_warning_and_agreement_is_nothing() -> None:
    tossed = found(*votes(200, 0.5, seed=4))["disagreement"]
    assert tossed.level == "warning" and tossed.interval is not None
    assert tossed.interval[0] < 0 < tossed.interval[1]
    alternating = [
        Said(f"q{n}", *(("a", "b") if n % 2 else ("b", "a")), stated=True, annotator=name)
        for n in range(40) for name in ("ann", "bob", "eve")
    ]  # fmt: skip
    assert found(*alternating) == {}
    assert found(*votes(9, 0.5, seed=3)) == {}  # too few to say anything


def test_chance_is_a_guess_also_where_one_text_is_always_better() -> None:
    """Four people of whom each says "good" eight times of ten agree 0.68 of the time, not 0.5."""
    said = votes(300, 0.8, seed=1, always=True)
    finding = found(*said)["disagreement"]
    assert finding.value == pytest.approx(1 - 0.32 / 0.5, abs=0.06)


def test_somebody_who_contradicts_himself_disagrees_with_nobody() -> None:
    said = [
        Said(f"q{n}", *pair, stated=True, annotator="ann")
        for n in range(20)
        for pair in ("ab", "ba")
    ]
    assert set(found(*said)) == {"contradiction"}


# -- no alarm, and large data --------------------------------------------------------------


def test_clean_data_gives_no_alarm() -> None:
    pairs = planting.clean(800, seed=13)
    assert found(*(Said(pair.prompt, pair.chosen, pair.rejected) for pair in pairs)) == {}
    assert list(contradiction.find(told()[0])) == []


def test_a_million_comparisons_take_seconds() -> None:
    facts = many(1_000_000, prompts=150_000)
    began = time.process_time()
    assert list(contradiction.find(facts)) == []  # one order explains them all
    assert time.process_time() - began < 10
    rng = np.random.default_rng(0)
    flipped = np.where(rng.random(len(facts)) < 0.1, -facts.toward, facts.toward).astype(np.int8)
    noisy = many(1_000_000, prompts=150_000, toward=flipped)
    began = time.process_time()
    kinds = {finding.kind: finding.count for finding in contradiction.find(noisy)}
    assert kinds["contradiction"] > 50_000 and kinds["cycle"] > 5_000
    assert time.process_time() - began < 15
