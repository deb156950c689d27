"""The folder of all rounds: which stages are finished, and what they said.

    rounds.json      the settings, the state, and the figures of every round
    world/           the generated world, where there is one
    verdicts/        what judges said, by content: nothing is asked twice
    round-0/         the first policy, measured
    round-1/sample/  and select/, judge/, check/, train/, evaluate/: each is finished when it
                     has its manifest.json
    model            a link to the model of the best round
    report.html      the page for people

A stage's manifest is written last, so a killed round goes on with the stage it was in.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from prefopt import __version__
from prefopt.errors import RunError
from prefopt.rounds.settings import MAY_CHANGE, Rounds
from prefopt.runs import explained, write_text

STAGES = ("sample", "select", "judge", "check", "train", "evaluate")


class Ledger:
    """The folder of one loop.

    Args:
        rounds: the file.

    Raises:
        RunError: the folder holds something else, or rounds with other settings.
    """

    def __init__(self, rounds: Rounds) -> None:
        self.rounds = rounds
        self.folder = Path(rounds.file.out)
        self.document = self.folder / "rounds.json"
        self.report = self.folder / "report.html"
        self.verdicts = self.folder / "verdicts"
        self._check_folder()

    def stage_folder(self, number: int, name: str) -> Path:
        """`round-2/judge`."""
        return self.folder / f"round-{number}" / name

    def done(self, number: int, name: str) -> bool:
        """Whether a stage has its manifest."""
        return (self.stage_folder(number, name) / "manifest.json").exists()

    def stage(
        self, number: int, name: str, work: Callable[[Path], Mapping[str, Any]]
    ) -> dict[str, Any]:
        """The figures of a stage; it is done first unless it is finished.

        Args:
            number: of the round.
            name: of the stage.
            work: fills the stage's folder, going on with what it finds there, and returns plain
                JSON. A training writes its own manifest.
        """
        folder = self.stage_folder(number, name)
        manifest = folder / "manifest.json"
        if not manifest.exists():
            with explained(folder):
                folder.mkdir(parents=True, exist_ok=True)
            started = time.perf_counter()
            figures = dict(work(folder))
            if not manifest.exists():
                seconds = round(time.perf_counter() - started, 1)
                record = {"prefopt": __version__, "round": number, "stage": name}
                _write(manifest, {**record, "seconds": seconds, "figures": figures})
        with explained(manifest):
            record = json.loads(manifest.read_text(encoding="utf-8"))
        figures = record.get("figures", record.get("result", {}))
        return {**figures, "seconds": record.get("seconds")}

    def write(self, state: str, **found: Any) -> dict[str, Any]:
        """Write `rounds.json`, and return what it holds."""
        document = {
            "prefopt": __version__,
            "out": str(self.folder),
            "state": state,
            **found,
            "settings": self._settings(),
        }
        _write(self.document, document)
        return document

    def keep(self, number: int) -> str | None:
        """Point `model` at the model of a round; None where that is the first policy itself."""
        link = self.folder / "model"
        target = self.stage_folder(number, "train") / "model"
        if number == 0 or not target.is_dir():
            link.unlink(missing_ok=True)
            return None
        temporary = self.folder / f".model.{os.getpid()}"
        with explained(link):
            temporary.unlink(missing_ok=True)
            temporary.symlink_to(os.path.relpath(target, self.folder), target_is_directory=True)
            os.replace(temporary, link)
        return str(link)

    def _settings(self) -> dict[str, Any]:
        return self.rounds.file.model_dump()

    def _check_folder(self) -> None:
        if not self.document.exists():
            if self.folder.is_dir() and any(self.folder.glob("[!.]*")):
                others = {path.name for path in self.folder.iterdir()} - {"world", "verdicts"}
                if any(not name.startswith(("round-", ".")) for name in others):
                    raise self._not_ours("the folder holds something else")
            return
        with explained(self.document):
            before = json.loads(self.document.read_text(encoding="utf-8"))
        if "settings" not in before:
            raise self._not_ours("the folder holds something else")
        now = json.loads(json.dumps(self._settings()))
        for name, value in now.items():
            if name not in MAY_CHANGE and before["settings"].get(name) != value:
                raise RunError(
                    "the folder has rounds with another setting",
                    file=str(self.folder),
                    field=name,
                    value=before["settings"].get(name),
                    remedy="set it back, or choose another out; only "
                    f"{', '.join(MAY_CHANGE)} may change",
                )

    def _not_ours(self, message: str) -> RunError:
        return RunError(message, file=str(self.folder), field="out", remedy="choose another folder")


def _write(path: Path, document: Any) -> None:
    write_text(path, json.dumps(document, indent=2, ensure_ascii=False) + "\n")
