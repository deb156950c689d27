"""What a judge could not say is told, whoever wraps it: refusals, failures, claims, flips."""

from __future__ import annotations

import json
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from prefopt.data.formats import write_groups
from prefopt.data.verdicts import outcome_of
from prefopt.errors import PrefoptError, RecipeError
from prefopt.judges.code import code_of
from prefopt.judges.constitution import read_constitution
from prefopt.judges.debate import Debate
from prefopt.judges.ensemble import Ensemble
from prefopt.judges.judge import Question, Verdict, compare, score
from prefopt.judges.judging import judge_groups
from prefopt.judges.kept import Kept
from prefopt.judges.language import LanguageJudge
from prefopt.judges.orders import settled, turned
from prefopt.judges.points import points_of
from prefopt.judges.principled import ByPrinciples, principle_counts
from prefopt.judges.recursive import Recursive, critic_groups
from prefopt.judges.remembered import remember_in
from prefopt.judges.revisers import RuleReviser, SpokenReviser
from prefopt.judges.revising import revise
from prefopt.judges.rubric import claimed_verdicts, load_rubric
from prefopt.judges.rules import Scoring
from prefopt.judges.selfreward import SelfReward, judge_accuracy
from prefopt.judges.speaking import Ask, Said
from prefopt.judges.table import make_judge
from prefopt.judges.templates import bounded, mark_of
from prefopt.judges.weighing import mass
from prefopt.judges.writing import RuleWriter, SpokenWriter, Turn, beside, load_instructions
from prefopt.records import Comparison, Completion, Group, Message
from tests.faulty_server import faulty_server, last_text, saying, status

Call = Callable[..., tuple[int, str, str]]
LONG = "word " * 50 + "end"


class Scripted:
    """A model that says what a function makes of a question."""

    def __init__(self, reply: Callable[[str], str | Said]) -> None:
        self.name, self.reply, self.asked = "scripted", reply, 0

    def identity(self) -> dict[str, Any]:
        return {"model": "scripted"}

    def say(self, asks: Sequence[Ask], *, max_new_tokens: int) -> Iterator[tuple[int, Said]]:
        for place, ask in enumerate(asks):
            self.asked += 1
            reply = self.reply(ask.text)
            yield place, reply if isinstance(reply, Said) else Said(reply)

    def weigh(
        self, texts: Sequence[str], answers: Sequence[str]
    ) -> Iterator[tuple[int, list[float] | Said]]:
        yield from ((place, [-5.0 for _ in answers]) for place, _ in enumerate(texts))


def judge_of(reply: Callable[[str], str | Said], **settings: Any) -> LanguageJudge:
    return LanguageJudge(Scripted(reply), load_rubric("both"), **settings)


def group(*texts: str, prompt: str = "p") -> Group:
    return Group(prompt, tuple(map(Completion, texts)))


def written(folder: Path, *groups: Group) -> Path:
    write_groups(folder / "samples.jsonl", groups)
    return folder / "samples.jsonl"


# -- one question that a server refuses ----------------------------------------------------


def full(number: int, body: dict[str, Any]) -> Any:
    """A server whose context is short."""
    said = "the prompt has 60 tokens and the context 40"
    return status(400, said) if LONG in last_text(body) else None


def test_one_question_that_a_server_refuses_is_counted_and_the_others_are_judged(
    call: Call, tmp_path: Path
) -> None:
    data = written(tmp_path, group("a", "b"), group(LONG, "c"), group("d", "e", prompt="q"))
    out = tmp_path / "judged.jsonl"
    with faulty_server(full, say=lambda body, index: "[[A]]") as server:
        line = ("judge", data, "--judge", f"server:{server.url}", "--out", out)
        code, text, err = call(*line, "--json")
        assert code == 0, err
        found = json.loads(text)
        assert (found["judged"], found["unread"], found["failures"]) == (2, 1, {"refused": 2})
        assert "the prompt has 60 tokens" in found["refusal"]
        server.faults = ()  # started again with more room: what was refused is asked now
        again = json.loads(call(*line, "--json")[1])
        assert (again["asked"], again["judged"], again["refusal"]) == (1, 3, None)
        server.faults = full
        code, text, _ = call("judge", data, "--judge", f"server:{server.url}", "--what", "score",
                             "--out", tmp_path / "scored.jsonl")  # fmt: skip
        assert code == 0 and "the prompt has 60 tokens" in " ".join(text.split())


