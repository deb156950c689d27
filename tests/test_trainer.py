"""The article's interface, and a regression test for each mistake of its code.

E1 to E8 are the numbers of the mistakes in `docs/article.md`.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from prefopt import DPOTrainer, DPOTrainerWithLoRA, ProbabilisticDPOTrainer, dpo_loss
from prefopt.engine.logps import completion_logps
from prefopt.errors import DataError, NonFiniteError, PolicyError, RecipeError, TrainingError
from prefopt.policies.load import Policy, load_policy
from prefopt.records import Comparison, Completion, Group

LOG_2 = 0.6931471805599453

GROUPS = [
    Group(f"Film {i}: ", (Completion(f"it was {good}"), Completion(f"{bad}")), (Comparison(0, 1),))
    for i, (good, bad) in enumerate([("good", "a bad film"), ("bright", "dull"), ("loud", "no")])
]

PI = torch.tensor([-10.0, -14.0, -9.0, -7.5])
REF = torch.tensor([-12.0, -11.0, -9.5, -7.0])
YW, YL = torch.tensor([0, 3]), torch.tensor([1, 2])


def rows_of(policy: Policy, groups: list[Group]) -> tuple[dict[str, torch.Tensor], Any, Any]:
    """The groups as the article's batch: padded rows with masks, and indices of pairs."""
    from prefopt.engine.tokens import Encoder

    encoder = Encoder(policy.tokenizer, end_of_turn=policy.end_of_turn)
    pairs = [(g.prompt, ids) for g in encoder(groups) for ids in g.completions]
    width = max(len(prompt) + len(ids) for prompt, ids in pairs)
    x = {
        name: torch.zeros(len(pairs), width, dtype=torch.int64)
        for name in ("input_ids", "attention_mask", "completion_mask")
    }
    for row, (prompt, ids) in enumerate(pairs):
        end = len(prompt) + len(ids)
        x["input_ids"][row, :end] = torch.tensor([*prompt, *ids])
        x["attention_mask"][row, :end] = 1
        x["completion_mask"][row, len(prompt) : end] = 1
    return x, list(range(0, len(pairs), 2)), list(range(1, len(pairs), 2))


# -- dpo_loss and compute_loss -------------------------------------------------------------


def test_losses_and_rewards_by_hand() -> None:
    losses, rewards = dpo_loss(PI, REF, YW, YL, beta=0.2)
    # ρ = (2, −3, 0.5, −0.5); h = 5 and −1; −log σ(1) and −log σ(−0.2)
    assert losses.tolist() == pytest.approx([math.log1p(math.exp(-1)), math.log1p(math.exp(0.2))])
    assert rewards.tolist() == pytest.approx([0.4, -0.6, 0.1, -0.1])


def test_rewards_are_detached_and_the_reference_gets_no_gradient() -> None:
    policy, reference = PI.clone().requires_grad_(), REF.clone().requires_grad_()
    losses, rewards = dpo_loss(policy, reference, YW, YL)
    losses.sum().backward()
    assert not rewards.requires_grad
    assert policy.grad is not None
    assert bool((policy.grad != 0).all())
    assert reference.grad is None  # E2


