"""The command line: what each verb prints and writes, and how every failure ends."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prefopt.cli import app as app_module
from prefopt.cli.app import COMMANDS
from prefopt.cli.train import PANELS
from prefopt.errors import RecipeError
from prefopt.recipe import Recipe

PAIRS = [
    {"prompt": f"The film number {number} was", "chosen": " a quiet delight.", "rejected": " dull."}
    for number in range(12)
]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in PAIRS))
    return path


Call = Callable[..., tuple[int, str, str]]


def one_object(out: str) -> dict[str, Any]:
    """What `--json` printed: a single line with an object, and nothing else."""
    (line,) = out.splitlines()
    document = json.loads(line)
    assert isinstance(document, dict)
    return document


# -- help and version ----------------------------------------------------------------------


@pytest.mark.parametrize("verb", [name for name, *_ in COMMANDS])
def test_every_help_page_describes_its_options_and_its_json(call: Call, verb: str) -> None:
    code, out, err = call(verb, "--help")
    assert (code, err) == (0, "")
    assert f"Usage: prefopt {verb}" in out
    assert "With --json:" in " ".join(out.split())
    for nothing in ("False", "()", "None"):
        assert f"[default: {nothing}]" not in out


def test_the_first_page_lists_the_commands_in_the_order_of_use(call: Call) -> None:
    code, out, _ = call("--help")
    assert code == 0
    places = [out.index(f"│ {name} ") for name, *_ in COMMANDS]
    assert places == sorted(places)


def test_version(call: Call) -> None:
    import prefopt

    assert call("--version") == (0, f"{prefopt.__version__}\n", "")


@pytest.mark.parametrize("seed", ["-1", str(2**31)])
@pytest.mark.parametrize(
    "line",
    [
        "demo", "check x", "split x --out y", "balance x --by length --out y", "aggregate x",
        "acquire x --count 1 --out y",
        "score x --data y", "sample x", "judge x --judge longest --out y", "evaluate x",
        "revise x --constitution y --speaker lm:z --out o", "agreement x", "frontier --out y",
        "label demo",
    ],
)  # fmt: skip
def test_a_seed_is_in_the_range_that_recipes_have(call: Call, line: str, seed: str) -> None:
    code, _, err = call(*line.split(), "--seed", seed)
    assert code == 2 and f'Invalid value "{seed}" for --seed' in err, err


def test_every_setting_of_a_recipe_is_a_flag() -> None:
    shown = [name for names in PANELS.values() for name in names]
    assert sorted(shown) == sorted(Recipe.model_fields)


RUDE = {"name": "rude", "patterns": ["damn"], "limit": 0.05}


@pytest.mark.parametrize(
    ("flags", "settings"),
    [
        ("--objective ipo", {"objective.name": "ipo"}),
        ("--objective=ipo --objective.beta 0.2", {"objective.name": "ipo", "objective.beta": 0.2}),
        ("--objective.name ipo --warmup 0", {"objective.name": "ipo", "warmup": 0}),
        ("--objective.plus.sft 0.2", {"objective.plus.sft": 0.2}),
        ("--objective.plus.ld-dpo.share 0.2", {"objective.plus.ld_dpo.share": 0.2}),
        ("--objective.plus '{sft: 0.2}'", {"objective.plus": {"sft": 0.2}}),
        ("--adapter lora --adapter.rank 4", {"adapter.name": "lora", "adapter.rank": 4}),
        ("--adapter none", {"adapter": "none"}),
        (
            "--reference 2024 --reference.update-every 64",
            {"reference.name": "2024", "reference.update_every": 64},
        ),
        ("--reference.update_every 64", {"reference.update_every": 64}),
        ("--probe p.jsonl --probe.every 20", {"probe.prompts": "p.jsonl", "probe.every": 20}),
        ("--probe none", {"probe": "none"}),
        ("--probe.reward.rule 1:2", {"probe.reward.rule": "1:2"}),
        (
            "--constraints '[{name: rude, patterns: [damn], limit: 0.05}]'",
            {"constraints": [RUDE]},
        ),
    ],
)
def test_flags_are_settings_by_dotted_name(
    call: Call, monkeypatch: pytest.MonkeyPatch, flags: str, settings: dict[str, Any]
) -> None:
    seen: list[dict[str, Any]] = []

    def note(path: str | None, overrides: dict[str, Any]) -> None:
        seen.append(overrides)
        raise RecipeError("seen")

    monkeypatch.setattr("prefopt.cli.train.load_recipe", note)
    code, _, err = call("train", *shlex.split(flags))
    assert (code, seen) == (2, [settings]), err


# -- wrong input ---------------------------------------------------------------------------

#: command line, exit code, and words of the error; {} is a folder of the test's own
WRONG = (
    ("trian", 2, 'Did you mean "train"'),
    ("--nope", 2, "--nope"),
    ("train", 2, "'model' is missing"),
    ("train {}/nope.yaml", 2, "no such recipe file"),
    ("train {}/broken.yaml", 2, "not YAML"),
    ("train {}/unknown.yaml", 2, "there is no setting 'epoch'"),
    ("train {}", 2, "a recipe is a file"),
    ("train {}/good.yaml more", 2, "more was given"),
    ("train {}/good.yaml --nope 3", 2, "--nope"),
    ("train {}/good.yaml --objective dppo", 2, "dppo"),
    ("train {}/good.yaml --objective.name dppo", 2, "dppo"),
    ("train {}/good.yaml --objective", 2, "needs a value"),
    ("train {}/good.yaml --objective ipo --objective.name dpo", 2, "--objective ipo was given too"),
    ("train {}/good.yaml --adapter none --adapter.rank 4", 2, "--adapter none was given too"),
    ("train {}/good.yaml --objective.plus.sft -1", 2, "a weight above 0"),
    ("train {}/good.yaml --reference.mixture 0.5", 2, "no effect"),
    ("train {}/good.yaml --reference.update-evry 5", 2, "did you mean 'update_every'?"),
    ("train {}/good.yaml --constraints [{name:", 2, "a list of constraints"),
    ("train {}/good.yaml --constraints [{nme:1}]", 2, "constraints.0"),
    ("train {}/good.yaml --probe.every 5", 2, "--probe.prompts"),
    ("train {}/good.yaml --objective.gamma 3", 2, "no option 'gamma'"),
    ("train {}/good.yaml --learning-rate", 2, "needs a value"),
    ("train {}/good.yaml --learning-rate -1", 2, "wrong value for learning_rate"),
    ("train {}/good.yaml --learning-rate 1 --learning-rate 2", 2, "multiple times"),
    ("train {}/good.yaml --early-stop 3", 2, "no effect"),
    ("train {}/good.yaml --reference none", 2, "reference"),
    ("train {}/good.yaml --model {}/nope/nope/nope", 2, "not there"),
    ("train {}/good.yaml --model {}", 2, "without a model"),
    ("train {}/good.yaml --data {}/nope.jsonl", 2, "no such file"),
    ("train {}/good.yaml --data {}/empty.jsonl", 2, "no rows"),
    ("train {}/good.yaml --data {}/broken.jsonl", 2, "not"),
    ("train {}/good.yaml --max-length 2", 2, "more than max_length"),
    ("train {}/good.yaml --out {}/good.yaml/x", 1, "a file is where a folder is needed"),
    ("train {}/good.yaml --out {}", 1, "not a run"),
    ("check", 2, "is missing"),
    ("check {}/nope.jsonl", 2, "no such file"),
    ("check {}/pairs.jsonl --fail-on bad", 2, "bad"),
    ("check {}/pairs.jsonl --format nope", 2, "format"),
    ("balance {}/pairs.jsonl --out {}/new.jsonl", 2, "--by"),
    ("balance {}/pairs.jsonl --by topic --out {}/new.jsonl", 2, "no comparison has this column"),
    ("balance {}/pairs.jsonl --by length --out {}/good.yaml", 2, "must end with"),
    ("balance {}/broken.jsonl --by length --out {}/new.jsonl", 2, "not"),
    ("clean {}/pairs.jsonl --out {}/new.jsonl --removed {}/r.jsonl", 2, "--drop"),
    ("clean {}/pairs.jsonl --out {}/new.jsonl --removed {}/r.jsonl --drop x", 2, "no such kind"),
    ("score {}/base --reference {}/base --data {}/nope.jsonl", 2, "no such file"),
    ("score {}/base --reference {}/base", 2, "--data"),
    ("score {}/base --data {}/pairs.jsonl --reference {}", 2, "without a model"),
    ("score {}/base --reference {}/base --data {}/pairs.jsonl --beta 0", 2, "Must be > 0"),
    ("score {}/base --reference {}/base --data {}/pairs.jsonl --out {}", 2, "must end with"),
    ("score {}/base --reference {}/base --data {}/pairs.jsonl --max-length x", 2, "int"),
    ("sample {}/base", 2, "either files or --prompt"),
    ("sample {}/base {}/pairs.jsonl --prompt x", 2, "either files or --prompt"),
    ("sample {}/base {}/empty.jsonl", 2, "no rows"),
    ("sample {}/base {}/broken.jsonl", 2, "not"),
    ("sample {}/base --prompt x --top-p 2", 2, "top_p"),
    ("sample {}/base {}/pairs.jsonl --out {}/pairs.jsonl", 2, "would be lost"),
    ("sample {}/base {} --out {}/pairs.jsonl", 2, "would be lost"),
    ("score {}/base --reference {}/base --data {}/pairs.jsonl --out {}/pairs.jsonl", 2, "lost"),
    ("sample {}/base --prompt x --device nope", 2, "device cannot be used"),
    ("train {}/good.yaml --device nope", 2, "device cannot be used"),
    ("train {}/good.yaml --objective.beta .inf", 2, "finite number"),
    ("sample {}/base --prompt x --out {}/good.yaml/s.jsonl", 2, "folder cannot be made"),
    ("sample {} --prompt x", 2, "without a model"),
    ("report {}/nope", 2, "no such run"),
    ("report {}", 1, "metrics"),
    ("export {}/base", 2, "is missing"),
    ("export {}/base --out {}", 1, "something already"),
    ("export {} --out {}/new", 2, "without a model"),
    ("demo --seed x", 2, "int"),
    ("demo --out {}", 1, "not a demonstration"),
)


@pytest.fixture
def folder(tiny_policy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, data, recipes, and files that are wrong."""
    folder = tmp_path_factory.mktemp("wrong")
    (folder / "base").symlink_to(tiny_policy_folder)
    files = {
        "pairs.jsonl": "".join(json.dumps(row) + "\n" for row in PAIRS),
        "empty.jsonl": "",
        "broken.jsonl": json.dumps(PAIRS[0]) + "\n{'prompt'\n",
        "good.yaml": f"model: {folder}/base\ndata: {folder}/pairs.jsonl\nout: {folder}/run\n",
        "broken.yaml": "model: [a",
        "unknown.yaml": "model: m\nepoch: 3\n",
    }
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize(("line", "code", "words"), WRONG, ids=[line for line, *_ in WRONG])
def test_wrong_input_ends_with_a_sentence_and_the_right_code(
    call: Call, folder: Path, line: str, code: int, words: str
) -> None:
    before = sorted(folder.iterdir())
    arguments = line.replace("{}", str(folder)).split()
    found, out, err = call(*arguments)
    assert (found, out) == (code, "")
    assert "error: " in err
    assert words in err
    assert "Traceback" not in err
    found, out, _ = call(*arguments, "--json")
    error = one_object(out)["error"]
    assert found == code
    assert {"type", "message", "file", "row", "field", "value", "remedy"} <= set(error)
    assert words in json.dumps(error, ensure_ascii=False).replace('\\"', '"')
    assert sorted(folder.iterdir()) == before  # nothing half-written


