"""Sampling: the policy's own distribution, the same texts whatever the batch, no special tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from prefopt.errors import DataError, RecipeError
from prefopt.records import Message

if TYPE_CHECKING:
    from prefopt.policies.load import Policy

MakePolicy = Callable[..., "Policy"]
PROMPTS = ["The film", "What a dull, clumsy story; I", "How do I", "Blue is the colour", "I wanted"]


def _sample(policy: Policy, prompts: Any, **options: Any) -> list[list[str]]:
    from prefopt.sampling import sample

    return sample(policy, prompts, **{"max_new_tokens": 12, **options})


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mistral"])
def test_the_batch_changes_nothing(make_policy: MakePolicy, architecture: str) -> None:
    policy = make_policy(architecture)
    alone = _sample(policy, PROMPTS, n=3, batch_size=1)
    assert _sample(policy, PROMPTS, n=3, batch_size=4) == alone
    assert _sample(policy, PROMPTS, n=3, batch_size=100) == alone
    assert _sample(policy, PROMPTS[::-1], n=3) == alone[::-1]
    assert _sample(policy, PROMPTS[2:3], n=3) == alone[2:3]


def test_seeds_and_samples_differ(make_policy: MakePolicy) -> None:
    policy = make_policy()
    texts = _sample(policy, PROMPTS[:1], n=8)[0]
    assert len(set(texts)) == 8
    assert _sample(policy, PROMPTS[:1], n=8) == [texts]
    assert not set(_sample(policy, PROMPTS[:1], n=8, seed=1)[0]) & set(texts)


def test_a_prompt_that_occurs_twice_goes_on_where_it_was(make_policy: MakePolicy) -> None:
    policy = make_policy()
    both = _sample(policy, [PROMPTS[0], PROMPTS[1], PROMPTS[0]], n=2)
    assert both[0] + both[2] == _sample(policy, PROMPTS[:1], n=4)[0]


def test_first_tokens_follow_the_policy(make_policy: MakePolicy) -> None:
    """Drawn frequencies against the softmax: total variation of 4000 draws, and top-k's share."""
    import torch

    from prefopt.engine.tokens import Encoder

    policy = make_policy(initializer_range=0.4)
    prompt = torch.from_numpy(Encoder(policy.tokenizer).prompt_ids("The film")).long()[None]
    with torch.no_grad():
        logits = policy.model(input_ids=prompt).logits[0, -1]

    def drawn(**options: Any) -> Counter[str]:
        texts = _sample(policy, ["The film"], n=4000, max_new_tokens=1, batch_size=2000, **options)
        return Counter(texts[0])

    def expected(probabilities: torch.Tensor) -> dict[str, float]:
        chances: Counter[str] = Counter()
        for token, chance in enumerate(probabilities.tolist()):
            special = token in policy.tokenizer.all_special_ids
            chances["" if special else policy.tokenizer.decode([token])] += chance
        return chances

    def distance(frequencies: Counter[str], chances: dict[str, float]) -> float:
        return sum(abs(frequencies[t] / 4000 - chances.get(t, 0.0)) for t in chances) / 2

    assert distance(drawn(), expected(logits.softmax(-1))) < 0.05
    assert distance(drawn(temperature=0.5), expected((2 * logits).softmax(-1))) < 0.05
    assert distance(drawn(), expected((2 * logits).softmax(-1))) > 0.15  # so it can tell
    best = logits.topk(5).indices
    kept = torch.full_like(logits, -torch.inf).scatter(0, best, logits[best])
    assert distance(drawn(top_k=5), expected(kept.softmax(-1))) < 0.03
    order = logits.softmax(-1).sort(descending=True)
    nucleus = order.indices[: int((order.values.cumsum(0) < 0.6).sum()) + 1]
    kept = torch.full_like(logits, -torch.inf).scatter(0, nucleus, logits[nucleus])
    assert distance(drawn(top_p=0.6), expected(kept.softmax(-1))) < 0.03


