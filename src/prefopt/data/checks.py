"""What is wrong with a file of preferences, with file and row: `prefopt check`.

One pass over the rows. What a reader refuses is found here under the same word, and beside
it what can be read and should still be looked at. Memory grows by some 150 bytes a pair.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from prefopt.data.aggregate import comparisons_from_votes
from prefopt.data.files import Paths
from prefopt.data.formats import GroupReader
from prefopt.data.kinds import KINDS
from prefopt.data.pairs import Edges
from prefopt.errors import DataError
from prefopt.records import Group, Origin

_ROLE_MARKER = re.compile(
    r"(?:^|\s)(?:Human|Assistant|User):(?=\s|$)"
    r"|<\|(?:im_start|im_end|eot_id|start_header_id|user|assistant|system)\|>"
    r"|\[/?INST\]|<(?:start|end)_of_turn>"
)


@dataclass
class _Finding:
    count: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)


def check(
    paths: Paths, *, format: str = "auto", edges: Edges = "all", examples: int = 20
) -> dict[str, Any]:
    """Everything that is wrong with preference data, by kind.

    Args:
        paths: what `read_groups` takes.
        format: as there.
        edges: as there.
        examples: rows named for each kind at most; `count` is always complete.

    Returns:
        `{"rows", "groups", "comparisons", "findings": [{"kind", "level", "count",
        "rows": [{"file", "row"}], "message", "remedy"}]}`: rows read, groups and
        comparisons that would be trained on, and findings, errors first. A count is of
        rows (for files that cannot be read, of files).

    Raises:
        DataError: there is no such file or folder.
        RecipeError: there is no such format.
    """
    checker = _Checker(examples)
    reader = GroupReader(
        paths, format=format, on_error="skip", edges=edges, on_refused=checker.refused
    )
    for group, own in reader.row_groups():
        checker.look_at(group, own)
    levels = ("error", "warning", "note")
    order = {kind: (levels.index(level), i) for i, (kind, (level, *_)) in enumerate(KINDS.items())}
    return {
        "rows": reader.rows,
        "groups": len(checker.prompts) + checker.own_groups,
        "comparisons": checker.comparisons + len(checker.voted),
        "findings": [
            {
                "kind": kind,
                "level": KINDS[kind][0],
                "count": checker.findings[kind].count,
                "rows": checker.findings[kind].rows,
                "message": KINDS[kind][1],
                "remedy": KINDS[kind][2],
            }
            for kind in sorted(checker.findings, key=order.__getitem__)
        ],
    }


class _Checker:
    """Looks at one row after the other and remembers digests of what it saw."""

    def __init__(self, examples: int) -> None:
        self.examples = examples
        self.findings: dict[str, _Finding] = {}
        self.prompts: set[bytes] = set()
        self.own_groups = 0
        self.comparisons = 0
        self.voted: set[bytes] = set()
        self._pairs: dict[bytes, int] = {}  # pair → directions seen: 1, 2 or both

    def refused(self, error: DataError) -> None:
        self._found(error.kind, error.file, error.row)

    def look_at(self, group: Group, own: bool) -> None:
        key = group.prompt_key
        if own:
            self.own_groups += 1
        else:
            self.prompts.add(key)
        kinds = {*self._of_texts(group), *self._of_pairs(group, key)}
        voted = 0 if own else self._count_votes(group, key)
        if len(group.completions) > 1 and not (group.comparisons or group.labels or voted):
            kinds.add("no_comparison")
        self.comparisons += len(group.comparisons)
        origin: Origin = group.origins[0]
        for kind in sorted(kinds):
            self._found(kind, origin.file, origin.row)

    def _of_texts(self, group: Group) -> Iterator[str]:
        prompt = group.prompt if isinstance(group.prompt, str) else None
        for completion in group.completions:
            if not completion.text.strip():
                yield "empty_completion"
            if _ROLE_MARKER.search(completion.text):
                yield "role_marker"
            if prompt and completion.text.startswith(prompt):
                yield "prompt_repeated"

    def _of_pairs(self, group: Group, prompt: bytes) -> Iterator[str]:
        texts = [_digest(completion.text.encode()) for completion in group.completions]
        for edge in group.comparisons:
            first, second = texts[edge.preferred], texts[edge.dispreferred]
            if first == second:
                yield "identical_sides"
                continue
            direction = 1 if first < second else 2
            if edge.probability < 0.5:
                direction = 3 - direction
            pair = _digest(prompt + min(first, second) + max(first, second))
            seen = self._pairs.get(pair, 0)
            if edge.probability == 0.5:
                continue
            if seen & direction:
                yield "duplicate_pair"
            if seen & (3 - direction):
                yield "contradiction"
            self._pairs[pair] = seen | direction

    def _count_votes(self, group: Group, prompt: bytes) -> int:
        """How many pairs the row has votes on; rows that vote on the same one give one edge."""
        edges = comparisons_from_votes(group.votes)
        for edge in edges:
            sides = (group.completions[i].text for i in (edge.preferred, edge.dispreferred))
            self.voted.add(_digest(prompt + b"".join(sorted(_digest(t.encode()) for t in sides))))
        return len(edges)

    def _found(self, kind: str, file: str | None, row: int | None) -> None:
        finding = self.findings.setdefault(kind, _Finding())
        finding.count += 1
        if len(finding.rows) < self.examples:
            finding.rows.append({"file": file, "row": row})


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()
