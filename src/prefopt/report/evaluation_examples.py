"""Which matches a page of an evaluation shows: some of each kind, the same ones every time."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from prefopt.data.visible import Shown, shown
from prefopt.evaluation.matches import Match
from prefopt.records import Prompt, prompt_key

_EACH = 3  # matches of one kind


@dataclass(frozen=True, slots=True)
class Example:
    """One match as texts that can be looked at."""

    prompt: Shown
    first: Shown
    second: Shown
    verdict: str
    note: str
    rationale: Shown | None


@dataclass(frozen=True, slots=True)
class Examples:
    """Matches by what happened in them: (heading, how many there are, some of them)."""

    kinds: tuple[tuple[str, int, tuple[Example, ...]], ...]


_KINDS: tuple[tuple[str, Callable[[Match], bool]], ...] = (
    ("Lost", lambda m: m.value == 0.0),
    ("Won", lambda m: m.value == 1.0),
    ("Against length: the judge took the shorter one",
     lambda m: m.value in (0.0, 1.0) and m.longer == 1.0 - (m.value or 0.0)),
    ("The verdict flipped with the order", lambda m: m.verdict.order_consistent is False),
    ("The verdict could not be read",
     lambda m: m.value is None and not m.verdict.transcript.get("not_asked")),
)  # fmt: skip
_WORDS = {1.0: "won", 0.0: "lost", 0.5: "tied", None: "no verdict"}


def examples(matches: Sequence[Match]) -> Examples:
    """Up to three of each kind, chosen by a digest of their texts: not the first, nor the best."""
    order = sorted(matches, key=_digest)
    kinds = []
    for heading, holds in _KINDS:
        found = [match for match in order if holds(match)]
        if found:
            kinds.append((heading, len(found), tuple(map(_example, found[:_EACH]))))
    return Examples(tuple(kinds))


def _digest(match: Match) -> bytes:
    texts = "\0".join(match.texts).encode("utf-8", "surrogatepass")
    return hashlib.blake2b(prompt_key(match.prompt) + texts, digest_size=8).digest()


def _example(match: Match) -> Example:
    probability = match.verdict.probability
    said = "" if probability is None else f"probability {probability:.2f}, "
    lengths = " and ".join(f"{len(text):,}" for text in match.texts)
    rationale = match.verdict.rationale
    first, second = map(shown, match.texts)
    return Example(
        shown(_text(match.prompt)), first, second, _WORDS[match.value],
        f"{said}{lengths} characters", shown(rationale) if rationale else None,
    )  # fmt: skip


def _text(prompt: Prompt) -> str:
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{turn.role}: {turn.content}" for turn in prompt)
