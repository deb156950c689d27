"""The command line: which verbs there are, what they return, and how failures end.

Every command is loaded when it is called, so that `prefopt --help` is quick. Exit codes:
0 done, 1 failed while running, 2 wrong input, 130 interrupted, 143 stopped by SIGTERM.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout, suppress
from typing import Annotated, NoReturn

from cyclopts import App, Parameter
from cyclopts.exceptions import (
    CycloptsError,
    MissingArgumentError,
    UnknownOptionError,
    UnusedCliTokensError,
)

from prefopt import __version__
from prefopt.cli.options import PARAMETER
from prefopt.cli.outcome import LAUNCHER, Outcome, UsageError, listening, show, show_error
from prefopt.errors import PrefoptError

#: verb, where it lives, and what it does in one line
COMMANDS = (
    ("demo", "prefopt.cli.demo:demo", "Train and measure on a small generated world, end to end."),
    ("check", "prefopt.cli.check:check", "Read preferences and say what is wrong with them."),
    ("split", "prefopt.cli.split:split", "Set some of the data aside for evaluation."),
    ("balance", "prefopt.cli.balance:balance", "Weigh comparisons so that something is even."),
    ("clean", "prefopt.cli.clean:clean", "Leave out the rows of findings that you name."),
    ("aggregate", "prefopt.cli.aggregate:aggregate", "Make comparisons of many people's votes."),
    ("acquire", "prefopt.cli.acquire:acquire", "Choose which comparisons to have labelled next."),
    ("label", "prefopt.cli.label:label", "Let people compare completions in a browser."),
    ("plan", "prefopt.cli.plan:plan", "Say what a training will need and how long it will take."),
    ("train", "prefopt.cli.train:train", "Train a policy on preferences."),
    ("sweep", "prefopt.cli.sweep:sweep", "Train one recipe at many settings, and choose."),
    ("score", "prefopt.cli.score:score", "Measure how a policy ranks compared completions."),
    ("sample", "prefopt.cli.sample:sample", "Let a policy answer prompts."),
    ("judge", "prefopt.cli.judge:judge", "Let a judge compare or score completions."),
    ("revise", "prefopt.cli.revise:revise", "Revise answers by a constitution, as preferences."),
    ("evaluate", "prefopt.cli.evaluate:evaluate", "Compare policies by their answers."),
    ("agreement", "prefopt.cli.agreement:agreement", "Measure how far judges and people agree."),
    ("rounds", "prefopt.cli.rounds:rounds", "Sample, judge, train and evaluate, round by round."),
    ("frontier", "prefopt.cli.frontier:frontier", "Reward against KL where the optimum is known."),
    ("report", "prefopt.cli.artefacts:report", "Write the page that shows a run."),
    ("export", "prefopt.cli.artefacts:export", "Write a plain model folder, adapters merged."),
)

HELP = """Preferences in, a preferred policy out.

Start with `prefopt demo`; then give your own file: `prefopt check pairs.jsonl`,
`prefopt train --model FOLDER --data pairs.jsonl --out runs/first`.

Results go to stdout, progress and errors to stderr.
Exit codes: 0 done, 1 failed while running, 2 wrong input, 130 interrupted, 143 stopped.
"""

app = App(
    name="prefopt",
    help=HELP,
    help_format="markdown",
    version=__version__,
    suppress_keyboard_interrupt=False,
    default_parameter=PARAMETER,
)
for _order, (_name, _path, _help) in enumerate(COMMANDS):
    app.command(_path, name=_name, help=_help, sort_key=_order)
app.meta.suppress_keyboard_interrupt = False


@app.meta.default
def _session(
    *tokens: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
    json: bool = False,
) -> Outcome | None:
    """Run a command.

    Parameters
    ----------
    json
        Print one JSON object on stdout instead of text; errors too.
    """
    outcome: Outcome | None = app(
        tokens, exit_on_error=False, print_error=False, result_action="return_value"
    )
    if outcome is None and json and not {"-h", "--help", "--version"} & set(tokens):
        raise UsageError("no command was given", remedy="prefopt --help lists the commands")
    return outcome


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """The `prefopt` command; always leaves through `SystemExit`."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code; nothing is raised for a user's mistake."""
    try:
        code = _run(arguments, as_json="--json" in arguments)
        if sys.stdout is not None:
            sys.stdout.flush()  # what is still in its buffer may not get through either
        return code
    except OSError as error:
        return _unheard(error)


