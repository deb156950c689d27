"""From a pool of groups and files of scores to the questions to ask next, ready for labelling."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from prefopt.data.acquisition.design import Floats, Ints
from prefopt.data.acquisition.pool import Asked, History, Pool, note_question, read_pool
from prefopt.data.acquisition.questions import Pairs, completion_key, drawn, question_key
from prefopt.data.acquisition.scores import Scores
from prefopt.data.acquisition.selection import CONTROL, Selection, select
from prefopt.data.acquisition.stopping import State, Verdict, verdict
from prefopt.data.acquisition.strategies import find_strategy
from prefopt.errors import DataError, RecipeError
from prefopt.records import Group, Origin

_SCORE = "write them with `prefopt score MODEL --reference BASE --data POOL --features FILE.npz`"


@dataclass(frozen=True)
class Question:
    """A question to ask.

    Attributes:
        group: its prompt and two completions, in an order drawn by seed and content; `meta`
            says `strategy`, `rank`, `score` and `control`.
        origin: the row of the pool that it comes from.
        first, second: places of the two in that row's group.
    """

    group: Group
    origin: Origin | None
    first: int
    second: int

    def to_dict(self) -> dict[str, Any]:
        """As `prefopt acquire --json` prints it."""
        said = {name: self.group.meta[name] for name in ("strategy", "score", "control")}
        return {**_place(self.origin), "first": self.first, "second": self.second, **said}


@dataclass(frozen=True)
class Acquired:
    """What to ask next.

    Attributes:
        strategy: by which all but the controls were chosen.
        chosen: the questions in the order to ask.
        pool: different questions that the pool has.
        already_labelled: those of them that were asked before.
        again: those of these that may be asked again, as their answers leave them open.
        unscored: questions that were left out, as a completion of theirs has no score.
        undecided: questions with as many answers as they may have, which neither decide them
            nor are near one half.
        ties, conflicts: questions of which more answers would not decide which is better.
    """

    strategy: str
    chosen: Sequence[Question]
    pool: int
    already_labelled: int
    again: int
    unscored: int
    undecided: int
    ties: Sequence[tuple[Asked, Verdict]]
    conflicts: Sequence[tuple[Asked, Verdict]]

    @property
    def controls(self) -> int:
        """How many of the chosen were drawn at random, to evaluate on."""
        return sum(question.group.meta["control"] for question in self.chosen)

    def to_dict(self) -> dict[str, Any]:
        """As `prefopt acquire --json` prints it."""
        return {
            "strategy": self.strategy,
            "chosen": [question.to_dict() for question in self.chosen],
            "controls": self.controls,
            "pool": self.pool,
            "already_labelled": self.already_labelled,
            "again": self.again,
            "unscored": self.unscored,
            "undecided": self.undecided,
            "ties": [_settled(*item) for item in self.ties],
            "conflicts": [_settled(*item) for item in self.conflicts],
        }


def acquire(
    pool: Iterable[Group],
    *,
    count: int,
    scores: Sequence[Scores] = (),
    labelled: Iterable[Group] = (),
    strategy: str = "d-optimal",
    controls: float = 0.15,
    per_prompt: int = 1,
    pairs: Pairs = "all",
    repeat: int | None = None,
    seed: int = 0,
) -> Acquired:
    """Choose the questions of a pool to ask next.

    Args:
        pool: groups with completions to compare; it is read twice.
        count: how many questions; fewer come where there are no more.
        scores: of the pool's completions, and best also of the labelled ones, one for each
            member of an ensemble. Features are those of the first.
        labelled: what was asked before. Two completions without an answer count as asked.
        strategy, controls, per_prompt, seed: as in `select`.
        pairs: `all` pairs of a prompt's completions that have no answer, or the `given`
            comparisons of the pool, as if they had none.
        repeat: ask again, up to so many answers, where the answers leave a question open.

    Raises:
        RecipeError: a setting is out of range or without effect, or scores are missing.
        DataError: the pool has nothing to ask, or none of it is scored.
    """
    _check_scores(strategy, scores, repeat)
    history: History = {}
    found = read_pool(pool, pairs, history)
    for group in labelled:
        note_question(group, history)
    if not found.keys:
        raise _nothing_to_compare()
    states = {
        key: verdict(item.answers, most=repeat) for key, item in history.items() if item.answers
    }
    again = {key for key, state in states.items() if repeat and state.state == "open"}
    kept, known = _known(found, history, strategy, scores)
    known |= _asked_before(found, history, again, kept)
    wanted: dict[str, Any] = {"count": count, "strategy": strategy, "controls": controls}
    selection = select(**known, **wanted, per_prompt=per_prompt, seed=seed)
    selection = replace(selection, indices=kept[selection.indices])
    return Acquired(
        strategy,
        _questions(pool, found, selection, seed),
        pool=len(found.keys),
        already_labelled=sum(key in history for key in found.keys),
        again=sum(key in again for key in found.keys),
        unscored=len(found.keys) - len(kept),
        undecided=sum(state.state == "undecided" for state in states.values()),
        ties=_in_state("tie", history, states),
        conflicts=_in_state("conflict", history, states),
    )


def _in_state(
    name: State, history: History, states: Mapping[bytes, Verdict]
) -> list[tuple[Asked, Verdict]]:
    return [(history[key], state) for key, state in states.items() if state.state == name]


def _nothing_to_compare() -> DataError:
    return DataError(
        "no prompt of the pool has two different completions to compare",
        kind="no_candidates",
        remedy="sample more than one a prompt: prefopt sample MODEL PROMPTS -n 4 --out FILE",
    )


def _asked_before(found: Pool, history: History, again: set[bytes], kept: Ints) -> dict[str, Any]:
    """What `select` needs to know of the questions that are scored."""
    keys = [found.keys[index] for index in kept]
    evaluated = {item.prompt for item in history.values() if item.control}
    return {
        "keys": keys,
        "prompts": found.prompts[kept],
        "asked": np.array([key in history and key not in again for key in keys]),
        "reserved": [found.names[prompt] for prompt in evaluated if prompt in found.names],
    }


def _check_scores(strategy: str, scores: Sequence[Scores], repeat: int | None) -> None:
    """Refuse scores that are missing or would have no effect."""
    rule = find_strategy(strategy)
    if rule.needs and not scores:
        raise RecipeError(
            f"the strategy '{strategy}' needs scores of the pool",
            field="scores",
            remedy=f"{_SCORE}, or choose the strategy 'random', which needs none",
        )
    if scores and not rule.needs:
        raise RecipeError(
            f"scores have no effect on the strategy '{strategy}'",
            field="scores",
            remedy="leave them out, or choose another strategy",
        )
    if "entropies" in rule.needs and len(scores) > 1:
        raise RecipeError(
            "the strategy 'entropy' reads the scores of one model, that which wrote the pool",
            field="scores",
            remedy="give one file",
        )
    for name, given in (("features", "features"), ("entropies", "logps")):
        if name in rule.needs and getattr(scores[0], given) is None:
            raise RecipeError(
                f"the strategy '{strategy}' needs {given}, which the scores do not have",
                field="scores",
                remedy=f"{_SCORE}, or choose another strategy",
            )
    if repeat is not None and repeat < 2:
        raise RecipeError(
            "a question is asked again from two answers on", field="repeat", value=repeat,
            remedy="2 or more, or leave it out: no question is asked twice then",
        )  # fmt: skip


# -- scores of pairs -----------------------------------------------------------------------


def _known(
    pool: Pool, history: History, strategy: str, scores: Sequence[Scores]
) -> tuple[Ints, dict[str, Any]]:
    """Which questions of the pool are scored, and what `select` reads of them."""
    needs = find_strategy(strategy).needs
    everything = np.arange(len(pool.keys))
    if not scores:
        return everything, {}
    margins = _margins(scores, pool.completions, pool.sides)
    kept = everything[np.isfinite(margins).all(axis=0)]
    if len(kept) == 0:
        raise DataError(
            "no question of the pool has scores: they are of other prompts or completions",
            kind="no_candidates",
            remedy=_SCORE,
        )
    known: dict[str, Any] = {"margins": margins[:, kept]}
    if "features" in needs:
        known["features"] = _features(scores[0], pool.completions, pool.sides[kept])
        known["labelled"] = _learned(history, scores)
    if "entropies" in needs:
        known["entropies"] = _entropies(scores[0], pool)[pool.prompts[kept]]
    return kept, known


def _margins(scores: Sequence[Scores], completions: Sequence[bytes], sides: Ints) -> Floats:
    """(M, N) differences of rewards, NaN where a completion has none."""
    table = np.empty((len(scores), len(sides)))
    for member, of in enumerate(scores):
        rows = of.rows(completions)
        rewards = np.where(rows >= 0, of.rewards[rows], np.nan)
        table[member] = rewards[sides[:, 0]] - rewards[sides[:, 1]]
    return table


def _features(of: Scores, completions: Sequence[bytes], sides: Ints) -> Floats:
    """(N, d) differences of features of pairs that are all scored."""
    assert of.features is not None
    rows = of.rows(completions)
    first, second = (of.features[rows[side]].astype(np.float64) for side in sides.T)
    return np.asarray(first - second)


def _learned(history: History, scores: Sequence[Scores]) -> tuple[Floats, Floats]:
    """Margins and features of what a model has learned from: once for each answer.

    Questions whose answers are still to come count as one answer.
    """
    asked = [item for item in history.values() if not item.control]
    completions = [key for item in asked for key in item.sides]
    sides = np.arange(len(completions)).reshape(-1, 2)
    margins = _margins(scores, completions, sides)
    scored = np.isfinite(margins).all(axis=0)
    answers = np.array([max(1, len(item.answers)) for item in asked], dtype=np.int64)[scored]
    features = _features(scores[0], completions, sides[scored])
    return np.repeat(margins[:, scored], answers, axis=1), np.repeat(features, answers, axis=0)


def _entropies(of: Scores, pool: Pool) -> Floats:
    """(P,) −mean log π of each prompt's completions, as samples of the model."""
    assert of.logps is not None
    rows = of.rows(pool.completions)
    prompts, logps = pool.owners[rows >= 0], of.logps[rows[rows >= 0]]
    order = np.lexsort((logps, prompts))  # sums in an order that is not the file's
    total = np.bincount(prompts[order], weights=logps[order], minlength=len(pool.names))
    samples = np.bincount(prompts, minlength=len(pool.names))
    return np.asarray(-total / np.maximum(samples, 1))


