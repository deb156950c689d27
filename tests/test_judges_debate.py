"""Debate, consultancy and critics, on a world where who is right is known.

The toy of evidence: y is 1 or −1, twenty items of evidence are drawn from N(y/4, 1), and whoever
decides may see 2k of them. The expected figures are those of 200,000 draws in NumPy, without this
code.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prefopt.data.worlds import EnumerableWorld
from prefopt.errors import DataError, RecipeError
from prefopt.judges.debate import Debate
from prefopt.judges.judge import Progress, Question, Verdict, compare, score
from prefopt.judges.kept import Kept
from prefopt.judges.orders import swapped
from prefopt.judges.recursive import Recursive, critic_groups
from prefopt.judges.rules import Comparing, Scoring
from prefopt.judges.table import make_judge
from prefopt.judges.writing import RuleWriter, Turn, beside, load_instructions
from prefopt.records import Prompt

POSITIVE, NEGATIVE = "y is positive", "y is negative"
_SHOWN = re.compile(r"item (\d+): (-?[\d.]+)")


def evidence(prompt: Prompt) -> list[float]:
    """The items of a question, which only debaters read."""
    rng = random.Random(str(prompt))
    sign = 1 if str(prompt).endswith("+") else -1
    return [rng.gauss(0.25 * sign, 1.0) for _ in range(20)]


def questions(count: int) -> list[Question]:
    """Half of them positive; in half of them the right answer comes first."""
    found = []
    for number in range(count):
        prompt = f"case {number} {'+-'[number % 2]}"
        question = Question(prompt, POSITIVE, NEGATIVE)
        found.append(question if number % 4 < 2 else swapped(question))
    return found


def truth(question: Question) -> float:
    right = POSITIVE if str(question.prompt).endswith("+") else NEGATIVE
    return float(question.first == right)


def told(items: Sequence[tuple[int, float]]) -> str:
    return "; ".join(f"item {number}: {value:.6f}" for number, value in items)


def best(k: int) -> Callable[[Turn], str]:
    """Shows the k items that speak most for one's side and were not shown yet."""

    def argue(turn: Turn) -> str:
        sign = 1 if turn.mine == POSITIVE else -1
        shown = {int(n) for text in turn.said for n, _ in _SHOWN.findall(text)}
        items = [item for item in enumerate(evidence(turn.prompt)) if item[0] not in shown]
        return told(sorted(items, key=lambda item: -sign * item[1])[:k])

    return argue


def at_random(k: int) -> Callable[[Turn], str]:
    """Shows k items drawn blindly, others for each side."""

    def argue(turn: Turn) -> str:
        drawn = random.Random(f"{turn.prompt}").sample(
            list(enumerate(evidence(turn.prompt))), 2 * k
        )
        return told(drawn[:k] if turn.mine == POSITIVE else drawn[k:])

    return argue


def weigh(prompt: Prompt, first: str, second: str) -> float:
    """Adds up the items that were shown, each once: it knows nothing else."""
    items = dict(_SHOWN.findall(f"{first}\n{second}"))
    total = sum(map(float, items.values()))
    says_first = first.startswith(POSITIVE)
    return 0.5 if total == 0 else float((total > 0) == says_first)


JUDGE = Comparing("adds up", weigh, {"kind": "adds up"})


def accuracy(judge: Any, asked: Sequence[Question]) -> float:
    verdicts = judge.compare_all(asked)
    said = [0.5 if v.probability is None else v.probability for v in verdicts]
    return sum(p if truth(q) else 1 - p for p, q in zip(said, asked, strict=True)) / len(asked)


CASES = questions(3000)


@pytest.mark.parametrize(
    ("k", "blind", "debated"), [(1, 0.638, 0.750), (2, 0.693, 0.793), (5, 0.786, 0.848)]
)
def test_debate_beats_random_evidence_and_consultancy(k: int, blind: float, debated: float) -> None:
    by_chance = accuracy(Debate(JUDGE, [RuleWriter("r", at_random(k))], rounds=1), CASES)
    debate = accuracy(Debate(JUDGE, [RuleWriter("b", best(k))], rounds=1), CASES)
    # One advocate has all the time of two.
    one = Debate(JUDGE, [RuleWriter("b", best(2 * k))], rounds=1, form="consultancy")
    consultancy = accuracy(one, CASES)
    assert by_chance == pytest.approx(blind, abs=0.03)  # three standard errors
    assert debate == pytest.approx(debated, abs=0.03)
    assert consultancy == pytest.approx(0.5, abs=0.03)
    assert debate > by_chance + 0.03 > consultancy


