"""A client of any server that speaks OpenAI's protocol: vLLM, SGLang, llama.cpp, `transformers
serve`, and OpenAI itself.

Many requests at once, each sent again when it fails in passing; answers are handed over as they
come, so whoever keeps them has lost nothing when the server fails for good or Ctrl-C is pressed.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

from prefopt.errors import MissingExtraError, RecipeError
from prefopt.sampling.at_once import at_once
from prefopt.sampling.blame import Blame
from prefopt.sampling.failures import (
    RefusedPrompt,
    RequestError,
    ServerError,
    for_one_prompt,
    status_of,
)
from prefopt.sampling.retrying import Patience, Persistence
from prefopt.sampling.served import kind_at, lasting, models_at
from prefopt.sampling.wire import (
    EXTRAS,
    ONE_BY_ONE,
    Answer,
    Kind,
    Reply,
    Request,
    Token,
    body_of,
    reply_of,
)

if TYPE_CHECKING:
    from openai import AsyncOpenAI

__all__ = ["Answer", "Patience", "Reply", "Request", "Server", "Token"]


class Server:
    """A server by its URL.

    Args:
        url: such as `http://localhost:8000` (then `/v1` is added) or `https://…/v1`.
        model: as the server calls it; None for the only one that it serves.
        key: name of the environment variable that holds the server's key; the key itself is
            never printed or written. None for a server without one.
        concurrency: requests on their way at the same time.
        patience: how long to bear with failures.
        kind: of server, for what it takes beside the protocol; `auto` goes by what it says of
            its model, and of its paths.

    Attributes:
        retried: why requests were sent again, counted; over all calls.
        fingerprints: every `system_fingerprint` that came back.
        asked: requests that were answered; `prompt_tokens` and `completion_tokens` as the server
            counted them.

    Raises:
        MissingExtraError: the package openai is not installed.
        RecipeError: the URL is none, it holds a password, there is no such variable, or a
            setting is out of range.
    """

    def __init__(
        self,
        url: str,
        model: str | None = None,
        *,
        key: str | None = None,
        concurrency: int = 16,
        patience: Patience | None = None,
        kind: Kind = "auto",
    ) -> None:
        try:
            import openai  # noqa: F401 (half a second; to know now rather than at the first request)
        except ImportError as error:
            raise MissingExtraError(
                "talking to a server needs the package openai",
                remedy="pip install 'prefopt[server]'",
            ) from error
        if concurrency < 1:
            raise RecipeError("must be at least 1", field="concurrency", value=concurrency)
        if kind != "auto" and kind not in EXTRAS:
            raise RecipeError(
                "is no kind of server", field="kind", value=kind, remedy=f"one of {list(EXTRAS)}"
            )
        self.url = _normal(url)
        self.concurrency = concurrency
        self.patience = patience or Patience()
        self.retried: Counter[str] = Counter()
        self.fingerprints: set[str] = set()
        self.asked = self.prompt_tokens = self.completion_tokens = 0
        self._secret = _secret(key)
        self._model = model
        self._kind: str | None = None if kind == "auto" else kind
        self._entry: dict[str, Any] | None = None
        self._looked = False
        self._one_by_one = False

    # -- what is served --------------------------------------------------------------------

    @property
    def model(self) -> str:
        """The model's name; asks the server where none was given."""
        self._look()
        assert self._model is not None
        return self._model

    @property
    def kind(self) -> str:
        """Which kind of server it is."""
        self._look()
        return self._kind or "other"

    def identity(self) -> dict[str, Any]:
        """Where and what: the URL, the model, and the server's own entry of it; plain JSON.

        `system_fingerprint` is not part of it: it comes with answers only (`fingerprints`).

        Raises:
            ServerError: nothing answers there, or it is not said which of several models.
        """
        return {"url": self.url, "model": self.model, "kind": self.kind, "served": self._entry}

    # -- asking ----------------------------------------------------------------------------

    def chat(self, request: Request) -> Reply:
        """One reply."""
        return self.chat_all([request])[0]

    def chat_all(
        self,
        requests: Sequence[Request],
        on_reply: Callable[[int, Reply], None] | None = None,
    ) -> list[Reply]:
        """A reply to each request, in order.

        Args:
            requests: asked in this order, `concurrency` at a time.
            on_reply: called with (position, reply) as soon as it is there, in this thread;
                before an error is raised, with all that came.

        Raises:
            RequestError: one was refused (wrong name, key, setting; too long).
            ServerError: one failed for good, or the time is over.
        """
        replies: dict[int, Reply] = {}
        with closing(self.replies(requests)) as coming:
            for position, reply in coming:
                replies[position] = reply
                if on_reply is not None:
                    on_reply(position, reply)
        return [replies[position] for position in range(len(requests))]

    def replies(self, requests: Sequence[Request]) -> Generator[tuple[int, Reply], None, None]:
        """(position, reply) of each request, as they come; otherwise like `chat_all`."""
        with closing(self._each(requests, tolerant=False)) as coming:
            for position, outcome in coming:
                assert isinstance(outcome, Reply)
                yield position, outcome

    def outcomes(
        self, requests: Sequence[Request]
    ) -> Generator[tuple[int, Reply | RefusedPrompt], None, None]:
        """The same, but a prompt that alone is refused does not end it: see `RefusedPrompt`.

        Whether it is alone is found out by asking (`blame`). What concerns every request (a
        wrong name or key, an unknown setting) is raised as ever.
        """
        return self._each(requests, tolerant=True)

    def _each(
        self, requests: Sequence[Request], *, tolerant: bool
    ) -> Generator[tuple[int, Reply | RefusedPrompt], None, None]:
        if not requests:
            return
        self._look()
        keeping = self._persistence()
        for position, outcome in at_once(
            self._asker(keeping, tolerant=tolerant),
            requests,
            concurrency=self.concurrency,
            drain=self.patience.drain,
            on_failure=keeping.stop,
        ):
            if isinstance(outcome, Reply):
                self._note(outcome)
            yield position, outcome

    def _note(self, reply: Reply) -> None:
        self.asked += 1
        self.prompt_tokens += reply.prompt_tokens
        self.completion_tokens += reply.completion_tokens
        if reply.fingerprint:
            self.fingerprints.add(reply.fingerprint)

    @asynccontextmanager
    async def _asker(
        self, keeping: Persistence, *, tolerant: bool
    ) -> AsyncIterator[Callable[[Request], Awaitable[Reply | RefusedPrompt]]]:
        async with self._client() as client:

            async def once(request: Request, again: bool = True) -> Reply:
                return await self._once(client, keeping, request, again=again)

            blame = Blame(once)

            async def ask(request: Request) -> Reply | RefusedPrompt:
                try:
                    reply = await self._whole(once, request)
                except ServerError as error:
                    if tolerant and await blame.is_of_the_prompt(request, error):
                        return for_one_prompt(error)
                    raise
                blame.answered(request)
                return reply

            yield ask

    async def _whole(self, once: Callable[[Request], Awaitable[Reply]], request: Request) -> Reply:
        """n answers, in one request or, of a server that gives one at a time, in several."""
        if request.n > 1 and self._one_by_one:
            first = await once(replace(request, n=1))
        else:
            try:
                first = await once(request)
            except RequestError as error:
                if request.n == 1 or status_of(error.__cause__ or error) not in (400, 422):
                    raise
                # llama.cpp used to refuse n > 1; if n is not why, the next refusal says so.
                first = await once(replace(request, n=1))
                self._one_by_one = True
        whole = first
        while (have := len(whole.answers)) < request.n:
            # `transformers serve` ignores n: the rest needs seeds of its own.
            self._one_by_one = self._one_by_one or have == 1
            seed = None if request.seed is None else request.seed + have
            rest = 1 if self._one_by_one else request.n - have
            further = await once(replace(request, n=rest, seed=seed))
            whole = _joined(whole, further)
        return replace(whole, answers=whole.answers[: request.n])

    async def _once(
        self, client: AsyncOpenAI, keeping: Persistence, request: Request, *, again: bool
    ) -> Reply:
        body = body_of(request, self.model, self.kind)
        path = "/completions" if isinstance(request.prompt, str) else "/chat/completions"

        async def attempt() -> Reply:
            return reply_of(await client.post(path, body=body, cast_to=object))

        return await keeping(attempt, self.model, again=again)

    # -- the first look --------------------------------------------------------------------

    def _look(self) -> None:
        """Ask once what is served: for the name, for the kind, and whether anybody is there."""
        if self._looked:
            return
        # Nobody there is more often a wrong URL than a passing failure: one more try, not eight.
        keeping = self._persistence(replace(self.patience, retries=min(1, self.patience.retries)))
        entries = models_at(self._client, keeping, self._model)
        known = [str(entry.get("id")) for entry in entries]
        if self._model is None:
            if len(known) != 1:
                raise RequestError(
                    f"the server has {len(known) or 'no'} models, and none was named",
                    file=self.url,
                    value=", ".join(known) or None,
                    remedy="name the model (--model NAME)",
                )
            (self._model,) = known
        found = next((entry for entry in entries if entry.get("id") == self._model), None)
        if found is not None:
            self._entry = lasting(found)
        if self._kind is None:
            self._kind = kind_at(self._client, self.url, found)
        self._one_by_one = self._kind in ONE_BY_ONE
        self._looked = True

    def _persistence(self, patience: Patience | None = None) -> Persistence:
        return Persistence(
            patience or self.patience,
            url=self.url,
            secret=self._secret,
            on_retry=lambda reason: self.retried.update([reason]),
        )

    def _client(self) -> AsyncOpenAI:
        from openai import AsyncOpenAI

        # Its own retries are off: ours know the other requests, the deadline, and are counted.
        return AsyncOpenAI(
            base_url=self.url,
            api_key=self._secret or "none",
            max_retries=0,
            timeout=self.patience.timeout,
        )


