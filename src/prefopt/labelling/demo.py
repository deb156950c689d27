"""A task with generated questions: short reviews of a small world, two ways to go on with each.

The world knows which of two reviews is the kinder one (`data.worlds`), so some questions are gold.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from prefopt.data.worlds import ReviewWorld
from prefopt.labelling.words import NewItem, Task
from prefopt.records import Completion, Message

if TYPE_CHECKING:
    from prefopt.labelling.store import Store

GUIDELINES = """\
## Which review is kinder?

Two ways to go on with the beginning of a review. Choose the one that speaks **better of its
subject**.

- *Not good* is mildly bad, *very good* is better than *good*.
- If both are equally kind, say **tie**; if both make no sense, **both bad**.
- **Skip** what you would rather not judge. Nobody is told.

Your answers are kept with your name, and the team's leads see them.
"""
#: a difference of sentiment that everybody sees
_SURE = 1.2

#: written by hand, to show what is rendered
_RENDERED = NewItem(
    (Message("user", "How do I count the words of a file?"),),
    Completion(
        "Use `wc`:\n\n```sh\nwc --words notes.txt\n```\n\n| option | counts |\n|---|---|\n"
        "| `--words` | words |\n| `--lines` | lines |",
        source="by hand",
    ),
    Completion(
        "1. Open the file.\n2. Count **every** word.\n3. Write the number down.",
        source="by hand",
    ),
    source="demo",
)


def open_demo(store: Store, *, name: str = "demo", items: int = 24, seed: int = 0) -> Task:
    """Add the task and its questions; the same again adds nothing.

    Args:
        store: the database.
        name: of the task.
        items: ordinary questions; one more is gold for every six.
        seed: another seed, other reviews.
    """
    task = store.add_task(
        Task(name, GUIDELINES, overlap=2, gold_share=0.15, repeat_share=0.1, seed=seed)
    )
    store.add_items(name, questions(items, max(1, items // 6), seed))
    return task


def questions(items: int, gold: int, seed: int = 0) -> list[NewItem]:
    """Ordinary questions, then gold ones: different pairs of reviews with one beginning.

    >>> [(new.gold is None) for new in questions(2, 1)]
    [True, True, False]
    """
    normal: list[NewItem] = []
    sure: list[NewItem] = []
    size = 50 * (items + gold)
    while len(normal) < items or len(sure) < gold:  # until the world has said enough
        normal, sure = [_RENDERED], []
        for prompt, first, second, gap in _pairs(size, seed):
            (sure if abs(gap) > _SURE and len(sure) < gold else normal).append(
                _question(prompt, first, second, gap)
            )
        size *= 2
    return [*(replace(new, gold=None) for new in normal[:items]), *sure]


def _pairs(size: int, seed: int) -> Iterator[tuple[str, str, str, float]]:
    """A beginning, two different ways to go on, and by how much the first is kinder."""
    world, by_prompt = ReviewWorld(), defaultdict[str, list[str]](list)
    for prompt, completion in world.documents(size, seed):
        if completion not in by_prompt[prompt]:
            by_prompt[prompt].append(completion)
    for prompt, found in by_prompt.items():
        for first, second in zip(found[::2], found[1::2], strict=False):
            gap = world.sentiment(prompt, first) - world.sentiment(prompt, second)
            yield prompt, first, second, gap


def _question(prompt: str, first: str, second: str, gap: float) -> NewItem:
    return NewItem(
        (Message("user", f"Go on with this review:\n\n> {prompt} …"),),
        Completion(first.strip(), source="review world"),
        Completion(second.strip(), source="review world"),
        gold="first" if gap > 0 else "second",
        source="demo",
    )
