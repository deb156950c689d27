"""docs/labelling.md is true: its commands, one after the other, with people in between."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from prefopt.data.formats import read_groups
from tests.served import Visitor
from tests.test_docs import ROOT, commands

PAGE = ROOT / "docs" / "labelling.md"
POOL = {
    "How do I bake bread?": ("No.", "Mix flour, water, salt and yeast, then wait.", "Wait."),
    "Name a colour.": ("Blue is the colour of the sky.", "The film was dull."),
    "Please tell me about Oslo.": ("Oslo is on a fjord.", "I cannot help with that."),
}


@contextlib.contextmanager
def serving(arguments: list[str]) -> Iterator[dict[str, Any]]:
    """The command in a process of its own; what it says once the page can be opened."""
    process = subprocess.Popen(
        [sys.executable, "-m", "prefopt", *arguments, "--port", "0", "--json"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise AssertionError(process.communicate()[1].decode())
        yield json.loads(line)
        os.killpg(process.pid, signal.SIGINT)
        rest, said = process.communicate(timeout=30)
        assert (process.returncode, rest) == (130, b""), said.decode()  # one object, not two
        assert b"Traceback" not in said and b"every answer" in said
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def votes(token: str, port: int, task: str) -> int:
    """Answer everything: the longer text is better, and somebody's time is short."""
    visitor, count = Visitor(port), 0
    assert visitor.enter(token).status == 303
    question = visitor.question(task)
    while "lease" in question:
        left, right = len(question["left"]), len(question["right"])
        reply = visitor.answer(task, question, "left" if left > right else "right", seconds="2.5")
        assert reply.status == 200, reply.text
        question, count = reply.json["next"], count + 1
    visitor.close()
    return count


def test_the_page_leads_from_a_pool_to_a_policy(
    save_policy: Callable[..., Path],
    call: Callable[..., tuple[int, str, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    save_policy("llama").rename(tmp_path / "model")
    rows = [{"prompt": prompt, "completions": [{"text": text} for text in texts]}
            for prompt, texts in POOL.items()]  # fmt: skip
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "guidelines.md").write_text("Longer is **better**.")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```sh\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.S | re.M)
    (first, *rest) = [arguments for block in blocks for arguments in commands(block)]
    assert first[:2] == ["label", "serve"]
    done: dict[str, dict[str, Any]] = {}
    with serving(first) as room:
        assert (room["task"], room["new"], room["db"]) == ("samples", 5, "sqlite:///labels.db")
        tokens: dict[str, str] = {}
        for arguments in rest:
            verb = " ".join(arguments[:2])
            if verb == "label add-annotator":
                arguments = [*arguments, "--url", room["url"]]
            if verb == "label status":
                port = int(room["url"].rpartition(":")[2])
                counts = [votes(tokens[name], port, "samples") for name in ("ann", "bob")]
                assert min(counts) >= 5  # and repetitions
            code, out, err = call(*arguments, "--json")
            assert code == 0, (arguments, err, out)
            said = done[verb] = json.loads(out)
            if verb == "label add-annotator":
                tokens[said["annotator"]] = said["link"].rpartition("/")[2]
                assert said["role"] == ("lead" if said["annotator"] == "lea" else "annotator")
    (task,) = done["label status"]["tasks"]
    assert (task["progress"]["votes"], task["progress"]["done"]) == (10, 5)
    assert task["agreement"]["agreed"] == task["agreement"]["compared"] == 5
    assert {one["self"]["share"] for one in task["annotators"]} <= {None, 1.0}
    assert (done["label export"]["votes"], done["label export"]["groups"]) == (10, 3)
    # what was better stands first, with the share of the votes
    for path, sure in (("votes/comparisons.jsonl", 2.5 / 3), ("voted.jsonl", 0.9)):
        groups = list(read_groups(path))
        assert [len(group.comparisons) for group in groups] == [3, 1, 1]
        for group in groups:
            for edge in group.comparisons:
                better, worse = (
                    group.completions[n].text for n in (edge.preferred, edge.dispreferred)
                )
                assert len(better) > len(worse) and edge.probability >= sure - 1e-9
    for run in ("labelled", "reliable"):
        assert (tmp_path / "runs" / run / "manifest.json").exists()
        assert (tmp_path / "runs" / run / "model" / "config.json").exists()
    assert done["label import"]["tasks"][0]["events"] == done["label export"]["events"]
    assert done["aggregate votes/votes.jsonl"]["method"] == "dawid-skene"


def test_the_page_names_options_that_there_are() -> None:
    from prefopt.cli.app import app

    text = PAGE.read_text(encoding="utf-8")
    known = set()
    for verb in ("serve", "demo", "add-annotator", "status", "export", "import", "backup"):
        collected = app["label"][verb].assemble_argument_collection()
        known |= {name for argument in collected for name in argument.names}
    others = {"--json", "--compare", "--method", "--out", "--reference", "--data", "--features",
              "--scores", "--count", "--model"}  # fmt: skip
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text))
    assert named - known - others == set()
