"""Votes in files: layouts with verdicts, and `prefopt aggregate`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prefopt.data.aggregation.reading import read_votes
from prefopt.data.aggregation.table import HIGH, LOW, TIE
from prefopt.data.formats import read_groups
from prefopt.errors import DataError
from prefopt.records import Comparison, Group, Message, Vote

Row = dict[str, Any]
Call = Callable[..., tuple[int, str, str]]

VOTES: list[Row] = [
    {"prompt": "p", "completions": ["x", "y"], "votes": [
        {"annotator": "ann", "pair": [0, 1], "choice": "first"},
        {"annotator": "bob", "pair": [1, 0], "choice": "second"},
        {"annotator": "cid", "choice": "second"},
    ]},
    {"prompt": "q", "completions": ["u", "v", "w"], "votes": [
        {"annotator": "ann", "pair": [0, 2], "choice": "tie"},
        {"annotator": "bob", "pair": [2, 0], "choice": "tie"},
        {"annotator": "cid", "pair": [1, 2], "choice": "first"},
    ]},
]  # fmt: skip
JUDGED: Row = {"question_id": 81, "model_a": "old", "model_b": "new", "winner": "model_b",
               "judge": "ann", "turn": 1}  # fmt: skip


def jsonl(folder: Path, *rows: Row, name: str = "votes.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def only(folder: Path, *rows: Row, **options: Any) -> Group:
    (group,) = read_groups(jsonl(folder, *rows), **options)
    return group


def refusal(folder: Path, *rows: Row) -> DataError:
    with pytest.raises(DataError) as caught:
        list(read_groups(jsonl(folder, *rows)))
    return caught.value


# -- layouts -------------------------------------------------------------------------------


def test_a_votes_pair_defaults_to_the_first_two(tmp_path: Path) -> None:
    row = {"prompt": "p", "completions": ["a", "b", "c"],
           "votes": [{"choice": "tie"},
                     {"pair": [2, 0], "choice": "first", "annotator": 3}]}  # fmt: skip
    assert only(tmp_path, row).votes == (Vote(0, 1, "tie"), Vote(2, 0, "first", "3"))
    own = {**row, "completions": [{"text": text, "source": text} for text in "abc"],
           "votes": [{"choice": "tie"}, {"pair": [2, 0], "choice": "first"}]}  # fmt: skip
    assert only(tmp_path, own).votes == (Vote(0, 1, "tie"), Vote(2, 0, "first"))


@pytest.mark.parametrize(
    ("vote", "field"),
    [({"pair": [0], "choice": "tie"}, "votes.pair"), ({"pair": 1, "choice": "tie"}, "votes.pair"),
     ({"pair": [0, 1], "first": 0, "choice": "tie"}, "votes"),
     ({"pair": [0, 1], "choice": "left"}, "votes.choice")],
)  # fmt: skip
@pytest.mark.parametrize("completions", [["a", "b"], [{"text": "a"}, {"text": "b"}]])
def test_wrong_votes_are_refused(
    tmp_path: Path, vote: Row, field: str, completions: list[Any]
) -> None:
    error = refusal(tmp_path, {"prompt": "p", "completions": completions, "votes": [vote]})
    assert (error.field, error.row) == (field, 1)


def conversation(*contents: str) -> list[Row]:
    return [{"role": "user" if i % 2 == 0 else "assistant", "content": text}
            for i, text in enumerate(contents)]  # fmt: skip


def test_an_arena_row_is_a_vote(tmp_path: Path) -> None:
    row = {**JUDGED, "conversation_a": conversation("Hi.", "Hello.", "Why?", "So."),
           "conversation_b": conversation("Hi.", "Yes?", "Why?", "No."),
           "language": "English"}  # fmt: skip
    group = only(tmp_path, row)
    assert group.prompt == (Message("user", "Hi."),)
    assert [(item.text, item.source) for item in group.completions] == [
        ("Hello.", "old"), ("Yes?", "new"),
    ]  # fmt: skip
    assert group.votes == (Vote(0, 1, "second", "ann"),)
    assert group.comparisons == (Comparison(1, 0, 0.75),)
    assert group.meta == {"question_id": 81, "turn": 1, "language": "English"}
    error = refusal(tmp_path, {**row, "turn": 2})  # each saw another second question
    assert error.kind == "prompt_mismatch"
    assert refusal(tmp_path, {**row, "turn": 3}).kind == "out_of_range"
    del row["turn"]
    assert refusal(tmp_path, row).kind == "prompt_mismatch"  # the last answer is judged


def test_flat_arena_rows_merge_by_prompt(tmp_path: Path) -> None:
    row = {"prompt": "p", "response_a": "x", "response_b": "y", "model_a": "A", "model_b": "B"}
    group = only(
        tmp_path,
        {**row, "winner": "tie (bothbad)"},
        {**row, "response_b": "z", "model_b": "C", "winner": "I prefer A. [[A]]", "annotator": 4},
        {**row, "winner_model_a": 0, "winner_model_b": 1, "winner_tie": 0},
    )
    assert [item.source for item in group.completions] == ["A", "B", "C"]
    assert group.votes == (
        Vote(0, 1, "tie"), Vote(0, 2, "first", "4"), Vote(0, 1, "second"),
    )  # fmt: skip


def test_arena_rows_that_say_nothing_are_refused(tmp_path: Path) -> None:
    row = {"prompt": "p", "response_a": "x", "response_b": "y", "winner": "model_a"}
    assert refusal(tmp_path, {**row, "winner": "error"}).kind == "unreadable_verdict"
    flags = {"winner_model_a": 1, "winner_model_b": 1}
    del row["winner"]
    assert refusal(tmp_path, {**row, **flags}).kind == "unreadable_verdict"
    same = {**row, "winner": "tie", "response_b": "x"}
    assert refusal(tmp_path, same).kind == "identical_sides"
    error = refusal(tmp_path, JUDGED)
    assert (error.kind, error.field) == ("missing_field", "conversation_a")
    assert "prefopt aggregate" in (error.remedy or "")


def test_rows_with_chosen_and_rejected_stay_pairs(tmp_path: Path) -> None:
    row = {"prompt": "p", "chosen": "a", "rejected": "b", "winner": "model_a", "model_a": "x",
           "model_b": "y"}  # fmt: skip
    assert only(tmp_path, row).votes == ()


# -- reading votes -------------------------------------------------------------------------


def test_judgements_without_texts_are_votes_on_models(tmp_path: Path) -> None:
    rows = [
        JUDGED,
        {**JUDGED, "model_a": "new", "model_b": "old", "winner": "tie (inconsistent)",
         "judge": ["gpt", "pair"]},
        {**JUDGED, "turn": 2, "winner": "model_a"},
        {**JUDGED, "winner": "error"},
    ]  # fmt: skip
    ballots = read_votes(jsonl(tmp_path, *rows))
    votes = ballots.votes
    assert ballots.groups is None and (ballots.rows, ballots.unreadable) == (4, 1)
    assert list(votes.questions) == ["81 (turn 1)", "81 (turn 2)"]
    assert (votes.sources, votes.annotators) == (["new", "old"], ["ann", "gpt/pair"])
    assert votes.question.tolist() == [0, 0, 1, 1]
    assert votes.source.tolist() == [0, 1, 0, 1]  # options in the order of their names
    assert votes.items.said.tolist() == [LOW, TIE, HIGH]
    assert votes.items.counts.tolist() == [[1, 0, 1], [0, 1, 0]]


def test_the_order_of_rows_does_not_change_votes_without_texts(tmp_path: Path) -> None:
    rows = [{**JUDGED, "question_id": i % 3, "judge": f"j{i % 4}",
             "model_b": ("new", "newer")[i % 2]} for i in range(12)]  # fmt: skip
    one = read_votes(jsonl(tmp_path, *rows)).votes
    other = read_votes(jsonl(tmp_path, *rows[:1], *rows[:0:-1])).votes
    assert (one.sources, one.annotators) == (other.sources, other.annotators)
    assert sorted(map(tuple, one.items.counts.tolist())) == sorted(
        map(tuple, other.items.counts.tolist())
    )


def test_wrong_rows_without_texts_are_refused_or_skipped(tmp_path: Path) -> None:
    wrong = [{**JUDGED, "model_b": "old"}, {**JUDGED, "question_id": None}, {"prompt": "p"}]
    for row in wrong:
        path = jsonl(tmp_path, JUDGED, row)
        with pytest.raises(DataError) as caught:
            read_votes(path)
        assert (caught.value.file, caught.value.row) == (str(path), 2)
    ballots = read_votes(jsonl(tmp_path, JUDGED, *wrong), on_error="skip")
    assert len(ballots.votes) == 1
    assert dict(ballots.skipped) == {"identical_sides": 1, "missing_field": 2}


def test_unreadable_verdicts_are_counted_and_other_faults_are_refused(tmp_path: Path) -> None:
    row = {"prompt": "p", "response_a": "x", "response_b": "y", "winner": "model_a"}
    ballots = read_votes(jsonl(tmp_path, row, {**row, "winner": "error"}))
    assert (len(ballots.votes), ballots.unreadable, dict(ballots.skipped)) == (1, 1, {})
    with pytest.raises(DataError, match="empty") as caught:
        read_votes(jsonl(tmp_path, row, {**row, "response_a": " "}))
    assert caught.value.row == 2
    with pytest.raises(DataError, match="no votes") as caught:
        read_votes(jsonl(tmp_path, {**row, "winner": "error"}))
    assert "1 verdicts" in caught.value.value
    with pytest.raises(DataError, match="no votes"):
        read_votes(jsonl(tmp_path, {"prompt": "p", "chosen": "a", "rejected": "b"}))


# -- the command ---------------------------------------------------------------------------


def test_aggregate_prints_one_object(call: Call, tmp_path: Path) -> None:
    code, out, _ = call("aggregate", jsonl(tmp_path, *VOTES), "--json")
    assert code == 0
    document = json.loads(out)
    assert set(document) == {
        "method", "over", "rows", "questions", "items", "votes", "comparisons", "ties", "alpha",
        "alpha_interval", "counts", "skipped", "fit", "annotators",
    }  # fmt: skip
    assert (document["method"], document["over"]) == ("smoothed", "prompts")
    assert [document[name] for name in ("rows", "questions", "items", "votes", "comparisons",
                                        "ties")] == [2, 2, 3, 6, 3, 1]  # fmt: skip
    assert document["counts"] == {"first": 2, "second": 2, "tie": 2, "unreadable": 0}
    assert [row["annotator"] for row in document["annotators"]] == ["ann", "bob", "cid"]
    assert set(document["annotators"][0]) == {
        "annotator", "votes", "agreement", "reliability", "ties", "first_share", "first_interval",
    }  # fmt: skip


def test_undefined_alpha_is_null(call: Call, tmp_path: Path) -> None:
    _, out, _ = call("aggregate", jsonl(tmp_path, VOTES[0] | {"votes": ["first"]}), "--json")
    document = json.loads(out)
    assert document["alpha"] is None and document["alpha_interval"] == [None, None]
    code, out, _ = call("aggregate", tmp_path / "votes.jsonl")
    assert code == 0 and "not defined" in out


@pytest.mark.parametrize("method", ["majority", "dawid-skene", "bradley-terry"])
def test_written_groups_name_the_rule_and_can_be_trained_on(
    call: Call, tmp_path: Path, method: str
) -> None:
    source, target = jsonl(tmp_path, *VOTES), tmp_path / "new" / "pairs.jsonl"
    code, out, _ = call("aggregate", source, "--method", method, "--out", target, "--json")
    assert code == 0
    document = json.loads(out)
    assert (document["out"], document["groups"]) == (str(target), 2)
    groups = list(read_groups(target))
    assert [len(group.comparisons) for group in groups] == [1, 2]
    rule = {"method": method, "over": "prompts"}
    assert [group.meta.get("aggregation") for group in groups] == [rule, rule]
    (edge,) = groups[0].comparisons
    assert (edge.preferred, edge.dispreferred) == (0, 1) and edge.probability > 0.5
    tie, other = groups[1].comparisons
    assert other.probability > 0.5
    if method == "bradley-terry":  # the third lost to the second, so it is the weaker of the tie
        assert (tie.preferred, tie.dispreferred) == (0, 2) and 0.5 < tie.probability < 0.6
    else:
        assert tie == Comparison(0, 2, 0.5)
    if method == "majority":
        assert (edge.probability, other) == (1.0, Comparison(1, 2, 1.0))
    # what was written can be aggregated again, by another rule, and nothing counts twice
    again = tmp_path / "again.jsonl"
    assert call("aggregate", target, "--method", "smoothed", "--out", again)[0] == 0
    expected = [group.comparisons for group in read_groups(source)]
    assert [group.comparisons for group in read_groups(again)] == expected


def test_comparisons_of_pairs_without_votes_are_kept(call: Call, tmp_path: Path) -> None:
    row = {"prompt": "p", "completions": [{"text": text} for text in "abc"],
           "comparisons": [{"preferred": 2, "dispreferred": 1},
                           {"preferred": 1, "dispreferred": 0}],
           "votes": [{"pair": [0, 1], "choice": "first"}]}  # fmt: skip
    target = tmp_path / "pairs.jsonl"
    assert call("aggregate", jsonl(tmp_path, row), "--out", target)[0] == 0
    assert only(tmp_path, json.loads(target.read_text())).comparisons == (
        Comparison(2, 1), Comparison(0, 1, 0.75),
    )  # fmt: skip


def arena(prompt: str, sides: str, winner: str) -> Row:
    return {"prompt": prompt, "response_a": f"{sides[0]} says", "response_b": f"{sides[1]} says",
            "model_a": sides[0], "model_b": sides[1], "winner": winner}  # fmt: skip


def test_sources_give_the_comparisons_of_every_prompt(call: Call, tmp_path: Path) -> None:
    rows = [arena(f"p{i}", "AB", "model_a" if i else "model_b") for i in range(4)]
    rows += [arena("q", "BA", "tie")]
    target = tmp_path / "pairs.jsonl"
    code, out, _ = call("aggregate", jsonl(tmp_path, *rows), "--method", "bradley-terry",
                        "--over", "sources", "--out", target, "--json")  # fmt: skip
    assert code == 0
    sources = json.loads(out)["sources"]
    assert [row["source"] for row in sources] == ["A", "B"]
    assert sources[0]["share"] == pytest.approx(3.5 / 5) and sources[0]["votes"] == 5
    for group in read_groups(target):
        (edge,) = group.comparisons
        assert group.completions[edge.preferred].source == "A"
        assert edge.probability == pytest.approx(3.5 / 5)


def test_comparing_and_types_are_in_the_object(call: Call, tmp_path: Path) -> None:
    rows = [
        {"prompt": f"p{i}", "completions": ["x", "y"], "votes": [
            {"annotator": name, "choice": "first" if (name in "abcd") == (i % 2 == 0) else "second"}
            for name in "abcdefgh"
        ]}
        for i in range(12)
    ]  # fmt: skip
    path = jsonl(tmp_path, *rows)
    code, out, _ = call("aggregate", path, "--compare", "--types", 2, "--json")
    assert code == 0
    document = json.loads(out)
    assert len(document["rules"]) == 9 and document["rules"]["majority"]["ties"] == 12
    assert document["types"]["count"] == 2 and document["types"]["supported"] is True
    kinds = {row["annotator"]: row["type"] for row in document["types"]["annotators"]}
    assert len({kinds[name] for name in "abcd"}) == len({kinds[name] for name in "efgh"}) == 1
    assert kinds["a"] != kinds["e"]
    assert document["types"]["pairs"]["conflict"] == 12
    code, out, _ = call("aggregate", path, "--compare", "--types", 2)
    assert code == 0 and "12 conflict" in out


REFUSED = [
    ("aggregate {}/nope.jsonl", "no such file"),
    ("aggregate {}/votes.jsonl --method plurality", "plurality"),
    ("aggregate {}/votes.jsonl --method majority --ridge 1", "has no ridge"),
    ("aggregate {}/votes.jsonl --smoothing 0", "smoothing"),
    ("aggregate {}/votes.jsonl --types 1", "types"),
    ("aggregate {}/votes.jsonl --types 4", "fewer annotators"),
    ("aggregate {}/votes.jsonl --over sources", "no source"),
    ("aggregate {}/votes.jsonl --out {}/votes.jsonl", "would be lost"),
    ("aggregate {}/votes.jsonl --out {}/pairs.csv", "must end with"),
    ("aggregate {}/judged.jsonl --out {}/pairs.jsonl", "no texts"),
    ("aggregate {}/judged.jsonl --types 2", "only one comparison"),
    ("aggregate {}/judged.jsonl --over sources --method bradley-terry", "no finite scores"),
    ("aggregate", "is missing"),
]


@pytest.mark.parametrize(("line", "said"), REFUSED, ids=[line for line, _ in REFUSED])
def test_mistakes_are_refused(call: Call, tmp_path: Path, line: str, said: str) -> None:
    jsonl(tmp_path, *VOTES)
    jsonl(tmp_path, JUDGED, name="judged.jsonl")
    code, out, err = call(*line.replace("{}", str(tmp_path)).split())
    assert code == 2 and said in err and "Traceback" not in err and not out
    assert not (tmp_path / "pairs.jsonl").exists()


def test_aggregate_runs_on_mt_bench(call: Call, shared_data: Path) -> None:
    path = shared_data / "mtbench" / "human.jsonl.gz"
    line = ("aggregate", path, "--over", "sources", "--method", "bradley-terry")
    code, out, _ = call(*line, "--json")
    assert code == 0
    document = json.loads(out)
    assert f"{document['alpha']:.4f}" == "0.4855" and document["votes"] == 3355
    assert [f"{row['score']:.4f}" for row in document["sources"]] == [
        "1.0211", "0.6429", "0.5996", "-0.0569", "-0.7616", "-1.4451",
    ]  # fmt: skip
    for row in document["sources"]:
        low, high = row["interval"]
        assert low < row["score"] < high < low + 0.5
    code, out, _ = call(*line)
    assert code == 0 and "0.4855" in out and "gpt-4" in out and "1.0211" in out
