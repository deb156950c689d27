"""Asking again: how often, after how long, and until when."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

from prefopt.sampling.failures import asked_to_wait, gave_up, is_refusal, passes, refusal, status_of

T = TypeVar("T")

_STOPPED = "another request failed for good"


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to bear with a server; all times in seconds.

    Attributes:
        retries: how often a request is sent again before it counts as failed.
        first_wait: before the first of these; each further wait is twice as long.
        longest_wait: a wait is never longer, unless the server asks for more (Retry-After).
        timeout: for one attempt, from the request to the last byte of its answer.
        deadline: for everything that is asked at once; None for no end.
        drain: after a failure for good nothing new is asked; what is on its way has this long.
    """

    retries: int = 8
    first_wait: float = 0.5
    longest_wait: float = 60.0
    timeout: float = 600.0
    deadline: float | None = None
    drain: float = 30.0

    def wait(self, attempt: int, draw: Callable[[], float] = random.random) -> float:
        """Before asking for the time after `attempt` (from 1): doubled each time, and uneven.

        Uneven, because requests that were refused together would come again together.

        >>> [Patience().wait(n, lambda: 1.0) for n in (1, 2, 3, 20)]
        [0.5, 1.0, 2.0, 60.0]
        >>> Patience().wait(3, lambda: 0.0)
        1.0
        """
        whole = min(self.longest_wait, self.first_wait * 2.0 ** min(attempt - 1, 60))
        return whole * (0.5 + 0.5 * draw())


class Persistence:
    """Sends requests again until they succeed; what it learns from one goes for all.

    Args:
        patience: how long.
        url, secret: for messages; the secret is kept out of them.
        on_retry: called with the reason whenever a request will be sent again.
    """

    def __init__(
        self,
        patience: Patience,
        *,
        url: str,
        secret: str | None = None,
        on_retry: Callable[[str], None] | None = None,
    ) -> None:
        self.patience = patience
        self.url = url
        self.secret = secret
        self._stopped = asyncio.Event()
        self._on_retry = on_retry
        self._not_before = 0.0
        end = patience.deadline
        self._end = None if end is None else time.monotonic() + end

    async def __call__(
        self, attempt: Callable[[], Awaitable[T]], what: str, *, again: bool = True
    ) -> T:
        """The result of an attempt that succeeds; of the only one, where it is not made again.

        Raises:
            RequestError: it was refused.
            ServerError: it failed too often, or there is no time left.
        """
        number = 0
        while True:
            await self._sleep(self._not_before - time.monotonic())
            number += 1
            left = self._left()
            try:
                async with asyncio.timeout(min(self.patience.timeout, left)):
                    return await attempt()
            except Exception as error:
                if not passes(error):
                    if not is_refusal(error):
                        raise
                    raise refusal(error, url=self.url, what=what, secret=self.secret) from error
                pause = self._pause(error, number)
                if (why := self._no_more(number, pause, again=again)) is not None:
                    raise gave_up(
                        error, url=self.url, attempts=number, why=why, secret=self.secret
                    ) from error
                reason = str(status_of(error) or type(error).__name__)
                if self._on_retry is not None:
                    self._on_retry(reason)
            if await self._sleep(pause):
                raise gave_up(
                    RuntimeError(reason), url=self.url, attempts=number, why=_STOPPED,
                    secret=self.secret,
                )  # fmt: skip

    def stop(self) -> None:
        """Something failed for good: what fails from now on is not tried again."""
        self._stopped.set()

    async def _sleep(self, seconds: float) -> bool:
        """Wait that long, or until all is stopped; returns whether it is."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stopped.wait(), max(0.0, seconds))
        return self._stopped.is_set()

    def _pause(self, error: BaseException, number: int) -> float:
        asked = asked_to_wait(error)
        if asked is not None and status_of(error) in (429, 503):
            # The limit is the server's, not of this request: the others wait as well.
            self._not_before = max(self._not_before, time.monotonic() + asked)
        return max(asked or 0.0, self.patience.wait(number))

    def _left(self) -> float:
        return float("inf") if self._end is None else max(0.0, self._end - time.monotonic())

    def _no_more(self, number: int, pause: float, *, again: bool) -> str | None:
        """Why there is no further attempt, if there is none."""
        if self._stopped.is_set():
            return _STOPPED
        if not again or number > self.patience.retries:
            return "the server keeps failing"
        if pause >= self._left():
            return f"the time of {self.patience.deadline:g} s is over"
        return None
