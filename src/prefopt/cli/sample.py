"""`prefopt sample`: let a policy answer prompts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from prefopt.cli.outcome import Outcome, UsageError, counting

if TYPE_CHECKING:
    from prefopt.records import Group, Prompt


def sample(
    policy: str,
    files: Annotated[tuple[str, ...], Parameter(name="PROMPTS", show_default=False)] = (),
    /,
    *,
    prompt: list[str] | None = None,
    n: Annotated[int, Parameter(name=("-n", "--n"))] = 1,
    max_new_tokens: int = 128,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    seed: int = 0,
    batch_size: int = 32,
    device: str | None = None,
    out: str | None = None,
) -> Outcome:
    """Let a policy answer prompts.

    A sample depends on the seed, its prompt and its number, not on the batch or on which other
    prompts are asked. Each prompt is answered once, however often a file has it.

    `prefopt sample runs/first prompts.jsonl -n 4 --out samples.jsonl`

    `prefopt sample runs/first --prompt "The film was"`

    With `--json`: `prompts`, `completions`, `out`, `samples` (a list of objects with `prompt`
    and `completions`; null where they were written to a file).

    Parameters
    ----------
    policy
        A run's folder, a model folder, an adapter folder, or a hub id.
    files
        Files or folders whose prompts are answered: preferences in any layout, or rows that
        have nothing but a `prompt`.
    prompt
        A prompt as text; repeat it for more.
    n
        Completions for each prompt.
    max_new_tokens
        A completion that has not ended by then is cut.
    temperature
        Above 1 more varied, below 1 less; 0 takes the most probable token.
    top_p
        Keep the most probable tokens that hold this much probability; 1 keeps all.
    top_k
        Keep this many tokens; 0 keeps all.
    seed
        Another seed, other samples.
    batch_size
        Completions generated at once: memory against speed.
    device
        Where to compute, such as cpu or cuda; by default the first accelerator.
    out
        Write the prompts with their completions to this file (.jsonl, also .gz or .zst),
        which `prefopt` reads again.
    """
    prompts = _prompts(files, prompt)

    from prefopt.policies.export import model_folder
    from prefopt.policies.load import load_policy
    from prefopt.sampling.generate import sample as draw

    speaker = load_policy(model_folder(policy), device=device)
    with counting("sampling", "completions") as progress:
        texts = draw(
            speaker,
            prompts,
            n=n,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            top_k=top_k,
            seed=seed,
            batch_size=batch_size,
            progress=progress,
        )
    return _outcome(_groups(prompts, texts, policy), n, out)


def _prompts(files: Sequence[str], given: Sequence[str] | None) -> list[Prompt]:
    """The distinct prompts, in order."""
    if bool(files) == bool(given):
        raise UsageError(
            "give prompts: either files or --prompt TEXT",
            field="PROMPTS",
            remedy="prefopt sample --help shows both",
        )
    prompts: list[Prompt] = list(given or _read_prompts(files))
    return list(dict.fromkeys(prompts))


def _read_prompts(files: Sequence[str]) -> Iterator[Prompt]:
    """The prompts in files of any layout, or with prompts only."""
    from prefopt.data.fields import prompt as as_prompt
    from prefopt.data.files import find_files, stream_rows
    from prefopt.data.layouts import recognise
    from prefopt.errors import DataError

    for file in find_files(list(files)):
        number = 0
        for number, row in stream_rows(file):
            try:
                if isinstance(row, DataError):
                    raise row
                if "prompt" in row:
                    yield as_prompt(row["prompt"], "prompt")
                else:
                    yield recognise(row).convert(row, "all")["prompt"]
            except DataError as error:
                error.file, error.row = error.file or file, error.row or number
                raise
        if number == 0:
            raise DataError("the file has no rows", kind="empty_file", file=file)


def _groups(prompts: Sequence[Prompt], texts: list[list[str]], policy: str) -> list[Group]:
    from prefopt.records import Completion, Group

    return [
        Group(prompt, tuple(Completion(text, source=policy) for text in answers))
        for prompt, answers in zip(prompts, texts, strict=True)
    ]


def _outcome(groups: list[Group], n: int, out: str | None) -> Outcome:
    from prefopt.records import to_json

    result: dict[str, Any] = {"prompts": len(groups), "completions": n * len(groups), "out": out}
    if out is not None:
        from prefopt.data.formats import write_groups

        write_groups(out, groups)
        sentence = f"Wrote {result['completions']} completions of {len(groups)} prompts to {out}"
        return Outcome({**result, "samples": None}, [sentence])
    samples = [to_json(group) for group in groups]
    return Outcome({**result, "samples": samples}, _shown(groups))


def _shown(groups: list[Group]) -> list[Any]:
    from rich.rule import Rule
    from rich.text import Text

    shown: list[Any] = []
    for group in groups:
        shown.append(Text(group.prompt_text, style="bold"))
        for number, completion in enumerate(group.completions, start=1):
            shown += [Rule(str(number), align="left", style="dim"), Text(completion.text)]
        shown.append("")
    return shown
