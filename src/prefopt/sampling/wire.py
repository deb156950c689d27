"""What goes over the wire: requests as the bodies that servers take, and answers as they give them.

OpenAI's protocol has no word for the policy's own distribution: vLLM fills what is left out from
the model's `generation_config.json`, llama.cpp from its own defaults (top_k 40, min_p 0.05; under
Python a repeat_penalty of 1.1 as well). So each kind of server is told what would otherwise be its
own choice, where it takes it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from prefopt.records import Prompt
from prefopt.sampling.failures import SaidInstead, UnreadableReply

Finish = Literal["end", "length", "stop", "filtered"]
Kind = Literal["auto", "openai", "vllm", "sglang", "llama.cpp", "transformers", "other"]


@dataclass(frozen=True, slots=True)
class Request:
    """One question to a server.

    Attributes:
        prompt: text is continued (`/completions`), a conversation is answered
            (`/chat/completions`).
        n: answers to it, sampled independently.
        temperature: 0 takes the most probable token.
        top_p, top_k: as in `Settings`; 1 and 0 keep all tokens.
        seed: None leaves it to the server.
        stop: texts that end an answer, and are not part of it.
        max_tokens: an answer that has not ended by then is cut.
        top_logprobs: with each token its log-probability and those of this many most probable
            ones; None for neither.
        extra: further fields of the body, such as a server's own `guided_choice`.
    """

    prompt: Prompt
    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    max_tokens: int = 128
    top_logprobs: int | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Token:
    """A token of an answer: its text, log-probability in nats, and the likeliest in its place."""

    text: str
    logp: float
    top: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer of a reply.

    Attributes:
        text: what was answered, without what ended it.
        finish: by itself (`end`), for lack of room (`length`), at a text of `stop`, or held back
            by the server (`filtered`). Servers that do not tell the first and third apart say
            `end`.
        tokens: with log-probabilities, where they were asked for and given.
    """

    text: str
    finish: Finish
    tokens: tuple[Token, ...] | None = None

    @property
    def logp(self) -> float | None:
        """Sum over the tokens, in nats."""
        return None if self.tokens is None else sum(token.logp for token in self.tokens)


@dataclass(frozen=True, slots=True)
class Reply:
    """What a server answered to one request.

    Attributes:
        answers: n of them.
        model: as the server calls it.
        fingerprint: of its configuration (`system_fingerprint`), where it tells.
        prompt_tokens, completion_tokens: as the server counts them; 0 where it does not.
    """

    answers: tuple[Answer, ...]
    model: str | None = None
    fingerprint: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0

    @property
    def text(self) -> str:
        """The first answer."""
        return self.answers[0].text


# -- what each kind of server takes beside the protocol --------------------------------------


def _nothing(request: Request) -> dict[str, Any]:
    return {"top_k": request.top_k} if request.top_k else {}


def _vllm(request: Request) -> dict[str, Any]:
    """vLLM and SGLang read −1 as all tokens."""
    return {"top_k": request.top_k or -1, "min_p": 0.0, "repetition_penalty": 1.0}


def _llama_cpp(request: Request) -> dict[str, Any]:
    """llama.cpp reads 0 as all tokens; its server in Python refuses −1."""
    return {"top_k": request.top_k, "min_p": 0.0, "repeat_penalty": 1.0}


def _transformers(request: Request) -> dict[str, Any]:
    """`transformers serve` takes a whole generation config, and knows no top_k beside it."""
    sampled: dict[str, Any] = {"do_sample": request.temperature > 0}
    if request.temperature > 0:
        sampled |= {"temperature": request.temperature, "top_p": request.top_p}
        sampled |= {"top_k": request.top_k}
    config = {**sampled, "max_new_tokens": request.max_tokens}
    return {"generation_config": json.dumps(config)}


#: kind of server -> fields of its own
EXTRAS: Mapping[str, Callable[[Request], dict[str, Any]]] = {
    "openai": _nothing,
    "other": _nothing,
    "vllm": _vllm,
    "sglang": _vllm,
    "llama.cpp": _llama_cpp,
    "transformers": _transformers,
}
#: `owned_by` of a served model -> kind of server; llama.cpp's server in Python says "me"
OWNERS: Mapping[str, Kind] = {
    "vllm": "vllm",
    "sglang": "sglang",
    "llamacpp": "llama.cpp",
    "me": "llama.cpp",
}
#: kinds whose n answers may be one and the same: a seed that is given serves SGLang for all of them
ONE_BY_ONE = {"sglang"}


