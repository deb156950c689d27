"""Lengths in tokens, and what a limit would do to them, by the encoder that training uses."""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from prefopt.data.checking.findings import Place
from prefopt.data.checking.lengths import Lengths
from prefopt.engine.rendering import render_group, render_prompt
from prefopt.engine.tokens import Encoder, TokenGroup, TooLong
from prefopt.errors import DataError, PolicyError, RecipeError
from prefopt.policies.load import length_limit, load_tokenizer
from prefopt.records import Group

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CHOICES: tuple[TooLong, ...] = ("drop", "cut_prompt_start", "cut_completion")


@dataclass(frozen=True)
class Measure:
    """Measures groups with one tokenizer.

    Attributes:
        tokenizer: of the policy.
        name: what to call it.
        end_of_turn: ids that end an answer, beside the tokenizer's EOS.
        limit: most tokens of a prompt and a completion together.
    """

    tokenizer: PreTrainedTokenizerBase
    name: str = "(in memory)"
    end_of_turn: frozenset[int] = frozenset()
    limit: int | None = None

    def __call__(
        self,
        groups: Iterable[Group],
        *,
        examples: int = 20,
        progress: Callable[..., None] | None = None,
    ) -> Lengths:
        """The lengths of all groups, and what each choice of `too_long` would do.

        Args:
            groups: as training has them, rows with the same prompt merged.
            examples: rows named for each kind at most.
            progress: called with the groups done so far.

        Raises:
            PolicyError: the data are conversations and the tokenizer has no chat template.
        """
        if self.tokenizer.eos_token_id is None:
            none = _whole_numbers(array("i"))
            return Lengths(self.name, self.limit, none, none, none, ends=False)
        tally = _Tally(self, examples)
        for done, (group, encoded) in enumerate(self._encoded(groups), start=1):
            tally.add(group, encoded)
            if progress is not None:
                progress(done)
        return tally.lengths()

    def encoder(self, too_long: TooLong, *, limit: int | None, raising: bool = False) -> Encoder:
        """An encoder that differs from training's in its choices alone."""
        return Encoder(
            self.tokenizer,
            end_of_turn=self.end_of_turn,
            max_length=limit,
            too_long=too_long,
            on_error="raise" if raising else "skip",
        )

    def _encoded(self, groups: Iterable[Group]) -> Iterator[tuple[Group, TokenGroup | DataError]]:
        """Every group with its tokens at full length, or with why it has none."""
        waiting: deque[Group] = deque()

        def noted() -> Iterator[Group]:
            for group in groups:
                waiting.append(group)
                yield group

        for encoded in self.encoder("error", limit=None)(noted()):
            while waiting[0].origins != encoded.origins:
                yield self._refused(waiting.popleft())
            yield waiting.popleft(), encoded
        yield from map(self._refused, waiting)

    def _refused(self, group: Group) -> tuple[Group, DataError]:
        """A group that was left out, with what the encoder says when it is asked alone."""
        try:
            list(self.encoder("error", limit=None, raising=True)([group]))
        except DataError as error:
            return group, error
        raise AssertionError("a group that was left out is taken when it comes alone")