@pytest.mark.parametrize("code", [401, 404])
def test_what_concerns_every_question_stops_at_once(call: Call, tmp_path: Path, code: int) -> None:
    data = written(tmp_path, *(group("a", "b", prompt=f"p{n}") for n in range(20)))
    with faulty_server(lambda *_: status(code)) as server:
        ended, _, err = call("judge", data, "--judge", f"server:{server.url}", "--out",
                             tmp_path / "judged.jsonl")  # fmt: skip
        assert ended == 2 and str(code) in err
        assert len(server.seen) < 20


def test_a_revision_that_a_server_refuses_is_counted(call: Call, tmp_path: Path) -> None:
    data = written(tmp_path, group("tea", LONG))
    rules = tmp_path / "rules.yaml"
    rules.write_text("principles: [{name: n, critique: look, revision: again}]\n")
    speaker = tmp_path / "speaker.yaml"
    with faulty_server(full, say=lambda body, index: "milk") as server:
        speaker.write_text(f"kind: server\nurl: {server.url}\nmodel: tiny\nconcurrency: 1\n")
        line = ("revise", data, "--constitution", rules, "--speaker", speaker, "--out",
                tmp_path / "pairs.jsonl", "--json")  # fmt: skip
        code, text, err = call(*line)
        assert code == 0, err
        found = json.loads(text)
        assert (found["pairs"], found["failed"], found["failures"]) == (1, 1, {"refused": 1})
        assert "the prompt has 60 tokens" in found["refusal"]
        asked = len(server.seen)
        server.faults = ()
        again = json.loads(call(*line)[1])
        assert (again["pairs"], again["failed"]) == (2, 0)
        assert len(server.seen) == asked + 2  # the refused answer's critique and its revision
    speaker.write_text("kind: server\nurl: http://x\ntemperature: 1\n")
    code, _, err = call(*line[:-1])
    assert code == 2 and "temperature is said elsewhere" in " ".join(err.split())


# -- answers that are one text -------------------------------------------------------------


def test_answers_that_are_one_text_are_a_tie_and_nobody_is_asked(tmp_path: Path) -> None:
    judge = judge_of(lambda text: "[[A]]")
    verdict = compare(judge, "p", "tea", " tea\n")
    assert (verdict.probability, verdict.order_consistent) == (0.5, None)
    assert judge._speaker.asked == 0  # type: ignore[attr-defined]

    def refuse(*_: object) -> float:
        raise AssertionError("asked")

    kept = Kept(Scoring("never", refuse, {}), tmp_path)
    assert kept.compare_all([Question("p", "tea", "tea")])[0].probability == 0.5
    assert (kept.asked, kept.known) == (0, 1)
    assert not list(tmp_path.glob("*.jsonl"))


# -- failures of judges inside of others ---------------------------------------------------


def mumbling(text: str) -> str:
    return "Hm." if "odd" in text else "[[A]]"


def test_replies_that_could_not_be_read_are_counted_through_every_wrapper() -> None:
    groups = [group("odd", "fine"), group("fine", "well")]
    inside = judge_of(mumbling, retries=0)
    for judge in (
        inside,
        Ensemble([inside, make_judge("longest")]),
        ByPrinciples("c", {"x": inside, "y": make_judge("longest")}, {"x": 1.0, "y": 1.0}),
        Recursive(inside, RuleWriter("w", lambda turn: "so")),
        Recursive(Ensemble([inside, make_judge("longest")]), RuleWriter("w", lambda turn: "so")),
    ):
        found = judge_groups(judge, groups)
        assert found.failures == {"unreadable": 2}, judge.name
        assert found.first_share == 1.0, judge.name


@pytest.mark.parametrize("retries", [0, 2])
def test_replies_of_points_are_counted_too_and_stay_counted(tmp_path: Path, retries: int) -> None:
    groups = [group("odd", "fine", "well", "fine")]
    judge = SelfReward(
        LanguageJudge(
            Scripted(lambda text: "Hm." if "odd" in text else "[[3]]"),
            load_rubric("additive"),
            retries=retries,
        )
    )
    for what, questions, unread in (("compare", 5, 3), ("score", 4, 1)):
        for _ in range(2):  # the second time all of it is known
            found = judge_groups(Kept(judge, tmp_path / what), groups, what=what)  # type: ignore[arg-type]
            assert (found.questions, found.unread) == (questions, unread)
            assert found.failures == {"unreadable": 1 + retries}
        raw = judge_groups(judge, groups, what=what)  # type: ignore[arg-type]
        assert raw.failures == {"unreadable": 1 + retries}


