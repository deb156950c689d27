"""What a tokenizer makes of the data, as training would do it: lengths, limits, ends.

The numbers come from `prefopt.engine.lengths`, which has training's own encoder; here is what
they mean.

Shapes: G groups (rows with the same prompt are one) that can be encoded, B completions of theirs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prefopt.data.checking.findings import Finding, Place

_QUANTILES = {"half": 0.5, "nine_tenths": 0.9, "99_percent": 0.99, "longest": 1.0}
_BINS = 40

Counts = Mapping[str, int]


@dataclass(frozen=True)
class Lengths:
    """What was measured.

    Attributes:
        tokenizer: its name.
        limit: most tokens of a prompt and a completion together; None for any number.
        prompts: (G,) tokens.
        completions: (B,) tokens with the end of turn.
        together: (B,) tokens of a completion and its prompt.
        refused: kind → comparisons (or whole groups) that no limit would save, and where.
        skipped, cut: for each choice of `too_long` what training would report.
        places: kind → rows of the groups that are too long, or become identical.
        ends: whether the tokenizer has a token that ends a text.
        template_ends: whether the chat template ends an answer; None without conversations.
        begins_twice: whether template (or text) and tokenizer both write the first token.
    """

    tokenizer: str
    limit: int | None
    prompts: NDArray[np.int32]
    completions: NDArray[np.int32]
    together: NDArray[np.int32]
    refused: Mapping[str, tuple[int, Sequence[Place]]] = field(default_factory=dict)
    skipped: Mapping[str, Counts] = field(default_factory=dict)
    cut: Mapping[str, Counts] = field(default_factory=dict)
    places: Mapping[str, Sequence[Place]] = field(default_factory=dict)
    ends: bool = True
    template_ends: bool | None = None
    begins_twice: bool = False


def find(known: Lengths) -> Iterator[Finding]:
    """Findings of the kinds too_long, identical_when_cut, no_end_of_turn, doubled_token, and
    those under which training refuses a group whatever the limit is."""
    for kind, (count, places) in known.refused.items():
        yield Finding(kind, count, places, message=_SAID.get(kind))
    lost = known.skipped.get("drop", {}).get("too_long", 0)
    if lost:
        yield Finding(
            "too_long",
            lost,
            known.places.get("too_long", ()),
            message=f"prompt and completion of {lost:,} comparisons have more than the "
            f"{known.limit:,} tokens of the limit",
            details={
                "limit": known.limit,
                "with_too_long": [
                    {"choice": choice, "left_out": sum(skipped.values()),
                     "cut": sum(known.cut.get(choice, {}).values())}
                    for choice, skipped in known.skipped.items()
                ],
            },
        )  # fmt: skip
    same = known.skipped.get("cut_completion", {}).get("identical_sides", 0)
    if same:
        yield Finding(
            "identical_when_cut",
            same,
            known.places.get("identical_when_cut", ()),
            message=f"the two sides of {same:,} comparisons are the same tokens once completions "
            f"are cut to {known.limit:,} tokens with their prompt",
        )
    yield from _of_ends(known)


#: what a kind means of tokens, if it is another thing than of text
_SAID = {
    "identical_sides": "the two sides of a comparison are different texts and the same tokens",
    "empty_prompt": "a prompt has no tokens, and the tokenizer has none to begin with",
}


def _of_ends(known: Lengths) -> Iterator[Finding]:
    if not known.ends:
        yield Finding("no_end_of_turn", 1, message="the tokenizer has no token that ends a text")
    if known.template_ends is False:
        yield Finding(
            "no_end_of_turn",
            1,
            level="note",
            message="the chat template ends an answer with no token; training adds the "
            "tokenizer's EOS, and other programs may not",
        )
    if known.begins_twice:
        yield Finding(
            "doubled_token",
            1,
            level="note",
            message="the chat template (or the text) and the tokenizer both write the first "
            "token; training keeps one, and other programs may not",
        )


def figures(known: Lengths) -> dict[str, Any]:
    """What the page draws.

    Returns:
        `tokenizer`, `limit`, `over` (completions beyond it), `quantiles` of `prompts`,
        `completions` and `together`, and a histogram of `together`: `edges` of B + 1 tokens
        and `counts` of B.
    """
    parts = {name: getattr(known, name) for name in ("prompts", "completions", "together")}
    longest = int(known.together.max(initial=1))
    edges = np.unique(np.linspace(0, longest + 1, _BINS + 1).astype(np.int64))
    return {
        "tokenizer": known.tokenizer,
        "limit": known.limit,
        "over": 0 if known.limit is None else int((known.together > known.limit).sum()),
        "quantiles": {
            name: {word: int(np.quantile(part, q)) for word, q in _QUANTILES.items()}
            for name, part in parts.items()
            if len(part)
        },
        "histogram": {
            "edges": edges.tolist(),
            "counts": np.histogram(known.together, edges)[0].tolist(),
        },
    }
