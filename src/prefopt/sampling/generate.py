"""Completions sampled from a policy: batched, seeded, and independent of the batching.

Shapes: R rows = prompts × samples, V vocabulary. Prompts are tokenised by the same encoder
as in training. Each row owns a stream of uniform numbers, one a step, drawn from (seed,
prompt, index of the sample); a token is where that number falls in the cumulated
distribution. So a sample depends on nothing else: not on `batch_size`, not on which other
prompts are asked, not on the order (up to ties within floating-point error of the logits).
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from prefopt.engine.soft_prompts import soft_prompt
from prefopt.engine.tokens import Encoder, Ids, TokenGroup
from prefopt.errors import DataError, RecipeError
from prefopt.policies.computing import computing
from prefopt.policies.load import base_model
from prefopt.records import Prompt, prompt_key

if TYPE_CHECKING:
    from prefopt.policies.load import Policy

Progress = Callable[[int, int], None]


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
        batch_size: completions generated at once; does not change the result.
        progress: called with (completions done, completions in all) after each batch.

    Returns:
        For each prompt its n texts, without special tokens and end of turn.

    Raises:
        RecipeError: a setting is out of range or would have no effect.
        DataError: a prompt has no tokens, or leaves no room for `max_new_tokens`.
    """
    groups = sample_tokens(
        policy,
        prompts,
        n=n,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        seed=seed,
        batch_size=batch_size,
        progress=progress,
    )
    return to_texts(policy, groups)


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
    _check_settings(n, max_new_tokens, temperature, top_p, top_k, batch_size)
    ids = encode_prompts(policy, prompts, max_new_tokens)
    seen: Counter[bytes] = Counter()
    rows: list[tuple[int, NDArray[np.float64]]] = []  # position of the prompt, its uniforms
    for position, prompt in enumerate(prompts):
        key = prompt_key(prompt)
        for _ in range(n):
            rows.append((position, _uniforms(seed, key, seen[key], max_new_tokens)))
            seen[key] += 1
    warpers = _warpers(temperature, top_p, top_k)
    completions: dict[int, Ids] = {}
    # Longest first: rows of a batch have similar lengths, and lack of memory shows at once.
    order = sorted(range(len(rows)), key=lambda row: -len(ids[rows[row][0]]))
    with _own_settings(policy, max_new_tokens):
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            batch = [ids[rows[row][0]] for row in chosen]
            noise = np.stack([rows[row][1] for row in chosen])
            new = _generate(policy, batch, noise if temperature else None, warpers)
            completions.update(zip(chosen, _ended(new, policy.end_of_turn), strict=True))
            if progress is not None:
                progress(min(start + batch_size, len(order)), len(order))
    return [
        TokenGroup(prompt, tuple(completions[position * n + i] for i in range(n)))
        for position, prompt in enumerate(ids)
    ]


