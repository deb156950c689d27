"""`prefopt report` and `prefopt export`: what can be made of a finished run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from prefopt.cli.options import Model, described
from prefopt.cli.outcome import Outcome, UsageError, table


def report(run: str, /) -> Outcome:
    """Write the page that shows a run.

    One self-contained HTML file in the run's folder: what was trained on what, curves,
    results, diagnostics, settings, and the command to reproduce it. It can be mailed.

    With `--json`: `report`.

    Parameters
    ----------
    run
        Folder that `prefopt train` or `prefopt demo` wrote.
    """
    if not Path(run).is_dir():
        raise UsageError(
            "there is no such run",
            field="RUN",
            value=run,
            remedy="give the folder that `prefopt train` wrote",
        )
    from prefopt.report.build import build_report

    path = str(build_report(run))
    return Outcome({"report": path}, [path])


def export(
    source: Model,
    /,
    *,
    out: Annotated[
        str, described("The folder to write; it must not exist, or be empty.", metavar="FOLDER")
    ],
) -> Outcome:
    """Write a plain model folder, adapters merged.

    The folder loads with `AutoModelForCausalLM.from_pretrained`, a reward model's with
    `AutoModelForSequenceClassification`, and needs neither prefopt nor PEFT. Before it gets its
    name, it is loaded and compared with the source.

    With `--json`: `model`, `merged`, `parameters`, `difference` (largest difference of a
    log-probability from the source, in nats).
    """
    from prefopt.policies.export import export_model

    result = export_model(source, out)
    how = "with its adapter merged" if result["merged"] else "as it is"
    rows = {
        "parameters": f"{result['parameters']:,}",
        "difference": f"{result['difference']:.1e} nats at most from the source",
    }
    return Outcome(result, [f"Exported {source} {how} to {result['model']}", table(rows)])
