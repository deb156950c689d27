"""A real model behind OpenAI's protocol judges: by what it finds probable, as it would here."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from prefopt.data.formats import read_groups
from prefopt.judges.judge import Question
from prefopt.judges.table import make_judge
from prefopt.records import Message
from prefopt.rounds.loop import run_rounds
from prefopt.rounds.settings import load_rounds
from tests.faulty_server import JsonHandler
from tests.small_loop import small_loop


def next_token(policy: Any, body: dict[str, Any]) -> dict[str, Any]:
    """The choice of a request for one token of a chat, with the log-probability of every token."""
    import torch

    from prefopt.engine.tokens import Encoder

    said = tuple(Message(turn["role"], turn["content"]) for turn in body["messages"])
    encoder = Encoder(policy.tokenizer, end_of_turn=policy.end_of_turn)
    ids = torch.from_numpy(encoder.prompt_ids(said)).long()[None]
    with torch.no_grad():
        logps = policy.model(ids).logits[0, -1].log_softmax(-1).tolist()
    every = sorted(
        ({"token": policy.tokenizer.decode([token]), "logprob": logp}
         for token, logp in enumerate(logps)),
        key=lambda one: -one["logprob"],
    )  # fmt: skip
    best = {**every[0], "top_logprobs": every}  # more than were asked for, as some servers give
    content = {"role": "assistant", "content": best["token"]}
    return {"index": 0, "finish_reason": "length", "message": content,
            "logprobs": {"content": [best]}}  # fmt: skip


@pytest.fixture
def judging(save_policy: Callable[..., Path]) -> Iterator[tuple[Path, str, list[dict[str, Any]]]]:
    """A model's folder, the URL where it is served, and what was asked there."""
    from prefopt.policies.load import load_policy

    folder = save_policy("llama", seed=5, max_position_embeddings=4096)
    policy, lock, asked = load_policy(folder, device="cpu"), threading.Lock(), list[Any]()

    class Handler(JsonHandler):
        def do_GET(self) -> None:
            self.say(200, {"data": [{"id": "judge-model", "owned_by": "us"}]})

        def do_POST(self) -> None:
            body = self.body()
            with lock:
                asked.append(body)
                choice = next_token(policy, body)
            self.say(200, {"model": "judge-model", "choices": [choice]})

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield folder, f"http://127.0.0.1:{http.server_address[1]}", asked
    http.shutdown()
    http.server_close()
    thread.join()


def test_a_served_model_says_what_it_says_here(judging: tuple[Path, str, list[Any]]) -> None:
    folder, url, asked = judging
    questions = [Question("Which?", f"It is {n}.", "It is blue.") for n in range(3)]
    how = {"mode": "logprobs", "rubric": "pairwise"}
    there = make_judge({"server": url, **how}).compare_all(questions)
    here = make_judge({"lm": str(folder), **how}, device="cpu").compare_all(questions)
    assert len(asked) == 2 * len(questions) and asked[0]["max_tokens"] == 1
    for served, local in zip(there, here, strict=True):
        assert served.transcript["orders"] == pytest.approx(local.transcript["orders"], abs=1e-4)
        assert served.probability == pytest.approx(local.probability, abs=1e-4)
    assert len({round(verdict.probability or 0, 6) for verdict in here}) == 3


def test_rounds_are_judged_by_a_served_model(
    judging: tuple[Path, str, list[Any]], tmp_path: Path, tiny_policy_folder: Path
) -> None:
    """`judge: {server: URL}`: the comparisons are the model's, and it is asked nothing twice."""
    folder, url, asked = judging
    how = {"mode": "logprobs", "rubric": "pairwise"}
    settings = {
        **small_loop(tmp_path, tiny_policy_folder), "judge": {"server": url, **how}, "rounds": 2,
        "select": {"per_prompt": 2},
    }  # fmt: skip
    settings["evaluate"] = {"count": 8, "agreement": 2}  # by the judge of the rounds
    path = tmp_path / "rounds.yaml"
    path.write_text(json.dumps(settings))
    document = run_rounds(load_rounds(path), progress=False)
    assert document["state"] == "done" and len(document["history"]) == 3
    assert [entry["judge"]["judge"] for entry in document["rounds"]] == ["server:judge-model"] * 2
    told = [json.dumps(body["messages"]) for body in asked]
    assert len(told) == len(set(told)) > 2 * 12
    local = make_judge({"lm": str(folder), **how}, device="cpu")
    for number in (1, 2):
        pairs = Path(settings["out"]) / f"round-{number}/judge/pairs.jsonl"
        groups = list(read_groups([str(pairs)]))
        assert len(groups) > 4
        for group in groups:
            for edge in group.comparisons:
                better, worse = (
                    group.completions[i].text for i in (edge.preferred, edge.dispreferred)
                )
                (verdict,) = local.compare_all([Question(group.prompt, better, worse)])
                assert verdict.probability == pytest.approx(edge.probability, abs=1e-4)
                assert edge.probability > 0.5
    before = len(asked)
    assert run_rounds(load_rounds(path), progress=False)["history"] == document["history"]
    assert len(asked) == before
