"""`prefopt judge`: a judge over a file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prefopt.data.formats import read_groups
from prefopt.data.worlds import ReviewWorld
from prefopt.judges.judge import Verdict
from prefopt.judges.judging import judge_groups
from prefopt.judges.orders import merged
from prefopt.records import Comparison, Completion, Group
from tests.faulty_server import faulty_server, last_text, status

Call = Callable[..., tuple[int, str, str]]

ROWS = [
    {"prompt": "I saw this film", "completions": [
        {"text": " yesterday. It was superb."}, {"text": " yesterday. It was dull."},
        {"text": " yesterday. It was superb."}]},
    {"prompt": "We ate", "completions": [{"text": " well."}, {"text": " badly, and late."}],
     "comparisons": [{"preferred": 0, "dispreferred": 1}], "meta": {"id": 7}},
    {"prompt": "He came", "completions": [{"text": " home."}]},
]  # fmt: skip


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "samples.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def judged(call: Call, data: Path, *options: object) -> tuple[dict[str, Any], list[Any]]:
    out = data.with_name("judged.jsonl")
    code, text, err = call("judge", data, "--out", out, "--json", *options)
    assert code == 0, err + text
    return json.loads(text), list(read_groups(str(out)))


def test_pairs_become_comparisons_that_training_reads(call: Call, data: Path) -> None:
    result, groups = judged(call, data, "--judge", "longest")
    # Of the first row two pairs: the two superb films are one text. The third row has no pair.
    assert (result["questions"], result["judged"], result["groups"]) == (3, 3, 3)
    assert (result["asked"], result["known"]) == (2, 1)  # both pairs have the same two texts
    assert groups[0].comparisons == (Comparison(0, 1), Comparison(2, 1))
    assert groups[1].comparisons == (Comparison(1, 0),)  # what the file said is replaced
    assert groups[1].meta["id"] == 7
    assert groups[1].meta["judge"] == "longest"
    assert groups[1].meta["verdicts"] == [{"pair": [0, 1], "probability": 0.0}]
    assert groups[2].comparisons == ()
    assert result["first_share"] is None and result["inconsistent_share"] is None


def test_given_pairs_alone(call: Call, data: Path) -> None:
    result, groups = judged(call, data, "--judge", "shortest", "--pairs", "given")
    assert result["questions"] == 1
    assert [group.comparisons for group in groups] == [(), (Comparison(0, 1),), ()]


def test_scores_are_the_judges(call: Call, data: Path) -> None:
    result, groups = judged(call, data, "--judge", "world:reviews", "--what", "score")
    world = ReviewWorld()
    for group in groups:
        assert isinstance(group.prompt, str)
        for item in group.completions:
            assert item.score == world.reward(group.prompt, item.text)
    assert (result["questions"], result["judged"], result["unread"]) == (6, 6, 0)
    assert groups[1].comparisons == (Comparison(0, 1),)  # comparisons stay as they were


@pytest.mark.parametrize(
    ("options", "pairs", "dropped"),
    [
        (("best_worst",), [[(1, 0)], [(2, 0)]], {}),
        (("all_pairs",), [[(1, 0)], [(1, 0), (2, 0), (2, 1)]], {}),
        (("all_pairs", "--margin", 3), [[(2, 0), (2, 1)]], {"margin": 2}),
        (("top_k", "-k", 2), [[(1, 0)], [(2, 1)]], {}),
        (("rso", "-k", 2, "--beta", 1000), None, None),
    ],
)
def test_comparisons_are_made_of_scores(
    call: Call, tmp_path: Path, options: tuple[object, ...], pairs: Any, dropped: Any
) -> None:
    path = tmp_path / "samples.jsonl"
    texts = {"We ate": ["1", "123"], "They ate": ["1", "12", "12345"], "I ate": ["one"]}
    rows = [
        {"prompt": prompt, "completions": [{"text": text} for text in each]}
        for prompt, each in texts.items()
    ]
    # What the file said of these two is replaced.
    rows[0]["comparisons"] = [{"preferred": 0, "dispreferred": 1}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    wanted = ("--judge", "longest", "--what", "score", "--select")
    result, groups = judged(call, path, *wanted, *options)
    found = [sorted((c.preferred, c.dispreferred) for c in group.comparisons) for group in groups]
    if pairs is None:  # so hot that everything is accepted: one pair of each prompt, by chance
        assert [len(each) for each in found] == [1, 1]
    else:
        assert found == [sorted(each) for each in pairs]
        assert result["dropped"].get("margin", 0) == dropped.get("margin", 0)
    assert result["comparisons"] == sum(map(len, found))
    assert [c.score for c in groups[-1].completions] == [1.0, 2.0, 5.0]
    assert list(path.parent.glob("judged*"))


def test_scores_that_compare_nothing_write_nothing(call: Call, data: Path) -> None:
    options = ("--judge", "longest", "--what", "score", "--select", "best_worst", "--margin", 1e9)
    code, _, err = call("judge", data, "--out", data.with_name("pairs.jsonl"), *options)
    assert code == 2 and "the scores make no comparison" in err and "margin" in err
    assert not data.with_name("pairs.jsonl").exists()


def test_a_tie_is_a_comparison_of_one_half(call: Call, data: Path, tmp_path: Path) -> None:
    judge = tmp_path / "judge.yaml"
    judge.write_text("kind: pattern\npatterns: [nothing]\n")
    result, groups = judged(call, data, "--judge", judge)
    assert result["ties"] == 3
    assert {edge.probability for group in groups for edge in group.comparisons} == {0.5}


def test_the_same_command_again_asks_nothing(call: Call, data: Path) -> None:
    first, _ = judged(call, data, "--judge", "longest")
    again, _ = judged(call, data, "--judge", "longest")
    assert (again["asked"], again["known"]) == (0, 3)
    assert first["cache"] == again["cache"] == str(data.with_name("judged.verdicts"))


def test_a_budget_ends_with_what_is_known(call: Call, data: Path) -> None:
    result, groups = judged(call, data, "--judge", "longest", "--budget", 1)
    assert (result["asked"], result["not_asked"], result["judged"]) == (1, 1, 2)
    assert groups[1].comparisons == (Comparison(0, 1),)  # not asked: it stays as it was
    assert "verdicts" not in groups[1].meta
    again, _ = judged(call, data, "--judge", "longest", "--budget", 1)
    assert (again["asked"], again["not_asked"]) == (0, 1)


def test_a_table_for_people(call: Call, data: Path) -> None:
    code, out, _ = call("judge", data, "--judge", "longest", "--out", data.with_name("o.jsonl"))
    assert code == 0
    assert "longest judged 3 of 3 comparisons." in out


# -- a server ------------------------------------------------------------------------------


def a_biased_judge(body: dict[str, Any], index: int) -> str:
    """Says A, whatever is shown first, but of films; and mumbles about food the first time."""
    text = last_text(body)
    if "We ate" in text:
        return "[[A]]" if body["temperature"] else "Hm."
    superb = text.index("superb") < text.index("dull")
    return "It is superb. [[A]]" if superb else "[[B]]"


def test_counts_of_a_language_model(call: Call, data: Path) -> None:
    with faulty_server(say=a_biased_judge) as server:
        spec = f"server:{server.url}"
        result, groups = judged(call, data, "--judge", spec, "--rationale")
        asked = len(server.answered)
        assert asked == 2 + 4  # one question, and one whose two replies were asked again
        again, _ = judged(call, data, "--judge", spec)
        assert len(server.answered) == asked
    assert result["judge"] == "server:tiny"
    assert result["failures"] == again["failures"] == {"unreadable": 2}
    assert (result["unread"], result["ties"], result["inconsistent"]) == (0, 1, 1)
    assert result["inconsistent_share"] == pytest.approx(1 / 3)
    # The films: first once and second once, twice over; the food: first both times.
    assert result["first_share"] == pytest.approx(4 / 6)
    assert groups[0].comparisons == (Comparison(0, 1), Comparison(2, 1))
    note = groups[0].meta["verdicts"][0]
    assert note["order_consistent"] is True
    assert note["rationale"] in ("It is superb. [[A]]", "[[B]]")
    assert groups[1].comparisons == (Comparison(0, 1, 0.5),)


def test_a_server_that_fails_for_good_leaves_what_it_said(call: Call, data: Path) -> None:
    out = data.with_name("judged.jsonl")
    judge = data.with_name("judge.yaml")
    with faulty_server(
        lambda number, body: status(500, retry_after=0) if number >= 2 else None, say=a_biased_judge
    ) as server:
        judge.write_text(
            f"kind: server\nurl: {server.url}\nconcurrency: 1\nresends: 1\nretries: 0\n"
        )
        code, text, _ = call("judge", data, "--judge", judge, "--out", out, "--json")
        assert code == 1
        assert json.loads(text)["error"]["type"] == "ServerError"
        assert not out.exists()
        assert len(server.answered) == 2
        server.faults = ()
        result, _ = judged(call, data, "--judge", judge)
        assert (result["asked"], result["known"]) == (1, 2)
        assert len(server.answered) == 4


def test_one_order_alone_says_nothing_of_a_bias() -> None:
    class Half:
        name = "half"

        def identity(self) -> dict[str, Any]:
            return {}

        def compare_all(self, questions: Any, progress: Any = None) -> list[Verdict]:
            said = [merged(Verdict(1.0), Verdict(None)), merged(Verdict(1.0), Verdict(0.0))]
            inside = {"judge": {**said[1].transcript, "failures": {"empty": 2}}}
            return [said[0], Verdict(1.0, order_consistent=True, transcript=inside)]

        def score_all(self, answers: Any, progress: Any = None) -> list[float | None]:
            raise NotImplementedError

    edges = (Comparison(0, 1), Comparison(0, 2))
    group = Group("p", (Completion("a"), Completion("b"), Completion("c")), edges)
    found = judge_groups(Half(), [group])
    assert (found.questions, found.unread, found.judged) == (2, 1, 1)
    assert found.first_share == 0.5
    assert found.failures == {"empty": 2}  # of the judge inside of a wrapper
    assert (found.consistent, found.inconsistent) == (1, 0)


# -- wrong input ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--judge", "lngest"), "did you mean 'longest'"),
        (("--judge", "longest", "--what", "score", "--pairs", "all"), "no effect"),
        (("--judge", "longest", "--budget", "-1"), "--budget"),
        (("--judge", "longest", "--select", "rso"), "add --what score"),
        (("--judge", "longest", "--what", "score", "--margin", "1"), "without --select"),
        (
            ("--judge", "longest", "--what", "score", "--select", "top_k", "--beta", "1"),
            "no effect with --select top_k",
        ),
        (("--judge", "longest", "--what", "score", "--select", "best"), "--select"),
        (("--judge", "python:operator:nope"), "no function"),
        (("--judge", "server:ftp://x"), "not the URL"),
        ((), "--judge"),
    ],
)
def test_wrong_options(call: Call, data: Path, options: tuple[str, ...], words: str) -> None:
    code, _, err = call("judge", data, "--out", data.with_name("o.jsonl"), *options)
    assert code == 2
    assert words in err
    assert not data.with_name("o.jsonl").exists()


def test_nothing_to_judge(call: Call, data: Path) -> None:
    data.write_text(json.dumps(ROWS[2]) + "\n")
    code, _, err = call("judge", data, "--judge", "longest", "--out", data.with_name("o.jsonl"))
    assert (code, "two completions that differ" in err) == (2, True)
    code, _, err = call("judge", data, "--judge", "longest", "--out", data)
    assert (code, "would be lost" in err) == (2, True)
