"""The questions of a pool and those that were asked before, read once and kept as digests.

Shapes: B completions of the pool, N questions about pairs of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from prefopt.data.acquisition.design import Ints
from prefopt.data.acquisition.questions import Pairs, completion_key, pairs_of, question_key
from prefopt.data.acquisition.stopping import Answer
from prefopt.records import Group, Origin

_VALUES = {"first": 1.0, "second": 0.0, "tie": 0.5}


@dataclass
class Asked:
    """A question that was asked before.

    Attributes:
        sides: keys of its completions, as they stood where it was read first.
        origin: that row.
        first, second: their places in its group.
        control: whether it was asked as a control, so that no model learns from it.
        answers: so far, 1 for the first side.
    """

    sides: tuple[bytes, bytes]
    origin: Origin | None
    first: int
    second: int
    control: bool
    answers: list[Answer] = field(default_factory=list)

    @property
    def prompt(self) -> bytes:
        """The key of its prompt."""
        return self.sides[0][:16]


History = dict[bytes, Asked]


@dataclass(frozen=True)
class Pool:
    """The questions that a pool has, each once.

    Attributes:
        keys: (N,) of the questions.
        places: (N, 3) number of the group, and places of the two completions in it.
        sides: (N, 2) the same two among all completions.
        prompts: (N,) number of the prompt.
        completions: (B,) keys.
        owners: (B,) number of each one's prompt.
        names: the numbers of the prompts by their keys.
    """

    keys: list[bytes]
    places: Ints
    sides: Ints
    prompts: Ints
    completions: list[bytes]
    owners: Ints
    names: dict[bytes, int]


def read_pool(groups: Iterable[Group], pairs: Pairs, history: History) -> Pool:
    """The questions of a pool; of pairs that it compares itself, the answers go to `history`.

    With `pairs="given"` these pairs are the questions, and their answers are left alone.
    """
    keys: list[bytes] = []
    places: list[tuple[int, int, int]] = []
    starts: list[int] = []
    completions: list[bytes] = []
    owners: list[int] = []
    names: dict[bytes, int] = {}
    seen: set[bytes] = set()
    for number, group in enumerate(groups):
        if pairs == "all":
            note_answers(group, history)
        prompt, start = group.prompt_key, len(completions)
        completions += [completion_key(prompt, item.text) for item in group.completions]
        owners += [names.setdefault(prompt, len(names))] * len(group.completions)
        for first, second in pairs_of(group, pairs):
            key = question_key(completions[start + first], completions[start + second])
            if key not in seen:
                seen.add(key)
                keys.append(key)
                places.append((number, first, second))
                starts.append(start)
    table = np.array(places, dtype=np.int64).reshape(-1, 3)
    sides = table[:, 1:] + np.array(starts, dtype=np.int64)[:, None]
    whose = np.array(owners, dtype=np.int64)
    return Pool(keys, table, sides, whose[sides[:, 0]], completions, whose, names)


def note_answers(group: Group, history: History) -> None:
    """Add what a group's votes say of its pairs, and its comparisons where nobody voted.

    A comparison is one answer of nobody in particular, its probability in place of 0 or 1.
    """
    prompt = group.prompt_key
    keys = [completion_key(prompt, item.text) for item in group.completions]
    for first, second, answer in _answers(group):
        if keys[first] == keys[second]:
            continue
        asked = _ask(group, keys, first, second, history)
        annotator, value = answer
        asked.answers.append((annotator, value if keys[first] == asked.sides[0] else 1 - value))


def note_question(group: Group, history: History) -> None:
    """The same, and two completions without an answer are a question that is being asked."""
    note_answers(group, history)
    if len(group.completions) == 2 and not group.comparisons and not group.votes:
        prompt = group.prompt_key
        keys = [completion_key(prompt, item.text) for item in group.completions]
        if keys[0] != keys[1]:
            _ask(group, keys, 0, 1, history)


def _ask(group: Group, keys: list[bytes], first: int, second: int, history: History) -> Asked:
    """The record of a question, made when it is met for the first time."""
    origin = group.origins[0] if group.origins else None
    control = group.meta.get("control") is True
    asked = Asked((keys[first], keys[second]), origin, first, second, control)
    return history.setdefault(question_key(keys[first], keys[second]), asked)


def _answers(group: Group) -> Iterator[tuple[int, int, Answer]]:
    """Which pair, and what was answered about it, 1 for the first of the pair."""
    voted = set()
    for vote in group.votes:
        voted.add(frozenset((vote.first, vote.second)))
        yield vote.first, vote.second, (vote.annotator, _VALUES[vote.choice])
    for edge in group.comparisons:
        if frozenset((edge.preferred, edge.dispreferred)) not in voted:
            yield edge.preferred, edge.dispreferred, (None, edge.probability)
