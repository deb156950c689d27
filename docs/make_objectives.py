"""Write the generated parts of `objectives.md`, between its markers, from the table of objectives.

    make docs

The text around the markers is written by hand, on the page itself. What a marker encloses comes
from docstrings, signatures and rows of the table, so no fact is written twice; `tests/
test_objectives_page.py` fails when the page is not what this program writes.

A docstring begins with `name: formula.`, then come paragraphs; `Args:` describes options, and
what follows from there on is not for the page.
"""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path
from typing import Any

from prefopt.objectives import OBJECTIVES, Objective
from prefopt.recipe.refusals import described

PAGE = Path(__file__).with_name("objectives.md")

READS = {
    "comparisons": "comparisons",
    "preferred": "preferred completions",
    "labels": "labels",
    "rankings": "rankings",
}
TOKENS = {
    "policy": "log-probabilities of single tokens",
    "reference": "the reference's of single tokens",
    "kl": "KL(π_ref ‖ π) at every token",
    "log_collision": "Σ_v π(v)² at every token",
}
COMPANIONS = {
    "mismatched": "each completion of another prompt under this prompt, scored too",
    "corrupted": "the preferred completion under a corrupted prompt, scored too",
}


def main() -> None:
    text = page(PAGE.read_text(encoding="utf-8"))
    PAGE.write_text(text, encoding="utf-8")


def page(text: str) -> str:
    """The page with what its markers enclose written anew."""
    for name, content in (("table", table()), ("entries", entries())):
        begin, end = f"<!-- {name}: written by make docs -->", f"<!-- end of {name} -->"
        before, rest = text.split(begin)
        text = f"{before}{begin}\n{content}\n{rest[rest.index(end) :]}"
    return text


def table() -> str:
    lines = ["| name | loss | reads | reference | further needs |", "|---|---|---|---|---|"]
    for row in OBJECTIVES.values():
        loss = formula(row).replace("|", r"\|")
        further = "; ".join(brief(row))
        reference = "yes" if row.needs_reference else "no"
        link = f"[`{row.name}`](#{row.name})"
        lines.append(f"| {link} | {loss} | {READS[row.reads]} | {reference} | {further} |")
    return "\n".join(lines)


def entries() -> str:
    """One entry for each objective, under the first sentence of its module."""
    parts, family = [], ""
    for row in OBJECTIVES.values():
        module = row.function.__module__
        if module != family:
            family = module
            about = first_paragraph(sys.modules[module]).rstrip(".")
            parts.append("### " + about.replace("Objectives on ", "On ", 1))
        parts.append(entry(row))
    return "\n\n".join(parts)


def entry(row: Objective) -> str:
    head, *paragraphs = said(row)
    title = head.split(": ", 1)[0]
    lines = [
        f"#### `{row.name}`",
        f"**{title}.** {row.use}",
        f"```text\n{formula(row).replace('`', '')}\n```",
    ]
    lines += [linked(text) for text in paragraphs]
    lines.append("\n".join([f"Needs {needs(row)}.", *options(row)]))
    return "\n\n".join(lines)


# -- what a docstring says -----------------------------------------------------------------


def said(row: Objective) -> list[str]:
    """The paragraphs of a docstring, without its sections and examples."""
    text = inspect.cleandoc(row.function.__doc__ or "")
    text = re.split(r"\n\n(?:Args:|Raises:|>>> )", text)[0]
    return [unwrapped(part) for part in text.split("\n\n")]


def unwrapped(text: str) -> str:
    """A paragraph as one line, lists as one line for each item."""
    return re.sub(r"\s*\n(?!- )\s*", " ", text)


def formula(row: Objective) -> str:
    head = said(row)[0]
    if ": " not in head:
        raise ValueError(f"the docstring of {row.name} does not begin with 'name: formula'")
    return head.split(": ", 1)[1].rstrip(".")


def meanings_of(row: Objective) -> dict[str, str]:
    """What the section `Args:` says of each option."""
    text = inspect.cleandoc(row.function.__doc__ or "")
    if "\nArgs:\n" not in text:
        return {}
    section = text.split("\nArgs:\n")[1].split("\n\n")[0]
    found = re.findall(r"^    (\w+): (.*(?:\n        .*)*)", section, flags=re.MULTILINE)
    return {name: unwrapped(meaning).rstrip(".") for name, meaning in found}


def first_paragraph(module: Any) -> str:
    return unwrapped(inspect.cleandoc(module.__doc__ or "").split("\n\n")[0])


# -- what a row and a signature say --------------------------------------------------------


def needs(row: Objective) -> str:
    """Everything that it must be given, and what it cannot take, as one sentence."""
    given = [READS[row.reads], "a reference" if row.needs_reference else "no reference"]
    given += ["a reward of each completion, the `score` of the data"] * row.needs_rewards
    if row.rewards_option:
        given.append(f"for a `{row.rewards_option}` a score of each completion")
    given += ["several sources"] * row.needs_sources
    given += [TOKENS[name] for name in row.tokens]
    given += [COMPANIONS[row.companions]] if row.companions else []
    text = ", ".join(given[:-1]) + " and " + given[-1]
    if row.running is not None:
        text += "; keeps state from step to step, which is in the checkpoint"
    elif row.couples_batch:
        text += "; one loss depends on the other judgements of the step"
    refused = ["probabilities"] * (not row.soft) + ["weights"] * (not row.weighted)
    if refused and row.reads == "comparisons":
        text += f"; refuses comparisons with {' or '.join(refused)}"
    return text


def brief(row: Objective) -> list[str]:
    """The same in a few words, for the table."""
    found = ["scores"] * row.needs_rewards + ["sources"] * row.needs_sources
    found += ["tokens"] * bool(row.tokens)
    found += [f"{row.companions} companions"] * bool(row.companions)
    found += ["running state"] * (row.running is not None)
    found += ["the whole step"] * (row.couples_batch and row.running is None)
    return found


def options(row: Objective) -> list[str]:
    """A list item for each option: default, what it may be, and its meaning where that is said."""
    meanings = meanings_of(row)
    allowed = row.schema.model_json_schema()["properties"] if row.options else {}
    lines = []
    for name, default in row.options.items():
        value = str(default).lower() if default is None or isinstance(default, bool) else default
        line = f"- `{name}` = {value} ({described(allowed[name])})"
        lines.append(line + (f": {meanings[name]}" if name in meanings else ""))
    return ["", *lines] if lines else []


# -- Markdown ------------------------------------------------------------------------------


def linked(text: str) -> str:
    return re.sub(r"arXiv:(\d{4}\.\d{5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", text)


if __name__ == "__main__":
    main()