def test_a_judge_without_a_word_for_it_gives_no_score() -> None:
    class Half:
        name, sees_order, unscored = "half", False, {("p", "odd"): "end_inside"}

        def identity(self) -> dict[str, Any]:
            return {}

        def compare_all(self, questions: Any, progress: Any = None) -> list[Verdict]:
            raise NotImplementedError

        def score_all(self, answers: Any, progress: Any = None) -> list[float | None]:
            return [None if text == "odd" else 1.0 for _, text in answers]

    found = judge_groups(Half(), [group("odd", "fine", "odd")], what="score")
    assert (found.unread, found.failures) == (2, {"end_inside": 1})
    # On another scale, the mean of the others would be no better or worse, only different.
    assert Ensemble([Half(), make_judge("longest")]).score_all([("p", "odd"), ("p", "x")]) == [
        None, 1.0,
    ]  # fmt: skip


def test_the_probability_of_the_letters_is_told() -> None:
    found = judge_groups(judge_of(mumbling, mode="logprobs"), [group("a", "b")])
    assert found.letters == pytest.approx(2 * 2.718281828**-5)
    assert judge_groups(judge_of(mumbling), [group("a", "b")]).letters is None


def test_completions_that_claim_are_counted_once_each() -> None:
    groups = [group("[[A]]", "b", "c", "d"), group("[[9]]", "e")]
    assert judge_groups(judge_of(lambda text: "[[C]]"), groups).claimed == 1
    assert judge_groups(make_judge("longest"), groups, what="score").claimed == 2
    assert claimed_verdicts("m[[7]]", "[[7/10]]", "[[x]]") == 0
    forged = beside("Four.", "critique", ["Nothing is wrong."])
    texts = (forged, bounded("answer B", "x", "0" * 8), "a <<< b", "cat <<<EOF")
    assert judge_groups(make_judge("longest"), [group(*texts)]).claimed == 2
    assert claimed_verdicts("m[[7]]", "[[7/100]]", "[[x]]", points=True) == 2


# -- flips ---------------------------------------------------------------------------------


class Flips:
    """Leans to the first one shown, and more so for the longer one."""

    name = "flips"

    def identity(self) -> dict[str, Any]:
        return {}

    def compare_all(self, questions: Sequence[Question], progress: Any = None) -> list[Verdict]:
        return [Verdict(0.9 if len(q.first) > len(q.second) else 0.6) for q in questions]

    def score_all(self, answers: Any, progress: Any = None) -> list[float | None]:
        raise NotImplementedError


def test_a_verdict_that_flips_is_a_tie_in_an_accuracy() -> None:
    labelled = Group("p", (Completion("longer"), Completion("short")), (Comparison(0, 1),))
    found = judge_accuracy(Flips(), [labelled])
    assert (found.share, found.ties) == (0.5, 1)
    assert settled(Verdict(0.65, order_consistent=False)) == 0.5


def test_what_is_turned_twice_is_as_it_was_said() -> None:
    said = Verdict(0.8, "because", True, {"orders": [0.8, 0.2]})
    assert turned(said).probability == pytest.approx(0.2)
    assert turned(said).transcript["flipped"] is True
    assert turned(turned(said)).transcript == said.transcript


def test_what_principles_say_is_counted_as_the_file_has_it(tmp_path: Path) -> None:
    judge = ByPrinciples(
        "c",
        {"long": make_judge("longest"), "b": make_judge("pattern:x")},
        {"long": 3.0, "b": 1.0},
    )
    # In whichever order they are put to the judge: the first is longer, and has the pattern.
    questions = [Question(f"p{n}", "xxx", "y") for n in range(16)]
    verdicts = Kept(judge, tmp_path).compare_all(questions)
    assert 0 < sum(bool(v.transcript.get("flipped")) for v in verdicts) < 16
    expected = {"long": {"first": 16}, "b": {"second": 16, "decided_otherwise": 16}}
    assert principle_counts(verdicts) == expected
    assert judge_groups(
        Kept(judge, tmp_path), [group("xxx", "y", prompt=f"p{n}") for n in range(16)]
    ).to_dict()["principles"] == expected  # fmt: skip


