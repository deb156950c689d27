"""A small real HTTP server that speaks OpenAI's protocol, and fails when it is told to.

    with faulty_server([status(500), None, truncated()]) as server:
        Server(server.url).chat_all(…)      # the first POST gets a 500, the second is answered …
    server.answered, server.seen

Every request is recorded, so that a test can tell what was lost and what was asked twice.
"""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

#: does something else than answering; gets the handler and the whole answer in bytes
Fault = Callable[["_Handler", bytes], None]
#: (body, position of the choice) -> its text
Say = Callable[[dict[str, Any], int], str]


@dataclass
class Seen:
    """A request: path, JSON body, headers, when it came, and whether it was answered."""

    path: str
    body: dict[str, Any]
    headers: Mapping[str, str]
    when: float
    answered: bool = False


@dataclass
class FaultyServer:
    """What a test holds in its hand.

    Attributes:
        faults: of the POSTs in the order in which they come (None answers), then none; or a
            function of (number of the POST from 0, body).
        say: the text of a choice.
        models: entries of `/v1/models`; None has no such page, and says `no_models`.
        most: choices given to a request at most, as by servers that ignore n.
        key: refused with 401 without it.
        seen: every POST.
        looks: how often `/v1/models` was read.
    """

    faults: Sequence[Fault | None] | Callable[[int, dict[str, Any]], Fault | None] = ()
    say: Say = lambda body, index: f"answer {index} to {last_text(body)}"
    models: Sequence[Mapping[str, Any]] | None = ({"id": "tiny", "object": "model"},)
    no_models: int = 404
    most: int | None = None
    key: str | None = None
    seen: list[Seen] = field(default_factory=list)
    looks: int = 0
    url: str = ""
    at_work: int = 0
    most_at_work: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def answered(self) -> list[str]:
        """The prompts that were answered, in order."""
        return [last_text(request.body) for request in self.seen if request.answered]

    def fault(self, number: int, body: dict[str, Any]) -> Fault | None:
        if callable(self.faults):
            return self.faults(number, body)
        return self.faults[number] if number < len(self.faults) else None


def last_text(body: Mapping[str, Any]) -> str:
    """The prompt of a request, or the last message of its conversation."""
    return str(body["messages"][-1]["content"] if "messages" in body else body["prompt"])


@contextmanager
def faulty_server(
    faults: Sequence[Fault | None] | Callable[[int, dict[str, Any]], Fault | None] = (),
    **options: Any,
) -> Iterator[FaultyServer]:
    """A server on a free port of this machine, for the length of a block."""
    told = FaultyServer(faults, **options)

    class Handler(_Handler):
        server_told = told

    http = _Quiet(("127.0.0.1", 0), Handler)
    told.url = f"http://127.0.0.1:{http.server_address[1]}/v1"
    thread = threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield told
    finally:
        http.shutdown()
        http.server_close()


# -- faults --------------------------------------------------------------------------------


def status(code: int, message: str = "as told", *, retry_after: float | str | None = None) -> Fault:
    """An error of the protocol, such as 429 with Retry-After."""

    def fail(handler: _Handler, _: bytes) -> None:
        headers = {} if retry_after is None else {"Retry-After": str(retry_after)}
        handler.send(code, json.dumps({"error": {"message": message, "code": None}}), headers)

    return fail


def html(code: int = 502) -> Fault:
    """What a proxy says when nobody is behind it."""
    return lambda handler, _: handler.send(code, "<html>Bad gateway</html>", kind="text/html")


def hanging(seconds: float) -> Fault:
    """No answer for so long."""
    return lambda handler, _: time.sleep(seconds)


def truncated(share: float = 0.5) -> Fault:
    """A whole answer of half the text: JSON that breaks off."""
    return lambda handler, answer: handler.send(200, answer[: int(len(answer) * share)])


