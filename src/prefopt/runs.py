"""A run is a folder: everything that one training produced, written so that it can be trusted.

    recipe.yaml     every setting and where it came from
    metrics.jsonl   one line a step or an evaluation
    checkpoints/    where to go on from
    model/          the result, as `from_pretrained` loads it
    manifest.json   versions, fingerprints, counts; written last, so it means "finished"
    report.html     the page for people

Files are written under another name and renamed: a reader sees the old one, the new one or
none, whatever happens to the writer. Whoever writes a run holds its lock, which the system
releases when the process ends, however it ends.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import IO, Any

from prefopt import __version__
from prefopt.errors import RunError
from prefopt.recipe import NOT_LEARNED, ResolvedRecipe, dump, load_recipe
from prefopt.recipe.text import HEADER
from prefopt.workers import cores

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Run:
    """The folder of a run.

    Args:
        folder: it need not exist; `begin` makes it.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.recipe = self.folder / "recipe.yaml"
        self.manifest = self.folder / "manifest.json"
        self.metrics = self.folder / "metrics.jsonl"
        self.checkpoints = self.folder / "checkpoints"
        self.model = self.folder / "model"
        self.report = self.folder / "report.html"
        self.evaluation = self.folder / "evaluation.json"
        self.samples = self.folder / "samples.jsonl"

    # -- the life of a run -----------------------------------------------------------------

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run against every other process; makes the folder.

        Raises:
            RunError: another process holds it, the folder holds something else, or it cannot
                be written.
        """
        self._check_ours()
        with held(self.folder):
            yield

    def begin(self, resolved: ResolvedRecipe) -> bool:
        """Make the folder this recipe's run, or recognise it as one; returns whether it was.

        With `resume: never`, what an earlier run left here is removed first.

        Raises:
            RunError: the folder holds something else, or a run that learned differently.
        """
        self._check_ours()
        if self.recipe.exists():
            if resolved.recipe.resume == "auto":
                self._check_same(resolved)
                return True
            self._clear()
        with explained(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        write_text(self.recipe, dump(resolved))
        return False

    def discard(self) -> None:
        """Remove what the run wrote: it learned nothing, and another may have the folder."""
        self._clear()

    @property
    def finished(self) -> bool:
        """Whether the manifest, which is written last, is there."""
        return self.manifest.exists()

    @property
    def last_checkpoint(self) -> Path | None:
        """The newest checkpoint that is complete: what the same command goes on from."""
        found = [marker.parent for marker in self.checkpoints.glob("step-*/checkpoint.json")]
        return max(found, key=lambda path: int(path.name[5:]), default=None)

    def _check_ours(self) -> None:
        """Refuse a folder that somebody else keeps things in; one that is not there is fine."""
        if not self.folder.exists():
            return
        with explained(self.folder):
            names = sorted(path.name for path in self.folder.iterdir() if path.name[0] != ".")
        if "recipe.yaml" in names:
            with explained(self.recipe):
                text = self.recipe.read_text(encoding="utf-8", errors="replace")
            if not text.startswith(f"{HEADER}\n"):
                raise self._not_ours("the folder holds a recipe.yaml that no run wrote")
        elif names:
            raise self._not_ours(f"the folder is not a run: it holds {names[0]}")

    def _not_ours(self, message: str) -> RunError:
        return RunError(
            message,
            file=str(self.folder),
            field="out",
            remedy="choose another --out; a run wants a folder of its own",
        )

    def _check_same(self, resolved: ResolvedRecipe) -> None:
        before, now = load_recipe(self.recipe, {}).values(), resolved.values()
        names = [name for name in {**before, **now} if name not in NOT_LEARNED]
        different = [name for name in names if before.get(name) != now.get(name)]
        if different:
            raise RunError(
                "the folder holds a run that was trained differently: "
                + "; ".join(
                    f"{name} was {before.get(name)!r} and is {now.get(name)!r}"
                    for name in different
                ),
                file=str(self.folder),
                field=different[0],
                remedy="choose another --out, or set resume: never to start this one over",
            )

    def _clear(self) -> None:
        """Remove what a run writes, the manifest first: without it nothing looks finished."""
        with explained(self.folder):
            for path in (self.manifest, self.report, self.evaluation, self.samples, self.metrics):
                path.unlink(missing_ok=True)
            for path in (self.model, self.checkpoints):
                if path.exists():
                    shutil.rmtree(path)
            self.recipe.unlink()

    # -- files -----------------------------------------------------------------------------

    def write_json(self, path: Path, document: Any) -> None:
        """Write a JSON file of this run, whole or not at all; NaN is refused."""
        write_text(path, json.dumps(document, indent=2, ensure_ascii=False, **_STRICT) + "\n")

    def read_json(self, path: Path) -> Any:
        """Read a JSON file of this run.

        Raises:
            RunError: it is not there, or not JSON.
        """
        with explained(path):
            text = path.read_text(encoding="utf-8")
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            raise RunError("not JSON", file=str(path), row=error.lineno) from None

    # -- metrics ---------------------------------------------------------------------------

    def append_metrics(self, record: Mapping[str, Any]) -> int:
        """Add one line, in the file before this returns; returns the file's size in bytes."""
        line = json.dumps(record, ensure_ascii=False, **_STRICT) + "\n"
        with explained(self.metrics), open(self.metrics, "ab") as handle:
            handle.write(line.encode())
            return handle.tell()

    def metrics_size(self) -> int:
        """Bytes of metrics so far: what a checkpoint notes, and `truncate_metrics` wants."""
        return self.metrics.stat().st_size if self.metrics.exists() else 0

    def truncate_metrics(self, size: int) -> None:
        """Forget what was written after a checkpoint; it will be written again.

        Raises:
            RunError: there is less than that.
        """
        if size > self.metrics_size():
            raise RunError(
                f"metrics end before the checkpoint does ({self.metrics_size()} of {size} bytes)",
                file=str(self.metrics),
                remedy="set resume: never to start the run over",
            )
        if self.metrics.exists():
            with explained(self.metrics):
                os.truncate(self.metrics, size)

    def read_metrics(self) -> list[dict[str, Any]]:
        """Every record; a last line that is still being written is left out.

        Raises:
            RunError: another line is not JSON.
        """
        if not self.metrics.exists():
            return []
        with explained(self.metrics):
            *lines, _ = self.metrics.read_text(encoding="utf-8").split("\n")
        records = []
        for row, line in enumerate(lines, start=1):
            try:
                records.append(json.loads(line))
            except json.JSONDecodeError:
                raise RunError("not JSON", file=str(self.metrics), row=row) from None
        return records


