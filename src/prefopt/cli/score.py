"""`prefopt score`: does a policy, or a judge, rank completions as the comparisons do?"""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts.validators import Number

from prefopt.cli.agreement import Cache
from prefopt.cli.options import (
    Device,
    MaxLength,
    MicrobatchTokens,
    Model,
    OnError,
    TooLong,
    check_target,
    described,
    judge_spec,
    seeded,
)
from prefopt.cli.outcome import Outcome, UsageError, counting, counts, interval, percent, table

if TYPE_CHECKING:
    from prefopt.evaluation.features import Collected

Reference = Annotated[
    str | None,
    described("What the policy was trained from; needed with a policy.", metavar="MODEL"),
]
Data = Annotated[
    list[str],
    described(
        "Files or folders with comparisons, best ones that were not trained on.",
        consume_multiple=True,
        metavar="PATH",
    ),
]
Spec = Annotated[
    str | None,
    judge_spec("Measured instead of a policy"),
]
By = Annotated[
    str | None,
    described("Column with the subset of each row, such as subset; `source` too.",
              metavar="COLUMN"),
]  # fmt: skip
Rows = Annotated[
    str | None,
    described("Write one JSON row for each comparison to this .jsonl.", metavar="FILE"),
]
Beta = Annotated[
    float,
    described(
        "Rewards per nat: scales the margin and leaves the accuracy alone.",
        validator=Number(gt=0),
    ),
]
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
    policy: Model | None = None,
    /,
    *,
    data: Data,
    reference: Reference = None,
    judge: Spec = None,
    by: By = None,
    cache: Cache = None,
    out: Rows = None,
    beta: Beta = 0.1,
    max_length: MaxLength = None,
    too_long: TooLong = "error",
    on_error: OnError = "raise",
    microbatch_tokens: MicrobatchTokens = 8192,
    device: Device = None,
    seed: Annotated[int, seeded("Seed of the interval.")] = 0,
    ches: Ches = False,
    features: Features = None,
) -> Outcome:
    """Measure how a policy, or a judge, ranks compared completions.

    The implicit reward of a completion is beta times the log-probability that the policy
    gives it beyond the reference. No text is generated: this measures ranking, not writing.
    In `accuracy` equal rewards are half right, and its interval is a bootstrap over prompts.
    `strict` is RewardBench's way: right only if strictly greater; the mean over subsets is what
    its tables show. What length alone would score stands beside both. A reward model's folder is
    measured by its rewards, as any judge is.

    `prefopt score runs/first --reference base/ --data heldout.jsonl`

    `prefopt score runs/rm --data rewardbench.jsonl --by subset`

    `prefopt score --judge server:URL --data rewardbench.jsonl --by subset`

    With `--json`: `comparisons`, `accuracy`, `accuracy_interval`, `margin`, `length_baseline`,
    `prompts`, `strict` (`accuracy`, `longest`), `equal`, `ties`, `skipped`, `cut`, `rows`; with
    `--by` `subsets`, `subset_mean`, `subset_mean_longest`; with `--ches` `highest_ches`; with
    `--features` `features` and `completions`; with `--judge` `judge`, `how`, `unreadable`, and
    no `margin` and `cut`.
    """
    check_target(out, ".jsonl", read=data)
    check_target(features, ".npz", read=data, option="--features")
    if policy is not None and judge is None and _is_reward_model(policy):
        policy, judge = None, f"reward:{policy}"
    _check(policy, reference, judge, cache, {
        "--ches": ches, "--features": features, "--max-length": max_length,
        "--beta": beta != 0.1 and beta, "--too-long": too_long != "error" and too_long,
        "--microbatch-tokens": microbatch_tokens != 8192 and microbatch_tokens,
    })  # fmt: skip
    settings = {"beta": beta, "microbatch_tokens": microbatch_tokens, "max_length": max_length,
                "too_long": too_long, "on_error": on_error, "seed": seed, "ches": ches}  # fmt: skip
    if judge is not None:
        document = _measure_judge(judge, data, device, out, by, cache, settings)
    else:
        sides = str(policy), str(reference)
        document = _measure(sides, data, device, out, by, features, settings)
    return Outcome(document, _shown(document))


def _is_reward_model(policy: str) -> bool:
    from prefopt.policies.export import model_folder
    from prefopt.policies.load import is_reward_model

    return is_reward_model(model_folder(policy))


def _check(
    policy: str | None,
    reference: str | None,
    judge: str | None,
    cache: str | None,
    of_policies: dict[str, Any],
) -> None:
    """Refuse what does not go together."""
    if (policy is None) == (judge is None):
        raise UsageError(
            "either a policy or a judge is measured", field="POLICY",
            remedy="give a policy with --reference, or --judge SPEC",
        )  # fmt: skip
    if policy is not None and reference is None:
        raise UsageError(
            "is missing", field="--reference",
            remedy="name the model it was trained from; a hub's reward model is --judge reward:ID",
        )  # fmt: skip
    if policy is not None and cache is not None:
        raise UsageError("has no effect without --judge", field="--cache", value=cache,
                         remedy="leave it out; scores of references are cached anyway")  # fmt: skip
    given = {"--reference": reference, **of_policies} if judge is not None else {}
    for option, value in given.items():
        if value:
            raise UsageError(
                "has no effect with a judge or a reward model", field=option, value=value,
                remedy="leave it out",
            )  # fmt: skip


