"""Write the table of `adapters.md`, between its markers, from the table of adapters.

    make docs

`tests/test_adapters_page.py` fails when the page is not what this program writes.
"""

from __future__ import annotations

import re
from pathlib import Path

from prefopt.policies.adapter_table import ADAPTERS, NOT_HERE, AdapterKind

PAGE = Path(__file__).with_name("adapters.md")


def main() -> None:
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


def page(text: str) -> str:
    """The page with what its markers enclose written anew."""
    for name, content in (("table", table()), ("refused", refused())):
        begin, end = f"<!-- {name}: written by make docs -->", f"<!-- end of {name} -->"
        before, rest = text.split(begin)
        text = f"{before}{begin}\n{content}\n{rest[rest.index(end) :]}"
    return text


def table() -> str:
    lines = [
        "| adapter | trains | settings, with their defaults | starts | export | quantized weights "
        "| from |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, kind in ADAPTERS.items():
        cells = (
            f"`{name}`",
            kind.trains,
            settings(kind),
            starts(kind),
            "merged" if kind.merges else "no",
            ", ".join(kind.quantized) or "no",
            re.sub(r"^arXiv:(.*)$", r"[arXiv:\1](https://arxiv.org/abs/\1)", kind.paper),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def starts(kind: AdapterKind) -> str:
    if kind.soft_prompt:
        return "at words" if kind.start_from_text else "at random"
    return "at the policy, but for rounding" if kind.start else "at the policy"


def settings(kind: AdapterKind) -> str:
    shown = [f"{name} {kind.defaults[name]}" for name in sorted(kind.defaults)]
    return ", ".join((*shown, *sorted(kind.reads - set(kind.defaults))))


def refused() -> str:
    lines = ["| name | why |", "|---|---|"]
    return "\n".join([*lines, *(f"| `{name}` | {why} |" for name, why in NOT_HERE.items())])


if __name__ == "__main__":
    main()
