"""The table of judges, and the one door to them: a spec becomes a judge.

A spec is what a command line or a file says:

    longest                        a kind
    lm:runs/judge                  a kind and the one setting that it cannot do without
    judge.yaml                     a file with `kind` and settings
    {kind: lm, model: runs/judge}  the same as a mapping; {lm: runs/judge} is short for it
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from prefopt.errors import RecipeError
from prefopt.judges import settings
from prefopt.judges.judge import Judge
from prefopt.recipe.refusals import explain
from prefopt.recipe.text import read


@dataclass(frozen=True)
class Kind:
    """A row of the table.

    Attributes:
        settings: what may be said of it.
        make: `module:function` of (settings, `Context`) that returns the judge; imported only
            when it is made, so that the table needs no torch.
        help: one line.
        argument: the setting that stands behind the colon of `kind:argument`.
        needs: what it cannot do without, in words.
    """

    settings: type[BaseModel]
    make: str
    help: str
    argument: str | None = None
    needs: str = "nothing"


KINDS: Mapping[str, Kind] = {
    "longest": Kind(
        settings.Length,
        "prefopt.judges.rules:make_longest",
        "The longer completion is better: what any judge must beat.",
        argument="unit",
    ),
    "shortest": Kind(
        settings.Length,
        "prefopt.judges.rules:make_shortest",
        "The shorter completion is better.",
        argument="unit",
    ),
    "pattern": Kind(
        settings.Pattern,
        "prefopt.judges.rules:make_pattern",
        "A completion without any of some regular expressions is better than one with.",
        argument="patterns",
        needs="regular expressions",
    ),
    "python": Kind(
        settings.Python,
        "prefopt.judges.rules:make_python",
        "A function of your own scores or compares.",
        argument="function",
        needs="module:function or file.py:function",
    ),
    "world": Kind(
        settings.World,
        "prefopt.judges.rules:make_world",
        "The known reward of a generated world, as in the demonstration.",
        argument="world",
    ),
    "reward": Kind(
        settings.Reward,
        "prefopt.judges.reward:make_reward",
        "A reward model: the completion with the higher reward is better.",
        argument="model",
        needs="a reward model's folder",
    ),
    "implicit": Kind(
        settings.Implicit,
        "prefopt.judges.implicit:make_implicit",
        "The implicit reward of a policy that was trained on preferences.",
        argument="model",
        needs="the policy's run or folder",
    ),
    "lm": Kind(
        settings.Local,
        "prefopt.judges.language:make_language",
        "A language model on this machine reads a rubric, and both orders.",
        argument="model",
        needs="a model folder",
    ),
    "server": Kind(
        settings.Server,
        "prefopt.judges.language:make_language",
        "The same behind an OpenAI-compatible server.",
        argument="url",
        needs="the server's URL",
    ),
    "selfreward": Kind(
        settings.SelfReward,
        "prefopt.judges.selfreward:make_self_reward",
        "The policy gives its own answers points, several times, and the mean counts.",
        argument="model",
        needs="the policy's folder, or the URL of a server",
    ),
    "constitution": Kind(
        settings.Constitution,
        "prefopt.judges.principled:make_constitution",
        "Every principle of a constitution decides, and their weighted mean counts.",
        argument="file",
        needs="a YAML file of principles",
    ),
    "ensemble": Kind(
        settings.Ensemble,
        "prefopt.judges.ensemble:make_ensemble",
        "Several judges by mean, majority or weights; what they disagree on is kept.",
        needs="judges",
    ),
    "debate": Kind(
        settings.Debate,
        "prefopt.judges.debate:make_debate",
        "Advocates argue for the two answers, and any judge decides.",
        needs="a judge and debaters",
    ),
    "recursive": Kind(
        settings.Recursive,
        "prefopt.judges.recursive:make_recursive",
        "Any judge, shown a critic's critiques of the answers.",
        needs="a judge and a critic",
    ),
    "people": Kind(
        settings.People,
        "prefopt.judges.people:make_people",
        "A labelling task is opened, and people's votes are the verdicts.",
        needs="a database of the labelling room, and a name for the task",
    ),
}


@dataclass(frozen=True)
class Context:
    """Where a judge's settings were read, for messages, and what all judges of a command share.

    Attributes:
        file: the YAML file they are in.
        rows: the row of every dotted key of that file.
        prefix: dotted name of the settings within the file, empty or ending with a dot.
        device: where models compute; by default the first accelerator.
    """

    file: str | None = None
    rows: Mapping[str, int] = field(default_factory=dict)
    prefix: str = ""
    device: str | None = None

    @property
    def folder(self) -> Path | None:
        """What paths in the file are relative to."""
        return None if self.file is None else Path(self.file).parent

    def judge(self, spec: str | Mapping[str, Any], name: str) -> Judge:
        """A judge inside of this one, said in the setting `name` (`judge`, `judges.0`)."""
        return _make(spec, replace(self, prefix=f"{self.prefix}{name}."))

    def refusal(self, message: str, name: str, **place: Any) -> RecipeError:
        """An error about the setting `name`."""
        whole = f"{self.prefix}{name}".strip(".")
        return RecipeError(message, file=self.file, row=self._row(whole), field=whole, **place)

    def _row(self, name: str) -> int | None:
        while name and name not in self.rows:
            name = name.rpartition(".")[0]
        return self.rows.get(name)


def make_judge(
    spec: str | Path | Mapping[str, Any],
    *,
    device: str | None = None,
    file: str | Path | None = None,
    rows: Mapping[str, int] | None = None,
    prefix: str = "",
) -> Judge:
    """The judge that a spec names.

    Args:
        spec: see the module.
        device: where models compute.
        file: the file in which a mapping stands, to which its paths are relative.
        rows: the row of every dotted key of that file, for messages.
        prefix: dotted name of the mapping within that file, ending with a dot.

    Raises:
        RecipeError: there is no such kind, a setting is unknown, missing or wrong.
        PolicyError: its model cannot be loaded.
    """
    place = Context(None if file is None else str(file), rows or {}, prefix, device)
    return _make(str(spec) if isinstance(spec, Path) else spec, place)


def _make(spec: str | Mapping[str, Any], context: Context) -> Judge:
    kind, chosen, context = _settings(spec, context)
    module, _, function = KINDS[kind].make.partition(":")
    judge: Judge = getattr(import_module(module), function)(chosen, context)
    return judge


def check_spec(
    spec: str | Path | Mapping[str, Any], *, file: str | Path | None = None
) -> tuple[str, BaseModel]:
    """The kind and the settings of a spec, checked as far as that goes without making it.

    Raises:
        RecipeError: as `make_judge`.
    """
    context = Context(None if file is None else str(file))
    kind, chosen, _ = _settings(str(spec) if isinstance(spec, Path) else spec, context)
    return kind, chosen


def _settings(spec: str | Mapping[str, Any], context: Context) -> tuple[str, BaseModel, Context]:
    if isinstance(spec, str):
        name, colon, argument = spec.partition(":")
        if name not in KINDS and spec.endswith((".yaml", ".yml")):
            path = str(context.folder / spec) if context.folder is not None else spec
            if not Path(path).is_file():
                raise context.refusal(
                    "there is no such file", "", value=path, remedy="check the path of the judge"
                )
            document, rows = read(path)
            return _settings(document, Context(path, rows, "", context.device))
        return _of_mapping({"kind": name, **_argument(name, argument if colon else None, context)},
                           context, spec)  # fmt: skip
    if not isinstance(spec, Mapping):
        raise context.refusal("a judge is text or a mapping", "", value=spec, remedy=_remedy(""))
    short = [key for key in spec if key in KINDS and KINDS[key].argument]
    if "kind" not in spec and len(short) == 1:
        others = {key: value for key, value in spec.items() if key != short[0]}
        given = _argument(short[0], spec[short[0]], context)
        return _of_mapping({"kind": short[0], **given, **others}, context, spec)
    return _of_mapping(spec, context, spec)


def _argument(kind: str, argument: Any, context: Context) -> dict[str, Any]:
    row = KINDS.get(kind)
    if row is None or argument is None:
        return {}
    if row.argument is None:
        raise context.refusal(
            f"the judge {kind} takes nothing behind a colon",
            "kind",
            value=f"{kind}:{argument}",
            remedy=f"give a YAML file with kind: {kind} and its settings: "
            f"{', '.join(row.settings.model_fields)}",
        )
    listed = row.argument == "patterns" and not isinstance(argument, list)
    return {row.argument: [argument] if listed else argument}


def _of_mapping(
    document: Mapping[str, Any], context: Context, said: Any
) -> tuple[str, BaseModel, Context]:
    kind = document.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        missing = "kind" not in document
        raise context.refusal(
            "it is not said which kind of judge" if missing else "there is no such judge",
            "kind",
            value=said,
            remedy=_remedy(str(kind or "")),
        )
    row = KINDS[kind]
    inside = {name: value for name, value in document.items() if name != "kind"}
    try:
        chosen = row.settings.model_validate(inside, context={"folder": context.folder})
    except ValidationError as error:
        refusal = explain(error, row.settings, inside, {}, context.file, {})
        name = refusal.field or ""
        remedy = refusal.remedy
        if " is missing: " in refusal.message:
            remedy = f"set {name} beside kind: {kind}"
            if name == row.argument:
                remedy += f", or write {kind}:{name.upper()}"
        raise context.refusal(refusal.message, name, value=refusal.value, remedy=remedy) from None
    return kind, chosen, context


def _remedy(kind: str) -> str:
    """What could have been meant."""
    if kind.startswith("http"):
        return "for a model behind a server write server:URL"
    if kind and Path(kind).is_dir():
        folders = [name for name, row in KINDS.items() if row.argument == "model"]
        return f"say what the folder is: {', '.join(f'{name}:{kind}' for name in folders)}"
    near = difflib.get_close_matches(kind, KINDS, n=1, cutoff=0.6)
    if near:
        return f"did you mean '{near[0]}'?"
    return f"choose {', '.join(KINDS)}, or a YAML file with kind and settings"
