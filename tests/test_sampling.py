"""Sampling: the policy's own distribution, the same texts whatever the batch, no special tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from prefopt.errors import DataError, RecipeError
from prefopt.records import Message
from tests.conftest import ARCHITECTURES

if TYPE_CHECKING:
    from prefopt.policies.load import Policy

MakePolicy = Callable[..., "Policy"]
PROMPTS = ["The film", "What a dull, clumsy story; I", "How do I", "Blue is the colour", "I wanted"]


def _sample(policy: Policy, prompts: Any, **options: Any) -> list[list[str]]:
    from prefopt.sampling.generate import sample

    return sample(policy, prompts, **{"max_new_tokens": 12, **options})


def _tokens(policy: Policy, prompts: Any, **options: Any) -> Any:
    from prefopt.sampling.generate import sample_tokens

    return sample_tokens(policy, prompts, **options)


def _draw(policy: Policy, *, batch_size: int = 32, on_done: Any = None, **settings: Any) -> Any:
    from prefopt.sampling.generate import draw
    from prefopt.sampling.settings import Settings

    return draw(policy, PROMPTS, Settings(**settings), batch_size=batch_size, on_done=on_done)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mistral", "qwen3_next"])
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


def test_a_number_falls_on_a_token_as_often_as_it_is_probable() -> None:
    """To the last of 20,000 numbers, after temperature, top-k and top-p, in that order."""
    import torch

    from prefopt.sampling.drawing import next_tokens, warpers

    chances = torch.tensor([0.05, 0.0, 0.4, 0.1, 0.25, 0.2], dtype=torch.float64)
    logits = chances.log().float()
    count = 20_000
    numbers = (torch.arange(count, dtype=torch.float64) + 0.5) / count

    def expected(temperature: float, top_p: float, top_k: int) -> torch.Tensor:
        weights = chances ** (1 / temperature)
        order = weights.argsort(descending=True)
        if top_k:
            weights[order[top_k:]] = 0
        weights = weights / weights.sum()
        before = weights[order].cumsum(0) - weights[order]
        weights[order[before >= top_p]] = 0  # the first that reach it stay
        return weights / weights.sum()

    for how in ((1.0, 1.0, 0), (0.5, 1.0, 0), (2.0, 1.0, 3), (1.0, 0.7, 0), (1.0, 0.6, 2),
                (0.5, 0.9, 4), (1.0, 1e-9, 0), (1.0, 1.0, 100)):  # fmt: skip
        tokens = next_tokens(logits.expand(count, -1), warpers(*how), numbers)
        found = tokens.bincount(minlength=6).double()
        assert (found - count * expected(*how)).abs().max() <= 1.0, how
    ends = torch.tensor([0.0, 1.0 - 2.0**-53], dtype=torch.float64)
    assert next_tokens(logits.expand(2, -1), [], ends).tolist() == [0, 5]
    assert next_tokens(logits.roll(1).expand(2, -1), [], ends).tolist() == [0, 5]
    last = torch.tensor([0.5, 0.5, 0.0]).log()  # never what has no chance at all
    assert next_tokens(last.expand(2, -1), [], ends).tolist() == [0, 1]
    assert next_tokens(last.flip(0).expand(2, -1), [], ends).tolist() == [1, 2]


def test_two_tokens_have_their_joint_distribution(make_policy: MakePolicy) -> None:
    """Of 4000 samples of two tokens among three, every frequency within four deviations."""
    import torch

    from prefopt.engine.tokens import Encoder
    from prefopt.sampling.generate import sample_tokens

    policy = make_policy(initializer_range=0.2)
    prompts = ["The film", "How do I"]
    groups = sample_tokens(policy, prompts, n=4000, max_new_tokens=2, top_k=3, batch_size=3000)
    for prompt, group in zip(prompts, groups, strict=True):
        ids = Encoder(policy.tokenizer).prompt_ids(prompt).tolist()

        def kept(after: list[int]) -> dict[int, float]:
            with torch.no_grad():
                logits = policy.model(input_ids=torch.tensor([after])).logits[0, -1]
            best = logits.topk(3)
            return dict(zip(best.indices.tolist(), best.values.softmax(-1).tolist(), strict=True))

        expected: dict[tuple[int, ...], float] = {}
        for first, chance in kept(ids).items():
            if first in policy.end_of_turn:
                expected[first,] = chance
                continue
            for second, more in kept([*ids, first]).items():
                expected[first, second] = chance * more
        found = Counter(tuple(answer.tolist()) for answer in group.completions)
        assert set(found) <= set(expected)
        assert len(expected) > 6
        for answer, chance in expected.items():
            spread = (chance * (1 - chance) / 4000) ** 0.5
            assert abs(found[answer] / 4000 - chance) < 4 * spread + 1e-3, answer


def _scripted(monkeypatch: pytest.MonkeyPatch, ids: list[int]) -> None:
    """The policy says this, whatever it thinks."""
    import torch

    from prefopt.sampling import continuous

    coming = iter(ids)
    monkeypatch.setattr(
        continuous, "next_tokens", lambda logits, *_: torch.full((len(logits),), next(coming))
    )


@pytest.mark.parametrize("between", [0, 9], ids=["together", "special tokens between"])
@pytest.mark.parametrize(
    ("said", "stop", "before"),
    [("go on. Stop here", "Stop", "go on. "), ("a naïve cliché it is", "é", "a naïve clich"),
     ("日本語です", "語で", "日本"), ("Stop", "Stop", ""), ("one STOP", "TOP", "one S")],
)  # fmt: skip
def test_stops_are_found_in_text_not_in_tokens(
    make_policy: MakePolicy,
    monkeypatch: pytest.MonkeyPatch,
    said: str,
    stop: str,
    before: str,
    between: int,
) -> None:
    """Spread over tokens, over the bytes of a character, with tokens between that are no text."""
    from prefopt.sampling.sampler import LocalSampler, Sample
    from prefopt.sampling.settings import Settings

    policy = make_policy()
    turn = policy.tokenizer.convert_tokens_to_ids("<|turn|>")
    ids = [policy.tokenizer(said[:end], add_special_tokens=False)["input_ids"]
           for end in (said.index(stop) + len(stop), len(said))]  # fmt: skip
    spread = [[one for token in each for one in (token, *[turn] * between)] for each in ids]
    needed = len(spread[0]) - between
    _scripted(monkeypatch, spread[0] + spread[1][len(spread[0]) :])
    seen: list[int] = []
    from prefopt.sampling import continuous

    end = continuous.Rules.end
    monkeypatch.setattr(
        continuous.Rules, "end", lambda rules, row: seen.append(1) or end(rules, row)
    )
    settings = Settings(max_new_tokens=len(spread[1]), temperature=0.0, stop=(stop, "never"))
    ((sample,),) = LocalSampler(policy).sample_all(["The film"], settings)
    assert sample == Sample(before, "stop", sample.logp)
    assert len(seen) == needed  # not one token more was drawn


def test_answers_that_end_at_once(make_policy: MakePolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    from prefopt.sampling.sampler import LocalSampler
    from prefopt.sampling.settings import Settings

    policy = make_policy()
    eos = policy.tokenizer.eos_token_id
    _scripted(monkeypatch, [eos])
    settings = Settings(max_new_tokens=5, temperature=0.0, stop=("x",))
    ((sample,),) = LocalSampler(policy).sample_all(["The film"], settings)
    assert (sample.text, sample.finish) == ("", "end")
    assert sample.logp is not None and sample.logp < 0


def test_more_samples_than_tokens(make_policy: MakePolicy) -> None:
    policy = make_policy(initializer_range=0.02)
    texts = _sample(policy, PROMPTS[:1], n=1000, max_new_tokens=1, top_k=2, batch_size=300)[0]
    assert len(texts) == 1000
    assert len(set(texts)) == 2


def test_waiting_samples_take_no_memory(
    make_policy: MakePolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numbers are drawn when a row begins; of a thousand rows they would fill the memory."""
    from prefopt.sampling import generate

    drawn: list[int] = []
    plain = generate.uniforms
    monkeypatch.setattr(generate, "uniforms", lambda *how: drawn.append(1) or plain(*how))
    ahead: list[int] = []
    _sample(make_policy(), PROMPTS, n=20, batch_size=8, max_new_tokens=3,
            progress=lambda done, _: ahead.append(len(drawn) - done))  # fmt: skip
    assert len(drawn) == 100
    assert max(ahead) <= 8

    def stop(done: int, of: int) -> None:
        raise KeyboardInterrupt(of)

    with pytest.raises(KeyboardInterrupt, match="1000000000"):
        _sample(make_policy(), PROMPTS[:1], n=10**9, progress=stop)


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
    from prefopt.sampling.generate import sample_tokens, to_texts

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


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_greedy_is_the_librarys_own(make_policy: MakePolicy, architecture: str) -> None:
    """Prompts of several lengths at once, against `generate` of each alone."""
    import torch

    from prefopt.engine.tokens import Encoder

    policy = make_policy(architecture)
    encoder = Encoder(policy.tokenizer)
    drawn = _draw(policy, temperature=0.0, max_new_tokens=20, batch_size=4)
    for prompt, samples in zip(PROMPTS, drawn, strict=True):
        ids = torch.from_numpy(encoder.prompt_ids(prompt)).long()[None]
        whole = policy.model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False
        )
        assert samples[0].ids.tolist() == whole[0, ids.shape[1] :].tolist()


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt2"])
def test_both_generations_draw_the_same(
    make_policy: MakePolicy, architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefopt.sampling import continuous

    policy = make_policy(architecture)
    policy.model.generation_config.eos_token_id = [policy.tokenizer.eos_token_id, *range(200, 215)]
    assert continuous.serves(policy.model, 64)

    def drawn() -> list[list[tuple[list[int], bool]]]:
        found = _draw(policy, n=4, batch_size=6, max_new_tokens=30, top_p=0.9, stop=("e",))
        return [[(sample.ids.tolist(), sample.stopped) for sample in own] for own in found]

    own = drawn()
    ways = {(stopped, ids[-1] in policy.end_of_turn) for row in own for ids, stopped in row}
    assert ways >= {(True, False), (False, True)}
    monkeypatch.setattr(continuous, "serves", lambda *_: False)
    assert drawn() == own


def test_a_prompt_is_read_once_for_its_samples(
    make_policy: MakePolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefopt.sampling import continuous

    policy = make_policy(initializer_range=0.02)
    policy.model.generation_config.eos_token_id = list(range(4, 100))  # lengths differ
    assert continuous.serves(policy.model, 64)
    shapes: list[tuple[int, int]] = []
    forward = continuous._Reader._forward

    def noted(self: Any, **inputs: Any) -> Any:
        shapes.append(tuple(inputs["input_ids"].shape))
        return forward(self, **inputs)

    monkeypatch.setattr(continuous._Reader, "_forward", noted)
    groups = _tokens(policy, PROMPTS, n=8, max_new_tokens=40, batch_size=16)
    prompts = [rows for rows, columns in shapes if columns > 1]
    assert sum(prompts) < 2 * len(PROMPTS)  # of 40 samples; one is cut in two by the batch
    steps = [rows for rows, columns in shapes if columns == 1]
    drawn = sum(len(ids) for group in groups for ids in group.completions)
    # Rows that have ended are soon replaced: most of what is computed is drawn.
    assert drawn > 0.75 * sum(steps)
    assert max(steps) == 16


@pytest.mark.parametrize("widths", [(2, 5), (5, 2), (3, 3)])
def test_rows_that_join_end_in_one_column(widths: tuple[int, int]) -> None:
    import torch

    from prefopt.sampling.rows import Rows, empty_cache

    def some(rows: int, width: int) -> Rows:
        cache = empty_cache()
        cache.update(torch.randn(rows, 2, width, 4), torch.randn(rows, 2, width, 4), 0)
        mask = torch.ones(rows, width, dtype=torch.long)
        mask[0, : width - 2] = 0  # the first has two tokens
        return Rows(cache, mask)

    def held(rows: Rows, row: int) -> torch.Tensor:
        """Keys and values of a row's own tokens."""
        layer, own = rows.cache.layers[0], rows.mask[row] == 1
        return torch.cat([layer.keys[row][:, own], layer.values[row][:, own]])

    one, other = some(2, widths[0]), some(3, widths[1])
    before = [held(one, row) for row in range(2)] + [held(other, row) for row in range(3)]
    both = one.join(other)
    assert both.mask.shape == (5, max(widths))
    assert both.mask[:, -1].all() and (both.mask.diff() >= 0).all()
    assert all(torch.equal(held(both, row), before[row]) for row in range(5))
    chosen = both.take(torch.tensor([2, 0, 2]))
    assert chosen.mask.shape == (3, 2)  # nothing is wider than two tokens now
    assert all(torch.equal(held(chosen, i), before[row]) for i, row in enumerate((2, 0, 2)))
    chosen.cache.update(torch.ones(3, 2, 1, 4), torch.ones(3, 2, 1, 4), 0)
    chosen.grow(1)
    assert torch.equal(held(chosen, 1)[:2, :2], before[0][:2])
    assert (held(chosen, 1)[:, 2] == 1).all()


def test_a_cache_that_is_not_understood_is_not_used(
    make_policy: MakePolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model whose padding is seen, as if it ignored the mask, goes to the library."""
    import torch

    from prefopt.sampling import continuous

    assert not continuous.serves(make_policy("qwen3_next").model, 32)  # no keys to keep
    policy, twin = make_policy(seed=1), make_policy(seed=1)
    assert continuous.serves(policy.model, 32)
    before = _sample(policy, PROMPTS, n=2)
    forward = continuous._Reader._forward

    def blind(self: Any, **inputs: Any) -> Any:
        mask = torch.ones_like(inputs["attention_mask"])
        return forward(self, **{**inputs, "attention_mask": mask})

    monkeypatch.setattr(continuous._Reader, "_forward", blind)
    assert _sample(policy, PROMPTS, n=2) != before  # it was trusted before
    assert not continuous.serves(twin.model, 32)
    assert _sample(twin, PROMPTS, n=2) == before


@pytest.mark.parametrize("architecture", ["llama", "qwen3_next"])
def test_texts_that_end_a_completion(make_policy: MakePolicy, architecture: str) -> None:
    """It is what comes before the first of them in the sample that goes on."""
    from prefopt.sampling.generate import sample as texts_of
    from prefopt.sampling.generate import to_texts

    policy = make_policy(architecture, initializer_range=0.05)
    options: dict[str, Any] = {"n": 4, "max_new_tokens": 40, "seed": 3}
    whole = texts_of(policy, PROMPTS, **options)
    stop = ("e", "st", " a")
    drawn = _draw(policy, stop=stop, batch_size=3, **options)
    stopped = texts_of(policy, PROMPTS, stop=stop, **options)
    full = [text for row in whole for text in row]
    assert sum(any(part in text for part in stop) for text in full) > 5
    assert not any(part in text for row in stopped for text in row for part in stop)
    for text, cut, sample in zip(
        full, (t for row in stopped for t in row), (s for row in drawn for s in row), strict=True
    ):
        places = [text.find(part) for part in stop if part in text]
        assert cut == (text[: min(places)] if places else text)
        assert sample.stopped == bool(places)
    assert to_texts(policy, _tokens(policy, PROMPTS, **options)) == whole


def test_log_probabilities_are_the_policys_own(make_policy: MakePolicy) -> None:
    """Whatever the temperature they were drawn at, end of turn included."""
    from prefopt.engine.logps import Scorer
    from prefopt.engine.tokens import Encoder, TokenGroup

    policy = make_policy(initializer_range=0.05)
    policy.model.generation_config.eos_token_id = list(range(100, 200))
    drawn = _draw(policy, n=3, temperature=0.7, top_k=50, max_new_tokens=12)
    encoder = Encoder(policy.tokenizer)
    groups = [
        TokenGroup(encoder.prompt_ids(prompt), tuple(sample.ids for sample in samples))
        for prompt, samples in zip(PROMPTS, drawn, strict=True)
    ]
    expected = Scorer(policy.model)(groups).tolist()
    logps = [sample.logp for samples in drawn for sample in samples]
    assert logps == pytest.approx(expected, abs=1e-4)


def test_prompts_are_handed_over_when_they_have_all_their_samples(
    make_policy: MakePolicy,
) -> None:

    done: dict[int, Any] = {}
    drawn = _draw(make_policy(), n=3, batch_size=4, max_new_tokens=6, on_done=done.__setitem__)
    assert sorted(done) == list(range(len(PROMPTS)))
    for position, samples in done.items():
        assert [s.ids.tolist() for s in samples] == [s.ids.tolist() for s in drawn[position]]


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
    assert seen == [(done, 10) for done in range(1, 11)]


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"n": 0}, "n"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": 1e-40}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"batch_size": 0}, "batch_size"),
        ({"stop": ["a", ""]}, "stop"),
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