class _Tally:
    """Numbers that grow with the groups."""

    def __init__(self, measure: Measure, examples: int) -> None:
        self.measure = measure
        self.examples = examples
        self.prompts, self.completions, self.together = array("i"), array("i"), array("i")
        self.refused: dict[str, tuple[int, list[Place]]] = {}
        self.places: dict[str, list[Place]] = {}
        limit = measure.limit
        self.choices = {} if limit is None else {
            choice: measure.encoder(choice, limit=limit) for choice in _CHOICES
        }  # fmt: skip
        self.template_ends: bool | None = None
        self.begins_twice: bool | None = None

    def add(self, group: Group, encoded: TokenGroup | DataError) -> None:
        """The next group."""
        if isinstance(encoded, DataError):
            self._refuse(encoded.kind, max(1, len(group.comparisons)), group)
            return
        lost = len(group.comparisons) - len(encoded.comparisons)
        if lost:  # of a completion with itself, token for token
            self._refuse("identical_sides", lost, group)
        self._ask(group, encoded)
        prompt = len(encoded.prompt)
        self.prompts.append(prompt)
        for ids in encoded.completions:
            self.completions.append(len(ids))
            self.together.append(prompt + len(ids))
        limit = self.measure.limit
        if limit is None or prompt + max(map(len, encoded.completions)) <= limit:
            return
        self._place(self.places.setdefault("too_long", []), group)
        for encoder in self.choices.values():
            before = encoder.report.skipped["identical_sides"]
            encoder.within_limit(encoded)
            if encoder.report.skipped["identical_sides"] > before:
                self._place(self.places.setdefault("identical_when_cut", []), group)

    def _refuse(self, kind: str, comparisons: int, group: Group) -> None:
        count, places = self.refused.get(kind, (0, []))
        self._place(places, group)
        self.refused[kind] = count + comparisons, places

    def _place(self, places: list[Place], group: Group) -> None:
        if len(places) < self.examples and group.origins:
            places.append(Place(group.origins[0].file, group.origins[0].row))

    def _ask(self, group: Group, encoded: TokenGroup) -> None:
        """What the first group, and the first conversation, tell of tokenizer and template."""
        tokenizer: Any = self.measure.tokenizer
        if self.begins_twice is None:
            bos = tokenizer.bos_token_id
            ids = tokenizer(render_prompt(tokenizer, group.prompt))["input_ids"]
            self.begins_twice = bos is not None and list(ids[:2]) == [bos, bos]
        if self.template_ends is None and not isinstance(group.prompt, str):
            written = render_group(tokenizer, group)[1]
            ids = tokenizer(written, add_special_tokens=False)["input_ids"]
            self.template_ends = len(encoded.completions[0]) <= len(ids)

    def lengths(self) -> Lengths:
        """What was found."""
        reports = {choice: encoder.report for choice, encoder in self.choices.items()}
        return Lengths(
            self.measure.name,
            self.measure.limit,
            _whole_numbers(self.prompts),
            _whole_numbers(self.completions),
            _whole_numbers(self.together),
            refused=self.refused,
            skipped={choice: dict(+report.skipped) for choice, report in reports.items()},
            cut={choice: dict(+report.cut) for choice, report in reports.items()},
            places=self.places,
            template_ends=self.template_ends,
            begins_twice=bool(self.begins_twice),
        )


def load_measure(source: str, max_length: int | None = None) -> Measure:
    """The measure of a model folder or hub id, or of a folder with nothing but a tokenizer.

    The limit is `max_length`, or that of the model's config if there is one, as in training.

    Raises:
        PolicyError: there is no tokenizer.
        RecipeError: the model was made for fewer tokens.
    """
    from transformers import AutoConfig, GenerationConfig

    try:
        tokenizer = load_tokenizer(source)
    except (OSError, ValueError, KeyError) as error:
        first = (str(error).strip().splitlines() or ["no message"])[0]
        raise PolicyError(
            f"cannot load a tokenizer from '{source}': {first}",
            field="tokenizer",
            value=source,
            remedy="give a folder that save_pretrained wrote, or a hub id",
        ) from error
    config = _if_there(AutoConfig.from_pretrained, source)
    made_for = None if config is None else length_limit(config)
    if max_length is not None and made_for is not None and max_length > made_for:
        raise RecipeError(
            f"max_length is more than the {made_for} tokens that the model was made for",
            field="max_length",
            value=max_length,
            remedy=f"set it to {made_for} or less",
        )
    speaks = _if_there(GenerationConfig.from_pretrained, source) or config
    declared = getattr(speaks, "eos_token_id", None)
    ends = declared if isinstance(declared, list) else [declared]
    return Measure(
        tokenizer, source, frozenset(i for i in ends if i is not None), max_length or made_for
    )


def _if_there(load: Callable[[str], Any], source: str) -> Any:
    """What a folder may have beside the tokenizer."""
    try:
        return load(source)
    except (OSError, ValueError, KeyError):
        return None


def _whole_numbers(values: array[int]) -> NDArray[np.int32]:
    return np.array(values, dtype=np.int32)