def to_texts(policy: Policy, groups: Sequence[TokenGroup]) -> list[list[str]]:
    """Sampled tokens as text, without special tokens and end of turn."""

    def text(ids: Ids) -> str:
        body = ids[:-1] if int(ids[-1]) in policy.end_of_turn else ids
        decoded = policy.tokenizer.decode(
            body.tolist(), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return str(decoded)

    return [[text(ids) for ids in group.completions] for group in groups]


class InverseTransform(LogitsProcessor):
    """Turns greedy decoding into sampling: keeps the token that a given number falls on.

    Args:
        uniforms: (R, steps) float64 in [0, 1).
        width: tokens of the padded prompts, where step 0 is.
    """

    def __init__(self, uniforms: Tensor, width: int) -> None:
        self.uniforms = uniforms
        self.width = width

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(R, V) logits to (R, V) with 0 at the drawn token and −∞ elsewhere."""
        # Apple's GPUs have no float64, and a float32 sum over V tokens shifts probabilities.
        logits = scores.cpu() if scores.device.type == "mps" else scores
        cumulated = logits.double().softmax(-1).cumsum(-1)
        numbers = self.uniforms[:, input_ids.shape[1] - self.width, None].to(cumulated.device)
        tokens = torch.searchsorted(cumulated, numbers * cumulated[:, -1:], right=True)
        tokens = tokens.clamp(max=scores.shape[-1] - 1).to(scores.device)
        return torch.full_like(scores, -torch.inf).scatter(-1, tokens, 0.0)


def _check_settings(
    n: int, max_new_tokens: int, temperature: float, top_p: float, top_k: int, batch_size: int
) -> None:
    limits = (
        ("n", n, n >= 1, "at least 1"),
        ("max_new_tokens", max_new_tokens, max_new_tokens >= 1, "at least 1"),
        ("temperature", temperature, 0.0 <= temperature < float("inf"), "0 or more"),
        ("top_p", top_p, 0.0 < top_p <= 1.0, "more than 0 and at most 1"),
        ("top_k", top_k, top_k >= 0, "0 (all tokens) or more"),
        ("batch_size", batch_size, batch_size >= 1, "at least 1"),
    )
    for name, value, holds, rule in limits:
        if not holds:
            raise RecipeError(f"{name} must be {rule}", field=name, value=value)
    if temperature == 0.0 and (n > 1 or top_p < 1.0 or top_k > 0):
        raise RecipeError(
            "at temperature 0 the most probable token is taken every time, so n, top_p and "
            "top_k have no effect",
            field="temperature",
            value=temperature,
            remedy="leave out n, top_p and top_k, or use a temperature above 0",
        )


def encode_prompts(policy: Policy, prompts: Sequence[Prompt], max_new_tokens: int) -> list[Ids]:
    """Token ids of prompts.

    Raises:
        DataError: one has no tokens, or leaves no room for an answer of that length.
    """
    encoder = Encoder(policy.tokenizer, end_of_turn=policy.end_of_turn)
    limit = policy.max_length
    encoded = []
    for prompt in prompts:
        ids = encoder.prompt_ids(prompt)
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
        encoded.append(ids)
    return encoded


def _uniforms(seed: int, key: bytes, index: int, steps: int) -> NDArray[np.float64]:
    """(steps,) numbers in [0, 1) that belong to one sample of one prompt."""
    digest = hashlib.blake2b(f"{seed}:{index}:".encode() + key, digest_size=16).digest()
    bits = np.random.Philox(key=int.from_bytes(digest, "little"))
    return np.random.Generator(bits).random(steps)


def _warpers(temperature: float, top_p: float, top_k: int) -> list[LogitsProcessor]:
    """What reshapes the distribution before a token is drawn, in the usual order."""
    warpers: list[LogitsProcessor] = []
    if temperature not in (0.0, 1.0):
        warpers.append(TemperatureLogitsWarper(float(temperature)))
    if top_k > 0:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p < 1.0:
        warpers.append(TopPLogitsWarper(top_p))
    return warpers


@torch.no_grad()
def _generate(
    policy: Policy,
    prompts: Sequence[Ids],
    uniforms: NDArray[np.float64] | None,
    warpers: Sequence[LogitsProcessor],
) -> Tensor:
    """(R, new) token ids that follow the prompts; filled with pads after an end of turn."""
    width = max(len(ids) for ids in prompts)
    tokens = np.zeros((len(prompts), width), dtype=np.int64)
    mask = np.zeros_like(tokens)
    for row, ids in enumerate(prompts):
        tokens[row, width - len(ids) :] = ids
        mask[row, width - len(ids) :] = 1
    model: Any = policy.model
    rows, real = (
        torch.from_numpy(tokens).to(policy.device),
        torch.from_numpy(mask).to(policy.device),
    )

    def continued() -> Tensor:
        # PEFT's own `generate` of a soft prompt is wrong for rows that are padded on the left.
        prompt = soft_prompt(model)
        speaker, inputs, start = model, {"input_ids": rows, "attention_mask": real}, width
        if prompt is not None:
            speaker, (inputs, start) = base_model(model), prompt.to_continue(rows, real)
        processors = LogitsProcessorList(warpers)
        if uniforms is not None:
            numbers = torch.from_numpy(uniforms).to(_real(policy))
            processors.append(InverseTransform(numbers, start))
        whole: Tensor = speaker.generate(**inputs, logits_processor=processors)
        return whole[:, start:].cpu()

    return computing(model, continued)


def _real(policy: Policy) -> torch.device:
    """Where float64 lives: with the model, unless that is a device without it."""
    return torch.device("cpu") if policy.device.type == "mps" else policy.device


@contextmanager
def _own_settings(policy: Policy, max_new_tokens: int) -> Iterator[None]:
    """Eval mode and a generation config of our own, both put back afterwards.

    `generate` fills what a config leaves open from the model's own, so passing one is not
    enough: it has to take its place, in the base of an adapter as well.
    """
    model: Any = policy.model
    ends = sorted(policy.end_of_turn)
    pad = policy.tokenizer.pad_token_id
    config = GenerationConfig(  # type: ignore[no-untyped-call]
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=ends,
        bos_token_id=policy.tokenizer.bos_token_id,
        pad_token_id=ends[0] if pad is None else pad,
        use_cache=True,
    )
    base = base_model(model)
    before = base.generation_config
    training = model.training
    model.eval()
    try:
        for holder in {id(base): base, id(model): model}.values():
            holder.generation_config = config
        yield
    finally:
        for holder in {id(base): base, id(model): model}.values():
            holder.generation_config = before
        model.train(training)


def _ended(tokens: Tensor, ends: frozenset[int]) -> list[Ids]:
    """Rows of new tokens, each up to and including its first end of turn."""
    rows = tokens.numpy().astype(np.int32)
    ending = np.isin(rows, list(ends))
    first = np.where(ending.any(axis=1), ending.argmax(axis=1), rows.shape[1] - 1)
    return [row[: stop + 1] for row, stop in zip(rows, first, strict=True)]
