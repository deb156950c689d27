"""What stops a loop, what people see of it, and which questions its judge is put."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from prefopt.data.formats import read_groups, write_groups
from prefopt.judges.judge import Judge
from prefopt.judges.kept import Kept
from prefopt.judges.table import make_judge
from prefopt.records import Completion, Group
from prefopt.rounds import judging
from prefopt.rounds.gates import reasons
from prefopt.rounds.judges import Judges
from prefopt.rounds.loop import run_rounds
from prefopt.rounds.measuring import _agreement
from prefopt.rounds.page import write_page
from prefopt.rounds.settings import Gates, make_rounds
from prefopt.training.display import Display
from tests.small_loop import small_loop
from tests.test_judges import Fixed


@pytest.fixture
def settings(tmp_path: Path, tiny_policy_folder: Path) -> dict[str, Any]:
    """Rounds over a tiny policy."""
    return {**small_loop(tmp_path, tiny_policy_folder), "prompts_per_round": 4}


# -- a policy that judges itself -----------------------------------------------------------


def test_a_judge_that_gets_worse_with_its_policy_stops_the_loop(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The judge is the policy of the round: right before the first training, wrong after it."""
    labels = tmp_path / "labels.jsonl"
    rows = [{"prompt": f"p{i}", "chosen": "short", "rejected": "longer text"} for i in range(6)]
    labels.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def made(spec: Any, **how: Any) -> Judge:
        if spec == "longest":
            return make_judge(spec, **how)
        return make_judge("longest" if spec["model"].endswith("train") else "shortest")

    monkeypatch.setattr("prefopt.rounds.judges.make_judge", made)
    evaluate = {**settings["evaluate"], "labels": str(labels)}
    judge = {"kind": "implicit", "model": "{policy}", "reference": "{initial}"}
    document = run_rounds(
        make_rounds({**settings, "rounds": 4, "judge": judge, "evaluate": evaluate}),
        progress=False,
    )
    assert [row["accuracy"] for row in document["history"]] == [1.0, 1.0, 0.0]
    assert document["state"] == "stopped"
    assert "the judge is right in 0.000 of what people labelled" in document["reason"]
    assert document["best"]["round"] < 2  # the round that was stopped is never the best
    out = Path(settings["out"])
    assert not (out / "round-3").exists() or not list((out / "round-3").glob("*/manifest.json"))
    page = (out / "report.html").read_text()
    assert "the judge is right in 0.000" in page


# -- the page ------------------------------------------------------------------------------


def figures(number: int, **change: Any) -> dict[str, Any]:
    """A round of which every figure is another one."""
    start = number + 1

    def told(value: float) -> dict[str, Any]:
        return {"value": value, "interval": [value - 0.021, value + 0.032]}

    against = {"initial": None, "previous": None}
    if number:
        against = {"initial": told(0.5 + 0.11 * number), "previous": told(0.5 + 0.07 * number)}
    return {
        "value": 0.1 * start, "reward": told(0.1 * start), **against, "kl": 1.3 * number,
        "kl_error": 0.2 * number,
        "kl_interval": None, "length": 101.0 * start, "tokens": 9.0, "prompts": 23,
        "diversity": 0.81 / start, "agreement": 0.91 - 0.05 * number, "unreadable": 0,
        "accuracy": 0.77 - 0.01 * number, **change,
    }  # fmt: skip


def page_of(folder: Path, **change: Any) -> str:
    """The page of two rounds."""
    for number in range(3):
        text = f"answer of round {number} <b>"
        place = folder / f"round-{number}" / "evaluate"
        place.mkdir(parents=True)
        write_groups(place / "samples.jsonl", [Group("why <i>?", (Completion(text),) * 2)])
    found = {"errors": 0, "warnings": 2, "found": {"warning": {"one": 3, "two": 1}}}
    stage = {
        "sample": {"completions": 60, "seconds": 61.0}, "check": found,
        "judge": {"questions": 59, "asked": 58, "unread": 7, "comparisons": 41},
    }  # fmt: skip
    document = {
        "state": "done", "history": [figures(n) for n in range(3)],
        "rounds": [{"round": 1, **stage}, {"round": 2, **stage}],
        "best": {"round": 2, "model": "m", "value": 0.3},
        "settings": {"reference": "previous", "start": "previous", "data": "fresh"}, **change,
    }  # fmt: skip
    write_page(folder, document)
    return (folder / "report.html").read_text(encoding="utf-8")


