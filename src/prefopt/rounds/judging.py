"""The stages between samples and comparisons: what the judge is asked, and what it says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from prefopt.data.acquisition.acquiring import acquire
from prefopt.data.acquisition.questions import drawn
from prefopt.data.acquisition.scores import Scores
from prefopt.data.formats import read_groups, write_groups
from prefopt.errors import RecipeError
from prefopt.judges.judge import Judge
from prefopt.judges.judging import judge_groups
from prefopt.judges.kept import Kept, inner
from prefopt.records import Group, prompt_key
from prefopt.rounds.settings import Rounds, unread
from prefopt.sampling.selecting import select_pairs
from prefopt.training.display import Display, counted

Way = Literal["score", "compare"]


def way_of(judge: Judge, rounds: Rounds) -> Way:
    """How the judge is asked: a score for every completion, or pairs to compare.

    Raises:
        RecipeError: scores are wanted of a judge that has none, the budget is too small for
            anything, or a setting of the other way has no effect.
    """
    chosen = rounds.file.select
    way = best_way(judge) if chosen.by == "auto" else chosen.by
    if way == "score" and not scores(judge):
        raise rounds.refuse(
            f"the judge {judge.name} gives no scores", "select.by", value="score",
            remedy="set by: compare, or leave it out",
        )  # fmt: skip
    for problem in unread(rounds, way):
        raise problem
    n = rounds.file.sample.n
    if way == "score" and chosen.budget is not None and chosen.budget < n:
        raise rounds.refuse(
            f"is less than the {n} completions of one prompt, which are all scored",
            "select.budget", value=chosen.budget,
            remedy="raise it, lower sample.n, or set select.by: compare",
        )  # fmt: skip
    return way


def best_way(judge: Judge) -> Way:
    """How a judge is asked if nothing is said about it."""
    # Who reads two answers beside each other tells them apart better than by points for each.
    beside = getattr(inner(judge), "side_by_side", False)
    return "score" if scores(judge) and not beside else "compare"


def select(
    folder: Path,
    rounds: Rounds,
    samples: Path,
    *,
    way: Way,
    policies: tuple[str, str],
    seed: int,
) -> dict[str, Any]:
    """Write `questions.jsonl`: what the judge is asked, at most the budget.

    Args:
        folder: of the stage.
        rounds: the file.
        samples: groups of completions.
        way: `score`: every completion of some prompts; `compare`: pairs.
        policies: the policy that wrote them and the first one, which tell pairs apart.
        seed: of what is drawn.
    """
    groups = list(read_groups([str(samples)]))
    chosen = rounds.file.select
    if way == "score":
        asked = _within(groups, chosen.budget, seed)
        found: dict[str, Any] = {"questions": sum(len(group.completions) for group in asked)}
    else:
        asked, strategy = _pairs(rounds, groups, policies, seed)
        found = {"questions": len(asked), "strategy": strategy}
    write_groups(folder / "questions.jsonl", asked)
    return {"by": way, "prompts": len({prompt_key(group.prompt) for group in asked}), **found}


def judge(
    folder: Path,
    rounds: Rounds,
    questions: Path,
    judge: Kept,
    *,
    way: Way,
    seed: int,
    display: Display,
) -> dict[str, Any]:
    """Write `judged.jsonl`, all that the judge said, and `pairs.jsonl`, what is trained on.

    Raises:
        RecipeError: nothing can be trained on, as all verdicts are ties or unreadable.
        WaitingForPeople: the judge is people, and not all votes are in.
    """
    groups = list(read_groups([str(questions)]))
    total = sum(len(group.completions) if way == "score" else 1 for group in groups)
    with display.bar("judging, questions", total) as advance:
        verdicts = judge_groups(judge, groups, what=way, pairs="all", progress=counted(advance))
    write_groups(folder / "judged.jsonl", verdicts.groups)
    if way == "score":
        chosen = rounds.file.select.model_dump(include={"rule", "margin", "k", "beta"})
        pairs, dropped = select_pairs(verdicts.groups, **chosen, seed=seed)
    else:
        pairs, dropped = _of_verdicts(verdicts.groups)
    if not pairs:
        why = {"no verdict": verdicts.unread, **dropped, **verdicts.failures}
        said = ", ".join(f"{name} {count:,}" for name, count in why.items() if count)
        raise RecipeError(
            f"the judge prefers nothing, so there is nothing to train on; of {total:,} questions: "
            + (said or "none decided"),
            file=str(folder / "judged.jsonl"),
            field="judge",
            value=judge.name,
            remedy="look at what it said there; with another out, a lower margin or more "
            "completions may help",
        )
    write_groups(folder / "pairs.jsonl", pairs)
    edges = sum(len(group.comparisons) for group in pairs)
    # A process that was killed has asked too: what counts is the round.
    asked = judge.spent()
    counts = {"asked": asked, "known": total - verdicts.not_asked - asked}
    return {**verdicts.to_dict(), **counts, "comparisons": edges, "dropped": dropped}


def _of_verdicts(groups: Sequence[Group]) -> tuple[list[Group], dict[str, int]]:
    """Groups with the comparisons that prefer something; a tie pulls to neither side."""
    ties = sum(edge.probability == 0.5 for group in groups for edge in group.comparisons)
    kept = [
        replace(group, comparisons=tuple(e for e in group.comparisons if e.probability != 0.5))
        for group in groups
    ]
    return [group for group in kept if group.comparisons], {"tie": ties}


def _within(groups: Sequence[Group], budget: int | None, seed: int) -> list[Group]:
    """Groups, as many as a budget of completions has room for, drawn by seed and content."""
    if budget is None:
        return list(groups)
    order = sorted(groups, key=lambda group: drawn(prompt_key(group.prompt), seed))
    kept: set[bytes] = set()
    for group in order:
        if len(group.completions) > budget:
            break
        budget -= len(group.completions)
        kept.add(prompt_key(group.prompt))
    return [group for group in groups if prompt_key(group.prompt) in kept]


def _pairs(
    rounds: Rounds, groups: Sequence[Group], policies: tuple[str, str], seed: int
) -> tuple[list[Group], str]:
    """The pairs to ask about, and by which strategy they were chosen."""
    chosen = rounds.file.select
    count = len(groups) * chosen.per_prompt
    if chosen.budget is not None:
        count = min(count, chosen.budget)
    strategy, scores = chosen.ask, []
    if strategy != "random":
        if strategy != "d-optimal" and policies[0] == policies[1]:
            # Before the first round the policy is its own reference, and all margins are 0.
            strategy = "random"
        else:
            scores = [_scored(groups, policies, rounds.file.device)]
    settings: Mapping[str, Any] = {"count": count, "strategy": strategy, "controls": 0.0}
    found = acquire(groups, scores=scores, per_prompt=chosen.per_prompt, seed=seed, **settings)
    return [question.group for question in found.chosen], strategy


def _scored(groups: Sequence[Group], policies: tuple[str, str], device: str | None) -> Scores:
    """Margins and features of all completions under the policy that wrote them."""
    from prefopt.evaluation.features import Collected
    from prefopt.evaluation.implicit_reward import score_policy
    from prefopt.policies.export import model_folder
    from prefopt.policies.load import load_policy

    policy, first = (load_policy(model_folder(name), device=device) for name in policies)
    collected = Collected()
    score_policy(policy, first, groups, collected=collected)
    return collected.scores({"policy": policies[0], "reference": policies[1]})


def scores(judge: Judge) -> bool:
    """Whether a judge scores completions; asked nothing, one that does says nothing."""
    try:
        inner(judge).score_all([])
    except RecipeError:
        return False
    return True
