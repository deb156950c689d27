"""Clusters of prompts, what they cover, and what leaks from evaluation into training."""

from __future__ import annotations

import json
import math
import tracemalloc
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from prefopt.data.checking import coverage, leakage
from prefopt.data.checking.clusters import Clusters, drawn, usual_count
from prefopt.data.checking.facts import Facts, Texts
from prefopt.data.checking.findings import Finding
from tests import planting
from tests.telling import Said, told

TOPICS = {
    "sea": "ship harbour sail captain anchor wave storm deck mast sailor".split(),
    "kitchen": "oven flour butter recipe salt pepper boil simmer garlic onion".split(),
    "music": "violin melody piano chord rhythm singer drum concert opera flute".split(),
    "garden": "tulip soil watering seed hedge lawn compost rose prune bulb".split(),
}


def about(topic: str, count: int, seed: int = 0) -> list[str]:
    """Different prompts of six of a topic's words."""
    rng = np.random.default_rng([seed, list(TOPICS).index(topic)])
    found: dict[str, None] = {}
    while len(found) < count:
        found[" ".join(["Tell me about the", *rng.choice(TOPICS[topic], 6)])] = None
    return list(found)


def everything(count: int, seed: int = 0) -> tuple[list[str], NDArray[np.int64]]:
    """So many prompts about each topic, and which topic that is."""
    prompts = [prompt for topic in TOPICS for prompt in about(topic, count, seed)]
    return prompts, np.repeat(np.arange(len(TOPICS)), count)


# -- clusters ------------------------------------------------------------------------------


def test_topics_that_share_no_words_are_clusters() -> None:
    prompts, topic = everything(60)
    clusters = Clusters.fit(prompts, count=4)
    found = clusters.of(prompts)
    assert clusters.count == 4
    assert len({(a, b) for a, b in zip(topic, found, strict=True)}) == 4
    for cluster in range(4):
        (name,) = {list(TOPICS)[t] for t in topic[found == cluster]}
        assert len(clusters.words(cluster, 5)) == 5 and set(clusters.words(cluster)) <= set(
            TOPICS[name]
        )
    unseen, topic = everything(20, seed=5)
    assert len({(a, b) for a, b in zip(topic, clusters.of(unseen), strict=True)}) == 4


def test_the_number_of_clusters_follows_from_the_prompts() -> None:
    assert [usual_count(n) for n in (1, 2, 8, 200, 20_000, 10**7)] == [1, 1, 2, 10, 100, 100]
    prompts, _ = everything(60)  # eleven by k-means, and nearly all of a topic are one again
    assert 4 <= Clusters.fit(prompts).count <= usual_count(len(prompts))


def test_neither_order_nor_repetition_changes_clusters() -> None:
    prompts, _ = everything(40)
    mixed = list(np.random.default_rng(3).permutation(prompts + prompts[:50]))
    one, other = (Clusters.fit(texts, count=9, seed=2) for texts in (prompts, mixed))
    assert one.of(prompts).tolist() == other.of(prompts).tolist()
    assert [one.words(n) for n in range(9)] == [other.words(n) for n in range(9)]
    sizes = np.bincount(one.of(prompts), minlength=9)
    assert sizes.tolist() == sorted(sizes, reverse=True)  # the largest is the first


def test_a_prompt_is_in_the_same_cluster_by_itself() -> None:
    prompts, _ = everything(30)
    clusters = Clusters.fit(prompts, seed=1)
    assert clusters.of(prompts).tolist() == [int(clusters.of([prompt])[0]) for prompt in prompts]
    assert clusters.of([]).tolist() == []


@pytest.mark.parametrize(
    "prompts",
    [
        ["one"],
        ["", " "],
        ["the", "and", "of the"],  # nothing but words that are everywhere
        ["?", "!", "??"],
        ["same words here", "here same words", "words here same"],
        ["机器学习", "学习机器", "今天天气很好", "天气好"],
        [f"word{n}" for n in range(300)],
    ],
)
def test_any_prompts_can_be_clustered(prompts: list[str]) -> None:
    clusters = Clusters.fit(prompts, count=4)
    assert set(clusters.of(prompts).tolist()) <= set(range(clusters.count))
    assert 1 <= clusters.count <= min(4, len(prompts))
    assert Clusters.fit(prompts).of(["something else entirely"]).shape == (1,)


def test_nothing_cannot_be_clustered() -> None:
    with pytest.raises(ValueError, match="a prompt at least"):
        Clusters.fit([])
    with pytest.raises(ValueError, match="a prompt at least"):
        Clusters.fit(["one"], count=0)


