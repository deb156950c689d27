"""What several policies answered to the same prompts, and the matches that come of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from prefopt.data import fields
from prefopt.data.aggregation.statements import called
from prefopt.data.files import Row, find_files, stream_rows
from prefopt.data.formats import read_groups
from prefopt.data.layouts import recognise
from prefopt.errors import DataError, RecipeError
from prefopt.evaluation.matches import Match
from prefopt.judges.judge import Progress, Question, Verdict
from prefopt.records import Completion, Group, Prompt, prompt_key

#: (questions, progress) -> a verdict for each
Ask = Callable[[Sequence[Question], Progress | None], Sequence[Verdict]]

#: columns of a row of prompts that say nothing about the prompt
_ANSWERS = frozenset(("prompt", "meta", "completion", "completions", "chosen", "rejected",
                      "response", "votes", "comparisons", "labels"))  # fmt: skip


@dataclass
class Answers:
    """The answers of policies, by prompt.

    Attributes:
        prompts: by key, in the order in which they came.
        columns: what is known of each prompt.
        texts: of each policy, by the key of the prompt; a policy may answer more than once.
    """

    prompts: dict[bytes, Prompt] = field(default_factory=dict)
    columns: dict[bytes, dict[str, Any]] = field(default_factory=dict)
    texts: dict[str, dict[bytes, list[str]]] = field(default_factory=dict)

    def note(self, prompt: Prompt, columns: Mapping[str, Any]) -> bytes:
        """A prompt and what is known of it; the first to say something is right."""
        key = prompt_key(prompt)
        self.prompts.setdefault(key, prompt)
        known = self.columns.setdefault(key, {})
        for name, value in columns.items():
            known.setdefault(name, value)
        return key

    def add(self, policy: str, prompt: Prompt, text: str) -> None:
        """One more answer."""
        self.texts.setdefault(policy, {}).setdefault(prompt_key(prompt), []).append(text)

    def table(self) -> list[dict[str, Any]]:
        """A row a policy: `policy`, `prompts`, `completions`, `mean_length` in characters."""
        rows = []
        for policy, answers in self.texts.items():
            lengths = [len(text) for texts in answers.values() for text in texts]
            rows.append({
                "policy": policy, "prompts": len(answers), "completions": len(lengths),
                "mean_length": sum(lengths) / len(lengths),
            })  # fmt: skip
        return rows


# -- reading -------------------------------------------------------------------------------


def read_answers(
    answers: Answers, path: str, name: str | None = None, *, only: bool = False
) -> None:
    """Add what is in a file of answers.

    A completion belongs to its `source`; without one to the file, by its name. Of compared
    completions without sources only those count that nothing was preferred to.

    Args:
        answers: to add to.
        path: in any layout that `read_groups` takes.
        name: what to call the policy, if all answers are of one.
        only: leave out answers to prompts that `answers` has not noted.

    Raises:
        DataError: a row is wrong, a policy is in two files, a name is given and the file has
            several policies, or nothing is left.
    """
    fresh = Answers()
    for group in read_groups(path):
        if only and group.prompt_key not in answers.prompts:
            continue
        columns = group.meta if group.source is None else {**group.meta, "source": group.source}
        answers.note(group.prompt, columns)
        for completion in _counted(group):
            fresh.add(completion.source or called(path), group.prompt, completion.text)
    if not fresh.texts:
        raise DataError(
            "none of these answers is to one of the prompts", kind="prompt_mismatch", file=path,
            remedy="name the file whose prompts were answered, or leave out --prompts",
        )  # fmt: skip
    if name is not None:
        if len(fresh.texts) > 1:
            raise _several(path, name, list(fresh.texts))
        fresh.texts = dict.fromkeys([name], *fresh.texts.values())
    twice = set(fresh.texts) & set(answers.texts)
    if twice:
        raise DataError(
            f"there are answers of '{min(twice)}' twice",
            kind="duplicate_prompt", file=path, field="source", value=sorted(twice),
            remedy="name one of the files, like second=answers.jsonl",
        )  # fmt: skip
    answers.texts.update(fresh.texts)


def _counted(group: Group) -> Iterable[Completion]:
    sources = any(completion.source for completion in group.completions)
    if sources or not group.comparisons:
        return group.completions
    beaten = {
        edge.dispreferred if edge.probability >= 0.5 else edge.preferred
        for edge in group.comparisons
        if edge.probability != 0.5
    }
    return [c for place, c in enumerate(group.completions) if place not in beaten]


def _several(path: str, name: str, found: list[str]) -> DataError:
    return DataError(
        f"the file has answers of {len(found)} policies, which cannot all be '{name}'",
        kind="mixed_layout", file=path, field="source", value=sorted(found),
        remedy="leave out the name: completions are called by their source",
    )  # fmt: skip


def read_asked(paths: Sequence[str]) -> Iterator[tuple[Prompt, dict[str, Any]]]:
    """Prompts with their columns, from rows of any layout or with nothing but a prompt.

    Raises:
        DataError: there is no such file, or a row has no prompt.
    """
    for file in find_files(list(paths)):
        number = 0
        for number, row in stream_rows(file):
            try:
                yield _asked(row)
            except DataError as error:
                error.file, error.row = error.file or file, error.row or number
                raise
        if number == 0:
            raise DataError("the file has no rows", kind="empty_file", file=file)


def _asked(row: Row | DataError) -> tuple[Prompt, dict[str, Any]]:
    if isinstance(row, DataError):
        raise row
    meta = row.get("meta")
    columns = dict(meta) if isinstance(meta, dict) else {}
    columns |= {name: value for name, value in row.items()
                if name not in _ANSWERS and isinstance(value, str | int | float)}  # fmt: skip
    if "prompt" in row:
        return fields.prompt(row["prompt"], "prompt"), columns
    draft = recognise(row).convert(row, "all")
    return draft["prompt"], columns


# -- matches -------------------------------------------------------------------------------


def pairings(policies: Sequence[str], baseline: str | None) -> list[tuple[str, str]]:
    """Who meets whom: everybody the baseline, or everybody everybody.

    Of two policies the second is the baseline.

    Raises:
        RecipeError: there are fewer than two policies, or none is called like the baseline.

    >>> pairings(["a", "b", "c"], None), pairings(["a", "b", "c"], "b")
    ([('a', 'b'), ('a', 'c'), ('b', 'c')], [('a', 'b'), ('c', 'b')])
    """
    if baseline is not None and baseline not in policies:
        raise RecipeError(
            "no policy has the name of the baseline", field="baseline", value=baseline,
            remedy=f"choose {', '.join(policies)}",
        )  # fmt: skip
    if len(policies) < 2:
        raise RecipeError(
            "policies are compared with each other, so there must be two of them",
            field="answers", value=", ".join(policies),
            remedy="give another file of answers, or a model to sample from",
        )  # fmt: skip
    if baseline is None:
        return list(combinations(policies, 2))
    return [(policy, baseline) for policy in policies if policy != baseline]


def play(
    answers: Answers,
    meetings: Sequence[tuple[str, str]],
    ask: Ask,
    progress: Progress | None = None,
) -> tuple[list[Match], int]:
    """The matches of policies, the i-th answer to a prompt against the i-th.

    Nobody is asked about equal texts, nor twice about the same question.

    Returns:
        The matches, and how many answers had none to meet.

    Raises:
        DataError: two policies answered no prompt in common.
    """
    drafts: list[tuple[bytes, str, str, tuple[str, str]]] = []
    alone = 0
    for first, second in meetings:
        before = len(drafts)
        ours, theirs = answers.texts[first], answers.texts[second]
        for key in answers.prompts:
            left, right = ours.get(key, []), theirs.get(key, [])
            alone += abs(len(left) - len(right))
            drafts += [(key, first, second, pair) for pair in zip(left, right, strict=False)]
        if len(drafts) == before:
            raise DataError(
                f"'{first}' and '{second}' answered no prompt in common",
                kind="prompt_mismatch",
                remedy="let both answer the same prompts",
            )
    questions = list(dict.fromkeys(
        Question(answers.prompts[key], *texts) for key, _, _, texts in drafts if _differ(texts)
    ))  # fmt: skip
    said = dict(zip(questions, ask(questions, progress), strict=True)) if questions else {}
    matches = []
    for key, first, second, texts in drafts:
        prompt = answers.prompts[key]
        verdict = said[Question(prompt, *texts)] if _differ(texts) else Verdict(0.5)
        matches.append(Match(prompt, first, second, texts, verdict, answers.columns[key]))
    return matches, alone


def _differ(texts: tuple[str, str]) -> bool:
    return texts[0] != texts[1]
