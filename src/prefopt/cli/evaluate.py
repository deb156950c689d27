"""`prefopt evaluate`: policies side by side, with any judge."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts.validators import Number

from prefopt.cli.options import Device, check_target, described, judge_spec, seeded
from prefopt.cli.outcome import Outcome, UsageError, counting, percent, table

if TYPE_CHECKING:
    from prefopt.evaluation.answers import Answers
    from prefopt.evaluation.matches import Match

_FILES = (".jsonl", ".json", ".parquet", ".jsonl.gz", ".json.gz", ".jsonl.zst", ".json.zst")
#: of what models are asked
_USUAL = {"n": 1, "temperature": 1.0, "max_new_tokens": 256}
_LISTED = 12  # categories that people see in the terminal

Spec = Annotated[
    str | None,
    judge_spec("Who compares the answers; without one the files must have verdicts already"),
]
Baseline = Annotated[
    str | None,
    described(
        "Whom all others meet; by default everybody meets everybody, and of two policies the "
        "second is the baseline.",
        metavar="NAME",
    ),
]
Prompts = Annotated[
    list[str] | None,
    described(
        "Files whose prompts models are asked, and to whose prompts answers are limited.",
        consume_multiple=True,
        metavar="PATH",
    ),
]
By = Annotated[
    list[str] | None,
    described(
        "Break the win rates down by this column of the rows; repeat it for more.",
        metavar="COLUMN",
    ),
]
Against = Annotated[
    list[str] | None,
    described(
        "Verdicts of another run, as --verdicts writes them, to test the difference prompt by "
        "prompt.",
        consume_multiple=True,
        metavar="PATH",
    ),
]
Verdicts = Annotated[
    str | None,
    described("Write every match with its verdict to this .jsonl.", metavar="FILE"),
]
Page = Annotated[str | None, described("Write the page to look at to this .html.", metavar="FILE")]
Cache = Annotated[
    str | None,
    described(
        "Keep the judge's verdicts, and what models answer, in this folder: a run that was killed "
        "goes on, and nothing is asked twice.",
        metavar="FOLDER",
    ),
]
Repeats = Annotated[
    int,
    described("Answers of a model to each prompt.", name=("-n", "--n"), validator=Number(gte=1)),
]
Budget = Annotated[
    int | None,
    described("Most questions that the judge is asked; needs --cache.", validator=Number(gte=0)),
]


def evaluate(
    answers: tuple[str, ...],
    /,
    *,
    judge: Spec = None,
    baseline: Baseline = None,
    prompts: Prompts = None,
    by: By = None,
    against: Against = None,
    verdicts: Verdicts = None,
    out: Page = None,
    cache: Cache = None,
    budget: Budget = None,
    n: Repeats = 1,
    temperature: Annotated[float, described("Of a model: 0 takes the most probable token.")] = 1.0,
    max_new_tokens: Annotated[int, described("A model's answer that is longer is cut.")] = 256,
    device: Device = None,
    seed: Annotated[int, seeded("Seed of samples, intervals and tests.")] = 0,
) -> Outcome:
    """Compare policies by their answers, with any judge.

    The i-th answer of a policy to a prompt meets the i-th of another. Win rates are means of 1, ½
    and 0 with 95 % intervals clustered by prompt. A verdict that flips with the order of the
    answers is a tie and an inconsistency; an unreadable one is counted and is in no rate. Beside
    each rate stands what "the longer one wins" would say, and a rate with length taken out:
    AlpacaEval's regression without the difficulty of instructions, so an approximation. `soft` is
    AlpacaEval's win rate, the mean probability. Arena-Hard's, in which A>>B counts three times,
    is not offered: judges here give no grades.

    `prefopt evaluate ours.jsonl base.jsonl --judge lm:runs/judge --out page.html`

    `prefopt evaluate new=runs/second old=runs/first --prompts test.jsonl --judge server:URL`

    With `--json`: `judge`, `policies`, `baseline`, `matches`, `unmatched` (answers that had none
    to meet), `comparisons`, `ranking` (Bradley–Terry, of three policies or more), `unranked`
    (why there is none), `paired` (policies that met the baseline on the same prompts), `against`,
    `verdicts`, `page`.

    Parameters
    ----------
    answers
        Files with answers, or models to be asked now (folders, hub ids, URLs of servers), each
        as it is or with a name: `ours=runs/first`. Completions of a file belong to their
        `source`. Without `--judge`, files of verdicts.
    """
    check_target(out, ".html", read=answers)
    check_target(verdicts, ".jsonl", read=[*answers, *(against or ())], option="--verdicts")
    how = {"n": n, "temperature": temperature, "max_new_tokens": max_new_tokens, "seed": seed}
    asking = {"cache": cache, "budget": budget, "device": device}
    unused = {"--prompts": prompts, "--cache": cache, "--budget": budget}
    read = partial(_given, answers, unused)
    if judge is not None:
        read = partial(_judged, answers, judge, baseline, prompts, by or (), how, asking)
    result = _measured(read, baseline, by or (), against, verdicts, out, seed)
    return Outcome(result, _shown(result))


def _measured(
    read: Callable[[], tuple[list[Match], dict[str, Any]]],
    baseline: str | None,
    by: Sequence[str],
    against: Sequence[str] | None,
    verdicts: str | None,
    out: str | None,
    seed: int,
) -> dict[str, Any]:
    """Read or make the matches, measure them, and write what was asked for."""
    from prefopt.evaluation.evaluate import evaluate as measure
    from prefopt.evaluation.matches import read_matches, write_matches

    others = read_matches(against) if against else ()
    matches, said = read()
    found = measure(matches, baseline=baseline, by=by, against=others, seed=seed)
    result = {**said, "baseline": baseline, "matches": len(matches), **found,
              "verdicts": verdicts, "page": out}  # fmt: skip
    if verdicts is not None:
        write_matches(verdicts, matches, _name(said))
    if out is not None:
        _write_page(result, matches, out)
    return result


def _write_page(result: dict[str, Any], matches: Sequence[Match], out: str) -> None:
    from prefopt.report.evaluation_page import write

    write(result, matches, out)


def _given(files: Sequence[str], unused: dict[str, Any]) -> tuple[list[Match], dict[str, Any]]:
    """Matches that have their verdicts already."""
    from prefopt.evaluation.matches import answers_of, read_matches

    for option, value in unused.items():
        if value is not None:
            raise UsageError(
                "has no effect without a judge", field=option, value=value,
                remedy="give --judge, or leave it out",
            )  # fmt: skip
    matches = read_matches(list(files))
    return matches, {"judge": None, "policies": answers_of(matches), "unmatched": 0}


def _judged(
    answers: Sequence[str],
    spec: str,
    baseline: str | None,
    prompts: Sequence[str] | None,
    by: Sequence[str],
    how: dict[str, Any],
    asking: dict[str, Any],
) -> tuple[list[Match], dict[str, Any]]:
    from prefopt.evaluation.answers import pairings, play
    from prefopt.evaluation.asking import Asker

    asker = Asker.of(spec, **asking)
    collected = _collect(answers, prompts, baseline, by, how, asking)
    meetings = pairings(list(collected.texts), baseline)
    with counting("judging", "matches") as progress:
        matches, alone = play(collected, meetings, asker.verdicts, progress)
    about = {"judge": asker.about(), "policies": collected.table(), "unmatched": alone}
    return matches, about


def _collect(
    given: Sequence[str],
    prompts: Sequence[str] | None,
    baseline: str | None,
    by: Sequence[str],
    how: dict[str, Any],
    asking: dict[str, Any],
) -> Answers:
    """The answers that are there, and those of models that are asked now."""
    from prefopt.evaluation.answers import Answers, pairings, read_answers, read_asked
    from prefopt.evaluation.comparing import check_columns

    collected = Answers()
    named = [_named(text) for text in given]
    models = {place: one for place, one in enumerate(named) if not one[1].endswith(_FILES)}
    if not models:
        _refuse_unused({name: how[name] for name, usual in _USUAL.items() if how[name] != usual})
    for prompt, columns in read_asked(prompts) if prompts else ():
        collected.note(prompt, columns)
    places: dict[str, int] = {}  # of policies on the command line
    for place, (name, path) in enumerate(named):
        if place not in models:
            read_answers(collected, path, name, only=bool(prompts))
            places |= dict.fromkeys(collected.texts.keys() - places.keys(), place)
    if models and not collected.prompts:
        raise UsageError(
            "a model needs prompts to answer", field="--prompts", value=given[next(iter(models))],
            remedy="name files with prompts, or give a file of answers to the same ones",
        )  # fmt: skip
    check_columns(collected.columns.values(), by)
    if models:
        from prefopt.evaluation.sampled import ask_model, named_models

        called = named_models(collected, list(models.values()))
        pairings([*collected.texts, *(name for name, _ in called)], baseline)  # or not at all
        places |= {name: place for place, (name, _) in zip(models, called, strict=True)}
        for name, path in called:
            with counting(f"asking {name}", "prompts") as progress:
                ask_model(collected, path, name, cache=asking["cache"], device=asking["device"],
                          progress=progress, **how)  # fmt: skip
    collected.texts = dict(sorted(collected.texts.items(), key=lambda one: places[one[0]]))
    return collected


def _refuse_unused(changed: dict[str, Any]) -> None:
    for name, value in changed.items():
        raise UsageError(
            "has no effect: all answers are there already, and no model is asked",
            field="-n" if name == "n" else f"--{name.replace('_', '-')}", value=value,
            remedy="leave it out, or name a model",
        )  # fmt: skip


def _named(text: str) -> tuple[str | None, str]:
    """`name=path`, or a path alone; a URL may have an = of its own."""
    name, equals, path = text.partition("=")
    if equals and name and path and not {"/", ":", "?"} & set(name):
        return name, path
    return None, text


def _name(said: dict[str, Any]) -> str:
    return said["judge"]["name"] if said["judge"] else "unknown"


# -- what people see -----------------------------------------------------------------------


def _shown(result: dict[str, Any]) -> list[Any]:
    parts: list[Any] = []
    for found in result["comparisons"]:
        parts += [_sentence(found), table(_facts(found))]
        parts += [part for by in found["categories"] for part in _category(by)]
        parts.append("")
    if result["ranking"]:
        parts += [_ranking(result["ranking"]), ""]
    if result["unranked"]:
        parts += [f"No ranking: {result['unranked']}.", ""]
    parts += [_pair(row, f"Against {row['baseline']}, {row['policy']} and {row['other']}")
              for row in result["paired"]]  # fmt: skip
    parts += [_pair(row, f"{row['policy']}, and {row['other']} of the other run")
              for row in result["against"]]  # fmt: skip
    if result["unmatched"]:
        parts.append(f"{result['unmatched']:,} answers had none to meet and were left out.")
    if result["verdicts"]:
        parts.append(f"Wrote {result['matches']:,} matches to {result['verdicts']}")
    if result["page"]:
        parts.append(f"Wrote the page to {result['page']}")
    return parts


def _sentence(found: dict[str, Any]) -> str:
    if found["rate"] is None:
        return f"{found['policy']} against {found['baseline']}: no verdict could be read."
    rate = found["rate"]
    return (
        f"{found['policy']} wins {percent(rate['value'])} against {found['baseline']} "
        f"({_interval(rate)}; permutation test p {_p(found['p'])})."
    )


def _facts(found: dict[str, Any]) -> dict[str, str]:
    rows = {
        "pairs": f"{found['pairs']:,} on {found['prompts']:,} prompts, "
        f"{found['identical']:,} of them with equal texts",
    }
    if found["rate"] is not None:
        rows["wins, ties, losses"] = f"{found['wins']:,}, {found['ties']:,}, {found['losses']:,}"
        rows["soft win rate"] = _estimate(found["soft"])
        length = found["length"]
        rows["longest wins"] = f"{_estimate(length['longest_wins'])} would be said by length alone"
        if length["judge_takes_longer"]:
            rows["judge takes longer"] = (
                f"{_estimate(length['judge_takes_longer'])} where it decides"
            )
        rows["length"] = f"{length['mean']:,.0f} characters against {length['baseline_mean']:,.0f}"
        rows["length-controlled"] = _controlled(found["length_controlled"])
    if found["order"] is not None:
        order = found["order"]
        rows["flips with the order"] = (
            f"{order['inconsistent']:,} of {order['asked']:,} ({percent(order['rate']['value'])}); "
            f"{order['first_shown']:,} for the first shown, {order['second_shown']:,} for the other"
        )
    if found["unreadable"] or found["not_asked"]:
        rows["no verdict"] = (
            f"{found['unreadable']:,} unreadable, {found['not_asked']:,} beyond the budget"
        )
    return rows


def _controlled(fit: dict[str, Any]) -> str:
    if fit["rate"] is None:
        return f"not fitted: {fit['reason']}"
    return f"{percent(fit['rate'])} (95 % {_ends(fit['interval'])}), {fit['approximation']}"


def _category(found: dict[str, Any]) -> list[Any]:
    from prefopt.cli.agreement import grid_of

    grid = grid_of(found["column"], "pairs", "win rate", "95 %", "p", "p of all")
    for row in found["rows"][:_LISTED]:
        rate = row["rate"]
        grid.add_row(
            row["value"], f"{row['pairs']:,}", "–" if rate is None else percent(rate["value"]),
            "" if rate is None or rate["interval"] is None else _ends(rate["interval"]),
            _p(row["p"]), _p(row["p_holm"]),
        )  # fmt: skip
    more = found["left_out"] + max(0, len(found["rows"]) - _LISTED)
    note = "Among many categories some differ by chance; the last column allows for that (Holm)."
    return ["", grid, note if not more else f"{note} {more:,} more are in --json."]


def _ranking(found: dict[str, Any]) -> Any:
    from prefopt.cli.agreement import grid_of

    grid = grid_of("policy", "rank", "95 %", "score", "95 %", "beats the others")
    for row in found["policies"]:
        low, high = row["rank_interval"]
        ends = "{:+.3f} to {:+.3f}".format(*row["interval"])
        grid.add_row(
            row["policy"], str(row["rank"]), f"{low} to {high}", f"{row['score']:+.3f}", ends,
            percent(row["win_rate"]),
        )  # fmt: skip
    if found["ridge"]:
        grid.caption = (
            f"with a ridge of {found['ridge']:g}, because somebody won or lost (almost) everything"
        )
    return grid


def _pair(row: dict[str, Any], about: str) -> str:
    low, high = row["interval"]
    return (
        f"{about}: {100 * row['difference']:+.1f} points on {row['prompts']:,} prompts that both "
        f"have (95 % {100 * low:+.1f} to {100 * high:+.1f}; permutation test p {_p(row['p'])}, "
        f"sign test p {_p(row['sign_p'])}; better on {row['better']:,}, worse on {row['worse']:,})."
    )


def _estimate(found: dict[str, Any]) -> str:
    return f"{percent(found['value'])} ({_interval(found)})"


def _interval(found: dict[str, Any]) -> str:
    return f"95 % {_ends(found['interval'])}" if found["interval"] else "one prompt"


def _ends(ends: Sequence[float]) -> str:
    return f"{100 * ends[0]:.1f} to {100 * ends[1]:.1f}"


def _p(value: float | None) -> str:
    return "–" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"
