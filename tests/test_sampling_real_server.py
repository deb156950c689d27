"""A server that others wrote, `transformers serve`: what is asked of it and what is read."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from prefopt.data.formats import read_groups
from prefopt.records import Message
from prefopt.rounds.loop import run_rounds
from prefopt.rounds.settings import make_rounds
from prefopt.runs import fingerprint_file
from prefopt.sampling.sampler import make_sampler
from prefopt.sampling.settings import Settings
from tests.small_loop import small_loop

pytest.importorskip("fastapi", reason="transformers serve needs fastapi")

Serve = Callable[[Path], str]
ENGINE = "import sys; from transformers.cli.transformers import main; sys.exit(main())"


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Serve a model's folder in another process; its URL."""
    processes = []

    def begin(folder: Path) -> str:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = (sys.executable, "-c", ENGINE, "serve", str(folder))
        log = tmp_path / "serve.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*command, "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"],
                stdout=output, stderr=output,
                env={**os.environ, "HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"},
            )  # fmt: skip
        processes.append(process)
        url = f"http://127.0.0.1:{port}"
        end = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < end:
            try:
                with urlopen(f"{url}/health"):
                    return url
            except (URLError, ConnectionError):
                time.sleep(0.2)
        raise AssertionError(f"the server did not begin: {log.read_text()[-2000:]}")

    yield begin
    for process in processes:
        process.kill()
        process.wait()


def test_it_answers_as_the_policy_does_here(tiny_policy_folder: Path, serve: Serve) -> None:
    url = serve(tiny_policy_folder)
    # Its seeds are of the process: they hold for who asks one thing after the other.
    there = make_sampler({"server": url, "model": str(tiny_policy_folder), "concurrency": 1})
    here = make_sampler({"policy": str(tiny_policy_folder), "device": "cpu"})
    prompts = ["The film was", "Name a colour.", (Message("user", "How do I bake bread?"),)]
    assert there.identity()["kind"] == "transformers"

    greedy = Settings(1, 12, temperature=0.0)
    local = here.sample_all(prompts, greedy)
    assert [[s.text for s in own] for own in there.sample_all(prompts, greedy)] == [
        [s.text for s in own] for own in local
    ]

    drawn = there.sample_all(prompts, Settings(3, 12, seed=1))
    assert [len(own) for own in drawn] == [3, 3, 3]
    assert all(len({sample.text for sample in own}) == 3 for own in drawn)
    assert all(s.text != local[place][0].text for place, own in enumerate(drawn) for s in own)
    assert there.sample_all(prompts[1:2], Settings(3, 12, seed=1)) == drawn[1:2]


def test_it_judges_rounds(
    save_policy: Callable[..., Path], tiny_policy_folder: Path, serve: Serve, tmp_path: Path
) -> None:
    judge = a_judge_of_letters(save_policy("llama", seed=3, max_position_embeddings=4096))
    url = serve(judge)
    settings = {
        **small_loop(tmp_path, tiny_policy_folder),
        "judge": {
            "kind": "server", "url": url, "model": str(judge), "mode": "text",
            "temperature": 1.0, "max_new_tokens": 4, "concurrency": 1,
        },
    }  # fmt: skip
    out = Path(settings["out"])
    found = run_rounds(make_rounds(settings), progress=False)
    assert found["state"] == "done" and len(found["rounds"]) == 2
    judged = [entry["judge"] for entry in found["rounds"]]
    assert all(one["asked"] == 6 and one["unread"] == 0 for one in judged)
    said = [
        comparison
        for number in (1, 2)
        for group in read_groups(
            [str(Path(settings["out"]) / f"round-{number}/judge/judged.jsonl")]
        )
        for comparison in group.comparisons
    ]
    assert {edge.probability for edge in said} == {0.5, 1.0}  # tossed twice: half are ties
    model = out / "round-2" / "train" / "model" / "model.safetensors"
    before = fingerprint_file(model), (out / "rounds.json").read_text()
    again = run_rounds(make_rounds(settings), progress=False)
    assert again["history"] == json.loads(before[1])["history"]
    assert fingerprint_file(model) == before[0]


def a_judge_of_letters(folder: Path) -> Path:
    """The model there, with weights by hand: it says A or B, by the toss of a coin, and ends.

    Its layers add nothing, so the next token depends on the last one alone: after a letter comes
    the end, and after anything else a letter.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    letters = [tokenizer.encode(letter, add_special_tokens=False)[0] for letter in "AB"]
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        words, head = model.model.embed_tokens.weight, model.lm_head.weight
        words.zero_()
        head.zero_()
        words[:, 0] = 1.0
        words[letters] = torch.eye(words.shape[1])[1]
        head[letters, 0] = 10.0
        head[tokenizer.eos_token_id, 1] = 10.0
    model.save_pretrained(folder)
    return folder