def body_of(request: Request, model: str, kind: str) -> dict[str, Any]:
    """The JSON body of a request; of a conversation it has `messages`, of a text `prompt`."""
    body: dict[str, Any] = {"model": model, "temperature": request.temperature}
    if request.temperature > 0:
        body["top_p"] = request.top_p
    chat = not isinstance(request.prompt, str)
    if isinstance(request.prompt, str):
        body["prompt"] = request.prompt
    else:
        body["messages"] = [{"role": m.role, "content": m.content} for m in request.prompt]
    # OpenAI's newer models refuse the old name, and the others do not know the new one.
    body["max_completion_tokens" if chat and kind == "openai" else "max_tokens"] = (
        request.max_tokens
    )
    if request.n > 1:
        body["n"] = request.n
    if request.seed is not None:
        body["seed"] = request.seed
    if request.stop:
        body["stop"] = list(request.stop)
    if request.top_logprobs is not None:
        most = request.top_logprobs
        body |= {"logprobs": True, "top_logprobs": most} if chat else {"logprobs": most}
    return {**body, **EXTRAS[kind](request), **request.extra}


# -- what comes back -----------------------------------------------------------------------


def reply_of(document: Any) -> Reply:
    """A reply from the JSON of either endpoint.

    Raises:
        SaidInstead: it is an error.
        UnreadableReply: it is no reply.
    """
    if isinstance(document, Mapping) and "choices" not in document:
        if document.get("error") or document.get("object") == "error":
            raise SaidInstead(document.get("error") or document)
    try:
        usage = document.get("usage") or {}
        answers = tuple(_answer(choice) for choice in document["choices"])
        if not answers:
            raise UnreadableReply("an answer without choices")
        return Reply(
            answers,
            document.get("model"),
            document.get("system_fingerprint"),
            int(usage.get("prompt_tokens") or 0),
            int(usage.get("completion_tokens") or 0),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UnreadableReply(f"an answer in another form ({error!r})") from error


def _answer(choice: Mapping[str, Any]) -> Answer:
    message = choice.get("message")
    text = (choice["text"] if message is None else message.get("content")) or ""
    if not isinstance(text, str):
        raise TypeError("the text of an answer is not text")
    return Answer(_whole(text), _finish(choice), _tokens(choice.get("logprobs")))


def _whole(text: str) -> str:
    """The text without halves of characters, which JSON can say and no file can hold.

    >>> _whole("a\\ud83d b")
    'a� b'
    """
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


#: what vLLM and SGLang say of an answer that they gave up half-way, to sleep or to shut down
_BROKEN = ("abort", "error")


def _finish(choice: Mapping[str, Any]) -> Finish:
    reason = choice.get("finish_reason")
    if reason in _BROKEN:
        raise UnreadableReply(f"an answer that the server broke off ({reason})")
    if reason in ("length", "max_tokens"):
        return "length"
    if reason == "content_filter":
        return "filtered"
    # vLLM and SGLang name the text that ended an answer; a token is named by its number.
    named = choice.get("stop_reason", choice.get("matched_stop"))
    return "stop" if isinstance(named, str) else "end"


def _likeliest(tops: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Log-probabilities by text; tokens that read alike, as a letter and its byte, together.

    >>> _likeliest([{"token": "A", "logprob": -1.0}, {"token": "A", "logprob": -9.0}])
    {'A': -0.9996645936271042}
    """
    found: dict[str, float] = {}
    for top in tops:
        text, logp = top["token"], float(top["logprob"])
        low, high = sorted((logp, found.get(text, -math.inf)))
        found[text] = high + math.log1p(math.exp(low - high)) if high > -math.inf else high
    return found


def _tokens(logprobs: Any) -> tuple[Token, ...] | None:
    if not logprobs:
        return None
    content = logprobs.get("content")
    if content is not None:  # of a chat, and of llama.cpp's texts
        return tuple(
            Token(
                item["token"],
                float(item["logprob"]),
                _likeliest(item.get("top_logprobs") or ()),
            )
            for item in content
        )
    texts, logps = logprobs.get("tokens"), logprobs.get("token_logprobs")
    if not texts or not logps:
        return None
    tops = logprobs.get("top_logprobs") or [{}] * len(texts)
    return tuple(
        Token(text, float(logp), {str(k): float(v) for k, v in (top or {}).items()})
        for text, logp, top in zip(texts, logps, tops, strict=True)
    )