def rows_of(page: str) -> list[list[str]]:
    """The cells of every row of every table."""
    rows = re.findall(r"<tr>(.*?)</tr>", page, re.DOTALL)
    cells = (re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row, re.DOTALL) for row in rows)
    return [[re.sub(r"<[^>]+>", "", cell).strip() for cell in row] for row in cells]


def test_the_page_has_every_figure_of_every_round_in_its_place(tmp_path: Path) -> None:
    page = page_of(tmp_path)
    rows = {row[0]: row[1:] for row in rows_of(page) if row}
    assert rows["first policy"] == [
        "0.100 (0.079 to 0.132)", "–", "–", "0", "101", "0.810", "0.910", "0.770",
    ]  # fmt: skip
    assert rows["round 2 (best)"] == [
        "0.300 (0.279 to 0.332)", "0.720 (0.699 to 0.752)", "0.640 (0.619 to 0.672)", "2.60",
        "303", "0.270", "0.810", "0.750",
    ]  # fmt: skip
    assert rows["round 2"] == ["60", "59", "58", "7", "41", "2 warnings", "1 min 1 s"]
    assert "Round 2 is the best: it wins 72 % against the first policy" in page
    titles = ("Mean score", "Wins against the first policy", "KL to the first policy", "Length",
              "Diversity", "Agreement of the judges", "Accuracy of the judge")  # fmt: skip
    drawn = dict(re.findall(r'aria-label="([A-Z][^"]*) by round: ([^"]+)"', page))
    assert drawn == dict(
        zip(titles, ("0.100, 0.200, 0.300", "0.500, 0.610, 0.720", "0, 1.30, 2.60",
                     "101, 202, 303", "0.810, 0.405, 0.270", "0.910, 0.860, 0.810",
                     "0.770, 0.760, 0.750"), strict=True)
    )  # fmt: skip
    assert page.count("answer of round 2 &lt;b&gt;") == 1 and "why &lt;i&gt;?" in page
    assert "as if β were T times smaller" in page  # what was chosen is explained


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"state": "stopped", "reason": "too long"}, ["Stopped: too long"]),
        ({"state": "waiting", "reason": "0 of 3"}, ["Waiting: 0 of 3"]),
        ({"best": {"round": 0, "model": "m", "value": 0.1}},
         ["No round is better than the policy it began with", "first policy (best)"]),
        ({"best": None, "history": [], "rounds": []}, ["No policy is measured yet"]),
    ],
)  # fmt: skip
def test_the_page_says_how_it_ended(
    tmp_path: Path, change: dict[str, Any], words: list[str]
) -> None:
    page = page_of(tmp_path, **change)
    assert all(one in page for one in words)


# -- what the judge is asked ---------------------------------------------------------------


def test_the_pairs_of_a_budget_are_those_that_the_policy_is_least_or_most_sure_of(
    settings: dict[str, Any], tmp_path: Path, save_policy: Callable[..., Path]
) -> None:
    """By the margins of the policy against the first one, computed here by themselves."""
    import torch

    from prefopt.engine.logps import completion_logps
    from prefopt.policies.load import load_policy

    first, policy = save_policy("llama", seed=1), save_policy("llama", seed=2)
    texts = (" good", " a dull film", " blue and blue", " ten minutes")
    groups = [Group(f"p{i}", tuple(map(Completion, texts))) for i in range(4)]
    path = tmp_path / "samples.jsonl"
    write_groups(path, groups)
    with torch.no_grad():
        ours, theirs = (completion_logps(load_policy(side), groups) for side in (policy, first))
    rewards = (ours - theirs).view(4, 4).tolist()
    margins = {
        (f"p{i}", *sorted((texts[a], texts[b]))): abs(row[a] - row[b])
        for i, row in enumerate(rewards)
        for a, b in combinations(range(4), 2)
    }

    def asked(ask: str, per_prompt: int, budget: int, seed: int = 0) -> set[Any]:
        select = {"by": "compare", "ask": ask, "per_prompt": per_prompt, "budget": budget}
        found = judging.select(
            tmp_path, make_rounds({**settings, "select": select}), path, way="compare",
            policies=(str(policy), str(first)), seed=seed,
        )  # fmt: skip
        assert found["strategy"] == ask and found["questions"] == budget
        chosen = list(read_groups([str(tmp_path / "questions.jsonl")]))
        assert len(chosen) == budget
        return {(g.prompt, *sorted(c.text for c in g.completions)) for g in chosen}

    by_doubt = sorted(margins, key=margins.__getitem__)
    assert asked("uncertainty", 6, 5) == set(by_doubt[:5])
    assert asked("certainty", 6, 5) == set(by_doubt[-5:])
    # one of each prompt: of each the least certain
    least = {prompt: next(k for k in by_doubt if k[0] == prompt) for prompt in ("p0", "p1", "p2",
                                                                                "p3")}  # fmt: skip
    assert asked("uncertainty", 1, 4) == set(least.values())
    assert asked("random", 6, 5) != asked("random", 6, 5, seed=1)
    design = asked("d-optimal", 6, 5)
    assert design != asked("random", 6, 5) and design != asked("uncertainty", 6, 5)