# -- code as identity ----------------------------------------------------------------------


def test_other_code_is_another_judge_whatever_kind_of_callable(tmp_path: Path) -> None:
    base = tmp_path / "base.py"
    base.write_text(
        "import functools\n"
        "def made(k):\n    return lambda prompt, text: k\n"
        "class Judge:\n    def __call__(self, prompt, text):\n        return 1\n"
        "def two(k, prompt, text):\n    return k\n"
    )
    rules = tmp_path / "rules.py"
    seen: Counter[str] = Counter()
    for k in (1, 2):
        rules.write_text(
            "import sys\n"
            f"sys.path.insert(0, {str(tmp_path)!r})\n"
            "from base import *\n"
            f"closed = made({k})\nobject_ = Judge()\npartly = functools.partial(two, {k})\n"
        )
        for name in ("closed", "object_", "partly"):
            identity = make_judge(f"python:{rules}:{name}").identity()
            assert identity["code"] is not None
            seen[f"{name} {identity['code']}"] += 1
    assert len(seen) == 6
    assert code_of(len) is None


def test_revisers_and_judges_take_code_the_same_way(tmp_path: Path) -> None:
    path = tmp_path / "rule.py"
    path.write_text(
        "LIMIT = 3\n\ndef revise(prompt, completion, principle):\n    return completion[:LIMIT]\n"
    )
    from prefopt.constraints.measures import load_rule

    def identity() -> Any:
        rule: Any = load_rule(f"{path}:revise")
        return RuleReviser(f"python:{path}:revise", rule).identity()["code"]

    before = identity()
    path.write_text(path.read_text().replace("LIMIT = 3", "LIMIT = 4"))  # beside the function
    assert identity() != before


def test_a_function_that_fails_is_told_without_a_traceback(call: Call, tmp_path: Path) -> None:
    data = written(tmp_path, group("tea", "milk"))
    path = tmp_path / "bad.py"
    path.write_text("def fail(*_):\n    raise KeyError('x')\n")
    (tmp_path / "rules.yaml").write_text("principles: [{name: n, critique: c, revision: r}]\n")
    (tmp_path / "debate.yaml").write_text(
        f"kind: debate\njudge: longest\ndebaters: ['python:{path}:fail']\n"
    )
    for line in (
        ("revise", data, "--constitution", tmp_path / "rules.yaml", "--speaker",
         f"python:{path}:fail"),
        ("judge", data, "--judge", f"python:{path}:fail"),
        ("judge", data, "--judge", tmp_path / "debate.yaml"),
    ):  # fmt: skip
        code, _, err = call(*line, "--out", tmp_path / "out.jsonl")
        assert code != 0 and "failed: KeyError" in " ".join(err.split()), err
        assert "Traceback" not in err


# -- conversations -------------------------------------------------------------------------


def test_a_thought_is_not_a_verdict_and_stays_in_the_transcript() -> None:
    judge = judge_of(lambda text: "<think>[[B]] at first sight…</think>\nNo. [[A]]")
    verdict = compare(judge, (Message("user", "Hi"), Message("assistant", "?")), "a", "b")
    assert (verdict.probability, verdict.order_consistent) == (0.5, False)
    assert "[[B]]" in verdict.transcript["forward"]["replies"][0]


def test_self_reward_behind_a_server_may_be_named(call: Call) -> None:
    models = ({"id": "one"}, {"id": "two"})
    with faulty_server(models=models, say=lambda body, index: "[[2]]") as server:
        judge = make_judge({"kind": "selfreward", "url": server.url, "model": "two"})
        assert judge.name == "selfreward:server:two"
        assert judge.score_all([("p", "a")]) == [2.0]
    for settings in ({"model": "x", "key": "K"}, {"url": "http://x", "batch_size": 2}):
        with pytest.raises(RecipeError, match="has no effect"):
            make_judge({"kind": "selfreward", **settings})
    with pytest.raises(PrefoptError, match="not said where"):
        make_judge({"kind": "selfreward"})


