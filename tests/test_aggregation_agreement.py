"""Agreement between those who judged, on paper and on MT-Bench."""

from __future__ import annotations

import math
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from prefopt.data.aggregation.agreement import (
    Agreement,
    Judgements,
    agreement_table,
    alpha,
    alpha_interval,
    between,
    within,
)
from prefopt.data.aggregation.annotators import annotator_table, chance_corrected, judged
from prefopt.data.aggregation.reading import read_votes, votes_of_groups
from prefopt.data.aggregation.rules import aggregate
from prefopt.data.aggregation.table import TIE, Votes
from prefopt.records import Completion, Group, Vote

#: Krippendorff 2011, "Computing Krippendorff's alpha-reliability", section C: four observers
OBSERVERS = (
    "1 2 3 3 2 1 4 1 2 . . .",
    "1 2 3 3 2 2 4 1 2 5 . 3",
    ". 3 3 3 2 3 4 2 2 5 1 .",
    "1 2 3 3 2 4 4 1 2 5 1 .",
)


def judgements(*triples: tuple[int, int, int]) -> Judgements:
    """From (item, annotator, value)."""
    columns = np.array(triples, dtype=np.int64).reshape(-1, 3).T
    return Judgements(*columns)


def observed() -> Judgements:
    return judgements(*(
        (unit, who, int(value))
        for who, line in enumerate(OBSERVERS)
        for unit, value in enumerate(line.split())
        if value != "."
    ))  # fmt: skip


def test_alpha_of_krippendorffs_own_example() -> None:
    # 40 pairable values; observed 8/40, expected 1216/1560
    assert alpha(*observed()) == pytest.approx(1 - (8 / 40) / (1216 / 1560), abs=1e-12)
    assert round(alpha(*observed()), 3) == 0.743


def slow_alpha(items: np.ndarray, annotators: np.ndarray, values: np.ndarray) -> float:
    """By the coincidences of every pair of people, one by one; each has one value an item."""
    seen: dict[int, list[int]] = {}
    for item, _, value in zip(items, annotators, values, strict=True):
        seen.setdefault(int(item), []).append(int(value))
    matrix = np.zeros((10, 10))
    for said in seen.values():
        for i, j in combinations(range(len(said)), 2):
            matrix[said[i], said[j]] += 1 / (len(said) - 1)
            matrix[said[j], said[i]] += 1 / (len(said) - 1)
    n, marginals = matrix.sum(), matrix.sum(axis=1)
    expected = (np.outer(marginals, marginals) - np.diag(marginals**2)).sum() / (n - 1)
    return float(1 - (n - np.trace(matrix)) / expected)


def test_alpha_is_that_of_the_coincidence_matrix() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        cells = rng.permutation(40 * 6)[:90]
        items, annotators = np.divmod(cells, 6)
        values = np.where(rng.random(90) < 0.5, items % 3, rng.integers(3, size=90))
        assert alpha(items, annotators, values) == pytest.approx(
            slow_alpha(items, annotators, values), abs=1e-12
        )


def test_nobody_agrees_with_himself() -> None:
    once = judgements((0, 0, 1), (0, 1, 1), (1, 0, 0), (1, 1, 1), (2, 0, 0), (2, 1, 0))
    rows = list(zip(*once, strict=True))
    alone = judgements(*rows, (3, 0, 2), (3, 0, 2), (3, 0, 0))  # one person's, three times
    assert alpha(*alone) == alpha(*once)
    again = judgements(*rows, (0, 0, 1), (0, 0, 1))
    assert within(again).compared == 3 + 2  # the two repetitions meet annotator 1 alone
    # people without a name are different people
    unnamed = Judgements(once.items, np.full(6, -1), once.values)
    assert alpha(*unnamed) == pytest.approx(alpha(*once), abs=1e-12)


def test_a_judgement_that_is_repeated_is_one_more() -> None:
    # item 0: one says 0 and 1, the other 0; item 1 both 1; item 2 both 0
    found = alpha(
        *judgements((0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 1), (1, 1, 1), (2, 0, 0), (2, 1, 0))
    )
    # of item 0's six ordered pairs four differ: D_o = (4/2)/7; n_0 = 4, n_1 = 3
    assert found == pytest.approx(1 - (2 / 7) / (2 * 4 * 3 / 42), abs=1e-12)


