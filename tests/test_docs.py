"""The documentation is true: its Python runs, its commands work, its tables name what there is.

Each page is worked through from top to bottom, in a folder that has what a reader is told to
bring: a model in `model/`, preferences in `pairs.jsonl` and others in `heldout.jsonl`. What
happens to a block depends on its language:

    python    executed; the blocks of a page share their names
    yaml      written to the file that its first line names (`# recipe.yaml`)
    sh        each line `prefopt …` executed on the pages of `EXECUTED`, elsewhere only parsed
    console   each line `$ prefopt …` parsed

A block after `<!-- skip: next -->` is left alone, and so are commands that take minutes. A
table after `<!-- measured -->` has only rows of the measured tables in benchmarks/results, whole
or with columns left out.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from sybil import Document, Example
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser, SkipParser

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
PAGES = [
    README,
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "examples").rglob("*.md")),
    *sorted((ROOT / "benchmarks").rglob("*.md")),
]
TRAINING, DATA = ROOT / "docs" / "training.md", ROOT / "docs" / "data.md"
EXECUTED = {README, TRAINING, DATA}
MINUTES = {"demo"}
PAIRS = (
    ("How do I bake bread?", "Mix flour, water, salt and yeast, then wait.", "No."),
    ("Name a colour.", "Blue is the colour of the sky.", "The film was dull."),
    ("Please tell me about Oslo.", "Oslo is on a fjord.", "I cannot help with that."),
    ("What was the film like?", "A quiet delight.", "What a dull, clumsy story."),
)


def commands(text: str, prompt: str = "") -> list[list[str]]:
    """The `prefopt` commands of a shell block as lists of arguments."""
    lines = text.replace("\\\n", " ").splitlines()
    found = [shlex.split(line.removeprefix(prompt), comments=True) for line in lines
             if line.startswith(f"{prompt}prefopt")]  # fmt: skip
    return [words[1:] for words in found]


def parse(arguments: list[str]) -> None:
    """Refuse a command line that the command line interface would refuse."""
    from prefopt.cli.app import app

    tokens = [word for word in arguments if word != "--json"]
    app.parse_args(tokens, exit_on_error=False, print_error=False)


def execute(arguments: list[str]) -> None:
    from prefopt.cli.app import run

    assert run(arguments) == 0, f"prefopt {shlex.join(arguments)}"


def shell(example: Example) -> None:
    for arguments in commands(example.parsed):
        parse(arguments)
        if Path(example.path) in EXECUTED and not MINUTES & set(arguments):
            execute(arguments)


def console(example: Example) -> None:
    for arguments in commands(example.parsed, "$ "):
        parse(arguments)


def write_recipe(example: Example) -> None:
    named = re.match(r"# (\S+\.ya?ml)\n", example.parsed)
    if named:
        Path(named[1]).write_text(example.parsed, encoding="utf-8")


PARSERS = (
    PythonCodeBlockParser(),
    CodeBlockParser("sh", shell),
    CodeBlockParser("console", console),
    CodeBlockParser("yaml", write_recipe),
    SkipParser(),
)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_page(
    page: Path,
    save_policy: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    save_policy("llama").rename(tmp_path / "model")
    rows = [
        json.dumps({"prompt": prompt, "chosen": good, "rejected": bad})
        for prompt, good, bad in PAIRS
    ]
    (tmp_path / "pairs.jsonl").write_text("\n".join(rows[:3]) + "\n", encoding="utf-8")
    (tmp_path / "heldout.jsonl").write_text(rows[3] + "\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    for example in Document.parse(str(page), *PARSERS).examples():
        example.evaluate()


# -- tables --------------------------------------------------------------------------------


def first_column(page: Path, heading: str) -> list[str]:
    """The code words in the first column of the table under a heading of a page."""
    section = page.read_text(encoding="utf-8").split(f"\n## {heading}\n")[1].split("\n## ")[0]
    cells = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    return [word for cell in cells for word in re.findall(r"`([^`]+)`", cell)]


def test_every_recipe_key_is_explained() -> None:
    from prefopt.recipe import Recipe

    assert sorted(first_column(TRAINING, "Settings")) == sorted(Recipe.model_fields)


def test_readme_lists_every_command() -> None:
    from prefopt.cli.app import COMMANDS

    assert first_column(README, "Commands") == [f"prefopt {name}" for name, *_ in COMMANDS]


def test_every_layout_is_listed() -> None:
    from prefopt.data.layouts import LAYOUTS

    assert sorted(first_column(DATA, "Layouts")) == sorted(layout.name for layout in LAYOUTS)


def test_readme_counts_rightly() -> None:
    from prefopt.objectives import OBJECTIVES
    from prefopt.policies.adapter_table import ADAPTERS

    page = README.read_text(encoding="utf-8")
    assert f"[{len(OBJECTIVES)} objectives]" in page
    assert f"[{len(ADAPTERS)} adapters]" in page


def rows_of(text: str) -> list[list[str]]:
    """The cells of every row of the tables in a text, but for the lines under their heads."""
    lines = [line.strip() for line in text.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [row for row in rows if not set("".join(row)) <= {"-", ":"}]


def measured_rows(text: str) -> list[list[str]]:
    """The rows of all tables of a page that say that they were measured."""
    parts = text.split("<!-- measured -->")[1:]
    tables = [re.split(r"\n(?!\|)", part.lstrip("\n"), maxsplit=1)[0] for part in parts]
    return [row for table in tables for row in rows_of(table)]


def not_measured(text: str, results: str) -> list[list[str]]:
    """Rows of a page's measured tables that are in no table of the results."""

    def is_part(row: list[str], whole: list[str]) -> bool:
        cells = iter(whole)
        return all(cell in cells for cell in row)  # in the same order, some left out

    known = rows_of(results)
    return [row for row in measured_rows(text) if not any(is_part(row, whole) for whole in known)]


