"""Text becomes the tokens that the model sees when it is used."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from prefopt.engine.tokens import Encoder, TokenGroup, restrict
from prefopt.errors import DataError, PolicyError
from prefopt.records import Comparison, Completion, Group, Label, Message, Origin


def pair(
    prompt: Any = "Name a colour.", first: str = " Blue.", second: str = " The sky.", row: int = 1
) -> Group:
    return Group(
        prompt,
        (Completion(first), Completion(second)),
        (Comparison(0, 1),),
        origins=(Origin("pairs.jsonl", row),),
    )


def chat(text: str = "Name a colour.") -> tuple[Message, ...]:
    return (Message("user", text),)


def encode(tokenizer: Any, *groups: Group, **options: Any) -> tuple[list[TokenGroup], Encoder]:
    encoder = Encoder(tokenizer, **options)
    return list(encoder(groups)), encoder


def test_text_is_tokenised_alone_and_ends_with_eos(tiny_tokenizer: Any) -> None:
    (group,), encoder = encode(tiny_tokenizer, pair())
    plain = lambda text: tiny_tokenizer(text, add_special_tokens=False)["input_ids"]  # noqa: E731
    assert list(group.prompt) == plain("Name a colour.")
    assert list(group.completions[0]) == [*plain(" Blue."), tiny_tokenizer.eos_token_id]
    assert list(group.completions[1]) == [*plain(" The sky."), tiny_tokenizer.eos_token_id]
    assert list(encoder.prompt_ids("Name a colour.")) == list(group.prompt)
    report = encoder.report
    assert (report.groups, report.completions, report.comparisons) == (1, 2, 1)
    assert report.tokens == len(group.prompt) + sum(map(len, group.completions))


def test_eos_is_not_doubled(tiny_tokenizer: Any) -> None:
    (group,), _ = encode(tiny_tokenizer, pair(first=" Blue.<|eos|>"))
    eos = tiny_tokenizer.eos_token_id
    assert list(group.completions[0]).count(eos) == 1
    assert group.completions[0][-1] == eos


def test_bos_comes_from_the_tokenizer_once(tiny_tokenizer: Any) -> None:
    from tokenizers.processors import TemplateProcessing

    bos, eos = tiny_tokenizer.bos_token_id, tiny_tokenizer.eos_token_id
    tiny_tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|bos|> $A <|eos|>", special_tokens=[("<|bos|>", bos), ("<|eos|>", eos)]
    )
    (plain, typed, empty), _ = encode(
        tiny_tokenizer, pair(), pair(prompt="<|bos|>Name a colour."), pair(prompt="")
    )
    assert plain.prompt[0] == bos
    assert list(plain.prompt).count(bos) == 1
    assert eos not in plain.prompt  # a prompt does not end, whatever the tokenizer adds
    assert list(plain.prompt) == list(typed.prompt)
    assert list(empty.prompt) == [bos]


def test_chat_is_scored_up_to_the_end_of_turn(tiny_tokenizer: Any) -> None:
    (group,), encoder = encode(tiny_tokenizer, pair(chat(), "Blue.", "Red."))
    text = tiny_tokenizer.decode(group.prompt)
    assert text == "<|bos|><|turn|>user\nName a colour.<|eos|>\n<|turn|>assistant\n"
    assert list(group.prompt).count(tiny_tokenizer.bos_token_id) == 1
    assert tiny_tokenizer.decode(group.completions[0]) == "Blue.<|eos|>"  # no newline behind it
    assert list(encoder.prompt_ids(chat())) == list(group.prompt)


def test_chat_end_of_turn_that_is_not_eos(tiny_tokenizer: Any) -> None:
    tiny_tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}<|turn|>\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    # Declared by the generation config, or only visible as a special token at the end.
    for end_of_turn in ([tiny_tokenizer.convert_tokens_to_ids("<|turn|>")], []):
        (group,), _ = encode(tiny_tokenizer, pair(chat(), "Blue.", "Red."), end_of_turn=end_of_turn)
        assert tiny_tokenizer.decode(group.completions[0]) == "Blue.<|turn|>"


def test_template_without_end_of_turn_gets_eos(tiny_tokenizer: Any) -> None:
    tiny_tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    (group,), _ = encode(tiny_tokenizer, pair(chat(), "Blue.", "Red."))
    assert tiny_tokenizer.decode(group.completions[0]) == "Blue.\n<|eos|>"


def test_end_of_turn_inside_a_completion_is_refused(tiny_tokenizer: Any) -> None:
    for prompt in ("Name a colour.", chat()):
        with pytest.raises(DataError, match="goes on after an end-of-turn") as caught:
            encode(tiny_tokenizer, pair(prompt, "Blue.<|eos|> Or red."))
        assert (caught.value.file, caught.value.row) == ("pairs.jsonl", 1)
        assert caught.value.kind == "end_inside"


def test_template_that_rewrites_the_prompt_is_refused_with_both_texts(tiny_tokenizer: Any) -> None:
    tiny_tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}<|eos|>{% endfor %}"
        "{% if add_generation_prompt %}bot: {% endif %}"
    )
    with pytest.raises(DataError, match="does not start with the rendered prompt") as caught:
        encode(tiny_tokenizer, pair(chat(), row=7))
    assert "bot: " in str(caught.value)
    assert "assistant: " in str(caught.value)
    assert caught.value.row == 7


def test_template_that_refuses_roles(tiny_tokenizer: Any) -> None:
    tiny_tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    groups = [pair(chat()), pair()]
    with pytest.raises(DataError, match="roles must alternate") as caught:
        encode(tiny_tokenizer, *groups)
    assert caught.value.file == "pairs.jsonl"
    encoded, encoder = encode(tiny_tokenizer, *groups, on_error="skip")
    assert len(encoded) == 1
    assert encoder.report.skipped == {"template": 1}


def test_conversations_need_a_template(tiny_tokenizer: Any) -> None:
    tiny_tokenizer.chat_template = None
    with pytest.raises(PolicyError, match="no chat template"):
        encode(tiny_tokenizer, pair(chat()), on_error="skip")


def test_tokenizer_without_eos(tiny_tokenizer: Any) -> None:
    tiny_tokenizer.eos_token = None
    with pytest.raises(PolicyError, match="no end-of-sequence token"):
        Encoder(tiny_tokenizer)


def test_empty_prompt_without_bos(tiny_tokenizer: Any) -> None:
    with pytest.raises(DataError, match="the prompt has no tokens"):
        encode(tiny_tokenizer, pair(prompt=""))


# -- lengths -------------------------------------------------------------------------------

LONG = "What a dull, clumsy story; I wanted to leave after ten minutes."


def test_too_long_is_an_error_by_default(tiny_tokenizer: Any) -> None:
    with pytest.raises(DataError, match="more than max_length = 10") as caught:
        encode(tiny_tokenizer, pair(), pair(LONG, row=2), max_length=10)
    assert caught.value.row == 2
    assert "cut_prompt_start" in str(caught.value.remedy)


def test_drop_leaves_out_what_does_not_fit(tiny_tokenizer: Any) -> None:
    three = Group(
        "Name a colour.",
        (Completion(" Blue."), Completion(LONG), Completion(" The sky.")),
        (Comparison(0, 1), Comparison(2, 0), Comparison(2, 1)),
        (Label(1, True), Label(2, False)),
    )
    (group,), encoder = encode(tiny_tokenizer, three, pair(LONG), max_length=14, too_long="drop")
    assert len(group.completions) == 2
    assert group.comparisons == (Comparison(1, 0),)
    assert group.labels == (Label(1, False),)
    assert encoder.report.skipped == {"too_long": 2 + 1}


def test_cut_prompt_start_keeps_the_end_of_the_prompt_and_its_bos(tiny_tokenizer: Any) -> None:
    whole, _ = encode(tiny_tokenizer, pair(chat(LONG)))
    longest = max(map(len, whole[0].completions))
    (group,), encoder = encode(
        tiny_tokenizer, pair(chat(LONG)), max_length=20, too_long="cut_prompt_start"
    )
    assert len(group.prompt) + longest == 20
    assert group.prompt[0] == tiny_tokenizer.bos_token_id
    assert list(group.prompt[1:]) == list(whole[0].prompt[-(20 - longest - 1) :])
    assert all(map(np.array_equal, group.completions, whole[0].completions))
    assert encoder.report.cut == {"prompt_start": 1}
    assert not encoder.report.skipped


def test_cut_prompt_start_cannot_save_a_completion_that_is_too_long(tiny_tokenizer: Any) -> None:
    encoded, encoder = encode(
        tiny_tokenizer, pair(first=LONG), max_length=10, too_long="cut_prompt_start"
    )
    assert encoded == []
    assert encoder.report.skipped == {"too_long": 1}


def test_cut_completion_has_no_end_of_turn(tiny_tokenizer: Any) -> None:
    (group,), encoder = encode(
        tiny_tokenizer, pair(first=LONG), max_length=14, too_long="cut_completion"
    )
    assert len(group.prompt) + len(group.completions[0]) == 14
    assert group.completions[0][-1] != tiny_tokenizer.eos_token_id
    assert encoder.report.cut == {"completion": 1}


def test_pairs_that_become_identical_are_refused(tiny_tokenizer: Any) -> None:
    twins = pair(first=LONG + " Yes.", second=LONG + " No.")
    options: dict[str, Any] = {"max_length": 14, "too_long": "cut_completion"}
    with pytest.raises(DataError, match="the same tokens") as caught:
        encode(tiny_tokenizer, twins, **options)
    assert caught.value.kind == "identical_sides"
    assert caught.value.row == 1
    encoded, encoder = encode(tiny_tokenizer, twins, pair(), on_error="skip", **options)
    assert len(encoded) == 1
    assert encoder.report.skipped == {"identical_sides": 1}


def test_restrict_reindexes() -> None:
    ids = tuple(np.array([n], dtype=np.int32) for n in range(3))
    group = TokenGroup(ids[0], ids, (Comparison(2, 1, 0.7), Comparison(0, 1)), (Label(2, True),))
    kept = restrict(group, [1, 2])
    assert kept is not None
    assert [int(c[0]) for c in kept.completions] == [1, 2]
    assert kept.comparisons == (Comparison(1, 0, 0.7),)
    assert kept.labels == (Label(1, True),)
    assert restrict(group, []) is None


def test_a_long_stream_keeps_its_order(tiny_tokenizer: Any, make_model: Callable[..., Any]) -> None:
    groups = [pair(prompt=f"Number {n}.") for n in range(600)]
    encoded, _ = encode(tiny_tokenizer, *groups)
    assert [tiny_tokenizer.decode(g.prompt) for g in encoded] == [g.prompt for g in groups]
