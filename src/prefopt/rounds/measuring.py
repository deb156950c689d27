"""The stage that measures: what a policy writes on prompts that no round trains on.

Every policy answers the same prompts twice at temperature 1 with the same random numbers, so
rounds differ by their policies and not by luck, and the mean of log π − log π₀ over the answers
is an estimate of KL(π ‖ π₀) to the *first* policy, whatever the reference of the training was.
Answers end as samples do: a text of `stop` ends them, and they are as long at most.

The answers are kept before anybody judges them. Whoever comes back, to a server that failed or
to people who have voted, is asked about the same ones.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from prefopt.data.checking.estimates import mean, share
from prefopt.data.formats import read_groups, write_groups
from prefopt.engine.tokens import TokenGroup
from prefopt.evaluation.comparing import codes_of
from prefopt.evaluation.win_rate import log_ratios
from prefopt.judges.judge import Judge, Question, Verdict
from prefopt.judges.orders import settled
from prefopt.judges.selfreward import judge_accuracy
from prefopt.policies.export import model_folder
from prefopt.policies.load import Policy, load_policy
from prefopt.records import Completion, Group, Prompt, prompt_key
from prefopt.rounds.ground import Ground
from prefopt.rounds.judging import best_way
from prefopt.rounds.ledger import read_json
from prefopt.rounds.settings import Rounds, RoundsFile
from prefopt.runs import explained, write_text
from prefopt.sampling.generate import draw, encode_prompts, text_of, unfit
from prefopt.sampling.settings import Settings
from prefopt.training.display import Display

#: answers to each prompt: two tell how much they differ
ANSWERS = 2
#: of what is drawn to measure; training samples have other random numbers
SEED = 1_000_003


def measure(
    folder: Path,
    rounds: Rounds,
    ground: Ground,
    policy: str,
    *,
    judges: Callable[[], tuple[Judge, Judge | None]],
    before: Sequence[Path],
    display: Display,
) -> dict[str, Any]:
    """Answer the prompts, and say how good the answers are and what they cost.

    Args:
        folder: of the stage; gets `samples.jsonl` and `answers.json`.
        rounds: the file.
        ground: with the first policy, P prompts, and what people labelled.
        policy: what is measured.
        judges: makes who evaluates, and who judges the rounds if that one is asked too; called
            when the policies that answered are gone, as all of them may fill a device.
        before: `samples.jsonl` of the first policy and of the round before; empty for the
            first policy itself.
        display: for progress.

    Returns:
        `reward` (mean score; None without scores), `initial` and `previous` (win rates; None
        for the first policy), each with `value` and 95 % `interval` clustered by prompt, `value`
        (what rounds are ranked by; None if nobody could tell), `kl` with `kl_interval` in nats a
        completion, `length` in characters with `length_interval`, `tokens`, `diversity`,
        `agreement` of the two judges and the answers without a verdict of both, `accuracy` of the
        judge on the labels.

    Raises:
        RecipeError: prompts leave the first policy no room for an answer.
    """
    groups, known = _answers(folder, rounds, ground, policy, display)
    evaluating, judging = judges()
    reward = _reward(evaluating, groups) if best_way(evaluating) == "score" else None
    against = _wins(evaluating, groups, [list(read_groups([str(path)])) for path in before])
    initial, previous = against or (None, None)
    agreement, unreadable = _agreement(evaluating, judging, groups[: _asked_too(rounds.file)])
    texts = [item.text for group in groups for item in group.completions]
    length = _mean([len(text) for text in texts], groups)
    return {
        "value": _value(reward, initial), "reward": reward, "initial": initial,
        "previous": previous, "kl": known["kl"], "kl_interval": known["kl_interval"],
        "length": length["value"], "length_interval": length["interval"],
        "tokens": known["tokens"],
        "diversity": distinct_pairs(texts), "agreement": agreement, "unreadable": unreadable,
        "accuracy": _accuracy(judging, ground.labels), "prompts": len(groups),
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


def _accuracy(judge: Judge | None, labels: Sequence[Group]) -> float | None:
    """How often the judge says what people said; None without labels, or if nothing is read."""
    if judge is None or not labels:
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


def _answers(
    folder: Path, rounds: Rounds, ground: Ground, policy: str, display: Display
) -> tuple[list[Group], Mapping[str, Any]]:
    """Answers as groups, with `tokens`, their mean length, and `kl` with `kl_interval`.

    Those of an earlier process are taken if they were asked for in the same way.
    """
    samples, about, file = folder / "samples.jsonl", folder / "answers.json", rounds.file
    settings = file.sample.measuring(ANSWERS, file.seed + SEED)
    keys = "".join(prompt_key(prompt).hex() for prompt in ground.evaluation)
    asked = {
        "settings": settings.to_dict(),
        "prompts": hashlib.sha256(keys.encode()).hexdigest(),
        "models": [_seen(name) for name in (policy, ground.model)],
    }
    known = read_json(about) if about.exists() else {}
    if known.get("asked") == asked and samples.exists():
        return list(read_groups([str(samples)])), known
    with explained(about):
        about.unlink(missing_ok=True)  # else it would be about what is written next
    groups, found = _answered(rounds, ground, policy, settings, display)
    write_groups(samples, groups)
    write_text(about, json.dumps({"asked": asked, **found}) + "\n")
    return groups, found


def _answered(
    rounds: Rounds, ground: Ground, name: str, settings: Settings, display: Display
) -> tuple[list[Group], dict[str, Any]]:
    prompts, file = ground.evaluation, rounds.file
    policy = load_policy(model_folder(name), device=file.device)
    if name == ground.model:
        _check_room(rounds, policy, [*prompts, *chain.from_iterable(ground.prompts)])
    with display.bar("measuring, answers", ANSWERS * len(prompts)) as advance:
        size = file.sample.batch_size
        drawn = draw(policy, prompts, settings, batch_size=size, progress=lambda *_: advance(1))
    groups = [
        Group(prompt, tuple(Completion(text_of(policy, one.ids, settings.stop)) for one in own))
        for prompt, own in zip(prompts, drawn, strict=True)
    ]
    lengths = [len(one.ids) for own in drawn for one in own]
    found: dict[str, Any] = {"tokens": sum(lengths) / len(lengths), "kl": 0.0, "kl_interval": None}
    if name != ground.model:
        first = load_policy(model_folder(ground.model), device=file.device)
        ids = encode_prompts(policy, prompts, settings.max_new_tokens)
        sampled = [
            TokenGroup(prompt, tuple(one.ids for one in own))
            for prompt, own in zip(ids, drawn, strict=True)
        ]
        moved = _mean(log_ratios(policy, first, sampled), groups)
        found |= {"kl": moved["value"], "kl_interval": moved["interval"]}
    return groups, found


def _check_room(rounds: Rounds, policy: Policy, prompts: Sequence[Prompt]) -> None:
    """Refuse before the first round what sampling would refuse in the last one."""
    refused = list(unfit(policy, prompts, rounds.file.sample.max_new_tokens).values())
    if refused:
        raise rounds.refuse(
            f"{len(refused):,} of the {len(prompts):,} prompts cannot be answered; "
            f"{refused[0].message}",
            "prompts", value=refused[0].value,
            remedy="take such prompts out, or lower sample.max_new_tokens",
        )  # fmt: skip


def _seen(name: str) -> list[Any]:
    """A model as it lies there: another one under the same name looks otherwise."""
    folder = Path(model_folder(name))
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    known = ((file.name, file.stat()) for file in files)
    return [name, *([file, status.st_size, status.st_mtime_ns] for file, status in known)]


def _reward(judge: Judge, groups: Sequence[Group]) -> dict[str, Any]:
    answers = [(group.prompt, item.text) for group in groups for item in group.completions]
    return _mean(judge.score_all(answers), groups)


def _mean(values: Iterable[float | None], groups: Sequence[Group]) -> dict[str, Any]:
    """The mean of what is known of each completion, clustered by prompt."""
    owners = [group.prompt_key for group in groups for _ in group.completions]
    known = [(v, owner) for v, owner in zip(values, owners, strict=True) if v is not None]
    if not known:
        return {"value": None, "interval": None}
    return mean(_floats(v for v, _ in known), codes_of([owner for _, owner in known])).to_dict()


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
    evaluating: Judge, judging: Judge | None, groups: Sequence[Group]
) -> tuple[float | None, int]:
    """How often the two judges are for the same of a prompt's two answers; None if they are one.

    A tie of one of them agrees half with a preference of the other.
    """
    if judging is None or not groups or evaluating.identity() == judging.identity():
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


def _floats(values: Iterable[float]) -> Any:
    import numpy as np

    return np.fromiter(values, dtype=np.float64)
