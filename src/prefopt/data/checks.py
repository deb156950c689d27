"""What is wrong with a file of preferences, with file and row: `prefopt check`.

One pass over the rows. What a reader refuses is found here under the same word, and beside
it what can be read and should still be looked at. Memory grows by some 150 bytes a pair.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from prefopt.data.files import Paths
from prefopt.data.formats import GroupReader
from prefopt.data.merging import with_votes_counted
from prefopt.data.pairs import Edges
from prefopt.errors import DataError
from prefopt.records import Group, Origin

Level = Literal["error", "warning", "note"]

#: kind → (level, what it means, what to do). Errors are what training would refuse.
KINDS: dict[str, tuple[Level, str, str]] = {
    "unreadable_file": (
        "error", "a file cannot be read to its end",
        "fetch or write the file again; it may be cut short or damaged",
    ),
    "empty_file": (
        "error", "a file has no rows", "remove the file, or write it again",
    ),
    "unreadable_row": (
        "error", "a row is not a JSON object in UTF-8",
        "write one JSON object a line, in UTF-8",
    ),
    "unknown_layout": (
        "error", "the columns of a row fit no known layout",
        "rename the columns to prompt, chosen and rejected, or name the layout",
    ),
    "mixed_layout": (
        "error", "a row has another layout than the rows before it",
        "put rows of different layouts into different files",
    ),
    "missing_field": (
        "error", "a column is missing or null", "give the column in every row",
    ),
    "wrong_type": (
        "error", "a column holds another type than it should", "correct the rows",
    ),
    "out_of_range": (
        "error", "a number, an index or a choice is outside its range", "correct the rows",
    ),
    "wrong_role": (
        "error", "a turn is not by whom it should be",
        "end prompts before the assistant's turn, and use the roles system, user, assistant, tool",
    ),
    "unsupported_media": (
        "error", "a row has images, audio or tools, which would be left out of the prompt",
        "remove these rows",
    ),
    "empty_prompt": (
        "error", "a prompt is empty", "give a prompt, or remove the rows",
    ),
    "empty_completion": (
        "error", "a completion is empty: a policy trained on it learns to say nothing",
        "remove the rows",
    ),
    "several_turns": (
        "error", "a completion has several turns",
        "move the earlier turns to the prompt; a comparison is about the last one",
    ),
    "prompt_mismatch": (
        "error", "the two sides of a pair do not share their prompt",
        "correct or remove the rows, or give the prompt in a column of its own",
    ),
    "identical_sides": (
        "error", "a completion is compared with itself",
        "remove the rows: they say nothing about what is better",
    ),
    "score_order": (
        "error", "the chosen completion has the lower score",
        "swap the sides, or rename the score columns if lower is better",
    ),
    "contradiction": (
        "warning", "the same two completions are preferred both ways",
        "decide, or write the share of votes as `probability` of a single row",
    ),
    "duplicate_pair": (
        "warning", "the same comparison occurs again and counts again",
        "remove the repetitions, unless they are separate judgements",
    ),
    "role_marker": (
        "warning", "a completion contains a role marker, so the policy learns to write both sides",
        "cut the completions before the marker, or remove the rows",
    ),
    "prompt_repeated": (
        "warning", "a completion begins with its own prompt, which would be seen twice",
        "remove the prompt from the completions",
    ),
    "no_comparison": (
        "note", "a row's completions are all equally good, so it gives no comparison",
        "nothing to do; such rows are not trained on",
    ),
}  # fmt: skip

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
        "comparisons": checker.comparisons,
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
        self._pairs: dict[bytes, int] = {}  # pair → directions seen: 1, 2 or both

    def refused(self, error: DataError) -> None:
        self._found(error.kind, error.file, error.row)

    def look_at(self, group: Group, own: bool) -> None:
        key = group.prompt_key
        if own:
            self.own_groups += 1
        else:
            self.prompts.add(key)
        voted = group if own else with_votes_counted(group)
        self.comparisons += len(voted.comparisons)
        kinds = {*self._of_texts(group), *self._of_pairs(voted, key)}
        if len(group.completions) > 1 and not (voted.comparisons or group.labels):
            kinds.add("no_comparison")
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

    def _found(self, kind: str, file: str | None, row: int | None) -> None:
        finding = self.findings.setdefault(kind, _Finding())
        finding.count += 1
        if len(finding.rows) < self.examples:
            finding.rows.append({"file": file, "row": row})


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()
