"""What goes wrong between us and a server: what passes, what does not, and what to do about it.

Passing: no connection, a connection that breaks, a time-out, a server in trouble (5xx), too many
requests (429), an answer that cannot be read. Such a request is sent again. All else is ours to
mend, and asking again would change nothing; of what is refused, some concerns one prompt alone.
"""

from __future__ import annotations

import email.utils
import json
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from prefopt.errors import PrefoptError
from prefopt.records import Prompt

#: statuses that pass: time-outs, conflicts, too early, too many requests
_PASSING = {408, 409, 425, 429}
#: statuses of 500 and more that do not: what a server cannot do, it cannot do later
_NEVER = {501, 505}
#: what a 429 says that waiting does not mend
_SPENT = ("insufficient_quota", "billing_hard_limit_reached")
#: statuses that may be about one prompt: refused as too long or malformed, or the server's code
#: breaks on it (llama.cpp says 500 of a conversation that its template does not take)
OF_A_PROMPT = {400, 413, 422, 500}

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")

_REMEDIES = {
    400: "the server does not take this request: a setting that it does not know, or a prompt "
    "that is too long for its model",
    401: "name the environment variable that holds the server's key (--key VARIABLE)",
    403: "the key does not allow this; name the variable of another one (--key VARIABLE)",
    404: "check the URL (it usually ends with /v1) and the model's name",
    413: "the prompt is too long for the server",
    422: "the server refuses a setting; leave out what it does not know (top_k is none of "
    "OpenAI's), or say what kind of server it is",
}


class ServerError(PrefoptError, ConnectionError):
    """A server failed, and went on failing; the same request may succeed later."""

    exit_code: ClassVar[int] = 1


class RequestError(ServerError):
    """A server refuses what it is asked; asking again would change nothing."""

    exit_code: ClassVar[int] = 2


class RefusedPrompt(RequestError):
    """A server refuses one prompt and answers others: mostly it is too long for the model.

    `Server.outcomes` hands it over in the place of a reply, so that the others are answered.
    `message` has the server's own words.
    """


class UnreadableReply(Exception):
    """An answer that came whole and is none: asked again like one that broke off."""


class SaidInstead(Exception):
    """An error in the body of an answer with status 200, which some gateways send.

    Attributes:
        body: the error.
        status_code: its `code`, as if it had been the status; None if it has none.
        code: the same, where it is a word.
    """

    def __init__(self, body: Any) -> None:
        super().__init__(str(body))
        said = body.get("code") if isinstance(body, Mapping) else None
        self.body = body
        self.status_code = said if isinstance(said, int) else None
        self.code = said if isinstance(said, str) else None


def passes(error: BaseException) -> bool:
    """Whether the same request may succeed in a while."""
    import openai

    if isinstance(error, openai.APIStatusError | SaidInstead):
        status = error.status_code
        if error.code in _SPENT or status in _NEVER:
            return False
        return status is None or status in _PASSING or status >= 500
    if isinstance(error, openai.APIConnectionError | openai.APIResponseValidationError):
        return True
    # An answer that breaks off is not JSON any more, or no UTF-8.
    broken = (UnreadableReply, json.JSONDecodeError, UnicodeDecodeError, TimeoutError)
    return isinstance(error, broken)


def is_refusal(error: BaseException) -> bool:
    """Whether the server said no; another failure that does not pass is a fault of ours."""
    import openai

    return isinstance(error, openai.OpenAIError | SaidInstead)


def status_of(error: BaseException) -> int | None:
    """The HTTP status of a failure, if the server gave one."""
    status = getattr(error, "status_code", None)
    return status if isinstance(status, int) else None


def asked_to_wait(error: BaseException, now: float | None = None) -> float | None:
    """Seconds that the server asks to wait before the next request, if it says so.

    Args:
        error: a failure.
        now: seconds since 1970, for a date.
    """
    headers: Mapping[str, str] = getattr(getattr(error, "response", None), "headers", {})
    for name, scale in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        value = headers.get(name)
        if value is None:
            continue
        try:
            return max(0.0, float(value) * scale)
        except ValueError:
            date = email.utils.parsedate_tz(value)
            if date is not None:
                then = email.utils.mktime_tz(date)
                return max(0.0, then - (time.time() if now is None else now))
    return None


def refusal(error: BaseException, *, url: str, what: str, secret: str | None) -> ServerError:
    """Our error for a failure that does not pass.

    Args:
        error: what the client raised.
        url: of the server, without credentials.
        what: what was asked for, such as the model's name.
        secret: the key, which no message may repeat.
    """
    status = status_of(error)
    message = f"the server says {_said(error, secret)}"
    remedy = _REMEDIES.get(status or 0, "see what the server's own log says")
    return RequestError(message, file=url, value=what, remedy=remedy)


def for_one_prompt(error: ServerError) -> RefusedPrompt:
    """The same failure, known to be about its prompt alone."""
    return RefusedPrompt(
        error.message,
        file=error.file,
        remedy="shorten the prompt, or let the server have a longer context",
    )


def gave_up(
    error: BaseException, *, url: str, attempts: int, why: str, secret: str | None
) -> ServerError:
    """Our error for a failure that did not pass after all."""
    times = "once" if attempts == 1 else f"{attempts} times"
    return ServerError(
        f"{why}: asked {times}, and at last {_said(error, secret)}",
        file=url,
        remedy="see whether the server runs and what its log says; what was answered is kept, so "
        "the same command goes on from there",
    )


def seen(text: str) -> str:
    """Anybody's text fit for a terminal: without characters that control it.

    >>> seen("red: \\x1b[31m")
    'red: �[31m'
    """
    return _CONTROL.sub("\ufffd", text)


def _said(error: BaseException, secret: str | None) -> str:
    """One line of what a failure says of itself."""
    status = status_of(error)
    body: Any = getattr(error, "body", None)
    text = body.get("message") or body.get("detail") if isinstance(body, Mapping) else None
    if isinstance(error, TimeoutError) or type(error).__name__ == "APITimeoutError":
        text = "no answer in time"
    elif type(error).__name__ == "APIConnectionError":
        text = f"no connection ({error.__cause__})"
    line = " ".join(seen(str(text or error)).split()) or type(error).__name__
    if secret:
        line = line.replace(secret, "…")
    return f"{status}: {line[:300]}" if status is not None else line[:300]


def in_order(
    refused: Mapping[Prompt, PrefoptError], prompts: Sequence[Prompt]
) -> dict[Prompt, PrefoptError]:
    """Refusals as the prompts stand, however they came; raises the first if nothing is answered."""
    ordered = {prompt: refused[prompt] for prompt in prompts if prompt in refused}
    if ordered and ordered.keys() == set(prompts):
        error = next(iter(ordered.values()))
        error.message += f" (and so with all {len(prompts)} prompts)" if len(prompts) > 1 else ""
        raise error
    return ordered
