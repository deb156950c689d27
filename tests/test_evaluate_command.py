"""`prefopt evaluate`: answers, matches, verdicts, and the page."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prefopt.data.aggregation.reading import read_votes
from prefopt.errors import DataError, RecipeError
from prefopt.evaluation.answers import Answers, pairings, play, read_answers
from prefopt.evaluation.comparing import compared
from prefopt.evaluation.evaluate import evaluate
from prefopt.evaluation.matches import Match, read_matches, write_matches
from prefopt.judges.judge import Question, Verdict
from tests.faulty_server import faulty_server, status

Row = dict[str, Any]
Call = Callable[..., tuple[int, str, str]]

#: sees the order: the first shown wins unless one is much longer; counts what it is asked
JUDGE = """
from pathlib import Path

def better(prompt, first, second):
    with open(Path(__file__).with_name("asked.txt"), "a") as handle:
        handle.write(prompt + chr(10))
    gap = len(first) - len(second)
    return 1.0 if gap > -3 else 0.0
"""


def jsonl(path: Path, *rows: Row) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def answers(folder: Path, name: str, *texts: str, **more: Any) -> Path:
    """A file with one answer to each of the prompts p0, p1, …"""
    rows = [{"prompt": f"p{i}", "completions": [{"text": text, "source": name}], **more}
            for i, text in enumerate(texts)]  # fmt: skip
    return jsonl(folder / f"{name}.jsonl", *rows)


def match(prompt: str, left: str, right: str, probability: float | None, **verdict: Any) -> Match:
    columns = verdict.pop("columns", {})
    return Match(prompt, "ours", "base", (left, right), Verdict(probability, **verdict), columns)


def only_of(out: str) -> Row:
    (found,) = json.loads(out)["comparisons"]
    return dict(found)


# -- by hand -------------------------------------------------------------------------------


def test_wins_ties_and_losses_by_hand() -> None:
    found = compared([
        match("a", "long text", "x", 1.0),
        match("a", "y", "longer", 0.7, order_consistent=True),
        match("b", "long text", "x", 0.6, order_consistent=False),  # flipped: a tie
        match("b", "same", "same", 0.5),
        match("c", "xx", "y", 0.0),
        match("c", "xx", "y", None),
        match("c", "xx", "y", None, transcript={"not_asked": True}),
    ], control=False)  # fmt: skip
    assert (found["pairs"], found["prompts"], found["identical"]) == (7, 3, 1)
    assert (found["wins"], found["ties"], found["losses"]) == (2, 2, 1)
    assert (found["unreadable"], found["not_asked"]) == (1, 1)
    assert found["rate"]["value"] == pytest.approx((1 + 1 + 0.5 + 0.5 + 0) / 5)
    assert found["soft"]["value"] == pytest.approx((1 + 0.7 + 0.6 + 0.5 + 0) / 5)
    assert [found[name]["value"] for name in ("win", "tie", "loss")] == [0.4, 0.4, 0.2]
    assert found["length"]["longest_wins"]["value"] == pytest.approx((1 + 0 + 1 + 0.5 + 1) / 5)
    # decided and of different lengths: a1 longer, a2 shorter, c shorter
    assert found["length"]["judge_takes_longer"]["value"] == pytest.approx(1 / 3)
    assert found["length"]["difference"]["value"] == pytest.approx((8 - 5 + 8 + 0 + 1) / 5)
    assert (found["order"]["asked"], found["order"]["inconsistent"]) == (2, 1)
    # prompts have means 1, ½ and 0: of 4 signs of (½, −½) all are as far from 0 as this
    assert found["p"] == 1.0


def test_nothing_readable_is_no_rate() -> None:
    found = compared([match("a", "x", "y", None)])
    assert (found["rate"], found["p"], found["unreadable"]) == (None, None, 1)


def test_equal_lengths_say_nothing_of_a_taste_for_length() -> None:
    found = compared([match("a", "xx", "yy", 1.0), match("b", "xxx", "y", 1.0)])
    taste = found["length"]["judge_takes_longer"]
    assert (taste["value"], taste["comparisons"]) == (1.0, 1)


def many(seed: int, count: int = 60) -> list[Match]:
    rng = random.Random(seed)
    return [
        match(f"p{i}", "w" * rng.randint(1, 30), "v" * rng.randint(1, 30),
              rng.choice((0.0, 0.2, 0.5, 0.9, 1.0, None)),
              order_consistent=rng.choice((True, True, False)),
              columns={"kind": rng.choice("abc")})
        for i in range(count)
    ]  # fmt: skip


def test_seen_from_the_other_side_it_is_the_same_match() -> None:
    here = compared(many(0))
    there = compared([m.turned() for m in many(0)])
    for name in ("rate", "soft"):
        assert there[name]["value"] == pytest.approx(1 - here[name]["value"])
        ends = [1 - end for end in here[name]["interval"][::-1]]
        assert there[name]["interval"] == pytest.approx(ends)
    assert (there["wins"], there["losses"]) == (here["losses"], here["wins"])
    assert there["p"] == pytest.approx(here["p"])
    fits = [found["length_controlled"]["rate"] for found in (here, there)]
    assert fits[0] + fits[1] == pytest.approx(1, abs=2e-3)
    left, right = here["length"], there["length"]
    assert right["judge_takes_longer"] == left["judge_takes_longer"]
    assert right["longest_wins"]["value"] == pytest.approx(1 - left["longest_wins"]["value"])
    assert left["longest_wins"]["value"] != 0.5
    assert (right["mean"], right["baseline_mean"]) == (left["baseline_mean"], left["mean"])


def test_the_order_of_the_rows_changes_nothing() -> None:
    matches = many(1)
    shuffled = random.Random(2).sample(matches, len(matches))
    one, other = (evaluate(rows, by=("kind",)) for rows in (matches, shuffled))
    left, right = one["comparisons"][0], other["comparisons"][0]
    assert (left["p"], left["wins"]) == (right["p"], right["wins"])
    for name in ("rate", "win", "tie", "loss", "soft"):
        assert left[name]["value"] == right[name]["value"]
        assert left[name]["interval"] == pytest.approx(right[name]["interval"], abs=1e-12)
    for name, value in left["length_controlled"].items():
        same = right["length_controlled"][name]
        assert same == (value if isinstance(value, str) else pytest.approx(value, abs=1e-3))
    for one_row, other_row in zip(
        *(f["categories"][0]["rows"] for f in (left, right)), strict=True
    ):
        assert one_row["value"] == other_row["value"]
        assert one_row["rate"]["value"] == other_row["rate"]["value"]


def test_categories_add_up_and_allow_for_their_number() -> None:
    found_at = {"columns": {"rare": 1}}
    matches = [*many(3), match("one more", "x", "y", 1.0, **found_at)]
    (found,) = evaluate(matches, by=("kind", "rare"))["comparisons"]
    kind, rare = found["categories"]
    for name in ("pairs", "wins", "ties", "losses", "unreadable"):
        assert sum(row[name] for row in kind["rows"]) == found[name]
    assert all(row["p_holm"] >= row["p"] for row in kind["rows"])
    assert [row["value"] for row in rare["rows"]] == ["(none)", "1"]
    with pytest.raises(RecipeError, match="no row has this column"):
        evaluate(matches, by=("nowhere",))


# -- who meets whom ------------------------------------------------------------------------


def test_who_meets_whom() -> None:
    assert pairings(["a", "b", "c"], None) == [("a", "b"), ("a", "c"), ("b", "c")]
    assert pairings(["a", "b"], "a") == [("b", "a")]
    for policies, baseline in ((["a"], None), (["a", "b"], "c")):
        with pytest.raises(RecipeError):
            pairings(policies, baseline)


def test_nobody_is_asked_twice_or_about_equal_texts() -> None:
    both = Answers()
    for prompt, left, right in (("p", "x", "y"), ("p", "x", "y"), ("q", "z", "z"), ("q", "u", "")):
        both.note(prompt, {})
        both.add("ours", prompt, left)
        if right:
            both.add("base", prompt, right)
    asked: list[Question] = []

    def ask(questions: Any, progress: Any) -> list[Verdict]:
        asked.extend(questions)
        return [Verdict(1.0) for _ in questions]

    matches, alone = play(both, [("ours", "base")], ask)
    assert asked == [Question("p", "x", "y")]
    assert [m.value for m in matches] == [1.0, 1.0, 0.5]
    assert alone == 1


def test_answers_belong_to_their_source_or_their_file(tmp_path: Path) -> None:
    both = Answers()
    sides = [{"text": "x", "source": "a"}, {"text": "y", "source": "b"}]
    row = {"prompt": "p", "completions": sides, "meta": {"kind": 1}}
    mixed = jsonl(tmp_path / "mixed.jsonl", row)
    pairs = jsonl(tmp_path / "pairs.jsonl", {"prompt": "p", "chosen": "good", "rejected": "bad"})
    read_answers(both, str(mixed))
    read_answers(both, str(pairs))
    texts = {name: list(said.values()) for name, said in both.texts.items()}
    assert texts == {"a": [["x"]], "b": [["y"]], "pairs": [["good"]]}
    assert list(both.columns.values()) == [{"kind": 1}]
    with pytest.raises(DataError, match="answers of 2 policies"):
        read_answers(Answers(), str(mixed), "ours")
    with pytest.raises(DataError, match="'a' twice"):
        read_answers(both, str(mixed))


# -- the command ---------------------------------------------------------------------------


def test_a_length_judge_is_what_length_alone_says(call: Call, tmp_path: Path) -> None:
    ours = answers(tmp_path, "ours", "long one", "longer one", "s", "same")
    base = answers(tmp_path, "base", "tiny", "small", "bigger", "same")
    code, out, _ = call("evaluate", ours, base, "--judge", "longest", "--json")
    assert code == 0
    found = only_of(out)
    assert (found["policy"], found["baseline"]) == ("ours", "base")
    assert (found["wins"], found["ties"], found["losses"], found["identical"]) == (2, 1, 1, 1)
    assert found["rate"] == found["length"]["longest_wins"]
    assert found["order"] is None  # it sees none
    turned = only_of(call("evaluate", base, ours, "--judge", "longest", "--json")[1])
    assert turned["rate"]["value"] == pytest.approx(1 - found["rate"]["value"])
    named = only_of(call("evaluate", f"new={ours}", base, "--baseline", "new", "--judge", "longest",
                     "--json")[1])  # fmt: skip
    assert (named["policy"], named["baseline"]) == ("base", "new")
    text = call("evaluate", ours, base, "--judge", "longest")[1]
    assert "ours wins 62.5 % against base" in text and "length alone" in text


def test_flips_are_ties_and_nothing_is_asked_twice(call: Call, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(JUDGE, encoding="utf-8")
    spec = tmp_path / "judge.yaml"
    spec.write_text("kind: python\nfunction: mine.py:better\nwhat: compare\n", encoding="utf-8")
    ours = answers(tmp_path, "ours", "xx", "a much longer answer", "x")
    base = answers(tmp_path, "base", "xxx", "short", "a much longer answer")
    arguments = ("evaluate", ours, base, "--judge", spec, "--cache", tmp_path / "kept")
    few = json.loads(call(*arguments, "--budget", "1", "--json")[1])
    (found,) = few["comparisons"]
    assert (found["not_asked"], found["unreadable"], few["judge"]["asked"]) == (2, 0, 1)
    result = json.loads(call(*arguments, "--json")[1])
    (found,) = result["comparisons"]
    assert (result["judge"]["asked"], result["judge"]["known"]) == (2, 1)
    assert (found["wins"], found["ties"], found["losses"]) == (1, 1, 1)
    assert (found["order"]["inconsistent"], found["order"]["first_shown"]) == (1, 1)
    again = json.loads(call(*arguments, "--json")[1])
    assert (again["judge"]["asked"], again["comparisons"]) == (0, result["comparisons"])
    asked = (tmp_path / "asked.txt").read_text().split()
    assert len(asked) == 2 * 3  # three questions, each in both orders


def test_verdicts_are_written_and_read_again(call: Call, tmp_path: Path) -> None:
    matches = many(4) + [match("a", "half \ud83d pair", "x", 1.0, transcript={"orders": [1.0, 0]})]
    path = tmp_path / "verdicts.jsonl"
    assert write_matches(str(path), matches, "someone") == len(matches)
    back = read_matches(str(path))
    for one, other in zip(back, matches, strict=True):
        assert (one.first, one.second, one.columns) == (other.first, other.second, other.columns)
        assert one.verdict == other.verdict
    assert [m.texts for m in back[:-1]] == [m.texts for m in matches[:-1]]
    assert evaluate(back[:-1]) == evaluate(matches[:-1])
    read = read_votes([path], on_error="skip")  # and they are votes of an arena
    assert len(read.votes) == sum(m.value is not None and not m.identical for m in matches)
    assert read.unreadable == sum(m.value is None for m in matches)
    code, out, _ = call("evaluate", path, "--by", "kind", "--json")
    assert (code, json.loads(out)["judge"], only_of(out)["pairs"]) == (0, None, len(matches))


def test_two_runs_are_compared_prompt_by_prompt(call: Call, tmp_path: Path) -> None:
    texts = {name: [random.Random(f"{name}{i}").randint(1, size) * "x" for i in range(18)]
             for name, size in (("first", 20), ("second", 60), ("base", 15))}  # fmt: skip
    files = {name: answers(tmp_path, name, *own) for name, own in texts.items()}
    for name in ("first", "second"):
        call("evaluate", files[name], files["base"], "--judge", "longest",
             "--verdicts", tmp_path / f"v-{name}.jsonl")  # fmt: skip
    runs = ("evaluate", tmp_path / "v-second.jsonl", "--against", tmp_path / "v-first.jsonl")
    (apart,) = json.loads(call(*runs, "--json")[1])["against"]
    out = call("evaluate", *files.values(), "--judge", "longest", "--baseline", "base", "--json")[1]
    together = json.loads(out)
    (paired,) = together["paired"]
    assert (paired["policy"], paired["other"], paired["baseline"]) == ("first", "second", "base")
    assert apart["difference"] == pytest.approx(-paired["difference"])
    assert (apart["p"], apart["better"]) == (pytest.approx(paired["p"], abs=0.02), paired["worse"])
    assert together["ranking"]["policies"][0]["policy"] == "second"
    assert "permutation test" in call(*runs)[1]


def test_a_judged_file_is_evaluated_as_its_judge_said(call: Call, tmp_path: Path) -> None:
    rows = [
        {"prompt": f"p{i}", "meta": {"kind": "a"}, "completions": [
            {"text": "x" * (1 + i % 4), "source": "ours"}, {"text": "y" * 2, "source": "base"}]}
        for i in range(12)
    ]  # fmt: skip
    samples, judged = jsonl(tmp_path / "samples.jsonl", *rows), tmp_path / "judged.jsonl"
    assert call("judge", samples, "--judge", "longest", "--out", judged)[0] == 0
    later = only_of(call("evaluate", judged, "--by", "kind", "--json")[1])
    now = only_of(call("evaluate", samples, "--judge", "longest", "--by", "kind", "--json")[1])
    assert later == now
    code, _, err = call("evaluate", samples)
    assert (code, "no verdicts between two policies" in err) == (2, True)


def test_models_are_asked_now(call: Call, save_policy: Callable[..., Path], tmp_path: Path) -> None:
    model = save_policy("llama")
    base = answers(tmp_path, "base", "the film was good", "no")
    arguments = ("evaluate", f"ours={model}", base, "--judge", "longest", "-n", "1",
                 "--max-new-tokens", "6", "--device", "cpu", "--json")  # fmt: skip
    code, out, err = call(*arguments)
    assert code == 0, err
    result = json.loads(out)
    assert {row["policy"]: row["completions"] for row in result["policies"]} == {
        "base": 2, "ours": 2
    }  # fmt: skip
    assert json.loads(call(*arguments)[1])["comparisons"] == result["comparisons"]


def test_servers_answer_and_judge(call: Call, tmp_path: Path) -> None:
    """A judge that always takes the first one shown; both servers fail once."""
    base = answers(tmp_path, "base", "no", "yes", "perhaps")
    with (
        faulty_server([status(500)]) as policy,
        faulty_server([None, status(503)], say=lambda body, index: "[[A]]") as judge,
    ):
        arguments = ("evaluate", f"ours={policy.url}", base, "--judge", f"server:{judge.url}",
                     "--cache", tmp_path / "kept", "--json")  # fmt: skip
        code, out, err = call(*arguments)
        assert code == 0, err
        found = only_of(out)
        assert (found["wins"], found["ties"], found["losses"]) == (0, 3, 0)
        assert (found["order"]["inconsistent"], found["order"]["first_shown"]) == (3, 3)
        assert (len(policy.answered), len(judge.answered)) == (3, 2 * 3)
        assert only_of(call(*arguments)[1]) == found
        assert len(judge.answered) == 2 * 3  # nothing was asked again


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("ours.jsonl",), "there must be two"),
        (("ours.jsonl", "base.jsonl", "--baseline", "nobody"), "no policy has the name"),
        (("ours.jsonl", "other.jsonl"), "no prompt in common"),
        (("ours.jsonl", "x=ours.jsonl", "y=nowhere"), "cannot load"),
        (("ours.jsonl", "missing.jsonl"), "missing.jsonl"),
        (("ours.jsonl", "base.jsonl", "--by", "nowhere"), "no row has this column"),
        (("ours.jsonl", "base.jsonl", "--seed", "-1"), "--seed"),
        (("x=ours.jsonl", "base.jsonl", "--prompts", "other.jsonl"), "none of these answers"),
        (("ours.jsonl", "base.jsonl", "--budget", "3"), "--cache"),
        (("ours.jsonl", "base.jsonl", "--temperature", "0.5"), "no model is asked"),
        (("ours.jsonl", "base.jsonl", "--out", "page.txt"), ".html"),
        (("ours.jsonl", "base.jsonl", "--verdicts", "ours.jsonl"), "would be lost"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    call: Call,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    answers(tmp_path, "ours", "a", "b")
    answers(tmp_path, "base", "aa", "bb")
    jsonl(tmp_path / "other.jsonl", {"prompt": "elsewhere", "completion": "x"})
    code, _, err = call("evaluate", *arguments, "--judge", "longest")
    assert (code, said in err) == (2, True), err


def test_what_has_no_effect_without_a_judge_is_refused(call: Call, tmp_path: Path) -> None:
    path = tmp_path / "verdicts.jsonl"
    write_matches(str(path), many(5), "someone")
    code, _, err = call("evaluate", path, "--cache", tmp_path / "kept")
    assert (code, "has no effect without a judge" in err) == (2, True)
    code, _, err = call("evaluate", path, "--baseline", "nobody")
    assert (code, "no policy has the name" in err) == (2, True)


# -- the page ------------------------------------------------------------------------------


def page_of(call: Call, tmp_path: Path, *arguments: Any) -> str:
    out = tmp_path / "page.html"
    code, _, err = call("evaluate", *arguments, "--out", out)
    assert code == 0, err
    return out.read_text(encoding="utf-8")


def test_the_page_shows_hostile_texts_as_texts(call: Call, tmp_path: Path) -> None:
    evil = "<script>alert(1)</script> \u202e turned </style>"
    ours = answers(tmp_path, "ours", *[f"{evil} {'x' * i}" for i in range(18)],
                   meta={"kind": "<b>bold</b>"})  # fmt: skip
    base = answers(tmp_path, "<img src=x onerror=alert(2)>".replace("/", ""),
                   *["y" * (9 * i) for i in range(18)])  # fmt: skip
    page = page_of(call, tmp_path, ours, base, "--judge", "longest", "--by", "kind")
    body = page[page.index("<body>") :]
    assert not re.search(r"<(script|img|b)\b", body)
    assert "U+202E" in body and "\u202e" not in body
    assert "&lt;script&gt;" in body and "&lt;b&gt;bold" in body
    assert not re.search(r"(?:src|href)=[\"']?https?:", page)
    assert "Win rate by length" in body and "Lost (" in body


def test_the_page_says_what_the_numbers_say(call: Call, tmp_path: Path) -> None:
    good = answers(tmp_path, "good", *["x" * 30] * 15)
    bad = answers(tmp_path, "bad", *["x" * (1 + i % 3) for i in range(15)])
    equal = answers(tmp_path, "equal", *["x" * (2 + (-1) ** i) for i in range(15)])
    clear = page_of(call, tmp_path, good, bad, "--judge", "longest")
    assert "good is preferred to bad" in clear and "15 won" in clear
    assert "bad is preferred" not in page_of(call, tmp_path, bad, good, "--judge", "longest")
    unclear = page_of(call, tmp_path, equal, bad, "--judge", "longest")
    assert "No clear difference between equal and bad" in unclear
    ranked = page_of(call, tmp_path, good, bad, equal, "--judge", "longest", "--baseline", "bad")
    assert "good ranks first of 3" in ranked and "On the same prompts" in ranked
    assert ranked == page_of(call, tmp_path, good, bad, equal, "--judge", "longest",
                             "--baseline", "bad")  # fmt: skip


def test_a_page_without_a_single_verdict(call: Call, tmp_path: Path) -> None:
    path = tmp_path / "verdicts.jsonl"
    write_matches(str(path), [match("a", "x", "y", None)], "someone")
    assert "could be read" in page_of(call, tmp_path, path)