def _run(arguments: Sequence[str], *, as_json: bool) -> int:
    try:
        for verb in {name for name, *_ in COMMANDS} & set(arguments[:2]):
            app[verb].help = None  # its own page starts with its whole docstring, not one line
        # Whatever a library prints must not mix with the one object on stdout.
        machine = as_json or LAUNCHER in os.environ
        turned = redirect_stdout(sys.stderr) if machine else nullcontext()
        with _quiet_libraries(), listening(as_json=as_json), turned:
            outcome: Outcome | None = app.meta(
                list(arguments),
                exit_on_error=False,
                print_error=False,
                result_action="return_value",
            )
        if outcome is None:
            return 0
        if _speaks():
            show(outcome, as_json=as_json)
        return outcome.exit_code
    except KeyboardInterrupt as error:
        return _interrupted(error, as_json)
    except CycloptsError as error:
        return _failed(_usage(error), as_json)
    except PrefoptError as error:
        return _failed(error, as_json)
    except BrokenPipeError:
        raise  # to where what cannot be said is dealt with
    except Exception as error:
        return _unexpected(error, as_json)


def _unheard(error: OSError) -> int:
    """Stdout takes nothing: whoever read it has left, or its disk is full.

    Nothing more can be said there, nor at the exit; a reader who left knows why.
    """
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if not isinstance(error, BrokenPipeError):
        with suppress(OSError):
            print(f"error: the result cannot be written: {error.strerror}", file=sys.stderr)
    return 1


@contextmanager
def _quiet_libraries() -> Iterator[None]:
    """Keep libraries' bars for loading files, and what they will rename, off people's screens."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    with warnings.catch_warnings():
        if not _debugging():
            for category in (DeprecationWarning, FutureWarning):
                warnings.simplefilter("ignore", category)
        yield


def _speaks(error: BaseException | None = None) -> bool:
    """Whether this process tells the end: of several the main one, or the first that failed."""
    return bool(getattr(error, "speaks", os.environ.get("RANK", "0") == "0"))


def _failed(error: PrefoptError, as_json: bool) -> int:
    _traceback_if_asked()
    if _speaks(error):
        show_error(error, as_json=as_json)
    return error.exit_code


def _unexpected(error: Exception, as_json: bool) -> int:
    first = (str(error).strip().splitlines() or ["no message"])[0]
    asked = _traceback_if_asked()
    remedy = None if asked else "set PREFOPT_DEBUG=1 and run it again to see the traceback"
    wrapped = PrefoptError(f"unexpected {type(error).__name__}: {first}", remedy=remedy)
    if _speaks(error):
        show_error(wrapped, as_json=as_json, kind=type(error).__name__, code=1)
    return 1


def _interrupted(error: KeyboardInterrupt, as_json: bool) -> int:
    """Of a training, the error says by which signal and where the last checkpoint is."""
    _traceback_if_asked()
    stop = UsageError(str(error) or "interrupted", remedy="run the same command again to go on")
    if _speaks(error):
        show_error(stop, as_json=as_json, kind="KeyboardInterrupt")
    return int(getattr(error, "exit_code", 130))


def _traceback_if_asked() -> bool:
    if _debugging():
        import traceback

        traceback.print_exc(file=sys.stderr)
    return _debugging()


def _debugging() -> bool:
    return os.environ.get("PREFOPT_DEBUG", "") not in ("", "0")


def _usage(error: CycloptsError) -> UsageError:
    """cyclopts' own refusal in our form, with the help page to look at."""
    chain = " ".join(("prefopt", *(error.command_chain or ())))
    message, remedy = str(error).strip(), f"{chain} --help lists what it takes"
    argument = error.argument
    option = argument.name if argument is not None else None
    value = next((t.value for t in argument.tokens if t.value), None) if argument else None
    if isinstance(error, MissingArgumentError):
        option = error.keyword or option
        message = "needs a value" if error.keyword else "is missing"
    elif isinstance(error, UnknownOptionError):
        option = error.token.keyword or error.token.value
    elif isinstance(error, UnusedCliTokensError):
        message, value = (
            "more was given than the command takes",
            " ".join(error.unused_tokens or ()),
        )
    return UsageError(message, field=option, value=value, remedy=remedy)
