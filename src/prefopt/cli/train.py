"""`prefopt train`: a recipe, flags of the same names, or both."""

from __future__ import annotations

import inspect
from typing import Annotated, Any, get_args

from cyclopts import Group as Panel
from cyclopts import Parameter

from prefopt.cli.outcome import Outcome, UsageError, counts, percent, table
from prefopt.cli.processes import as_flags, check_processes, in_processes, joined
from prefopt.recipe import SECTIONS, Recipe, ResolvedRecipe, load_recipe, parse_flag
from prefopt.runs import Run

_LISTS = ("data", "eval_data")
_METAVARS = {"model": "MODEL", "data": "PATH", "eval_data": "PATH", "out": "FOLDER",
             "objective": "NAME", "reference": "MODEL", "adapter": "NAME", "probe": "PATH",
             "constraints": "YAML", "parallel": "NAME",
             "optimizer": "NAME", "gradient_checkpointing": "KIND"}  # fmt: skip

#: how flags inside a section look, to be shown beside it
_INSIDE = {
    "objective": "Options: --objective.beta 0.2. A second term: --objective.plus.sft 0.1.",
    "reference": "To let it follow the policy: --reference.update-every 64.",
    "adapter": "Options: --adapter.rank 32.",
    "probe": "Options: --probe.every 20, --probe.samples 4, --probe.reward.rule module:function.",
    "optimizer": "Options: --optimizer.betas '[0.9, 0.99]', --optimizer.eps 1e-6.",
    "parallel": "Options: --parallel.shards 8, --parallel.tensor 4, --parallel.reshard false.",
    "constraints": "Such as '{name: rude, patterns: [damn], limit: 0.05}'; several in [].",
}
_OPTIONS = "_options"
_DEFAULTS = {"objective": "dpo", "reference": "initial", "parallel": "ddp", "optimizer": "adamw"}

#: panels of the help page, in order, and the settings in each
PANELS = {
    "What is trained, on what": (
        "model", "data", "eval_data", "out", "adapter", "max_length", "too_long", "on_error",
    ),
    "What is learned": ("objective", "reference", "reference_scores", "constraints"),
    "Steps": (
        "batch_size", "epochs", "max_steps", "learning_rate", "schedule", "warmup",
        "optimizer", "weight_decay", "max_grad_norm", "seed",
    ),
    "While it runs": (
        "eval_every", "early_stop", "probe", "checkpoint_every", "resume", "track",
    ),
    "Speed and memory": (
        "device", "precision", "weights", "quantize", "microbatch_tokens", "gradient_checkpointing",
        "offload_activations", "compile", "sharing",
        "parallel",
    ),
}  # fmt: skip
_GROUPS = {title: Panel.create_ordered(title) for title in PANELS}
#: of flags about the machine: they are no settings, since they never change what is learned
_of_the_machine = Parameter(group=Panel.create_ordered("Several processes"), metavar="INT")


def train(
    recipe: str | None = None,
    /,
    *,
    processes: Annotated[int | None, _of_the_machine] = None,
    restarts: Annotated[int, _of_the_machine] = 0,
    **settings: Any,
) -> Outcome:
    """Train a policy on preferences.

    Settings come from a recipe (a YAML file with the names below, underscores for dashes),
    from flags, or from both; flags win. Paths are relative to the working directory.

    `prefopt train recipe.yaml --objective.beta 0.2 --learning-rate 1e-6`

    `prefopt train --model base/ --data pairs.jsonl --out runs/first --adapter lora`

    The run's folder gets `model/`, `metrics.jsonl`, `recipe.yaml` (every setting and where it
    came from), `manifest.json` and `report.html`. Run the same command again to continue
    after an interruption. With `--json`: `run`, `steps`, `final_loss`, `accuracy`, `skipped`,
    `stopped`, `eval`, `probe`, `report`.

    Parameters
    ----------
    recipe
        The recipe, a YAML file.
    processes
        Processes on this machine, each with a GPU of its own where there are some. On several
        machines: torchrun, `--nproc-per-node 8 -m prefopt train recipe.yaml`.
    restarts
        How often to begin again from the last checkpoint when a process was lost.
    """
    check_processes(processes, restarts)
    with joined():
        resolved = load_recipe(recipe, overrides_of(settings))
        if processes is None or processes == 1:
            result = _train_here(resolved)
        else:
            arguments = ["train", *([recipe] if recipe else []), *as_flags(settings)]
            run = Run(resolved.recipe.out)
            result = in_processes(arguments, run, processes=processes, restarts=restarts)
    return Outcome(result, _shown(result))


