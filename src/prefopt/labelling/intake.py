"""A pool of groups, or what `prefopt acquire` chose of one, becomes the items of a task.

An item's completions stand in the order of their texts, so that a question is the same one
whichever side a file has first; on which side of a screen they stand is drawn when they are shown.
What a row says of them (comparisons, votes, scores) is not asked for and not shown.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from prefopt.data.acquisition.questions import completion_key, pairs_of, question_key
from prefopt.data.formats import OnError, read_groups
from prefopt.errors import DataError
from prefopt.labelling.media import COLUMNS, load
from prefopt.labelling.words import Item, NewItem, Said, Task
from prefopt.records import Group, prompt_key

if TYPE_CHECKING:
    from prefopt.labelling.store import Store

#: `given` comparisons where a group has some, else `all` pairs; or always one of these
Which = Literal["auto", "all", "given"]
#: keys of `meta` that are the labelling room's own, not a row's
LABELLING = "labelling"
_ACQUIRED = {"rank": int, "strategy": str, "control": bool}


@dataclass
class Taken:
    """What came of a pool.

    Attributes:
        rows: groups read, gold ones too.
        new, known: ordinary questions that were added, and that the task had.
        gold, gold_known: the same of gold ones.
        acquired: whether `prefopt acquire` chose the questions: then its order is theirs.
        skipped: rows that were left out, by kind.
    """

    rows: int = 0
    new: int = 0
    known: int = 0
    gold: int = 0
    gold_known: int = 0
    acquired: bool = False
    skipped: Counter[str] = field(default_factory=Counter)

    def to_dict(self) -> dict[str, Any]:
        """As `prefopt label serve --json` prints it."""
        return {**vars(self), "skipped": dict(self.skipped)}


def take_in(
    store: Store,
    task: str | Task,
    pool: Sequence[str] = (),
    *,
    gold: Sequence[str] = (),
    pairs: Which = "auto",
    on_error: OnError = "raise",
) -> Taken:
    """Add the questions of some files to a task; what the task has already is not added again.

    Questions that `prefopt acquire` chose are asked in its order, before all that were there.
    Of a plain pool those the task knows keep their place.

    Args:
        store: the database.
        task: a task in it; or settings, which it is given once the files are known to be good.
        pool, gold: files as `read_groups` takes them.
        pairs: which pairs of a group's completions to ask about.
        on_error: stop at the first wrong row, or leave it out and count it.

    Raises:
        DataError: a row is wrong, a gold row has no known answer, or there is nothing to ask.
        RecipeError: there is no such task, or it cannot have these settings.
    """
    reading = _Reading(store, on_error)
    name = task if isinstance(task, str) else task.name
    new_task = isinstance(task, Task) and name not in {one.name for one in store.tasks()}
    asked = {_content(item.new): item for item in (() if new_task else store.items(name))}
    known_answers = reading.read(gold, _known_answers) if gold else []
    questions = reading.read(pool, lambda group: pairs_asked(group, pairs)) if pool else []
    taken = reading.taken
    if pool and not questions and not taken.skipped:
        raise DataError(
            "no group of the pool has two different completions to compare",
            kind="no_candidates",
            file=pool[0],
            remedy="give rows with two or more completions a prompt, or --pairs all",
        )
    for new, _ in known_answers:
        _check_gold(new, asked.get(_content(new)))
    fresh = [new for new, _ in known_answers if _content(new) not in asked]
    taken.gold, taken.gold_known = len(fresh), len(known_answers) - len(fresh)
    gold_keys = {_content(new) for new, _ in known_answers}
    gold_keys |= {key for key, item in asked.items() if item.kind == "gold"}
    normal = [(new, chosen) for new, chosen in questions if _content(new) not in gold_keys]
    taken.acquired = any(chosen for _, chosen in normal)
    taken.known = sum(_content(new) in asked for new, _ in normal)
    taken.new = len(normal) - taken.known
    if isinstance(task, Task):
        (store.add_task if new_task else store.change_task)(task)
    store.add_items(name, [*fresh, *_with_priorities(normal, asked)])
    return taken


def pairs_asked(group: Group, pairs: Which) -> Iterator[tuple[int, int, Said | None]]:
    """The pairs of a group to ask about, as a plain pool gives them: without an answer."""
    if pairs == "auto":
        pairs = "given" if group.comparisons else "all"
    return ((first, second, None) for first, second in pairs_of(group, pairs))


def _known_answers(group: Group) -> Iterator[tuple[int, int, Said | None]]:
    if not group.comparisons:
        raise _no_answer("the row has no comparison", None)
    for edge in group.comparisons:
        if edge.probability not in (0.0, 1.0):
            raise _no_answer("the answer is not sure", edge.probability)
        said: Said = "first" if edge.probability == 1.0 else "second"
        yield edge.preferred, edge.dispreferred, said


def _no_answer(message: str, value: Any) -> DataError:
    return DataError(
        f"{message}, so it is no gold",
        kind="out_of_range",
        field="comparisons.probability",
        value=value,
        remedy="gold rows say which completion is better, with probability 1 or 0",
    )


def _check_gold(new: NewItem, there: Item | None) -> None:
    """Refuse gold of which the task knows otherwise."""
    if there is None or there.new.gold == new.gold:
        return
    if there.new.gold is None:
        message = "the task asks this question as an ordinary one"
        remedy = "leave it out of the gold, or open another --task with it"
    else:
        message = "the task has another known answer to this question"
        remedy = "correct the row, or open another --task"
    raise DataError(message, kind="contradiction", value=_excerpt(new), remedy=remedy)


def _check_alike(items: Sequence[NewItem], found: Mapping[bytes, tuple[NewItem, bool]]) -> None:
    """Refuse gold that says both of one question, in one file or in several."""
    here: dict[bytes, NewItem] = {}
    for new in items:
        key = _content(new)
        before, _ = found.get(key, (here.setdefault(key, new), False))
        if before.gold != new.gold:
            raise DataError(
                "the gold has two different answers to this question", kind="contradiction",
                value=_excerpt(new), remedy="leave the wrong one out, or both",
            )  # fmt: skip


def _excerpt(new: NewItem) -> str:
    return new.prompt if isinstance(new.prompt, str) else new.prompt[-1].content


def _with_priorities(
    normal: Sequence[tuple[NewItem, bool]], asked: dict[bytes, Item]
) -> Iterator[NewItem]:
    """New items, and known ones with another place in the order.

    What is known is given back as it is stored: what was asked does not change.
    """
    chosen = {_content(new): None for new, acquired in normal if acquired}
    order = {key: rank for rank, key in enumerate(chosen)}
    others = [item.new.priority for key, item in asked.items() if key not in order]
    # before all others, however often the same file is served; those of a plain pool are at 0
    start = min([0.0, *others]) - len(order)
    for new, _ in normal:
        key = _content(new)
        there = asked[key].new if key in asked else new
        if key in order:
            yield replace(there, priority=start + order[key])
        elif key not in asked:
            yield new


def _content(new: NewItem) -> bytes:
    """What makes two questions the same: the prompt with its media, and both texts."""
    prompt = prompt_key(new.prompt)
    sides = (completion_key(prompt, side.text) for side in (new.first, new.second))
    return question_key(*sides) + "".join(new.media).encode()


# -- rows -------------------------------------------------------------------------------------


@dataclass
class _Reading:
    """Files to items, each question once, with whether `acquire` chose it."""

    store: Store
    on_error: OnError
    taken: Taken = field(default_factory=Taken)

    def read(self, paths: Sequence[str], asked: Any) -> list[tuple[NewItem, bool]]:
        reader = read_groups(list(paths), on_error=self.on_error)
        found: dict[bytes, tuple[NewItem, bool]] = {}
        for group in reader:
            self.taken.rows += 1
            try:
                items = list(self._items(group, asked))
                _check_alike(items, found)
            except DataError as error:
                if group.origins:
                    error.file = error.file or group.origins[0].file
                    error.row = error.row or group.origins[0].row
                if self.on_error == "raise":
                    raise
                self.taken.skipped[error.kind] += 1
                continue
            for new in items:
                found.setdefault(_content(new), (new, _acquired(group)))
        self.taken.skipped += reader.skipped
        return list(found.values())

    def _items(self, group: Group, asked: Any) -> Iterable[NewItem]:
        pairs = list(asked(group))
        if not pairs:
            return
        media = tuple(self._media(group))
        meta = _meta(group)
        for first, second, said in pairs:
            turned = group.completions[first].text > group.completions[second].text
            if turned:
                first, second = second, first
            swap: dict[Said | None, Said] = {"first": "second", "second": "first"}
            yield NewItem(
                group.prompt, group.completions[first], group.completions[second],
                gold=swap.get(said) if turned else said,
                source=group.source, meta=meta, media=media,
            )  # fmt: skip

    def _media(self, group: Group) -> Iterator[str]:
        folder = Path(group.origins[0].file).parent if group.origins else Path()
        for column in COLUMNS:
            listed = group.meta.get(column, [])
            if not isinstance(listed, list | tuple):
                raise DataError(
                    "must be a list", kind="wrong_type", field=f"meta.{column}", value=listed,
                    remedy="give a list of paths, or of data: URIs",
                )  # fmt: skip
            for reference in listed:
                yield self.store.add_media(*load(reference, folder, column))


def _acquired(group: Group) -> bool:
    return all(type(group.meta.get(name)) is kind for name, kind in _ACQUIRED.items())


def _meta(group: Group) -> dict[str, Any]:
    """What the row brought along, without what the labelling room itself writes or keeps."""
    own = {LABELLING, *COLUMNS}
    meta = {name: value for name, value in group.meta.items() if name not in own}
    try:
        json.dumps(meta, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"a column cannot be kept as JSON: {error}", kind="wrong_type", field="meta",
            remedy="keep only text, finite numbers, lists and objects in further columns",
        ) from None  # fmt: skip
    return meta
