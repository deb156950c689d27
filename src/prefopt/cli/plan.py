"""`prefopt plan`: what a training will need and how long it will take, before it is started."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from cyclopts import Group as Panel
from cyclopts import Parameter
from cyclopts.validators import Number

from prefopt.cli.outcome import Outcome, counting, counts, table
from prefopt.cli.train import overrides_of
from prefopt.cli.train import train as _train
from prefopt.recipe import ResolvedRecipe, load_recipe

_PANEL = Panel.create_ordered("What is planned")
#: flags of `train` that are about starting it
_NOT_OURS = ("processes", "restarts")
#: what the bars are made of, and their colours
_COLOURS = {
    "weights": "blue", "gradients": "cyan", "optimizer": "magenta", "reference": "yellow",
    "activations": "green", "gathered": "bright_blue", "process": "white", "data": "white",
    "allocator": "bright_black",
}  # fmt: skip
_WIDTH = 40  # characters of a bar


def _ours(**options: Any) -> Parameter:
    return Parameter(group=_PANEL, **options)


def plan(
    recipe: str | None = None,
    /,
    *,
    machine: Annotated[tuple[str, ...], _ours(metavar="NAME[:COUNT]")] = (),
    measure: Annotated[bool, _ours()] = False,
    sample: Annotated[int | None, _ours(validator=Number(gte=1))] = None,
    fail_on: Annotated[Literal["misfit"] | None, _ours()] = None,
    **settings: Any,
) -> Outcome:
    """Say what a training will need and how long it will take.

    It takes a recipe and flags like `prefopt train`, and loads no weights: the model is known
    from its config, the data is read and tokenised (which the training then finds done).
    Nothing is written to the run's folder. A training that does not fit is a finding, not an
    error: the smallest change that makes it fit is named.

    `prefopt plan recipe.yaml --machine this --machine rtx-4090 --machine h100:8`

    With `--json`: `model`, `data`, `work`, `microbatch`, `disk`, `machines` (a list of objects
    with `fits`, `memory`, `seconds`, `change`), `notes`; sizes in bytes, times in seconds.

    Parameters
    ----------
    recipe
        The recipe, a YAML file.
    machine
        this, or a name such as laptop-16, rtx-4090 or h100; h100:8 for eight devices, under the
        recipe's strategy. Give it again for further ones. A wrong name lists all of them.
    measure
        Load the model and train three steps, which nothing keeps, to know how long one takes.
    sample
        Tokenise only the first so many groups of each source, and count the rest.
    fail_on
        Exit with 1 if the training does not fit on one of the machines.
    """
    from prefopt.planning.changes import smallest_change
    from prefopt.planning.machines import counted
    from prefopt.planning.plan import find_machines, make_planner, to_dict

    for name in machine:
        counted(name)  # a wrong one is refused before anything is read
    given = overrides_of(settings)

    def load(further: Mapping[str, Any]) -> ResolvedRecipe:
        return load_recipe(recipe, {**given, **further})

    with counting("reading", "rows") as shown:
        planner = make_planner(load, sample=sample, measuring=measure, advance=shown)
    machines = find_machines(planner, machine)
    fits = [(fit, smallest_change(planner, fit.machine, fit)) for fit in map(planner.fit, machines)]
    result = to_dict(planner, fits)
    misfit = fail_on is not None and not all(fit.fits for fit, _ in fits)
    return Outcome(result, _shown(result), exit_code=1 if misfit else 0)


# -- what people see -----------------------------------------------------------------------


def _shown(result: dict[str, Any]) -> list[Any]:
    from prefopt.planning.memory import gib

    model, work, disk = result["model"], result["work"], result["disk"]
    parts = ", ".join(f"{name} {_number(n)}" for name, n in model["parts"].items())
    rows = {
        "model": f"{_number(model['total'])} parameters ({parts})",
        "trained": f"{_number(model['trainable'])} of them",
        "steps": f"{work['steps']:,}, with {work['judgements']:,} judgements",
        "tokens": f"{work['tokens']:,} in all, {result['microbatch']['tokens']:,} in the largest "
        f"micro-batch of at most {result['microbatch']['limit']:,}",
        "left out": counts(result["data"]["skipped"]),
        "on disk": ", ".join(f"{name} {gib(size)}" for name, size in disk.items() if size),
    }
    shown: list[Any] = [table(rows)]
    for machine in result["machines"]:
        shown += ["", *_machine(machine)]
    if result["notes"]:
        shown += ["", *(f"Note: {note}." for note in result["notes"])]
    return shown


def _machine(machine: dict[str, Any]) -> list[Any]:
    from rich.text import Text

    from prefopt.planning.memory import gib
    from prefopt.planning.work import duration

    memory, seconds = machine["memory"], machine["seconds"]
    count = machine["devices"]
    name = machine["name"] if count == 1 else f"{count} × {machine['name']}, {machine['strategy']}"
    verdict = ("fits", "bold green") if machine["fits"] else ("does not fit", "bold red")
    total, there = gib(memory["total"]), gib(memory["available"])
    each = "" if count == 1 else " each"
    head = Text.assemble((name, "bold"), ": ", verdict, f", {total} of {there}{each}")
    times = (
        f"{part} {duration(seconds[part])}"
        for part in ("reference", "training", "evaluation")
        if seconds[part]
    )
    rows = {
        "most": memory["phase"],
        "memory": ", ".join(f"{part} {gib(size)}" for part, size in memory["parts"].items()),
        "time": f"{duration(seconds['total'])} ({', '.join(times)}), from {seconds['basis']}",
    }
    return [head, _bar(memory), _legend(memory), table(rows), *_change(machine)]


def _change(machine: dict[str, Any]) -> list[Any]:
    from rich.text import Text

    from prefopt.planning.memory import gib

    change = machine["change"]
    if machine["fits"]:
        return []
    if change is None:
        return [Text("No change to the recipe that is known here makes it fit.", style="red")]
    lines = ", ".join(f"{name}: {_yaml(value)}" for name, value in change["settings"].items())
    where = f" on {change['devices']} devices" if change["devices"] != machine["devices"] else ""
    slower = change["slower"]
    pace = "as fast" if 0.97 < slower < 1.03 else f"{slower:.2f} × the time"
    return [
        Text.assemble("To make it fit, set ", (lines, "bold"), where, f": {gib(change['memory'])}, "
                      f"{pace}; {change['cost']}.")
    ]  # fmt: skip


def _bar(memory: dict[str, Any]) -> Any:
    """What the memory is made of; `|` stands where the machine's ends."""
    from rich.text import Text

    whole = max(memory["total"], memory["available"])
    bar = Text()
    filled = 0
    for part, size in memory["parts"].items():
        ends = round(_WIDTH * (sum(_until(memory["parts"], part)) + size) / whole)
        bar.append("█" * (ends - filled), style=_COLOURS[part])
        filled = ends
    text = Text.assemble(bar, "·" * (_WIDTH - filled))
    limit = round(_WIDTH * memory["available"] / whole)
    return Text.assemble(text[:limit], "|", text[limit:])


def _legend(memory: dict[str, Any]) -> Any:
    """Which colour is what; a colour and its word stay on one line."""
    from rich.columns import Columns
    from rich.text import Text

    return Columns(Text.assemble(("█ ", _COLOURS[part]), part) for part in memory["parts"])


def _until(parts: dict[str, int], last: str) -> list[int]:
    names = list(parts)
    return [parts[name] for name in names[: names.index(last)]]


def _number(count: float) -> str:
    """`14.7 M`, `70.6 B`."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f}"


def _yaml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _signature() -> inspect.Signature:
    """Our flags, and the recipe's as `prefopt train` has them."""
    file, *flags, _ = inspect.signature(plan).parameters.values()
    _, *theirs = inspect.signature(_train).parameters.values()
    return inspect.Signature([file, *flags, *(p for p in theirs if p.name not in _NOT_OURS)])


plan.__signature__ = _signature()  # type: ignore[attr-defined]
