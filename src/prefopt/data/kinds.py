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
    "unreadable_verdict": (
        "error", "what a judge said is neither side nor a tie",
        "ask the judge again, or leave the rows out",
    ),
    "too_few_votes": (
        "error", "the votes do not determine what they were to be aggregated to",
        "collect more votes, or choose a method that asks for less",
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
    "special_token": (
        "warning", "a text contains a template's or a tokenizer's special token",
        "remove the tokens from the texts: the tokenizer adds them where they belong",
    ),
    "generation_prompt": (
        "warning", "a completion begins with what the template writes before every answer",
        "cut it off the completions: the template adds it, and it would be there twice",
    ),
    "doubled_token": (
        "warning", "a token that begins or ends a text stands there twice",
        "remove these tokens from the texts: the tokenizer adds one where it belongs",
    ),
    "control_characters": (
        "warning", "a text contains control characters, which no reader sees",
        "remove them, or see what they were before the texts were converted",
    ),
    "mojibake": (
        "warning", "a text was decoded with the wrong encoding",
        "read the source again as UTF-8; characters that became U+FFFD are lost",
    ),
    "score_contradiction": (
        "warning", "a comparison says the opposite of the scores of its completions",
        "find out which of them is right; training reads the comparison",
    ),
    "language_mismatch": (
        "note", "a completion is in another language than its prompt",
        "read some of these rows: right where it was asked for, else remove them",
    ),
    "rendered_prompt": (
        "note", "a text prompt already went through a chat template",
        "fine for a model with that template; else give the prompt as messages",
    ),
    "too_long": (
        "error", "prompt and completion have more tokens than the limit",
        "raise max_length, or choose what happens to them with too_long",
    ),
    "end_inside": (
        "error", "a completion goes on after an end-of-turn token",
        "remove the token from the text; one is added where it is needed",
    ),
    "template": (
        "error", "the chat template refuses a conversation, or writes its beginning anew",
        "check the order of the roles, or use another template",
    ),
    "identical_when_cut": (
        "warning", "the two sides of a comparison become the same tokens when they are cut",
        "raise max_length, or choose `too_long: drop`",
    ),
    "no_end_of_turn": (
        "error", "nothing ends an answer, so the policy would never learn to stop",
        "set `eos_token` in the tokenizer's configuration, or end turns with it in the template",
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
    "crowded_prompt": (
        "note", "few prompts have much of the comparisons, or files have many prompts in common",
        "keep each prompt on one side of a split; ask about other prompts next",
    ),
    "near_duplicate_prompt": (
        "note", "prompts say nearly what others say",
        "keep them on one side of a split, as `prefopt split` does; more of them teach little",
    ),
    "near_duplicate_pair": (
        "warning", "comparisons are nearly the same as others, so they nearly count again",
        "remove the copies, unless the small difference is what the comparison is about",
    ),
    "near_identical_sides": (
        "note", "the two sides of a comparison hardly differ",
        "right where the small difference is what is judged, such as one wrong fact; else remove "
        "the rows: what little they teach is noise",
    ),
    "cycle": (
        "note", "completions of a prompt are preferred in a circle",
        "nothing to do where no cycle survives its uncertainty; else ask more people about these "
        "pairs, or about what they judged by",
    ),
    "disagreement": (
        "note", "annotators disagree",
        "keep it: `prefopt aggregate` turns votes into probabilities; look at what divides them "
        "before you call it noise",
    ),
    "uneven_coverage": (
        "note", "most prompts are about few things",
        "right for a narrow task; else add prompts about other things, or `prefopt balance --by "
        "cluster`",
    ),
    "uncovered_region": (
        "warning", "evaluation asks about things that training has hardly anything about",
        "add such prompts to training, or do not expect to do well on them",
    ),
    "uneven_categories": (
        "note", "the categories have very different shares",
        "`prefopt balance --by category` weighs them evenly; more rows of the rare ones are better",
    ),
    "leaked_prompt": (
        "warning", "prompts of the evaluation are trained on",
        "remove them from training; `prefopt split` makes an evaluation set without them",
    ),
    "leaked_near_duplicate": (
        "warning", "prompts of the evaluation are nearly in training",
        "look at the examples; remove what says the same from training",
    ),
    "shared_cluster": (
        "note", "evaluation prompts are about things that training is about",
        "nothing to do, unless other topics are to be measured: `prefopt split --by cluster`",
    ),
}  # fmt: skip
