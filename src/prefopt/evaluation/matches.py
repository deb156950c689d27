"""A match is one prompt answered by two policies, and what a judge said: the rows of evaluation.

Matches are written as rows that every part of prefopt reads as votes of an arena:

    {"prompt", "response_a", "response_b", "model_a", "model_b", "winner", "judge",
     "probability", "order_consistent", "rationale", "orders", "columns"}

`winner` is model_a, model_b, tie, or unreadable, which is no verdict and never a tie.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from prefopt.data import fields, judged
from prefopt.data.aggregation.statements import columns_of, verdicts_of
from prefopt.data.files import Row, find_files, stream_rows
from prefopt.data.formats import read_groups
from prefopt.errors import DataError
from prefopt.judges.judge import Question, Verdict
from prefopt.judges.orders import settled
from prefopt.judges.scoring import preference
from prefopt.records import Group, Prompt, prompt_key
from prefopt.runs import atomic_file

_SAID = {1.0: "model_a", 0.0: "model_b", 0.5: "tie", None: "unreadable"}
_KEPT = ("orders", "not_asked")  # of a verdict's transcript
_CHOICES = {"first": 1.0, "second": 0.0, "tie": 0.5}


@dataclass(frozen=True, slots=True)
class Match:
    """Two answers to one prompt, and a verdict.

    Attributes:
        prompt: of both.
        first, second: names of the policies.
        texts: what they answered.
        verdict: of the judge; equal texts are a tie that nobody was asked about.
        columns: what the prompt belongs to, for a breakdown.
    """

    prompt: Prompt
    first: str
    second: str
    texts: tuple[str, str]
    verdict: Verdict
    columns: Mapping[str, Any] = field(default_factory=dict)

    @property
    def question(self) -> Question:
        return Question(self.prompt, *self.texts)

    @property
    def identical(self) -> bool:
        return self.texts[0] == self.texts[1]

    @property
    def value(self) -> float | None:
        """1 the first is better, 0 the second, ½ a tie; None if the verdict cannot be read."""
        return settled(self.verdict)

    @property
    def longer(self) -> float:
        """What a judge would say who always takes the longer text, in characters."""
        gap = len(self.texts[0]) - len(self.texts[1])
        return preference(gap)

    def turned(self) -> Match:
        """The same match from the other side."""
        said = self.verdict
        probability = None if said.probability is None else 1.0 - said.probability
        verdict = Verdict(probability, said.rationale, said.order_consistent, said.transcript)
        return Match(self.prompt, self.second, self.first, self.texts[::-1], verdict, self.columns)


def between(matches: Iterable[Match], first: str, second: str) -> list[Match]:
    """The matches of two policies, seen from the first."""
    found = []
    for match in matches:
        if (match.first, match.second) == (first, second):
            found.append(match)
        elif (match.first, match.second) == (second, first):
            found.append(match.turned())
    return found


# -- files ---------------------------------------------------------------------------------


def write_matches(path: str, matches: Iterable[Match], judge: str) -> int:
    """Write matches as rows, one a line; the file appears when it is complete.

    Raises:
        RunError: it cannot be written.
    """
    count = 0
    with atomic_file(path) as stream:
        for match in matches:
            line = json.dumps(_row(match, judge), ensure_ascii=False)
            stream.write(line.encode("utf-8", "replace") + b"\n")
            count += 1
    return count


def read_matches(paths: str | Sequence[str]) -> list[Match]:
    """Matches from rows of `write_matches`, of any arena with texts and names of models, or of
    groups with comparisons between completions that have a source (`prefopt judge`).

    Raises:
        DataError: a row is no match, or there is none.
    """
    matches: list[Match] = []
    files = find_files([paths] if isinstance(paths, str) else list(paths))
    for file in files:
        if not _begins_with_models(file):
            matches += [match for group in read_groups(file) for match in _of_group(group)]
            continue
        for number, row in stream_rows(file):
            try:
                matches.append(_match(row))
            except DataError as error:
                error.file, error.row = error.file or file, error.row or number
                raise
    if not matches:
        raise DataError(
            "there are no verdicts between two policies", kind="no_comparisons", file=files[0],
            remedy="give --judge, or rows with verdicts and completions that have a source",
        )  # fmt: skip
    return matches


def _begins_with_models(file: str) -> bool:
    for _, row in stream_rows(file):
        return isinstance(row, DataError) or "model_a" in row
    return True


def _of_group(group: Group) -> Iterator[Match]:
    """The verdicts of a group, or its comparisons, between completions of two sources."""
    said: list[tuple[int, int, float | None, bool | None]] = [
        (verdict.first, verdict.second, verdict.probability, verdict.order_consistent)
        for verdict in verdicts_of(group)
    ] or [(e.preferred, e.dispreferred, e.probability, None) for e in group.comparisons]
    columns = columns_of(group)
    for first, second, probability, consistent in said:
        left, right = group.completions[first], group.completions[second]
        if left.source and right.source and left.source != right.source:
            yield Match(
                group.prompt, left.source, right.source, (left.text, right.text),
                Verdict(probability, None, consistent), columns,
            )  # fmt: skip


def _row(match: Match, judge: str) -> Row:
    verdict = match.verdict
    prompt = match.prompt
    return {
        "prompt": prompt
        if isinstance(prompt, str)
        else [{"role": turn.role, "content": turn.content} for turn in prompt],
        "response_a": match.texts[0],
        "response_b": match.texts[1],
        "model_a": match.first,
        "model_b": match.second,
        "winner": _SAID[match.value],
        "judge": judge,
        "probability": verdict.probability,
        "order_consistent": verdict.order_consistent,
        "rationale": verdict.rationale,
        **{name: verdict.transcript[name] for name in _KEPT if name in verdict.transcript},
        "columns": dict(match.columns),
    }


def _match(row: Row | DataError) -> Match:
    if isinstance(row, DataError):
        raise row
    prompt = fields.prompt(fields.required(row, "prompt"), "prompt")
    first, second = judged.models(row)
    texts = tuple(fields.completion(fields.required(row, name), name)
                  for name in ("response_a", "response_b"))  # fmt: skip
    probability = row.get("probability")
    if probability is not None:
        probability = fields.number(probability, "probability", 0.0, 1.0)
    elif row.get("winner") != _SAID[None]:
        probability = _CHOICES[judged.choice(row)]
    consistent = row.get("order_consistent")
    columns = row.get("columns")
    verdict = Verdict(
        probability,
        row.get("rationale"),
        consistent if isinstance(consistent, bool) else None,
        {name: row[name] for name in _KEPT if row.get(name)},
    )
    return Match(
        prompt, first, second, (texts[0], texts[1]), verdict,
        columns if isinstance(columns, dict) else {},
    )  # fmt: skip


def clusters_of(matches: Iterable[Match]) -> Iterator[bytes]:
    """The prompt of each match."""
    return (prompt_key(match.prompt) for match in matches)


def answers_of(matches: Sequence[Match]) -> list[dict[str, Any]]:
    """A row a policy: `policy`, `prompts`, `completions`, `mean_length`, as `Answers.table`."""
    texts: dict[str, dict[tuple[bytes, str], None]] = {}
    for match in matches:
        key = prompt_key(match.prompt)
        for name, text in zip((match.first, match.second), match.texts, strict=True):
            texts.setdefault(name, {})[key, text] = None
    return [
        {
            "policy": name, "prompts": len({key for key, _ in said}), "completions": len(said),
            "mean_length": sum(len(text) for _, text in said) / len(said),
        }
        for name, said in texts.items()
    ]  # fmt: skip
