"""`prefopt judge`: let a judge compare or score the completions of a file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts.validators import Number

from prefopt.cli.options import Device, Format, OnError, check_target, described
from prefopt.cli.outcome import Outcome, UsageError, counting, counts, percent, table
from prefopt.cli.selecting import Selecting

if TYPE_CHECKING:
    from prefopt.judges.judging import Judged
    from prefopt.judges.people import WaitingForPeople

_ENDINGS = (".jsonl", ".jsonl.gz", ".jsonl.zst")
_AS_JUDGED = Selecting()

Files = Annotated[
    tuple[str, ...],
    described("Files or folders with completions, in any layout.", name="FILES"),
]
WhichJudge = Annotated[
    str,
    described(
        "longest, shortest, pattern:REGEX, world:reviews, python:module:function, lm:FOLDER, "
        "server:URL, reward:FOLDER, implicit:FOLDER, selfreward:FOLDER, constitution:FILE, or a "
        "YAML file with kind and settings.",
        metavar="SPEC",
    ),
]
Out = Annotated[
    str,
    described("Write the groups with verdicts to this .jsonl (also .gz, .zst).", metavar="FILE"),
]
What = Annotated[
    Literal["compare", "score"],
    described("Compare pairs of completions, or give each a score."),
]
WhichPairs = Annotated[
    Literal["auto", "given", "all"],
    described(
        "Which pairs: those that the file compares or votes on (given), every two completions of "
        "a prompt (all), or given ones where there are some and else all (auto)."
    ),
]
Cache = Annotated[
    str | None,
    described(
        "Folder of the verdicts, from which nothing is asked twice; by default beside --out, "
        "named after it.",
        metavar="FOLDER",
    ),
]
Budget = Annotated[
    int | None,
    described(
        "Ask the judge at most this many questions, counting earlier calls with this cache and "
        "judge; what is known costs nothing.",
        validator=Number(gte=0),
    ),
]


def judge(
    files: Files,
    /,
    *,
    judge: WhichJudge,
    out: Out,
    what: What = "compare",
    pairs: WhichPairs = "auto",
    selecting: Selecting = _AS_JUDGED,
    cache: Cache = None,
    budget: Budget = None,
    rationale: Annotated[bool, described("Write the judge's words beside its verdicts.")] = False,
    format: Format = "auto",
    on_error: OnError = "raise",
    device: Device = None,
) -> Outcome:
    """Let a judge compare or score the completions of a file.

    A judge that sees which answer comes first is asked in both orders: the probability is the
    mean of both, and a verdict that flips with the order is counted as inconsistent. Each verdict
    is kept as it comes: after an interruption the same command asks only what is left.

    `prefopt judge samples.jsonl --judge server:http://localhost:8000/v1 --out judged.jsonl`

    `prefopt judge samples.jsonl --judge longest --what score --out scored.jsonl`

    `prefopt judge samples.jsonl --judge reward:runs/reward --what score --select best_worst
    --out pairs.jsonl`

    With `--json`: `judge`, `what`, `groups`, `questions`, `judged`, `asked`, `known`, `not_asked`,
    `unread`, `failures` (unreadable replies by kind), `claimed_verdicts` (completions that claim
    one for themselves), `refusal` (why a question got no reply, in the server's words), `skipped`,
    `cache`, `out`; of comparisons `ties`, `inconsistent`, `inconsistent_share`, `first_share` (of
    verdicts for the answer shown first), `letters` (by log-probabilities: how probable A or B were
    at all), `principles`; of a selection `comparisons`, `dropped`. While people have not answered:
    `waiting`, `task`, `judged`, `questions`, `command`, `cache`.
    """
    from prefopt.data.formats import read_groups, write_groups
    from prefopt.judges.judging import judge_groups
    from prefopt.judges.kept import Kept
    from prefopt.judges.people import WaitingForPeople
    from prefopt.judges.table import make_judge

    check_target(out, *_ENDINGS, read=files)
    _check_pairs(what, pairs)
    selecting.check(what)
    groups = read_groups(list(files), format=format, on_error=on_error)
    folder = cache or str(_beside(out))
    asked = Kept(make_judge(judge, device=device), folder, budget=budget)
    try:
        with counting("judging", "questions") as progress:
            found = judge_groups(
                asked, groups, what=what, pairs=pairs, rationale=rationale, progress=progress
            )
    except WaitingForPeople as waiting:
        return _waiting(waiting, folder)
    written, selected = selecting.made(found.groups)
    write_groups(out, written)
    places: dict[str, Any] = {"skipped": dict(groups.skipped), "cache": folder, "out": out}
    return Outcome({**found.to_dict(), **selected, **places}, _shown(found, selected, **places))


def _check_pairs(what: str, pairs: str) -> None:
    """Refuse pairs where nothing is compared."""
    if what == "score" and pairs != "auto":
        raise UsageError(
            "--pairs has no effect: scores are of single completions",
            field="--pairs",
            value=pairs,
            remedy="leave it out, or use --what compare",
        )


def _beside(out: str) -> Path:
    """`judged.verdicts` for `judged.jsonl.gz`."""
    path = Path(out)
    return path.with_name(f"{path.name.partition('.jsonl')[0]}.verdicts")


def _waiting(waiting: WaitingForPeople, folder: str) -> Outcome:
    """People have been asked, and nothing has failed: there is only nothing to write yet."""
    document = {
        "waiting": True, "task": waiting.task, "judged": waiting.done, "questions": waiting.wanted,
        "command": waiting.command, "cache": folder, "out": None,
    }  # fmt: skip
    rows = {"answered": f"{waiting.done:,} of {waiting.wanted:,}", "serve": waiting.command}
    return Outcome(document, ["Waiting for people; run this again when they have answered.",
                              table(rows)])  # fmt: skip


def _shown(
    found: Judged, selected: Mapping[str, Any], *, skipped: Mapping[str, int], cache: str, out: str
) -> list[Any]:
    noun = "comparisons" if found.what == "compare" else "completions"
    rows: dict[str, Any] = {
        "asked now": f"{found.asked:,}",
        "known before": f"{found.known:,}",
        "not read": f"{found.unread:,}",
        "replies not read": counts(found.failures),
    }
    if found.refusal:
        rows["no reply, as"] = found.refusal
    if found.not_asked:
        rows["not asked"] = f"{found.not_asked:,}, beyond the budget"
    if found.what == "compare":
        rows["ties"] = f"{found.ties:,}"
        seen = found.consistent + found.inconsistent
        rows["flips with the order"] = (
            f"{found.inconsistent:,} of {seen:,} ({percent(found.inconsistent / seen)})"
            if seen
            else "no verdict was read in both orders"
            if found.failures
            else "not seen: the judge sees no order"
        )
        if found.first_share is not None:
            rows["for the one shown first"] = f"{percent(found.first_share)} (50 % is fair)"
        if found.letters is not None:
            rows["probability of A or B"] = f"{percent(found.letters)} on average"
        rows |= {f"by {name}": counts(said) for name, said in found.principles.items()}
    if found.claimed:
        rows["claim a verdict"] = f"{found.claimed:,} completions; nothing was left out for it"
    if selected:
        rows["comparisons made"] = f"{selected['comparisons']:,}"
        rows["no comparison"] = counts(selected["dropped"])
    rows |= {"left out": counts(skipped), "kept in": cache, "written": out}
    return [f"{found.judge} judged {found.judged:,} of {found.questions:,} {noun}.", table(rows)]
