"""`prefopt label …`: people compare completions in a browser, and what they say comes back.

Here are the verbs that open the room and let people in; `labelled.py` has those that look at what
was said and carry it elsewhere.
"""

from __future__ import annotations

import webbrowser
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Parameter
from cyclopts.validators import Number

from prefopt.cli.labelled import DEFAULT, Db, backup, export, import_, opened, status
from prefopt.cli.options import PARAMETER, OnError, described, seeded
from prefopt.cli.outcome import Outcome, UsageError, announcer, console_to, counts, table, watched
from prefopt.errors import RecipeError

if TYPE_CHECKING:
    from prefopt.labelling.store import Store
    from prefopt.labelling.words import Task

_PORT = 8000
_BASE = f"http://127.0.0.1:{_PORT}"
_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_"

label = App(name="label", help_format="markdown", default_parameter=PARAMETER)

Pool = Annotated[
    str, described("Files or folders with questions, or what `prefopt acquire` wrote.")
]
TaskName = Annotated[
    str | None, described("Name of the task; by default the first file's.", metavar="NAME")
]
Gold = Annotated[
    list[str] | None,
    described(
        "Files with known answers: comparisons of probability 1 or 0. They go to everybody.",
        consume_multiple=True,
        metavar="FILE",
    ),
]
Pairs = Annotated[
    Literal["auto", "all", "given"],
    described(
        "Ask about any two completions of a prompt, or about the comparisons that the pool has; "
        "auto takes these where there are some."
    ),
]
Port = Annotated[
    int, described("Port to listen on; 0 takes a free one.", validator=Number(gte=0, lte=65535))
]
Processes = Annotated[int, described("Server processes.", validator=Number(gte=1))]
Url = Annotated[str, described("Where people reach the page, such as https://labels.example.org.")]


@Parameter(name="*")
@dataclass(frozen=True)
class Settings:
    """Of a task; what is not given stays as it is."""

    overlap: Annotated[
        int | None, described("Different people wanted for each question; 1 at first.")
    ] = None
    guidelines: Annotated[
        str | None, described("Markdown file that is shown beside every question.", metavar="FILE")
    ] = None
    gold_share: Annotated[float | None, described("Share of gold questions; 0.05 at first.")] = None
    repeat_share: Annotated[
        float | None,
        described(
            "Share of somebody's questions that are earlier ones of theirs with the sides swapped; "
            "0.05 at first."
        ),
    ] = None
    lease: Annotated[
        int | None,
        described("Seconds for which a question is kept for whoever has it; 900 at first."),
    ] = None
    seed: Annotated[int | None, seeded("Seed of sides and repetitions; 0 at first.")] = None

    def given(self) -> dict[str, Any]:
        """Those that were, by the names that `words.Task` has for them."""
        named = {**vars(self), "guidelines": _text_of(self.guidelines)}
        named["lease_seconds"] = named.pop("lease")
        return {name: value for name, value in named.items() if value is not None}


@Parameter(name="*")
@dataclass(frozen=True)
class Server:
    """Where the page is served."""

    host: Annotated[str, described("Address to listen on.")] = "127.0.0.1"
    port: Port = _PORT
    processes: Processes = 1
    remote: Annotated[bool, described("A --host that other machines can reach is meant.")] = False
    behind_https: Annotated[
        bool, described("A proxy before this server speaks HTTPS: cookies are for HTTPS only.")
    ] = False
    name: Annotated[
        list[str] | None,
        described("Further name that people ask for, such as the proxy's.", metavar="HOST"),
    ] = None
    proxy: Annotated[
        list[str] | None,
        described("Address of such a proxy, if it is another machine.", metavar="ADDRESS"),
    ] = None

    def run(self, db: str, ready: Callable[[str], Outcome]) -> Outcome:
        """Serve until it is stopped; what there is to say is said when the page can be opened."""
        from prefopt.labelling.serving import ServerStopped
        from prefopt.labelling.serving import serve as run

        announce = announcer()
        proxies = {"proxies": ("127.0.0.1", "::1", *self.proxy)} if self.proxy else {}
        try:
            run(
                db, host=self.host, port=self.port, processes=self.processes,
                remote=self.remote, behind_https=self.behind_https, names=self.name or (),
                ready=lambda url: announce(ready(url)), **proxies,
            )  # fmt: skip
        except ServerStopped as stopped:  # that is how it ends
            console_to("stderr").print(f"{stopped}.")
            return Outcome({}, [], exit_code=stopped.exit_code, said=True)
        raise AssertionError("unreachable")