def test_embeddings_take_the_place_of_words() -> None:
    def embed(texts: Sequence[str]) -> NDArray[np.float64]:
        return np.array([[len(text) % 2, 1 - len(text) % 2, 0.0] for text in texts])

    prompts = ["a" * n for n in range(1, 21)]
    found = Clusters.fit(prompts, count=2, embed=embed).of(prompts)
    assert len({(len(text) % 2, int(one)) for text, one in zip(prompts, found, strict=True)}) == 2


def test_what_is_drawn_depends_on_neither_order_nor_repetition() -> None:
    texts = [f"text {n}" for n in range(1000)]
    part = drawn(texts, 50, seed=3)
    assert len(part) == 50 == len(set(part)) and part == sorted(part)
    assert drawn(texts[::-1] + texts, 50, seed=3) == part
    assert drawn(texts, 50, seed=4) != part
    assert drawn(texts, 2000) == sorted(texts)
    chosen = sum(int("text 7" in drawn(texts[:20], 5, seed=seed)) for seed in range(400))
    assert 70 < chosen < 130  # a quarter of 400


def test_what_is_not_drawn_is_not_held() -> None:
    def long() -> Iterator[str]:
        yield from (f"{n} " + "x" * 10_000 for n in range(5000))

    tracemalloc.start()
    try:
        assert len(drawn(long(), 50)) == 50
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2_000_000


# -- coverage ------------------------------------------------------------------------------


def texts_of(prompts: Sequence[str], **columns: str) -> tuple[Facts, Texts]:
    return told(*(Said(prompt, f"{prompt} yes", "no", **columns) for prompt in prompts))


def covered(
    train: Sequence[str], test: Sequence[str] = (), seed: int = 0
) -> tuple[dict[str, Finding], coverage.Coverage]:
    facts, texts = texts_of(train)
    against = texts_of(test) if test else None
    found = coverage.measure(texts, against[1] if against else None, seed=seed)
    assert found is not None
    return {f.kind: f for f in coverage.find(facts, found, against)}, found


def test_entropy_by_hand() -> None:
    assert coverage.entropy([1, 1, 2]) == pytest.approx(1.5 * math.log(2))
    assert coverage.entropy([7]) == coverage.entropy([]) == 0
    assert coverage.evenness([3, 3, 3, 3]) == pytest.approx(1)
    assert coverage.evenness([90, 5, 5]) == pytest.approx(
        (0.9 * math.log(1 / 0.9) + 0.1 * math.log(20)) / math.log(3)
    )


def test_data_about_one_thing_is_noted_and_data_about_four_is_not() -> None:
    narrow = about("kitchen", 360) + about("sea", 10) + about("music", 10) + about("garden", 10)
    finding = covered(narrow)[0]["uneven_coverage"]
    assert finding.value is not None and finding.value < coverage.EVEN_CLUSTERS
    assert finding.count >= 350 and set(finding.details["clusters"][0]["words"]) <= set(
        TOPICS["kitchen"]
    )
    assert covered(everything(100)[0])[0] == {}
    assert covered(narrow[:80])[0] == {}  # too few to say so


def test_what_only_evaluation_asks_about_is_named() -> None:
    train = about("kitchen", 200) + about("sea", 200) + about("garden", 3)
    test = about("kitchen", 40, seed=1) + about("garden", 30, seed=1) + about("music", 20, seed=1)
    found, measured = covered(train, test)
    finding = found["uncovered_region"]
    assert finding.count == 50 and finding.value == pytest.approx(50 / 90)
    assert [place.row for place in finding.places] == list(range(41, 61))
    named = {word for cluster in finding.details["clusters"] for word in cluster["words"]}
    assert named <= {*TOPICS["garden"], *TOPICS["music"]}
    shown = coverage.figures(measured)
    assert json.loads(json.dumps(shown)) == shown and shown["prompts"] == 403
    assert sum(c["share"] for c in shown["clusters"]) == pytest.approx(1)
    assert sum(c["evaluation_prompts"] for c in shown["clusters"]) == 90


def test_chance_alone_leaves_no_region_uncovered() -> None:
    for seed in range(12):
        pairs = planting.clean(330, seed=seed)
        prompts = list(dict.fromkeys(pair.prompt for pair in pairs))
        assert "uncovered_region" not in covered(prompts[:250], prompts[250:], seed)[0]


def test_little_evaluation_is_no_ground_for_alarm() -> None:
    assert "uncovered_region" not in covered(about("kitchen", 100), about("music", 1))[0]


