"""Evaluation: hand-computed accuracies, intervals that know about clusters, win rates, KL."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from prefopt.errors import DataError, PolicyError
from prefopt.records import Comparison, Completion, Group, Origin

if TYPE_CHECKING:
    from prefopt.policies.load import Policy

MakePolicy = Callable[..., "Policy"]


def _group(prompt: str, *texts: str, edges: tuple[Comparison, ...] = (Comparison(0, 1),)) -> Group:
    return Group(prompt, tuple(Completion(text) for text in texts), edges)


GROUPS = [
    _group("The film", " was dull", " was a delight; I wanted more"),
    _group(
        "How do I", " bake bread?", " leave?", " wait", edges=(Comparison(0, 1), Comparison(2, 0))
    ),
    _group("Blue is", " the colour of the sky", " splendid"),
]

# -- intervals -----------------------------------------------------------------------------


def test_interval_is_of_the_clusters_not_of_the_rows() -> None:
    from prefopt.evaluation.intervals import clustered_bootstrap

    rng = np.random.default_rng(0)
    level = rng.normal(size=100)
    values = np.repeat(level, 20) + 0.01 * rng.normal(size=2000)
    clusters = np.repeat(np.arange(100), 20).tolist()
    clustered = clustered_bootstrap(values, clusters)
    naive = clustered_bootstrap(values, range(2000), resamples=300)
    expected = 2 * 1.96 * level.std(ddof=1) / 10
    assert clustered.high - clustered.low == pytest.approx(expected, rel=0.1)
    assert (clustered.high - clustered.low) / (naive.high - naive.low) > 4  # √20 = 4.5
    assert clustered.clusters == 100


def test_interval_covers_as_often_as_it_says() -> None:
    from prefopt.evaluation.intervals import clustered_bootstrap

    rng = np.random.default_rng(1)
    held = 0
    for trial in range(300):
        values = rng.binomial(1, 0.6, size=80)
        low, high = clustered_bootstrap(values, range(80), seed=trial, resamples=500).ends
        held += low <= 0.6 <= high
    assert 0.90 <= held / 300 <= 0.98


def test_interval_weights_and_seeds() -> None:
    from prefopt.evaluation.intervals import clustered_bootstrap

    values, clusters = [1.0, 0.0, 1.0, 0.0, 0.0], ["a", "a", "b", "c", "d"]
    assert clustered_bootstrap(values, clusters, weights=[3, 1, 1, 1, 0]).mean == 4 / 6
    assert clustered_bootstrap(values, clusters) == clustered_bootstrap(values, clusters)
    one = clustered_bootstrap([0.0, 1.0], ["a", "a"])
    assert (one.mean, one.ends, one.clusters) == (0.5, (0.5, 0.5), 1)
    for wrong in (([], []), ([1.0], ["a", "b"])):
        with pytest.raises(ValueError, match="value"):
            clustered_bootstrap(*wrong)
    with pytest.raises(ValueError, match="positive weight"):
        clustered_bootstrap([1.0], ["a"], weights=[0.0])


# -- implicit rewards ----------------------------------------------------------------------


def _by_hand(policy: Policy, prompt: str, text: str) -> float:
    """log π of a completion and its EOS, one sequence through the model's own forward."""
    import torch

    from prefopt.engine.tokens import Encoder

    prompt_ids = Encoder(policy.tokenizer).prompt_ids(prompt).tolist()
    ids = policy.tokenizer(text, add_special_tokens=False).input_ids
    ids = [*ids, policy.tokenizer.eos_token_id]
    with torch.no_grad():
        logps = policy.model(torch.tensor([prompt_ids + ids])).logits[0].log_softmax(-1)
    return sum(float(logps[len(prompt_ids) - 1 + i, token]) for i, token in enumerate(ids))


def test_margins_by_hand(make_policy: MakePolicy) -> None:
    from prefopt.evaluation.implicit_reward import score_policy

    policy, reference = make_policy(seed=1), make_policy(seed=2)
    result = score_policy(policy, reference, GROUPS, beta=0.3)
    expected = []
    for group in GROUPS:
        for edge in group.comparisons:
            pair = [group.completions[i].text for i in (edge.preferred, edge.dispreferred)]
            ratios = [
                _by_hand(policy, str(group.prompt), text)
                - _by_hand(reference, str(group.prompt), text)
                for text in pair
            ]
            expected.append(0.3 * (ratios[0] - ratios[1]))
    assert [row["margin"] for row in result.rows] == pytest.approx(expected, abs=1e-4)
    assert result.margin == pytest.approx(np.mean(expected), abs=1e-4)
    assert result.accuracy == np.mean(np.array(expected) > 0)
    assert 0 < result.accuracy < 1  # else the line above shows little
    assert (result.comparisons, result.prompts) == (4, 3)
    lengths = [(row["length_preferred"], row["length_dispreferred"]) for row in result.rows]
    assert result.length_baseline == np.mean([np.sign(a - b) / 2 + 0.5 for a, b in lengths])
    low, high = result.accuracy_interval
    assert low <= result.accuracy <= high
    assert set(result.to_dict()) >= {"comparisons", "accuracy", "accuracy_interval", "margin"}


