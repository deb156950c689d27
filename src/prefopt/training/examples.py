"""From groups of text to the examples and the plan of a training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prefopt.constraints import Constraint
from prefopt.engine.tokens import Column, TokenGroup
from prefopt.errors import DataError
from prefopt.objectives.loss import Loss
from prefopt.policies.load import Policy
from prefopt.recipe import Recipe
from prefopt.records import Group
from prefopt.training.batches import Examples
from prefopt.training.constrained import cost_columns
from prefopt.training.intake import InMemory, Summary, encode_groups, nothing_for
from prefopt.training.steps import Plan, in_order, plan


@dataclass
class Prepared:
    """Data as the objective reads it, its plan, and what became of it on the way.

    Attributes:
        examples: the groups.
        steps: the plan over them.
        counts: groups, comparisons, completions and tokens that are left, and what was
            skipped or cut, as the manifest has it.
        fingerprint: digest of tokens, comparisons and sources.
        labels: the weights of all undesirable and of all desirable labels.
    """

    examples: Examples
    steps: Plan
    counts: dict[str, Any]
    fingerprint: str
    labels: Sequence[float] = (0.0, 0.0)


def prepare_data(
    policy: Policy,
    recipe: Recipe,
    loss: Loss,
    groups: Iterable[Group],
    *,
    training: bool,
    shares: Mapping[str, float] | None = None,
    constraints: Sequence[Constraint] = (),
    columns: Mapping[str, Column] | None = None,
) -> Prepared:
    """Tokenise groups, keep what the objective reads in memory, and plan the steps.

    Args:
        policy: whose tokenizer is used.
        recipe: how rows are cut, refused and batched.
        loss: what is read of a group.
        groups: read once.
        training: plan shuffled epochs; otherwise one pass in order, as an evaluation does.
        shares: of the sources, by name.
        constraints: whose costs each completion gets, and which may change comparisons.
        columns: further numbers for each completion, computed from its text.

    Raises:
        DataError: a row is refused, says what the objective would ignore, or lacks what it
            needs; or nothing is left to learn from.
    """
    kept = InMemory()
    summary = encode_groups(
        policy, recipe, loss, groups, kept, constraints=constraints, columns=columns
    )
    return prepared(kept.groups, summary, recipe, loss, training=training, shares=shares,
                    costs=tuple(cost_columns(constraints)))  # fmt: skip


def prepared(
    groups: Sequence[TokenGroup],
    summary: Summary,
    recipe: Recipe,
    loss: Loss,
    *,
    training: bool,
    shares: Mapping[str, float] | None = None,
    costs: tuple[str, ...] = (),
) -> Prepared:
    """Plan the steps over groups that were encoded, now or before.

    Raises:
        DataError: nothing is left to learn from, or the objective needs what the data as a
            whole lacks.
    """
    check_left(summary, loss, training=training)
    examples = Examples(groups, reads=loss.reads, rewards=loss.needs_rewards, costs=costs)
    if training:
        examples.sources = _sources(examples, loss)
    counts = {
        "groups": summary.groups,
        _COUNTED[loss.reads]: summary.judgements,
        "completions": summary.completions,
        "tokens": summary.tokens,
        "skipped": dict(summary.skipped),
        "cut": dict(summary.cut),
    }
    steps = _steps(examples, recipe, loss, shares, training=training)
    return Prepared(examples, steps, counts, summary.fingerprint, tuple(summary.labels))


def _steps(
    examples: Examples,
    recipe: Recipe,
    loss: Loss,
    shares: Mapping[str, float] | None,
    *,
    training: bool,
) -> Plan:
    """Shuffled epochs, or one pass in order."""
    if not training:
        return in_order(
            examples, recipe.batch_size, recipe.microbatch_tokens, companions=loss.companions
        )
    return plan(
        examples,
        batch_size=recipe.batch_size,
        microbatch_tokens=recipe.microbatch_tokens,
        epochs=recipe.epochs,
        max_steps=recipe.max_steps,
        seed=recipe.seed,
        shares=shares,
        companions=loss.companions,
    )


def _sources(examples: Examples, loss: Loss) -> tuple[str, ...]:
    """The data's sources in order, for an objective that tells them apart."""
    if not loss.needs_sources:
        return ("",)
    names = sorted({str(name) for name in examples.sizes.sources.names})
    if len(names) < 2:
        raise DataError(
            f"objective '{loss.name}' weighs the data's sources against each other, and there "
            "is only one",
            kind="one_source",
            field="data",
            value=names[0],
            remedy="give two sources with a name each, or choose dpo",
        )
    return tuple(names)


def adopt_sources(evaluation: Prepared, training: Prepared) -> None:
    """Let the evaluation data's sources be numbered as those of the training data.

    Raises:
        DataError: it has a source that the training data has not.
    """
    known = training.examples.sources
    named = evaluation.examples.sizes.sources.names if len(known) > 1 else ()
    for name in named:
        if str(name) not in known:
            raise DataError(
                f"eval_data has a source '{name or '(without a name)'}', which is not in data",
                kind="unknown_source",
                field="eval_data",
                value=name,
                remedy=f"give its sources the names that data has: {', '.join(known)}",
            )
    evaluation.examples.sources = known


def check_left(summary: Summary, loss: Loss, *, training: bool) -> None:
    """Refuse data of which nothing is left.

    Raises:
        DataError: with what became of it.
    """
    if summary.groups:
        return
    field, skipped = "data" if training else "eval_data", dict(summary.skipped)
    remedy = "check that the file has rows"
    if set(skipped) == {nothing_for(loss)}:
        remedy = _NEEDED[loss.reads]
    elif skipped:
        remedy = "look at what was skipped with `prefopt check`"
    raise DataError(
        f"{field} has nothing for objective '{loss.name}' to learn from",
        kind="nothing_to_learn",
        field=field,
        value=skipped or None,
        remedy=remedy,
    )


_NEEDED = {
    "comparisons": "give rows that compare completions of one prompt, or train on these with `sft`",
    "labels": "give rows with a label, or rows that compare completions of one prompt",
    "rankings": "give rows whose comparisons put the completions of a prompt in one order",
    "preferred": "give rows that prefer, label or just have completions",
}


_COUNTED = {
    "comparisons": "comparisons",
    "preferred": "comparisons",
    "labels": "labels",
    "rankings": "rankings",
}
