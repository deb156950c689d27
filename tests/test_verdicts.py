"""What judges say, and what becomes of it."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefopt.data.verdicts import OUTCOMES, choice_of, count_outcomes, outcome_of

SAID = {
    "first": (
        "[[A]]", "A is clearer.\n\nMy final verdict is: [[A]]", "[[A>>B]]", "[[A>B]]", "A>B",
        "A >> B", "B<A", "a", "A.", "**A**", "(A)", "model_a", "Model A", "Assistant A", "first",
        "1",
        '{"winner": "A"}', '```json\n{"reason": "…", "winner": "model_a"}\n```', "Winner: A",
        "I read both.\nThe better response is A", "Final verdict: **A**", "[[A]] and again [[A>B]]",
        '{"scores": {"A": 9, "B": 2}, "verdict": "A"}', "reasons and reasons\nA",
    ),
    "second": (
        "[[B]]", "[[B>>A]]", "[[B>A]]", "A<B", "A<<B", "B > A", "b", "model_b", "second", "2",
        '{"choice": "Response B"}', "verdict: B.", "1<2",
    ),
    "tie": (
        "[[C]]", "[[A=B]]", "A=B", "A == B", "A~B", "[[Tie]]", "tie", "Tie.", "tie (bothbad)",
        "tie (inconsistent)", "both_bad", "Both", "draw", "c", '{"winner": "tie"}', "Winner: tie",
    ),
    "contradictory": ("[[A]] or [[B]]", "[[A>B]] … [[C]]", '{"winner": "A", "verdict": "B"}'),
    "unreadable": (
        "I think both have merit.", "A is better than B", "error", "[[Rating: 7]]", "A>A", "[[]]",
        "{}", '{"winner": 3}', "{" * 50_000, "[[" * 50_000,
        "winner:" + " " * 100_000 + "x" * 70, "\ud800", "AB", "D", "[[D]]",
    ),
    "empty": ("", " \n\t "),
}  # fmt: skip


@pytest.mark.parametrize(
    ("text", "outcome"), [(text, outcome) for outcome, texts in SAID.items() for text in texts],
    ids=lambda value: ascii(value)[:30],
)  # fmt: skip
def test_verdicts(text: str, outcome: str) -> None:
    assert outcome_of(text) == outcome
    assert choice_of(text) == (outcome if outcome in ("first", "second", "tie") else None)


def test_what_is_not_text_is_unreadable() -> None:
    assert [outcome_of(value) for value in (None, 1, [], {"winner": "A"}, float("nan"))] == [
        "empty", "unreadable", "unreadable", "unreadable", "unreadable",
    ]  # fmt: skip


def test_outcomes_are_counted() -> None:
    counted = count_outcomes(text for texts in SAID.values() for text in texts)
    assert counted == {outcome: len(texts) for outcome, texts in SAID.items()}
    assert tuple(counted) == OUTCOMES
    assert sum(count_outcomes([]).values()) == 0


_PIECES = st.one_of(
    st.text(max_size=40),
    st.sampled_from(
        ("[[", "]]", "A", "B", "C", ">", ">>", "=", "{", "}", '"winner":', "tie", "\n")
    ),
)


@given(st.one_of(st.text(), st.lists(_PIECES, max_size=30).map("".join), st.binary(), st.floats()))
def test_anything_has_an_outcome(text: object) -> None:
    assert outcome_of(text) in OUTCOMES


_NEUTRAL = st.text(string.ascii_lowercase + " .,\n", max_size=60)


@given(_NEUTRAL, st.sampled_from(("A", "B", "C", "A>B", "B>>A", "A=B")), _NEUTRAL)
def test_what_stands_around_a_bracket_does_not_count(before: str, said: str, after: str) -> None:
    assert outcome_of(f"{before}[[{said}]]{after}") == outcome_of(f"[[{said}]]")


@pytest.mark.parametrize(
    "text", ["[[A]]", "[[A>>B]]", "[[A>B]]", "A>B", "A", '{"winner": "A"}', "Winner: A", "A<B"]
)
def test_swapping_the_names_swaps_the_choice(text: str) -> None:
    swapped = {"first": "second", "second": "first"}
    other = text.replace("A", "?").replace("B", "A").replace("?", "B")
    assert choice_of(other) == swapped[str(choice_of(text))]
