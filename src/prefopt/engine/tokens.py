"""Text becomes tokens here, and nowhere else in training: the same tokens as at inference.

The prompt is rendered and tokenised alone, the completion alone, and the two are
concatenated; a model that generates never sees a token that spans the two. Chat models use
their tokenizer's template, text models end with EOS.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import islice
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from prefopt.engine.rendering import render_group, render_prompt
from prefopt.errors import DataError, PolicyError
from prefopt.records import Comparison, Group, Label, Origin, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Ids = NDArray[np.int32]
TooLong = Literal["error", "drop", "cut_prompt_start", "cut_completion"]
OnError = Literal["raise", "skip"]
#: (prompt, K texts) → K numbers
Column = Callable[[Prompt, Sequence[str]], Sequence[float]]
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
        columns: further numbers by name, one for each completion, such as its `score`.
    """

    prompt: Ids
    completions: tuple[Ids, ...]
    comparisons: tuple[Comparison, ...] = ()
    labels: tuple[Label, ...] = ()
    source: str | None = None
    origins: tuple[Origin, ...] = ()
    columns: Mapping[str, tuple[float | None, ...]] = field(default_factory=dict)

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
        columns: numbers that are computed from the text of a prompt and its completions, one
            for each, by name; a `score` that the data has is a column already.

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
        on_error: OnError = "raise",
        columns: Mapping[str, Column] | None = None,
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
        self.max_length = max_length
        self.too_long = too_long
        self.on_error = on_error
        self.columns = dict(columns or {})
        self.report = TokenReport()

    def __call__(self, groups: Iterable[Group]) -> Iterator[TokenGroup]:
        """Encode a stream of groups, keeping its order.

        Raises:
            DataError: a group cannot be encoded and `on_error` is "raise".
            PolicyError: the data are conversations and the tokenizer has no chat template.
        """
        with ThreadPoolExecutor(1) as worker:  # its thread starts with the second chunk
            waiting: _Chunk | None = None
            for chunk in _chunks(groups):
                if isinstance(chunk, Exception):
                    if waiting is not None:
                        yield from self._encoded(*waiting)
                    raise chunk
                texts = self._rendered(chunk)
                flat = [text for item in texts if isinstance(item, list) for text in item]
                # The tokenizer works on this chunk while Python is busy with the last and the next.
                ids = worker.submit(self._ids, flat) if len(chunk) == _CHUNK else None
                if waiting is not None:
                    yield from self._encoded(*waiting)
                waiting = chunk, texts, ids.result if ids is not None else partial(self._ids, flat)
            if waiting is not None:
                yield from self._encoded(*waiting)

    def _encoded(
        self,
        groups: Sequence[Group],
        texts: Sequence[list[str] | DataError],
        ids: Callable[[], list[list[int]]],
    ) -> Iterator[TokenGroup]:
        """The groups of a chunk that are admitted, as tokens."""
        found = iter(ids())
        for group, item in zip(groups, texts, strict=True):
            whole = (
                item
                if isinstance(item, DataError)
                else self._bound(group, [next(found) for _ in item])
            )
            encoded = self._admit(group, whole)
            if encoded is not None:
                self._count(encoded)
                yield encoded

    def prompt_ids(self, prompt: Prompt) -> Ids:
        """(P,) ids of one prompt, as the model sees it when it is asked to speak."""
        (ids,) = self._ids([render_prompt(self.tokenizer, prompt)])
        return self._begin(ids, chat=not isinstance(prompt, str))

    # -- text to ids -----------------------------------------------------------------------

    def _rendered(self, groups: Sequence[Group]) -> list[list[str] | DataError]:
        """For each group the texts of its prompt and its completions, or why it has none."""
        rendered: list[list[str] | DataError] = []
        for group in groups:
            try:
                rendered.append(render_group(self.tokenizer, group))
            except DataError as error:
                rendered.append(error)
        return rendered

    def _ids(self, texts: list[str]) -> list[list[int]]:
        if not texts:
            return []
        batch = self.tokenizer(
            texts, add_special_tokens=False, return_attention_mask=False, verbose=False
        )
        ids: list[list[int]] = batch["input_ids"]
        return ids

    def _bound(self, group: Group, ids: list[list[int]]) -> list[Ids] | DataError:
        """Prompt ids with their beginning, completion ids with their end."""
        chat = not isinstance(group.prompt, str)
        prompt, *completions = ids
        try:
            return [self._begin(prompt, chat), *(self._end(answer, chat) for answer in completions)]
        except DataError as error:
            return error

    def _begin(self, ids: list[int], chat: bool) -> Ids:
        """A template brings its own first tokens; before plain text come the tokenizer's."""
        if not chat and ids[: len(self._prefix)] != self._prefix:
            ids = [*self._prefix, *ids]
        bos = self.tokenizer.bos_token_id
        while bos is not None and ids[:2] == [bos, bos]:
            ids = ids[1:]
        return _array(ids)

    @cached_property
    def _prefix(self) -> list[int]:
        """What the tokenizer puts before plain text: its BOS, or nothing."""
        (bare,) = self._ids(["a"])
        whole: list[int] = self.tokenizer(["a"], return_attention_mask=False)["input_ids"][0]
        return next((whole[:i] for i in range(len(whole)) if whole[i : i + len(bare)] == bare), [])

    def _end(self, ids: list[int], chat: bool) -> Ids:
        """A completion up to and including its first end of turn, which is added if missing."""
        stop = None
        if not self.end_of_turn.isdisjoint(ids):
            stop = next(i for i, token in enumerate(ids) if token in self.end_of_turn)
        if stop is None and chat:
            # A template may end turns with a special token that nothing declares as the end.
            stop = next((i for i in reversed(range(len(ids))) if not self._is_blank(ids[i])), None)
            stop = stop if stop is not None and ids[stop] in self._special else None
        if stop is None:
            return _array([*ids, self.eos])
        if not all(self._is_blank(token) or token in self._special for token in ids[stop + 1 :]):
            raise DataError(
                "the completion goes on after an end-of-turn token",
                kind="end_inside",
                value=self.tokenizer.decode(ids),
                remedy="remove the end-of-turn token from the text; one is added where needed",
            )
        return _array(ids[: stop + 1])

    @cached_property
    def _special(self) -> frozenset[int]:
        return frozenset(self.tokenizer.all_special_ids) | self.end_of_turn

    def _is_blank(self, token: int) -> bool:
        return token not in self._special and not str(self.tokenizer.decode([token])).strip()

    # -- what is admitted ------------------------------------------------------------------

    def _admit(self, group: Group, ids: list[Ids] | DataError) -> TokenGroup | None:
        """The group as tokens if it may be trained on; else it is raised or counted."""
        try:
            if isinstance(ids, DataError):
                raise ids
            prompt, *completions = ids
            if len(prompt) == 0:
                raise DataError(
                    "the prompt has no tokens and the tokenizer has no BOS, "
                    "so nothing predicts the first token of the completion",
                    kind="empty_prompt",
                    field="prompt",
                    remedy="give a prompt, or a tokenizer with a BOS token",
                )
            return self.within_limit(self._group(group, prompt, completions))
        except DataError as error:
            if error.file is None and group.origins:
                error.file, error.row = group.origins[0].file, group.origins[0].row
            if self.on_error == "raise":
                raise
            self.report.skipped[error.kind] += max(1, len(group.comparisons))
            return None

    def within_limit(self, encoded: TokenGroup) -> TokenGroup | None:
        """What is left of a group within `max_length`; what is lost is raised or counted."""
        fitted = self._fit(encoded)
        return None if fitted is None else self._refuse_identical(fitted)

    def _group(self, group: Group, prompt: Ids, answers: Sequence[Ids]) -> TokenGroup:
        """The group as tokens, with its columns."""
        texts = [completion.text for completion in group.completions]
        scores = tuple(completion.score for completion in group.completions)
        known = {"score": scores} if any(score is not None for score in scores) else {}
        made = {name: tuple(column(group.prompt, texts)) for name, column in self.columns.items()}
        edges, marks = group.comparisons, group.labels
        whole = (prompt, tuple(answers), edges, marks, group.source, group.origins)
        return TokenGroup(*whole, columns={**known, **made})

    def _fit(self, encoded: TokenGroup) -> TokenGroup | None:
        """The group within `max_length`, cut or thinned out as `too_long` says."""
        limit = self.max_length
        longest = max(len(ids) for ids in encoded.completions)
        if limit is None or len(encoded.prompt) + longest <= limit:
            return encoded
        if self.too_long == "error":
            raise DataError(
                f"prompt and completion have {len(encoded.prompt)} + {longest} tokens, "
                f"more than max_length = {limit}",
                kind="too_long",
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
        # What is left: completions that cannot fit however much of the prompt is cut.
        room = limit - (1 if self.too_long == "cut_prompt_start" else len(encoded.prompt))
        kept = restrict(
            encoded, [i for i, ids in enumerate(encoded.completions) if len(ids) <= room]
        )
        lost = len(encoded.comparisons) - (len(kept.comparisons) if kept else 0)
        self.report.skipped["too_long"] += max(1, lost)
        if kept is None or (encoded.comparisons and not kept.comparisons):
            return None
        return self._fit(kept)

    def _cut_prompt(self, prompt: Ids, room: int) -> Ids:
        """The end of the prompt, with its BOS kept where it had one."""
        if room > 1 and prompt[0] == self.tokenizer.bos_token_id:
            return np.concatenate([prompt[:1], prompt[len(prompt) - (room - 1) :]])
        return prompt[len(prompt) - room :]

    def _refuse_identical(self, encoded: TokenGroup) -> TokenGroup | None:
        """The group without comparisons of a completion with itself, token for token."""
        distinct = []
        for edge in encoded.comparisons:
            sides = encoded.completions[edge.preferred], encoded.completions[edge.dispreferred]
            if sides[0].tobytes() != sides[1].tobytes():
                distinct.append(edge)
            elif self.on_error == "raise":
                raise DataError(
                    "the two completions of a comparison are the same tokens",
                    kind="identical_sides",
                    value=self.tokenizer.decode(sides[0]),
                    remedy="remove the pair, raise max_length if it was cut, or set on_error: skip",
                )
            else:
                self.report.skipped["identical_sides"] += 1
        if len(distinct) == len(encoded.comparisons):
            return encoded
        return replace(encoded, comparisons=tuple(distinct)) if distinct else None

    def _count(self, encoded: TokenGroup) -> None:
        self.report.groups += 1
        self.report.completions += len(encoded.completions)
        self.report.comparisons += len(encoded.comparisons)
        self.report.tokens += len(encoded.prompt) + sum(len(ids) for ids in encoded.completions)


#: groups, their texts or why there are none, and the ids of the texts once they are there
_Chunk = tuple[list[Group], list[list[str] | DataError], Callable[[], list[list[int]]]]


def _chunks(groups: Iterable[Group]) -> Iterator[list[Group] | Exception]:
    """The groups in chunks, and the exception that ended them, if one did.

    The groups of a chunk that was begun are lost with it, as the first thing that is wrong
    is all that anyone wants to know; those of earlier chunks come first.
    """
    stream = iter(groups)
    try:
        while chunk := list(islice(stream, _CHUNK)):
            yield chunk
    except Exception as error:
        yield error


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
        columns={
            name: tuple(values[index] for index in kept) for name, values in group.columns.items()
        },
    )


def _array(ids: Sequence[int] | Ids) -> Ids:
    return np.asarray(ids, dtype=np.int32)
