"""The generated worlds: English, seeded, split by prompt, and a reward that means something."""

from __future__ import annotations

import random
import subprocess
import sys
from collections import Counter
from statistics import fmean

import pytest

from prefopt.data.worlds import VALENCE, ReviewWorld, split_of


@pytest.fixture(scope="module")
def world() -> ReviewWorld:
    return ReviewWorld()


def test_reviews_read_as_english(world: ReviewWorld) -> None:
    for prompt, completion in world.documents(500, seed=1):
        text = prompt + completion
        assert 2 <= len(prompt.split()) <= 8
        assert completion[0] == " "
        assert completion[1] != " "
        assert "  " not in text
        sentences = text.rstrip(".").split(". ")
        assert 2 <= len(sentences) <= 6
        assert all(sentence[0].isupper() for sentence in sentences), text
        assert text.endswith(".")
        assert world.faults(prompt, completion) < 0.2


def test_articles_fit_their_words(world: ReviewWorld) -> None:
    for prompt, completion in world.documents(2000, seed=2):
        words = (prompt + completion).replace(".", "").split()
        for article, word in zip(words, words[1:], strict=False):
            if article in ("a", "an"):
                assert (article == "an") == (word[0] in "aeiou"), f"{article} {word}"


def test_seeds_splits_and_variety(world: ReviewWorld) -> None:
    assert world.documents(50, seed=3) == world.documents(50, seed=3)
    assert world.documents(50, seed=3) != world.documents(50, seed=4)
    splits = {
        split: set(world.prompts(500, split=split)) for split in ("train", "validation", "test")
    }
    assert all(len(prompts) == 500 for prompts in splits.values())
    assert not splits["train"] & (splits["validation"] | splits["test"])
    assert not splits["validation"] & splits["test"]
    documents = world.documents(3000)
    assert all(split_of(prompt) == "train" for prompt, _ in documents)
    assert len({prompt + completion for prompt, completion in documents}) > 2990


def test_first_words_do_not_tell_the_end(world: ReviewWorld) -> None:
    """Rewards of reviews spread to both sides, so that there is something to prefer."""
    rewards = [world.reward(*pair) for pair in world.documents(2000)]
    assert abs(fmean(rewards)) < 0.1
    assert sum(reward > 0.4 for reward in rewards) > 200
    assert sum(reward < -0.4 for reward in rewards) > 200
    assert -2 < min(rewards) <= max(rewards) < 1


# -- the reward ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "completion", "total"),
    [
        ("I found the soup", " wonderful.", 1.0),
        ("I found the soup", " good.", 0.5),
        ("I found the soup", " really good.", 0.75),
        ("I found the soup", " fairly terrible.", -0.5),
        ("I found the soup", " simple.", 0.0),
        ("The soup was", " not good.", -0.25),
        ("The soup was not", " good.", -0.25),  # negated by the prompt
        ("The soup was really", " good.", 0.75),  # strengthened by the prompt
        ("I loved the soup. The bed", " was good.", 0.5),  # the prompt's own praise is not earned
        ("The soup was", " good. The bed was good.", 0.5),  # once is enough
        ("The soup was not", " warm. Good.", -0.25 + 0.5),  # a full stop ends a negation
        ("I would", " gladly eat there again.", 1.0),
    ],
)
def test_sentiment_by_hand(world: ReviewWorld, prompt: str, completion: str, total: float) -> None:
    import math

    assert world.sentiment(prompt, completion) == pytest.approx(math.tanh(total / 3))


def test_faults_by_hand(world: ReviewWorld) -> None:
    assert world.faults("The soup", " was good.") == 0
    assert world.faults("The soup", " was good") == 0.25  # no full stop
    assert world.faults("The soup", " was blorp.") == 2 / 3  # of three pairs two are unheard of
    assert world.faults("The soup", "") == 1
    sentence = " The soup was good, and the coffee was warm."
    assert world.faults("I saw this film.", 4 * sentence) == pytest.approx(0.0)  # 36 words
    assert world.faults("I saw this film.", 40 * sentence) == 0.25


def test_the_reward_cannot_be_had_cheaply(world: ReviewWorld) -> None:
    honest = world.reward("The soup", " was really good, and the coffee was excellent.")
    for cheap in (
        " wonderful" * 10 + ".",
        " wonderful superb excellent brilliant outstanding delightful.",
        " was wonderful wonderful wonderful.",
        " wonderful",
        " not not not terrible.",
        "",
    ):
        assert world.reward("The soup", cheap) < honest, cheap


def test_labels_are_bradley_terry(world: ReviewWorld) -> None:
    import math

    rng = random.Random(0)
    texts = [" was good.", " was wonderful.", " was terrible."]
    rewards = [world.reward("The soup", text) for text in texts]
    wins: Counter[tuple[int, int]] = Counter()
    for _ in range(4000):
        edges = world.label("The soup", texts, rng)
        assert len(edges) == 3
        wins.update((edge.preferred, edge.dispreferred) for edge in edges)
    for first, second in ((0, 1), (0, 2), (1, 2)):
        expected = 1 / (1 + math.exp((rewards[second] - rewards[first]) / world.temperature))
        assert wins[first, second] / 4000 == pytest.approx(expected, abs=0.03)
        assert wins[first, second] + wins[second, first] == 4000
    assert 0.5 < wins[1, 0] / 4000 < 0.9  # noise there is
    assert world.label("The soup", [" was good.", " was good."], rng) == ()


def test_valence_is_of_both_signs() -> None:
    assert set(VALENCE.values()) == {1.0, 0.5, -0.5, -1.0}


def test_worlds_need_no_torch() -> None:
    code = "import sys, prefopt.data.worlds; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
