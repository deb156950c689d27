"""Whether a request failed for its prompt or for all the rest of it: that is found out by asking.

A prompt that is too long for a server gets the same answer as a setting that the server does not
know: 400. Words differ between servers. So the rule is: a failure is the prompt's own if the server
answers the same request with another prompt. One that was answered already will do; otherwise a
control is asked, with a prompt of one word. If that fails as well, it concerns every request.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import asdict, replace

from prefopt.records import Message
from prefopt.sampling.failures import OF_A_PROMPT, ServerError, status_of
from prefopt.sampling.wire import Reply, Request

_WORD = "Hello"
_IN_TROUBLE = 500  # from here on a server may have stopped to answer what it answered before


class Blame:
    """Tells a prompt's own failure from everybody's.

    Args:
        ask: sends a request, again and again if so told.
    """

    def __init__(self, ask: Callable[[Request, bool], Awaitable[Reply]]) -> None:
        self._ask = ask
        self._answered: set[str] = set()
        self._one_control = asyncio.Lock()

    def answered(self, request: Request) -> None:
        """The server takes requests like this one."""
        self._answered.add(_key(control_of(request)))

    async def is_of_the_prompt(self, request: Request, error: ServerError) -> bool:
        """Whether it failed for its prompt; asks the server if that is not known yet."""
        status = status_of(error.__cause__ or error)
        if status not in OF_A_PROMPT:
            return False
        control, healthy = control_of(request), status < _IN_TROUBLE
        async with self._one_control:  # the others may learn from its answer
            if healthy and _key(control) in self._answered:
                return True
            try:
                await self._ask(control, healthy)  # in trouble it had its time with the request
            except ServerError:
                return False
            self._answered.add(_key(control))
            return True


def control_of(request: Request) -> Request:
    """The same with a prompt that nobody refuses, and one answer.

    >>> control_of(Request("a long story …", n=4, max_tokens=9)) == Request("Hello", max_tokens=9)
    True
    """
    prompt = _WORD if isinstance(request.prompt, str) else (Message("user", _WORD),)
    return replace(request, prompt=prompt, n=1, seed=None)


def _key(control: Request) -> str:
    return json.dumps(asdict(control), sort_keys=True)