MEASURED = ROOT / "benchmarks" / "results" / "README.md"


def test_figures_on_the_pages_are_those_measured() -> None:
    if not MEASURED.exists():
        pytest.skip("nothing was measured yet")
    results = MEASURED.read_text(encoding="utf-8")
    wrong = {
        page.relative_to(ROOT).as_posix(): rows
        for page in PAGES
        if (rows := not_measured(page.read_text(encoding="utf-8"), results))
    }
    assert not wrong
    assert measured_rows(README.read_text(encoding="utf-8")), "README.md shows no measured ratios"


def test_the_first_figures_of_the_readme_are_those_of_its_table() -> None:
    page = README.read_text(encoding="utf-8")
    first = page.split("- **It is fast")[1].split("\n- **")[0]
    said = set(re.findall(r"\d+\.\d+", first)) - {"1.16", "14.7"}  # TRL's version, the parameters
    measured = {part for row in measured_rows(page) for cell in row for part in cell.split(" / ")}
    assert len(said) >= 4 and said <= measured


def test_what_the_readme_says_with_an_error_is_among_the_experiments() -> None:
    experiments = (ROOT / "docs" / "experiments.md").read_text(encoding="utf-8")
    said = re.findall(r"−?[\d.]+ ± [\d.]+\d", README.read_text(encoding="utf-8"))
    assert len(said) >= 3 and [figure for figure in said if figure not in experiments] == []


def test_a_wrong_figure_would_be_noticed() -> None:
    results = "| case | × TRL | memory |\n| --- | --- | --- |\n| `hh` | 21.3 / 15.1 | 0.18 |\n"
    page = "| `hh` | 7 |\n<!-- measured -->\n\n| case | memory |\n|---|---|\n| `hh` | {} |\n\nmore"
    assert not_measured(page.format("0.18"), results) == []
    assert not_measured(page.format("0.17"), results) == [["`hh`", "0.17"]]
    assert not_measured(page.format("21.3 / 15.1"), results) == []
    swapped = "<!-- measured -->\n| 0.18 | `hh` |\n"
    assert not_measured(swapped, results) == [["0.18", "`hh`"]]


def test_links_between_pages_lead_somewhere() -> None:
    broken = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in PAGES
        for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8"))
        if not (page.parent / target).exists()
    ]
    assert not broken


def test_shell_blocks_are_read_as_a_shell_would() -> None:
    text = (
        "# first\nprefopt check a.jsonl  # a note\nmake test\nprefopt train \\\n  --model 'm n'\n"
    )
    assert commands(text) == [["check", "a.jsonl"], ["train", "--model", "m n"]]
    assert commands("$ prefopt demo --json\n{}\n", "$ ") == [["demo", "--json"]]


@pytest.mark.parametrize("wrong", ["chek a.jsonl", "score a --referense b --data c"])
def test_a_wrong_command_would_be_noticed(wrong: str) -> None:
    from cyclopts.exceptions import CycloptsError

    with pytest.raises(CycloptsError):
        parse(shlex.split(wrong))
