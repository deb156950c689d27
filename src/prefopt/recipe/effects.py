"""Settings that would have no effect: an error, because they were meant to have one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from prefopt.errors import RecipeError
from prefopt.recipe.model import Recipe, ResolvedRecipe
from prefopt.recipe.numerics import number_problems, optimizer_problems
from prefopt.recipe.sections import ConstraintChoice, Measure, Source

#: what a constraint reads beside its cost and limit, by mode
_READS = {
    "lagrangian": ("multiplier", "step_size"),
    "one_shot": (),
    "stages": ("multiplier",),
    "safe_dpo": ("margin",),
    "penalty": ("multiplier",),
}

_ONE_WAY = "give exactly one of patterns, rule, classifier and reward_model"


def check_reference(resolved: ResolvedRecipe, *, needs_reference: bool) -> None:
    """Refuse settings of the reference that nothing would read, or one that is lacking.

    Training calls it once it knows the objective's row of the table. Beside the objective,
    constraints in mode `penalty` read a reference.

    Raises:
        RecipeError: a reference is set and nothing reads it, or it is needed and `none`.
    """
    reference, name = resolved.recipe.reference, resolved.recipe.objective.name
    penalties = [c.name for c in resolved.recipe.constraints if c.mode == "penalty"]
    reader = f"objective '{name}'" if needs_reference else f"constraint '{(*penalties, '')[0]}'"
    needs_reference = needs_reference or bool(penalties)
    if needs_reference and reference.name == "none":
        raise RecipeError(
            f"{reader} needs a reference",
            field="reference",
            value="none",
            remedy="set reference: initial, or a path",
        )
    set_in_vain = {
        "reference.name": reference.name not in ("initial", "none")
        and not resolved.origins["reference.name"].startswith("default"),
        "reference.update_every": reference.moves,
        "reference_scores": resolved.recipe.reference_scores != "cache",
    }
    for setting, given in set_in_vain.items():
        if given and not needs_reference:
            raise _without_effect(setting, resolved, f"objective '{name}' reads no reference")


def check_effects(
    resolved: ResolvedRecipe, path: str | Path | None, rows: Mapping[str, int]
) -> None:
    """Refuse what can be told from the recipe alone, naming file and row where it is from one."""
    error = next(_problems(resolved), None)
    if error is None:
        return
    field = str(error.field)
    origin = next(
        (resolved.origins[name] for name in _parents(field) if name in resolved.origins), None
    )
    if path is not None and origin == Path(path).name:
        error.file = str(path)
        error.row = next((rows[name] for name in _parents(field) if name in rows), None)
    raise error


def _parents(name: str) -> Iterator[str]:
    """A dotted name, then the names that it is in, from the inside out."""
    while name:
        yield name
        name = name.rpartition(".")[0]


def _problems(resolved: ResolvedRecipe) -> Iterator[RecipeError]:
    recipe = resolved.recipe
    yield from _source_problems("data", recipe.data)
    yield from _source_problems("eval_data", recipe.eval_data or ())
    yield from _idle(resolved)
    yield from _loss_problems(resolved)
    yield from optimizer_problems(recipe)
    yield from number_problems(recipe)
    if recipe.probe is not None and recipe.probe.reward is not None:
        yield from _measure_problems("probe.reward", "the probe's reward", recipe.probe.reward)
    yield from _constraint_problems(recipe)


def _idle(resolved: ResolvedRecipe) -> Iterator[RecipeError]:
    recipe, reference = resolved.recipe, resolved.recipe.reference
    no_reference = reference.name == "none"
    strategy = recipe.parallel.strategy
    unread = f"strategy {strategy} does not read it"
    for name, value, without_effect, reason in (
        ("eval_every", recipe.eval_every, recipe.eval_data is None, "there is no eval_data"),
        ("early_stop", recipe.early_stop, recipe.eval_data is None, "there is no eval_data"),
        ("early_stop", recipe.early_stop, recipe.eval_every is None, "there is no eval_every"),
        ("reference.update_every", reference.update_every, no_reference, "there is no reference"),
        (
            "reference.mixture",
            reference.mixture,
            not reference.moves,
            "the reference stays as it is without reference.update_every",
        ),
        ("parallel.shards", recipe.parallel.shards, strategy != "hybrid", unread),
        ("parallel.tensor", recipe.parallel.tensor, strategy != "tensor", unread),
        ("parallel.reshard", recipe.parallel.reshard, strategy == "ddp", unread),
    ):
        if value is not None and without_effect:
            yield _without_effect(name, resolved, reason)


def _loss_problems(resolved: ResolvedRecipe) -> Iterator[RecipeError]:
    recipe = resolved.recipe
    name = recipe.objective.name
    if name in recipe.objective.plus:
        yield RecipeError(
            f"'{name}' is the objective already, and a term of it cannot be added to it",
            field=f"objective.plus.{name}",
            value=recipe.objective.plus[name].weight,
            remedy="remove it: every objective is in a loss once",
        )
    if recipe.reference.moves and recipe.reference_scores == "cache":
        yield RecipeError(
            "the scores of a moving reference cannot be cached: they change with every update",
            field="reference_scores",
            value="cache",
            remedy="set reference_scores: each_step, or remove reference.update_every",
        )


def _constraint_problems(recipe: Recipe) -> Iterator[RecipeError]:
    names = Counter(constraint.name for constraint in recipe.constraints)
    for index, constraint in enumerate(recipe.constraints):
        field, name = f"constraints.{index}", constraint.name
        if names[name] > 1:
            yield RecipeError(
                f"{names[name]} constraints have the name '{name}'",
                field=f"{field}.name",
                value=name,
                remedy="give each constraint its own name",
            )
        yield from _measure_problems(field, f"constraint '{name}'", constraint)
        yield from _mode_problems(field, constraint)
        if constraint.mode in ("lagrangian", "one_shot") and recipe.probe is None:
            yield RecipeError(
                f"constraint '{name}' is kept by samples of the policy (mode "
                f"{constraint.mode}), and there is no probe to take them",
                field="probe",
                remedy="set probe: prompts.jsonl, a file of prompts, or choose another mode",
            )
        if constraint.mode == "one_shot" and recipe.reference.moves:
            yield RecipeError(
                f"constraint '{name}' is solved once, for the reference as it starts, and the "
                "reference moves",
                field="reference.update_every",
                value=recipe.reference.update_every,
                remedy="let the reference stay, or use mode: lagrangian, which follows",
            )


def _mode_problems(field: str, constraint: ConstraintChoice) -> Iterator[RecipeError]:
    if constraint.mode in ("stages", "penalty") and not constraint.multiplier:
        yield RecipeError(
            f"constraint '{constraint.name}' needs a multiplier above 0: "
            f"mode {constraint.mode} finds none by itself",
            field=f"{field}.multiplier",
            value=constraint.multiplier,
            remedy="set multiplier, or use mode: lagrangian, which finds it",
        )
    for key in ("multiplier", "step_size", "margin"):
        value = getattr(constraint, key)
        if value is not None and key not in _READS[constraint.mode]:
            modes = " and ".join(mode for mode, reads in _READS.items() if key in reads)
            yield RecipeError(
                f"{key} has no effect on constraint '{constraint.name}': "
                f"mode {constraint.mode} does not read it",
                field=f"{field}.{key}",
                value=value,
                remedy=f"remove {key}; {modes} would read it",
            )


def _measure_problems(field: str, subject: str, measure: Measure) -> Iterator[RecipeError]:
    ways = measure.ways
    if len(ways) != 1:
        found = f"{' and '.join(ways)} at once" if ways else "nothing to be measured by"
        yield RecipeError(f"{subject} has {found}", field=field, remedy=_ONE_WAY)
    if measure.label is not None and "classifier" not in ways:
        yield RecipeError(
            f"label has no effect on {subject}: there is no classifier",
            field=f"{field}.label",
            value=measure.label,
            remedy="remove label, or give a classifier",
        )


def _source_problems(field: str, sources: tuple[Source, ...]) -> Iterator[RecipeError]:
    shares = [source.share for source in sources]
    names = [source.name for source in sources]
    if len(sources) == 1 and shares[0] is not None:
        yield RecipeError(
            "a share has no effect: there is only one source",
            field=field,
            value=shares[0],
            remedy="remove share, or add another source",
        )
    if None in shares and any(share is not None for share in shares):
        yield RecipeError(
            "some sources have a share and others have none",
            field=field,
            value=dict(zip(names, shares, strict=True)),
            remedy="give every source a share, or none",
        )
    if len(sources) > 1 and len(set(names)) < len(names):
        yield RecipeError(
            "two sources have the same name",
            field=field,
            value=names,
            remedy="give each source its own name",
        )


def _without_effect(name: str, resolved: ResolvedRecipe, reason: str) -> RecipeError:
    written = name.removesuffix(".name")  # as people write it: a section's name is its short form
    return RecipeError(
        f"{written} has no effect: {reason}",
        field=written,
        value=resolved.values()[name],
        remedy=f"remove {written} ({resolved.origins[name]}), or set what it needs",
    )
