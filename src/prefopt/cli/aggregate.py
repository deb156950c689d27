"""`prefopt aggregate`: votes of several annotators become comparisons with probabilities."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Any

from cyclopts.validators import Number

from prefopt.cli.options import Format, OnError, check_target, described, seeded
from prefopt.cli.outcome import Outcome, counts, percent, table
from prefopt.data.aggregation.rules import Method, Over

_ENDINGS = (".jsonl", ".jsonl.gz", ".jsonl.zst")
_LISTED = 20  # rows of a table that people see; `--json` has all

Rule = Annotated[
    Method,
    described(
        "The rule. Probabilities: smoothed (share of the votes), dawid-skene, bradley-terry, "
        "reliability (bradley-terry with one for each annotator), rao-kupper. Orders: majority, "
        "borda, copeland, maximin."
    ),
]
Compared = Annotated[
    Over,
    described("Compare the completions of each prompt, or their sources over all prompts."),
]
Out = Annotated[
    str | None,
    described(
        "Write the groups with their comparisons to this .jsonl (also .gz, .zst). Comparisons "
        "that rows had on pairs with votes are replaced.",
        metavar="FILE",
    ),
]
Types = Annotated[
    int | None,
    described(
        "Look for so many types of annotators who want different things.",
        validator=Number(gte=2),
    ),
]
Smoothing = Annotated[
    float | None,
    described("Votes that smoothed adds for each side; 0.5 by default.", validator=Number(gt=0)),
]
Ridge = Annotated[
    float | None,
    described(
        "Pull of the scores of bradley-terry, reliability and rao-kupper towards 0; 0.5 by "
        "default, and none for the first and the last over sources.",
        validator=Number(gte=0),
    ),
]


def aggregate(
    votes: tuple[str, ...],
    /,
    *,
    method: Rule = "smoothed",
    over: Compared = "prompts",
    out: Out = None,
    compare: Annotated[
        bool, described("Ask every other rule too, and show who disagrees.")
    ] = False,
    types: Types = None,
    smoothing: Smoothing = None,
    ridge: Ridge = None,
    format: Format = "auto",
    on_error: OnError = "raise",
    seed: Annotated[int, seeded("Seed of the intervals and of the search for types.")] = 0,
) -> Outcome:
    """Make comparisons with probabilities of votes.

    Rows have votes on completions (`{"prompt", "completions", "votes": [{"annotator", "pair",
    "choice"}]}`), or are an arena's: two conversations and a winner. Judgements between models
    without texts (`model_a`, `model_b`, `question_id`, `winner`) can be aggregated, not written.
    Ties stay ties: nothing is ever decided by the order of the completions.

    `prefopt aggregate votes.jsonl --method dawid-skene --out pairs.jsonl`

    With `--json`: `method`, `over`, `rows`, `questions`, `items` (pairs with votes), `votes`,
    `comparisons`, `ties`, `alpha` (Krippendorff's), `alpha_interval`, `counts`, `skipped`, `fit`,
    `annotators`; over sources `sources`; with `--compare` `rules`, `disagreements`,
    `disagreement_count`, `best`, `best_count`; with `--types` `types`; with `--out` `out`,
    `groups`.

    Parameters
    ----------
    votes
        Files (JSONL, JSON, Parquet, also .gz or .zst), folders, or hub ids of data sets.
    """
    from prefopt.data.aggregation.document import document, refuse_without_texts, with_comparisons
    from prefopt.data.aggregation.reading import read_votes
    from prefopt.data.formats import write_groups

    check_target(out, *_ENDINGS, read=votes)
    ballots = read_votes(list(votes), format=format, on_error=on_error)
    if out is not None:
        refuse_without_texts(ballots)  # before the work
    result, chosen = document(ballots, method, over=over, comparing=compare, types=types,
                              seed=seed, smoothing=smoothing, ridge=ridge)  # fmt: skip
    if out is not None:
        groups = write_groups(out, with_comparisons(ballots, chosen, over))
        result |= {"out": out, "groups": groups}
    return Outcome(result, _shown(result))


def _shown(result: dict[str, Any]) -> list[Any]:
    low, high = result["alpha_interval"]
    agreed = "not defined: no two people judged one pair, or all said the same"
    if result["alpha"] == result["alpha"]:
        agreed = f"{result['alpha']:.4f} (95 % interval {low:.4f} to {high:.4f})"
    parts: list[Any] = [
        table({
            "rule": f"{result['method']}, over {result['over']}",
            "votes": f"{result['votes']:,} on {result['items']:,} pairs of "
            f"{result['questions']:,} questions: {counts(result['counts'])}",
            "comparisons": f"{result['comparisons']:,}, of which {result['ties']:,} ties",
            "Krippendorff's alpha": agreed,
            "fit": ", ".join(f"{name} {value}" for name, value in result["fit"].items()) or "none",
        })
    ]  # fmt: skip
    if result["skipped"]:
        parts.append(f"Left out: {counts(result['skipped'])}.")
    if result["fit"].get("converged") is False:
        parts.append("The fit did not come to rest: read its numbers with care.")
    if "sources" in result:
        parts += [_listed(result["sources"], ("source", "votes", "share", "score", "interval"))]
    columns = ("annotator", "votes", "agreement", "reliability", "ties", "first_share")
    parts += [_listed(result["annotators"], columns)]
    if "rules" in result:
        parts += _disagreements(result)
    if "types" in result:
        parts += _types(result["types"])
    if "out" in result:
        parts.append(f"Wrote {result['groups']:,} groups to {result['out']}.")
    return parts


def _disagreements(result: dict[str, Any]) -> list[Any]:
    rules = [
        {"rule": rule, **({"differs": said["refused"]} if "refused" in said else said)}
        for rule, said in result["rules"].items()
    ]
    parts: list[Any] = [
        _listed(rules, ("rule", "differs", "ties")),
        f"Rules are for different sides of {result['disagreement_count']:,} pairs. In "
        f"{result['best_count']:,} questions something else is best by another rule.",
    ]
    rows = [
        {
            "question": row["question"],
            "pair": " / ".join(map(str, row["sources"] or row["pair"])),
            "for the first": ", ".join(name for name, p in row["says"].items() if p > 0.5),
            "for the second": ", ".join(name for name, p in row["says"].items() if p < 0.5),
        }
        for row in result["disagreements"]
    ]
    if rows:
        parts.append(_listed(rows, rows[0]))
    return parts


def _types(types: dict[str, Any]) -> list[Any]:
    shares = ", ".join(percent(share) for share in types["shares"])
    said = (
        "" if types["supported"] else " They foretell votes that were set aside no better than one."
    )
    verdicts = ", ".join(f"{count:,} {name}" for name, count in types["pairs"].items())
    parts: list[Any] = [f"Types of annotators: {shares}.{said}", f"Pairs: {verdicts}."]
    if types["conflicts"]:
        parts.append(_listed(types["conflicts"], ("question", "sources", "pair", "shares")))
    return parts


def _listed(rows: Sequence[dict[str, Any]], columns: Iterable[str]) -> Any:
    """A table of the first rows, with how many more there are."""
    from rich.table import Table
    from rich.text import Text

    names = tuple(columns)
    more = len(rows) - _LISTED
    caption = f"and {more:,} more" if more > 0 else None
    listed = Table(
        box=None, pad_edge=False, header_style="bold", caption=caption, caption_justify="left"
    )
    for name in names:
        listed.add_column(name.replace("_", " "), overflow="fold")
    for row in rows[:_LISTED]:
        listed.add_row(*(Text(_cell(row.get(name))) for name in names))
    return listed


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}"
    if isinstance(value, list):
        return " ".join(_cell(part) for part in value)
    return "–" if value is None else str(value)
