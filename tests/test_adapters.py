"""Adapters: the policy starts at its reference, and without the adapter it is still there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from prefopt.engine.logps import completion_logps
from prefopt.errors import PolicyError, PrefoptError, RecipeError
from prefopt.policies.adapter_table import ADAPTERS, NOT_HERE, REFUSED_EVERYWHERE, AdapterKind
from prefopt.policies.adapters import attach_adapter, settled, train_adapter
from prefopt.policies.export import export_model
from prefopt.policies.fingerprint import fingerprint_model
from prefopt.policies.load import Policy, load_policy
from prefopt.policies.reference import frozen_copy, load_reference
from prefopt.policies.switches import adapter_off, as_it_started, has_adapter, keep_start
from prefopt.recipe import AdapterChoice, ResolvedRecipe, load_recipe
from prefopt.records import Comparison, Completion, Group
from prefopt.training.checkpoint import save_model
from prefopt.training.prepare import settle
from prefopt.training.train import train
from prefopt.training.trainer import DPOTrainer
from tests import stepping

GROUPS = [
    Group("A film: ", (Completion("good"), Completion("bad and dull")), (Comparison(0, 1),)),
    Group("A story: ", (Completion("it was fine"), Completion("no")), (Comparison(1, 0),)),
]


#: adapters inside of layers, and options with which they fit layers of 16, 32 and 64 channels
INSIDE = [name for name, kind in ADAPTERS.items() if not kind.soft_prompt]
FITTING: dict[str, dict[str, Any]] = {
    "c3a": {"block_size": 8},
    "fourierft": {"n_frequency": 20},
    "waveft": {"n_frequency": 20},
    "miss": {"rank": 8},
    "shira": {"rank": 4},
    "psoft": {"rank": 8, "alpha": 8},
    "road": {"group_size": 8},
    "vera": {"rank": 8},
    "randlora": {"rank": 4},
}
LOG_2 = 0.6931471805599453


def same(kind: AdapterKind, one: torch.Tensor, other: torch.Tensor) -> bool:
    """To the bit, where the adapter's own arithmetic does not depend on where its weights lie."""
    return torch.allclose(one, other, atol=1e-5) if kind.start else torch.equal(one, other)


def fitting(name: str) -> AdapterChoice:
    return AdapterChoice.model_validate({"name": name, **FITTING.get(name, {})})


def lora(**options: Any) -> AdapterChoice:
    return AdapterChoice.model_validate({"name": "lora", "rank": 4, **options})


def logps(policy: Policy) -> torch.Tensor:
    with torch.no_grad():
        return completion_logps(policy, GROUPS)


def disturb(policy: Policy) -> None:
    """Change every trainable weight, as training does."""
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(5)
        for weight in policy.model.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn_like(weight) * 0.1)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3"])
@pytest.mark.parametrize("options", [{}, {"use_dora": True}, {"use_rslora": True}])
def test_off_is_the_policy_as_it_started_to_the_bit(
    make_policy: Callable[..., Policy], architecture: str, options: dict[str, Any]
) -> None:
    policy = make_policy(architecture)
    start = logps(policy)
    adapted = attach_adapter(policy, lora(**options))
    disturb(adapted)
    assert not torch.allclose(logps(adapted), start, atol=0.1)
    with adapter_off(adapted.model):
        assert torch.equal(logps(adapted), start)
    assert not torch.allclose(logps(adapted), start, atol=0.1)  # and it is on again


def test_a_fresh_lora_changes_nothing(make_policy: Callable[..., Policy]) -> None:
    policy = make_policy()
    start = logps(policy)
    assert torch.equal(logps(attach_adapter(policy, lora())), start)


def test_off_ends_with_the_block_even_after_an_error(make_policy: Callable[..., Policy]) -> None:
    adapted = attach_adapter(make_policy(), lora())
    disturb(adapted)
    on = logps(adapted)
    with pytest.raises(ZeroDivisionError), adapter_off(adapted.model):
        _ = 1 / 0
    assert torch.equal(logps(adapted), on)


def test_the_seed_decides_the_adapter_and_leaves_the_global_state(
    make_policy: Callable[..., Policy],
) -> None:
    before = torch.get_rng_state()
    prints = [
        fingerprint_model(attach_adapter(make_policy(), lora(), seed=seed).model)
        for seed in (1, 1, 2)
    ]
    assert prints[0] == prints[1] != prints[2]
    assert torch.equal(torch.get_rng_state(), before)


