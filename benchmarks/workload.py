"""What every contender gets: the same rows, the same tokens, the same weights.

Makes a work folder with

    rows.jsonl    {"prompt", "chosen", "rejected"}, in the order of the steps
    groups.jsonl  the same as groups, where a prompt has more than two completions
    policy/       the model that is trained, and its tokenizer
    reference/    the model it is kept close to; other weights, so that the loss is not log 2
    adapter/      where a LoRA is trained: its first weights. The reference is the policy without

Only rows that are plain to split, have a prompt of their own, fit the context and whose
tokens do not merge across the end of the prompt are taken: on those every implementation
must see the same token ids, however it tokenises.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import accumulate, combinations, islice
from math import log
from pathlib import Path
from typing import Any

EOS, PAD = "<|end|>", "<|pad|>"
#: groups that a tokenizer is trained on, of however many
TOKENIZER_TEXTS = 3000
_TURN = "\n\nAssistant:"
#: lengths in a smoke run, where a word is several tokens
SHORT = {"prompt": 12, "answer": 6, "prompt_spread": 0.5, "answer_spread": 0.5}
#: of the LoRA that is trained, in every contender's own words
RANK, ALPHA = 16, 32
Row = dict[str, str]


@dataclass(frozen=True)
class Size:
    """Shape of the model and limits of the rows."""

    vocabulary: int = 32768
    hidden: int = 256
    intermediate: int = 688
    layers: int = 8
    heads: int = 4
    max_length: int = 1024


SIZES = {
    "14M": Size(),
    "100M": Size(hidden=768, intermediate=2048, layers=12, heads=12),
    "14M-150k": Size(vocabulary=151_936),
    "smoke": Size(vocabulary=384, hidden=32, intermediate=64, layers=2, heads=2, max_length=512),
}


@dataclass(frozen=True)
class Kind:
    """What the rows of a workload are like.

    Attributes:
        prompt, answer: median length in words, most of which are one token.
        prompt_spread, answer_spread: standard deviation of the logarithm of the length.
        completions: of each prompt; with more than two they are scored, and all are compared.
        adapter: a LoRA is trained instead of all weights.
        from_file: rows of a file are taken, if there is one.
    """

    prompt: float = 95
    answer: float = 32
    prompt_spread: float = 0.8
    answer_spread: float = 0.85
    completions: int = 2
    adapter: bool = False
    from_file: bool = False

    @property
    def pairs(self) -> int:
        """Comparisons of one prompt."""
        return self.completions * (self.completions - 1) // 2


#: the lengths of `hh` are those of Anthropic's HH rows: means of 130 and 47 tokens, long tails
WORKLOADS = {
    "hh": Kind(from_file=True),
    "long_prompts": Kind(prompt=600, answer=24, prompt_spread=0.25, answer_spread=0.5),
    "long_answers": Kind(prompt=24, answer=300, prompt_spread=0.5, answer_spread=0.35),
    "four": Kind(completions=4),
    "lora": Kind(adapter=True, from_file=True),
}


@dataclass(frozen=True)
class Group:
    """A prompt and its completions, best first."""

    prompt: str
    completions: tuple[str, ...]

    def rows(self) -> list[Row]:
        return [
            {"prompt": self.prompt, "chosen": better, "rejected": worse}
            for better, worse in combinations(self.completions, 2)
        ]


def prepare(
    folder: Path, kind: Kind, size: Size, *, rows: Path | None, count: int, seed: int
) -> None:
    """Write the work folder, with `count` comparisons; rows are generated without a file.

    Raises:
        SystemExit: the file has fewer usable rows than asked for.
    """
    wanted = -(-count // kind.pairs)
    file = rows if kind.from_file else None
    candidates = (
        generate(kind, wanted + wanted // 4 + 50, seed) if file is None else list(read_hh(file))
    )
    texts = ("".join((group.prompt, *group.completions)) for group in candidates)
    tokenizer = train_tokenizer(islice(texts, TOKENIZER_TEXTS), size.vocabulary)
    random.Random(seed).shuffle(candidates)
    groups: dict[str, Group] = {}
    for group in candidates:
        if len(groups) < wanted and _splits_alike(group, tokenizer, size.max_length):
            groups.setdefault(group.prompt, group)
    if len(groups) < wanted:
        raise SystemExit(f"{file or 'generated'}: {len(groups)} usable prompts of {wanted}")
    folder.mkdir(parents=True, exist_ok=True)
    _write_lines(folder / "rows.jsonl", (row for group in groups.values() for row in group.rows()))
    _write_lines(folder / "groups.jsonl", map(_own_layout, groups.values()))
    parameters = save_models(folder, tokenizer, size, seed)
    if kind.adapter:
        save_adapter(folder, seed)
    about = {
        "rows": file.name if file else "generated",
        "count": wanted * kind.pairs,
        "seed": seed,
        "kind": asdict(kind),
        "model": asdict(size) | {"parameters": parameters, "tokens_known": len(tokenizer)},
        "tokens": token_statistics(groups.values(), tokenizer),
    }
    (folder / "workload.json").write_text(json.dumps(about))


def _write_lines(path: Path, rows: Iterable[Any]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def _own_layout(group: Group) -> dict[str, Any]:
    edges = combinations(range(len(group.completions)), 2)
    return {
        "prompt": group.prompt,
        "completions": [{"text": text} for text in group.completions],
        "comparisons": [{"preferred": a, "dispreferred": b} for a, b in edges],
    }


# -- rows ----------------------------------------------------------------------------------


def read_hh(path: Path) -> Iterator[Group]:
    """Anthropic HH transcripts, split at the last assistant turn where both sides agree."""
    data = path.read_bytes()
    text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
    for line in text.splitlines():
        row = json.loads(line)
        at = row["chosen"].rfind(_TURN) + len(_TURN)
        prompt, chosen, rejected = row["chosen"][:at], row["chosen"][at:], row["rejected"][at:]
        alike = row["rejected"].startswith(prompt) and _TURN not in rejected
        answered = chosen.strip() and rejected.strip() and chosen != rejected
        if at > len(_TURN) and alike and answered:
            yield Group(prompt, (chosen, rejected))


def generate(kind: Kind, count: int, seed: int) -> list[Group]:
    """Groups of made-up words, some frequent and most rare, with lengths as `kind` says."""
    draw = random.Random(seed)
    syllables = [a + b for a in "bdfgklmnprstvz" for b in ("a", "e", "i", "o", "u", "an", "er")]
    lexicon = ["".join(draw.choices(syllables, k=draw.randint(1, 4))) for _ in range(6000)]
    frequency = list(accumulate(1 / (rank + 3) for rank in range(len(lexicon))))

    def say(median: float, spread: float) -> str:
        length = max(3, round(draw.lognormvariate(log(median), spread)))
        return " ".join(draw.choices(lexicon, cum_weights=frequency, k=length))

    return [
        Group(
            f"\n\nHuman: {say(kind.prompt, kind.prompt_spread)} {index}{_TURN}",
            tuple(f" {say(kind.answer, kind.answer_spread)} {i}" for i in range(kind.completions)),
        )
        for index in range(count)
    ]


def train_tokenizer(texts: Iterator[str], vocabulary: int) -> Any:
    """A byte-level BPE, trained on the spot."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(
        texts, vocab_size=vocabulary, special_tokens=[EOS, PAD], show_progress=False
    )
    return PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, eos_token=EOS, pad_token=PAD)


