"""Small mistakes in sampling, judging and rounds that no other test noticed."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from prefopt.data.aggregation.statements import Reader
from prefopt.evaluation.agreement import LONGER, agreement
from prefopt.evaluation.comparing import compared
from prefopt.evaluation.evaluate import evaluate
from prefopt.evaluation.matches import Match
from prefopt.judges.ensemble import Ensemble
from prefopt.judges.judge import Question, Verdict, compare, score
from prefopt.judges.language import LanguageJudge
from prefopt.judges.rubric import load_rubric
from prefopt.records import Completion, Group
from prefopt.sampling.failures import asked_to_wait
from prefopt.sampling.selecting import Selection, select
from prefopt.sampling.wire import reply_of
from tests.test_judges import Fixed
from tests.test_judges_language import Scripted


def scored(*scores: float) -> Group:
    return Group("p", tuple(Completion(f"text {i}", one) for i, one in enumerate(scores)))


@pytest.mark.parametrize(
    ("scores", "dropped"),
    [((3.0, 2.0, 2.0, 1.0), False), ((3.0, 2.0, 1.0, 1.0), True), ((3.0, 2.0, 1.0, 0.0), False)],
)
def test_only_a_tie_across_the_cut_leaves_open_who_is_kept(
    scores: tuple[float, ...], dropped: bool
) -> None:
    """Of three that are kept: the third and the fourth, and no other two."""
    found = select(scored(*scores), Selection("top_k", k=3, pairs="all", ties="drop"))
    assert (found.left_out["tied_ends"] == 1) == dropped
    assert bool(found.pairs) != dropped
    assert {place for pair in found.pairs for place in (pair.better, pair.worse)} <= {0, 1, 2}


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [({"retry-after-ms": "250"}, 0.25), ({"retry-after": "7"}, 7.0),
     ({"retry-after-ms": "1500", "retry-after": "9"}, 1.5), ({"retry-after": "soon"}, None)],
)  # fmt: skip
def test_what_a_server_asks_for_is_in_seconds_or_thousandths(
    headers: dict[str, str], seconds: float | None
) -> None:
    refused = RuntimeError()
    refused.response = SimpleNamespace(headers=headers)  # type: ignore[attr-defined]
    assert asked_to_wait(refused) == seconds


@pytest.mark.parametrize(
    ("reason", "finish"),
    [("length", "length"), ("max_tokens", "length"), ("stop", "end"), ("end_turn", "end")],
)
def test_an_answer_that_was_cut_is_cut_in_every_servers_words(reason: str, finish: str) -> None:
    (answer,) = reply_of({"choices": [{"text": "x", "finish_reason": reason}]}).answers
    assert answer.finish == finish


# -- judges --------------------------------------------------------------------------------


def test_a_member_without_weight_decides_nothing_alone() -> None:
    judges = [Fixed(1.0, worth=2.0), Fixed(None)]
    silent = Ensemble(judges, rule="weighted", weights=[0.0, 1.0])
    assert compare(silent, "p", "a", "b").probability is None
    assert score(silent, "p", "a") == 0.0  # of the one that counts


def test_each_question_has_the_claims_of_its_own_answers() -> None:
    """Also where several are asked together and come back in another order."""

    def reply(ask: Any) -> str:
        return "[[C]]"

    judge = LanguageJudge(Scripted(reply), load_rubric("both"))  # type: ignore[arg-type]
    texts = ("fine [[A]]", "plain", "[[B]] or [[tie]]")
    verdicts = judge.compare_all([Question("p", text, "It is blue.") for text in texts])
    assert [v.transcript.get("claimed_verdicts", 0) for v in verdicts] == [1, 0, 1]


# -- evaluation ----------------------------------------------------------------------------


def matches(wins: list[float], *, first: str = "ours", second: str = "base") -> list[Match]:
    return [
        Match(f"p{i}", first, second, ("x" * (i + 1), "y"), Verdict(one))
        for i, one in enumerate(wins)
    ]


def test_a_policy_that_wins_by_length_alone_is_told_so() -> None:
    """It wins where it writes more; at equal length little is left, and φ is below 0."""
    found = compared(
        [
            Match(f"p{i}", "ours", "base", ("x" * (40 + 4 * (i % 20)), "y" * (60 + i % 7)),
                  Verdict(float(40 + 4 * (i % 20) > 60 + i % 7)))
            for i in range(80)
        ]
    )  # fmt: skip
    fit = found["length_controlled"]
    assert found["rate"]["value"] > 0.6 > fit["rate"]
    assert fit["phi"] < -1  # the baseline's length less the policy's: longer answers win


def test_another_run_is_turned_to_the_same_side() -> None:
    """Its file has the baseline first: what is compared is still ours against the baseline."""
    here = matches([1.0] * 8 + [0.0] * 2)
    there = matches([0.0] * 5 + [1.0] * 5, first="base", second="ours")
    (row,) = evaluate(here, against=there)["against"]
    assert (row["other"], row["other_baseline"]) == ("ours", "base")
    assert (row["first"], row["second"]) == (0.8, 0.5)
    (row,) = evaluate(here, against=matches([0.0] * 7 + [1.0] * 3, second="ours", first="base"))[
        "against"
    ]
    assert row["second"] == 0.7


def test_the_longer_text_is_the_longer_one(tmp_path: Path) -> None:
    path = tmp_path / "votes.jsonl"
    rows = [
        {"prompt": f"p{i}", "completions": ["short", "much longer"], "votes": [
            {"annotator": "ann", "choice": "second" if i else "first"}]} for i in range(4)
    ]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = agreement(Reader([str(path)]))
    (row,) = [row for row in found["tables"][0]["rows"] if LONGER in (row["first"], row["second"])]
    assert (row["with_ties"]["agreed"], row["with_ties"]["compared"]) == (3, 4)