def test_rounds_are_as_good_as_all_at_once() -> None:
    at_once = Debate(JUDGE, [RuleWriter("b", best(3))], rounds=1)
    in_turn = Debate(JUDGE, [RuleWriter("b", best(1))], rounds=3)
    assert accuracy(in_turn, CASES[:300]) == accuracy(at_once, CASES[:300])


def test_the_order_of_the_answers_changes_nothing() -> None:
    two = [RuleWriter("good", best(3)), RuleWriter("blind", at_random(1))]
    for form in ("debate", "consultancy"):
        debate = Debate(JUDGE, two, rounds=2, form=form)  # type: ignore[arg-type]
        forward = debate.compare_all(CASES[:50])
        backward = debate.compare_all([swapped(question) for question in CASES[:50]])
        for one, other in zip(forward, backward, strict=True):
            assert one.probability == 1 - (other.probability or 0.0)
            arguments, mirrored = one.transcript["arguments"], other.transcript["arguments"]
            assert arguments == {"first": mirrored["second"], "second": mirrored["first"]}


def test_two_debaters_draw_their_sides() -> None:
    two = [RuleWriter("one", lambda turn: "one"), RuleWriter("two", lambda turn: "two")]
    argued = Debate(JUDGE, two, rounds=1).argue(CASES[:400])
    firsts = [arguments[0][0] for arguments in argued]
    assert all(set(first + second) == {"one", "two"} for first, second in argued)
    right = [first == "one" for first, q in zip(firsts, CASES, strict=False) if truth(q)]
    assert 0.35 < sum(right) / len(right) < 0.65


def test_a_round_is_written_at_the_same_time_and_the_transcript_is_kept() -> None:
    seen: list[Turn] = []

    def argue(turn: Turn) -> str:
        seen.append(turn)
        return f"{turn.mine} {turn.number}"

    debate = Debate(JUDGE, [RuleWriter("w", argue)], rounds=2)
    verdict = compare(debate, "p", "yes", "no")
    assert verdict.transcript["arguments"] == {
        "first": ["yes 1", "yes 2"],
        "second": ["no 1", "no 2"],
    }
    assert [(turn.mine, turn.other, turn.said, turn.answered) for turn in seen] == [
        ("yes", "no", (), ()),
        ("no", "yes", (), ()),
        ("yes", "no", ("yes 1",), ("no 1",)),
        ("no", "yes", ("no 1",), ("yes 1",)),
    ]
    assert verdict.transcript["judge"]["orders"] == [0.5, 0.5]


def test_arguments_stand_below_the_answer_that_they_are_for() -> None:
    shown = beside("Four.", "argument", ["because", "", "so"])
    assert shown.startswith("Four.\n\n<<<argument 1 ")
    assert shown.count("<<<") == 2
    assert "because" in shown and "argument 2" in shown


def test_a_debate_is_kept_like_any_judge_and_its_parts_are_its_identity(tmp_path: Path) -> None:
    counted: list[Turn] = []

    def argue(turn: Turn) -> str:
        counted.append(turn)
        return best(1)(turn)

    debate = Debate(JUDGE, [RuleWriter("b", argue)], rounds=1)
    first = Kept(debate, tmp_path).compare_all(CASES[:40])
    assert Kept(debate, tmp_path).compare_all(CASES[:40]) == first
    assert len(counted) == 80
    for other in (
        Debate(JUDGE, [RuleWriter("b", argue)], rounds=2),
        Debate(JUDGE, [RuleWriter("b", argue)], rounds=1, form="consultancy"),
        Debate(JUDGE, [RuleWriter("c", argue)], rounds=1),
    ):
        assert json.dumps(other.identity()) != json.dumps(debate.identity())


