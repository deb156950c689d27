"""Reading and writing groups: `read_groups` for every public layout, `write_groups` for ours."""

from __future__ import annotations

import gzip
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from copy import copy
from pathlib import Path
from typing import IO, Any, Literal

from prefopt.data.files import Paths, Row, Rows, find_files, stream_rows
from prefopt.data.kinds import KINDS
from prefopt.data.layouts import Layout, find_layout, recognise
from prefopt.data.merging import Hashes, Plan, with_votes_counted
from prefopt.data.pairs import Edges
from prefopt.errors import DataError, MissingExtraError, RecipeError, RunError
from prefopt.records import Group, Origin, to_json

OnError = Literal["raise", "skip"]


def read_groups(
    path: Paths,
    *,
    format: str = "auto",
    on_error: OnError = "raise",
    edges: Edges = "all",
    source: str | None = None,
) -> GroupReader:
    """A stream of groups that can be read again and again.

    Args:
        path: a file (.jsonl, .json, .parquet, each also .gz or .zst), a folder of them, a
            Hugging Face data set (`org/name` or `org/name:split`), or a list of these.
        format: `auto` recognises the layout by the columns of each file's first row; or the
            name of one (see `layouts`).
        on_error: `raise` stops at the first row that is wrong, before any group is given
            out; `skip` leaves such rows out and counts them in `.skipped`.
        edges: of more than two ranked or scored completions, `all` comparisons or only
            `best_worst`.
        source: name of the source, written into every group.

    Raises:
        DataError: nothing is there (at once), or a row or file is wrong (while reading).
        RecipeError: no such format.
        MissingExtraError: a package for this kind of file is not installed.
    """
    return GroupReader(path, format=format, on_error=on_error, edges=edges, source=source)


class GroupReader:
    """What `read_groups` returns. Rows with the same prompt are one group.

    Groups come in the order in which their last rows are in the files. Rows in prefopt's own
    layout are groups already and are left as they are. Memory grows by 16 bytes a row for a
    moment; where prompts come twice by 24, of which 4 stay, and by the text of prompts whose
    rows are far apart.

    Attributes:
        files: what is read, in order.
        rows: rows read, after the data was read once.
        skipped: rows (or files) left out with `on_error="skip"`, by kind, then.
    """

    def __init__(
        self,
        path: Paths,
        *,
        format: str = "auto",
        on_error: OnError = "raise",
        edges: Edges = "all",
        source: str | None = None,
        on_refused: Callable[[DataError], None] | None = None,
    ) -> None:
        self.files = find_files(path)
        self.rows = 0
        self.skipped: Counter[str] = Counter()
        self._layout = None if format == "auto" else find_layout(format)
        self._on_error = on_error
        self._on_refused = on_refused
        self._edges: Edges = edges
        self._source = source
        self._plan: Plan | None = None
        self._read_when: list[Any] = []  # sizes and times of the files that the plan is for

    def __iter__(self) -> Iterator[Group]:
        if self._plan is None or self._read_when != self._stamps():
            self._read_when = self._stamps()
            hashes = Hashes()
            for group, own in self.row_groups():
                if not own:
                    hashes.add(group.prompt)
            self._plan = hashes.plan()
        return self._plan.merge(copy(self).row_groups())  # a copy: this one's counts stay

    def at_once(self) -> Iterator[Group]:
        """The same groups in a single pass, for whoever can take back what came of them.

        Raises:
            PromptSeenTwice: rows that were given out as groups belong together: all that came
                is void, and has to be read by iterating.
            DataError: as while iterating, but some groups were given out before.
        """
        hashes = Hashes(at_once=True)
        for group, own in self.row_groups():
            if own:
                yield group
                continue
            hashes.add(group.prompt)
            yield with_votes_counted(group)
        hashes.plan()

    def row_groups(self) -> Iterator[tuple[Group, bool]]:
        """One group for every accepted row, before merging, and whether it stays as it is."""
        self.rows = 0
        self.skipped = Counter()
        for file in self.files:
            before = self.rows
            try:
                yield from self._of_file(file)
            except DataError as error:
                self._refuse(error, file, None)
            else:
                if self.rows == before:
                    self._refuse(
                        DataError(
                            "the file has no rows",
                            kind="empty_file",
                            remedy=KINDS["empty_file"][2],
                        ),
                        file,
                        None,
                    )

    def _of_file(self, file: str) -> Iterator[tuple[Group, bool]]:
        return self.of_rows(stream_rows(file), file, self._layout)

    def of_rows(self, rows: Rows, file: str, layout: Layout | None) -> Iterator[tuple[Group, bool]]:
        """The same of some rows of a file, if the rows before them had this layout."""
        for number, row in rows:
            self.rows += 1
            try:
                if isinstance(row, DataError):
                    raise row
                layout = layout or recognise(row)
                group = self._group(row, layout, Origin(file, number))
            except DataError as error:
                if self._layout is None and layout is not None and isinstance(row, dict):
                    error = _unless_mixed(error, row, layout)
                self._refuse(error, file, number)
            else:
                yield group, layout.name == "prefopt"

    def _group(self, row: Row, layout: Layout, origin: Origin) -> Group:
        try:
            draft = layout.convert(row, self._edges)
            if self._source is not None:
                draft["source"] = self._source
            return Group(**draft, origins=(origin,))
        except DataError:
            raise
        except (KeyError, TypeError, ValueError) as error:  # of prefopt's own records
            raise DataError(
                f"the row is not a valid group: {error}",
                kind="out_of_range" if type(error) is ValueError else "wrong_type",
                value=row,
                remedy=f"see the layout '{layout.name}'",
            ) from error

    def _refuse(self, error: DataError, file: str, row: int | None) -> None:
        error.file, error.row = error.file or file, error.row or row
        if self._on_refused is not None:
            self._on_refused(error)
        if self._on_error == "raise":
            raise error
        self.skipped[error.kind] += 1

    def _stamps(self) -> list[Any]:
        return [
            (status.st_size, status.st_mtime_ns, status.st_ino)
            for status in (os.stat(file) for file in self.files if os.path.exists(file))
        ]


