"""What a question is: a prompt and two of its completions, whichever stands first.

Questions and completions are known by digests of what they say, so a file that was shuffled,
split or labelled meanwhile has the same ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import combinations
from typing import Literal

from prefopt.records import Group

#: every two completions of a prompt, or those that the data compares
Pairs = Literal["all", "given"]


def completion_key(prompt: bytes, text: str) -> bytes:
    """32 bytes of a completion: its prompt's `prompt_key`, and a digest of its text."""
    content = text.encode("utf-8", "surrogatepass")
    return prompt + hashlib.blake2b(content, digest_size=16).digest()


def question_key(first: bytes, second: bytes) -> bytes:
    """16 bytes of a question, from the keys of its completions in either order.

    >>> question_key(b"a", b"b") == question_key(b"b", b"a") != question_key(b"a", b"c")
    True
    """
    low, high = sorted((first, second))
    return hashlib.blake2b(low + high, digest_size=16).digest()


def drawn(key: bytes, seed: int) -> int:
    """64 bits that look random and depend on the seed and the content alone.

    Whoever sorts by them shuffles, and the place of a row in its file has no part in it.
    """
    mixed = hashlib.blake2b(key, digest_size=8, key=str(seed).encode()[:64])
    return int.from_bytes(mixed.digest(), "little")


def pairs_of(group: Group, pairs: Pairs) -> Iterator[tuple[int, int]]:
    """The pairs of a group's completions that differ in their texts."""
    if pairs == "all":
        named: Iterator[tuple[int, int]] = combinations(range(len(group.completions)), 2)
    else:
        named = ((edge.preferred, edge.dispreferred) for edge in group.comparisons)
    texts = [completion.text for completion in group.completions]
    return ((first, second) for first, second in named if texts[first] != texts[second])
