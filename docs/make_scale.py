"""Write the tables of `scale.md`, between its markers, from the planner's own functions.

    make docs                            the tables, from what is in scale.json
    python docs/make_scale.py --trace    scale.json as well: half a minute

`scale.json` has what one copy of each model needs, as `prefopt plan` finds it: the engine's own
forward and backward pass over a model of this shape whose tensors have no numbers. All else is
arithmetic on that. `tests/test_scale.py` fails when the page is not what this program writes, or
when a pass over the model needs something else than `scale.json` says.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from prefopt.planning.machines import MACHINES
from prefopt.planning.memory import GIB, PER_NODE, Footprint, Memory, Strategy, per_device
from prefopt.planning.work import duration

PAGE = Path(__file__).with_name("scale.md")
TRACED = Path(__file__).with_name("scale.json")

#: shapes that are common at these sizes: a decoder with grouped-query attention
SHAPES: dict[str, dict[str, int]] = {
    "70B": {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80,
            "num_attention_heads": 64},
    "405B": {"hidden_size": 16384, "intermediate_size": 53248, "num_hidden_layers": 126,
             "num_attention_heads": 128},
}  # fmt: skip
VOCABULARY = 128256
#: a comparison: tokens of its prompt, which are computed once, and of each answer
PROMPT, ANSWER = 512, 256
#: comparisons in a step, and tokens that a device computes at once
BATCH, MICROBATCH = 512, 4096
KINDS: dict[str, bool | str] = {"none": False, "every layer": True}
MACHINE = MACHINES["h100"]
COUNTS = (8, 64, 512)
SHARDS = 64  # of `hybrid`: devices that share a copy
STRATEGIES: tuple[Strategy, ...] = ("fsdp", "hybrid", "tensor")
#: bytes a second: between the devices of one machine, from a device to other machines, and from
#: a device to a common file system
INSIDE, BETWEEN, DISK = 450e9, 50e9, 1e9
FLOAT = 4  # bytes of a weight and of a gradient, in memory and on the way

Traced = dict[str, Any]


# -- what one copy needs: from the planner -------------------------------------------------


@contextmanager
def _recipe(shape: dict[str, int]) -> Iterator[Any]:
    """Settings of a recipe for a model of this shape, whose folder has no weights."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, PreTrainedTokenizerFast

    before = os.environ.get("PREFOPT_CACHE")
    with TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["PREFOPT_CACHE"] = str(folder / "cache")
        LlamaConfig(
            vocab_size=VOCABULARY, num_key_value_heads=8, tie_word_embeddings=False,
            max_position_embeddings=4096, **shape,
        ).save_pretrained(folder / "model")  # fmt: skip
        letters = ["<|end|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
        core = Tokenizer(models.BPE({letter: place for place, letter in enumerate(letters)}, []))
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|end|>").save_pretrained(
            folder / "model"
        )
        rows = [
            {
                # Prompts differ from the start: what is equal would be computed once.
                "prompt": f"{number:03d}"[::-1] + "p" * (PROMPT - 3),
                "chosen": "a" * (ANSWER - 1),  # and the end of the turn
                "rejected": "b" * (ANSWER - 1),
            }
            for number in range(BATCH)
        ]
        (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        yield {
            "model": str(folder / "model"), "data": [str(folder / "pairs.jsonl")],
            "out": str(folder / "run"), "batch_size": BATCH, "epochs": 1, "learning_rate": 5e-7,
            "microbatch_tokens": MICROBATCH,
        }  # fmt: skip
    if before is None:
        del os.environ["PREFOPT_CACHE"]
    else:
        os.environ["PREFOPT_CACHE"] = before


def trace(size: str, kinds: dict[str, bool | str] | None = None) -> Traced:
    """What one copy of a model needs, by kind of gradient checkpointing."""
    from prefopt.planning.plan import make_planner
    from prefopt.planning.work import operations_of
    from prefopt.recipe import load_recipe

    found: Traced = {}
    with _recipe(SHAPES[size]) as settings:
        planner = make_planner(lambda more: load_recipe(None, {**settings, **more}))
        for name, kind in (kinds or KINDS).items():
            recipe = planner.changed({"gradient_checkpointing": kind})
            needs = planner.needs(recipe, readers=8, bf16=True)
            phases = needs.phases(evaluated=False)
            found[name] = {
                "parameters": needs.parameters.total,
                "tokens": planner.amount.tokens // planner.amount.judgements,
                "microbatch": needs.largest.tokens,
                "step": asdict(phases["step"]),
                "reference scores": asdict(phases["reference scores"]),
                "operations": operations_of(needs, planner.amount),
            }
    return found


# -- the tables ----------------------------------------------------------------------------


def page(text: str, traced: dict[str, Traced]) -> str:
    """The page with what its markers enclose written anew."""
    tables = {
        "copies": _copies(traced),
        "devices": _devices(traced),
        "speed": _speed(traced),
        "network": _network(traced),
        "disk": _disk(traced),
    }
    for name, table in tables.items():
        begin, end = f"<!-- {name}: written by make docs -->", f"<!-- end of {name} -->"
        text, found = re.subn(
            f"{re.escape(begin)}.*?{re.escape(end)}",
            lambda _, inside=f"{begin}\n{table}\n{end}": inside,
            text,
            flags=re.DOTALL,
        )
        assert found == 1, f"scale.md needs the markers of '{name}' once"
    return text


def _table(heads: list[str], rows: list[list[str]]) -> str:
    lines = [heads, ["---"] + ["---:"] * (len(heads) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _gib(size: float) -> str:
    return f"{size / GIB:,.0f}" if size >= 10 * GIB else f"{size / GIB:.1f}"


def _copies(traced: dict[str, Traced]) -> str:
    rows = []
    for size, kinds in traced.items():
        for kind, found in kinds.items():
            step = found["step"]
            parts = [step[name] for name in ("weights", "gradients", "optimizer", "activations")]
            rows.append([f"{size}, {kind}", *map(_gib, parts), _gib(sum(parts))])
    heads = ["model, checkpointing", "weights", "gradients", "Adam", "activations", "sum, GiB"]
    return _table(heads, rows)


def memory_of(found: Traced, strategy: Strategy, count: int) -> Memory:
    """Of a device, in the phase that needs most."""
    phases = (Footprint(**found[name]) for name in ("step", "reference scores"))
    each = (per_device(part, strategy, count, shards=min(SHARDS, count)) for part in phases)
    return max(each, key=lambda memory: memory.total)


def _devices(traced: dict[str, Traced]) -> str:
    rows = []
    for size, kinds in traced.items():
        for strategy in STRATEGIES:
            cells = []
            for kind in kinds:
                for count in COUNTS:
                    total = memory_of(kinds[kind], strategy, count).total
                    cells.append(f"**{_gib(total)}**" if total <= MACHINE.memory else _gib(total))
            rows.append([f"{size}, `{strategy}`", *cells])
    heads = [f"{count}, {kind}" for kind in KINDS for count in COUNTS]
    return _table(["GiB a device", *heads], rows)


def _speed(traced: dict[str, Traced]) -> str:
    rows = []
    for size, kinds in traced.items():
        for kind, found in kinds.items():
            work, pair = found["operations"], found["tokens"]
            each = (work["training"] + work["reference"]) / (BATCH * pair)
            cells = []
            for count in COUNTS:
                rate = MACHINE.rate * MACHINE.share * count / each
                cells.append(f"{rate:,.0f}; {duration(100_000 * pair / rate)}")
            rows.append([f"{size}, {kind}", f"{each / 1e12:.2f}", *cells])
    return _table(
        ["model, checkpointing", "TFLOP a token", *(f"{count} devices" for count in COUNTS)], rows
    )


def traffic(
    found: Traced, strategy: Strategy, count: int, shape: dict[str, int]
) -> dict[str, float]:
    """Bytes that a device receives in one step: from its own machine, and from others.

    Weights are gathered for the forward and for the backward pass of every micro-batch, and
    gradients summed once each, over the shards (`fsdp`); the sums of each shard then go over
    the copies (`hybrid`). Where matrices are split (`tensor`) four sums of activations a layer
    come to it, and what is left of each matrix is in shards over the machines.
    """
    split = PER_NODE if strategy == "tensor" else 1
    shards = min(SHARDS, count) if strategy == "hybrid" else count // split
    copies = count // split // shards
    weights = found["parameters"] * FLOAT / split
    pieces = max(1.0, BATCH * found["tokens"] / (count // split) / found["microbatch"])
    gathered = 3 * weights * pieces * (shards - 1) / shards
    near = (PER_NODE - 1) / (shards - 1) if split == 1 else 0.0
    summed = 2 * weights / shards * pieces * (copies - 1) / copies
    sums = 4 * shape["num_hidden_layers"] * found["microbatch"] * shape["hidden_size"] * 2
    activations = pieces * sums * 2 * (split - 1) / split
    return {
        "inside": gathered * near + activations,
        "between": gathered * (1 - near) + summed,
    }


def _network(traced: dict[str, Traced]) -> str:
    rows = []
    for size, kinds in traced.items():
        found = kinds["every layer"]
        work = found["operations"]["training"]
        for strategy in STRATEGIES:
            cells = []
            for count in COUNTS[1:]:
                moved = traffic(found, strategy, count, SHAPES[size])
                slowest = max(moved["inside"] / INSIDE, moved["between"] / BETWEEN)
                computing = work / (MACHINE.rate * MACHINE.share * count)
                cells += [
                    f"{moved['inside'] / 1e9:,.0f} + {moved['between'] / 1e9:,.0f}",
                    duration(slowest),
                    duration(computing),
                ]
            rows.append([f"{size}, `{strategy}`", *cells])
    heads = [f"{n}: {what}" for n in COUNTS[1:] for what in ("GB", "sending", "computing")]
    return _table(["a step", *heads], rows)


def _disk(traced: dict[str, Traced]) -> str:
    rows = []
    for size, kinds in traced.items():
        step = kinds["every layer"]["step"]
        whole = step["weights"] + step["optimizer"]
        times = [duration(whole / count / DISK) for count in COUNTS]
        rows.append([size, f"{whole / 1e9:,.0f} GB", *times, f"{step['weights'] / 1e9:,.0f} GB"])
    heads = ["model", "a checkpoint", *(f"{count} devices" for count in COUNTS), "the model"]
    return _table(heads, rows)


def main() -> None:
    if "--trace" in sys.argv:
        traced = {size: trace(size) for size in SHAPES}
        TRACED.write_text(json.dumps(traced, indent=1) + "\n")
    PAGE.write_text(page(PAGE.read_text(), json.loads(TRACED.read_text())))


if __name__ == "__main__":
    main()