def test_training_touches_the_adapter_only(make_policy: Callable[..., Policy]) -> None:
    policy = make_policy()
    base = {name: value.clone() for name, value in policy.model.state_dict().items()}
    trainer = DPOTrainer(policy, lr=1e-2, adapter={"name": "lora", "rank": 4})
    losses = [trainer.train_step(GROUPS) for _ in range(4)]
    assert losses[0] == pytest.approx(0.6931471805599453, rel=1e-7)  # log 2, nothing else
    assert losses[-1] < losses[0] / 2
    for name, weight in trainer.model.named_parameters():
        assert weight.requires_grad == ("lora_" in name)
    trained = trainer.model.unload().state_dict()
    assert all(torch.equal(trained[name], value) for name, value in base.items())


def test_saved_and_loaded_again(
    tiny_policy_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_policy_folder.parent)
    adapted = attach_adapter(load_policy(tiny_policy_folder.name, device="cpu"), lora())
    disturb(adapted)
    save_model(adapted, tmp_path / "saved")
    monkeypatch.chdir("/")  # the adapter finds its base from anywhere
    loaded = load_policy(tmp_path / "saved", device="cpu")
    assert has_adapter(loaded.model)
    assert torch.equal(logps(loaded), logps(adapted))


def test_a_loaded_adapter_is_trained_and_its_reference_is_how_it_was_loaded(
    tiny_policy_folder: Path, tmp_path: Path
) -> None:
    adapted = attach_adapter(load_policy(tiny_policy_folder, device="cpu"), lora())
    disturb(adapted)
    save_model(adapted, tmp_path / "saved")
    trainer = DPOTrainer(tmp_path / "saved", lr=1e-2, device="cpu")
    assert trainer.train_step(GROUPS) == pytest.approx(0.6931471805599453, rel=1e-7)
    assert trainer.train_step(GROUPS) < 0.6
    with adapter_off(trainer.model):
        base = logps(trainer.policy)
    assert torch.equal(base, logps(load_policy(tiny_policy_folder, device="cpu")))
    frozen = load_policy(tmp_path / "saved", device="cpu").model
    assert not any(weight.requires_grad for weight in frozen.parameters())
    train_adapter(frozen)
    assert all(w.requires_grad == ("lora_" in n) for n, w in frozen.named_parameters())


@pytest.mark.parametrize(
    ("options", "field", "message"),
    [
        ({"name": "loora"}, "adapter.name", "there is no adapter 'loora'"),
        ({"lora_dropout": 0.05}, "adapter.lora_dropout", "dropout makes log-ratios noisy"),
        ({"bias": "all"}, "adapter.bias", "biases of the base"),
        ({"init_lora_weights": "pissa"}, "adapter.init_lora_weights", "does not start at"),
        ({"init_lora_weights": "olora"}, "adapter.init_lora_weights", "does not start at"),
        ({"init_lora_weights": False}, "adapter.init_lora_weights", "does not start at"),
        ({"r": 4}, "adapter.r", "is called 'rank' here"),
        ({"ranke": 4}, "adapter.ranke", "has no option 'ranke'"),
    ],
)
def test_adapters_that_would_train_something_else(
    make_policy: Callable[..., Policy], options: dict[str, Any], field: str, message: str
) -> None:
    policy = make_policy()
    with pytest.raises(RecipeError, match=message) as caught:
        attach_adapter(policy, lora(**options))
    assert caught.value.field == field
    assert not has_adapter(policy.model)


def test_layers_that_are_not_there(make_policy: Callable[..., Policy]) -> None:
    with pytest.raises(PolicyError) as caught:
        attach_adapter(make_policy(), lora(target_modules=["w_proj"]))
    assert caught.value.field == "adapter.target_modules"


