"""The loop: what it refuses, when it stops, that it goes on, and that it gains something."""

from __future__ import annotations

import json
import os
import random
import re
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prefopt.data.formats import read_groups
from prefopt.errors import RecipeError, RunError
from prefopt.records import prompt_key
from prefopt.rounds.gates import best_round, reasons
from prefopt.rounds.ledger import STAGES
from prefopt.rounds.loop import run_rounds
from prefopt.rounds.settings import Gates, load_rounds, make_rounds
from prefopt.runs import fingerprint_file
from tests.faulty_server import faulty_server, last_text, status
from tests.small_loop import PROMPTS, small_loop

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def settings(tmp_path: Path, tiny_policy_folder: Path) -> dict[str, Any]:
    """A loop over a tiny policy, judged by length: seconds a round."""
    return small_loop(tmp_path, tiny_policy_folder)


# -- settings ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "field", "words"),
    [
        ({"model": None}, "model", "is missing"),
        ({"world": "reviews"}, "model", "no effect in a world"),
        ({"train": {"data": "x.jsonl"}}, "train.data", "every round makes its own"),
        ({"train": {"reference": "none"}}, "train.reference", "beside train"),
        ({"train": {"objective": {"name": "dpo", "beta": -1}}}, None, "beta"),
        ({"train": {"learning_rat": 1}}, "train.learning_rat", "did you mean"),
        ({"select": {"by": "score", "ask": "random"}}, "select.ask", "no effect"),
        ({"select": {"by": "compare", "margin": 0.1}}, "select.margin", "no effect"),
        ({"select": {"rule": "best_worst", "k": 3}}, "select.k", "no effect"),
        ({"select": {"rule": "top_k", "beta": 0.5}}, "select.beta", "no effect"),
        ({"gates": {"kl": 0}}, "gates.kl", "wrong value"),
        ({"rouns": 3}, "rouns", "did you mean"),
        ({"prompts_per_round": 17}, "prompts", "want 34 different ones beside 8"),
        ({"judge": "nonsense"}, None, "no such judge"),
    ],
)
def test_refusals(settings: dict[str, Any], change: dict[str, Any], field: str, words: str) -> None:
    with pytest.raises(RecipeError, match=words) as caught:
        run_rounds(make_rounds({**settings, **change}), progress=False)
    if field is not None:
        assert caught.value.field == field
    assert not list(Path(settings["out"]).glob("round-*/*/manifest.json"))


def test_the_example_is_a_rounds_file() -> None:
    file = load_rounds(ROOT / "examples" / "rounds" / "recipe.yaml").file
    assert file.rounds == 3 and file.world is not None


# -- gates ---------------------------------------------------------------------------------

START = {"kl": 0.0, "length": 100.0, "diversity": 0.4, "agreement": 0.9, "previous": None}


@pytest.mark.parametrize(
    ("figures", "gates", "word"),
    [
        ({"length": 149.0}, {}, None),
        ({"length": 151.0}, {}, "51 % longer"),
        ({"length": 151.0}, {"length_growth": None}, None),
        ({"kl": 11.0}, {}, None),
        ({"kl": 11.0}, {"kl": 10.0}, "11.0 nats"),
        ({"diversity": 0.19}, {}, "48 % is left"),
        ({"diversity": 0.21}, {}, None),
        ({"agreement": 0.79}, {}, "0.79 of its verdicts"),
        ({"agreement": 0.81}, {}, None),
        ({"previous": {"value": 0.4, "interval": [0.3, 0.49]}}, {}, "worse than the round"),
        ({"previous": {"value": 0.4, "interval": [0.3, 0.51]}}, {}, None),
        ({"previous": {"value": 0.4, "interval": [0.3, 0.49]}}, {"falling": False}, None),
    ],
)
def test_gates(figures: dict[str, Any], gates: dict[str, Any], word: str | None) -> None:
    found = reasons([START, {**START, **figures}], Gates(**gates))
    assert bool(found) == (word is not None)
    assert word is None or word in found[0]


def test_the_best_round_is_one_that_no_gate_stopped() -> None:
    history = [{"value": 0.1}, {"value": 0.3}, {"value": 0.3}, {"value": 0.9}]
    assert best_round(history, {1: [], 2: [], 3: ["too long"]}) == 1
    assert best_round(history[:1], {}) == 0
    assert best_round([{"value": 0.1}, {"value": 0.0}], {1: []}) == 0


