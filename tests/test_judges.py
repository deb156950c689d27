"""Judges: the one door to them, rules, both orders, points, and several judges as one."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from prefopt.data.worlds import ReviewWorld
from prefopt.errors import DataError, RecipeError
from prefopt.judges.ensemble import Ensemble
from prefopt.judges.judge import Judge, Progress, Question, Verdict, compare, score
from prefopt.judges.orders import fairly, merged, turned
from prefopt.judges.points import points_of
from prefopt.judges.rules import Comparing, Scoring
from prefopt.judges.scoring import preference
from prefopt.judges.table import KINDS, check_spec, make_judge
from prefopt.records import Message, Prompt


class Fixed:
    """A judge that says what it is told, and counts what it is asked."""

    sees_order = False

    def __init__(self, *said: float | None, name: str = "fixed", worth: float = 0.0) -> None:
        self.name, self.said, self.worth = name, said, worth
        self.asked: list[Question] = []

    def identity(self) -> dict[str, object]:
        return {"kind": "fixed", "said": list(self.said)}

    def compare_all(
        self, questions: Sequence[Question], progress: Progress | None = None
    ) -> list[Verdict]:
        self.asked += questions
        return [Verdict(self.said[i % len(self.said)]) for i in range(len(questions))]

    def score_all(
        self, answers: Sequence[tuple[Prompt, str]], progress: Progress | None = None
    ) -> list[float | None]:
        return [self.worth] * len(answers)


# -- the door ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "name", "probability"),
    [
        ("longest", "longest", 0.0),
        ("shortest", "shortest", 1.0),
        ("longest:words", "longest:words", 1.0),
        ("pattern:bbb", "pattern:bbb", 1.0),
        ({"kind": "pattern", "patterns": ["bbb"], "prefer": "with"}, "pattern:bbb", 0.0),
        ({"pattern": "bbb"}, "pattern:bbb", 1.0),
        ({"pattern": ["x", "bbb"]}, "pattern:x|bbb", 1.0),
        ("python:math:fsum_", None, None),
    ],
)
def test_a_spec_becomes_a_judge(spec: object, name: str | None, probability: float | None) -> None:
    if name is None:
        with pytest.raises(RecipeError, match="no function"):
            make_judge(spec)  # type: ignore[arg-type]
        return
    judge = make_judge(spec)  # type: ignore[arg-type]
    assert isinstance(judge, Judge)
    assert judge.name == name
    assert compare(judge, "p", "a a", "bbbb").probability == probability


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("longst", "did you mean 'longest'"),
        ("nope", "choose longest, "),
        ("http://localhost:8000", "write server:URL"),
        ("longest:lines", "one of: characters, words"),
        ("debate:x", "give a YAML file with kind: debate"),
        ("lm", "write lm:MODEL"),
        ({"kind": "longest", "units": "words"}, "did you mean 'unit'"),
        ({"kind": "pattern"}, "set patterns beside kind: pattern"),
        ({"kind": "pattern", "patterns": ["("]}, "not a regular expression"),
        ({"judge": "longest"}, "it is not said which kind"),
        ({"kind": "world", "temperature": 0}, "a number above 0"),
        ({"kind": "python", "function": "operator:eq", "what": "compare", "temperature": 1.0},
         "no effect"),
        ({"kind": "ensemble", "judges": ["longest"]}, "judges"),
        ({"kind": "ensemble", "judges": ["longest", "shortest"], "weights": [1, 2]}, "weighted"),
        ({"kind": "ensemble", "judges": ["longest", "shortest"], "rule": "weighted",
          "weights": [1]}, "2 judges and 1 weights"),
        ({"kind": "debate", "judge": "longest", "debaters": ["lmm:x"]}, "debaters.0.kind"),
        ({"kind": "debate", "judge": "longest", "debaters": [{"kind": "python",
          "function": "operator:eq", "temperature": 1.0}]}, "no effect for kind python"),
        ({"kind": "recursive", "judge": "longst", "critic": "python:operator:eq"}, "judge.kind"),
        ({"kind": "selfreward"}, "give model: FOLDER, or url: URL"),
        (3, "text or a mapping"),
        ("nope.yaml", "no such file"),
    ],
)  # fmt: skip
def test_wrong_specs_say_what_would_be_right(spec: object, words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        make_judge(spec)  # type: ignore[arg-type]
    assert words in str(caught.value)


def test_a_folder_is_asked_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        make_judge(str(tmp_path))
    assert f"lm:{tmp_path}" in str(caught.value)


def test_a_file_names_itself_its_row_and_setting(tmp_path: Path) -> None:
    path = tmp_path / "judge.yaml"
    path.write_text("kind: ensemble\njudges:\n  - longest\n  - kind: shortest\n    unit: lines\n")
    with pytest.raises(RecipeError) as caught:
        make_judge(path)
    error = caught.value
    assert (error.file, error.row, error.field) == (str(path), 5, "judges.1.unit")


def test_paths_in_a_file_are_relative_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "mine.py").write_text("def worth(prompt, text):\n    return len(text)\n")
    (tmp_path / "inner" / "rule.yaml").write_text("kind: python\nfunction: mine.py:worth\n")
    (tmp_path / "all.yaml").write_text("kind: ensemble\njudges: [inner/rule.yaml, longest]\n")
    monkeypatch.chdir(tmp_path / "inner")
    judge = make_judge("../all.yaml")
    assert compare(judge, "p", "aa", "b").probability == 1.0
    sys.modules.pop("_prefopt_rules_mine", None)


def test_another_code_is_another_judge(tmp_path: Path) -> None:
    path = tmp_path / "other.py"
    identities = []
    for body in ("len(text)", "-len(text)"):
        path.write_text(f"def worth(prompt, text):\n    return {body}\n")
        identities.append(make_judge(f"python:{path}:worth").identity())
    assert identities[0] != identities[1]
    sys.modules.pop("_prefopt_rules_other", None)


def test_every_row_of_the_table_can_be_imported_and_named() -> None:
    from importlib import import_module

    for kind, row in KINDS.items():
        module, _, function = row.make.partition(":")
        assert callable(getattr(import_module(module), function)), kind
        assert row.help.endswith(".")
        assert row.argument is None or row.argument in row.settings.model_fields


def test_a_spec_can_be_checked_without_loading_anything() -> None:
    kind, settings = check_spec({"server": "http://nobody:1", "mode": "logprobs"})
    assert (kind, settings.model_dump()["mode"]) == ("server", "logprobs")


# -- rules ---------------------------------------------------------------------------------


def test_the_worlds_reward_is_the_judges_score() -> None:
    world = ReviewWorld(temperature=0.25)
    prompt, good, bad = (
        "I watched this film",
        " yesterday. It was superb.",
        " yesterday. It was bad.",
    )
    for spec, expected in (
        ("world:reviews", 1.0),
        ({"kind": "world", "temperature": 0.5}, None),
    ):
        judge = make_judge(spec)  # type: ignore[arg-type]
        assert score(judge, prompt, good) == world.reward(prompt, good)
        gap = world.reward(prompt, good) - world.reward(prompt, bad)
        if expected is None:
            expected = 1 / (1 + math.exp(-gap / 0.5))
        assert compare(judge, prompt, good, bad).probability == pytest.approx(expected)
    with pytest.raises(RecipeError, match="conversation"):
        score(make_judge("world"), (Message("user", "hi"),), "x")


def test_preference_is_finite_far_away() -> None:
    assert preference(1e6, 0.01) == 1.0
    assert preference(-1e6, 0.01) == 0.0
    assert preference(0.3, 0.1) + preference(-0.3, 0.1) == pytest.approx(1.0)


def test_each_completion_is_scored_once() -> None:
    calls: list[str] = []

    def worth(prompt: Prompt, text: str) -> float:
        calls.append(text)
        return float(len(text))

    judge = Scoring("counting", worth, {})
    questions = [Question("p", "a", "bb"), Question("p", "bb", "ccc"), Question("p", "a", "ccc")]
    assert [v.probability for v in judge.compare_all(questions)] == [0.0, 0.0, 0.0]
    assert calls == ["a", "bb", "ccc"]


@pytest.mark.parametrize("said", [float("nan"), "1", None, 2.0])
def test_a_function_that_gives_no_probability_is_refused(said: object) -> None:
    judge = Comparing("odd", lambda prompt, first, second: said, {})  # type: ignore[arg-type, return-value]
    with pytest.raises(DataError, match="odd"):
        compare(judge, "p", "a", "b")


# -- both orders ---------------------------------------------------------------------------


def test_a_judge_that_prefers_what_comes_first_finds_a_tie_and_an_inconsistency() -> None:
    judge = Comparing("first", lambda prompt, first, second: 1.0, {})
    verdict = compare(judge, "p", "a", "b")
    assert (verdict.probability, verdict.order_consistent) == (0.5, False)
    assert verdict.transcript["orders"] == [1.0, 1.0]


@pytest.mark.parametrize(
    ("forward", "backward", "probability", "consistent"),
    [
        (1.0, 0.0, 1.0, True),
        (0.0, 1.0, 0.0, True),
        (0.5, 0.5, 0.5, True),
        (0.0, 0.0, 0.5, False),
        (1.0, 0.5, 0.75, False),
        (0.9, 0.4, 0.75, True),
        (None, 1.0, None, None),
        (1.0, None, None, None),
    ],
)
def test_both_orders_by_hand(
    forward: float | None,
    backward: float | None,
    probability: float | None,
    consistent: bool | None,
) -> None:
    both = merged(Verdict(forward), Verdict(backward))
    assert both.probability == (None if probability is None else pytest.approx(probability))
    assert both.order_consistent is consistent


def test_who_sees_no_order_is_asked_once_and_who_may_is_asked_twice() -> None:
    judge = Fixed(1.0)
    assert fairly(judge, [Question("p", "a", "b")])[0].probability == 1.0
    assert len(judge.asked) == 1
    judge = Fixed(1.0, 0.0)
    judge.sees_order = True
    verdict = fairly(judge, [Question("p", "a", "b")])[0]
    assert (verdict.probability, verdict.order_consistent) == (1.0, True)
    assert judge.asked == [Question("p", "a", "b"), Question("p", "b", "a")]


def test_turning_twice_is_nothing() -> None:
    verdict = Verdict(0.25, "why", True, {"orders": [0.25, 0.75]})
    assert turned(verdict).probability == 0.75
    assert turned(verdict).transcript["flipped"] is True
    assert turned(turned(verdict)) == verdict


# -- points --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "points"),
    [
        ("[[7]]", 7.0),
        ("It is fine.\n[[7.5]]", 7.5),
        ("[[ 7 / 10 ]]", 7.0),
        ("[[7]] as I said: [[7]]", 7.0),
        ("[[7]] or rather [[8]]", "contradictory"),
        ("[[A]] but [[3]]", 3.0),
        ("[[0]]", "out_of_range"),
        ("[[11]]", "out_of_range"),
        ("7", 7.0),
        ("**7/10**", 7.0),
        ("7/5", "unreadable"),
        ("Score: 9", 9.0),
        ("It has 3 faults.\nFinal rating is 4.", 4.0),
        ("It has 3 faults.", "unreadable"),
        ('{"score": 6, "why": "good"}', 6.0),
        ('```json\n{"rating": "6/10"}\n```', 6.0),
        ('{"score": 6, "rating": 7}', "contradictory"),
        ('{"score": true}', "unreadable"),
        ("", "empty"),
        (None, "empty"),
        (7, "unreadable"),
    ],
)
def test_points_by_hand(text: object, points: float | str) -> None:
    assert points_of(text, 1, 10) == points


# -- several judges ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "said", "weights", "probability"),
    [
        ("mean", (1.0, 0.5, 0.0), None, 0.5),
        ("mean", (1.0, None, 0.5), None, 0.75),
        ("mean", (None, None, None), None, None),
        ("majority", (0.9, 0.6, 0.0), None, 1.0),
        ("majority", (0.9, 0.5, 0.1), None, 0.5),
        ("majority", (0.4, 0.5, None), None, 0.0),
        ("weighted", (1.0, 0.0, 0.0), [3.0, 1.0, 0.0], 0.75),
        ("weighted", (None, 0.0, 1.0), [3.0, 1.0, 0.0], 0.0),
    ],
)
def test_ensembles_by_hand(
    rule: str,
    said: tuple[float | None, ...],
    weights: list[float] | None,
    probability: float | None,
) -> None:
    judges = [Fixed(one, name=f"j{i}") for i, one in enumerate(said)]
    ensemble = Ensemble(judges, rule=rule, weights=weights)  # type: ignore[arg-type]
    verdict = compare(ensemble, "p", "a", "b")
    assert verdict.probability == probability
    assert [member["probability"] for member in verdict.transcript["members"]] == list(said)


def test_an_ensemble_keeps_how_far_its_members_disagree() -> None:
    judges = [Fixed(1.0), Fixed(1.0), Fixed(0.0), Fixed(None)]
    verdict = compare(Ensemble(judges, rule="majority"), "p", "a", "b")
    assert verdict.transcript["dissent"] == pytest.approx(1 / 3)
    assert verdict.transcript["disagreement"] == pytest.approx(math.sqrt(2) / 3)


def test_an_ensembles_scores_are_the_mean() -> None:
    judges = [Fixed(1.0, worth=1.0), Fixed(1.0, worth=4.0)]
    assert score(Ensemble(judges), "p", "a") == 2.5
    assert score(Ensemble(judges, rule="weighted", weights=[3, 1]), "p", "a") == 1.75
    with pytest.raises(RecipeError, match="gives no scores"):
        score(Ensemble(judges, rule="majority"), "p", "a")
