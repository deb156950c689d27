"""`prefopt score`: does a policy rank completions as the comparisons do?"""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts.validators import Number

from prefopt.cli.options import (
    Device,
    MaxLength,
    MicrobatchTokens,
    Model,
    OnError,
    TooLong,
    check_target,
    described,
)
from prefopt.cli.outcome import Outcome, counting, counts, interval, percent, table

if TYPE_CHECKING:
    from prefopt.evaluation.features import Collected

Ches = Annotated[
    bool,
    described(
        "How alike the sides of each comparison are to the policy: training on the highest "
        "makes preferred completions less probable too.",
    ),
]
Features = Annotated[
    str | None,
    described(
        "Write what `prefopt acquire` reads of every completion, compared or not, to this .npz.",
        metavar="FILE",
    ),
]


def score(
    policy: Model,
    /,
    *,
    reference: Annotated[str, described("What the policy was trained from.", metavar="MODEL")],
    data: Annotated[
        list[str],
        described(
            "Files or folders with comparisons, best ones that were not trained on.",
            consume_multiple=True,
            metavar="PATH",
        ),
    ],
    out: Annotated[
        str | None,
        described("Write one JSON row for each comparison to this .jsonl.", metavar="FILE"),
    ] = None,
    beta: Annotated[
        float,
        described(
            "Rewards per nat: scales the margin and leaves the accuracy alone.",
            validator=Number(gt=0),
        ),
    ] = 0.1,
    max_length: MaxLength = None,
    too_long: TooLong = "error",
    on_error: OnError = "raise",
    microbatch_tokens: MicrobatchTokens = 8192,
    device: Device = None,
    seed: Annotated[int, described("Seed of the bootstrap.")] = 0,
    ches: Ches = False,
    features: Features = None,
) -> Outcome:
    """Measure how a policy ranks compared completions.

    The implicit reward of a completion is beta times the log-probability that the policy
    gives it beyond the reference. No text is generated: this measures ranking, not writing.
    The interval is a bootstrap over prompts.

    `prefopt score runs/first --reference base/ --data heldout.jsonl`

    With `--json`: `comparisons`, `accuracy`, `accuracy_interval`, `margin`,
    `length_baseline`, `prompts`, `skipped`, `cut`, `rows`, with `--ches` `highest_ches`, and with
    `--features` `features` and `completions`.
    """
    check_target(out, ".jsonl", read=data)
    check_target(features, ".npz", read=data, option="--features")
    settings = {"beta": beta, "microbatch_tokens": microbatch_tokens, "max_length": max_length,
                "too_long": too_long, "on_error": on_error, "seed": seed, "ches": ches}  # fmt: skip
    document = _measure(policy, reference, data, device, out, features, settings)
    return Outcome(document, _shown(document))


def _measure(
    policy: str,
    reference: str,
    data: list[str],
    device: str | None,
    out: str | None,
    features: str | None,
    settings: dict[str, Any],
) -> dict[str, Any]:
    """Load, score, and write the rows and the features where they are wanted."""
    from prefopt.data.formats import read_groups
    from prefopt.evaluation.features import Collected
    from prefopt.evaluation.implicit_reward import score_policy
    from prefopt.policies.export import model_folder
    from prefopt.policies.load import load_policy

    groups = read_groups(data, on_error=settings["on_error"])
    judged = load_policy(model_folder(policy), device=device)
    base = load_policy(model_folder(reference), device=device)
    settings["collected"] = collected = None if features is None else Collected()
    with counting("scoring", "comparisons" if collected is None else "completions") as progress:
        result = score_policy(judged, base, groups, progress=progress, **settings)
    document = {**result.to_dict(), "rows": out}
    document["skipped"] = dict(groups.skipped + Counter(document["skipped"]))
    if out is not None:
        _write_rows(out, result.rows)
    if features is not None and collected is not None:
        document |= {"features": features, "completions": len(collected)}
        _write_features(features, collected, policy, reference, settings["beta"])
    return document


def _write_rows(out: str, rows: list[dict[str, Any]]) -> None:
    from prefopt.runs import write_text

    write_text(out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _write_features(
    out: str, collected: Collected, policy: str, reference: str, beta: float
) -> None:
    from prefopt.data.acquisition.scores import write_scores

    about = {"policy": policy, "reference": reference, "beta": beta}
    write_scores(out, collected.scores(about))


def _shown(result: dict[str, Any]) -> list[Any]:
    rows = {
        "comparisons": f"{result['comparisons']} on {result['prompts']} prompts",
        "mean margin": f"{result['margin']:+.4f}",
        "longer one is better": percent(result["length_baseline"]),
    }
    sentence = (
        f"Ranks {percent(result['accuracy'])} of the comparisons rightly "
        f"({interval(result['accuracy_interval'])})."
    )
    if not result["comparisons"]:
        rows, sentence = {}, "Nothing is compared in the data, so no ranking was measured."
    rows |= {"left out": counts(result["skipped"]), "cut": counts(result["cut"])}
    if similar := result.get("highest_ches"):
        rows["highest CHES"] = "\n".join(map(_similar, similar))
    if result["rows"]:
        rows["rows"] = result["rows"]
    if "features" in result:
        rows["features"] = f"{result['features']}, of {result['completions']:,} completions"
    return [sentence, table(rows)]


def _similar(row: dict[str, Any]) -> str:
    place = "" if row["file"] is None else f"{row['file']}:{row['row']}, "
    edge = f"completion {row['preferred']} over {row['dispreferred']}"
    return f"{row['ches_normalized']:+.3g}  {place}{edge}"