# -- questions as groups -------------------------------------------------------------------


def _questions(
    pool: Iterable[Group], found: Pool, selection: Selection, seed: int
) -> list[Question]:
    """The chosen questions as groups, read from the pool again."""
    ranks: dict[int, list[int]] = {}
    for rank, index in enumerate(selection.indices):
        ranks.setdefault(int(found.places[index, 0]), []).append(rank)
    made: dict[int, Question] = {}
    for number, group in enumerate(pool):
        for rank in ranks.get(number, ()):
            index = selection.indices[rank]
            key = found.keys[index]
            first, second = map(int, found.places[index, 1:])
            low, high = (found.completions[side] for side in found.sides[index])
            # not the bits by which controls are drawn: those of controls are alike
            if (low > high) != bool(drawn(key, seed) & 1):
                first, second = second, first
            made[rank] = _question(group, key, first, second, _said(selection, rank))
        if len(made) == len(selection):
            break
    if len(made) < len(selection):
        raise _changed()
    return [made[rank] for rank in range(len(selection))]


def _said(selection: Selection, rank: int) -> dict[str, Any]:
    name, score = selection.strategies[rank], float(selection.scores[rank])
    shown = None if np.isnan(score) else score
    return {"strategy": name, "rank": rank + 1, "score": shown, "control": name == CONTROL}


def _question(
    group: Group, key: bytes, first: int, second: int, said: Mapping[str, Any]
) -> Question:
    if max(first, second) >= len(group.completions):
        raise _changed()
    sides = group.completions[first], group.completions[second]
    if question_key(*(completion_key(group.prompt_key, side.text) for side in sides)) != key:
        raise _changed()
    asked = Group(group.prompt, sides, source=group.source, meta={**group.meta, **said})
    return Question(asked, group.origins[0] if group.origins else None, first, second)


def _changed() -> DataError:
    return DataError(
        "the pool changed while it was read",
        kind="unreadable_file",
        remedy="acquire again once nothing writes to it",
    )


def _place(origin: Origin | None) -> dict[str, Any]:
    return {
        "file": None if origin is None else origin.file,
        "row": None if origin is None else origin.row,
    }


def _settled(asked: Asked, state: Verdict) -> dict[str, Any]:
    return {
        **_place(asked.origin),
        "first": asked.first,
        "second": asked.second,
        "answers": state.answers,
        "share": state.share,
        "interval": list(state.interval),
    }
