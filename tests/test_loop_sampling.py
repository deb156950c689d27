"""Sampling, where mutants of it lived: stops over several tokens, and what is asked again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

PROMPTS = ["The film", "What a dull, clumsy story; I", "How do I", "Blue is the colour"]


def drawn(policy: Any, **settings: Any) -> list[Any]:
    from prefopt.sampling.generate import draw
    from prefopt.sampling.settings import Settings

    found = draw(policy, PROMPTS, Settings(max_new_tokens=40, n=12, **settings), batch_size=16)
    return [sample for own in found for sample in own]


def spelled(policy: Any, samples: list[Any], length: int) -> set[str]:
    """Texts that samples have spelled, a token a character: what takes the most tokens to say."""
    found = set()
    for sample in samples:
        letters = [policy.tokenizer.decode([token]) for token in sample.ids]
        for start in range(len(letters) - length):
            part = letters[start : start + length]
            if all(len(one) == 1 and one.isascii() and one.isprintable() for one in part):
                found.add("".join(part))
    return found


@pytest.mark.parametrize("architecture", ["llama", "qwen3_next"])
def test_a_sample_ends_with_the_token_that_completes_a_stop(
    make_policy: Callable[..., Any], architecture: str
) -> None:
    policy = make_policy(architecture, initializer_range=0.05)
    decode = policy.tokenizer.decode
    stop = tuple(sorted(spelled(policy, drawn(policy), 3)))
    assert stop
    stopped = drawn(policy, stop=stop)
    assert sum(sample.stopped for sample in stopped) >= len(stop) / 3
    for sample in stopped:
        ends = [any(part in decode(sample.ids[:length], skip_special_tokens=True) for part in stop)
                for length in range(1, len(sample.ids) + 1)]  # fmt: skip
        assert not any(ends[:-1]), "it went on after a stop"
        assert ends[-1] == sample.stopped


def test_a_model_is_asked_again_about_longer_texts(
    make_policy: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What agrees within a window of eight tokens says nothing of what is beyond it."""
    from prefopt.sampling import continuous

    asked: list[int] = []

    def agrees(model: Any, length: int) -> bool:
        asked.append(length)
        return length < 60

    monkeypatch.setattr(continuous, "_agrees", agrees)
    model = make_policy("mistral").model
    lengths = (10, 40, 25, 500, 30, 1000)
    assert [continuous.serves(model, length) for length in lengths] == [True] * 3 + [False] * 3
    assert asked == [10, 40, 8 + continuous._BEYOND]  # no text is asked about twice
