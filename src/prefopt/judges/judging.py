"""A judge over a file: which questions it has, what comes of the verdicts, and how well it went."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from statistics import fmean
from typing import Any, Literal

from prefopt.errors import DataError
from prefopt.judges.judge import Judge, Progress, Question, Verdict, parts_of
from prefopt.judges.kept import Kept, inner
from prefopt.judges.principled import principle_counts
from prefopt.judges.rubric import claimed_verdicts
from prefopt.judges.scoring import scored_all
from prefopt.judges.templates import has_boundary
from prefopt.records import Comparison, Group, Prompt

What = Literal["compare", "score"]
Pairs = Literal["auto", "given", "all"]
#: completions of a group that are compared
Pair = tuple[int, int]


@dataclass
class Judged:
    """What a judge made of a file.

    Attributes:
        judge: its name.
        what: whether it compared or scored.
        groups: with its comparisons (or scores) in place of those that these pairs had.
        questions: pairs, or completions.
        asked: of them the judge was asked now.
        known: of them were known before, or are the same as another.
        not_asked: beyond the budget.
        unread: without a verdict for another reason.
        failures: replies that could not be read, by kind, over all questions.
        consistent, inconsistent: comparisons by whether both orders said the same.
        ties: verdicts of ½.
        first_share: how often whoever saw an order was for the answer shown first; ½ is fair.
        claimed: completions that claim a verdict, or points, for themselves.
        refusal: why one of the questions got no reply, in the words of whoever refused it.
        letters: of a judge by log-probabilities, how probable it was at all that it says one of
            its letters, on average; where that is small, its verdicts are of little worth.
        principles: of a constitution, what each one said (`principled.principle_counts`).
    """

    judge: str
    what: What
    groups: list[Group] = field(default_factory=list)
    questions: int = 0
    asked: int = 0
    known: int = 0
    not_asked: int = 0
    unread: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    consistent: int = 0
    inconsistent: int = 0
    ties: int = 0
    first_share: float | None = None
    claimed: int = 0
    refusal: str | None = None
    letters: float | None = None
    principles: dict[str, dict[str, int]] = field(default_factory=dict)

    @property
    def judged(self) -> int:
        """Questions with a verdict."""
        return self.questions - self.not_asked - self.unread

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON, without the groups."""
        seen = self.consistent + self.inconsistent
        document: dict[str, Any] = {
            "judge": self.judge, "what": self.what, "groups": len(self.groups),
            "questions": self.questions, "judged": self.judged, "asked": self.asked,
            "known": self.known, "not_asked": self.not_asked, "unread": self.unread,
            "failures": dict(self.failures), "claimed_verdicts": self.claimed,
            "refusal": self.refusal,
        }  # fmt: skip
        if self.what == "compare":
            document |= {
                "ties": self.ties, "inconsistent": self.inconsistent,
                "inconsistent_share": self.inconsistent / seen if seen else None,
                "first_share": self.first_share, "letters": self.letters,
                "principles": self.principles,
            }  # fmt: skip
        return document


def judge_groups(
    judge: Judge,
    groups: Iterable[Group],
    *,
    what: What = "compare",
    pairs: Pairs = "auto",
    rationale: bool = False,
    progress: Progress | None = None,
) -> Judged:
    """Put all questions of a file to a judge.

    Args:
        judge: a `Kept` one tells what was known before.
        groups: what is judged.
        what: compare pairs of completions, or score each completion.
        pairs: the pairs that a group compares or votes on (`given`), every two completions that
            differ (`all`), or given ones where there are some and else all (`auto`).
        rationale: write the judge's words into the groups too.
        progress: called with (questions done, of how many).

    Raises:
        DataError: there is nothing to judge.
        RecipeError: the judge cannot do this.
    """
    held = list(groups)
    asked, known, beyond = _counts(judge)
    result = Judged(judge.name, what)
    if what == "score":
        _score(judge, held, result, progress)
    else:
        _compare(judge, held, result, pairs, rationale, progress)
    now = _counts(judge)
    result.asked, result.known = now[0] - asked, now[1] - known
    result.not_asked = now[2] - beyond
    result.unread -= result.not_asked
    if not isinstance(judge, Kept):
        result.asked = result.questions
    return result


def _counts(judge: Judge) -> tuple[int, int, int]:
    return (judge.asked, judge.known, judge.not_asked) if isinstance(judge, Kept) else (0, 0, 0)


# -- scores --------------------------------------------------------------------------------


def _score(judge: Judge, groups: list[Group], result: Judged, progress: Progress | None) -> None:
    answers = [(group.prompt, item.text) for group in groups for item in group.completions]
    if not answers:
        raise _nothing("there are no completions to score")
    if isinstance(judge, Kept):
        said = judge.scored(answers, progress)
    else:
        said = scored_all(judge, answers, progress)
    for _, failures in dict(zip(answers, said, strict=True)).values():  # of each answer once
        result.failures.update(failures)
    scores = iter(said)
    result.questions = len(answers)
    result.claimed = _claims(answers, points=True)
    result.refusal = getattr(inner(judge), "refusal", None) or None
    for group in groups:
        scored = tuple(replace(item, score=next(scores)[0]) for item in group.completions)
        result.unread += sum(item.score is None for item in scored)
        meta = {**group.meta, "judge": judge.name}
        result.groups.append(replace(group, completions=scored, meta=meta))