def _unless_mixed(error: DataError, row: Row, layout: Layout) -> DataError:
    """The error, or a better one if the row is in another layout than the file."""
    if error.kind not in ("missing_field", "wrong_type", "prompt_mismatch"):
        return error
    try:
        other = recognise(row)
        if other.name == layout.name:
            return error
        other.convert(row, "all")
    except (KeyError, TypeError, ValueError):  # it is no good row of another layout either
        return error
    return DataError(
        f"the row has layout '{other.name}' and those before it '{layout.name}'",
        kind="mixed_layout",
        value=sorted(row),
        remedy=KINDS["mixed_layout"][2],
    )


# -- writing -------------------------------------------------------------------------------


def write_groups(path: str | Path, groups: Iterable[Group]) -> int:
    """Write groups as prefopt's own JSONL, from which they are read back unchanged.

    The file appears under its name only when it is complete. Origins are not written, and
    `meta` must be plain JSON.

    Args:
        path: ends with .jsonl, .jsonl.gz or .jsonl.zst; replaced if it exists.

    Returns:
        How many groups were written.

    Raises:
        RecipeError: another ending.
        DataError: a group holds what JSON cannot, such as a NaN or half a surrogate pair.
        RunError: the file cannot be written.
    """
    path = Path(path)
    if not path.name.endswith((".jsonl", ".jsonl.gz", ".jsonl.zst")):
        raise RecipeError(
            "groups are written as JSONL",
            field="path",
            value=str(path),
            remedy="name the file .jsonl, .jsonl.gz or .jsonl.zst",
        )
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    count = 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as raw:
            with _packed(raw, path.suffix) as stream:
                for group in groups:
                    stream.write(as_line(group))
                    count += 1
            raw.flush()
            os.fsync(raw.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if isinstance(error, RunError):  # of whatever the groups come from
            raise
        raise RunError(
            f"the file cannot be written: {error.strerror or error}",
            file=str(path),
            remedy="check the folder, its permissions and the free space",
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink()
    return count


def as_line(group: Group) -> bytes:
    """A group as a line of prefopt's own JSONL.

    Raises:
        DataError: it holds what JSON cannot.
    """
    try:
        text = json.dumps(to_json(group), ensure_ascii=False, allow_nan=False)
        return text.encode("utf-8") + b"\n"
    except (TypeError, ValueError) as error:
        origin = group.origins[0] if group.origins else None
        raise DataError(
            f"the group cannot be written as JSON: {error}",
            kind="wrong_type",
            file=origin.file if origin else None,
            row=origin.row if origin else None,
            value=group.prompt_text,
            remedy="keep only text, finite numbers, lists and objects in it",
        ) from error


def _packed(raw: IO[bytes], suffix: str) -> Any:
    if suffix == ".gz":
        # neither name nor time: the same groups give the same bytes
        return gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0)
    if suffix == ".zst":
        try:
            import zstandard
        except ImportError as error:
            raise MissingExtraError(
                "writing .zst files needs the package zstandard", remedy="pip install zstandard"
            ) from error
        return zstandard.ZstdCompressor().stream_writer(raw, closefd=False)
    return open(raw.fileno(), "wb", closefd=False)
