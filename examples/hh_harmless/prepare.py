"""From a file of Anthropic HH rows to three splits, a tokenizer and a small Llama.

    python examples/hh_harmless/prepare.py harmless_base.jsonl.gz

Writes to `runs/hh` (or `--out`)

    train.jsonl  dev.jsonl  heldout.jsonl    groups, split by conversation
    model/                                   a Llama with seeded random weights, its tokenizer
    prepared.json                            counts, and what was skipped and why

Rows that begin with the same human turn stay on one side of the split, because in these data
one row is often another row's conversation a few turns later. The tokenizer sees only the
training rows. Everything follows from the file and the seed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from prefopt.data.formats import read_groups, write_groups
from prefopt.records import Group

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

END, PAD = "<|end|>", "<|pad|>"
SHARES = {"heldout": 0.2, "dev": 0.1}  # the rest is trained on

# The data's own form; an answer ends with the token that the model must learn to emit.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- if message.role == 'user' -%}{{ '\n\nHuman: ' + message.content }}
{%- elif message.role == 'assistant' -%}{{ '\n\nAssistant: ' + message.content + eos_token }}
{%- else -%}{{ raise_exception('only user and assistant speak here') }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '\n\nAssistant:' }}{%- endif -%}"""


def main() -> None:
    options = parse_arguments()
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    reader = read_groups(options.rows, on_error="skip")
    splits: dict[str, list[Group]] = {"train": [], "dev": [], "heldout": []}
    for group in reader:
        splits[split_of(group, options.seed)].append(group)
    for name, groups in splits.items():
        write_groups(out / f"{name}.jsonl", groups)
    tokenizer = train_tokenizer(texts(splits["train"]), options.vocabulary)
    parameters = save_model(out / "model", tokenizer, options)
    prepared = {
        "rows": reader.rows,
        "skipped": dict(reader.skipped),
        "splits": {
            name: {"groups": len(groups), "comparisons": sum(len(g.comparisons) for g in groups)}
            for name, groups in splits.items()
        },
        "vocabulary": len(tokenizer),
        "parameters": parameters,
        "seed": options.seed,
    }
    (out / "prepared.json").write_text(json.dumps(prepared, indent=1) + "\n")
    print(json.dumps(prepared, indent=1))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("rows", help="Anthropic HH rows: chosen, rejected (.jsonl or .jsonl.gz)")
    parser.add_argument("--out", type=Path, default=Path("runs/hh"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    return parser.parse_args()


def split_of(group: Group, seed: int) -> str:
    """Which split a group belongs to: a function of its first human turn and the seed."""
    first = group.prompt if isinstance(group.prompt, str) else group.prompt[0].content
    digest = hashlib.sha256(f"{seed} {first.strip().casefold()}".encode()).digest()
    place = int.from_bytes(digest[:8], "big") / 2**64
    for name, share in SHARES.items():
        if place < share:
            return name
        place -= share
    return "train"


def texts(groups: Iterable[Group]) -> Iterator[str]:
    """Everything that was said."""
    for group in groups:
        yield group.prompt_text
        yield from (" " + completion.text for completion in group.completions)


def train_tokenizer(lines: Iterable[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE: any text has tokens, none is unknown."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(lines, trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token=END, pad_token=PAD)
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def save_model(
    folder: Path, tokenizer: PreTrainedTokenizerFast, options: argparse.Namespace
) -> int:
    """A small Llama that knows nothing yet; returns its number of parameters."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(options.seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=options.hidden,
            intermediate_size=options.hidden * 8 // 3,
            num_hidden_layers=options.layers,
            num_attention_heads=4,
            max_position_embeddings=2048,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())


if __name__ == "__main__":
    main()
