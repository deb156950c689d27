"""Verdicts that are kept: nothing is asked twice, whatever happens to the process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from prefopt.errors import PrefoptError
from prefopt.judges.judge import Progress, Question, Verdict
from prefopt.judges.kept import Kept
from prefopt.records import Message, Prompt


class Counting:
    """Prefers the text that sorts later, and counts what it is asked."""

    name = "counting"
    sees_order = False

    def __init__(self, *, chunk: int = 2, fails_at: int | None = None, version: int = 1) -> None:
        self.chunk, self.fails_at, self.version = chunk, fails_at, version
        self.asked: Counter[Question] = Counter()
        self.scored: Counter[tuple[Prompt, str]] = Counter()

    def identity(self) -> dict[str, object]:
        return {"kind": "counting", "version": self.version}

    def compare_all(
        self, questions: Sequence[Question], progress: Progress | None = None
    ) -> list[Verdict]:
        if self.fails_at is not None and self.asked.total() >= self.fails_at:
            raise PrefoptError("the judge has left")
        self.asked.update(questions)
        return [
            Verdict(0.75 if q.first > q.second else 0.25, f"{q.first}!", True, {"of": q.first})
            for q in questions
        ]

    def score_all(
        self, answers: Sequence[tuple[Prompt, str]], progress: Progress | None = None
    ) -> list[float | None]:
        self.scored.update(answers)
        return [float(len(text)) if text != "?" else None for _, text in answers]


QUESTIONS = [Question("p", f"a{i}", f"b{j}") for i in range(3) for j in range(2)]


def test_nothing_is_asked_twice_in_one_call(tmp_path: Path) -> None:
    judge = Counting()
    kept = Kept(judge, tmp_path)
    mirrored = [Question(q.prompt, q.second, q.first) for q in QUESTIONS]
    verdicts = kept.compare_all(QUESTIONS + QUESTIONS + mirrored)
    assert judge.asked.total() == len(QUESTIONS)
    assert (kept.asked, kept.known, kept.not_asked) == (6, 12, 0)
    assert [v.probability for v in verdicts] == [0.25] * 12 + [0.75] * 6


def test_nor_over_restarts_and_the_verdicts_are_the_same(tmp_path: Path) -> None:
    first = Kept(Counting(), tmp_path).compare_all(QUESTIONS)
    judge = Counting()
    kept = Kept(judge, tmp_path)
    assert kept.compare_all(QUESTIONS) == first
    assert (judge.asked.total(), kept.asked, kept.known) == (0, 0, 6)


def test_which_side_comes_first_is_decided_by_the_texts(tmp_path: Path) -> None:
    one, other = Counting(), Counting()
    Kept(one, tmp_path / "one").compare_all(QUESTIONS)
    Kept(other, tmp_path / "other").compare_all(
        [Question(q.prompt, q.second, q.first) for q in QUESTIONS]
    )
    assert one.asked == other.asked
    assert {q.first[0] for q in one.asked} == {"a", "b"}  # neither side always comes first


def test_a_conversation_is_another_prompt_than_its_text(tmp_path: Path) -> None:
    judge = Counting()
    talk = (Message("user", "p"),)
    Kept(judge, tmp_path).compare_all([Question("p", "a", "b"), Question(talk, "a", "b")])
    assert judge.asked.total() == 2


def test_another_judge_has_verdicts_of_its_own(tmp_path: Path) -> None:
    Kept(Counting(version=1), tmp_path).compare_all(QUESTIONS)
    judge = Counting(version=2)
    Kept(judge, tmp_path).compare_all(QUESTIONS)
    assert judge.asked.total() == 6
    told = [json.loads(path.read_text()) for path in tmp_path.glob("*.json")]
    assert sorted(one["version"] for one in told) == [1, 2]


def test_scores_are_kept_too_and_unreadable_ones_are_not_asked_again(tmp_path: Path) -> None:
    judge = Counting()
    answers: list[tuple[Prompt, str]] = [("p", "aa"), ("p", "?"), ("p", "aa"), ("q", "aa")]
    for _ in range(2):
        assert Kept(judge, tmp_path).score_all(answers) == [2.0, None, 2.0, 2.0]
    assert judge.scored.total() == 3
    assert Kept(judge, tmp_path).compare_all([Question("p", "aa", "?")])[0].probability == 0.75


def test_what_a_failing_judge_said_is_kept(tmp_path: Path) -> None:
    judge = Counting(chunk=2, fails_at=4)
    with pytest.raises(PrefoptError, match="has left"):
        Kept(judge, tmp_path).compare_all(QUESTIONS)
    again = Counting()
    Kept(again, tmp_path).compare_all(QUESTIONS)
    assert again.asked.total() == 2
    assert not again.asked.keys() & judge.asked.keys()


def test_a_budget_holds_over_restarts_and_says_what_was_not_asked(tmp_path: Path) -> None:
    judge = Counting(chunk=1, fails_at=3)
    with pytest.raises(PrefoptError):
        Kept(judge, tmp_path, budget=4).compare_all(QUESTIONS)
    judge.fails_at = None
    kept = Kept(judge, tmp_path, budget=4)
    verdicts = kept.compare_all(QUESTIONS + QUESTIONS[-1:])
    assert judge.asked.total() == 4
    assert (kept.asked, kept.known, kept.not_asked) == (1, 3, 3)
    assert [v.transcript.get("not_asked", False) for v in verdicts] == [False] * 4 + [True] * 3
    assert all(v.probability is None for v in verdicts[4:])
    assert Kept(judge, tmp_path, budget=4).compare_all(QUESTIONS)[:4] == verdicts[:4]
    assert judge.asked.total() == 4


def test_each_account_has_a_budget_and_all_share_what_is_known(tmp_path: Path) -> None:
    judge = Counting()
    Kept(judge, tmp_path, budget=2, account="round 1").compare_all(QUESTIONS)
    second = Kept(judge, tmp_path, budget=3, account="round 2")
    second.compare_all(QUESTIONS)
    assert (judge.asked.total(), second.known, second.not_asked) == (5, 2, 1)
    assert second.spent() == 3


@pytest.mark.parametrize("cut", [1, 7, 40])
def test_a_truncated_last_line_is_dropped(tmp_path: Path, cut: int) -> None:
    whole = Kept(Counting(), tmp_path).compare_all(QUESTIONS)
    (path,) = tmp_path.glob("*.jsonl")
    os.truncate(path, path.stat().st_size - cut)
    judge = Counting()
    assert Kept(judge, tmp_path).compare_all(QUESTIONS) == whole
    assert judge.asked.total() == 1
    judge = Counting()
    assert Kept(judge, tmp_path).compare_all(QUESTIONS) == whole  # and the file is good again
    assert judge.asked.total() == 0


def test_a_line_that_is_not_whole_is_asked_again(tmp_path: Path) -> None:
    Kept(Counting(), tmp_path).compare_all(QUESTIONS)
    (path,) = tmp_path.glob("*.jsonl")
    path.write_text(path.read_text().replace("0.75", "0.76", 1))
    judge = Counting()
    assert {v.probability for v in Kept(judge, tmp_path).compare_all(QUESTIONS)} == {0.25}
    assert judge.asked.total() == 1


def test_text_of_any_kind_is_kept_as_it_is(tmp_path: Path) -> None:
    odd = [Question("p", "\ud800", "\u2028\n\x00"), Question("p", "", "🙂")]
    whole = Kept(Counting(), tmp_path).compare_all(odd)
    assert Kept(Counting(), tmp_path).compare_all(odd) == whole


class Streaming(Counting):
    """The same, one verdict at a time."""

    def compare_each(self, questions: Sequence[Question]) -> Iterator[tuple[int, Verdict]]:
        for place in reversed(range(len(questions))):
            yield place, self.compare_all([questions[place]])[0]


def test_verdicts_that_come_in_another_order_belong_where_they_belong(tmp_path: Path) -> None:
    whole = Kept(Counting(), tmp_path / "a").compare_all(QUESTIONS)
    seen: list[tuple[int, int]] = []
    kept = Kept(Streaming(), tmp_path / "b")
    assert kept.compare_all(QUESTIONS, lambda done, of: seen.append((done, of))) == whole
    assert seen == [(done, 6) for done in range(7)]


def test_two_at_once_ask_each_question_once(tmp_path: Path) -> None:
    judge = Streaming()
    folder, results = tmp_path, []

    def work() -> None:
        results.append(Kept(judge, folder).compare_all(QUESTIONS * 5))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert judge.asked.total() == len(QUESTIONS)
    assert all(result == results[0] for result in results)


KILLED = """
import sys, time
sys.path.insert(0, {tests!r})
from test_judges_kept import Counting, QUESTIONS
from prefopt.judges.judge import Question
from prefopt.judges.kept import Kept