# -- what a manifest records ---------------------------------------------------------------


def fingerprint_file(path: str | Path) -> str:
    """`sha256:…` of a file's bytes, read as a stream.

    Raises:
        RunError: it cannot be read.
    """
    with explained(Path(path)), open(path, "rb") as handle:
        return f"sha256:{hashlib.file_digest(handle, 'sha256').hexdigest()}"


def versions() -> dict[str, str]:
    """Of Python, prefopt and the libraries that decide a result; none is imported for it."""
    found = {"python": platform.python_version(), "prefopt": __version__}
    for name in ("torch", "transformers", "tokenizers", "peft", "numpy"):
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def hardware() -> dict[str, Any]:
    """The machine: system, processor, cores, memory in bytes and, once torch is loaded, devices."""
    found: dict[str, Any] = {
        "system": platform.platform(),
        "processor": _processor(),
        "cores": cores(),
    }
    with suppress(ValueError, OSError):
        found["memory"] = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        count = torch.cuda.device_count()
        found["devices"] = [torch.cuda.get_device_name(index) for index in range(count)]
    return found


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold a folder against every other process; makes it.

    Raises:
        RunError: another process holds it, or it cannot be written.
    """
    import fcntl

    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        handle = open(folder / ".lock", "a+")  # noqa: SIM115 (held until the end)
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            handle.seek(0)
            raise RunError(
                f"another process is writing this run (process {handle.read() or 'unknown'})",
                file=str(folder),
                remedy="wait for it, stop it, or choose another --out",
            ) from None
        handle.truncate(0)
        handle.write(str(os.getpid()))
        handle.flush()
        yield


# -- writing whole or not at all -----------------------------------------------------------


@contextmanager
def atomic_file(path: str | Path) -> Iterator[IO[bytes]]:
    """A file to write into, which takes its name when the block ends without an error.

    Raises:
        RunError: it cannot be written, or the disk is full; nothing is left behind.
    """
    target = Path(path)
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    with explained(target):
        try:
            with open(part, "wb") as handle:
                yield handle
                handle.flush()
                os.fsync(handle.fileno())
            os.replace(part, target)
        finally:
            with suppress(OSError):
                part.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """A folder to write into, which replaces `path` when the block ends without an error.

    Raises:
        RunError: it cannot be written, or the disk is full; nothing is left behind.
    """
    target = Path(path)
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    with explained(target):
        try:
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
            yield part
            if target.exists():
                old = target.with_name(f".{target.name}.{os.getpid()}.old")
                os.replace(target, old)
                os.replace(part, target)
                shutil.rmtree(old, ignore_errors=True)
            else:
                os.replace(part, target)
        finally:
            shutil.rmtree(part, ignore_errors=True)


def empty_folder(out: str | Path, maker: str) -> Path:
    """A folder that does not exist or holds nothing, for "an export" to be written into.

    Raises:
        RunError: something would be lost.
    """
    target = Path(out)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise RunError(
            "there is something already",
            file=str(target),
            field="out",
            remedy=f"choose another --out; {maker} never overwrites",
        )
    return target


def write_text(path: str | Path, text: str) -> None:
    """Write a text file, whole or not at all.

    Raises:
        RunError: it cannot be written, or the disk is full.
    """
    with atomic_file(path) as handle:
        handle.write(text.encode("utf-8"))


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Say what an error of the operating system means for a run."""
    try:
        yield
    except RunError:
        raise
    except FileNotFoundError:
        raise RunError("there is no such file or folder", file=str(path)) from None
    except (NotADirectoryError, FileExistsError):
        raise RunError(
            "a file is where a folder is needed", file=str(path), remedy="choose another --out"
        ) from None
    except OSError as error:
        full = error.errno in _FULL
        message = "the disk is full" if full else f"cannot be used: {error.strerror or error}"
        remedy = "make room" if full else "choose a folder that can be written"
        raise RunError(
            message, file=str(path), remedy=f"{remedy}, or choose another --out"
        ) from error


def _plain(value: Any) -> Any:
    """Numbers of numpy and torch as Python's."""
    if hasattr(value, "item"):
        return value.item()
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


_STRICT: dict[str, Any] = {"allow_nan": False, "default": _plain}
