"""`prefopt split`: data to train on and data to evaluate with, without a prompt in common."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from cyclopts.validators import Number

from prefopt.cli.options import Format, OnError, described, seeded
from prefopt.cli.outcome import Outcome, counting, counts, percent, table


def split(
    data: tuple[str, ...],
    /,
    *,
    out: Annotated[
        str, described("The folder to write; it must not exist, or be empty.", metavar="FOLDER")
    ],
    share: Annotated[
        float,
        described("Of the different prompts, for evaluation.", validator=Number(gt=0, lt=1)),
    ] = 0.1,
    by: Annotated[
        Literal["cluster", "prompt"],
        described(
            "Whole clusters of prompts, so that evaluation asks about other things than training, "
            "or single prompts."
        ),
    ] = "cluster",
    clusters: Annotated[
        int | None,
        described(
            "Clusters of prompts, before large ones are divided; by default √(N/2) of N prompts, "
            "at most 100.",
            validator=Number(gte=2),
        ),
    ] = None,
    seed: Annotated[int, seeded("Seed of the split.")] = 0,
    format: Format = "auto",
    on_error: OnError = "raise",
) -> Outcome:
    """Set some of the data aside for evaluation.

    No prompt is on both sides. By cluster, prompts with the same words stay together: a part with
    more than a quarter of what evaluation should get is divided again, and prompts that say nearly
    the same always stay together. Writes `train.jsonl`, `eval.jsonl` and `split.json`, which says
    how they were made.

    `prefopt split pairs.jsonl --out parted --share 0.1`

    With `--json`: `train`, `eval` (objects with `path`, `groups`, `comparisons`, `prompts`),
    `share` (reached), `by`, `clusters`, `eval_clusters`, `kept_together`, `seed`, `skipped`,
    `manifest`.

    Parameters
    ----------
    data
        Files (JSONL, JSON, Parquet, also .gz or .zst), folders, or hub ids of data sets.
    """
    from prefopt.data.splitting import split as divide

    settings: dict[str, Any] = {"share": share, "by": by, "clusters": clusters, "seed": seed,
                                "format": format, "on_error": on_error}  # fmt: skip
    with counting("splitting", "rows read") as progress:
        result = divide(list(data), out, progress=progress, **settings)
    return Outcome(result, _shown(result))


def _shown(result: dict[str, Any]) -> list[Any]:
    sides = {
        name: f"{side['groups']:,} groups with {side['comparisons']:,} comparisons on "
        f"{side['prompts']:,} prompts, {side['path']}"
        for name, side in ((name, result[name]) for name in ("train", "eval"))
    }
    if result["clusters"]:
        sides["clusters"] = f"{result['eval_clusters']:,} of {result['clusters']:,} for evaluation"
        sides["kept together"] = f"{result['kept_together']:,} prompts that say what others say"
    if result["skipped"]:
        sides["left out"] = counts(result["skipped"])
    return [f"Set {percent(result['share'])} of the prompts aside for evaluation.", table(sides)]
