"""Write the tables of `data.md`, between their markers, from the table of kinds.

    make docs

`tests/test_data_page.py` fails when the page is not what this program writes.
"""

from __future__ import annotations

from pathlib import Path

from prefopt.data.kinds import KINDS

PAGE = Path(__file__).with_name("data.md")
LEVELS = ("error", "warning", "note")


def main() -> None:
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


def page(text: str) -> str:
    """The page with what its markers enclose written anew."""
    for level in LEVELS:
        begin, end = f"<!-- {level}s: written by make docs -->", f"<!-- end of {level}s -->"
        before, rest = text.split(begin)
        text = f"{before}{begin}\n{table(level)}\n{rest[rest.index(end) :]}"
    return text


def table(level: str) -> str:
    """The kinds of one level, in the order in which they are reported."""
    lines = ["| kind | what it means | what to do |", "|---|---|---|"]
    for kind, (of, message, remedy) in KINDS.items():
        if of == level:
            lines.append(f"| `{kind}` | {message} | {remedy} |".replace("<|", "<\\|"))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
