"""Measures that are models: the probability of a classifier's label, a reward model's number.

Both read the prompt and the completion as one text: a conversation as their tokenizer's chat
template renders it (with "role: text" lines where there is none), a text prompt directly
followed by the completion. What is too long for the model loses the beginning of the prompt.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prefopt.constraints.measures import Pair
from prefopt.errors import PolicyError
from prefopt.policies.load import END_OF_TURN, READS, default_device, disable_dropout
from prefopt.records import Completion, Group

logger = logging.getLogger(__name__)

#: texts that go through a model at once
_BATCH = 32


class _SequenceModel:
    """A folder that `AutoModelForSequenceClassification` reads.

    Args:
        name: folder or hub id.
        device: the first accelerator by default.
        field: the setting, for messages.

    Raises:
        PolicyError: it cannot be loaded.
    """

    def __init__(self, name: str, *, device: Any = None, field: str = "") -> None:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        self.name, self.field = name, field
        path = Path(name).expanduser()
        if not path.is_dir() and (path.is_absolute() or name.startswith(".") or path.exists()):
            raise self._unusable("there is no such folder")
        if path.is_dir() and not (path / "config.json").exists():
            raise self._unusable("the folder has no config.json, so there is no model in it")
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(name)
            model, found = AutoModelForSequenceClassification.from_pretrained(
                name, dtype=torch.float32, output_loading_info=True
            )
        except (OSError, ValueError, KeyError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise self._unusable(reason) from error
        if missing := sorted(found["missing_keys"]):
            raise self._unusable(f"it has no weights for {missing[0]}, which would be random")
        disable_dropout(model)
        self.model = model.to(device or default_device()).eval().requires_grad_(False)
        self._told = False

    @torch.no_grad()
    def logits(self, pairs: Sequence[Pair]) -> Tensor:
        """(N, outputs) float32 logits of the pairs, in order."""
        ids = [self._ids(pair) for pair in pairs]
        order = sorted(range(len(ids)), key=lambda index: -len(ids[index]))
        rows: list[Tensor] = [torch.empty(0)] * len(ids)
        for start in range(0, len(order), _BATCH):
            chosen = order[start : start + _BATCH]
            for index, row in zip(chosen, self._forward([ids[i] for i in chosen]), strict=True):
                rows[index] = row
        return torch.stack(rows)

    def _forward(self, ids: Sequence[list[int]]) -> Tensor:
        """(N, outputs). The pad is an id that no text has: a decoder finds the last token that
        is not a pad by its id, and some tokenizers pad with what texts end with."""
        used = {token for row in ids for token in row}
        pad = self.tokenizer.pad_token_id
        if pad is None or pad in used:
            pad = next(token for token in range(len(used) + 1) if token not in used)
        width = max(len(row) for row in ids)
        tokens = torch.tensor([row + [pad] * (width - len(row)) for row in ids])
        real = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in ids])
        device = next(self.model.parameters()).device
        before = self.model.config.pad_token_id
        self.model.config.pad_token_id = pad
        try:
            output = self.model(input_ids=tokens.to(device), attention_mask=real.to(device))
        finally:
            self.model.config.pad_token_id = before
        logits: Tensor = output.logits
        return logits.float().cpu()

    def _ids(self, pair: Pair) -> list[int]:
        templated = not isinstance(pair[0], str) and self.tokenizer.chat_template
        ids = self._plain_ids(self._text(pair), special=not templated)
        if getattr(self.model.config, READS, None) == END_OF_TURN:
            ids = self._as_trained(pair, ids)
        config = self.model.config.get_text_config()
        limit = min(
            getattr(config, "max_position_embeddings", None) or len(ids),
            self.tokenizer.model_max_length,
        )
        if len(ids) > limit and not self._told:
            self._told = True
            logger.warning(
                "%s reads at most %d tokens: longer texts lose the beginning of their prompt",
                self.name,
                limit,
            )
        if len(ids) > limit and ids[0] in self.tokenizer.all_special_ids:
            return ids[:1] + ids[len(ids) - limit + 1 :]  # a text begins with it, cut or not
        return ids[-limit:]

    def _plain_ids(self, text: str, *, special: bool) -> list[int]:
        ids: list[int] = self.tokenizer(
            text, add_special_tokens=special, truncation=False, verbose=False
        )["input_ids"]
        return ids

    def _as_trained(self, pair: Pair, ids: list[int]) -> list[int]:
        """The ids of a pair up to the end of the answer's turn, where the reward is read."""
        prompt, completion = pair
        if isinstance(prompt, str):  # training tokenises the two apart
            answer = self._plain_ids(completion, special=False)
            ids = [*self._plain_ids(prompt, special=True), *answer]
        declared = self.model.config.eos_token_id
        ends = {*(declared if isinstance(declared, list) else [declared])}
        ends.add(self.tokenizer.eos_token_id)
        last = next((at for at in reversed(range(len(ids))) if ids[at] in ends), None)
        if last is not None and not self.tokenizer.decode(ids[last + 1 :]).strip():
            return ids[: last + 1]
        return [*ids, self.tokenizer.eos_token_id]

    def _text(self, pair: Pair) -> str:
        prompt, completion = pair
        if isinstance(prompt, str):
            return prompt + completion
        if not self.tokenizer.chat_template:
            before = Group(prompt, (Completion(completion),)).prompt_text
            return f"{before}\nassistant: {completion}"
        turns = [{"role": turn.role, "content": turn.content} for turn in prompt]
        turns.append({"role": "assistant", "content": completion})
        return str(self.tokenizer.apply_chat_template(turns, tokenize=False))

    def _unusable(self, reason: str) -> PolicyError:
        return PolicyError(
            f"the model cannot be used: {reason}",
            field=self.field or None,
            value=self.name,
            remedy="give a folder or hub id with a sequence classification model and its tokenizer",
        )


