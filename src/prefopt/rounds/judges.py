"""Who judges: the judge of each round, and the one that says how good its policy is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prefopt.errors import PolicyError, RecipeError
from prefopt.judges.kept import Kept
from prefopt.judges.table import KINDS, check_spec, make_judge
from prefopt.recipe.text import read
from prefopt.rounds.settings import Rounds

#: settings of a judge that its verdicts do not depend on: where it is reached, and how fast
_REACHED = {"url", "key", "concurrency", "timeout", "resends", "batch_size", "wait"}


class Judges:
    """The judges of a loop, each remembering what it said.

    Args:
        rounds: the file.
        verdicts: folder where they are kept.
        first: what the first policy is loaded from.
    """

    def __init__(self, rounds: Rounds, verdicts: Path, first: str) -> None:
        self._rounds, self._verdicts, self._first = rounds, verdicts, first

    def of_rounds(self, policy: str, account: str, *, budget: int | None = None) -> Kept:
        """The judge of the rounds.

        Args:
            policy: who wrote what is judged, `{policy}` in the settings.
            account: whose questions are counted together.
            budget: most of them.
        """
        return self._made("judge", policy, account, budget)

    def evaluating(self) -> Kept:
        """The same one in all rounds: in a world its own reward, unless another was named."""
        return self._made("evaluate.judge", self._first, "evaluation", None)

    def measuring(self, policy: str) -> tuple[Kept, Kept | None]:
        """Who evaluates, and the judge of the rounds, which may be the same; None if not asked.

        Args:
            policy: as in `of_rounds`.
        """
        evaluating, evaluate = self.evaluating(), self._rounds.file.evaluate
        if self._filled("judge", policy) == self._filled("evaluate.judge", self._first):
            return evaluating, evaluating
        if evaluate.agreement == 0 and evaluate.labels is None:
            return evaluating, None
        # What it is asked here is not of a round's budget.
        return evaluating, self.of_rounds(policy, "agreement")

    def _made(self, name: str, policy: str, account: str, budget: int | None) -> Kept:
        with located(self._rounds, name):
            spec, place = self._filled(name, policy)
            judge = make_judge(spec, device=self._rounds.file.device, **place)
            return Kept(judge, self._verdicts, budget=budget, account=account)

    def _filled(self, name: str, policy: str) -> tuple[Any, dict[str, Any]]:
        spec, place = opened(_spec(self._rounds, name))
        return _filled(spec, {"{policy}": policy, "{initial}": self._first}), place


def check_judges(rounds: Rounds) -> Iterator[RecipeError]:
    """What can be told to be wrong with the judges before anything is loaded."""
    for name in ("judge", "evaluate.judge"):
        try:
            with located(rounds, name):
                spec, place = opened(_spec(rounds, name))
                check_spec(spec, file=place.get("file"))
        except RecipeError as error:
            yield error
    own = rounds.file.evaluate.judge
    if own is not None and "{policy}" in str(opened(own)[0]):
        yield rounds.refuse(
            "who evaluates must be one and the same in all rounds", "evaluate.judge",
            value=own, remedy="write {initial}, or a folder",
        )  # fmt: skip


def said_of_judges(rounds: Rounds) -> dict[str, Any]:
    """What verdicts depend on, as it stands in the files now: for comparison with later."""
    found = {}
    for name in ("judge", "evaluate.judge"):
        spec, place = opened(_spec(rounds, name))
        kind, settings = check_spec(spec, file=place.get("file"))
        chosen = settings.model_dump()
        # A served model is known by its name wherever it is; without one the address stands for it.
        reached = _REACHED if chosen.get("model") else _REACHED - {"url"}
        known = {key: value for key, value in chosen.items() if key not in reached}
        found[name] = {"kind": kind, **known}
    return found


def opened(spec: Any) -> tuple[Any, dict[str, Any]]:
    """A spec that is a file as what stands in it, with the place of that for `make_judge`."""
    if isinstance(spec, str) and spec.endswith((".yaml", ".yml")):
        if spec.partition(":")[0] not in KINDS and Path(spec).is_file():
            document, rows = read(spec)
            return document, {"file": spec, "rows": rows}
    return spec, {}


@contextmanager
def located(rounds: Rounds, name: str) -> Iterator[None]:
    """Say of an error with a judge which judge it is, and where that stands."""
    try:
        yield
    except (RecipeError, PolicyError) as error:
        if error.file is None:
            error.file = rounds.path
            error.field = f"{name}.{error.field}" if error.field else name
            error.row = rounds.row(error.field)
        raise


def _spec(rounds: Rounds, name: str) -> Any:
    """Who evaluates is by default the judge of the rounds, in a world that world's reward."""
    file = rounds.file
    if name == "judge":
        return file.judge
    if file.evaluate.judge is not None:
        return file.evaluate.judge
    return "world" if file.world is not None else file.judge


def _filled(spec: Any, names: Mapping[str, str]) -> Any:
    """A judge's settings with the names of policies in them."""
    if isinstance(spec, str):
        for name, value in names.items():
            spec = spec.replace(name, value)
        return spec
    if isinstance(spec, Mapping):
        return {key: _filled(value, names) for key, value in spec.items()}
    return [_filled(item, names) for item in spec] if isinstance(spec, Sequence) else spec
