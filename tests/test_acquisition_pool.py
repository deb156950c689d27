"""From files to questions: what a pool has, what was asked before, and a policy's own scores."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import pytest

from prefopt.cli.app import run
from prefopt.data.acquisition import (
    STRATEGIES,
    Acquired,
    Scores,
    acquire,
    read_scores,
    select,
    write_scores,
)
from prefopt.data.acquisition.pool import History, note_answers
from prefopt.data.acquisition.questions import completion_key, question_key
from prefopt.data.formats import read_groups, write_groups
from prefopt.errors import DataError, RecipeError
from prefopt.records import Comparison, Completion, Group, Message, Vote, prompt_key, to_json

if TYPE_CHECKING:
    from prefopt.policies.load import Policy

PROMPTS = (
    "The film was",
    "How do I bake",
    "Blue is",
    "The cast was",
    "Oslo in 1999 was",
    "Tell me",
)
ANSWERS = (" a quiet delight.", " dull.", " the colour of the sky.", " splendid, then clumsy.")


def a_group(prompt: Any, *texts: str, **parts: Any) -> Group:
    return Group(prompt, tuple(Completion(text) for text in texts), **parts)


def a_pool() -> list[Group]:
    """Six prompts, one of them a conversation, with three or four answers: 27 questions."""
    groups = [a_group(prompt, *ANSWERS[: 3 + number % 2]) for number, prompt in enumerate(PROMPTS)]
    return [*groups[:-1], a_group((Message("user", PROMPTS[-1]),), *ANSWERS)]


def some_scores(groups: Iterable[Group], seed: int = 0) -> Scores:
    """Random numbers of every completion, the same for the same text in any order."""
    keys = sorted(
        {
            completion_key(group.prompt_key, one.text)
            for group in groups
            for one in group.completions
        }
    )
    rng = np.random.default_rng(seed)
    count = len(keys)
    features = rng.normal(size=(count, 4)).astype(np.float32)
    return Scores(keys, rng.normal(size=count), features, -rng.gamma(2.0, size=count))


def key_of(group: Group) -> bytes:
    """The question that a group of two completions asks."""
    first, second = (completion_key(group.prompt_key, one.text) for one in group.completions)
    return question_key(first, second)


def keys_of(found: Acquired) -> list[bytes]:
    return [key_of(question.group) for question in found.chosen]


def scores_for(strategy: str, groups: Iterable[Group]) -> list[Scores]:
    members = {"random": 0, "bald": 3}.get(strategy, 1)
    return [some_scores(groups, seed) for seed in range(members)]


# -- questions -----------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_batch_after_batch_asks_everything_once(strategy: str) -> None:
    """Answers and questions that are out come back in other files, sides swapped."""
    pool, labelled, batches = a_pool(), [], []
    scores = scores_for(strategy, pool)
    for batch in range(9):
        found = acquire(
            pool, count=5, scores=scores, labelled=labelled, strategy=strategy, per_prompt=2,
            controls=0.0 if batch else 0.2, seed=batch,
        )  # fmt: skip
        batches.append(keys_of(found))
        for number, question in enumerate(found.chosen):
            group = question.group
            swapped = Group(group.prompt, group.completions[::-1], meta=group.meta)
            answered = Group(group.prompt, group.completions, (Comparison(1, 0),), meta=group.meta)
            labelled.append(swapped if number % 2 else answered)
        assert found.pool == 27
        assert found.already_labelled == len(labelled) - len(found.chosen)
    asked = [key for keys in batches for key in keys]
    assert len(batches[0]) == 5
    assert len(set(asked)) == len(asked)
    # the one control's prompt is for evaluation: its other questions are not the strategy's
    first = next(group for group in labelled if group.meta["control"])
    kept_back = [g for g in pool if g.prompt_key == first.prompt_key]
    (group,) = kept_back
    count = len(group.completions)
    assert len(asked) == 27 - (count * (count - 1) // 2 - 1)
    assert batches[-1] == []


def test_questions_are_the_pairs_of_different_texts() -> None:
    pool = [a_group("a", "x", "y", "x", "z"), a_group("a", "y", "x"), a_group("b", "x", "y")]
    found = acquire(pool, count=99, strategy="random", per_prompt=9, controls=0)
    pairs = {frozenset(one.text for one in q.group.completions) for q in found.chosen}
    assert pairs == {frozenset("xy"), frozenset("xz"), frozenset("yz")}
    assert (found.pool, len(found.chosen)) == (4, 4)
    with pytest.raises(DataError, match="two different completions"):
        acquire([a_group("a", "x"), a_group("b", "y", "y")], count=1, strategy="random")


def test_a_question_says_why_it_was_chosen_and_where_it_comes_from(tmp_path: Path) -> None:
    path = tmp_path / "pool.jsonl"
    pool = [Group(g.prompt, g.completions, source="web", meta={"id": 7}) for g in a_pool()]
    write_groups(path, pool)
    found = acquire(read_groups(path), count=6, scores=[some_scores(pool)], controls=0.17)
    document = found.to_dict()
    assert document["controls"] == sum(item["control"] for item in document["chosen"]) == 1
    for rank, (question, said) in enumerate(zip(found.chosen, document["chosen"], strict=True), 1):
        group, row = question.group, pool[said["row"] - 1]
        assert said["file"] == str(path)
        assert group.prompt == row.prompt
        assert group.completions == (
            row.completions[said["first"]],
            row.completions[said["second"]],
        )
        assert group.source == "web"
        assert group.meta == {
            "id": 7, "rank": rank, "strategy": said["strategy"], "score": said["score"],
            "control": said["control"],
        }  # fmt: skip
        assert (said["score"] is None) == said["control"]
        assert not group.comparisons


def test_the_order_of_sides_is_drawn() -> None:
    """Of chosen and rejected, the chosen one does not always stand first."""
    pool = [
        a_group(f"prompt {n}", "good", "bad", comparisons=(Comparison(0, 1),)) for n in range(200)
    ]
    found = acquire(pool, count=200, strategy="random", pairs="given", controls=0.5)
    for some in (True, False):
        part = [q for q in found.chosen if q.group.meta["control"] is some]
        first = sum(q.group.completions[0].text == "good" for q in part)
        assert abs(first - 50) < 4 * 5  # binomial(100, ½)
        assert all(
            (q.first, q.second) == (0, 1) for q in part if q.group.completions[0].text == "good"
        )


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_order_of_files_and_completions_does_not_matter(strategy: str) -> None:
    pool = a_pool()
    other = [Group(g.prompt, g.completions[::-1]) for g in reversed(pool)]
    wanted = {"count": 6, "strategy": strategy, "scores": scores_for(strategy, pool), "seed": 4}
    first, second = acquire(pool, **wanted), acquire(other, **wanted)
    assert [q.group for q in first.chosen] == [q.group for q in second.chosen]
    changed = acquire(pool, **{**wanted, "seed": 5})
    assert keys_of(changed) != keys_of(first)


# -- numbers -------------------------------------------------------------------------------


def test_the_choice_is_that_of_the_arrays() -> None:
    """Margins and features of pairs are differences of those of completions."""
    pool = a_pool()
    members = [some_scores(pool, seed) for seed in range(2)]
    texts = [(g.prompt_key, one.text) for g in pool for one in g.completions]
    row = {key: n for n, key in enumerate(members[0].keys)}
    at = [row[completion_key(*text)] for text in texts]
    starts = np.cumsum([0] + [len(g.completions) for g in pool])
    pairs = [(s + i, s + j, n) for n, (s, g) in enumerate(zip(starts, pool, strict=False))
             for j in range(len(g.completions)) for i in range(j)]  # fmt: skip
    first, second, prompts = (np.array(column) for column in zip(*pairs, strict=True))
    rewards = np.array([one.rewards[at] for one in members])
    features = members[0].features[at].astype(float)
    keys = [question_key(completion_key(*texts[i]), completion_key(*texts[j])) for i, j, _ in pairs]
    for strategy in ("d-optimal", "bald"):
        expected = select(
            rewards[:, first] - rewards[:, second],
            features[first] - features[second],
            count=6, strategy=strategy, keys=keys, prompts=prompts, seed=1,
        )  # fmt: skip
        found = acquire(pool, count=6, scores=members, strategy=strategy, seed=1)
        assert keys_of(found) == [keys[index] for index in expected.indices]
        scores = [q.group.meta["score"] for q in found.chosen]
        assert scores == [None if np.isnan(x) else pytest.approx(x) for x in expected.scores]


def test_entropy_takes_the_prompts_of_least_probable_samples() -> None:
    pool = [a_group("a", "x", "y", "y"), a_group("b", "x", "y", "z"), a_group("c", "x", "y")]
    logps = {("a", "x"): -9.0, ("a", "y"): -3.0, ("b", "x"): -5.0, ("b", "y"): -6.0,
             ("b", "z"): -7.0, ("c", "x"): -1.0, ("c", "y"): -2.0}  # fmt: skip
    keys = [completion_key(prompt_key(prompt), text) for prompt, text in logps]
    scores = Scores(keys, np.zeros(7), logps=np.array([*logps.values()]))
    found = acquire(pool, count=3, scores=[scores], strategy="entropy", controls=0)
    # a sample that came twice counts twice: (9 + 3 + 3)/3 = 5 < (5 + 6 + 7)/3 = 6
    assert [q.group.prompt for q in found.chosen] == ["b", "a", "c"]
    assert [q.group.meta["score"] for q in found.chosen] == [6.0, 5.0, 1.5]


def test_questions_without_scores_are_counted_and_left_out() -> None:
    pool = a_pool()
    found = acquire(pool, count=99, per_prompt=9, scores=[some_scores(pool[:2])], controls=0)
    assert (found.unscored, len(found.chosen)) == (18, 9)
    with pytest.raises(DataError, match="no question of the pool has scores"):
        acquire(pool, count=3, scores=[some_scores([a_group("other", "x", "y")])])


def test_answers_elsewhere_change_what_is_worth_asking() -> None:
    """A labelled pair that is not in the pool informs the design, but not if it is a control."""
    pool = [a_group("a", "x", "y"), a_group("b", "x", "y")]
    outside = a_group("c", "x", "y", comparisons=(Comparison(0, 1),))
    texts = [("a", "x"), ("a", "y"), ("b", "x"), ("b", "y"), ("c", "x"), ("c", "y")]
    features = np.array([[1, 0], [0, 0], [0, 0.9], [0, 0], [5, 0], [0, 0]], dtype=np.float32)
    keys = [completion_key(prompt_key(prompt), text) for prompt, text in texts]
    wanted = {"count": 1, "scores": [Scores(keys, np.zeros(6), features)], "controls": 0}
    assert acquire(pool, **wanted).chosen[0].group.prompt == "a"
    assert acquire(pool, labelled=[outside], **wanted).chosen[0].group.prompt == "b"
    control = Group(
        outside.prompt, outside.completions, outside.comparisons, meta={"control": True}
    )
    assert acquire(pool, labelled=[control], **wanted).chosen[0].group.prompt == "a"


def test_every_answer_tells_something() -> None:
    """Three answers about one pair inform the design three times."""
    pool = [a_group("a", "x", "y"), a_group("b", "x", "y")]
    texts = [(prompt, text) for prompt in "abc" for text in "xy"]
    features = np.array([[1, 0], [0, 0], [0, 0.8], [0, 0], [1, 0], [0, 0]], dtype=np.float32)
    keys = [completion_key(prompt_key(prompt), text) for prompt, text in texts]
    wanted = {"count": 1, "scores": [Scores(keys, np.zeros(6), features)], "controls": 0}
    # of features of mean squared length 2 and weight ¼, the gain of a is log(1 + ¼s/(1 + ¼ns))
    # after n answers in its direction, with s = 2/0.82, and that of b is log(1 + ¼·0.64s)
    for answers, first in ((0, "a"), (1, "b")):
        outside = [a_group("c", "x", "y", votes=votes(*["first"] * answers))]
        (question,) = acquire(pool, labelled=outside if answers else [], **wanted).chosen
        assert question.group.prompt == first
    scale = 2 / 0.82
    for answers in (1, 3):
        outside = [a_group("c", "x", "y", votes=votes(*["first"] * answers))]
        both = acquire(pool, labelled=outside, **{**wanted, "count": 2}).chosen
        gain = next(q.group.meta["score"] for q in both if q.group.prompt == "a")
        assert gain == pytest.approx(
            np.log1p(0.25 * scale / (1 + 0.25 * scale * answers)), rel=1e-6
        )


# -- what was asked before -----------------------------------------------------------------


def votes(*choices: str, annotators: str = "") -> tuple[Vote, ...]:
    names = annotators or [None] * len(choices)
    return tuple(Vote(0, 1, choice, name) for choice, name in zip(choices, names, strict=True))


def test_what_the_pool_compares_itself_is_answered_unless_that_is_asked_for() -> None:
    pool = [a_group("a", "x", "y", "z", comparisons=(Comparison(2, 0),)), a_group("b", "x", "y")]
    found = acquire(pool, count=9, strategy="random", per_prompt=9, controls=0)
    assert (found.pool, found.already_labelled, len(found.chosen)) == (4, 1, 3)
    (given,) = acquire(pool, count=9, strategy="random", pairs="given", controls=0).chosen
    assert {given.first, given.second} == {0, 2}
    assert not given.group.comparisons


def test_open_questions_come_again_and_settled_ones_are_named() -> None:
    first, second, tie = "first", "second", "tie"
    labelled = [
        a_group("open", "x", "y", votes=votes(first, second, first)),
        a_group("decided", "x", "y", votes=votes(*[second] * 4)),
        a_group("tie", "x", "y", votes=votes(first, tie, second, first, second, tie)),
        a_group(
            "conflict", "x", "y", votes=votes(*[first] * 3, *[second] * 3, annotators="aaabbb")
        ),
        a_group("both ways", "x", "y", comparisons=(Comparison(0, 1), Comparison(1, 0))),
        a_group("out", "x", "y"),
    ]
    pool = [a_group(g.prompt, "y", "x") for g in labelled] + [a_group("new", "x", "y")]
    wanted = {"count": 9, "strategy": "random", "labelled": labelled, "controls": 0}
    found = acquire(pool, repeat=6, **wanted)
    assert {q.group.prompt for q in found.chosen} == {"open", "both ways", "new"}
    assert (found.already_labelled, found.again) == (6, 2)
    document = found.to_dict()
    (even,), (split,) = document["ties"], document["conflicts"]
    assert (even["answers"], even["share"], even["first"], even["second"]) == (6, 0.5, 0, 1)
    assert (split["answers"], split["share"]) == (6, 0.5)
    assert found.ties[0][0].prompt == prompt_key("tie")
    assert found.conflicts[0][0].prompt == prompt_key("conflict")
    once = acquire(pool, **wanted)
    assert {q.group.prompt for q in once.chosen} == {"new"}
    assert (once.again, once.ties) == (0, [])  # without a limit six answers are not many


def test_answers_from_several_rows_are_of_one_question() -> None:
    """Four times x over y, however the two stand in the row, and once the other way."""
    rows = [
        a_group("p", "x", "y", votes=votes("first")),
        a_group("p", "y", "x", votes=votes("second")),
        a_group("p", "z", "x", "y", votes=(Vote(2, 1, "second"), Vote(1, 2, "first"))),
        a_group("p", "y", "x", comparisons=(Comparison(0, 1),)),
    ]
    history: History = {}
    for row in rows:
        note_answers(row, history)
    ((key, asked),) = history.items()
    assert key == key_of(a_group("p", "y", "x"))
    assert asked.sides[0] == completion_key(prompt_key("p"), "x")
    assert asked.answers == [(None, 1.0)] * 4 + [(None, 0.0)]
    wanted = {"count": 1, "strategy": "random", "labelled": rows}
    assert acquire([a_group("p", "x", "y")], repeat=6, **wanted).again == 1
    done = acquire([a_group("p", "x", "y")], repeat=5, **wanted)
    assert (done.again, done.undecided, done.ties, done.conflicts) == (0, 1, [], [])


# -- refusals ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"scores": []}, "needs scores of the pool"),
        ({"strategy": "random"}, "no effect"),
        ({"strategy": "bald"}, "only one"),
        ({"strategy": "entropy", "scores": 2}, "one model"),
        ({"strategy": "entropy", "scores": "bare"}, "needs logps"),
        ({"scores": "bare"}, "needs features"),
        ({"repeat": 1}, "'repeat'"),
        ({"strategy": "nope"}, "no such strategy"),
    ],
)
def test_scores_that_are_missing_or_without_effect_are_refused(
    change: dict[str, Any], words: str
) -> None:
    pool = a_pool()
    full = some_scores(pool)
    given = {2: [full, full], "bare": [Scores(full.keys, full.rewards)]}
    if isinstance(change.get("scores"), int | str):
        change = {**change, "scores": given[change["scores"]]}
    with pytest.raises(RecipeError, match=words):
        acquire(pool, **{"count": 2, "scores": [full], **change})


def test_a_pool_that_changes_between_its_readings_is_noticed() -> None:
    class Changing(list[Group]):
        readings = 0

        def __iter__(self) -> Any:
            self.readings += 1
            return iter(a_pool() if self.readings == 1 else a_pool()[::-1])

    with pytest.raises(DataError, match="changed while it was read"):
        acquire(Changing(), count=3, strategy="random")


# -- files of scores -----------------------------------------------------------------------


def test_scores_survive_their_file_and_the_same_scores_are_the_same_bytes(tmp_path: Path) -> None:
    scores = some_scores(a_pool())
    scores = Scores(scores.keys, scores.rewards, scores.features, scores.logps, {"policy": "p ß"})
    for name in ("a.npz", "b.npz"):
        write_scores(tmp_path / name, scores)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz", "b.npz"]
    back = read_scores(str(tmp_path / "a.npz"))
    assert list(back.keys) == list(scores.keys)
    assert back.about == {"policy": "p ß"}
    for name in ("rewards", "features", "logps"):
        np.testing.assert_array_equal(getattr(back, name), getattr(scores, name))
    assert back.rows([scores.keys[3], b"nobody", scores.keys[0]]).tolist() == [3, -1, 0]


def test_scores_of_any_model_come_as_rows(tmp_path: Path) -> None:
    path = tmp_path / "scores.jsonl"
    pool = a_pool()
    rows = [
        {"prompt": to_json(group)["prompt"], "completion": one.text, "reward": n + 0.5 * m,
         "features": [n, m], "logp": -1.0 - m}
        for n, group in enumerate(pool) for m, one in enumerate(group.completions)
    ]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    scores = read_scores(str(path))
    at = scores.rows([completion_key(pool[-1].prompt_key, ANSWERS[3])])
    assert scores.rewards[at].tolist() == [6.5]
    assert scores.features is not None
    assert scores.features[at].tolist() == [[5.0, 3.0]]
    assert scores.logps is not None
    assert scores.logps[at].tolist() == [-4.0]
    assert len(acquire(pool, count=4, scores=[scores]).chosen) == 4


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("none.npz", None, "no such file"),
        ("scores.txt", b"", "no such file of scores"),
        ("bytes.npz", b"PK\x03\x04 nothing", "not one of scores"),
        ("empty.npz", b"", "not one of scores"),
        ("row.jsonl", b'{"prompt": "a", "completion": "x"}\n', "'reward' is missing"),
        ("text.jsonl", b'{"prompt": "a", "completion": "x", "reward": "1"}\n', "must be a number"),
        ("nan.jsonl", b'{"prompt": "a", "completion": "x", "reward": NaN}\n', "finite"),
        ("broken.jsonl", b"{", "not valid JSON"),
        ("none.jsonl", b"\n", "does not fit"),
        (
            "some.jsonl",
            b'{"prompt": "a", "completion": "x", "reward": 1, "logp": 1}\n'
            b'{"prompt": "a", "completion": "y", "reward": 1}\n',
            "others do not",
        ),
        (
            "ragged.jsonl",
            b'{"prompt": "a", "completion": "x", "reward": 1, "features": [1]}\n'
            b'{"prompt": "a", "completion": "y", "reward": 1, "features": [1, 2]}\n',
            "different numbers of features",
        ),
    ],
)
def test_files_that_are_not_scores_are_refused(
    tmp_path: Path, name: str, content: bytes | None, words: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=words) as caught:
        read_scores(str(path))
    assert caught.value.file == str(path)


@pytest.mark.parametrize(
    "columns",
    [
        {"keys": np.zeros((2, 32), np.uint8), "rewards": np.zeros(3)},
        {"keys": np.zeros((2, 8), np.uint8), "rewards": np.zeros(2)},
        {"keys": np.zeros((2, 32), np.uint8), "rewards": np.array([1.0, np.inf])},
        {"keys": np.zeros((2, 32), np.uint8), "rewards": np.array(["a", "b"])},
        {"keys": np.zeros((2, 32), np.uint8), "rewards": np.zeros(2), "features": np.zeros(2)},
        {"rewards": np.zeros(2)},
    ],
)
def test_arrays_that_are_not_scores_are_refused(tmp_path: Path, columns: Any) -> None:
    np.savez(tmp_path / "scores.npz", **columns)
    with pytest.raises(DataError):
        read_scores(str(tmp_path / "scores.npz"))


# -- the command ---------------------------------------------------------------------------


def command(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, dict[str, Any]]:
    capsys.readouterr()
    code = run([*map(str, arguments), "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_the_flag_knows_every_strategy() -> None:
    from prefopt.cli.acquire import Strategy

    names = get_args(get_args(Strategy)[0])
    assert sorted(names) == sorted(STRATEGIES)


@pytest.fixture
def pool_file(tmp_path: Path) -> Path:
    path = tmp_path / "pool.jsonl"
    write_groups(path, a_pool())
    return path


def test_the_command_writes_what_can_be_read_and_labelled(
    pool_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_scores(tmp_path / "scores.npz", some_scores(a_pool()))
    out = tmp_path / "ask.jsonl"
    arguments = ("acquire", pool_file, "--scores", tmp_path / "scores.npz", "--count", 6)
    code, result = command(capsys, *arguments, "--out", out)
    assert code == 0
    assert {"strategy", "chosen", "pool", "already_labelled", "ties", "conflicts", "out"} <= set(
        result
    )
    assert (result["strategy"], result["pool"], result["out"]) == ("d-optimal", 27, str(out))
    asked = list(read_groups(out))
    assert [group.meta["rank"] for group in asked] == [1, 2, 3, 4, 5, 6]
    assert [group.meta["score"] for group in asked] == [item["score"] for item in result["chosen"]]
    assert all(len(group.completions) == 2 and not group.comparisons for group in asked)
    again = tmp_path / "again.jsonl"
    assert command(capsys, *arguments, "--out", again)[0] == 0
    assert again.read_bytes() == out.read_bytes()
    # what is out for labelling is not asked again
    code, more = command(capsys, *arguments, "--labelled", out, "--out", tmp_path / "more.jsonl")
    assert (code, more["already_labelled"]) == (0, 6)
    new = list(read_groups(tmp_path / "more.jsonl"))
    assert not {key_of(group) for group in new} & {key_of(group) for group in asked}
    capsys.readouterr()
    assert run([*map(str, arguments), "--out", str(again)]) == 0
    assert "Chose 6 questions by d-optimal, 1 of them controls" in capsys.readouterr().out


def test_where_nothing_is_left_nothing_is_written(
    pool_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, all_of_it = tmp_path / "ask.jsonl", tmp_path / "all.jsonl"
    arguments = ("acquire", pool_file, "--strategy", "random", "--per-prompt", 9, "--controls", 0)
    code, result = command(capsys, *arguments, "--count", 99, "--out", all_of_it)
    assert (code, len(result["chosen"])) == (0, 27)
    done = ("--labelled", all_of_it, "--count", 3, "--out", out)
    code, result = command(capsys, *arguments, *done)
    assert (code, result["chosen"], result["out"]) == (0, [], None)
    assert not out.exists()
    assert run([*map(str, arguments), *map(str, done)]) == 0
    assert "Nothing is left to ask." in capsys.readouterr().out


def test_ties_are_named_to_people(
    pool_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labelled = tmp_path / "votes.jsonl"
    choices = [{"first": 0, "second": 1, "choice": ("first", "second")[n % 2]} for n in range(4)]
    row = {"prompt": PROMPTS[0], "responses": list(ANSWERS[:2]), "votes": choices}
    labelled.write_text(json.dumps(row) + "\n")
    arguments = ["acquire", pool_file, "--strategy", "random", "--count", 2, "--labelled", labelled,
                 "--repeat", 4, "--out", tmp_path / "ask.jsonl"]  # fmt: skip
    assert run([str(word) for word in arguments]) == 0
    shown = "".join(capsys.readouterr().out.split())
    assert "votes.jsonl:1,4answers,share0.50" in shown


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--count 2", "--out"),
        ("--out {}/ask.jsonl", "--count"),
        ("--count 0 --out {}/ask.jsonl", "Must be >= 1"),
        ("--count 2 --out {}/ask.jsonl", "needs scores of the pool"),
        ("--count 2 --out {}/ask.txt --strategy random", "must end with"),
        ("--count 2 --out {}/pool.jsonl --strategy random", "would be lost"),
        ("--count 2 --out {}/ask.jsonl --strategy nope", "nope"),
        ("--count 2 --out {}/ask.jsonl --strategy random --controls 1", "Must be < 1"),
        ("--count 2 --out {}/ask.jsonl --strategy random --repeat 1", "Must be >= 2"),
        ("--count 2 --out {}/ask.jsonl --scores {}/nope.npz", "no such file of scores"),
        ("--count 2 --out {}/ask.jsonl --scores {}/pool.jsonl", "completion"),
        ("--count 2 --out {}/ask.jsonl --strategy random --labelled {}/nope.jsonl", "no such file"),
    ],
)
def test_wrong_input_is_a_sentence(
    pool_file: Path, capsys: pytest.CaptureFixture[str], line: str, words: str
) -> None:
    folder = pool_file.parent
    before = sorted(folder.iterdir())
    code, result = command(capsys, "acquire", pool_file, *line.replace("{}", str(folder)).split())
    assert code == 2
    assert words in json.dumps(result["error"], ensure_ascii=False)
    assert sorted(folder.iterdir()) == before


# -- from a policy -------------------------------------------------------------------------


def by_hand(policy: Policy, group: Group, side: int) -> tuple[np.ndarray, float]:
    """The mean of what the head was given where it predicts a completion, and its log π."""
    import torch

    from prefopt.engine.tokens import Encoder

    (encoded,) = Encoder(policy.tokenizer, end_of_turn=policy.end_of_turn)([group])
    prompt, answer = encoded.prompt, encoded.completions[side]
    read: list[Any] = []
    head = policy.model.get_output_embeddings()
    hook = head.register_forward_pre_hook(lambda module, inputs: read.append(inputs[0]))
    ids = torch.from_numpy(np.concatenate([prompt, answer]).astype(np.int64))[None]
    with torch.no_grad():
        logits = policy.model(ids).logits[0].double()
    hook.remove()
    places = slice(len(prompt) - 1, len(prompt) + len(answer) - 1)
    logps = torch.log_softmax(logits[places], -1).gather(1, ids[0, len(prompt) :, None])
    return read[0][0, places].double().mean(0).numpy(), float(logps.sum())


@pytest.mark.parametrize("microbatch_tokens", [30, 8192])
def test_features_and_rewards_are_those_of_single_sequences(
    make_policy: Callable[..., Policy], microbatch_tokens: int
) -> None:
    from prefopt.evaluation.features import Collected
    from prefopt.evaluation.implicit_reward import score_policy

    policy, reference = make_policy(seed=1), make_policy(seed=0)
    pool = a_pool()[:3]
    pool[1] = Group(pool[1].prompt, pool[1].completions, (Comparison(2, 0),))
    collected = Collected()
    result = score_policy(
        policy, reference, pool, beta=0.2, collected=collected, microbatch_tokens=microbatch_tokens
    )
    scores = collected.scores({})
    assert (result.comparisons, len(collected)) == (1, 10)
    assert scores.features is not None
    assert scores.logps is not None
    assert scores.features.shape == (10, 32)
    for group in pool:
        for side, one in enumerate(group.completions):
            (row,) = scores.rows([completion_key(group.prompt_key, one.text)])
            state, logp = by_hand(policy, group, side)
            _, base = by_hand(reference, group, side)
            assert scores.logps[row] == pytest.approx(logp, abs=1e-3)
            assert scores.rewards[row] == pytest.approx(0.2 * (logp - base), abs=1e-3)
            np.testing.assert_allclose(scores.features[row], state, rtol=1e-3, atol=1e-4)
    plain = score_policy(policy, reference, pool, beta=0.2, microbatch_tokens=microbatch_tokens)
    assert (result.accuracy, result.prompts) == (plain.accuracy, plain.prompts)
    assert result.margin == pytest.approx(plain.margin, abs=1e-5)  # what is compared, as ever
    assert result.margin == pytest.approx(
        scores.rewards[5] - scores.rewards[3], abs=1e-5
    )  # the third completion of the second prompt over the first


def test_completions_that_tokenising_leaves_out_have_no_scores(
    make_policy: Callable[..., Policy],
) -> None:
    from prefopt.evaluation.features import Collected
    from prefopt.evaluation.implicit_reward import score_policy

    policy, collected = make_policy(), Collected()
    pool = [
        a_group("a", "x" * 200, "yes", "no"),
        a_group("b", "y" * 200, "z" * 200),
        a_group("c", "d", "e"),
    ]
    score_policy(policy, None, pool, collected=collected, max_length=40, too_long="drop")
    scores = collected.scores({})
    kept = [("a", "yes"), ("a", "no"), ("c", "d"), ("c", "e")]
    assert list(scores.keys) == [completion_key(prompt_key(p), text) for p, text in kept]


def test_wide_layers_are_projected_and_distances_stay() -> None:
    from prefopt.evaluation.features import WIDTH, projected

    rng = np.random.default_rng(0)
    states = rng.normal(size=(200, 2048)) * rng.gamma(1.0, size=2048)
    small = projected(states)
    assert small.shape == (200, WIDTH)
    np.testing.assert_array_equal(small, projected(states))
    np.testing.assert_allclose(projected(states[3:5]), small[3:5], rtol=1e-10)
    before, after = (np.linalg.norm(x[::2] - x[1::2], axis=1) for x in (states, small))
    assert np.abs(after / before - 1).max() < 0.4  # four times the spread of 1/√128
    assert abs((after / before).mean() - 1) < 0.05


def test_from_a_pool_over_a_policy_to_questions(
    save_policy: Callable[..., Path],
    pool_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """`score --features` of three policies, `acquire` by each strategy, and the next batch."""
    base = save_policy("llama", seed=0)
    files = []
    for seed in (1, 2, 3):
        files.append(tmp_path / f"scores-{seed}.npz")
        code, result = command(
            capsys, "score", save_policy("llama", seed=seed), "--reference", base,
            "--data", pool_file, "--features", files[-1],
        )  # fmt: skip
        assert code == 0
        assert (result["comparisons"], result["accuracy"]) == (0, None)
        assert (result["features"], result["completions"]) == (str(files[-1]), 21)
    about = read_scores(str(files[0])).about
    assert about == {"policy": str(tmp_path / "llama-1"), "reference": str(base), "beta": 0.1}
    given = {"bald": files, "entropy": files[:1], "random": []}
    for strategy in STRATEGIES:
        out = tmp_path / f"{strategy}.jsonl"
        some = given.get(strategy, files[:1])
        arguments = ["acquire", pool_file, "--count", 4, "--strategy", strategy, "--controls", 0.25]
        arguments += ["--scores", *some] if some else []
        code, result = command(capsys, *arguments, "--out", out)
        assert code == 0
        asked = list(read_groups(out))
        assert (len(asked), result["controls"], result["unscored"]) == (4, 1, 0)
        answered = [Group(g.prompt, g.completions, (Comparison(0, 1),), meta=g.meta) for g in asked]
        write_groups(tmp_path / "answers.jsonl", answered)
        code, result = command(
            capsys, *arguments, "--labelled", tmp_path / "answers.jsonl", "--out", out
        )
        assert (code, result["already_labelled"]) == (0, 4)
        more = {key_of(group) for group in read_groups(out)}
        assert len(more) == 4
        assert not more & {key_of(group) for group in asked}


def test_score_refuses_another_ending_for_features(
    pool_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, result = command(
        capsys, "score", "policy", "--reference", "base", "--data", pool_file, "--features", "a.csv"
    )
    assert (code, result["error"]["field"]) == (2, "--features")
    assert "must end with .npz" in result["error"]["message"]


def test_score_says_to_people_that_nothing_was_compared(
    save_policy: Callable[..., Path],
    pool_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    base, out = save_policy("llama"), tmp_path / "deep" / "scores.npz"
    line = ["score", base, "--reference", base, "--data", pool_file, "--features", out]
    assert run([str(word) for word in line]) == 0
    shown = capsys.readouterr().out
    assert "Nothing is compared in the data" in shown
    assert "nan" not in shown
    assert "of 21 completions" in " ".join(shown.split())
