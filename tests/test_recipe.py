"""Recipes: strict, with the origin of every value, and a text form that reads back the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from prefopt.errors import RecipeError
from prefopt.recipe import (
    ConstraintChoice,
    ObjectiveChoice,
    ProbeChoice,
    Recipe,
    ReferenceChoice,
    check_reference,
    dump,
    load_recipe,
    parse_flag,
)
from prefopt.recipe.text import parse_value

BASE = {"model": "base", "data": "pairs.jsonl", "out": "runs/a"}
RUDE = {"name": "rude", "patterns": ["damn"], "limit": 0.05}


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def refused(overrides: dict[str, Any], path: Path | None = None) -> RecipeError:
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides)
    return caught.value


# -- values and where they come from -------------------------------------------------------


def test_flags_win_over_the_file_and_the_file_over_defaults(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "model: base\ndata: pairs.jsonl\nout: runs/a\nobjective: {name: ipo, beta: 0.2}\nseed: 3\n",
    )
    resolved = load_recipe(path, {"objective.beta": 0.3, "warmup": 0.0})
    recipe, origins = resolved.recipe, resolved.origins
    assert (recipe.objective.name, recipe.objective.options) == ("ipo", {"beta": 0.3})
    assert (recipe.seed, recipe.warmup, recipe.batch_size) == (3, 0.0, 64)
    assert origins["objective.name"] == origins["seed"] == "recipe.yaml"
    assert origins["objective.beta"] == origins["warmup"] == "command line"
    assert origins["batch_size"] == "default"
    assert set(origins) == set(resolved.values())


@pytest.mark.parametrize(
    ("settings", "rate", "origin"),
    [
        ({}, 5e-7, "default for full training"),
        ({"adapter.name": "lora"}, 5e-6, "default for lora"),
        ({"objective.name": "sft"}, 2e-5, "default for sft"),
        ({"objective": "sft", "adapter": "lora"}, 2e-4, "default for sft with lora"),
        ({"learning_rate": 1e-3}, 1e-3, "command line"),
    ],
)
def test_the_learning_rate_depends_on_what_is_trained(
    settings: dict[str, Any], rate: float, origin: str
) -> None:
    resolved = load_recipe(None, {**BASE, **settings})
    assert resolved.recipe.learning_rate == rate
    assert resolved.origins["learning_rate"] == origin


def test_sources_are_a_path_a_list_of_paths_or_a_list_of_mappings() -> None:
    def sources(data: Any) -> list[tuple[str, str | None, float | None]]:
        recipe = load_recipe(None, {**BASE, "data": data}).recipe
        return [(source.path, source.name, source.share) for source in recipe.data]

    assert sources("a.jsonl") == [("a.jsonl", None, None)]
    assert sources(["x/a.jsonl", "b"]) == [
        ("x/a.jsonl", "a.jsonl", None),
        ("b", "b", None),
    ]
    assert sources([{"path": "a", "name": "help", "share": 3}, {"path": "b", "share": 1.0}]) == [
        ("a", "help", 3.0),
        ("b", "b", 1.0),
    ]


def test_an_adapter_can_be_switched_off_again(tmp_path: Path) -> None:
    path = written(tmp_path, "model: m\ndata: d\nout: o\nadapter: {name: lora, rank: 4}\n")
    assert load_recipe(path, {}).recipe.adapter.rank == 4  # type: ignore[union-attr]
    assert load_recipe(path, {"adapter": "none"}).recipe.adapter is None
    assert load_recipe(path, {"adapter": None}).recipe.adapter is None
    extra = load_recipe(path, {"adapter.use_rslora": True}).recipe.adapter
    assert extra is not None
    assert extra.options == {"use_rslora": True}


def test_the_objectives_own_defaults_are_written_out_with_their_origin() -> None:
    resolved = load_recipe(None, {**BASE, "objective.beta": 0.2})
    filled = resolved.with_objective_options({"beta": 0.1, "length_normalize": True})
    assert filled.recipe.objective.options == {"beta": 0.2, "length_normalize": True}
    assert filled.origins["objective.beta"] == "command line"
    assert filled.origins["objective.length_normalize"] == "default for dpo"


def test_a_loss_may_have_further_terms(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "model: m\ndata: d\nout: o\nobjective:\n  name: dpo\n  beta: 0.1\n  plus:\n    sft: 0.2\n",
    )
    resolved = load_recipe(path, {"objective.plus.ipo.weight": 2, "objective.plus.ipo.beta": 0.3})
    assert resolved.recipe.objective.terms == (
        ("dpo", 1.0, {"beta": 0.1}),
        ("sft", 0.2, {}),
        ("ipo", 2.0, {"beta": 0.3}),
    )
    assert resolved.values()["objective.plus"] == {"sft": 0.2, "ipo": {"weight": 2.0, "beta": 0.3}}
    assert resolved.origins["objective.plus"] == "recipe.yaml, command line"
    assert load_recipe(path, {"objective": "ipo"}).recipe.objective.terms == (("ipo", 1.0, {}),)
    filled = resolved.with_objective_options(
        {"beta": 0.5, "label_smoothing": 0.0}, {"sft": {"mean": True}, "ipo": {"beta": 0.7}}
    )
    assert filled.recipe.objective.terms == (
        ("dpo", 1.0, {"beta": 0.1, "label_smoothing": 0.0}),
        ("sft", 0.2, {"mean": True}),
        ("ipo", 2.0, {"beta": 0.3}),
    )
    assert filled.origins["objective.plus"].endswith(", with the defaults of its terms")
    again = load_recipe(written(tmp_path, dump(filled)), {})
    assert again.recipe == filled.recipe
    assert again.with_objective_options({"beta": 0.5}, {"sft": {"mean": True}}) == again


def test_a_reference_may_follow_the_policy() -> None:
    def reference(**settings: Any) -> tuple[Any, ...]:
        resolved = load_recipe(None, {**BASE, **settings})
        choice, scores = resolved.recipe.reference, resolved.recipe.reference_scores
        origins = [resolved.origins[name] for name in ("reference.mixture", "reference_scores")]
        return (choice.name, choice.update_every, choice.mixture, scores, *origins)

    assert reference() == ("initial", None, None, "cache", "default", "default")
    assert reference(reference="base")[0] == "base"
    assert reference(reference={"name": "base", "update_every": 64}) == (
        "base", 64, 1.0, "each_step", "default for update_every", "default for a moving reference",
    )  # fmt: skip
    given = reference(**{"reference.update_every": 1, "reference.mixture": 0.6})
    assert given[:5] == ("initial", 1, 0.6, "each_step", "command line")


def test_a_default_may_depend_on_what_only_training_knows() -> None:
    reads = {"owner": "tdpo", "reason": "objective 'tdpo' reads the reference token by token"}
    changed = load_recipe(None, BASE).with_default("reference_scores", "each_step", **reads)
    assert changed.recipe.reference_scores == "each_step"
    assert changed.origins["reference_scores"] == "default for tdpo"
    given = load_recipe(None, {**BASE, "reference_scores": "each_step"})
    assert given.with_default("reference_scores", "each_step", **reads) is given
    with pytest.raises(RecipeError, match="cannot be cache: objective 'tdpo' reads") as caught:
        load_recipe(None, {**BASE, "reference_scores": "cache"}).with_default(
            "reference_scores", "each_step", **reads
        )
    assert (caught.value.field, caught.value.value) == ("reference_scores", "cache")


def test_constraints_and_the_probe_that_measures_them(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        """
model: m
data: d
out: o
constraints:
  - {name: rude, patterns: ['\\bdamn\\b', 'a: #'], limit: 0.05}
  - name: unsafe
    classifier: folder
    label: 1
    limit: 0.1
    mode: safe_dpo
    margin: 2
