"""What objectives read of a group: comparisons, preferred completions, labels, rankings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from prefopt.engine.tokens import TokenGroup
from prefopt.errors import DataError
from prefopt.records import Comparison, Label
from prefopt.training.batches import Examples
from prefopt.training.companions import Companions, Kind
from prefopt.training.reading import as_read, judgements_in, weights_in
from prefopt.training.steps import plan


def group(
    *edges: tuple[int, int] | Comparison,
    labels: Sequence[Label] = (),
    count: int = 4,
    prompt: int = 1,
) -> TokenGroup:
    """Completion i is the token 10 + i, repeated i + 1 times; the prompt has ten tokens."""
    return TokenGroup(
        np.arange(100 * prompt, 100 * prompt + 10, dtype=np.int32),
        tuple(np.full(i + 1, 10 + i, dtype=np.int32) for i in range(count)),
        tuple(edge if isinstance(edge, Comparison) else Comparison(*edge) for edge in edges),
        tuple(labels),
        columns={"score": tuple(float(i) for i in range(count))},
    )


def kinds(part: TokenGroup | None) -> list[int]:
    """Which completions are left, in order, by their token."""
    assert part is not None
    return [int(ids[0]) - 10 for ids in part.completions]


# -- rankings ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "edges",
    [
        [(2, 0), (0, 3), (3, 1)],
        [(3, 1), (2, 0), (0, 3), (2, 1), (2, 3), (0, 1)],  # all pairs, in any order
        [(2, 0), Comparison(3, 0, probability=0.2), (3, 1)],  # 0 is better than 3 after all
    ],
)
def test_comparisons_that_leave_one_order_are_a_ranking(edges: list[object]) -> None:
    part = as_read(group(*edges), "rankings")  # type: ignore[arg-type]
    assert kinds(part) == [2, 0, 3, 1]
    assert part is not None
    assert judgements_in(part, "rankings") == 1
    assert part.columns["score"] == (2.0, 0.0, 3.0, 1.0)  # columns follow their completions


@pytest.mark.parametrize(
    "edges",
    [
        [(0, 1), (1, 2), (2, 0)],  # a cycle
        [(0, 1), (0, 2)],  # nothing tells 1 and 2 apart
        [(0, 1), Comparison(1, 2, probability=0.5)],  # a tie
        [(0, 1), (2, 3)],
        [],
    ],
)
def test_what_is_no_ranking_is_not_read_as_one(edges: list[object]) -> None:
    assert as_read(group(*edges), "rankings") is None  # type: ignore[arg-type]


def test_a_ranking_weighs_as_much_as_its_neighbours_on_average() -> None:
    edges = [
        Comparison(2, 0, weight=3.0),
        Comparison(0, 1, weight=1.0),
        Comparison(2, 1, weight=9.0),
    ]
    part = as_read(group(*edges), "rankings")
    assert part is not None
    assert weights_in(part, "rankings") == [2.0]


def test_weightless_comparisons_rank_nothing() -> None:
    part = as_read(group((2, 0), Comparison(0, 2, weight=0.0)), "rankings")
    assert kinds(part) == [2, 0]


# -- labels --------------------------------------------------------------------------------


def test_labels_are_read_as_they_are() -> None:
    marks = (Label(1, True), Label(3, False, weight=2.0), Label(2, True, weight=0.0))
    part = as_read(group((0, 1), labels=marks), "labels")
    assert kinds(part) == [1, 3]
    assert part is not None
    assert part.labels == (Label(0, True), Label(1, False, weight=2.0))


def test_comparisons_become_labels_of_both_sides() -> None:
    part = as_read(group((2, 0), Comparison(0, 1, probability=0.75, weight=2.0)), "labels")
    assert kinds(part) == [0, 1, 2]
    assert part is not None
    # 0 lost once (weight 1) and won with 2·0.75; what is left of it, 2·0.25, is a loss.
    assert part.labels == (
        Label(0, False, 1.5), Label(0, True, 1.5),
        Label(1, False, 1.5), Label(1, True, 0.5),
        Label(2, True, 1.0),
    )  # fmt: skip
    assert judgements_in(part, "labels") == 5


# -- companions ----------------------------------------------------------------------------


def companions_of(
    kind: Kind, groups: list[TokenGroup], order: list[int], reads: Any
) -> list[TokenGroup]:
    made = Companions(kind, groups, lambda: order, reads, start=len(groups), count=len(order))
    made.check()
    return list(made)


def test_mismatched_companions_answer_the_next_other_prompt() -> None:
    same = [
        group(labels=[Label(0, True), Label(1, False)], prompt=1),
        group(labels=[Label(2, True)], prompt=2),
        group(labels=[Label(3, True)], prompt=2),
    ]
    made = companions_of("mismatched", same, [1, 2, 0], "labels")
    # In the epoch's order 1, 2, 0: groups 1 and 2 share a prompt, so both go on to group 0.
    assert [int(part.prompt[0]) for part in made] == [200, 200, 100]
    assert [[len(ids) for ids in part.completions] for part in made] == [[1], [1], [3, 3]]
    assert [int(part.completions[0][0]) for part in made] == [10, 10, 12]


def test_one_prompt_has_no_mismatched_completions() -> None:
    with pytest.raises(DataError, match="same prompt"):
        companions_of("mismatched", [group((0, 1)), group((0, 1))], [0, 1], "comparisons")


def test_corrupted_companions_keep_the_end_of_the_prompt() -> None:
    (made,) = companions_of("corrupted", [group((2, 0), (1, 3))], [0], "comparisons")
    assert made.prompt.tolist() == [100, 108, 109]  # its first token and the last fifth
    assert [int(ids[0]) for ids in made.completions] == [12, 11]


def test_companions_do_not_depend_on_micro_batches() -> None:
    groups = [group((0, 1), (2, 3), prompt=number) for number in range(1, 8)]
    plans = []
    for limit in (1, 50, 10_000):
        examples = Examples(list(groups))
        steps = plan(
            examples, batch_size=5, microbatch_tokens=limit, epochs=2, companions="mismatched"
        )
        beside = [
            {place: examples.group(at) for place, at in sorted(step.companions.items())}
            for step in steps
        ]
        plans.append([
            [(place, part.prompt.tolist(), [ids.tolist() for ids in part.completions])
             for place, part in companions.items()]
            for companions in beside
        ])  # fmt: skip
        assert all(set(step.companions) == {p for m in step.microbatches for p in m}
                   for step in steps)  # fmt: skip
    assert plans[0] == plans[1] == plans[2]
    assert plans[0][0] != plans[0][-1]
