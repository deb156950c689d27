"""`prefopt label status`, `export`, `import` and `backup`: what was said, seen and carried."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from prefopt.cli.options import described
from prefopt.cli.outcome import Outcome, percent, table
from prefopt.data.aggregation.rules import Method
from prefopt.errors import RecipeError, RunError

if TYPE_CHECKING:
    from prefopt.labelling.store import Store

DEFAULT = "sqlite:///labels.db"

Db = Annotated[
    str,
    described(
        "Database: sqlite:///FILE, a file's path, or postgresql://USER:PASSWORD@HOST/NAME.",
        metavar="URL",
    ),
]
OneTask = Annotated[str | None, described("Which task, where there are several.", metavar="NAME")]
Rule = Annotated[
    Method, described("Rule that makes comparisons of votes, as in `prefopt aggregate`.")
]


@contextmanager
def opened(db: str, *, create: bool = False) -> Iterator[Store]:
    """A store on a database, with today's schema, for as long as it is needed.

    Raises:
        RecipeError: the URL is none, or there is no such file and it is not to be made.
        RunError, AwayError: it cannot be read.
    """
    from prefopt.labelling.database import open_database
    from prefopt.labelling.store import Store

    database = open_database(db, create=create)
    try:
        yield Store(database)
    finally:
        database.close()


def the_task(store: Store, name: str | None) -> str:
    """The task that is meant: the one of that name, or the only one.

    Raises:
        RecipeError: there is none, or there are several.
    """
    there = [task.name for task in store.tasks()]
    if name in there:
        return name
    if name is None and len(there) == 1:
        return there[0]
    raise RecipeError(
        "there is no such task" if name else "it is not said which task",
        field="task",
        value=name,
        remedy=f"--task with one of {', '.join(there)}" if there else "the database has no tasks",
    )


def status(*, db: Db = DEFAULT, task: OneTask = None, rule: Rule = "smoothed") -> Outcome:
    """Say how far the tasks are, how well people agree, and where to look.

    Shares have 95 % intervals. A star marks somebody whose votes for the left side are so many or
    so few that their interval excludes one half.

    With `--json`: `db`, `tasks` (objects with `task`, `progress`, `agreement`, `annotators`,
    `counts`, `conflicts`, `ties`, `both_bad`, `flagged`, `labels`, `rule`).

    Parameters
    ----------
    task
        Only this one.
    """
    from prefopt.labelling.statistics import team

    with opened(db) as store:
        names = [the_task(store, task)] if task else [one.name for one in store.tasks()]
        found = [team(store, name, rule=rule).to_dict() for name in names]
        result = {"db": store.database.name, "tasks": found}
    shown = [part for one in found for part in _status_shown(one)] or ["There are no tasks yet."]
    return Outcome(result, shown)


def export(
    out: Annotated[str, described("The folder to write; it must not exist, or be empty.")],
    /,
    *,
    db: Db = DEFAULT,
    task: OneTask = None,
    rule: Rule = "smoothed",
) -> Outcome:
    """Write a task's votes, comparisons and whole history into a folder.

    `votes.jsonl` is for `prefopt aggregate`, `comparisons.jsonl` for `prefopt train`, and
    `prefopt label import` makes the same task of the folder in another database. Names of
    annotators are in it, links are not.

    `prefopt label export votes --task samples`

    With `--json`: `out`, `task`, `rule`, `items`, `groups`, `votes`, `compared` (lines of
    `comparisons.jsonl`), `events`, `annotators`, `files` (with their fingerprints), `format`,
    `version`, `prefopt`.
    """
    from prefopt.labelling.exporting import export_task

    with opened(db) as store:
        result = export_task(store, the_task(store, task), out, rule=rule)
    rows = {
        "votes": f"{result['votes']:,} of {result['annotators']:,} annotators, on "
        f"{result['items']:,} questions in {result['groups']:,} groups: {out}/votes.jsonl",
        "comparisons": f"{result['compared']:,} groups by {rule}: {out}/comparisons.jsonl",
        "history": f"{result['events']:,} events",
    }
    return Outcome(result, [f"Exported the task {result['task']}.", table(rows)])


def import_(
    folder: Annotated[str, described("What `export` wrote, or a `backup` of tasks.")],
    /,
    *,
    db: Db = DEFAULT,
    task: Annotated[str | None, described("Give the task another name here.")] = None,
) -> Outcome:
    """Bring an exported task into a database, with everything that happened in it.

    Annotators are matched by their names. A task that is there already stays as it is: the same
    history is not added again, and another one is refused.

    `prefopt label import votes --db sqlite:///elsewhere.db`

    With `--json`: `tasks` (objects with `task`, `items`, `events`, `annotators`, `added`, `media`,
    `known`).
    """
    from prefopt.labelling.backup import restore

    manifest = Path(folder) / "manifest.json"
    if not manifest.is_file():  # before a database is made
        raise RunError(
            "there is no such file or folder", file=str(manifest),
            remedy="give a folder that `prefopt label export` or `backup` wrote",
        )  # fmt: skip
    with opened(db, create=True) as store:
        done = restore(store, folder, name=task)
    shown = [
        f"The task {one['task']} was there already, with the same history."
        if one["known"]
        else f"Imported the task {one['task']}: {one['items']:,} questions, {one['events']:,} "
        f"events of {one['annotators']:,} annotators, {one['added']:,} of them new here."
        for one in done
    ]
    return Outcome({"tasks": done}, shown)


def backup(
    out: Annotated[str, described("SQLite: the file to write. PostgreSQL: the folder.")],
    /,
    *,
    db: Db = DEFAULT,
) -> Outcome:
    """Copy a database while people work on it.

    Of SQLite the copy is a database like the first one: serve it with `--db`. Of PostgreSQL every
    task is exported, for `prefopt label import`; links and sessions are not in it.

    With `--json`: `out`, `kind` (`sqlite` with `bytes`, or `export` with `tasks`).
    """
    from prefopt.labelling.backup import backup_sqlite, backup_tasks

    with opened(db) as store:
        if store.database.file is not None:
            result = backup_sqlite(store.database.file, out)
            return Outcome(result, [f"Copied the database to {out}: {result['bytes']:,} bytes."])
        result = backup_tasks(store, out)
    tasks = ", ".join(result["tasks"]) or "none"
    return Outcome(result, [
        f"Exported every task to {out} ({tasks}).",
        "Links and sessions are not in it: after an import, give people new links.",
    ])  # fmt: skip


# -- for people ---------------------------------------------------------------------------------


def _status_shown(team: dict[str, Any]) -> list[Any]:
    progress, agreement, count = team["progress"], team["agreement"], team["counts"]
    agreed = "not defined yet: no two people judged one pair, or all said the same"
    if agreement["alpha"] is not None:
        low, high = agreement["interval"]
        agreed = f"{agreement['alpha']:.3f} (95 % interval {low:.3f} to {high:.3f})"
    rows = {
        "questions": f"{progress['done']:,} of {progress['items']:,} have all their votes",
        "votes": f"{progress['votes']:,} of {progress['wanted']:,}",
        "answers": f"{progress['answers']:,}, of which {progress['skips']:,} skips; "
        f"{progress['undone']:,} taken back",
        "gold": f"{progress['gold']:,} questions",
        "Krippendorff's alpha": agreed,
        "to look at": f"{count['conflicts']:,} conflicts, {count['ties']:,} ties, "
        f"{count['both_bad']:,} both bad, {count['flagged']:,} flagged",
    }
    parts = [f"Task {team['task']}", table(rows)]
    return [*parts, _people(team["annotators"])] if team["annotators"] else parts


def _people(annotators: Sequence[dict[str, Any]]) -> Any:
    from rich.table import Table
    from rich.text import Text

    columns = ("annotator", "votes", "skips", "agreement", "left", "median s", "fast", "gold",
               "self")  # fmt: skip
    shown = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for one in annotators:
        seconds = one["seconds"]
        median = "–" if seconds["median"] is None else f"{seconds['median']:.1f}"
        left = _share(one["left"]) + (" *" if one["left"]["marked"] else "")
        cells = (one["annotator"], one["votes"], one["skips"], _share(one["agreement"]), left,
                 median, seconds["fast"], _share(one["gold"]), _share(one["self"]))  # fmt: skip
        shown.add_row(*(Text(str(cell)) for cell in cells))
    return shown


def _share(share: dict[str, Any]) -> str:
    if share["share"] is None:
        return "–"
    if not share["interval"]:
        return percent(share["share"])
    low, high = (100 * end for end in share["interval"])
    return f"{percent(share['share'])} ({low:.0f} to {high:.0f})"
