"""The sweep's page: its table, its drawings, and how to train the winner again."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from prefopt.recipe.text import flow
from prefopt.report.details import Table
from prefopt.report.drawing import SHAPES
from prefopt.report.pages import fill
from prefopt.report.summary import Tile
from prefopt.report.words import number
from prefopt.runs import write_text
from prefopt.sweeps.choosing import Mean, Standing, best
from prefopt.sweeps.ledger import Ledger
from prefopt.sweeps.plots import Levels, Painter
from prefopt.sweeps.points import said, short
from prefopt.sweeps.trials import Result

_LATIN = {"beta": "β"}
#: what was measured on test data, as people say it
_WORDS = {"reward_after": "reward", "reward_before": "reward of the reference", "kl": "KL"}


def write_page(ledger: Ledger) -> Path:
    """Write `report.html` into the sweep's folder, finished or not, and return its path."""
    write_text(ledger.report, fill("sweep.html.j2", _page(ledger)))
    return ledger.report


def measured(mean: Mean | None) -> str:
    """A mean with its spread over seeds.

    >>> measured(Mean(0.5123, 0.0312, 3)), measured(Mean(0.5, None, 1)), measured(None)
    ('0.512 ± 0.031', '0.500', '–')
    """
    if mean is None:
        return "–"
    spread = "" if mean.spread is None else f" ± {number(mean.spread)}"
    return f"{number(float(mean.mean))}{spread}"


def settings_of(ledger: Ledger) -> list[str]:
    """Every setting that any trial of the folder searched, in order."""
    names = [name for result in ledger.results.values() for name in result.trial.point]
    return list(dict.fromkeys([*ledger.sweep.search, *names]))


def _page(ledger: Ledger) -> dict[str, Any]:
    ranked, file = ledger.ranked, ledger.sweep.file
    names = settings_of(ledger)
    chosen = ledger.best
    painter = Painter(ranked, names, file.goal)
    panels = [painter.over(name, names) for name in names]
    results = list(ledger.results.values())
    return {
        "name": ledger.folder.resolve().name,
        "headline": _headline(ledger, chosen),
        "lede": _lede(ledger, chosen),
        "status": _status(ledger),
        "tiles": _tiles(ledger, chosen),
        "kl_plot": painter.against_kl(),
        "colours": _legend(painter.colours, names),
        "shapes": _legend(painter.shapes, names),
        "shade": painter.colours.shade,
        "paths": SHAPES,
        "budget": file.goal.kl_budget,
        "over": [panel for panel in panels if panel is not None],
        "goal": file.goal.measure.replace("_", " "),
        "seeded": any(len(standing.results) > 1 for standing in ranked),
        "points": _points(ranked, names, file.goal.measure),
        "trials": [_trial(result, names, ledger) for result in results],
        "setting_names": [short(name, names) for name in names],
        "failed": [
            (f"{said(r.trial.point)}, seed {r.trial.seed}", r.message)
            for r in results
            if r.state == "failed"
        ],
        "test": _test(ledger),
        "command": chosen and [shlex.quote(w) for w in ledger.again(chosen.results[0].trial)],
        "models": [_relative(r, ledger, "model") for r in chosen.results] if chosen else [],
        "search": [(name, flow(space)) for name, space in file.search.items()],
        "method": file.method,
    }


def _headline(ledger: Ledger, chosen: Standing | None) -> str:
    goal = ledger.sweep.file.goal
    if chosen is not None and chosen.value is not None:
        return f"{_spoken(chosen.point)}: {goal.measure.replace('_', ' ')} " + number(
            float(chosen.value.mean)
        )
    if any(standing.over_budget for standing in ledger.ranked):
        return f"Nothing stays within {goal.kl_budget:g} nats of the reference"
    return "No point is finished yet"


def _spoken(point: dict[str, Any]) -> str:
    words = said(point)
    for latin, greek in _LATIN.items():
        words = words.replace(f"{latin} ", f"{greek} ").replace("_", " ")
    return words


