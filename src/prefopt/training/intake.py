"""From groups of text to groups of tokens as an objective reads them, one at a time."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from prefopt.constraints import Constraint
from prefopt.engine.forest import group_tokens
from prefopt.engine.tokens import Column, Encoder, TokenGroup
from prefopt.errors import DataError, RecipeError
from prefopt.objectives.loss import Loss
from prefopt.policies.load import Policy
from prefopt.recipe import Recipe
from prefopt.records import Group
from prefopt.training.constrained import cost_columns, relabelled
from prefopt.training.reading import as_read, judgements_in, weights_in


class Sink(Protocol):
    """Where groups go as they are made."""

    def add(self, group: TokenGroup, judgements: int, *, unweighted: bool) -> None:
        """Keep a group that gives so many losses, each of weight 1 or not."""


class InMemory:
    """Keeps groups in a list."""

    def __init__(self) -> None:
        self.groups: list[TokenGroup] = []

    def add(self, group: TokenGroup, judgements: int, *, unweighted: bool) -> None:
        """Keep a group."""
        self.groups.append(group)


@dataclass
class Summary:
    """What became of the data on its way to tokens; plain JSON, but for the counters.

    Attributes:
        groups, judgements, completions, tokens: what is left.
        skipped: what was left out, by reason.
        cut: groups that were shortened, by where.
        labels: the weights of all undesirable and of all desirable labels.
        fingerprint: digest of tokens, comparisons and sources.
    """

    groups: int = 0
    judgements: int = 0
    completions: int = 0
    tokens: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    cut: Counter[str] = field(default_factory=Counter)
    labels: list[float] = field(default_factory=lambda: [0.0, 0.0])
    fingerprint: str = ""


def encode_groups(
    policy: Policy,
    recipe: Recipe,
    loss: Loss,
    groups: Iterable[Group],
    sink: Sink,
    *,
    constraints: Sequence[Constraint] = (),
    columns: Mapping[str, Column] | None = None,
) -> Summary:
    """Tokenise groups and hand what the objective reads of them to a sink, one at a time.

    The arguments are those of `prepare_data`.

    Raises:
        DataError: a row is refused, says what the objective would ignore, or lacks what it
            needs.
    """
    costs = cost_columns(constraints)
    encoder = Encoder(
        policy.tokenizer,
        end_of_turn=policy.end_of_turn,
        max_length=longest(recipe, policy),
        too_long=recipe.too_long,
        on_error=recipe.on_error,
        columns={**costs, **(columns or {})},
    )
    named = (*(("score",) if loss.needs_rewards else ()), *costs)
    summary, digest = Summary(), hashlib.sha256()
    for group in _read(encoder(groups), recipe, loss, constraints, summary.skipped):
        weights = weights_in(group, loss.reads)
        sink.add(group, len(weights), unweighted=all(weight == 1 for weight in weights))
        digest.update(_digested(group, named))
        summary.groups += 1
        summary.judgements += len(weights)
        summary.completions += len(group.completions)
        summary.tokens += group_tokens(group)
        for label in group.labels:
            summary.labels[label.desirable] += label.weight
    summary.skipped = encoder.report.skipped + summary.skipped
    summary.cut = encoder.report.cut
    summary.fingerprint = f"sha256:{digest.hexdigest()}"
    return summary


def _read(
    groups: Iterable[TokenGroup],
    recipe: Recipe,
    loss: Loss,
    constraints: Sequence[Constraint],
    unread: Counter[str],
) -> Iterator[TokenGroup]:
    """What the loss can use of the groups; how much it cannot is counted by reason."""
    for group in groups:
        changed = relabelled(group, constraints)
        lost = len(group.comparisons) - len(changed.comparisons)
        if lost:
            unread["both_sides_unsafe"] += lost
        part = as_read(changed, loss.reads)
        problem = _unfit(part, loss) if part is not None else None
        if part is None:
            if not lost:
                unread[nothing_for(loss)] += 1
        elif problem is None:
            yield part
        elif recipe.on_error == "raise":
            raise problem
        else:
            unread[problem.kind] += judgements_in(part, loss.reads)


def nothing_for(loss: Loss) -> str:
    """Why a group is left out in which the objective finds nothing to read."""
    return f"nothing_for_{loss.name}"


def _unfit(group: TokenGroup, loss: Loss) -> DataError | None:
    """Why a group cannot be used: it says what would be ignored, or lacks what is needed."""
    problem: tuple[str, str, str, Any, str] | None = None
    odd = [edge.probability for edge in group.comparisons if edge.probability != 1.0]
    heavy = [weight for weight in weights_in(group, loss.reads) if weight != 1.0]
    scores = group.columns.get("score", (None,))
    if not loss.soft and odd:
        problem = (
            "probability_unread", "probability",
            f"objective '{loss.name}' reads no probabilities", odd[0],
            "choose an objective that does, such as dpo, or remove the probability",
        )  # fmt: skip
    elif not loss.weighted and heavy:
        problem = (
            "weight_unread", "weight",
            f"objective '{loss.name}' reads no weights", heavy[0],
            "choose an objective that does, such as dpo, or remove the weight",
        )  # fmt: skip
    elif loss.needs_rewards and None in scores:
        problem = (
            "missing_score", "score",
            f"objective '{loss.name}' needs a score for every completion", None,
            "give each completion a score, such as a reward model's, or choose another objective",
        )  # fmt: skip
    if problem is None:
        return None
    kind, field, message, value, remedy = problem
    place = group.origins[0] if group.origins else None
    return DataError(
        message,
        kind=kind,
        field=field,
        value=value,
        remedy=remedy,
        file=place and place.file,
        row=place and place.row,
    )


def _digested(group: TokenGroup, columns: Sequence[str]) -> bytes:
    """Everything in a group that training reads, these columns among it, as bytes."""
    said = f"{group.source!r} {group.comparisons!r} {len(group.prompt)}"
    parts = [said.encode(), group.prompt.tobytes()]
    for ids in group.completions:
        parts += (len(ids).to_bytes(8, "little"), ids.tobytes())
    if group.labels or columns:
        numbers = [group.columns[name] for name in columns]
        parts.append(f"{group.labels!r} {numbers!r}".encode())
    return b"".join(parts)


def longest(recipe: Recipe, policy: Policy) -> int | None:
    """Most tokens of a prompt with a completion; None for as many as there are.

    Raises:
        RecipeError: the recipe allows more than the model was made for.
    """
    limit = policy.max_length
    if recipe.max_length is not None and limit is not None and recipe.max_length > limit:
        raise RecipeError(
            f"max_length is more than the {limit} tokens that the model was made for",
            field="max_length",
            value=recipe.max_length,
            remedy=f"set it to {limit} or less",
        )
    return recipe.max_length or limit