def test_debates_only_compare_and_writers_write_text() -> None:
    with pytest.raises(RecipeError, match="gives no scores"):
        score(Debate(JUDGE, [RuleWriter("b", best(1))]), "p", "a")
    with pytest.raises(DataError, match="must return a text"):
        compare(Debate(JUDGE, [RuleWriter("b", lambda turn: 3)]), "p", "a", "b")  # type: ignore[arg-type, return-value]


# -- critics -------------------------------------------------------------------------------


def hasty(prompt: Prompt, text: str) -> float:
    """Takes the longer answer for the better one, unless it is told of a fault."""
    answer, _, notes = text.partition("\n\n<<<critique")
    return len(answer) - 100.0 * notes.count("FAULT")


def find_faults(turn: Turn) -> str:
    return "FAULT: wrong sum" if "2 + 2 = 5" in turn.mine else "Nothing is wrong."


HASTY = Scoring("hasty", hasty, {"kind": "hasty"})


def test_a_judge_with_a_critic_sees_what_it_alone_does_not() -> None:
    right, wrong = "2 + 2 = 4", "As everybody knows, 2 + 2 = 5"
    assert compare(HASTY, "sum?", right, wrong).probability == 0.0
    helped = Recursive(HASTY, RuleWriter("faults", find_faults))
    verdict = compare(helped, "sum?", right, wrong)
    assert verdict.probability == 1.0
    assert verdict.transcript["critiques"]["second"] == ["FAULT: wrong sum"]
    assert score(helped, "sum?", wrong) == len(wrong) - 100.0


def test_a_later_level_has_read_the_earlier_ones() -> None:
    def critic(turn: Turn) -> str:
        return f"{turn.number} after {list(turn.said)}"

    helped = Recursive(HASTY, RuleWriter("c", critic), levels=2)
    written = helped.criticise([("p", "a"), ("p", "a"), ("p", "b")])
    assert list(written) == [("p", "a"), ("p", "b")]
    assert written["p", "a"] == ["1 after []", "2 after ['1 after []']"]


def test_critiques_are_preferred_that_move_the_judge_towards_the_truth() -> None:
    def critic(turn: Turn) -> str:
        return find_faults(turn) if turn.seed % 2 else "FAULT: I dislike it."

    right, wrong = "2 + 2 = 4", "As everybody knows, 2 + 2 = 5"
    audited = [(Question("sum?", right, wrong), 1.0)]
    groups = critic_groups(HASTY, RuleWriter("c", critic), audited)
    # Of the wrong answer both critiques name a fault, and both bring the judge to the truth.
    # Of the right one "Nothing is wrong." leaves it in error as much as an invented fault does.
    assert groups == []
    audited = [(Question("sum?", wrong, "2 + 2 = 44444444444444444444444444444"), 0.0)]
    (group,) = critic_groups(HASTY, RuleWriter("c", critic), audited)
    assert [c.text for c in group.completions] == ["Nothing is wrong.", "FAULT: I dislike it."]
    assert (group.comparisons[0].preferred, group.meta["errors"]) == (0, [0.0, 1.0])
    assert "Write a critique" in group.prompt_text


# -- by their specs ------------------------------------------------------------------------


def test_a_debate_and_a_critic_by_their_files(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent))
    rules = tmp_path / "rules.py"
    rules.write_text(
        "from tests.test_judges_debate import best, weigh, find_faults\nargue = best(3)\n"
    )
    (tmp_path / "debate.yaml").write_text(
        "kind: debate\nrounds: 1\ndebaters: ['python:rules.py:argue']\n"
        "judge: {kind: python, function: 'rules.py:weigh', what: compare}\n"
    )
    (tmp_path / "critic.yaml").write_text(
        "kind: recursive\ncritic: python:rules.py:find_faults\njudge: longest\n"
    )
    judge = make_judge(tmp_path / "debate.yaml")
    assert accuracy(judge, CASES[:300]) == accuracy(
        Debate(JUDGE, [RuleWriter("b", best(3))], rounds=1), CASES[:300]
    )
    critic = make_judge(tmp_path / "critic.yaml")
    assert compare(critic, "p", "2 + 2 = 5", "2 + 2 = 4").probability == 0.0


