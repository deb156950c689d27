"""Numbers of answers to prompts, as text: what a scorer says of pairs of a prompt and a completion.

Answers to one prompt become one group, so that it is computed once however many there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from prefopt.engine.packed import in_order
from prefopt.engine.tokens import Encoder, TokenGroup
from prefopt.errors import DataError
from prefopt.policies.load import Policy
from prefopt.records import Completion, Group, Prompt

#: a prompt and a completion
Answer = tuple[Prompt, str]
#: groups that are scored between two reports of progress
_CHUNK = 128


@torch.no_grad()
def score_answers(
    policy: Policy,
    score: Callable[[Sequence[TokenGroup]], Tensor],
    answers: Sequence[Answer],
    *,
    microbatch_tokens: int = 8192,
    progress: Callable[[int, int], None] | None = None,
) -> list[float | str]:
    """A number for each answer, in order.

    Args:
        policy: whose tokens they become; the model's own limit of length holds.
        score: (B,) numbers of groups that go through a model at once.
        answers: prompts and completions, any prompt as often as there are answers to it.
        microbatch_tokens: most tokens at once; never changes a number.
        progress: told how many are done, and of how many.

    Returns:
        Where an answer cannot be encoded, why: the kind of `DataError` (`too_long` for the model,
        `end_inside`: it goes on after an end-of-turn token, `empty_prompt`).
    """
    found: dict[int, float | str] = {}

    def encoder(**how: Any) -> Encoder:
        ends, limit = policy.end_of_turn, policy.max_length
        return Encoder(policy.tokenizer, end_of_turn=ends, max_length=limit, **how)

    def add(stream: Iterator[TokenGroup]) -> None:
        while chunk := list(islice(stream, _CHUNK)):
            numbers = in_order(score, chunk, microbatch_tokens).tolist()
            places = [int(place or 0) for group in chunk for place in group.columns["score"]]
            found.update(zip(places, numbers, strict=True))
            if progress is not None:
                progress(len(found), len(answers))

    def alone(places: Iterable[int]) -> Iterator[TokenGroup]:
        for place in places:
            try:
                yield from encoder()([_group(answers, [place])])
            except DataError as error:
                found[place] = error.kind

    add(encoder(too_long="drop", on_error="skip")(_by_prompt(answers)))
    # One answer that cannot be encoded takes the others of its group with it: now one by one.
    add(alone([place for place in range(len(answers)) if place not in found]))
    return [found[place] for place in range(len(answers))]


def _by_prompt(answers: Sequence[Answer]) -> Iterator[Group]:
    members: dict[Prompt, list[int]] = {}
    for place, (prompt, _) in enumerate(answers):
        members.setdefault(prompt, []).append(place)
    return (_group(answers, places) for places in members.values())


def _group(answers: Sequence[Answer], places: Sequence[int]) -> Group:
    """Answers to one prompt; the score of each says which it is, through whatever is left out."""
    completions = (Completion(answers[place][1], score=float(place)) for place in places)
    return Group(answers[places[0]][0], tuple(completions))
