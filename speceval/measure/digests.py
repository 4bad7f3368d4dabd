"""SHA-256 of files, remembered by place, size and time of change: weights are read once, not before every run."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from speceval.zoo.build import cache_root

_SETTLED = 2.0
"""Seconds after its last change from which on a file is remembered: an earlier one may change within a clock's tick."""


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content, in hex."""
    return _remembered(path, "whole", _content)


def ends_digest(path: Path, size: int) -> str:
    """SHA-256 of a file's length and of its first and last `size` bytes, in hex."""
    return _remembered(path, f"ends-{size}", lambda path: _ends(path, size))


def _remembered(path: Path, kind: str, compute: Callable[[Path], str]) -> str:
    place = cache_root() / "digests" / hashlib.sha256(f"{kind} {path.resolve()}".encode()).hexdigest()[:32]
    state = _state(path)
    with suppress(OSError, ValueError):
        known, digest = place.read_text(encoding="ascii").split()
        if known == state:
            return digest
    digest = compute(path)
    if _state(path) == state and time.time() - path.stat().st_ctime > _SETTLED:
        with suppress(OSError):  # without a cache it is read again
            place.parent.mkdir(parents=True, exist_ok=True)
            partial = place.with_suffix(f".{os.getpid()}")
            partial.write_text(f"{state} {digest}", encoding="ascii")
            partial.replace(place)
    return digest


def _state(path: Path) -> str:
    found = path.stat()
    return f"{found.st_dev}-{found.st_ino}-{found.st_size}-{found.st_mtime_ns}-{found.st_ctime_ns}"


def _content(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _ends(path: Path, size: int) -> str:
    length = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(size)
        file.seek(max(0, length - size))
        return hashlib.sha256(str(length).encode() + head + file.read()).hexdigest()
