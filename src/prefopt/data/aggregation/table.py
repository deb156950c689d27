"""Votes as arrays of whole numbers, and the pairs of options that they are about.

V votes on O options of Q questions. A question is a prompt, or whatever else was asked (a
question and its turn); its options are completions, or the models that answered. An item is a
pair of options of one question on which there are votes: it has a lower and a higher option by
their numbers, and what is said of it is turned into that order, so that who stood first when
somebody voted makes no difference to any rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from prefopt.errors import DataError
from prefopt.records import Choice

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

#: codes of `Votes.choice`, in the order of CHOICES; of `Items.said` LOW, HIGH and TIE
CHOICES: tuple[str, ...] = get_args(Choice)
FIRST, SECOND, TIE = 0, 1, 2
LOW, HIGH = FIRST, SECOND

#: what is closer to one half than any fit is exact is a tie
_EXACT = 1e-9


@dataclass(frozen=True)
class Votes:
    """The votes and what they are about.

    Attributes:
        first, second: (V,) options in the order in which they were shown.
        choice: (V,) FIRST, SECOND or TIE.
        annotator: (V,) who voted; −1 where nobody is named.
        question: (O,) which question an option belongs to.
        source: (O,) who or what wrote it; −1 where that is not known.
        rank: (O,) the order of options by what they are, not by where they stand.
        annotators, sources, questions: the names behind the codes.
    """

    first: Ints
    second: Ints
    choice: Ints
    annotator: Ints
    question: Ints
    source: Ints
    rank: Ints
    annotators: Sequence[str] = field(default=())
    sources: Sequence[str] = field(default=())
    questions: Sequence[str] = field(default=())

    def __len__(self) -> int:
        return len(self.choice)

    @property
    def options(self) -> int:
        """O, how many there are."""
        return len(self.question)

    @cached_property
    def items(self) -> Items:
        """The pairs that were voted on, by question."""
        low, high = np.minimum(self.first, self.second), np.maximum(self.first, self.second)
        keys, of = np.unique(low * max(self.options, 1) + high, return_inverse=True)
        turned = (self.first > self.second) & (self.choice != TIE)
        said = np.where(turned, 1 - self.choice, self.choice)
        counts = np.bincount(of * 3 + said, minlength=3 * len(keys)).reshape(-1, 3)
        return Items(*np.divmod(keys, max(self.options, 1)), of, said, counts)

    @cached_property
    def voter(self) -> Ints:
        """(V,) the annotator; those without a name are one, after all others."""
        return np.where(self.annotator < 0, len(self.annotators), self.annotator)

    @cached_property
    def voted(self) -> NDArray[np.bool_]:
        """(O,) whether there is any vote on an option."""
        return np.bincount(np.append(self.first, self.second), minlength=self.options) > 0

    def where(self, kept: NDArray[np.bool_]) -> Votes:
        """Some of the votes; nothing is renumbered."""
        return replace(
            self,
            first=self.first[kept], second=self.second[kept],
            choice=self.choice[kept], annotator=self.annotator[kept],
        )  # fmt: skip

    def over_sources(self) -> Votes:
        """The same votes on the sources of the options, as if all answered one question.

        Votes that compare a source with itself say nothing about sources and are left out.

        Raises:
            DataError: the source of an option with votes is not known.
        """
        if (self.source[self.voted] < 0).any():
            option = int(np.flatnonzero(self.voted & (self.source < 0))[0])
            raise DataError(
                "a completion with votes has no source, so sources cannot be compared",
                kind="missing_field",
                field="completions.source",
                value=self.questions[self.question[option]] if self.questions else None,
                remedy="give every completion its `source` (or model), or aggregate over prompts",
            )
        first, second = self.source[self.first], self.source[self.second]
        pooled = replace(
            self,
            first=first, second=second,
            question=np.zeros(len(self.sources), dtype=np.int64),
            source=np.arange(len(self.sources)),
            rank=np.arange(len(self.sources)),
            questions=("all",),
        )  # fmt: skip
        return pooled.where(first != second)


@dataclass(frozen=True)
class Items:
    """M pairs of options that were voted on, ascending by their options (so by question).

    Attributes:
        low, high: (M,) the two options, by their numbers.
        of: (V,) which pair a vote is about.
        said: (V,) LOW, HIGH or TIE: what was preferred.
        counts: (M, 3) how many said LOW, HIGH and TIE.
    """

    low: Ints
    high: Ints
    of: Ints
    said: Ints
    counts: Ints

    def __len__(self) -> int:
        return len(self.low)

    @cached_property
    def total(self) -> Ints:
        """(M,) votes on each."""
        return np.asarray(self.counts.sum(axis=1))

    @cached_property
    def wins(self) -> Floats:
        """(M, 2) wins of the lower and the higher option, a tie being half a win for each."""
        return self.counts[:, :2] + 0.5 * self.counts[:, 2:]


@dataclass(frozen=True)
class Aggregate:
    """What a rule makes of votes.

    Attributes:
        method: the rule's name.
        probability: (M,) that the lower option of each item is better; exactly 1/2 is a tie.
        scores: (O,) by which the rule orders options of one question, higher is better; NaN
            without votes; None if it only says something about pairs.
        reliability: (A,) of every annotator, between 0 and 1, where the rule estimates it.
        details: settings and how the fit ended, as `--json` prints them.
    """

    method: str
    probability: Floats
    scores: Floats | None = None
    reliability: Floats | None = None
    details: dict[str, float | int | bool | str] = field(default_factory=dict)


def summed(place: Ints, weight: Floats, size: int) -> Floats:
    """(size,) sums of the weights that go to each place."""
    return np.bincount(place, weight, size).astype(np.float64)


def settled(probability: Floats) -> Floats:
    """Probabilities, where what is one half but for rounding is one half.

    A fit is exact to some digits only. Without this, the last of them would break ties.
    """
    return np.where(np.abs(probability - 0.5) <= _EXACT, 0.5, probability)


def ordered(votes: Votes, scores: Floats) -> Floats:
    """(M,) 1, 0 or 1/2: which option of each item has the higher score."""
    items = votes.items
    difference = scores[items.low] - scores[items.high]
    order = (difference > 0).astype(np.float64)
    return np.where(np.abs(difference) <= _EXACT, 0.5, order)


def place(votes: Votes, item: int) -> dict[str, Any]:
    """Where an item is: its question, and its options as numbers within it or as sources."""
    low, high = int(votes.items.low[item]), int(votes.items.high[item])
    question = int(votes.question[low])
    first = int(np.searchsorted(votes.question, question))
    sources = [votes.sources[code] if code >= 0 else None for code in votes.source[[low, high]]]
    return {
        "question": votes.questions[question],
        "pair": [low - first, high - first],
        "sources": sources if any(sources) else None,
    }