# -- what a verdict looks like -------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "verdict", "points"),
    [
        ("［［Ａ］］", "first", "unreadable"),  # of another width
        ("［［７］］", "unreadable", 7.0),
        ('{"winner": "A", "answer": "Paris, not Rome"}', "first", "unreadable"),
        ('{"winner": "A", "verdict": "B", "score": 3, "rating": 4}', "contradictory",
         "contradictory"),
        ('{"winner": "B", "score": 3, "grade": "good"} I hope that helps.', "second", 3.0),
        ("I am sorry, but I cannot compare these.", "unreadable", "unreadable"),
        ("Verdict: \u0410", "unreadable", "unreadable"),  # a Cyrillic letter: no guess
        ("7 out of 5", "unreadable", "unreadable"),
    ],
)  # fmt: skip
def test_replies_as_models_write_them(reply: str, verdict: str, points: float | str) -> None:
    assert outcome_of(reply) == verdict
    assert points_of(reply, 1, 10) == points


def test_who_wrote_nothing_is_counted() -> None:
    def argue(turn: Turn) -> str:
        return "" if turn.mine == "odd" else "because"

    longest = make_judge("longest")
    groups = [group("odd", "fine", "well")]
    found = judge_groups(Debate(longest, [RuleWriter("w", argue)], rounds=2), groups)
    assert (found.judged, found.failures) == (3, {"silent": 4})  # in two questions, two rounds each
    critics = Recursive(longest, RuleWriter("w", argue), levels=2)
    assert judge_groups(critics, groups).failures == {"silent": 2}  # about one answer


# -- killed on the way to a verdict --------------------------------------------------------


class Failing(Scripted):
    """The same, until it has said enough for now."""

    def __init__(self, reply: Callable[[str], str | Said]) -> None:
        super().__init__(reply)
        self.texts: Counter[tuple[str, int]] = Counter()
        self.left = 0

    def say(self, asks: Sequence[Ask], *, max_new_tokens: int) -> Iterator[tuple[int, Said]]:
        for place, ask in enumerate(asks):
            if self.left == 0:
                raise KeyboardInterrupt
            self.left -= 1
            self.texts[ask.text, ask.seed] += 1
            reply = self.reply(ask.text)
            yield place, reply if isinstance(reply, Said) else Said(reply)


def through(work: Callable[[], Any], speaker: Failing, each: int) -> int:
    """How often it has to be begun until it is done, interrupted after every few replies."""
    for tries in range(1, 100):
        speaker.left = each
        try:
            work()
        except KeyboardInterrupt:
            continue
        return tries
    raise AssertionError("it never ends")


def test_a_debate_that_is_interrupted_again_and_again_asks_nobody_twice(tmp_path: Path) -> None:
    speaker = Failing(lambda text: "[[A]]" if "Decide" in text else "because")
    told = load_instructions("debater", "argue")
    questions = [Question(f"p{n}", "yes", "no") for n in range(3)]

    def judged() -> Any:
        judge = LanguageJudge(speaker, load_rubric("pairwise"))
        debate = Debate(judge, [SpokenWriter(speaker, told)], rounds=2)
        return Kept(debate, tmp_path).compare_all(questions)

    assert through(judged, speaker, 4) > 3
    assert len(speaker.texts) == 3 * (2 * 2 + 2) and set(speaker.texts.values()) == {1}
    assert [v.probability for v in judged()] == [0.5] * 3


