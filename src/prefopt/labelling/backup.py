"""A copy of a database from which everything can be had again, made while people label.

SQLite copies itself, page by page, into a file that is a database like the first one. PostgreSQL
has tools of its own for that; here every task is exported, and links and sessions are left out:
after a restore everybody gets a new link.
"""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefopt.errors import DataError, RunError
from prefopt.labelling.contents import TASK_NAME
from prefopt.labelling.exporting import history, write_task
from prefopt.labelling.importing import import_task
from prefopt.runs import atomic_file, atomic_folder, empty_folder, explained, write_text

if TYPE_CHECKING:
    from prefopt.labelling.store import Store

FORMAT = "prefopt labelling backup"
VERSION = 1


def backup_sqlite(source: str | Path, out: str | Path) -> dict[str, Any]:
    """Copy an SQLite database into a new file, whole or not at all.

    Returns:
        `out`, `kind` (`sqlite`) and `bytes`.

    Raises:
        RunError: there is something under that name, or it cannot be written, or the copy is not
            sound.
    """
    target = Path(out)
    if target.exists():
        raise RunError(
            "there is something already", file=str(target), field="out",
            remedy="choose another name; a backup never overwrites",
        )  # fmt: skip
    with explained(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(target) as handle:
        Path(handle.name).chmod(0o600)  # names and votes are in it, as in the first one
        _copy(Path(source), Path(handle.name))
    return {"out": str(out), "kind": "sqlite", "bytes": target.stat().st_size}


def _copy(source: Path, target: Path) -> None:
    uri = f"{source.resolve().as_uri()}?mode=ro"
    try:
        first = sqlite3.connect(uri, uri=True)
        second = sqlite3.connect(target)
        try:
            first.backup(second)
            second.execute("PRAGMA journal_mode=DELETE")  # one file, with nothing beside it
            found = second.execute("PRAGMA integrity_check").fetchone()[0]
        finally:
            second.close()
            first.close()
    except sqlite3.Error as error:
        raise RunError(f"the database cannot be copied: {error}", file=str(source)) from error
    if found != "ok":
        raise RunError(f"the copy is not sound: {found}", file=str(source))


def backup_tasks(store: Store, out: str | Path) -> dict[str, Any]:
    """Export every task of a database into a folder, whole or not at all.

    Returns:
        `out`, `kind` (`export`) and `tasks` (names, with `items` and `events`).

    Raises:
        RunError: the folder holds something, or it cannot be written.
    """
    target = empty_folder(out, "a backup")
    with explained(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    tasks = {}
    with store.database.moment(), atomic_folder(target) as folder:
        for task in store.tasks():
            (folder / task.name).mkdir()
            said = write_task(store, history(store, task.name), folder / task.name, "smoothed")
            tasks[task.name] = {"items": said["items"], "events": said["events"]}
        document = {"format": FORMAT, "version": VERSION, "tasks": list(tasks)}
        write_text(folder / "manifest.json", json.dumps(document, indent=2) + "\n")
    return {"out": str(out), "kind": "export", "tasks": tasks}


def restore(store: Store, folder: str | Path, *, name: str | None = None) -> list[dict[str, Any]]:
    """Import an exported task, or all of a backup; what is there already stays as it is.

    Args:
        store: the database.
        folder: of an export or a backup of tasks.
        name: of the task here; only for a single one.

    Returns:
        What `import_task` says of each.

    Raises:
        DataError, RecipeError, RunError: as `import_task`.
    """
    path = Path(folder)
    tasks = _tasks(path)
    if tasks is None:
        return [import_task(store, path, name=name)]
    if name is not None and len(tasks) != 1:
        raise DataError(
            f"the backup has {len(tasks)} tasks, which cannot all have one name",
            kind="out_of_range", file=str(path), field="task", value=name,
            remedy=f"import one of its folders: {', '.join(tasks)}",
        )  # fmt: skip
    return [import_task(store, path / task, name=name) for task in tasks]


def _tasks(folder: Path) -> list[str] | None:
    """The tasks of a backup; None where it is something else, of which `import_task` will tell."""
    try:
        document = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        return None
    tasks = document.get("tasks")
    if not isinstance(tasks, list) or not all(map(_is_name, tasks)):  # they are parts of paths
        raise DataError(
            "the backup does not say which tasks it has", kind="unreadable_file",
            file=str(folder / "manifest.json"),
            remedy="give a folder that `prefopt label backup` wrote, or one of its tasks",
        )  # fmt: skip
    return tasks


def _is_name(name: object) -> bool:
    return isinstance(name, str) and TASK_NAME.fullmatch(name) is not None
