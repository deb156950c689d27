"""`prefopt revise`: criticise and revise answers by the principles of a constitution."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts.validators import Number

from prefopt.cli.options import Device, Format, OnError, check_target, described, seeded
from prefopt.cli.outcome import Outcome, UsageError, counting, counts, table

if TYPE_CHECKING:
    from prefopt.judges.judge import Judge
    from prefopt.judges.revising import Tally, Trail
    from prefopt.records import Group, Prompt

_ENDINGS = (".jsonl", ".jsonl.gz", ".jsonl.zst")

Files = Annotated[
    tuple[str, ...],
    described(
        "Files or folders with prompts and completions, such as `prefopt sample` writes; every "
        "completion is revised.",
        name="FILES",
    ),
]
WhichSpeaker = Annotated[
    str,
    described(
        "Who criticises and revises: lm:FOLDER, server:URL, python:module:function of (prompt, "
        "completion, principle), which returns the new text or (critique, text), or a YAML file "
        "with kind and settings (model, url, key, timeout, concurrency).",
        metavar="SPEC",
    ),
]
WhichJudge = Annotated[
    str | None,
    described(
        "Compare what each round left with what it found, for the statistics: any judge of "
        "`prefopt judge`, with verdicts kept beside --out.",
        metavar="SPEC",
    ),
]
WhichConstitution = Annotated[
    str,
    described("YAML file of principles, each with name, critique and revision.", metavar="FILE"),
]
Out = Annotated[
    str,
    described(
        "Write the pairs, revised preferred to original, to this .jsonl (also .gz, .zst).",
        metavar="FILE",
    ),
]
Rounds = Annotated[
    int,
    described("Principles drawn for each answer, one after the other.", validator=Number(gte=1)),
]
Temperature = Annotated[
    float,
    described("Of what a model writes: 0 takes the most probable token.", validator=Number(gte=0)),
]
MaxNewTokens = Annotated[
    int, described("Most tokens of a critique, and of a revision.", validator=Number(gte=1))
]


def revise(
    files: Files,
    /,
    *,
    constitution: WhichConstitution,
    speaker: WhichSpeaker,
    out: Out,
    rounds: Rounds = 1,
    judge: WhichJudge = None,
    seed: Annotated[int, seeded("Seed of the principles drawn, and of what is written.")] = 0,
    temperature: Temperature = 0.7,
    max_new_tokens: MaxNewTokens = 512,
    format: Format = "auto",
    on_error: OnError = "raise",
    device: Device = None,
) -> Outcome:
    """Revise answers by a constitution, and prefer the revisions.

    For each answer and round a principle is drawn, by the seed; the answer is criticised by it and
    written again. An answer that comes out as it was makes no pair, and is counted. What is
    written is kept beside --out as it comes: after an interruption the same command goes on.

    `prefopt revise samples.jsonl --constitution rules.yaml --speaker lm:runs/sft --out pairs.jsonl`

    With `--json`: `answers` (distinct ones), `pairs`, `unchanged`, `failed` (rounds in which
    nothing was written), `failures` (of them by kind), `refusal` (in the words of a server that
    refused one), `principles` (by name: `asked`, `changed`, `failed`, and with a judge
    `better`, `worse`, `tied`, `unreadable`), `skipped`, `journal`, `out`.
    """
    from prefopt.data.formats import read_groups, write_groups
    from prefopt.judges.constitution import read_constitution
    from prefopt.judges.remembered import remember_in
    from prefopt.judges.revisers import make_reviser
    from prefopt.judges.revising import pairs_of, tallies
    from prefopt.judges.revising import revise as revise_all

    check_target(out, *_ENDINGS, read=files)
    rules = read_constitution(constitution)
    referee = _referee(judge, _beside(out, "verdicts"), device)
    who = make_reviser(
        speaker, rules, device=device, temperature=temperature, max_new_tokens=max_new_tokens
    )
    groups = read_groups(list(files), format=format, on_error=on_error)
    sources, journal = _answers(groups, files), _beside(out, "revisions")
    remember_in(_beside(out, "replies"), who)
    with counting("revising", "answers") as progress:
        trails = revise_all(
            list(sources), rules, who, rounds=rounds, seed=seed, journal=journal, progress=progress
        )
    with counting("judging", "revisions") as progress:
        found = tallies(trails, rules, referee, progress)
    pairs = pairs_of(trails, reviser=who.name, sources=lambda *answer: sources[answer])
    write_groups(out, pairs)
    kept = {"skipped": dict(groups.skipped), "journal": str(journal), "out": out}
    return _outcome(trails, len(pairs), found, kept)


def _beside(out: str, what: str) -> Path:
    """`pairs.verdicts` for `pairs.jsonl.gz`."""
    path = Path(out)
    return path.with_name(f"{path.name.partition('.jsonl')[0]}.{what}")


def _referee(spec: str | None, folder: Path, device: str | None) -> Judge | None:
    """Who compares revisions, with verdicts that are kept."""
    if spec is None:
        return None
    from prefopt.judges.kept import Kept
    from prefopt.judges.table import make_judge

    return Kept(make_judge(spec, device=device), folder)


def _answers(groups: Iterable[Group], files: Sequence[str]) -> dict[tuple[Prompt, str], str | None]:
    """The distinct answers, and whose they are.

    Raises:
        UsageError: there are none.
    """
    answers: dict[tuple[Prompt, str], str | None] = {}
    for group in groups:
        for completion in group.completions:
            answers.setdefault((group.prompt, completion.text), completion.source)
    if not answers:
        raise UsageError(
            "there are no answers to revise",
            field="FILES",
            value=", ".join(files),
            remedy="give a file with completions, such as `prefopt sample` writes",
        )
    return answers


def _outcome(
    trails: Sequence[Trail], pairs: int, found: dict[str, Tally], kept: dict[str, Any]
) -> Outcome:
    from prefopt.judges.revising import failures_of

    answers = len(trails)
    failures, refusal = failures_of(trails)
    principles = {name: tally.to_dict() for name, tally in found.items()}
    result = {
        "answers": answers, "pairs": pairs, "unchanged": answers - pairs,
        "failed": failures.total(), "failures": dict(failures), "refusal": refusal,
        "principles": principles, **kept,
    }  # fmt: skip
    rows: dict[str, Any] = {
        "unchanged": f"{answers - pairs:,}, which make no pair",
        "nothing written": f"{failures.total():,} rounds ({counts(failures)})"
        if failures
        else "0 rounds",
        **({"no reply, as": refusal} if refusal else {}),
        "left out": counts(kept["skipped"]),
        "kept in": kept["journal"],
        "written": kept["out"],
    }
    for name, tally in found.items():
        said = f"drawn {tally.asked:,}, changed {tally.changed:,}"
        if tally.verdicts:
            said += f", judged {counts(tally.verdicts)}"
        rows[name] = said
    return Outcome(result, [f"Revised {pairs:,} of {answers:,} answers.", table(rows)])
