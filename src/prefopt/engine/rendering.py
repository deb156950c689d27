"""Records to the text that a tokenizer reads: as it is, or through its chat template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from prefopt.errors import DataError, PolicyError
from prefopt.records import Group, Message, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def render_prompt(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> str:
    """A prompt up to where the model speaks.

    Raises:
        PolicyError: it is a conversation and the tokenizer has no chat template.
        DataError: the template refused it.
    """
    if isinstance(prompt, str):
        return prompt
    return _render(tokenizer, prompt, add_generation_prompt=True)


def render_group(tokenizer: PreTrainedTokenizerBase, group: Group) -> list[str]:
    """The prompt's text and, behind it, the text of each completion.

    Raises:
        PolicyError, DataError: as `render_prompt`; or an answer does not begin where the
            rendered prompt ends.
    """
    prompt = render_prompt(tokenizer, group.prompt)
    if isinstance(group.prompt, str):
        return [prompt, *(completion.text for completion in group.completions)]
    texts = [prompt]
    for completion in group.completions:
        turns = (*group.prompt, Message("assistant", completion.text))
        whole = _render(tokenizer, turns, add_generation_prompt=False)
        if not whole.startswith(prompt):
            pairs = enumerate(zip(prompt, whole, strict=False))
            common = next((i for i, (a, b) in pairs if a != b), 0)
            raise DataError(
                "the rendered conversation does not start with the rendered prompt",
                kind="template",
                value=f"prompt …{prompt[max(0, common - 40) :]!r}, "
                f"conversation …{whole[max(0, common - 40) : common + 80]!r}",
                remedy="use a template whose generation prompt is what an answer starts with",
            )
        texts.append(whole[len(prompt) :])
    return texts


def _render(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], *, add_generation_prompt: bool
) -> str:
    if not tokenizer.chat_template:
        raise PolicyError(
            "the data has conversations and the tokenizer has no chat template",
            field="model",
            remedy="use a chat model, give its tokenizer a `chat_template`, "
            "or write the prompts as text",
        )
    conversation = [{"role": turn.role, "content": turn.content} for turn in messages]
    try:
        rendered = tokenizer.apply_chat_template(
            conversation, tokenize=False, add_generation_prompt=add_generation_prompt
        )
    except Exception as error:  # templates raise whatever their authors chose
        raise DataError(
            f"the tokenizer's chat template refused the conversation: {error}",
            kind="template",
            field="prompt",
            value=conversation,
            remedy="check the order and the names of the roles",
        ) from error
    return str(rendered)
