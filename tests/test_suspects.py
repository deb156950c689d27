"""Suspect labels: planted flips come first, and where nothing can be learnt nothing is listed."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest

from prefopt.data.checking import suspects
from prefopt.data.checking.facts import Example, Facts, Texts
from tests.telling import plain

GOOD = "clear exact patient useful kind careful honest concise helpful thorough".split()
BAD = "vague rude wrong lazy hostile sloppy dull careless cold useless".split()
REST = [f"word{number}" for number in range(300)]


def sample(size: int, *, flipped: float = 0.05, signal: int = 3, seed: int = 0) -> tuple[
    Facts, Texts, set[int]
]:  # fmt: skip
    """Pairs of answers with good and bad words in them, some with the wrong label."""
    rng = random.Random(seed)

    def answer(words: list[str]) -> str:
        text = rng.choices(REST, k=rng.randint(10, 30)) + rng.choices(words, k=signal)
        rng.shuffle(text)
        return " ".join(text)

    examples, wrong = [], set()
    for index in range(size):
        sides = [answer(GOOD), answer(BAD)]
        if rng.random() < flipped:
            sides.reverse()
            wrong.add(index)
        prompt = f"prompt {index}"
        examples.append(Example(index, prompt, prompt, *sides))
    columns = plain(
        size,
        preferred_length=[len(example.preferred) for example in examples],
        dispreferred_length=[len(example.dispreferred) for example in examples],
    )
    return columns, Texts(examples, whole=True), wrong


def test_planted_flips_are_listed_first() -> None:
    columns, texts, wrong = sample(1000)
    (finding,) = suspects.find(columns, texts)
    assert finding.kind == "suspect_label" and finding.level is None
    listed = [place["row"] - 1 for place in finding.details["listed"]]
    assert len(wrong) > 30
    first = listed[: len(wrong)]
    assert len(wrong.intersection(first)) >= 0.9 * len(wrong)
    margins = [place["margin"] for place in finding.details["listed"]]
    assert margins == sorted(margins) and margins[-1] <= suspects.BEYOND
    assert finding.details["accuracy"]["value"] == pytest.approx(0.95, abs=0.03)
    assert finding.message is not None and "not known" in finding.message
    json.dumps(finding.to_dict(), allow_nan=False)


def test_lists_are_bounded_and_the_count_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    columns, texts, _ = sample(600, flipped=0.1)
    (whole,) = suspects.find(columns, texts)
    monkeypatch.setattr(suspects, "LISTED", 9)
    (part,) = suspects.find(columns, texts, most=7)
    assert part.count == whole.count > 30
    assert part.details["listed"] == whole.details["listed"][:9]
    assert [place.row for place in part.places] == sorted(
        place["row"] for place in part.details["listed"][:7]
    )


def test_nothing_is_said_where_labels_are_coins() -> None:
    said = 0
    for seed in range(12):
        columns, texts, _ = sample(150, flipped=0.5, seed=seed)
        known = suspects.margins(columns, texts, seed=seed)
        assert known is not None
        shown = suspects.figures(known)
        assert shown is not None and sum(shown["counts"]) == 150
        said += known.informative
        assert list(suspects.find(columns, texts, known=known)) == [] or known.informative
    assert said <= 2


def test_a_handful_is_not_fitted() -> None:
    columns, texts, _ = sample(99)
    assert suspects.margins(columns, texts) is None
    assert list(suspects.find(columns, texts)) == []
    assert suspects.figures(None) is None


def test_one_prompt_is_never_on_both_sides_of_a_fold() -> None:
    """Labels that only their prompt explains: other prompts say nothing about them."""
    rng = random.Random(3)
    examples = []
    for index in range(600):
        prompt = index // 6
        words = [f"a{prompt}", f"b{prompt}"]
        sides = [" ".join(rng.choices(REST, k=8) + [word] * 4) for word in words]
        examples.append(Example(index, f"p{prompt}", f"p{prompt}", *sides))
    columns = plain(600, prompt=np.arange(600) // 6 * 7919)
    known = suspects.margins(columns, Texts(examples, whole=True))
    assert known is not None and not known.informative
    apart = suspects.margins(plain(600), Texts(examples, whole=True))
    assert apart is not None and apart.accuracy.value > 0.9  # what a split of pairs would show


def test_the_order_of_rows_does_not_matter() -> None:
    columns, texts, _ = sample(300)
    order = np.random.default_rng(0).permutation(300)
    names = ("prompt", "preferred_length", "dispreferred_length")
    shuffled = plain(300, **{name: getattr(columns, name)[order] for name in names})
    moved = [texts.examples[old] for old in order]
    again = [Example(new, e.prompt, e.last, e.preferred, e.dispreferred)
             for new, e in enumerate(moved)]  # fmt: skip
    one = suspects.margins(columns, texts)
    other = suspects.margins(shuffled, Texts(again, whole=True))
    assert one is not None and other is not None
    # the optimum is the same, the path to it is not quite
    assert other.margins == pytest.approx(one.margins[order], abs=1e-2)
    assert suspects.margins(columns, texts).margins.tolist() == one.margins.tolist()  # type: ignore[union-attr]


def test_ties_and_doubtful_labels_are_not_suspect() -> None:
    columns, texts, wrong = sample(600)
    tied = plain(
        600,
        toward=[0 if index in wrong else 1 for index in range(600)],
        preferred_length=columns.preferred_length,
        dispreferred_length=columns.dispreferred_length,
    )
    known = suspects.margins(tied, texts)
    assert known is not None and not wrong & set(known.comparisons.tolist())
    unsure = plain(
        600,
        probability=[0.6 if index in wrong else 1 for index in range(600)],
        preferred_length=columns.preferred_length,
        dispreferred_length=columns.dispreferred_length,
    )
    found = list(suspects.find(unsure, texts))
    listed = {place["row"] - 1 for finding in found for place in finding.details["listed"]}
    assert not listed & wrong


def test_length_alone_is_enough_to_know_something() -> None:
    _, texts, _ = sample(300, signal=0)
    rng = np.random.default_rng(1)
    short = rng.integers(50, 200, 300)
    longer = plain(300, preferred_length=2 * short, dispreferred_length=short)
    known = suspects.margins(longer, texts)
    assert known is not None and known.accuracy.value > 0.9
    blind = suspects.margins(plain(300), texts)
    assert blind is not None and not blind.informative


def test_what_is_unsure_teaches_little() -> None:
    """Half of the labels are turned, and say that they are hardly more than coins."""
    columns, texts, wrong = sample(600, flipped=0.6)
    unsure = plain(
        600,
        probability=[0.51 if index in wrong else 1 for index in range(600)],
        preferred_length=columns.preferred_length,
        dispreferred_length=columns.dispreferred_length,
    )
    known = suspects.margins(unsure, texts)
    assert known is not None
    sure = [index not in wrong for index in known.comparisons.tolist()]
    assert (known.log_odds[sure] > 0).mean() > 0.9
