"""The stage that measures: what a policy writes on prompts that no round trains on.

Every policy answers the same prompts twice at temperature 1 with the same random numbers, so
rounds differ by their policies and not by luck, and the mean of log π − log π₀ over the answers
is an estimate of KL(π ‖ π₀) to the *first* policy, whatever the reference of the training was.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from prefopt.data.checking.estimates import mean, share
from prefopt.data.formats import read_groups, write_groups
from prefopt.evaluation.asking import settled
from prefopt.evaluation.comparing import codes_of
from prefopt.evaluation.win_rate import sampled_kl
from prefopt.judges.judge import Judge, Question, Verdict
from prefopt.judges.selfreward import judge_accuracy
from prefopt.policies.export import model_folder
from prefopt.policies.load import load_policy
from prefopt.records import Completion, Group, Prompt
from prefopt.rounds.ground import Ground
from prefopt.rounds.settings import RoundsFile
from prefopt.sampling.generate import sample_tokens, to_texts
from prefopt.training.display import Display

#: answers to each prompt: two tell how much they differ
ANSWERS = 2
#: of what is drawn to measure; training samples have other random numbers
SEED = 1_000_003


def measure(
    folder: Path,
    file: RoundsFile,
    ground: Ground,
    policy: str,
    *,
    judges: tuple[Judge, Judge],
    before: Sequence[Path],
    scored: bool,
    display: Display,
) -> dict[str, Any]:
    """Answer the prompts, and say how good the answers are and what they cost.

    Args:
        folder: of the stage; gets `samples.jsonl`.
        file: the settings.
        ground: with the first policy, P prompts, and what people labelled.
        policy: what is measured.
        judges: who evaluates, and who judges the rounds.
        before: `samples.jsonl` of the first policy and of the round before; empty for the
            first policy itself.
        scored: whether the evaluating judge is asked for scores.
        display: for progress.

    Returns:
        `reward` (mean score; None without scores), `initial` and `previous` (win rates; None
        for the first policy), each with `value` and 95 % `interval` clustered by prompt, `value`
        (what rounds are ranked by; None if nobody could tell), `kl` and its `kl_error` in nats a
        completion, `length` in characters and `tokens`, `diversity`, `agreement` of the two
        judges and the answers without a verdict of both, `accuracy` of the judge on the labels.
    """
    prompts = ground.evaluation
    groups, tokens, kl = _answered(file, prompts, (policy, ground.model), display)
    write_groups(folder / "samples.jsonl", groups)
    evaluating, judging = judges
    reward = _reward(evaluating, groups) if scored else None
    against = _wins(evaluating, groups, [list(read_groups([str(path)])) for path in before])
    initial, previous = against or (None, None)
    agreement, unreadable = _agreement(evaluating, judging, groups[: _asked_too(file)])
    texts = [item.text for group in groups for item in group.completions]
    return {
        "value": _value(reward, initial), "reward": reward, "initial": initial,
        "previous": previous, "kl": kl[0], "kl_error": kl[1],
        "length": sum(map(len, texts)) / len(texts), "tokens": tokens,
        "diversity": distinct_pairs(texts), "agreement": agreement, "unreadable": unreadable,
        "accuracy": _accuracy(judging, ground.labels), "prompts": len(prompts),
    }  # fmt: skip


def _value(reward: dict[str, Any] | None, initial: dict[str, Any] | None) -> float | None:
    """What rounds are ranked by, in one unit for all of them."""
    if reward is not None:
        value: float | None = reward["value"]
        return value
    return 0.5 if initial is None else initial["value"]


def _asked_too(file: RoundsFile) -> int | None:
    """Prompts whose answers the judge of the rounds compares beside the evaluating one."""
    given = file.evaluate.agreement
    return file.select.budget if given is None else given


def _accuracy(judge: Judge, labels: Sequence[Group]) -> float | None:
    """How often the judge says what people said; None without labels, or if nothing is read."""
    if not labels:
        return None
    try:
        return judge_accuracy(judge, labels).share
    except ValueError:  # none of its verdicts could be read
        return None


def distinct_pairs(texts: Iterable[str]) -> float:
    """Different pairs of neighbouring words over all of them: distinct-2 (Li et al. 2016).

    It falls with the amount of text, so it is compared only between as many answers to the same
    prompts.

    >>> distinct_pairs(["a b a b", "c d"])
    0.75
    """
    words = [re.findall(r"\w+|[^\w\s]", text) for text in texts]
    pairs = [pair for own in words for pair in zip(own, own[1:], strict=False)]
    return len(set(pairs)) / len(pairs) if pairs else 0.0


def _answered(
    file: RoundsFile, prompts: Sequence[Prompt], models: tuple[str, str], display: Display
) -> tuple[list[Group], float, tuple[float, float]]:
    """Answers as groups, their mean length in tokens, and KL with its error."""
    policy, first = (load_policy(model_folder(name), device=file.device) for name in models)
    with display.bar("measuring, answers", ANSWERS * len(prompts)) as advance:
        drawn = sample_tokens(
            policy,
            prompts,
            n=ANSWERS,
            max_new_tokens=file.sample.max_new_tokens,
            seed=file.seed + SEED,
            progress=lambda *_: advance(1),
        )
    texts = to_texts(policy, drawn)
    groups = [
        Group(prompt, tuple(map(Completion, own)))
        for prompt, own in zip(prompts, texts, strict=True)
    ]
    lengths = [len(ids) for group in drawn for ids in group.completions]
    moved = sampled_kl(policy, first, drawn)
    return groups, sum(lengths) / len(lengths), (moved.kl, moved.standard_error)


def _reward(judge: Judge, groups: Sequence[Group]) -> dict[str, Any]:
    answers = [(group.prompt, item.text) for group in groups for item in group.completions]
    scores = judge.score_all(answers)
    known = [(s, group) for s, group in zip(scores, _each(groups), strict=True) if s is not None]
    if not known:
        return {"value": None, "interval": None}
    return mean(
        _floats(score for score, _ in known), codes_of([group.prompt_key for _, group in known])
    ).to_dict()


def _wins(
    judge: Judge, ours: Sequence[Group], others: Sequence[Sequence[Group]]
) -> list[dict[str, Any]]:
    """How often our answers are better than each of the others', the i-th and the i-th.

    Equal texts are a tie that nobody is asked about. All questions are asked together: people
    need not come back for the second half of them.
    """
    pairs = [_pairs(ours, theirs) for theirs in others]
    asked = [one for own in pairs for _, one in own if one.first != one.second]
    said = iter(judge.compare_all(asked)) if asked else iter(())
    return [_share(own, said) for own in pairs]


def _pairs(ours: Sequence[Group], theirs: Sequence[Group]) -> list[tuple[Group, Question]]:
    sides = {group.prompt_key: group.completions for group in theirs}
    return [
        (group, Question(group.prompt, mine.text, other.text))
        for group in ours
        for mine, other in zip(group.completions, sides[group.prompt_key], strict=True)
    ]


def _share(pairs: Sequence[tuple[Group, Question]], said: Iterator[Verdict]) -> dict[str, Any]:
    """The win rate of one set of pairs; takes their verdicts from what was said."""
    values = [0.5 if q.first == q.second else settled(next(said)) for _, q in pairs]
    known = [(v, g) for v, (g, _) in zip(values, pairs, strict=True) if v is not None]
    if not known:
        return {"value": None, "interval": None, "ties": None, "unreadable": len(values)}
    found = share(_floats(v for v, _ in known), codes_of([g.prompt_key for _, g in known]))
    ties = sum(value == 0.5 for value, _ in known) / len(known)
    return {**found.to_dict(), "ties": ties, "unreadable": len(values) - len(known)}


def _agreement(
    evaluating: Judge, judging: Judge, groups: Sequence[Group]
) -> tuple[float | None, int]:
    """How often the two judges are for the same of a prompt's two answers; None if they are one.

    A tie of one of them agrees half with a preference of the other.
    """
    if not groups or evaluating.identity() == judging.identity():
        return None, 0
    questions = [
        Question(group.prompt, *(item.text for item in group.completions))
        for group in groups
        if len({item.text for item in group.completions}) == ANSWERS
    ]
    sides = [[settled(v) for v in who.compare_all(questions)] for who in (evaluating, judging)]
    both = [(a, b) for a, b in zip(*sides, strict=True) if a is not None and b is not None]
    agreed = [1 - abs(a - b) for a, b in both]
    return (sum(agreed) / len(agreed) if agreed else None), len(questions) - len(both)


def _each(groups: Iterable[Group]) -> Iterable[Group]:
    return (group for group in groups for _ in group.completions)


def _floats(values: Iterable[float]) -> Any:
    import numpy as np

    return np.fromiter(values, dtype=np.float64)
