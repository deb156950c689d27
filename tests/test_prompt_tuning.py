"""Soft prompts: the numbers of PEFT's own forward, in trees, in rows, and when it speaks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from prefopt.engine.logps import Scorer, completion_logps
from prefopt.engine.tokens import Encoder, TokenGroup
from prefopt.errors import PolicyError, RecipeError
from prefopt.policies.adapters import attach_adapter
from prefopt.policies.export import export_model
from prefopt.policies.load import Policy, load_policy
from prefopt.policies.switches import adapter_off, as_it_started, keep_start
from prefopt.recipe import AdapterChoice, load_recipe
from prefopt.records import Comparison, Completion, Group
from prefopt.sampling.generate import sample_tokens
from prefopt.training.checkpoint import save_model
from prefopt.training.prepare import settle
from prefopt.training.trainer import DPOTrainer

KINDS = ("prompt_tuning", "p_tuning", "prefix_tuning")
LOG_2 = 0.6931471805599453
GROUPS = [
    Group(
        "A film about the sea: ",
        (Completion("good"), Completion("bad and dull"), Completion("bad")),
        (Comparison(0, 1), Comparison(0, 2)),
    ),
    Group("A story: ", (Completion("it was fine"), Completion("no")), (Comparison(1, 0),)),
]


def soft(name: str, **options: Any) -> AdapterChoice:
    return AdapterChoice.model_validate({"name": name, "virtual_tokens": 5, **options})


def logps(policy: Policy) -> torch.Tensor:
    with torch.no_grad():
        return completion_logps(policy, GROUPS)


def encoded(policy: Policy) -> list[TokenGroup]:
    return list(Encoder(policy.tokenizer, end_of_turn=policy.end_of_turn)(GROUPS))


def by_peft(policy: Policy, autocast: bool = False) -> torch.Tensor:
    """(B,) one row at a time through PEFT's own forward, whose last positions are the row's."""
    sums = []
    for group in encoded(policy):
        for answer in group.completions:
            row = torch.from_numpy(np.concatenate([group.prompt, answer]).astype("int64"))[None]
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                logits = policy.model(input_ids=row, attention_mask=torch.ones_like(row)).logits
            told = torch.log_softmax(logits[0, -row.shape[1] : -1].float(), -1)
            values = told.gather(-1, row[0, 1:, None])[:, 0]
            sums.append(values[len(group.prompt) - 1 :].sum())
    return torch.stack(sums)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3", "gemma2"])
@pytest.mark.parametrize("name", KINDS)
def test_trees_and_rows_are_what_peft_computes(
    make_policy: Callable[..., Policy], architecture: str, name: str
) -> None:
    """Also with windows of 8 tokens and soft caps; and without the prompt it is the base."""
    base = make_policy(architecture)
    start, length = logps(base), base.max_length
    policy = attach_adapter(base, soft(name))
    groups, expected = encoded(policy), by_peft(policy)
    with torch.no_grad():
        trees = Scorer(policy.model)
        assert torch.allclose(trees(groups), expected, atol=1e-5)
        assert trees.sharing == "trees"
        assert torch.allclose(Scorer(policy.model, sharing="off")(groups), expected, atol=1e-5)
    assert (expected - start).abs().max() > 1e-2  # a soft prompt does not start at the base
    with adapter_off(policy.model):
        assert torch.equal(logps(policy), start)
    assert policy.max_length == length - 5


@pytest.mark.parametrize("name", KINDS)
def test_in_half_precision_too(make_policy: Callable[..., Policy], name: str) -> None:
    """Read one position too early, log-probabilities would be whole nats off."""
    policy = attach_adapter(make_policy(), soft(name))
    groups, expected = encoded(policy), by_peft(policy, autocast=True)
    for sharing in ("auto", "off"):
        with torch.no_grad():
            found = Scorer(policy.model, sharing=sharing, precision="bf16")(groups)
        assert torch.allclose(found, expected, atol=0.5)
        assert (found - expected).abs().mean() < 0.2


@pytest.mark.parametrize("name", ["prompt_tuning", "prefix_tuning"])
def test_it_begins_as_words_that_stand_before_the_prompt(
    make_policy: Callable[..., Policy], name: str
) -> None:
    """As if the text were there: the base says the same of prompts that begin with it."""
    policy = make_policy()
    text = "How do I bake bread?"
    words = policy.tokenizer(text, add_special_tokens=False)["input_ids"]
    groups = encoded(policy)
    longer = [
        TokenGroup(np.concatenate([np.asarray(words, dtype=np.int32), g.prompt]), g.completions)
        for g in groups
    ]
    with torch.no_grad():
        expected = Scorer(policy.model)(longer)
        adapted = attach_adapter(policy, AdapterChoice(name=name, init_text=text))
        assert torch.allclose(Scorer(adapted.model)(groups), expected, atol=1e-5)


def test_a_text_that_is_too_long_is_refused(make_policy: Callable[..., Policy]) -> None:
    with pytest.raises(RecipeError, match="there are 2 virtual ones"):
        attach_adapter(make_policy(), soft("prompt_tuning", virtual_tokens=2, init_text="Bread is"))


@pytest.mark.parametrize(
    ("name", "numbers"), [("prompt_tuning", 5 * 32), ("prefix_tuning", 5 * 2 * 2 * 16)]
)
def test_training_moves_the_prompt_and_nothing_else(
    make_policy: Callable[..., Policy], name: str, numbers: int
) -> None:
    """m·d numbers, or m·2·layers·(channels of keys); base weights stay to the bit."""
    policy = make_policy()
    before = {name: weight.clone() for name, weight in policy.model.state_dict().items()}
    trainer = DPOTrainer(policy, lr=1e-2, adapter=soft(name).model_dump(exclude_none=True))
    trainable = [w for w in trainer.model.parameters() if w.requires_grad]
    assert sum(weight.numel() for weight in trainable) == numbers
    start = trainable[0].detach().clone()
    losses = [trainer.train_step(GROUPS) for _ in range(6)]
    assert losses[-1] < losses[0]
    assert not torch.equal(trainable[0], start)
    after = policy.model.state_dict()
    assert all(torch.equal(after[name], weight) for name, weight in before.items())


@pytest.mark.parametrize("name", KINDS)
def test_the_reference_is_the_base_or_the_first_prompt(tiny_policy_folder: Path, name: str) -> None:
    """log 2 to the bit for the second; for the first, what the two models differ by."""
    options: dict[str, Any] = {"adapter": soft(name).model_dump(exclude_none=True), "lr": 1e-2}
    base = DPOTrainer(tiny_policy_folder, device="cpu", **options)
    policy = logps(base.policy)
    with adapter_off(base.model):
        ratios = policy - logps(base.policy)
    pairs = [(0, 1), (0, 2), (4, 3)]
    margins = torch.stack([0.1 * (ratios[good] - ratios[bad]) for good, bad in pairs])
    expected = -torch.nn.functional.logsigmoid(margins).mean()
    assert base.recipe.reference.name == "base"
    assert base.train_step(GROUPS) == pytest.approx(float(expected), rel=1e-5)
    assert abs(float(expected) - LOG_2) > 1e-4

    prompted = DPOTrainer(tiny_policy_folder, ref_model="initial_prompt", device="cpu", **options)
    assert prompted.train_step(GROUPS) == pytest.approx(LOG_2, rel=1e-7)
    assert prompted.train_step(GROUPS) < LOG_2 - 1e-4
    with as_it_started(prompted.model):
        assert torch.equal(logps(prompted.policy), policy)


def test_initial_could_mean_two_things() -> None:
    values = {"model": "m", "data": "d", "out": "o", "adapter": "prompt_tuning"}
    resolved, _ = settle(load_recipe(None, values))
    assert resolved.recipe.reference.name == "base"
    assert resolved.origins["reference.name"] == "default for prompt_tuning"
    assert resolved.recipe.learning_rate == 1e-2
    with pytest.raises(RecipeError, match="could mean two things") as caught:
        settle(load_recipe(None, {**values, "reference": "initial"}))
    assert "base (" in caught.value.remedy and "initial_prompt (" in caught.value.remedy
    settle(load_recipe(None, {**values, "objective": "sft"}))  # which reads none


@pytest.mark.parametrize("name", KINDS)
def test_saved_loaded_and_swapped_on_one_base(
    tiny_policy_folder: Path, tmp_path: Path, name: str
) -> None:
    scores = []
    for seed in (1, 2):
        policy = attach_adapter(
            load_policy(tiny_policy_folder, device="cpu"), soft(name), seed=seed
        )
        save_model(policy, tmp_path / str(seed))
        scores.append(logps(policy))
    assert not torch.allclose(*scores, atol=1e-2)
    loaded = load_policy(tmp_path / "1", device="cpu")
    assert torch.equal(logps(loaded), scores[0])
    loaded.model.load_adapter(tmp_path / "2", "second")
    loaded.model.set_adapter("second")
    assert torch.equal(logps(loaded), scores[1])
    loaded.model.set_adapter("default")
    assert torch.equal(logps(loaded), scores[0])
    with pytest.raises(PolicyError, match="virtual tokens before the real ones"):
        export_model(tmp_path / "1", tmp_path / "plain")
    assert not (tmp_path / "plain").exists()


@pytest.mark.parametrize("name", KINDS)
def test_what_it_says_is_what_it_scores(make_policy: Callable[..., Policy], name: str) -> None:
    """The most probable tokens, in one batch that is padded on the left, by PEFT's forward."""
    policy = attach_adapter(make_policy(), soft(name))
    prompts = ["A", "A film about the sea and the sky: ", "A story: "]
    together = sample_tokens(policy, prompts, temperature=0.0, max_new_tokens=4)
    for group in together:
        row = group.prompt.astype("int64")
        for token in group.completions[0]:
            ids = torch.from_numpy(row)[None]
            with torch.no_grad():
                logits = policy.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
            assert int(logits[0, -1].argmax()) == token
            row = np.append(row, token)
    drawn = sample_tokens(policy, prompts, n=2, max_new_tokens=4, batch_size=6)
    alone = sample_tokens(policy, prompts, n=2, max_new_tokens=4, batch_size=1)
    for one, other in zip(drawn, alone, strict=True):
        assert [a.tolist() for a in one.completions] == [b.tolist() for b in other.completions]


