"""When a question needs no more answers: intervals by hand, ties and conflicts."""

from __future__ import annotations

import math

import pytest

from prefopt.data.acquisition import verdict
from prefopt.data.acquisition.stopping import Answer, divided, share_interval


def below(x: float, wins: int) -> float:
    """P(Beta(wins + ½, ½) < x) by hand: from the arcsine law, one win after the other."""
    value, a = 2 / math.pi * math.asin(math.sqrt(x)), 0.5
    for _ in range(wins):
        beta = math.gamma(a) * math.gamma(0.5) / math.gamma(a + 0.5)
        value -= x**a * (1 - x) ** 0.5 / (a * beta)
        a += 1
    return value


@pytest.mark.parametrize("wins", [0, 1, 3, 5])
def test_the_interval_is_the_one_of_jeffreys(wins: int) -> None:
    low, high = share_interval(wins, wins)
    assert below(low, wins) == pytest.approx(0.025, abs=1e-12)
    assert below(high, wins) == pytest.approx(0.975, abs=1e-12)
    other = share_interval(0, wins)
    assert (1 - other[1], 1 - other[0]) == pytest.approx((low, high), abs=1e-12)


def test_four_answers_of_one_mind_decide_and_three_do_not() -> None:
    # P(share < ½) after n wins: 0.182, 0.076, 0.033, 0.015
    assert [round(below(0.5, wins), 3) for wins in range(1, 5)] == [0.182, 0.076, 0.033, 0.015]
    for value in (1.0, 0.0):
        states = [verdict([(None, value)] * count).state for count in range(1, 7)]
        assert states == ["open", "open", "open", "decided", "decided", "decided"]
    done = verdict([(None, 0.0)] * 4)
    assert (done.share, done.answers) == (0.0, 4)
    assert done.interval[1] < 0.5


def test_near_one_half_at_the_last_answer_is_a_tie() -> None:
    even: list[Answer] = [(None, 1.0), (None, 0.0)] * 3
    assert verdict(even).state == "open"
    assert verdict(even, most=7).state == "open"
    assert verdict(even, most=6).state == "tie"
    assert verdict([(None, 1.0)] * 6, most=6).state == "decided"  # the last one may decide


def test_far_from_one_half_at_the_last_answer_is_no_tie() -> None:
    # of five: 2 or 3 are near one half, 1 or 4 neither that nor beyond doubt
    states = [verdict([(None, 1.0)] * n + [(None, 0.0)] * (5 - n), most=5).state for n in range(6)]
    assert states == ["decided", "undecided", "tie", "tie", "undecided", "decided"]
    assert verdict([(None, 1.0)] * 4 + [(None, 0.0)], most=5, band=0.3).state == "tie"


def test_an_interval_around_one_half_is_a_tie_without_a_limit() -> None:
    # the interval of n even answers is about ½ ± 0.98/√n
    assert verdict([(None, 1.0), (None, 0.0)] * 40).state == "open"  # ± 0.108
    assert verdict([(None, 1.0), (None, 0.0)] * 55).state == "tie"  # ± 0.093
    assert verdict([(None, 1.0), (None, 0.0)] * 40, band=0.15).state == "tie"


def test_ties_that_were_said_count_half() -> None:
    said = verdict([("ann", 0.5)] * 4, most=4)
    assert (said.state, said.share) == ("tie", 0.5)
    assert verdict([("ann", 0.5)] * 2 + [("bob", 1.0)] * 2).share == 0.75


def of(**answers: list[float]) -> list[Answer]:
    return [(name, value) for name, values in answers.items() for value in values]


def test_two_consistent_groups_are_a_conflict_and_not_a_tie() -> None:
    split = of(ann=[1.0] * 3, bob=[0.0] * 3)
    assert divided(split)  # four later answers, and all agree: see below(½, 4)
    assert verdict(split).state == "conflict"
    assert not divided(of(ann=[1.0] * 2, bob=[0.0] * 2))  # two may be chance
    # as even, but nobody stands by what he said
    wavering = of(ann=[1.0, 0.0, 1.0], bob=[0.0, 1.0, 0.0])
    assert not divided(wavering)
    assert verdict(wavering, most=6).state == "tie"
    # four people who were asked once: nobody can know
    assert verdict(of(ann=[1.0], bob=[0.0], eve=[1.0], joe=[0.0]), most=4).state == "tie"


def test_groups_that_are_large_enough_decide_all_the_same() -> None:
    assert verdict(of(ann=[1.0] * 9, bob=[0.0] * 2)).state == "decided"


def test_annotators_who_mostly_say_tie_are_not_in_conflict() -> None:
    mostly = of(ann=[0.5] * 5, eve=[0.5] * 5, bob=[0.0] * 2, joe=[1.0] * 2)
    assert not divided(mostly)
    assert verdict(mostly, most=14).state == "tie"


def test_one_side_alone_is_no_conflict() -> None:
    assert not divided(of(ann=[1.0] * 9))
    assert not divided(of(ann=[1.0] * 9, bob=[0.0]))  # would he say so again?
    assert not divided(of(ann=[1.0] * 4, bob=[1.0, 0.0, 0.0, 0.0]))


def test_no_answer_has_no_verdict() -> None:
    with pytest.raises(ValueError, match="at least one answer"):
        verdict([])
