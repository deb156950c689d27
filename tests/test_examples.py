"""The Anthropic HH example runs as its README says, on rows made here."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "hh_harmless"
WORDS = "please tell me how can I bake bread with warm milk and a little salt today".split()
TINY_MODEL = ["--vocabulary", "320", "--hidden", "32", "--layers", "1"]
ONE_STEP = ["--max-steps", "2", "--eval-every", "1"]


def hh_rows(count: int) -> list[dict[str, str]]:
    """Transcripts whose preferred answer is polite, and two rows that the reader must refuse."""
    draw = random.Random(0)

    def say() -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(3, 12)))

    rows = []
    for index in range(count):
        turns = f"\n\nHuman: {index} {say()}"
        if index % 3 == 0:
            turns += f"\n\nAssistant: {say()}\n\nHuman: {say()}"
        sides = {"chosen": f"Gladly. {say()}", "rejected": f"No! {say()}"}
        rows.append({side: f"{turns}\n\nAssistant: {text}" for side, text in sides.items()})
    rows.append(
        {"chosen": "\n\nHuman: a\n\nAssistant: ", "rejected": "\n\nHuman: a\n\nAssistant: b"}
    )
    rows.append(
        {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: c\n\nAssistant: d"}
    )
    return rows


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The README's commands, one after the other, with a model and runs of toy size."""
    folder = tmp_path_factory.mktemp("hh")
    rows = hh_rows(60)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    outputs = {}
    for words in commands():
        words = ["rows.jsonl" if word == "harmless_base.jsonl.gz" else word for word in words]
        name = words[1] if words[0] == "prefopt" else Path(words[1]).stem
        words += {"prepare": TINY_MODEL, "train": ONE_STEP, "score": ["--json"]}.get(name, [])
        outputs[f"{name} {Path(words[2]).name}"] = run(folder, words)
    return {"folder": folder, "outputs": outputs}


def commands() -> list[list[str]]:
    """What the README tells to type, from the folder that has `examples`."""
    blocks = re.findall(r"```bash\n(.*?)```", (EXAMPLE / "README.md").read_text(), re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [line.split() for line in lines if line and not line.startswith("#")]


def run(folder: Path, words: list[str]) -> str:
    words = [str(EXAMPLE.parent.parent / w) if w.startswith("examples/") else w for w in words]
    program = {"prefopt": ["-m", "prefopt"], "python": []}[words[0]]
    command = [sys.executable, *program, *words[1:]]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{words}\n{done.stderr}"
    return done.stdout


def test_the_readme_says_everything(example: dict[str, Any]) -> None:
    assert list(example["outputs"]) == [
        "prepare rows.jsonl",
        "train sft.yaml",
        "train dpo.yaml",
        "score model",
        "summarise heldout-scores.jsonl",
    ]


def test_rows_that_do_not_split_are_counted(example: dict[str, Any]) -> None:
    prepared = json.loads(example["outputs"]["prepare rows.jsonl"])
    assert prepared["rows"] == 62
    assert prepared["skipped"] == {"empty_completion": 1, "prompt_mismatch": 1}
    assert sum(split["comparisons"] for split in prepared["splits"].values()) == 60
    assert all(split["comparisons"] > 0 for split in prepared["splits"].values())


def test_no_conversation_is_in_two_splits(example: dict[str, Any]) -> None:
    beginnings = []
    for name in ("train", "dev", "heldout"):
        lines = (example["folder"] / f"runs/hh/{name}.jsonl").read_text().splitlines()
        beginnings.append({json.loads(line)["prompt"][0]["content"] for line in lines})
    assert not beginnings[0] & beginnings[1]
    assert not (beginnings[0] | beginnings[1]) & beginnings[2]


def test_the_second_stage_starts_from_the_first(example: dict[str, Any]) -> None:
    runs = example["folder"] / "runs/hh"
    sft, dpo = (json.loads((runs / name / "manifest.json").read_text()) for name in ("sft", "dpo"))
    assert sft["result"]["steps"] == dpo["result"]["steps"] == 2
    assert dpo["policy"]["fingerprint"] == sft["result"]["fingerprint"]
    assert dpo["reference"]["fingerprint"] == sft["result"]["fingerprint"]
    assert (runs / "dpo" / "report.html").stat().st_size > 1000


def test_scores_and_summary_agree(example: dict[str, Any]) -> None:
    scored = json.loads(example["outputs"]["score model"])
    prepared = json.loads(example["outputs"]["prepare rows.jsonl"])
    assert scored["comparisons"] == prepared["splits"]["heldout"]["comparisons"]
    summary = example["outputs"]["summarise heldout-scores.jsonl"]
    low, high = scored["accuracy_interval"]
    line = f"| implicit reward, DPO over SFT | {scored['accuracy']:.4f} | {low:.4f} – {high:.4f} |"
    assert line in summary
    assert f"| the longer answer | {scored['length_baseline']:.4f} |" in summary


def test_an_answer_ends_with_the_end_of_turn(example: dict[str, Any]) -> None:
    """The template's completion is what the model must say, up to its end-of-turn token."""
    from transformers import AutoTokenizer

    from prefopt.data.formats import read_groups
    from prefopt.engine.tokens import Encoder

    tokenizer = AutoTokenizer.from_pretrained(example["folder"] / "runs/hh/model")
    group = next(iter(read_groups(example["folder"] / "runs/hh/heldout.jsonl")))
    (encoded,) = Encoder(tokenizer)([group])
    prompt = tokenizer.decode(encoded.prompt.tolist())
    assert prompt.endswith("\n\nAssistant:")
    answers = [tokenizer.decode(ids.tolist()) for ids in encoded.completions]
    assert answers == [f" {completion.text}<|end|>" for completion in group.completions]
    assert [ids.tolist().count(tokenizer.eos_token_id) for ids in encoded.completions] == [1, 1]