def _measure(
    sides: tuple[str, str],
    data: list[str],
    device: str | None,
    out: str | None,
    by: str | None,
    features: str | None,
    settings: dict[str, Any],
) -> dict[str, Any]:
    """Load, score, and write the rows and the features where they are wanted."""
    from prefopt.data.formats import read_groups
    from prefopt.evaluation.features import Collected
    from prefopt.evaluation.implicit_reward import score_policy
    from prefopt.evaluation.reward_bench import Columns, strict
    from prefopt.policies.export import model_folder
    from prefopt.policies.load import load_policy

    groups = read_groups(data, on_error=settings["on_error"])
    judged, base = (load_policy(model_folder(side), device=device) for side in sides)
    settings["collected"] = collected = None if features is None else Collected()
    columns = Columns(groups, by or "")
    with counting("scoring", "comparisons" if collected is None else "completions") as progress:
        result = score_policy(judged, base, columns, progress=progress, **settings)
    subsets = None if by is None else [columns.of(row) for row in result.rows]
    document = {**result.to_dict(), **strict(result.rows, subsets), "rows": out}
    document["skipped"] = dict(groups.skipped + Counter(document["skipped"]))
    if out is not None:
        _write_rows(out, result.rows)
    if features is not None and collected is not None:
        document |= {"features": features, "completions": len(collected)}
        _write_features(features, collected, *sides, settings["beta"])
    return document


def _measure_judge(
    spec: str,
    data: list[str],
    device: str | None,
    out: str | None,
    by: str | None,
    cache: str | None,
    settings: dict[str, Any],
) -> dict[str, Any]:
    """Ask the judge about every comparison."""
    from prefopt.data.formats import read_groups
    from prefopt.evaluation.asking import Asker
    from prefopt.evaluation.reward_bench import judge_rows, strict, subset_of, summary

    groups = read_groups(data, on_error=settings["on_error"])
    asker = Asker.of(spec, cache=cache, device=device)
    with counting("judging", "completions") as progress:
        rows, asked, how = judge_rows(asker.judge, groups, progress)
    subsets = None if by is None else [subset_of(group, by) for group in asked]
    if out is not None:
        _write_rows(out, rows)
    return {
        "judge": asker.about(), "how": how, **summary(rows, seed=settings["seed"]),
        **strict(rows, subsets), "skipped": dict(groups.skipped), "rows": out,
    }  # fmt: skip


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
    if not result["comparisons"]:
        unread = result.get("unreadable")
        said = "No verdict could be read" if unread else "Nothing is compared in the data"
        return [f"{said}, so no ranking was measured.", table(_left(result))]
    rows = {"comparisons": f"{result['comparisons']} on {result['prompts']} prompts"}
    if "margin" in result:
        rows["mean margin"] = f"{result['margin']:+.4f}"
    rows["longer one is better"] = percent(result["length_baseline"])
    if result["strict"]:
        found = {name: percent(result["strict"][name]["value"]) for name in ("accuracy", "longest")}
        rows["strictly greater"] = (
            f"{found['accuracy']}, {result['equal']} equal ones wrong (length {found['longest']})"
        )
    if result.get("subset_mean") is not None:
        rows["mean of subsets"] = (
            f"{percent(result['subset_mean'])} (length {percent(result['subset_mean_longest'])})"
        )
    sentence = (
        f"Ranks {percent(result['accuracy'])} of the comparisons rightly "
        f"({interval(result['accuracy_interval'])})."
    )
    parts: list[Any] = [sentence, table(rows | _left(result))]
    return [*parts, _subsets(result["subsets"])] if result.get("subsets") else parts


def _left(result: dict[str, Any]) -> dict[str, str]:
    """What was left out, and what was written."""
    rows = {"left out": counts(result["skipped"])}
    if "cut" in result:
        rows["cut"] = counts(result["cut"])
    if result.get("unreadable"):
        rows["unreadable"] = f"{result['unreadable']} comparisons, in no number above"
    if similar := result.get("highest_ches"):
        rows["highest CHES"] = "\n".join(map(_similar, similar))
    if result["rows"]:
        rows["rows"] = result["rows"]
    if "features" in result:
        rows["features"] = f"{result['features']}, of {result['completions']:,} completions"
    return rows


def _subsets(rows: list[dict[str, Any]]) -> Any:
    from prefopt.cli.agreement import grid_of

    grid = grid_of("subset", "comparisons", "strictly greater", "95 %", "length alone")
    for row in rows:
        ends = row["accuracy"]["interval"]
        spread = "" if ends is None else f"{100 * ends[0]:.1f} to {100 * ends[1]:.1f}"
        grid.add_row(
            row["subset"], f"{row['comparisons']:,}", percent(row["accuracy"]["value"]), spread,
            percent(row["longest"]["value"]),
        )  # fmt: skip
    return grid


def _similar(row: dict[str, Any]) -> str:
    place = "" if row["file"] is None else f"{row['file']}:{row['row']}, "
    edge = f"completion {row['preferred']} over {row['dispreferred']}"
    return f"{row['ches_normalized']:+.3g}  {place}{edge}"
