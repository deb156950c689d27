"""SIGKILL at every boundary between stages, and in the middle of each: nothing is done twice."""

from __future__ import annotations

import json
import os
import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from prefopt.judges.judge import Judge, Progress, Question, Verdict, cannot_score
from prefopt.judges.table import make_judge
from prefopt.records import Prompt
from prefopt.rounds.ledger import STAGES
from prefopt.rounds.loop import run_rounds
from prefopt.rounds.settings import make_rounds
from prefopt.runs import fingerprint_file
from tests.small_loop import small_loop

#: what of a stage is there when it is half done
HALF = {
    "sample": "samples.jsonl", "select": "questions.jsonl", "judge": "judged.jsonl",
    "check": "check.json", "evaluate": "samples.jsonl",
}  # fmt: skip


class Noting:
    """Takes the shorter answer; what it is asked is in a file before it speaks."""

    name, sees_order = "noting", False

    def __init__(self, log: Path) -> None:
        self.log = log

    def identity(self) -> dict[str, Any]:
        return {"kind": "noting"}

    def compare_all(
        self, questions: Sequence[Question], progress: Progress | None = None
    ) -> list[Verdict]:
        return [verdict for _, verdict in self.compare_each(questions)]

    def compare_each(self, questions: Sequence[Question]) -> Iterator[tuple[int, Verdict]]:
        for place, asked in enumerate(questions):
            with open(self.log, "a") as handle:
                handle.write(
                    json.dumps([asked.prompt, *sorted((asked.first, asked.second))]) + "\n"
                )
            gap = len(asked.second) - len(asked.first)
            yield place, Verdict(0.5 if gap == 0 else float(gap > 0))

    def score_all(
        self, answers: Sequence[tuple[Prompt, str]], progress: Progress | None = None
    ) -> list[float | None]:
        raise cannot_score(self)


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_at(folder: Path, number: int, stage: str, when: str) -> None:
    """Kill this process `before` or `after` a stage is finished, or `within` it."""
    import prefopt.sampling.keeping as keeping
    from prefopt.judges.lines import Lines
    from prefopt.training import loop

    place = folder / f"round-{number}" / stage
    replace = os.replace

    def replaced(source: Any, target: Any, **options: Any) -> None:
        if when == "before" and Path(target) == place / "manifest.json":
            kill()
        replace(source, target, **options)
        if when == "after" and Path(target) == place / "manifest.json":
            kill()
        if when == "within" and Path(target) == place / HALF.get(stage, "?"):
            kill()

    os.replace = replaced

    def third(work: Callable[..., Any]) -> Callable[..., Any]:
        calls = [0]

        def counted(*arguments: Any, **named: Any) -> Any:
            found = work(*arguments, **named)
            calls[0] += 1
            return kill() if calls[0] == 3 else found

        return counted

    if when == "within" and stage == "sample":  # in the middle of the prompts
        keeping._File._append = third(keeping._File._append)  # type: ignore[method-assign]
    if when == "within" and stage == "judge":  # in the middle of the questions
        Lines.add = third(Lines.add)  # type: ignore[method-assign]
    if when == "within" and stage == "train":  # between two steps of the optimizer
        loop.accumulate = third(loop.accumulate)


def attempt(settings: dict[str, Any], *moment: Any) -> int:
    """Run the loop in a process of its own; its exit status, negative for a signal."""
    process = os.fork()
    if process == 0:
        code = 1
        try:
            if moment:
                die_at(Path(settings["out"]), *moment)
            run_rounds(make_rounds(settings), progress=False)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def finished(folder: Path) -> dict[str, int]:
    """When each stage was finished."""
    found = folder.glob("round-*/*/manifest.json")
    return {str(path.relative_to(folder).parent): path.stat().st_mtime_ns for path in found}


def came_to(folder: Path) -> dict[str, Any]:
    """Data, weights and figures."""
    patterns = ("sample/samples.jsonl", "judge/*.jsonl", "evaluate/samples.jsonl",
                "train/model/model.safetensors")  # fmt: skip
    files = sorted(path for one in patterns for path in folder.glob(f"round-*/{one}"))
    history = json.loads((folder / "rounds.json").read_text())["history"]
    figures = [{k: v for k, v in row.items() if k != "seconds"} for row in history]
    digests = {str(path.relative_to(folder)): fingerprint_file(path) for path in files}
    return {"figures": figures, **digests}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_killed_at_every_boundary_and_within_every_stage(
    tmp_path: Path, tiny_policy_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import prefopt.training.train  # noqa: F401  (once, and not in every process)

    log = tmp_path / "asked"

    def made(spec: Any, **how: Any) -> Judge:
        return Noting(log) if spec == "shortest" else make_judge(spec, **how)

    monkeypatch.setattr("prefopt.rounds.judges.make_judge", made)
    settings = {
        **small_loop(tmp_path, tiny_policy_folder), "rounds": 1,
        "select": {"by": "compare", "per_prompt": 2},
    }  # fmt: skip
    whole = {**settings, "out": str(tmp_path / "whole")}
    assert attempt(whole) == 0
    asked_once = sorted(log.read_text().splitlines())
    assert len(asked_once) == len(set(asked_once)) > 12
    log.unlink()

    folder, times = Path(settings["out"]), dict[str, int]()
    moments = [(0, "evaluate"), *((1, stage) for stage in STAGES)]
    for number, stage in moments:
        for when in ("within", "before", "after"):
            name = f"round-{number}/{stage}"
            assert attempt(settings, number, stage, when) == -signal.SIGKILL, (name, when)
            assert (name in finished(folder)) == (when == "after")
            now = finished(folder)
            assert {known: now[known] for known in times} == times, "a stage was done again"
            times = now
    assert attempt(settings) == 0
    assert finished(folder) == times
    assert came_to(folder) == came_to(Path(whole["out"]))
    assert sorted(log.read_text().splitlines()) == asked_once, "no question is put twice"
    # what people look at is there too, wherever it was killed
    assert (folder / "round-1/check/check.html").is_file()
    assert (folder / "round-1/train/report.html").is_file()
    document = json.loads((folder / "rounds.json").read_text())
    assert document["state"] == "done" and (folder / "report.html").is_file()
