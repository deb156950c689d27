"""`prefopt agreement`: judges against people, people against people, on paper and on MT-Bench."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prefopt.data.aggregation.agreement import Judgements, alpha_interval, between, within
from prefopt.data.aggregation.statements import Reader
from prefopt.evaluation.agreement import LONGER, agreement

Row = dict[str, Any]
Call = Callable[..., tuple[int, str, str]]


def jsonl(path: Path, *rows: Row) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def verdict(question: int, winner: str, judge: str, **more: Any) -> Row:
    return {"question_id": question, "model_a": "x", "model_b": "y", "winner": winner,
            "judge": judge, **more}  # fmt: skip


def row_of(table: Row, first: str, second: str) -> Row:
    (row,) = [r for r in table["rows"] if {r["first"], r["second"]} == {first, second}
              and (first == second) == (r["first"] == r["second"])]  # fmt: skip
    return row


# -- kappa ---------------------------------------------------------------------------------


def pairs(*said: tuple[int, int]) -> tuple[Judgements, Judgements]:
    """Two raters who both judged every item."""
    items = np.arange(len(said))
    one, other = np.array(said).T
    return Judgements(items, np.zeros_like(items), one), Judgements(items, items * 0 + 1, other)


def test_cohens_kappa_by_hand() -> None:
    # the table of Cohen's formula: 20 both 0, 15 both 1, 5 (0, 1), 10 (1, 0)
    said = [(0, 0)] * 20 + [(1, 1)] * 15 + [(0, 1)] * 5 + [(1, 0)] * 10
    found = between(*pairs(*said))
    by_chance = (25 * 30 + 25 * 20) / 50**2
    assert (found.agreed, found.compared) == (35, 50)
    assert found.kappa == pytest.approx((0.7 - by_chance) / (1 - by_chance)) == pytest.approx(0.4)
    low, high = found.kappa_interval or (0, 0)
    assert low < 0.4 < high


def test_fleiss_kappa_of_his_own_example() -> None:
    """Fleiss 1971: 14 people, 10 subjects, 5 categories; 0.210."""
    counts = ("0 0 0 0 14", "0 2 6 4 2", "0 0 3 5 6", "0 3 9 2 0", "2 2 8 1 1", "7 7 0 0 0",
              "3 2 6 3 0", "2 5 3 2 2", "6 5 2 1 0", "0 2 2 3 7")  # fmt: skip
    rows = [
        (subject, who, value)
        for subject, line in enumerate(counts)
        for who, value in enumerate(np.repeat(range(5), [int(n) for n in line.split()]))
    ]
    found = within(Judgements(*np.array(rows).T))
    assert found.kappa == pytest.approx(0.20993, abs=1e-5)


def test_kappa_where_only_one_value_is_given() -> None:
    found = between(*pairs((1, 1), (1, 1), (1, 1)))
    assert (found.share, found.kappa, found.kappa_interval) == (1.0, None, None)


def test_questions_are_drawn_with_all_their_items() -> None:
    """Copies of an item in one question are no new evidence; as items they would be."""
    said = [(0, 0), (0, 1), (1, 1), (1, 0), (0, 0), (1, 1)] * 4
    one, other = pairs(*said)
    many = [Judgements(np.arange(4 * len(said)), np.tile(part.annotators, 4),
                       np.tile(part.values, 4)) for part in (one, other)]  # fmt: skip
    of = np.tile(np.arange(len(said)), 4)
    few, clustered, free = between(one, other), between(*many, questions=of), between(*many)
    assert clustered.share == few.share == free.share
    assert clustered.kappa == pytest.approx(few.kappa)
    width = [high - low for low, high in (f.interval or (0, 0) for f in (few, clustered, free))]
    assert width[1] == pytest.approx(width[0], rel=0.15)
    assert width[2] < 0.7 * width[1]
    both = [np.concatenate(parts) for parts in zip(*many, strict=True)]
    ends = [np.subtract(*alpha_interval(*both, questions=q)) for q in (of, None)]
    assert ends[0] < 1.5 * ends[1] < 0  # both are low less high


# -- kinds ---------------------------------------------------------------------------------


def test_kinds_come_of_names_and_of_files(tmp_path: Path) -> None:
    people = jsonl(
        tmp_path / "people.jsonl",
        verdict(1, "model_a", "expert_1"), verdict(1, "model_b", "expert_2"),
        verdict(1, "tie", "ann"), verdict(2, "tie", "only_7"),
    )  # fmt: skip
    judge = jsonl(tmp_path / "judge-9.jsonl", verdict(1, "model_a", "gpt4_pair"))
    found = agreement(Reader([str(people), str(judge)]))
    kinds = {row["kind"]: (row["judgements"], row["annotators"]) for row in found["kinds"]}
    # a number that nobody shares says nothing, and neither does one in the name of a file
    assert kinds == {"expert": (2, 2), "people": (2, 2), "judge-9": (1, 1)}
    row = row_of(found["tables"][0], "judge-9", "expert")
    assert (row["with_ties"]["agreed"], row["with_ties"]["compared"]) == (1, 2)
    assert row_of(found["tables"][0], "judge-9", "people")["without_ties"] is None
    named = agreement(Reader([str(people), str(judge)]), kinds=("us=a*", "them=expert_*"))
    assert [row["kind"] for row in named["kinds"]] == ["us", "them"]
    assert named["left_out"] == 2


def test_turned_sides_and_the_order_of_rows_change_nothing(tmp_path: Path) -> None:
    rng = random.Random(0)
    winners = ("model_a", "model_b", "tie")
    rows = [verdict(q, rng.choice(winners), f"{kind}_{who}", turn=1 + q % 2)
            for q in range(30) for kind in ("expert", "judge") for who in range(2)]  # fmt: skip
    turned = [
        {**row, "model_a": "y", "model_b": "x",
         "winner": {"model_a": "model_b", "model_b": "model_a"}.get(row["winner"], "tie")}
        if rng.random() < 0.5 else row
        for row in rows
    ]  # fmt: skip
    shuffled = rng.sample(rows, len(rows))
    shown = []
    for number, some in enumerate((rows, turned, shuffled)):
        found = agreement(Reader([str(jsonl(tmp_path / f"votes{number}.jsonl", *some))]))
        shown.append([
            (t["value"], r["first"], r["second"], {k: r[k] and {**r[k], "interval": 0,
                                                               "kappa_interval": 0}
                                                  for k in ("with_ties", "without_ties")})
            for t in found["tables"] for r in t["rows"]
        ])  # fmt: skip
        assert [table["value"] for table in found["tables"]] == [None, "1", "2"]
    assert shown[0] == shown[1] == shown[2]


# -- texts ---------------------------------------------------------------------------------

VOTES: list[Row] = [
    {"prompt": "p", "completions": ["short", "much longer"], "meta": {"topic": "a"}, "votes": [
        {"annotator": "ann", "choice": "second"}, {"annotator": "bob", "choice": "second"}]},
    {"prompt": "q", "completions": ["the long one", "brief"], "meta": {"topic": "b"}, "votes": [
        {"annotator": "ann", "choice": "second"}, {"annotator": "bob", "choice": "tie"}]},
]  # fmt: skip


def test_a_judge_is_asked_about_the_pairs_that_people_voted_on(call: Call, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "people.jsonl", *VOTES)
    code, out, _ = call("agreement", path, "--judge", "shortest", "--by", "topic", "--json")
    result = json.loads(out)
    assert code == 0
    assert result["judge"]["name"] == "shortest"
    whole = result["tables"][0]
    judge = row_of(whole, "shortest", "people")["with_ties"]
    assert (judge["agreed"], judge["compared"]) == (1, 4)  # ann on q
    length = row_of(whole, LONGER, "people")["with_ties"]
    assert (length["agreed"], length["compared"]) == (2, 4)
    people = row_of(whole, "people", "people")["with_ties"]
    assert (people["agreed"], people["compared"]) == (1, 2)
    assert [(t["by"], t["value"]) for t in result["tables"]] == [
        (None, None), ("topic", "a"), ("topic", "b")
    ]  # fmt: skip
    assert LONGER not in [row["who"] for row in result["alpha"]]


def test_comparisons_are_what_a_file_says(tmp_path: Path) -> None:
    votes = jsonl(tmp_path / "votes.jsonl", *VOTES)
    pairs = jsonl(
        tmp_path / "pairs.jsonl",
        {"prompt": "p", "chosen": "much longer", "rejected": "short"},
        {"prompt": "q", "chosen": "the long one", "rejected": "brief"},
    )
    found = agreement(Reader([str(votes), str(pairs)]))
    row = row_of(found["tables"][0], "pairs", "votes")["with_ties"]
    assert (row["agreed"], row["compared"]) == (2, 4)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--kind", "people"), "people=expert_*"),
        (("--kind", "us=nobody*"), "no annotator fits"),
        (("--judge", "nonsense"), "there is no such judge"),
        (("--by", "nowhere"), "no row has this column"),
        (("--seed", "-1"), "--seed"),
    ],
)
def test_what_cannot_be_counted_is_refused(
    call: Call, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    path = jsonl(tmp_path / "people.jsonl", *VOTES)
    code, _, err = call("agreement", path, *arguments)
    assert (code, said in err) == (2, True), err


def test_a_judge_needs_texts(call: Call, tmp_path: Path) -> None:
    path = jsonl(tmp_path / "names.jsonl", verdict(1, "model_a", "ann"))
    code, _, err = call("agreement", path, "--judge", "longest")
    assert (code, "the rows have no texts" in err) == (2, True)


def test_unreadable_verdicts_are_counted_and_are_no_ties(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "v.jsonl", verdict(1, "model_a", "ann"),
                 verdict(1, "who knows", "bob"), verdict(1, "model_a", "cid"))  # fmt: skip
    found = agreement(Reader([str(path)]))
    assert (found["unreadable"], found["judgements"]) == (1, 2)


# -- MT-Bench ------------------------------------------------------------------------------


def test_the_mt_bench_figures(call: Call, shared_data: Path) -> None:
    files = [shared_data / "mtbench" / f"{name}.jsonl.gz" for name in ("human", "gpt4_pair")]
    code, out, _ = call("agreement", *files, "--json")
    assert code == 0
    result = json.loads(out)
    tables = {table["value"]: table for table in result["tables"] if table["by"] == "turn"}
    for turn, judge, people in (
        ("1", (886, 1343, 727, 859), (454, 721, 388, 479)),
        ("2", (871, 1325, 731, 864), (471, 707, 388, 474)),
    ):
        for pair, expected in ((("gpt4_pair", "expert"), judge), (("expert", "expert"), people)):
            row = row_of(tables[turn], *pair)
            counts = [row[part][name] for part in ("with_ties", "without_ties")
                      for name in ("agreed", "compared")]  # fmt: skip
            assert tuple(counts) == expected
            for part in (row["with_ties"], row["without_ties"]):
                low, high = part["interval"]
                assert low < part["share"] < high
                assert 0 < part["kappa"] < part["share"]
    (alpha,) = [row for row in result["alpha"] if row["who"] == "human (all)"]
    assert (f"{alpha['alpha']:.4f}", alpha["items"]) == ("0.4855", 961)
    text = call("agreement", *files)[1]
    assert "886/1343" in text and "66.0 %" in text and "0.4855" in text


def test_it_starts_without_torch(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "people.jsonl", *VOTES)
    program = (
        "import sys\nfor name in ('torch', 'transformers'): sys.modules[name] = None\n"
        f"from prefopt.cli.app import run\nsys.exit(run(['agreement', {str(path)!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_judge_that_is_asked_again_is_one_voice(call: Call, tmp_path: Path) -> None:
    votes, judged = jsonl(tmp_path / "votes.jsonl", *VOTES), tmp_path / "judged.jsonl"
    assert call("judge", votes, "--judge", "shortest", "--out", judged)[0] == 0
    alone = json.loads(call("agreement", judged, "--json")[1])
    code, out, _ = call("agreement", judged, "--judge", "shortest", "--json")
    result = json.loads(out)
    assert code == 0 and result["judgements"] == alone["judgements"] == 4 + 2
    kinds = {row["kind"]: row["judgements"] for row in result["kinds"]}
    assert kinds["shortest"] == 2


def test_a_judged_file_has_people_and_their_judge(call: Call, tmp_path: Path) -> None:
    votes, judged = jsonl(tmp_path / "votes.jsonl", *VOTES), tmp_path / "judged.jsonl"
    assert call("judge", votes, "--judge", "shortest", "--out", judged)[0] == 0
    counts = []
    for files in ((judged,), (votes, judged)):  # the votes in it are the same votes
        code, out, _ = call("agreement", *files, "--json")
        result = json.loads(out)
        assert code == 0
        people = "judged" if len(files) == 1 else "votes"
        parts = [row_of(result["tables"][0], one, people)["with_ties"]
                 for one in ("shortest", LONGER, people)]  # fmt: skip
        counts.append([(part["agreed"], part["compared"]) for part in parts])
        assert result["judgements"] == 4 + 2
    assert counts[0] == counts[1] == [(1, 4), (2, 4), (1, 2)]