def _joined(first: Reply, further: Reply) -> Reply:
    return replace(
        first,
        answers=first.answers + further.answers,
        prompt_tokens=first.prompt_tokens + further.prompt_tokens,
        completion_tokens=first.completion_tokens + further.completion_tokens,
    )


def _normal(url: str) -> str:
    """The URL with a path, and without a slash at its end.

    >>> _normal("http://localhost:8000/")
    'http://localhost:8000/v1'
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise RecipeError(
            "is not the URL of a server",
            field="server",
            value=url,
            remedy="give it as http://HOST:PORT or https://HOST/v1",
        )
    if parts.username or parts.password or parts.query or parts.fragment:
        raise RecipeError(
            "the URL of a server has a password or a query in it, which would be written down",
            field="server",
            value=parts.hostname,
            remedy="put the key into an environment variable, and name that (--key VARIABLE)",
        )
    return urlunsplit((parts.scheme, parts.netloc, parts.path.rstrip("/") or "/v1", "", ""))


def _secret(variable: str | None) -> str | None:
    if variable is None:
        return None
    value = os.environ.get(variable)
    if not value:
        raise RecipeError(
            "there is no such environment variable, or it is empty",
            field="key",
            value=variable,
            remedy=f"export {variable}=…, or name another one",
        )
    return value
