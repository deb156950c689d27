"""Options that several commands have, with one wording."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from prefopt.cli.outcome import UsageError


def default_shown(value: object) -> str | None:
    """A default as a help page shows it; that a switch is off, or a list empty, goes without."""
    return None if value is None or value is False or value == () else str(value)


#: what holds for every option, unless it says otherwise
PARAMETER = Parameter(negative=(), show_default=default_shown)


def described(text: str, **parameter: object) -> Parameter:
    """A parameter with its help text."""
    return Parameter(help=text, **parameter)  # type: ignore[arg-type]


def seeded(what: str, **parameter: object) -> Parameter:
    """The parameter for a seed, in the range that recipes have."""
    return described(what, validator=Number(gte=0, lt=2**31), **parameter)


Model = Annotated[str, described("A run's folder, a model folder, an adapter folder, or a hub id.")]
Device = Annotated[
    str | None,
    described(
        "Where to compute, such as cpu or cuda; by default the first accelerator.",
        metavar="DEVICE",
    ),
]
MaxLength = Annotated[
    int | None,
    described(
        "Most tokens of a prompt and its completion together; by default the model's own limit.",
        validator=Number(gte=2),
    ),
]
TooLong = Annotated[
    Literal["error", "drop", "cut_prompt_start", "cut_completion"],
    described("What happens to rows beyond that."),
]
Format = Annotated[str, described("Layout of the rows; auto recognises it.", metavar="NAME")]
OnError = Annotated[
    Literal["raise", "skip"],
    described("Stop at the first wrong row, or leave it out and count it."),
]
MicrobatchTokens = Annotated[
    int,
    described(
        "Tokens computed at once: memory against speed, never the result.",
        validator=Number(gte=1),
    ),
]


def judge_spec(purpose: str) -> Parameter:
    """The parameter for a judge that a command asks, which may be any of `prefopt judge`."""
    some = "longest, reward:FOLDER, lm:FOLDER, server:URL or a YAML file"
    return described(f"{purpose}: any judge of `prefopt judge`, such as {some}.", metavar="SPEC")


def check_target(
    out: str | None, *endings: str, read: Iterable[str] = (), option: str = "--out"
) -> None:
    """Refuse a file that could not be written, before the work rather than after it.

    Raises:
        UsageError: its ending is another, its folder cannot be made, it is a folder, or it is
            among the files that are `read`.
    """
    if out is None:
        return
    path = Path(out)
    problem = None
    if not path.name.endswith(endings):
        problem = f"the name must end with {' or '.join(endings)}"
    elif path.is_dir():
        problem = "there is a folder of that name"
    elif path.exists() and any(_holds(source, path) for source in read):
        problem = "it is a file that is read, which would be lost"
    else:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            problem = f"its folder cannot be made: {error.strerror}"
    if problem:
        raise UsageError(problem, field=option, value=out, remedy=f"choose another {option}")


def _holds(source: str, path: Path) -> bool:
    """Whether a file is the source, or in it if that is a folder."""
    real = path.resolve()
    return Path(source).resolve() in (real, *real.parents) and Path(source).exists()
