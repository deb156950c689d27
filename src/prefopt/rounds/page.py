"""The page of a loop: what was gained round by round, what it cost, and why it ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefopt.data.formats import read_groups
from prefopt.data.visible import visible
from prefopt.report.details import Table
from prefopt.report.drawing import INK, MAIN, MUTED, figure_of, style_axes, to_svg
from prefopt.report.pages import fill
from prefopt.report.summary import Status, Tile
from prefopt.report.words import counted, duration, number
from prefopt.runs import write_text

_STATES = {
    "done": ("done", "All rounds are done"),
    "stopped": ("stopped", "Stopped"),
    "waiting": ("open", "Waiting"),
    "running": ("open", "Still running, or interrupted"),
}
#: the first policy against itself
_EVEN = {"value": 0.5, "interval": [0.5, 0.5]}
_EXAMPLES = 6  # prompts whose answers are shown
_STAGES = ("sample", "select", "judge", "check", "train")


@dataclass(frozen=True)
class Plot:
    """A drawing with its words: trusted SVG markup."""

    title: str
    note: str
    svg: str


def write_page(folder: Path, document: Mapping[str, Any]) -> None:
    """Write `report.html` of what `rounds.json` holds, finished or not.

    Raises:
        RunError: the page cannot be written. Nothing is left half-written.
    """
    write_text(folder / "report.html", fill("rounds.html.j2", _page(folder, document)))


def _page(folder: Path, document: Mapping[str, Any]) -> dict[str, Any]:
    history: Sequence[Mapping[str, Any]] = document["history"]
    tone, words = _STATES[document["state"]]
    reason = document.get("reason")
    settings = document["settings"]
    return {
        "name": folder.resolve().name,
        "headline": _headline(document),
        "lede": f"Each round samples from the policy, has the answers judged, trains on the "
        f"comparisons and measures on {counted(history[0]['prompts'], 'prompt')} that no round "
        "trains on."
        if history
        else "Nothing is measured yet.",
        "status": Status(tone, f"{words}: {reason}" if reason else words),
        "tiles": _tiles(document),
        "plots": _plots(history),
        "who": _who(document),
        "rounds": _table(document),
        "stages": _stages(document),
        "examples": _examples(folder, len(history)),
        "choices": _choices(settings),
        "each": _EACH,
        "pages": _links(folder, document),
    }


def _headline(document: Mapping[str, Any]) -> str:
    best, history = document.get("best"), document["history"]
    if best is None:
        return "No policy is measured yet"
    if best["round"] == 0:
        return (
            "No round is better than the policy it began with"
            if len(history) > 1
            else ("The first policy is measured")
        )
    against = history[best["round"]]["initial"]["value"]
    if against is None:
        return f"Round {best['round']} is the best"
    return (
        f"Round {best['round']} is the best: it wins {100 * against:.0f} % against the first policy"
    )


def _tiles(document: Mapping[str, Any]) -> list[Tile]:
    best, history = document.get("best"), document["history"]
    if best is None:
        return []
    first, figures = history[0], history[best["round"]]
    tiles = []
    if figures["reward"] is not None and figures["reward"]["value"] is not None:
        before = number(first["reward"]["value"])
        tiles.append(Tile("mean score", number(figures["reward"]["value"]), f"at first {before}"))
    tiles += [
        Tile("KL to the first policy", number(figures["kl"]), "nats a completion"),
        Tile("length", number(figures["length"]), f"at first {number(first['length'])} characters"),
        Tile("diversity", number(figures["diversity"]), f"at first {number(first['diversity'])}"),
    ]
    asked = sum(entry.get("judge", {}).get("asked", 0) for entry in document["rounds"])
    return [*tiles, Tile("questions to the judge", number(asked), "in all rounds")]


# -- drawings ------------------------------------------------------------------------------


def _plots(history: Sequence[Mapping[str, Any]]) -> list[Plot]:
    if len(history) < 2:
        return []
    plots = []
    if all(row["reward"] and row["reward"]["value"] is not None for row in history):
        rewards = [row["reward"] for row in history]
        plots.append(_over_rounds("Mean score", "reward", rewards, "by the evaluating judge"))
    wins = [_EVEN, *(row["initial"] for row in history[1:])]
    if all(one["value"] is not None for one in wins):
        note = "ties count half; dashed: no better than the first"
        plots.append(_over_rounds("Wins against the first policy", "wins", wins, note, level=0.5))
    plots += _against_kl(history)
    for name, title, note in (
        ("kl", "KL to the first policy", "nats a completion"),
        ("length", "Length", "characters of an answer"),
        ("diversity", "Diversity", "different pairs of neighbouring words"),
        ("agreement", "Agreement of the judges", "the judge with the evaluating one"),
        ("accuracy", "Accuracy of the judge", "on what people labelled"),
    ):
        if all(row[name] is not None for row in history):
            values = [
                {"value": row[name], "interval": row.get(f"{name}_interval")} for row in history
            ]
            plots.append(_over_rounds(title, name, values, note))
    return plots


def _over_rounds(
    title: str,
    name: str,
    values: Sequence[Mapping[str, Any]],
    note: str,
    *,
    level: float | None = None,
) -> Plot:
    """One figure from round to round, with 95 % intervals where there are some."""
    places = range(len(values))
    with figure_of(3.5, 2.3) as (figure, axes):
        if level is not None:
            axes.axhline(level, color=MUTED, linewidth=1, dashes=(4, 3), zorder=1)
        for place, one in enumerate(values):
            if one["interval"] is not None:
                axes.plot([place, place], one["interval"], color=INK, linewidth=1.2, zorder=2)
        heights = [one["value"] for one in values]
        axes.plot(places, heights, color=MAIN, marker="o", markersize=5, linewidth=1.4, zorder=3)
        style_axes(axes)
        axes.margins(x=0.08, y=0.15)
        axes.set_xticks(list(places), list(map(_named_round, places)))
        axes.set_xlabel("round")
        said = ", ".join(number(one["value"]) for one in values)
        svg = to_svg(figure, f"rounds-{name}", f"{title} by round: {said}")
    return Plot(title, note, svg)


def _against_kl(history: Sequence[Mapping[str, Any]]) -> list[Plot]:
    """What was gained for how much KL: both sides of the trade in one drawing."""
    name, gained = "Mean score", [row["reward"] or {"value": None} for row in history]
    if any(one["value"] is None for one in gained):
        name, gained = "Wins", [_EVEN, *(row["initial"] for row in history[1:])]
    if any(one["value"] is None for one in gained):
        return []
    places, heights = [row["kl"] for row in history], [one["value"] for one in gained]
    with figure_of(3.5, 2.3) as (figure, axes):
        for place, height, row, one in zip(places, heights, history, gained, strict=True):
            bar: Mapping[str, Any] = {"color": INK, "linewidth": 1.2, "zorder": 2}
            if one["interval"] is not None:
                axes.plot([place, place], one["interval"], **bar)
            if row.get("kl_interval") is not None:
                axes.plot(row["kl_interval"], [height, height], **bar)
        axes.plot(places, heights, color=MAIN, marker="o", markersize=5, linewidth=1.4, zorder=3)
        for number_, place in enumerate(places):
            where = (place, heights[number_])
            axes.annotate(_named_round(number_), where, (5, -11), textcoords="offset points",
                          color=INK, fontsize=8)  # fmt: skip
        style_axes(axes)
        axes.margins(x=0.12, y=0.2)
        axes.set_xlabel("KL to the first policy")
        told = ", ".join(
            f"{number(y)} at {number(x)}" for x, y in zip(places, heights, strict=True)
        )
        svg = to_svg(figure, "rounds-trade", f"{name} against KL, round after round: {told} nats")
    return [Plot(f"{name} against KL", "what was gained for how far the policy moved", svg)]


def _named_round(place: int) -> str:
    return str(place) if place else "first"


# -- tables --------------------------------------------------------------------------------


def _table(document: Mapping[str, Any]) -> Table:
    rows = []
    best = (document.get("best") or {}).get("round")
    for place, row in enumerate(document["history"]):
        name = "first policy" if place == 0 else f"round {place}"
        rows.append((
            f"{name} (best)" if place == best else name,
            _with_interval(row["reward"]), _with_interval(row["initial"]),
            _with_interval(row["previous"]), number(row["kl"]), number(row["length"]),
            number(row["diversity"]), number(row["agreement"]), number(row["accuracy"]),
        ))  # fmt: skip
    columns = ("", "mean score", "wins against the first", "against the one before", "KL",
               "length", "diversity", "agreement", "accuracy")  # fmt: skip
    known = [place for place in range(len(columns))
             if place == 0 or any(row[place] != "–" for row in rows)]  # fmt: skip
    return Table(
        "What each round came to, with 95 % intervals over prompts; KL in nats a completion, "
        "length in characters",
        tuple(columns[place] for place in known),
        tuple(tuple(row[place] for place in known) for row in rows),
    )


def _with_interval(value: Mapping[str, Any] | None) -> str:
    if value is None or value["value"] is None:
        return "–"
    if value["interval"] is None:
        return number(value["value"])
    low, high = value["interval"]
    return f"{number(value['value'])} ({number(low)} to {number(high)})"


def _stages(document: Mapping[str, Any]) -> Table:
    rows = []
    for entry in document["rounds"]:
        judged, checked = entry.get("judge", {}), entry.get("check", {})
        done = [entry.get(name, {}) for name in _STAGES]
        done += document["history"][entry["round"] : entry["round"] + 1]  # its evaluation
        took = sum(stage.get("seconds") or 0 for stage in done)
        found = checked.get("found", {})
        problems = [
            counted(len(found[level]), level) for level in ("error", "warning") if found.get(level)
        ]
        rows.append((
            f"round {entry['round']}", number(entry.get("sample", {}).get("completions")),
            number(judged.get("questions")), number(judged.get("asked")),
            number(judged.get("unread")), number(judged.get("comparisons")),
            ", ".join(problems) or ("nothing" if checked else "–"), duration(took),
        ))  # fmt: skip
    columns = ("", "completions", "questions", "asked", "unreadable", "comparisons",
               "found by check", "time")  # fmt: skip
    return Table("What went into each round", columns, tuple(rows))


def _examples(folder: Path, count: int) -> list[dict[str, Any]]:
    """Some prompts with the first answer of every round's policy."""
    sides = []
    for place in range(count):
        path = folder / f"round-{place}" / "evaluate" / "samples.jsonl"
        sides.append(list(read_groups([str(path)]))[:_EXAMPLES])
    if not sides:
        return []
    return [
        {
            "prompt": visible(groups[0].prompt_text),
            "answers": [
                ("first policy" if place == 0 else f"round {place}",
                 visible(group.completions[0].text))
                for place, group in enumerate(groups)
            ],
        }
        for groups in zip(*sides, strict=True)
    ]  # fmt: skip


