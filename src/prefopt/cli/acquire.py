"""`prefopt acquire`: which comparisons to have labelled next."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts.validators import Number

from prefopt.cli.options import OnError, check_target, described, seeded
from prefopt.cli.outcome import Outcome, counts, table

if TYPE_CHECKING:
    from prefopt.data.acquisition import Acquired

_PLACES = 3  # rows named beside a count; `--json` has all

Pool = Annotated[
    tuple[str, ...],
    described("Files or folders with two or more completions a prompt, such as samples."),
]
Count = Annotated[int, described("How many questions to ask.", validator=Number(gte=1))]
Out = Annotated[
    str,
    described(
        "Write them to this file (.jsonl, also .gz or .zst), ready for labelling.", metavar="FILE"
    ),
]
Strategy = Annotated[
    Literal["d-optimal", "bald", "uncertainty", "certainty", "entropy", "random"],
    described(
        "d-optimal takes questions whose answers together say most about the policy's last "
        "layer, bald those on which several policies disagree (in small batches: it scores each "
        "by itself), uncertainty what the policy holds for a coin flip, certainty what it is "
        "sure of, entropy the prompts that it answers most variedly."
    ),
]
ScoreFiles = Annotated[
    list[str] | None,
    described(
        "What `prefopt score --features` wrote of the pool, one file for each policy. Only "
        "random does without.",
        consume_multiple=True,
        metavar="FILE",
    ),
]
Labelled = Annotated[
    list[str] | None,
    described(
        "Files with answers, or with questions that are out: none is asked twice.",
        consume_multiple=True,
        metavar="PATH",
    ),
]
Controls = Annotated[
    float,
    described(
        "Share of the questions that is drawn at random whatever the strategy, and marked as "
        "control. Evaluate on these alone: the others are no sample of the pool.",
        validator=Number(gte=0, lt=1),
    ),
]
PerPrompt = Annotated[
    int, described("Most questions of one prompt, controls aside.", validator=Number(gte=1))
]
WhichPairs = Annotated[
    Literal["all", "given"],
    described(
        "Ask about any two completions of a prompt that the pool does not compare yet, or about "
        "the comparisons that it has, as if they had no answer."
    ),
]
Repeat = Annotated[
    int | None,
    described(
        "Ask a labelled question again, up to this many answers, as long as they leave open "
        "which side is better; by default nothing is asked twice.",
        validator=Number(gte=2),
    ),
]


def acquire(
    pool: Pool,
    /,
    *,
    count: Count,
    out: Out,
    strategy: Strategy = "d-optimal",
    scores: ScoreFiles = None,
    labelled: Labelled = None,
    controls: Controls = 0.15,
    per_prompt: PerPrompt = 1,
    pairs: WhichPairs = "all",
    repeat: Repeat = None,
    on_error: OnError = "raise",
    seed: Annotated[int, seeded("Seed of the controls, of random choices and of ties.")] = 0,
) -> Outcome:
    """Choose which comparisons to have labelled next.

    No question comes twice, whichever side stands first, also not one from `--labelled`. Where
    repeated answers stay near one half it is a tie, or a conflict if annotators contradict each
    other and agree with themselves: both are named, and not asked again.

    `prefopt score runs/first --reference base/ --data samples.jsonl --features scores.npz`

    `prefopt acquire samples.jsonl --scores scores.npz --count 100 --out ask.jsonl`

    With `--json`: `strategy`, `chosen` (objects with `file`, `row`, `first`, `second`,
    `strategy`, `score`, `control`, in the order to ask), `controls`, `pool`,
    `already_labelled`, `again`, `unscored`, `undecided`, `ties` and `conflicts` (objects with
    `file`, `row`, `first`, `second`, `answers`, `share`, `interval`), `skipped`, `out`.
    """
    check_target(out, ".jsonl", ".jsonl.gz", ".jsonl.zst", read=(*pool, *(labelled or ())))
    how = {"count": count, "strategy": strategy, "controls": controls, "per_prompt": per_prompt,
           "pairs": pairs, "repeat": repeat, "seed": seed}  # fmt: skip
    found, skipped = _acquire(pool, scores or [], labelled or [], on_error, how)
    written = _write(found, out)
    return Outcome(
        {**found.to_dict(), "skipped": skipped, "out": written},
        _shown(found, count, skipped, written),
    )


def _acquire(
    pool: tuple[str, ...],
    scores: list[str],
    labelled: list[str],
    on_error: OnError,
    how: dict[str, Any],
) -> tuple[Acquired, dict[str, int]]:
    """Read, choose, and count the rows that were left out."""
    from prefopt.data.acquisition import acquire as choose
    from prefopt.data.acquisition import read_scores
    from prefopt.data.formats import read_groups

    groups = read_groups(list(pool), on_error=on_error)
    known = read_groups(labelled, on_error=on_error) if labelled else None
    members = [read_scores(path) for path in scores]
    found = choose(groups, scores=members, labelled=known or (), **how)
    skipped = groups.skipped + (known.skipped if known is not None else Counter())
    return found, dict(skipped)


def _write(found: Acquired, out: str) -> str | None:
    """The file that was written; none where there is nothing to ask."""
    from prefopt.data.formats import write_groups

    if not found.chosen:
        return None
    write_groups(out, (question.group for question in found.chosen))
    return out


def _shown(found: Acquired, count: int, skipped: dict[str, int], written: str | None) -> list[Any]:
    document = found.to_dict()
    rows: dict[str, Any] = {
        "pool": f"{found.pool:,} questions",
        "asked before": f"{found.already_labelled:,}, of which {found.again:,} are open again",
        "without scores": f"{found.unscored:,}",
        "left out": counts(skipped),
    }
    if found.undecided:
        rows["undecided"] = f"{found.undecided:,} have all the answers they may have"
    for name in ("ties", "conflicts"):
        if document[name]:
            rows[name] = _named(document[name])
    if written is None:
        return ["Nothing is left to ask.", table(rows)]
    chosen = len(found.chosen)
    short = f" of {count:,}: the pool has no more" if chosen < count else ""
    sentence = f"Chose {chosen:,} questions{short} by {found.strategy}"
    if found.controls:
        sentence += f", {found.controls:,} of them controls drawn at random to evaluate on"
    return [f"{sentence}.", table({**rows, "written": written})]


def _named(settled: list[dict[str, Any]]) -> str:
    places = [
        f"{item['file']}:{item['row']}, {item['answers']} answers, share {item['share']:.2f}"
        for item in settled[:_PLACES]
    ]
    more = len(settled) - len(places)
    return "\n".join([*places, *([f"and {more:,} more"] if more else [])])
