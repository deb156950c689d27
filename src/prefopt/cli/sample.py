"""`prefopt sample`: let a policy answer prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Group as Panel
from cyclopts import Parameter
from cyclopts.validators import Number

from prefopt.cli.options import Device, check_target, described, seeded
from prefopt.cli.outcome import Outcome, UsageError, counting, table
from prefopt.errors import PrefoptError
from prefopt.records import Group, Prompt, to_json

if TYPE_CHECKING:
    from prefopt.sampling.keeping import Answered, Duplicates
    from prefopt.sampling.sampler import Sampler
    from prefopt.sampling.settings import Settings

_SERVER = Panel("With --server")

What = Annotated[
    tuple[str, ...],
    described(
        "A run's folder, a model or adapter folder, a hub id or the URL of a server; then files "
        "or folders whose prompts are answered: preferences in any layout, or rows that have "
        "nothing but a prompt. With --server only these.",
        name="POLICY PROMPTS",
        show_default=False,
    ),
]
GivenPrompts = Annotated[
    list[str] | None, described("A prompt as text; repeat it for more.", metavar="TEXT")
]
Out = Annotated[
    str | None,
    described(
        "Write the prompts with their completions to this file (.jsonl, also .gz or .zst), "
        "which prefopt reads again. Answered prompts are kept while others are asked: after an "
        "interruption the same command goes on.",
        metavar="FILE",
    ),
]
Kind = Literal["auto", "openai", "vllm", "sglang", "llama.cpp", "transformers", "other"]


@Parameter(name="*")
@dataclass(frozen=True)
class How:
    """How completions are drawn."""

    n: Annotated[int, described("Completions for each prompt.", name=("-n", "--n"))] = 1
    max_new_tokens: Annotated[int, described("A completion that has not ended by then is cut.")] = (
        128
    )
    temperature: Annotated[
        float,
        described("Above 1 more varied, below 1 less; 0 takes the most probable token."),
    ] = 1.0
    top_p: Annotated[
        float,
        described("Keep the most probable tokens that hold this much probability; 1 keeps all."),
    ] = 1.0
    top_k: Annotated[int, described("Keep this many tokens; 0 keeps all.")] = 0
    seed: Annotated[int, seeded("Another seed, other samples.")] = 0
    stop: Annotated[
        list[str] | None,
        described("A text that ends a completion; repeat it for more.", metavar="TEXT"),
    ] = None

    def settings(self) -> Settings:
        """In the words of the library.

        Raises:
            RecipeError: one is out of range or would have no effect.
        """
        from prefopt.sampling.settings import Settings

        return Settings(**{**asdict(self), "stop": tuple(self.stop or ())})


@Parameter(name="*")
@dataclass(frozen=True)
class Local:
    """Of a policy on this machine."""

    batch_size: Annotated[
        int | None,
        described("Completions computed at once, 32 by default: memory, never the result."),
    ] = None
    device: Device = None


@Parameter(name="*")
@dataclass(frozen=True)
class Served:
    """Of a server."""

    server: Annotated[
        str | None,
        described("URL of an OpenAI-compatible server that answers.", metavar="URL", group=_SERVER),
    ] = None
    model: Annotated[
        str | None,
        described("Its name there; by default the only one.", metavar="NAME", group=_SERVER),
    ] = None
    key: Annotated[
        str | None,
        described(
            "The environment variable that holds the server's key.",
            metavar="VARIABLE",
            group=_SERVER,
        ),
    ] = None
    concurrency: Annotated[
        int | None,
        described(
            "Requests at the same time, 16 by default.", group=_SERVER, validator=Number(gte=1)
        ),
    ] = None
    timeout: Annotated[
        float | None,
        described("Seconds for one answer, 600 by default.", group=_SERVER, validator=Number(gt=0)),
    ] = None
    retries: Annotated[
        int | None,
        described(
            "How often a request is sent again before it counts as failed, 8 by default.",
            group=_SERVER,
            validator=Number(gte=0),
        ),
    ] = None
    kind: Annotated[
        Kind | None, described("What kind of server, where it does not say.", group=_SERVER)
    ] = None
    as_chat: Annotated[
        bool | None,
        described("Send texts as what a user says, not to be continued.", group=_SERVER),
    ] = None


_DRAWN, _HERE, _THERE = How(), Local(), Served()
_SHOWN, _WIDTH = 5, 40  # refused prompts, and characters of each


def sample(
    what: What = (),
    /,
    *,
    prompt: GivenPrompts = None,
    how: How = _DRAWN,
    duplicates: Annotated[
        Literal["keep", "drop"], described("What happens to a prompt's equal completions.")
    ] = "keep",
    here: Local = _HERE,
    out: Out = None,
    overwrite: Annotated[bool, described("Forget what is in that file, and begin anew.")] = False,
    there: Served = _THERE,
) -> Outcome:
    """Let a policy answer prompts.

    A sample of a policy on this machine depends on the seed, its prompt and its number, not on
    the batch or on which other prompts are asked. A server is given seeds, and does with them
    what it can. Each prompt is answered once, however often a file has it. One that is too long
    is left out and counted, and the same command asks for it again.

    `prefopt sample runs/first prompts.jsonl -n 4 --out samples.jsonl`

    `prefopt sample prompts.jsonl --server http://localhost:8000 --model NAME --out samples.jsonl`

    `prefopt sample runs/first --prompt "The film was"`

    With `--json`: `prompts`, `completions`, `cut` (completions that did not end in time),
    `duplicates`, `from_before` (prompts that were answered already), `refused` (prompts that
    cannot be answered) and `refusals` (`prompt` and `why` of each), `out`, `manifest`, `samples`
    (objects with `prompt` and `completions`; null where they were written to a file).
    """
    spec, files = _spec(what, here, there)
    check_target(out, ".jsonl", ".jsonl.gz", ".jsonl.zst", read=files)
    if overwrite and out is None:
        raise UsageError("goes with --out", field="--overwrite", remedy="name the file")
    asked = _prompts(files, prompt)
    from prefopt.sampling.sampler import make_sampler

    settings, sampler = how.settings(), make_sampler(spec)
    if out is None:
        return _shown_now(sampler, asked, settings, duplicates)
    return _written(sampler, asked, settings, duplicates, out, overwrite)


def _spec(
    what: Sequence[str], here: Local, there: Served
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Who answers, as `make_sampler` takes it, and the files with prompts."""
    if there.server is None and not what:
        raise UsageError(
            "is missing", field="POLICY", remedy="name a policy, or a server with --server URL"
        )
    where, *files = (there.server, *what) if there.server is not None else what
    served = there.server is not None or what[0].startswith(("http://", "https://"))
    said = [
        {name: value for name, value in asdict(options).items() if value is not None}
        for options in (here, there)
    ]
    given, useless = said[::-1] if served else said
    for name in useless:
        option = f"--{name.replace('_', '-')}"
        whose = "a policy on this machine" if served else "a server"
        raise UsageError(
            f"has an effect on {whose} only", field=option, remedy=f"leave out {option}"
        )
    return {**given, "server" if served else "policy": where}, tuple(files)


