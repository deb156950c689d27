"""The engine: trees = separate rows = padded, whatever the decoder and the packing."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.masking_utils import causal_mask_function

from prefopt.engine import attention
from prefopt.engine.forest import MIN_SHARED, build_forest, group_tokens, pack
from prefopt.engine.logps import Scorer, completion_logps
from prefopt.engine.token_values import TokenLogps
from prefopt.engine.tokens import TokenGroup
from prefopt.records import Comparison, Completion, Group

EXACT = ["llama", "qwen3", "mistral", "gemma3", "gpt2", "phi3", "gemma2", "cohere", "granite"]


def token_groups(seed: int = 0, vocabulary: int = 300) -> list[TokenGroup]:
    """Groups of every kind: pairs, many completions, shared beginnings, equal prompts."""
    rng = np.random.default_rng(seed)

    def ids(length: int) -> np.ndarray:
        return rng.integers(5, vocabulary, length).astype(np.int32)

    beginning, conversation = ids(6), ids(9)
    return [
        TokenGroup(ids(13), (ids(7), ids(11))),
        TokenGroup(ids(1), (ids(3), ids(1))),
        TokenGroup(
            np.concatenate([conversation, ids(3)]),
            (*tuple(np.concatenate([beginning, ids(n)]) for n in (1, 4, 9)), ids(5), beginning),
        ),
        TokenGroup(np.concatenate([conversation, ids(20)]), (ids(12), ids(2), ids(30))),
        TokenGroup(conversation, (beginning, beginning)),
    ]


def naive_logps(model: Any, groups: list[TokenGroup]) -> Tensor:
    """One sequence at a time, without any machinery: what the numbers mean."""
    values = []
    for group in groups:
        for completion in group.completions:
            ids = torch.from_numpy(np.concatenate([group.prompt, completion]).astype(np.int64))
            logps = F.log_softmax(model(input_ids=ids[None]).logits[0].double(), dim=-1)
            steps = range(len(group.prompt), len(ids))
            values.append(sum((logps[i - 1, ids[i]] for i in steps), logps.new_zeros(())))
    return torch.stack(values)


def gradients(model: Any, logps: Tensor) -> Tensor:
    """Of a weighted sum of log-probs, all parameters in one vector."""
    model.zero_grad()
    weights = torch.linspace(-1, 1, len(logps), dtype=logps.dtype)
    (logps * weights).sum().backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


# -- the forest ----------------------------------------------------------------------------


def test_forest_contains_every_sequence_on_its_path() -> None:
    groups = token_groups()
    forest = build_forest(groups)
    sequences = [np.concatenate([g.prompt, c]) for g in groups for c in g.completions]
    ends = [segment.stop for segment in forest.segments]
    assert ends == list(np.cumsum(forest.lengths))
    assert ends[-1] == len(forest)
    for index, sequence in enumerate(sequences):
        mine = forest.scored[forest.owners == index]
        prompt = len(sequence) - len(mine)
        assert list(forest.targets[mine]) == list(sequence[prompt:])
        # The predictor of each token is the row of the token before it on the same path.
        assert list(forest.tokens[forest.predictors[mine]]) == list(sequence[prompt - 1 : -1])
        assert list(forest.positions[forest.predictors[mine]]) == list(
            range(prompt - 1, len(sequence) - 1)
        )


def test_forest_shares_prompts_beginnings_and_conversations() -> None:
    groups = token_groups()
    forest = build_forest(groups)
    unshared = sum(len(g.prompt) + len(c) for g in groups for c in g.completions)
    assert unshared == (2 * 13 + 18) + (2 * 1 + 4) + (5 * 12 + 43) + (3 * 29 + 44) + (2 * 9 + 12)
    # 13+7+11 | 1+3 and 1+1 (a prompt of one token is not worth a branch) | the conversation of
    # nine tokens once for three groups; then 3 + 6 + 1 + 4 + 9 and, as three tokens are not
    # worth a branch, 3 + 5 | 20 + 12 + 2 + 30 | 6 once for two equal completions
    assert len(forest) == 31 + 6 + 9 + (9 + 14) + (3 + 5) + (20 + 44) + 6


def test_ancestors_are_an_interval() -> None:
    forest = build_forest(token_groups())
    for index, segment in enumerate(forest.segments):
        ancestors = {*segment.path, index}
        row = segment.stop - 1
        seen = [k for k in range(row + 1) if row < forest.subtree_end[k]]
        expected = [
            k
            for s in sorted(ancestors)
            for k in range(forest.segments[s].start, forest.segments[s].stop)
        ]
        assert seen == expected


def test_short_common_prefixes_are_not_shared() -> None:
    prompt = np.arange(10, dtype=np.int32)
    common = np.full(MIN_SHARED - 1, 50, dtype=np.int32)
    other = np.array([70], dtype=np.int32)  # branches at the end of the prompt
    group = TokenGroup(prompt, (other, *(np.append(common, np.int32(n)) for n in (60, 61))))
    assert len(build_forest([group])) == 10 + 1 + 2 * MIN_SHARED
    longer = np.full(MIN_SHARED, 50, dtype=np.int32)
    group = TokenGroup(prompt, (other, *(np.append(longer, np.int32(n)) for n in (60, 61))))
    assert len(build_forest([group])) == 10 + 1 + MIN_SHARED + 2


def test_pack_fills_micro_batches_and_loses_nothing() -> None:
    groups = token_groups() * 7
    for limit in (1, 40, 100, 10_000):
        bins = pack(groups, limit)
        assert sorted(i for members in bins for i in members) == list(range(len(groups)))
        for members in bins:
            size = sum(group_tokens(groups[i]) for i in members)
            assert size <= limit or len(members) == 1
    assert len(pack(groups, 10_000)) == 1


# -- equality ------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", EXACT)
def test_trees_equal_separate_rows_and_single_sequences(
    architecture: str, make_model: Callable[..., Any]
) -> None:
    model, groups = make_model(architecture), token_groups()
    with torch.no_grad():
        expected = naive_logps(model, groups)
    rows, trees = Scorer(model, sharing="off"), Scorer(model)
    by_rows, by_trees = rows(groups), trees(groups)
    assert (rows.sharing, trees.sharing, trees.reason) == ("rows", "trees", None)
    assert trees.difference is not None
    assert trees.difference < 1e-5
    torch.testing.assert_close(by_rows.double(), expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(by_trees.double(), expected, atol=1e-4, rtol=0)
    from_rows, from_trees = gradients(model, by_rows), gradients(model, trees(groups))
    scale = from_rows.abs().max()
    assert (from_rows - from_trees).abs().max() <= 1e-5 * scale


def test_a_hybrid_falls_back_to_rows_and_says_so(
    make_model: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    model, groups = make_model("qwen3_next"), token_groups()
    scorer = Scorer(model)
    with torch.no_grad(), caplog.at_level(logging.WARNING):
        first, second = scorer(groups), scorer(groups)
        expected = naive_logps(model, groups)
    assert scorer.sharing == "rows"
    assert scorer.reason
    assert len([r for r in caplog.records if "prefix sharing is off" in r.message]) == 1
    torch.testing.assert_close(first.double(), expected, atol=1e-4, rtol=0)
    assert torch.equal(first, second)


def test_a_wrong_tree_is_noticed(
    make_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the layers' windows were ignored, the check of the first batch must catch it."""
    wrong = lambda mask_function, device, **_: attention.TreeMask(  # noqa: E731
        attention._forest.get(), causal_mask_function, torch.device(device), False
    )
    monkeypatch.setitem(attention.AttentionMaskInterface._global_mapping, attention.NAME, wrong)
    scorer = Scorer(make_model("mistral"))
    with torch.no_grad():
        scorer(token_groups())
    assert scorer.sharing == "rows"
    assert scorer.difference is not None
    assert scorer.difference > 1e-3


