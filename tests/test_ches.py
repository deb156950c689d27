"""CHES: the formula by hand, the engine against one sequence at a time, and what it predicts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor

from prefopt.engine.logps import Scorer
from prefopt.engine.tokens import Encoder, TokenGroup
from prefopt.evaluation.ches import ches_of_tokens, ches_scores, similarity
from prefopt.evaluation.implicit_reward import score_policy
from prefopt.records import Comparison, Completion, Group

if TYPE_CHECKING:
    from prefopt.policies.load import Policy

MakePolicy = Callable[..., "Policy"]


def _group(prompt: str, *texts: str, edges: tuple[Comparison, ...] = (Comparison(0, 1),)) -> Group:
    return Group(prompt, tuple(Completion(text) for text in texts), edges)


#: different lengths and prompts, shared beginnings, several comparisons in one group
GROUPS = [
    _group("The film was", " dull", " a delight; I wanted to see more of it"),
    _group(
        "How do I",
        " bake bread in the morning?",
        " bake bread in the evening, then?",
        " wait",
        edges=(Comparison(0, 1), Comparison(2, 0, probability=0.25), Comparison(1, 2, 0.75)),
    ),
    _group("Please tell me about the weather in Oslo in 1999. It", " was clear", " was cold"),
]
#: (group, better, worse) of each; a probability below ½ turns a comparison round
EDGES = [(0, 0, 1), (1, 0, 1), (1, 0, 2), (1, 1, 2), (2, 0, 1)]


def by_hand(policy: Policy, group: Group, side: int) -> tuple[Tensor, int]:
    """Σh and the length of one completion: one sequence through the model, and what its head
    was given at the places that predict the completion's tokens."""
    (encoded,) = Encoder(policy.tokenizer, end_of_turn=policy.end_of_turn)([group])
    prompt, answer = encoded.prompt, encoded.completions[side]
    read: list[Tensor] = []
    head = policy.model.get_output_embeddings()
    hook = head.register_forward_pre_hook(lambda module, inputs: read.append(inputs[0]))
    with torch.no_grad():
        policy.model(torch.from_numpy(np.concatenate([prompt, answer]).astype(np.int64))[None])
    hook.remove()
    states = read[0][0].double()
    return states[len(prompt) - 1 : len(prompt) + len(answer) - 1].sum(0), len(answer)


def test_the_formula_by_hand() -> None:
    # h⁺ = (1, 2) + (0, 1) = (1, 3), h⁻ = (2, −1): ⟨h⁺, h⁻⟩ = 2 − 3 = −1, ‖h⁺‖² = 10
    better, worse = torch.tensor([[1.0, 3.0]]), torch.tensor([[2.0, -1.0]])
    assert similarity(better, worse).tolist() == [-11.0]
    # of two tokens and of one: −1/(2·1) − 10/2² = −3
    assert similarity(better / 2, worse / 1).tolist() == [-3.0]
    # a completion is as like itself as can be, and one of the opposite direction is not
    assert similarity(better, better).tolist() == [0.0]
    assert similarity(better, -better).tolist() == [-20.0]