def test_rejection_sampling_makes_a_rounds_comparisons(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    """k are kept and each is in one pair; at a small β these are the k best."""
    texts = ["x" * (place + 1) for place in range(6)]
    questions = tmp_path / "questions.jsonl"
    write_groups(questions, [Group("p", tuple(map(Completion, texts)))])

    def pairs(seed: int = 0, **select: Any) -> set[tuple[int, int]]:
        rounds = make_rounds({**settings, "sample": {"n": 6}, "select": {"rule": "rso", **select}})
        judging.judge(
            tmp_path, rounds, questions, Kept(make_judge("longest"), tmp_path / "kept"),
            way="score", seed=seed, display=Display(False),
        )  # fmt: skip
        found = read_groups([str(tmp_path / "pairs.jsonl")])
        return {(edge.preferred, edge.dispreferred) for one in found for edge in one.comparisons}

    for seed in range(10):
        kept = [place for pair in pairs(seed, k=4, beta=1e-6) for place in pair]
        assert sorted(kept) == [2, 3, 4, 5]
    warm = {frozenset(place for pair in pairs(seed, k=2, beta=1e6) for place in pair)
            for seed in range(40)}  # fmt: skip
    assert len(warm) > 8  # nearly any two
    assert all(better > worse for seed in range(10) for better, worse in pairs(seed, k=4))


# -- gates over several rounds -------------------------------------------------------------

QUIET = {"kl": 0.0, "length": 100.0, "diversity": 0.4, "agreement": 0.9, "previous": None}


@pytest.mark.parametrize(
    ("name", "values", "word"),
    [
        ("length", (100.0, 130.0, 149.0), None),
        ("length", (100.0, 130.0, 169.0), "69 % longer than at the start"),  # 30 % a round
        ("length", (100.0, 40.0, 80.0), None),
        ("diversity", (0.4, 0.28, 0.21), None),
        ("diversity", (0.4, 0.28, 0.19), "48 % is left"),  # seven tenths a round
        ("agreement", (0.7, 0.9, 0.81), None),
        ("agreement", (0.7, 0.9, 0.79), "0.79 of its verdicts"),  # the best was in between
        ("agreement", (0.9, 0.81, 0.79), "0.79 of its verdicts"),
    ],
)
def test_gates_look_back_to_the_start_or_to_the_best(
    name: str, values: tuple[float, ...], word: str | None
) -> None:
    """Round after round may be allowed, and all of them together not."""
    found = reasons([{**QUIET, name: value} for value in values], Gates())
    assert bool(found) == (word is not None)
    assert word is None or word in found[0]


def test_two_judges_agree_by_half_where_one_of_them_sees_no_difference() -> None:
    groups = [Group(f"p{i}", (Completion("one"), Completion("other"))) for i in range(4)]
    evaluating, judge = Fixed(1.0, 0.5, 1.0, 0.2), Fixed(0.8, 1.0, 0.0, None)
    assert _agreement(evaluating, judge, groups) == ((1 + 0.5 + 0) / 3, 1)
    same = [Group("p", (Completion("one"), Completion("one")))]
    assert _agreement(evaluating, judge, same) == (None, 0)  # nobody is asked


def test_in_a_world_the_true_reward_evaluates_whoever_judges(tmp_path: Path) -> None:
    def evaluating(**change: Any) -> str:
        rounds = make_rounds({"judge": "longest", **change})
        return Judges(rounds, tmp_path / "kept", "FIRST").evaluating().name

    assert evaluating(world="reviews") == "world:reviews"
    assert evaluating(world="reviews", evaluate={"judge": "shortest"}) == "shortest"
    assert evaluating(model="m", prompts="p") == "longest"
