"""What is the same or nearly the same: by hand, against every pair of texts, and in large data."""

from __future__ import annotations

import itertools
import random
import time
import tracemalloc
from typing import Any

import numpy as np
import pytest

from prefopt.data.checking import repetition, similarity
from prefopt.data.checking.facts import Facts, Texts
from prefopt.data.checking.findings import Finding
from prefopt.data.checking.grouping import by_prompt, firsts, numbered
from prefopt.data.checking.similarity import Index, Near, Shingler, components, jaccard
from tests import planting
from tests.telling import Said, many, told, turned

NOTHING = Texts((), whole=True)


def found(*said: Said) -> dict[str, Finding]:
    return {finding.kind: finding for finding in repetition.find(*told(*said))}


def rows(finding: Finding) -> list[tuple[str | None, int | None]]:
    return [(place.file, place.row) for place in finding.places]


# -- exactly the same ----------------------------------------------------------------------

PAIR = Said("why?", "because of the rain", "no")


def test_a_comparison_that_occurs_again_is_named_where_it_does() -> None:
    other = Said("why?", "a third answer", "no")
    finding = found(PAIR, other, PAIR, Said("where?", PAIR.better, PAIR.worse), PAIR)[
        "duplicate_pair"
    ]
    assert finding.count == 2 and rows(finding) == [("a.jsonl", 3), ("a.jsonl", 5)]
    assert finding.details["comparisons"] == 2 and finding.details["across_files"] == 0


def test_repetitions_are_told_by_file() -> None:
    there = Said(PAIR.prompt, PAIR.better, PAIR.worse, file=1)
    finding = found(PAIR, PAIR, there, there)["duplicate_pair"]
    assert (finding.count, finding.details["within_files"], finding.details["across_files"]) == (
        3,
        1,
        2,
    )
    assert finding.details["files"] == [
        {"first_in": "a.jsonl", "again_in": "b.jsonl", "comparisons": 2}
    ]
    assert rows(finding) == [("a.jsonl", 2), ("b.jsonl", 3), ("b.jsonl", 4)]


def test_a_row_that_repeats_itself_is_one_row() -> None:
    finding = found(*[Said("why?", "a", "b", row=1)] * 3)["duplicate_pair"]
    assert (finding.count, finding.details["comparisons"], rows(finding)) == (
        1,
        2,
        [("a.jsonl", 1)],
    )


@pytest.mark.parametrize(
    ("again", "same"),
    [
        (Said("why?", "no", "because of the rain"), False),  # the other way round
        (Said("why?", "because of the rain", "no", tie=True), False),
        (Said("why?", "because of the rain", "no", annotator="eve"), False),
        (Said("why?", "because of the rain", "no", probability=0.75), True),
        (Said("why?", "because of the rain", "no", turned=True), True),  # sides have no order
    ],
)
def test_what_is_a_repetition(again: Said, same: bool) -> None:
    assert ("duplicate_pair" in found(PAIR, again)) is same


def vote(annotator: str, **more: Any) -> Said:
    return Said("why?", "yes", "no", stated=True, annotator=annotator, **more)


@pytest.mark.parametrize(
    ("votes", "repeated"),
    [
        ((vote("ann"), vote("bob")), False),
        ((vote(""), vote("")), False),  # nobody knows whether these are two people
        ((vote("ann"), vote("ann")), True),
        ((vote("ann"), vote("ann", turned=True)), False),  # asked both ways round
        ((vote("ann", tie=True), vote("ann", tie=True)), True),
    ],
)
def test_votes_are_repeated_only_by_who_gave_them(votes: tuple[Said, ...], repeated: bool) -> None:
    assert ("duplicate_pair" in found(*votes)) is repeated


def test_identical_sides_are_no_repetition() -> None:
    assert found(*[Said("why?", "a", "a")] * 3) == {}


def test_the_number_of_repetitions_does_not_depend_on_the_order_of_rows() -> None:
    facts = many(3000, prompts=700, seed=3)
    order = np.random.default_rng(1).permutation(len(facts))
    counts = [
        {f.kind: f.count for f in repetition.find(part, NOTHING)}
        for part in (facts, turned(facts, order))
    ]
    assert counts[0] == counts[1] and counts[0]["duplicate_pair"] > 100


def test_prompts_that_have_much_of_the_data_are_noted() -> None:
    said = [Said(f"question {n}", f"yes {n}", "no") for n in range(150)]
    assert found(*said) == {}
    busy = [Said("question 7", f"yes {n}", f"no {n}") for n in range(60)]
    finding = found(*said, *busy)["crowded_prompt"]
    # two of 150 prompts: 61 comparisons and 1, of 210
    assert finding.value == pytest.approx(62 / 210)
    assert finding.details["most_comparisons"] == 61 and finding.details["prompts"] == 150
    assert rows(finding) == [("a.jsonl", 8)]


