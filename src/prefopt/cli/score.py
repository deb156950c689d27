"""`prefopt score`: does a policy rank completions as the comparisons do?"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from prefopt.cli.outcome import Outcome, counting, counts, interval, percent, table


def score(
    policy: str,
    /,
    *,
    reference: str,
    data: Annotated[list[str], Parameter(consume_multiple=True)],
    out: str | None = None,
    beta: float = 0.1,
    max_length: int | None = None,
    too_long: Literal["error", "drop", "cut_prompt_start", "cut_completion"] = "error",
    on_error: Literal["raise", "skip"] = "raise",
    microbatch_tokens: int = 8192,
    device: str | None = None,
    seed: int = 0,
) -> Outcome:
    """Measure how a policy ranks compared completions.

    The implicit reward of a completion is beta times the log-probability that the policy
    gives it beyond the reference. No text is generated: this measures ranking, not writing.
    The interval is a bootstrap over prompts.

    `prefopt score runs/first --reference base/ --data heldout.jsonl`

    With `--json`: `comparisons`, `accuracy`, `accuracy_interval`, `margin`,
    `length_baseline`, `prompts`, `skipped`, `cut`, `rows`.

    Parameters
    ----------
    policy
        A run's folder, a model folder, an adapter folder, or a hub id.
    reference
        What the policy was trained from.
    data
        Files or folders with comparisons, best ones that were not trained on.
    out
        Write one JSON row for each comparison to this file (.jsonl).
    beta
        Rewards per nat: scales the margin and leaves the accuracy alone.
    max_length
        Most tokens of a prompt and its completion together; by default the model's own limit.
    too_long
        What happens to rows beyond that.
    on_error
        Stop at the first wrong row, or leave it out and count it.
    microbatch_tokens
        Tokens computed at once: memory against speed, never the result.
    device
        Where to compute, such as cpu or cuda; by default the first accelerator.
    seed
        Seed of the bootstrap.
    """
    from prefopt.data.formats import read_groups
    from prefopt.evaluation.implicit_reward import score_policy
    from prefopt.policies.export import model_folder
    from prefopt.policies.load import load_policy

    groups = read_groups(data, on_error=on_error)
    judged = load_policy(model_folder(policy), device=device)
    base = load_policy(model_folder(reference), device=device)
    with counting("scoring", "comparisons") as progress:
        result = score_policy(
            judged,
            base,
            groups,
            beta=beta,
            microbatch_tokens=microbatch_tokens,
            max_length=max_length,
            too_long=too_long,
            seed=seed,
            progress=progress,
        )
    document = result.to_dict()
    document["skipped"] = {**groups.skipped, **document["skipped"]}
    if out is not None:
        _write_rows(out, result.rows)
    document["rows"] = out
    return Outcome(document, _shown(document))


def _write_rows(out: str, rows: list[dict[str, Any]]) -> None:
    from prefopt.runs import write_text

    write_text(out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _shown(result: dict[str, Any]) -> list[Any]:
    rows = {
        "comparisons": f"{result['comparisons']} on {result['prompts']} prompts",
        "mean margin": f"{result['margin']:+.4f}",
        "longer one is better": percent(result["length_baseline"]),
        "left out": counts(result["skipped"]),
        "cut": counts(result["cut"]),
    }
    if result["rows"]:
        rows["rows"] = result["rows"]
    return [
        f"Ranks {percent(result['accuracy'])} of the comparisons rightly "
        f"({interval(result['accuracy_interval'])}).",
        table(rows),
    ]