def _prompts(files: Sequence[str], given: Sequence[str] | None) -> list[Prompt]:
    """The distinct prompts, in order."""
    if bool(files) == bool(given):
        raise UsageError(
            "give prompts: either files or --prompt TEXT",
            field="PROMPTS",
            remedy="prefopt sample --help shows both",
        )
    from prefopt.data.prompts import read_prompts

    prompts: list[Prompt] = list(given or read_prompts(files))
    return list(dict.fromkeys(prompts))


def _written(
    sampler: Sampler,
    prompts: list[Prompt],
    settings: Settings,
    duplicates: Duplicates,
    out: str,
    overwrite: bool,
) -> Outcome:
    from prefopt.sampling.keeping import answer_into

    with counting("sampling", "prompts") as progress:
        answered = answer_into(
            out, sampler, prompts, settings, duplicates=duplicates, overwrite=overwrite,
            skip_refused=True, progress=progress,
        )  # fmt: skip
    result = {**_counts(answered), "out": out, "manifest": f"{out}.manifest", "samples": None}
    return Outcome(result, [*_told(answered, duplicates, out), *_refused(answered)])


def _counts(answered: Answered) -> dict[str, Any]:
    return {**asdict(answered), "refused": len(answered.refusals)}


def _told(answered: Answered, duplicates: Duplicates, out: str) -> list[Any]:
    if answered.from_before == answered.prompts:
        return [f"{out} has all {answered.completions:,} completions already."]
    rows = {
        "answered before": f"{answered.from_before:,} prompts" if answered.from_before else "",
        "cut": f"{answered.cut:,} completions did not end in time" if answered.cut else "",
        "duplicates": f"{answered.duplicates:,} completions, "
        + ("left out" if duplicates == "drop" else "kept")
        if answered.duplicates
        else "",
    }
    sentence = f"Wrote {answered.completions} completions of {answered.prompts} prompts to {out}"
    found = {name: text for name, text in rows.items() if text}
    return [sentence, *([table(found)] if found else [])]