def test_lack_of_memory_is_not_taken_for_a_difference(
    make_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    scorer = Scorer(make_model("llama"))
    monkeypatch.setattr(scorer, "_trees", full)
    with pytest.raises(torch.OutOfMemoryError):
        scorer(token_groups())
    assert scorer.sharing is None


def test_chunked_head_equals_plain_head(make_model: Callable[..., Any]) -> None:
    model, groups = make_model("gemma2"), token_groups()
    plain, chunked = Scorer(model), Scorer(model, logits_budget=4 * 384 * 7)
    a, b = plain(groups), chunked(groups)
    torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
    torch.testing.assert_close(gradients(model, a), gradients(model, b), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("architecture", ["llama", "gemma2"])
def test_gradient_checkpointing_changes_nothing(
    architecture: str, make_model: Callable[..., Any]
) -> None:
    model, groups = make_model(architecture), token_groups()
    model.train()
    scorer = Scorer(model)
    expected = gradients(model, scorer(groups))
    scorer.enable_checkpointing()
    scores = scorer(groups)
    assert model.config._attn_implementation in ("sdpa", "eager")  # ours only while it runs
    torch.testing.assert_close(gradients(model, scores), expected, atol=1e-6, rtol=1e-5)


def test_attention_name_is_not_saved(make_model: Callable[..., Any], tmp_path: Any) -> None:
    model = make_model("llama")
    Scorer(model)(token_groups())
    model.save_pretrained(tmp_path)
    assert attention.NAME not in (tmp_path / "config.json").read_text()


def test_token_logps_gradient() -> None:
    torch.manual_seed(0)
    logits = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([0, 6, 3, 3, 1])
    assert torch.autograd.gradcheck(lambda x: TokenLogps.apply(x, targets), (logits,))
    expected = logits.log_softmax(-1)[torch.arange(5), targets]
    torch.testing.assert_close(TokenLogps.apply(logits, targets), expected)


def test_bfloat16_is_accumulated_in_float32(make_model: Callable[..., Any]) -> None:
    model, groups = make_model("llama"), token_groups()
    with torch.no_grad():
        exact, rough = Scorer(model)(groups), Scorer(model, precision="bf16")(groups)
    assert rough.dtype == torch.float32
    assert 0 < (exact - rough).abs().max() < 0.05 * exact.abs().max()


# -- from text -----------------------------------------------------------------------------


def test_completion_logps_of_text(make_policy: Callable[..., Any]) -> None:
    policy = make_policy("llama")
    groups = [
        Group(
            f"Name a colour number {n}.",
            (Completion(" Blue."), Completion(" The sky is blue."), Completion(" Blue. Red.")),
            (Comparison(0, 1),),
        )
        for n in range(4)
    ]
    scores = completion_logps(policy, groups)
    assert scores.shape == (12,)
    assert scores.requires_grad
    assert (scores < 0).all()
    for change in ({"sharing": "off"}, {"microbatch_tokens": 30}):
        torch.testing.assert_close(
            completion_logps(policy, groups, **change), scores, atol=1e-4, rtol=0
        )
    # By hand: the prompt's ids, the completion's ids, EOS; each scored given all before it.
    ids = policy.tokenizer("Name a colour number 2.")["input_ids"]
    answer = policy.tokenizer(" Blue.", add_special_tokens=False)["input_ids"]
    answer = [*answer, policy.tokenizer.eos_token_id]
    logits = policy.model(torch.tensor([ids + answer])).logits[0].log_softmax(-1)
    by_hand = sum(logits[len(ids) - 1 + i, token] for i, token in enumerate(answer))
    assert scores[6].item() == pytest.approx(by_hand.item(), abs=1e-4)


def test_completion_logps_of_nothing(make_policy: Callable[..., Any]) -> None:
    assert completion_logps(make_policy("llama"), []).shape == (0,)