def test_files_with_many_prompts_in_common_are_noted() -> None:
    said = [Said(f"question {n}", "yes", "no") for n in range(150)]
    more = [Said(f"question {n}", "well", "no", file=1) for n in range(20)]
    assert found(*said, *more)["crowded_prompt"].details["in_several_files"] == 20
    assert "crowded_prompt" not in found(*said, *more[:10])


# -- grouping ------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 7, 100, 5000])
@pytest.mark.parametrize("least", [1, 2, 3])
def test_blocks_have_whole_prompts_in_reading_order(size: int, least: int) -> None:
    prompts = np.random.default_rng(0).integers(60, size=200).astype(np.uint64)
    blocks = list(by_prompt(prompts, least=least, size=size))
    counts = np.bincount(prompts.astype(int))
    kept = np.concatenate(blocks)
    assert all(len(a) + len(b) > size for a, b in itertools.pairwise(blocks))  # none too small
    assert sorted(kept) == [n for n, prompt in enumerate(prompts) if counts[prompt] >= least]
    seen: set[int] = set()
    for block in blocks:
        inside = prompts[block]
        assert not seen & set(inside.tolist())
        seen |= set(inside.tolist())
        assert len(block) <= size or len(set(inside.tolist())) == 1
        assert all(
            a < b
            for a, b, same in zip(block, block[1:], inside[1:] == inside[:-1], strict=False)
            if same
        )


def test_no_comparisons_are_no_blocks() -> None:
    assert list(by_prompt(np.empty(0, np.uint64))) == []
    assert numbered(np.empty(0)).tolist() == [] == firsts(np.empty(0, np.int64)).tolist()
    assert list(repetition.find(*told())) == []


# -- nearly the same -----------------------------------------------------------------------


def test_shingles_are_runs_of_three_words() -> None:
    make = Shingler()
    one, other = make("The cat sat on the mat"), make("the cat, sat on the hat!")
    # four runs each, three of them the same: 3 / 5
    assert jaccard([one], np.array([0]), [other], np.array([0])).tolist() == [0.6]
    assert len(make("two words")) == len(make("")) == len(make("?!")) == 1
    assert make("3 + 4").tolist() != make("3 - 4").tolist()
    assert make("?!").tolist() != make("!?").tolist()
    assert len(make("机器学习很好")) == 4


def test_shingles_are_the_same_in_every_process() -> None:
    assert Shingler()("one").tolist() == [5943997465978393495]


def sentences(count: int, seed: int) -> list[str]:
    writer = planting.Writer(seed)
    return [writer.prompt() for _ in range(count)]


def edited(text: str, edits: int, rng: random.Random) -> str:
    parts = text.split()
    for place in rng.sample(range(len(parts)), min(edits, len(parts))):
        parts[place] = f"other{rng.randrange(1000)}"
    return " ".join(parts)


def test_minhash_finds_what_comparing_every_pair_finds() -> None:
    rng = random.Random(0)
    originals = sentences(150, seed=1)
    texts = originals + [
        edited(rng.choice(originals), rng.choice((1, 1, 2, 3)), rng) for _ in range(150)
    ]
    make = Shingler()
    sets = [make(text) for text in texts]
    near = Index(sets).near()
    exact = {
        (i, j): len(np.intersect1d(sets[i], sets[j])) / len(np.union1d(sets[i], sets[j]))
        for i in range(len(texts))
        for j in range(i + 1, len(texts))
    }
    wanted = {pair: value for pair, value in exact.items() if value >= similarity.THRESHOLD}
    got = dict(
        zip(
            zip(near.first.tolist(), near.second.tolist(), strict=True),
            near.similarity,
            strict=True,
        )
    )
    assert set(got) <= set(wanted) and len(wanted) > 50
    assert all(got[pair] == pytest.approx(wanted[pair]) for pair in got)
    assert len(got) >= 0.99 * len(wanted)


def test_two_indices_are_compared_with_each_other_alone() -> None:
    make = Shingler()
    here = [make(text) for text in ("a b c d e f", "one two three four", "a b c d e f")]
    there = [make(text) for text in ("nothing of that kind", "a b c d e f g")]
    near = Index(here).near(Index(there))
    assert sorted(zip(near.first.tolist(), near.second.tolist(), strict=True)) == [(0, 1), (2, 1)]
    assert near.similarity.tolist() == [0.8, 0.8]


def test_thousands_of_texts_from_one_template_are_one_family_and_quick() -> None:
    words = [f"{n:04d}" for n in range(3000)]
    start = "please translate the following sentence from english into french as well as you can "
    make = Shingler()
    sets = [make(start + word) for word in words]
    began = time.process_time()
    near = Index(sets).near()
    assert len(set(components(len(sets), near).tolist())) == 1
    assert time.process_time() - began < 20


def test_connected_texts_have_the_smallest_index() -> None:
    near = Near(np.array([0, 4, 2]), np.array([4, 5, 3]), np.ones(3))
    assert components(6, near).tolist() == [0, 1, 2, 2, 0, 0]


ASKED = "Write a short poem about the sea for my grandmother, who loves ships."


