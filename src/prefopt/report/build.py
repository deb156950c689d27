"""Run folder → `report.html`: one page that needs nothing but itself.

No script, no font, no network: it can be mailed, kept with the model, and read on a phone.
The same run folder gives the same bytes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefopt.report import details, figures, summary
from prefopt.report.artefacts import Artefacts, read_artefacts
from prefopt.report.pages import fill
from prefopt.report.series import SMOOTH_FROM
from prefopt.report.words import listed
from prefopt.runs import write_text


def build_report(run: str | Path) -> Path:
    """Write `report.html` into a run folder, finished or not, and return its path.

    Args:
        run: the folder that `prefopt train` wrote. Only its `metrics.jsonl` is required;
            `manifest.json`, `recipe.yaml`, `evaluation.json` and `samples.jsonl` each add
            their part.

    Raises:
        RunError: there is no such run, one of its files cannot be read, or the report
            cannot be written. Nothing is left half-written.
    """
    artefacts = read_artefacts(run)
    write_text(artefacts.run.report, render(artefacts))
    return artefacts.run.report


def render(run: Artefacts) -> str:
    """The page as text; a pure function of what the run folder holds."""
    return fill("report.html.j2", _page(run))


def _page(run: Artefacts) -> dict[str, Any]:
    win = summary.win_rate(run)
    curves = figures.draw_curves(run)
    return {
        "name": run.run.folder.resolve().name,
        "status": summary.status(run),
        "headline": summary.headline(run),
        "tiles": summary.tiles(run),
        "win_svg": None if win is None else figures.draw_win_rate(*win),
        "win_notes": summary.win_notes(run),
        "facts": details.facts(run),
        "left_out": details.left_out(run),
        "curves": curves,
        "paired": next((plot.labels for plot in curves if plot.paired), ()),
        "smoothed": len(run.train) >= SMOOTH_FROM,
        "rings": listed([*["evaluation"] * bool(run.eval), *["probe"] * bool(run.probe)]),
        "finished": run.manifest is not None,
        "diagnostics": details.diagnostics(run),
        "samples": details.samples(run),
        "samples_open": details.SAMPLES_OPEN,
        "samples_total": len(run.samples),
        "engine": details.engine(run),
        "sources": details.per_source(run),
        "recipe": details.recipe(run),
        "fingerprints": details.fingerprints(run),
        "versions": details.versions(run),
        "command": details.command(run),
    }