@label.default
def _nothing(*verb: Annotated[str, Parameter(show=False)]) -> Outcome:
    """People compare completions in a browser; their votes become data to train on.

    `prefopt label serve samples.jsonl` serves the page, `prefopt label add-annotator ann` prints a
    link that lets somebody in, `prefopt label export votes` writes what they said. `prefopt label
    demo` shows it with generated questions. All of it is in one database: the SQLite file
    `labels.db` of this folder, or what `--db` names.

    With `--json`: one object, which `prefopt label serve --help` and the others describe.
    """
    message = f"there is no command 'label {verb[0]}'" if verb else "label needs a command"
    raise UsageError(message, remedy="prefopt label --help lists its commands")


# -- opening the room ---------------------------------------------------------------------------


@label.command(sort_key=0)
def serve(
    *pool: Pool,
    db: Db = DEFAULT,
    task: TaskName = None,
    settings: Settings = Settings(),
    gold: Gold = None,
    pairs: Pairs = "auto",
    on_error: OnError = "raise",
    server: Server = Server(),
) -> Outcome:
    """Put questions into a database and serve the page on which people answer them.

    The pool may have any layout that training reads; whatever it says of the completions is not
    shown. What the database has is not added again. What `prefopt acquire` chose is asked before
    everything else, in its order. Without a pool, the tasks that are there are served. Settings
    that are given change a task that is there.

    `prefopt label serve samples.jsonl --overlap 3 --guidelines guidelines.md`

    With `--json`, as soon as the page can be opened: `url`, `db`, `tasks` (names); with a pool
    `task`, `rows`, `new`, `known`, `gold`, `gold_known`, `acquired`, `skipped`.
    """
    from prefopt.data.files import find_files
    from prefopt.labelling.intake import take_in

    if files := [*pool, *(gold or ())]:
        find_files(files)  # before a database is made
    said, given = dict[str, Any](), settings.given()
    how: dict[str, Any] = {"gold": gold or (), "pairs": pairs, "on_error": on_error}
    with opened(db, create=bool(files)) as store:
        if pool or gold or given:
            there = _task(store, task, pool, given)
            said = {"task": there.name, **take_in(store, there, pool, **how).to_dict()}
        tasks = [one.name for one in store.tasks()]
        people = [one.name for one in store.annotators()]
        result = {"db": store.database.name, "tasks": tasks, **said}
    if not tasks:
        raise UsageError(
            "there is nothing to label", field="POOL",
            remedy="give a file with prompts and two or more completions of each",
        )  # fmt: skip
    shown = _serve_rows(result, people)
    return server.run(db, lambda url: Outcome(
        {"url": url, **result}, [f"Serving {url} until Ctrl-C", *shown]
    ))  # fmt: skip


@label.command(sort_key=1)
def demo(
    *,
    db: Annotated[
        str | None,
        described("Database; by default one that is removed at the end.", metavar="URL"),
    ] = None,
    items: Annotated[
        int, described("Ordinary questions; some more are gold.", validator=Number(gte=1))
    ] = 24,
    seed: Annotated[int, seeded("Seed of the questions.")] = 0,
    no_open: Annotated[bool, described("Do not open a browser.")] = False,
    port: Port = 0,
    processes: Processes = 1,
) -> Outcome:
    """Serve generated questions, with a link for an annotator and one for the team's lead.

    Each link lets one person in, once. It ends with Ctrl-C.

    With `--json`, as soon as the page can be opened, and then no browser is: `url`, `db`, `task`,
    `items`, `gold`, `links` (`annotator` and `lead`).
    """
    from prefopt.labelling.demo import open_demo

    with ExitStack() as stack:
        if db is None:
            db = f"sqlite:///{stack.enter_context(TemporaryDirectory())}/demo.db"
        with opened(db, create=True) as store:
            task = open_demo(store, items=items, seed=seed).name
            kinds = [item.kind for item in store.items(task)]
            name = store.database.name
            tokens = {
                "annotator": store.issue_link(store.add_annotator("ann")),
                "lead": store.issue_link(store.add_annotator("lea", "lead")),
            }

        def ready(url: str) -> Outcome:
            links = {role: f"{url}/enter/{token}" for role, token in tokens.items()}
            if not no_open and watched():
                webbrowser.open(links["annotator"])
            result = {
                "url": url, "db": name, "task": task,
                "items": kinds.count("normal"), "gold": kinds.count("gold"), "links": links,
            }  # fmt: skip
            lines = [f"{role}: {link}" for role, link in links.items()]
            return Outcome(result, [f"Serving {url} until Ctrl-C", *lines])

        return Server(port=port, processes=processes).run(db, ready)


