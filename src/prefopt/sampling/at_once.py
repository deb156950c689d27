"""Many waits at the same time, for code that is not asynchronous.

An event loop runs in a thread of its own, so this works in a script, in a notebook and inside
another loop alike, and Ctrl-C reaches the caller at once: results are handed over in the thread
that asks for them.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from typing import TypeVar

J = TypeVar("J")
R = TypeVar("R")

_FAREWELL = 5.0  # seconds that a cancelled loop has to end its connections


def at_once(
    work: AbstractAsyncContextManager[Callable[[J], Awaitable[R]]],
    jobs: Sequence[J],
    *,
    concurrency: int,
    drain: float = 30.0,
    on_failure: Callable[[], None] = lambda: None,
) -> Iterator[tuple[int, R]]:
    """(position of the job, its result), as they come.

    After the first failure no job is begun; those on their way may end, and what they give is
    handed over before the failure is raised. Leaving the iteration cancels everything.

    Args:
        work: opened inside the loop; gives what does one job.
        jobs: begun in order, `concurrency` of them at a time.
        drain: seconds for jobs on their way once another has failed.
        on_failure: called then.

    Raises:
        Whatever the first job that failed raised.
    """
    done: queue.SimpleQueue[tuple[int, R] | BaseException | None] = queue.SimpleQueue()
    loop = asyncio.new_event_loop()
    task = loop.create_task(_all(work, jobs, concurrency, drain, on_failure, done))
    thread = threading.Thread(target=_run, args=(loop, task, done), daemon=True)
    thread.start()
    failure: BaseException | None = None
    try:
        while (item := done.get()) is not None:
            if isinstance(item, BaseException):
                failure = failure or item
            else:
                yield item
        if failure is not None:
            raise failure
    finally:
        with suppress(RuntimeError):  # the loop has ended by itself
            loop.call_soon_threadsafe(task.cancel)
        thread.join(_FAREWELL)


def _run(
    loop: asyncio.AbstractEventLoop,
    task: asyncio.Task[None],
    done: queue.SimpleQueue[tuple[int, R] | BaseException | None],
) -> None:
    try:
        loop.run_until_complete(task)
    except BaseException as error:
        done.put(error)
    finally:
        done.put(None)
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


async def _all(
    work: AbstractAsyncContextManager[Callable[[J], Awaitable[R]]],
    jobs: Sequence[J],
    concurrency: int,
    drain: float,
    on_failure: Callable[[], None],
    done: queue.SimpleQueue[tuple[int, R] | BaseException | None],
) -> None:
    failed = asyncio.Event()
    todo = iter(enumerate(jobs))

    async def worker(do: Callable[[J], Awaitable[R]]) -> None:
        for position, job in todo:  # one iterator for all workers
            if failed.is_set():
                return
            try:
                done.put((position, await do(job)))
            except Exception as error:
                done.put(error)
                on_failure()
                failed.set()

    async with work as do:
        workers = [asyncio.create_task(worker(do)) for _ in range(min(concurrency, len(jobs)))]
        watcher = asyncio.create_task(failed.wait())
        try:
            pending: set[asyncio.Task[None]] = set(workers)
            while pending and not failed.is_set():
                either = [*pending, watcher]
                await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
                pending = {task for task in pending if not task.done()}
            if pending:
                await asyncio.wait(pending, timeout=drain)
        finally:
            for task in (*workers, watcher):
                task.cancel()
            await asyncio.gather(*workers, watcher, return_exceptions=True)
