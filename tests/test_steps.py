"""A plan makes its steps when they are asked for, and they are those of a plan made at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prefopt.data.mixture import epoch_order
from prefopt.engine.forest import first_fit, group_tokens
from prefopt.engine.tokens import TokenGroup
from prefopt.errors import DataError
from prefopt.records import Comparison
from prefopt.training.batches import Examples
from prefopt.training.known import KnownScores
from prefopt.training.steps import Plan, in_order, plan


def group(prompt: int, length: int, edges: int, weight: float, source: str) -> TokenGroup:
    return TokenGroup(
        np.array([prompt] * (1 + prompt), dtype=np.int32),
        tuple(np.full(length + place, 50 + place, dtype=np.int32) for place in range(edges + 1)),
        tuple(Comparison(0, place + 1, weight=weight) for place in range(edges)),
        source=source,
    )


GROUPS = st.lists(
    st.builds(
        group,
        prompt=st.integers(1, 4),
        length=st.integers(1, 9),
        edges=st.integers(1, 4),
        weight=st.sampled_from([1.0, 1.0, 0.1, 0.7]),
        source=st.sampled_from(["a", "b", "c"]),
    ),
    min_size=1,
    max_size=25,
)


def at_once(
    groups: Sequence[TokenGroup],
    orders: Iterator[Sequence[int]],
    batch_size: int,
    limit: int,
    most: int | None,
    kind: str | None,
) -> list[dict[str, Any]]:
    """Every step as plain values; companions by what they are, for all groups of an epoch."""
    steps: list[dict[str, Any]] = []
    for epoch, order in enumerate(orders):
        batches: list[list[int]] = []
        filled = 0
        for position in order:
            count = len(groups[position].comparisons)
            if not batches or filled + count > batch_size:
                batches.append([])
                filled = 0
            batches[-1].append(position)
            filled += count
        beside = {p: companion(groups, order, at, kind) for at, p in enumerate(order) if kind}
        for index, batch in enumerate(batches):
            if len(steps) == most:
                return steps
            sizes = [group_tokens(groups[p]) for p in batch]
            further = [_further(groups[p], beside[p]) if kind else 0 for p in batch]
            pieces = first_fit([a + b for a, b in zip(sizes, further, strict=True)], limit)
            weights = [edge.weight for p in batch for edge in groups[p].comparisons]
            steps.append(
                {
                    "epoch": epoch + (index + 1) / len(batches),
                    "microbatches": tuple(tuple(batch[i] for i in piece) for piece in pieces),
                    "comparisons": len(weights),
                    "weight": sum(weights),
                    "tokens": sum(sizes) + sum(further),
                    "companions": {p: beside[p] for p in batch if kind},
                }
            )
    return steps


def companion(
    groups: Sequence[TokenGroup], order: Sequence[int], place: int, kind: str | None
) -> tuple[list[int], list[list[int]]]:
    own = groups[order[place]]
    if kind == "corrupted":
        kept = max(1, round(0.2 * len(own.prompt)))
        prompt = [*own.prompt[:1], *own.prompt[max(1, len(own.prompt) - kept) :]]
        return list(map(int, prompt)), [
            own.completions[edge.preferred].tolist() for edge in own.comparisons
        ]
    others = [groups[order[(place + i) % len(order)]] for i in range(1, len(order))]
    other = next(g for g in others if g.prompt.tolist() != own.prompt.tolist())
    answers = [other.completions[edge.preferred].tolist() for edge in other.comparisons]
    return own.prompt.tolist(), [answers[i % len(answers)] for i in range(len(own.comparisons))]


def _further(own: TokenGroup, beside: tuple[list[int], list[list[int]]]) -> int:
    prompt, answers = beside
    shared = prompt == own.prompt.tolist()
    return sum(map(len, answers)) + (0 if shared else len(prompt))


def lazily(examples: Examples, steps: Plan) -> list[dict[str, Any]]:
    """The same of a plan."""
    found = []
    for step in steps:
        beside = {position: examples.group(at) for position, at in step.companions.items()}
        found.append(
            {
                "epoch": step.epoch,
                "microbatches": step.microbatches,
                "comparisons": step.comparisons,
                "weight": step.weight,
                "tokens": step.tokens,
                "companions": {
                    position: (part.prompt.tolist(), [ids.tolist() for ids in part.completions])
                    for position, part in beside.items()
                },
            }
        )
    return found


@settings(max_examples=150, deadline=None)
@given(
    groups=GROUPS,
    batch_size=st.integers(1, 9),
    limit=st.integers(1, 90),
    epochs=st.integers(1, 3),
    max_steps=st.none() | st.integers(0, 12),
    seed=st.integers(0, 3),
    mixed=st.booleans(),
    kind=st.sampled_from([None, None, "mismatched", "corrupted"]),
)
def test_a_lazy_plan_is_the_plan_made_at_once(
    groups: list[TokenGroup],
    batch_size: int,
    limit: int,
    epochs: int,
    max_steps: int | None,
    seed: int,
    mixed: bool,
    kind: Any,
) -> None:
    sources = [part.source for part in groups]
    counts = [len(part.comparisons) for part in groups]
    weights = {"a": 1.0, "b": 0.2, "c": 3.0}
    shares: Mapping[str, float] | None = (
        {str(name): weights[str(name)] for name in dict.fromkeys(sources)} if mixed else None
    )
    orders = [
        epoch_order(sources, counts, shares, seed=seed, epoch=epoch).tolist()
        for epoch in range(epochs)
    ]
    examples = Examples(groups)
    options: dict[str, Any] = {"batch_size": batch_size, "microbatch_tokens": limit}
    try:
        expected = at_once(groups, iter(orders), batch_size, limit, max_steps, kind)
    except StopIteration:  # an epoch of one prompt alone
        with pytest.raises(DataError, match="same prompt"):
            steps = plan(examples, **options, epochs=epochs, seed=seed, shares=shares,
                         companions=kind)  # fmt: skip
        return
    steps = plan(
        examples, **options, epochs=epochs, max_steps=max_steps, seed=seed, shares=shares,
        companions=kind,
    )  # fmt: skip
    assert lazily(examples, steps) == expected
    assert len(steps) == len(expected)
    assert steps.judgements == sum(step["comparisons"] for step in expected)
    assert list(steps[2:]) == list(steps)[2:] and list(steps[::-2]) == list(steps)[::-2]
    if steps:
        assert steps[-1] == list(steps)[-1]
    with pytest.raises(IndexError):
        steps[len(steps)]

    examples = Examples(groups)
    if max_steps is None:
        expected = at_once(groups, iter([range(len(groups))]), batch_size, limit, None, kind)
        steps = in_order(examples, batch_size, limit, kind)
        assert lazily(examples, steps) == [{**step, "epoch": 1.0} for step in expected]


class Watched(list[TokenGroup]):
    """Groups that know which of them were looked at."""

    def __init__(self, groups: list[TokenGroup]) -> None:
        super().__init__(groups)
        self.seen: set[int] = set()

    def __getitem__(self, index: Any) -> Any:
        self.seen.add(index)
        return super().__getitem__(index)


def test_what_no_step_reaches_is_not_looked_at() -> None:
    groups = Watched([group(1 + i % 4, 3, 1, 1.0, "a") for i in range(500)])
    examples = Examples(groups)
    assert examples.sizes.unweighted
    groups.seen.clear()
    steps = plan(
        examples, batch_size=4, microbatch_tokens=64, max_steps=3, epochs=9, companions="mismatched"
    )
    assert len(groups.seen) <= 8  # that there is another prompt
    trained = {p for step in steps for piece in step.microbatches for p in piece}
    assert len(trained) == 12
    examples.microbatch(steps[0], steps[0].microbatches[0], torch.device("cpu"))
    assert len(groups.seen) < 40


def test_known_scores_keep_what_was_first() -> None:
    known = KnownScores()
    assert 7 not in known and 10**7 not in known
    known.add(10**7, [-1.5, 0.0])
    known.add(7, [0.0])
    known.add(7, [-9.0])
    assert 7 in known and 10**7 in known and 8 not in known
    assert known.of(7, 1).tolist() == [0.0]
    assert known.of(10**7, 2).tolist() == [-1.5, 0.0]
    with pytest.raises(KeyError):
        known.of(8, 1)
