"""One thing that was found in data: of which kind, how often, where, and how sure that is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from prefopt.data.kinds import KINDS, Level

LEVELS: tuple[Level, ...] = ("error", "warning", "note")


@dataclass(frozen=True)
class Place:
    """A file and a row in it, counted from 1; no row where the whole file is meant."""

    file: str | None
    row: int | None

    def to_dict(self) -> dict[str, Any]:
        """As `--json` prints it."""
        return {"file": self.file, "row": self.row}


@dataclass(frozen=True)
class Finding:
    """What was found.

    Attributes:
        kind: a key of `KINDS`.
        count: of what the message says, rows if it says nothing else; always complete.
        places: the first of the rows concerned, in reading order; not always all of them.
        value: the estimate, where the finding is one (a share, an AUC, an alpha).
        interval: of that estimate, 95 %.
        message: what it means here; that of the kind, if nothing more is known.
        details: numbers and short texts that the page draws and lists; plain JSON.
        level: how bad it is; that of the kind, if it does not depend on the value.
    """

    kind: str
    count: int
    places: Sequence[Place] = ()
    value: float | None = None
    interval: tuple[float, float] | None = None
    message: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    level: Level | None = None

    def to_dict(self) -> dict[str, Any]:
        """As `prefopt check --json` prints it; what an estimate alone has is left out of others."""
        level, message, remedy = KINDS[self.kind]
        found: dict[str, Any] = {
            "kind": self.kind,
            "level": self.level or level,
            "count": self.count,
            "rows": [place.to_dict() for place in self.places],
            "message": self.message or message,
            "remedy": remedy,
        }
        if self.value is not None:
            found["value"] = self.value
        if self.interval is not None:
            found["interval"] = list(self.interval)
        if self.details:
            found["details"] = dict(self.details)
        return found


def in_order(findings: Iterable[Finding]) -> list[Finding]:
    """Errors first, then as the table of kinds has them."""
    order = {kind: index for index, kind in enumerate(KINDS)}
    return sorted(
        findings, key=lambda f: (LEVELS.index(f.level or KINDS[f.kind][0]), order[f.kind])
    )
