"""Small mistakes in sampling, judging and rounds that no other test noticed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from prefopt.judges.ensemble import Ensemble
from prefopt.judges.judge import Question, compare, score
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