# -- the loop ------------------------------------------------------------------------------


def digest(folder: Path) -> dict[str, Any]:
    """All that a loop came to: its data, its weights and its figures."""
    files = [
        *folder.glob("round-*/sample/samples.jsonl"), *folder.glob("round-*/judge/*.jsonl"),
        *folder.glob("round-*/evaluate/samples.jsonl"),
        *folder.glob("round-*/train/model/model.safetensors"),
    ]  # fmt: skip
    figures = json.loads((folder / "rounds.json").read_text())["history"]
    for row in figures:
        del row["seconds"]
    found = {str(file.relative_to(folder)): fingerprint_file(file) for file in sorted(files)}
    return {"files": found, "figures": figures}


def check_measurements(folder: Path, settings: dict[str, Any], history: list[Any]) -> None:
    """KL to the first policy, and wins against the first and the one before, by hand."""
    from prefopt.evaluation.win_rate import sampled_kl
    from prefopt.policies.load import load_policy
    from prefopt.rounds.measuring import SEED
    from prefopt.sampling.generate import sample_tokens

    def answers(number: int) -> dict[Any, list[str]]:
        path = folder / f"round-{number}/evaluate/samples.jsonl"
        return {g.prompt: [c.text for c in g.completions] for g in read_groups([str(path)])}

    def wins(one: int, other: int) -> float:
        ours, theirs = answers(one), answers(other)
        told = [
            (len(a) > len(b)) + (len(a) == len(b)) / 2
            for prompt in ours
            for a, b in zip(ours[prompt], theirs[prompt], strict=True)
        ]
        return sum(told) / len(told)

    for number in (1, 2):
        assert history[number]["initial"]["value"] == pytest.approx(wins(number, 0))
        assert history[number]["previous"]["value"] == pytest.approx(wins(number, number - 1))
    assert wins(2, 0) != wins(2, 1), "else the two could be exchanged"
    prompts = list(answers(0))
    last, first = (
        load_policy(name) for name in (folder / "round-2/train/model", settings["model"])
    )
    drawn = sample_tokens(last, prompts, n=2, max_new_tokens=8, seed=SEED)
    assert history[2]["kl"] == pytest.approx(sampled_kl(last, first, drawn).kl)
    texts = [text for own in answers(2).values() for text in own]
    assert history[2]["length"] == sum(map(len, texts)) / len(texts)


def test_rounds_do_what_they_say(settings: dict[str, Any]) -> None:
    document = run_rounds(make_rounds(settings), progress=False)
    folder = Path(settings["out"])
    assert document["state"] == "done" and len(document["history"]) == 3
    used: list[bytes] = []
    for number in (1, 2):
        for stage in STAGES:
            assert (folder / f"round-{number}" / stage / "manifest.json").exists(), stage
        samples = list(read_groups([str(folder / f"round-{number}/sample/samples.jsonl")]))
        assert all(len(group.completions) == 3 for group in samples)
        used += [group.prompt_key for group in samples]
        kept = json.loads((folder / f"round-{number}/sample/samples.jsonl.manifest").read_text())
        assert kept["asked"]["settings"]["seed"] == number, "every round draws anew"
        for group in read_groups([str(folder / f"round-{number}/judge/pairs.jsonl")]):
            lengths = [len(item.text) for item in group.completions]
            (edge,) = group.comparisons
            assert lengths[edge.preferred] == min(lengths)
            assert lengths[edge.dispreferred] == max(lengths)
    measured = read_groups([str(folder / "round-0/evaluate/samples.jsonl")])
    keys = {group.prompt_key for group in measured}
    assert len(set(used)) == 12 and not keys & set(used)
    assert set(used) | keys <= {prompt_key(text) for text in PROMPTS}
    assert document["history"][0]["kl"] == 0 and document["history"][2]["kl"] != 0
    check_measurements(folder, settings, document["history"])
    best = document["best"]["round"]
    link = folder / "model"
    assert best == max(range(3), key=lambda number: document["history"][number]["value"])
    assert link.resolve() == (folder / f"round-{best}/train/model").resolve() if best else True
    assert link.exists() == (best > 0)
    for page in re.findall(r'<a href="([^"]+)"', (folder / "report.html").read_text()):
        assert (folder / page).is_file(), page
    # one judge is for short answers and the other for long ones
    assert document["history"][0]["agreement"] == 0
    assert (folder / "report.html").read_text().count("<svg") >= 5