probe: prompts.jsonl
""",
    )
    resolved = load_recipe(path, {"probe.every": 20, "probe.reward.rule": "module:function"})
    rude, unsafe = resolved.recipe.constraints
    assert (rude.name, rude.ways, rude.mode, rude.limit) == (
        "rude",
        ("patterns",),
        "lagrangian",
        0.05,
    )
    assert rude.patterns == ["\\bdamn\\b", "a: #"]
    assert (unsafe.classifier, unsafe.label, unsafe.margin) == ("folder", 1, 2.0)
    probe = resolved.recipe.probe
    assert probe is not None and probe.reward is not None
    assert (probe.prompts, probe.every, probe.reward.rule) == (
        "prompts.jsonl",
        20,
        "module:function",
    )
    assert resolved.values()["probe.reward"] == {"rule": "module:function"}
    assert resolved.origins["probe.prompts"] == resolved.origins["constraints"] == "recipe.yaml"
    assert resolved.origins["probe.every"] == "command line"
    assert load_recipe(written(tmp_path, dump(resolved)), {}).recipe == resolved.recipe
    one = load_recipe(None, {**BASE, "probe": "p", "constraints": {**RUDE}})
    assert [constraint.name for constraint in one.recipe.constraints] == ["rude"]
    assert load_recipe(path, {"probe": "none", "constraints": []}).recipe.probe is None


def test_yaml_is_read_as_people_write_it(tmp_path: Path) -> None:
    path = written(
        tmp_path, "model: 1:30\ndata: 2024-01-01\nout: on\nsharing: off\nlearning_rate: 1e-6\n"
    )
    recipe = load_recipe(path, {}).recipe
    assert (recipe.model, recipe.data[0].path, recipe.out) == ("1:30", "2024-01-01", "on")
    assert (recipe.sharing, recipe.learning_rate) == ("off", 1e-6)


def test_flags_are_typed_like_the_file_except_where_only_text_makes_sense() -> None:
    assert parse_flag("learning_rate", "1e-6") == 1e-6
    assert parse_flag("max_steps", "null") is None
    assert parse_flag("adapter.target_modules", "[q_proj, v_proj]") == ["q_proj", "v_proj"]
    assert parse_flag("out", "2024") == "2024"
    assert parse_flag("objective.note", "a: b: c") == "a: b: c"


# -- the text form -------------------------------------------------------------------------


def test_a_dumped_recipe_says_where_each_value_came_from_and_reads_back(tmp_path: Path) -> None:
    settings = {"objective.beta": 0.2, "adapter": "lora", "data": ["a", "b # c"], "device": "1e-6"}
    resolved = load_recipe(None, {**BASE, **settings})
    text = dump(resolved)
    assert "  beta: 0.2  # command line" in text
    assert "learning_rate: 5.0e-06  # default for lora" in text
    again = load_recipe(written(tmp_path, text), {})
    assert again.recipe == resolved.recipe
    assert set(again.origins.values()) == {"recipe.yaml"}


_TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1)
_VALUES = st.one_of(
    _TEXT, st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.booleans()
)


@settings(deadline=None)
@example(model="0", path="auto", option="0", rate=1.0)
@given(model=_TEXT, path=_TEXT, option=_VALUES, rate=st.floats(1e-300, 1e300))
def test_any_recipe_reads_back_the_same(
    tmp_path_factory: pytest.TempPathFactory, model: str, path: str, option: Any, rate: float
) -> None:
    resolved = load_recipe(
        None,
        {"model": model, "data": [{"path": path}], "out": model, "objective.x": option,
         "learning_rate": rate, "reference.name": path, "probe.prompts": model,
         "objective.plus": {path: {"weight": rate, "x": option}},
         "constraints": [{"name": model, "patterns": [path], "limit": rate}]},
    )  # fmt: skip
    file = tmp_path_factory.getbasetemp() / "round-trip.yaml"
    file.write_bytes(dump(resolved).encode())
    assert load_recipe(file, {}).recipe == resolved.recipe


@settings(deadline=None)
@given(_VALUES)
def test_a_value_survives_its_text(value: Any) -> None:
    from prefopt.recipe.text import write

    _, _, line = write({"x": value}, {"x": "here"}).partition("\n")
    assert parse_value(line)["x"] == value


# -- what is refused -----------------------------------------------------------------------


def limited(**settings: Any) -> dict[str, Any]:
    return {"probe": "p", "constraints": [{**RUDE, **settings}]}


@pytest.mark.parametrize(
    ("settings", "field", "words"),
    [
        ({"learning_rat": 1e-6}, "learning_rat", "did you mean 'learning_rate'?"),
        ({"learning-rate": 1e-6}, "learning-rate", "did you mean 'learning_rate'?"),
        ({"lr": 1e-6}, "lr", "did you mean 'learning_rate'?"),
        ({"beta": 0.1}, "beta", "did you mean 'objective.beta'?"),
        ({"objectiv.beta": 0.1}, "objectiv", "did you mean 'objective'?"),
        ({"xyz": 1}, "xyz", "the settings are: model, data"),
        ({"data": [{"pth": "x"}]}, "data.0.pth", "did you mean 'path'?"),
        ({"learning_rate": -1.0}, "learning_rate", "a number above 0"),
        ({"learning_rate": "fast"}, "learning_rate", "a number above 0"),
        ({"learning_rate": float("nan")}, "learning_rate", "a number above 0"),
        ({"warmup": 1.5}, "warmup", "at least 0 and at most 1"),
        ({"batch_size": 2.5}, "batch_size", "a whole number at least 1"),
        ({"batch_size": True}, "batch_size", "a whole number at least 1"),
        ({"epochs": 0}, "epochs", "a whole number at least 1"),
        ({"schedule": "step"}, "schedule", "one of: cosine, linear, constant"),
        ({"gradient_checkpointing": 1}, "gradient_checkpointing", "true, false, selective"),
        ({"gradient_checkpointing": "some"}, "gradient_checkpointing", "at least 2"),
        ({"optimizer": "adam"}, "optimizer", "adamw, adamw_8bit, paged"),
        ({"optimizer.betas": [0.9, 1.0]}, "optimizer.betas.1", "at least 0 and below 1"),
        ({"optimizer.betas": [0.9]}, "optimizer.betas", "two numbers"),
        ({"objective": 3}, "objective", "a mapping"),
        ({"objective.name": 3}, "objective.name", "text"),
        ({"adapter.rank": 0}, "adapter.rank", "a whole number at least 1"),
        ({"adapter.target_modules": 3}, "adapter.target_modules", "text or a list"),
        ({"data": [{"name": "x"}]}, "data.0.path", "set data.0.path in the recipe"),
        ({"data": 3}, "data", "a path, a list of paths"),
        ({"data": []}, "data", "a path, a list of paths"),
        ({"data": [{"path": "x", "share": 0}]}, "data.0.share", "a number above 0"),
        ({"model": ""}, "model", "text"),
        ({"objective.plus": "sft"}, "objective.plus", "such as {sft: 0.2}"),
        ({"objective.plus": {"sft": 0}}, "objective.plus.sft", "a weight above 0"),
        ({"objective.plus": {"sft": True}}, "objective.plus.sft", "a weight above 0"),
        ({"objective.plus.sft.weight": -1}, "objective.plus.sft.weight", "a number above 0"),
        ({"objective.plus.sft.mean": True}, "objective.plus.sft.weight", "--objective.plus.sft"),
        ({"reference": 3}, "reference", "initial, base, initial_prompt, none, a path"),
        ({"reference.update_evry": 3}, "reference.update_evry", "did you mean 'update_every'?"),
        ({"reference.update_every": 0}, "reference.update_every", "a whole number at least 1"),
        ({"reference.mixture": 1.5}, "reference.mixture", "above 0 and at most 1"),
        ({"constraints": 3}, "constraints", "a list of constraints"),
        ({"constraints": [{**RUDE, "limt": 1}]}, "constraints.0.limt", "did you mean 'limit'?"),
        ({"constraints": [RUDE, {"name": "x"}]}, "constraints.1.limit", "in the recipe"),
        ({"constraints": [{**RUDE, "mode": "x"}]}, "constraints.0.mode", "one of: lagrangian"),
        (
            {"constraints": [{**RUDE, "patterns": "x"}]},
            "constraints.0.patterns",
            "a list of regular",
        ),
        (
            {"constraints": [{**RUDE, "patterns": []}]},
            "constraints.0.patterns",
            "a list of regular",
        ),
        ({"probe": 3}, "probe", "a path of prompts"),
        ({"probe.every": 5}, "probe.prompts", "--probe.prompts"),
        ({"probe.prompts": "p", "probe.reward.rul": "a:b"}, "probe.reward.rul", "'rule'"),
    ],
)
def test_a_wrong_setting_is_named_with_what_would_be_right(
    settings: dict[str, Any], field: str, words: str
) -> None:
    error = refused({**BASE, **settings})
    assert error.field == field
    assert words in str(error.remedy)
    assert error.file is None


@pytest.mark.parametrize("name", list(BASE))
def test_a_missing_setting_is_named_with_its_flag(name: str) -> None:
    error = refused({key: value for key, value in BASE.items() if key != name})
    assert error.field == name
    assert f"--{name}" in str(error.remedy)


@pytest.mark.parametrize(
    ("settings", "field", "reason"),
    [
        ({"eval_every": 5}, "eval_every", "there is no eval_data"),
        ({"early_stop": 2, "eval_data": "e"}, "early_stop", "there is no eval_every"),
        ({"early_stop": 2}, "early_stop", "there is no eval_data"),
        ({"data": [{"path": "a", "share": 1}]}, "data", "only one source"),
        ({"data": [{"path": "a", "share": 1}, {"path": "b"}]}, "data", "others have none"),
        ({"data": ["x/a", "y/a"]}, "data", "the same name"),
        ({"eval_data": ["x/a", "y/a"]}, "eval_data", "the same name"),
        ({"objective.plus.dpo": 1}, "objective.plus.dpo", "the objective already"),
        ({"reference.mixture": 0.5}, "reference.mixture", "without reference.update_every"),
        (
            {"reference": "none", "reference.update_every": 2},
            "reference.update_every",
            "no reference",
        ),
        ({"reference.update_every": 2, "reference_scores": "cache"}, "reference_scores", "moving"),
        ({"constraints": [RUDE]}, "probe", "no probe to take them"),
        ({"constraints": [{**RUDE, "mode": "one_shot"}]}, "probe", "mode one_shot"),
        (limited(step_size=1.0, mode="safe_dpo"), "constraints.0.step_size", "does not read it"),
        (limited(margin=1.0), "constraints.0.margin", "does not read it"),
        (limited(multiplier=1.0, mode="one_shot"), "constraints.0.multiplier", "does not read it"),
        (
            limited(step_size=1.0, multiplier=1.0, mode="penalty"),
            "constraints.0.step_size",
            "does not read it",
        ),
        (limited(mode="stages"), "constraints.0.multiplier", "finds none by itself"),
        (
            {**limited(mode="one_shot"), "reference.update_every": 3},
            "reference.update_every",
            "the reference moves",
        ),
        (limited(multiplier=0.0, mode="penalty"), "constraints.0.multiplier", "above 0"),
        (limited(rule="a:b"), "constraints.0", "patterns and rule at once"),
        (limited(patterns=None), "constraints.0", "nothing to be measured by"),
        (limited(label="bad"), "constraints.0.label", "there is no classifier"),
        ({"probe": "p", "constraints": [RUDE, RUDE]}, "constraints.0.name", "have the name 'rude'"),
        ({"probe": "p", "probe.reward": {}}, "probe.reward", "nothing to be measured by"),
    ],
)
def test_a_setting_without_effect_is_refused(
    settings: dict[str, Any], field: str, reason: str
) -> None:
    error = refused({**BASE, **settings})
    assert error.field == field
    assert reason in error.message


def test_what_only_training_knows_about_the_reference_is_checked_there() -> None:
    check_reference(load_recipe(None, BASE), needs_reference=True)
    check_reference(load_recipe(None, {**BASE, "reference": "none"}), needs_reference=False)
    for changed, needs, field in (
        ({"reference": "none"}, True, "reference"),
        ({"reference": "base"}, False, "reference"),
        ({"reference.update_every": 2}, False, "reference.update_every"),
        ({"reference_scores": "each_step"}, False, "reference_scores"),
    ):
        with pytest.raises(RecipeError) as caught:
            check_reference(load_recipe(None, {**BASE, **changed}), needs_reference=needs)
        assert caught.value.field == field


def test_a_penalty_reads_the_reference_whatever_the_objective_does() -> None:
    penalised = {**BASE, **limited(multiplier=1.0, mode="penalty")}
    check_reference(load_recipe(None, {**penalised, "reference": "base"}), needs_reference=False)
    with pytest.raises(RecipeError, match="constraint 'rude' needs a reference"):
        check_reference(
            load_recipe(None, {**penalised, "reference": "none"}), needs_reference=False
        )


# -- the file ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "row", "words"),
    [
        ("model: [a", 1, "not YAML"),
        ("model: m\n\tdata: d\n", 2, "not YAML"),
        ("- a\n- b\n", 1, "mapping"),
        ("model: m\nseed: 1\nmodel: n\n", 3, "set twice, first in row 1"),
        ("model: m\n3: x\n", 2, "must be text"),
        ("model: m\ndata: d\nout: o\nobjective:\n  name: dpo\nepoch: 3\n", 6, "no setting 'epoch'"),
        ("model: m\ndata: d\nout: o\nadapter:\n  rank: -3\n", 5, "wrong value for adapter.rank"),
        ("model: m\ndata: d\nout: o\neval_every: 3\n", 4, "no effect"),
        ("", None, "'model' is missing"),
        ("model: m\ndata:\n  - path: d\n  - pth: e\n", 4, "no setting 'data.1.pth'"),
        ("model: m\ndata:\n  - path: d\n    path: e\n", 4, "set twice, first in row 3"),
        ("model: m\ndata: d\nout: o\nreference:\n  mixture: 0.5\n", 5, "no effect"),
        (
            "model: m\ndata: d\nout: o\nprobe: p\nconstraints:\n- name: x\n  limit: 1\n",
            6,
            "nothing to be measured by",
        ),
    ],
)
def test_a_problem_in_the_file_is_named_with_its_row(
    tmp_path: Path, text: str, row: int | None, words: str
) -> None:
    path = written(tmp_path, text)
    error = refused({}, path)
    assert words in error.message
    assert (error.file, error.row) == (str(path), row)


def test_a_problem_on_the_command_line_does_not_blame_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, "model: m\ndata: d\nout: o\nwarmup: 0.1\n")
    error = refused({"warmup": 2.0}, path)
    assert (error.file, error.row, error.value) == (None, None, 2.0)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    assert "no such recipe" in refused({}, tmp_path / "nope.yaml").message
    assert "folder" in refused({}, tmp_path).message
    binary = tmp_path / "model.bin"
    binary.write_bytes(b"\xff\xfe\x00\x01")
    assert "UTF-8" in refused({}, binary).message


@pytest.mark.parametrize(
    "model", [Recipe, ObjectiveChoice, ReferenceChoice, ConstraintChoice, ProbeChoice]
)
def test_every_setting_has_a_description(model: type[BaseModel]) -> None:
    assert all(field.description for field in model.model_fields.values())


def test_overrides_say_where_they_come_from() -> None:
    required = {"model": "m", "data": "d.jsonl", "out": "o"}
    assert load_recipe(None, required).origins["model"] == "command line"
    assert load_recipe(None, required, origin="demo").origins["model"] == "demo"
