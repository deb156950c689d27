"""Judges that compute: lengths, patterns, a function of one's own, a generated world's reward."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from prefopt.errors import DataError
from prefopt.judges import settings
from prefopt.judges.code import called, code_of, digest_of
from prefopt.judges.judge import Judge, Progress, Question, Verdict, cannot_score
from prefopt.judges.orders import in_both_orders
from prefopt.judges.scoring import compare_by_scores
from prefopt.judges.table import Context
from prefopt.records import Prompt

#: how good a completion is
Worth = Callable[[Prompt, str], float]
_EVERY = 100  # questions between two reports of progress


class Scoring:
    """A judge by a function of one completion.

    Args:
        name: of the judge.
        worth: higher is better.
        about: what its verdicts depend on, as plain JSON.
        temperature: see `scoring.preference`.
    """

    #: it sees one completion at a time
    sees_order = False
    chunk = 1024

    def __init__(
        self,
        name: str,
        worth: Worth,
        about: Mapping[str, Any],
        *,
        temperature: float | None = None,
    ) -> None:
        self.name = name
        self._worth = worth
        self._about = {**about, "temperature": temperature}
        self._temperature = temperature

    def identity(self) -> Mapping[str, Any]:
        return self._about

    def compare_all(
        self, questions: Sequence[Question], progress: Progress | None = None
    ) -> list[Verdict]:
        return compare_by_scores(self, questions, temperature=self._temperature, progress=progress)

    def score_all(
        self, answers: Sequence[tuple[Prompt, str]], progress: Progress | None = None
    ) -> list[float | None]:
        scores: list[float | None] = []
        for prompt, completion in answers:
            name = f"the judge {self.name}"
            said = called(self._worth, name, prompt, completion, about=completion)
            scores.append(_finite(said, self.name, completion))
            if progress is not None and len(scores) % _EVERY == 0:
                progress(len(scores), len(answers))
        return scores


class Comparing:
    """A judge by a function of two completions, which may see which comes first.

    Args:
        name: of the judge.
        better: (prompt, first, second) → probability that the first is better.
        about: what its verdicts depend on, as plain JSON.
    """

    #: it is asked in both orders here
    sees_order = False
    chunk = 1024

    def __init__(
        self, name: str, better: Callable[[Prompt, str, str], float], about: Mapping[str, Any]
    ) -> None:
        self.name = name
        self._better = better
        self._about = about

    def identity(self) -> Mapping[str, Any]:
        return self._about

    def compare_all(
        self, questions: Sequence[Question], progress: Progress | None = None
    ) -> list[Verdict]:
        return in_both_orders(self._once, questions, progress)

    def _once(
        self, questions: Sequence[Question], progress: Progress | None = None
    ) -> list[Verdict]:
        verdicts = []
        for question in questions:
            asked = (question.prompt, question.first, question.second)
            said = called(self._better, f"the judge {self.name}", *asked, about=question.first)
            number = _finite(said, self.name, question.first)
            if not 0.0 <= number <= 1.0:
                raise DataError(
                    f"the judge {self.name} must give a probability, from 0 to 1",
                    kind="out_of_range",
                    field="judge",
                    value=said,
                    remedy="return 1 where the first is better, 0 where the second is, ½ for a tie",
                )
            verdicts.append(Verdict(number))
            if progress is not None and len(verdicts) % _EVERY == 0:
                progress(len(verdicts), len(questions))
        return verdicts

    def score_all(
        self, answers: Sequence[tuple[Prompt, str]], progress: Progress | None = None
    ) -> list[float | None]:
        raise cannot_score(self)


def make_longest(chosen: settings.Length, context: Context) -> Judge:
    """The longer one."""
    return _by_length("longest", chosen, 1.0)


def make_shortest(chosen: settings.Length, context: Context) -> Judge:
    """The shorter one."""
    return _by_length("shortest", chosen, -1.0)


def _by_length(kind: str, chosen: settings.Length, sign: float) -> Judge:
    def worth(prompt: Prompt, completion: str) -> float:
        return sign * len(completion if chosen.unit == "characters" else completion.split())

    name = kind if chosen.unit == "characters" else f"{kind}:{chosen.unit}"
    return Scoring(name, worth, {"kind": kind, "unit": chosen.unit})


def make_pattern(chosen: settings.Pattern, context: Context) -> Judge:
    """With or without any of the patterns: 1 or 0, and their difference.

    Raises:
        RecipeError: one is not a regular expression.
    """
    from prefopt.constraints.measures import Patterns

    found = Patterns(tuple(chosen.patterns), field=f"{context.prefix}patterns")
    sign = 1.0 if chosen.prefer == "with" else -1.0
    return Scoring(
        f"pattern:{'|'.join(chosen.patterns)}",
        lambda prompt, completion: sign * found(prompt, completion),
        {"kind": "pattern", "patterns": list(chosen.patterns), "prefer": chosen.prefer},
    )


def make_world(chosen: settings.World, context: Context) -> Judge:
    """The reward of `data.worlds.ReviewWorld`."""
    from prefopt.data import worlds

    world = worlds.ReviewWorld()

    def worth(prompt: Prompt, completion: str) -> float:
        if not isinstance(prompt, str):
            raise context.refusal(
                "the world of reviews knows prompts that are text, and this is a conversation",
                "kind",
                value="world",
                remedy="use prompts of that world, such as those of prefopt demo",
            )
        return world.reward(prompt, completion)

    about = {"kind": "world", "world": chosen.world, "code": digest_of(Path(worlds.__file__))}
    return Scoring(f"world:{chosen.world}", worth, about, temperature=chosen.temperature)


def make_python(chosen: settings.Python, context: Context) -> Judge:
    """A function by name. Its file is part of the judge's identity: other code, other verdicts.

    Raises:
        RecipeError: there is no such function, or a setting would have no effect.
    """
    from prefopt.constraints.measures import load_rule

    function: Any = load_rule(chosen.function, field=f"{context.prefix}function")
    about = {
        "kind": "python", "function": chosen.function, "what": chosen.what,
        "code": code_of(function, chosen.function),
    }  # fmt: skip
    name = f"python:{chosen.function}"
    if chosen.what == "score":
        return Scoring(name, function, about, temperature=chosen.temperature)
    if chosen.temperature is not None:
        raise context.refusal(
            "temperature has no effect: the function gives a probability itself",
            "temperature",
            value=chosen.temperature,
            remedy="remove it, or set what: score",
        )
    return Comparing(name, function, about)


def _finite(value: Any, name: str, completion: str) -> float:
    try:
        number = math.nan if isinstance(value, str) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise DataError(
            f"the judge {name} must give a finite number, and gave {value!r}",
            kind="out_of_range",
            field="judge",
            value=completion,
            remedy="make the function return a number for every text",
        )
    return number
