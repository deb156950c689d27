"""Completions sampled from a policy: batched, seeded, and independent of the batching.

Prompts are tokenised by the same encoder as in training. A sample depends on the policy, its
prompt, its number and the seed (`drawing`): not on `batch_size`, not on which other prompts are
asked, not on the order (up to ties within floating-point error of the logits).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from prefopt.engine.tokens import Encoder, Ids, TokenGroup
from prefopt.errors import DataError, RecipeError
from prefopt.records import Prompt, prompt_key
from prefopt.sampling import continuous, library
from prefopt.sampling.continuous import Row, Rules
from prefopt.sampling.drawing import uniforms, warpers
from prefopt.sampling.settings import Settings

if TYPE_CHECKING:
    from prefopt.policies.load import Policy

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Drawn:
    """One sample as the policy said it.

    Attributes:
        ids: its tokens, with its end of turn, unless it was cut or a text of `stop` ended it.
        logp: log π of all of them in nats, under the policy itself (temperature 1, all tokens);
            None where the library generated.
        stopped: whether a text of `stop` ended it.
    """

    ids: Ids
    logp: float | None
    stopped: bool


def sample(
    policy: Policy,
    prompts: Sequence[Prompt],
    *,
    n: int = 1,
    max_new_tokens: int = 128,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    seed: int = 0,
    stop: Sequence[str] = (),
    batch_size: int = 32,
    progress: Progress | None = None,
) -> list[list[str]]:
    """`n` completions of every prompt, in the order of the prompts.

    Of the model folder's `generation_config.json` only the token ids are used (begin, end,
    pad). Its sampling defaults (temperature, top_p, top_k, repetition_penalty, min_length,
    suppressed tokens …) are not: what is sampled is what the arguments here say, by default
    the policy's own distribution, the one that log-probabilities are about.

    Args:
        policy: model and tokenizer; the model is put in eval mode meanwhile.
        prompts: text or conversations. A prompt that occurs twice gets different samples.
        n: completions a prompt.
        max_new_tokens: a completion that has not ended by then is cut.
        temperature: divides the logits; 0 takes the most probable token.
        top_p: keep the most probable tokens that hold this much probability; 1 keeps all.
        top_k: keep this many tokens; 0 keeps all.
        seed: another seed, other samples.
        stop: texts that end a completion, and are not part of it.
        batch_size: completions generated at once; does not change the result.
        progress: called with (completions done, completions in all) after each completion.

    Returns:
        For each prompt its n texts, without special tokens and end of turn.

    Raises:
        RecipeError: a setting is out of range or would have no effect.
        DataError: a prompt has no tokens, or leaves no room for `max_new_tokens`.
    """
    settings = Settings(n, max_new_tokens, temperature, top_p, top_k, seed, tuple(stop))
    drawn = draw(policy, prompts, settings, batch_size=batch_size, progress=progress)
    return [[text_of(policy, sample.ids, stop) for sample in samples] for samples in drawn]


def sample_tokens(
    policy: Policy,
    prompts: Sequence[Prompt],
    *,
    n: int = 1,
    max_new_tokens: int = 128,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    seed: int = 0,
    batch_size: int = 32,
    progress: Progress | None = None,
) -> list[TokenGroup]:
    """The same as token ids, one group a prompt: what an estimate of log π needs.

    A text may be encoded in several ways, and only the sampled one has the probability it
    was sampled with. A completion ends with its end of turn, unless it was cut.
    """
    settings = Settings(n, max_new_tokens, temperature, top_p, top_k, seed)
    drawn = draw(policy, prompts, settings, batch_size=batch_size, progress=progress)
    ids = encode_prompts(policy, prompts, max_new_tokens)
    return [
        TokenGroup(prompt, tuple(sample.ids for sample in samples))
        for prompt, samples in zip(ids, drawn, strict=True)
    ]


def draw(
    policy: Policy,
    prompts: Sequence[Prompt],
    settings: Settings,
    *,
    batch_size: int = 32,
    progress: Progress | None = None,
    on_done: Callable[[int, list[Drawn]], None] | None = None,
) -> list[list[Drawn]]:
    """The samples of every prompt, with what is known of them.

    Args:
        policy, prompts, batch_size, progress: as in `sample`.
        settings: how many, and how they are drawn.
        on_done: called with (position of a prompt, its samples) as soon as it has all.
    """
    if batch_size < 1:
        raise RecipeError("batch_size must be at least 1", field="batch_size", value=batch_size)
    n, max_new_tokens = settings.n, settings.max_new_tokens
    ids = encode_prompts(policy, prompts, max_new_tokens)
    rules = Rules(
        warpers(settings.temperature, settings.top_p, settings.top_k),
        policy.end_of_turn,
        _stops(policy, settings.stop),
        max_new_tokens,
    )
    # Longest first: rows of a batch have similar lengths, and lack of memory shows at once.
    order = sorted(range(len(ids)), key=lambda position: -len(ids[position]))
    rows = _rows(prompts, order, settings)
    drawn: list[dict[int, Drawn]] = [{} for _ in prompts]
    model: Any = policy.model
    training = model.training
    model.eval()
    try:
        if ids and continuous.serves(model, len(ids[order[0]]) + max_new_tokens):
            coming = continuous.generate(model, ids, rows, rules, batch_size)
        else:
            coming = library.generate(policy, ids, rows, rules, batch_size)
        for done, row in enumerate(coming, start=1):
            if progress is not None:
                progress(done, n * len(ids))
            own = drawn[row.prompt]
            own[row.index] = Drawn(np.array(row.tokens, dtype=np.int32), row.logp, row.stopped)
            if len(own) == n and on_done is not None:
                on_done(row.prompt, [own[index] for index in range(n)])
    finally:
        model.train(training)
    return [[own[index] for index in range(n)] for own in drawn]


def _rows(prompts: Sequence[Prompt], order: Sequence[int], settings: Settings) -> Iterator[Row]:
    """The samples that are to be drawn; those of one prompt stand together."""
    seen: Counter[bytes] = Counter()
    before = []
    for prompt in prompts:
        before.append(seen[prompt_key(prompt)])
        seen[prompt_key(prompt)] += settings.n
    for position in order:
        key = prompt_key(prompts[position])
        for index in range(settings.n):
            number = before[position] + index
            numbers = partial(uniforms, settings.seed, key, number, settings.max_new_tokens)
            yield Row(position, index, numbers if settings.temperature else None)


def _stops(policy: Policy, stop: Sequence[str]) -> Callable[[Sequence[int]], bool] | None:
    """Whether the text of some last tokens holds one of these."""
    if not stop:
        return None
    # A token that is not left out of the text is at least a byte of it, so this many hold the
    # longest of them, and a character that was begun before.
    window = max(len(text.encode("utf-8", "surrogatepass")) for text in stop) + 4
    added = policy.tokenizer.added_tokens_decoder
    special = frozenset(ids for ids, token in added.items() if token.special)

    def stopped(tokens: Sequence[int]) -> bool:
        last = islice((token for token in reversed(tokens) if token not in special), window)
        tail = _decoded(policy, list(last)[::-1])
        return any(text in tail for text in stop)

    return stopped


def _decoded(policy: Policy, ids: Sequence[int] | Ids) -> str:
    decoded = policy.tokenizer.decode(
        [int(i) for i in ids], skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    return str(decoded)


def before_stop(text: str, stop: Sequence[str]) -> str:
    """A text up to the first of these that is in it.

    >>> before_stop("one. two! three.", ["!", "."])
    'one'
    """
    return text[: min((text.index(part) for part in stop if part in text), default=len(text))]


def to_texts(policy: Policy, groups: Sequence[TokenGroup]) -> list[list[str]]:
    """Sampled tokens as text, without special tokens and end of turn."""
    return [[text_of(policy, ids) for ids in group.completions] for group in groups]


def text_of(policy: Policy, ids: Ids, stop: Sequence[str] = ()) -> str:
    """A completion as text, without special tokens and end of turn, up to a text of `stop`."""
    text = _decoded(policy, ids[:-1] if int(ids[-1]) in policy.end_of_turn else ids)
    return before_stop(text, stop)


def encode_prompts(policy: Policy, prompts: Sequence[Prompt], max_new_tokens: int) -> list[Ids]:
    """Token ids of prompts.

    Raises:
        DataError: one has no tokens, or leaves no room for an answer of that length.
    """
    encoder = Encoder(policy.tokenizer, end_of_turn=policy.end_of_turn)
    return [_encoded(policy, encoder, prompt, max_new_tokens) for prompt in prompts]


def unfit(policy: Policy, prompts: Sequence[Prompt], max_new_tokens: int) -> dict[int, DataError]:
    """Position of each prompt that `encode_prompts` refuses, and why."""
    encoder = Encoder(policy.tokenizer, end_of_turn=policy.end_of_turn)
    found = {}
    for position, prompt in enumerate(prompts):
        try:
            _encoded(policy, encoder, prompt, max_new_tokens)
        except DataError as error:
            found[position] = error
    return found


def _encoded(policy: Policy, encoder: Encoder, prompt: Prompt, max_new_tokens: int) -> Ids:
    ids: Ids = encoder.prompt_ids(prompt)
    limit = policy.max_length
    if len(ids) == 0:
        raise DataError(
            "the prompt has no tokens and the tokenizer has no BOS, so there is nothing "
            "to continue",
            kind="empty_prompt",
            field="prompt",
            remedy="give a prompt, or a tokenizer with a BOS token",
        )
    if limit is not None and len(ids) + max_new_tokens > limit:
        raise DataError(
            f"the prompt has {len(ids)} tokens; with {max_new_tokens} new ones it is longer "
            f"than the {limit} that the model was made for",
            kind="too_long",
            field="prompt",
            value=prompt,
            remedy="lower max_new_tokens or shorten the prompt",
        )
    return ids
