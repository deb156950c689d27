"""Constitutions: the file, critique and revision, the command, and judging by principle."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from prefopt.data.formats import read_groups, write_groups
from prefopt.errors import DataError, RecipeError
from prefopt.judges.constitution import Constitution, read_constitution
from prefopt.judges.judge import Judge, Question, Verdict, compare, score
from prefopt.judges.language import LanguageJudge
from prefopt.judges.principled import ByPrinciples, principle_counts
from prefopt.judges.revisers import Draft, Revised, RuleReviser, SpokenReviser, make_reviser
from prefopt.judges.revising import Journal, Step, Trail, pairs_of, revise, tallies
from prefopt.judges.speaking import Ask, Said
from prefopt.judges.table import make_judge
from prefopt.records import Comparison, Completion, Group, Message

RULES = """\
principles:
  - name: no-wine
    critique: Point out every mention of wine.
    revision: Write the answer again without wine.
    judge: pattern:wine
  - name: polite
    critique: Is a thank-you missing?
    revision: Write the answer again with thanks at the end.
    weight: 3
    judge: {kind: pattern, patterns: [thanks], prefer: with}
"""

REVISER = """\
import re

def revise(prompt, completion, principle):
    if principle.name == "no-wine":
        return "It mentions wine.", re.sub(r" ?wine", "", completion)
    return completion if completion.endswith("thanks") else completion + " thanks"