def _lede(ledger: Ledger, chosen: Standing | None) -> str:
    goal = ledger.sweep.file.goal
    end = "highest" if goal.maximise else "lowest"
    words = f"The {end} {goal.measure.replace('_', ' ')}"
    if goal.kl_budget is not None:
        words += f" at a KL of at most {goal.kl_budget:g} nats a completion"
    words += f", of {len(ledger.ranked)} points."
    if chosen is not None and chosen.kl is not None:
        words += f" It is {measured(chosen.kl)} nats away from its reference."
    return words


def _status(ledger: Ledger) -> dict[str, str]:
    counts = ledger.counts()
    text = ", ".join(f"{count} {state}" for state, count in counts.items()) or "no trials"
    open_ones = any(counts.get(state) for state in ("waiting", "running", "interrupted"))
    tone = "open" if open_ones else "stopped" if counts.get("failed") else "done"
    return {"text": f"Trials: {text}", "tone": tone}


def _tiles(ledger: Ledger, chosen: Standing | None) -> list[Tile]:
    goal = ledger.sweep.file.goal
    tiles = []
    if chosen is not None:
        seeds = len(chosen.results)
        note = "chosen by it: optimistic" if seeds == 1 else f"mean of {seeds} seeds: optimistic"
        tiles.append(Tile(f"best {goal.measure.replace('_', ' ')}", measured(chosen.value), note))
        if chosen.kl is not None:
            budget = "" if goal.kl_budget is None else f"budget {goal.kl_budget:g}"
            tiles.append(Tile("its KL, nats", measured(chosen.kl), budget))
    for name, value in _test(ledger)[:1]:
        tiles.append(Tile(f"{name} on test data", value, "which no trial saw"))
    seconds = sum(result.seconds or 0.0 for result in ledger.results.values())
    tiles.append(Tile("training, seconds", number(round(seconds)), "of all trials together"))
    return tiles


def _test(ledger: Ledger) -> list[tuple[str, str]]:
    """What the present winner came to on test data."""
    test, chosen = ledger.test, ledger.best
    if test is None or chosen is None:
        return []
    if test["trials"] != [result.trial.name for result in chosen.results]:
        return []
    return [
        (
            _WORDS.get(name, name.replace("_", " ")),
            measured(Mean(value["mean"], value["spread"], value["seeds"])),
        )
        for name, value in test["measures"].items()
        if value is not None
    ]


def _legend(levels: Levels, names: list[str]) -> tuple[str, tuple[str, ...]]:
    """The name and the labels of what is told apart; none where there is only one group."""
    if len(levels.labels) < 2:
        return "", ()
    written = short(levels.name, names)
    return _LATIN.get(written, written.replace("_", " ")), levels.labels


def _points(ranked: list[Standing], names: list[str], measure: str) -> Table:
    chosen = best(ranked)
    columns = (*(short(name, names) for name in names), measure.replace("_", " "), "KL", "state")
    rows = tuple(
        (
            *(flow(s.point[name]) if name in s.point else "–" for name in names),
            measured(s.value),
            measured(s.kl),
            "best" if s is chosen else s.state,
        )
        for s in ranked
    )
    return Table(
        "Points, best first; the spread is the standard deviation over seeds", columns, rows
    )


def _trial(result: Result, names: list[str], ledger: Ledger) -> dict[str, Any]:
    point, goal = result.trial.point, ledger.sweep.file.goal
    report = result.trial.run.report
    return {
        "settings": [flow(point[name]) if name in point else "–" for name in names],
        "seed": result.trial.seed,
        "value": number(result.numbers.get(goal.name)),
        "kl": number(result.numbers.get("probe.kl")),
        "seconds": "–" if result.seconds is None else number(round(result.seconds)),
        "state": result.state,
        "report": _relative(result, ledger, "report.html") if report.exists() else "",
    }


def _relative(result: Result, ledger: Ledger, part: str) -> str:
    return f"trials/{result.trial.name}/{part}"
