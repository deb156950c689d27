"""What the benchmarks share: where they ran, child processes, files written whole."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.metadata
import importlib.util
import io
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
PACKAGES = (
    "torch", "transformers", "peft", "trl", "accelerate", "datasets", "numpy", "torchao",
    "bitsandbytes",
)  # fmt: skip
#: rooms of prefopt that no training enters
ELSEWHERE = {"cli", "report", "evaluation", "sampling"}
#: share of the processors that others may use before a figure counts as taken under load
QUIET = 0.15
Json = dict[str, Any]


# -- where it ran --------------------------------------------------------------------------


def provenance(scripts: Iterable[str]) -> Json:
    """When, what and where: stands at the head of every record of results."""
    return {
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "code": code(tuple(scripts)),
        "hardware": hardware(),
        "versions": versions(),
    }


def comparable(record: Json, here: Json) -> bool:
    """Whether a record was measured with the same code and packages on such a machine."""
    return all(record.get(name) == here[name] for name in ("code", "hardware", "versions"))


def hardware() -> Json:
    """The processor, its cores and the memory, as far as the system tells."""
    processor = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        processor = names[0] if names else processor
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    except (OSError, ValueError):
        memory = 0.0
    return {
        "processor": processor,
        "cores": os.cpu_count(),
        "memory_gib": round(memory, 1),
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
    }


def versions(packages: Iterable[str] = PACKAGES) -> Json:
    """Of Python and of packages; None of one that is not installed."""
    found: Json = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def commit() -> str | None:
    """The commit measured, with a + where the code differs from it."""
    git = ["git", "-C", str(HERE.parent)]
    measured = ["src", "benchmarks", ":!benchmarks/results"]
    try:
        named = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True)
        clean = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", *measured])
    except FileNotFoundError:
        return None
    if named.returncode:
        return None  # no repository
    return named.stdout.decode().strip() + ("+" if clean.returncode else "")


@cache
def code(scripts: tuple[str, ...]) -> str:
    """Digest of what is measured: prefopt's source, but for rooms that no training enters, and
    these scripts.

    A commit that changes only words leaves it as it is, and what is not committed counts.
    """
    source = HERE.parent / "src" / "prefopt"
    rooms = [path for path in source.rglob("*.py")
             if path.relative_to(source).parts[0] not in ELSEWHERE]  # fmt: skip
    digest = hashlib.sha256()
    for path in sorted([*rooms, *(HERE / script for script in scripts)]):
        digest.update(str(path.relative_to(HERE.parent)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def fingerprint(rows: Path | None) -> list[str] | None:
    """Name and digest of a file of rows."""
    return rows and [rows.name, hashlib.sha256(rows.read_bytes()).hexdigest()[:16]]


def missing(modules: Iterable[str]) -> list[str]:
    """Those that are not installed."""
    return [name for name in modules if importlib.util.find_spec(name) is None]


# -- what else the machine does ------------------------------------------------------------


def busy(seconds: float = 0.5) -> float | None:
    """Share of the processors in use while this process does nothing, in [0, 1].

    The load average would also tell of what this benchmark did a moment ago. None where the
    system does not tell.
    """
    before = _processor_time()
    time.sleep(seconds)
    after = _processor_time()
    if before is None or after is None or after[1] <= before[1]:
        return None
    return (after[0] - before[0]) / (after[1] - before[1])


def _processor_time() -> tuple[int, int] | None:
    """(busy, all) ticks of all processors since the system started."""
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    except OSError:
        return None
    ticks = [int(field) for field in fields]
    return sum(ticks) - ticks[3] - ticks[4], sum(ticks)  # without idle and waiting for disks


def under_load(shares: Iterable[float | None]) -> bool:
    """Whether any of these shares is more than a quiet machine has."""
    return any(share is not None and share > QUIET for share in shares)


# -- processes -----------------------------------------------------------------------------


def say(text: str) -> None:
    """Progress, on stderr."""
    print(text, file=sys.stderr, flush=True)


def python(script: str, *arguments: str, threads: int, inside: bool = False) -> str:
    """Run a script of this folder in a process of its own; its stdout.

    Args:
        inside: in this process instead, which saves its start; where figures mean nothing.

    Raises:
        SystemExit: it failed; the end of what it said is shown.
    """
    settings = {
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    if inside:
        os.environ.update(settings)
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            importlib.import_module(Path(script).stem).main(arguments)
        return said.getvalue()
    environment = os.environ | settings
    command = [sys.executable, str(HERE / script), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    return done.stdout


def result_of(stdout: str) -> Json:
    """The object in the last line: libraries may talk before it."""
    result: Json = json.loads(stdout.strip().splitlines()[-1])
    return result


# -- files and figures ---------------------------------------------------------------------


def read_json(path: Path) -> Json:
    """What a file holds; an empty object if there is none."""
    if not path.exists():
        return {}
    found: Json = json.loads(path.read_text(encoding="utf-8"))
    return found


def write_json(path: Path, value: Json) -> None:
    write_text(path, json.dumps(value, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """Replace a file as a whole: a reader sees the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.part")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)


def spread(values: Sequence[float]) -> Json:
    """Median, least and most."""
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}
