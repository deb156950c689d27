"""Biases of planted size, intervals by hand and by simulation, and no alarm where there is none."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import t as student
from sklearn.metrics import roc_auc_score

from prefopt.data.checking import bias, estimates
from prefopt.data.checking import marks as looks
from prefopt.data.checking.facts import APOLOGY, BOLD, CODE, HEADING, LIST, REFUSAL, Facts
from prefopt.data.checking.findings import Finding
from prefopt.data.checking.marks import marks
from tests.telling import plain

Array = NDArray[Any]


def found(columns: Facts) -> dict[str, Finding]:
    return {finding.kind: finding for finding in bias.find(columns)}


def lengths(rng: np.random.Generator, size: int, longer: float) -> dict[str, Array]:
    """Lengths whose preferred side is longer with a given probability."""
    sides = np.exp(rng.normal(6, 1, (size, 2))).astype(np.uint32)
    sides[:, 0] += sides[:, 0] == sides[:, 1]
    sides.sort(axis=1)
    wins = rng.random(size) < longer
    return {
        "preferred_length": np.where(wins, sides[:, 1], sides[:, 0]),
        "dispreferred_length": np.where(wins, sides[:, 0], sides[:, 1]),
    }


# -- intervals -----------------------------------------------------------------------------


def test_wilson_by_hand() -> None:
    """8 of 10, each of its own: Wilson's interval with Student's quantile for nine degrees."""
    estimate = estimates.share([1] * 8 + [0] * 2, np.arange(10))
    z, size = student.ppf(0.975, 9), 9.0  # the variance is p (1 − p) / (n − 1)
    centre = (0.8 + z * z / (2 * size)) / (1 + z * z / size)
    half = z / (1 + z * z / size) * np.sqrt(0.16 / size + z * z / (4 * size**2))
    assert estimate.ends == pytest.approx((centre - half, centre + half), rel=1e-9)
    assert (estimate.value, estimate.count, estimate.clusters) == (0.8, 10, 10)


def test_comparisons_of_one_prompt_count_once_if_they_all_say_the_same() -> None:
    values = np.random.default_rng(0).random(60) < 0.6
    once = estimates.share(values, np.arange(60))
    thrice = estimates.share(np.repeat(values, 3), np.repeat(np.arange(60), 3))
    assert thrice.ends == pytest.approx(once.ends, rel=1e-9)
    naive = estimates.share(np.repeat(values, 3), np.arange(180))
    assert naive.high - naive.low < 0.65 * (once.high - once.low)


def test_a_weight_is_that_many_comparisons_for_the_share() -> None:
    prompts = np.array([0, 1, 2, 2, 3])
    weighted = estimates.share([1, 0, 1, 0, 1], prompts, [1, 2, 1, 1, 3])
    repeated = estimates.share([1, 0, 0, 1, 0, 1, 1, 1], np.array([0, 1, 1, 2, 2, 3, 3, 3]))
    assert weighted.value == repeated.value == 5 / 8
    assert estimates.share([1, 0, 1], np.arange(3), [1, 1, 0]).count == 2


def test_no_spread_is_not_certainty() -> None:
    assert estimates.share([1, 1, 1], np.zeros(3, np.int64)).ends == (0.0, 1.0)
    low, high = estimates.share([1] * 20, np.arange(20)).ends
    assert 0.75 < low < 0.9 and high == 1.0
    assert estimates.mean([4.0], np.zeros(1, np.int64)).ends == (-np.inf, np.inf)
    with pytest.raises(ValueError, match="at least one value"):
        estimates.share([], np.zeros(0, np.int64))


@pytest.mark.parametrize("p", [0.5, 0.9])
def test_intervals_hold_as_often_as_they_say(p: float) -> None:
    """Prompts of one to six comparisons which agree with each other more than with others."""
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(600):
        sizes = rng.integers(1, 7, 80)
        prompts = np.repeat(np.arange(80), sizes)
        own = rng.beta(4 * p, 4 * (1 - p), 80)
        low, high = estimates.share(rng.random(len(prompts)) < own[prompts], prompts).ends
        held += low <= p <= high
    assert 0.925 < held / 600 < 0.98


def test_auc_is_that_of_both_orientations() -> None:
    rng = np.random.default_rng(2)
    by = rng.integers(-9, 13, 300)
    weight = rng.random(300)
    labels, scores = np.repeat([1, 0], 300), np.concatenate([by, -by])
    estimate = estimates.auc(by, np.arange(300), weight)
    expected = roc_auc_score(labels, scores, sample_weight=np.tile(weight, 2))
    assert estimate.value == pytest.approx(expected, abs=1e-12)
    brute = np.mean([(a + b > 0) + 0.5 * (a + b == 0) for a in by for b in by])
    assert estimates.auc(by, np.arange(300)).value == pytest.approx(brute, abs=1e-12)


def test_the_interval_of_an_auc_holds() -> None:
    """Also where each prompt has the same difference four times."""
    rng = np.random.default_rng(3)
    shift, size = 0.4, 120
    many = rng.normal(shift, 1, 200_000)
    true = float(roc_auc_score(np.repeat([1, 0], 200_000), np.concatenate([many, -many])))
    for copies in (1, 4):
        held = 0
        for _ in range(400):
            by = np.round(1000 * rng.normal(shift, 1, size)).astype(np.int64)
            prompts = np.repeat(np.arange(size), copies)
            low, high = estimates.auc(np.repeat(by, copies), prompts).ends
            held += low <= true <= high
        assert 0.92 < held / 400 < 0.985


# -- length --------------------------------------------------------------------------------


def test_length_by_hand() -> None:
    """Differences +100, +50, −30, 0: two of three longer, 30 more on average."""
    columns = plain(
        4, preferred_length=[200, 150, 70, 100], dispreferred_length=[100, 100, 100, 100]
    )
    longer = bias.figures(columns)["longer"]
    assert longer["value"] == pytest.approx(2 / 3)
    assert (longer["comparisons"], longer["equal"]) == (3, 1)
    assert longer["mean_difference"]["value"] == 30.0
    # of 16 sums of two differences: above 0 all but (−30, −30), (−30, 0) twice and (0, 0)
    assert longer["auc"]["value"] == pytest.approx((12 + 0.5) / 16)
    assert [(bin["from"], bin["comparisons"]) for bin in longer["by_ratio"]] == [
        (1.25, 2), (1.5, 1),
    ]  # fmt: skip


def test_a_planted_length_bias_is_found_with_its_size() -> None:
    rng = np.random.default_rng(4)
    finding = found(plain(4000, **lengths(rng, 4000, 0.7)))["length_bias"]
    assert finding.level == "warning" and finding.count == 4000
    assert finding.value == pytest.approx(0.7, abs=0.02)
    assert finding.interval is not None and finding.interval[0] < 0.7 < finding.interval[1]
    assert finding.message is not None and "longer" in finding.message
    turned = found(plain(4000, **lengths(rng, 4000, 0.3)))["length_bias"]
    assert turned.level == "warning" and turned.message is not None and "shorter" in turned.message
    small = found(plain(40_000, **lengths(rng, 40_000, 0.52)))["length_bias"]
    assert small.level == "note"  # beyond chance, and little


def test_lengths_are_seen_as_the_weights_say() -> None:
    """Three quarters longer, but a shorter one weighs three times as much: nothing to see."""
    wins = np.arange(4000) % 4 > 0
    columns = plain(
        4000,
        preferred_length=np.where(wins, 200, 100),
        dispreferred_length=np.where(wins, 100, 200),
        weight=np.where(wins, 1, 3),
    )
    assert "length_bias" not in found(columns)
    longer = bias.figures(columns)["longer"]
    assert longer["value"] == longer["auc"]["value"] == 0.5


def test_histograms_hold_every_decided_comparison() -> None:
    columns = plain(
        5,
        preferred_length=[0, 1, 2, 1000, 7],
        dispreferred_length=[3, 3, 1, 1024, 7],
        toward=[1, -1, 1, 1, 0],
    )
    shown = bias.figures(columns)["lengths"]
    edges = shown["edges"]
    assert edges[:8] == [0, 1, 2, 3, 4, 6, 8, 11] and edges[-1] > 1024
    assert sum(shown["preferred"]) == sum(shown["dispreferred"]) == 4
    assert shown["preferred"][:3] == [1, 1, 1] and shown["dispreferred"][3] == 2
    assert shown["preferred"][edges.index(724)] == 1
    assert shown["dispreferred"][edges.index(1024)] == 1


# -- position, format, refusals ------------------------------------------------------------


def test_position_is_asked_only_where_the_order_is_known() -> None:
    toward = np.where(np.arange(1000) % 10 < 7, 1, -1)
    assert "position_bias" not in found(plain(1000, toward=toward))
    columns = plain(1000, toward=toward, stated=np.arange(1000) < 500)
    finding = found(columns)["position_bias"]
    assert (finding.value, finding.count, finding.level) == (pytest.approx(0.7), 500, "warning")
    toward[:100] = 0
    tied = bias.figures(plain(1000, toward=toward, stated=np.arange(1000) < 500))["position"]
    assert (tied["comparisons"], tied["ties"]) == (400, 100)


def marked(rng: np.random.Generator, size: int, bit: int, high: float, low: float) -> Facts:
    return plain(
        size,
        preferred_marks=bit * (rng.random(size) < high),
        dispreferred_marks=bit * (rng.random(size) < low),
    )


def test_a_planted_format_bias_is_found_with_its_size() -> None:
    rng = np.random.default_rng(5)
    columns = marked(rng, 5000, LIST, 0.4, 0.2)
    finding = found(columns)["format_bias"]
    assert finding.level == "warning"
    expected = 0.4 * 0.8 / (0.4 * 0.8 + 0.2 * 0.6)  # preferred alone, of all that are alone
    assert finding.value == pytest.approx(expected, abs=0.03)
    (mark,) = finding.details["marks"]
    assert mark["mark"] == "a list"
    assert mark["difference"]["value"] == pytest.approx(0.2, abs=0.03)
    low, high = mark["difference"]["interval"]
    assert low < 0.2 < high
    rows = [place.row for place in finding.places]
    assert len(rows) == 20 and all(
        columns.preferred_marks[row - 1] and not columns.dispreferred_marks[row - 1]
        for row in rows
        if row
    )
    assert found(marked(rng, 5000, HEADING, 0.1, 0.3))["format_bias"].value < 0.5  # type: ignore[operator]


def test_a_mark_that_is_hardly_there_is_a_note_at_most() -> None:
    rng = np.random.default_rng(6)
    assert found(marked(rng, 40_000, BOLD, 0.006, 0.001))["format_bias"].level == "note"


def test_refusals_are_a_note_either_way() -> None:
    rng = np.random.default_rng(7)
    assert found(marked(rng, 3000, REFUSAL, 0.3, 0.1))["refusal_bias"].level == "note"
    finding = found(marked(rng, 3000, APOLOGY, 0.1, 0.3))["refusal_bias"]
    assert finding.value == pytest.approx(0.1 * 0.7 / (0.1 * 0.7 + 0.3 * 0.9), abs=0.05)
    assert finding.message is not None and "apology" in finding.message


# -- voices --------------------------------------------------------------------------------


def test_one_voice_dominates_beyond_two_thirds() -> None:
    codes = np.repeat([0, 1, 2, 3], [40, 100, 25, 24])
    columns = plain(189, annotator=codes, annotators=("", "ann", "bob", "cid"))
    finding = found(columns)["one_annotator"]
    assert finding.value == pytest.approx(100 / 149)
    assert finding.count == 100 and finding.details["unnamed"] == 40
    assert [voice["name"] for voice in finding.details["largest"]] == ["ann", "bob", "cid"]
    codes = np.repeat([1, 2, 3], [98, 25, 24])
    assert "one_annotator" not in found(
        plain(147, annotator=codes, annotators=("", "ann", "bob", "cid"))
    )


def test_a_single_source_is_no_finding_and_a_single_annotator_is() -> None:
    ones = np.ones(10)
    assert "one_source" not in found(plain(10, source=ones, sources=("", "web")))
    assert found(plain(10, annotator=ones, annotators=("", "ann")))["one_annotator"].value == 1.0
    two = np.repeat([1, 2], [8, 2])
    assert found(plain(10, source=two, sources=("", "web", "book")))["one_source"].count == 8
    even = plain(10, source=two, sources=("", "web", "book"), weight=np.repeat([1, 4], [8, 2]))
    assert "one_source" not in found(even)


def test_voices_have_an_effective_number() -> None:
    voices = bias.figures(plain(8, category=np.repeat([1, 2], 4), categories=("", "a", "b")))
    assert voices["categories"]["effective"] == pytest.approx(2.0)
    assert voices["annotators"] == {"named": 0, "unnamed": 8, "effective": 0.0, "largest": []}


# -- what must not happen ------------------------------------------------------------------


def symmetric(rng: np.random.Generator) -> Facts:
    """Sides drawn alike, in prompts of one to five comparisons."""
    prompts = np.repeat(np.arange(200), rng.integers(1, 6, 200))
    size = len(prompts)
    bits = [bit * (rng.random((2, size)) < 0.2) for bit in (LIST, HEADING, BOLD, CODE)]
    drawn = np.sum(bits, axis=0)
    return plain(
        size,
        prompt=prompts,
        toward=rng.choice([-1, 1], size),
        stated=np.ones(size, bool),
        **lengths(rng, size, 0.5),
        preferred_marks=drawn[0],
        dispreferred_marks=drawn[1],
    )


def test_symmetric_data_gives_alarms_no_more_often_than_chance() -> None:
    counts = {"length_bias": 0, "position_bias": 0, "format_bias": 0}
    warned = 0
    for seed in range(300):
        for kind, finding in found(symmetric(np.random.default_rng(seed))).items():
            counts[kind] += 1
            warned += finding.level == "warning"
    assert all(count <= 0.085 * 300 for count in counts.values()), counts  # 5 % and 3 errors
    assert sum(counts.values()) > 10  # the notes are not simply off
    assert warned <= 3


def test_neither_the_order_of_rows_nor_a_swap_of_sides_matters() -> None:
    rng = np.random.default_rng(8)
    base = symmetric(rng)
    order = rng.permutation(len(base))
    names = ("prompt", "toward", "stated", "weight", "preferred_length", "dispreferred_length",
             "preferred_marks", "dispreferred_marks")  # fmt: skip
    shuffled = plain(len(base), **{name: getattr(base, name)[order] for name in names})
    assert json.dumps(rounded(bias.figures(shuffled))) == json.dumps(rounded(bias.figures(base)))
    swapped = plain(
        len(base),
        prompt=base.prompt,
        toward=-base.toward,
        stated=base.stated,
        preferred_length=base.dispreferred_length,
        dispreferred_length=base.preferred_length,
        preferred_marks=base.dispreferred_marks,
        dispreferred_marks=base.preferred_marks,
    )
    one, other = bias.figures(base), bias.figures(swapped)
    for name in ("longer", "position"):
        assert one[name]["value"] == pytest.approx(1 - other[name]["value"])
        assert one[name]["interval"] == pytest.approx(
            [1 - x for x in other[name]["interval"][::-1]]
        )


def rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 9)
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return [rounded(item) for item in value] if isinstance(value, list) else value


def test_ties_nothing_and_weightless_rows_say_nothing() -> None:
    assert found(plain(0)) == {}
    assert found(plain(50, toward=np.zeros(50), preferred_length=np.arange(50))) == {}
    assert found(plain(50, weight=np.zeros(50), preferred_length=np.arange(50) + 101)) == {}
    json.dumps(bias.figures(plain(0)), allow_nan=False)


# -- marks of a text -----------------------------------------------------------------------

MARKED = (
    ("", 0),
    ("A plain answer, with a dash - and 2 * 3 * 4 = 24.", 0),
    ("Buy:\n- milk\n- eggs", LIST),
    ("1. milk\n2. eggs", LIST),
    ("* milk\n\n* eggs\n", LIST),
    ("Buy:\n  1) milk\n  2) eggs", LIST),
    ("Said the wolf:\n- Come in.\nAnd she went.", 0),
    ("It began in\n1914. Then\ncame 1918.", 0),
    ("-5 degrees\n-7 degrees", 0),
    ("# Title\n\ntext", HEADING),
    ("text\n### Part\nmore", HEADING),
    ("I am #1 and C# is a language", 0),
    ("#hashtag and more", 0),
    ("It is **very** hot", BOLD),
    ("2 ** 3 ** 4", 0),
    ("**** stars ****", 0),
    ("Use `ls -l` here", CODE),
    ("a ` b\n` c", 0),
    ("```python\n# a comment\n- 1\n- 2\n**x**\n```", CODE),
    ("```\nx\n```\n\n# Title\n- a\n- b", CODE | HEADING | LIST),
    ("```\nunfinished\n# comment", CODE),
    ("I'm sorry, but I can't help with that.", REFUSAL | APOLOGY),
    ("I’m sorry, but I can’t assist you with this.", REFUSAL | APOLOGY),
    ("Sorry, I made a mistake there.", APOLOGY),
    ("I apologize for the confusion. The answer is 4.", APOLOGY),
    ("As an AI language model, I do not have opinions.", REFUSAL),
    ("I am not able to browse the web.", REFUSAL),
    ("I must decline.", REFUSAL),
    ("I won't tell you how to do it.", REFUSAL),
    ("I'm not comfortable writing that.", REFUSAL),
    ("I'm sorry to hear about your dog.", 0),
    ("You should tell her that you are sorry.", 0),
    ("I can't wait to see it!", 0),
    ("I cannot believe how good it was.", 0),
    ("They refuse to pay, so the offer was declined.", 0),
    ("It cannot help to write to them.", 0),
    ("word " * 60 + "I can't help with that.", 0),
)


@pytest.mark.parametrize(("text", "expected"), MARKED, ids=[text[:40] for text, _ in MARKED])
def test_marks(text: str, expected: int) -> None:
    assert marks(text) == expected


@pytest.mark.parametrize(("text", "expected"), MARKED, ids=[text[:40] for text, _ in MARKED])
def test_the_quick_look_misses_nothing(text: str, expected: int) -> None:
    """What is looked for before the patterns are tried is in all that they match."""
    head = " ".join(text[:200].lower().replace("’", "'").split())
    assert bool(looks._REFUSAL.search(head)) == bool(expected & REFUSAL)
    assert not looks._REFUSAL.search(head) or looks._may_refuse(head) or "sorry" in head