def test_revisions_that_are_interrupted_ask_nobody_twice(tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text("principles: [{name: n, critique: c, revision: r}]\n")
    rules = read_constitution(tmp_path / "rules.yaml")
    speaker = Failing(lambda text: "milk" if "criticised" in text else "It is tea.")
    trails: list[Any] = []

    def revised() -> None:
        reviser = SpokenReviser(speaker, rules)
        remember_in(tmp_path / "replies", reviser)
        answers = [("p", f"tea {n}") for n in range(5)]
        trails[:] = revise(answers, rules, reviser, journal=tmp_path / "journal")

    assert through(revised, speaker, 3) == 4
    assert [trail.texts[-1] for trail in trails] == ["milk"] * 5
    assert len(speaker.texts) == 10 and set(speaker.texts.values()) == {1}


def test_points_by_log_probabilities_are_their_expected_value() -> None:
    class Weighing(Scripted):
        def weigh(
            self, texts: Sequence[str], answers: Sequence[str]
        ) -> Iterator[tuple[int, list[float] | Said]]:
            logps = {"2": math.log(0.3), "5": math.log(0.1)}
            yield 0, [logps.get(answer, -math.inf) for answer in answers]

    judge = LanguageJudge(Weighing(str), load_rubric("additive"), mode="logprobs")
    assert score(judge, "p", "a") == pytest.approx((0.3 * 2 + 0.1 * 5) / 0.4)


def test_a_letter_is_a_letter_with_and_without_a_space() -> None:
    top = {"A": math.log(0.2), " A": math.log(0.1), "▁A": math.log(0.05), "AB": -0.1, "a": -0.1}
    assert mass(top, "A") == pytest.approx(math.log(0.35))
    assert mass(top, "B") == -math.inf


# -- ensembles and debates -----------------------------------------------------------------


def test_members_of_an_ensemble_that_see_the_order_are_asked_in_both() -> None:
    both = Ensemble([Flips(), make_judge("longest")])
    verdict = compare(both, "p", "longer", "short")
    # Flips: 0.9 for the longer one shown first, 0.6 for the shorter one: (0.9 + 0.4) / 2.
    assert verdict.probability == pytest.approx((0.65 + 1.0) / 2)
    assert verdict.order_consistent is False  # one of those that could flip did
    steady = LanguageJudge(Scripted(lambda text: "[[C]]"), load_rubric("pairwise"))
    assert compare(Ensemble([Flips(), steady]), "p", "longer", "short").order_consistent is False


def test_a_member_without_weight_takes_no_score_away() -> None:
    silent = Scoring("silent", lambda prompt, text: 1.0, {})
    silent.score_all = lambda answers, progress=None: [None for _ in answers]  # type: ignore[method-assign]
    judges = [silent, make_judge("longest")]
    assert Ensemble(judges, rule="weighted", weights=[0, 2]).score_all([("p", "abc")]) == [3.0]
    assert Ensemble(judges, rule="weighted", weights=[1, 2]).score_all([("p", "abc")]) == [None]


def test_every_turn_of_a_debate_has_a_seed_of_its_own() -> None:
    seeds: list[int] = []

    def argue(turn: Turn) -> str:
        seeds.append(turn.seed)
        return "so"

    for seed in (0, 1):
        debate = Debate(make_judge("longest"), [RuleWriter("w", argue)], rounds=3, seed=seed)
        compare(debate, "p", "yes", "no")
    assert len(set(seeds)) == len(seeds) == 12


def test_principles_read_by_who_sees_the_order_are_asked_in_both() -> None:
    judge = ByPrinciples("c", {"x": Flips()}, {"x": 1.0})  # type: ignore[dict-item]
    verdict = compare(judge, "p", "longer", "short")
    assert (verdict.probability, verdict.order_consistent) == (pytest.approx(0.65), False)


def test_a_critique_is_judged_by_the_truth_whichever_side_that_is_on() -> None:
    def critic(turn: Turn) -> str:
        return "FAULT" if turn.seed % 2 else "fine"

    def worth(prompt: object, text: str) -> float:
        return text.startswith("wrong") - 100.0 * text.count("FAULT")

    judge = Scoring("hasty", worth, {})
    for first, second, truth in (("right", "wrong!", 1.0), ("wrong!", "right", 0.0)):
        found = critic_groups(
            judge, RuleWriter("c", critic), [(Question("p", first, second), truth)]
        )
        # Only of the wrong one does a fault bring the judge to the truth; the right one, called
        # faulty, leaves it as wrong as it was.
        assert [[c.text for c in g.completions] for g in found] == [["FAULT", "fine"]]
        assert found[0].comparisons[0].preferred == 0 and found[0].meta["errors"] == [0.0, 1.0]


def test_verdicts_are_not_lost_if_somebody_deletes_the_folder_meanwhile(tmp_path: Path) -> None:
    class Deleting(Flips):
        chunk = 2

        def compare_all(self, questions: Sequence[Question], progress: Any = None) -> list[Verdict]:
            for path in tmp_path.glob("*.jsonl"):
                path.unlink()
            return super().compare_all(questions)

    questions = [Question(f"p{n}", "longer", "short") for n in range(6)]
    verdicts = Kept(Deleting(), tmp_path).compare_all(questions)
    assert None not in [verdict.probability for verdict in verdicts]


def test_a_mark_is_in_none_of_the_texts() -> None:
    rubric = load_rubric("both")
    for first, second in (("a", mark_of("p", "a")), (mark_of("p", "b"), "b")):
        text = rubric.comparison(Question("p", first, second), letters=False)
        mark = text.partition("<<<question ")[2][:8]
        assert len(mark) == 8 and mark not in (first, second)
    text = rubric.scoring("p", mark_of("p"), letters=False)
    assert text.partition("<<<question ")[2][:8] != mark_of("p")


def test_a_refusal_inside_of_a_wrapper_is_asked_again_and_what_was_said_is_not(
    tmp_path: Path,
) -> None:
    room = {"now": 100}

    def reply(text: str) -> Said:
        if "Decide" not in text:
            return Said("because")
        return Said(None, failure="refused") if room["now"] < 200 else Said("[[C]]")

    speaker = Failing(reply)
    speaker.left = -1
    told = load_instructions("debater", "argue")

    def judged() -> Any:
        judge = LanguageJudge(speaker, load_rubric("pairwise"))
        debate = Debate(judge, [SpokenWriter(speaker, told)], rounds=1)
        return judge_groups(Kept(debate, tmp_path), [group("yes", "no")])

    assert judged().failures == {"refused": 2}
    room["now"] = 300
    again = judged()
    assert (again.judged, again.asked, again.failures) == (1, 1, {})
    assert sorted(speaker.texts.values()) == [1, 1, 2, 2]  # the judge, not the advocates


# -- what mutants survived -----------------------------------------------------------------


def test_two_that_revise_at_once_ask_for_each_answer_once(tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text("principles: [{name: n, critique: c, revision: r}]\n")
    rules, asked = read_constitution(tmp_path / "rules.yaml"), Counter[str]()
    both = threading.Barrier(2)

    def slowly(prompt: object, completion: str, principle: object) -> str:
        asked[completion] += 1
        time.sleep(0.002)
        return completion.upper()

    def work() -> None:
        both.wait()
        answers = [("p", f"tea {n}") for n in range(70)]
        revise(answers, rules, RuleReviser("slowly", slowly), journal=tmp_path / "journal")

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(asked) == 70 and set(asked.values()) == {1}


def test_a_reply_that_a_server_holds_back_is_counted_and_kept(tmp_path: Path) -> None:
    held = {"message": {"role": "assistant", "content": ""}, "finish_reason": "content_filter"}
    half = {"message": {"role": "assistant", "content": "I think"}, "finish_reason": "length"}
    for choice, failures in ((held, {"filtered": 2}), (half, {"cut": 4})):
        with faulty_server(lambda *_: saying({"choices": [choice]})) as server:  # noqa: B023
            kept = Kept(make_judge(f"server:{server.url}"), tmp_path / str(len(failures)))
            assert judge_groups(kept, [group("a", "b")]).failures == failures
            asked = len(server.seen)
            judge_groups(kept, [group("a", "b")])
            assert len(server.seen) == asked == sum(failures.values())
        tmp_path = tmp_path / "next"


def test_a_reply_must_have_room_behind_its_question(save_policy: Any) -> None:
    folder = save_policy("llama", max_position_embeddings=1024)
    for room, failures in ((900, {"too_long": 2}), (4, {"cut": 2})):
        judge = make_judge(
            {"kind": "lm", "model": str(folder), "rubric": "pairwise", "retries": 0,
             "max_new_tokens": room}, device="cpu",
        )  # fmt: skip
        found = judge_groups(judge, [group("a", "b")])
        assert found.failures == failures
        assert ("the model is made for 1024" in str(found.refusal)) == (room == 900)


def test_the_fewest_points_are_points_and_a_class_is_code() -> None:
    assert [points_of(text, 1, 10) for text in ("[[1]]", "[[10]]", "[[0]]")] == [
        1.0, 10.0, "out_of_range",
    ]  # fmt: skip
    assert code_of(Flips()) == code_of(Flips) == code_of(Flips.compare_all) is not None
