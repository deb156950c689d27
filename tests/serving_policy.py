"""A policy of ours behind OpenAI's protocol, for tests: the lightest honest server.

    python -m tests.serving_policy FOLDER      # prints its URL when it listens

It really generates: what it says depends on the model, the prompt, the temperature and the seed.
"""

from __future__ import annotations

import sys
import threading
from http.server import ThreadingHTTPServer
from typing import Any

from prefopt.policies.load import Policy, load_policy
from prefopt.records import Message, Prompt
from prefopt.sampling.sampler import LocalSampler
from prefopt.sampling.settings import Settings
from tests.faulty_server import JsonHandler


def answers(sampler: LocalSampler, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The choices of a request."""
    chat = "messages" in body
    prompt: Prompt = body.get("prompt", "")
    if chat:
        prompt = tuple(Message(turn["role"], turn["content"]) for turn in body["messages"])
    stop = body.get("stop") or ()
    settings = Settings(
        n=body.get("n", 1),
        max_new_tokens=body["max_tokens"],
        temperature=body["temperature"],
        top_p=body.get("top_p", 1.0),
        top_k=max(0, body.get("top_k", 0)),
        seed=body.get("seed", 0),
        stop=(stop,) if isinstance(stop, str) else tuple(stop),
    )
    choices: list[dict[str, Any]] = []
    for index, sample in enumerate(sampler.sample_all([prompt], settings)[0]):
        content = (
            {"message": {"role": "assistant", "content": sample.text}}
            if chat
            else {"text": sample.text}
        )
        ended = "length" if sample.finish == "length" else "stop"
        choices.append({"index": index, "finish_reason": ended, **content})
    return choices


def serve(policy: Policy, name: str = "tiny") -> ThreadingHTTPServer:
    """A server that is not running yet, on a free port of this machine."""
    sampler, lock = LocalSampler(policy), threading.Lock()

    class Handler(JsonHandler):
        def do_GET(self) -> None:
            self.say(200, {"data": [{"id": name, "owned_by": "vllm"}]})

        def do_POST(self) -> None:
            body = self.body()
            with lock:  # one model, one thread at a time
                choices = answers(sampler, body)
            self.say(200, {"model": name, "choices": choices, "system_fingerprint": "fp_tiny"})

    return ThreadingHTTPServer(("127.0.0.1", 0), Handler)


if __name__ == "__main__":
    http = serve(load_policy(sys.argv[1], device="cpu"))
    print(f"http://127.0.0.1:{http.server_address[1]}", flush=True)
    http.serve_forever()
