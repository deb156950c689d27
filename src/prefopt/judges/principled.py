"""A constitution as a judge: a verdict by every principle, and their weighted mean."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from prefopt.errors import RecipeError
from prefopt.judges import settings
from prefopt.judges.constitution import Principle, read_constitution
from prefopt.judges.judge import Judge, Progress, Question, Verdict, cannot_score
from prefopt.judges.language import reader
from prefopt.judges.orders import fairly
from prefopt.judges.remembered import remember_in
from prefopt.judges.rubric import Rubric
from prefopt.judges.table import Context, check_spec, make_judge
from prefopt.judges.templates import check_template, read_templates
from prefopt.records import Prompt


class ByPrinciples:
    """Several judges, one for each principle.

    Args:
        name: of the judge.
        principles: who judges by each of them.
        weights: how much each counts, by name.
    """

    #: each of them is asked in both orders
    sees_order = False

    def __init__(
        self, name: str, principles: Mapping[str, Judge], weights: Mapping[str, float]
    ) -> None:
        self.name = name
        self._principles, self._weights = principles, weights
        self.side_by_side = any(getattr(j, "side_by_side", False) for j in principles.values())

    def remember_in(self, folder: Path) -> None:
        """Keep what is said on the way to a verdict."""
        remember_in(folder, *self._principles.values())

    def identity(self) -> Mapping[str, Any]:
        return {
            "kind": "constitution",
            "principles": {
                name: {"judge": dict(judge.identity()), "weight": self._weights[name]}
                for name, judge in self._principles.items()
            },
        }

    def compare_all(
        self, questions: Sequence[Question], progress: Progress | None = None
    ) -> list[Verdict]:
        """The weighted mean of what can be read; the transcript has every principle's."""
        said = {
            name: fairly(judge, questions, self._told(progress, turn, len(questions)))
            for turn, (name, judge) in enumerate(self._principles.items())
        }
        return [
            self._verdict({name: verdicts[place] for name, verdicts in said.items()})
            for place in range(len(questions))
        ]

    def score_all(
        self, answers: Sequence[tuple[Prompt, str]], progress: Progress | None = None
    ) -> list[float | None]:
        """The weighted mean of the principles' scores; None where one cannot be read.

        Raises:
            RecipeError: one of the principles is judged by somebody who only compares.
        """
        try:
            scores = {
                name: judge.score_all(answers, self._told(progress, turn, len(answers)))
                for turn, (name, judge) in enumerate(self._principles.items())
            }
        except RecipeError as error:
            raise cannot_score(self) from error
        total = sum(self._weights.values())
        means: list[float | None] = []
        for place in range(len(answers)):
            found = {name: column[place] for name, column in scores.items()}
            known = {name: value for name, value in found.items() if value is not None}
            whole = sum(self._weights[name] * value for name, value in known.items()) / total
            means.append(whole if len(known) == len(found) else None)
        return means

    def _told(self, progress: Progress | None, turn: int, count: int) -> Progress | None:
        """Progress of one principle as a part of the whole."""
        if progress is None:
            return None
        before, parts = turn * count, len(self._principles)
        tell: Callable[[int, int], None] = progress
        return lambda done, total: tell((before + done) // parts, count)

    def _verdict(self, said: Mapping[str, Verdict]) -> Verdict:
        known = {n: v.probability for n, v in said.items() if v.probability is not None}
        weight = sum(self._weights[name] for name in known)
        mean = sum(self._weights[n] * p for n, p in known.items()) / weight if known else None
        seen = [v.order_consistent for v in said.values() if v.order_consistent is not None]
        reasons = [f"{name}: {v.rationale}" for name, v in said.items() if v.rationale]
        return Verdict(
            mean,
            "\n".join(reasons) or None,
            all(seen) if seen else None,
            {
                "principles": {name: v.probability for name, v in said.items()},
                "judges": {name: dict(v.transcript) for name, v in said.items()},
            },
        )


def principle_counts(verdicts: Iterable[Verdict]) -> dict[str, Counter[str]]:
    """What each principle said, counted from the transcripts of a constitution's verdicts.

    Returns:
        By principle, how often it spoke for the `first`, the `second`, `neither`, or could not be
        read (`unreadable`); and `decided_otherwise`, how often the mean was against it.
    """
    found: dict[str, Counter[str]] = {}
    for verdict in verdicts:
        # Of a verdict that was turned, the transcript stays as it was said.
        flipped = bool(verdict.transcript.get("flipped"))
        for name, probability in verdict.transcript.get("principles", {}).items():
            known = probability is not None
            said = _side(1 - probability if flipped and known else probability)
            counts = found.setdefault(name, Counter())
            counts[said] += 1
            if {said, _side(verdict.probability)} == {"first", "second"}:
                counts["decided_otherwise"] += 1
    return found


def _side(probability: float | None) -> str:
    if probability is None:
        return "unreadable"
    return "first" if probability > 0.5 else "second" if probability < 0.5 else "neither"


def make_constitution(chosen: settings.Constitution, context: Context) -> Judge:
    """The constitution in a file, with the model that reads its principles.

    Raises:
        RecipeError: the file is wrong, or a principle has nobody to judge by it.
        PolicyError: a model cannot be loaded.
    """
    constitution = read_constitution(chosen.file)
    read: Callable[[Principle], Judge] | None = None
    judges: dict[str, Judge] = {}
    for place, principle in enumerate(constitution.principles):
        if principle.judge is not None:
            judges[principle.name] = make_judge(
                principle.judge,
                device=context.device,
                file=chosen.file,
                prefix=f"principles.{place}.judge.",
            )
            continue
        if chosen.judge is None:
            raise context.refusal(
                f"nobody judges by the principle '{principle.name}'",
                "judge",
                value=chosen.file,
                remedy="give the principle a judge, such as pattern:REGEX, or the constitution a "
                "model: judge: lm:FOLDER, or server:URL",
            )
        read = read or _reader(chosen.judge, context)
        judges[principle.name] = read(principle)
    if chosen.judge is not None and read is None:
        raise context.refusal(
            "judge has no effect: every principle has its own",
            "judge",
            value=chosen.judge,
            remedy="remove it",
        )
    weights = {principle.name: principle.weight for principle in constitution.principles}
    return ByPrinciples(f"constitution:{chosen.file}", judges, weights)


def _reader(spec: settings.Spec, context: Context) -> Callable[[Principle], Judge]:
    """A language model, loaded once, which reads any principle."""
    kind, found = check_spec(spec, file=context.file)
    if not isinstance(found, settings.Local | settings.Server):
        raise context.refusal(
            f"a judge of kind {kind} reads no principles",
            "judge",
            value=spec,
            remedy="use lm:FOLDER or server:URL, or give each principle a judge of its own",
        )
    # Both's the default of the setting; a rubric of principles is the default here.
    name = found.rubric if "rubric" in found.model_fields_set else "principle"
    file, template = _template(name)
    judge_by = reader(found, context)
    return lambda principle: judge_by(
        Rubric(file, template, None, 1, 10, principle.question or principle.revision)
    )


def _template(name: str) -> tuple[str, str]:
    document, file, rows = read_templates(name, "rubric")
    shown = ("principle", "prompt", "first", "second")
    text = check_template(
        document.get("compare"), allowed=(*shown, "letters"), required=shown,
        file=file, row=rows.get("compare"), field="compare",
    )  # fmt: skip
    return file, text
