"""A policy that is trained on its own revised answers does what the constitution says.

A world of 26 words: a prompt names two topics, a helpful answer says something of both, in order,
and ends with a full stop. Two of five answers say "um", one in ten ends with "bye"; neither has
anything to do with being helpful. The whole way is the real one: fine-tuning, samples, `revise`
with a rule that speaks, DPO on what it writes, fresh samples for prompts that were never seen.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from itertools import permutations
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from prefopt.data.formats import read_groups, write_groups
from prefopt.records import Completion, Group

TOPICS = ("sun", "rain", "snow", "wind", "tea", "bread", "salt", "milk", "cat", "dog", "fox", "owl")
ADJECTIVES = ("warm", "cold", "good", "old", "red", "small")
PAIRS = list(permutations(TOPICS, 2))
TEST, TRAIN = PAIRS[::3], [pair for place, pair in enumerate(PAIRS) if place % 3]

CONSTITUTIONS = {
    "no um": ("no-um", "Does it say um?", "Write it again without um."),
    "end with bye": ("bye", "Does it end with bye?", "Write it again and end with bye."),
}
REVISER = """\
import re

def revise(prompt, completion, principle):
    if principle.name == "no-um":
        return re.sub(r" um\\b", "", completion)
    return completion if completion.endswith(" bye") else completion + " bye"
"""


def prompt_of(pair: Sequence[str]) -> str:
    return f"say {pair[0]} {pair[1]} :"


def answer(pair: Sequence[str], rng: random.Random) -> str:
    sentences = [f"{topic} is {rng.choice(ADJECTIVES)} ." for topic in pair]
    if rng.random() < 0.43:
        sentences.insert(rng.randint(0, 2), "um")
    if rng.random() < 0.1:
        sentences.append("bye")
    return "".join(f" {sentence}" for sentence in sentences)


def helpful(prompt: str, completion: str) -> bool:
    """Whether it says something of both topics, in order and to the end, and nothing else."""
    topics = prompt.split()[1:3]
    said = re.sub(r" um\b| bye$", "", completion)
    of = "|".join(ADJECTIVES)
    return re.fullmatch("".join(rf" {topic} is ({of}) \." for topic in topics), said) is not None


def make_model(folder: Path) -> Path:
    """A Llama of two layers that can spell the world's words and knows nothing."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = ["<end>", "<pad>", "<odd>", "say", "is", "um", "bye", ".", ":", *TOPICS, *ADJECTIVES]
    spaced = [*words[:3], *(word for w in words[3:] for word in (w, f"▁{w}"))]
    core = Tokenizer(models.WordLevel({w: n for n, w in enumerate(spaced)}, unk_token="<odd>"))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    from tokenizers import decoders

    core.decoder = decoders.Metaspace(prepend_scheme="never")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<end>", pad_token="<pad>", unk_token="<odd>"
    )
    config = LlamaConfig(
        vocab_size=len(spaced), hidden_size=48, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=64,
        bos_token_id=None, eos_token_id=0, pad_token_id=1,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def train(folder: Path, **settings: Any) -> Path:
    from prefopt.recipe import load_recipe
    from prefopt.training.train import train as train_it

    train_it(load_recipe(None, {"out": str(folder), "device": "cpu", **settings}), progress=False)
    return folder


def samples(run: Path, pairs: Sequence[Sequence[str]], n: int, seed: int) -> list[Group]:
    from prefopt.policies.load import load_policy
    from prefopt.sampling.generate import sample

    prompts = [prompt_of(pair) for pair in pairs]
    texts = sample(load_policy(run / "model", device="cpu"), prompts, n=n, max_new_tokens=16,
                   seed=seed, batch_size=256)  # fmt: skip
    return [
        Group(prompt, tuple(Completion(text) for text in answers))
        for prompt, answers in zip(prompts, texts, strict=True)
    ]


def shares(groups: Sequence[Group]) -> dict[str, float]:
    """How often answers say um, end with bye, and help."""
    answers = [(group.prompt, one.text) for group in groups for one in group.completions]
    return {
        "um": fmean(" um" in text for _, text in answers),
        "bye": fmean(text.endswith(" bye") for _, text in answers),
        "helpful": fmean(helpful(str(prompt), text) for prompt, text in answers),
    }


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model after fine-tuning on answers of the world."""
    folder = tmp_path_factory.mktemp("world")
    rng = random.Random(0)
    rows = [(pair, answer(pair, rng)) for pair in TRAIN for _ in range(16)]
    write_groups(
        folder / "answers.jsonl", [Group(prompt_of(p), (Completion(text),)) for p, text in rows]
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFOPT_CACHE", str(folder / "cache"))
        train(
            folder / "sft", model=str(make_model(folder / "model")),
            data=str(folder / "answers.jsonl"), learning_rate=6e-3, batch_size=32, epochs=6,
            # of sums, not of means over tokens: shorter answers are to be no likelier than they are
            objective={"name": "sft", "length_normalize": False},
        )  # fmt: skip
    write_groups(folder / "samples.jsonl", samples(folder / "sft", TRAIN, 4, seed=1))
    return folder


@pytest.mark.parametrize("which", CONSTITUTIONS)
def test_a_constitution_changes_what_it_speaks_of_and_nothing_else(
    base: Path, tmp_path: Path, call: Callable[..., tuple[int, str, str]], which: str
) -> None:
    name, critique, revision = CONSTITUTIONS[which]
    (tmp_path / "reviser.py").write_text(REVISER)
    (tmp_path / "rules.yaml").write_text(
        f"principles:\n  - name: {name}\n    critique: {critique}\n    revision: {revision}\n"
    )
    code, out, err = call(
        "revise", base / "samples.jsonl", "--constitution", tmp_path / "rules.yaml",
        "--speaker", f"python:{tmp_path / 'reviser.py'}:revise", "--out", tmp_path / "pairs.jsonl",
    )  # fmt: skip
    assert code == 0, err + out
    assert len(list(read_groups([str(tmp_path / "pairs.jsonl")]))) > 50
    train(
        tmp_path / "dpo", model=str(base / "sft" / "model"), data=str(tmp_path / "pairs.jsonl"),
        # the revisions' own likelihood beside DPO, or a model this small forgets how to speak
        objective={"name": "dpo", "plus": {"sft": {"weight": 1.0, "length_normalize": False}}},
        learning_rate=1e-3, batch_size=16, epochs=6,
    )  # fmt: skip
    before, after = (
        shares(samples(run, TEST, 8, seed=2)) for run in (base / "sft", tmp_path / "dpo")
    )
    assert before["um"] == pytest.approx(0.4, abs=0.08) and before["bye"] < 0.2
    assert before["helpful"] > 0.9
    if which == "no um":
        assert after["um"] < 0.10
        assert after["helpful"] > before["helpful"] - 0.05
        assert after["bye"] == pytest.approx(before["bye"], abs=0.1)
    else:
        assert after["bye"] > 0.85
        assert after["helpful"] > before["helpful"] - 0.15  # some say bye where they should not
        assert after["um"] == pytest.approx(before["um"], abs=0.15)
