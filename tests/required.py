"""What some tests need beside Python: a browser, a PostgreSQL. Skipped without, unless promised."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest

#: names, with spaces between, of what must be there: `.ci/run` sets it to what it has installed
PROMISED = "PREFOPT_TESTS_NEED"


def missing(name: str, why: str) -> NoReturn:
    """Skip this test; fail it if `name` was promised, so that no proof is lost in silence."""
    if name in os.environ.get(PROMISED, "").split():
        pytest.fail(f"{why}, and {PROMISED} promises {name}")
    pytest.skip(why)