def test_the_reference_and_the_data_of_each_round(settings: dict[str, Any]) -> None:
    import yaml

    def recipes(**change: Any) -> list[dict[str, Any]]:
        out = Path(settings["out"] + "".join(change.values()))
        run_rounds(make_rounds({**settings, **change, "out": str(out)}), progress=False)
        return [yaml.safe_load((out / f"round-{n}/train/recipe.yaml").read_text()) for n in (1, 2)]

    _, second = recipes()
    assert second["reference"]["name"] == settings["model"]
    assert second["model"].endswith("round-1/train/model") and len(second["data"]) == 1
    _, second = recipes(reference="previous", data="expanded")
    assert second["reference"]["name"] == "initial"
    assert second["model"].endswith("round-1/train/model") and len(second["data"]) == 2
    _, second = recipes(start="initial", reference="previous")
    assert second["reference"]["name"].endswith("round-1/train/model")
    assert second["model"] == settings["model"]


def test_a_finished_loop_is_not_done_again_and_may_get_longer(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_rounds(make_rounds({**settings, "rounds": 1}), progress=False)
    folder = Path(settings["out"])
    before = digest(folder)
    times = {p: p.stat().st_mtime_ns for p in folder.glob("round-1/**/*") if p.is_file()}
    longer = run_rounds(make_rounds(settings), progress=False)
    assert len(longer["history"]) == 3
    assert {p: p.stat().st_mtime_ns for p in times} == times
    assert digest(folder)["figures"][:2] == before["figures"]
    with pytest.raises(RunError, match="another setting") as caught:
        run_rounds(make_rounds({**settings, "judge": "longest"}), progress=False)
    assert caught.value.field == "judge"


def test_going_on_with_a_finished_loop_never_forgets_what_was_known(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefopt.rounds.ledger import Ledger

    run_rounds(make_rounds(settings), progress=False)
    told: list[int] = []
    write = Ledger.write

    def noted(self: Ledger, state: str, **found: Any) -> dict[str, Any]:
        told.append(len(found["history"]))
        return write(self, state, **found)

    monkeypatch.setattr(Ledger, "write", noted)
    run_rounds(make_rounds(settings), progress=False)
    assert told == [3]

    # a gate stops, is opened, and is closed again: nothing is computed anew
    gates = {**settings["gates"], "kl": 1e-9}
    stopped = run_rounds(make_rounds({**settings, "gates": gates}), progress=False)
    assert stopped["state"] == "stopped" and len(stopped["history"]) == 2
    assert stopped["best"]["round"] == 0 and stopped["best"]["model"] == settings["model"]
    assert not (Path(settings["out"]) / "model").exists()
    again = run_rounds(make_rounds(settings), progress=False)
    assert again["state"] == "done" and len(again["history"]) == 3


def test_a_folder_with_something_else_is_left_alone(settings: dict[str, Any]) -> None:
    folder = Path(settings["out"])
    folder.mkdir()
    (folder / "thesis.txt").write_text("mine")
    with pytest.raises(RunError, match="something else"):
        run_rounds(make_rounds(settings), progress=False)
    assert [path.name for path in folder.iterdir()] == ["thesis.txt"]


def test_pairs_are_compared_within_a_budget_and_chosen(settings: dict[str, Any]) -> None:
    select = {"by": "compare", "ask": "d-optimal", "per_prompt": 2, "budget": 5}
    document = run_rounds(make_rounds({**settings, "rounds": 1, "select": select}), progress=False)
    figures = document["rounds"][0]
    assert figures["select"]["questions"] == 5 and figures["select"]["strategy"] == "d-optimal"
    assert figures["judge"]["questions"] == 5
    per_prompt = Counter(
        group.prompt_key
        for group in read_groups([str(Path(settings["out"]) / "round-1/select/questions.jsonl")])
    )
    assert max(per_prompt.values()) <= 2


def test_a_judge_with_a_taste_for_length_is_caught(settings: dict[str, Any]) -> None:
    change = {
        "judge": "longest", "rounds": 4, "prompts_per_round": 8,
        "sample": {"n": 4, "max_new_tokens": 24},
        "train": {"objective": "dpo", "learning_rate": 1e-2, "batch_size": 8, "epochs": 3},
        "evaluate": {"count": 8}, "gates": {"length_growth": 0.05, "diversity": None},
    }  # fmt: skip
    document = run_rounds(make_rounds({**settings, **change}), progress=False)
    assert document["state"] == "stopped" and "longer than at the start" in document["reason"]
    last = len(document["history"]) - 1
    assert document["best"]["round"] < last
    first, grown = document["history"][0]["length"], document["history"][last]["length"]
    assert grown > 1.05 * first


# -- killed --------------------------------------------------------------------------------


def die_after(count: int) -> None:
    """SIGKILL this process at one of the moments when something is made to last."""
    import prefopt.sampling.keeping as keeping
    from prefopt.judges.lines import Lines
    from prefopt.training import loop

    left = [count]

    def counted(work: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **named: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return work(*arguments, **named)

        return wrapped

    os.replace = counted(os.replace)
    Lines.add = counted(Lines.add)  # type: ignore[method-assign]
    keeping._File._append = counted(keeping._File._append)  # type: ignore[method-assign]
    loop.fit = counted(loop.fit)


def attempt(settings: dict[str, Any], count: int | None) -> int:
    """Run the loop in a process of its own; its exit status, negative for a signal."""
    process = os.fork()
    if process == 0:
        code = 1
        try:
            if count is not None:
                die_after(count)
            run_rounds(make_rounds(settings), progress=False)
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_killed_anywhere_it_comes_to_the_same(settings: dict[str, Any], tmp_path: Path) -> None:
    import prefopt.training.train  # noqa: F401  (once, and not in every process)

    settings["select"] = {"by": "compare", "per_prompt": 2}
    whole = {**settings, "out": str(tmp_path / "whole")}
    assert attempt(whole, None) == 0
    draw, killed = random.Random(0), 0
    while (code := attempt(settings, draw.randint(1, 12))) != 0:
        assert code == -signal.SIGKILL, code
        killed += 1
        assert killed < 60
    assert killed >= 8
    one, other = digest(Path(whole["out"])), digest(Path(settings["out"]))
    assert one == other
    for path in Path(settings["out"]).glob("verdicts/*.jsonl"):
        keys = [json.loads(line)["line"]["key"] for line in path.read_text().splitlines()]
        assert len(keys) == len(set(keys)) > 20, "no judge is asked twice"


# -- other judges --------------------------------------------------------------------------


def test_the_judge_may_be_a_served_model_that_fails_now_and_then(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    rubric = tmp_path / "rubric.yaml"
    rubric.write_text(
        "compare: |\n  {{ prompt }}\n  ONE\n  {{ first }}\n  TWO\n  {{ second }}\n"
        "  Between the marks {{ mark }} is what is judged.\n"
    )

    def shorter(body: dict[str, Any], index: int) -> str:
        _, one, two = re.split("\nONE\n|\nTWO\n", last_text(body))
        two = two[: two.rindex("Between the marks")]
        return "[[A]]" if len(one.strip()) < len(two.strip()) else "[[B]]"

    def fault(number: int, body: dict[str, Any]) -> Any:
        return status(500) if number % 5 == 0 else None

    change = {"rounds": 1, "select": {"per_prompt": 2, "budget": 9}}
    with faulty_server(fault, say=shorter) as server:
        judge = {"server": server.url, "concurrency": 2, "rubric": str(rubric)}
        served = {**settings, **change, "judge": judge}
        document = run_rounds(make_rounds(served), progress=False)
        answered = len(server.answered)
        again = run_rounds(make_rounds(served), progress=False)
        assert len(server.answered) == answered, "what was asked is known"
    assert again["history"] == document["history"]
    figures = document["rounds"][0]
    assert figures["select"]["by"] == "compare" and figures["judge"]["questions"] == 9
    assert figures["judge"]["comparisons"] > 4
    for group in read_groups([str(Path(settings["out"]) / "round-1/judge/pairs.jsonl")]):
        for edge in group.comparisons:
            better, worse = (group.completions[i].text for i in (edge.preferred, edge.dispreferred))
            assert len(better) < len(worse)