def encode(row: Row, tokenizer: Any) -> tuple[list[int], list[int], list[int]]:
    """Prompt alone, completions alone, each ended by EOS: (prompt, chosen, rejected)."""
    prompt, chosen, rejected = (
        tokenizer(row[key], add_special_tokens=False)["input_ids"]
        for key in ("prompt", "chosen", "rejected")
    )
    return prompt, [*chosen, tokenizer.eos_token_id], [*rejected, tokenizer.eos_token_id]


def token_statistics(groups: Iterable[Group], tokenizer: Any) -> dict[str, float]:
    """Mean lengths, in tokens, of prompts and of completions from the best to the worst."""
    lengths = []
    for group in groups:
        texts = (group.prompt, *group.completions)
        ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        lengths.append([len(ids[0]), *(len(part) + 1 for part in ids[1:])])
    means = [round(sum(column) / len(lengths), 1) for column in zip(*lengths, strict=True)]
    return dict(zip(("prompt", *(f"answer {i + 1}" for i in range(99))), means, strict=False))


def _splits_alike(group: Group, tokenizer: Any, max_length: int) -> bool:
    """Whether the group fits, and tokens never span the end of its prompt."""
    prompt = tokenizer(group.prompt, add_special_tokens=False)["input_ids"]
    for text in group.completions:
        own = tokenizer(text, add_special_tokens=False)["input_ids"]
        whole = tokenizer(group.prompt + text + EOS, add_special_tokens=False)["input_ids"]
        if whole != [*prompt, *own, tokenizer.eos_token_id] or len(whole) > max_length:
            return False
    return True


# -- weights -------------------------------------------------------------------------------


def save_models(folder: Path, tokenizer: Any, size: Size, seed: int) -> int:
    """Save reference and policy; returns the number of parameters."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=size.vocabulary,
            hidden_size=size.hidden,
            intermediate_size=size.intermediate,
            num_hidden_layers=size.layers,
            num_attention_heads=size.heads,
            max_position_embeddings=2 * size.max_length,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    for name in ("reference", "policy"):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.01 * torch.randn_like(parameter))
    return sum(parameter.numel() for parameter in model.parameters())


def save_adapter(folder: Path, seed: int) -> None:
    """A LoRA on every linear layer of the policy, whose update is not zero."""
    import torch
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    base = AutoModelForCausalLM.from_pretrained(folder / "policy", dtype=torch.float32)
    model = get_peft_model(base, lora_config())
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.02)
    model.save_pretrained(folder / "adapter")


def lora_config() -> Any:
    from peft import LoraConfig

    return LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM")


def load_adapter_weights(model: Any, folder: Path) -> None:
    """Give a model's fresh LoRA the weights that every contender starts with.

    Raises:
        RuntimeError: they do not fit.
    """
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    weights = load_file(folder / "adapter" / "adapter_model.safetensors")
    outcome = set_peft_model_state_dict(model, weights)
    left = [name for name in outcome.missing_keys if "lora_" in name]
    if left or outcome.unexpected_keys:
        raise RuntimeError(f"the adapter does not fit: {left or outcome.unexpected_keys}")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--workload", choices=WORKLOADS, default="hh")
    parser.add_argument("--model", choices=SIZES, default="14M")
    parser.add_argument("--rows", type=Path)
    parser.add_argument("--count", type=int, required=True, help="comparisons")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", type=json.loads, default={}, help="JSON: what is different")
    parser.add_argument("--size", type=json.loads, default={}, help="JSON: what is different")
    options = parser.parse_args(arguments)
    short = SHORT if options.model == "smoke" else {}
    kind = replace(WORKLOADS[options.workload], **(short | options.kind))
    size = replace(SIZES[options.model], **options.size)
    arguments = {"rows": options.rows, "count": options.count, "seed": options.seed}
    prepare(options.folder, kind, size, **arguments)


if __name__ == "__main__":
    main()