def test_a_sample_of_much_data_takes_part() -> None:
    """Where training is much larger, a topic of the evaluation alone still gets a cluster."""
    train = [prompt for topic in ("kitchen", "sea") for prompt in about(topic, 1500)]
    found, _ = covered(train, about("kitchen", 100, seed=1) + about("music", 15, seed=1))
    assert found["uncovered_region"].count == 15


def test_categories_with_very_different_shares_are_noted() -> None:
    def categories(**counts: int) -> dict[str, Finding]:
        said = [
            Said(f"{name} {n}", f"yes {n}", "no", category=name)
            for name, count in counts.items() for n in range(count)
        ]  # fmt: skip
        return {f.kind: f for f in coverage.find(told(*said)[0], None)}

    finding = categories(safety=10, style=180, factuality=10)["uneven_categories"]
    assert finding.count == 180 and "style 90 %, safety 5 %" in str(finding.message)
    assert finding.value == pytest.approx(coverage.evenness([10, 180, 10]))
    assert categories(safety=60, style=80, factuality=70) == {}
    assert categories(style=500) == {}  # nothing to be even with
    assert categories(safety=1, style=18) == {}  # too few
    assert "uneven_categories" not in categories(**{"": 900, "safety": 60, "style": 60})


def test_no_data_covers_nothing() -> None:
    facts, texts = told()
    assert coverage.measure(texts) is None and list(coverage.find(facts, None)) == []
    assert coverage.figures(None)["clusters"] == []


# -- leakage -------------------------------------------------------------------------------


def leaks(train: Sequence[str], test: Sequence[str]) -> dict[str, Finding]:
    data, against = texts_of(train), texts_of(test)
    measured = coverage.measure(data[1], against[1])
    return {f.kind: f for f in leakage.find(*data, against, coverage=measured)}


def test_prompts_that_are_trained_on_are_named_in_the_evaluation() -> None:
    train = [pair.prompt for pair in planting.clean(200, seed=1)]
    test = [pair.prompt for pair in planting.clean(50, seed=2)]
    test[3], test[30] = train[100], train[7]
    test += [train[7]]
    found = leaks(train, test)
    finding = found["leaked_prompt"]
    assert finding.count == 2 and finding.details["comparisons"] == 3
    assert [place.row for place in finding.places] == [4, 31, 51]
    rows = {place["row"] for place in finding.details["in_training"]}
    assert {train[row - 1] for row in rows} == {train[100], train[7]}
    assert "leaked_near_duplicate" not in found


def test_exact_leaks_need_no_texts() -> None:
    facts, against = (texts_of(part)[0] for part in (["a", "b", "c"], ["c", "d", "a"]))
    (finding,) = leakage.leaked_prompts(facts, against)
    assert finding.count == 2 and finding.value == pytest.approx(2 / 3)
    assert list(leakage.leaked_prompts(facts, texts_of(["e"])[0])) == []


def test_prompts_that_are_nearly_trained_on_are_named() -> None:
    train = [pair.prompt for pair in planting.clean(200, seed=1)]
    test = [pair.prompt for pair in planting.clean(50, seed=2)]
    test[10], test[20] = train[5].lower() + "!!", train[50] + " Please."
    test[30] = train[60]
    found = leaks(train, test)
    finding = found["leaked_near_duplicate"]
    assert finding.count == 2 and [place.row for place in finding.places] == [11, 21]
    assert finding.details["examples"][0]["similarity"] == 1.0
    assert finding.details["examples"][0]["places"] == [
        {"file": "a.jsonl", "row": 6}, {"file": "a.jsonl", "row": 11},
    ]  # fmt: skip
    assert found["leaked_prompt"].count == 1


def test_a_topic_in_common_is_a_note_that_says_what_it_is_worth() -> None:
    finding = leaks(about("sea", 60), about("sea", 20, seed=1) + about("music", 20, seed=1))
    assert set(finding) == {"shared_cluster"}
    assert finding["shared_cluster"].count == 20 and finding["shared_cluster"].value == 0.5
    assert "false alarms" in str(finding["shared_cluster"].message)
    assert finding["shared_cluster"].to_dict()["level"] == "note"
    assert leaks(about("sea", 60), about("music", 20)) == {}


def test_near_leaks_in_samples_are_said_to_be_more() -> None:
    train, test = (texts_of([f"{prompt} or so" + "!" * n for prompt in about("sea", 30)])
                   for n in (0, 1))  # fmt: skip
    parts = [(facts, Texts(texts.examples[:20], whole=False)) for facts, texts in (train, test)]
    (finding,) = leakage.find(*parts[0], parts[1])
    assert finding.kind == "leaked_near_duplicate" and finding.count == 20
    assert "there are more" in str(finding.message) and finding.details["whole"] is False