def test_alpha_where_it_is_undefined() -> None:
    for triples in ([], [(0, 0, 1), (1, 1, 0)], [(0, 0, 1), (0, 1, 1), (1, 0, 1)]):
        parts = judgements(*triples)
        assert math.isnan(alpha(*parts))
        assert all(map(math.isnan, alpha_interval(*parts)))


def test_the_interval_is_seeded_and_shrinks_with_the_items() -> None:
    rng = np.random.default_rng(1)

    def drawn(count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        items = np.repeat(np.arange(count), 3)
        values = np.where(rng.random(3 * count) < 0.7, items % 2, rng.integers(3, size=3 * count))
        return items, np.tile(np.arange(3), count), values

    few, many = drawn(60), drawn(2000)
    widths = []
    for parts in (few, many):
        low, high = alpha_interval(*parts, seed=3)
        assert low < alpha(*parts) < high
        assert (low, high) == alpha_interval(*parts, seed=3) != alpha_interval(*parts, seed=4)
        widths.append(high - low)
    assert widths[0] / widths[1] == pytest.approx(math.sqrt(2000 / 60), rel=0.25)


def test_the_interval_covers_the_truth() -> None:
    """Alpha of a population of items, from samples of it."""
    rng = np.random.default_rng(2)
    items = np.repeat(np.arange(4000), 2)
    values = np.where(rng.random(8000) < 0.6, items % 2, rng.integers(2, size=8000))
    truth, hits = alpha(items, np.tile([0, 1], 4000), values), 0
    for number in range(100):
        chosen = rng.integers(4000, size=150)
        said = values.reshape(-1, 2)[chosen].ravel()
        parts = np.repeat(np.arange(150), 2), np.tile([0, 1], 150), said
        low, high = alpha_interval(*parts, seed=number, samples=300)
        hits += low <= truth <= high
    assert 88 <= hits <= 100


def test_pairs_of_people_by_hand() -> None:
    people = judgements((0, 0, 0), (0, 1, 0), (0, 2, TIE), (1, 0, 1), (1, 1, 0), (2, 5, TIE))
    judge = judgements((0, 9, 0), (1, 9, TIE), (2, 9, TIE), (7, 9, 1))
    assert (within(people).agreed, within(people).compared) == (1, 4)
    found = between(judge, people)
    assert (found.agreed, found.compared) == (2 + 0 + 1, 3 + 2 + 1)
    rows = agreement_table({"judge": judge, "people": people}, tie=TIE)
    assert [(r["first"], r["second"], r["ties"], r["agreed"], r["compared"]) for r in rows] == [
        ("judge", "people", True, 3, 6), ("people", "people", True, 1, 4),
        ("judge", "people", False, 2, 2), ("people", "people", False, 1, 2),
    ]  # fmt: skip
    assert Agreement(0, 0).share is None and within(judge).share is None


def test_the_annotator_table_by_hand() -> None:
    sides = (Completion("a"), Completion("b"))
    votes = votes_of_groups([
        Group("p", sides, votes=(Vote(0, 1, "first", "ann"), Vote(1, 0, "first", "bob"),
                                 Vote(0, 1, "first", "cid"))),
        Group("q", sides, votes=(Vote(0, 1, "tie", "ann"), Vote(1, 0, "tie", "bob"),
                                 Vote(0, 1, "second"))),
        Group("r", sides, votes=(Vote(0, 1, "second", "eve"),)),
    ])  # fmt: skip
    rows = {row["annotator"]: row for row in annotator_table(votes)}
    assert list(rows) == ["ann", "bob", "cid", "eve", None]
    shown = {name: (row["votes"], row["agreement"], row["ties"], row["first_share"])
             for name, row in rows.items()}  # fmt: skip
    assert shown == {
        "ann": (2, 2 / 4, 1 / 2, 1.0), "bob": (2, 1 / 4, 1 / 2, 1.0), "cid": (1, 1 / 2, 0.0, 1.0),
        "eve": (1, None, 0.0, 0.0), None: (1, 0.0, 0.0, 0.0),
    }  # fmt: skip
    assert rows["eve"]["reliability"] is None and 0 < rows["ann"]["reliability"] < 1
    low, high = rows["ann"]["first_interval"]
    assert low < 1 <= high + 1e-2 and low < 0.5


def test_alpha_does_not_depend_on_the_order_of_the_completions() -> None:
    rng, words = np.random.default_rng(5), ("first", "second", "tie")
    cast = [[words[int(rng.choice(3, p=(0.7, 0.2, 0.1)))] for _ in range(3)] for _ in range(40)]

    def table(turn: bool) -> Votes:
        rows = []
        for number, said in enumerate(cast):
            sides = [Completion("a"), Completion("b")]
            first, second = (1, 0) if turn and number % 2 == 0 else (0, 1)
            votes = [Vote(first, second, word, who) for who, word in zip("abc", said, strict=True)]
            rows.append(Group(f"q{number}", (sides[first], sides[second]), votes=tuple(votes)))
        return votes_of_groups(rows)

    one, other = table(False), table(True)
    assert chance_corrected(one) == chance_corrected(other)
    assert (one.items.said != other.items.said).any()  # it is not the same table


# -- MT-Bench ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def people_and_gpt4(shared_data: Path) -> Votes:
    return read_votes([shared_data / "mtbench" / name
                       for name in ("human.jsonl.gz", "gpt4_pair.jsonl.gz")]).votes  # fmt: skip


@pytest.mark.parametrize(
    ("turn", "expected"),
    [
        (1, {"judge": (886, 1343, 727, 859), "people": (454, 721, 388, 479)}),
        (2, {"judge": (871, 1325, 731, 864), "people": (471, 707, 388, 474)}),
    ],
)
def test_mt_bench_agreement(
    people_and_gpt4: Votes, turn: int, expected: dict[str, tuple[int, ...]]
) -> None:
    """Experts only; a verdict that turned with the order is a tie (arXiv:2306.05685, table 5)."""
    votes = people_and_gpt4
    here = np.array([name.endswith(f"(turn {turn})") for name in votes.questions])
    of_turn = here[votes.question[votes.first]]
    named = np.array([name.split("_")[0] for name in votes.annotators])[votes.annotator]
    sides = {
        kind: Judgements(*(part[of_turn & (named == name)] for part in judged(votes)))
        for kind, name in (("judge", "gpt4"), ("people", "expert"))
    }
    rows = {(row["first"], row["ties"]): row for row in agreement_table(sides, tie=TIE)}
    for kind, (agreed, compared, decided, of) in expected.items():
        with_ties, without = rows[kind, True], rows[kind, False]
        assert with_ties["second"] == "people"
        assert (with_ties["agreed"], with_ties["compared"]) == (agreed, compared)
        assert (without["agreed"], without["compared"]) == (decided, of)
    low, high = rows["judge", True]["interval"]  # type: ignore[misc]
    assert low < expected["judge"][0] / expected["judge"][1] < high


def test_mt_bench_alpha_and_scores(shared_data: Path) -> None:
    votes = read_votes(shared_data / "mtbench" / "human.jsonl.gz").votes
    assert len(votes) == 3355
    assert int((votes.items.total > 1).sum()) == 961
    found = chance_corrected(votes)
    assert f"{found['alpha']:.4f}" == "0.4855"
    assert found["alpha_interval"][0] < 0.4855 < found["alpha_interval"][1]
    fit = aggregate(votes, "bradley-terry", over="sources")
    assert fit.scores is not None
    scores = {name.split("-v1.2")[0]: f"{score:.4f}"
              for name, score in zip(votes.sources, fit.scores, strict=True)}  # fmt: skip
    assert scores == {
        "gpt-4": "1.0211", "claude-v1": "0.6429", "gpt-3.5-turbo": "0.5996",
        "vicuna-13b": "-0.0569", "alpaca-13b": "-0.7616", "llama-13b": "-1.4451",
    }  # fmt: skip
