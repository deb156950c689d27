"""Write `trl.json`: what the losses of the installed TRL are on the logits of `inputs.json`.

    pip install '.[bench]' && python tests/golden/make_trl.py

TRL's own methods run, on a stand-in for the model that answers with the given logits. No test
imports this file; the numbers that it writes are what `tests/test_golden.py` compares with.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

HERE = Path(__file__).parent
INPUTS = json.loads((HERE / "inputs.json").read_text(encoding="utf-8"))
PAIRS = INPUTS["comparisons"]


class Batch:
    """Rows of logits as a padded batch behind a prompt of one token, and a model that knows them.

    The policy's logits are reference + s·(policy − reference): s = 1 is the input, and the
    derivative with respect to s is the slope that is written down.
    """

    def __init__(self, rows: list[dict[str, Any]], s: Tensor) -> None:
        self.tokens = [torch.tensor(row["tokens"]) for row in rows]
        self.lengths = torch.tensor([len(tokens) for tokens in self.tokens])
        width = int(self.lengths.max()) + 1
        places = torch.arange(width)
        self.mask = ((places > 0) & (places <= self.lengths[:, None])).long()
        self.ids = torch.zeros(len(rows), width, dtype=torch.int64)
        self.ids[self.mask.bool()] = torch.cat(self.tokens)
        reference = [torch.tensor(row["reference"], dtype=s.dtype) for row in rows]
        policy = [torch.tensor(row["policy"], dtype=s.dtype) for row in rows]
        moved = [old + s * (new - old) for old, new in zip(reference, policy, strict=True)]
        self.policy, self.reference = self._padded(moved, width), self._padded(reference, width)

    def _padded(self, rows: list[Tensor], width: int) -> Tensor:
        return torch.stack(
            [torch.nn.functional.pad(row, (0, 0, 0, width - len(row))) for row in rows]
        )

    def model(self, logits: Tensor) -> Any:
        def forward(*_: Any, **__: Any) -> SimpleNamespace:
            kept = self.mask[:, 1:].bool()
            logs = logits[:, :-1].log_softmax(-1)
            taken = logs.gather(-1, self.ids[:, 1:, None])[..., 0]
            return SimpleNamespace(
                logits=logits,
                log_probs=torch.where(kept, taken, 0.0),
                log_sum_sq_probs=torch.where(kept, (2 * logs).logsumexp(-1), 0.0).detach(),
                entropy=torch.zeros_like(taken),
                mean_logits=torch.zeros_like(taken),
                is_top1=kept,
            )

        return forward


def bare(trainer: type, **attributes: Any) -> Any:
    """A trainer that was not set up: its methods, and only the attributes that they read."""
    gather = SimpleNamespace(
        device="cpu", gather=lambda x: x, gather_for_metrics=lambda x: x, unwrap_model=lambda x: x
    )
    made = object.__new__(trainer)
    common = {
        "model": _Idle(), "accelerator": gather, "aux_loss_enabled": False,
        "is_encoder_decoder": False,
        "_metrics": {"train": _Anything(), "eval": _Anything()}, "_total_train_tokens": 0,
        "_tp_size": 1,
    }  # fmt: skip
    for name, value in {**common, **attributes}.items():
        object.__setattr__(made, name, value)
    return made


class _Idle(torch.nn.Module):
    """What a trainer asks whether it trains and how, and never computes with."""

    is_gradient_checkpointing = False


class _Anything(dict[str, list[Any]]):
    def __missing__(self, key: str) -> list[Any]:
        return self.setdefault(key, [])


def dpo(s: Tensor, pairs: list[list[int]], **attributes: Any) -> Tensor:
    """The mean loss of `DPOTrainer` over these pairs."""
    from trl import DPOTrainer

    rows = [INPUTS["completions"][index] for side in (0, 1) for index in [p[side] for p in pairs]]
    batch = Batch(rows, s)
    settings = {
        "loss_types": ["sigmoid"], "loss_weights": [1.0], "beta": 0.1, "label_smoothing": 0.0,
        "ld_alpha": None, "f_divergence_type": "reverse_kl", "f_alpha_divergence_coef": 0.5,
        "use_weighting": False, "precompute_ref_logps": False,
        "args": SimpleNamespace(
            discopop_tau=attributes.pop("discopop_tau", 0.05),
            gradient_checkpointing=False, gradient_checkpointing_kwargs=None,
        ),
    }  # fmt: skip
    model, reference = batch.model(batch.policy), batch.model(batch.reference)
    trainer = bare(DPOTrainer, ref_model=reference, **{**settings, **attributes})
    inputs = {
        "input_ids": batch.ids,
        "attention_mask": torch.ones_like(batch.ids),
        "completion_mask": batch.mask,
    }
    loss: Tensor = trainer._compute_loss(model, inputs, False)
    return loss


def without_reference(name: str, s: Tensor, pairs: list[list[int]], **attributes: Any) -> Tensor:
    """The mean loss of `CPOTrainer` or `ORPOTrainer` over these pairs."""
    from trl.experimental import cpo, orpo

    trainer = bare(
        {"cpo": cpo.CPOTrainer, "orpo": orpo.ORPOTrainer}[name],
        **{"beta": 0.1, "alpha": 0.0, "cpo_alpha": 1.0, "loss_type": "sigmoid", "simpo_gamma": 1.0,
           "label_smoothing": 0.0, "pad_token_id": 0, "padding_value": 0, **attributes},
    )  # fmt: skip
    rows = [INPUTS["completions"][index] for side in (0, 1) for index in [p[side] for p in pairs]]
    whole = Batch(rows, s)
    inputs: dict[str, Tensor] = {}
    for side, part in (("chosen", slice(0, len(pairs))), ("rejected", slice(len(pairs), None))):
        kept = whole.mask[part].clone()
        inputs[f"{side}_labels"] = torch.where(kept.bool(), whole.ids[part], -100)
        kept[:, 0] = 1
        inputs[f"{side}_input_ids"], inputs[f"{side}_attention_mask"] = whole.ids[part], kept
    loss: Tensor = trainer.get_batch_loss_metrics(whole.model(whole.policy), inputs)[0]
    return loss


def kto(s: Tensor, **attributes: Any) -> Tensor:
    """The mean loss of `KTOTrainer` over all labels, with the mismatched completions."""
    from trl import KTOTrainer

    own, other = Batch(INPUTS["completions"], s), Batch(INPUTS["mismatched"], s)

    def model(which: str) -> Any:
        answers = {id(batch.ids): batch.model(getattr(batch, which)) for batch in (own, other)}
        return lambda input_ids, **rest: answers[id(input_ids)](input_ids, **rest)

    settings = {
        "beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0, "loss_type": "kto",
        "calculate_KL": True, "precompute_ref_logps": False,
        "args": SimpleNamespace(gradient_checkpointing=False, gradient_checkpointing_kwargs=None),
    }  # fmt: skip
    policy, reference = model("policy"), model("reference")
    trainer = bare(KTOTrainer, ref_model=reference, **{**settings, **attributes})
    inputs = {
        "input_ids": own.ids, "attention_mask": torch.ones_like(own.ids),
        "completion_mask": own.mask, "label": torch.tensor(INPUTS["desirable"]),
        "KL_input_ids": other.ids, "KL_attention_mask": torch.ones_like(other.ids),
        "KL_completion_mask": other.mask,
    }  # fmt: skip
    loss: Tensor = trainer._compute_loss(policy, inputs, False)
    return loss


def reward(s: Tensor, pairs: list[list[int]], *, margin: float = 0.0, **attributes: Any) -> Tensor:
    """The mean loss of `RewardTrainer` where each completion's summed log-probability is its
    reward, with `margin` times the difference of the scores of `inputs.json`."""
    from trl import RewardTrainer

    order = [pair[side] for side in (0, 1) for pair in pairs]
    batch = Batch([INPUTS["completions"][index] for index in order], s)
    rewards = batch.model(batch.policy)().log_probs.sum(-1, keepdim=True)
    scores = torch.tensor(INPUTS["rewards"], dtype=s.dtype)
    settings = {"center_rewards_coefficient": None, **attributes}
    trainer = bare(RewardTrainer, args=SimpleNamespace(**settings))
    inputs = {"attention_mask": torch.ones_like(batch.ids)}
    if margin:
        inputs["margin"] = margin * torch.stack([scores[a] - scores[b] for a, b in pairs])
    loss: Tensor = trainer.compute_loss(lambda **_: SimpleNamespace(logits=rewards), inputs)
    return loss


def numbers(loss: Any, coupled: bool, dtype: torch.dtype) -> dict[str, Any]:
    """Losses and slopes of each pair alone, or of their mean where it is not a mean of theirs."""
    found = []
    for pairs in [PAIRS] if coupled else [[pair] for pair in PAIRS]:
        s = torch.ones((), dtype=dtype, requires_grad=True)
        value = loss(s, pairs)
        (slope,) = torch.autograd.grad(value, s)
        found.append((float(value.detach()), float(slope)))
    losses, slopes = (
        [float(f"{value:.15g}") for value in column] for column in zip(*found, strict=True)
    )
    return (
        {"mean": losses[0], "slope": slopes[0]} if coupled else {"losses": losses, "slopes": slopes}
    )


def case(
    objective: str,
    options: dict[str, Any],
    theirs: dict[str, Any],
    *,
    trainer: str = "dpo",
    coupled: bool = False,
    dtype: torch.dtype = torch.float64,
    **further: Any,
) -> dict[str, Any]:
    """One objective with its options, what TRL calls the same, and TRL's numbers."""

    def loss(s: Tensor, pairs: list[list[int]]) -> Tensor:
        if trainer == "kto":
            return kto(s, **theirs)
        if trainer == "reward":
            return reward(s, pairs, **theirs)
        if trainer == "dpo":
            return dpo(s, pairs, **dict(theirs))
        return without_reference(trainer, s, pairs, **theirs)

    said = ", ".join(f"{name}={value!r}" for name, value in theirs.items())
    rounding = {"tolerance": 1e-5} if dtype == torch.float32 else {}
    return {
        "objective": objective,
        "options": options,
        "theirs": f"{trainer.upper()}Trainer: {said}",
        **further,
        **rounding,
        **numbers(loss, coupled, dtype),
    }


