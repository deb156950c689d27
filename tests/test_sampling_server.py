"""A client of OpenAI-compatible servers: nothing lost, nothing asked twice, errors that help."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from prefopt.errors import RecipeError
from prefopt.records import Message
from prefopt.sampling.failures import RefusedPrompt, RequestError, ServerError, asked_to_wait
from prefopt.sampling.retrying import Patience
from prefopt.sampling.server import Reply, Request, Server
from prefopt.sampling.wire import body_of
from tests.faulty_server import (
    Fault,
    broken_off,
    faulty_server,
    hanging,
    html,
    last_text,
    reset,
    saying,
    status,
    truncated,
)

QUICK = Patience(first_wait=0.01, longest_wait=0.05, timeout=0.5)
PROMPTS = [f"prompt {number}" for number in range(12)]


def _requests(**options: Any) -> list[Request]:
    return [Request(prompt, **options) for prompt in PROMPTS]


def test_texts_are_continued_and_conversations_answered() -> None:
    chat = (Message("system", "Be short."), Message("user", "Hello"))
    with faulty_server() as web:
        server = Server(web.url, patience=QUICK)
        text, answer = server.chat_all([Request("Once"), Request(chat, stop=("\n",), seed=3)])
    assert text == Reply(text.answers, "tiny", "fp_1", 3, 1)
    assert (text.text, answer.text) == ("answer 0 to Once", "answer 0 to Hello")
    assert text.answers[0].finish == "end"
    by_path = {request.path: request.body for request in web.seen}
    assert by_path["/v1/completions"] == {
        "model": "tiny", "prompt": "Once", "temperature": 1.0, "top_p": 1.0, "max_tokens": 128,
    }  # fmt: skip
    assert by_path["/v1/chat/completions"] == {
        "model": "tiny", "temperature": 1.0, "top_p": 1.0, "max_tokens": 128, "seed": 3,
        "messages": [{"role": "system", "content": "Be short."},
                     {"role": "user", "content": "Hello"}],
        "stop": ["\n"],
    }  # fmt: skip
    assert (server.asked, server.prompt_tokens, server.completion_tokens) == (2, 6, 2)
    assert server.fingerprints == {"fp_1"}


@pytest.mark.parametrize(
    "fault",
    [status(500), status(503), status(429), status(408), html(), truncated(), truncated(0.0),
     broken_off(), reset(), hanging(1.0), saying({"choices": []}), saying({"choices": [{}]}),
     saying([1])],
    ids=["500", "503", "429", "408", "proxy", "truncated", "empty", "broken off", "reset",
         "hanging", "no choices", "no text", "list"],
)  # fmt: skip
def test_what_passes_is_asked_again_and_nothing_else_is(fault: Fault) -> None:
    with faulty_server(lambda number, _: fault if number in (0, 3, 4) else None) as web:
        server = Server(web.url, concurrency=3, patience=QUICK)
        replies = server.chat_all(_requests())
    assert [reply.text for reply in replies] == [f"answer 0 to {prompt}" for prompt in PROMPTS]
    assert Counter(web.answered) == Counter(PROMPTS)  # each is answered once
    assert len(web.seen) == len(PROMPTS) + 3
    assert sum(server.retried.values()) == 3


def test_no_more_requests_at_once_than_allowed() -> None:
    with faulty_server(lambda *_: None) as web:
        web.say = lambda body, index: time.sleep(0.02) or "x"
        Server(web.url, concurrency=3, patience=QUICK).chat_all(_requests())
        assert web.most_at_work == 3
        assert web.looks == 1


def test_retry_after_holds_everybody_back() -> None:
    with faulty_server([None, status(429, retry_after=0.4)]) as web:
        Server(web.url, concurrency=2, patience=QUICK).chat_all(_requests())
    refused = web.seen[1].when
    early = [request for request in web.seen[2:] if request.when < refused + 0.35]
    assert len(early) <= 1  # the other request that was on its way when the refusal came
    assert Counter(web.answered) == Counter(PROMPTS)


def test_a_date_to_wait_for() -> None:
    refused, at = RuntimeError(), 1445412480.0
    headers = {"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}
    refused.response = SimpleNamespace(headers=headers)  # type: ignore[attr-defined]
    assert asked_to_wait(refused, now=at - 5) == 5.0
    assert asked_to_wait(refused, now=at + 5) == 0.0
    assert asked_to_wait(ValueError()) is None


def test_a_server_that_keeps_failing_keeps_what_it_gave() -> None:
    given: dict[int, Reply] = {}

    def fails(_: int, body: dict[str, Any]) -> Fault | None:
        return status(500, "out of memory") if body["prompt"] == "prompt 5" else None

    with faulty_server(fails) as web:
        server = Server(web.url, concurrency=1, patience=Patience(retries=2, first_wait=0.01))
        with pytest.raises(ServerError) as caught:
            server.chat_all(_requests(), given.__setitem__)
    assert caught.value.exit_code == 1
    assert "asked 3 times" in str(caught.value)
    assert "500: out of memory" in str(caught.value)
    assert sorted(given) == [0, 1, 2, 3, 4]
    assert len(web.seen) == 8  # nothing was begun after it


def test_what_is_on_its_way_when_another_fails_is_kept() -> None:
    given: dict[int, Reply] = {}

    def fails(_: int, body: dict[str, Any]) -> Fault | None:
        if body["prompt"] == "prompt 1":
            return status(400, "too long")
        time.sleep(0.3)
        return None

    with faulty_server(fails) as web, pytest.raises(RequestError, match="400: too long"):
        Server(web.url, concurrency=3, patience=QUICK).chat_all(_requests(), given.__setitem__)
    assert sorted(given) == [0, 2]


def test_there_is_an_end_to_patience() -> None:
    patience = Patience(retries=100, first_wait=0.05, longest_wait=0.05, deadline=0.5)
    with faulty_server(lambda *_: status(500)) as web:
        start = time.monotonic()
        with pytest.raises(ServerError, match=r"the time of 0\.5 s is over"):
            Server(web.url, concurrency=2, patience=patience).chat_all(_requests())
        assert time.monotonic() - start < 2


@pytest.mark.parametrize(
    ("code", "remedy"), [(400, "too long"), (401, "--key"), (403, "--key"), (404, "the model's")]
)
def test_refusals_are_not_asked_again(code: int, remedy: str) -> None:
    with faulty_server(lambda *_: status(code, "no, thank you")) as web:
        with pytest.raises(RequestError, match="no, thank you") as caught:
            Server(web.url, concurrency=1, patience=QUICK).chat_all(_requests())
        assert len(web.seen) == 1
    assert caught.value.exit_code == 2
    assert remedy in str(caught.value.remedy)


# -- prompts that are refused --------------------------------------------------------------

TOO_LONG = "This model's maximum context length is 32 tokens. However, you requested 47."


def _refusing(which: Callable[[str], bool], fault: Fault) -> Callable[..., Fault | None]:
    return lambda _, body: fault if which(last_text(body)) else None


@pytest.mark.parametrize("first", [0, 5], ids=["at first", "later"])
@pytest.mark.parametrize("code", [400, 413, 422, 500])
def test_a_prompt_that_alone_is_refused_does_not_end_it(code: int, first: int) -> None:
    bad = set(PROMPTS[first : first + 2])
    patience = Patience(retries=1, first_wait=0.01)
    with faulty_server(_refusing(bad.__contains__, status(code, TOO_LONG))) as web:
        server = Server(web.url, concurrency=1, patience=patience)
        outcomes = dict(server.outcomes(_requests(n=2, max_tokens=9, stop=("x",))))
    refused = {PROMPTS[i]: o for i, o in outcomes.items() if isinstance(o, RefusedPrompt)}
    assert set(refused) == bad
    assert all(f"{code}: {TOO_LONG}" in outcome.message for outcome in refused.values())
    assert [place for place, outcome in outcomes.items() if isinstance(outcome, Reply)] == [
        place for place in range(12) if PROMPTS[place] not in bad
    ]
    assert server.asked == 10
    controls = [request.body for request in web.seen if last_text(request.body) == "Hello"]
    # What answered once is known to; of a server that breaks it is asked each time.
    assert len(controls) == (2 if code == 500 else 1 if first == 0 else 0)
    assert all(body["max_tokens"] == 9 and body["stop"] == ["x"] for body in controls)


def test_what_concerns_every_request_ends_it_at_once() -> None:
    with faulty_server(lambda *_: status(400, "no such setting")) as web:
        server = Server(web.url, concurrency=1, patience=QUICK)
        with pytest.raises(RequestError, match="no such setting") as caught:
            list(server.outcomes(_requests()))
        assert not isinstance(caught.value, RefusedPrompt)
        assert [last_text(request.body) for request in web.seen] == ["prompt 0", "Hello"]
    for code in (401, 403, 404):
        with faulty_server(lambda *_, code=code: status(code)) as web:
            with pytest.raises(RequestError):
                list(Server(web.url, concurrency=1, patience=QUICK).outcomes(_requests()))
            assert len(web.seen) == 1


def test_texts_say_nothing_about_conversations() -> None:
    """A model without a template continues texts, and refuses every conversation."""
    chats = [Request((Message("user", prompt),)) for prompt in PROMPTS[:3]]
    no_template = status(400, "there is no chat template")
    with faulty_server(lambda _, body: no_template if "messages" in body else None) as web:
        server = Server(web.url, concurrency=1, patience=QUICK)
        given: dict[int, Any] = {}
        with pytest.raises(RequestError, match="no chat template"):
            given.update(server.outcomes([*_requests()[:3], *chats]))
        assert sorted(given) == [0, 1, 2]
        assert len(web.seen) == 5


def test_a_server_that_breaks_down_on_a_prompt_stops_all() -> None:
    def breaks(number: int, body: dict[str, Any]) -> Fault | None:
        return status(500, "out of memory") if number >= 4 else None

    with faulty_server(breaks) as web:
        server = Server(web.url, concurrency=1, patience=Patience(retries=1, first_wait=0.01))
        given: dict[int, Any] = {}
        with pytest.raises(ServerError, match="out of memory") as caught:
            given.update(server.outcomes(_requests()))
    assert (sorted(given), caught.value.exit_code) == ([0, 1, 2, 3], 1)
    assert [last_text(request.body) for request in web.seen[4:]] == ["prompt 4"] * 2 + ["Hello"]


def test_many_refusals_at_once_ask_one_control() -> None:
    even = _refusing(lambda prompt: prompt in PROMPTS[::2], status(400, TOO_LONG))
    with faulty_server(even) as web:
        server = Server(web.url, concurrency=12, patience=QUICK)
        outcomes = dict(server.outcomes(_requests()))
    assert [isinstance(outcomes[i], Reply) for i in range(12)] == [False, True] * 6
    assert sum(last_text(request.body) == "Hello" for request in web.seen) <= 1


@pytest.mark.parametrize(
    ("document", "tries"),
    [
        ({"error": {"message": "slow down", "code": 429}}, 3),
        ({"error": {"message": "something"}}, 3),
        ({"error": "something"}, 3),
        ({"object": "error", "message": "too long", "type": "x", "code": 400}, 1),
        ({"error": {"message": "no money", "code": "insufficient_quota"}}, 1),
    ],
)
def test_an_error_with_status_200_is_an_error(document: Any, tries: int) -> None:
    patience = Patience(retries=2, first_wait=0.01)
    with faulty_server(lambda *_: saying(document)) as web:
        with pytest.raises(ServerError) as caught:
            Server(web.url, patience=patience).chat(Request("Once"))
        assert len(web.seen) == tries
    error = document.get("error", document)
    assert (error if isinstance(error, str) else error["message"]) in str(caught.value)


def test_what_a_server_cannot_do_it_cannot_do_later() -> None:
    with faulty_server(lambda *_: status(501, "no logprobs here")) as web:
        with pytest.raises(RequestError, match="501: no logprobs here"):
            Server(web.url, patience=QUICK).chat(Request("Once"))
        assert len(web.seen) == 1


def test_answers_that_a_server_gave_up_are_asked_again() -> None:
    half = {"choices": [{"text": "It was a", "finish_reason": "abort"}]}
    with faulty_server([saying(half)]) as web:
        reply = Server(web.url, patience=QUICK).chat(Request("Once"))
    assert (reply.text, len(web.seen)) == ("answer 0 to Once", 2)


def test_a_key_is_sent_and_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_KEY", "sk-very-secret")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-somebody-else")
    with faulty_server(key="sk-very-secret") as web:
        server = Server(web.url, key="TEST_KEY", patience=QUICK)
        assert server.chat(Request("Once")).text == "answer 0 to Once"
        assert "secret" not in repr(server) + repr(server.identity())
    with faulty_server(key="another") as web:
        with pytest.raises(RequestError, match="401") as caught:
            Server(web.url, "tiny", key="TEST_KEY", patience=QUICK).chat(Request("Once"))
        assert "wrong key …" in str(caught.value)
        assert "secret" not in str(caught.value)
        with pytest.raises(RequestError, match="wrong key none"):  # no key of another server
            Server(web.url, patience=QUICK).chat(Request("Once"))


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("localhost:8000",), {}, "not the URL"),
        (("http://me:pass@localhost:8000",), {}, "password"),
        (("http://localhost/v1?key=pass",), {}, "password"),
        (("http://localhost:8000",), {"key": "NO_SUCH_VARIABLE"}, "environment variable"),
        (("http://localhost:8000",), {"concurrency": 0}, "at least 1"),
        (("http://localhost:8000",), {"kind": "gpt"}, "no kind of server"),
    ],
)
def test_wrong_settings(arguments: Any, options: Any, message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        Server(*arguments, **options)
    assert "pass@" not in str(caught.value) and "=pass" not in str(caught.value)


def test_nobody_there_is_said_soon() -> None:
    with pytest.raises(ServerError, match="no connection") as caught:
        Server("http://127.0.0.1:9", patience=QUICK).chat(Request("Once"))
    assert "http://127.0.0.1:9/v1" in str(caught.value)


def test_the_model_is_the_only_one_or_named() -> None:
    two = ({"id": "a"}, {"id": "b"})
    with faulty_server(models=two) as web:
        with pytest.raises(RequestError, match="2 models") as caught:
            Server(web.url, patience=QUICK).chat(Request("Once"))
        assert caught.value.value == "a, b"
        assert Server(web.url, "b", patience=QUICK).chat(Request("Once")).model == "b"
        with pytest.raises(RequestError, match="no model c"):
            Server(web.url, "c", patience=QUICK).chat(Request("Once"))
    for code in (404, 405, 500):  # has no such page, or one that breaks
        with faulty_server(models=None, no_models=code) as web:
            assert Server(web.url, "x", patience=QUICK).chat(Request("Once")).model == "x"
            with pytest.raises(ServerError, match=str(code)):
                Server(web.url, patience=QUICK).chat(Request("Once"))
    with faulty_server(models=None, no_models=403) as web, pytest.raises(RequestError, match="403"):
        Server(web.url, "x", patience=QUICK).chat(Request("Once"))


def test_identity_is_what_lasts() -> None:
    entry = {"id": "m", "owned_by": "vllm", "root": "org/m", "meta": {"n_params": 7}}
    passing = {"created": time.time(), "permission": [{"id": "random"}], "max_model_len": 4096}
    served = ({**entry, **passing, "meta": {"n_params": 7, "n_ctx": 512}},)
    with faulty_server(models=served) as web:
        server = Server(web.url + "/", patience=QUICK)
        assert server.identity() == {
            "url": web.url, "model": "m", "kind": "vllm", "served": entry,
        }  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("other", {}),
        ("vllm", {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}),
        ("sglang", {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0}),
        ("llama.cpp", {"top_k": 0, "min_p": 0.0, "repeat_penalty": 1.0}),
        (
            "transformers",
            {
                "generation_config": '{"do_sample": true, "temperature": 1.0, "top_p": 1.0, '
                '"top_k": 0, "max_new_tokens": 128}'
            },
        ),
    ],
)
def test_servers_are_told_not_to_choose_a_distribution(kind: str, fields: dict[str, Any]) -> None:
    plain = body_of(Request("x"), "m", "openai")
    assert body_of(Request("x"), "m", kind) == {**plain, **fields}
    if kind != "transformers":
        assert body_of(Request("x", top_k=7), "m", kind)["top_k"] == 7
    assert body_of(Request("x", extra={"min_p": 0.5}), "m", kind)["min_p"] == 0.5


def test_log_probabilities_of_both_endpoints() -> None:
    with faulty_server() as web:
        server = Server(web.url, patience=QUICK)
        chat = server.chat(Request((Message("user", "Hi"),), top_logprobs=2)).answers[0]
        text = server.chat(Request("Hi", top_logprobs=2)).answers[0]
    assert chat.tokens == text.tokens
    assert chat.tokens is not None
    assert [token.text for token in chat.tokens] == ["answer", "0", "to", "Hi"]
    assert chat.tokens[0].top == {"answer": -0.6931471805599453, "x": -2.0}
    assert chat.logp == pytest.approx(-4 * 0.6931471805599453)


def test_tokens_that_read_alike_count_together() -> None:
    """A letter and the byte of it: the second, which is rare, does not replace the first."""
    tops = [{"token": "A", "logprob": -0.5}, {"token": "A", "logprob": -9.0}]
    content = [{"token": "A", "logprob": -0.5, "top_logprobs": tops}]
    choice = {"message": {"content": "A"}, "logprobs": {"content": content}}
    with faulty_server([saying({"choices": [choice]})]) as web:
        chat = (Message("user", "A or B?"),)
        answer = Server(web.url, patience=QUICK).chat(Request(chat, top_logprobs=2)).answers[0]
    assert answer.tokens is not None
    assert answer.tokens[0].top == {"A": pytest.approx(math.log(math.exp(-0.5) + math.exp(-9.0)))}


def test_servers_that_give_one_answer_at_a_time() -> None:
    with faulty_server(most=1) as web:
        server = Server(web.url, concurrency=1, patience=QUICK)
        replies = server.chat_all([Request("a", n=3, seed=7), Request("b", n=2, seed=20)])
    assert [len(reply.answers) for reply in replies] == [3, 2]
    asked = [(s.body["prompt"], s.body["seed"], s.body.get("n", 1)) for s in web.seen]
    assert asked == [("a", 7, 3), ("a", 8, 1), ("a", 9, 1), ("b", 20, 1), ("b", 21, 1)]
    assert replies[0].completion_tokens == 3


def test_answers_that_would_share_a_seed_are_asked_for_one_by_one() -> None:
    """SGLang gives all n answers the seed of the request: they would be the same."""
    with faulty_server(models=({"id": "m", "owned_by": "sglang"},)) as web:
        server = Server(web.url, concurrency=1, patience=QUICK)
        reply = server.chat(Request("a", n=3, seed=7))
    assert len(reply.answers) == 3
    assert [(s.body["seed"], s.body.get("n", 1)) for s in web.seen] == [(7, 1), (8, 1), (9, 1)]


@pytest.mark.parametrize(
    ("owner", "kind"),
    [("llamacpp", "llama.cpp"), ("me", "llama.cpp"), ("vllm", "vllm"), ("acme", "other")],
)
def test_servers_say_what_they_are(owner: str, kind: str) -> None:
    with faulty_server(models=({"id": "m", "owned_by": owner},)) as web:
        assert Server(web.url, patience=QUICK).kind == kind


def test_servers_that_refuse_several_answers() -> None:
    def one_only(_: int, body: dict[str, Any]) -> Fault | None:
        return status(400, "only one choice") if body.get("n", 1) > 1 else None

    with faulty_server(one_only) as web:
        server = Server(web.url, concurrency=1, patience=QUICK)
        replies = server.chat_all([Request("a", n=3), Request("b", n=2)])
        assert [len(reply.answers) for reply in replies] == [3, 2]
        assert [s.body.get("n", 1) for s in web.seen] == [3, 1, 1, 1, 1, 1]
    with faulty_server(lambda *_: status(400, "bad stop")) as web:
        with pytest.raises(RequestError, match="bad stop"):
            Server(web.url, patience=QUICK).chat(Request("a", n=3))
        assert len(web.seen) == 2


def test_finish_reasons() -> None:
    def choice(**fields: Any) -> dict[str, Any]:
        return {"choices": [{"text": "x", **fields}]}

    documents = [
        choice(finish_reason="stop"),
        choice(finish_reason="length"),
        choice(finish_reason="stop", stop_reason="\n"),
        choice(finish_reason="stop", stop_reason=2),
        choice(finish_reason="stop", matched_stop="\n"),
        choice(finish_reason="content_filter"),
    ]
    with faulty_server([saying(document) for document in documents]) as web:
        server = Server(web.url, concurrency=1, patience=QUICK)
        replies = server.chat_all([Request("a")] * 6)
    assert [reply.answers[0].finish for reply in replies] == [
        "end", "length", "stop", "end", "stop", "filtered",
    ]  # fmt: skip


def test_replies_can_be_left_half_way() -> None:
    with faulty_server() as web:
        web.say = lambda body, index: time.sleep(0.05) or "x"
        coming = Server(web.url, concurrency=2, patience=QUICK).replies(_requests())
        next(coming)
        coming.close()
        seen = len(web.seen)
        time.sleep(0.2)
        assert seen == len(web.seen) <= 5


def _soon(action: Callable[[], None], seconds: float) -> None:
    timer = threading.Timer(seconds, action)
    timer.daemon = True
    timer.start()


def test_ctrl_c_ends_it_quickly() -> None:
    given: dict[int, Reply] = {}
    slow = Patience(timeout=60)
    with faulty_server(lambda number, _: hanging(20) if number > 2 else None) as web:
        server = Server(web.url, concurrency=2, patience=slow)
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        here = threading.get_ident()
        _soon(lambda: signal.pthread_kill(here, signal.SIGINT), 0.7)
        start = time.monotonic()
        try:
            with pytest.raises(KeyboardInterrupt):
                server.chat_all(_requests(), given.__setitem__)
        finally:
            signal.signal(signal.SIGINT, before)
        assert time.monotonic() - start < 3
    assert len(given) == 3


def test_inside_a_running_event_loop() -> None:
    import asyncio

    async def notebook(url: str) -> str:
        return Server(url, patience=QUICK).chat(Request("Once")).text

    with faulty_server() as web:
        assert asyncio.run(notebook(web.url)) == "answer 0 to Once"


def test_an_error_of_who_receives_the_replies_ends_it() -> None:
    def full(position: int, reply: Reply) -> None:
        raise OSError("no space left")

    with faulty_server() as web, pytest.raises(OSError, match="no space"):
        Server(web.url, concurrency=1, patience=QUICK).chat_all(_requests(), full)
