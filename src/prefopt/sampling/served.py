"""What is served at a URL: which models, and by which kind of server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

from prefopt.sampling.at_once import at_once
from prefopt.sampling.failures import ServerError, UnreadableReply, is_refusal, passes, status_of
from prefopt.sampling.retrying import Persistence
from prefopt.sampling.wire import OWNERS, Kind

if TYPE_CHECKING:
    from openai import AsyncOpenAI

R = TypeVar("R")
Entry = Mapping[str, Any]

#: what is kept of a served model's entry; the rest changes from one request to the next, or from
#: one start of the server to the next, as the length of its context does
_LASTING = ("id", "owned_by", "root", "parent", "meta")
_PASSING = ("n_ctx",)  # of meta
_OPENAI = "api.openai.com"
#: what servers without a list of models say; `transformers serve` breaks where no hub cache is
_NO_LIST = (404, 405, 500, 501)


def models_at(
    client: Callable[[], AsyncOpenAI], keeping: Persistence, model: str | None
) -> list[Entry]:
    """What `/models` lists; nothing where a server has no such page and a model was named.

    Args:
        client: makes one for the URL.
        keeping: asks again.
        model: the name that was given, if one was.

    Raises:
        ServerError: nothing answers there, or not with a list.
    """

    async def attempt(client: AsyncOpenAI) -> list[Entry]:
        document: Any = await client.get("/models", cast_to=object)
        if not isinstance(document, Mapping):
            raise UnreadableReply("a list of models in another form")
        return [item for item in document.get("data") or () if "id" in item]

    async def look(client: AsyncOpenAI) -> list[Entry]:
        return await keeping(lambda: attempt(client), model or "the list of models")

    try:
        return _asked(client, look)
    except ServerError as error:
        if status_of(error.__cause__ or error) in _NO_LIST and model is not None:
            return []
        raise


def kind_at(client: Callable[[], AsyncOpenAI], url: str, entry: Entry | None) -> Kind:
    """The kind of server: by who owns the model, or else by what else can be asked there.

    `transformers serve` names as owner whoever published a model, but lists its paths.
    """
    place = urlsplit(url)
    if place.hostname == _OPENAI:
        return "openai"
    known = OWNERS.get(str((entry or {}).get("owned_by")))
    if known is not None:
        return known
    listed = urlunsplit((place.scheme, place.netloc, "/openapi.json", "", ""))

    async def paths(client: AsyncOpenAI) -> Any:
        try:
            document: Any = await client.get(listed, cast_to=object)
        except Exception as error:
            if is_refusal(error) or passes(error):
                return ()
            raise
        return document.get("paths") or () if isinstance(document, Mapping) else ()

    return "transformers" if "/load_model" in _asked(client, paths) else "other"


def lasting(entry: Entry) -> dict[str, Any]:
    """Of a served model's entry what says which model it is."""
    kept = {name: entry[name] for name in _LASTING if entry.get(name) is not None}
    if isinstance(meta := kept.get("meta"), Mapping):
        kept["meta"] = {name: value for name, value in meta.items() if name not in _PASSING}
    return kept


def _asked(make: Callable[[], AsyncOpenAI], ask: Callable[[AsyncOpenAI], Awaitable[R]]) -> R:
    """One question, waited for."""

    @asynccontextmanager
    async def asker() -> AsyncIterator[Callable[[None], Awaitable[R]]]:
        async with make() as client:

            async def once(_: None) -> R:
                return await ask(client)

            yield once

    ((_, answer),) = at_once(asker(), [None], concurrency=1)
    return answer
