"""Models that `prefopt evaluate` asks: in whose order, refused at once, and nothing asked twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.faulty_server import Fault, faulty_server, hanging, status

Call = Callable[..., tuple[int, str, str]]
PROMPTS = [f"p{number}" for number in range(6)]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS))
    return path


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = tmp_path / "base.jsonl"
    rows = [{"prompt": prompt, "completion": "no"} for prompt in PROMPTS]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_of_two_policies_the_second_is_the_baseline_whatever_they_are(
    call: Call, base: Path
) -> None:
    with faulty_server() as web:
        for given in (
            (f"ours={web.url}", base), (base, f"ours={web.url}"),
        ):  # fmt: skip
            code, out, err = call("evaluate", *given, "--judge", "longest", "--json")
            assert code == 0, err
            result = json.loads(out)
            names = [str(one).split("=")[0].replace(str(base), "base") for one in given]
            (found,) = result["comparisons"]
            assert [found["policy"], found["baseline"]] == names
            assert [row["policy"] for row in result["policies"]] == names
            assert found["rate"]["value"] == (1.0 if names[0] == "ours" else 0.0)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["a=URL"], "there must be two"),
        (["a=URL", "b=URL", "--baseline", "nobody"], "no policy has the name"),
        (["a=URL", "a=URL"], "two policies called 'a'"),
        (["URL", "server:URL"], "two policies called 'tiny'"),
        (["base=URL", "BASE"], "two policies called 'base'"),
        (["a=URL", "b=./nowhere"], "nowhere"),
        (["a=URL", "b=."], "a folder without a model"),
    ],
)
def test_nobody_is_asked_before_all_is_known_to_be_there(
    call: Call, prompts: Path, base: Path, given: list[str], said: str
) -> None:
    with faulty_server() as web:
        arguments = [one.replace("URL", web.url).replace("BASE", str(base)) for one in given]
        code, _, err = call("evaluate", *arguments, "--prompts", prompts, "--judge", "longest")
        assert (code, said in err) == (2, True), err
        assert web.seen == []


def test_what_a_model_answered_is_kept_and_not_asked_again(
    call: Call, prompts: Path, base: Path, tmp_path: Path
) -> None:
    failing = [True]

    def after_four(number: int, _: dict[str, Any]) -> Fault | None:
        return status(400, "no more") if failing[0] and number >= 4 else None

    with faulty_server(after_four) as web:
        arguments = ("evaluate", f"ours={web.url}", base, "--judge", "longest",
                     "--cache", tmp_path / "kept", "--json")  # fmt: skip
        code, out, _ = call(*arguments)
        assert code == 2
        assert "prompts are answered, and kept" in json.loads(out)["error"]["message"]
        before = Counter(web.answered)
        assert 0 < len(before) < 6
        failing[0] = False
        code, out, err = call(*arguments)
        assert code == 0, err
        assert Counter(web.answered) == Counter(PROMPTS)
        result = json.loads(out)
        assert json.loads(call(*arguments)[1])["comparisons"] == result["comparisons"]
        assert Counter(web.answered) == Counter(PROMPTS)
        # other settings are other answers; more prompts are only those
        more = tmp_path / "more.jsonl"
        more.write_text(json.dumps({"prompt": "p0"}) + "\n" + json.dumps({"prompt": "new"}) + "\n")
        asked = len(web.answered)
        again = ("evaluate", f"a={web.url}", f"b={web.url}", "--judge", "longest", "--prompts",
                 more, "--cache", tmp_path / "kept")  # fmt: skip
        code, _, err = call(*again)
        assert code == 0, err
        assert web.answered[asked:] == ["new"]
        assert call(*again, "--temperature", "0.5")[0] == 0
        assert Counter(web.answered[asked:]) == Counter({"new": 2, "p0": 1})


def test_a_policy_that_was_trained_on_is_asked_again(
    call: Call, save_policy: Callable[..., Path], prompts: Path, base: Path, tmp_path: Path
) -> None:
    folder = save_policy("llama", seed=1)
    kept = tmp_path / "kept"
    arguments = ("evaluate", f"ours={folder}", base, "--judge", "longest", "--max-new-tokens", "6",
                 "--device", "cpu", "--cache", kept, "--verdicts", tmp_path / "v.jsonl",
                 "--json")  # fmt: skip

    def texts() -> list[str]:
        code, _, err = call(*arguments)
        assert code == 0, err
        lines = (tmp_path / "v.jsonl").read_text().splitlines()
        return [json.loads(line)["response_a"] for line in lines]

    first = texts()
    assert texts() == first
    assert len(list((kept / "answers").iterdir())) == 1
    other = save_policy("llama", seed=2)
    (folder / "model.safetensors").write_bytes((other / "model.safetensors").read_bytes())
    assert texts() != first
    assert len(list((kept / "answers").iterdir())) == 2


def test_a_killed_evaluation_goes_on(prompts: Path, base: Path, tmp_path: Path) -> None:
    """SIGKILL while the fourth answer is awaited, one request at a time or many."""
    slow = [True]

    def until(number: int, _: dict[str, Any]) -> Fault | None:
        return hanging(20) if slow[0] and number >= 3 else None

    with faulty_server(until) as web:
        out = tmp_path / "page.html"
        command = [sys.executable, "-m", "prefopt", "evaluate", f"ours={web.url}", str(base),
                   "--judge", "longest", "--cache", str(tmp_path / "kept"), "--out", str(out),
                   "--json"]  # fmt: skip
        child = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.DEVNULL, start_new_session=True
        )
        try:
            deadline = time.monotonic() + 60
            while _kept_lines(tmp_path) < 3:
                assert time.monotonic() < deadline and child.poll() is None
                time.sleep(0.05)
        finally:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        assert not out.exists()
        slow[0] = False
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        assert json.loads(done.stdout)["matches"] == 6
        assert Counter(web.answered) == Counter(PROMPTS)
        assert out.exists()


def _kept_lines(folder: Path) -> int:
    files = (folder / "kept" / "answers").glob("*.jsonl")
    return max((path.read_bytes().count(b"\n") - 1 for path in files), default=0)