@pytest.mark.parametrize(
    ("settings", "field", "message"),
    [
        ({"target_modules": "("}, "adapter", "cannot be attached"),
        ({"target_modules": ["q_proj", "qproj"]}, "adapter.target_modules", "called qproj"),
        ({"layers_to_transform": 99}, "adapter.target_modules", "layers_to_transform"),
        ({"rank_pattern": 3}, "adapter", "cannot be attached"),
        ({"use_rslora": "maybe"}, "adapter.use_rslora", "true or false"),
        ({"name": "gralora", "rank": 7}, "adapter", "divisible"),
        (
            {"name": "prefix_tuning", "virtual_tokens": 512},
            "adapter.virtual_tokens",
            "made for 512",
        ),
    ],
)
def test_options_that_cannot_be(
    settings: dict[str, Any], field: str, message: str, make_policy: Callable[..., Policy]
) -> None:
    with pytest.raises(PrefoptError, match=message) as caught:
        attach_adapter(make_policy(), AdapterChoice(**settings))
    assert (caught.value.field, caught.value.exit_code) == (field, 2)


def test_a_second_adapter_is_refused(make_policy: Callable[..., Policy]) -> None:
    adapted = attach_adapter(make_policy(), lora())
    with pytest.raises(PolicyError, match="already has an adapter"):
        attach_adapter(adapted, lora())


# -- every row of the table ----------------------------------------------------------------


@pytest.mark.parametrize("name", INSIDE)
def test_every_adapter_begins_as_the_policy_and_off_stays_there(
    tiny_policy_folder: Path, tmp_path: Path, name: str
) -> None:
    """Its start, three steps, off, frozen weights, a round trip, a frozen copy, and the merge."""
    kind, policy = ADAPTERS[name], load_policy(tiny_policy_folder, device="cpu")
    start = logps(policy)
    frozen = {id(weight): weight.clone() for weight in policy.model.parameters()}
    rate = 1e-3 if name == "randlora" else 1e-2  # which is scaled by 40
    trainer = DPOTrainer(policy, lr=rate, adapter=fitting(name).model_dump(exclude_none=True))
    adapted = trainer.policy
    assert (logps(adapted) - start).abs().max() <= kind.start
    again = attach_adapter(load_policy(tiny_policy_folder, device="cpu"), fitting(name))
    assert fingerprint_model(again.model) == fingerprint_model(adapted.model)

    losses = [trainer.train_step(GROUPS) for _ in range(4)]
    assert losses[0] == pytest.approx(LOG_2, rel=1e-7 if kind.start == 0 else 1e-5)
    assert losses[-1] < losses[0] - 1e-4
    weights = list(adapted.model.parameters())
    kept = [weight for weight in weights if id(weight) in frozen]
    assert len(kept) == len(frozen)
    assert not any(weight.requires_grad for weight in kept)
    assert all(torch.equal(weight, frozen[id(weight)]) for weight in kept)
    on = logps(adapted)
    assert not torch.equal(on, start)
    with adapter_off(adapted.model):
        assert torch.equal(logps(adapted), start)

    save_model(adapted, tmp_path / "saved")
    loaded = load_policy(tmp_path / "saved", device="cpu")
    assert same(kind, logps(loaded), on)
    train_adapter(loaded.model)
    keep_start(loaded.model)
    trainable = {n for n, w in loaded.model.named_parameters() if w.requires_grad}
    assert trainable == {n for n, w in adapted.model.named_parameters() if w.requires_grad}
    disturb(loaded)
    assert not torch.allclose(logps(loaded), on, atol=1e-4)
    with as_it_started(loaded.model):
        assert same(kind, logps(loaded), on)

    if kind.merges:
        made = export_model(tmp_path / "saved", tmp_path / "plain")
        assert made["merged"] and made["difference"] < 1e-4
        assert torch.allclose(logps(load_policy(tmp_path / "plain", device="cpu")), on, atol=1e-4)
    else:
        with pytest.raises(PolicyError, match="cannot be folded into the weights"):
            export_model(tmp_path / "saved", tmp_path / "plain")
    assert (tmp_path / "plain").exists() == kind.merges


def test_what_the_table_says_of_options_is_about_options_of_peft() -> None:
    """A refusal of something that is not there would be a promise that nothing keeps."""
    import dataclasses

    import peft

    every: set[str] = set()
    for name, kind in ADAPTERS.items():
        known = {option.name for option in dataclasses.fields(getattr(peft, kind.config))}
        every |= known
        assert {*kind.names.values(), *kind.fixed, *kind.refused} <= known, name
        # Every option that says how it starts has one value that is right.
        assert {n for n in known if n.startswith("init_") and n != "init_v_bound"} - {
            "init_weights" if kind.config == "PrefixTuningConfig" else ""
        } <= {*kind.fixed}, name
        assert set(kind.defaults) <= kind.reads, name
    assert set(REFUSED_EVERYWHERE) <= every
    assert not set(NOT_HERE) & set(ADAPTERS)


