"""Text becomes tokens here, and nowhere else in training: the same tokens as at inference.

The prompt is rendered and tokenised alone, the completion alone, and the two are
concatenated; a model that generates never sees a token that spans the two. Chat models use
their tokenizer's template, text models end with EOS.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from prefopt.errors import DataError, PolicyError
from prefopt.records import Comparison, Group, Label, Message, Origin, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Ids = NDArray[np.int32]
TooLong = Literal["error", "drop", "cut_prompt_start", "cut_completion"]
_CHUNK = 256  # groups tokenised in one call of the tokenizer


@dataclass(frozen=True, slots=True)
class TokenGroup:
    """A group as a model sees it.

    Attributes:
        prompt: (P,) token ids, P ≥ 1.
        completions: K arrays of token ids, each at least one long and with its
            end-of-turn token (unless it was cut). Every one of these tokens is scored.
        comparisons: edges between the completions.
        labels: marks on the completions.
        source: name of the data source.
        origins: the rows it came from.
    """

    prompt: Ids
    completions: tuple[Ids, ...]
    comparisons: tuple[Comparison, ...] = ()
    labels: tuple[Label, ...] = ()
    source: str | None = None
    origins: tuple[Origin, ...] = ()

    @property
    def place(self) -> str:
        """Where it was read, for messages."""
        return ", ".join(f"{origin.file}:{origin.row}" for origin in self.origins) or "(in memory)"


@dataclass
class TokenReport:
    """What tokenising did to the data: nothing is dropped or cut without being counted.

    Attributes:
        groups, completions, comparisons: what is left.
        tokens: of all completions and, once a group, of the prompts.
        skipped: comparisons (or whole groups that have none) left out, by reason.
        cut: groups whose prompt or completions were shortened, by where.
    """

    groups: int = 0
    completions: int = 0
    comparisons: int = 0
    tokens: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    cut: Counter[str] = field(default_factory=Counter)


class Encoder:
    """Turns groups of text into groups of tokens for one tokenizer.

    Args:
        tokenizer: of the policy.
        end_of_turn: ids that end an answer; the tokenizer's EOS is always one of them.
        max_length: most tokens of prompt and completion together.
        too_long: what happens beyond it. `drop` leaves out the completions that do not fit,
            `cut_prompt_start` keeps the end of the prompt, `cut_completion` the beginning of
            the completions.
        on_error: `raise` stops at the first refused row, `skip` counts it in the report.

    Raises:
        PolicyError: the tokenizer has no EOS.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        end_of_turn: Iterable[int] = (),
        max_length: int | None = None,
        too_long: TooLong = "error",
        on_error: Literal["raise", "skip"] = "raise",
    ) -> None:
        if tokenizer.eos_token_id is None:
            raise PolicyError(
                "the tokenizer has no end-of-sequence token, so no completion could ever end",
                field="model",
                remedy="set `eos_token` in the tokenizer's tokenizer_config.json",
            )
        self.tokenizer = tokenizer
        self.eos: int = tokenizer.eos_token_id
        self.end_of_turn = frozenset(end_of_turn) | {self.eos}
        self.special = frozenset(tokenizer.all_special_ids) | self.end_of_turn
        self.max_length = max_length
        self.too_long = too_long
        self.on_error = on_error
        self.report = TokenReport()

    def __call__(self, groups: Iterable[Group]) -> Iterator[TokenGroup]:
        """Encode a stream of groups, keeping its order."""
        stream = iter(groups)
        while chunk := list(islice(stream, _CHUNK)):
            for group, prompt, completions in zip(chunk, *self._tokenize(chunk), strict=True):
                encoded = self._admit(group, prompt, completions)
                if encoded is not None:
                    self._count(encoded)
                    yield encoded

    def prompt_ids(self, prompt: Prompt) -> Ids:
        """One prompt as the model sees it when it is asked to speak."""
        return _array(self._prompts([self._render_prompt(prompt)], [prompt])[0])

    # -- text to ids -----------------------------------------------------------------------

    def _tokenize(self, groups: Sequence[Group]) -> tuple[list[Ids], list[Any]]:
        """Prompt ids of each group, and completion ids (or the error that refused them)."""
        rendered = [self._render_prompt(group.prompt) for group in groups]
        prompts = self._prompts(rendered, [group.prompt for group in groups])
        texts: list[str] = []
        errors: dict[int, DataError] = {}
        for index, (group, prompt) in enumerate(zip(groups, rendered, strict=True)):
            try:
                texts += self._render_completions(group, prompt)
            except DataError as error:
                errors[index] = error
        ids = iter(self._ids(texts, special=False) if texts else [])
        completions: list[Any] = []
        for index, group in enumerate(groups):
            if index in errors:
                completions.append(errors[index])
            else:
                chat = not isinstance(group.prompt, str)
                completions.append(
                    [self._end(next(ids), completion.text, chat) for completion in group.completions]
                )
        return [_array(prompt) for prompt in prompts], completions

    def _ids(self, texts: list[str], *, special: bool) -> list[list[int]]:
        batch = self.tokenizer(
            texts, add_special_tokens=special, return_attention_mask=False, verbose=False
        )
        ids: list[list[int]] = batch["input_ids"]
        return ids

    def _prompts(self, rendered: list[str], prompts: Sequence[Prompt]) -> list[list[int]]:
        """Prompt ids: templates bring their own special tokens, plain text gets the tokenizer's."""
        chat = [not isinstance(prompt, str) for prompt in prompts]
        result: list[list[int]] = [[] for _ in rendered]
        for is_chat in (False, True):
            chosen = [index for index, value in enumerate(chat) if value == is_chat]
            if not chosen:
                continue
            for index, ids in zip(
                chosen, self._ids([rendered[i] for i in chosen], special=not is_chat), strict=True
            ):
                result[index] = self._clean_prompt(ids, is_chat)
        return result

    def _clean_prompt(self, ids: list[int], is_chat: bool) -> list[int]:
        bos = self.tokenizer.bos_token_id
        if not is_chat and ids and ids[-1] == self.eos and self._appends_eos:
            ids = ids[:-1]
        while bos is not None and ids[:2] == [bos, bos]:
            ids = ids[1:]
        if not ids and bos is not None:
            ids = [bos]
        return ids

    @property
    def _appends_eos(self) -> bool:
        """Whether the tokenizer ends plain text with EOS by itself (then a prompt must not)."""
        probe = self._ids(["a"], special=True)[0]
        return len(probe) > 1 and probe[-1] == self.eos

    def _end(self, ids: list[int], text: str, chat: bool) -> list[int]:
        """Completion ids up to and including the first end of turn; one is added if missing."""
        for position, token in enumerate(ids):
            if token in self.end_of_turn:
                return ids[: position + 1]
        if chat:
            # A template may end turns with a token that nothing declares as the end of a turn.
            ending = len(ids)
            while ending and self._is_blank(ids[ending - 1]):
                ending -= 1
            if ending and ids[ending - 1] in self.special:
                return ids[:ending]
        return [*ids, self.eos]

    def _is_blank(self, token: int) -> bool:
        return token not in self.special and not str(self.tokenizer.decode([token])).strip()

    # -- records to text -------------------------------------------------------------------

    def _render_prompt(self, prompt: Prompt) -> str:
        if isinstance(prompt, str):
            return prompt
        return self._render(prompt, add_generation_prompt=True)

    def _render(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
        if not self.tokenizer.chat_template:
            raise PolicyError(
                "the data has conversations and the tokenizer has no chat template",
                field="model",
                remedy="use a chat model, give its tokenizer a `chat_template`, "
                "or write the prompts as text",
            )
        conversation = [{"role": turn.role, "content": turn.content} for turn in messages]
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    conversation, tokenize=False, add_generation_prompt=add_generation_prompt
                )
            )
        except Exception as error:  # templates raise whatever their authors chose
            raise DataError(
                f"the tokenizer's chat template refused the conversation: {error}",
                kind="template",
                field="prompt",
                value=conversation,
                remedy="check the order and the names of the roles",
            ) from error

    def _render_completions(self, group: Group, prompt: str) -> list[str]:
        if isinstance(group.prompt, str):
            return [completion.text for completion in group.completions]
        texts = []
        for completion in group.completions:
            turns = (*group.prompt, Message("assistant", completion.text))
            whole = self._render(turns, add_generation_prompt=False)
            if not whole.startswith(prompt):
                raise self._refusal(
                    group,
                    "template",
                    "the rendered conversation does not start with the rendered prompt",
                    value=f"prompt {prompt[-80:]!r}, conversation {whole[max(0, len(prompt) - 80) :]!r}",
                    remedy="use a template whose generation prompt is what an answer starts with",
                )
            texts.append(whole[len(prompt) :])
        return texts

    # -- what is admitted ------------------------------------------------------------------

    def _admit(self, group: Group, prompt: Ids, completions: Any) -> TokenGroup | None:
        try:
            if isinstance(completions, DataError):
                raise completions
            if len(prompt) == 0:
                raise self._refusal(
                    group,
                    "empty_prompt",
                    "the prompt has no tokens and the tokenizer has no BOS, "
                    "so nothing predicts the first token of the completion",
                    remedy="give a prompt, or a tokenizer with a BOS token",
                )
            encoded = TokenGroup(
                prompt,
                tuple(_array(ids) for ids in completions),
                group.comparisons,
                group.labels,
                group.source,
                group.origins,
            )
            fitted = self._fit(group, encoded)
            return None if fitted is None else self._refuse_identical(group, fitted)
        except DataError as error:
            if self.on_error == "raise":
                raise
            self.report.skipped[error.kind] += max(1, len(group.comparisons))
            return None

    def _fit(self, group: Group, encoded: TokenGroup) -> TokenGroup | None:
        limit = self.max_length
        longest = max(len(ids) for ids in encoded.completions)
        if limit is None or len(encoded.prompt) + longest <= limit:
            return encoded
        if self.too_long == "error":
            raise self._refusal(
                group,
                "too_long",
                f"prompt and completion have {len(encoded.prompt)} + {longest} tokens, "
                f"more than max_length = {limit}",
                remedy="raise max_length, or choose too_long: drop, cut_prompt_start "
                "or cut_completion",
            )
        if self.too_long == "cut_prompt_start" and longest < limit:
            self.report.cut["prompt_start"] += 1
            return replace(encoded, prompt=self._cut_prompt(encoded.prompt, limit - longest))
        if self.too_long == "cut_completion" and len(encoded.prompt) < limit:
            self.report.cut["completion"] += 1
            room = limit - len(encoded.prompt)
            return replace(encoded, completions=tuple(ids[:room] for ids in encoded.completions))
        room = limit - (1 if self.too_long == "cut_prompt_start" else len(encoded.prompt))
        fitting = [i for i, ids in enumerate(encoded.completions) if len(ids) <= room]
        kept = restrict(encoded, fitting)
        dropped = len(encoded.comparisons) - (len(kept.comparisons) if kept else 0)
        self.report.skipped["too_long"] += max(1, dropped) if not encoded.comparisons else dropped
        if kept is None or (encoded.comparisons and not kept.comparisons):
            return None
        return self._fit(group, kept)

    def _cut_prompt(self, prompt: Ids, room: int) -> Ids:
        """The end of the prompt, with its BOS kept where it had one."""
        if room > 1 and prompt[0] == self.tokenizer.bos_token_id:
            return np.concatenate([prompt[:1], prompt[len(prompt) - (room - 1) :]])
        return prompt[len(prompt) - room :]

    def _refuse_identical(self, group: Group, encoded: TokenGroup) -> TokenGroup | None:
        distinct = []
        for edge in encoded.comparisons:
            sides = encoded.completions[edge.preferred], encoded.completions[edge.dispreferred]
            if np.array_equal(*sides):
                error = self._refusal(
                    group,
                    "identical_sides",
                    "the two completions of a comparison are the same tokens",
                    remedy="remove the pair, raise max_length if it was cut, or set on_error: skip",
                )
                if self.on_error == "raise":
                    raise error
                self.report.skipped["identical_sides"] += 1
            else:
                distinct.append(edge)
        if encoded.comparisons and not distinct:
            return None
        return replace(encoded, comparisons=tuple(distinct))

    def _refusal(self, group: Group, kind: str, message: str, **place: Any) -> DataError:
        origin = group.origins[0] if group.origins else None
        return DataError(
            message,
            kind=kind,
            file=origin.file if origin else None,
            row=origin.row if origin else None,
            **place,
        )

    def _count(self, encoded: TokenGroup) -> None:
        self.report.groups += 1
        self.report.completions += len(encoded.completions)
        self.report.comparisons += len(encoded.comparisons)
        self.report.tokens += len(encoded.prompt) + sum(len(ids) for ids in encoded.completions)


def restrict(group: TokenGroup, kept: Sequence[int]) -> TokenGroup | None:
    """The group with only these completions, its edges and marks re-indexed; None if empty."""
    if not kept:
        return None
    place = {old: new for new, old in enumerate(kept)}
    return replace(
        group,
        completions=tuple(group.completions[index] for index in kept),
        comparisons=tuple(
            replace(edge, preferred=place[edge.preferred], dispreferred=place[edge.dispreferred])
            for edge in group.comparisons
            if edge.preferred in place and edge.dispreferred in place
        ),
        labels=tuple(
            replace(label, completion=place[label.completion])
            for label in group.labels
            if label.completion in place
        ),
    )


def _array(ids: Sequence[int] | Ids) -> Ids:
    return np.asarray(ids, dtype=np.int32)