def test_prompts_that_differ_by_little_are_named() -> None:
    variants = [ASKED, ASKED.upper(), ASKED.replace("grandmother", "grandfather"), ASKED]
    said = [Said(text, f"answer {n}", f"reply {n}") for n, text in enumerate(variants)]
    said += [Said(text, "yes", f"no {n}") for n, text in enumerate(sentences(50, seed=2))]
    finding = found(*said)["near_duplicate_prompt"]
    # 11 runs, one word changed near the middle: 3 of them are others, 8 / 14 is too little
    assert finding.count == 1 and rows(finding) == [("a.jsonl", 2)]
    assert finding.details["examples"][0]["similarity"] == 1.0
    assert finding.details["examples"][0]["texts"] == [ASKED, ASKED.upper()]


LONG = " ".join(sentences(3, seed=9))
ANSWERS = " ".join(sentences(3, seed=10)), " ".join(sentences(3, seed=11))


@pytest.mark.parametrize(
    ("again", "near", "turned_round"),
    [
        (Said(LONG + " Please.", ANSWERS[0], f"Well: {ANSWERS[1]}"), True, 0),
        (Said(LONG, f"{ANSWERS[1]} So.", ANSWERS[0]), True, 1),
        (Said(" ".join(sentences(3, seed=12)), *ANSWERS), False, 0),  # the same answers
        (Said(LONG, ANSWERS[0], "Another one."), False, 0),
        (Said(LONG.split(".")[0], *ANSWERS), False, 0),
        (Said(LONG, *ANSWERS), False, 0),  # exactly the same is told as such
    ],
)
def test_comparisons_are_near_if_all_their_parts_are(
    again: Said, near: bool, turned_round: int
) -> None:
    finding = found(Said(LONG, *ANSWERS), again).get("near_duplicate_pair")
    assert (finding is not None) is near
    if finding:
        assert finding.count == 1 and rows(finding) == [("a.jsonl", 2)]
        assert finding.details["other_side_preferred"] == turned_round


@pytest.mark.parametrize(
    ("worse", "near"),
    [
        (LONG + "\n", True),
        (LONG.lower(), True),
        (f"{LONG} {LONG[::-1][:90]}", False),
        ("No.", False),
    ],
)
def test_sides_that_hardly_differ(worse: str, near: bool) -> None:
    finding = found(Said("why?", LONG, worse)).get("near_identical_sides")
    assert (finding is not None) is near
    if finding:
        assert finding.value == 1.0 and finding.details["word_for_word"] == 1


def test_a_sample_says_that_it_is_one() -> None:
    facts, texts = told(*[Said(ASKED + "!" * n, f"answer {n}", f"reply {n}") for n in range(9)])
    part = Texts(texts.examples[:6], whole=False)
    (finding,) = [f for f in repetition.find(facts, part) if f.kind == "near_duplicate_prompt"]
    assert finding.count == 5 and "a sample of 6 of 9" in str(finding.message)
    assert finding.details["sampled"] == 6


def test_the_same_is_found_in_any_order() -> None:
    rng = random.Random(4)
    texts = sentences(100, seed=5)
    texts += [edited(text, 1, rng) for text in texts[:40]]
    said = [Said(text, f"{text} yes", "no") for text in texts]
    for seed in (0, 1):
        rng.shuffle(said)
        finding = {f.kind: f for f in repetition.find(*told(*said), seed=seed)}
        near = finding["near_duplicate_prompt"]
        assert near.count == len(expected_again(texts))


def expected_again(texts: list[str]) -> set[int]:
    """All but the first of each family, by comparing every pair."""
    make = Shingler()
    sets = [set(make(text).tolist()) for text in texts]
    family = list(range(len(texts)))
    for i, one in enumerate(sets):
        for j in range(i):
            if len(one & sets[j]) >= similarity.THRESHOLD * len(one | sets[j]):
                old, new = sorted((family[i], family[j]))[::-1]
                family = [new if name == old else name for name in family]
    return {place for place, name in enumerate(family) if name != place}


def test_clean_data_gives_no_alarm() -> None:
    pairs = planting.clean(800, seed=13)
    assert found(*(Said(pair.prompt, pair.chosen, pair.rejected) for pair in pairs)) == {}


# -- large data ----------------------------------------------------------------------------


def test_a_million_comparisons_take_seconds_and_little_memory() -> None:
    facts = many(1_000_000, prompts=400_000)
    began = time.process_time()
    first = {finding.kind: finding.count for finding in repetition.find(facts, NOTHING)}
    assert time.process_time() - began < 10
    assert first["duplicate_pair"] > 10_000
    tracemalloc.start()
    try:
        list(repetition.find(facts, NOTHING))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 200 * len(facts)


def test_distinct_comparisons_take_less() -> None:
    size = 500_000
    facts: Facts = many(size, prompts=1, prompt=np.arange(size, dtype=np.uint64))
    tracemalloc.start()
    try:
        assert list(repetition.find(facts, NOTHING)) == []
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 60 * size