def test_temperature_zero_takes_the_most_probable(make_policy: MakePolicy) -> None:
    import torch

    from prefopt.engine.tokens import Encoder

    policy = make_policy()
    ids = Encoder(policy.tokenizer).prompt_ids("The film").tolist()
    start = len(ids)
    with torch.no_grad():
        while len(ids) < start + 12 and (ids[-1] not in policy.end_of_turn or len(ids) == start):
            ids.append(int(policy.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    text = policy.tokenizer.decode(ids[start:], skip_special_tokens=True)
    assert _sample(policy, ["The film"], temperature=0.0) == [[text]]
    assert _sample(policy, ["The film"], top_k=1) == [[text]]


def test_the_folders_sampling_defaults_are_not_applied(make_policy: MakePolicy) -> None:
    policy = make_policy()
    plain = _sample(policy, PROMPTS)
    config = policy.model.generation_config
    config.repetition_penalty = 5.0
    config.min_new_tokens = 12
    config.suppress_tokens = list(range(100, 200))
    config.temperature = 0.1
    assert _sample(policy, PROMPTS) == plain
    assert policy.model.generation_config is config


def test_completions_end_at_any_end_of_turn(make_policy: MakePolicy) -> None:
    """Every declared end stops the text, and nothing special is left in it."""
    policy = make_policy(initializer_range=0.02)  # nearly uniform over 384 tokens

    def characters() -> float:
        texts = [text for row in _sample(policy, PROMPTS, n=20) for text in row]
        specials = policy.tokenizer.all_special_tokens
        assert not any(special in text for text in texts for special in specials)
        return sum(map(len, texts)) / len(texts)

    usual = characters()
    # A third of the vocabulary: 2 tokens are to be expected, where there were 12.
    policy.model.generation_config.eos_token_id = [policy.tokenizer.eos_token_id, *range(200, 330)]
    assert characters() < usual / 3


def test_tokens_are_those_that_were_drawn(make_policy: MakePolicy) -> None:
    """With their end of turn where they have one, and the texts are theirs."""
    from prefopt.engine.tokens import Encoder
    from prefopt.sampling import sample_tokens, to_texts

    policy = make_policy(initializer_range=0.02)
    policy.model.generation_config.eos_token_id = list(range(300, 384))
    groups = sample_tokens(policy, PROMPTS, n=8, max_new_tokens=6)
    lengths = Counter[int]()
    for group, prompt in zip(groups, PROMPTS, strict=True):
        assert group.prompt.tolist() == Encoder(policy.tokenizer).prompt_ids(prompt).tolist()
        for ids in group.completions:
            ended = [int(token) in policy.end_of_turn for token in ids]
            assert not any(ended[:-1])
            assert ended[-1] or len(ids) == 6
            lengths[len(ids)] += 1
    assert len(lengths) == 6  # every length occurs
    assert to_texts(policy, groups) == _sample(policy, PROMPTS, n=8, max_new_tokens=6)


def test_an_adapter_is_part_of_the_policy(make_policy: MakePolicy) -> None:
    import torch
    from peft import LoraConfig, get_peft_model

    from prefopt.policies.load import Policy

    base = make_policy()
    before = _sample(base, PROMPTS)
    config = base.model.generation_config
    adapted = get_peft_model(base.model, LoraConfig(target_modules="all-linear"))
    policy = Policy(adapted, base.tokenizer)
    assert _sample(policy, PROMPTS) == before  # B = 0
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    assert _sample(policy, PROMPTS) != before
    assert adapted.get_base_model().generation_config is config


def test_training_mode_is_put_back(make_policy: MakePolicy) -> None:
    policy = make_policy()
    policy.model.train()
    _sample(policy, PROMPTS)
    assert policy.model.training


def test_conversations_are_prompts_too(make_policy: MakePolicy) -> None:
    policy = make_policy()
    prompt = (Message("user", "How do I bake bread?"),)
    texts = _sample(policy, [prompt, "How do I bake bread?"])
    assert texts[0] != texts[1]
    assert _sample(policy, [prompt]) == texts[:1]


def test_progress_counts_completions(make_policy: MakePolicy) -> None:
    seen: list[tuple[int, int]] = []
    _sample(make_policy(), PROMPTS, n=2, batch_size=4, progress=lambda *done: seen.append(done))
    assert seen == [(4, 10), (8, 10), (10, 10)]


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"n": 0}, "n"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"batch_size": 0}, "batch_size"),
        ({"temperature": 0.0, "n": 2}, "temperature"),
        ({"temperature": 0.0, "top_k": 5}, "temperature"),
    ],
)
def test_settings_that_are_refused(
    make_policy: MakePolicy, options: dict[str, Any], field: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        _sample(make_policy(), PROMPTS, **options)
    assert caught.value.field == field


def test_prompts_that_are_refused(make_policy: MakePolicy) -> None:
    policy = make_policy(max_position_embeddings=16)
    with pytest.raises(DataError, match="longer than the 16") as caught:
        _sample(policy, ["The film " * 10])
    assert caught.value.kind == "too_long"
    policy.tokenizer.bos_token = None
    with pytest.raises(DataError, match="no tokens"):
        _sample(policy, [""])