@pytest.mark.parametrize("yw", [[0, 3], (0, 3), YW])
def test_indices_may_be_lists(yw: Any) -> None:
    assert torch.equal(dpo_loss(PI, REF, yw, YL)[0], dpo_loss(PI, REF, YW, YL)[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pi_logps": torch.zeros(4, 7, 32), "ref_logps": torch.zeros(4, 7, 32)}, "one number"),
        ({"ref_logps": torch.zeros(3)}, "one number per completion"),
        ({"yl_idxs": [1]}, "yl_idxs must be"),
        ({"yl_idxs": [1, 4]}, "one of 4 completions"),
        ({"yw_idxs": [-1, 0]}, "one of 4 completions"),
        ({"yw_idxs": [], "yl_idxs": []}, "at least one"),
        ({"probability": 1.5}, r"in \[0, 1\]"),
        ({"probability": torch.tensor([0.5])}, "one number or"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    usual = {"pi_logps": PI, "ref_logps": REF, "yw_idxs": YW, "yl_idxs": YL}
    with pytest.raises(DataError, match=message):
        dpo_loss(**{**usual, **arguments})


def test_compute_loss_is_the_mean_and_returns_both(make_policy: Callable[..., Policy]) -> None:
    trainer = DPOTrainer(make_policy(), beta=0.2)
    losses, expected = dpo_loss(PI, REF, YW, YL, beta=0.2)
    loss, rewards = trainer.compute_loss(PI, REF, YW, YL)
    assert torch.equal(loss, losses.mean())
    assert torch.equal(rewards, expected)
    weighted, _ = trainer.compute_loss(PI, REF, YW, YL, weight=torch.tensor([3.0, 1.0]))
    assert float(weighted) == pytest.approx(float((3 * losses[0] + losses[1]) / 4))


# -- the mistakes --------------------------------------------------------------------------


def test_e1_the_step_gathers_the_label_tokens(make_policy: Callable[..., Policy]) -> None:
    """The article averages over every word of the vocabulary; only the tokens matter."""
    policy = make_policy()
    expected = make_policy()
    batch = rows_of(policy, GROUPS)
    trainer = DPOTrainer(policy, beta=0.5, lr=1e-2, max_grad_norm=1e9)
    trainer.train_step(batch)

    logits = expected.model(
        input_ids=batch[0]["input_ids"], attention_mask=batch[0]["attention_mask"]
    ).logits.double()
    tokens = logits[:, :-1].log_softmax(-1).gather(-1, batch[0]["input_ids"][:, 1:, None])[..., 0]
    logps = (tokens * batch[0]["completion_mask"][:, 1:]).sum(-1)
    gap = (logps - logps.detach())[0::2] - (logps - logps.detach())[1::2]
    (-torch.nn.functional.logsigmoid(0.5 * gap)).mean().backward()
    optimizer = torch.optim.AdamW(expected.model.parameters(), lr=1e-2, weight_decay=0.0)
    optimizer.step()
    for name, weight in expected.model.named_parameters():
        # Adam's first step is the sign of the gradient: compare where that is not rounding.
        sure = weight.grad.abs() > 1e-4
        other = dict(policy.model.named_parameters())[name]
        assert torch.allclose(other[sure], weight[sure], atol=1e-5), name


def test_e1_padding_and_prompt_are_data(make_policy: Callable[..., Policy]) -> None:
    """Token ids under the padding do not matter, and masks are never guessed from them."""
    losses = []
    for filler in (0, 17):
        policy = make_policy()
        x, yw, yl = rows_of(policy, GROUPS)
        x["input_ids"][x["attention_mask"] == 0] = filler
        trainer = DPOTrainer(policy, lr=1e-3)
        losses.append([trainer.train_step((x, yw, yl)) for _ in range(3)])
    assert losses[0] == losses[1]


def test_e2_the_reference_is_frozen_and_without_dropout(
    make_policy: Callable[..., Policy],
) -> None:
    policy = make_policy("gpt2", attn_pdrop=0.5, resid_pdrop=0.5, embd_pdrop=0.5)
    reference = copy.deepcopy(policy.model).train()
    before = {name: weight.clone() for name, weight in reference.named_parameters()}
    trainer = DPOTrainer(policy.model, reference, lr=1e-3, tokenizer=policy.tokenizer)
    assert trainer.train_step(GROUPS) == pytest.approx(LOG_2, rel=1e-7)  # noise would show
    for name, weight in reference.named_parameters():
        assert weight.grad is None
        assert torch.equal(weight, before[name])
    assert not reference.training


def test_e3_every_loss_returns_loss_and_rewards(make_policy: Callable[..., Policy]) -> None:
    for kind in (DPOTrainer, DPOTrainerWithLoRA):
        assert len(kind(make_policy()).compute_loss(PI, REF, YW, YL)) == 2
    assert len(ProbabilisticDPOTrainer(make_policy()).compute_loss(PI, REF, YW, YL, 0.8)) == 2


def test_e4_e5_e6_soft_labels_keep_the_reference_and_the_pairs(
    make_policy: Callable[..., Policy],
) -> None:
    trainer = ProbabilisticDPOTrainer(make_policy(), beta=0.2)
    chance = torch.tensor([0.8, 0.3])
    loss, _ = trainer.compute_loss(PI, REF, YW, YL, preference_prob=chance)
    # h = 5 and −1, β = 0.2: p·log(1 + e^−βh) + (1 − p)·log(1 + e^βh) of each, then the mean
    first = 0.8 * math.log1p(math.exp(-1.0)) + 0.2 * math.log1p(math.exp(1.0))
    second = 0.3 * math.log1p(math.exp(0.2)) + 0.7 * math.log1p(math.exp(-0.2))
    assert float(loss) == pytest.approx((first + second) / 2, rel=1e-6)
    without_reference, _ = trainer.compute_loss(PI, torch.zeros(4), YW, YL, chance)
    assert float(without_reference) != pytest.approx(float(loss))
    with pytest.raises(DataError, match="needs a probability"):
        trainer.compute_loss(PI, REF, YW, YL)


def test_e6_a_step_takes_a_probability_for_each_pair(make_policy: Callable[..., Policy]) -> None:
    """βh goes to logit(p) of each pair, also to the negative side."""
    policy = make_policy()
    x, yw, yl = rows_of(policy, GROUPS[:2])
    trainer = ProbabilisticDPOTrainer(policy, beta=0.5, lr=3e-3)
    for _ in range(150):
        trainer.train_step((x, yw, yl, [0.8, 0.3]))
    with torch.no_grad():
        after = completion_logps(policy, GROUPS[:2]).reshape(2, 2)
        before = completion_logps(make_policy(), GROUPS[:2]).reshape(2, 2)
    gap = (after - before)[:, 0] - (after - before)[:, 1]
    expected = [math.log(0.8 / 0.2), math.log(0.3 / 0.7)]
    assert (0.5 * gap).tolist() == pytest.approx(expected, abs=0.05)


def test_e8_lora_on_the_very_object_that_is_the_reference(
    make_policy: Callable[..., Policy],
) -> None:
    policy = make_policy()
    model = policy.model
    trainer = DPOTrainerWithLoRA(model, model, lr=1e-2, tokenizer=policy.tokenizer)
    start = completion_logps(make_policy(), GROUPS).detach()
    losses = [trainer.train_step(GROUPS) for _ in range(5)]
    assert losses[0] == pytest.approx(LOG_2, rel=1e-7)
    assert losses[-1] < 0.3  # a reference that moved along would leave it at log 2
    trained = completion_logps(trainer.policy, GROUPS).detach()
    gaps = (trained - start).reshape(-1, 2)
    loss = torch.nn.functional.softplus(-0.1 * (gaps[:, 0] - gaps[:, 1])).mean()
    assert trainer.train_step(GROUPS) == pytest.approx(float(loss), rel=1e-4)


def test_full_training_on_the_very_object_that_is_the_reference(
    make_policy: Callable[..., Policy],
) -> None:
    policy = make_policy()
    trainer = DPOTrainer(policy.model, policy.model, lr=1e-3, tokenizer=policy.tokenizer)
    losses = [trainer.train_step(GROUPS) for _ in range(3)]
    assert losses[0] == pytest.approx(LOG_2, rel=1e-7)
    assert losses[2] < losses[1] < losses[0]


def test_a_reference_that_shares_some_weights_is_refused(
    make_policy: Callable[..., Policy],
) -> None:
    policy, other = make_policy(), make_policy(seed=1)
    other.model.model.embed_tokens = policy.model.model.embed_tokens
    with pytest.raises(PolicyError, match="share weights"):
        DPOTrainer(policy.model, other.model, tokenizer=policy.tokenizer)


# -- train_step ----------------------------------------------------------------------------


def test_rows_and_groups_are_the_same_batch(make_policy: Callable[..., Policy]) -> None:
    policy, other = make_policy(), make_policy()
    x, yw, yl = rows_of(policy, GROUPS)
    by_rows, by_groups = DPOTrainer(policy, lr=1e-3), DPOTrainer(other, lr=1e-3)
    for _ in range(3):
        assert by_rows.train_step((x, yw, yl)) == pytest.approx(
            by_groups.train_step(GROUPS), rel=1e-5
        )


def test_rows_in_any_order(make_policy: Callable[..., Policy]) -> None:
    """Rows of one prompt share it, wherever they are."""
    policy, other = make_policy(), make_policy()
    x, yw, yl = rows_of(policy, GROUPS)
    shuffle = torch.tensor([3, 0, 5, 1, 4, 2])
    place = shuffle.argsort()
    mixed = {name: value[shuffle] for name, value in x.items()}
    straight, shuffled = DPOTrainer(policy, lr=1e-3), DPOTrainer(other, lr=1e-3)
    for _ in range(3):
        assert straight.train_step((x, yw, yl)) == pytest.approx(
            shuffled.train_step((mixed, place[yw], place[yl])), rel=1e-5
        )


def test_the_memory_limit_never_changes_a_step(make_policy: Callable[..., Policy]) -> None:
    weighted = [
        Group(g.prompt, g.completions, (Comparison(0, 1, 0.9, weight=1.0 + i),))
        for i, g in enumerate(GROUPS)
    ]
    whole = DPOTrainer(make_policy(), lr=1e-3)
    cut = DPOTrainer(make_policy(), lr=1e-3, microbatch_tokens=1)
    for _ in range(3):
        assert whole.train_step(weighted) == pytest.approx(cut.train_step(weighted), rel=1e-5)


def test_a_subclass_may_bring_its_own_loss(make_policy: Callable[..., Policy]) -> None:
    class Doubled(DPOTrainer):
        def compute_loss(self, pi_logps: Any, ref_logps: Any, yw_idxs: Any, yl_idxs: Any) -> Any:
            loss, rewards = super().compute_loss(pi_logps, ref_logps, yw_idxs, yl_idxs)
            return 2 * loss, rewards

    trainer = Doubled(make_policy())
    assert trainer.train_step(GROUPS) == pytest.approx(2 * LOG_2, rel=1e-6)
    with pytest.raises(RecipeError, match="would ignore this class's compute_loss"):
        trainer.fit(GROUPS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x.pop("completion_mask"), "is missing"),
        (lambda x: x["completion_mask"].zero_(), "after a prompt"),
        (lambda x: x["completion_mask"].fill_(1), "after a prompt"),
        (lambda x: x["completion_mask"][:, -1].zero_(), "the end of each row"),
        (lambda x: x.update(attention_mask=torch.ones(2, 2)), "one shape"),
    ],
)
def test_batches_that_are_not_prompt_and_completion(
    make_policy: Callable[..., Policy], change: Callable[[Any], Any], message: str
) -> None:
    policy = make_policy()
    x, yw, yl = rows_of(policy, GROUPS[:1] * 2)
    change(x)
    with pytest.raises(DataError, match=message):
        DPOTrainer(policy).train_step((x, yw, yl))


def test_a_step_that_is_not_finite_changes_nothing(make_policy: Callable[..., Policy]) -> None:
    policy = make_policy()
    trainer = DPOTrainer(policy, beta=0.1)
    trainer.train_step(GROUPS)
    with torch.no_grad():
        policy.model.lm_head.weight[5] = torch.nan
    kept = policy.model.model.embed_tokens.weight.clone()
    with pytest.raises(NonFiniteError):
        trainer.train_step(GROUPS)
    assert torch.equal(policy.model.model.embed_tokens.weight, kept)
    assert policy.model.model.embed_tokens.weight.grad is None


# -- fit -----------------------------------------------------------------------------------


def test_fit_is_the_training_of_the_command_line(
    tiny_policy_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefopt.recipe import load_recipe
    from prefopt.runs import Run
    from prefopt.training.train import train

    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(
        "".join(
            json.dumps({"prompt": f"{i}: ", "chosen": f"good {i}", "rejected": "bad"}) + "\n"
            for i in range(10)
        )
    )
    common = {"batch_size": 4, "epochs": 2, "seed": 3}
    trainer = DPOTrainer(tiny_policy_folder, lr=1e-3, device="cpu", **common)
    history = trainer.fit(pairs, pairs)
    trainer.save(tmp_path / "saved")
    monkeypatch.setenv("PREFOPT_CACHE", str(tmp_path / "another-cache"))
    run = {"model": str(tiny_policy_folder), "data": str(pairs), "eval_data": str(pairs)}
    settings = {**run, "out": str(tmp_path / "run"), "learning_rate": 1e-3, **common}
    train(load_recipe(None, settings), progress=False)

    def values(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{k: v for k, v in r.items() if "second" not in k} for r in records]

    assert values(history) == values(Run(tmp_path / "run").read_metrics())
    assert history[-1]["kind"] == "eval"
    saved = load_policy(tmp_path / "saved", device="cpu").model.state_dict()
    trained = load_policy(tmp_path / "run" / "model", device="cpu").model.state_dict()
    assert all(torch.equal(saved[name], value) for name, value in trained.items())


def test_fit_takes_groups_and_can_go_on_from_the_cache(make_policy: Callable[..., Policy]) -> None:
    trainer = DPOTrainer(make_policy(), lr=1e-3, batch_size=2)
    first = trainer.fit(iter(GROUPS))
    second = trainer.fit(GROUPS)  # scored once, while the weights were the initial ones
    assert first[0]["loss"] == pytest.approx(LOG_2, rel=1e-7)
    assert second[0]["loss"] < LOG_2
    others = [Group("New: ", GROUPS[0].completions, GROUPS[0].comparisons)]
    with pytest.raises(TrainingError, match="weights are gone") as caught:
        trainer.fit(others)
    assert "ref_model=copy.deepcopy(model)" in str(caught.value.remedy)
    with pytest.raises(TrainingError, match="weights are gone"):
        trainer.train_step(others)


def test_fit_twice_with_a_reference_of_its_own(make_policy: Callable[..., Policy]) -> None:
    policy = make_policy()
    reference = copy.deepcopy(policy)
    trainer = DPOTrainer(policy, reference, lr=1e-3)
    trainer.fit(GROUPS[:1])
    assert trainer.fit(GROUPS[1:])[0]["loss"] < math.inf
    assert trainer.train_step(GROUPS) < math.inf


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"out": "runs/x"}, "out"),
        ({"checkpoint_every": 5}, "checkpoint_every"),
        ({"objective": "sft"}, "objective"),
        ({"batchsize": 5}, "batchsize"),
        ({"beta": 0.0}, "objective.beta"),
        ({"lr": -1.0}, "learning_rate"),
    ],
)
def test_options_that_cannot_be_meant(
    make_policy: Callable[..., Policy], options: dict[str, Any], field: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        DPOTrainer(make_policy(), **options)
    assert caught.value.field == field


def test_an_evaluation_needs_data(make_policy: Callable[..., Policy]) -> None:
    trainer = DPOTrainer(make_policy(), eval_every=2, early_stop=2)
    with pytest.raises(RecipeError, match="eval_every has no effect without eval_data"):
        trainer.fit(GROUPS)


def test_text_needs_a_tokenizer_and_rows_do_not(make_policy: Callable[..., Policy]) -> None:
    policy = make_policy()
    trainer = DPOTrainer(policy.model)
    assert trainer.train_step(rows_of(policy, GROUPS)) == pytest.approx(LOG_2, rel=1e-6)
    with pytest.raises(PolicyError, match="needs a tokenizer"):
        trainer.fit(GROUPS)
    with pytest.raises(PolicyError, match="brings its own tokenizer"):
        DPOTrainer("some/folder", tokenizer=policy.tokenizer)


def test_something_that_is_no_model() -> None:
    with pytest.raises(PolicyError, match="not Linear"):
        DPOTrainer(torch.nn.Linear(2, 2))