def _train_here(resolved: ResolvedRecipe) -> dict[str, Any]:
    """In this process, with others that torchrun may have started."""
    from prefopt.report import build_report
    from prefopt.training.distributed import by_main
    from prefopt.training.interrupts import stoppable
    from prefopt.training.train import train as run_training

    with stoppable():
        result = run_training(resolved).to_dict()
        result["report"] = str(by_main(lambda: build_report(result["run"])))
    return result


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
    rows |= _probed(result["probe"] or {})
    steps = f"Trained {result['steps']} steps"
    sentence = f"{steps}, stopped early: {result['stopped']}." if result["stopped"] else f"{steps}."
    return [sentence, table(rows)]


def _probed(probe: dict[str, Any]) -> dict[str, str]:
    """What the policy's own samples were like at the end."""
    rows = {}
    for name, unit in (("kl", "nats"), ("reward", ""), ("length", "tokens")):
        if name in probe:
            rows[f"{name} of samples"] = f"{probe[name]:.3g} {unit}".strip()
    for name, cost in probe.get("costs", {}).items():
        limit, multiplier = probe["limits"][name], probe["multipliers"].get(name)
        paid = "" if multiplier is None else f", multiplier {multiplier:.3g}"
        rows[f"cost of samples: {name}"] = f"{cost:.3g}, limit {limit:g}{paid}"
    return rows


def overrides_of(settings: dict[str, Any]) -> dict[str, Any]:
    """Flags as dotted names and typed values."""
    overrides: dict[str, Any] = {}
    given = {name: value for name, value in settings.items() if value is not None}
    for name, value in given.items():
        if isinstance(value, dict):
            section = name.removesuffix(_OPTIONS)
            for key, text in value.items():
                dotted = f"{section}.{key.replace('-', '_')}"
                _refuse_both(section, given.get(section), dotted, text)
                overrides[dotted] = parse_flag(dotted, text)
        elif name in SECTIONS and not _off(name, value):
            overrides[f"{name}.{SECTIONS[name]}"] = value  # what the recipe says beside it stays
        elif isinstance(value, str):
            overrides[name] = parse_flag(name, value)
        else:
            overrides[name] = value
    return overrides


def _off(section: str, value: str | None) -> bool:
    return section in ("adapter", "probe") and value == "none"


def _refuse_both(section: str, word: str | None, dotted: str, text: str) -> None:
    """Two flags that contradict each other: a section's short form and one inside it."""
    if _off(section, word) or (word and dotted == f"{section}.{SECTIONS[section]}"):
        raise UsageError(
            f"--{section} {word} was given too",
            field=f"--{dotted}",
            value=text,
            remedy="keep one of them",
        )


def _dotted(kind: Any, tokens: Any) -> dict[str, str]:
    """Flags inside a section by dotted name: `--objective.plus.sft 0.1` is `plus.sft`."""
    found: dict[str, str] = {}
    for key, inner in tokens.items():
        if isinstance(inner, dict):
            found |= {f"{key}.{name}": text for name, text in _dotted(kind, inner).items()}
        else:
            found[key] = inner[0].value
    return found


def _flag(name: str, panel: Panel) -> inspect.Parameter:
    """The flag of one setting, its help made from the recipe's own description."""
    field = Recipe.model_fields[name]
    kind: Any = str
    branches = [field.annotation, *get_args(field.annotation)]
    choices = [word for branch in branches for word in get_args(branch) if isinstance(word, str)]
    description = str(field.description)
    help_text = f"{description[0].upper()}{description[1:]}."
    if name in _LISTS:
        kind = list[str]
    elif field.annotation is bool:
        kind = bool
    if name in _INSIDE:
        help_text += f" {_INSIDE[name]}"
    choices = [] if name in _METAVARS else choices
    if choices:
        help_text += f" [choices: {', '.join(choices)}]"
    default = _DEFAULTS.get(name, None if field.is_required() else field.default)
    if default not in (None, ()):
        help_text += f" [default: {str(default).lower()}]"
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


def _inside(name: str) -> inspect.Parameter:
    """The flags inside a section, which share its name; they are told beside it."""
    parameter = Parameter(name=f"--{name}", show=False, converter=_dotted)
    return inspect.Parameter(
        f"{name}{_OPTIONS}",
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[dict[str, str] | None, parameter],
    )


def _metavar(name: str, annotation: Any) -> str | None:
    """The word for a value: the type of the setting, through unions and limits."""
    if name in _METAVARS:
        return _METAVARS[name]
    kinds = str(annotation)
    return "FLOAT" if "float" in kinds else "INT" if "int" in kinds else None


def _signature() -> inspect.Signature:
    """The recipe as flags, so that a setting is declared once."""
    file, *ours, _ = inspect.signature(train).parameters.values()
    flags = [_flag(name, _GROUPS[title]) for title, names in PANELS.items() for name in names]
    return inspect.Signature([file, *flags, *ours, *(_inside(name) for name in SECTIONS)])


train.__signature__ = _signature()  # type: ignore[attr-defined]
