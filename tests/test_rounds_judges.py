"""Judges in a loop: which one is asked, about what, at what cost, and how far it is trusted."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prefopt.cli.app import run as command
from prefopt.data.formats import read_groups, write_groups
from prefopt.errors import PolicyError, PrefoptError, RecipeError, RunError
from prefopt.judges.judge import Judge, Progress, Question, Verdict
from prefopt.judges.kept import Kept
from prefopt.judges.table import make_judge
from prefopt.records import Comparison, Completion, Group, Prompt
from prefopt.rounds import judging
from prefopt.rounds.gates import best_round, reasons
from prefopt.rounds.judges import Judges
from prefopt.rounds.judging import way_of
from prefopt.rounds.ledger import Ledger
from prefopt.rounds.loop import run_rounds
from prefopt.rounds.measuring import _wins
from prefopt.rounds.settings import Gates, make_rounds
from prefopt.training.display import Display
from tests.small_loop import small_loop

RULE = "def shorter(prompt, completion):\n    return -len(completion)\n"


@pytest.fixture
def settings(tmp_path: Path, tiny_policy_folder: Path) -> dict[str, Any]:
    """One round over a tiny policy."""
    return {**small_loop(tmp_path, tiny_policy_folder), "rounds": 1, "prompts_per_round": 4}


def run(settings: dict[str, Any], **change: Any) -> dict[str, Any]:
    return run_rounds(make_rounds({**settings, **change}), progress=False)


# -- which judge ---------------------------------------------------------------------------


def test_a_judges_own_file_has_its_own_paths_and_may_name_the_policy(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside = tmp_path / "judges"
    beside.mkdir()
    (beside / "rule.py").write_text(RULE)
    (beside / "rule.yaml").write_text("kind: python\nfunction: rule.py:shorter\n")
    (beside / "self.yaml").write_text("kind: lm\nmodel: '{policy}'\n")
    monkeypatch.chdir(tmp_path)

    def judges(spec: Any) -> Judges:
        return Judges(make_rounds({**settings, "judge": spec}), tmp_path / "kept", "FIRST")

    by_rule = judges("judges/rule.yaml").of_rounds("POLICY", "x")
    assert by_rule.score_all([("p", "four")]) == [-4.0]
    for spec in ("judges/self.yaml", {"lm": "{policy}"}, "lm:{policy}"):
        with pytest.raises(PolicyError, match="nowhere/round-1"):
            judges(spec).of_rounds("./nowhere/round-1", "x")
    # the paths of a mapping in the rounds file start where those of all its settings do
    spec = {"kind": "python", "function": "judges/rule.py:shorter"}
    assert judges(spec).of_rounds("POLICY", "x").score_all([("p", "four")]) == [-4.0]
    own = judges("judges/rule.yaml").evaluating()
    assert own.name == "longest"


def test_the_judge_of_a_round_may_be_the_policy_that_wrote_its_answers(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def noted(spec: Any, **how: Any) -> Judge:
        if spec != "longest":
            asked.append(f"{Path(spec['model']).name} {spec['reference']}")
        return make_judge("shortest" if spec != "longest" else spec)

    monkeypatch.setattr("prefopt.rounds.judges.make_judge", noted)
    judge = {"kind": "implicit", "model": "{policy}", "reference": "{initial}"}
    run(settings, rounds=2, judge=judge)
    first = settings["model"]
    by_first, by_second = f"{Path(first).name} {first}", f"train {first}"
    # measured are answers of the round by the judge that the round had
    assert list(dict.fromkeys(asked)) == [by_first, by_second]
    assert asked[-1] == by_second and asked.count(by_second) == 2  # judge, evaluate


def scored(*scores: float | None) -> Group:
    texts = [f"text {place}" for place in range(len(scores))]
    return Group("p", tuple(Completion(t, s) for t, s in zip(texts, scores, strict=True)))


def test_what_is_asked_stays_within_the_budget_and_ties_are_left_out(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "samples.jsonl"
    write_groups(path, [replace(scored(None, None, None), prompt=f"p{i}") for i in range(4)])

    def asked(way: Any, **select: Any) -> dict[str, Any]:
        rounds = make_rounds({**settings, "select": select})
        policies = ("same", "same")
        return judging.select(tmp_path, rounds, path, way=way, policies=policies, seed=0)

    assert asked("score", budget=7) == {"by": "score", "prompts": 2, "questions": 6}
    assert asked("score")["questions"] == 12
    assert asked("compare", per_prompt=2, budget=5)["questions"] == 5
    # of a policy that is its own reference all margins are 0
    assert asked("compare", ask="uncertainty")["strategy"] == "random"

    tie, sure = Comparison(0, 1, 0.5), Comparison(1, 2, 0.9)
    whole = replace(scored(1.0, 2.0, 3.0), comparisons=(tie, sure))
    pairs, dropped = judging._of_verdicts([whole, replace(whole, comparisons=(tie,))])
    assert [group.comparisons for group in pairs] == [(sure,)] and dropped == {"tie": 2}


@pytest.mark.parametrize(
    ("rule", "pairs"),
    [
        ({"rule": "best_worst"}, {(3, 0)}),
        ({"rule": "best_worst", "margin": 9}, set()),
        ({"rule": "all_pairs", "margin": 2}, {(2, 0), (3, 0), (3, 1), (3, 2)}),
        ({"rule": "all_pairs", "margin": 2.1}, {(3, 0), (3, 1)}),
        ({"rule": "top_k", "k": 2}, {(3, 2)}),
    ],
)
def test_rules_make_comparisons_of_scores(
    settings: dict[str, Any], tmp_path: Path, rule: dict[str, Any], pairs: set[tuple[int, int]]
) -> None:
    questions = tmp_path / "questions.jsonl"
    lengths = (1, 2, 3, 5)
    write_groups(questions, [Group("p", tuple(Completion("x" * length) for length in lengths))])
    rounds = make_rounds({**settings, "sample": {"n": 4}, "select": rule})

    def judged() -> dict[str, Any]:
        return judging.judge(
            tmp_path, rounds, questions, Kept(make_judge("longest"), tmp_path / "kept"),
            way="score", seed=0, display=Display(False),
        )  # fmt: skip

    if not pairs:
        with pytest.raises(RecipeError, match=r"prefers nothing.*margin"):
            judged()
        return
    figures = judged()
    groups = read_groups([str(tmp_path / "pairs.jsonl")])
    assert {(e.preferred, e.dispreferred) for g in groups for e in g.comparisons} == pairs
    assert figures["asked"] == figures["questions"] == 4 and figures["known"] == 0
    # of a process that was killed and one that went on all questions count
    assert judged()["asked"] == 4


def test_a_judge_that_reads_both_answers_is_asked_to_compare(
    settings: dict[str, Any], tiny_policy_folder: Path
) -> None:
    rounds = make_rounds(settings)

    def way(spec: Any, **select: Any) -> str:
        return way_of(make_judge(spec), make_rounds({**settings, "select": select}))

    model = {"kind": "lm", "model": str(tiny_policy_folder)}
    assert way("longest") == "score" and way("longest", by="compare") == "compare"
    assert way(model) == "compare" and way(model, by="score") == "score"
    assert way({**model, "rubric": "points"}) == "score"
    assert way({**model, "rubric": "pairwise"}) == "compare"
    assert way({"kind": "ensemble", "judges": ["longest", model]}) == "compare"
    assert way({"kind": "ensemble", "judges": ["longest", "shortest"]}) == "score"
    with pytest.raises(RecipeError, match="gives no scores"):
        way({**model, "rubric": "pairwise"}, by="score")
    assert way_of(make_judge("longest"), rounds) == "score"


def test_a_judge_may_move_but_not_change(settings: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "judge.yaml"

    def ledger(port: int = 1, model: str = "one", **change: Any) -> Ledger:
        served = {"server": f"http://localhost:{port}/v1", "model": model, "timeout": port}
        return Ledger(make_rounds({**settings, "judge": served, **change}))

    def begin(first: Ledger) -> None:
        manifest = first.stage_folder(0, "evaluate") / "manifest.json"
        manifest.parent.mkdir(parents=True, exist_ok=True)
        manifest.write_text("{}")
        first.write("running")

    begin(ledger())
    ledger(port=2)
    with pytest.raises(RunError, match="another setting") as caught:
        ledger(model="two")
    assert caught.value.field == "judge"
    settings["out"] += "-of-a-file"
    file.write_text("kind: longest\n")
    begin(Ledger(make_rounds({**settings, "judge": str(file)})))
    Ledger(make_rounds({**settings, "judge": "longest"}))
    file.write_text("kind: longest\nunit: words\n")
    with pytest.raises(RunError, match="another setting"):
        Ledger(make_rounds({**settings, "judge": str(file)}))


def test_a_function_that_fails_is_named(settings: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "odd.py").write_text("def odd(prompt, completion):\n    return 1 / 0\n")
    with pytest.raises(PrefoptError, match="odd failed: ZeroDivisionError"):
        run(settings, judge=f"python:{tmp_path}/odd.py:odd")


# -- what it costs -------------------------------------------------------------------------


def test_beside_the_rounds_the_judge_is_asked_no_more_than_the_budget(
    settings: dict[str, Any],
) -> None:
    def asked(name: str, **evaluate: Any) -> tuple[dict[str, Any], int]:
        out = Path(settings["out"] + name)
        change = {"evaluate": {**settings["evaluate"], **evaluate}, "out": str(out)}
        found = run(settings, select={"by": "compare", "budget": 3}, **change)
        shortest = [p for p in out.glob("verdicts/*.json") if "shortest" in p.read_text()]
        lines = [p.with_suffix(".jsonl").read_text().splitlines() for p in shortest]
        return found, sum(map(len, lines))

    found, count = asked("none", agreement=0)
    assert [row["agreement"] for row in found["history"]] == [None, None] and count == 3
    found, count = asked("default")
    assert found["history"][0]["agreement"] == 0 and 3 < count <= 3 + 2 * 3


class Slow:
    """People: they answer nothing, and note what they were asked together."""

    name = "slow"

    def __init__(self) -> None:
        self.asked: list[int] = []

    def identity(self) -> dict[str, Any]:
        return {"kind": "slow"}

    def compare_all(
        self, questions: Sequence[Question], progress: Progress | None = None
    ) -> list[Verdict]:
        self.asked.append(len(questions))
        return [Verdict(None if q.second == "?" else 1.0) for q in questions]

    def score_all(
        self, answers: Sequence[tuple[Prompt, str]], progress: Progress | None = None
    ) -> list[float | None]:
        raise AssertionError


def test_all_questions_of_an_evaluation_are_asked_together() -> None:
    def groups(*texts: str) -> list[Group]:
        return [Group(f"p{i}", (Completion(text),)) for i, text in enumerate(texts)]

    judge = Slow()
    assert isinstance(judge, Judge)
    ours = groups("a", "b", "c")
    first, second, third = _wins(
        judge, ours, [groups("x", "?", "c"), groups("x", "x", "x"), groups("?", "?", "?")]
    )
    assert judge.asked == [8]
    assert first["value"] == 0.75 and first["unreadable"] == 1  # (1 + ½) / 2
    assert second["value"] == 1.0 and second["unreadable"] == 0
    assert third["value"] is None and third["unreadable"] == 3


# -- how far it is trusted -----------------------------------------------------------------


def test_the_accuracy_on_labels_is_measured_and_a_fall_stops(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    labels = tmp_path / "labels.jsonl"
    rows = [("a", "aaa"), ("bb", "b"), ("c", "cc"), ("d", "ddd")]
    labels.write_text(
        "".join(
            json.dumps({"prompt": f"p{i}", "chosen": good, "rejected": bad}) + "\n"
            for i, (good, bad) in enumerate(rows)
        )
    )
    evaluate = {**settings["evaluate"], "labels": str(labels)}
    document = run(settings, evaluate=evaluate)
    assert [row["accuracy"] for row in document["history"]] == [0.75, 0.75]
    page = (Path(settings["out"]) / "report.html").read_text()
    assert "Accuracy of the judge" in page
    votes = tmp_path / "prompts.jsonl"
    with pytest.raises((RecipeError, PrefoptError)):
        run(settings, evaluate={**evaluate, "labels": str(votes)}, out=str(tmp_path / "x"))

    quiet = {"kl": 0.0, "length": 1.0, "diversity": 1.0}
    rows_of = [{**quiet, "accuracy": value} for value in (0.70, None, 0.75, 0.71)]
    assert "0.710" in reasons(rows_of, Gates())[0] and "0.750" in reasons(rows_of, Gates())[0]
    assert not reasons(rows_of, Gates(accuracy=0.05)) and not reasons(rows_of, Gates(accuracy=None))
    assert not reasons(rows_of[:3], Gates()) and not reasons(rows_of[:2], Gates())


def test_a_round_that_nobody_could_judge_is_never_the_best() -> None:
    history = [{"value": -3.0}, {"value": None}, {"value": -2.0}, {"value": None}]
    assert best_round(history, {}) == 2
    assert best_round(history[:2], {}) == 0
    unsure = {"kl": 0.0, "length": 1.0, "diversity": 1.0, "agreement": None}
    lost = {**unsure, "previous": {"value": None, "interval": None}}
    assert not reasons([unsure, lost], Gates())


# -- people --------------------------------------------------------------------------------


def vote_left(database: Path) -> int:
    """Answer everything that is open; returns how much that was."""
    from prefopt.labelling.database import open_database
    from prefopt.labelling.store import Store
    from prefopt.labelling.words import Answer

    store = Store(open_database(str(database)))
    person = next(iter(store.annotators()), None) or store.add_annotator("ann")
    count = 0
    while (shown := store.next("round", person.id)) is not None:
        store.answer("round", person.id, shown.lease, f"key-{count}-{shown.lease}", Answer("left"))
        count += 1
    return count


def test_a_loop_waits_for_people_and_goes_on_when_they_have_voted(
    settings: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("sqlalchemy")
    database, file = tmp_path / "labels.db", tmp_path / "rounds.yaml"
    judge = {"kind": "people", "database": str(database), "task": "round"}
    change = {"judge": judge, "select": {"per_prompt": 2}}
    change["evaluate"] = {**settings["evaluate"], "agreement": 0}
    file.write_text(json.dumps({**settings, **change}))

    def said() -> dict[str, Any]:
        assert command(["rounds", str(file), "--json"]) == 0
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    first = said()
    assert first["state"] == "waiting" and "0 of 8 questions" in first["reason"]
    assert "prefopt label serve" in first["reason"]
    assert said() == first
    assert vote_left(database) == 8
    document = said()
    assert document["state"] == "done" and len(document["history"]) == 2
    (stage,) = document["rounds"]
    assert stage["judge"]["judged"] == stage["judge"]["comparisons"] == 8
    pairs = read_groups([str(Path(settings["out"]) / "round-1/judge/pairs.jsonl")])
    assert sum(len(group.comparisons) for group in pairs) == 8
