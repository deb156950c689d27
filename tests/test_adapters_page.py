"""`docs/adapters.md` is what `make docs` writes from the table of adapters."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

from prefopt.policies.adapter_table import ADAPTERS, NOT_HERE

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGE = (DOCS / "adapters.md").read_text(encoding="utf-8")


def test_the_page_is_what_its_program_writes() -> None:
    spec = importlib.util.spec_from_file_location("make_adapters", DOCS / "make_adapters.py")
    assert spec is not None and spec.loader is not None
    make = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make)
    assert make.page(PAGE) == PAGE, "run `make docs`"


def test_the_page_names_every_adapter_once() -> None:
    table, refused = PAGE.split("<!-- end of table -->")
    assert re.findall(r"^\| `(\w+)` \|", table, flags=re.MULTILINE) == list(ADAPTERS)
    refused = refused.split("written by make docs")[1]
    assert re.findall(r"^\| `(\w+)` \|", refused, flags=re.MULTILINE) == list(NOT_HERE)
