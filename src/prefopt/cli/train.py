"""`prefopt train`: a recipe, flags of the same names, or both."""

from __future__ import annotations

import inspect
from typing import Annotated, Any, get_args

from cyclopts import Group as Panel
from cyclopts import Parameter

from prefopt.cli.outcome import Outcome, counts, percent, table
from prefopt.recipe import Recipe, load_recipe, parse_flag

_SECTIONS = ("objective", "adapter")
_LISTS = ("data", "eval_data")
_METAVARS = {"model": "MODEL", "data": "PATH", "eval_data": "PATH", "out": "FOLDER",
             "reference": "MODEL"}  # fmt: skip

#: panels of the help page, in order, and the settings in each
PANELS = {
    "What is trained, on what": (
        "model", "data", "eval_data", "out", "adapter", "max_length", "too_long", "on_error",
    ),
    "What is learned": ("objective", "reference", "reference_scores"),
    "Steps": (
        "batch_size", "epochs", "max_steps", "learning_rate", "schedule", "warmup",
        "weight_decay", "max_grad_norm", "seed",
    ),
    "While it runs": (
        "eval_every", "early_stop", "checkpoint_every", "resume", "track",
    ),
    "Speed and memory": (
        "device", "precision", "microbatch_tokens", "gradient_checkpointing", "sharing",
    ),
}  # fmt: skip


def train(recipe: str | None = None, /, **settings: Any) -> Outcome:
    """Train a policy on preferences.

    Settings come from a recipe (a YAML file with the names below, underscores for dashes),
    from flags, or from both; flags win. Paths are relative to the working directory.

    `prefopt train recipe.yaml --objective.beta 0.2 --learning-rate 1e-6`

    `prefopt train --model base/ --data pairs.jsonl --out runs/first --adapter.name lora`

    The run's folder gets `model/`, `metrics.jsonl`, `recipe.yaml` (every setting and where it
    came from), `manifest.json` and `report.html`. Run the same command again to continue
    after an interruption. With `--json`: `run`, `steps`, `final_loss`, `accuracy`, `skipped`,
    `stopped`, `eval`, `report`.

    Parameters
    ----------
    recipe
        The recipe, a YAML file.
    """
    resolved = load_recipe(recipe, _overrides(settings))
    from prefopt.report import build_report
    from prefopt.training.train import train as run_training

    result = run_training(resolved).to_dict()
    result["report"] = str(build_report(result["run"]))
    return Outcome(result, _shown(result))


def _shown(result: dict[str, Any]) -> list[Any]:
    rows = {
        "run": result["run"],
        "training loss, last ten steps": f"{result['final_loss']:.4f}",
        "left out": counts(result["skipped"]),
        "report": result["report"],
    }
    if result["accuracy"] is not None:
        rows = {"training accuracy, last ten steps": percent(result["accuracy"]), **rows}
    for name, held_out in (("loss", "{:.4f}".format), ("accuracy", percent)):
        if name in (result["eval"] or {}):
            rows = {f"held-out {name}": held_out(result["eval"][name]), **rows}
    steps = f"Trained {result['steps']} steps"
    sentence = f"{steps}, stopped early: {result['stopped']}." if result["stopped"] else f"{steps}."
    return [sentence, table(rows)]


def _overrides(settings: dict[str, Any]) -> dict[str, Any]:
    """Flags as dotted names and typed values."""
    overrides: dict[str, Any] = {}
    for name, value in settings.items():
        if value is None:
            continue
        if isinstance(value, dict):
            for key, text in value.items():
                dotted = f"{name}.{key.replace('-', '_')}"
                overrides[dotted] = parse_flag(dotted, text)
        elif isinstance(value, str):
            overrides[name] = parse_flag(name, value)
        else:
            overrides[name] = value
    return overrides


def _flag(name: str, panel: Panel) -> inspect.Parameter:
    """The flag of one setting, its help made from the recipe's own description."""
    field = Recipe.model_fields[name]
    kind: Any = str
    choices = [value for value in get_args(field.annotation) if isinstance(value, str)]
    description = str(field.description)
    help_text = f"{description[0].upper()}{description[1:]}."
    if name in _SECTIONS:
        kind = dict[str, str]
        example = {"objective": "beta 0.2", "adapter": "rank 32"}[name]
        help_text += f" --{name}.name NAME, with options such as --{name}.{example}."
    elif name in _LISTS:
        kind = list[str]
    elif field.annotation is bool:
        kind = bool
    if choices:
        help_text += f" [choices: {', '.join(choices)}]"
    if not field.is_required() and field.default is not None and name not in _SECTIONS:
        help_text += f" [default: {str(field.default).lower()}]"
    parameter = Parameter(
        group=panel,
        help=help_text,
        metavar="CHOICE" if choices else _metavar(name, field.annotation),
        consume_multiple=name in _LISTS,
    )
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[kind | None, parameter],
    )


def _metavar(name: str, annotation: Any) -> str | None:
    """The word for a value: the type of the setting, through unions and limits."""
    if name in _METAVARS:
        return _METAVARS[name]
    kinds = str(annotation)
    return "FLOAT" if "float" in kinds else "INT" if "int" in kinds else None


def _signature() -> inspect.Signature:
    """The recipe as flags, so that a setting is declared once."""
    file = inspect.Parameter(
        "recipe",
        inspect.Parameter.POSITIONAL_ONLY,
        default=None,
        annotation=str | None,
    )
    panels = {title: Panel.create_ordered(title) for title in PANELS}
    flags = [_flag(name, panels[title]) for title, names in PANELS.items() for name in names]
    return inspect.Signature([file, *flags])


train.__signature__ = _signature()  # type: ignore[attr-defined]
