"""Many annotators at once on four server processes: no slot twice, no answer lost or doubled."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from prefopt.labelling.words import NewItem
from tests.crowd import Manners, audit, crowd
from tests.served import Server, link_of, make_task, opened, plain_items

PEOPLE = 12


def test_a_crowd_on_four_processes(database_url: str, tmp_path: Path) -> None:
    """Twelve people and 60 questions that want three votes each; gold ones and repeats between."""
    with opened(database_url) as store:
        gold = [_gold(item) for item in plain_items(4, prefix="known")]
        make_task(
            store, "crowd", plain_items(60) + gold,
            overlap=3, gold_share=0.1, repeat_share=0.1, seed=5,
        )  # fmt: skip
        names = [f"person-{number}" for number in range(PEOPLE)]
        tokens = [link_of(store, name) for name in names]
    with Server(database_url, tmp_path, processes=4) as server:
        assert len(server.workers) == 4
        people = crowd(server.port, tokens, "crowd", Manners(skip=0.02, undo=0.05, again=0.1))
        people.start()
        people.wait(100)
    with opened(database_url) as store:
        found = audit(store, "crowd", dict(zip(names, people.labellers, strict=True)))
        progress = store.progress("crowd")
    assert (progress.wanted, progress.items) == (180, 60)
    assert progress.done == 60 and progress.votes == 180, "everything wanted was asked for"
    assert found["answers"] >= 180 and found["undone"] > 0
    assert [person.troubles for person in people.labellers if person.troubles] == []


def _gold(item: NewItem) -> NewItem:
    return replace(item, gold="first")