def broken_off() -> Fault:
    """The connection ends in the middle of the body."""

    def fail(handler: _Handler, answer: bytes) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(len(answer)))
        handler.end_headers()
        handler.wfile.write(answer[: len(answer) // 2])
        handler.close_connection = True

    return fail


def reset() -> Fault:
    """The connection is reset before an answer."""

    def fail(handler: _Handler, _: bytes) -> None:
        at_once = struct.pack("ii", 1, 0)  # a close that sends RST
        handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)
        handler.close_connection = True
        handler.connection.shutdown(socket.SHUT_RD)
        handler.connection.close()

    return fail


def saying(document: Any) -> Fault:
    """200 with another document."""
    return lambda handler, _: handler.send(200, json.dumps(document))


# -- the protocol --------------------------------------------------------------------------


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # connections that end early are the point


class JsonHandler(BaseHTTPRequestHandler):
    """Reads and says JSON over connections that stay open."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def body(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        return found

    def say(self, code: int, document: Any) -> None:
        self.send(code, json.dumps(document))

    def send(
        self,
        code: int,
        content: str | bytes,
        headers: Mapping[str, str] | None = None,
        kind: str = "application/json",
    ) -> None:
        data = content.encode() if isinstance(content, str) else content
        self.send_response(code)
        for name, value in {"Content-Type": kind, **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


class _Handler(JsonHandler):
    server_told: FaultyServer

    def do_GET(self) -> None:
        told = self.server_told
        if not self.path.endswith("/models") or told.models is None:
            self.say(told.no_models, {"error": {"message": "no such page"}})
        elif not self._allowed():
            self.say(401, {"error": {"message": f"wrong key {self._key()}"}})
        else:
            told.looks += 1
            self.say(200, {"object": "list", "data": list(told.models)})

    def do_POST(self) -> None:
        told = self.server_told
        body = self.body()
        seen = Seen(self.path, body, dict(self.headers), time.monotonic())
        with told.lock:
            number = len(told.seen)
            told.seen.append(seen)
            told.at_work += 1
            told.most_at_work = max(told.most_at_work, told.at_work)
        try:
            self._answer(seen, told.fault(number, body))
        finally:
            with told.lock:
                told.at_work -= 1

    def _answer(self, seen: Seen, fault: Fault | None) -> None:
        told = self.server_told
        if not self._allowed():
            self.say(401, {"error": {"message": f"wrong key {self._key()}"}})
            return
        known = [entry["id"] for entry in told.models or ()]
        if known and seen.body["model"] not in known:
            self.say(404, {"error": {"message": f"no model {seen.body['model']}"}})
            return
        answer = json.dumps(_document(told, seen)).encode()
        if fault is not None:
            with suppress(OSError):
                fault(self, answer)
            return
        seen.answered = True
        self.send(200, answer)

    def _key(self) -> str:
        return self.headers.get("Authorization", "").removeprefix("Bearer ")

    def _allowed(self) -> bool:
        return self.server_told.key in (None, self._key())


def _document(told: FaultyServer, seen: Seen) -> dict[str, Any]:
    body, chat = seen.body, "messages" in seen.body
    count = min(body.get("n", 1), told.most or body.get("n", 1))
    choices: list[dict[str, Any]] = []
    for index in range(count):
        text = told.say(body, index)
        choice: dict[str, Any] = {"index": index, "finish_reason": "stop"}
        choice |= {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
        if body.get("logprobs"):
            choice["logprobs"] = _logprobs(text, chat)
        choices.append(choice)
    return {
        "id": "x",
        "object": "chat.completion" if chat else "text_completion",
        "model": body["model"],
        "system_fingerprint": "fp_1",
        "choices": choices,
        "usage": {"prompt_tokens": 3, "completion_tokens": count, "total_tokens": 3 + count},
    }


def _logprobs(text: str, chat: bool) -> dict[str, Any]:
    """Every word a token, of probability one half."""
    words, logp = text.split(" "), -0.6931471805599453
    if chat:
        tops = [
            [{"token": word, "logprob": logp}, {"token": "x", "logprob": -2.0}] for word in words
        ]
        rows = zip(words, tops, strict=True)
        return {"content": [{"token": w, "logprob": logp, "top_logprobs": t} for w, t in rows]}
    return {
        "tokens": words,
        "token_logprobs": [logp] * len(words),
        "top_logprobs": [{word: logp, "x": -2.0} for word in words],
    }
