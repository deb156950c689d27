"""What a manifest says of a training: who took part, how it was computed, what it came to."""

from __future__ import annotations

import platform
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prefopt.policies.fingerprint import START, fingerprint_tokenizer
from prefopt.runs import Run
from prefopt.training import distributed
from prefopt.training.loop import Record, State
from prefopt.training.prepare import Learner

#: training steps whose mean is reported as the final one
_FINAL_STEPS = 10


def who(learner: Learner) -> dict[str, Any]:
    """The policy, the reference and the tokenizer, by name and fingerprint."""
    named = learner.policy.model.named_parameters()
    weights = [weight for name, weight in named if START not in name]
    reference = learner.reference
    return {
        "policy": {
            "name": learner.policy.name,
            "parameters": sum(weight.numel() for weight in weights),
            "trainable": sum(weight.numel() for weight in weights if weight.requires_grad),
            "fingerprint": learner.fingerprint,
        },
        "reference": reference and {"name": reference.name, "fingerprint": reference.fingerprint},
        "tokenizer": {"fingerprint": fingerprint_tokenizer(learner.policy.tokenizer)},
    }


def engine(learner: Learner) -> dict[str, Any]:
    """How completions are scored, as the first micro-batch decided."""
    scorer = learner.scorer
    return {
        "sharing": scorer.sharing,
        "reason": scorer.reason,
        "difference": scorer.difference,
        "precision": learner.precision,
        "attention": scorer.kernels.to_json(),
    }


def processes() -> dict[str, Any]:
    """How many took part, and on which machines; every one of them asks."""
    hosts = distributed.gather(platform.node())
    return {"count": len(hosts), "hosts": {host: hosts.count(host) for host in hosts}}


def result_of(history: list[Record], state: State) -> dict[str, Any]:
    """Final numbers: means over the last steps, the last evaluation, the last probe."""
    last = [record for record in history if record["kind"] == "train"][-_FINAL_STEPS:]

    def mean(name: str) -> float | None:
        if name not in last[-1]:
            return None
        total = sum(record["comparisons"] for record in last)
        return float(sum(record[name] * record["comparisons"] for record in last) / total)

    return {
        "steps": state.step,
        "final_loss": mean("loss"),
        "accuracy": mean("accuracy"),
        "stopped": state.stopped,
        "eval": state.evaluation,
        "probe": next((r for r in reversed(history) if r["kind"] == "probe"), None),
    }


def command(run: Run) -> list[str]:
    """What was typed, or, for a training that a program started, what would do the same."""
    if Path(sys.argv[0]).name == "prefopt" and sys.argv[1:2] == ["train"]:
        return ["prefopt", *sys.argv[1:]]
    return ["prefopt", "train", str(run.recipe), "--out", f"{run.folder}-again"]


def now() -> str:
    """The time, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
