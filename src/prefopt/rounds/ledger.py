"""The folder of all rounds: which stages are finished, and what they said.

    rounds.json      the settings, the state, and the figures of every round
    world/           the generated world, where there is one
    verdicts/        what judges said, by content: nothing is asked twice
    round-0/         the first policy, measured
    round-1/         the prompts of the round, prompts.jsonl (in round-0 those of every measurement)
    round-1/sample/  and select/, judge/, check/, train/, evaluate/: each is finished when it
                     has its manifest.json
    model            a link to the model of the best round
    report.html      the page for people

A stage's manifest is written last, so a killed round goes on with the stage it was in.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from prefopt import __version__
from prefopt.data.prompts import read_prompts
from prefopt.errors import RunError
from prefopt.recipe import NOT_LEARNED
from prefopt.records import Prompt, prompt_to_json
from prefopt.rounds.judges import said_of_judges
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
        self._judges = without_passwords(said_of_judges(rounds))
        self.folder = Path(rounds.file.out)
        self.document = self.folder / "rounds.json"
        self.report = self.folder / "report.html"
        self.verdicts = self.folder / "verdicts"
        self._check_folder()

    def stage_folder(self, number: int, name: str) -> Path:
        """`round-2/judge`."""
        return self.folder / f"round-{number}" / name

    @property
    def begun(self) -> bool:
        """Whether a stage is finished: from then on settings hold."""
        return any(self.folder.glob("round-*/*/manifest.json"))

    def prompts(self) -> dict[int, list[Prompt]]:
        """The prompts of the rounds that have sampled, and as 0 of what is measured on."""
        found = {}
        for path in self.folder.glob("round-*/prompts.jsonl"):
            number = path.parent.name.removeprefix("round-")
            if number.isdigit() and self.done(int(number), "sample" if int(number) else "evaluate"):
                found[int(number)] = list(read_prompts([str(path)]))
        return found

    def keep_prompts(self, number: int, prompts: Sequence[Prompt]) -> None:
        """Write down the prompts of a round; what was sampled of others is given up."""
        path = self.folder / f"round-{number}" / "prompts.jsonl"
        text = "".join(json.dumps({"prompt": prompt_to_json(one)}) + "\n" for one in prompts)
        with explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists() and path.read_text(encoding="utf-8") != text:
                shutil.rmtree(self.stage_folder(number, "sample"), ignore_errors=True)
        write_text(path, text)

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
        written = read_json(manifest)
        figures = written.get("figures", written.get("result", {}))
        return {**figures, "seconds": written.get("seconds")}

    def write(self, state: str, **found: Any) -> dict[str, Any]:
        """Write `rounds.json`, and return what it holds."""
        document = {
            "prefopt": __version__,
            "out": str(self.folder),
            "state": state,
            **found,
            "settings": self._settings(),
            "judges": self._judges,
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
        return dict(without_passwords(self.rounds.file.model_dump()))

    def _check_folder(self) -> None:
        if not self.document.exists():
            others = set(self.folder.glob("[!.]*")) if self.folder.is_dir() else set()
            ours = ("world", "verdicts", "round-")
            if any(not path.name.startswith(ours) for path in others):
                raise self._not_ours("the folder holds something else")
            return
        before = read_json(self.document)
        if "settings" not in before:
            raise self._not_ours("the folder holds something else")
        if self.begun:
            self._check_same(before)

    def _check_same(self, before: Mapping[str, Any]) -> None:
        """Refuse settings that what is finished did not have."""
        now = dict(_flat(json.loads(json.dumps(_compared(self._settings(), self._judges)))))
        then = dict(_flat(_compared(before["settings"], before.get("judges", {}))))
        for name, value in now.items():
            if name.partition(".")[0] in MAY_CHANGE or then.get(name) == value:
                continue
            if name == "train" and not any(self.folder.glob("round-*/train/manifest.json")):
                continue  # what a training refused may be mended
            raise RunError(
                "the folder has rounds with another setting",
                file=str(self.folder),
                field=name,
                value=then.get(name),
                remedy="set it back, or choose another out; only "
                f"{', '.join(MAY_CHANGE)}, sample.batch_size may change",
            )

    def _not_ours(self, message: str) -> RunError:
        return RunError(message, file=str(self.folder), field="out", remedy="choose another folder")


def _compared(settings: Mapping[str, Any], judges: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with the judges as they were read, and not as they were named."""
    evaluate = {key: value for key, value in settings["evaluate"].items() if key != "judge"}
    train = {key: value for key, value in settings["train"].items() if key not in NOT_LEARNED}
    sample = {key: value for key, value in settings["sample"].items() if key != "batch_size"}
    return {**settings, "evaluate": evaluate, "train": train, "sample": sample, **judges}


def _flat(settings: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Settings by their dotted names; a judge and a training are one each."""
    for name, value in settings.items():
        if isinstance(value, Mapping) and name not in ("judge", "evaluate.judge", "train"):
            yield from _flat(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value


def without_passwords(value: Any) -> Any:
    """The same without the passwords of URLs: the folder is shown to others.

    >>> without_passwords({"database": "postgresql://ann:secret@host/labels"})
    {'database': 'postgresql://ann:***@host/labels'}
    """
    if isinstance(value, str):
        return re.sub(r"(://[^/:@\s]*):[^/@\s]*@", r"\1:***@", value)
    if isinstance(value, Mapping):
        return {key: without_passwords(item) for key, item in value.items()}
    return [without_passwords(item) for item in value] if isinstance(value, list) else value


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of this folder.

    Raises:
        RunError: it cannot be read, or is not JSON.
    """
    with explained(path):
        text = path.read_text(encoding="utf-8", errors="replace")
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise RunError(
            "not JSON", file=str(path), row=error.lineno,
            remedy="it was changed by something else: remove it and what came after it",
        ) from None  # fmt: skip
    return document if isinstance(document, dict) else {}


def _write(path: Path, document: Any) -> None:
    write_text(path, json.dumps(document, indent=2, ensure_ascii=False) + "\n")
