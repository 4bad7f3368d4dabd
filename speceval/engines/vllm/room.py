"""What this process may use of its machine: cores and memory, also where a container or a batch system limits them."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

GROUPS, OWN, MEMORY = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup"), Path("/proc/meminfo")
"""Linux's control groups (man 7 cgroups); those that this process is in; the machine's memory."""


def cores() -> int:
    """Cores that this process may use, at least one: those it may run on, or as many as its share of time is worth."""
    own = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([own, *(math.ceil(share) for share in _shares())]))


def free_gibibytes() -> int:
    """Memory that this process can have, in whole GiB; of the machine where the system does not say what is free."""
    kibibytes = _figure(MEMORY, "MemAvailable:")
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if kibibytes is None else kibibytes << 10
    return max(0, min([free, *_left()])) >> 30


def _shares() -> Iterator[float]:
    """Cores' worth of time that each control group may have."""
    for folder in _folders("cpu"):
        both = [*_numbers(folder / "cpu.max"), *_numbers(folder / "cpu.cfs_quota_us", folder / "cpu.cfs_period_us")]
        if len(both) == 2 and min(both) > 0:  # a quota of -1 is none
            yield both[0] / both[1]


def _left() -> Iterator[int]:
    """Bytes that each control group may take beyond what it has; files that it has read can be dropped."""
    for folder in _folders("memory"):
        for limit, usage in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
            both = _numbers(folder / limit, folder / usage)
            if len(both) == 2:
                yield both[0] - both[1] + (_figure(folder / "memory.stat", "inactive_file") or 0)


def _folders(controller: str) -> Iterator[Path]:
    """Of the control groups that this process is in, its own first; version 1 has a tree for each kind."""
    for line in _lines(OWN):
        _, names, path = line.split(":", 2)
        if names and controller not in names.split(","):
            continue
        top = GROUPS / controller if names else GROUPS
        own = top / path.lstrip("/")
        yield own
        yield from (parent for parent in own.parents if parent.is_relative_to(top))


def _numbers(*files: Path) -> list[int]:
    """What the first lines of files say; nothing where one says no number, such as `max`."""
    words = [word for file in files for line in _lines(file)[:1] for word in line.split()]
    return [int(word) for word in words] if all(word.lstrip("-").isdigit() for word in words) else []


def _figure(file: Path, name: str) -> int | None:
    """The number behind a name in a file of such lines."""
    return next((int(line.split()[1]) for line in _lines(file) if line.startswith(f"{name} ")), None)


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text().splitlines()
    except OSError:
        return []