def test_an_error_names_file_row_and_field(call: Call, folder: Path) -> None:
    _, out, _ = call("train", folder / "unknown.yaml", "--json")
    error = one_object(out)["error"]
    assert error["type"] == "RecipeError"
    assert (error["file"], error["row"], error["field"]) == (f"{folder}/unknown.yaml", 2, "epoch")
    assert error["remedy"] == "did you mean 'epochs'?"
    _, out, _ = call("train", folder / "good.yaml", "--data", folder / "broken.jsonl", "--json")
    error = one_object(out)["error"]
    assert (error["type"], error["file"], error["row"]) == (
        "DataError", f"{folder}/broken.jsonl", 2,
    )  # fmt: skip


def test_json_without_a_command_is_still_one_object(call: Call) -> None:
    code, out, _ = call("--json")
    assert (code, one_object(out)["error"]["type"]) == (2, "UsageError")


def test_users_text_is_printed_as_it_is(call: Call) -> None:
    _, _, err = call("check", "[bold]x[/bold].jsonl")
    assert "[bold]x[/bold].jsonl" in err


# -- what goes wrong by itself -------------------------------------------------------------


def failing(error: BaseException) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        print("a library talks")
        raise error

    return fail


def test_an_unexpected_error_is_one_line_and_says_how_to_see_more(
    call: Call, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "prefopt.data.checking.check.check", failing(ZeroDivisionError("by zero\nmore"))
    )
    monkeypatch.delenv("PREFOPT_DEBUG", raising=False)
    code, _, err = call("check", data)
    assert code == 1
    assert "unexpected ZeroDivisionError: by zero\n" in err
    assert "PREFOPT_DEBUG=1" in err
    assert "Traceback" not in err
    code, out, err = call("check", data, "--json")
    error = one_object(out)["error"]
    assert (code, error["type"]) == (1, "ZeroDivisionError")
    assert "a library talks" in err
    monkeypatch.setenv("PREFOPT_DEBUG", "1")
    code, _, err = call("check", data)
    assert code == 1
    assert "Traceback" in err