def test_every_adapter_of_peft_is_in_the_table_or_refused_with_a_reason() -> None:
    from peft import PEFT_TYPE_TO_CONFIG_MAPPING

    mentioned = {kind.config for kind in ADAPTERS.values()}
    for kind, config in PEFT_TYPE_TO_CONFIG_MAPPING.items():
        assert config.__name__ in mentioned or str(kind.value).lower() in NOT_HERE, kind


def test_settings_that_an_adapter_does_not_read_are_refused() -> None:
    for name, field, value in (
        ("ia3", "rank", 4),
        ("vera", "alpha", 4),
        ("lora", "virtual_tokens", 4),
        ("prompt_tuning", "target_modules", "all-linear"),
        ("p_tuning", "init_text", "Be kind."),
    ):
        with pytest.raises(RecipeError, match=f"{field} has no effect on adapter '{name}'") as e:
            settled(AdapterChoice.model_validate({"name": name, field: value}))
        assert e.value.field == f"adapter.{field}"


def test_defaults_are_the_adapters_own_and_are_written_out() -> None:
    lora_, vera = settled(AdapterChoice()), settled(AdapterChoice(name="vera"))
    assert (lora_.rank, lora_.alpha, lora_.target_modules) == (16, 32, "all-linear")
    assert (vera.rank, vera.alpha) == (256, None)
    assert settled(lora_) == lora_
    text = settled(AdapterChoice(name="prompt_tuning", init_text="Be kind."))
    assert text.virtual_tokens is None  # as many as the text has
    assert settled(AdapterChoice(name="prompt_tuning")).virtual_tokens == 16


@pytest.mark.parametrize("name", ["adalora", "pissa", "olora", "loftq", "corda", "eva", "pvera"])
def test_adapters_that_are_not_trained_here_are_refused_with_the_reason(name: str) -> None:
    with pytest.raises(RecipeError, match=f"'{name}' is not trained here: ") as caught:
        settled(AdapterChoice(name=name))
    assert caught.value.field == "adapter.name"
    assert caught.value.message.endswith(NOT_HERE[name])


def test_a_recipe_says_what_the_adapter_came_to(tmp_path: Path) -> None:
    resolved = load_recipe(None, {"model": "m", "data": "d", "out": "o", "adapter": "vera"})
    settled_, _ = settle(resolved)
    assert settled_.values()["adapter.rank"] == 256
    assert settled_.origins["adapter.rank"] == "default for vera"
    assert settled_.values()["reference.name"] == "initial"


# -- what a model that sees is adapted in --------------------------------------------------


def test_all_linear_leaves_the_eyes_of_a_model_alone() -> None:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig
    from transformers import LlavaForConditionalGeneration as Llava

    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    eyes = CLIPVisionConfig(**shape, num_attention_heads=2, image_size=8, patch_size=4)
    words = LlamaConfig(**shape, num_attention_heads=2, num_key_value_heads=1, vocab_size=40)
    policy = Policy(
        Llava(LlavaConfig(vision_config=eyes, text_config=words, image_token_index=39)).eval(), None
    )  # type: ignore[arg-type]
    attach_adapter(policy, lora())
    adapted = {n for n, m in policy.model.named_modules() if hasattr(m, "lora_A")}
    assert len(adapted) == 7  # of the one layer: q, k, v, o, gate, up and down
    assert all("language_model" in name for name in adapted)


# -- an adapter that is trained further ----------------------------------------------------


def further(folder: Path, out: Path, **more: Any) -> ResolvedRecipe:
    pairs = out.parent / "pairs.jsonl"
    rows = [
        {"prompt": f"Question {n}?", "chosen": f"Blue {n}.", "rejected": f"No {n}!"}
        for n in range(12)
    ]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {"model": str(folder), "data": str(pairs), "out": str(out), "batch_size": 3,
              "epochs": 2, "learning_rate": 1e-2, "schedule": "constant", "warmup": 0.0,
              **more}  # fmt: skip
    return load_recipe(None, values)


def margins(out: Path) -> list[float]:
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return [record["margin"] for record in map(json.loads, lines) if record["kind"] == "train"]