def test_what_debaters_and_critics_are_told() -> None:
    turn = Turn("Why?", "mine!", "other!", ("I said",), ("they said",), 2, 3, 0)
    text = load_instructions("debater", "argue").filled(turn)
    for part in ("Why?", "mine!", "other!", "I said", "they said", "round 2 of\n3"):
        assert part in text
    assert "What you have said" not in load_instructions("debater", "argue").filled(
        replace(turn, said=())
    )
    text = load_instructions("critic", "critique").filled(turn)
    assert "mine!" in text and "I said" in text and "other!" not in text
    with pytest.raises(RecipeError, match="argue"):
        load_instructions("critic", "argue")


class Flipping:
    """A judge that always prefers what it sees first."""

    name = "flipping"

    def identity(self) -> dict[str, str]:
        return {"kind": "flipping"}

    def compare_all(
        self, asked: Sequence[Question], progress: Progress | None = None
    ) -> list[Verdict]:
        return [Verdict(1.0) for _ in asked]

    def score_all(self, answers: Any, progress: Progress | None = None) -> list[float | None]:
        raise NotImplementedError


def test_the_position_bias_of_the_judge_is_taken_out() -> None:
    for wrapped in (
        Debate(Flipping(), [RuleWriter("b", best(1))], rounds=1),
        Recursive(Flipping(), RuleWriter("c", find_faults)),
    ):
        verdict = compare(wrapped, "case 0 +", POSITIVE, NEGATIVE)
        assert (verdict.probability, verdict.order_consistent) == (0.5, False)


# -- what a policy learns from such labels -------------------------------------------------


def learned_reward(world: EnumerableWorld, pairs: list[tuple[int, int]], said: Any) -> float:
    """E[r] of a policy that can be any distribution, after DPO on these labels."""
    import torch

    from prefopt.objectives import Comparisons, Scores, dpo

    reference = torch.tensor(world.reference).log()
    logits = reference.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([logits], lr=0.05)
    comparisons = Comparisons.of(pairs, list(said), dtype=torch.float64)
    lengths = torch.ones(len(reference), dtype=torch.int64)
    for _ in range(150):
        optimizer.zero_grad()
        scores = Scores(logits.log_softmax(0), reference, lengths)
        dpo(scores, comparisons, beta=0.5).mean().backward()
        optimizer.step()
    return float((logits.detach().softmax(0) * torch.tensor(world.reward)).sum())


def draw(rng: random.Random) -> tuple[int, int]:
    first, second = rng.sample(range(64), 2)
    return first, second


def test_a_policy_learns_more_from_debates_than_from_blind_labels_or_a_consultant() -> None:
    world = EnumerableWorld.random(0, vocabulary=4, length=3)
    rng = random.Random(0)
    pairs = [draw(rng) for _ in range(400)]
    better = [world.reward[i] > world.reward[j] for i, j in pairs]
    asked = [
        Question(f"case {n} {'+' if b else '-'}", POSITIVE, NEGATIVE) for n, b in enumerate(better)
    ]
    rewards = []
    for writer, form in ((best(2), "consultancy"), (at_random(1), "debate"), (best(1), "debate")):
        debate = Debate(JUDGE, [RuleWriter("w", writer)], rounds=1, form=form)  # type: ignore[arg-type]
        said = [verdict.probability for verdict in debate.compare_all(asked)]
        rewards.append(learned_reward(world, pairs, said))
    consulted, blind, debated = rewards
    start = float(world.reference @ world.reward)
    assert consulted < start + 0.02  # labels of no worth: nothing is gained
    assert blind > consulted + 0.03
    assert debated > blind + 0.03


def test_a_policy_learns_more_from_a_judge_with_a_critic() -> None:
    world = EnumerableWorld.random(1, vocabulary=4, length=3)
    rng = random.Random(0)
    texts = ["x" * rng.randrange(1, 50) + f" {number}" for number in range(64)]
    middle = sorted(world.reward)[32]

    def critic(turn: Turn) -> str:
        return "FAULT" if world.reward[int(turn.mine.split()[1])] < middle else "Sound."

    pairs = [draw(rng) for _ in range(300)]
    asked = [Question("p", texts[i], texts[j]) for i, j in pairs]
    rewards = [
        learned_reward(world, pairs, [verdict.probability for verdict in judge.compare_all(asked)])
        for judge in (HASTY, Recursive(HASTY, RuleWriter("c", critic)))
    ]
    assert rewards[1] > rewards[0] + 0.03
