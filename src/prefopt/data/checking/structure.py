"""What is wrong inside one row, by kind: its texts, and how they fit together.

Called for every row that streams by. Clean text costs a few passes of C over it: a pattern is
tried only where a byte, a bracket or a word says that it might match.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import compress

from prefopt.data.checking.languages import mismatches
from prefopt.records import Group

# -- patterns ------------------------------------------------------------------------------

_ROLE_MARKER = re.compile(
    r"(?:^|\s)(?:Human|Assistant|User):(?=\s|$)"
    r"|(?:^|\n)###? ?(?:Instruction|Response|Human|Assistant|User):"
)
_SPECIAL_TOKEN = re.compile(
    r"<\|[\w./▁-]{1,40}\|>|<｜[^｜\n]{1,40}｜>|</?s>|<(?:bos|eos|pad|unk)>"
    r"|<(?:start|end)_of_turn>|\[/?INST\]|<</?SYS>>"
)
_DOUBLED_TOKEN = re.compile(
    r"(</?s>|<[be]os>|<end_of_turn>"
    r"|<\|(?:endoftext|begin_of_text|end_of_text|im_end|eot_id|eos|bos|end)\|>)(?:\s*\1)+"
)
_GENERATION_PROMPT = re.compile(
    r"\s*(?:(?:Assistant|ASSISTANT|assistant):|assistant\s*\n"
    r"|<\|im_start\|>\s*assistant|<\|start_header_id\|>\s*assistant\s*(?:<\|end_header_id\|>)?"
    r"|<\|(?:assistant|Assistant|bot|CHATBOT_TOKEN)\|>|<｜Assistant｜>"
    r"|<start_of_turn>\s*model|\[/INST\]|### ?(?:Response|Assistant|Answer):)"
)
#: how a prompt ends that a chat template has rendered
_RENDERED = re.compile(
    r"(?:<\|im_start\|>\s*assistant|<\|end_header_id\|>|<\|assistant\|>|<｜Assistant｜>"
    r"|<start_of_turn>\s*model|\[/INST\])\s*\Z"
)
#: second byte of a character of two, as Windows-1252 and Latin-1 read it; not its quotation
#: marks, which may well follow a capital Ã
_SECOND = "\x80-\xaa\xac-\xba\xbc-\xbf€‚ƒ„†‡ˆ‰Š‹ŒŽ•˜™š›œžŸ"
_MOJIBAKE = re.compile(
    rf"\ufffd|[ÂÃ][{_SECOND}]|â[€\x80]|ï[»¿][¿½]|ð[Ÿ\x9f]|(?:[ÐÑ][{_SECOND}‘’“”–—…]){{3}}"
)
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202d\u202e\ufeff]")

_SEEN_BY = {
    "role_marker": _ROLE_MARKER,
    "special_token": _SPECIAL_TOKEN,
    "doubled_token": _DOUBLED_TOKEN,
    "mojibake": _MOJIBAKE,
    "control_characters": _CONTROL,
}
_OF_PROMPTS = {
    "special_token",
    "doubled_token",
    "mojibake",
    "control_characters",
    "rendered_prompt",
}
_AROUND = 80  # characters of an excerpt on either side

#: bytes that UTF-8 has in control characters, and in what misread text looks like
_ODD = bytes([*range(0x09), 0x0B, 0x0C, *range(0x0E, 0x20), 0x7F, 0xC2, 0xC3, 0xEF])
_LEFT, _RIGHT = b"\xe2\x80\xad", b"\xe2\x80\xae"  # order of letters set by hand

_LONG = 20  # characters of a prompt that an answer would not begin with by chance


def kinds_of(group: Group) -> set[str]:
    r"""Kinds of what is wrong with one row, read as a group of its own; mostly none.

    >>> from prefopt.records import Comparison, Completion
    >>> sides = Completion("Blue.</s></s>"), Completion("Green.\n\nHuman: why?")
    >>> sorted(kinds_of(Group("Name a colour.", sides, (Comparison(0, 1),))))
    ['doubled_token', 'role_marker']
    """
    prompt, asked = _prompt(group)
    found = set(_of_text(prompt))
    if "special_token" in found and isinstance(group.prompt, str) and _RENDERED.search(prompt):
        found = found - {"special_token"} | {"rendered_prompt"}
    texts = [completion.text for completion in group.completions]
    for text in texts:
        found.update(_of_completion(text, asked))
    if True in mismatches(asked, texts):
        found.add("language_mismatch")
    found.update(_of_pairs(group))
    return found


def excerpt(group: Group, kind: str) -> str:
    """What a kind is about: the place in a text, or how that text begins."""
    prompt, asked = _prompt(group)
    texts = [completion.text for completion in group.completions]
    if kind == "language_mismatch":
        concerned = [*compress(texts, mismatches(asked, texts))]
    else:
        concerned = [text for text in texts if kind in _of_completion(text, asked)]
    text = concerned[0] if concerned else prompt if kind in _OF_PROMPTS else texts[0]
    place = _SEEN_BY[kind].search(text) if kind in _SEEN_BY else None
    start = max(0, place.start() - _AROUND) if place else 0
    return text[start : (place.end() if place else _AROUND) + _AROUND]


def _prompt(group: Group) -> tuple[str, str]:
    """All text of a prompt, and what is asked: its last turn, or all of it if it is text."""
    prompt = group.prompt
    if isinstance(prompt, str):
        return prompt, prompt
    turns = [turn.content for turn in prompt]
    return "\n".join(turns), turns[-1] if turns else ""


def _of_completion(text: str, asked: str) -> Iterator[str]:
    """Of an answer to `asked`: the prompt, or its last turn."""
    if not text or text.isspace():
        yield "empty_completion"
        return
    if _repeats(text, asked):
        yield "prompt_repeated"
    if begun := _GENERATION_PROMPT.match(text):
        yield "generation_prompt"
        text = text[begun.end() :]
    named = "Human:" in text or "Assistant:" in text or "User:" in text or "###" in text
    if named and _ROLE_MARKER.search(text):
        yield "role_marker"
    yield from _of_text(text)


def _of_text(text: str) -> Iterator[str]:
    """Of any text."""
    if ("<" in text or "[" in text) and _SPECIAL_TOKEN.search(text):
        rest = _DOUBLED_TOKEN.sub("", text)
        if len(rest) < len(text):
            yield "doubled_token"
        if _SPECIAL_TOKEN.search(rest):
            yield "special_token"
    raw = text.encode("utf-8", "surrogatepass")
    odd = len(raw.translate(None, _ODD)) < len(raw)
    if odd or (len(raw) > len(text) and (_LEFT in raw or _RIGHT in raw)):
        if _MOJIBAKE.search(text):
            yield "mojibake"
        elif _CONTROL.search(text):
            yield "control_characters"


def _repeats(text: str, asked: str) -> bool:
    """Whether the answer begins with the whole question, and not by chance."""
    start = asked.strip()
    if len(start) < _LONG and not start.endswith("?"):
        return False
    text = text.lstrip()
    return text.startswith(start) and not text[len(start) : len(start) + 1].isalnum()


def _of_pairs(group: Group) -> Iterator[str]:
    """Of completions that are compared."""
    completions = group.completions
    for edge in group.comparisons:
        better, worse = completions[edge.preferred], completions[edge.dispreferred]
        if better.text == worse.text:
            yield "identical_sides"
        if better.score is None or worse.score is None or better.score == worse.score:
            continue
        if edge.probability != 0.5 and (better.score > worse.score) != (edge.probability > 0.5):
            yield "score_contradiction"