def test_recomputed_layers_take_embeddings_and_no_prefix(tiny_policy_folder: Path) -> None:
    def losses(name: str, checkpointing: bool) -> list[float]:
        trainer = DPOTrainer(
            tiny_policy_folder, device="cpu", lr=1e-2, gradient_checkpointing=checkpointing,
            adapter=soft(name).model_dump(exclude_none=True),
        )  # fmt: skip
        return [trainer.train_step(GROUPS) for _ in range(3)]

    assert losses("prompt_tuning", True) == pytest.approx(losses("prompt_tuning", False), rel=1e-6)
    with pytest.raises(RecipeError, match="computed twice would fill twice") as caught:
        losses("prefix_tuning", True)
    assert caught.value.field == "gradient_checkpointing"


def test_keeping_the_start_draws_nothing(make_policy: Callable[..., Policy]) -> None:
    policy = attach_adapter(make_policy(), soft("p_tuning"))
    before, state = logps(policy), torch.get_rng_state()
    keep_start(policy.model)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(logps(policy), before)


@pytest.mark.parametrize("name", KINDS)
def test_a_prompt_learns_a_preference_that_holds_for_other_prompts(
    make_policy: Callable[..., Policy], name: str
) -> None:
    """Kind words over rude ones: right about pairs whose prompts and words it has not seen."""
    kind = ["splendid", "delight", "fine", "clear sky", "quiet delight", "a splendid film"]
    rude = ["dull", "clumsy", "bad", "no good", "dull story", "a clumsy film"]

    def pairs(prompts: range, words: slice) -> list[Group]:
        return [
            Group(f"Film {number}: ", (Completion(good), Completion(bad)), (Comparison(0, 1),))
            for number in prompts
            for good, bad in zip(kind[words], rude[words], strict=True)
        ]

    policy = make_policy()
    held_out = pairs(range(50, 60), slice(4, 6))
    start = logps_of(policy, held_out)
    trainer = DPOTrainer(policy, lr=3e-2, adapter=soft(name).model_dump(exclude_none=True))
    seen = pairs(range(4), slice(0, 4))
    for _ in range(25):
        trainer.train_step(seen)
    ratios = (logps_of(trainer.policy, held_out) - start).view(-1, 2)
    assert (ratios[:, 0] > ratios[:, 1]).float().mean() >= 0.75


def logps_of(policy: Policy, groups: list[Group]) -> torch.Tensor:
    with torch.no_grad():
        return completion_logps(policy, groups)
