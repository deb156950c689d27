"""Rewards in RewardBench's way: strictly greater, by subset, of policies and of judges."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prefopt.errors import DataError
from prefopt.evaluation.reward_bench import judge_rows, strict, summary
from prefopt.judges.judge import Question, Verdict, cannot_score
from prefopt.records import Comparison, Completion, Group, Prompt

Row = dict[str, Any]
Call = Callable[..., tuple[int, str, str]]

PAIRS: list[Row] = [
    {"prompt": "How?", "chosen": "So and so.", "rejected": "No.", "subset": "chat"},
    {"prompt": "Why?", "chosen": "Because.", "rejected": "I do not know that.", "subset": "chat"},
    {"prompt": "Who?", "chosen": "Ann", "rejected": "Bob", "subset": "safety"},
    {"prompt": "When?", "chosen": "Now, at once.", "rejected": "Later.", "subset": "safety"},
    {"prompt": "Where?", "chosen": "Here, of course.", "rejected": "There.", "subset": "maths"},
]


def row(correct: float | None, longer: float, prompt: str, probability: float = 1.0) -> Row:
    return {"correct": correct, "longer": longer, "prompt": prompt, "probability": probability}


def data(folder: Path, *rows: Row) -> Path:
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")
    return path


class Contrary:
    """Compares, and prefers what comes later in the alphabet; of one prompt it says nothing."""

    name = "contrary"

    def __init__(self) -> None:
        self.asked: list[Question] = []

    def identity(self) -> dict[str, Any]:
        return {"kind": self.name}

    def compare_all(self, questions: Any, progress: Any = None) -> list[Verdict]:
        self.asked += questions
        return [
            Verdict(None if q.prompt == "Who?" else 0.9 if q.first > q.second else 0.1)
            for q in questions
        ]

    def score_all(self, answers: Any, progress: Any = None) -> list[float | None]:
        raise cannot_score(self)


class Flat(Contrary):
    """Scores everything the same."""

    def score_all(self, answers: Any, progress: Any = None) -> list[float | None]:
        return [1.0 for _ in answers]


def group(prompt: Prompt, *texts: str, edge: Comparison) -> Group:
    return Group(prompt, tuple(map(Completion, texts)), (edge,))


# -- by hand -------------------------------------------------------------------------------


def test_ties_are_wrong_and_subsets_count_alike() -> None:
    rows = [
        row(1.0, 1.0, "a"), row(1.0, 0.0, "b"), row(0.5, 0.5, "c"), row(0.0, 1.0, "d"),
        row(1.0, 0.0, "e"), row(0.5, 1.0, "f", probability=0.5), row(None, 1.0, "g"),
    ]  # fmt: skip
    found = strict(rows, ["x", "x", "x", "x", "y", "y", "y"])
    assert found["strict"]["accuracy"]["value"] == 3 / 5
    assert found["strict"]["longest"]["value"] == 2 / 5
    assert (found["equal"], found["ties"]) == (1, 1)
    assert [(s["subset"], s["comparisons"], s["accuracy"]["value"], s["equal"])
            for s in found["subsets"]] == [("x", 4, 0.5, 1), ("y", 1, 1.0, 0)]  # fmt: skip
    assert found["subset_mean"] == (0.5 + 1.0) / 2
    assert found["subset_mean_longest"] == (0.5 + 0.0) / 2
    assert "subsets" not in strict(rows, None)
    assert strict([], [])["subset_mean"] is None


def test_a_judge_that_says_the_same_of_everything_is_never_right() -> None:
    groups = [group(f"p{i}", "good", "bad", edge=Comparison(0, 1)) for i in range(4)]
    rows, _, how = judge_rows(Flat(), groups)
    found = strict(rows, None)
    assert (how, found["strict"]["accuracy"]["value"], found["equal"]) == ("scores", 0.0, 4)
    assert summary(rows)["accuracy"] == 0.5


def test_a_judge_without_scores_compares_and_cannot_tell_which_is_right() -> None:
    groups = [
        group("p", "a", "b", edge=Comparison(0, 1)),
        group("p", "a", "b", edge=Comparison(0, 1, probability=0.2)),  # the second is better
        group("q", "y", "x", edge=Comparison(0, 1, weight=3.0)),
        group("Who?", "y", "x", edge=Comparison(0, 1)),
    ]
    judge = Contrary()
    rows, _, how = judge_rows(judge, groups)
    assert how == "comparisons"
    assert [one["correct"] for one in rows] == [0.0, 1.0, 1.0, None]
    assert all(question.first < question.second for question in judge.asked)
    found = summary(rows)
    assert (found["comparisons"], found["unreadable"]) == (3, 1)
    assert found["accuracy"] == pytest.approx((0 + 1 + 3) / 5)
    with pytest.raises(DataError, match="no comparisons"):
        judge_rows(judge, [Group("p", (Completion("x"),))])


# -- the command ---------------------------------------------------------------------------


def test_a_judge_is_scored_by_subset(call: Call, tmp_path: Path) -> None:
    path, out = data(tmp_path, *PAIRS), tmp_path / "rows.jsonl"
    arguments = ("score", "--judge", "longest", "--data", path, "--by", "subset")
    code, shown, _ = call(*arguments, "--out", out, "--json")
    assert code == 0
    result = json.loads(shown)
    assert (result["judge"]["name"], result["how"]) == ("longest", "scores")
    assert [(s["subset"], s["accuracy"]["value"]) for s in result["subsets"]] == [
        ("chat", 0.5), ("maths", 1.0), ("safety", 0.5)
    ]  # fmt: skip
    assert result["subset_mean"] == pytest.approx(2 / 3)
    assert result["strict"]["accuracy"] == result["strict"]["longest"]
    assert result["accuracy"] == pytest.approx(3.5 / 5)  # Ann and Bob are equally long
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [one["correct"] for one in rows] == [1.0, 0.0, 0.5, 1.0, 1.0]
    text = call(*arguments)[1]
    assert "mean of subsets" in text and "66.7 %" in text


def test_a_policy_is_scored_by_subset(
    call: Call, save_policy: Callable[..., Path], tmp_path: Path
) -> None:
    policy, reference = save_policy("llama", seed=1), save_policy("llama", seed=2)
    path, out = data(tmp_path, *PAIRS), tmp_path / "rows.jsonl"
    arguments = ("score", policy, "--reference", reference, "--data", path, "--by", "subset")
    code, shown, err = call(*arguments, "--out", out, "--json")
    assert code == 0, err
    result = json.loads(shown)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    right = dict(zip((one["prompt"] for one in PAIRS),
                     (one["margin"] > 0 for one in rows), strict=True))  # fmt: skip
    expected = {
        subset: [right[one["prompt"]] for one in PAIRS if one["subset"] == subset]
        for subset in ("chat", "maths", "safety")
    }
    assert {s["subset"]: s["accuracy"]["value"] for s in result["subsets"]} == {
        name: sum(held) / len(held) for name, held in expected.items()
    }
    # the same policy as a judge, by another path
    spec = tmp_path / "judge.yaml"
    spec.write_text(f"kind: implicit\nmodel: {policy}\nreference: {reference}\n")
    code, shown, err = call("score", "--judge", spec, "--data", path, "--by", "subset",
                            "--out", out, "--json")  # fmt: skip
    assert code == 0, err
    judged = [json.loads(line) for line in out.read_text().splitlines()]
    gaps = [one["score_preferred"] - one["score_dispreferred"] for one in judged]
    assert gaps == pytest.approx([one["margin"] for one in rows], abs=1e-4)
    assert json.loads(shown)["subset_mean"] == result["subset_mean"]
    # a policy against itself knows nothing: half right, and never strictly
    same = json.loads(call("score", policy, "--reference", policy, "--data", path, "--json")[1])
    assert (same["accuracy"], same["strict"]["accuracy"]["value"], same["equal"]) == (0.5, 0.0, 5)


def test_a_reward_models_folder_is_measured_as_it_is(
    call: Call, tiny_policy_folder: Path, tmp_path: Path
) -> None:
    from prefopt.policies.reward import load_reward_model

    model = load_reward_model(tiny_policy_folder, device="cpu", seed=3)
    folder = tmp_path / "rm"
    model.model.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    data_file = data(tmp_path, *PAIRS)
    rest = ("--data", data_file, "--by", "subset", "--device", "cpu", "--json")
    code, shown, err = call("score", folder, *rest)
    assert code == 0, err
    assert json.loads(shown) == json.loads(call("score", "--judge", f"reward:{folder}", *rest)[1])
    assert json.loads(shown)["how"] == "scores"
    for more, said in ((("--reference", folder), "or a reward model"), (("--ches",), "--ches")):
        code, _, err = call("score", folder, *rest[:-1], *more)
        assert (code, said in err) == (2, True), err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "either a policy or a judge"),
        (("model", "--judge", "longest"), "either a policy or a judge"),
        (("model",), "--reference"),
        (("--judge", "longest", "--reference", "base"), "--reference"),
        (("--judge", "longest", "--ches"), "--ches"),
        (("--judge", "longest", "--beta", "0.3"), "--beta"),
        (("--judge", "nonsense"), "no such judge"),
        (("--judge", "longest", "--by", "nowhere"), "no row has this column"),
        (("--judge", "longest", "--seed", "-1"), "--seed"),
        (("model", "--reference", "base", "--cache", "kept"), "--cache"),
    ],
)
def test_what_does_not_go_together_is_refused(
    call: Call, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    code, _, err = call("score", *arguments, "--data", data(tmp_path, *PAIRS))
    assert (code, said in err) == (2, True), err


def test_length_alone_on_real_pairs(call: Call, shared_data: Path) -> None:
    """In the harmless half of HH the shorter answer is the better one more often."""
    path = shared_data / "hh_harmless" / "harmless_base_1512.jsonl.gz"
    out = call("score", "--judge", "longest", "--data", path, "--on-error", "skip", "--json")[1]
    result = json.loads(out)
    assert result["strict"]["longest"] == result["strict"]["accuracy"]
    low, high = result["strict"]["accuracy"]["interval"]
    assert low < result["strict"]["accuracy"]["value"] < high < 0.5
