"""Machines by name: what they have, as their makers say, and this one, as it is.

Sources: data sheets. Rates are of dense bf16 matrix products without sparsity; a training
reaches a share of them, which is printed with every time that is made from one.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from prefopt.errors import RecipeError
from prefopt.planning.memory import GIB

#: share of a machine's bf16 rate that a training is taken to reach, where nothing was measured
ASSUMED_SHARE = 0.4
#: what a driver, its context and its libraries take of a device before anything is on it
CONTEXT = GIB
#: what the system and other programs leave to a training on a machine of shared memory
SHARED = 0.75


@dataclass(frozen=True)
class Machine:
    """One device, or so many of them.

    Attributes:
        name: as `--machine` takes it.
        kind: `cpu`, or an accelerator.
        memory: bytes a training can have on one device.
        rate: floating-point operations a second of large matrix products, on one device.
        bandwidth: bytes a second between that memory and where it computes.
        count: devices.
        share: of the rate, that a training reaches.
        measured: whether rate and bandwidth were measured, and not read in a data sheet.
        bf16: whether it computes in bf16 where the recipe leaves that open.
    """

    name: str
    kind: Literal["cpu", "accelerator"]
    memory: int
    rate: float
    bandwidth: float
    count: int = 1
    share: float = ASSUMED_SHARE
    measured: bool = False
    bf16: bool = True


def _accelerator(name: str, memory: float, rate: float, bandwidth: float) -> Machine:
    """GiB, bf16 TFLOP/s and GB/s of a data sheet."""
    usable = int(memory * GIB) - CONTEXT
    return Machine(name, "accelerator", usable, rate * 1e12, bandwidth * 1e9)


def _laptop(name: str, memory: float) -> Machine:
    """Four cores with 256-bit vectors and two channels of memory; fp32."""
    usable = int(memory * SHARED * GIB)
    return Machine(name, "cpu", usable, 0.3e12, 40e9, share=0.5, bf16=False)


def _apple(name: str, memory: float, rate: float, bandwidth: float) -> Machine:
    """A GPU that shares the machine's memory."""
    return replace(_accelerator(name, 0, rate, bandwidth), memory=int(memory * SHARED * GIB))


#: name → machine. A card of "24 GB" has 24 GiB less what it keeps for itself, about 2 %.
MACHINES: Mapping[str, Machine] = {
    machine.name: machine
    for machine in (
        _laptop("laptop-8", 8),
        _laptop("laptop-16", 16),
        _apple("m3-pro-36", 36, 7.4, 150),
        _apple("m4-max-64", 64, 18.4, 546),
        _accelerator("rtx-3090", 23.6, 71, 936),
        _accelerator("rtx-4090", 23.6, 165, 1008),
        _accelerator("rtx-5090", 31.4, 210, 1792),
        _accelerator("t4-16", 14.6, 8.1, 320),
        _accelerator("l4", 22.0, 121, 300),
        _accelerator("l40s", 44.4, 362, 864),
        _accelerator("a100-40", 39.4, 312, 1555),
        _accelerator("a100-80", 79.2, 312, 2039),
        _accelerator("h100", 79.2, 989, 3350),
        _accelerator("h200", 139.8, 989, 4800),
        _accelerator("b200", 178.0, 2250, 8000),
        _accelerator("mi300x", 191.5, 1307, 5300),
    )
}


def named(text: str) -> Machine:
    """A machine of the table, which `this` is not: `h100`, or `h100:8` for eight of them.

    Raises:
        RecipeError: there is no such machine, or the number is none.

    >>> named("h100:8").count
    8
    """
    name, count = counted(text)
    return replace(MACHINES[name], count=count)


def counted(text: str) -> tuple[str, int]:
    """The name of a machine, which may be `this`, and how many of it.

    Raises:
        RecipeError: there is no such machine, or the number is none.

    >>> counted("this"), counted("this:2")
    (('this', 1), ('this', 2))
    """
    name, colon, count = text.partition(":")
    if name not in ("this", *MACHINES):
        raise RecipeError(
            f"there is no machine '{name}'",
            field="--machine",
            value=text,
            remedy=f"use this, or one of: {', '.join(MACHINES)}; NAME:8 for eight devices",
        )
    if colon and not (count.isdecimal() and int(count)):
        raise RecipeError(
            "the number of devices must be a whole number above 0",
            field="--machine",
            value=text,
            remedy=f"write {name}:8 for eight of them",
        )
    return name, int(count or 1)


def memory_of_this() -> int:
    """Bytes that a training can have on this machine's CPU: what is free now, and no more than
    a container allows."""
    limits = [_available()]
    for file in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            limits.append(int(Path(file).read_text()))
        except (OSError, ValueError):  # not there, or the word "max"
            continue
    return min(limits)


def told(file: str, name: str) -> int | None:
    """Bytes that Linux tells under a name in one of its files; None where it tells nothing."""
    try:
        lines = Path(file).read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(name)), None)


def _available() -> int:
    free = told("/proc/meminfo", "MemAvailable:")
    if free is not None:
        return free
    if platform.system() == "Windows":
        return 8 * GIB
    pages: int = os.sysconf("SC_PHYS_PAGES")
    return int(pages * os.sysconf("SC_PAGE_SIZE") * SHARED)
