"""What can be wrong with a row: one word, how bad it is, what it means and what to do.

The words are the `kind` of a `DataError`, the keys of `GroupReader.skipped` and the kinds of
findings of `prefopt check`.
"""

from __future__ import annotations

from typing import Literal

Level = Literal["error", "warning", "note"]

#: kind → (level, what it means, what to do). Errors are what training would refuse.
KINDS: dict[str, tuple[Level, str, str]] = {
    "unreadable_file": (
        "error", "a file cannot be read to its end",
        "fetch or write the file again; it may be cut short or damaged",
    ),
    "empty_file": (
        "error", "a file has no rows", "remove the file, or write it again",
    ),
    "unreadable_row": (
        "error", "a row is not a JSON object in UTF-8",
        "write one JSON object a line, in UTF-8",
    ),
    "unknown_layout": (
        "error", "the columns of a row fit no known layout",
        "rename the columns to prompt, chosen and rejected, or name the layout",
    ),
    "mixed_layout": (
        "error", "a row has another layout than the rows before it",
        "put rows of different layouts into different files",
    ),
    "missing_field": (
        "error", "a column is missing or null", "give the column in every row",
    ),
    "wrong_type": (
        "error", "a column holds another type than it should", "correct the rows",
    ),
    "out_of_range": (
        "error", "a number, an index or a choice is outside its range", "correct the rows",
    ),
    "wrong_role": (
        "error", "a turn is not by whom it should be",
        "end prompts before the assistant's turn, and use the roles system, user, assistant, tool",
    ),
    "unsupported_media": (
        "error", "a row has images, audio or tools, which would be left out of the prompt",
        "remove these rows",
    ),
    "empty_prompt": (
        "error", "a prompt is empty", "give a prompt, or remove the rows",
    ),
    "empty_completion": (
        "error", "a completion is empty: a policy trained on it learns to say nothing",
        "remove the rows",
    ),
    "several_turns": (
        "error", "a completion has several turns",
        "move the earlier turns to the prompt; a comparison is about the last one",
    ),
    "prompt_mismatch": (
        "error", "the two sides of a pair do not share their prompt",
        "correct or remove the rows, or give the prompt in a column of its own",
    ),
    "identical_sides": (
        "error", "a completion is compared with itself",
        "remove the rows: they say nothing about what is better",
    ),
    "score_order": (
        "error", "the chosen completion has the lower score",
        "swap the sides, or rename the score columns if lower is better",
    ),
    "contradiction": (
        "warning", "the same two completions are preferred both ways",
        "decide, or write the share of votes as `probability` of a single row",
    ),
    "duplicate_pair": (
        "warning", "the same comparison occurs again and counts again",
        "remove the repetitions, unless they are separate judgements",
    ),
    "role_marker": (
        "warning", "a completion contains a role marker, so the policy learns to write both sides",
        "cut the completions before the marker, or remove the rows",
    ),
    "prompt_repeated": (
        "warning", "a completion begins with its own prompt, which would be seen twice",
        "remove the prompt from the completions",
    ),
    "no_comparison": (
        "note", "a row's completions are all equally good, so it gives no comparison",
        "nothing to do; such rows are not trained on",
    ),
    "length_bias": (
        "warning", "one side of the comparisons is preferred for its length",
        "if length is not what you want to teach: `prefopt balance --by length`, an objective that "
        "normalises by length, or more comparisons in which the shorter side is better",
    ),
    "position_bias": (
        "warning", "what stood first is preferred too often, or too rarely",
        "show every pair both ways round, or shuffle the sides, before asking again",
    ),
    "format_bias": (
        "warning", "one side is preferred for how it is formatted",
        "if that is not what you want to teach: add comparisons of answers of the same format",
    ),
    "refusal_bias": (
        "note", "refusals or apologies are preferred, or dispreferred, as a rule",
        "right for harmful requests; look whether harmless ones are among the prompts too",
    ),
    "one_annotator": (
        "note", "one annotator gave most of the comparisons, so the policy learns one taste",
        "ask more people, or `prefopt balance --by annotator`",
    ),
    "one_source": (
        "note", "one source has most of the comparisons",
        "add data of the others, or `prefopt balance --by source`",
    ),
    "suspect_label": (
        "note", "a label is far from what all other labels suggest",
        "read the rows that are listed; correct what is wrong, and leave what is merely unusual",
    ),
}  # fmt: skip