def kind(loss_type: str, **further: Any) -> dict[str, Any]:
    return {"loss_types": [loss_type], **further}


def cases() -> list[dict[str, Any]]:
    float32 = torch.float32
    return [
        case("dpo", {"beta": 0.3}, kind("sigmoid", beta=0.3)),
        case(
            "dpo", {"beta": 0.3, "label_smoothing": 0.1},
            kind("sigmoid", beta=0.3, label_smoothing=0.1),
            differs={
                "why": "TRL 1.16 does not read label_smoothing with its sigmoid loss",
                "same_as": {"options": {"beta": 0.3}},
            },
        ),
        case("robust_dpo", {"beta": 0.3, "label_smoothing": 0.2},
             kind("robust", beta=0.3, label_smoothing=0.2)),
        case("ipo", {"beta": 0.4}, kind("ipo", beta=0.4)),
        case("hinge", {"beta": 0.5}, kind("hinge", beta=0.5)),
        case("exo", {"beta": 0.3, "label_smoothing": 0.05},
             kind("exo_pair", beta=0.3, label_smoothing=0.05), tolerance=1e-6),
        case("nca", {"beta": 0.3}, kind("nca_pair", beta=0.3)),
        case("sppo", {"beta": 0.25}, kind("sppo_hard", beta=0.25)),
        case("apo_zero", {"beta": 0.3}, kind("apo_zero", beta=0.3)),
        case("apo_down", {"beta": 0.3}, kind("apo_down", beta=0.3)),
        case("discopop", {"beta": 0.05, "temperature": 0.04},
             kind("discopop", beta=0.05, discopop_tau=0.04)),
        case("dpo_norm", {"beta": 2.0}, kind("sigmoid_norm", beta=2.0)),
        case("sft", {}, kind("sft")),
        case("dpo", {"beta": 0.3}, {"loss_types": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5],
                                    "beta": 0.3}, plus={"sft": 0.5}),
        case("bco", {"beta": 0.3}, kind("bco_pair", beta=0.3), differs={
            "why": "TRL's bco_pair has no reward shift: its δ is 0, the paper's the mean reward",
            "same_as": {"running": {"baseline": 0.0}},
        }),
        case("aot", {"beta": 0.3}, kind("aot", beta=0.3), coupled=True),
        case("aot", {"beta": 0.3, "label_smoothing": 0.1},
             kind("aot", beta=0.3, label_smoothing=0.1), coupled=True),
        case("aot_unpaired", {"beta": 0.3, "label_smoothing": 0.1},
             kind("aot_unpaired", beta=0.3, label_smoothing=0.1), coupled=True),
        case("f_dpo", {"beta": 0.3, "divergence": "forward_kl"},
             kind("sigmoid", beta=0.3, f_divergence_type="forward_kl")),
        case("f_dpo", {"beta": 0.3, "divergence": "jensen_shannon"},
             kind("sigmoid", beta=0.3, f_divergence_type="js_divergence")),
        case("f_dpo", {"beta": 0.3, "divergence": "alpha", "alpha": 0.7},
             kind("sigmoid", beta=0.3, f_divergence_type="alpha_divergence",
                  f_alpha_divergence_coef=0.3), dtype=float32),
        case("ld_dpo", {"beta": 0.3, "alpha": 0.6}, kind("sigmoid", beta=0.3, ld_alpha=0.6)),
        case("wpo", {"beta": 0.3, "capped": False}, kind("sigmoid", beta=0.3, use_weighting=True)),
        case("simpo", {"beta": 2.0, "gamma": 1.2}, {"loss_type": "simpo", "beta": 2.0,
             "simpo_gamma": 1.2, "cpo_alpha": 0.0}, trainer="cpo"),
        case("cpo", {"beta": 0.2}, {"loss_type": "sigmoid", "beta": 0.2}, trainer="cpo"),
        case("alpha_po", {"beta": 2.5, "gamma": 0.5, "alpha": 0.25}, {"loss_type": "simpo",
             "beta": 2.5, "simpo_gamma": 0.5, "alpha": 0.25, "cpo_alpha": 0.0}, trainer="cpo"),
        case("orpo", {"odds_weight": 0.3}, {"beta": 0.3}, trainer="orpo", tolerance=1e-5),
        case("reward", {}, {}, trainer="reward"),
        case("reward", {"margin": 2.0, "centring": 0.01},
             {"margin": 2.0, "center_rewards_coefficient": 0.01}, trainer="reward"),
        case("kto", {"beta": 0.3}, {"beta": 0.3}, trainer="kto", coupled=True),
        case("kto", {"beta": 0.3, "desirable_weight": 1.5, "undesirable_weight": 0.5},
             {"beta": 0.3, "desirable_weight": 1.5, "undesirable_weight": 0.5},
             trainer="kto", coupled=True),
        case("apo_zero_unpaired", {"beta": 0.3}, {"beta": 0.3, "loss_type": "apo_zero_unpaired",
             "calculate_KL": False}, trainer="kto", coupled=True),
    ]  # fmt: skip


def main() -> None:
    body = ",\n".join("    " + json.dumps(one, ensure_ascii=False) for one in cases())
    text = (
        '{\n "how": "tests/golden/make_trl.py with that version installed.",\n'
        f' "implementations": [\n  {{"implementation": "TRL", "version": "{version("trl")}", '
        f'"cases": [\n{body}\n  ]}}\n ]\n}}\n'
    )
    (HERE / "trl.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