@pytest.mark.parametrize("name", ["lora", "prompt_tuning", "prefix_tuning"])
def test_a_run_goes_on_from_an_adapter_and_stays_close_to_that_one(
    tiny_policy_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Scored before training or at each step, with a kill or without: the same margins."""
    adapted = attach_adapter(
        load_policy(tiny_policy_folder, device="cpu"), AdapterChoice(name=name)
    )
    disturb(adapted)
    save_model(adapted, tmp_path / "first")
    whole, each, cut = (tmp_path / out for out in ("whole", "each", "cut"))
    train(further(tmp_path / "first", whole), progress=False)
    train(further(tmp_path / "first", each, reference_scores="each_step"), progress=False)
    assert margins(whole)[0] == 0.0
    assert abs(margins(whole)[-1]) > 1e-3
    assert margins(each) == pytest.approx(margins(whole), abs=1e-4)
    stepping.train_with_a_kill(
        further(tmp_path / "first", cut, reference_scores="each_step", checkpoint_every=1),
        monkeypatch,
    )
    assert margins(cut) == margins(each)
    files = [out / "model" / "adapter_model.safetensors" for out in (each, cut)]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert not list((each / "model").glob("*/"))  # nothing of the frozen copy is saved


def test_the_base_is_in_memory_once(tiny_policy_folder: Path, tmp_path: Path) -> None:
    """Beside a continued adapter there is a copy of it, frozen, and nothing else."""
    adapted = attach_adapter(load_policy(tiny_policy_folder, device="cpu"), lora())
    disturb(adapted)
    save_model(adapted, tmp_path / "saved")
    trainer = DPOTrainer(tmp_path / "saved", lr=1e-2, device="cpu")
    trainer.train_step(GROUPS)
    sizes = [
        sum(weight.numel() for weight in policy.model.parameters())
        for policy in (load_policy(tiny_policy_folder, device="cpu"), adapted, trainer.policy)
    ]
    assert sizes[2] - sizes[1] == sizes[1] - sizes[0] > 0


def test_the_reference_of_a_continued_adapter_can_be_its_base(
    tiny_policy_folder: Path, tmp_path: Path
) -> None:
    adapted = attach_adapter(load_policy(tiny_policy_folder, device="cpu"), lora())
    disturb(adapted)
    save_model(adapted, tmp_path / "first")
    train(further(tmp_path / "first", tmp_path / "a", reference="base"), progress=False)
    other = str(tiny_policy_folder)
    train(further(tmp_path / "first", tmp_path / "b", reference=other), progress=False)
    assert margins(tmp_path / "a")[0] != 0.0
    assert margins(tmp_path / "a") == pytest.approx(margins(tmp_path / "b"), abs=1e-5)


def test_references_that_are_not_there_are_refused(
    tiny_policy_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match="no adapter to be without"):
        train(further(tiny_policy_folder, tmp_path / "a", reference="base"), progress=False)
    for adapter in ({}, {"adapter": "lora"}):
        values: dict[str, Any] = {"reference": "initial_prompt", **adapter}
        with pytest.raises(RecipeError, match="no soft prompt to start from"):
            train(further(tiny_policy_folder, tmp_path / "a", **values), progress=False)
    moving = {"name": "base", "update_every": 2}
    with pytest.raises(RecipeError, match="which nothing moves"):
        train(
            further(tiny_policy_folder, tmp_path / "a", reference=moving, adapter="lora"),
            progress=False,
        )
    assert not (tmp_path / "a").exists()


# -- references ----------------------------------------------------------------------------


def test_a_frozen_copy_stays_where_it_was(make_policy: Callable[..., Policy]) -> None:
    policy = make_policy()
    copy = frozen_copy(policy)
    start = logps(policy)
    disturb(policy)
    assert torch.equal(logps(copy), start)
    assert not any(weight.requires_grad for weight in copy.model.parameters())
    assert all(weight.requires_grad for weight in policy.model.parameters())


def test_a_reference_must_speak_the_same_tokens(
    make_policy: Callable[..., Policy], save_policy: Callable[..., Path]
) -> None:
    policy, folder = make_policy(), save_policy("llama", seed=3)
    reference = load_reference(str(folder), policy)
    assert not any(weight.requires_grad for weight in reference.model.parameters())
    assert reference.device == policy.device
    policy.tokenizer.chat_template = "another"
    with pytest.raises(PolicyError, match="different tokenizers"):
        load_reference(str(folder), policy)