@pytest.mark.parametrize(
    "architecture", ["llama", "gpt2", "gemma3", "cohere", "granite", "qwen3_next"]
)
def test_scores_are_those_of_single_sequences(make_policy: MakePolicy, architecture: str) -> None:
    policy = make_policy(architecture)
    plain, normalized = [], []
    for index, better, worse in EDGES:
        (up, n), (down, m) = (by_hand(policy, GROUPS[index], side) for side in (better, worse))
        plain.append(float(up @ down - up @ up))
        normalized.append(float(up @ down / (n * m) - up @ up / n**2))
    assert len(set(plain)) == 5
    assert ches_scores(policy, GROUPS).tolist() == pytest.approx(plain, rel=1e-4)
    found = ches_scores(policy, GROUPS, length_normalize=True)
    assert found.tolist() == pytest.approx(normalized, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("sharing", ["auto", "off"])
@pytest.mark.parametrize("microbatch_tokens", [1, 40, 8192])
def test_packing_and_padding_change_nothing(
    make_policy: MakePolicy, sharing: Any, microbatch_tokens: int
) -> None:
    """In one batch the short completions are padded, alone they are not."""
    policy = make_policy()
    alone = torch.cat([ches_scores(policy, [group], sharing="off") for group in GROUPS])
    found = ches_scores(policy, GROUPS, sharing=sharing, microbatch_tokens=microbatch_tokens)
    assert found.tolist() == pytest.approx(alone.tolist(), rel=1e-4)
    turned = ches_scores(policy, GROUPS[::-1], sharing=sharing)
    assert sorted(turned.tolist()) == pytest.approx(sorted(alone.tolist()), rel=1e-4)


def test_nothing_to_score(make_policy: MakePolicy) -> None:
    assert ches_scores(make_policy(), []).shape == (0,)


def test_the_models_mode_and_weights_stay(make_policy: MakePolicy) -> None:
    policy = make_policy()
    policy.model.train()
    assert not ches_scores(policy, GROUPS).requires_grad
    assert policy.model.training


def test_rows_of_score_have_it_on_request(make_policy: MakePolicy) -> None:
    policy = make_policy()
    bare = score_policy(policy, None, GROUPS)
    assert bare.highest_ches is None
    assert "ches" not in bare.rows[0]
    assert "highest_ches" not in bare.to_dict()
    result = score_policy(policy, None, GROUPS, ches=True)
    plain, normalized = (
        ches_scores(policy, GROUPS, length_normalize=flag).tolist() for flag in (False, True)
    )
    assert [row["ches"] for row in result.rows] == pytest.approx(plain)
    assert [row["ches_normalized"] for row in result.rows] == pytest.approx(normalized)
    assert result.highest_ches is not None
    assert [row["ches_normalized"] for row in result.highest_ches] == sorted(normalized)[::-1]
    assert {name: row[name] for row in result.rows for name in bare.rows[0]} == {
        name: row[name] for row in bare.rows for name in bare.rows[0]
    }


def test_the_command_names_the_rows_most_alike(
    tiny_policy_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from prefopt.cli.app import run

    data, out = tmp_path / "pairs.jsonl", tmp_path / "rows.jsonl"
    pairs = [
        {"prompt": "The film was", "chosen": " a delight.", "rejected": " dull and clumsy."},
        {"prompt": "The cast was", "chosen": " splendid now.", "rejected": " splendid then."},
    ]
    data.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    model = str(tiny_policy_folder)
    command = ["score", model, "--reference", model, "--data", str(data), "--ches"]
    assert run([*command, "--out", str(out), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    written = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["row"] for row in written] == [1, 2]
    written.sort(key=lambda row: -row["ches_normalized"])
    kept = ("file", "row", "preferred", "dispreferred", "ches", "ches_normalized")
    assert result["highest_ches"] == [{name: row[name] for name in kept} for row in written]
    assert run(command) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"highest CHES {written[0]['ches_normalized']:+.3g}" in shown
    assert f"pairs.jsonl:{written[0]['row']}, completion 0 over 1" in shown


def test_high_scores_are_the_pairs_that_lose_likelihood(make_policy: MakePolicy) -> None:
    """The claim of the paper, one step of gradient descent for each pair by itself."""
    from prefopt.objectives import Comparisons, Scores, dpo

    policy = make_policy(initializer_range=0.02)
    rng = np.random.default_rng(0)

    def ids(count: int) -> np.ndarray:
        return rng.integers(5, 60, count).astype(np.int32)

    groups = []
    for pair in range(40):
        answer, prompt = ids(8), ids(6)
        other = answer.copy()
        changed = 1 + pair % 8  # from all but equal to nothing in common
        other[-changed:] = ids(changed)
        groups.append(TokenGroup(prompt, (answer, other), (Comparison(0, 1),)))
    scorer = Scorer(policy.model)
    _, ches = ches_of_tokens(scorer, groups, 8192)
    start = {name: weight.clone() for name, weight in policy.model.state_dict().items()}
    changes = []
    for group in groups:
        before = scorer([group])
        scores = Scores(before, before.detach(), torch.tensor([8, 8]))
        dpo(scores, Comparisons.of([(0, 1)]), beta=0.1).sum().backward()
        with torch.no_grad():
            for weight in policy.model.parameters():
                weight -= 0.01 * weight.grad
            changes.append(float(scorer([group])[0] - before[0]))
        policy.model.zero_grad()
        policy.model.load_state_dict(start)
    ranks = [np.argsort(np.argsort(values)) for values in (ches.tolist(), changes)]
    assert np.corrcoef(*ranks)[0, 1] < -0.7  # −0.83: Spearman's correlation
