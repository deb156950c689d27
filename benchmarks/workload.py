"""What every contender of `versus.py` gets: the same rows, the same tokens, the same weights.

Makes a work folder with

    rows.jsonl    {"prompt", "chosen", "rejected"}, in the order of the steps
    policy/       the model that is trained, and its tokenizer
    reference/    the model it is kept close to; other weights, so that the loss is not log 2

Only rows that are plain to split, have a prompt of their own, fit the context and whose
tokens do not merge across the end of the prompt are taken: on those every implementation
must see the same token ids, however it tokenises.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

EOS, PAD = "<|end|>", "<|pad|>"
_TURN = "\n\nAssistant:"
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


FULL = Size()
SMOKE = Size(vocabulary=384, hidden=32, intermediate=64, layers=2, heads=2, max_length=512)


def prepare(folder: Path, rows_path: Path | None, count: int, seed: int, size: Size) -> None:
    """Write the work folder; rows are generated where no file is given.

    Raises:
        SystemExit: the file has fewer usable rows than asked for.
    """
    candidates = hh_like_rows(4 * count, seed) if rows_path is None else list(read_hh(rows_path))
    tokenizer = train_tokenizer(("".join(row.values()) for row in candidates), size.vocabulary)
    random.Random(seed).shuffle(candidates)
    rows: dict[str, Row] = {}
    for row in candidates:
        if len(rows) < count and _splits_alike(row, tokenizer, size.max_length):
            rows.setdefault(row["prompt"], row)
    if len(rows) < count:
        raise SystemExit(f"{rows_path}: {len(rows)} usable rows, {count} are needed")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "rows.jsonl").open("w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows.values())
    parameters = save_models(folder, tokenizer, size, seed)
    (folder / "workload.json").write_text(
        json.dumps(
            {
                "rows": str(rows_path.name) if rows_path else "generated",
                "count": count,
                "seed": seed,
                "model": asdict(size) | {"parameters": parameters, "tokens_known": len(tokenizer)},
                "tokens": token_statistics(list(rows.values()), tokenizer),
            }
        )
    )


def read_hh(path: Path) -> Iterator[Row]:
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
            yield {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def hh_like_rows(count: int, seed: int) -> list[Row]:
    """Rows of the same form, from a few words; for the smoke test."""
    draw = random.Random(seed)
    words = ("how", "do", "I", "make", "the", "best", "tea", "with", "a", "cat", "and", "milk")

    def say(low: int, high: int) -> str:
        return " ".join(draw.choices(words, k=draw.randint(low, high)))

    return [
        {
            "prompt": f"\n\nHuman: {index} {say(3, 20)}{_TURN}",
            "chosen": f" {say(4, 30)} yes",
            "rejected": f" {say(4, 30)} no",
        }
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


def encode(row: Row, tokenizer: Any) -> tuple[list[int], list[int], list[int]]:
    """Prompt alone, completions alone, each ended by EOS: (prompt, chosen, rejected)."""
    prompt, chosen, rejected = (
        tokenizer(row[key], add_special_tokens=False)["input_ids"]
        for key in ("prompt", "chosen", "rejected")
    )
    return prompt, [*chosen, tokenizer.eos_token_id], [*rejected, tokenizer.eos_token_id]


def token_statistics(rows: list[Row], tokenizer: Any) -> dict[str, float]:
    """Mean lengths, in tokens, of what the contenders train on."""
    sums = [0, 0, 0]
    for row in rows:
        for index, ids in enumerate(encode(row, tokenizer)):
            sums[index] += len(ids)
    names = ("prompt", "chosen", "rejected")
    return {name: round(total / len(rows), 1) for name, total in zip(names, sums, strict=True)}


def _splits_alike(row: Row, tokenizer: Any, max_length: int) -> bool:
    """Whether the row fits, and tokens never span the end of its prompt."""
    prompt, *completions = encode(row, tokenizer)
    for key, ids in zip(("chosen", "rejected"), completions, strict=True):
        text = row["prompt"] + row[key] + EOS
        whole = tokenizer(text, add_special_tokens=False)["input_ids"]
        if whole != prompt + ids or len(whole) > max_length:
            return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=Path)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    size = SMOKE if options.smoke else FULL
    prepare(options.folder, options.rows, options.count, options.seed, size)


if __name__ == "__main__":
    main()