def _task(store: Store, name: str | None, pool: Sequence[str], given: dict[str, Any]) -> Task:
    """The task that is meant, with the settings that it is to have."""
    from prefopt.labelling.words import Task

    there = {one.name: one for one in store.tasks()}
    if name is None:
        name = _named(pool[0]) if pool else next(iter(there)) if len(there) == 1 else None
    if name is None or (not pool and name not in there):
        raise RecipeError(
            "which task is meant" if name is None else "there is no such task",
            field="task", value=name,
            remedy=f"one of {', '.join(there)}" if there else "give a POOL to make one of",
        )  # fmt: skip
    return replace(there[name], **given) if name in there else Task(name, **given)


def _named(path: str) -> str:
    """A task's name from that of a file: `samples` of `runs/samples.jsonl.gz`."""
    stem = Path(path).name.split(".")[0]
    return "".join(letter if letter in _LETTERS else "-" for letter in stem)[:64] or "task"


def _text_of(path: str | None) -> str | None:
    if path is None:
        return None
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise UsageError(
            f"the guidelines cannot be read: {reason}", field="--guidelines", value=path,
            remedy="give a text file",
        ) from None  # fmt: skip


def _serve_rows(result: dict[str, Any], people: Sequence[str]) -> list[Any]:
    rows = {"database": result["db"], "tasks": ", ".join(result["tasks"])}
    if "task" in result:
        order = ", in the order of prefopt acquire" if result["acquired"] else ""
        rows[result["task"]] = (
            f"{result['new']:,} new questions{order}, {result['known']:,} known; "
            f"{result['gold'] + result['gold_known']:,} gold"
        )
        if result["skipped"]:
            rows["left out"] = counts(result["skipped"])
    rows["annotators"] = ", ".join(people) or "none: prefopt label add-annotator NAME lets one in"
    return [table(rows)]


# -- people -------------------------------------------------------------------------------------


@label.command(name="add-annotator", sort_key=2)
def add_annotator(
    name: Annotated[str, described("Of the annotator, as votes will have it.")],
    /,
    *,
    lead: Annotated[bool, described("They also see the team's statistics and votes.")] = False,
    hours: Annotated[
        float, described("How long the link can be used.", validator=Number(gt=0))
    ] = 72,
    url: Url = _BASE,
    db: Db = DEFAULT,
) -> Outcome:
    """Let somebody in: prints a link that works once, and makes the annotator if there is none.

    Send it on a way that only they read. Whoever lost it gets a new one with the same command.

    `prefopt label add-annotator ann --url https://labels.example.org`

    With `--json`: `annotator`, `role`, `link`, `hours`, `new`.
    """
    from prefopt.labelling.contents import as_name

    if not url.lower().startswith(("http://", "https://")):
        raise UsageError(
            "people cannot open this", field="--url", value=url,
            remedy="give an address that begins with https:// or http://",
        )  # fmt: skip
    with opened(db, create=True) as store:
        there = {one.name: one for one in store.annotators()}
        person = there.get(as_name(name))
        if person is None or lead:  # who is there with another role is refused
            person = store.add_annotator(name, "lead" if lead else "annotator")
        link = f"{url.rstrip('/')}/enter/{store.issue_link(person, hours=hours)}"
        where = None if store.tasks() else store.database.name
    result = {"annotator": person.name, "role": person.role, "link": link, "hours": hours,
              "new": person.name not in there}  # fmt: skip
    lets = f"lets {person.name} ({person.role}) in once, within {hours:g} hours."
    notes = [f"There are no tasks yet in {where}: prefopt label serve POOL opens one."] * bool(
        where
    )
    return Outcome(result, [link, lets, *notes])


@label.command(sort_key=3)
def revoke(name: Annotated[str, described("Of the annotator.")], /, *, db: Db = DEFAULT) -> Outcome:
    """Shut somebody out: none of their links and sessions works any more. Their votes stay.

    With `--json`: `annotator`.
    """
    with opened(db) as store:
        store.revoke(store.annotator(name))
    return Outcome({"annotator": name}, [f"{name} is shut out until they get a new link."])


label.command(status, name="status", sort_key=4)
label.command(export, name="export", sort_key=5)
label.command(import_, name="import", sort_key=6)
label.command(backup, name="backup", sort_key=7)