def test_ctrl_c_is_130(call: Call, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prefopt.data.checking.check.check", failing(KeyboardInterrupt()))
    code, _, err = call("check", data)
    assert code == 130
    assert "interrupted" in err
    code, out, _ = call("check", data, "--json")
    assert (code, one_object(out)["error"]["type"]) == (130, "KeyboardInterrupt")


def test_numbers_that_json_lacks_become_null(capsys: pytest.CaptureFixture[str]) -> None:
    from prefopt.cli.outcome import print_json

    print_json({"a": float("nan"), "b": [float("inf"), 1.5], "c": {"d": True}})
    assert one_object(capsys.readouterr().out) == {"a": None, "b": [None, 1.5], "c": {"d": True}}


def test_a_reader_that_leaves_early_is_no_traceback(data: Path) -> None:
    line = f"{sys.executable} -m prefopt check {data} --json"
    done = subprocess.run(
        f"set -o pipefail; {line} | true", shell=True, executable="/bin/bash",
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.stderr == ""


# -- check ---------------------------------------------------------------------------------


def test_check_counts_and_finds(call: Call, tmp_path: Path, data: Path) -> None:
    code, out, _ = call("check", data, "--json")
    assert code == 0
    document = one_object(out)
    assert {key: document[key] for key in ("rows", "groups", "comparisons")} == {
        "rows": 12, "groups": 12, "comparisons": 12,
    }  # fmt: skip
    assert [finding["kind"] for finding in document["findings"]] == ["length_bias"]
    code, out, _ = call("check", data)
    assert code == 0
    assert "12 rows: 12 prompts with 12 comparisons." in out
    same = tmp_path / "same.jsonl"
    same.write_text(json.dumps({"prompt": "a", "chosen": "b", "rejected": "b"}) + "\n")
    code, out, _ = call("check", data, same)
    assert code == 0
    assert "error" in out
    assert call("check", data, same, "--fail-on", "error")[0] == 1
    code, out, _ = call("check", data, same, "--fail-on", "note", "--json")
    finding, bias = one_object(out)["findings"]
    assert (code, finding["level"], finding["count"]) == (1, "error", 1)
    assert bias["level"] == "warning" and 0 < bias["interval"][0] < bias["value"] == 1.0
    assert finding["rows"] == [{"file": str(same), "row": 1}]


def test_fail_on_warning_lets_notes_pass(call: Call, data: Path, tmp_path: Path) -> None:
    twice = tmp_path / "twice.jsonl"
    twice.write_text(data.read_text() + json.dumps(PAIRS[0]) + "\n")
    code, out, _ = call("check", twice, "--fail-on", "error", "--json")
    assert (code, one_object(out)["findings"][0]["level"]) == (0, "warning")
    assert call("check", twice, "--fail-on", "warning")[0] == 1


def test_check_writes_a_page_and_compares_with_an_evaluation(
    call: Call, data: Path, tmp_path: Path
) -> None:
    page, asked = tmp_path / "page.html", tmp_path / "asked.jsonl"
    asked.write_text(json.dumps({"prompt": PAIRS[0]["prompt"]}) + '\n{"text": "x"}\n')
    code, out, _ = call("check", data, "--against", asked, "--out", page, "--json")
    document = one_object(out)
    assert (code, document["page"]) == (0, str(page))
    assert document["against"] == {"files": [str(asked)], "rows": 2, "prompts": 1, "unread": 1}
    assert "leaked_prompt" in {finding["kind"] for finding in document["findings"]}
    assert page.read_text(encoding="utf-8").lstrip().lower().startswith("<!doctype html>")
    code, out, _ = call("check", data, "--against", asked, "--quick")
    assert code == 0
    assert "of 2 rows (1 different prompts, 1 rows without one)" in " ".join(out.split())


def test_check_says_where_by_row_and_of_several_files_by_name(
    call: Call, data: Path, tmp_path: Path
) -> None:
    same = tmp_path / "same.jsonl"
    same.write_text((json.dumps({"prompt": "a", "chosen": "b", "rejected": "b"}) + "\n") * 5)
    assert "rows 1, 2, 3" in call("check", same, "--quick")[1]
    said = "".join(call("check", data, same, "--quick")[1].split())
    assert "same.jsonl:1" in said and "and2more" in said


def test_check_measures_lengths_in_tokens(call: Call, data: Path, tokenizer_folder: Path) -> None:
    line = ("check", data, "--tokenizer", tokenizer_folder, "--quick", "--json")
    _, out, _ = call(*line, "--max-length", "4")
    document = one_object(out)
    assert "too_long" in {finding["kind"] for finding in document["findings"]}
    tokens = document["figures"]["tokens"]
    assert tokens["limit"] == 4 and tokens["over"] > 0
    assert one_object(call(*line)[1])["figures"]["tokens"]["limit"] is None
    code, _, err = call("check", data, "--tokenizer", data)
    assert code == 2 and "cannot load a tokenizer" in err


@pytest.mark.parametrize(
    "options", [["--max-length", "9"], ["--embed", "model", "--quick"], ["--out", "page.pdf"]]
)
def test_check_refuses_what_would_have_no_effect(
    call: Call, data: Path, options: list[str]
) -> None:
    code, out, _ = call("check", data, *options, "--json")
    error = one_object(out)["error"]
    assert (code, error["type"], error["field"]) == (2, "UsageError", options[0])


def test_check_tells_prompts_apart_by_a_models_hidden_states(
    call: Call, data: Path, tiny_policy_folder: Path
) -> None:
    code, out, _ = call("check", data, "--embed", tiny_policy_folder, "--json")
    assert code == 0
    assert one_object(out)["figures"]["coverage"]["clusters"]


# -- train, score, sample, report, export --------------------------------------------------


@pytest.fixture
def trained(call: Call, tiny_policy_folder: Path, data: Path, tmp_path: Path) -> Path:
    """A run with an adapter that has really learned something."""
    out = tmp_path / "run"
    code, _, err = call(
        "train", "--model", tiny_policy_folder, "--data", data, "--out", out, "--batch-size", 4,
        "--learning-rate", "1e-2", "--objective.beta", 0.2, "--adapter.name", "lora",
        "--adapter.rank", 4,
    )  # fmt: skip
    assert code == 0, err
    return out


def test_train_from_flags_writes_a_run_and_is_not_done_twice(
    call: Call, trained: Path, tiny_policy_folder: Path, data: Path
) -> None:
    recipe = (trained / "recipe.yaml").read_text()
    assert "  beta: 0.2  # command line" in recipe
    assert "batch_size: 4  # command line" in recipe
    assert "warmup: 0.1  # default" in recipe
    weights = (trained / "model" / "adapter_model.safetensors").read_bytes()
    code, out, _ = call("train", trained / "recipe.yaml", "--json")
    result = one_object(out)
    assert code == 0
    assert {"run", "steps", "final_loss", "accuracy", "skipped"} <= set(result)
    assert (result["run"], result["steps"], result["skipped"]) == (str(trained), 3, {})
    assert "</html>" in Path(result["report"]).read_text()
    assert (trained / "model" / "adapter_model.safetensors").read_bytes() == weights
    code, _, err = call("train", trained / "recipe.yaml", "--seed", 1)
    assert code == 1
    assert "seed was 0 and is 1" in err


def test_score_ranks_like_the_data_and_writes_rows(
    call: Call, trained: Path, tiny_policy_folder: Path, data: Path, tmp_path: Path
) -> None:
    rows = tmp_path / "deep" / "rows.jsonl"
    arguments = ("score", trained, "--reference", tiny_policy_folder, "--data", data)
    code, out, _ = call(*arguments, "--out", rows, "--json")
    result = one_object(out)
    assert code == 0
    assert result["comparisons"] == len(rows.read_text().splitlines()) == 12
    low, high = result["accuracy_interval"]
    assert low <= result["accuracy"] <= high
    assert result["margin"] > 0
    code, out, _ = call(*arguments, "--beta", 0.2, "--json")
    assert one_object(out)["margin"] == pytest.approx(2 * result["margin"], rel=1e-4)
    code, out, _ = call(*arguments)
    assert code == 0
    assert "95 % interval" in out
    assert call("score", tiny_policy_folder, *arguments[2:], "--json")[0] == 0


def test_score_counts_what_it_leaves_out(
    call: Call, tiny_policy_folder: Path, data: Path, tmp_path: Path
) -> None:
    mixed = tmp_path / "mixed.jsonl"
    mixed.write_text(data.read_text() + '{"prompt": "x", "chosen": "", "rejected": "b"}\n')
    arguments = ("score", tiny_policy_folder, "--reference", tiny_policy_folder, "--data", mixed)
    code, out, _ = call(*arguments, "--json")
    assert (code, one_object(out)["error"]["row"]) == (2, 13)
    code, out, _ = call(*arguments, "--on-error", "skip", "--json")
    result = one_object(out)
    assert (code, result["skipped"], result["accuracy"]) == (0, {"empty_completion": 1}, 0.5)


def test_score_skips_what_the_reader_and_what_the_tokenizer_refuses(
    call: Call, tiny_policy_folder: Path, data: Path, tmp_path: Path
) -> None:
    mixed = tmp_path / "mixed.jsonl"
    twins = [("b", "b"), ("b", "b<|eos|>"), ("b<|eos|> c", "d")]
    rows = [{"prompt": f"x{i}", "chosen": a, "rejected": b} for i, (a, b) in enumerate(twins)]
    mixed.write_text(data.read_text() + "".join(json.dumps(row) + "\n" for row in rows))
    arguments = ("score", tiny_policy_folder, "--reference", tiny_policy_folder, "--data", mixed)
    code, out, _ = call(*arguments, "--on-error", "skip", "--json")
    assert (code, one_object(out)["skipped"]) == (0, {"identical_sides": 2, "end_inside": 1})


def test_train_replaces_a_report_that_was_made_on_the_way(call: Call, trained: Path) -> None:
    finished = (trained / "report.html").read_text()
    (trained / "report.html").write_text("still running")
    assert call("train", trained / "recipe.yaml")[0] == 0
    assert (trained / "report.html").read_text() == finished


def test_sample_answers_files_and_texts_and_what_it_writes_is_read_again(
    call: Call, trained: Path, data: Path, tmp_path: Path
) -> None:
    code, out, _ = call(
        "sample", trained, "--prompt", "The", "--prompt", "A", "-n", 2, "--max-new-tokens", 4,
        "--json",
    )  # fmt: skip
    result = one_object(out)
    assert (code, result["prompts"], result["completions"]) == (0, 2, 4)
    assert [row["prompt"] for row in result["samples"]] == ["The", "A"]
    prompts, out_file = tmp_path / "prompts.jsonl", tmp_path / "samples.jsonl"
    prompts.write_text('{"prompt": "A"}\n{"prompt": "A"}\n{"prompt": "The"}\n')
    arguments = ("-n", 2, "--max-new-tokens", 4, "--out", out_file)
    assert call("sample", trained, prompts, *arguments)[0] == 0
    again = [json.loads(line) for line in out_file.read_text().splitlines()]
    assert again == result["samples"][::-1]  # a sample depends on its prompt, not on the batch
    other = tmp_path / "other.jsonl"
    assert call("sample", trained, data, "--max-new-tokens", 2, "--out", other)[0] == 0
    code, out, _ = call("check", other, "--json")
    assert (code, one_object(out)["rows"]) == (0, 12)


def test_sample_shows_prompts_and_answers(call: Call, tiny_policy_folder: Path) -> None:
    code, out, _ = call("sample", tiny_policy_folder, "--prompt", "[red]", "--max-new-tokens", 2)
    assert code == 0
    assert "[red]" in out


def test_report_prints_its_path(call: Call, trained: Path) -> None:
    (trained / "report.html").unlink()
    assert call("report", trained) == (0, f"{trained}/report.html\n", "")
    assert (trained / "report.html").exists()
    _, out, _ = call("report", trained, "--json")
    assert one_object(out) == {"report": f"{trained}/report.html"}


def test_export_merges_the_adapter_and_loads_without_peft(
    call: Call, trained: Path, tiny_policy_folder: Path, tmp_path: Path
) -> None:
    import torch
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    plain = tmp_path / "plain"
    code, out, err = call("export", trained, "--out", plain, "--json")
    assert code == 0, err
    result = one_object(out)
    assert (result["model"], result["merged"]) == (str(plain), True)
    assert result["difference"] < 1e-4
    assert not list(plain.glob("adapter*"))
    ids = AutoTokenizer.from_pretrained(plain)("The film was", return_tensors="pt").input_ids
    loaded = AutoModelForCausalLM.from_pretrained(plain)
    adapted = AutoPeftModelForCausalLM.from_pretrained(trained / "model")
    base = AutoModelForCausalLM.from_pretrained(tiny_policy_folder)
    with torch.no_grad():
        merged, expected, before = (model(ids).logits for model in (loaded, adapted, base))
    torch.testing.assert_close(merged, expected, atol=1e-4, rtol=1e-4)
    assert (before - expected).abs().max() > 1e-2  # the adapter does something


def test_export_of_something_else_leaves_nothing(
    call: Call, tiny_policy_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import prefopt.policies.export as export
    from prefopt.policies.load import load_policy

    def other(name: object, **settings: Any) -> Any:
        policy = load_policy(name, **settings)  # type: ignore[arg-type]
        if ".part" in str(name):
            policy.model.lm_head.weight.data += 0.1 * policy.model.lm_head.weight.data
        return policy

    monkeypatch.setattr(export, "load_policy", other)
    code, _, err = call("export", tiny_policy_folder, "--out", tmp_path / "new")
    assert code == 2
    assert "differs from its source" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["llama-0"]


def test_demo_shows_its_result(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    result = {
        "win_rate": 0.875, "win_rate_interval": [0.8, 0.9], "reward_before": -1.0,
        "reward_after": 1.5, "kl": 12.0, "seconds": 100.0, "report": "runs/demo/dpo/report.html",
    }  # fmt: skip
    asked: dict[str, Any] = {}

    def demo(out: str, **settings: Any) -> dict[str, Any]:
        asked.update(settings, out=out)
        return result

    monkeypatch.setattr("prefopt.demo.run_demo", demo)
    code, out, _ = call("demo", "--seed", 3, "--quick", "--json")
    assert (code, one_object(out)) == (0, result)
    assert asked == {"out": "runs/demo", "seed": 3, "quick": True}
    code, out, _ = call("demo")
    assert code == 0
    assert "87.5 %" in out
    assert "80.0 % to 90.0 %" in out
    assert out.rstrip().endswith("runs/demo/dpo/report.html")


# -- as a process --------------------------------------------------------------------------


def test_ctrl_c_while_training_saves_exits_130_and_goes_on(
    tiny_policy_folder: Path, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    line = [
        sys.executable, "-m", "prefopt", "train", "--model", str(tiny_policy_folder), "--data",
        str(data), "--out", str(out), "--batch-size", "1", "--epochs", "12", "--json",
    ]  # fmt: skip
    child = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    metrics = out / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and metrics.stat().st_size) and child.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    child.send_signal(signal.SIGINT)
    stdout, stderr = child.communicate(timeout=120)
    assert child.returncode == 130, stderr
    assert one_object(stdout)["error"]["type"] == "KeyboardInterrupt"
    assert "Traceback" not in stderr
    done = subprocess.run(line, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert one_object(done.stdout)["steps"] == 144
    assert "going on after step" in done.stderr


def test_the_module_runs_as_the_command(data: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "prefopt", "check", str(data), "--json"],
        capture_output=True, text=True, env={**os.environ, "NO_COLOR": "1"},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert one_object(done.stdout)["rows"] == 12


@pytest.mark.parametrize("file", ["", "nope.jsonl"], ids=["result", "error"])
def test_a_reader_who_left_and_a_full_disk_end_without_a_traceback(data: Path, file: str) -> None:
    line = [sys.executable, "-m", "prefopt", "check", file or str(data), "--json"]
    reading, writing = os.pipe()
    os.close(reading)
    left = subprocess.run(line, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (left.returncode, left.stderr) == (1, "")
    if os.path.exists("/dev/full"):
        with open("/dev/full", "w") as full_disk:
            full = subprocess.run(line, stdout=full_disk, stderr=subprocess.PIPE, text=True)
        assert full.returncode == 1
        assert full.stderr == "error: the result cannot be written: No space left on device\n"


def test_main_leaves_with_the_exit_code(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        app_module.main(["check", str(data), "--json"])
    assert caught.value.code == 0
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        app_module.main(["check", "nope.jsonl"])
    assert caught.value.code == 2


def test_what_samples_were_like_is_shown_with_limits_and_multipliers() -> None:
    from prefopt.cli.train import _probed

    probe = {
        "kl": 5.25, "length": 21.0, "costs": {"rude": 0.0375, "long": 2.0},
        "limits": {"rude": 0.05, "long": 3.0}, "multipliers": {"rude": 1.25},
    }  # fmt: skip
    assert _probed(probe) == {
        "kl of samples": "5.25 nats",
        "length of samples": "21 tokens",
        "cost of samples: rude": "0.0375, limit 0.05, multiplier 1.25",
        "cost of samples: long": "2, limit 3",
    }
    assert _probed({}) == {}
