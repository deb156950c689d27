"""The unit of data: one prompt, its completions, and what people said about them.

Everything here is frozen, knows nothing of tensors or tokens, and survives a JSON round
trip unchanged. A pair, a ranking, a soft label, a tie, several annotators and an unpaired
label are all the same shape: a `Group`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Role = Literal["system", "user", "assistant", "tool"]
Choice = Literal["first", "second", "tie"]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: str
    content: str


#: text for a plain language model, messages for a chat model
Prompt = str | tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class Completion:
    """One answer to a prompt, without the end-of-turn token (the tokenizer's affair).

    Attributes:
        text: what was answered.
        score: a scalar judgement of it, where the data has one; higher is better.
        source: who or what wrote it.
    """

    text: str
    score: float | None = None
    source: str | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """An edge between two completions of one group.

    Attributes:
        preferred: index of the completion that was preferred.
        dispreferred: index of the other one.
        probability: in [0, 1], that the first is really better; 0.5 is a tie.
        weight: how much the comparison counts in a loss or a mean, 0 or more.
    """

    preferred: int
    dispreferred: int
    probability: float = 1.0
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Label:
    """A desirable or undesirable mark on one completion (unpaired data)."""

    completion: int
    desirable: bool
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Vote:
    """What one annotator said about one pair of completions of a group."""

    first: int
    second: int
    choice: Choice
    annotator: str | None = None


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a record was read: a file and a row in it, counted from 1."""

    file: str
    row: int


@dataclass(frozen=True, slots=True)
class Group:
    """One prompt with its K ≥ 1 completions: the unit of data.

    Attributes:
        prompt: text, or the conversation up to the point where the model must speak.
        completions: the answers; comparisons, labels and votes point into them by index.
        comparisons: which of two completions was preferred.
        labels: desirable / undesirable marks.
        votes: the raw votes that comparisons were aggregated from, if any.
        source: name of the data source it belongs to (mixtures, metrics per source).
        meta: any further columns of the row that a user may want back.
        origins: the rows it was read from; not part of its value.

    Raises:
        ValueError: an index points outside `completions`, a pair is not two different
            ones, or a probability or weight is out of range.
    """

    prompt: Prompt
    completions: tuple[Completion, ...]
    comparisons: tuple[Comparison, ...] = ()
    labels: tuple[Label, ...] = ()
    votes: tuple[Vote, ...] = ()
    source: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)
    origins: tuple[Origin, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        count = len(self.completions)
        if count == 0:
            raise ValueError("a group needs at least one completion")
        for edge in self.comparisons:
            _check_pair("comparison", edge.preferred, edge.dispreferred, count)
            if not 0.0 <= edge.probability <= 1.0:
                raise ValueError(f"a probability must be in [0, 1], got {edge.probability}")
            _check_weight(edge.weight)
        for vote in self.votes:
            _check_pair("vote", vote.first, vote.second, count)
        for label in self.labels:
            if not 0 <= label.completion < count:
                raise ValueError(f"a label points to completion {label.completion} of {count}")
            _check_weight(label.weight)

    @property
    def prompt_text(self) -> str:
        """The prompt as readable text; for people, not for a tokenizer."""
        if isinstance(self.prompt, str):
            return self.prompt
        return "\n".join(f"{message.role}: {message.content}" for message in self.prompt)

    @property
    def prompt_key(self) -> bytes:
        """16 bytes that are equal for equal prompts (and, in practice, only for those)."""
        return prompt_key(self.prompt)


def prompt_key(prompt: Prompt) -> bytes:
    """Digest of a prompt, used to merge, split and compare by prompt."""
    payload = json.dumps(prompt_to_json(prompt), ensure_ascii=False, separators=(",", ":"))
    return hashlib.blake2b(payload.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def to_json(group: Group) -> dict[str, Any]:
    """A group as the plain object of prefopt's own JSONL; `from_json` is its inverse."""
    document: dict[str, Any] = {
        "prompt": prompt_to_json(group.prompt),
        "completions": [_without_defaults(item) for item in group.completions],
    }
    for name in ("comparisons", "labels", "votes"):
        items: Iterable[Any] = getattr(group, name)
        if items:
            document[name] = [_without_defaults(item) for item in items]
    if group.source is not None:
        document["source"] = group.source
    if group.meta:
        document["meta"] = dict(group.meta)
    return document


def from_json(document: Mapping[str, Any], *, origins: tuple[Origin, ...] = ()) -> Group:
    """Rebuild a group from `to_json`'s object.

    Raises:
        KeyError, TypeError, ValueError: the object is not of that form.
    """
    unknown = set(document) - {
        "prompt", "completions", "comparisons", "labels", "votes", "source", "meta",
    }  # fmt: skip
    if unknown:
        raise ValueError(f"unknown fields {sorted(unknown)}")
    return Group(
        prompt=_prompt_from_json(document["prompt"]),
        completions=tuple(Completion(**item) for item in document["completions"]),
        comparisons=tuple(Comparison(**item) for item in document.get("comparisons", ())),
        labels=tuple(Label(**item) for item in document.get("labels", ())),
        votes=tuple(Vote(**item) for item in document.get("votes", ())),
        source=document.get("source"),
        meta=document.get("meta", {}),
        origins=origins,
    )


def prompt_to_json(prompt: Prompt) -> str | list[dict[str, str]]:
    """A prompt as it stands in JSON: a text, or a list of turns."""
    if isinstance(prompt, str):
        return prompt
    return [{"role": message.role, "content": message.content} for message in prompt]


def _prompt_from_json(value: Any) -> Prompt:
    if isinstance(value, str):
        return value
    return tuple(Message(role=item["role"], content=item["content"]) for item in value)


def _without_defaults(item: Any) -> dict[str, Any]:
    """The fields of a small record that differ from their defaults, in order."""
    from dataclasses import MISSING, fields

    return {
        spec.name: getattr(item, spec.name)
        for spec in fields(item)
        if spec.default is MISSING or getattr(item, spec.name) != spec.default
    }


def _check_pair(kind: str, first: int, second: int, count: int) -> None:
    if not (0 <= first < count and 0 <= second < count):
        raise ValueError(f"a {kind} points to completions {first} and {second} of {count}")
    if first == second:
        raise ValueError(f"a {kind} needs two different completions, got {first} twice")


def _check_weight(weight: float) -> None:
    if not 0.0 <= weight < float("inf"):
        raise ValueError(f"a weight must be 0 or more and finite, got {weight}")