# -- comparisons ---------------------------------------------------------------------------


def _compare(
    judge: Judge,
    groups: list[Group],
    result: Judged,
    pairs: Pairs,
    rationale: bool,
    progress: Progress | None,
) -> None:
    wanted = [_pairs_of(group, pairs) for group in groups]
    questions = [
        Question(group.prompt, *(group.completions[place].text for place in pair))
        for group, chosen in zip(groups, wanted, strict=True)
        for pair in chosen
    ]
    if not questions:
        raise _nothing(
            "no group compares anything"
            if pairs == "given"
            else "no group has two completions that differ"
        )
    verdicts = judge.compare_all(questions, progress)
    result.questions = len(questions)
    _count(result, questions, verdicts)
    result.claimed = _claims([(q.prompt, text) for q in questions for text in (q.first, q.second)])
    coming = iter(verdicts)
    for group, chosen in zip(groups, wanted, strict=True):
        said = [next(coming) for _ in chosen]
        result.groups.append(_judged(group, chosen, said, judge.name, rationale))


def _pairs_of(group: Group, pairs: Pairs) -> list[Pair]:
    """Pairs of completions whose texts differ, in the order of the group."""
    given = [(edge.preferred, edge.dispreferred) for edge in group.comparisons]
    given += [(vote.first, vote.second) for vote in group.votes]
    every = list(combinations(range(len(group.completions)), 2))
    chosen = every if pairs == "all" or (pairs == "auto" and not given) else given
    texts = [item.text for item in group.completions]
    distinct = {(min(pair), max(pair)): None for pair in chosen}
    return [pair for pair in distinct if texts[pair[0]] != texts[pair[1]]]


def _judged(
    group: Group, pairs: Sequence[Pair], said: Sequence[Verdict], name: str, rationale: bool
) -> Group:
    """The group with the verdicts as comparisons; others that it had on these pairs are gone."""
    asked = {pair for pair, one in zip(pairs, said, strict=True) if not _beyond(one)}
    kept = [
        edge
        for edge in group.comparisons
        if (min(edge.preferred, edge.dispreferred), max(edge.preferred, edge.dispreferred))
        not in asked
    ]
    edges, notes = [], []
    for (first, second), verdict in zip(pairs, said, strict=True):
        if _beyond(verdict):
            continue
        note: dict[str, Any] = {"pair": [first, second], "probability": verdict.probability}
        if verdict.order_consistent is not None:
            note["order_consistent"] = verdict.order_consistent
        if rationale and verdict.rationale is not None:
            note["rationale"] = verdict.rationale
        notes.append(note)
        if verdict.probability is None:
            continue
        if verdict.probability >= 0.5:
            edges.append(Comparison(first, second, verdict.probability))
        else:
            edges.append(Comparison(second, first, 1 - verdict.probability))
    meta = {**group.meta, "judge": name, "verdicts": notes} if notes else group.meta
    return replace(group, comparisons=(*kept, *edges), meta=meta)


def _count(result: Judged, questions: Sequence[Question], verdicts: Sequence[Verdict]) -> None:
    shown_first: list[float] = []
    letters: list[float] = []
    replied: set[frozenset[tuple[Prompt, str]]] = set()
    for question, verdict in zip(questions, verdicts, strict=True):
        result.unread += verdict.probability is None
        result.ties += verdict.probability == 0.5
        result.consistent += verdict.order_consistent is True
        result.inconsistent += verdict.order_consistent is False
        # The same two answers twice have had their replies once.
        sides = frozenset((question.prompt, text) for text in (question.first, question.second))
        for part in parts_of(verdict.transcript):
            if sides not in replied:
                result.failures.update(part.get("failures") or {})
            orders = part.get("orders") or ()
            # Only both orders together tell a bias from answers that are better.
            if orders and all(number is not None for number in orders):
                shown_first += orders
            result.refusal = result.refusal or part.get("refusal")
            if part.get("mass") is not None:
                letters.append(part["mass"])
        replied.add(sides)
    result.first_share = fmean(shown_first) if shown_first else None
    result.letters = fmean(letters) if letters else None
    result.principles = {name: dict(said) for name, said in principle_counts(verdicts).items()}


def _claims(answers: Iterable[tuple[Prompt, str]], *, points: bool = False) -> int:
    """Distinct completions that speak as if they were the judge, or more than one text."""
    texts = [text for _, text in dict.fromkeys(answers)]
    return sum(has_boundary(text) or claimed_verdicts(text, points=points) for text in texts)


def _beyond(verdict: Verdict) -> bool:
    return bool(verdict.transcript.get("not_asked"))


def _nothing(message: str) -> DataError:
    return DataError(
        message,
        kind="no_comparisons",
        remedy="give groups with two or more completions, such as prefopt sample -n 4 writes",
    )
