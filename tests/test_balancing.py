"""Weights by hand, what they cost, and what cannot be evened out."""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prefopt.data.balancing import Part, Tally, balance, even_factors
from prefopt.data.checking.estimates import auc
from prefopt.data.formats import read_groups, write_groups
from prefopt.errors import DataError, RecipeError
from prefopt.records import Comparison, Completion, Group

Row = dict[str, Any]


def written(folder: Path, *rows: Row, name: str = "rows.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def pair(number: int, **columns: Any) -> Row:
    return {"prompt": f"p{number}", "chosen": "good", "rejected": "evil", **columns}


def weights(path: Path) -> list[float]:
    return [edge.weight for group in read_groups(path) for edge in group.comparisons]


def tallies(**weights: list[float]) -> dict[Part, Tally]:
    found = {}
    for name, numbers in weights.items():
        found[Part(name)] = tally = Tally()
        for number in numbers:
            tally.add(number)
    return found


# -- factors -------------------------------------------------------------------------------


def test_three_to_one_by_hand(tmp_path: Path) -> None:
    """Three of safety, one of style: ⅔ each and 2; (Σw)² / Σw² = 16 / (3 · 4/9 + 4) = 3."""
    data = written(tmp_path, *[pair(n, category="safety") for n in range(3)],
                   pair(3, category="style"))  # fmt: skip
    result = balance(data, "category", tmp_path / "out.jsonl")
    assert weights(tmp_path / "out.jsonl") == pytest.approx([2 / 3, 2 / 3, 2 / 3, 2.0])
    assert result["groups"] == {
        "safety": {
            "before": 0.75, "after": pytest.approx(0.5), "weight": pytest.approx(2 / 3),
            "comparisons": 3,
        },
        "style": {
            "before": 0.25, "after": pytest.approx(0.5), "weight": pytest.approx(2.0),
            "comparisons": 1,
        },
    }  # fmt: skip
    assert result["comparisons"] == 4
    assert result["effective_sample_size"] == pytest.approx(3.0)
    assert result["effective_share"] == pytest.approx(0.75)
    assert (result["limited"], result["unbalanced"], result["skipped"]) == ([], {}, {})


def test_the_limit_holds_what_is_rare() -> None:
    """Nine and one: 5/9 and 5, nine times as much. At most three times: x and 3x, 9x + 3x = 10."""
    parts = tallies(common=[1.0] * 9, rare=[1.0])
    assert list(even_factors(parts, 100).values()) == pytest.approx([5 / 9, 5.0])
    assert list(even_factors(parts, 3).values()) == pytest.approx([10 / 12, 30 / 12])
    assert list(even_factors(parts, 1).values()) == pytest.approx([1.0, 1.0])


def test_weights_that_are_there_are_multiplied(tmp_path: Path) -> None:
    """Totals 6 and 2: factors ⅔ and 2, so 4 and 4 of three comparisons: times ⅜."""
    rows = [pair(0, kind="a", weight=6), pair(1, kind="b", weight=0.5),
            pair(2, kind="b", weight=1.5), pair(3, kind="b", weight=0)]  # fmt: skip
    result = balance(written(tmp_path, *rows), "kind", tmp_path / "out.jsonl")
    assert weights(tmp_path / "out.jsonl") == pytest.approx([4 * 3 / 8, 1 * 3 / 8, 3 * 3 / 8, 0.0])
    assert result["groups"]["b"]["comparisons"] == 2  # one weighs nothing
    assert result["groups"]["a"]["before"] == 0.75
    assert sum(weights(tmp_path / "out.jsonl")) == pytest.approx(3.0)
    squares = sum(weight**2 for weight in weights(tmp_path / "out.jsonl"))
    assert result["effective_sample_size"] == pytest.approx(9 / squares)


def test_balancing_twice_is_balancing_once(tmp_path: Path) -> None:
    rng = random.Random(0)
    rows = [pair(n, category=rng.choice("aaab"), weight=rng.random()) for n in range(40)]
    balance(written(tmp_path, *rows), "category", tmp_path / "1.jsonl")
    again = balance(tmp_path / "1.jsonl", "category", tmp_path / "2.jsonl")
    assert weights(tmp_path / "2.jsonl") == pytest.approx(weights(tmp_path / "1.jsonl"))
    assert [entry["weight"] for entry in again["groups"].values()] == pytest.approx([1, 1])


def test_what_is_written_is_the_data_and_new_weights(tmp_path: Path) -> None:
    rows = [
        {**pair(0, category="a"), "source": "web"},
        {"prompt": "p0", "chosen": "good", "rejected": "third", "category": "b", "id": 7},
        pair(1, category="a", probability=0.7),
    ]
    data = written(tmp_path, *rows)
    balance(data, "category", tmp_path / "out.jsonl.gz")

    def bare(group: Group) -> tuple[Any, ...]:
        edges = [(e.preferred, e.dispreferred, e.probability) for e in group.comparisons]
        return group.prompt, group.completions, edges, group.meta, group.source

    assert [*map(bare, read_groups(tmp_path / "out.jsonl.gz"))] == [*map(bare, read_groups(data))]


def test_a_row_counts_by_its_own_column_also_in_a_group(tmp_path: Path) -> None:
    """Two rows of one prompt by different annotators are one group and two comparisons."""
    rows = [pair(0, annotator="ann"), {**pair(0, annotator="bob"), "rejected": "bad"},
            pair(1, annotator="ann"), pair(2, annotator="ann")]  # fmt: skip
    result = balance(written(tmp_path, *rows), "annotator", tmp_path / "out.jsonl")
    assert result["groups"]["bob"]["comparisons"] == 1
    first = next(iter(read_groups(tmp_path / "out.jsonl")))
    assert [edge.weight for edge in first.comparisons] == pytest.approx([2 / 3, 2.0])


def test_votes_are_weighed_as_the_comparisons_they_become(tmp_path: Path) -> None:
    votes = {"prompt": "p", "completions": ["a", "b"], "votes": ["first", "first"], "category": "x"}
    other = {**votes, "prompt": "q", "category": "y"}
    data = written(tmp_path, votes, votes, other)
    result = balance(data, "category", tmp_path / "out.jsonl")
    assert {name: entry["comparisons"] for name, entry in result["groups"].items()} == {
        "x": 1, "y": 1,
    }  # fmt: skip
    assert weights(tmp_path / "out.jsonl") == pytest.approx([1.0, 1.0])
    first = next(iter(read_groups(tmp_path / "out.jsonl")))
    assert first.comparisons[0].probability == 0.9 and len(first.votes) == 4


def test_rows_without_the_column_keep_their_weight(tmp_path: Path) -> None:
    rows = [pair(0, category="a"), pair(1, category="a"), pair(2, category="b"), pair(3)]
    result = balance(written(tmp_path, *rows), "category", tmp_path / "out.jsonl")
    assert result["unbalanced"] == {"(no category)": 1}
    assert weights(tmp_path / "out.jsonl") == pytest.approx([0.75, 0.75, 1.5, 1.0])


def test_the_source_of_a_group_is_a_column_too(tmp_path: Path) -> None:
    sides = (Completion("a"), Completion("b"))
    groups = [Group(f"p{n}", sides, (Comparison(0, 1),), source=source)
              for n, source in enumerate(["web", "web", "web", "book"])]  # fmt: skip
    write_groups(tmp_path / "in.jsonl", groups)
    result = balance(tmp_path / "in.jsonl", "source", tmp_path / "out.jsonl")
    assert result["groups"]["book"]["weight"] == pytest.approx(2.0)


def test_the_order_of_rows_changes_no_weight(tmp_path: Path) -> None:
    rng = random.Random(1)
    rows = [pair(n, category=rng.choice("aab"), rejected="x" * rng.randint(1, 9))
            for n in range(50)]  # fmt: skip
    for by in ("category", "length"):
        found = []
        for order in (rows, rows[::-1]):
            balance(written(tmp_path, *order), by, tmp_path / "out.jsonl")
            groups = read_groups(tmp_path / "out.jsonl")
            found.append({group.prompt: group.comparisons[0].weight for group in groups})
        assert found[0] == pytest.approx(found[1])


# -- lengths -------------------------------------------------------------------------------


def test_lengths_by_hand(tmp_path: Path) -> None:
    """Of differences from 4 to 7, three longer and one shorter; one of 16 alone; one of none."""

    def sides(chosen: int, rejected: int) -> Row:
        return {"chosen": "a" * chosen, "rejected": "b" * rejected}

    rows = [
        {"prompt": f"p{n}", **sides(*lengths)}
        for n, lengths in enumerate([(10, 5), (14, 7), (8, 4), (4, 10), (30, 14), (6, 6)])
    ]
    result = balance(written(tmp_path, *rows), "length", tmp_path / "out.jsonl")
    expected = [2 / 3, 2 / 3, 2 / 3, 2.0, 1.0, 1.0]
    assert weights(tmp_path / "out.jsonl") == pytest.approx(expected)
    assert list(result["groups"]) == [
        "equally long", "longer by 4 to 7", "shorter by 4 to 7", "longer by 16 to 31",
    ]  # fmt: skip
    assert result["unbalanced"] == {"equally long": 1, "longer by 16 to 31": 1}
    assert result["effective_sample_size"] == pytest.approx(36 / (3 * 4 / 9 + 4 + 2))


def test_length_says_nothing_after_balancing(tmp_path: Path) -> None:
    rng = random.Random(2)
    rows = []
    for n in range(800):
        short, long = sorted((rng.randint(1, 300), rng.randint(1, 300)))
        sides = ["s" * short, "l" * (long + 1)]
        if rng.random() < 0.8:
            sides.reverse()
        rows.append({"prompt": f"p{n}", "chosen": sides[0], "rejected": sides[1]})

    def seen(path: Path) -> tuple[float, float]:
        import numpy as np

        edges = [(len(group.completions[0].text) - len(group.completions[1].text), edge.weight)
                 for group in read_groups(path) for edge in group.comparisons]  # fmt: skip
        by, weight = np.array([by for by, _ in edges]), np.array([w for _, w in edges])
        longer = weight[by > 0].sum() / weight[by != 0].sum()
        return float(longer), auc(by, np.arange(len(by)), weight).value

    data = written(tmp_path, *rows)
    assert min(seen(data)) > 0.75
    result = balance(data, "length", tmp_path / "out.jsonl", limit=100)
    longer, area = seen(tmp_path / "out.jsonl")
    assert longer == pytest.approx(0.5, abs=0.005)  # but for what has no counterpart
    assert area == pytest.approx(0.5, abs=0.03)  # within a factor of two sizes still differ
    assert 0.5 < result["effective_share"] < 0.8


def test_a_probability_below_a_half_prefers_the_other_side(tmp_path: Path) -> None:
    rows = [
        {"prompt": "a", "chosen": "long text", "rejected": "x", "probability": 0.2},
        {"prompt": "b", "chosen": "long text", "rejected": "x", "probability": 0.5},
        {"prompt": "c", "chosen": "long text", "rejected": "x"},
    ]
    result = balance(written(tmp_path, *rows), "length", tmp_path / "out.jsonl")
    shown = {name: entry["comparisons"] for name, entry in result["groups"].items()}
    assert shown == {"tie": 1, "longer by 8 to 15": 1, "shorter by 8 to 15": 1}


# -- clusters ------------------------------------------------------------------------------


def test_clusters_of_prompts_are_evened_out(tmp_path: Path) -> None:
    rng = random.Random(3)
    cooking = "boil pasta salt tomato oven bake flour butter onion garlic".split()
    code = "python loop function class variable compile debug string list array".split()
    rows = [
        {
            "prompt": " ".join(rng.choices(words, k=8)),
            "chosen": "a",
            "rejected": "b",
            "topic": topic,
        }
        for topic, words, count in (("cooking", cooking, 90), ("code", code, 30))
        for _ in range(count)
    ]
    data = written(tmp_path, *rows)
    result = balance(data, "cluster", tmp_path / "out.jsonl", seed=4)
    after = [entry["after"] for entry in result["groups"].values()]
    assert after == pytest.approx([1 / len(after)] * len(after))
    by_topic: dict[str, float] = defaultdict(float)
    for group in read_groups(tmp_path / "out.jsonl"):
        by_topic[group.meta["topic"]] += group.comparisons[0].weight
    assert sum(by_topic.values()) == pytest.approx(120)
    first = (tmp_path / "out.jsonl").read_bytes()
    balance(data, "cluster", tmp_path / "out.jsonl", seed=4)
    assert (tmp_path / "out.jsonl").read_bytes() == first


# -- refusals ------------------------------------------------------------------------------


def test_what_would_have_no_effect_is_refused(tmp_path: Path) -> None:
    same = written(tmp_path, *[pair(n, category="a") for n in range(3)])
    with pytest.raises(RecipeError, match="nothing to even out: there is only a"):
        balance(same, "category", tmp_path / "out.jsonl")
    with pytest.raises(RecipeError, match="no comparison has this column"):
        balance(same, "kategory", tmp_path / "out.jsonl")
    with pytest.raises(RecipeError, match="equally long"):
        balance(same, "length", tmp_path / "out.jsonl")
    many = written(tmp_path, *[pair(n, id=n) for n in range(1001)])
    with pytest.raises(RecipeError, match="more than 1,000 values"):
        balance(many, "id", tmp_path / "out.jsonl")
    odd = written(tmp_path, pair(0, category="a"), pair(1, category=["a"]))
    with pytest.raises(DataError, match="row 2, field 'category'"):
        balance(odd, "category", tmp_path / "out.jsonl")
    alone = written(tmp_path, {"prompt": "p", "completion": "c", "label": True, "category": "a"})
    with pytest.raises(DataError, match="no comparisons"):
        balance(alone, "category", tmp_path / "out.jsonl")
    assert not list(tmp_path.glob("*out.jsonl*"))


# -- the command ---------------------------------------------------------------------------


def test_the_command_shows_shares_and_what_it_costs(
    call: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    rows = [*[pair(n, category="safety") for n in range(9)], pair(9, category="style")]
    data, out = written(tmp_path, *rows), tmp_path / "out.jsonl"
    code, shown, err = call("balance", data, "--by", "category", "--out", out, "--limit", 3)
    assert (code, err) == (0, "")
    assert "as good as 8.0 of 10 comparisons (80.0 %)" in shown  # 10² / (9 · 25/36 + 25/4)
    assert "90.0 %" in shown and "75.0 %" in shown and "style" in shown
    assert "--limit" in shown
    code, shown, err = call("balance", data, "--by", "category", "--out", out)
    assert code == 2 and "is there already" in err
    out.unlink()
    code, shown, _ = call("balance", data, "--by", "category", "--out", out, "--json")
    result = json.loads(shown)
    assert code == 0 and result["limited"] == [] and result["out"] == str(out)
    assert result["effective_sample_size"] == pytest.approx(100 / (9 * 25 / 81 + 25))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("", "--by"),
        ("--by category", "--out"),
        ("--by category --out {}/o.txt", "must end with"),
        ("--by category --out {}/rows.jsonl", "would be lost"),
        ("--by category --out {}/o.jsonl --limit 0.5", "Must be >= 1"),
        ("--by kategory --out {}/o.jsonl", "no comparison has this column"),
        ("--by category --out {}/o.jsonl --format nope", "format"),
    ],
)
def test_wrong_input_writes_nothing(
    call: Callable[..., tuple[int, str, str]], tmp_path: Path, arguments: str, words: str
) -> None:
    data = written(tmp_path, pair(0, category="a"), pair(1, category="b"))
    before = data.read_bytes()
    code, out, err = call("balance", data, *arguments.replace("{}", str(tmp_path)).split())
    assert (code, out) == (2, "")
    assert words in err and "Traceback" not in err
    assert [file.name for file in tmp_path.iterdir()] == ["rows.jsonl"]
    assert data.read_bytes() == before


def test_wrong_rows_stop_it_unless_told_otherwise(
    call: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    data = written(tmp_path, pair(0, category="a"), pair(1, category="b"), pair(2, chosen=""))
    out = tmp_path / "out.jsonl"
    code, _, err = call("balance", data, "--by", "category", "--out", out)
    assert code == 2 and "row 3" in err and not out.exists()
    code, shown, _ = call(
        "balance", data, "--by", "category", "--out", out, "--on-error", "skip", "--json"
    )
    assert code == 0 and json.loads(shown)["skipped"] == {"empty_completion": 1}
