"""What is noted of rows and comparisons while they stream by: columns of a few bytes each.

Ten million comparisons are some hundreds of megabytes. Whatever needs more than these columns
looks at a sample of the texts.

Shapes: R rows that were read and accepted, E comparisons of theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from prefopt.data.checking.findings import Place

#: bits of `Facts.preferred_marks` and `.dispreferred_marks`
LIST, HEADING, BOLD, CODE, REFUSAL, APOLOGY = (1 << bit for bit in range(6))


@dataclass(frozen=True)
class Facts:
    """The columns.

    Attributes:
        files: names of what was read.
        file: (R,) uint32, which of them a row is in.
        number: (R,) uint32, the row in the file, from 1.
        sources, categories, annotators: names behind the codes below.
        row: (E,) uint32, which of the R rows a comparison was read in, ascending.
        prompt: (E,) uint64 digest of the prompt; a user's only turn has that of its text.
        first, second: (E,) uint64 digests of the texts of its two completions in the order of
            the row: `first` stood earlier (chosen before rejected counts as unknown order).
        toward: (E,) int8, +1 where `first` was preferred, −1 where `second` was, 0 for a tie.
        stated: (E,) bool, whether the row's order says who saw what where (votes, arena and
            judge layouts do; `chosen` and `rejected` do not): true of exactly the votes, each of
            which is a comparison here.
        probability: (E,) float32, of the comparison as it was read, in [0.5, 1].
        weight: (E,) float32.
        preferred_length, dispreferred_length: (E,) uint32 characters.
        preferred_marks, dispreferred_marks: (E,) uint16 bits: what they look like.
        source, category: (E,) uint16 codes; 0 is "none given", or more names than codes.
        annotator: (E,) uint32 codes; 0 is "none given".
    """

    files: Sequence[str]
    file: NDArray[np.uint32]
    number: NDArray[np.uint32]
    row: NDArray[np.uint32]
    prompt: NDArray[np.uint64]
    first: NDArray[np.uint64]
    second: NDArray[np.uint64]
    toward: NDArray[np.int8]
    stated: NDArray[np.bool_]
    probability: NDArray[np.float32]
    weight: NDArray[np.float32]
    preferred_length: NDArray[np.uint32]
    dispreferred_length: NDArray[np.uint32]
    preferred_marks: NDArray[np.uint16]
    dispreferred_marks: NDArray[np.uint16]
    source: NDArray[np.uint16]
    category: NDArray[np.uint16]
    annotator: NDArray[np.uint32]
    sources: Sequence[str] = field(default=("",))
    categories: Sequence[str] = field(default=("",))
    annotators: Sequence[str] = field(default=("",))

    def __len__(self) -> int:
        return len(self.row)

    def places(self, comparisons: NDArray[np.int64], most: int) -> list[Place]:
        """Where these comparisons were read: each row once, in reading order, `most` of them."""
        rows = np.unique(self.row[comparisons])[:most]
        return [Place(self.files[self.file[row]], int(self.number[row])) for row in rows]


@dataclass(frozen=True)
class Example:
    """The texts of one comparison of the sample.

    Attributes:
        comparison: its index among the E of `Facts`.
        prompt: as readable text; long texts are cut, a prompt at its beginning.
        last: of a conversation only the user's last turn, else the same as `prompt`.
        preferred, dispreferred: the two completions; of a tie, in the order of the row.
    """

    comparison: int
    prompt: str
    last: str
    preferred: str
    dispreferred: str


@dataclass(frozen=True)
class Texts:
    """A seeded uniform sample of the comparisons, or all of them where they are few.

    Attributes:
        examples: ascending by comparison.
        whole: whether these are all.
    """

    examples: Sequence[Example]
    whole: bool