class Slow(Counting):
    def compare_each(self, questions):
        for place, question in enumerate(questions):
            print(question.first, question.second, flush=True)
            yield place, self.compare_all([question])[0]
            time.sleep(0.02)

questions = [Question("p", f"a{{i}}", f"b{{i}}") for i in range(1000)]
Kept(Slow(), {folder!r}).compare_all(questions)
"""


def test_a_process_killed_in_the_middle_has_lost_at_most_what_it_was_asking(
    tmp_path: Path,
) -> None:
    program = KILLED.format(tests=str(Path(__file__).parent), folder=str(tmp_path))
    asked: Counter[str] = Counter()
    for _ in range(2):
        child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        for line in child.stdout:
            asked[line] += 1
            if asked.total() % 8 == 0:
                break
        time.sleep(0.01)
        child.send_signal(signal.SIGKILL)
        asked.update(child.stdout)
        child.wait()
        child.stdout.close()
    judge = Counting()
    questions = [Question("p", f"a{i}", f"b{i}") for i in range(1000)]
    verdicts = Kept(judge, tmp_path).compare_all(questions)
    assert {verdict.probability for verdict in verdicts} == {0.25}
    again = asked.total() + judge.asked.total() - len(questions)
    assert 0 <= again <= 2  # for each kill, the one verdict that was on its way
    assert judge.asked.total() <= len(questions) - asked.total() + 2