def test_ties_probabilities_and_weights(make_policy: MakePolicy) -> None:
    from prefopt.evaluation.implicit_reward import score_policy

    policy, reference = make_policy(seed=1), make_policy(seed=2)

    def accuracy(*edges: Comparison) -> float:
        group = _group("The film", " was dull", " was a delight", edges=edges)
        return score_policy(policy, reference, [group]).accuracy

    right = accuracy(Comparison(0, 1))
    assert right in (0.0, 1.0)
    assert accuracy(Comparison(1, 0)) == 1 - right
    assert accuracy(Comparison(0, 1, probability=0.2)) == 1 - right
    assert accuracy(Comparison(0, 1, probability=0.5)) == 0.5
    assert accuracy(Comparison(0, 1, weight=3.0), Comparison(1, 0)) == 0.25 + right / 2
    # A policy that is its reference knows nothing: every margin is a tie.
    result = score_policy(policy, policy, GROUPS)
    assert (result.accuracy, result.margin) == (0.5, 0.0)
    flipped = score_policy(
        policy,
        reference,
        [_group("The film", " was dull", " was a delight", edges=(Comparison(0, 1, 0.2),))],
    ).rows[0]
    assert (flipped["preferred"], flipped["dispreferred"], flipped["probability"]) == (1, 0, 0.8)


def test_packing_and_sharing_change_nothing(make_policy: MakePolicy) -> None:
    from prefopt.evaluation.implicit_reward import score_policy

    policy, reference = make_policy(seed=1), make_policy(seed=2)
    whole = score_policy(policy, reference, GROUPS)
    small = score_policy(policy, reference, GROUPS, microbatch_tokens=1, sharing="off")
    assert [row["margin"] for row in small.rows] == pytest.approx(
        [row["margin"] for row in whole.rows], abs=1e-5
    )


def test_reference_scores_come_from_the_cache(
    make_policy: MakePolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefopt.evaluation.implicit_reward import score_policy

    policy, reference = make_policy(seed=1), make_policy(seed=2)
    first = score_policy(policy, reference, GROUPS)
    monkeypatch.setattr(reference.model, "forward", None)  # calling it now would fail
    assert score_policy(policy, reference, GROUPS).rows == first.rows


def test_without_reference_and_with_places(make_policy: MakePolicy) -> None:
    from prefopt.evaluation.implicit_reward import score_policy

    policy = make_policy(seed=1)
    group = Group(
        "The film",
        (Completion(" was dull"), Completion(" was a delight")),
        (Comparison(0, 1),),
        source="films",
        origins=(Origin("films.jsonl", 7),),
    )
    unlabelled = _group("How do I", " bake", edges=())
    (row,) = score_policy(policy, None, [unlabelled, group], beta=1.0).rows
    gap = _by_hand(policy, "The film", " was dull") - _by_hand(policy, "The film", " was a delight")
    assert row["margin"] == pytest.approx(gap, abs=1e-4)
    assert (row["file"], row["row"], row["source"]) == ("films.jsonl", 7, "films")
    assert "reference_logp_preferred" not in row


def test_what_score_refuses(make_policy: MakePolicy, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    from prefopt.evaluation.implicit_reward import score_policy
    from prefopt.policies.load import Policy

    policy = make_policy()
    with pytest.raises(DataError, match="no comparisons"):
        score_policy(policy, policy, [_group("How do I", " bake", edges=())])
    with pytest.raises(DataError, match="max_length = 4"):
        score_policy(policy, policy, GROUPS, max_length=4)
    dropped = score_policy(policy, policy, GROUPS, max_length=12, too_long="drop")
    assert dropped.comparisons < 4
    assert dropped.skipped == {"too_long": 4 - dropped.comparisons}
    policy.tokenizer.save_pretrained(tmp_path)
    other = AutoTokenizer.from_pretrained(tmp_path)
    other.add_tokens(["something else"])
    with pytest.raises(PolicyError, match="different vocabularies"):
        score_policy(policy, Policy(policy.model, other), GROUPS)


# -- win rates and divergence --------------------------------------------------------------


def test_win_rate_by_hand() -> None:
    from prefopt.evaluation.win_rate import by_reward, win_rate

    judge = by_reward(lambda prompt, text: float(len(text)))
    ours = [["aaa", "a"], ["aa", "aa"]]
    theirs = [["a", "a"], ["aaa", "a"]]
    result = win_rate(["p", "q"], ours, theirs, judge)
    assert (result.rate, result.ties, result.pairs, result.prompts) == (0.625, 0.25, 4, 2)
    assert result.interval == (0.5, 0.75)
    mirrored = win_rate(["p", "q"], theirs, ours, judge)
    assert mirrored.rate == 1 - result.rate
    with pytest.raises(ValueError, match="a judge must answer"):
        win_rate(["p"], [["a"]], [["b"]], lambda *_: 0.7)
    with pytest.raises(ValueError, match=r"shorter|longer"):
        win_rate(["p"], [["a"]], [["b", "c"]], judge)


def test_kl_is_estimated_without_bias(make_policy: MakePolicy) -> None:
    """Answers of one token, so that the exact KL is a sum over the vocabulary."""
    import torch

    from prefopt.evaluation.win_rate import sampled_kl
    from prefopt.sampling.generate import sample_tokens

    policy, reference = make_policy(seed=1), make_policy(seed=2)
    prompts = ["The film", "How do I"]
    samples = sample_tokens(policy, prompts, n=2000, max_new_tokens=1, batch_size=2000)
    exact = 0.0
    with torch.no_grad():
        for group in samples:
            prompt = torch.from_numpy(group.prompt).long()[None]
            ours, theirs = (
                side.model(prompt).logits[0, -1].log_softmax(-1) for side in (policy, reference)
            )
            exact += float((ours.exp() * (ours - theirs)).sum()) / len(samples)
    estimate = sampled_kl(policy, reference, samples, sharing="off")
    assert estimate.samples == 4000
    assert abs(estimate.kl - exact) < 4 * estimate.standard_error < 0.2 * exact
    assert sampled_kl(policy, policy, samples, sharing="off").kl == 0.0
    with pytest.raises(ValueError, match="at least one sample"):
        sampled_kl(policy, reference, [])
