"""prefopt: preferences in, a preferred policy out.

The names below are loaded when they are first used (PEP 562), so that `import prefopt` and
the torch-free rooms (`prefopt.data`, `prefopt.records`, …) stay quick and need no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

#: public name -> the module that defines it
_HOMES = {
    "Comparison": "prefopt.records",
    "Completion": "prefopt.records",
    "DPOTrainer": "prefopt.training.trainer",
    "DPOTrainerWithLoRA": "prefopt.training.trainer",
    "Group": "prefopt.records",
    "Label": "prefopt.records",
    "Message": "prefopt.records",
    "Policy": "prefopt.policies.load",
    "PrefoptError": "prefopt.errors",
    "ProbabilisticDPOTrainer": "prefopt.training.trainer",
    "Vote": "prefopt.records",
    "build_report": "prefopt.report",
    "completion_logps": "prefopt.engine.logps",
    "dpo_loss": "prefopt.training.trainer",
    "load_policy": "prefopt.policies.load",
    "load_recipe": "prefopt.recipe",
    "read_groups": "prefopt.data.formats",
    "sample": "prefopt.sampling.generate",
    "score_policy": "prefopt.evaluation.implicit_reward",
    "train": "prefopt.training.train",
    "write_groups": "prefopt.data.formats",
}

__all__ = sorted(_HOMES)  # one table, not two lists to keep in step


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'prefopt' has no attribute '{name}'")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value  # looked up once
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
