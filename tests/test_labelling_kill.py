"""SIGKILL in the middle of traffic: what was acknowledged is there, once, and nothing else."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.crowd import Crowd, Manners, audit, crowd
from tests.postgres import Cluster
from tests.served import Server, link_of, make_task, opened, plain_items

pytestmark = pytest.mark.slow

#: people who send the very same again until they are told that it is there
STUBBORN = Manners(skip=0.03, undo=0.03, again=0.05, patience=60.0)
PEOPLE, ITEMS = 6, 90


def keep_killing(
    url: str, tmp_path: Path, kill: Callable[[Server], None], times: int, processes: int = 4
) -> None:
    """Let people work, kill something at random moments, and audit the books at the end."""
    draw = random.Random(times)
    names = [f"person-{number}" for number in range(PEOPLE)]
    with opened(url) as store:
        make_task(store, "kill", plain_items(ITEMS), overlap=3, repeat_share=0.05)
        tokens = [link_of(store, name) for name in names]
    kills = 0
    with Server(url, tmp_path, processes=processes) as server:
        people = crowd(server.port, tokens, "kill", STUBBORN)
        people.start()
        for _ in range(times):
            wait_for_more(people, draw.randint(15, 40))
            time.sleep(draw.uniform(0, 0.02))
            if not people.working():
                break
            kill(server)
            kills += 1
        people.wait(120)
    assert kills == times, "the traffic ended before the last kill"
    with opened(url) as store:
        found = audit(store, "kill", dict(zip(names, people.labellers, strict=True)))
        progress = store.progress("kill")
    assert progress.votes == 3 * ITEMS and progress.done == ITEMS
    assert found["answers"] >= 3 * ITEMS
    troubles = sum(sum(person.troubles.values()) for person in people.labellers)
    assert troubles > 0, "nobody noticed a kill: it was not in the middle of traffic"


def wait_for_more(people: Crowd, count: int) -> None:
    wanted = people.acknowledged + count
    while people.acknowledged < wanted and people.working():
        time.sleep(0.001)


def everything(server: Server) -> None:
    server.kill()
    server.start()


def one_worker(server: Server) -> None:
    os.kill(random.choice(server.workers), signal.SIGKILL)


def test_the_whole_server_is_killed(database_url: str, tmp_path: Path) -> None:
    keep_killing(database_url, tmp_path, everything, times=4)


def test_single_workers_are_killed(database_url: str, tmp_path: Path) -> None:
    """The others go on, and each dead one is replaced."""
    workers: list[int] = []

    def kill(server: Server) -> None:
        workers.append(len(server.workers))
        one_worker(server)

    keep_killing(database_url, tmp_path, kill, times=6)
    assert max(workers) == 4


def test_the_database_is_killed(fresh_postgresql: Cluster, tmp_path: Path) -> None:
    """PostgreSQL's first process: the people are told to wait, and then it goes on."""

    def kill(_: Server) -> None:
        fresh_postgresql.kill()
        fresh_postgresql.start()

    keep_killing(fresh_postgresql.create(), tmp_path, kill, times=3)


def test_people_are_told_to_wait_while_the_database_is_away(
    fresh_postgresql: Cluster, tmp_path: Path
) -> None:
    from tests.served import visitor

    url = fresh_postgresql.create()
    with opened(url) as store:
        make_task(store, "away", plain_items(3))
        token = link_of(store, "anna")
    with Server(url, tmp_path) as server:
        anna = visitor(server, token)
        question = anna.question("away")
        fresh_postgresql.stop()
        for reply in (
            anna.answer("away", question, "left"),
            anna.send("GET", "/tasks/away"),
            anna.send("GET", "/"),
        ):
            assert reply.status == 503, reply.text[:500]
            assert int(reply.headers["retry-after"]) >= 1
            assert "Traceback" not in reply.text and "postgresql" not in reply.text.lower()
        fresh_postgresql.start()
        reply = anna.answer("away", question, "left")
        assert (reply.status, reply.json["repeated"]) == (200, False)
        assert anna.answer("away", question, "left").json["repeated"] is True
        assert fresh_postgresql.password not in server.log.read_text()