_MEANINGS = {
    "reference": {
        "initial": "Every round is kept close to the first policy: KL means the same in all.",
        "previous": "Every round is kept close to the one before: after T rounds the policy may be "
        "as far away as if β were T times smaller.",
    },
    "start": {
        "previous": "A round trains on from the policy of the one before.",
        "initial": "Every round trains the first policy anew.",
    },
    "data": {
        "fresh": "A round trains on its own comparisons only.",
        "expanded": "A round trains on the comparisons of all rounds so far.",
    },
}


#: stage → what it does
_EACH = (
    ("sample", "The policy answers the round's prompts, several times each; no two rounds have a "
     "prompt in common."),
    ("select", "Which completions are scored, or which pairs are compared, within the budget."),
    ("judge", "The judge says what it thinks. No question is asked twice; what cannot be read is "
     "counted, and ties are left out."),
    ("check", "What is wrong with the comparisons, as prefopt check says it; the gate of that name "
     "can stop the loop there."),
    ("train", "The policy learns from the comparisons."),
    ("evaluate", "The new policy answers prompts that no round trains on, and is compared with the "
     "first one and with the one before."),
)  # fmt: skip


def _links(folder: Path, document: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Pages of the stages: words and relative addresses."""
    found = []
    for entry in document["rounds"]:
        for words, place in (
            ("comparisons", "check/check.html"),
            ("training", "train/report.html"),
        ):
            path = f"round-{entry['round']}/{place}"
            if (folder / path).is_file():
                found.append((f"round {entry['round']}: {words}", path))
    return found


def _who(document: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the loop began with, who judges, and how it trains."""
    settings, judges = document["settings"], document.get("judges", {})
    world = settings.get("world")
    objective = (settings.get("train") or {}).get("objective") or {}
    if isinstance(objective, str):
        objective = {"name": objective}
    options = ", ".join(f"{name} {value}" for name, value in objective.items() if name != "name")
    found = [
        ("first policy", f"of the world {world['name']}" if world else settings.get("model")),
        ("judge", _named(judges.get("judge"))),
        ("evaluated by", _named(judges.get("evaluate.judge"))),
        ("trained with", " · ".join(filter(None, (objective.get("name", "dpo"), options)))),
    ]
    return [(name, said) for name, said in found if said]


def _named(judge: Mapping[str, Any] | None) -> str:
    """A judge by its kind and what distinguishes it."""
    if not judge:
        return ""
    told = (judge.get(name) for name in ("model", "url", "function", "file", "task", "world"))
    return " ".join([judge["kind"], *(str(one) for one in told if one)])


def _choices(settings: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    return [(name, settings[name], said[settings[name]]) for name, said in _MEANINGS.items()]