class Classifier(_SequenceModel):
    """The probability, in [0, 1], that a classifier gives to one of its labels.

    A model with one output is a yes-or-no classifier: the probability is σ(output).

    Args:
        name: folder or hub id.
        label: its name in the model's config, or its index; needed unless there is one output.
        device: the first accelerator by default.
        field: the setting, for messages.

    Raises:
        PolicyError: it cannot be loaded, or has no such label.
    """

    def __init__(
        self, name: str, label: str | int | None = None, *, device: Any = None, field: str = ""
    ) -> None:
        super().__init__(name, device=device, field=field)
        names = {int(i): str(text) for i, text in self.model.config.id2label.items()}
        place = {text: index for index, text in names.items()}.get(str(label))
        if isinstance(label, int) and not isinstance(label, bool) and label in names:
            place = label
        if label is None and len(names) == 1:
            place = 0
        if place is None:
            raise PolicyError(
                "the classifier has no such label" if label is not None else "which label?",
                field=f"{field}.label" if field else "label",
                value=label,
                remedy=f"choose one of {', '.join(names.values())}, or its index",
            )
        self.place = place

    def __call__(self, prompt: Any, completion: str) -> float:
        return self.many([(prompt, completion)])[0]

    def many(self, pairs: Sequence[Pair]) -> list[float]:
        """The probabilities of many pairs, in few passes."""
        logits = self.logits(pairs)
        alone = logits.shape[-1] == 1
        chances = logits.sigmoid()[:, 0] if alone else logits.softmax(-1)[:, self.place]
        return [float(chance) for chance in chances]


class RewardModel(_SequenceModel):
    """The number of a reward model: a sequence classifier with one output; higher is better.

    Raises:
        PolicyError: it cannot be loaded, or has several outputs.
    """

    def __init__(self, name: str, *, device: Any = None, field: str = "") -> None:
        super().__init__(name, device=device, field=field)
        outputs = int(self.model.config.num_labels)
        if outputs != 1:
            raise PolicyError(
                f"a reward model has one output, and this one has {outputs}",
                field=f"{field}.reward_model" if field else "reward_model",
                value=name,
                remedy="use it as a classifier with a label",
            )

    def __call__(self, prompt: Any, completion: str) -> float:
        return self.many([(prompt, completion)])[0]

    def many(self, pairs: Sequence[Pair]) -> list[float]:
        """The rewards of many pairs, in few passes."""
        return [float(reward) for reward in self.logits(pairs)[:, 0]]