def _refused(answered: Answered) -> list[Any]:
    """Which prompts have no answer, and why."""
    refusals = answered.refusals
    if not refusals:
        return []
    shown: list[Any] = [
        f"{len(refusals):,} of {answered.prompts + len(refusals):,} prompts cannot be answered; "
        "the same command asks for them again:"
    ]
    rows = {}
    for number, refusal in enumerate(refusals[:_SHOWN], start=1):
        said = refusal["prompt"]
        text = said if isinstance(said, str) else said[-1]["content"]
        rows[f"{number} {_line(text)[:_WIDTH]}"] = _line(refusal["why"])
    shown.append(table(rows))
    if len(refusals) > _SHOWN:
        shown.append(f"… and {len(refusals) - _SHOWN:,} more")
    return shown


def _line(text: str) -> str:
    from prefopt.sampling.failures import seen

    return " ".join(seen(text).split())


def _shown_now(
    sampler: Sampler, prompts: list[Prompt], settings: Settings, duplicates: Duplicates
) -> Outcome:
    from prefopt.sampling.failures import in_order
    from prefopt.sampling.keeping import Answered, to_groups
    from prefopt.sampling.sampler import Sample

    done: list[int] = []
    refused: dict[Prompt, PrefoptError] = {}
    with counting("sampling", "prompts") as progress:

        def count(position: int, _: list[Sample] | None = None) -> None:
            done.append(position)
            progress(len(done), len(prompts))

        def leave_out(position: int, error: PrefoptError) -> None:
            refused[prompts[position]] = error
            count(position)

        samples = sampler.sample_all(prompts, settings, count, leave_out)
    refused = in_order(refused, prompts)
    groups = to_groups(prompts, samples, sampler.name, duplicates)
    answered = Answered.of(groups, samples, refused=refused)
    shown = [to_json(group) for group in groups]
    result = {**_counts(answered), "out": None, "manifest": None, "samples": shown}
    return Outcome(result, [*_as_text(groups), *_refused(answered)])


def _as_text(groups: list[Group]) -> list[Any]:
    from rich.rule import Rule
    from rich.text import Text

    from prefopt.sampling.failures import seen

    shown: list[Any] = []
    for group in groups:
        shown.append(Text(seen(group.prompt_text), style="bold"))
        for number, completion in enumerate(group.completions, start=1):
            shown += [Rule(str(number), align="left", style="dim"), Text(seen(completion.text))]
        shown.append("")
    return shown