"""


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    path = tmp_path / "rules.yaml"
    path.write_text(RULES)
    return path


@pytest.fixture
def speaker(tmp_path: Path) -> str:
    path = tmp_path / "reviser.py"
    path.write_text(REVISER)
    return f"python:{path}:revise"


ANSWERS: list[tuple[Any, str]] = [
    ("Q1", "red wine"), ("Q1", "tea"), ("Q2", "wine thanks"), ("Q2", "water thanks"),
]  # fmt: skip


# -- the file ------------------------------------------------------------------------------


def test_a_constitution_is_read(rules: Path) -> None:
    found = read_constitution(rules)
    assert [principle.name for principle in found.principles] == ["no-wine", "polite"]
    assert [principle.weight for principle in found.principles] == [1.0, 3.0]
    assert found.instructions == "reviser" and found.examples == []


@pytest.mark.parametrize(
    ("change", "row", "field", "message"),
    [
        (("name: polite", "nam: polite"), 6, "principles.1.nam", "there is no setting"),
        (("weight: 3", "weight: 0"), 9, "principles.1.weight", "a wrong value"),
        (("weight: 3", "weight: often"), 9, "principles.1.weight", "a wrong value"),
        (("name: polite", "name: no-wine"), 2, "principles.0.name", "2 principles have the name"),
        (("    critique: Is a thank-you missing?\n", ""), 6, "principles.1.critique", "is missing"),
        (("principles:", "rules:"), 1, "rules", "there is no setting 'rules'"),
    ],
)
def test_what_is_wrong_is_named_with_its_row(
    rules: Path, change: tuple[str, str], row: int, field: str, message: str
) -> None:
    rules.write_text(RULES.replace(*change))
    with pytest.raises(RecipeError, match=message) as caught:
        read_constitution(rules)
    error = caught.value
    assert (error.file, error.row, error.field) == (str(rules), row, field)


def test_a_constitution_must_be_there_and_have_principles(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="there is no such constitution"):
        read_constitution(tmp_path / "none.yaml")
    (tmp_path / "broken.yaml").write_text("principles: [{name: n, critique: what?, revision: r}]")
    with pytest.raises(RecipeError, match=r"put texts with : or \? in them into quotes"):
        read_constitution(tmp_path / "broken.yaml")
    (tmp_path / "empty.yaml").write_text("principles: []\n")
    with pytest.raises(RecipeError, match="a wrong value for principles"):
        read_constitution(tmp_path / "empty.yaml")


def test_principles_are_drawn_by_weight_and_by_seed(rules: Path) -> None:
    found = read_constitution(rules)
    first = Counter(found.drawn("Q", f"answer {n}", 1, 0)[0].name for n in range(2000))
    assert first["polite"] / 2000 == pytest.approx(0.75, abs=0.03)
    again = [found.drawn("Q", f"answer {n}", 1, 0)[0].name for n in range(20)]
    other = [found.drawn("Q", f"answer {n}", 1, 1)[0].name for n in range(20)]
    assert again == [found.drawn("Q", f"answer {n}", 1, 0)[0].name for n in range(20)]
    assert again != other
    for n in range(50):  # none twice before all have had their turn
        names = [principle.name for principle in found.drawn("Q", f"answer {n}", 4, 0)]
        assert Counter(names[:2]) == Counter(names[2:]) == {"no-wine": 1, "polite": 1}


# -- critique and revision -----------------------------------------------------------------


def test_rounds_pairs_and_statistics(rules: Path, speaker: str) -> None:
    found = read_constitution(rules)
    reviser = make_reviser(speaker, found)
    trails = revise([*ANSWERS, ANSWERS[0]], found, reviser, rounds=2)
    assert [trail.texts[-1] for trail in trails] == [
        "red thanks", "tea thanks", " thanks", "water thanks",
    ]  # fmt: skip
    pairs = pairs_of(trails, reviser=reviser.name, sources=lambda prompt, answer: "sft")
    assert [pair.completions[1].text for pair in pairs] == ["red wine", "tea", "wine thanks"]
    assert pairs[0].completions == (
        Completion("red thanks", source=speaker), Completion("red wine", source="sft"),
    )  # fmt: skip
    assert all(pair.comparisons == (Comparison(0, 1),) for pair in pairs)
    steps = pairs[0].meta["constitution"]
    assert {step["principle"] for step in steps} == {"no-wine", "polite"}
    assert steps[-1]["text"] == "red thanks"
    assert next(s for s in steps if s["principle"] == "no-wine")["critique"] == "It mentions wine."
    counts = {name: tally.to_dict() for name, tally in tallies(trails, found).items()}
    assert counts == {
        "no-wine": {"asked": 4, "changed": 2, "failed": 0},
        "polite": {"asked": 4, "changed": 2, "failed": 0},
    }
    judged = tallies(trails, found, make_judge("shortest"))
    assert judged["no-wine"].verdicts == {"better": 2, "worse": 0, "tied": 0, "unreadable": 0}
    assert judged["polite"].verdicts == {"better": 0, "worse": 2, "tied": 0, "unreadable": 0}


def test_a_round_in_which_nothing_is_written_leaves_the_answer(rules: Path) -> None:
    found = read_constitution(rules)
    trails = revise(ANSWERS[:1], found, RuleReviser("mute", lambda *_: "  "), rounds=2)
    assert trails[0].failed and not trails[0].changed and trails[0].texts == ["red wine"] * 3
    assert pairs_of(trails, reviser="mute") == []
    assert sum(tally.failed for tally in tallies(trails, found).values()) == 2


def test_one_revision_under_two_principles_counts_for_both(rules: Path) -> None:
    found = read_constitution(rules)
    trails = [
        Trail("Q", "red wine", (Step(principle, None, "tea"),))
        for principle in ("no-wine", "polite")
    ]
    counts = tallies(trails, found, make_judge("shortest"))
    assert [tally.verdicts["better"] for tally in counts.values()] == [1, 1]


def test_other_spaces_at_the_ends_are_no_change() -> None:
    assert not Trail("Q", " tea", (Step("p", None, "tea "),)).changed
    assert Trail("Q", " tea", (Step("p", None, "tea"), Step("q", None, "milk"))).changed


def test_a_function_must_return_a_text(rules: Path) -> None:
    found = read_constitution(rules)
    with pytest.raises(DataError, match="must return a text, or a critique and a text"):
        revise(ANSWERS, found, RuleReviser("odd", lambda *_: 3))


def test_what_was_written_is_kept_and_not_asked_again(rules: Path, tmp_path: Path) -> None:
    found, asked = read_constitution(rules), list[str]()

    def shout(prompt: Any, completion: str, principle: Any) -> str:
        asked.append(completion)
        if len(asked) == 40:
            raise KeyboardInterrupt
        return completion.upper()

    reviser = RuleReviser("shout", shout)
    answers = [("Q", f"answer {n}") for n in range(70)]
    with pytest.raises(KeyboardInterrupt):
        revise(answers, found, reviser, journal=tmp_path / "journal")
    with open(tmp_path / "journal", "ab") as handle:
        handle.write(b'{"key": "half a li')  # as a process that is killed leaves it
    trails = revise(answers, found, reviser, journal=tmp_path / "journal")
    assert [trail.texts[-1] for trail in trails] == [f"ANSWER {n}" for n in range(70)]
    assert len(asked) == 40 + 70 - 32 and len(set(asked)) == 70
    again = revise(answers, found, reviser, journal=tmp_path / "journal")
    assert again == trails and len(asked) == 78
    revise(answers[:1], found, reviser, seed=1, journal=tmp_path / "journal")
    assert len(asked) == 79  # another seed, other texts
    rules.write_text(RULES.replace("again without wine", "again, without a drop"))
    revise(answers[:1], read_constitution(rules), reviser, journal=tmp_path / "journal")
    assert len(asked) == 80  # other principles, too


def test_the_journal_knows_whose_texts_it_has(tmp_path: Path) -> None:
    first = Journal(tmp_path / "j", {"reviser": "a"})
    first.add([Trail("Q", "x", (Step("p", "c", "ünï\n"),))])
    assert Journal(tmp_path / "j", {"reviser": "a"}).get("Q", "x") == (Step("p", "c", "ünï\n"),)
    assert Journal(tmp_path / "j", {"reviser": "b"}).get("Q", "x") is None


# -- a language model ----------------------------------------------------------------------


class Scripted:
    """A speaker that answers by a function, and remembers what it was asked."""

    def __init__(self, reply: Callable[[str], str | Said]) -> None:
        self.name = "scripted"
        self.reply = reply
        self.asked: list[Ask] = []

    def identity(self) -> Mapping[str, Any]:
        return {"kind": "scripted"}

    def say(self, asks: Sequence[Ask], *, max_new_tokens: int) -> Iterator[tuple[int, Said]]:
        for place, ask in reversed(list(enumerate(asks))):  # in any order
            self.asked.append(ask)
            reply = self.reply(ask.text)
            yield place, reply if isinstance(reply, Said) else Said(reply)

    def weigh(self, texts: Sequence[str], answers: Sequence[str]) -> Iterator[Any]:
        raise NotImplementedError


def drafts(found: Constitution, *completions: str) -> list[Draft]:
    return [Draft("Q?", text, found.principles[0], seed=7) for text in completions]


def test_a_model_is_asked_for_a_critique_and_shown_it(rules: Path) -> None:
    document = yaml.safe_load(RULES)
    example = {"prompt": "EX?", "completion": "ex wine", "critique": "EXC", "revision": "ex tea"}
    rules.write_text(yaml.safe_dump({**document, "examples": [example]}))
    found = read_constitution(rules)

    def reply(text: str) -> str | Said:
        if "criticised" not in text:
            refused = Said(None, failure="refused", words="400: 9 tokens")
            return refused if "too long" in text else "  The wine is a fault.  "
        cut = Said("tea, or", cut=True)
        return "" if "mute" in text else cut if "endless" in text else "<think>wine?</think>tea"

    speaker = Scripted(reply)
    reviser = SpokenReviser(speaker, found, temperature=0.5)
    said = reviser.revise(drafts(found, " red wine", "too long", "mute", "endless"))
    assert said == [
        Revised(" tea", "The wine is a fault."),  # the space that the answer began with
        Revised(None, None, "refused", "400: 9 tokens"),
        Revised(None, "The wine is a fault.", "empty"),
        Revised(None, "The wine is a fault.", "cut"),  # half an answer is not to be preferred
    ]
    critiques, revisions = speaker.asked[:4], speaker.asked[4:]
    assert len(revisions) == 3  # without a critique nothing is revised
    assert all(ask.seed == 7 and ask.temperature == 0.5 for ask in speaker.asked)
    for ask in critiques:
        assert "Point out every mention of wine." in ask.text and "EXC" in ask.text
        assert "Write the answer again without wine." not in ask.text
    for ask in revisions:
        assert "Write the answer again without wine." in ask.text
        assert "The wine is a fault." in ask.text and "Revised answer: ex tea" in ask.text


def test_repeated_boundaries_are_taken_off(rules: Path) -> None:
    found = read_constitution(rules)
    speaker = Scripted(lambda text: "<<<answer 1f\ngreen\ntea\nanswer 1f>>>")
    (said,) = SpokenReviser(speaker, found).revise(drafts(found, "red wine"))
    assert said.text == "green\ntea"


def test_templates_are_files_to_edit(rules: Path, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(
        'critique: "{{ prompt }} {{ completion }} {{ request }}"\n'
        'revision: "{{ prompt }} {{ completion }} {{ request }}"\n'
    )
    rules.write_text(RULES + "instructions: own.yaml\n")
    found = read_constitution(rules)
    with pytest.raises(RecipeError, match="the template does not show critique") as caught:
        SpokenReviser(Scripted(lambda text: "x"), found)
    assert caught.value.file == str(tmp_path / "own.yaml") and caught.value.row == 2


@pytest.mark.parametrize(
    ("spec", "field"),
    [("lm", "model"), ("someone:else", "kind"), ("python:", "function"), ("http://x", "kind")],
)
def test_who_revises_must_be_said(rules: Path, spec: str, field: str) -> None:
    with pytest.raises(RecipeError) as caught:
        make_reviser(spec, read_constitution(rules))
    assert caught.value.field == f"speaker.{field}" and caught.value.remedy


# -- the command ---------------------------------------------------------------------------


def test_the_command_writes_pairs_and_goes_on(
    call: Callable[..., tuple[int, str, str]], tmp_path: Path, rules: Path, speaker: str
) -> None:
    samples = [Group(p, (Completion(text, source="runs/sft"),)) for p, text in ANSWERS]
    write_groups(tmp_path / "samples.jsonl", samples)
    out = tmp_path / "pairs.jsonl"
    line = ("revise", tmp_path / "samples.jsonl", "--constitution", rules, "--speaker", speaker,
            "--rounds", 2, "--judge", "shortest", "--out", out, "--json")  # fmt: skip
    code, text, err = call(*line)
    assert code == 0, err
    result = json.loads(text)
    assert {name: result[name] for name in ("answers", "pairs", "unchanged", "failed")} == {
        "answers": 4, "pairs": 3, "unchanged": 1, "failed": 0,
    }  # fmt: skip
    assert result["principles"]["no-wine"] == {
        "asked": 4, "changed": 2, "failed": 0, "better": 2, "worse": 0, "tied": 0, "unreadable": 0,
    }  # fmt: skip
    groups = list(read_groups([str(out)]))
    assert len(groups) == 3 and groups[0].completions[1].source == "runs/sft"
    before = out.read_bytes()
    Path(speaker.split(":")[1]).with_name("used").touch()
    assert call(*line)[1] == text and out.read_bytes() == before
    assert (tmp_path / "pairs.revisions").exists()
    code, text, _ = call(*line[:-1])
    assert code == 0 and "Revised 3 of 4 answers." in text


def test_the_command_refuses_what_it_cannot_do(
    call: Callable[..., tuple[int, str, str]], tmp_path: Path, rules: Path, speaker: str
) -> None:
    write_groups(tmp_path / "s.jsonl", [Group("Q", (Completion("x"),))])
    common = ["revise", tmp_path / "s.jsonl", "--speaker", speaker]
    for more, message in (
        (["--constitution", tmp_path / "no.yaml", "--out", tmp_path / "o.jsonl"], "no such const"),
        (["--constitution", rules, "--out", tmp_path / "s.jsonl"], "would be lost"),
        (["--constitution", rules, "--out", tmp_path / "o.txt"], "the name must end with"),
        (["--constitution", rules, "--out", tmp_path / "o.jsonl", "--rounds", 0], "rounds"),
        (
            ["--constitution", rules, "--out", tmp_path / "o.jsonl", "--judge", "nobody"],
            "no such j",
        ),
    ):
        code, _, err = call(*common, *more)
        assert code == 2 and message in " ".join(err.split()), err


def test_a_model_on_this_machine_revises(
    call: Callable[..., tuple[int, str, str]], tmp_path: Path, rules: Path, tiny_policy_folder: Path
) -> None:
    """A model with random weights writes nonsense, which is what a revision then is."""
    chat = Group((Message("user", "Name a colour."),), (Completion("Blue wine."),))
    write_groups(tmp_path / "s.jsonl", [chat])
    small = tmp_path / "small.yaml"
    shown = "{{ prompt }}{{ completion }}{{ request }}"
    small.write_text(yaml.safe_dump({"critique": shown, "revision": shown + "{{ critique }}"}))
    rules.write_text(RULES + "instructions: small.yaml\n")
    line = ("revise", tmp_path / "s.jsonl", "--constitution", rules, "--max-new-tokens", 8,
            "--speaker", f"lm:{tiny_policy_folder}", "--out", tmp_path / "p.jsonl",
            "--device", "cpu", "--json")  # fmt: skip
    code, text, err = call(*line)
    assert code == 0, err
    result = json.loads(text)
    assert result["pairs"] + result["unchanged"] == 1
    assert sum(counts["asked"] for counts in result["principles"].values()) == 1


# -- as a judge ----------------------------------------------------------------------------


def test_principles_judge_and_their_weighted_mean_counts(rules: Path) -> None:
    judge = make_judge(f"constitution:{rules}")
    assert isinstance(judge, Judge) and judge.name == f"constitution:{rules}"
    verdict = compare(judge, "Q", "red wine thanks", "tea")
    assert verdict.transcript["principles"] == {"no-wine": 0.0, "polite": 1.0}
    assert verdict.probability == pytest.approx(0.75)
    assert compare(judge, "Q", "tea", "milk").probability == 0.5
    assert score(judge, "Q", "red wine thanks") == pytest.approx((-1 + 3 * 1) / 4)
    verdicts = judge.compare_all(
        [Question("Q", "red wine thanks", "tea"), Question("Q", "tea", "wine")]
    )
    assert principle_counts(verdicts) == {
        "no-wine": {"second": 1, "first": 1, "decided_otherwise": 1},
        "polite": {"first": 1, "neither": 1},
    }


def test_another_weight_is_another_judge(rules: Path) -> None:
    before = make_judge(f"constitution:{rules}").identity()
    rules.write_text(RULES.replace("weight: 3", "weight: 2"))
    assert make_judge(f"constitution:{rules}").identity() != before


def test_what_one_principle_cannot_read_the_others_decide() -> None:
    class Mute:
        name, sees_order = "mute", False

        def identity(self) -> Mapping[str, Any]:
            return {}

        def compare_all(self, questions: Any, progress: Any = None) -> list[Verdict]:
            return [Verdict(None, order_consistent=False) for _ in questions]

        def score_all(self, answers: Any, progress: Any = None) -> list[float | None]:
            return [None for _ in answers]

    told: list[tuple[int, int]] = []
    both = ByPrinciples(
        "c", {"mute": Mute(), "long": make_judge("longest")}, {"mute": 5, "long": 1}
    )
    (verdict,) = both.compare_all([Question("Q", "aa", "b")], lambda *of: told.append(of))
    assert verdict.probability == 1.0 and verdict.order_consistent is False
    assert verdict.transcript["principles"] == {"mute": None, "long": 1.0}
    assert both.score_all([("Q", "aa")]) == [None]
    alone = ByPrinciples("c", {"mute": Mute()}, {"mute": 1.0})
    assert compare(alone, "Q", "aa", "b").probability is None


def test_a_principle_without_a_judge_needs_a_model(rules: Path) -> None:
    rules.write_text(RULES.replace("    judge: pattern:wine\n", ""))
    with pytest.raises(RecipeError, match="nobody judges by the principle 'no-wine'"):
        make_judge(f"constitution:{rules}")
    with pytest.raises(RecipeError, match="a judge of kind longest reads no principles"):
        make_judge({"kind": "constitution", "file": str(rules), "judge": "longest"})
    rules.write_text(RULES)
    with pytest.raises(RecipeError, match="judge has no effect: every principle has its own"):
        make_judge({"kind": "constitution", "file": str(rules), "judge": "lm:x"})


def test_a_model_reads_each_principle_in_both_orders(
    rules: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model prefers the answer without wine where wine is asked about, else the first."""
    rules.write_text(
        RULES.replace("    judge: pattern:wine\n", "    question: 'No {{ wine }} {% raw %}?'\n")
        .replace("    judge: {kind: pattern, patterns: [thanks], prefer: with}\n", "")
    )  # fmt: skip

    def reply(text: str) -> str:
        if "No {{ wine }} {% raw %}?" not in text:
            return "I like the first. [[A]]"
        first, second = re.findall(r"<<<answer [AB] \w+\n(.*?)\n", text)
        return "[[C]]" if ("wine" in first) == ("wine" in second) else (
            "[[B]]" if "wine" in first else "[[A]]")  # fmt: skip

    speaker, loaded = Scripted(reply), list[str]()

    def load(model: str, **options: Any) -> Scripted:
        loaded.append(model)
        return speaker

    monkeypatch.setattr("prefopt.judges.speakers.local_speaker", load)
    judge = make_judge({"kind": "constitution", "file": str(rules), "judge": "lm:runs/judge"})
    verdict = compare(judge, "Q", "red wine", "tea")
    assert loaded == ["runs/judge"]  # once for both principles
    assert verdict.transcript["principles"] == {"no-wine": 0.0, "polite": 0.5}
    assert verdict.probability == pytest.approx(0.375)
    assert verdict.order_consistent is False  # the one that likes what it sees first
    assert len(speaker.asked) == 4 and "no-wine: [[B]]" in str(verdict.rationale)
    assert isinstance(judge._principles["polite"], LanguageJudge)  # type: ignore[attr-defined]
