"""What the engine computes in place of a model's own norms, positions and head: the same."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama import modeling_llama as llama

from prefopt.engine import head as head_module
from prefopt.engine.fused import GatedDown, RootMeanSquareNorm, RotaryPositions, fused
from prefopt.engine.head import head_logps

SIZES = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


def double(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()


def test_the_norm_and_its_gradient() -> None:
    x, weight = double(2, 3, 8), double(8, seed=1)
    norm = llama.LlamaRMSNorm(8, eps=1e-3)
    norm.weight = nn.Parameter(weight.detach().float())
    own = RootMeanSquareNorm.apply(x.float(), norm.weight, 1e-3)
    assert torch.allclose(own, norm(x.float()), atol=1e-6)
    assert torch.autograd.gradcheck(lambda a, b: RootMeanSquareNorm.apply(a, b, 1e-3), (x, weight))


def test_a_norm_that_is_not_trained_gets_no_gradient() -> None:
    weight = torch.ones(8, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda a: RootMeanSquareNorm.apply(a, weight, 1e-3), (double(2, 3, 8),)
    )


def test_rotary_positions_and_their_gradient() -> None:
    x = double(1, 3, 4, 6)  # heads, rows, channels
    cos, sin = (double(1, 1, 4, 6, seed=s).detach() for s in (1, 2))  # halves that differ
    wanted = x * cos + llama.rotate_half(x) * sin
    assert torch.allclose(RotaryPositions.apply(x, cos, sin), wanted)
    assert torch.autograd.gradcheck(lambda a: RotaryPositions.apply(a, cos, sin), (x,))


def test_a_gated_product_and_its_gradient() -> None:
    gate, up, weight = double(2, 3, 6), double(2, 3, 6, seed=1), double(4, 6, seed=2)
    wanted = (nn.functional.silu(gate) * up) @ weight.t()
    assert torch.allclose(GatedDown.apply(gate, up, weight), wanted)
    assert torch.autograd.gradcheck(GatedDown.apply, (gate, up, weight))
    frozen = weight.detach()
    assert torch.autograd.gradcheck(lambda a, b: GatedDown.apply(a, b, frozen), (gate, up))


@pytest.mark.parametrize("what", ["bias", "hook", "activation", "adapter"])
def test_an_mlp_that_does_anything_else_keeps_it(what: str) -> None:
    config = LlamaConfig(**SIZES, mlp_bias=what == "bias")
    if what == "activation":
        config.hidden_act = "gelu"
    mlp = llama.LlamaMLP(config)
    if what == "hook":
        mlp.down_proj.register_forward_hook(lambda _, __, output: output * 2)
    if what == "adapter":
        mlp.down_proj = nn.Sequential(mlp.down_proj, nn.Tanh())
    x = torch.randn(1, 5, 16)
    wanted = mlp(x)
    with fused(mlp):
        assert torch.equal(mlp(x), wanted)


@pytest.mark.parametrize(
    "make",
    [
        lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
        lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=8)),
    ],
    ids=["llama", "qwen3"],
)
def test_a_model_computes_the_same_and_is_left_as_it_was(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model = make().eval()
    other = copy.deepcopy(model)
    ids = torch.arange(12)[None] % 50
    plain = model(input_ids=ids).logits
    with fused(other):
        assert any("forward" in vars(module) for module in other.modules())
        mine = other(input_ids=ids).logits
    assert torch.allclose(mine, plain, atol=1e-6)
    plain.square().sum().backward()
    mine.square().sum().backward()
    for ours, theirs in zip(other.parameters(), model.parameters(), strict=True):
        assert ours.grad is not None and theirs.grad is not None
        assert torch.allclose(ours.grad, theirs.grad, rtol=1e-4, atol=1e-5)
    assert not any("forward" in vars(module) for module in other.modules())
    assert llama.apply_rotary_pos_emb.__module__ == llama.__name__
    assert copy.deepcopy(other) is not None  # nothing is left in it that cannot be copied


def test_a_norm_with_other_code_keeps_it() -> None:
    model = nn.ModuleList([GemmaRMSNorm(8)])
    with fused(model):
        assert "forward" not in vars(model[0])


def test_other_numbers_than_float32_go_through_the_models_own_code() -> None:
    norm = llama.LlamaRMSNorm(8).to(torch.bfloat16)
    x = torch.randn(3, 8, dtype=torch.bfloat16)
    wanted = norm(x)
    with fused(norm):
        assert torch.equal(norm(x), wanted)


# -- the head ------------------------------------------------------------------------------


def linear(words: int = 50, channels: int = 8) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(channels, words, bias=False)


@pytest.mark.parametrize("chunk", [3, 256])
def test_log_probabilities_and_their_gradients(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_module, "_CHUNK", chunk)
    head, targets = linear(), torch.tensor([4, 49, 0, 4, 7, 7, 30])
    hidden = torch.randn(7, 8).requires_grad_()
    upstream = torch.randn(7)
    wanted = torch.log_softmax(head(hidden), -1).gather(1, targets[:, None])[:, 0]
    mine = head_logps(head, hidden, targets)
    assert mine is not None
    assert torch.allclose(mine, wanted, atol=1e-6)
    theirs = torch.autograd.grad(wanted, (hidden, head.weight), upstream)
    ours = torch.autograd.grad(mine, (hidden, head.weight), upstream)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, atol=1e-6)
    with torch.no_grad():
        again = head_logps(head, hidden, targets)
    assert again is not None and torch.equal(again, mine)


def test_a_frozen_head_gets_no_gradient_and_the_hidden_states_the_same() -> None:
    head, targets = linear(), torch.tensor([1, 2])
    hidden = torch.randn(2, 8).requires_grad_()
    mine = head_logps(head, hidden, targets)
    assert mine is not None
    (wanted,) = torch.autograd.grad(mine.sum(), hidden, retain_graph=True)
    head.weight.requires_grad_(False)
    frozen = head_logps(head, hidden, targets)
    assert frozen is not None
    frozen.sum().backward()
    assert torch.equal(hidden.grad, wanted) and head.weight.grad is None  # type: ignore[arg-type]


def test_a_word_that_is_all_but_impossible_has_an_exact_log_probability() -> None:
    head = linear(2, 1)
    head.weight = nn.Parameter(torch.tensor([[0.0], [1.0]]))
    logps = head_logps(head, torch.tensor([[200.0], [80.0], [1.0]]), torch.tensor([0, 0, 0]))
    assert logps is not None
    assert logps.tolist() == pytest.approx([-200.0, -80.0, -math.log1p(math.e)], rel=1e-6)


@pytest.mark.parametrize(
    "head",
    [
        nn.Linear(8, 50),  # a bias
        nn.Linear(8, 50, bias=False, dtype=torch.bfloat16),
        nn.Sequential(nn.Linear(8, 50, bias=False)),
    ],
    ids=["bias", "bfloat16", "another module"],
)
def test_heads_that_are_not_one_matrix_are_left_to_the_plain_way(head: nn.Module) -> None:
    weight = next(head.parameters())
    assert head_logps(head, torch.randn(2, 8, dtype=weight.dtype), torch.tensor([1, 2])) is None


def test_a_head_with_hooks_is_left_to_the_plain_way() -> None:
    head = linear()
    head.register_forward_hook(lambda module, inputs, output: output * 2)
    assert head_logps(head, torch.randn(2, 8), torch.tensor([1, 2])) is None
